"""The fabric in NumPy: every word, error and functional counter of docs/programs.md, without its timing.

Buffers are held as the fabric holds them, bank by address by row word, so that programs which read what another
layout has written get the same bits too.  Products are matrix products in floating point over an unfolded operand,
in single precision while every partial sum stays below 2**24 and in double precision otherwise: within these bounds
sums of integers are exact in any order, and the header checks keep every sum below 2**47.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from host import numerics
from host.arrays import I64, U64, Array
from host.devices.device import DEFAULT_TIMEOUT, DeviceInfo, HasWords, Result, program_words, split_streams
from host.program import packing
from hw import contract
from hw.contract import (
    ACCUMULATOR_BITS,
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
from hw.packet import Packet, blocks, buffer_depth, check_header

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
        self._multiplier = np.zeros(d.depth_epilogue, dtype=np.int64)
        self._offset = np.zeros(d.depth_epilogue, dtype=np.int64)
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
        return slice(*f.ranges(self._design)[buffer])

    def _execute(self, f: Packet, payload: U64, out: list[U64], counts: _Counts) -> None:
        op = f.opcode
        if op == Opcode.LOAD:
            if f.target == Target.W:
                self._w[self._span(f, "W")] = payload.reshape(f.rows, -1)
            elif f.target == Target.E:
                entries = self._span(f, "E")
                self._multiplier[entries] = packing.sign_extend(payload[0::2], contract.MULTIPLIER_BITS)
                self._offset[entries] = packing.sign_extend(payload[1::2], ACCUMULATOR_BITS)
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
        for buffer, (start, end) in f.ranges(self._design).items():
            view = self._tensors[buffer][:, start:end].reshape(ROW_BANKS, images, blocks(rows), planes, -1)
            for bank in range(min(ROW_BANKS, rows)):
                mine = words[:, bank::ROW_BANKS]
                view[bank, :, : mine.shape[1]] = mine

    def _indices(self, f: Packet, rows: int, groups: int, first_row: int = 0) -> npt.NDArray[np.uint32]:
        """Random index of each element of virtual rows, uint32 (rows, groups, L, C), modulo 2**32."""
        d = self._design
        first, _ = _segment_edges(f.segment_start, d.lanes)
        segment = np.cumsum(first) - 1
        lanes = np.arange(d.lanes)
        x = lanes - np.maximum.accumulate(np.where(first, lanes, 0))

        def steps(counter: npt.NDArray[np.integer], stride: str) -> npt.NDArray[np.uint32]:
            return counter.astype(np.uint32) * np.uint32(getattr(f, stride))

        pixel = steps(segment, "image_stride") + steps(x, "pixel_stride")
        channel = steps(np.arange(groups * d.channels), "channel_stride").reshape(groups, 1, d.channels)
        row = steps(np.arange(first_row, first_row + rows), "row_stride") + np.uint32(f.index)
        return row[:, None, None, None] + channel[None] + pixel[None, None, :, None]

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
        words = memory.reshape(ROW_BANKS, f.images, blocks(rows), groups, bits, d.row_words)
        walked = mask
        if f.has(Flag.SKIP_ZERO):
            walked &= sum(1 << plane for plane in range(bits) if words[:, :, :, :, plane].any())
        words = words.transpose(1, 2, 0, 3, 4, 5).reshape(f.images, -1, groups, bits, d.row_words)[:, :rows]
        codes = packing.unpack_planes(words, bits, f.has(signed), mask)
        codes = codes.reshape(f.images, rows, groups, d.lanes, d.channels).transpose(0, 1, 3, 2, 4)
        return np.ascontiguousarray(codes).reshape(f.images, rows, d.lanes, groups * d.channels), walked

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
        statistics = _Statistics(out_groups * c)
        for i0, i1, y0, y1 in _chunks(images, rows, lanes * matrix.shape[0]):
            look = _columns_stride_2 if f.has(Flag.STRIDE_2) else _columns
            columns = look(a, i0, i1, y0, y1, f.segment_start, dtype)
            flat = columns.reshape(-1, matrix.shape[0])
            acc = (flat @ weights).astype(np.int64).reshape(i1 - i0, y1 - y0, lanes, out_groups, c)
            if form == OutputFormat.CODES:
                out.append(self._codes(f, acc, counts, i0 * rows + y0))
                continue
            if form == OutputFormat.STATISTICS:
                statistics.add(acc[:, :, : f.pixels].reshape(-1, out_groups * c))
                continue
            values = np.empty((i1 - i0, y1 - y0, out_groups * c + a_sum, lanes), dtype=np.int64)
            tiles = acc.transpose(0, 1, 3, 4, 2).reshape(i1 - i0, y1 - y0, out_groups * c, lanes)
            values[:, :, :c] = tiles[:, :, :c]
            values[:, :, c + a_sum :] = tiles[:, :, c:]
            if a_sum:
                values[:, :, c] = flat.sum(axis=1).reshape(i1 - i0, y1 - y0, lanes)
            out.append(packing.pack_integers(values, form == OutputFormat.INT64))
        if form == OutputFormat.STATISTICS:
            out.append(statistics.words())

    def _codes(self, f: Packet, acc: I64, counts: _Counts, first_row: int) -> U64:
        """Integer epilogue: int64 (images, rows, L, out_groups, C) -> row words in the order of a LOAD's payload.

        Args:
            first_row: number of rows that came before, over all images; only stochastic rounding asks.
        """
        c, out_groups, shift = self._design.channels, f.out_groups, f.shift
        entries = self._span(f, "E")
        v = acc * self._multiplier[entries].reshape(out_groups, c) + self._offset[entries].reshape(out_groups, c)
        if f.has(Flag.RELU):
            v = np.maximum(v, 0)
        if f.has(Flag.STOCHASTIC):
            images, rows = acc.shape[:2]
            indices = self._indices(f, images * rows, out_groups, first_row).transpose(0, 2, 1, 3)
            noise = numerics.fmix32(indices ^ np.uint32(f.key)).astype(np.int64)
            noise = noise >> (32 - shift) if shift < 32 else noise << (shift - 32)
            v = (v + noise.reshape(v.shape)) >> shift
        else:
            v = (v + (1 << shift >> 1)) >> shift
        low, high = numerics.code_limits(f.out_bits, f.has(Flag.OUT_SIGNED))
        q = np.clip(v, low, high)
        counts.saturated += int(np.count_nonzero(q != v))
        return packing.pack_rows(q.transpose(0, 1, 3, 2, 4), f.out_bits)

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


class _Statistics:
    """Sum, sum of squares and extremes of integers below 2**31, per channel."""

    def __init__(self, channels: int) -> None:
        self._total = np.zeros(channels, dtype=np.int64)
        self._squares = [0] * channels
        self._low = np.full(channels, np.iinfo(np.int64).max)
        self._high = np.full(channels, np.iinfo(np.int64).min)

    def add(self, values: I64) -> None:
        """Take in int64 (n, channels)."""
        self._total += values.sum(axis=0)
        square = values * values
        high, low = (square >> 32).sum(axis=0), (square & _MASK32).sum(axis=0)  # their sums fit 64 bits
        self._squares = [s + (int(h) << 32) + int(x) for s, h, x in zip(self._squares, high, low, strict=True)]
        self._low = np.minimum(self._low, values.min(axis=0))
        self._high = np.maximum(self._high, values.max(axis=0))

    def words(self) -> U64:
        """Result words."""
        return packing.pack_statistics(self._total, self._squares, self._low, self._high)


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
