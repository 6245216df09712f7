"""Converts a network of any kind in place: its convolutions, linear layers and attention run on quantized operands."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hw.layer_tables import save_table
from sw_model.convert.calls import HOST, Quantized, quantized_class
from sw_model.convert.observe import Example, Seen, observe
from sw_model.convert.shapes import Traced, trace
from sw_model.convert.sites import Site, sites_of
from sw_model.nn.layers import QLayer, attach, set_precision
from sw_model.nn.precision import Precision, Run


class UnsupportedError(ValueError):
    """A network has products that have no quantized form; the message names each, and what would run instead."""


@dataclass(frozen=True)
class Conversion:
    """What has become of a network.

    Attributes:
        quantized: names of the layers whose products are quantized.
        kept: names of the layers that were to stay in float32.
        unsupported: module -> why it stays in float32; such products are in no cost.
        traced: layers, multiply-accumulates and sizes, as the example batch met them.
    """

    quantized: tuple[str, ...]
    kept: tuple[str, ...]
    unsupported: dict[str, tuple[str, ...]]
    traced: Traced

    def save_layers(self, path: Path | str, model: str = "network") -> None:
        """Write the table of the layers that ``fractrain cost --model`` and ``explore`` take, a ``.json`` file."""
        save_table(Path(path), model, self.traced.shapes)

    def __str__(self) -> str:
        lines = [f"{name}: quantized" for name in self.quantized]
        lines += [f"{name}: {HOST}, as asked" for name in self.kept]
        lines += [f"{path or 'model'}: {HOST}: {'; '.join(why)}" for path, why in self.unsupported.items()]
        return "\n".join(lines)


def convert(
    model: nn.Module,
    example: Example,
    *,
    bits: str | Sequence[int] | Precision | None = None,
    keep: Iterable[str] = (),
    run: Run | None = None,
) -> Conversion:
    """Converts a network in place.

    Every call that multiplies, in a module's ``forward`` or in the functions that it calls, runs on quantized operands:
    convolutions, linear layers, matrix products, attention.  Parameters stay the same objects under the same names.
    Normalisation, activation functions and all else stay in float32.

    Args:
        model: float32, its modules of any class.
        example: a batch to run it with: a tensor, a tuple of arguments, or a dictionary of named ones.  It is run once,
            without gradients, in the network's mode; the network is unchanged by that.
        bits: widths of weights, activations and gradients, as "4/3/6" (0: float32); None leaves float32 until a
            schedule gives other widths.
        keep: layers that stay in float32, by the name of a module (with all in it), or a pattern such as "head*".  Layers
            that have no quantized form must be among them.
        run: what all layers share; a new one by default.

    Returns:
        what became of the layers.

    Raises:
        UnsupportedError: some of it has no quantized form and is not in ``keep``; nothing has been changed.
        ValueError: a name in ``keep`` that is none, or a network that has been converted or has nothing to convert.
    """
    precision = None if bits is None else as_precision(bits)
    if any(isinstance(module, Quantized | QLayer) for module in model.modules()):
        raise ValueError(f"{type(model).__name__} is quantized already; convert a network once")
    _check_types(model)
    seen, kept = observe(model, example), _Kept(keep)
    _check(model, seen, kept)
    quantized: list[str] = []
    left: list[str] = []
    for path, found in seen.items():
        module = model.get_submodule(path)
        keeps = kept.has(path)
        module.__class__ = quantized_class(type(module))
        module.kept = bool(found.refused)  # type: ignore[assignment]
        module.products = nn.ModuleList([] if found.refused else _sites(path, found)).to(_device(module, model))
        names = [site.called for site in _layers(module)]
        (left if keeps else quantized).extend(names)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # without this, its evaluation in one call passes its layers by
    model.keep_full = set(left)  # type: ignore[assignment]
    attach(model, run or Run())
    if precision is not None:
        set_precision(model, precision)
    unsupported = {path: tuple(found.refused) for path, found in seen.items() if found.refused}
    conversion = Conversion(tuple(quantized), tuple(left), unsupported, trace(model, example))
    model.__dict__["conversion"] = conversion
    return conversion


def as_precision(bits: str | Sequence[int] | Precision) -> Precision:
    """Widths as "4/3/6", as (4, 3, 6), or as they are.

    Raises:
        ValueError: no widths.
    """
    if isinstance(bits, Precision):
        return bits
    if isinstance(bits, str):
        bits = [int(part) if part.strip().isdecimal() else -1 for part in bits.replace(",", "/").split("/")]
    if len(bits) not in (3, 4):
        raise ValueError(
            f"bits {bits!r} are not those of weights, activations and gradients; write for example '4/3/6'"
        )
    return Precision(*bits)


class _Kept:
    """Names that stay in float32, and which of them have been met."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = [names] if isinstance(names, str) else list(names)
        self.met: set[str] = set()

    def has(self, path: str) -> bool:
        """Whether a module is one of them, or inside of one."""
        for name in self.names:
            if path == name or path.startswith(f"{name}.") or name == "" or fnmatch.fnmatchcase(path, name):
                self.met.add(name)
                return True
        return False


