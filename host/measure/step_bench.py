"""``fractrain bench step``: all passes of a network's training step on the simulated hardware, against the cycle model.

Every distinct pass runs over a whole batch in the packets of the driver's plan, with random payload.  A pass that the
fabric cannot take with an epilogue (:class:`hw.plan.product.LoweringError`) leaves its sums to the host, and is counted so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from host.devices.device import Device, check
from host.measure.engine_bench import random_program
from hw import contract
from hw.contract import HEADER_WORDS, TIMING_COUNTERS
from hw.design import Design
from hw.files import save_picture
from hw.model.cycles import predict
from hw.networks import Bits
from hw.nodes import KeptWidths, StepNode
from hw.packet import END, Packet
from hw.plan.plan import programs, steps
from hw.plan.product import LoweringError, Product
from hw.plan.training_step import PASSES, StepPass, StepPasses


@dataclass
class PassRow:
    """One distinct pass over a batch; cycles and bytes are per image.

    Attributes:
        node, count: one of the nodes that take it, and how many do.
        kind: of :data:`hw.plan.training_step.PASSES`.
        epilogue: whether it runs behind the array; else sums leave as integers, and the host does what is behind them.
        cycles: of the programs, by the counters, or where nothing ran by the model.
        array: the array computes.
        drain: the array waits for results to drain.
        idle: the array has no step to do.
        stall_in, stall_out: the loader waits for a stream, a result for the output stream.
        bytes_in, bytes_out: over the streams.
        predicted: cycles by the model.
        model_error: of the prediction, relative.
    """

    node: str
    count: int
    kind: str
    epilogue: bool
    cycles: float
    array: float
    drain: float
    idle: float
    stall_in: float
    stall_out: float
    bytes_in: float
    bytes_out: float
    predicted: float
    model_error: float


def distinct_passes(step: StepPasses) -> list[tuple[StepPass, int]]:
    """Passes that differ in what they compute, with how often each occurs, in order of first occurrence."""
    seen: dict[object, list[StepPass]] = {}
    for each in step.passes():
        seen.setdefault((each.kind, each.products), []).append(each)
    return [(group[0], len(group)) for group in seen.values()]


def pass_programs(design: Design, each: StepPass) -> tuple[list[list[Packet]], bool]:
    """Programs of a pass, each with its END, and whether its epilogue is on the fabric."""
    members = [product for count, product in each.products for _ in range(count)]
    epilogue = True
    try:
        planned = list(steps(design, _numbered(members)))
    except LoweringError:
        epilogue = False
        planned = list(steps(design, _numbered([replace(product, behind=None) for product in members])))
    cut = programs(design, planned)
    return [[*(packet for step in program_ for packet in step.packets), END] for program_ in cut], epilogue


def _numbered(products: list[Product]) -> list[Product]:
    return [replace(product, weights=number) for number, product in enumerate(products)]


def measure_pass(device: Device | None, design: Design, each: StepPass, count: int, batch: int) -> PassRow:
    """One pass over a batch.

    Args:
        device: the RTL; None predicts alone.
        count: how often the pass occurs.
    """
    cut, epilogue = pass_programs(design, each)
    counters: Counter[str] = Counter()
    words_in = words_out = 0
    for packets in cut:
        prediction = predict(design, packets)
        words_in += sum(HEADER_WORDS + packet.payload_words for packet in packets)
        words_out += sum(packet.result_words(design) for packet in packets) + 2
        counters.update(predicted=prediction.cycles)
        if device is None:
            counters.update(CYCLES=prediction.cycles, BUSY=prediction.compute)
            continue
        result = check(device.run(random_program(design, packets)), f"{each.node} {each.kind}")
        counters.update({name: result.counters[name] for name in TIMING_COUNTERS})
    per = {name: counters[name] / batch for name in (*TIMING_COUNTERS, "predicted")}
    return PassRow(
        node=each.node,
        count=count,
        kind=each.kind,
        epilogue=epilogue,
        cycles=per["CYCLES"],
        array=per["BUSY"],
        drain=per["STALL_DRAIN"],
        idle=contract.array_idle(per),
        stall_in=per["STALL_IN"],
        stall_out=per["STALL_OUT"],
        bytes_in=8 * words_in / batch,
        bytes_out=8 * words_out / batch,
        predicted=per["predicted"],
        model_error=per["predicted"] / per["CYCLES"] - 1,
    )


def bench_step(
    device: Device | None,
    design: Design,
    graph: list[StepNode],
    bits: Bits,
    widths: KeptWidths,
    batch: int,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """A whole step at one precision: rows, totals by kind of pass, cycles per image, images per second.

    Args:
        device: the RTL; None predicts alone.
        graph: of :func:`hw.plan.training_step.nodes`.
    """
    rows = []
    for each, count in distinct_passes(StepPasses(graph, batch, bits, widths)):
        progress(f"{each.node}, {each.kind} at {bits.w}/{bits.a}/{bits.g}")
        rows.append(measure_pass(device, design, each, count, batch))
    total = sum(row.cycles * row.count for row in rows)
    kinds = {kind: sum(row.cycles * row.count for row in rows if row.kind == kind) for kind in PASSES}
    return {
        "bits": f"{bits.w}/{bits.a}/{bits.g}",
        "widths": asdict(widths),
        "cycles_per_image": total,
        "images_per_second": design.clock_mhz * 1e6 / total,
        "array_share": sum(row.array * row.count for row in rows) / total,
        "predicted_per_image": sum(row.predicted * row.count for row in rows),
        "bytes_per_image": sum((row.bytes_in + row.bytes_out) * row.count for row in rows),
        "kinds": kinds,
        "rows": [asdict(row) for row in rows],
    }


def mixture(parts: list[tuple[dict[str, Any], int]], design: Design) -> dict[str, Any]:
    """A step whose images have bits of their own: results of :func:`bench_step`, each with its number of images.

    The parts' passes run one after the other; moments are added by the host.
    """
    images = sum(count for _, count in parts)

    def mean(name: str) -> float:
        return sum(float(run[name]) * count for run, count in parts) / images

    total = mean("cycles_per_image")
    rows = [{**row, "node": f"{row['node']} {run['bits']}"} for run, _ in parts for row in run["rows"]]
    return {
        "bits": " + ".join(f"{count} at {run['bits']}" for run, count in parts),
        "widths": {},
        "cycles_per_image": total,
        "images_per_second": design.clock_mhz * 1e6 / total,
        "array_share": sum(run["array_share"] * run["cycles_per_image"] * n for run, n in parts) / images / total,
        "predicted_per_image": mean("predicted_per_image"),
        "bytes_per_image": mean("bytes_per_image"),
        "kinds": {kind: sum(run["kinds"][kind] * count for run, count in parts) / images for kind in PASSES},
        "rows": rows,
    }


def draw_step(result: dict[str, Any], path: Path) -> None:
    """Cycles of an image by kind of pass, for every precision, as one picture."""
    from matplotlib import rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "step"  # the same result gives the same bytes
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = [f"{run['bits']}" for run in result["runs"]]
    left = [0.0] * len(names)
    for kind in PASSES:
        widths = [run["kinds"][kind] / 1e3 for run in result["runs"]]
        axes.barh(names, widths, left=left, label=kind)
        left = [x + w for x, w in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    source = "RTL counters" if result["device"] == "rtl" else "by the model"
    axes.set_xlabel(f"thousand cycles per image ({result['model']} on {result['design']}, {source})")
    figure.legend(loc="outside upper center", ncols=3)
    save_picture(figure, path)
