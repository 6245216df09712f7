"""``fractrain bench engine``: a network's training products on the simulated hardware, against the cycle model.

Every distinct convolution runs with random codes, forward and backward, for two lengths of the batch; the difference
is the cost of an image, the rest is spread over a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from host.device import U64, Device, check
from host.programs import ALL_TAPS, ProgramBuilder, check_header
from hw import contract
from hw.contract import Error, Opcode, Target
from hw.cycles import predict
from hw.design import Design
from hw.layers import Bits, ConvShape
from hw.workload import Packet, WorkloadError, backward, forward, lower

VIRTUAL = 4  #: virtual images of the shorter of two runs

#: what the array does in a cycle, of a row's attributes
STATES = {
    "busy": "array computes",
    "stall_drain": "array waits for results to drain",
    "idle": "array has no step to do",
}


@dataclass
class Row:
    """One layer shape, one pass: RTL counters against ideal and model.

    Cycles are per real image of a batch: the difference of the two runs, and the batch's share of what it leaves.

    Attributes:
        layer, count, product, bits, output: what ran, and how often the network has it.
        cycles: of the program; ``busy``, ``stall_drain`` and ``idle`` add up to it.
        ideal: cycles of an array that is always full.
        utilisation: ``ideal`` by the cycles of one more image, fixed cost left out.
        fixed: cycles of a program beside those of its images.
        busy: the array computes.
        stall_drain: the array waits for results to drain.
        idle: the array has no step to do (``hw.contract.array_idle``).
        stall_in, stall_hazard: the loader waits for a stream, for the array.
        stall_out: a result waits for the output stream.
        measured_total, predicted_total: of the longer run, by the RTL and by the model.
        model_error: of the prediction, relative.
    """

    layer: str
    count: int
    product: str
    bits: str
    output: str
    cycles: float
    ideal: float
    utilisation: float
    fixed: float
    busy: float
    stall_drain: float
    idle: float
    stall_in: float
    stall_hazard: float
    stall_out: float
    measured_total: int
    predicted_total: int
    model_error: float


def _payload(packet: Packet, design: Design, rng: np.random.Generator) -> U64 | None:
    words = packet.get("payload_words", 0)
    if not words:
        return None
    data = rng.integers(0, 1 << 64, words, dtype=np.uint64)
    if packet["target"] == Target.E:  # multipliers near one, offsets of nothing: codes that are not all clamped
        data[0::2], data[1::2] = 20, 0
    return data


def program(design: Design, packets: Iterable[Packet], seed: int = 0) -> U64:
    """Words of a program with random payload."""
    rng = np.random.default_rng(seed)
    builder = ProgramBuilder(design)
    for packet in packets:
        if packet["opcode"] == Opcode.END:
            return builder.end().words()
        fields = {k: v for k, v in packet.items() if k not in ("opcode", "payload_words")}
        builder.packet(Opcode(packet["opcode"]), _payload(packet, design, rng), **fields)
    return builder.words()


def distinct(shapes: Iterable[ConvShape]) -> list[tuple[ConvShape, int]]:
    """Convolutions that differ in shape, with how often each occurs, in order of first occurrence."""
    seen: dict[tuple[object, ...], list[ConvShape]] = {}
    for s in shapes:
        if s.kind in ("conv", "stem", "shortcut"):
            seen.setdefault((s.in_channels, s.out_channels, s.kernel, s.stride, s.in_hw), []).append(s)
    return [(group[0], len(group)) for group in seen.values()]


@dataclass(frozen=True)
class Pass:
    """One program's worth of a layer's training products.

    Attributes:
        name: "forward", "backward" (both gradients), "input_gradient" or "weight_gradient".
        ideal: cycles per real image of an array that is always full.
        packets: packets for a number of virtual images, END included.
    """

    name: str
    ideal: float
    packets: Callable[[int], list[Packet]]


def passes(
    design: Design, shape: ConvShape, bits: Bits, codes: bool = True, split: bool = False, first: bool = False,
    batch: int = 128,
) -> list[Pass]:  # fmt: skip
    """The programs of a layer's training step.

    Args:
        bits: of weights, activations, gradients.
        codes: outputs as packed codes instead of 32-bit sums.
        split: the two gradients as programs of their own instead of one fused pass.
        first: the network's first layer, which needs no input gradient.
        batch: real images whose weight gradient is sent once; it decides how many bits that takes.

    Raises:
        WorkloadError: the schedule cannot hold the layer.
    """
    m = lower(design, shape)
    macs, whole = m.ideal_macs / design.binary_macs, -(-batch // m.side)
    ideal = {"input_gradient": macs * bits.g * bits.w, "weight_gradient": macs * bits.a * bits.g}
    if first:
        del ideal["input_gradient"]

    def gradients(name: str, *products: str) -> Pass:
        def packets(images: int) -> list[Packet]:
            return list(backward(design, shape, bits, images, codes, products=products, summed=max(images, whole)))

        return Pass(name, sum(ideal[p] for p in products), packets)

    ahead = Pass("forward", macs * bits.a * bits.w, lambda images: list(forward(design, shape, bits, images, codes)))
    return [ahead, *([gradients(p, p) for p in ideal] if split or first else [gradients("backward", *ideal)])]


def refuse_unfit(
    design: Design, shapes: Iterable[ConvShape], bits: Bits, codes: bool = True, split: bool = False
) -> None:
    """Check every packet that :func:`bench` would send with these arguments, without a device.

    Raises:
        WorkloadError: a layer that the schedule or the design cannot hold, by name, with the remedy.
    """
    for index, (shape, _) in enumerate(distinct(shapes)):
        for one in passes(design, shape, bits, codes, split, index == 0):
            for packet in one.packets(2 * VIRTUAL):
                error, reason = check_header(design, contract.pack_header(**packet))
                if error is not Error.NONE:
                    raise WorkloadError(
                        f"layer {shape.name}, {one.name} at {bits}: {error.name}, {reason}; "
                        "choose fewer bits, another network or a larger design"
                    )


def measure(
    device: Device,
    design: Design,
    shape: ConvShape,
    bits: Bits,
    count: int = 1,
    codes: bool = True,
    batch: int = 128,
    virtual: int = VIRTUAL,
    split: bool = False,
    compare: Device | None = None,
    first: bool = False,
) -> list[Row]:
    """Run one layer's products.

    Args:
        device: the RTL.
        bits: of weights, activations, gradients.
        count: how often the layer occurs (copied into the row).
        codes: outputs as packed codes instead of 32-bit sums.
        batch: real images over which fixed cost is spread.
        virtual: virtual images of the shorter run; the longer has twice as many.
        split: the two gradients as programs of their own instead of one fused pass.
        compare: another device whose words must be the same.
        first: the network's first layer, which needs no input gradient.

    Raises:
        RuntimeError: ``compare`` answers otherwise.
    """
    rows = []
    for one in passes(design, shape, bits, codes, split, first, batch):
        counters, predicted = [], 0
        for n in (virtual, 2 * virtual):
            packets = one.packets(n)
            words = program(design, packets)
            result = check(device.run(words), f"{shape.name} {one.name}")
            if compare is not None:
                other = check(compare.run(words), f"{shape.name} {one.name}")
                if not np.array_equal(result.words, other.words):
                    raise RuntimeError(f"{shape.name} {one.name}: {device.info.kind} and {compare.info.kind} differ")
            counters.append(result.counters)
            predicted = predict(design, packets).cycles
        label = {"layer": shape.name, "count": count, "product": one.name, "output": "codes" if codes else "int32"}
        images = virtual * lower(design, shape).side
        rows.append(_row(label, bits, one.ideal, counters[0], counters[1], images, batch, predicted))
    return rows


def _row(
    label: dict[str, Any], bits: Bits, ideal: float, short: dict[str, int], long: dict[str, int], images: int, batch: int,
    predicted: int,
) -> Row:  # fmt: skip
    """A row from the counters of ``images`` and twice as many; ``predicted`` are cycles of the latter."""
    fixed = max(0, 2 * short["CYCLES"] - long["CYCLES"])

    def per_image(count: Callable[[Mapping[str, int]], int]) -> float:
        one, two = count(short), count(long)
        return (two - one) / images + ((2 * one - two) / batch if fixed else 0)

    def counter(name: str) -> float:
        return per_image(lambda counters: counters[name])

    return Row(
        **label,
        bits=f"{bits.w}/{bits.a}/{bits.g}",
        cycles=counter("CYCLES"),
        ideal=ideal,
        utilisation=ideal * images / (long["CYCLES"] - short["CYCLES"]),
        fixed=fixed,
        busy=counter("BUSY"),
        stall_drain=counter("STALL_DRAIN"),
        idle=per_image(contract.array_idle),
        stall_in=counter("STALL_IN"),
        stall_hazard=counter("STALL_HAZARD"),
        stall_out=counter("STALL_OUT"),
        measured_total=long["CYCLES"],
        predicted_total=predicted,
        model_error=predicted / long["CYCLES"] - 1,
    )


def bench(
    device: Device,
    design: Design,
    shapes: Iterable[ConvShape],
    bits: Bits,
    codes: bool = True,
    split: bool = False,
    batch: int = 128,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """All convolutions of a network at one precision: rows, cycles per image, images per second at the design's clock."""
    rows: list[Row] = []
    for index, (shape, count) in enumerate(distinct(shapes)):
        progress(f"{shape.name} at {bits.w}/{bits.a}/{bits.g}")
        rows += measure(device, design, shape, bits, count, codes, batch, split=split, first=index == 0)
    total = sum(r.cycles * r.count for r in rows)
    return {
        "bits": f"{bits.w}/{bits.a}/{bits.g}",
        "output": "codes" if codes else "int32",
        "cycles_per_image": total,
        "images_per_second": design.clock_mhz * 1e6 / total,
        "utilisation": sum(r.ideal * r.count for r in rows) / total,
        "rows": [asdict(r) for r in rows],
    }