def _check_types(model: nn.Module) -> None:
    """Refuses parameters that quantizers do not take."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"{name} has no shape yet; run the network once before converting it")
        if parameter.dtype != torch.float32:
            raise ValueError(f"{name} is {parameter.dtype}; quantizers take float32: convert model.float()")


def _check(model: nn.Module, seen: dict[str, Seen], kept: _Kept) -> None:
    """Refuses what has no quantized form and is not to be kept, and names that are none."""
    lacking = [
        f"{path or type(model).__name__} ({type(model.get_submodule(path)).__name__}): {'; '.join(found.refused)}"
        for path, found in seen.items()
        if not kept.has(path) and found.refused
    ]
    if lacking:
        paths = [path for path, found in seen.items() if found.refused]
        raise UnsupportedError(
            f"{len(lacking)} modules have products without a quantized form, which would run in {HOST}:\n"
            + "\n".join(lacking)
            + f"\nname them to leave them so: keep={paths}"
        )
    if unknown := [name for name in kept.names if name not in kept.met]:
        raise ValueError(
            f"keep names {', '.join(map(repr, unknown))}, which multiply nothing; known are {', '.join(seen)}"
        )
    if not any(found.plans for found in seen.values()):
        raise ValueError(f"{type(model).__name__} multiplies nothing with this example; there is nothing to quantize")
    for path in seen:
        module = model.get_submodule(path)
        if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            raise UnsupportedError(f"{path}: a {type(module).__name__} that multiplies by itself; make it an nn.Module")
        if hasattr(module, "products"):
            raise UnsupportedError(
                f"{path} has an attribute named products, where its quantized layers would go; rename it"
            )


def _sites(path: str, found: Seen) -> list[nn.Module]:
    """The sites of a module, named by it and, if there are several, by their place."""
    if len(found.plans) == 1:
        return [found.plans[0].site(path or "model")]
    prefix = f"{path}." if path else ""
    return [plan.site(f"{prefix}{plan.word}{index}") for index, plan in enumerate(found.plans)]


def _device(module: nn.Module, model: nn.Module) -> torch.device:
    """Where a module of a network has its parameters; if it has none, where the network has its first."""
    parameters = [*module.parameters(), *model.parameters()]
    return parameters[0].device if parameters else torch.device("cpu")


def _layers(module: nn.Module) -> list[Site]:
    """Quantized layers of a module's own products."""
    return [layer for site in module.products for layer in sites_of(site)]  # type: ignore[union-attr,misc]


def conversion_of(model: nn.Module) -> Conversion:
    """What :func:`convert` has made of a network.

    Raises:
        ValueError: it has not been converted.
    """
    found: Conversion | None = model.__dict__.get("conversion")
    if found is None:
        raise ValueError(f"{type(model).__name__} has not been converted; call fractrain.convert(model, example) first")
    return found
