"""Cycle model of the HLS kernel: iterations of its pipelined loops, each one cycle.

Without the vendor's tool nobody knows what a loop takes to fill its pipeline, so that is left out: figures of this model
compare forms of the kernel with each other.  The structure is that of ``hls_templates/fabric.cpp.j2``: a loader, an
engine that multiplies and hands over each tile, and an output process, with FIFOs between them.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from hw.contract import HEADER_WORDS, TAPS, Flag, LoadFormat, Opcode, OutputFormat, Target
from hw.design import Design
from hw.model.cycles import Prediction, Ranges, meet, ranges, steps_of_tile
from hw.model.workload import Packet, backward, forward, lower
from hw.networks import Bits, ConvShape

PACKET_SLOTS = 4  #: of the FIFO from loader to engine
TILE_SLOTS = 2  #: tiles that wait for the output process


class Overlap(IntEnum):
    """What goes on while the array computes, beside the output process; each form includes those before it."""

    NONE = 0
    LOADS = 1  #: loads, ahead of the product before them
    TILES = 2  #: the hand-over of the tile before, from a copy: the kernel as it is


def tiles(design: Design, p: Packet) -> list[tuple[int, int, int]]:
    """Tiles of a product in groups that are alike: number, array steps of one, cycles of the output process for one."""
    c, flags = design.channels, Flag(p.get("flags", 0))
    planes = (p["a_planes"], p["b_planes"], p["a_bits"], p["b_bits"])
    if p["opcode"] == Opcode.WGRAD:
        inner = p["images"] * -(-p["rows"] // 8)
        taps = bin(p.get("taps", (1 << TAPS) - 1)).count("1") * p["out_groups"]
        tiles = [(p["groups"] * taps, steps_of_tile(*planes, inner, True), 2 * (c + 1))]
        if flags & Flag.ONES:
            tiles.append((taps, steps_of_tile(1, p["b_planes"], 1, p["b_bits"], inner, True), 2 * (c + 1)))
        return tiles
    form = p.get("format", OutputFormat.INT32)
    if form == OutputFormat.CODES:
        sent = 2 * c + p["out_bits"] * design.row_words
        if flags & Flag.STOCHASTIC:
            sent += 2 * c * max(1, c // design.rounding_lanes)
    else:
        sent = 2 * c * (c if form == OutputFormat.INT64 else c // 2)
    steps = steps_of_tile(*planes, p["groups"], bool(flags & Flag.A_SUM))
    return [(p["images"] * p["rows"] * p["out_groups"], steps, sent)]


def lines_of_tile(design: Design, p: Packet) -> int:
    """Iterations in which a tile of a product is handed over; lines of ``A_SUM`` are left out."""
    return design.channels + 1 if p["opcode"] == Opcode.WGRAD else 2 * design.channels


def predict_kernel(design: Design, packets: Iterable[Packet], overlap: Overlap = Overlap.TILES) -> Prediction:
    """Cycles of a program on the HLS kernel of ``design``, streams never pausing; ``A_SUM`` lines are left out.

    Args:
        packets: as for :func:`hw.model.cycles.predict`.
        overlap: form of the kernel.
    """
    c, result = design.channels, Prediction()
    ahead = overlap >= Overlap.LOADS
    loader = engine = output = 0.0  # times at which the processes are free
    started, reads = 0.0, Ranges()  # of the last product
    spare = 0  # its cycles in which no write has been absorbed
    taken: list[float] = []  # times at which the engine has taken the packets
    for p in packets:
        op = p["opcode"]
        if len(taken) >= PACKET_SLOTS:
            loader = max(loader, taken[-PACKET_SLOTS])
        loader = (loader if ahead else max(loader, engine)) + HEADER_WORDS // 2
        engine = max(engine, loader) if op != Opcode.LOAD or not ahead else engine
        if op == Opcode.LOAD:
            beats = writes = p["payload_words"] // 2
            if p["target"] & (Target.A | Target.G):
                rows = p["images"] * p["rows"] * p["groups"]
                writes = rows * p["a_bits"]
                if p.get("format") == LoadFormat.FLOAT32:
                    beats += design.lanes + writes
            early = ahead and not p["target"] & Target.E and not meet(ranges(p), reads)
            loader = max(loader, started if early else engine) + beats
            late = max(0, writes - spare) if early else 0
            spare = max(0, spare - writes)
            engine = max(loader, engine + late)
            result.load += beats
        elif op in (Opcode.CONV, Opcode.WGRAD):
            started, reads = engine, ranges(p)
            if p.get("flags", 0) & Flag.SKIP_ZERO:
                engine += sum(reads[buffer][1] - reads[buffer][0] for buffer in ("A", "G") if buffer in reads)
            lines = lines_of_tile(design, p)
            begun, handed = engine, engine  # when the tiles began; when the last finished one has been handed over
            left = [output] * TILE_SLOTS
            for number, steps, sent in tiles(design, p):
                for _ in range(number):
                    engine = max(engine + steps, handed)
                    handed = max(engine + lines, left[-TILE_SLOTS])
                    left = [*left[1:], max(left[-1], handed) + sent]
                    engine = engine if overlap >= Overlap.TILES else handed
                result.compute += number * steps
            engine, output = handed, left[-1]
            spare = round(engine - begun)
            if op == Opcode.CONV and p.get("format") == OutputFormat.STATISTICS:
                output += 4 * c * p["out_groups"]
        elif op == Opcode.READ:
            output = max(output, engine) + p["rows"] * (c if p.get("format") == OutputFormat.INT64 else c // 2)
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
        side = lower(design, shape).side
        virtual = max(1, batch // side)
        products = ("weight_gradient",) if shape.kind == "stem" else ("input_gradient", "weight_gradient")
        for packets in (
            forward(design, shape, bits, virtual),
            backward(design, shape, bits, virtual, products=products),
        ):
            total += predict_kernel(design, packets, overlap).cycles / (virtual * side)
    return total
