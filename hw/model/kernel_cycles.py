"""Cycle model of the HLS kernel: iterations of its pipelined loops, each one cycle.

Without the vendor's tool nobody knows what a loop takes to fill its pipeline, so that is left out: figures of this model
compare forms of the kernel with each other.  The structure is that of ``hls_templates/fabric.cpp``: a loader, an
engine that multiplies and hands over each tile, and an output process, with FIFOs between them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from enum import IntEnum

from hw.contract import HEADER_WORDS, MOMENT_WORDS, Flag, Opcode, OutputFormat, Target
from hw.design import Design
from hw.model.cycles import BufferRanges, Prediction, flag_cycles, meet
from hw.networks import Bits, ConvShape
from hw.packet import Packet
from hw.plan.training_products import layer_products, program

PACKET_SLOTS = 4  #: of the FIFO from loader to engine
TILE_SLOTS = 2  #: tiles that wait for the output process


class Overlap(IntEnum):
    """What goes on while the array computes, beside the output process; each form includes those before it."""

    NONE = 0
    LOADS = 1  #: loads, ahead of the product before them
    TILES = 2  #: the hand-over of the tile before, from a copy: the kernel as it is


def output_loops(design: Design, p: Packet, out_group: int = 0) -> dict[str, int]:
    """Cycles of the output process for one tile of a product, by function of the kernel."""
    if p.opcode == Opcode.WGRAD:
        return {"add_entries": 2 * (design.channels + 1)}
    values = design.lanes * design.channels
    if p.has_epilogue:
        return {
            "draw": design.channels * p.segment_start.bit_count() if p.has(Flag.STOCHASTIC) else 0,
            "finish_sums_of_tile": values // design.epilogue_lanes,
            "send_planes": p.section_planes * design.row_words // design.output_streams,
        }
    values += design.lanes if p.has(Flag.A_SUM) and out_group == 0 else 0
    return {"take_tile": values // (1 if p.format == OutputFormat.INT64 else 2) // design.output_streams}


def output_cycles(design: Design, p: Packet, out_group: int = 0) -> int:
    """Cycles of the output process for one tile of a product."""
    return sum(output_loops(design, p, out_group).values())


def lines_of_tile(design: Design, p: Packet, out_group: int = 0) -> int:
    """Iterations in which a tile of a product is handed over."""
    c = design.channels
    if p.opcode == Opcode.WGRAD:
        return c + 1
    channels = c + 1 if p.has(Flag.A_SUM) and out_group == 0 else c
    return channels * design.lanes // max(c, design.epilogue_lanes)


def tile_cycles(p: Packet, steps: int) -> int:
    """Iterations of the engine for a tile of ``steps`` array steps: planes of SIDE and ADDED come one in each."""
    return max(steps, p.side_planes + p.added_bits) if p.has_epilogue else steps


def tiles_of(p: Packet) -> Iterator[tuple[int, int]]:
    """Array steps and output group of each tile of a product, in order; groups of a WGRAD are told as 0."""
    for tiles in p.tiles():
        for n in range(tiles.number):
            yield tiles.steps, n % p.out_groups if p.opcode == Opcode.CONV else 0


def last_loops(design: Design, p: Packet) -> dict[str, int]:
    """Cycles of the output process behind the last tile of a packet, by function: results of READ, moments."""
    loops = {}
    if p.opcode == Opcode.READ:
        loops["send_entries"] = p.result_words(design) // design.output_streams
    if p.has_moments:
        loops["send_moments"] = p.out_groups * design.channels * MOMENT_WORDS // design.output_streams
    return loops


def last_cycles(design: Design, p: Packet) -> int:
    """Cycles of the output process behind the last tile of a packet."""
    return sum(last_loops(design, p).values())


def writes_of(p: Packet) -> int:
    """Writes that the loader makes of a LOAD; one more tells its end."""
    if p.loads(Target.A | Target.G):
        return p.images * p.rows * p.groups * p.a_bits + 1
    return p.payload_words // 2 + 1


def left_writes(design: Design, p: Packet, reads: BufferRanges, spare: int) -> tuple[int, int]:
    """Writes of a LOAD that the engine takes when its packet comes, having absorbed the others while a product ran.

    Args:
        reads: what the last product reads.
        spare: its iterations in which no write has been absorbed.

    Returns:
        The writes that are left, and the iterations that are spare behind them: none once a write has had to wait.
    """
    waits = p.loads(Target.E) or meet(p.ranges(design), reads)
    writes = writes_of(p)
    absorbed = 0 if waits else min(writes, spare)
    return writes - absorbed, spare - absorbed if absorbed == writes else 0


def loop_cycles(design: Design, packets: Iterable[Packet]) -> dict[str, int]:
    """Cycles of the kernel's pipelined loops for a good program, by function of the kernel; those that are 0 are left out.

    The terms are those that :func:`predict_kernel` lays side by side.  Processes are taken one after the other, as the
    simulation runs them: all writes have come when the engine begins.
    """
    counts: Counter[str] = Counter()
    reads: BufferRanges = {}
    spare = 0
    words = 2  # of results; the trailer
    for p in packets:
        counts["read_header"] += HEADER_WORDS // 2
        words += p.result_words(design)
        counts.update(last_loops(design, p))
        if p.opcode == Opcode.LOAD:
            counts["load_tensor" if p.loads(Target.A | Target.G) else "load_beats"] += p.payload_words // 2
            left, spare = left_writes(design, p, reads, spare)
            counts["finish_load"] += left
        elif p.is_product:
            reads = p.ranges(design)
            counts["planes_in_use"] += flag_cycles(p, reads)
            waiting = rests = fetches = 0  # lines of the tile before
            for steps, out_group in tiles_of(p):
                cycles = tile_cycles(p, steps)
                fetches += cycles - steps
                rests += max(0, waiting - cycles)
                waiting = lines_of_tile(design, p, out_group)
                counts.update(output_loops(design, p, out_group))
            counts["compute_tile"] += p.steps()
            counts["finish_fetch"] += fetches
            counts["finish_tile"] += rests + waiting
            spare = p.steps() + fetches + rests + waiting
    counts["result_port"] = words // design.output_streams
    return {name: cycles for name, cycles in counts.items() if cycles}


def predict_kernel(design: Design, packets: Iterable[Packet], overlap: Overlap = Overlap.TILES) -> Prediction:
    """Cycles of a program on the HLS kernel of ``design``, streams never pausing.

    Args:
        packets: as for :func:`hw.model.cycles.predict`.
        overlap: form of the kernel.
    """
    result = Prediction()
    ahead = overlap >= Overlap.LOADS
    loader = engine = output = 0.0  # times at which the processes are free
    started, reads = 0.0, BufferRanges()  # of the last product
    spare = 0  # its cycles in which no write has been absorbed
    taken: list[float] = []  # times at which the engine has taken the packets
    for p in packets:
        op = p.opcode
        if len(taken) >= PACKET_SLOTS:
            loader = max(loader, taken[-PACKET_SLOTS])
        loader = (loader if ahead else max(loader, engine)) + HEADER_WORDS // 2
        engine = max(engine, loader) if op != Opcode.LOAD or not ahead else engine
        if op == Opcode.LOAD:
            beats = p.payload_words // 2
            early = ahead and not p.loads(Target.E) and not meet(p.ranges(design), reads)
            loader = max(loader, started if early else engine) + beats
            left, spare = left_writes(design, p, reads, spare)
            engine = max(loader, engine + (left if early else 0))
            result.load += beats
        elif p.is_product:
            started, reads = engine, p.ranges(design)
            engine += flag_cycles(p, reads)
            begun, handed = engine, engine  # when the tiles began; when the last finished one has been handed over
            sent = [output] * TILE_SLOTS
            for steps, out_group in tiles_of(p):
                engine = max(engine + tile_cycles(p, steps), handed)
                handed = max(engine + lines_of_tile(design, p, out_group), sent[-TILE_SLOTS])
                sent = [*sent[1:], max(sent[-1], handed) + output_cycles(design, p, out_group)]
                engine = engine if overlap >= Overlap.TILES else handed
            result.compute += p.steps()
            engine, output = handed, sent[-1]
            spare = round(engine - begun)
            output += last_cycles(design, p)
        elif op == Opcode.READ:
            output = max(output, engine) + last_cycles(design, p)
        taken.append(engine)
    result.cycles = round(max(loader, engine, output))
    return result


def kernel_training_cycles(
    design: Design, shapes: Iterable[ConvShape], bits: Bits, batch: int = 128, overlap: Overlap = Overlap.TILES
) -> float:
    """Cycles per image of a network's training products on the HLS kernel, results as packed codes.

    Args:
        shapes: of the network, the stem first, which needs no input gradient; fully connected layers are left out.
        bits: of weights, activations and gradients.
        batch: real images over which fixed costs are spread.
        overlap: form of the kernel.
    """
    total = 0.0
    for shape in shapes:
        if shape.kind == "fc":
            continue
        for kind in ("forward", "weight_gradient" if shape.kind == "stem" else "backward"):
            for count, product in layer_products(shape, bits, batch, kind):
                total += count * predict_kernel(design, program(design, product), overlap).cycles / batch
    return total
