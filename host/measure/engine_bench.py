"""``fractrain bench engine``: a network's training products on the simulated hardware, against the cycle model.

Every distinct convolution runs with random codes, forward and backward, for two lengths of the batch; the difference
is the cost of an image, the rest is spread over a batch.  Programs are those of :mod:`hw.model.workload`; the driver's own
run over a whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from host.devices.device import U64, Device, Result, check
from host.driver.fabric_engine import FabricEngine
from host.operands import ConvGeometry, Grid, Operand
from host.program.builder import ProgramBuilder, read_program
from hw import contract
from hw.contract import TIMING_COUNTERS, Error, Opcode, OutputFormat, Target
from hw.design import Design
from hw.model.cycles import STREAMING_CYCLES, predict
from hw.model.workload import WorkloadError, array_shape, backward, forward
from hw.networks import Bits, ConvShape
from hw.packet import END, Packet, load_entries, load_tensor, product

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

    Cycles are per real image of a batch: the difference of the two runs, and the batch's share of what it leaves; of the
    driver's programs, which take many images at once, a whole batch is run instead.

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
        measured_total, predicted_total: of the longer run or the whole batch, by the RTL and by the model.
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


def _payload(packet: Packet, rng: np.random.Generator) -> U64 | None:
    if not packet.payload_words:
        return None
    data = rng.integers(0, 1 << 64, packet.payload_words, dtype=np.uint64)
    if packet.loads(Target.E):  # multipliers near one, offsets of nothing: codes that are not all clamped
        data[0::2], data[1::2] = 20, 0
    return data


def program(design: Design, packets: Iterable[Packet], seed: int = 0) -> U64:
    """Words of a program with random payload."""
    rng = np.random.default_rng(seed)
    builder = ProgramBuilder(design)
    for packet in packets:
        if packet == END:
            return builder.end().words()
        builder.add(packet, _payload(packet, rng))
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
    m = array_shape(design, shape)
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
                error, reason = packet.check(design)
                if error is not Error.NONE:
                    raise WorkloadError(
                        f"layer {shape.name}, {one.name} at {bits}: {error.name}, {reason}; "
                        "choose fewer bits, another network or a larger design"
                    )


def measure(  # noqa: PLR0913 - the options of the command
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
    m = array_shape(design, shape)
    images = virtual * m.side
    rows = []
    for one in passes(design, shape, bits, codes, split, first, batch):
        counted, predicted = [], 0
        for n in (virtual, 2 * virtual):
            packets = one.packets(n)
            words = program(design, packets)
            result = check(device.run(words), f"{shape.name} {one.name}")
            if compare is not None:
                other = check(compare.run(words), f"{shape.name} {one.name}")
                if not np.array_equal(result.words, other.words):
                    raise RuntimeError(f"{shape.name} {one.name}: {device.info.kind} and {compare.info.kind} differ")
            counted.append(result.counters)
            predicted = predict(design, packets).cycles
        short, long = counted
        fixed = max(0, 2 * short["CYCLES"] - long["CYCLES"])
        each = {n: (long[n] - short[n]) / images for n in TIMING_COUNTERS}
        more = each["CYCLES"]
        if fixed:
            each = {n: each[n] + (2 * short[n] - long[n]) / batch for n in TIMING_COUNTERS}
        output = "codes" if codes else "int32"
        rows.append(_row(shape.name, count, one, bits, output, each, more, fixed, long["CYCLES"], predicted))
    return rows


def drive(
    device: Device,
    design: Design,
    shape: ConvShape,
    bits: Bits,
    count: int = 1,
    values: bool = True,
    batch: int = 128,
    first: bool = False,
) -> list[Row]:
    """Run one layer's products over a whole batch through the driver, as training does: results are 32-bit sums.

    Args:
        device: the RTL.
        bits: of weights, activations, gradients; all three have affine grids.
        count: how often the layer occurs (copied into the row).
        values: activations and gradients travel as float32 and are quantized on the fabric, gradients stochastically,
            which is what training sends; else as codes.  Weights are codes in either case.
        batch: real images.
        first: the network's first layer, which needs no input gradient.
    """
    rng = np.random.default_rng(0)
    m = ConvGeometry(
        batch, shape.in_channels, shape.out_channels, shape.in_hw, (shape.kernel,) * 2, shape.stride, shape.padding
    )

    def operand(size: tuple[int, ...], width: int, as_values: bool, key: int | None = None) -> Operand:
        grid = Grid(width, False, np.asarray(2.0**-6, np.float32), np.asarray(-1.0, np.float32), key)
        codes = rng.integers(0, 1 << width, size)
        if not as_values:
            return Operand(grid, codes=codes)
        return Operand(grid, values=((codes + rng.random(size)) * grid.scale + grid.zero).astype(np.float32))

    x = operand((batch, m.in_channels, *m.in_hw), bits.a, values)
    w = operand((m.out_channels, m.in_channels, *m.kernel), bits.w, False)
    g = operand((batch, m.out_channels, *m.out_hw), bits.g, values, key=1)
    rows = []
    for one in passes(design, shape, bits, codes=False, first=first):
        predicted: list[int] = []

        def predict_too(words: U64, _: Result, to: list[int] = predicted) -> None:
            to.append(predict(design, (p for _, p in read_program(words))).cycles)

        engine = FabricEngine(device, keep_rows=False, recorder=predict_too)
        if one.name == "forward":
            engine.forward(x, w, m)
        elif one.name == "backward":
            engine.backward(x, g, w, m)
        else:
            engine.weight_gradient(x, g, m)
        totals = engine.meter.totals
        each = {n: totals[n] / batch for n in TIMING_COUNTERS}
        output = "driver, values" if values else "driver, codes"
        cycles = totals["CYCLES"]
        rows.append(_row(shape.name, count, one, bits, output, each, each["CYCLES"], 0, cycles, sum(predicted)))
    return rows


def _row(  # noqa: PLR0913 - the options of the command
    layer: str, count: int, one: Pass, bits: Bits, output: str, each: Mapping[str, float], more: float, fixed: int,
    measured: int, predicted: int,
) -> Row:  # fmt: skip
    """A row from the counters per image, ``each``, and the cycles that one more image takes, ``more``."""
    return Row(
        layer=layer,
        count=count,
        product=one.name,
        bits=f"{bits.w}/{bits.a}/{bits.g}",
        output=output,
        cycles=each["CYCLES"],
        ideal=one.ideal,
        utilisation=one.ideal / more,
        fixed=fixed,
        busy=each["BUSY"],
        stall_drain=each["STALL_DRAIN"],
        idle=contract.array_idle(each),
        stall_in=each["STALL_IN"],
        stall_hazard=each["STALL_HAZARD"],
        stall_out=each["STALL_OUT"],
        measured_total=measured,
        predicted_total=predicted,
        model_error=predicted / measured - 1,
    )


def bench(
    design: Design,
    shapes: Iterable[ConvShape],
    bits: Bits,
    rows_of: Callable[[ConvShape, Bits, int, bool], list[Row]],
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """All convolutions of a network at one precision: rows, cycles per image, images per second at the design's clock.

    Args:
        rows_of: :func:`measure` or :func:`drive` of a layer, its widths, how often it occurs, and whether it is the first.
    """
    rows: list[Row] = []
    for index, (shape, count) in enumerate(distinct(shapes)):
        progress(f"{shape.name} at {bits.w}/{bits.a}/{bits.g}")
        rows += rows_of(shape, bits, count, index == 0)
    total = sum(r.cycles * r.count for r in rows)
    return {
        "bits": f"{bits.w}/{bits.a}/{bits.g}",
        "output": rows[0].output,
        "cycles_per_image": total,
        "images_per_second": design.clock_mhz * 1e6 / total,
        "utilisation": sum(r.ideal * r.count for r in rows) / total,
        "rows": [asdict(r) for r in rows],
    }


def proportionality(device: Device, design: Design) -> list[dict[str, Any]]:
    """Cycles of a product for every pair of 2..8 x 2..16 bits against 8x8 bits times the share of plane pairs.

    The products are a weight gradient of one group each way, whose results stay on chip, and convolutions of one and of
    four channel groups, whose results leave as codes as wide as the activations.  Cycles are the difference between one
    packet and two, so loading and reading out cancel.  Pairs that the INT32 rule refuses are left out.

    ``compute_bound`` says whether a tile's steps last until the tile before it is out of the way: it takes
    ``C + 1`` values to drain in a weight gradient, ``C`` and three cycles in a convolution, and there ``out_bits`` row
    words to send.
    """
    result: list[dict[str, Any]] = []
    for name, groups in (("weight_gradient", 1), ("convolution", 1), ("convolution", 4)):
        pairs: list[dict[str, Any]] = []
        for a_bits in range(2, 9):
            for b_bits in range(2, 17):
                programs = [_repeated(design, name, groups, a_bits, b_bits, n) for n in (1, 2)]
                if any(packet.overflows(design) for packet in programs[0]):
                    continue
                one, two = (check(device.run(program(design, packets))) for packets in programs)
                if name == "convolution":
                    steps = groups * a_bits * b_bits
                    behind = max(design.channels + STREAMING_CYCLES[Opcode.CONV], a_bits * design.row_words)
                else:
                    steps, behind = _IMAGES * a_bits * b_bits, design.channels + 1
                pairs.append(
                    {
                        "product": name,
                        "groups": groups,
                        "a_bits": a_bits,
                        "b_bits": b_bits,
                        "compute_bound": steps >= behind,
                        "cycles": two.counters["CYCLES"] - one.counters["CYCLES"],
                    }
                )
        base = next(p["cycles"] for p in pairs if p["a_bits"] == p["b_bits"] == 8)
        for pair in pairs:
            pair["proportional"] = base * pair["a_bits"] * pair["b_bits"] / 64
            pair["deviation"] = pair["cycles"] / pair["proportional"] - 1
        result += pairs
    return result


_IMAGES = 4  #: virtual images of eight rows whose weight gradient is compared


def _repeated(design: Design, name: str, groups: int, a_bits: int, b_bits: int, repeats: int) -> list[Packet]:
    """A program of ``repeats`` equal products on operands that are loaded once."""
    shape = {"rows": 8, "groups": groups, "a_bits": a_bits, "b_bits": b_bits}
    if name == "weight_gradient":
        loads = [
            load_tensor(design, Target.A, _IMAGES, 8, groups, a_bits),
            load_tensor(design, Target.G, _IMAGES, 8, groups, b_bits),
        ]
        packet = product(Opcode.WGRAD, **shape, out_groups=1, images=_IMAGES)
    else:
        loads = [
            load_entries(design, Target.E, 2 * design.channels),
            load_entries(design, Target.W, 2 * groups * b_bits),
            load_tensor(design, Target.A, 1, 8, groups, a_bits),
        ]
        codes = {"format": OutputFormat.CODES, "out_bits": a_bits, "shift": 8}
        packet = product(Opcode.CONV, **shape, out_groups=2, images=1, **codes)
    return [*loads, *[packet] * repeats, END]


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
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
