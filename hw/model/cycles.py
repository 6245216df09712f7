"""Cycle model of the fabric: when each packet loads, computes and drains, without simulating a bit.

The model follows the RTL's structure: one loader that takes packets in order, a queue of commands, one sequencer, a
drain that holds one tile, and an output stream of one word per cycle.  Lengths of pipelines and of the queue are those
that the RTL is rendered with (``hw/pipeline.py``); the constants here count its states and registers.

A packet takes some microseconds, whatever it computes, so the two or three hundred packets of a product over a batch
take a few milliseconds; searches keep results by layer (``hw/cost/fabric.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

from hw.contract import HEADER_WORDS, ROW_BANKS, Flag, Opcode, OutputFormat, Target
from hw.design import Design
from hw.model.workload import backward, forward, lower
from hw.networks import Bits, ConvShape
from hw.packet import (
    END,
    Packet,
    Range,
    load_entries,
    load_tensor,
    product,
    read_entries,
    sums_format,
)
from hw.pipeline import ARRAY_CYCLES, MIX_CYCLES, QUANTIZER_CYCLES, QUEUE_SLOTS, STEP_CYCLES

HEADER_CYCLES = HEADER_WORDS // 2 + 4  #: five beats and four cycles of checks
LOAD_CYCLES = 2  #: hazard check before, step to the next packet after
SETUP_CYCLES = 5  #: from the head of the queue to the first step
TILE_CYCLES = STEP_CYCLES + ARRAY_CYCLES + 2  #: from a tile's last step to its first value in the drain
DRAIN_CYCLES = 1  #: from the last value to permission for the next tile to end
STREAMING_CYCLES = {Opcode.WGRAD: 0, Opcode.CONV: 3}  #: the same when the rest of a tile is sure to leave in time
STATISTICS_CYCLES = 2  #: per channel, tile and as many pixels as statistics are taken of together
ROUNDING_CYCLES = MIX_CYCLES + 2  #: per channel and tile of stochastic codes, beside those that make the random words
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


Ranges = dict[str, Range]  #: of addresses, by buffer


def meet(x: Ranges, y: Ranges) -> bool:
    """Whether two packets have an address in common."""
    return any(b in y and y[b][0] < end and first < y[b][1] for b, (first, end) in x.items())


def flag_cycles(packet: Packet, reads: Ranges) -> int:
    """Cycles in which a product looks for planes that are zero: one per address of its tensors."""
    return sum(reads[b][1] - reads[b][0] for b in "AG" if b in reads) if packet.has(Flag.SKIP_ZERO) else 0


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
            loader = ready + beats + (QUANTIZER_CYCLES + 2 + p.a_bits if p.is_float_load else 0)
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
        at_the_end = p.opcode == Opcode.CONV and p.format == OutputFormat.STATISTICS  # all results
        if at_the_end or p.has(Flag.STOCHASTIC):
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
    if p.format == OutputFormat.CODES:
        return c * (lanes // design.rounding_lanes + ROUNDING_CYCLES if p.has(Flag.STOCHASTIC) else 1)
    if p.format == OutputFormat.STATISTICS:
        return STATISTICS_CYCLES * lanes // design.statistics_lanes * c
    per_channel = lanes if p.format == OutputFormat.INT64 else lanes // 2
    return per_channel * (c - 1)  # the last channel leaves while the next tile comes


def training_cycles(
    design: Design, shape: ConvShape, bits: Bits, batch: int = 128, codes: bool = True
) -> dict[str, float]:
    """Predicted cycles per image of one layer: forward, backward (both gradients fused), READ of the weights included.

    Args:
        bits: of weights, activations and gradients.
        batch: real images over which fixed costs are spread.
        codes: outputs leave as packed codes, not as 32-bit sums.
    """
    m = lower(design, shape)
    images = max(1, batch // m.side)
    real = images * m.side
    return {
        "forward": predict(design, forward(design, shape, bits, images, codes)).cycles / real,
        "backward": predict(design, backward(design, shape, bits, images, codes)).cycles / real,
    }


def matrix_product_cycles(
    design: Design, rows: int, inner: int, columns: int, a_bits: int, b_bits: int, sums: bool
) -> tuple[int, int]:
    """Predicted cycles of a product of (rows, inner) and (inner, columns) codes.

    Args:
        sums: the fabric must add up the first operand's rows too, for the host does not know its codes.

    Returns:
        As a 1x1 convolution, whose rows are pixels and whose inner axis is channels; and as a weight gradient, whose
        rows and columns are channels and whose inner axis is pixels.
    """
    c, lanes = design.channels, design.lanes
    groups, out_groups, height = -(-inner // c), -(-columns // c), -(-rows // lanes)
    weights = groups * (out_groups * b_bits + sums)  # one more output group, of 1-bit ones, adds up the rows
    bits = {"a_bits": a_bits, "b_bits": b_bits}
    conv = product(Opcode.CONV, images=1, rows=height, groups=groups, out_groups=out_groups, **bits)
    as_convolution = predict(
        design,
        [
            load_entries(design, Target.W, weights),
            load_tensor(design, Target.A, 1, height, groups, a_bits),
            conv,
            *([replace(conv, out_groups=1, b_bits=1, b_planes=1)] if sums else []),
            END,
        ],
    )
    groups = -(-rows // c)
    height = min(ROW_BANKS, -(-inner // lanes))
    images = -(-inner // (height * lanes))
    shape = {"images": images, "rows": height, "groups": groups, "out_groups": out_groups}
    wgrad = product(Opcode.WGRAD, **shape, **bits, flags=Flag.CLEAR, taps=1)
    as_gradient = predict(
        design,
        [
            load_tensor(design, Target.G, images, height, out_groups, b_bits),
            load_tensor(design, Target.A, images, height, groups, a_bits),
            wgrad,
            read_entries(wgrad.entries(design), form=sums_format(wgrad.sum_bound(design))),
            END,
        ],
    )
    return as_convolution.cycles, as_gradient.cycles


@cache
def contracts(design: Design, rows: int, inner: int, columns: int, a_bits: int, b_bits: int, sums: bool) -> bool:
    """Whether a matrix product is quicker as a weight gradient than as a 1x1 convolution; arguments as above."""
    as_convolution, as_gradient = matrix_product_cycles(design, rows, inner, columns, a_bits, b_bits, sums)
    return as_gradient < as_convolution
