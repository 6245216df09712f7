"""Measurements: what gradient quantizers do to real gradients, in bias and variance."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sw_model.data.images import ImageSet
from sw_model.nn.layers import QLayer, attach, quantized_layers
from sw_model.nn.models import build_model
from sw_model.nn.precision import Precision, Run
from sw_model.quantize.affine import derive_key
from sw_model.quantize.statquant import QUANTIZERS, psq_variance_bound, ptq_variance_bound
from sw_model.studies.accuracy import Estimate


@dataclass
class _Captured:
    name: str
    gradient: Tensor


def capture_gradients(model: nn.Module, x: Tensor, y: Tensor) -> list[_Captured]:
    """Output gradients of every convolution and linear layer for one batch, each as a matrix (N, features)."""
    found: list[_Captured] = []
    handles = []
    for name, layer in quantized_layers(model):

        def hook(_: QLayer, inputs: Any, output: Tensor, name: str = name) -> None:
            output.register_hook(lambda g: found.append(_Captured(name, g.detach().flatten(1).clone())))

        handles.append(layer.register_forward_hook(hook))
    try:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
    return found[::-1]


def _weight_gradient(model: nn.Module, run: Run, x: Tensor, y: Tensor, bits: Mapping[str, int], draw: int) -> Tensor:
    """Gradient of all quantized layers' weights for one batch, as one float64 vector.

    Args:
        bits: of the output gradient, by layer; float32 in layers that are not named.
        draw: counter behind the random numbers.
    """
    run.step = draw
    layers = list(quantized_layers(model))
    for name, layer in layers:
        layer.precision = Precision(8, 8, bits.get(name, 0))
    model.zero_grad(set_to_none=True)
    F.cross_entropy(model(x), y).backward()
    gradients = [layer.weight.grad for _, layer in layers]
    return torch.cat([g.flatten() for g in gradients if g is not None]).double()


def decompose(
    model: nn.Module, run: Run, batches: Sequence[tuple[Tensor, Tensor]], rounds: int, bits: int
) -> dict[str, Any]:
    """Theorem 2 of StatQuant on a network: where the variance of the quantized gradient comes from.

    Fully quantized training (FQT) rounds the output gradient of every layer, QAT none.  For unbiased quantizers the
    theorem says: variance of the FQT gradient = variance of the QAT gradient over batches + one term per layer, that
    layer's quantizer propagated through the layers below.  The terms are measured one at a time, the other layers'
    gradients in float32; that leaves out what rounding above does to a layer's range.

    Args:
        model: weights and activations of 8 bits; left with other precisions.
        run: of the model, its ``gradient`` the quantizer.
        batches: at least two.
        rounds: roundings of each batch, at least two.
        bits: of the gradients.

    Returns:
        variances of the weight gradient, summed over its elements, as mean and half of the 95 % interval: ``all``, with
        every layer quantized, and ``sum``, of ``layers``, one quantized at a time (means over batches); their ``ratio``,
        batch by batch; ``bias``, squared distance of the mean from the QAT gradient over what the variance lets expect
        (1 if unbiased); over batches, ``qat`` and ``fqt`` (the latter over rounds), and ``total_ratio``, ``fqt`` over
        ``qat + all`` (1 by the theorem, as far as these batches tell).
    """
    names = [name for name, _ in quantized_layers(model)]
    everywhere = dict.fromkeys(names, bits)
    each: dict[str, list[float]] = {name: [] for name in names}
    together, bias, qat, fqt = [], [], [], []
    for place, (x, y) in enumerate(batches):
        exact = _weight_gradient(model, run, x, y, {}, 0)
        draws = range(place * rounds, (place + 1) * rounds)
        rounded = torch.stack([_weight_gradient(model, run, x, y, everywhere, draw) for draw in draws])
        together.append(float((rounded - exact).square().sum()) / rounds)
        bias.append(float((rounded.mean(0) - exact).square().sum()) * rounds / together[-1])
        for name in names:
            alone = [_weight_gradient(model, run, x, y, {name: bits}, draw) for draw in draws]
            each[name].append(sum(float((g - exact).square().sum()) for g in alone) / rounds)
        qat.append(exact)
        fqt.append(rounded)
    parts = [sum(row) for row in zip(*each.values(), strict=True)]
    over_batches = float(torch.stack(qat).var(0).sum())
    # One rounding of every batch gives one variance over batches.
    quantized = [float(torch.stack([rounded[r] for rounded in fqt]).var(0).sum()) for r in range(rounds)]
    expected = over_batches + statistics.mean(together)
    return {
        "all": asdict(Estimate.of(together)),
        "sum": asdict(Estimate.of(parts)),
        "ratio": asdict(Estimate.of([a / b for a, b in zip(together, parts, strict=True)])),
        "bias": asdict(Estimate.of(bias)),
        "layers": {name: statistics.mean(values) for name, values in each.items()},
        "qat": over_batches,
        "fqt": asdict(Estimate.of(quantized)),
        "total_ratio": asdict(Estimate.of([value / expected for value in quantized])),
    }


def warm_up(model: nn.Module, data: ImageSet, batch: int, steps: int, seed: int) -> int:
    """Trains for some steps, so that gradients are those of a network in the midst of training; returns whole epochs."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    step, epoch = 0, 0
    while step < steps:
        for x, y in data.train_batches(batch, seed, epoch):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            step += 1
            if step >= steps:
                break
        epoch += 1
    return epoch