def proportionality(device: Device, design: Design) -> list[dict[str, float]]:
    """Cycles of a compute-bound product for every pair of 2..8 x 2..16 bits against 8x8 bits times the share of pairs.

    The product is a weight gradient, whose results stay on chip: nothing but the array can be the limit.  Cycles are
    the difference between one WGRAD packet and two, so loading and reading out cancel.
    """
    rows, images = 8, 4

    def cycles(a_bits: int, b_bits: int) -> int:
        totals = []
        for repeats in (1, 2):
            wgrad: Packet = {
                "opcode": Opcode.WGRAD, "rows": rows, "groups": 1, "out_groups": 1, "images": images, "a_bits": a_bits,
                "b_bits": b_bits, "segment_start": 1, "a_planes": (1 << a_bits) - 1, "b_planes": (1 << b_bits) - 1,
                "taps": ALL_TAPS,
            }  # fmt: skip
            load: Packet = {"opcode": Opcode.LOAD, "rows": rows, "groups": 1, "out_groups": 1, "images": images}
            packets: list[Packet] = [
                {
                    **load,
                    "target": Target.A,
                    "a_bits": a_bits,
                    "payload_words": images * rows * a_bits * design.row_words,
                },
                {
                    **load,
                    "target": Target.G,
                    "a_bits": b_bits,
                    "payload_words": images * rows * b_bits * design.row_words,
                },
                *[wgrad] * repeats,
                {"opcode": Opcode.END},
            ]
            totals.append(check(device.run(program(design, packets))).counters["CYCLES"])
        return totals[1] - totals[0]

    base = cycles(8, 8)
    result = []
    for a_bits in range(2, 9):
        for b_bits in range(2, 17):
            measured = cycles(a_bits, b_bits)
            ideal = base * a_bits * b_bits / 64
            result.append(
                {
                    "a_bits": a_bits,
                    "b_bits": b_bits,
                    "cycles": measured,
                    "proportional": ideal,
                    "deviation": measured / ideal - 1,
                }
            )
    return result


def draw(result: dict[str, Any], path: Path) -> None:
    """Where the cycles of an image go, for every precision and output format, as one picture."""
    from matplotlib import rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "engine"  # the same result gives the same bytes
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    runs = result["runs"]
    names = [f"{run['bits']} {run['output']}" for run in runs]

    def thousands(part: str) -> npt.NDArray[np.float64]:
        return np.array([sum(r[part] * r["count"] for r in run["rows"]) / 1e3 for run in runs])

    left = np.zeros(len(runs))
    for part, label in STATES.items():
        axes.barh(names, thousands(part), left=left, label=label)
        left += thousands(part)
    axes.plot(thousands("ideal"), names, "k|", markersize=14, label="array always full")
    axes.invert_yaxis()
    axes.set_xlabel(f"thousand cycles per image ({result['model']} on {result['design']}, RTL counters)")
    axes.legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
