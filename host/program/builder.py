"""Stream programs: the checks that every header must pass, and a builder that writes good ones.

:func:`check_header` states the rules of docs/programs.md once in Python, for the reference device, which reports the
code, and for :class:`ProgramBuilder`, which raises the reason before anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from host.program import packing
from hw import contract
from hw.contract import Error, Flag, LoadFormat, Opcode, OutputFormat, Target
from hw.design import Design

U64 = npt.NDArray[np.uint64]

ALL_TAPS = (1 << contract.TAPS) - 1

_ALWAYS = frozenset({"magic", "version", "opcode", "payload_words", "check"})
_STOCHASTIC_FIELDS = frozenset({"key", "index", "channel_stride", "image_stride", "row_stride", "pixel_stride"})
_TENSOR = frozenset({"rows", "groups", "out_groups", "images"})
_PRODUCT = _TENSOR | {"a_bits", "b_bits", "flags", "base_a", "base_b", "segment_start", "a_planes", "b_planes"}
_CONV_FIELDS: dict[OutputFormat, frozenset[str]] = {
    OutputFormat.INT32: frozenset(),
    OutputFormat.INT64: frozenset(),
    OutputFormat.CODES: frozenset({"out_bits", "shift", "base_epilogue"}),
    OutputFormat.STATISTICS: frozenset({"pixels"}),
    OutputFormat.FLOAT32: frozenset({"base_epilogue"}),
}
_FORMAT_FLAGS = {
    Flag.A_SUM: (OutputFormat.INT32, OutputFormat.INT64),
    Flag.RELU | Flag.OUT_SIGNED | Flag.STOCHASTIC: (OutputFormat.CODES,),
}  #: flags of CONV that belong to formats
_TARGETS = (Target.A, Target.G, Target.A | Target.G, Target.W, Target.E)
_MAX_ENTRIES = 65535  #: rows of LOAD W, LOAD E and READ: whatever 16 bits hold


def blocks(rows: int) -> int:
    """Addresses per plane and group that ``rows`` rows take: rows lie in 8 banks."""
    return -(-rows // contract.ROW_BANKS)


def tensor_addresses(images: int, rows: int, groups: int, bits: int) -> int:
    """Addresses of a stack of virtual images in buffer A or G."""
    return images * blocks(rows) * groups * bits


def operand_rows(rows: int, stride_2: bool) -> int:
    """Virtual rows of A under ``rows`` output rows: with STRIDE_2 two input rows each, in even and odd columns."""
    return 4 * rows if stride_2 else rows


def accumulator_entries(design: Design, out_groups: int, groups: int, ones: bool, taps: int = ALL_TAPS) -> int:
    """Accumulator entries of one WGRAD that computes the kernel positions in the mask ``taps``."""
    return out_groups * (groups + ones) * bin(taps).count("1") * (design.channels + 1)


def _not_finite(word: int) -> bool:
    return word >> 23 & 0xFF == 0xFF


def _used_fields(f: dict[str, int], target: Target) -> frozenset[str]:
    """Fields that may be non-zero, as in the table of docs/programs.md."""
    op = f["opcode"]
    if op == Opcode.LOAD:
        if target == Target.W:
            return _ALWAYS | _TENSOR | {"base_b", "target"}
        if target == Target.E:
            return _ALWAYS | _TENSOR | {"base_epilogue", "target"}
        used = _ALWAYS | _TENSOR | {"a_bits", "flags", "target", "format"}
        used |= {"base_a"} if target & Target.A else set()
        used |= {"base_b"} if target & Target.G else set()
        if f["format"] == LoadFormat.FLOAT32:
            used |= {"segment_start", "zero", "reciprocal"}
            if f["flags"] & Flag.STOCHASTIC:
                used |= _STOCHASTIC_FIELDS
        return used
    if op == Opcode.CONV:
        used = _ALWAYS | _PRODUCT | {"format"} | _CONV_FIELDS[OutputFormat(f["format"])]
        return used | _STOCHASTIC_FIELDS if f["flags"] & Flag.STOCHASTIC else used
    if op == Opcode.WGRAD:
        return _ALWAYS | _PRODUCT | {"base_accumulator", "taps"}
    if op == Opcode.READ:
        return _ALWAYS | {"rows", "format", "base_accumulator"}
    return _ALWAYS


def _field_fault(design: Design, f: dict[str, int]) -> str | None:
    """Reason for BAD_FIELD, or None."""
    op = Opcode(f["opcode"])
    target = Target(0)
    if op == Opcode.LOAD:
        if f["target"] not in [int(t) for t in _TARGETS]:
            return f"target {f['target']:#x} is not A, G, A|G, W or E"
        target = Target(f["target"])
        formats = 1 if target in (Target.W, Target.E) else 2
    else:
        formats = {Opcode.CONV: len(OutputFormat), Opcode.READ: 2}.get(op, 1)
    if f["format"] >= formats:
        return f"{op.name} has no format {f['format']}"
    used = _used_fields(f, target)
    for name, value in f.items():
        if value and name not in used:
            return f"{op.name} does not use {name} here, which is {value:#x}"
    flags = Flag(f["flags"])
    allowed = contract.ALLOWED_FLAGS[op]
    if op == Opcode.LOAD and f["format"] == LoadFormat.PACKED:
        allowed = Flag(0)
    if op == Opcode.CONV:
        for some, formats_with in _FORMAT_FLAGS.items():
            if f["format"] not in formats_with:
                allowed &= ~some
        if not design.rounding_lanes:
            allowed &= ~Flag.STOCHASTIC
    if f["flags"] & ~int(allowed):
        return f"{op.name} does not allow the flags {flags & ~allowed!r} here"
    for name in ("zero", "reciprocal"):
        if _not_finite(f[name]):
            return f"{name} is NaN or infinite"
    if op in (Opcode.CONV, Opcode.WGRAD):
        for name, bits in (("a_planes", f["a_bits"]), ("b_planes", f["b_bits"])):
            if 1 <= bits <= contract.MAX_BITS and f[name] >> bits:
                return f"{name} = {f[name]:#x} names planes beyond the {bits} bits"
    if op == Opcode.WGRAD and not 1 <= f["taps"] <= ALL_TAPS:
        return f"taps = {f['taps']:#x} must name some of the {contract.TAPS} kernel positions and nothing else"
    return None


def _shape_fault(design: Design, f: dict[str, int], loads_small: bool) -> str | None:
    """Reason for BAD_SHAPE, or None."""
    op = Opcode(f["opcode"])
    if op == Opcode.READ:
        return None if f["rows"] else "rows is 0"
    if op == Opcode.LOAD:
        if loads_small and f["rows"] == 0:
            return "rows is 0"
        ones = ["groups", "images", "out_groups"] if loads_small else ["out_groups"]
        if f["format"] == LoadFormat.FLOAT32:
            ones.append("images")
        for name in ones:
            if f[name] != 1:
                return f"{name} is {f[name]} and must be 1 here"
    if not loads_small:
        for name, limit in contract.LIMITS.items():
            if not 1 <= f[name] <= limit:
                return f"{name} is {f[name]}, outside 1..{limit}"
    if op == Opcode.CONV and f["flags"] & Flag.STRIDE_2 and f["rows"] > contract.LIMITS["rows"] // 4:
        return f"rows is {f['rows']}, and STRIDE_2 takes at most {contract.LIMITS['rows'] // 4}"
    if op == Opcode.CONV and f["format"] == OutputFormat.STATISTICS and not 1 <= f["pixels"] <= design.lanes:
        return f"pixels is {f['pixels']}, outside 1..{design.lanes}"
    segments = f["segment_start"]
    segmented = op in (Opcode.CONV, Opcode.WGRAD) or f["format"] == LoadFormat.FLOAT32
    if segmented and (not segments & 1 or segments >> design.lanes):
        return f"segment_start = {segments:#x}: bit 0 must be set and bits from {design.lanes} upwards clear"
    return None


def payload_words(design: Design, f: dict[str, int]) -> int:
    """Payload that a header asks for, in words; its other fields must be valid."""
    if f["opcode"] != Opcode.LOAD:
        return 0
    if f["target"] == Target.W:
        return f["rows"] * design.weight_words
    if f["target"] == Target.E:
        return f["rows"] * 2
    if f["format"] == LoadFormat.FLOAT32:
        return f["rows"] * f["groups"] * design.lanes * design.channels // 2
    return f["images"] * f["rows"] * f["groups"] * f["a_bits"] * design.row_words


def _buffer_fault(design: Design, f: dict[str, int]) -> str | None:
    """Reason for OUT_OF_BUFFER, or None."""
    op = Opcode(f["opcode"])
    ranges: list[tuple[str, int, int, int]] = []  # buffer, base, length, depth
    if op == Opcode.LOAD:
        length = tensor_addresses(f["images"], f["rows"], f["groups"], f["a_bits"])
        if f["target"] & Target.A:
            ranges.append(("A", f["base_a"], length, design.depth_a))
        if f["target"] & Target.G:
            ranges.append(("G", f["base_b"], length, design.depth_g))
        if f["target"] & Target.W:
            ranges.append(("W", f["base_b"], f["rows"], design.depth_w))
        if f["target"] & Target.E:
            ranges.append(("E", f["base_epilogue"], f["rows"], design.depth_epilogue))
    if op in (Opcode.CONV, Opcode.WGRAD):
        rows = operand_rows(f["rows"], bool(f["flags"] & Flag.STRIDE_2))
        length = tensor_addresses(f["images"], rows, f["groups"], f["a_bits"])
        ranges.append(("A", f["base_a"], length, design.depth_a))
    if op == Opcode.CONV:
        ranges.append(("W", f["base_b"], f["out_groups"] * f["groups"] * f["b_bits"], design.depth_w))
        if f["format"] in (OutputFormat.CODES, OutputFormat.FLOAT32):
            ranges.append(("E", f["base_epilogue"], f["out_groups"] * design.channels, design.depth_epilogue))
    if op == Opcode.WGRAD:
        length = tensor_addresses(f["images"], f["rows"], f["out_groups"], f["b_bits"])
        ranges.append(("G", f["base_b"], length, design.depth_g))
        entries = accumulator_entries(design, f["out_groups"], f["groups"], bool(f["flags"] & Flag.ONES), f["taps"])
        ranges.append(("accumulator", f["base_accumulator"], entries, design.depth_accumulator))
    if op == Opcode.READ:
        ranges.append(("accumulator", f["base_accumulator"], f["rows"], design.depth_accumulator))
    for name, base, length, depth in ranges:
        if base + length > depth:
            return f"buffer {name} has {depth} addresses, the packet needs {base} + {length}"
    return None


def conv_fits(design: Design, groups: int, a_bits: int, b_bits: int, wide: bool) -> bool:
    """Whether a CONV's accumulators surely fit its output format."""
    return design.dot_bits * groups << (a_bits + b_bits) <= 1 << (47 if wide else 31)


