"""Programs for simulation that cover what matters: every product at every pair of precisions.

Shapes, signs, masks, segments and formats are drawn from a seeded generator; every value is reachable, and each program
writes all that it reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from host.arrays import U64
from host.program.builder import ProgramBuilder
from hw.contract import ALL_TAPS, MAX_BITS, RANDOM_FIELDS, ROW_BANKS, Flag, Opcode, OutputFormat, Target
from hw.design import Design
from hw.packet import (
    Packet,
    buffer_depth,
    load_entries,
    load_tensor,
    product,
    read_entries,
    sums_format,
    tensor_addresses,
)

PrecisionPoint = tuple[str, int, int]  #: product, a_bits, b_bits

PRODUCT_PACKETS = ("CONV", "WGRAD")
ALL_POINTS: frozenset[PrecisionPoint] = frozenset(
    (product, a, b) for product in PRODUCT_PACKETS for a in range(1, MAX_BITS + 1) for b in range(1, MAX_BITS + 1)
)


@dataclass(frozen=True)
class Stimulus:
    """A program, and the points that its products cover."""

    name: str
    words: U64
    points: frozenset[PrecisionPoint]


class _Sweep:
    """Writes one program that multiplies one precision of the first operand with several of the second."""

    def __init__(self, design: Design, a_bits: int, seed: int) -> None:
        self.design, self.a_bits = design, a_bits
        self.rng = np.random.default_rng([seed, a_bits])
        self.builder = ProgramBuilder(design)
        self.points: set[PrecisionPoint] = set()

    def draw(self, low: int, high: int) -> int:
        """Uniform integer of low..high."""
        return int(self.rng.integers(low, high + 1))

    def words(self, count: int) -> U64:
        """Random words; now and then all ones, the worst case of a sum."""
        if self.draw(0, 4) == 0:
            return np.full(count, (1 << 64) - 1, dtype=np.uint64)
        return self.rng.integers(0, 1 << 64, size=count, dtype=np.uint64)

    def segments(self) -> int:
        lanes = self.design.lanes
        width = self.draw(1, lanes)
        return sum(1 << p for p in range(0, lanes, width))

    def mask(self, bits: int) -> int:
        full = (1 << bits) - 1
        return full if self.draw(0, 1) else self.draw(0, full)

    def randomness(self) -> dict[str, int]:
        """Fields of stochastic rounding."""
        return {name: self.draw(0, (1 << 32) - 1) for name in RANDOM_FIELDS}

    def tensor_words(self, packet: Packet) -> U64:
        """A LOAD's payload; now and then with planes that are zero."""
        words, bits = self.words(packet.payload_words), packet.a_bits
        if self.draw(0, 2) == 0:
            zero = self.rng.random(bits) < 0.5
            words.reshape(-1, bits, self.design.row_words)[:, zero] = 0
        return words

    def flags(self, *choices: Flag) -> int:
        return sum(int(flag) for flag in choices if self.draw(0, 1))

    def load_tensor(self, target: Target, rows: int, groups: int, images: int, bits: int) -> int:
        """LOAD into A or G at a random base, which is returned."""
        depth = buffer_depth(self.design, target.name or "")
        base = self.draw(0, depth - tensor_addresses(images, rows, groups, bits))
        packet = load_tensor(self.design, target, images, rows, groups, bits, base, base)
        self.builder.add(packet, self.tensor_words(packet))
        return base

    def load_entries(self, target: Target, entries: int) -> int:
        """LOAD random weights or epilogue entries at a random base, which is returned."""
        base = self.draw(0, buffer_depth(self.design, target.name or "") - entries)
        packet = load_entries(self.design, target, entries, base)
        self.builder.add(packet, self.words(packet.payload_words))
        return base

    def product(self, opcode: Opcode, shape: dict[str, int], b_bits: int) -> Packet:
        """A product of the tensor in A, one group of output channels; planes and segments are drawn later."""
        return product(opcode, **shape, out_groups=1, a_bits=self.a_bits, b_bits=b_bits)

    def masks(self, packet: Packet) -> dict[str, int]:
        """Fields that any product may have."""
        return {
            "segment_start": self.segments(),
            "a_planes": self.mask(packet.a_bits),
            "b_planes": self.mask(packet.b_bits),
        }

    def conv(self, shape: dict[str, int], base_a: int, b_bits: int) -> None:
        packet, groups = self.product(Opcode.CONV, shape, b_bits), shape["groups"]
        if replace(packet, format=OutputFormat.INT64).overflows(self.design):
            return
        out_groups = self.draw(1, 2)
        fields = {"base_a": base_a, "base_b": self.load_entries(Target.W, out_groups * groups * b_bits)}
        form = OutputFormat(self.draw(0, len(OutputFormat) - 1))
        if packet.overflows(self.design):  # as INT32, and so in any other format
            form = OutputFormat.INT64
        optional: tuple[Flag, ...] = ()
        entries = out_groups * self.design.channels
        if form == OutputFormat.CODES:
            fields |= {
                "base_epilogue": self.load_entries(Target.E, entries),
                "out_bits": self.draw(1, MAX_BITS),
                "shift": self.draw(0, 47),
            }
            optional = (Flag.RELU, Flag.OUT_SIGNED, *((Flag.STOCHASTIC,) if self.design.rounding_lanes else ()))
        elif form == OutputFormat.STATISTICS:
            fields["pixels"] = self.draw(1, self.design.lanes)
        else:
            optional = (Flag.A_SUM,)
        fields |= self.masks(packet)
        if shape["rows"] % 4 == 0 and self.draw(0, 1):
            optional += (Flag.STRIDE_2,)
        flags = self.flags(Flag.A_SIGNED, Flag.B_SIGNED, *optional) | self.skip_zero(shape)
        if flags & Flag.STRIDE_2:
            fields["rows"] = shape["rows"] // 4
        if flags & Flag.STOCHASTIC:
            fields |= self.randomness()
        self.builder.add(replace(packet, **fields, flags=flags, format=form, out_groups=out_groups))
        self.points.add(("CONV", self.a_bits, b_bits))

    def skip_zero(self, shape: dict[str, int]) -> int:
        """SKIP_ZERO now and then, if every bank of the tensors has been written."""
        return self.flags(Flag.SKIP_ZERO) if shape["rows"] % ROW_BANKS == 0 else 0

    def wgrad(self, shape: dict[str, int], base_a: int, b_bits: int) -> None:
        d, rows, images = self.design, shape["rows"], shape["images"]
        packet = self.product(Opcode.WGRAD, shape, b_bits)
        if packet.overflows(d):
            return
        out_groups = self.draw(1, 2)
        base_g = self.load_tensor(Target.G, rows, out_groups, images, b_bits)
        flags = self.flags(Flag.A_SIGNED, Flag.B_SIGNED, Flag.ONES) | self.skip_zero(shape)
        taps = (ALL_TAPS, 1 << self.draw(0, 8), self.draw(1, ALL_TAPS))[self.draw(0, 2)]
        packet = replace(packet, out_groups=out_groups, base_a=base_a, base_b=base_g, flags=flags, taps=taps)
        entries = packet.entries(d)
        base = self.draw(0, d.depth_accumulator - entries)
        packet = replace(packet, base_accumulator=base, **self.masks(packet))
        self.builder.add(replace(packet, flags=flags | Flag.CLEAR))
        # once more on top where two sums surely fit
        if not replace(packet, rows=2 * rows).overflows(d) and self.draw(0, 1):
            self.builder.add(packet)
        count = self.draw(1, min(entries, 3 * d.channels))
        narrow = sums_format(2 * packet.sum_bound(d)) == OutputFormat.INT32
        form = OutputFormat.INT32 if narrow and self.draw(0, 1) else OutputFormat.INT64
        self.builder.add(read_entries(count, base + self.draw(0, entries - count), form))
        self.points.add(("WGRAD", self.a_bits, b_bits))

    def run(self, b_range: Iterable[int]) -> None:
        """A few products for each precision of the second operand."""
        images, rows, groups = self.draw(1, 2), self.draw(1, 11), self.draw(1, 2)
        if self.draw(0, 1):
            rows = 4 * self.draw(1, 2)  # what a stride of two can look at
        while tensor_addresses(images, rows, groups, self.a_bits) > min(self.design.depth_a, self.design.depth_g):
            images, groups = 1, 1
        shape = {"images": images, "rows": rows, "groups": groups}
        base_a = self.load_tensor(Target.A, rows, groups, images, self.a_bits)
        for b_bits in b_range:
            self.conv(shape, base_a, b_bits)
            self.wgrad(shape, base_a, b_bits)


def precision_sweep(
    design: Design, seed: int = 0, max_bits: int = MAX_BITS, max_pairs: int = MAX_BITS * MAX_BITS
) -> Iterator[Stimulus]:
    """Programs whose products together cover every pair of precisions, CONV and WGRAD.

    Args:
        design: whose buffers they fit.
        seed: same seed, same programs.
        max_bits: greatest precision of either operand.
        max_pairs: leaves out products of more plane pairs than this, for slow simulators.
    """
    for a_bits in range(1, max_bits + 1):
        sweep = _Sweep(design, a_bits, seed)
        sweep.run([b for b in range(1, max_bits + 1) if a_bits * b <= max_pairs])
        yield Stimulus(f"sweep-a{a_bits}-seed{seed}", sweep.builder.words(), frozenset(sweep.points))