def _rounded(
    gradient: Tensor, quantizer: Callable[[Tensor, int, int], Tensor], bits: int, rounds: int, seed: int
) -> tuple[float, float]:
    """Variance of a quantizer on one gradient, over so many rounds, and squared distance of their mean from it."""
    total, squares = torch.zeros_like(gradient, dtype=torch.float64), 0.0
    for r in range(rounds):
        q = quantizer(gradient, bits, derive_key(seed, r, bits)).double()
        total += q
        squares += float(((q - gradient) ** 2).sum())
    return squares / rounds, float(((total / rounds - gradient) ** 2).sum())


def _noise(captured: Sequence[_Captured], bits: int, rounds: int, seed: int) -> dict[str, Any]:
    """What each quantizer does to the captured gradients at one width; see :func:`bench_quantizers`."""
    layers: dict[str, dict[str, float]] = {}
    bias: dict[str, list[float]] = {name: [] for name in QUANTIZERS}
    for item in captured:
        row = layers.setdefault(item.name, {})
        for name, quantizer in QUANTIZERS.items():
            row[name], distance = _rounded(item.gradient, quantizer, bits, rounds, seed)
            if row[name] > 0:
                bias[name].append(distance * rounds / row[name])
    sums = {name: sum(row[name] for row in layers.values()) for name in QUANTIZERS}
    return {
        "variance": sums,
        "psq_to_ptq": sums["psq"] / sums["ptq"],
        "bhq_to_psq": sums["bhq"] / sums["psq"],
        "bound": {
            "ptq": sum(ptq_variance_bound(item.gradient, bits) for item in captured),
            "psq": sum(psq_variance_bound(item.gradient, bits) for item in captured),
        },
        "bias": {name: statistics.mean(values) for name, values in bias.items()},
        "bias_interval": {name: 1.96 * statistics.stdev(values) / len(values) ** 0.5 for name, values in bias.items()},
        "layers": layers,
    }


