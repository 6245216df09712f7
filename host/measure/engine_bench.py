"""``fractrain bench engine``: a network's training products on the simulated hardware, against the cycle model.

Every distinct convolution runs over a whole batch, forward and backward, in the packets of the driver's plan
(:mod:`hw.plan.plan`) and cut into programs as the driver cuts them, with random payload.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from host.arrays import U64
from host.devices.device import Device, check
from host.program.builder import ProgramBuilder
from hw import contract
from hw.contract import TIMING_COUNTERS, Error, Opcode, OutputFormat, Target
from hw.design import Design
from hw.files import save_picture
from hw.model.cycles import predict, tile_period
from hw.networks import Bits, ConvShape
from hw.packet import END, Packet, load_entries, load_tensor, product
from hw.plan.product import LoweringError
from hw.plan.training_products import CODES, INTEGERS, TRAINING, Form, driver_programs, layer_products

#: how results leave and operands come, by the name that rows carry
FORMS = {"codes": CODES, "int32": INTEGERS, "driver": TRAINING}

#: what the array does in a cycle, of a row's attributes
STATES = {
    "busy": "array computes",
    "stall_drain": "array waits for results to drain",
    "idle": "array has no step to do",
}


class UnfitError(ValueError):
    """A layer whose packets the design refuses; the message names it and the remedy."""


@dataclass
class Row:
    """One layer shape, one pass: RTL counters against ideal and model.

    Cycles are a batch's, per real image.

    Attributes:
        layer, count, product, bits, output: what ran, and how often the network has it.
        cycles: of the programs; ``busy``, ``stall_drain`` and ``idle`` add up to it.
        ideal: cycles of an array that is always full.
        utilisation: ``ideal`` by ``cycles``.
        busy: the array computes.
        stall_drain: the array waits for results to drain.
        idle: the array has no step to do (``hw.contract.array_idle``).
        stall_in, stall_hazard: the loader waits for a stream, for the array.
        stall_out: a result waits for the output stream.
        measured_total, predicted_total: of the whole batch, by the RTL and by the model.
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
    busy: float
    stall_drain: float
    idle: float
    stall_in: float
    stall_hazard: float
    stall_out: float
    measured_total: int
    predicted_total: int
    model_error: float


def _filled(packet: Packet, rng: np.random.Generator) -> tuple[Packet, U64 | None]:
    """A packet whose open header fields have values, and its payload."""
    if not packet.payload_words:
        return packet, None
    data = rng.integers(0, 1 << 64, packet.payload_words, dtype=np.uint64)
    if packet.loads(Target.E):  # multipliers near one, offsets of nothing: codes that are not all clamped
        data[0::2], data[1::2] = 20, 0
    return packet, data


def random_program(design: Design, packets: Iterable[Packet], seed: int = 0) -> U64:
    """Words of a program with random payload."""
    rng = np.random.default_rng(seed)
    builder = ProgramBuilder(design)
    for packet in packets:
        if packet == END:
            return builder.end().words()
        builder.add(*_filled(packet, rng))
    return builder.words()


def distinct_shapes(shapes: Iterable[ConvShape]) -> list[tuple[ConvShape, int]]:
    """Convolutions that differ in shape, with how often each occurs, in order of first occurrence."""
    seen: dict[tuple[object, ...], list[ConvShape]] = {}
    for s in shapes:
        if s.kind in ("conv", "stem", "shortcut"):
            seen.setdefault((s.in_channels, s.out_channels, s.kernel, s.stride, s.in_hw), []).append(s)
    return [(group[0], len(group)) for group in seen.values()]


def passes(split: bool = False, first: bool = False) -> tuple[str, ...]:
    """Products of a layer's training step.

    Args:
        split: the two gradients as programs of their own instead of one.
        first: the network's first layer, which needs no input gradient.
    """
    if first:
        return "forward", "weight_gradient"
    return ("forward", "input_gradient", "weight_gradient") if split else ("forward", "backward")


def layer_programs(
    design: Design, shape: ConvShape, bits: Bits, batch: int, kind: str, form: Form = CODES
) -> list[list[Packet]]:
    """Programs that the driver sends for a product of a layer over a batch; see :func:`layer_products`."""
    products = layer_products(shape, bits, batch, kind, form)
    return [packets for count, each in products for packets in driver_programs(design, each, count)]


def ideal_cycles(design: Design, shape: ConvShape, bits: Bits, kind: str) -> float:
    """Cycles for each real image of an array that is always full."""
    pairs = {"forward": bits.a * bits.w, "input_gradient": bits.g * bits.w, "weight_gradient": bits.a * bits.g}
    pairs["backward"] = pairs["input_gradient"] + pairs["weight_gradient"]
    return shape.macs / design.binary_macs * pairs[kind]


