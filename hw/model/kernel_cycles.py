"""Cycle model of the HLS kernel: iterations of its pipelined loops, each one cycle.

Without the vendor's tool nobody knows what a loop takes to fill its pipeline, so that is left out: figures of this model
compare forms of the kernel with each other.  The structure is that of ``hls_templates/fabric.cpp``: a loader, an
engine that multiplies and hands over each tile, and an output process, with FIFOs between them.
"""

from __future__ import annotations

from collections.abc import Iterable
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


def output_cycles(design: Design, p: Packet) -> int:
    """Cycles of the output process for one tile of a product."""
    if p.opcode == Opcode.WGRAD:
        return 2 * (design.channels + 1)
    values = design.lanes * design.channels
    if p.has_epilogue:
        hashes = design.channels * p.segment_start.bit_count() if p.has(Flag.STOCHASTIC) else 0
        codes = p.section_planes * design.row_words // design.output_streams
        return hashes + values // design.epilogue_lanes + codes
    return values // (1 if p.format == OutputFormat.INT64 else 2) // design.output_streams


def lines_of_tile(design: Design, p: Packet) -> int:
    """Iterations in which a tile of a product is handed over; lines of ``A_SUM`` are left out."""
    c = design.channels
    return c + 1 if p.opcode == Opcode.WGRAD else c * design.lanes // max(c, design.epilogue_lanes)


def tile_cycles(p: Packet, steps: int) -> int:
    """Iterations of the engine for a tile of ``steps`` array steps: planes of SIDE and ADDED come one in each."""
    return max(steps, p.side_planes + p.added_bits) if p.has_epilogue else steps


def last_cycles(design: Design, p: Packet) -> int:
    """Cycles of the output process behind the last tile of a packet: results of READ, moments."""
    words = p.result_words(design) if p.opcode == Opcode.READ else 0
    if p.has_moments:
        words = p.out_groups * design.channels * MOMENT_WORDS
    return words // design.output_streams


def predict_kernel(design: Design, packets: Iterable[Packet], overlap: Overlap = Overlap.TILES) -> Prediction:
    """Cycles of a program on the HLS kernel of ``design``, streams never pausing; ``A_SUM`` lines are left out.

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
            beats = writes = p.payload_words // 2
            if p.loads(Target.A | Target.G):
                writes = p.images * p.rows * p.groups * p.a_bits
            early = ahead and not p.loads(Target.E) and not meet(p.ranges(design), reads)
            loader = max(loader, started if early else engine) + beats
            late = max(0, writes - spare) if early else 0
            spare = max(0, spare - writes)
            engine = max(loader, engine + late)
            result.load += beats
        elif p.is_product:
            started, reads = engine, p.ranges(design)
            engine += flag_cycles(p, reads)
            lines, sent = lines_of_tile(design, p), output_cycles(design, p)
            begun, handed = engine, engine  # when the tiles began; when the last finished one has been handed over
            left = [output] * TILE_SLOTS
            for tiles in p.tiles():
                for _ in range(tiles.number):
                    engine = max(engine + tile_cycles(p, tiles.steps), handed)
                    handed = max(engine + lines, left[-TILE_SLOTS])
                    left = [*left[1:], max(left[-1], handed) + sent]
                    engine = engine if overlap >= Overlap.TILES else handed
            result.compute += p.steps()
            engine, output = handed, left[-1]
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
