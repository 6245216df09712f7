"""Cycle model of the fabric: when each packet loads, computes and drains, without simulating a bit.

The model follows the RTL's structure: one loader that takes packets in order, a queue of commands, one sequencer, a
drain that holds one tile, and an output stream of one word per cycle.  Lengths of pipelines and of the queue are those
that the RTL is rendered with (``hw/pipeline.py``); the constants here count its states and registers.

A packet takes some microseconds, whatever it computes, so the two or three hundred packets of a product over a batch
take a few milliseconds; searches keep results by layer (``hw/cost/fabric.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hw.contract import HEADER_WORDS, Flag, Opcode, OutputFormat, Target
from hw.design import Design
from hw.packet import (
    Packet,
    Range,
)
from hw.pipeline import ARRAY_CYCLES, QUEUE_SLOTS, STEP_CYCLES

HEADER_CYCLES = HEADER_WORDS // 2 + 4  #: five beats and four cycles of checks
LOAD_CYCLES = 2  #: hazard check before, step to the next packet after
SETUP_CYCLES = 5  #: from the head of the queue to the first step
TILE_CYCLES = STEP_CYCLES + ARRAY_CYCLES + 2  #: from a tile's last step to its first value in the drain
DRAIN_CYCLES = 1  #: from the last value to permission for the next tile to end
STREAMING_CYCLES = {Opcode.WGRAD: 0, Opcode.CONV: 3}  #: the same when the rest of a tile is sure to leave in time
OUTPUT_CYCLES = 6  #: from a tile's last value to its first word
TRAILER_CYCLES = 8


@dataclass
class Prediction:
    """Cycles of a program.

    Attributes:
        cycles: from start to done.
        compute: cycles in which the array works, what the counter BUSY counts.
        load: cycles in which the loader takes words.
        store: cycles in which the output stream is busy.
    """

    cycles: int = 0
    compute: int = 0
    load: int = 0
    store: int = 0


Ranges = dict[str, tuple[Range, ...]]  #: of addresses, by buffer


def meet(x: Ranges, y: Ranges) -> bool:
    """Whether two packets have an address in common."""
    return any(p[0] < q[1] and q[0] < p[1] for buffer in x.keys() & y.keys() for p in x[buffer] for q in y[buffer])


def flag_cycles(packet: Packet, reads: Ranges) -> int:
    """Cycles in which a product looks for planes that are zero: one per address of its tensors."""
    searched = "AG" if packet.opcode == Opcode.WGRAD else "A"
    return sum(end - first for b in searched for first, end in reads[b]) if packet.has(Flag.SKIP_ZERO) else 0


def predict(design: Design, packets: Iterable[Packet]) -> Prediction:
    """Cycles of a program on ``design``, streams never pausing.

    Args:
        packets: END last; planes, flags and ``payload_words`` as they will be sent.
    """
    result = Prediction()
    loader = 2.0  # time at which the loader is free
    sequencer = 0.0  # time at which the sequencer is free
    drain = 0.0  # time at which the drain can take a tile
    output = 0.0  # time at which the output stream is free
    retired: list[tuple[float, Ranges]] = []  # commands: when they leave, what they read

    for p in packets:
        loader += HEADER_CYCLES
        if p.opcode == Opcode.LOAD:
            ready = loader + LOAD_CYCLES
            spans = p.ranges(design)
            for when, reads in retired[-QUEUE_SLOTS:]:
                if meet(spans, reads) or p.loads(Target.E):
                    ready = max(ready, when)
            beats = p.payload_words // 2
            loader = ready + beats
            result.load += beats
            continue
        if p.opcode == Opcode.END:
            result.cycles = round(max(loader, sequencer, drain, output) + TRAILER_CYCLES)
            continue
        if len(retired) >= QUEUE_SLOTS:
            loader = max(loader, retired[-QUEUE_SLOTS][0])
        loader += 2
        sent = p.result_words(design)
        if p.opcode == Opcode.READ:
            start = max(loader, sequencer, drain, output)
            output = sequencer = start + 3 + 2 * p.rows + sent
            result.store += sent
            retired.append((sequencer, {}))
            continue

        start = max(loader, sequencer) + SETUP_CYCLES
        reads = p.ranges(design)
        whole, *extra = p.tiles()
        tiles, compute, steps = sum(t.number for t in (whole, *extra)), p.steps(), whole.steps
        of_ones, steps_of_ones = (extra[0].number, extra[0].steps) if extra else (0, 0)
        # cycles between groups, where the precision may change
        turns = (p.groups + 1) * p.out_groups - 1 if extra else 0
        drained = _drained(design, p)
        start += flag_cycles(p, reads)
        at_the_end = p.opcode == Opcode.CONV and p.format == OutputFormat.MOMENTS  # all results
        if at_the_end:
            gap = 0
        elif p.opcode == Opcode.WGRAD or p.format == OutputFormat.CODES:
            gap = STREAMING_CYCLES[Opcode(p.opcode)]
        else:
            gap = TILE_CYCLES + DRAIN_CYCLES
        tile = max(steps, drained + gap, 0 if at_the_end else sent / tiles)
        first_end = max(start + steps, drain)
        rest = (tiles - 1 - of_ones) * tile + of_ones * max(steps_of_ones, drained + gap)
        end = max(first_end + rest, start + compute + turns)
        # results lag: the stream may still be sending earlier results
        values = min(drained, design.channels)
        if at_the_end:
            output = max(output, end + TILE_CYCLES + drained + OUTPUT_CYCLES) + sent
        elif sent:
            end = max(end, output + sent - 2 * sent / tiles)
            output = max(output, first_end + TILE_CYCLES + values + OUTPUT_CYCLES) + sent
            output = max(output, end + TILE_CYCLES + values + OUTPUT_CYCLES + sent / tiles)
        drain = end + TILE_CYCLES + drained
        sequencer = end
        result.compute += compute
        result.store += sent
        retired.append((end, reads))
    return result


def _drained(design: Design, p: Packet) -> int:
    """Cycles in which the drain holds a tile of a product."""
    c, lanes = design.channels, design.lanes
    if p.opcode == Opcode.WGRAD:
        return c + 1
    if p.has_epilogue:
        return c * lanes // design.epilogue_lanes
    per_channel = lanes if p.format == OutputFormat.INT64 else lanes // 2
    return per_channel * (c - 1)  # the last channel leaves while the next tile comes
