"""Roofline of a network's training products on one of our designs, and where the time of every layer goes.

Work is counted in binary multiply-accumulates: those of the layer, times the bits of both operands.  What the array
computes beyond them (taps of strided layers that hit nothing, padded channels) lowers a point's height.  All figures are
those of ``hw.cost.fabric``: cycles by the model that RTL counters confirm, DDR as a bandwidth.

Time is attributed by leaving out its causes, one after the other: what the cycle model saves without the output stream
is the output stream's, what it saves further without the input streams is theirs; of the rest, cycles in which the
array computes are the array's, and what remains is fixed (headers, setups, pipelines that fill and drain).

Of a schedule (``write_run``), every layer and product stands where it is on the mean over the training's samples, each
at the widths that it had, and the time is drawn over the epochs.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from hw.contract import MAX_BITS
from hw.cost.count import Schedule, counted_cost, layer_mixture, mean_work
from hw.cost.fabric import STEPS, STREAMS, FabricMachine, total, training_step
from hw.design import STREAM_BITS
from hw.networks import Bits, ConvShape

INPUTS = 2  #: input streams of a fabric; one is for outputs
Work = Mapping[tuple[ConvShape, Bits], float]
CAUSES = ("array", "output stream", "input streams", "fixed", "memory", "host")
AGAIN = "forward once more"  #: what ``recompute`` adds to the causes, see ``hw.cost.fabric.training_step``


class RooflineError(ValueError):
    """A layer that has no place in the picture; the message names it and the remedy."""


@dataclass(frozen=True)
class Roofs:
    """What a machine can do at most.

    Attributes:
        array: binary MAC/s, the whole array busy in every cycle.
        memory: bytes/s of DDR.
        inputs, outputs: bytes/s of the streams, one word each in every cycle.
    """

    array: float
    memory: float
    inputs: float
    outputs: float

    @property
    def streams(self) -> float:
        """Bytes/s of all streams, if none waits for another."""
        return self.inputs + self.outputs


@dataclass(frozen=True)
class Point:
    """One product of one layer, for one sample.

    Both gradients of a layer run as one program, whose time beyond the array's is divided between the two.  A stream of
    the one may be busy while the array computes the other, so that ``bound_seconds`` of the one may exceed ``seconds``.

    Attributes:
        label: widths of the layer, or what stands for a mixture.
        layer, product: which.
        binary_macs: MAC times the bits of both operands.
        read_bytes, write_bytes: DDR traffic.
        seconds: predicted.
        alone: seconds that each resource takes by itself: array, memory, input streams, output stream.
        macs: MAC, for the mean number of bit pairs.
    """

    label: str
    layer: str
    product: str
    binary_macs: float
    read_bytes: float
    write_bytes: float
    seconds: float
    alone: Mapping[str, float]
    macs: float

    @property
    def bound(self) -> str:
        """The resource that takes longest by itself."""
        return max(self.alone, key=lambda name: self.alone[name])

    @property
    def bound_seconds(self) -> float:
        """How long that one takes."""
        return self.alone[self.bound]

    @property
    def pairs(self) -> float:
        """Bits of one operand times those of the other, on the mean: binary MAC per MAC."""
        return self.binary_macs / self.macs

    @property
    def intensity(self) -> float:
        """Binary MAC per byte of DDR traffic."""
        return self.binary_macs / (self.read_bytes + self.write_bytes)

    @property
    def rate(self) -> float:
        """Binary MAC/s."""
        return self.binary_macs / self.seconds


@dataclass(frozen=True)
class Share:
    """Time of one layer, all products, for one sample.

    Attributes:
        label: widths of the layer, or what stands for a mixture.
        layer: its name.
        shape: the layer without its name, the same for layers that take the same time.
        seconds: by cause, in the order of ``CAUSES``; ``host`` are products in float32.
    """

    label: str
    layer: str
    shape: ConvShape
    seconds: dict[str, float]


def roofs(machine: FabricMachine) -> Roofs:
    """Peak rates of a machine, all fabrics together."""
    words = machine.clock_hz * machine.fabrics * STREAM_BITS / 8
    array = machine.design.binary_macs * machine.clock_hz * machine.fabrics
    return Roofs(array, machine.memory, INPUTS * words, words)


def points(machine: FabricMachine, shapes: Iterable[ConvShape], bits: Bits) -> list[Point]:
    """Every layer and product at one set of widths; a first layer has no input gradient.

    Raises:
        RooflineError: widths that the fabric does not have.
        LoweringError: a layer that the buffers cannot hold.
    """
    peak = roofs(machine)
    out = []
    for shape in shapes:
        operands = shape.operands(bits)
        for product, cost in machine.products(shape, bits).items():
            if not cost.macs:
                continue
            if not cost.cycles:
                raise RooflineError(
                    f"layer {shape.name}, {product} at {bits}: beyond the fabric's widths, so the host computes it; "
                    "give at most 16 bits"
                )
            a, b = operands[product]
            work = cost.macs * a * b
            alone = {
                "array": work / peak.array,
                "memory": cost.ddr_bytes / peak.memory,
                "input streams": cost.read_bytes / peak.inputs,
                "output stream": cost.write_bytes / peak.outputs,
            }
            out.append(
                Point(
                    str(bits), shape.name, product, work, cost.read_bytes, cost.write_bytes, cost.seconds, alone,
                    cost.macs,
                )
            )  # fmt: skip
    return out


def shares(machine: FabricMachine, shapes: Iterable[ConvShape], bits: Bits, codes: bool = True) -> list[Share]:
    """Where the time of every layer goes; causes sum to the layer's time.

    Args:
        machine: what computes.
        shapes: the network.
        bits: widths of all layers; products beyond the fabric's widths are the host's.
        codes: results leave as packed codes, else as integer sums.

    Raises:
        LoweringError: a layer that the buffers cannot hold.
    """
    out = []
    for shape in shapes:
        products = machine.products(shape, bits, codes).values()
        whole = total(cost for cost in products if cost.cycles)
        no_output = total(machine.products(shape, bits, codes, free=("output",)).values()).cycles
        neither = total(machine.products(shape, bits, codes, free=STREAMS).values()).cycles
        cycles = {
            "array": whole.array_cycles,
            "output stream": whole.cycles - no_output,
            "input streams": no_output - neither,
            "fixed": neither - whole.array_cycles,
        }
        seconds = {cause: value / machine.clock_hz for cause, value in cycles.items()}
        waited = whole.seconds - whole.cycles / machine.clock_hz
        seconds["memory"] = waited if waited > 1e-9 * whole.seconds else 0.0  # else the rounding of a sum
        seconds["host"] = total(cost for cost in products if not cost.cycles).seconds
        out.append(Share(str(bits), shape.name, replace(shape, name="layer"), seconds))
    return out


# -- schedules ------------------------------------------------------------------------------------------------------


def _on_fabric(shape: ConvShape, bits: Bits) -> bool:
    return all(max(pair) <= MAX_BITS for pair in shape.operands(bits).values())


_ADDED = ("binary_macs", "read_bytes", "write_bytes", "seconds", "macs")


def mean_points(machine: FabricMachine, work: Work, label: str) -> list[Point]:
    """Every layer and product at the mean of its widths; what the host computes in float32 has no place.

    Args:
        machine: what computes.
        work: layer and widths -> how often, per sample.
        label: of the points.

    Raises:
        LoweringError: a layer that the buffers cannot hold.
    """
    sums: dict[tuple[str, str], Point] = {}
    for (shape, bits), weight in work.items():
        for p in points(machine, [shape], bits) if _on_fabric(shape, bits) else ():
            old = sums.get((p.layer, p.product))
            alone = {name: weight * value + (old.alone[name] if old else 0.0) for name, value in p.alone.items()}
            counts = {name: weight * getattr(p, name) + (getattr(old, name) if old else 0.0) for name in _ADDED}
            sums[p.layer, p.product] = replace(p, label=label, alone=alone, **counts)
    return list(sums.values())


def mean_shares(machine: FabricMachine, work: Work, label: str) -> list[Share]:
    """Where the time of every layer goes at the mean of its widths; arguments and errors as for ``mean_points``."""
    sums: dict[str, Share] = {}
    for (shape, bits), weight in work.items():
        (one,) = shares(machine, [shape], bits)
        old = sums.get(shape.name)
        seconds = {cause: weight * value + (old.seconds[cause] if old else 0.0) for cause, value in one.seconds.items()}
        sums[shape.name] = Share(label, shape.name, one.shape, seconds)
    return list(sums.values())


@dataclass(frozen=True)
class Span:
    """Time of a stage of a schedule, for one sample, each as seconds by cause.

    Attributes:
        epochs: length of the stage.
        cp: CC as a share of float32, percent.
        products: the three products of all layers, results as codes.
        plain, recompute: a whole training step by the kind of normalisation, see ``hw.cost.fabric.training_step``;
            everything that the host does is its cause ``host``, an estimate.
    """

    epochs: float
    cp: float
    products: Mapping[str, float]
    plain: Mapping[str, float]
    recompute: Mapping[str, float]


def spans(machine: FabricMachine, shapes: Sequence[ConvShape], schedule: Schedule, count: str = "full") -> list[Span]:
    """Where the time goes, stage by stage.

    Args:
        machine: what computes.
        shapes: the network.
        schedule: its precisions.
        count: which widths layers have, see ``hw.cost.count``.

    Raises:
        ValueError: unknown count.
        LoweringError: a layer that the buffers cannot hold.
    """
    kinds = ("products", *STEPS)
    known: dict[tuple[ConvShape, Bits], dict[str, dict[str, float]]] = {}

    def costs(shape: ConvShape, bits: Bits) -> dict[str, dict[str, float]]:
        key = replace(shape, name=""), bits
        if key not in known:
            sums, codes = (shares(machine, [shape], bits, c)[0].seconds for c in (False, True))
            known[key] = {"products": dict(codes), "plain": dict(sums), "recompute": dict(codes)}
            for kind in STEPS:
                step, parts = training_step(machine, [shape], bits, kind), known[key][kind]
                again = step.fabric.seconds - sum(parts.values())
                parts["host"] += sum(step.host.values())
                parts[AGAIN] = again if kind == "recompute" else 0.0
        return known[key]

    out = []
    whole = 3 * sum(shape.macs for shape in shapes)
    for stage in schedule.stages:
        sums = {kind: dict.fromkeys((*CAUSES, AGAIN), 0.0) for kind in kinds}
        cc = 0.0
        for shape, mixture in zip(shapes, layer_mixture(shapes, schedule, stage, count), strict=True):
            for share, bits in mixture:
                cc += share * sum(counted_cost(schedule, shape, bits, count).values())
                for kind, parts in costs(shape, bits).items():
                    for cause, seconds in parts.items():
                        sums[kind][cause] += share * seconds
        out.append(Span(stage.epochs, 100 * cc / whole, *(sums[kind] for kind in kinds)))
    return out


# -- files ----------------------------------------------------------------------------------------------------------


def _new_figure(width: float, height: float) -> Any:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "roofline"  # the same figures give the same bytes
    return Figure(figsize=(width, height), layout="constrained")


def draw_roofline(
    peak: Roofs, listed: Sequence[Point], path: Path, title: str, memory: str = "ps", mixed: bool = False
) -> None:
    """Binary MAC/s against binary MAC per DDR byte, on logarithmic axes, with the roofs.

    Points are coloured by their label, or where they are ``mixed``, by their bit pairs.
    """
    from matplotlib.colors import Normalize

    figure = _new_figure(8, 5)
    axes = figure.subplots()
    widths = list(dict.fromkeys(p.label for p in listed))
    products = list(dict.fromkeys(p.product for p in listed))
    low = min(p.intensity for p in listed) / 2
    high = max(*(p.intensity for p in listed), peak.array / peak.memory) * 3
    label = "DDR" if memory == "ps" else f"DDR {memory}, of which 10 GB/s unverified"
    for rate, style, name in (
        (peak.memory, "-", f"{label}, {peak.memory / 1e9:g} GB/s"),
        (peak.streams, "--", f"all streams, {peak.streams / 1e9:g} GB/s"),
        (peak.outputs, ":", f"output stream alone, {peak.outputs / 1e9:g} GB/s"),
    ):
        ridge = peak.array / rate
        axes.plot([low, ridge], [low * rate, peak.array], style, color="black", lw=1, label=name)
    axes.plot(
        [low, high], [peak.array] * 2, color="tab:red", lw=1, label=f"array, {peak.array / 1e12:.4g} T binary MAC/s"
    )
    markers = dict(zip(products, "o^s", strict=False))
    if mixed:
        norm = Normalize(min(p.pairs for p in listed) * 0.99, max(p.pairs for p in listed) * 1.01)
        for product in products:
            chosen = [p for p in listed if p.product == product]
            dots = axes.scatter(
                [p.intensity for p in chosen], [p.rate for p in chosen], 36, [p.pairs for p in chosen],
                marker=markers[product], norm=norm, cmap="viridis_r", alpha=0.8, edgecolors="black", linewidths=0.4,
                label=product.replace("_", " "),
            )  # fmt: skip
        figure.colorbar(dots, label="bits × bits, mean over samples and epochs")
    for index, bits in enumerate(() if mixed else widths):
        for product in products:
            chosen = [p for p in listed if p.label == bits and p.product == product]
            axes.plot(
                [p.intensity for p in chosen], [p.rate for p in chosen], markers[product], color=f"C{index}", ms=6,
                alpha=0.7, label=f"{bits} {product.replace('_', ' ')}",
            )  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlim=(low, high), ylim=(min(p.rate for p in listed) / 2, peak.array * 1.5),
        xlabel="binary MAC per byte of DDR traffic", ylabel="binary MAC/s", title=title,
    )  # fmt: skip
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")
    figure.savefig(path, metadata={"Date": None})


def draw_shares(listed: Sequence[Share], path: Path, title: str) -> None:
    """Microseconds per sample and layer by cause; layers of the same shape stand in one bar, their times added."""
    widths = list(dict.fromkeys(s.label for s in listed))
    groups: dict[ConvShape, list[Share]] = {}
    for s in listed:
        groups.setdefault(s.shape, []).append(s)
    figure = _new_figure(4 + 3.5 * len(widths), 1.8 + 0.32 * len(groups))
    panels = figure.subplots(1, len(widths), sharey=True, sharex=True, squeeze=False)[0]
    names = [f"{g[0].layer} ×{len(g) // len(widths)}" for g in groups.values()]
    for axes, bits in zip(panels, widths, strict=True):
        left = [0.0] * len(groups)
        for cause in CAUSES:
            values = [1e6 * sum(s.seconds[cause] for s in g if s.label == bits) for g in groups.values()]
            axes.barh(names, values, left=left, label=cause)
            left = [a + b for a, b in zip(left, values, strict=True)]
        axes.set(title=f"{bits}: {sum(left):.4g} µs", xlabel="µs per sample")
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=len(CAUSES))
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, metadata={"Date": None})


def draw_spans(listed: Sequence[Span], samples: int, path: Path, title: str) -> None:
    """Time of an epoch by cause, over the epochs: products alone, and whole steps; above them, the cost."""
    figure = _new_figure(8, 9)
    panels = figure.subplots(4, 1, sharex=True, height_ratios=(1, 2, 2, 2))
    edges = [0.0, *accumulate(span.epochs for span in listed)]
    panels[0].stairs([span.cp for span in listed], edges, baseline=None, color="black")
    panels[0].set(ylabel="CC, % of\nfloat32", ylim=(0, None))
    panels[0].grid(alpha=0.3)
    names = {"array": "array (compute)", "output stream": "output stream (store)", "input streams": "input streams (load)",
             "memory": "DDR", "host": "host (estimate)"}  # fmt: skip
    shown: dict[str, Any] = {}
    for axes, kind, what in zip(
        panels[1:],
        ("products", *STEPS),
        (
            "products alone, results as codes",
            "whole step, sums stored for the host to normalise",
            "whole step, statistics in a pass of their own",
        ),
        strict=True,
    ):
        below = [0.0] * len(listed)
        for index, cause in enumerate((*CAUSES, AGAIN)):
            parts = [samples * getattr(span, kind)[cause] for span in listed]
            above = [a + b for a, b in zip(below, parts, strict=True)]
            if any(parts):
                shown[names.get(cause, cause)] = axes.stairs(above, edges, baseline=below, fill=True, color=f"C{index}")
            below = above
        whole = sum(span.epochs * value for span, value in zip(listed, below, strict=True))
        axes.set(ylabel="s per epoch", ylim=(0, None))
        axes.set_title(f"{what}: {_duration(whole)}", fontsize=9, loc="left")
    panels[-1].set(xlabel="epoch", xlim=(0, edges[-1]))
    figure.legend(shown.values(), shown.keys(), fontsize=8, loc="outside lower center", ncols=4)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, metadata={"Date": None})


def _duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _write_points(path: Path, listed: Iterable[Point]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream, lineterminator="\n")
        lines.writerow(
            ["bits", "layer", "product", "binary_macs", "read_bytes", "write_bytes", "us", "binary_macs_per_byte",
             "binary_macs_per_second", "bit_pairs", "bound", "bound_us"]
        )  # fmt: skip
        for p in listed:
            values = (p.binary_macs, p.read_bytes, p.write_bytes, 1e6 * p.seconds, p.intensity, p.rate, p.pairs)
            figures = [f"{v:.6g}" for v in values]
            lines.writerow([p.label, p.layer, p.product, *figures, p.bound, f"{1e6 * p.bound_seconds:.6g}"])


def _write_shares(path: Path, listed: Iterable[Share]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream, lineterminator="\n")
        lines.writerow(["bits", "layer", *(f"{cause.replace(' ', '_')}_us" for cause in CAUSES), "us"])
        for s in listed:
            figures = [f"{1e6 * s.seconds[cause]:.6g}" for cause in CAUSES]
            lines.writerow([s.label, s.layer, *figures, f"{1e6 * sum(s.seconds.values()):.6g}"])


def _write_spans(path: Path, listed: Iterable[Span]) -> None:
    causes = (*CAUSES, AGAIN)
    with path.open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream, lineterminator="\n")
        names = [f"{kind}_{cause.replace(' ', '_')}_us" for kind in ("products", *STEPS) for cause in causes]
        lines.writerow(["first_epoch", "epochs", "cp_percent", *names])
        first = 0.0
        for span in listed:
            values = [1e6 * getattr(span, kind)[cause] for kind in ("products", *STEPS) for cause in causes]
            lines.writerow([f"{v:.6g}" for v in (first, span.epochs, span.cp, *values)])
            first += span.epochs


def write_roofline(
    machine: FabricMachine, model: str, shapes: Sequence[ConvShape], widths: Sequence[Bits], folder: Path,
    memory: str = "ps",
) -> list[Path]:  # fmt: skip
    """Write ``roofline-DESIGN`` and ``time-DESIGN``, each as SVG and CSV; returns the files.

    Args:
        machine: what computes.
        model: name of the network, for titles.
        shapes: the network.
        widths: for all layers, one set after the other.
        folder: created if it is missing.
        memory: what the machine's bandwidth stands for, for the label.

    Raises:
        RooflineError: no or equal widths, or such that the fabric does not have.
        LoweringError: a layer that the buffers cannot hold.
        OSError: the folder cannot be written.
    """
    if not widths or len(set(widths)) != len(widths):
        raise RooflineError("name every set of bit widths once, and at least one")
    dots = [p for bits in widths for p in points(machine, shapes, bits)]
    times = [s for bits in widths for s in shares(machine, shapes, bits)]
    peak = roofs(machine)
    name = machine.design.name
    title = f"Training products of {model} on {name} at {machine.design.clock_mhz:g} MHz, batch {machine.batch}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{kind}-{name}.{end}" for kind in ("roofline", "time") for end in ("svg", "csv")]
    draw_roofline(peak, dots, files[0], title, memory)
    _write_points(files[1], dots)
    draw_shares(times, files[2], title)
    _write_shares(files[3], times)
    return files


def write_run(
    machine: FabricMachine, model: str, shapes: Sequence[ConvShape], schedule: Schedule, samples: int, folder: Path,
    memory: str = "ps", count: str = "full",
) -> list[Path]:  # fmt: skip
    """Write ``roofline-DESIGN``, ``time-DESIGN`` and ``epochs-DESIGN`` of a schedule, each as SVG and CSV.

    The first two are of the mean sample, the last is over the epochs; all CSV figures are for one sample.

    Args:
        machine: what computes.
        model: name of the network, for titles.
        shapes: the network.
        schedule: its precisions, for instance those of a run.
        samples: of an epoch.
        folder: created if it is missing.
        memory: what the machine's bandwidth stands for, for the label.
        count: which widths layers have, see ``hw.cost.count``.

    Returns:
        The files.

    Raises:
        RooflineError: nothing is trained on the fabric.
        ValueError: unknown count, or a schedule without length.
        LoweringError: a layer that the buffers cannot hold.
        OSError: the folder cannot be written.
    """
    work = mean_work(shapes, schedule, count)
    dots, times = mean_points(machine, work, schedule.name), mean_shares(machine, work, schedule.name)
    if not dots:
        raise RooflineError(f"schedule {schedule.name} leaves nothing to the fabric: all of it runs in float32")
    listed = spans(machine, shapes, schedule, count)
    name = machine.design.name
    title = f"{model}, {schedule.name}, on {name} at {machine.design.clock_mhz:g} MHz, batch {machine.batch}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{kind}-{name}.{end}" for kind in ("roofline", "time", "epochs") for end in ("svg", "csv")]
    draw_roofline(roofs(machine), dots, files[0], f"Training products of {title}", memory, mixed=True)
    _write_points(files[1], dots)
    draw_shares(times, files[2], f"Training products of {title}")
    _write_shares(files[3], times)
    unverified = "\nDDR beside the logic unverified" if memory != "ps" else ""
    draw_spans(listed, samples, files[4], title + unverified)
    _write_spans(files[5], listed)
    return files
