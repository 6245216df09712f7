"""Cycle model of the fabric: when each packet loads, computes and drains, without simulating a bit.

The model follows the RTL's structure: one loader that takes packets in order, a queue of commands, one sequencer, a
drain that holds one tile, an epilogue and registers of codes behind it, and output streams of one word per cycle each.
Lengths of pipelines and of the queue are those that the RTL is rendered with (``hw/pipeline.py``); the constants here
count its states and registers.

A packet takes some microseconds, whatever it computes, so the two or three hundred packets of a product over a batch
take a few milliseconds; searches keep results by layer (``hw/cost/fabric.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hw.contract import HEADER_WORDS, MOMENT_WORDS, Flag, Opcode, OutputFormat, Target
from hw.design import Design
from hw.packet import Packet, Range
from hw.pipeline import (
    ARRAY_CYCLES,
    CHECK_CYCLES,
    EPILOGUE_CYCLES,
    HASH_CYCLES,
    PERMIT_CYCLES,
    QUEUE_SLOTS,
    STEP_CYCLES,
    VALUE_CYCLES,
)

HEADER_CYCLES = HEADER_WORDS // 2 + CHECK_CYCLES  #: beats, and the checks
LOAD_CYCLES = 2  #: hazard check before, step to the next packet after
SETUP_CYCLES = 8  #: from the head of the queue to the first step
TILE_CYCLES = STEP_CYCLES + ARRAY_CYCLES + 2  #: from a tile's last step to its first value in the drain
OUTPUT_CYCLES = 6  #: from a beat of results to its first word on a stream
COPY_CYCLES = 1  #: of a tile's codes, from the registers that they fill to those that are sent
RANDOM_CYCLES = HASH_CYCLES + 2  #: from a packet's first step to its first random numbers
MOMENT_CYCLES = 5  #: of the moments of two channels, on their way out
TRAILER_CYCLES = 5  #: from the last results' way out to the end


@dataclass
class Prediction:
    """Cycles of a program.

    Attributes:
        cycles: from start to done.
        compute: cycles in which the array works, what the counter BUSY counts.
        load: cycles in which the loader takes words.
        store: cycles in which the output streams are busy.
    """

    cycles: int = 0
    compute: int = 0
    load: int = 0
    store: int = 0


BufferRanges = dict[str, tuple[Range, ...]]  #: of addresses, by buffer


def meet(x: BufferRanges, y: BufferRanges) -> bool:
    """Whether two packets have an address in common."""
    return any(p[0] < q[1] and q[0] < p[1] for buffer in x.keys() & y.keys() for p in x[buffer] for q in y[buffer])


def flag_cycles(packet: Packet, reads: BufferRanges) -> int:
    """Cycles in which a product looks for planes that are zero: one per address of its tensors."""
    searched = "AG" if packet.opcode == Opcode.WGRAD else "A"
    return sum(end - first for b in searched for first, end in reads[b]) if packet.has(Flag.SKIP_ZERO) else 0


def predict(design: Design, packets: Iterable[Packet]) -> Prediction:
    """Cycles of a program on ``design``, streams never pausing.

    Args:
        packets: END last; planes, flags and ``payload_words`` as they will be sent.
    """
    clock = _Clock(design)
    for packet in packets:
        clock.take(packet)
    return clock.result


class _Clock:
    """Times at which the fabric's parts are free, in cycles from the start of a program."""

    def __init__(self, design: Design) -> None:
        self._design = design
        self.result = Prediction()
        self._loader = 2.0
        self._sequencer = 0.0
        self._drain = 0.0  # it can take a tile
        self._output = 0.0  # streams
        self._moments = 0.0  # those of the last packet that had any have left
        self._retired: list[tuple[float, BufferRanges]] = []  # commands: when they leave, what they read

    def take(self, p: Packet) -> None:
        """The next packet of the program."""
        self._loader += HEADER_CYCLES
        if p.opcode == Opcode.LOAD:
            self._load(p)
            return
        if p.opcode == Opcode.END:
            # the trailer follows the last results through the queue in front of the streams
            free = max(self._loader, self._sequencer, self._drain, self._output - OUTPUT_CYCLES)
            self.result.cycles = round(free + TRAILER_CYCLES)
            return
        if len(self._retired) >= QUEUE_SLOTS:
            self._loader = max(self._loader, self._retired[-QUEUE_SLOTS][0])
        self._loader += 2
        if p.opcode == Opcode.READ:
            self._read(p)
        else:
            self._product(p)
        self.result.store += round(p.result_words(self._design) / self._design.output_streams)

    def _load(self, p: Packet) -> None:
        ready = self._loader + LOAD_CYCLES
        spans = p.ranges(self._design)
        for when, reads in self._retired[-QUEUE_SLOTS:]:
            if meet(spans, reads) or p.loads(Target.E):
                ready = max(ready, when)
        beats = p.payload_words // 2
        self._loader = ready + beats
        self.result.load += beats

    def _read(self, p: Packet) -> None:
        sent = p.result_words(self._design)
        start = max(self._loader, self._sequencer, self._drain, self._output)
        self._output = self._sequencer = start + 4 + max(3 * p.rows + sent / 2, sent / self._design.output_streams)
        self._retired.append((self._sequencer, {}))

    def _product(self, p: Packet) -> None:
        reads = p.ranges(self._design)
        start = max(self._loader, self._sequencer) + SETUP_CYCLES + flag_cycles(p, reads)
        whole, *extra = p.tiles()
        tiles, compute = sum(t.number for t in (whole, *extra)), p.steps()
        of_ones, steps_of_ones = (extra[0].number, extra[0].steps) if extra else (0, 0)
        drained, period = drain_cycles(self._design, p), tile_period(self._design, p)
        planes = p.side_planes + p.added_bits  # read one after the other while the tile is computed
        first_end = max(start + max(whole.steps, planes), self._drain)
        if p.opcode == Opcode.CONV:  # its sums neither enter the epilogue nor leave before another packet's moments
            first_end = max(first_end, self._moments - TILE_CYCLES)
        if p.has(Flag.STOCHASTIC):
            first_end = max(first_end, start + RANDOM_CYCLES - TILE_CYCLES)
        rest = (tiles - 1 - of_ones) * max(whole.steps, planes, period) + of_ones * max(steps_of_ones, period)
        end = max(first_end + rest, start + compute)
        if p.opcode == Opcode.CONV:
            end = self._send(p, first_end, end, tiles)
        self._drain = end + TILE_CYCLES + drained
        self._sequencer = end
        self.result.compute += compute
        self._retired.append((end, reads))

    def _send(self, p: Packet, first_end: float, end: float, tiles: int) -> float:
        """Results of a CONV whose first tile and whose last one end then; when the last one does if it waits for them."""
        design = self._design
        moments = p.out_groups * design.channels * MOMENT_WORDS if p.has_moments else 0
        sent = (p.result_words(design) - moments) / design.output_streams
        latency = EPILOGUE_CYCLES + drain_cycles(design, p) + COPY_CYCLES if p.section_planes else 0
        lag = TILE_CYCLES + latency + OUTPUT_CYCLES
        # the streams may still be sending earlier results
        end = max(end, self._output + sent - 2 * sent / tiles)
        self._output = max(self._output, first_end + lag) + sent
        self._output = max(self._output, end + lag + sent / tiles)
        if moments:
            tree = design.epilogue_lanes.bit_length() + 7
            ready = end + TILE_CYCLES + drain_cycles(design, p) + VALUE_CYCLES + tree
            send = max(MOMENT_CYCLES * moments / (2 * MOMENT_WORDS), moments / design.output_streams)
            self._moments = max(self._output - OUTPUT_CYCLES, ready) + send
            self._output = self._moments + OUTPUT_CYCLES - 2
        return end


