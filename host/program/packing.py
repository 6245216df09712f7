"""Between arrays and stream words: bit planes, weights, results.

Shapes use the names of docs/programs.md: C channels per group, L pixels per virtual row, R words per row word.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from host.arrays import I32, I64, U64, Codes
from hw.contract import TAPS
from hw.design import Design
from hw.packet import STATISTICS_WORDS

# -- bit planes -----------------------------------------------------------------------------------------------------


def pack_planes(codes: Codes, bits: int) -> U64:
    """Bit planes of codes: (..., n) with n a multiple of 64 -> uint64 (..., bits, n/64), plane 0 the least significant.

    Element i of a plane is bit i of the words, low word first.  Negative codes give their two's complement planes.
    """
    u = np.ascontiguousarray(codes).astype(np.uint16)  # wraps negative codes to two's complement
    out = np.empty((*u.shape[:-1], bits, u.shape[-1] // 64), dtype=np.uint64)
    for i in range(bits):
        plane = (u >> np.uint16(i)).astype(np.uint8) & np.uint8(1)
        out[..., i, :] = np.packbits(plane, axis=-1, bitorder="little").view("<u8")
    return out


def unpack_planes(words: U64, bits: int, signed: bool, mask: int | None = None) -> I32:
    """Codes of bit planes: uint64 (..., bits, n/64) -> int32 (..., n).  Planes masked by a 0 count as zero."""
    mask = (1 << bits) - 1 if mask is None else mask
    shape = (*words.shape[:-2], words.shape[-1] * 64)
    halves: dict[int, npt.NDArray[np.uint8]] = {}
    sign: npt.NDArray[np.uint8] | None = None
    for i in range(bits):
        if not mask >> i & 1:
            continue
        raw = np.ascontiguousarray(words[..., i, :]).view(np.uint8)
        plane = np.unpackbits(raw, axis=-1, bitorder="little")
        if signed and i == bits - 1:
            sign = plane
            continue
        half = halves.get(i // 8)
        if half is None:
            halves[i // 8] = plane << np.uint8(i % 8)
        else:
            half |= plane << np.uint8(i % 8)
    out = np.zeros(shape, dtype=np.int32)
    for index, half in halves.items():
        out += half.astype(np.int32) << (8 * index)
    if sign is not None:
        out -= sign.astype(np.int32) << (bits - 1)
    return out


# -- tensors --------------------------------------------------------------------------------------------------------


def pack_rows(codes: Codes, bits: int) -> U64:
    """Row words of virtual images, in payload order: codes (images, rows, groups, L, C) -> uint64 (words,)."""
    images, rows, groups, lanes, channels = codes.shape
    return pack_planes(codes.reshape(images, rows, groups, lanes * channels), bits).reshape(-1)


def unpack_rows(words: U64, design: Design, images: int, rows: int, groups: int, bits: int, signed: bool) -> I32:
    """Codes of row words, as a LOAD's payload or a CODES result holds them: -> int32 (images, rows, groups, L, C)."""
    planes = words.reshape(images, rows, groups, bits, design.row_words)
    codes = unpack_planes(planes, bits, signed)
    return codes.reshape(images, rows, groups, design.lanes, design.channels)


def pack_weights(codes: Codes, bits: int, design: Design) -> U64:
    """Weight words: codes (out_groups, groups, C out, 9 taps, C in) -> uint64 (entries, weight_words)."""
    out_groups, groups = codes.shape[:2]
    size = design.channels * design.dot_bits
    padded = np.zeros((out_groups, groups, design.weight_words * 64), dtype=np.int64)
    padded[..., :size] = codes.reshape(out_groups, groups, size)
    return pack_planes(padded, bits).reshape(out_groups * groups * bits, design.weight_words)


def unpack_weights(
    words: U64, design: Design, out_groups: int, groups: int, bits: int, signed: bool, mask: int | None = None
) -> I32:
    """Inverse of :func:`pack_weights`: int32 (out_groups, groups, C out, 9, C in); padding bits are ignored."""
    c = design.channels
    planes = words.reshape(out_groups, groups, bits, design.weight_words)
    codes = unpack_planes(planes, bits, signed, mask)[..., : c * design.dot_bits]
    return codes.reshape(out_groups, groups, c, TAPS, c)


