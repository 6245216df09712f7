"""A packet as an object: the fields of its header, the rules that they must keep, and every size that follows from them.

Rules and sizes are those of docs/programs.md; which fields and flags a packet may have is a table in ``hw/contract.py``.
Whoever builds, runs, counts or predicts packets asks here.  Standard library only, so that it runs on the board.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from operator import or_

from hw import contract
from hw.contract import (
    ACCUMULATOR_LIMIT,
    ALL_TAPS,
    ENTRY_WORDS,
    FLAG_FIELDS,
    INT32_LIMIT,
    MOMENT_WORDS,
    PACKETS,
    ROW_BANKS,
    SECTION_PLANES,
    TAPS,
    Error,
    Flag,
    Opcode,
    OutputFormat,
    PacketKind,
    Target,
)
from hw.design import Design
from hw.tiles import Tiles, steps_of_tile

_FLAGS_WITH_FIELDS = reduce(or_, FLAG_FIELDS)
_ENVELOPE = ("magic", "version", "check")  #: header fields that every packet has alike

Range = tuple[int, int]  #: first address, address behind the last


def _from(base: int, size: int) -> Range:
    return base, base + size


def blocks(rows: int) -> int:
    """Addresses per plane and group that ``rows`` rows take: rows lie in 8 banks."""
    return -(-rows // ROW_BANKS)


def tensor_addresses(images: int, rows: int, groups: int, bits: int) -> int:
    """Addresses of a stack of virtual images in buffer A or G."""
    return images * blocks(rows) * groups * bits


def all_planes(bits: int) -> int:
    """Mask of every plane of a precision."""
    return (1 << bits) - 1


def flags_of(options: Mapping[Flag, bool]) -> int:
    """The flags whose option is set."""
    return sum(int(flag) for flag, wanted in options.items() if wanted)


def sums_format(bound: int) -> OutputFormat:
    """The narrowest format in which a READ surely sends sums below ``bound``."""
    return OutputFormat.INT32 if bound < INT32_LIMIT else OutputFormat.INT64


def buffer_depth(design: Design, buffer: str) -> int:
    """Addresses of buffer A, G, W, E or "accumulator"."""
    return int(getattr(design, f"depth_{'epilogue' if buffer == 'E' else buffer.lower()}"))


@lru_cache(maxsize=1 << 10)
def used_bits(design: Design, kind: PacketKind, flags_set: Flag) -> dict[str, int]:
    """Bits of each header field that a packet may set, by field; fields that are not named must be zero.

    Args:
        flags_set: which of the flags that bring fields with them, the keys of ``FLAG_FIELDS``, the packet has.
    """
    flags = kind.flags
    if not design.rounding:
        flags &= ~Flag.STOCHASTIC
    names = [*contract.COMMON_FIELDS, "target", "format", *kind.fields]
    names += [name for flag, fields in FLAG_FIELDS.items() if flag & flags & flags_set for name in fields]
    used = {name: (1 << contract.FIELD[name].width) - 1 for name in names}
    return {**used, "flags": int(flags), **({"taps": ALL_TAPS} if "taps" in used else {})}


@dataclass(frozen=True)
class Packet:
    """A packet's header; ``hw.contract.FIELDS`` says what each field means.

    Any values may be held: :meth:`check` judges them, and the sizes are those of a packet that it finds good.
    """

    opcode: int
    payload_words: int = 0
    rows: int = 0
    groups: int = 0
    out_groups: int = 0
    images: int = 0
    a_bits: int = 0
    b_bits: int = 0
    flags: int = 0
    base_a: int = 0
    base_b: int = 0
    target: int = 0
    format: int = 0
    out_bits: int = 0
    shift: int = 0
    segment_start: int = 0
    a_planes: int = 0
    b_planes: int = 0
    side_bits: int = 0
    added_bits: int = 0
    keep_bits: int = 0
    wide_bits: int = 0
    value_shift: int = 0
    out_shift: int = 0
    keep_shift: int = 0
    wide_shift: int = 0
    key: int = 0
    index: int = 0
    base_accumulator: int = 0
    base_epilogue: int = 0
    channel_stride: int = 0
    image_stride: int = 0
    row_stride: int = 0
    valid: int = 0
    taps: int = 0
    factor: int = 0
    base_side: int = 0
    base_added: int = 0
    first_row: int = 0
    last_row: int = 0

    # -- words ------------------------------------------------------------------------------------------------------

    def pack(self) -> list[int]:
        """The header's 64-bit words.

        Raises:
            ValueError: a value does not fit its field.
        """
        return contract.pack_header(**vars(self))

    @classmethod
    def unpack(cls, words: Sequence[int]) -> Packet:
        """The packet of a header's words; magic, version and checksum are not looked at."""
        return cls.of(contract.unpack_header(words))

    @classmethod
    def of(cls, values: Mapping[str, int]) -> Packet:
        """The packet of a header's fields by name; magic, version and checksum are left out."""
        return cls(**{name: value for name, value in values.items() if name not in _ENVELOPE})

    # -- what it is -------------------------------------------------------------------------------------------------

    @property
    def kind(self) -> PacketKind | None:
        """Its row of the contract's table, or None if there is no such packet."""
        return PACKETS.get((self.opcode, self.target, self.format))

    @property
    def is_product(self) -> bool:
        """CONV or WGRAD."""
        return self.opcode in (Opcode.CONV, Opcode.WGRAD)

    @property
    def has_epilogue(self) -> bool:
        """A CONV whose sums go through the epilogue: CODES or MOMENTS."""
        return self.opcode == Opcode.CONV and self.format in (OutputFormat.CODES, OutputFormat.MOMENTS)

    @property
    def has_moments(self) -> bool:
        """A CONV that sends moments behind its last tile: MOMENTS, or CODES with RECORDS."""
        return self.has_epilogue and (self.format == OutputFormat.MOMENTS or self.has(Flag.RECORDS))

    def loads(self, target: Target) -> bool:
        """Whether it is a LOAD that writes one of these buffers."""
        return self.opcode == Opcode.LOAD and bool(self.target & target)

    def has(self, flag: Flag) -> bool:
        """Whether one of these flags is set."""
        return bool(self.flags & flag)

    # -- sizes ------------------------------------------------------------------------------------------------------

    @property
    def virtual_rows(self) -> int:
        """Rows of a virtual image of the first operand; with STRIDE_2 four for each row of the output."""
        return 4 * self.rows if self.opcode == Opcode.CONV and self.has(Flag.STRIDE_2) else self.rows

    @property
    def side_planes(self) -> int:
        """Planes of the operand SIDE of an epilogue, its mask plane on top included; 0 if there is none."""
        return self.side_bits + self.has(Flag.MASKED) if self.has_epilogue else 0

    @property
    def section_planes(self) -> int:
        """Planes that each tile of CODES sends, all sections together; 0 in any other format."""
        if not self.has_epilogue or self.format != OutputFormat.CODES:
            return 0
        return self.out_bits + self.keep_bits + self.has(Flag.KEEP_MASK) + self.wide_bits

    @property
    def tap_count(self) -> int:
        """Kernel positions that a WGRAD computes."""
        return self.taps.bit_count()

    def payload_needed(self, design: Design) -> int:
        """64-bit words of payload that its shape asks for; ``payload_words`` is what the header says."""
        if self.opcode != Opcode.LOAD:
            return 0
        if self.target == Target.W:
            return self.rows * design.weight_words
        if self.target == Target.E:
            return self.rows * ENTRY_WORDS
        return self.images * self.rows * self.groups * self.a_bits * design.row_words

    def sized(self, design: Design) -> Packet:
        """The same packet with ``payload_words`` as its shape asks for."""
        return replace(self, payload_words=self.payload_needed(design))

    def result_words(self, design: Design) -> int:
        """64-bit words that it sends if nothing stops it."""
        values = 0
        if self.opcode == Opcode.READ:
            values = self.rows * design.channels
        elif self.opcode == Opcode.CONV:
            rows, channels = self.images * self.rows, self.out_groups * design.channels
            if self.has_epilogue:
                codes = rows * self.out_groups * self.section_planes * design.row_words
                return codes + (channels * MOMENT_WORDS if self.has_moments else 0)
            values = rows * design.lanes * (channels + self.has(Flag.A_SUM))
        return values if self.format == OutputFormat.INT64 else values // 2

    def entries(self, design: Design) -> int:
        """Accumulator entries of a WGRAD or READ."""
        if self.opcode == Opcode.READ:
            return self.rows
        return self.out_groups * (self.groups + self.has(Flag.ONES)) * self.tap_count * (design.channels + 1)

    def side_range(self) -> Range:
        """Addresses in G of the operand SIDE of an epilogue, mask plane included."""
        return _from(self.base_side, tensor_addresses(self.images, self.rows, self.out_groups, self.side_planes))

    def added_range(self) -> Range:
        """Addresses in G of the operand ADDED of an epilogue."""
        bits = self.added_bits if self.has_epilogue else 0
        return _from(self.base_added, tensor_addresses(self.images, self.rows, self.out_groups, bits))

    def ranges(self, design: Design) -> dict[str, tuple[Range, ...]]:
        """Addresses that it writes (LOAD), or reads and accumulates in, by buffer: A, G, W, E, "accumulator".

        A CONV may read two tensors in G, SIDE and ADDED; otherwise a buffer has one range.
        """
        conv, wgrad = self.opcode == Opcode.CONV, self.opcode == Opcode.WGRAD
        stack = tensor_addresses(self.images, self.virtual_rows, self.groups, self.a_bits)
        spans: dict[str, tuple[Range, ...]] = {}
        if conv or wgrad or self.loads(Target.A):
            spans["A"] = (_from(self.base_a, stack),)
        if self.loads(Target.G):
            spans["G"] = (_from(self.base_b, stack),)
        if wgrad:
            gradient = tensor_addresses(self.images, self.rows, self.out_groups, self.b_bits)
            spans["G"] = (_from(self.base_b, gradient),)
        if wgrad or self.opcode == Opcode.READ:
            spans["accumulator"] = (_from(self.base_accumulator, self.entries(design)),)
        if conv:
            spans["W"] = (_from(self.base_b, self.out_groups * self.groups * self.b_bits),)
        if self.has_epilogue:
            spans["E"] = (_from(self.base_epilogue, self.out_groups * design.channels),)
        operands = [self.side_range()] if self.side_planes else []
        operands += [self.added_range()] if self.has_epilogue and self.added_bits else []
        if operands:
            spans["G"] = tuple(operands)
        if self.loads(Target.W):
            spans["W"] = (_from(self.base_b, self.rows),)
        if self.loads(Target.E):
            spans["E"] = (_from(self.base_epilogue, self.rows),)
        return spans

    # -- work of the array ------------------------------------------------------------------------------------------

    def tiles(self) -> list[Tiles]:
        """Tiles of a product, those alike together; with ONES the extra group's come last."""
        planes = self.a_planes, self.b_planes, self.a_bits, self.b_bits
        if self.opcode == Opcode.CONV:
            steps = steps_of_tile(*planes, self.groups, self.has(Flag.A_SUM))
            count = self.images * self.rows * self.out_groups
            return [Tiles(count, steps, self.groups * self.a_bits * self.b_bits)]
        if self.opcode != Opcode.WGRAD:
            return []
        inner = self.images * blocks(self.rows)
        count = self.tap_count * self.out_groups
        tiles = [Tiles(self.groups * count, steps_of_tile(*planes, inner, True), inner * self.a_bits * self.b_bits)]
        if self.has(Flag.ONES):
            steps = steps_of_tile(1, self.b_planes, 1, self.b_bits, inner, True)
            tiles.append(Tiles(count, steps, inner * self.b_bits))
        return tiles

    def steps(self) -> int:
        """Array steps of all tiles."""
        return sum(t.number * t.steps for t in self.tiles())

    def skipped(self) -> int:
        """Array steps saved by planes that its masks leave out; an empty diagonal costs one, so it may be negative."""
        return sum(t.number * (t.most - t.steps) for t in self.tiles())

    def sum_bound(self, design: Design) -> int:
        """What the magnitude of a product's sums stays below, whatever the codes."""
        if self.opcode == Opcode.CONV:
            length = design.dot_bits * self.groups
        else:
            length = self.rows * self.images * design.lanes
        return length << (self.a_bits + self.b_bits)

    def overflows(self, design: Design) -> bool:
        """Whether a product's sums could leave the accumulators, or a CONV's its output format."""
        wide = self.opcode == Opcode.WGRAD or self.format == OutputFormat.INT64
        return self.is_product and self.sum_bound(design) > (ACCUMULATOR_LIMIT if wide else INT32_LIMIT)

    # -- rules ------------------------------------------------------------------------------------------------------

    def check(self, design: Design) -> tuple[Error, str]:
        """First rule of docs/programs.md that it breaks, with a reason for people; ``(Error.NONE, "")`` if none.

        Args:
            design: whose buffers and lanes count.
        """
        if self.opcode not in list(Opcode):
            return Error.BAD_OPCODE, f"opcode {self.opcode}"
        kind = self.kind
        if kind is None:
            return Error.BAD_FIELD, self._unknown()
        if fault := self._field_fault(design, kind):
            return Error.BAD_FIELD, fault
        if fault := self._bits_fault(kind):
            return Error.BAD_BITS, fault
        if fault := self._shape_fault(design, kind):
            return Error.BAD_SHAPE, fault
        if self.payload_words != (needed := self.payload_needed(design)):
            return Error.BAD_LENGTH, f"payload_words is {self.payload_words}, the shape needs {needed}"
        for buffer, spans in self.ranges(design).items():
            depth = buffer_depth(design, buffer)
            for base, end in spans:
                if end > depth:
                    reason = f"buffer {buffer} has {depth} addresses, the packet needs {base} + {end - base}"
                    return Error.OUT_OF_BUFFER, reason
        if self.overflows(design):
            return Error.OVERFLOW, self._overflow()
        return Error.NONE, ""

    def _unknown(self) -> str:
        """Why there is no such packet, although there is its operation."""
        op = Opcode(self.opcode)
        if not any(kind.opcode == op and kind.target == self.target for kind in PACKETS.values()):
            return (
                f"target {self.target:#x} is not A, G, A|G, W or E" if op == Opcode.LOAD else f"{op.name} has no target"
            )
        return f"{op.name} has no format {self.format} here"

    def _field_fault(self, design: Design, kind: PacketKind) -> str:
        """Reason for BAD_FIELD in a packet of a known kind, or nothing."""
        name = kind.opcode.name
        used = used_bits(design, kind, Flag(self.flags) & _FLAGS_WITH_FIELDS)
        for field, value in vars(self).items():
            if extra := value & ~used.get(field, 0):
                if field == "flags":
                    return f"{name} does not allow the flags {Flag(extra)!r} here"
                if field not in used:
                    return f"{name} does not use {field} here, which is {value:#x}"
                return f"{field} = {value:#x} must name some of the {TAPS} kernel positions and nothing else"
        if "taps" in used and not self.taps:
            return f"taps = 0x0 must name some of the {TAPS} kernel positions and nothing else"
        if "factor" in used and not self.factor:
            return "factor is 0, which makes the random numbers of a segment's pixels equal; it is a power of 2 in GF(2^16)"
        if self.has(Flag.CROSS) and not self.side_bits:
            return "CROSS multiplies with the elements of SIDE, and side_bits is 0"
        for field, bits in (("a_planes", self.a_bits), ("b_planes", self.b_bits)):
            if 1 <= bits <= contract.MAX_BITS and getattr(self, field) >> bits:
                return f"{field} = {getattr(self, field):#x} names planes beyond the {bits} bits"
        return ""

    def _bits_fault(self, kind: PacketKind) -> str:
        """Reason for BAD_BITS, or nothing."""
        for name, (least, most) in contract.CODE_RANGES.items():
            if name in kind.fields and not least <= getattr(self, name) <= most:
                return f"{name} is {getattr(self, name)}, outside {least}..{most}"
        if (planes := self.section_planes) > SECTION_PLANES:
            return f"a tile would send {planes} planes of codes, more than {SECTION_PLANES}: lower out_bits, keep_bits or wide_bits"
        return ""

    def _shape_fault(self, design: Design, kind: PacketKind) -> str:
        """Reason for BAD_SHAPE, or nothing."""
        for name, most in kind.most.items():
            if not 1 <= (value := getattr(self, name)) <= most:
                return f"{name} is {value} and must be 1 here" if most == 1 else f"{name} is {value}, outside 1..{most}"
        if self.virtual_rows > kind.most.get("rows", 0):
            return f"rows is {self.rows}, and STRIDE_2 takes at most {kind.most['rows'] // 4}"
        if self.has_moments:
            if not self.valid or self.valid >> design.lanes:
                return f"valid = {self.valid:#x} must name some of the {design.lanes} pixels and nothing else"
            if not self.first_row < self.last_row <= self.rows:
                return (
                    f"first_row {self.first_row} and last_row {self.last_row} name no rows of the {self.rows} there are"
                )
        if "segment_start" in kind.fields and (not self.segment_start & 1 or self.segment_start >> design.lanes):
            return (
                f"segment_start = {self.segment_start:#x}: bit 0 must be set and bits from {design.lanes} upwards clear"
            )
        return ""

    def _overflow(self) -> str:
        widths = f"{self.a_bits} x {self.b_bits} bits over"
        if self.opcode == Opcode.CONV:
            return f"{widths} {self.groups} groups could exceed {OutputFormat(self.format).name}"
        return f"{widths} {self.rows} rows of {self.images} images could exceed the accumulator"


