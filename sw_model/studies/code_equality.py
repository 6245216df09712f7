"""Measurement: whether the compiled CPU kernels and PyTorch's operations give the same codes, here or on an accelerator.

Both put the same values on the same grid, so that equal values are equal codes.  Values are made of what quantizers find
hard, too: points half way between two codes, subnormal numbers, ranges of many magnitudes, values outside their grid.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from host.grids import host_codes
from host.operands import Grid, Operand
from sw_model.quantize import kernels, methods
from sw_model.quantize.affine import (
    Group,
    affine_grid,
    affine_values,
    derive_key,
    extremes,
    fake_quantize,
    fake_quantize_groups,
    grid_from_range,
    kept_values,
    quantize,
    quantize_and_keep,
)
from sw_model.quantize.statquant import QUANTIZERS
from sw_model.train.accelerator import name_of_device
from sw_model.train.recipe import ConfigError

WIDTHS = range(1, 17)
_IMAGE = (16, 8, 8)  #: channels, height and width of a sample
_SAMPLES = 4  #: at least, so that every group of samples has one
#: (values (N, C, H, W), bits, key of the random numbers) -> values on a grid
Quantizer = Callable[[Tensor, int, int], Tensor]


def _narrow(x: Tensor, bits: int, key: int | None) -> Grid:
    """A grid over the middle half of the range, so that values lie outside."""
    low, span = extremes(x)
    return grid_from_range(low + span / 4, span / 2, bits, key=key)


def _grouped(x: Tensor, bits: int, key: int | None) -> Tensor:
    """Samples on three grids in turn, the second half of a batch."""
    low, span = extremes(x)
    groups = []
    for turn in range(3):
        own = None if key is None else key + turn & 0xFFFFFFFF
        samples = torch.arange(turn, len(x), 3, device=x.device)
        groups.append(Group(samples, grid_from_range(low, span, 1 + (bits + 4 * turn) % 16, key=own), len(x)))
    return fake_quantize_groups(x, groups)


def _kept(x: Tensor, bits: int, key: int) -> Tensor:
    grid = affine_grid(x, bits)
    values, kept = quantize_and_keep(x, grid)
    return torch.cat([values, kept_values(kept, grid)])


def _in_engines(x: Tensor, bits: int, key: int | None) -> Tensor:
    """By the NumPy quantizer of exact engines where kernels would serve, and else by PyTorch."""
    grid = affine_grid(x, bits, key=key)
    if not kernels.serve(x.device):
        return quantize(x, grid)
    codes = host_codes(Operand(grid, values=np.ascontiguousarray(x.numpy())))
    return torch.from_numpy(codes.astype(np.float32))


def _rows(quantizer: Quantizer) -> Quantizer:
    return lambda x, bits, key: quantizer(x.flatten(1), bits, key).reshape(x.shape)


#: forms that have a compiled kernel, or a second form in NumPy
COMPILED: dict[str, Quantizer] = {
    "affine, to nearest": lambda x, bits, key: affine_values(x, bits),
    "affine, stochastic": lambda x, bits, key: affine_values(x, bits, key=key),
    "affine, published smallest scale": lambda x, bits, key: affine_values(x, bits, key=key, mode="paper"),
    "affine, by output channel": lambda x, bits, key: affine_values(x, bits, axis=0),
    "affine, by input channel": lambda x, bits, key: affine_values(x, bits, axis=1),
    "on a given grid, to nearest": lambda x, bits, key: fake_quantize(x, _narrow(x, bits, None), first=5),
    "on a given grid, stochastic": lambda x, bits, key: fake_quantize(x, _narrow(x, bits, key), first=5),
    "kept as codes": _kept,
    "groups of samples, to nearest": lambda x, bits, key: _grouped(x, bits, None),
    "groups of samples, stochastic": _grouped,
    "of exact engines, to nearest": lambda x, bits, key: _in_engines(x, bits, None),
    "of exact engines, stochastic": _in_engines,
    "StatQuant's PTQ": _rows(QUANTIZERS["ptq"]),
}
#: forms in PyTorch's operations alone, which only another device could compute otherwise
PORTABLE: dict[str, Quantizer] = {
    "StatQuant's PSQ": _rows(QUANTIZERS["psq"]),
    "StatQuant's BHQ": _rows(QUANTIZERS["bhq"]),
    "DoReFa, weights": lambda x, bits, key: methods.dorefa_weight(x, bits),
    "DoReFa, activations": lambda x, bits, key: methods.dorefa_activation(x, bits),
    "DoReFa, gradients": methods.dorefa_gradient,
    "WAGEUBN, weights": lambda x, bits, key: methods.wageubn_weight(x, bits),
    "WAGEUBN, errors": lambda x, bits, key: methods.wageubn_error(x, bits),
    "WAGEUBN, flagged errors": lambda x, bits, key: methods.wageubn_error_flagged(x, bits),
    "MXINT": lambda x, bits, key: methods.mxint(x, max(bits, 2), key=key),
}
#: of these, results of sums and of functions whose last bit is a device's own: counted, but no failure
ROUNDED = ("StatQuant's BHQ", "DoReFa, weights")


@dataclass
class Compared:
    """What came of one quantizer over all widths: numbers of values, and of those that differ."""

    values: int = 0
    different: int = 0

    def add(self, a: Tensor, b: Tensor) -> None:
        """Counts values that differ; NaN equals itself."""
        self.values += a.numel()
        self.different += int(((a != b) & ~(a.isnan() & b.isnan())).sum())


def _values(kind: str, samples: int, bits: int, generator: torch.Generator) -> Tensor:
    """Made-up values (N, C, H, W) of one of :data:`VALUES`."""
    shape = (samples, *_IMAGE)
    x = torch.randn(shape, generator=generator)
    if kind == "halves":  # between 0 and the greatest code, so that the scale is 1
        top = (1 << bits) - 1
        x = torch.randint(0, 2 * top + 1, shape, generator=generator) / 2
        x[0, 0, 0, :2] = torch.tensor([0.0, top])
    elif kind == "subnormal":
        x *= 2.0**-124
    elif kind == "magnitudes":
        x *= torch.randint(-60, 30, shape, generator=generator).exp2()
    return x


VALUES = ("normal", "halves", "subnormal", "magnitudes")


def compare_codes(
    values: int = 10_000_000,
    accelerator: torch.device | None = None,
    seed: int = 0,
    doing: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Compares the codes of the compiled kernels with those of PyTorch's operations.

    Args:
        values: of every quantizer, over all widths; rounded up to whole samples.
        accelerator: where PyTorch's operations run; None: on the CPU.
        seed: of the values and the random numbers.
        doing: told what is being compared.

    Returns:
        accelerator, device, seed, widths, ``values`` and ``different`` in all and of every quantizer (``quantizers``), and
        ``failed``: names of quantizers whose codes should be equal and are not.

    Raises:
        ConfigError: there are no compiled kernels.
    """
    cpu = torch.device("cpu")
    there = accelerator or cpu
    if not kernels.serve(cpu):
        raise ConfigError("there are no compiled kernels to compare with: install g++, and leave FRACTRAIN_FUSED unset")
    cases = COMPILED if there.type == "cpu" else {**COMPILED, **PORTABLE}
    if there.type == "mps":  # which has no float64
        cases = {name: quantizer for name, quantizer in cases.items() if name != "MXINT"}
    samples = max(-(-values // (len(WIDTHS) * len(VALUES) * torch.Size(_IMAGE).numel())), _SAMPLES)
    found = {name: Compared() for name in cases}
    generator = torch.Generator().manual_seed(seed)
    for bits in WIDTHS:
        doing(f"{bits} bits")
        for number, kind in enumerate(VALUES):
            x = _values(kind, samples, bits, generator)
            if number % 2:
                x = x.contiguous(memory_format=torch.channels_last)
            for place, (name, quantizer) in enumerate(cases.items()):
                key = derive_key(seed, bits, number, place)
                compiled = quantizer(x, bits, key)
                with kernels.portable():
                    found[name].add(compiled, quantizer(x.to(there), bits, key).cpu())
    return {
        "accelerator": there.type,
        "device": name_of_device(there),
        "seed": seed,
        "widths": [WIDTHS[0], WIDTHS[-1]],
        "values": sum(each.values for each in found.values()),
        "different": sum(each.different for each in found.values()),
        "failed": [name for name, each in found.items() if each.different and name not in ROUNDED],
        "quantizers": {name: vars(each) for name, each in found.items()},
    }


def print_codes(report: dict[str, Any], as_json: bool) -> None:
    """The report of :func:`compare_codes` as JSON or as a table."""
    if as_json:
        print(json.dumps(report))
        return
    from rich.table import Table

    from hw.console import console

    table = Table(
        "quantizer, all widths", "values", "different",
        title=f"compiled kernels against PyTorch's operations on {report['device']}",
    )  # fmt: skip
    for name, row in report["quantizers"].items():
        table.add_row(name, f"{row['values']:,}", f"{row['different']:,}")
    table.add_row("all", f"{report['values']:,}", f"{report['different']:,}")
    console().print(table)