def pack_epilogue(multipliers: Codes, offsets: Codes) -> U64:
    """LOAD E payload: signed 18-bit multipliers and signed 48-bit offsets, both (n,) -> uint64 (2n,).

    Raises:
        ValueError: a number that does not fit.
    """
    for name, values, bits in (("multiplier", multipliers, 18), ("offset", offsets, 48)):
        limit = 1 << (bits - 1)
        if values.size and (int(values.min()) < -limit or int(values.max()) >= limit):
            raise ValueError(f"an epilogue {name} exceeds {bits} signed bits; lower the scale or raise the shift")
    out = np.empty((multipliers.size, 2), dtype=np.uint64)
    out[:, 0] = multipliers.astype(np.int64).view(np.uint64)
    out[:, 1] = offsets.astype(np.int64).view(np.uint64)
    return out.reshape(-1)


def sign_extend(values: U64, bits: int) -> I64:
    """The low ``bits`` bits of each word as a signed number, int64."""
    shift = 64 - bits
    return (values << np.uint64(shift)).view(np.int64) >> np.int64(shift)


# -- results --------------------------------------------------------------------------------------------------------


def pack_integers(values: I64, wide: bool) -> U64:
    """Result words of integers in C order: 64-bit words if ``wide``, else two 32-bit integers per word."""
    if wide:
        return np.ascontiguousarray(values, dtype="<i8").reshape(-1).view("<u8")
    return np.ascontiguousarray(values.astype("<i4")).reshape(-1).view("<u8")


def unpack_integers(words: U64, wide: bool) -> Codes:
    """Inverse of :func:`pack_integers`: int64 (words,) if ``wide``, else int32 (2 * words,)."""
    return np.ascontiguousarray(words, dtype="<u8").view("<i8" if wide else "<i4")


def unpack_conv(
    words: U64, design: Design, images: int, rows: int, out_groups: int, wide: bool, a_sum: bool
) -> tuple[Codes, Codes | None]:
    """Result of an INT32 or INT64 CONV: accumulators (images, rows, out_groups*C, L), and a_sum (images, rows, L)."""
    c, lanes = design.channels, design.lanes
    flat = unpack_integers(words, wide).reshape(images, rows, out_groups * c + a_sum, lanes)
    if not a_sum:
        return flat, None
    return np.concatenate([flat[:, :, :c], flat[:, :, c + 1 :]], axis=2), flat[:, :, c]


def pack_statistics(totals: I64, squares: list[int], low: I64, high: I64) -> U64:
    """Result words of STATISTICS: per channel sum, sum of squares (any size below 2**128), least and greatest."""
    out = np.empty((totals.size, STATISTICS_WORDS), dtype=np.uint64)
    out[:, 0] = totals.view(np.uint64)
    out[:, 1] = [s & 0xFFFFFFFFFFFFFFFF for s in squares]
    out[:, 2] = [s >> 64 for s in squares]
    out[:, 3] = (high << 32 | low & 0xFFFFFFFF).view(np.uint64)
    return out.reshape(-1)


def unpack_statistics(words: U64) -> tuple[I64, list[int], I64, I64]:
    """Inverse of :func:`pack_statistics`: sum, sum of squares (Python integers), least, greatest; each per channel."""
    table = words.reshape(-1, STATISTICS_WORDS)
    squares = [int(low) | int(high) << 64 for low, high in zip(table[:, 1], table[:, 2], strict=True)]
    extremes = np.ascontiguousarray(table[:, 3]).view("<i4").astype(np.int64).reshape(-1, 2)
    return table[:, 0].copy().view(np.int64), squares, extremes[:, 0], extremes[:, 1]


def unpack_entries(words: U64, design: Design, entries: int, wide: bool) -> I64:
    """Result of a READ: int64 (entries, C)."""
    return unpack_integers(words, wide).astype(np.int64).reshape(entries, design.channels)


def gradient_tiles(entries: I64, design: Design, out_groups: int, groups: int) -> tuple[I64, I64]:
    """Accumulator entries of one WGRAD as arrays; ``groups`` includes the ONES group.

    Args:
        entries: int64 (out_groups * groups * T * (C+1), C) for T taps.

    Returns:
        dot, int64 (out_groups*C, groups*C, T), and sum, int64 (groups*C, T), of output group 0; taps in rising order.
    """
    c = design.channels
    tiles = entries.reshape(out_groups, groups, -1, c + 1, c)
    dot = tiles[:, :, :, :c].transpose(0, 3, 1, 4, 2).reshape(out_groups * c, groups * c, -1)
    return dot, tiles[0, :, :, c].transpose(0, 2, 1).reshape(groups * c, -1)