def bench_quantizers(  # noqa: PLR0913 - the options of the command
    data: ImageSet,
    depth: int = 8,
    width: int = 8,
    batch: int = 64,
    warmup_steps: int = 60,
    rounds: int = 50,
    bits: Sequence[int] = (4, 5, 6, 8),
    seed: int = 1,
    batches: int = 0,
    draws: int = 8,
    doing: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Bias and variance of PTQ, PSQ and BHQ on the gradients of a network in the midst of training.

    Bias: with R rounds, ``|mean - x|**2`` of an unbiased quantizer is its variance / R in expectation; ``bias`` is the
    ratio of the two, 1 up to sampling error, and its 95 % interval over layers is ``bias_interval``.

    Args:
        batches: on how many batches the variance of the weight gradients is decomposed, see :func:`decompose`; 0: none.
        draws: roundings of each of these batches.
        doing: called with what is done now, for people.

    Returns:
        per width: total variance of each quantizer over all layers, their ratios, the theory's bounds for PTQ and PSQ,
        and the bias ratios; per layer: the variances; ``decomposition`` by quantizer.

    Raises:
        ValueError: too few batches or draws for an interval.
    """
    if batches == 1 or draws < 2:
        raise ValueError(f"{batches} batches of {draws} draws have no interval; give two or more of each")
    torch.manual_seed(seed)
    model = build_model(f"resnet-{depth}", len(data.classes), data.image_shape, width=width, seed=seed)
    run = attach(model, Run(seed=seed))
    doing(f"{warmup_steps} training steps")
    epoch = warm_up(model, data, batch, warmup_steps, seed)
    x, y = next(data.train_batches(batch, seed, epoch + 1))
    captured = capture_gradients(model, x, y)
    drawn = [batch_of for _, batch_of in zip(range(batches), data.train_batches(batch, seed, epoch + 1), strict=False)]
    report: dict[str, Any] = {"model": f"resnet-{depth}", "warmup_steps": warmup_steps, "rounds": rounds, "bits": {}}
    report |= {"batch": batch, "batches": len(drawn), "draws": draws}
    for width_bits in bits:
        doing(f"{rounds} roundings at {width_bits} bits")
        report["bits"][width_bits] = _noise(captured, width_bits, rounds, seed)
        if drawn:
            rows = report["bits"][width_bits]["decomposition"] = {}
            for name in QUANTIZERS:
                run.gradient = name
                doing(f"decomposition of {name} at {width_bits} bits")
                rows[name] = decompose(model, run, drawn, draws, width_bits)
    return report


def print_quantizers(report: dict[str, Any], as_json: bool) -> None:
    """The report of :func:`bench_quantizers` as JSON or as a table."""
    if as_json:
        print(json.dumps(report))
        return
    from rich.table import Table

    from hw.console import console

    title = f"gradient variance, {report['model']} after {report['warmup_steps']} steps"
    table = Table("bits", "PTQ", "PSQ / PTQ", "BHQ / PSQ", "bias ratio PTQ, PSQ, BHQ (1 = unbiased)", title=title)
    for width, row in report["bits"].items():
        bias = "  ".join(f"{row['bias'][n]:.2f}±{row['bias_interval'][n]:.2f}" for n in QUANTIZERS)
        table.add_row(
            str(width), f"{row['variance']['ptq']:.3g}", f"{row['psq_to_ptq']:.3f}", f"{row['bhq_to_psq']:.3f}", bias
        )
    console().print(table)
    if not report["batches"]:
        return

    def interval(row: dict[str, float]) -> str:
        return f"{row['mean']:.3g} ± {row['half']:.2g}"

    title = (
        f"variance of the weight gradients, {report['batches']} batches of {report['batch']}, {report['draws']} draws"
    )
    headings = ("bits", "quantizer", "all layers", "sum of one at a time", "ratio", "bias", "QAT", "FQT / (QAT + all)")
    parts = Table(*headings, title=title)
    for width, row in report["bits"].items():
        for name, part in row["decomposition"].items():
            shown = [interval(part[key]) for key in ("all", "sum", "ratio", "bias")]
            parts.add_row(str(width), name.upper(), *shown, f"{part['qat']:.3g}", interval(part["total_ratio"]))
    console().print(parts)