def wgrad_fits(design: Design, rows: int, images: int, a_bits: int, b_bits: int) -> bool:
    """Whether one WGRAD's sums surely fit an accumulator."""
    return rows * images * design.lanes << (a_bits + b_bits) <= 1 << 47


def _overflow_fault(design: Design, f: dict[str, int]) -> str | None:
    a, b = f["a_bits"], f["b_bits"]
    if f["opcode"] == Opcode.CONV and not conv_fits(design, f["groups"], a, b, f["format"] == OutputFormat.INT64):
        return f"{a} x {b} bits over {f['groups']} groups could exceed {OutputFormat(f['format']).name}"
    if f["opcode"] == Opcode.WGRAD and not wgrad_fits(design, f["rows"], f["images"], a, b):
        return f"{a} x {b} bits over {f['rows']} rows of {f['images']} images could exceed the accumulator"
    return None


def headers(words: U64) -> Iterator[dict[str, int]]:
    """Fields of the headers of a program's words (even number,), END included, in order."""
    at = 0
    while at < words.size:
        fields = contract.unpack_header([int(w) for w in words[at : at + contract.HEADER_WORDS]])
        at += contract.HEADER_WORDS + fields["payload_words"]
        yield fields


def check_header(design: Design, words: Sequence[int]) -> tuple[Error, str]:
    """First rule of docs/programs.md that a header breaks, with a reason for people; ``(Error.NONE, "")`` if none.

    Args:
        design: whose buffers and lanes count.
        words: the 10 words of the header.
    """
    f = contract.unpack_header([int(w) for w in words])
    halves = [(int(w) >> s) & 0xFFFFFFFF for w in words for s in (0, 32)]
    if f["magic"] != contract.MAGIC or f["version"] != contract.VERSION:
        return Error.BAD_MAGIC, f"magic {f['magic']:#x} version {f['version']}"
    if f["check"] != contract.header_check(halves):
        return Error.BAD_CHECK, f"checksum is {f['check']:#010x}, should be {contract.header_check(halves):#010x}"
    if f["opcode"] not in [int(op) for op in Opcode]:
        return Error.BAD_OPCODE, f"opcode {f['opcode']}"
    if fault := _field_fault(design, f):
        return Error.BAD_FIELD, fault
    op = f["opcode"]
    loads_small = op == Opcode.LOAD and f["target"] in (Target.W, Target.E)
    widths = []
    if op in (Opcode.CONV, Opcode.WGRAD) or (op == Opcode.LOAD and not loads_small):
        widths.append("a_bits")
    if op in (Opcode.CONV, Opcode.WGRAD):
        widths.append("b_bits")
    if op == Opcode.CONV and f["format"] == OutputFormat.CODES:
        widths.append("out_bits")
    for name in widths:
        if not 1 <= f[name] <= contract.MAX_BITS:
            return Error.BAD_BITS, f"{name} is {f[name]}, outside 1..{contract.MAX_BITS}"
    if f["shift"] > contract.MAX_SHIFT:
        return Error.BAD_BITS, f"shift is {f['shift']}, outside 0..{contract.MAX_SHIFT}"
    if op != Opcode.END and (fault := _shape_fault(design, f, loads_small)):
        return Error.BAD_SHAPE, fault
    if f["payload_words"] != payload_words(design, f):
        return Error.BAD_LENGTH, f"payload_words is {f['payload_words']}, the shape needs {payload_words(design, f)}"
    if fault := _buffer_fault(design, f):
        return Error.OUT_OF_BUFFER, fault
    if fault := _overflow_fault(design, f):
        return Error.OVERFLOW, fault
    return Error.NONE, ""


