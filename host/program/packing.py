"""Between arrays and stream words: bit planes, weights, results.

Shapes use the names of docs/programs.md: C channels per group, L pixels per virtual row, R words per row word.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from host.arrays import I32, I64, U64, Codes
from host.epilogue import Moments
from hw.contract import MOMENT_WORDS, TAPS, Flag
from hw.design import Design
from hw.packet import Packet

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


class SectionWords(NamedTuple):
    """Results of a CODES packet as words, uint64 (words,); each section in the order of a LOAD's payload.

    Attributes:
        out: of the section OUT, ``out_bits`` planes.
        side: of KEEP with the mask on top, what a later packet loads as SIDE; empty without.
        wide: of the section WIDE; empty without.
        moments: with RECORDS; empty without.
    """

    out: U64
    side: U64
    wide: U64
    moments: U64


class Sections(NamedTuple):
    """Results of a CODES packet as arrays (images, rows, out_groups, L, C); None where the packet has none.

    Attributes:
        out, keep, wide: codes of the sections, integers.
        mask: of the positive values, bool.
        moments: of each output channel.
    """

    out: Codes
    keep: Codes | None = None
    mask: npt.NDArray[np.bool_] | None = None
    wide: Codes | None = None
    moments: Moments | None = None


def split_sections(words: U64, design: Design, packet: Packet) -> SectionWords:
    """Sections of a CODES packet's results.

    Args:
        words: uint64 (packet.result_words(design),).

    Raises:
        ValueError: another number of words.
    """
    if words.size != (wanted := packet.result_words(design)):
        raise ValueError(f"the packet sends {wanted} words, not {words.size}; pass the range that the builder returned")
    moments = packet.out_groups * design.channels * MOMENT_WORDS if packet.has_moments else 0
    tiles = packet.images * packet.rows * packet.out_groups
    planes = words[: words.size - moments].reshape(tiles, packet.section_planes, design.row_words)
    side = packet.out_bits + packet.keep_bits + packet.has(Flag.KEEP_MASK)
    return SectionWords(
        out=planes[:, : packet.out_bits].reshape(-1),
        side=planes[:, packet.out_bits : side].reshape(-1),
        wide=planes[:, side:].reshape(-1),
        moments=words[words.size - moments :],
    )


def unpack_sections(words: U64, design: Design, packet: Packet) -> Sections:
    """Results of a CODES packet as arrays; see :func:`split_sections`."""
    parts = split_sections(words, design, packet)
    shape = design, packet.images, packet.rows, packet.out_groups
    signed, keep, masked = packet.has(Flag.OUT_SIGNED), packet.keep_bits, packet.has(Flag.KEEP_MASK)
    side = unpack_rows(parts.side, *shape, keep + masked, False) if keep + masked else None
    return Sections(
        out=unpack_rows(parts.out, *shape, packet.out_bits, signed),
        keep=_signed(side, keep) if side is not None and keep else None,
        mask=side >> keep == 1 if side is not None and masked else None,
        wide=unpack_rows(parts.wide, *shape, packet.wide_bits, signed) if packet.wide_bits else None,
        moments=unpack_moments(parts.moments) if packet.has_moments else None,
    )


def _signed(codes: I32, bits: int) -> I32:
    """The low ``bits`` bits of codes as two's complement."""
    return codes << 32 - bits >> 32 - bits


def pack_sections(sections: Sections, packet: Packet) -> U64:
    """Result words of a CODES packet, inverse of :func:`unpack_sections`."""
    planes = [_tile_planes(sections.out, packet.out_bits)]
    if sections.keep is not None:
        planes.append(_tile_planes(sections.keep, packet.keep_bits))
    if sections.mask is not None:
        planes.append(_tile_planes(sections.mask, 1))
    if sections.wide is not None:
        planes.append(_tile_planes(sections.wide, packet.wide_bits))
    words = np.concatenate(planes, axis=-2).reshape(-1)
    return words if sections.moments is None else np.concatenate([words, pack_moments(sections.moments)])


def _tile_planes(codes: Codes | npt.NDArray[np.bool_], bits: int) -> U64:
    """Planes (images, rows, groups, bits, R) of codes (images, rows, groups, L, C)."""
    return pack_planes(codes.reshape(*codes.shape[:3], -1).astype(np.int64), bits)


def pack_moments(moments: Moments) -> U64:
    """Result words of moments, three for each channel."""
    out = np.empty((moments.total.size, MOMENT_WORDS), dtype=np.uint64)
    out[:, 0] = moments.total.view(np.uint64)
    out[:, 1] = moments.products.view(np.uint64)
    out[:, 2] = (moments.greatest << 32 | moments.least & 0xFFFFFFFF).view(np.uint64)
    return out.reshape(-1)


def unpack_moments(words: U64) -> Moments:
    """Inverse of :func:`pack_moments`: int64 (channels,) each."""
    table = np.ascontiguousarray(words.reshape(-1, MOMENT_WORDS)).view(np.int64)
    extremes = np.ascontiguousarray(table[:, 2]).view("<i4").astype(np.int64).reshape(-1, 2)
    return Moments(table[:, 0].copy(), table[:, 1].copy(), extremes[:, 0], extremes[:, 1])


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
