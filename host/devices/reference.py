"""The fabric in NumPy: every word, error and functional counter of docs/programs.md, without its timing.

Buffers are held as the fabric holds them, bank by address by row word, so that programs which read what another
layout has written get the same bits too.  Products are matrix products in floating point over an unfolded operand,
in single precision while every partial sum stays below 2**24 and in double precision otherwise: within these bounds
sums of integers are exact in any order, and the header checks keep every sum below 2**47.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from host import epilogue
from host.arrays import I64, U32, U64, Array
from host.devices.device import DEFAULT_TIMEOUT, DeviceInfo, HasWords, Result, program_words, split_streams
from host.program import packing
from hw import contract
from hw.contract import (
    ACCUMULATOR_LIMIT,
    INT32_LIMIT,
    ROW_BANKS,
    TAPS,
    Error,
    Flag,
    Opcode,
    OutputFormat,
    Target,
)
from hw.design import Design
from hw.packet import Packet, Range, blocks, buffer_depth, check_header

_CHUNK = 1 << 22  #: elements of an unfolded operand that are held at a time
_MASK32 = 0xFFFFFFFF


class _StopError(Exception):
    """Ends a program; results of the packet that were already sent are in the output."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.name)
        self.error = error


@dataclass
class _Counts:
    skipped: int = 0
    saturated: int = 0