def _random_fields(random: tuple[int, int, tuple[int, int, int, int]] | None) -> dict[str, int]:
    """Header fields of stochastic rounding: key, index of the first element, steps along channels, images, rows, pixels."""
    if random is None:
        return {}
    key, index, strides = random
    names = ("channel_stride", "image_stride", "row_stride", "pixel_stride")
    fields = {name: step % (1 << 32) for name, step in zip(names, strides, strict=True)}
    return {**fields, "key": key, "index": index % (1 << 32)}


class PacketError(ValueError):
    """A packet that the fabric would refuse, found before it was sent.

    Attributes:
        error: code that the fabric would report.
    """

    def __init__(self, error: Error, operation: str, position: int, reason: str) -> None:
        super().__init__(f"packet {position} ({operation}): {reason} [{error.name}]")
        self.error = error


@dataclass(frozen=True)
class Program:
    """A finished program.

    Attributes:
        data: uint64, its words.
        result_words: words that it will send, without the trailer.
        packets: number of packets, END included.
    """

    data: U64
    result_words: int
    packets: int

    def words(self) -> U64:
        """The words, uint64 (even number,)."""
        return self.data


class ProgramBuilder:
    """Writes a program packet by packet; every packet is checked as the fabric will check it.

    Each method that makes results returns the range of result words that its packet will send.

    Raises (all methods):
        PacketError: the fabric would refuse the packet.
        ValueError: data of the wrong shape or range.
    """

    def __init__(self, design: Design) -> None:
        self.design = design
        self.result_words = 0
        self.packets = 0
        self.size = 0  #: words so far, without END
        self._parts: list[U64] = []
        self._ended = False

    def packet(self, op: Opcode, payload: U64 | None = None, /, **fields: int) -> None:
        """Add a packet with any header fields and payload words (uint64); header and payload length are checked."""
        if self._ended:
            raise ValueError("the program has its END packet already; start a new builder")
        size = 0 if payload is None else payload.size
        header = contract.pack_header(opcode=op, payload_words=size, **{k: int(v) for k, v in fields.items()})
        error, reason = check_header(self.design, header)
        if error is not Error.NONE:
            raise PacketError(error, op.name, self.packets, reason)
        self._parts.append(np.array(header, dtype=np.uint64))
        if payload is not None:
            self._parts.append(np.ascontiguousarray(payload, dtype=np.uint64))
        self.packets += 1
        self.size += contract.HEADER_WORDS + size

    def _results(self, words: int) -> slice:
        span = slice(self.result_words, self.result_words + words)
        self.result_words += words
        return span

    @staticmethod
    def _bases(target: Target, base: int, base_g: int | None) -> dict[str, int]:
        fields = {}
        if target & Target.A:
            fields["base_a"] = base
        if target & Target.G:
            fields["base_b"] = base_g if base_g is not None else base
        return fields

    def _check_groups(self, shape: tuple[int, ...], wanted: str) -> None:
        if shape[-2:] != (self.design.lanes, self.design.channels):
            raise ValueError(
                f"array of shape {shape} should be {wanted} with L = {self.design.lanes} and C = {self.design.channels}"
            )

    def load_packed(
        self, target: Target, codes: packing.Codes, bits: int, base: int = 0, base_g: int | None = None
    ) -> None:
        """Load codes as bit planes.

        Args:
            target: A, G or A|G.
            codes: integers (images, rows, groups, L, C) of either sign that ``bits`` bits hold.
            bits: 1..16.
            base: first address (of A if both are written).
            base_g: first address in G if both are written; ``base`` by default.
        """
        if codes.ndim != 5:
            raise ValueError(f"codes of shape {codes.shape} should be (images, rows, groups, L, C)")
        self._check_groups(codes.shape, "(images, rows, groups, L, C)")
        packing.check_codes(codes, bits, bool(codes.size and codes.min() < 0))
        images, rows, groups = codes.shape[:3]
        self.packet(
            Opcode.LOAD,
            packing.pack_rows(codes, bits),
            **self._bases(target, base, base_g),
            target=target,
            format=LoadFormat.PACKED,
            rows=rows,
            groups=groups,
            out_groups=1,
            images=images,
            a_bits=bits,
        )

    def load_float(
        self,
        target: Target,
        values: packing.F32,
        bits: int,
        signed: bool,
        zero: np.float32,
        reciprocal: np.float32,
        segment_start: int,
        base: int = 0,
        base_g: int | None = None,
        key: int | None = None,
        index: int = 0,
        strides: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> None:
        """Load float32 values that the fabric quantizes.

        Args:
            target: A, G or A|G.
            values: float32 (rows, groups, L, C), finite.
            bits, signed: of the codes.
            zero, reciprocal: z and r of the quantizer.
            segment_start: bit p set where an image's row starts.
            base, base_g: as in :meth:`load_packed`.
            key: of the stochastic rounding, or None; without it ``index`` and ``strides`` are not used.
            index: random index of row 0, pixel 0, channel 0; taken modulo 2**32.
            strides: random index steps of channel, image (segment), row and pixel; taken modulo 2**32.
        """
        if values.ndim != 4:
            raise ValueError(f"values of shape {values.shape} should be (rows, groups, L, C)")
        self._check_groups(values.shape, "(rows, groups, L, C)")
        rows, groups = values.shape[:2]
        fields = {
            "zero": int(np.float32(zero).view(np.uint32)),
            "reciprocal": int(np.float32(reciprocal).view(np.uint32)),
        }
        flags = Flag.A_SIGNED if signed else Flag(0)
        if key is not None:
            flags |= Flag.STOCHASTIC
            fields |= _random_fields((key, index, strides))
        self.packet(
            Opcode.LOAD,
            packing.pack_floats(values),
            **self._bases(target, base, base_g),
            **fields,
            target=target,
            format=LoadFormat.FLOAT32,
            rows=rows,
            groups=groups,
            out_groups=1,
            images=1,
            a_bits=bits,
            flags=flags,
            segment_start=segment_start,
        )

    def load_weights(self, codes: packing.Codes, bits: int, base: int = 0) -> None:
        """Load weights (out_groups, groups, C out, 9 taps, C in) of ``bits`` bits at address ``base``."""
        c = self.design.channels
        if codes.ndim != 5 or codes.shape[2:] != (c, contract.TAPS, c):
            raise ValueError(f"weights of shape {codes.shape} should be (out_groups, groups, {c}, 9, {c})")
        packing.check_codes(codes, bits, bool(codes.size and codes.min() < 0), "weights")
        payload = packing.pack_weights(codes, bits, self.design)
        self.packet(
            Opcode.LOAD,
            payload.reshape(-1),
            target=Target.W,
            rows=payload.shape[0],
            groups=1,
            images=1,
            out_groups=1,
            base_b=base,
        )

    def load_epilogue(self, multipliers: packing.Codes, offsets: packing.Codes, base: int = 0) -> None:
        """Load epilogue parameters, both (n,), one pair per output channel, at entry ``base``."""
        self.packet(
            Opcode.LOAD,
            packing.pack_epilogue(multipliers, offsets),
            target=Target.E,
            rows=multipliers.size,
            groups=1,
            images=1,
            out_groups=1,
            base_epilogue=base,
        )

    def _product(
        self,
        op: Opcode,
        a_planes: int | None,
        b_planes: int | None,
        options: dict[Flag, bool],
        random: tuple[int, int, tuple[int, int, int, int]] | None = None,
        **fields: int,
    ) -> None:
        """A CONV or WGRAD packet; masks default to all planes, flags are those whose option is set."""
        self.packet(
            op,
            flags=sum(int(flag) for flag, wanted in options.items() if wanted),
            a_planes=(1 << fields["a_bits"]) - 1 if a_planes is None else a_planes,
            b_planes=(1 << fields["b_bits"]) - 1 if b_planes is None else b_planes,
            **fields,
            **_random_fields(random),
        )

    def conv(
        self,
        *,
        images: int,
        rows: int,
        groups: int,
        out_groups: int,
        a_bits: int,
        b_bits: int,
        a_signed: bool = False,
        b_signed: bool = False,
        segment_start: int = 1,
        base_a: int = 0,
        base_w: int = 0,
        format: OutputFormat = OutputFormat.INT32,
        stride_2: bool = False,
        a_sum: bool = False,
        a_planes: int | None = None,
        b_planes: int | None = None,
        skip_zero: bool = False,
        out_bits: int = 0,
        out_signed: bool = False,
        relu: bool = False,
        shift: int = 0,
        base_epilogue: int = 0,
        pixels: int = 0,
        key: int | None = None,
        index: int = 0,
        strides: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> slice:
        """Convolve A with W.

        Args:
            rows: of the output; with ``stride_2`` A holds four times as many.
            a_planes, b_planes: planes to compute, all by default.
            skip_zero: let the fabric skip planes of A that are zero as well.
            out_bits, out_signed, relu, shift: of CODES.
            base_epilogue: of CODES and FLOAT32.
            pixels: of a virtual row that count in STATISTICS.
            key, index, strides: stochastic rounding of CODES, as in :meth:`load_float`.

        Returns:
            Its range of result words.
        """
        self._product(
            Opcode.CONV,
            a_planes,
            b_planes,
            {
                Flag.A_SIGNED: a_signed,
                Flag.B_SIGNED: b_signed,
                Flag.STRIDE_2: stride_2,
                Flag.A_SUM: a_sum,
                Flag.SKIP_ZERO: skip_zero,
                Flag.OUT_SIGNED: out_signed,
                Flag.RELU: relu,
                Flag.STOCHASTIC: key is not None,
            },
            None if key is None else (key, index, strides),
            images=images,
            rows=rows,
            groups=groups,
            out_groups=out_groups,
            a_bits=a_bits,
            b_bits=b_bits,
            segment_start=segment_start,
            base_a=base_a,
            base_b=base_w,
            format=format,
            out_bits=out_bits,
            shift=shift,
            base_epilogue=base_epilogue,
            pixels=pixels,
        )
        if format == OutputFormat.CODES:
            return self._results(images * rows * out_groups * out_bits * self.design.row_words)
        if format == OutputFormat.STATISTICS:
            return self._results(out_groups * self.design.channels * packing.STATISTICS_WORDS)
        wide = format == OutputFormat.INT64
        return self._results(packing.conv_words(self.design, images, rows, out_groups, wide, a_sum))

    def wgrad(
        self,
        *,
        images: int,
        rows: int,
        groups: int,
        out_groups: int,
        a_bits: int,
        b_bits: int,
        a_signed: bool = False,
        b_signed: bool = False,
        segment_start: int = 1,
        base_a: int = 0,
        base_g: int = 0,
        taps: int = ALL_TAPS,
        ones: bool = False,
        clear: bool = False,
        a_planes: int | None = None,
        b_planes: int | None = None,
        skip_zero: bool = False,
        base_accumulator: int = 0,
    ) -> None:
        """Accumulate the weight gradient of A and G at the kernel positions in ``taps``; masks default to all planes.

        Args:
            taps: bit 3*ky + kx set: position (ky, kx) is computed.
            skip_zero: let the fabric skip planes of A and G that are zero as well.
        """
        self._product(
            Opcode.WGRAD,
            a_planes,
            b_planes,
            {
                Flag.A_SIGNED: a_signed,
                Flag.B_SIGNED: b_signed,
                Flag.ONES: ones,
                Flag.CLEAR: clear,
                Flag.SKIP_ZERO: skip_zero,
            },
            images=images,
            rows=rows,
            groups=groups,
            out_groups=out_groups,
            a_bits=a_bits,
            b_bits=b_bits,
            segment_start=segment_start,
            base_a=base_a,
            base_b=base_g,
            taps=taps,
            base_accumulator=base_accumulator,
        )

    def read(self, entries: int, base_accumulator: int = 0, format: OutputFormat = OutputFormat.INT64) -> slice:
        """Send accumulator entries, C values each; INT32 or INT64.  Returns its range of result words."""
        self.packet(Opcode.READ, rows=entries, base_accumulator=base_accumulator, format=format)
        values = entries * self.design.channels
        return self._results(values if format == OutputFormat.INT64 else values // 2)

    def end(self) -> Program:
        """Close the program."""
        self.packet(Opcode.END)
        self._ended = True
        return Program(np.concatenate(self._parts), self.result_words, self.packets)

    def words(self) -> U64:
        """Words of the program, closed by END if it was not yet; uint64 (even number,)."""
        if not self._ended:
            self.end()
        return np.concatenate(self._parts)
