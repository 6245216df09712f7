"""Roofline of a network's training products on one of our designs, and where the time of every layer goes.

Work is counted in binary multiply-accumulates: those of the layer, times the bits of both operands.  What the array
computes beyond them (taps of strided layers that hit nothing, padded channels) lowers a point's height.  All figures are
those of ``hw.fabric_cost``: cycles by the model that RTL counters confirm, DDR as a bandwidth.

Time is attributed by leaving out its causes, one after the other: what the cycle model saves without the output stream
is the output stream's, what it saves further without the input streams is theirs; of the rest, cycles in which the
array computes are the array's, and what remains is fixed (headers, setups, pipelines that fill and drain).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hw.design import STREAM_BITS
from hw.fabric_cost import STREAMS, FabricMachine, total
from hw.layers import Bits, ConvShape

INPUTS = 2  #: input streams of a fabric; one is for outputs
CAUSES = ("array", "output stream", "input streams", "fixed", "memory")


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
        bits: widths of the layer.
        layer, product: which.
        binary_macs: MAC times the bits of both operands.
        read_bytes, write_bytes: DDR traffic.
        seconds: predicted.
        bound: the resource that takes longest by itself: array, memory, input streams or output stream.
        bound_seconds: how long that one takes.
    """

    bits: Bits
    layer: str
    product: str
    binary_macs: float
    read_bytes: float
    write_bytes: float
    seconds: float
    bound: str
    bound_seconds: float

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
        bits: widths of the layer.
        layer: its name.
        shape: the layer without its name, the same for layers that take the same time.
        seconds: by cause, in the order of ``CAUSES``.
    """

    bits: Bits
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
        WorkloadError: a layer that the buffers cannot hold.
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
            bound = max(alone, key=lambda name: alone[name])
            out.append(
                Point(
                    bits,
                    shape.name,
                    product,
                    work,
                    cost.read_bytes,
                    cost.write_bytes,
                    cost.seconds,
                    bound,
                    alone[bound],
                )
            )
    return out


def shares(machine: FabricMachine, shapes: Iterable[ConvShape], bits: Bits) -> list[Share]:
    """Where the time of every layer goes; causes sum to the layer's time.

    Raises:
        WorkloadError: a layer that the buffers cannot hold.
    """
    out = []
    for shape in shapes:
        whole = total(machine.products(shape, bits).values())
        no_output = total(machine.products(shape, bits, free=("output",)).values()).cycles
        neither = total(machine.products(shape, bits, free=STREAMS).values()).cycles
        cycles = {
            "array": whole.array_cycles,
            "output stream": whole.cycles - no_output,
            "input streams": no_output - neither,
            "fixed": neither - whole.array_cycles,
        }
        seconds = {cause: value / machine.clock_hz for cause, value in cycles.items()}
        waited = whole.seconds - whole.cycles / machine.clock_hz
        seconds["memory"] = waited if waited > 1e-9 * whole.seconds else 0.0  # else the rounding of a sum
        out.append(Share(bits, shape.name, replace(shape, name="layer"), seconds))
    return out


# -- files ----------------------------------------------------------------------------------------------------------


def _new_figure(width: float, height: float) -> Any:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "roofline"  # the same figures give the same bytes
    return Figure(figsize=(width, height), layout="constrained")


def draw_roofline(peak: Roofs, listed: Sequence[Point], path: Path, title: str, memory: str = "ps") -> None:
    """Binary MAC/s against binary MAC per DDR byte, on logarithmic axes, with the roofs."""
    figure = _new_figure(8, 5)
    axes = figure.subplots()
    widths = list(dict.fromkeys(p.bits for p in listed))
    products = list(dict.fromkeys(p.product for p in listed))
    low = min(p.intensity for p in listed) / 2
    high = max(*(p.intensity for p in listed), peak.array / peak.memory) * 3
    label = "DDR" if memory == "ps" else f"DDR {memory} (unverified)"
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
    for index, bits in enumerate(widths):
        for product in products:
            chosen = [p for p in listed if p.bits == bits and p.product == product]
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
    widths = list(dict.fromkeys(s.bits for s in listed))
    groups: dict[ConvShape, list[Share]] = {}
    for s in listed:
        groups.setdefault(s.shape, []).append(s)
    figure = _new_figure(4 + 3.5 * len(widths), 1.8 + 0.32 * len(groups))
    panels = figure.subplots(1, len(widths), sharey=True, sharex=True, squeeze=False)[0]
    names = [f"{g[0].layer} ×{len(g) // len(widths)}" for g in groups.values()]
    for axes, bits in zip(panels, widths, strict=True):
        left = [0.0] * len(groups)
        for cause in CAUSES:
            values = [1e6 * sum(s.seconds[cause] for s in g if s.bits == bits) for g in groups.values()]
            axes.barh(names, values, left=left, label=cause)
            left = [a + b for a, b in zip(left, values, strict=True)]
        axes.set(title=f"{bits}: {sum(left):.4g} µs", xlabel="µs per sample")
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=len(CAUSES))
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, metadata={"Date": None})


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
        WorkloadError: a layer that the buffers cannot hold.
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
    with files[1].open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream, lineterminator="\n")
        lines.writerow(
            ["bits", "layer", "product", "binary_macs", "read_bytes", "write_bytes", "us", "binary_macs_per_byte",
             "binary_macs_per_second", "bound", "bound_us"]
        )  # fmt: skip
        for p in dots:
            values = (p.binary_macs, p.read_bytes, p.write_bytes, 1e6 * p.seconds, p.intensity, p.rate)
            figures = [f"{v:.6g}" for v in values]
            lines.writerow([p.bits, p.layer, p.product, *figures, p.bound, f"{1e6 * p.bound_seconds:.6g}"])
    draw_shares(times, files[2], title)
    with files[3].open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream, lineterminator="\n")
        lines.writerow(["bits", "layer", *(f"{cause.replace(' ', '_')}_us" for cause in CAUSES), "us"])
        for s in times:
            figures = [f"{1e6 * s.seconds[cause]:.6g}" for cause in CAUSES]
            lines.writerow([s.bits, s.layer, *figures, f"{1e6 * sum(s.seconds.values()):.6g}"])
    return files