def _segment_edges(segment_start: int, lanes: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Per pixel, whether it is the first and whether it is the last of its segment."""
    first = np.array([segment_start >> p & 1 for p in range(lanes)], dtype=bool)
    return first, np.append(first[1:], True)


def _unfold(padded: Array, segment_start: int) -> Array:
    """Operand seen through the nine taps: (images, rows + 2, L, n) with zero border rows -> (images, rows, L, 9, n)."""
    images, rows, lanes, n = padded.shape
    rows -= 2
    out = np.zeros((images, rows, lanes, TAPS, n), dtype=padded.dtype)
    first, last = _segment_edges(segment_start, lanes)
    for ky in range(3):
        source = padded[:, ky : ky + rows]
        out[:, :, 1:, 3 * ky] = source[:, :, :-1]
        out[:, :, first, 3 * ky] = 0
        out[:, :, :, 3 * ky + 1] = source
        out[:, :, :-1, 3 * ky + 2] = source[:, :, 1:]
        out[:, :, last, 3 * ky + 2] = 0
    return out


def _unfold_stride_2(padded: Array, segment_start: int) -> Array:
    """The same with STRIDE_2: (images, 2*rows + 1, 2, L, n), even and odd columns of input rows -1 .. 2*rows - 1."""
    images, height, _, lanes, n = padded.shape
    rows = height // 2
    out = np.zeros((images, rows, lanes, TAPS, n), dtype=padded.dtype)
    first, _ = _segment_edges(segment_start, lanes)
    for ky in range(3):
        source = padded[:, ky : ky + 2 * rows : 2]
        out[:, :, 1:, 3 * ky] = source[:, :, 1, :-1]
        out[:, :, first, 3 * ky] = 0
        out[:, :, :, 3 * ky + 1] = source[:, :, 0]
        out[:, :, :, 3 * ky + 2] = source[:, :, 1]
    return out


class ReferenceDevice:
    """A device without hardware: a bit-exact functional model.  Implements :class:`host.devices.device.Device`."""

    def __init__(self, design: Design) -> None:
        self._design = design
        d = design
        self._tensors = {
            buffer: np.zeros((ROW_BANKS, buffer_depth(d, buffer), d.row_words), dtype=np.uint64) for buffer in "AG"
        }
        self._w = np.zeros((d.depth_w, d.weight_words), dtype=np.uint64)
        self._entries = np.zeros((d.depth_epilogue, contract.ENTRY_WORDS), dtype=np.uint64)
        self._accumulator = np.zeros((d.depth_accumulator, d.channels), dtype=np.int64)

    @property
    def info(self) -> DeviceInfo:
        return DeviceInfo("reference", self._design, self._design.hash64)

    def reset(self) -> None:
        """Nothing is ever under way here; buffers keep their contents, as on the fabric."""

    def run(self, program: HasWords | U64, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Run a program; see :class:`host.devices.device.Device`.  The model always ends, so ``timeout`` is not used."""
        return self.run_streams(*split_streams(program_words(program)), timeout)

    def run_streams(self, words0: U64, words1: U64, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Run from two streams with TLAST on the last word of each.

        Raises:
            ValueError: an empty stream, which cannot carry TLAST.
        """
        if words0.size == 0 or words1.size == 0:
            raise ValueError("a stream needs at least one word, which carries TLAST")
        beats = min(words0.size, words1.size)
        words = np.empty(2 * beats, dtype=np.uint64)
        words[0::2] = words0[:beats]
        words[1::2] = words1[:beats]
        both_end = words0.size == words1.size
        counts = _Counts()
        out: list[U64] = []
        at = position = packets = used = 0
        error = Error.NONE
        while True:
            used = at + contract.HEADER_WORDS
            if used > words.size:
                error, used = Error.TRUNCATED, words.size
                break
            header = [int(w) for w in words[at:used]]
            error, _ = check_header(self._design, header)
            if error is not Error.NONE:
                break
            f = Packet.unpack(header)
            if f.opcode == Opcode.END:
                if used < words.size or not both_end:
                    error = Error.TRAILING
                else:
                    packets += 1
                break
            end = used + f.payload_words
            payload = words[used:end]
            cut = end >= words.size  # the beat with TLAST is this packet's last, or comes before it
            try:
                if cut:
                    used = words.size
                    raise _StopError(Error.TRUNCATED)
                used = end
                self._execute(f, payload, out, counts)
            except _StopError as stop:
                error = stop.error
                break
            packets += 1
            position += 1
            at = end
        results = np.concatenate(out) if out else np.zeros(0, dtype=np.uint64)
        counters = {
            "PACKETS": packets,
            "SKIPPED": counts.skipped & _MASK32,
            "SATURATED": counts.saturated & _MASK32,
            "WORDS_IN": used & _MASK32,
            "WORDS_OUT": (results.size + 2) & _MASK32,
        }
        return Result(results, counters, error, position if error is not Error.NONE else 0)

    def _span(self, f: Packet, buffer: str) -> slice:
        """Addresses of a buffer that a packet is about."""
        (span,) = f.ranges(self._design)[buffer]
        return slice(*span)

    def _execute(self, f: Packet, payload: U64, out: list[U64], counts: _Counts) -> None:
        op = f.opcode
        if op == Opcode.LOAD:
            if f.target == Target.W:
                self._w[self._span(f, "W")] = payload.reshape(f.rows, -1)
            elif f.target == Target.E:
                self._entries[self._span(f, "E")] = payload.reshape(f.rows, -1)
            else:
                self._load_tensor(f, payload)
        elif op == Opcode.CONV:
            self._conv(f, out, counts)
        elif op == Opcode.WGRAD:
            self._wgrad(f, counts)
        else:
            self._read(f, out)

    # -- LOAD -------------------------------------------------------------------------------------------------------

    def _load_tensor(self, f: Packet, payload: U64) -> None:
        images, rows, planes = f.images, f.rows, f.groups * f.a_bits
        words = payload.reshape(images, rows, planes, self._design.row_words)
        for buffer in f.ranges(self._design):
            view = self._tensors[buffer][:, self._span(f, buffer)].reshape(ROW_BANKS, images, blocks(rows), planes, -1)
            for bank in range(min(ROW_BANKS, rows)):
                mine = words[:, bank::ROW_BANKS]
                view[bank, :, : mine.shape[1]] = mine

    # -- operands ---------------------------------------------------------------------------------------------------

    def _operand(self, f: Packet, buffer: str) -> tuple[npt.NDArray[np.int32], int]:
        """A product's operand in buffer A or G.

        Returns:
            Codes, int32 (images, rows, L, groups*C), and the mask of the planes that the array walks: the packet's, less
            the planes that are zero in all banks at all of the tensor's addresses if SKIP_ZERO asks.
        """
        d = self._design
        if buffer == "A":
            rows, groups, bits, signed, mask = f.virtual_rows, f.groups, f.a_bits, Flag.A_SIGNED, f.a_planes
        else:
            rows, groups, bits, signed, mask = f.rows, f.out_groups, f.b_bits, Flag.B_SIGNED, f.b_planes
        memory = self._tensors[buffer][:, self._span(f, buffer)]
        walked = mask
        if f.has(Flag.SKIP_ZERO):
            words = memory.reshape(-1, bits, d.row_words)
            walked &= sum(1 << plane for plane in range(bits) if words[:, plane].any())
        codes = self._codes(memory, (f.images, rows, groups), bits, f.has(signed), mask)
        return codes.reshape(f.images, rows, d.lanes, groups * d.channels), walked

    def _codes(
        self, memory: U64, shape: tuple[int, int, int], bits: int, signed: bool, mask: int | None = None
    ) -> npt.NDArray[np.int32]:
        """Codes of a tensor of ``shape`` (images, rows, groups) in a buffer: int32 (images, rows, L, groups, C)."""
        d, (images, rows, groups) = self._design, shape
        words = memory.reshape(ROW_BANKS, images, blocks(rows), groups, bits, d.row_words)
        words = words.transpose(1, 2, 0, 3, 4, 5).reshape(images, -1, groups, bits, d.row_words)[:, :rows]
        codes = packing.unpack_planes(words, bits, signed, mask)
        codes = codes.reshape(images, rows, groups, d.lanes, d.channels).transpose(0, 1, 3, 2, 4)
        return np.ascontiguousarray(codes)

    # -- CONV -------------------------------------------------------------------------------------------------------

    def _conv(self, f: Packet, out: list[U64], counts: _Counts) -> None:
        d = self._design
        c, lanes = d.channels, d.lanes
        images, rows, groups, out_groups = f.images, f.rows, f.groups, f.out_groups
        form, a_sum = OutputFormat(f.format), f.has(Flag.A_SUM)
        a, a_planes = self._operand(f, "A")
        words = self._w[self._span(f, "W")]
        w = packing.unpack_weights(words, d, out_groups, groups, f.b_bits, f.has(Flag.B_SIGNED), f.b_planes)
        matrix = w.transpose(3, 1, 4, 0, 2).reshape(TAPS * groups * c, out_groups * c)
        bound = int(np.abs(a).max()) * max(int(np.abs(matrix).sum(axis=0, dtype=np.int64).max()), TAPS * groups * c)
        dtype: type[np.floating[Any]] = np.float32 if bound < 1 << 24 else np.float64
        weights = matrix.astype(dtype)
        counts.skipped += replace(f, a_planes=a_planes).skipped()
        stage = self._epilogue(f, counts) if f.has_epilogue else None
        for i0, i1, y0, y1 in _chunks(images, rows, lanes * matrix.shape[0]):
            look = _columns_stride_2 if f.has(Flag.STRIDE_2) else _columns
            columns = look(a, i0, i1, y0, y1, f.segment_start, dtype)
            flat = columns.reshape(-1, matrix.shape[0])
            acc = (flat @ weights).astype(np.int64).reshape(i1 - i0, y1 - y0, lanes, out_groups, c)
            if stage is not None:
                out.append(stage.take(acc, i0, y0))
                continue
            values = np.empty((i1 - i0, y1 - y0, out_groups * c + a_sum, lanes), dtype=np.int64)
            tiles = acc.transpose(0, 1, 3, 4, 2).reshape(i1 - i0, y1 - y0, out_groups * c, lanes)
            values[:, :, :c] = tiles[:, :, :c]
            values[:, :, c + a_sum :] = tiles[:, :, c:]
            if a_sum:
                values[:, :, c] = flat.sum(axis=1).reshape(i1 - i0, y1 - y0, lanes)
            out.append(packing.pack_integers(values, form == OutputFormat.INT64))
        if stage is not None:
            out.append(stage.moments())

    def _epilogue(self, f: Packet, counts: _Counts) -> _EpilogueStage:
        """The epilogue of a packet with its entries and operands."""
        shape = f.images, f.rows, f.out_groups
        memory = self._tensors["G"]

        def operand(span: Range, planes: int, signed: bool) -> I64 | None:
            if not planes:
                return None
            return self._codes(memory[:, slice(*span)], shape, planes, signed).astype(np.int64)

        side = operand(f.side_range(), f.side_planes, False)
        added = operand(f.added_range(), f.added_bits, True)
        return _EpilogueStage(f, self._design, counts, self._entries[self._span(f, "E")], side, added)

    # -- WGRAD and READ ---------------------------------------------------------------------------------------------

    def _wgrad(self, f: Packet, counts: _Counts) -> None:
        d = self._design
        c, lanes = d.channels, d.lanes
        images, rows, groups, out_groups = f.images, f.rows, f.groups, f.out_groups
        ones = f.has(Flag.ONES)
        (a, a_planes), (g, b_planes) = self._operand(f, "A"), self._operand(f, "G")
        taps = [tap for tap in range(TAPS) if f.taps >> tap & 1]
        width, n = groups * c, out_groups * c
        magnitude = np.abs(g).sum(axis=(0, 1, 2), dtype=np.int64).max()
        bound = int(np.abs(a).max()) * max(int(magnitude), images * rows * lanes)
        dtype: type[np.floating[Any]] = np.float32 if bound < 1 << 24 else np.float64
        dot = np.zeros((TAPS * width, n), dtype=np.int64)
        total = np.zeros(TAPS * width, dtype=np.int64)
        for i0, i1, y0, y1 in _chunks(images, rows, lanes * TAPS * width):
            columns = _columns(a, i0, i1, y0, y1, f.segment_start, dtype).reshape(-1, TAPS * width)
            dot += (columns.T @ g[i0:i1, y0:y1].reshape(-1, n).astype(dtype)).astype(np.int64)
            total += columns.sum(axis=0).astype(np.int64)
        tiles = np.zeros((out_groups, groups + ones, TAPS, c + 1, c), dtype=np.int64)
        tiles[:, :groups, :, :c] = dot.reshape(TAPS, groups, c, out_groups, c).transpose(3, 1, 0, 4, 2)
        tiles[:, :groups, :, c] = total.reshape(TAPS, groups, c).transpose(1, 0, 2)
        if ones:
            valid = np.ones((1, rows, lanes, 1), dtype=np.int32)
            seen = _columns(valid, 0, 1, 0, rows, f.segment_start, np.float64).reshape(-1, TAPS)
            per_tap = seen.astype(np.int64).T @ g.sum(axis=0, dtype=np.int64).reshape(-1, n)
            tiles[:, groups, :, :c] = per_tap.reshape(TAPS, out_groups, c).transpose(1, 0, 2)[..., None]
            tiles[:, groups, :, c] = (seen.sum(axis=0).astype(np.int64) * images)[:, None]
        counts.skipped += replace(f, a_planes=a_planes, b_planes=b_planes).skipped()
        entries = self._span(f, "accumulator")
        values = tiles[:, :, taps].reshape(-1, c)
        if not f.has(Flag.CLEAR):
            values = values + self._accumulator[entries]
        if int(values.min()) < -ACCUMULATOR_LIMIT or int(values.max()) >= ACCUMULATOR_LIMIT:
            raise _StopError(Error.ACCUMULATOR_RANGE)
        self._accumulator[entries] = values

    def _read(self, f: Packet, out: list[U64]) -> None:
        values = self._accumulator[self._span(f, "accumulator")]
        if f.format == OutputFormat.INT64:
            out.append(packing.pack_integers(values.copy(), True))  # a later WGRAD must not change them
            return
        fits = ((values >= -INT32_LIMIT) & (values < INT32_LIMIT)).all(axis=1)
        good = values.shape[0] if fits.all() else int(np.argmin(fits))
        if good:
            out.append(packing.pack_integers(values[:good], False))
        if good < values.shape[0]:
            raise _StopError(Error.ACCUMULATOR_RANGE)


class _EpilogueStage:
    """What a packet makes of its sums in CODES and MOMENTS.  Arrays of elements: int64 (images, rows, L, out_groups, C).

    Args:
        entries: words of the packet's epilogue entries.
        side: codes of SIDE, unsigned, with the mask plane on top.
        added: elements of ADDED.
    """

    def __init__(
        self, packet: Packet, design: Design, counts: _Counts, entries: U64, side: I64 | None, added: I64 | None
    ) -> None:
        f = self._packet = packet
        self._lanes, self._counts, self._added = design.lanes, counts, added
        flat = epilogue.Entries.from_words(entries)
        shape = f.out_groups, design.channels
        self._entries = epilogue.Entries(*(getattr(flat, field.name).reshape(shape) for field in fields(flat)))
        self._mask = side >> f.side_bits if side is not None and f.has(Flag.MASKED) else None
        self._side = side & (1 << f.side_bits) - 1 if side is not None and f.side_bits else None
        if self._side is not None and f.has(Flag.SIDE_SIGNED):
            self._side -= self._side >> f.side_bits - 1 << f.side_bits
        self._settings = epilogue.Epilogue(
            shift=f.shift,
            value_shift=f.value_shift,
            relu=f.has(Flag.RELU),
            out_bits=f.out_bits,
            out_shift=f.out_shift,
            out_signed=f.has(Flag.OUT_SIGNED),
            keep_bits=f.keep_bits,
            keep_shift=f.keep_shift,
            keep_mask=f.has(Flag.KEEP_MASK),
            wide_bits=f.wide_bits,
            wide_shift=f.wide_shift,
            stochastic=f.has(Flag.STOCHASTIC),
        )
        self._moments: list[epilogue.Moments] = []  # of parts of the packet

    def take(self, acc: I64, i0: int, y0: int) -> U64:
        """Words that leave with the tiles of some sums, which begin with row ``y0`` of image ``i0``."""
        f = self._packet
        part = slice(i0, i0 + acc.shape[0]), slice(y0, y0 + acc.shape[1])
        k, mask, q = (None if x is None else x[part] for x in (self._side, self._mask, self._added))
        if f.format == OutputFormat.MOMENTS:
            x, saturated = epilogue.inner(acc, self._entries, f.shift, added=q, mask=mask)
            self._counts.saturated += saturated
            self._count(x, k if f.has(Flag.CROSS) and k is not None else x, y0)
            return np.zeros(0, dtype=np.uint64)
        random = self._random(acc.shape, i0 * f.rows + y0) if f.has(Flag.STOCHASTIC) else None
        done = epilogue.finish(acc, self._entries, self._settings, side=k, mask=mask, added=q, random=random)
        self._counts.saturated += done.saturated
        if f.has_moments:
            self._count(done.w, done.w, y0)
        order = 0, 1, 3, 2, 4  # (images, rows, out_groups, L, C)
        sections = packing.Sections(
            done.a.transpose(order),
            keep=None if done.k is None else done.k.transpose(order),
            mask=None if done.mask is None else done.mask.transpose(order),
            wide=None if done.s is None else done.s.transpose(order),
        )
        return packing.pack_sections(sections, f)

    def moments(self) -> U64:
        """Words that follow the last tile."""
        if not self._moments:
            return np.zeros(0, dtype=np.uint64)
        total, products, least, greatest = (np.stack(parts) for parts in zip(*self._moments, strict=True))
        whole = epilogue.Moments(total.sum(0), products.sum(0), least.min(0), greatest.max(0))
        return packing.pack_moments(whole)

    def _count(self, values: I64, factors: I64, y0: int) -> None:
        """Take in the values and factors that count, of rows from ``y0`` on."""
        f = self._packet
        rows = slice(max(0, f.first_row - y0), max(0, f.last_row - y0))
        lanes = [lane for lane in range(self._lanes) if f.valid >> lane & 1]
        v, other = (x[:, rows][:, :, lanes].reshape(-1, f.out_groups * x.shape[-1]) for x in (values, factors))
        if v.size:
            self._moments.append(epilogue.moments(v, other))

    def _random(self, shape: tuple[int, ...], row: int) -> U32:
        """Random numbers of elements whose rows begin with ``row``, counted over all images."""
        f, (images, rows, lanes, out_groups, channels) = self._packet, shape
        first, _ = _segment_edges(f.segment_start, lanes)
        edges = [*np.flatnonzero(first), lanes]

        def steps(begin: int, count: int, stride: int) -> U32:
            return np.arange(begin, begin + count, dtype=np.uint32) * np.uint32(stride)

        indices = (
            steps(row, images * rows, f.row_stride)[:, None, None]
            + steps(0, len(edges) - 1, f.image_stride)[:, None]
            + steps(0, out_groups * channels, f.channel_stride)
            + np.uint32(f.index)
        )
        numbers = epilogue.random_rows(indices, f.key, int(np.diff(edges).max()), f.factor)
        spans = [numbers[:, i, :, : end - begin] for i, (begin, end) in enumerate(itertools.pairwise(edges))]
        return np.concatenate(spans, axis=-1).transpose(0, 2, 1).reshape(shape)


def _chunks(images: int, rows: int, per_row: int) -> list[tuple[int, int, int, int]]:
    """Cut (images, rows) into ranges (i0, i1, y0, y1), in order, of about ``_CHUNK`` unfolded elements."""
    if rows * per_row <= _CHUNK:
        step = max(1, _CHUNK // (rows * per_row))
        return [(i, min(i + step, images), 0, rows) for i in range(0, images, step)]
    step = max(1, _CHUNK // per_row)
    return [(i, i + 1, y, min(y + step, rows)) for i in range(images) for y in range(0, rows, step)]


def _columns(
    codes: npt.NDArray[np.int32], i0: int, i1: int, y0: int, y1: int, segment_start: int, dtype: npt.DTypeLike
) -> Array:
    """Unfolded rows y0..y1 of images i0..i1: (images, rows, L, n) -> (i1-i0, y1-y0, L, 9, n)."""
    _, rows, lanes, n = codes.shape
    padded = np.zeros((i1 - i0, y1 - y0 + 2, lanes, n), dtype=dtype)
    low, high = max(y0 - 1, 0), min(y1 + 1, rows)
    padded[:, low - (y0 - 1) : high - (y0 - 1)] = codes[i0:i1, low:high]
    return _unfold(padded, segment_start)


def _columns_stride_2(
    codes: npt.NDArray[np.int32], i0: int, i1: int, y0: int, y1: int, segment_start: int, dtype: npt.DTypeLike
) -> Array:
    """The same with STRIDE_2: (images, 4*rows, L, n) -> output rows y0..y1 of images i0..i1."""
    images, height, lanes, n = codes.shape
    split = codes.reshape(images, height // 2, 2, lanes, n)
    padded = np.zeros((i1 - i0, 2 * (y1 - y0) + 1, 2, lanes, n), dtype=dtype)
    low = max(2 * y0 - 1, 0)
    padded[:, low - (2 * y0 - 1) :] = split[i0:i1, low : 2 * y1]
    return _unfold_stride_2(padded, segment_start)