END = Packet(Opcode.END)


def check_header(design: Design, words: Sequence[int]) -> tuple[Error, str]:
    """First rule of docs/programs.md that a header breaks, magic and checksum included; as :meth:`Packet.check`.

    Args:
        design: whose buffers and lanes count.
        words: the header's ``HEADER_WORDS`` words.
    """
    values = contract.unpack_header(words)
    if values["magic"] != contract.MAGIC or values["version"] != contract.VERSION:
        return Error.BAD_MAGIC, f"magic {values['magic']:#x} version {values['version']}"
    halves = [(int(w) >> s) & 0xFFFFFFFF for w in words for s in (0, 32)]
    if values["check"] != (check := contract.header_check(halves)):
        return Error.BAD_CHECK, f"checksum is {values['check']:#010x}, should be {check:#010x}"
    error, reason = Packet.of(values).check(design)
    spare = [i for i, half in enumerate(halves) if half & ~contract.FIELD_BITS[i]]
    if spare and (error is Error.NONE or error >= Error.BAD_FIELD):  # what is checked before BAD_FIELD comes first
        return Error.BAD_FIELD, f"half-word {spare[0]} has bits that belong to no field"
    return error, reason


# -- packets by shape -----------------------------------------------------------------------------------------------


def load_tensor(
    design: Design, target: Target, images: int, rows: int, groups: int, bits: int, base_a: int = 0, base_g: int = 0
) -> Packet:
    """A LOAD of a stack of virtual images into A, G or both; a base counts only for a buffer that is written."""
    return Packet(
        Opcode.LOAD,
        target=target,
        rows=rows,
        groups=groups,
        out_groups=1,
        images=images,
        a_bits=bits,
        base_a=base_a if target & Target.A else 0,
        base_b=base_g if target & Target.G else 0,
    ).sized(design)


def load_entries(design: Design, target: Target, rows: int, base: int = 0) -> Packet:
    """A LOAD of ``rows`` weight words (W) or epilogue entries (E)."""
    bases = {"base_b": base} if target == Target.W else {"base_epilogue": base}
    return Packet(Opcode.LOAD, target=target, rows=rows, groups=1, out_groups=1, images=1, **bases).sized(design)


def product(opcode: Opcode, **values: int) -> Packet:
    """A CONV or WGRAD; unless given, all planes and taps are computed, and a virtual row is one segment.

    Moments, where there are any, are of ``valid`` and all rows unless given.
    """
    masks = {"a_planes": all_planes(values["a_bits"]), "b_planes": all_planes(values["b_bits"]), "segment_start": 1}
    if opcode == Opcode.WGRAD:
        masks["taps"] = ALL_TAPS
    packet = Packet(opcode, **{**masks, **values})
    return replace(packet, last_row=packet.rows) if packet.has_moments and not packet.last_row else packet


def read_entries(entries: int, base: int = 0, form: OutputFormat = OutputFormat.INT64) -> Packet:
    """A READ of accumulator entries, INT32 or INT64."""
    return Packet(Opcode.READ, rows=entries, base_accumulator=base, format=form)
