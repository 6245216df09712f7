"""Programs for simulation that cover what matters: every product at every pair of precisions.

Shapes, signs, masks, segments and formats are drawn from a seeded generator; every value is reachable, and each program
writes all that it reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from host.arrays import U64
from host.epilogue import Entries
from host.program.builder import ProgramBuilder
from hw.contract import (
    ALL_TAPS,
    ENTRY_WORDS,
    FLAG_FIELDS,
    MAX_BITS,
    MAX_SHIFT,
    MAX_SIDE_BITS,
    MULTIPLIER_BITS,
    OFFSET_BITS,
    ROW_BANKS,
    SECTION_PLANES,
    VALUE_BITS,
    VALUE_OFFSET_BITS,
    Flag,
    Opcode,
    OutputFormat,
    Target,
)
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


def _shift(rng: np.random.Generator, typical: int, most: int) -> int:
    """A shift about the one that brings values into their range, now and then any other."""
    if rng.random() < 0.15:
        return int(rng.integers(0, most + 1))
    return min(max(0, typical + int(rng.integers(-4, 4))), most)


def draw_epilogue(rng: np.random.Generator, design: Design, packet: Packet) -> Packet:
    """A CONV of format CODES or MOMENTS with an epilogue of random widths, shifts, flags, rows and pixels.

    Its bases stay; ``packet.side_planes`` and ``added_bits`` say which operands it now reads.
    """

    def draw(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    codes = packet.format == OutputFormat.CODES
    widths = {name: draw(1, MAX_SIDE_BITS) if draw(0, 1) else 0 for name in ("side_bits", "added_bits")}
    flags = [Flag.SIDE_SIGNED, Flag.MASKED]
    fields = {"shift": _shift(rng, packet.sum_bound(design).bit_length() - 4, MAX_SHIFT), **widths}
    if codes:
        keep, wide = (draw(1, MAX_SIDE_BITS) if draw(0, 1) else 0 for _ in range(2))
        out = draw(1, min(MAX_BITS, SECTION_PLANES - keep - wide - 1))
        fields |= {"out_bits": out, "keep_bits": keep, "wide_bits": wide}
        fields["value_shift"] = _shift(rng, MULTIPLIER_BITS - 3, MAX_SHIFT)
        for name, bits in (("out_shift", out), ("keep_shift", keep), ("wide_shift", wide)):
            fields[name] = _shift(rng, VALUE_BITS - 1 - bits, 16)
        flags += [Flag.RELU, Flag.OUT_SIGNED, Flag.KEEP_MASK, Flag.RECORDS]
        flags += [Flag.STOCHASTIC] if design.rounding else []
    elif widths["side_bits"]:
        flags.append(Flag.CROSS)
    chosen = Flag(packet.flags)
    for flag in flags:
        chosen |= flag if draw(0, 1) else Flag(0)
    if chosen & Flag.STOCHASTIC:
        highest = (1 << 32) - 1 if draw(0, 1) else 300
        fields |= {name: draw(0, highest) for name in FLAG_FIELDS[Flag.STOCHASTIC]}
        fields["factor"] = draw(1, (1 << 16) - 1)
    packet = replace(packet, **fields, flags=int(chosen))
    if not packet.has_moments:
        return packet
    first, whole = draw(0, packet.rows - 1), draw(0, 1)
    return replace(
        packet,
        valid=(1 << design.lanes) - 1 if whole else draw(1, (1 << design.lanes) - 1),
        first_row=0 if whole else first,
        last_row=packet.rows if whole else draw(first + 1, packet.rows),
    )


def draw_entries(rng: np.random.Generator, packet: Packet, channels: int) -> U64:
    """Payload of epilogue entries: mostly of a size that suits the packet's shifts, now and then of any; junk in unused bits."""
    words = rng.integers(0, 1 << 64, size=(channels, ENTRY_WORDS), dtype=np.uint64)
    if rng.random() < 0.2:
        return words.reshape(-1)

    def signed(bits: int) -> npt.NDArray[np.int64]:
        return rng.integers(-(1 << bits - 1), 1 << bits - 1, size=channels)

    multipliers = {name: signed(MULTIPLIER_BITS if rng.random() < 0.6 else 8) for name in "monl"}
    offset = signed(min(OFFSET_BITS, packet.shift + VALUE_BITS - 1))
    value_offset = signed(min(VALUE_OFFSET_BITS, packet.value_shift + VALUE_BITS - 1))
    wanted = Entries.of(channels, **multipliers, b=offset, c=value_offset).words()
    used = Entries.of(channels, m=-1, o=-1, n=-1, l=-1, b=-1, c=-1).words()
    return (wanted | words & ~used).reshape(-1)


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

    def load_entries(self, target: Target, payload: U64, words_each: int) -> int:
        """LOAD weights or epilogue entries at a random base, which is returned."""
        entries = payload.size // words_each
        base = self.draw(0, buffer_depth(self.design, target.name or "") - entries)
        self.builder.add(load_entries(self.design, target, entries, base), payload)
        return base

    def with_epilogue(self, packet: Packet) -> Packet:
        """A CONV of CODES or MOMENTS with an epilogue whose entries and operands are loaded."""
        packet = draw_epilogue(self.rng, self.design, packet)
        entries = draw_entries(self.rng, packet, packet.out_groups * self.design.channels)
        shape = packet.rows, packet.out_groups, packet.images
        packet = replace(packet, base_epilogue=self.load_entries(Target.E, entries, ENTRY_WORDS))
        if packet.side_planes:
            packet = replace(packet, base_side=self.load_tensor(Target.G, *shape, packet.side_planes))
        if packet.added_bits:  # it may overwrite some of SIDE
            packet = replace(packet, base_added=self.load_tensor(Target.G, *shape, packet.added_bits))
        return packet

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
        weights = self.words(out_groups * groups * b_bits * self.design.weight_words)
        fields = {"base_a": base_a, "base_b": self.load_entries(Target.W, weights, self.design.weight_words)}
        form = OutputFormat(self.draw(0, len(OutputFormat) - 1))
        if packet.overflows(self.design):  # as INT32, and so in any other format
            form = OutputFormat.INT64
        optional: tuple[Flag, ...] = () if replace(packet, format=form).has_epilogue else (Flag.A_SUM,)
        fields |= self.masks(packet)
        if shape["rows"] % 4 == 0 and self.draw(0, 1):
            optional += (Flag.STRIDE_2,)
        flags = self.flags(Flag.A_SIGNED, Flag.B_SIGNED, *optional) | self.skip_zero(shape)
        if flags & Flag.STRIDE_2:
            fields["rows"] = shape["rows"] // 4
        packet = replace(packet, **fields, flags=flags, format=form, out_groups=out_groups)
        self.builder.add(self.with_epilogue(packet) if packet.has_epilogue else packet)
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