def refuse_unfit(
    design: Design, shapes: Iterable[ConvShape], bits: Bits, form: Form = CODES, split: bool = False, batch: int = 128
) -> None:
    """Check every packet that :func:`bench_engine` would send with these arguments, without a device.

    Raises:
        UnfitError: a layer that the design cannot hold, by name, with the remedy.
    """
    for index, (shape, _) in enumerate(distinct_shapes(shapes)):
        for kind in passes(split, index == 0):
            try:
                packets = [p for each in layer_programs(design, shape, bits, batch, kind, form) for p in each]
            except LoweringError as error:
                raise UnfitError(f"layer {shape.name}, {kind} at {bits}: {error}") from None
            for packet in packets:
                code, reason = packet.check(design)
                if code is not Error.NONE:
                    raise UnfitError(
                        f"layer {shape.name}, {kind} at {bits}: {code.name}, {reason}; "
                        "choose fewer bits, another network or a larger design"
                    )


def measure_product(  # noqa: PLR0913 - the options of the command
    device: Device,
    design: Design,
    shape: ConvShape,
    bits: Bits,
    count: int = 1,
    output: str = "codes",
    batch: int = 128,
    split: bool = False,
    first: bool = False,
    compare: Device | None = None,
) -> list[Row]:
    """Run one layer's products over a batch.

    Args:
        device: the RTL.
        bits: of weights, activations, gradients.
        count: how often the layer occurs (copied into the row).
        output: of :data:`FORMS`.
        batch: real images.
        split: the two gradients as programs of their own instead of one.
        first: the network's first layer, which needs no input gradient.
        compare: another device whose words must be the same.

    Raises:
        RuntimeError: ``compare`` answers otherwise.
    """
    rows = []
    for kind in passes(split, first):
        counters: Counter[str] = Counter()
        predicted = 0
        for packets in layer_programs(design, shape, bits, batch, kind, FORMS[output]):
            words = random_program(design, packets)
            result = check(device.run(words), f"{shape.name} {kind}")
            if compare is not None:
                other = check(compare.run(words), f"{shape.name} {kind}")
                if not np.array_equal(result.words, other.words):
                    raise RuntimeError(f"{shape.name} {kind}: {device.info.kind} and {compare.info.kind} differ")
            counters.update({name: result.counters[name] for name in TIMING_COUNTERS})
            predicted += predict(design, packets).cycles
        each = {name: counters[name] / batch for name in TIMING_COUNTERS}
        ideal = ideal_cycles(design, shape, bits, kind)
        rows.append(
            Row(
                layer=shape.name,
                count=count,
                product=kind,
                bits=f"{bits.w}/{bits.a}/{bits.g}",
                output=output,
                cycles=each["CYCLES"],
                ideal=ideal,
                utilisation=ideal / each["CYCLES"],
                busy=each["BUSY"],
                stall_drain=each["STALL_DRAIN"],
                idle=contract.array_idle(each),
                stall_in=each["STALL_IN"],
                stall_hazard=each["STALL_HAZARD"],
                stall_out=each["STALL_OUT"],
                measured_total=counters["CYCLES"],
                predicted_total=predicted,
                model_error=predicted / counters["CYCLES"] - 1,
            )
        )
    return rows


def bench_engine(
    design: Design,
    shapes: Iterable[ConvShape],
    bits: Bits,
    rows_of: Callable[[ConvShape, Bits, int, bool], list[Row]],
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """All convolutions of a network at one precision: rows, cycles per image, images per second at the design's clock.

    Args:
        rows_of: :func:`measure_product` of a layer, its widths, how often it occurs, and whether it is the first.
    """
    rows: list[Row] = []
    for index, (shape, count) in enumerate(distinct_shapes(shapes)):
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

    ``compute_bound`` says whether a tile's steps last until the tile before it is out of the way
    (:func:`hw.model.cycles.tile_period`).
    """
    result: list[dict[str, Any]] = []
    for name, groups in (("weight_gradient", 1), ("convolution", 1), ("convolution", 4)):
        pairs: list[dict[str, Any]] = []
        for a_bits in range(2, 9):
            for b_bits in range(2, 17):
                programs = [_repeated(design, name, groups, a_bits, b_bits, n) for n in (1, 2)]
                if any(packet.overflows(design) for packet in programs[0]):
                    continue
                one, two = (check(device.run(random_program(design, packets))) for packets in programs)
                measured = next(packet for packet in programs[0] if packet.is_product)
                pairs.append(
                    {
                        "product": name,
                        "groups": groups,
                        "a_bits": a_bits,
                        "b_bits": b_bits,
                        "compute_bound": measured.tiles()[0].steps >= tile_period(design, measured),
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


def draw_engine(result: dict[str, Any], path: Path) -> None:
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
    save_picture(figure, path)