def _channel_cycles(design: Design, p: Packet) -> int:
    """Cycles that an output channel of a tile spends in the drain."""
    if p.opcode == Opcode.WGRAD:
        return 1
    if not p.has_epilogue:
        return design.lanes // (2 if p.format == OutputFormat.INT64 else 4)
    slices = design.lanes // design.epilogue_lanes
    # a row of a channel has a seed for each of its segments, and one is taken up per cycle
    return slices + p.segment_start.bit_count() - 1 if p.has(Flag.STOCHASTIC) else slices


def drain_cycles(design: Design, p: Packet) -> int:
    """Cycles in which the drain holds a tile of a product."""
    channels = design.channels + (p.opcode == Opcode.WGRAD)
    return _channel_cycles(design, p) * (channels if p.has_epilogue or p.opcode == Opcode.WGRAD else channels - 1)


def tile_period(design: Design, p: Packet) -> float:
    """Least cycles from a tile's end to that of the next of the same product, by the drain and the output.

    Three things bound it.  The shadow copy: a tile may end when what is left of the one before is gone by the time that it
    arrives.  The registers of codes: two tiles at most are in the epilogue and behind it.  The output streams.
    """
    channels, each = design.channels, _channel_cycles(design, p)
    last = channels if p.opcode == Opcode.WGRAD else channels - 1
    segments = p.segment_start.bit_count() if p.has(Flag.STOCHASTIC) else 1
    gap = TILE_CYCLES + PERMIT_CYCLES  # from the drain's word to the first value that comes then
    if p.opcode == Opcode.WGRAD or (p.has_epilogue and segments == 1):
        ahead = PERMIT_CYCLES + STEP_CYCLES + ARRAY_CYCLES
        left = ahead if p.opcode == Opcode.WGRAD else (ahead + 1) // each - 1  # channels that are gone in time
        shadow: float = max((last + 1) * each, (max(2, last - left) - 1) * each + gap)
    elif p.has_epilogue:
        shadow = max(channels * each, (channels - 1) * each + TILE_CYCLES - segments + 1)
    else:
        sums = p.has(Flag.A_SUM) / p.out_groups  # a line more for the first output group
        shadow = (channels - 1 + sums) * each + TILE_CYCLES
        return max(shadow, (channels + sums) * each * 2 / design.output_streams)
    if not p.section_planes:
        return shadow
    beat = 2 / design.output_streams  # cycles
    beats = p.section_planes * design.row_words // 2
    late = max(0, beats - (EPILOGUE_CYCLES - 3)) * beat
    two_tiles = EPILOGUE_CYCLES + channels * each + COPY_CYCLES + late
    return max(shadow, two_tiles / 2, beats * beat + (beat == 1))
