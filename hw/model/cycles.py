"""Cycle model of the fabric: when each packet loads, computes and drains, without simulating a bit.

The model follows the RTL's structure: one loader that takes packets in order, a queue of four commands, one sequencer,
a drain that holds one tile, and an output stream of one word per cycle.  Constants are the RTL's pipeline lengths.

A packet takes some microseconds, whatever it computes, so the two or three hundred packets of a product over a batch
take a few milliseconds; searches keep results by layer (``hw/cost/fabric.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache

from hw.contract import HEADER_WORDS, ROW_BANKS, TAPS, Flag, LoadFormat, Opcode, OutputFormat, Target
from hw.design import Design
from hw.model.workload import Packet, backward, forward, lower
from hw.networks import Bits, ConvShape

HEADER_CYCLES = HEADER_WORDS // 2 + 4  #: five beats and four cycles of checks
LOAD_CYCLES = 2  #: hazard check before, step to the next packet after
QUEUE_SLOTS = 4
SETUP_CYCLES = 5  #: from the head of the queue to the first step
ARRAY_CYCLES = 8  #: from a tile's last step to its first value in the drain
DRAIN_CYCLES = 1  #: from the last value to permission for the next tile to end
STREAMING_CYCLES = {Opcode.WGRAD: 0, Opcode.CONV: 3}  #: the same when the rest of a tile is sure to leave in time
STATISTICS_CYCLES = 2  #: per channel, tile and as many pixels as statistics are taken of together
ROUNDING_CYCLES = 6  #: per channel and tile of stochastic codes, beside those that make the random words
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


Ranges = dict[str, tuple[int, int]]  #: buffer -> first address, address behind the last


def ranges(p: Packet) -> Ranges:
    """What a LOAD writes to, or a product reads, in the buffers A, G and W."""
    op, target = p["opcode"], p.get("target", 0)
    conv, wgrad = op == Opcode.CONV, op == Opcode.WGRAD
    rows = 4 * p["rows"] if conv and p.get("flags", 0) & Flag.STRIDE_2 else p["rows"]
    stack = p["images"] * -(-rows // ROW_BANKS)
    size = stack * p["groups"] * p.get("a_bits", 0)
    base_a, base_b = p.get("base_a", 0), p.get("base_b", 0)
    result = {}
    if conv or wgrad or target & Target.A:
        result["A"] = (base_a, base_a + size)
    if wgrad or target & Target.G:
        result["G"] = (base_b, base_b + (stack * p["out_groups"] * p["b_bits"] if wgrad else size))
    if conv or target & Target.W:
        result["W"] = (base_b, base_b + (p["out_groups"] * p["groups"] * p["b_bits"] if conv else p["rows"]))
    return result


def meet(x: Ranges, y: Ranges) -> bool:
    """Whether two packets have an address in common."""
    return any(b in y and y[b][0] < end and first < y[b][1] for b, (first, end) in x.items())


@lru_cache(maxsize=1 << 12)
def steps_of_tile(a_planes: int, b_planes: int, a_bits: int, b_bits: int, inner: int, sums: bool) -> int:
    """Array steps of one tile: computed plane pairs times their inner length, one step for an empty diagonal."""
    steps = 0
    for diagonal in range(a_bits + b_bits - 1):
        pairs = sum(
            bool(a_planes >> i & 1 and (b_planes >> (diagonal - i) & 1 or (sums and i == diagonal)))
            for i in range(max(0, diagonal - b_bits + 1), min(diagonal, a_bits - 1) + 1)
        )
        steps += pairs * inner or 1
    return steps


def predict(design: Design, packets: Iterable[Packet]) -> Prediction:
    """Cycles of a program on ``design``, streams never pausing.

    Args:
        packets: header fields (``payload_words`` included), END last; planes and flags as they will be sent.
    """
    c, lanes = design.channels, design.lanes
    result = Prediction()
    loader = 2.0  # time at which the loader is free
    sequencer = 0.0  # time at which the sequencer is free
    drain = 0.0  # time at which the drain can take a tile
    output = 0.0  # time at which the output stream is free
    retired: list[tuple[float, Packet, Ranges]] = []  # commands, when they leave, what they read

    for p in packets:
        op = p["opcode"]
        loader += HEADER_CYCLES
        if op == Opcode.LOAD:
            target, words = p["target"], p["payload_words"]
            ready = loader + LOAD_CYCLES
            spans = ranges(p)
            for when, _, reads in retired[-QUEUE_SLOTS:]:
                if meet(spans, reads) or target & Target.E:
                    ready = max(ready, when)
            beats = words // 2
            if p.get("format") == LoadFormat.FLOAT32:
                beats += 12 + p["a_bits"]
            loader = ready + beats
            result.load += words // 2
            continue
        if op == Opcode.END:
            result.cycles = round(max(loader, sequencer, drain, output) + TRAILER_CYCLES)
            continue
        if len(retired) >= QUEUE_SLOTS:
            loader = max(loader, retired[-QUEUE_SLOTS][0])
        loader += 2
        if op == Opcode.READ:
            per_entry = 2 + (c if p.get("format") == OutputFormat.INT64 else c // 2)
            start = max(loader, sequencer, drain, output)
            output = sequencer = start + 3 + p["rows"] * per_entry
            result.store += p["rows"] * (per_entry - 2)
            retired.append((sequencer, p, {}))
            continue

        flags, images, rows = Flag(p.get("flags", 0)), p["images"], p["rows"]
        blocks = -(-rows // 8)
        start = max(loader, sequencer) + SETUP_CYCLES
        of_ones = steps_of_ones = 0  # tiles of the ONES group, and the steps of one
        turns = 0  # cycles between groups, where the precision may change
        reads = ranges(p)
        if op == Opcode.CONV:
            steps = steps_of_tile(
                p["a_planes"], p["b_planes"], p["a_bits"], p["b_bits"], p["groups"], bool(flags & Flag.A_SUM)
            )
            tiles = images * rows * p["out_groups"]
            compute = steps * tiles
            values = c
            form = p.get("format", OutputFormat.INT32)
            if form == OutputFormat.CODES:
                sent = p["out_bits"] * design.row_words * tiles
                drained = values
                if flags & Flag.STOCHASTIC:
                    drained *= lanes // design.rounding_lanes + ROUNDING_CYCLES
            elif form == OutputFormat.STATISTICS:
                sent, drained = 4 * c * p["out_groups"], STATISTICS_CYCLES * lanes // design.statistics_lanes * values
            else:
                per_channel = lanes if form == OutputFormat.INT64 else lanes // 2
                sent = per_channel * (c * tiles + (images * rows if flags & Flag.A_SUM else 0))
                drained = per_channel * values - per_channel  # the last channel leaves while the next tile comes
        else:
            inner = images * blocks
            per_tile = steps_of_tile(p["a_planes"], p["b_planes"], p["a_bits"], p["b_bits"], inner, True)
            taps = bin(p.get("taps", (1 << TAPS) - 1)).count("1")
            groups = p["groups"] * taps * p["out_groups"]
            compute = per_tile * groups
            tiles = groups
            if flags & Flag.ONES:
                of_ones = taps * p["out_groups"]
                tiles += of_ones
                steps_of_ones = steps_of_tile(1, p["b_planes"], 1, p["b_bits"], inner, True)
                compute += steps_of_ones * of_ones
                turns = (p["groups"] + 1) * p["out_groups"] - 1
            steps, sent, drained = per_tile, 0, c + 1
        if flags & Flag.SKIP_ZERO:  # one address per cycle
            start += sum(reads[buffer][1] - reads[buffer][0] for buffer in ("A", "G") if buffer in reads)
        form = p.get("format", 0)
        at_the_end = op == Opcode.CONV and form == OutputFormat.STATISTICS  # all results
        if at_the_end or flags & Flag.STOCHASTIC:
            gap = 0
        elif op == Opcode.WGRAD or form == OutputFormat.CODES:
            gap = STREAMING_CYCLES[Opcode(op)]
        else:
            gap = ARRAY_CYCLES + DRAIN_CYCLES
        tile = max(steps, drained + gap, 0 if at_the_end else sent / tiles)
        first_end = max(start + steps, drain)
        rest = (tiles - 1 - of_ones) * tile + of_ones * max(steps_of_ones, drained + gap)
        end = max(first_end + rest, start + compute + turns)
        # results lag: the stream may still be sending earlier results
        if at_the_end:
            output = max(output, end + ARRAY_CYCLES + drained + OUTPUT_CYCLES) + sent
        elif sent:
            end = max(end, output + sent - 2 * sent / tiles)
            output = max(output, first_end + ARRAY_CYCLES + min(drained, c) + OUTPUT_CYCLES) + sent
            output = max(output, end + ARRAY_CYCLES + min(drained, c) + OUTPUT_CYCLES + sent / tiles)
        drain = end + ARRAY_CYCLES + drained
        sequencer = end
        result.compute += compute
        result.store += sent
        retired.append((end, p, reads))
    return result


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

    def load(target: Target, payload: int, **shape: int) -> Packet:
        fields = {"rows": 1, "groups": 1, "out_groups": 1, "images": 1, "a_bits": 1, **shape}
        return {"opcode": Opcode.LOAD, "target": target, "payload_words": payload, **fields}

    def tensor(target: Target, images: int, height: int, groups: int, bits: int) -> Packet:
        words = images * height * groups * bits * design.row_words
        return load(target, words, images=images, rows=height, groups=groups, a_bits=bits)

    planes = {"a_bits": a_bits, "b_bits": b_bits, "a_planes": (1 << a_bits) - 1, "b_planes": (1 << b_bits) - 1}
    end: Packet = {"opcode": Opcode.END}
    groups, out_groups, height = -(-inner // c), -(-columns // c), -(-rows // lanes)
    weights = groups * (out_groups * b_bits + sums)  # one more output group, of 1-bit ones, adds up the rows
    conv: Packet = {"opcode": Opcode.CONV, "images": 1, "rows": height, "groups": groups, "flags": 0, **planes}
    as_convolution = predict(
        design,
        [
            load(Target.W, weights * design.weight_words, rows=weights),
            tensor(Target.A, 1, height, groups, a_bits),
            {**conv, "out_groups": out_groups},
            *([{**conv, "out_groups": 1, "b_bits": 1, "b_planes": 1}] if sums else []),
            end,
        ],
    )
    groups = -(-rows // c)
    height = min(ROW_BANKS, -(-inner // lanes))
    images = -(-inner // (height * lanes))
    shape = {"images": images, "rows": height, "groups": groups, "out_groups": out_groups}
    entries = groups * out_groups * (c + 1)
    form = OutputFormat.INT32 if images * height * lanes << (a_bits + b_bits) < 1 << 31 else OutputFormat.INT64
    as_gradient = predict(
        design,
        [
            tensor(Target.G, images, height, out_groups, b_bits),
            tensor(Target.A, images, height, groups, a_bits),
            {"opcode": Opcode.WGRAD, **shape, **planes, "flags": Flag.CLEAR, "taps": 1},
            {"opcode": Opcode.READ, "rows": entries, "format": form},
            end,
        ],
    )
    return as_convolution.cycles, as_gradient.cycles


@cache
def contracts(design: Design, rows: int, inner: int, columns: int, a_bits: int, b_bits: int, sums: bool) -> bool:
    """Whether a matrix product is quicker as a weight gradient than as a 1x1 convolution; arguments as above."""
    as_convolution, as_gradient = matrix_product_cycles(design, rows, inner, columns, a_bits, b_bits, sums)
    return as_gradient < as_convolution
