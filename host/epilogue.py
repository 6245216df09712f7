"""The epilogue of a convolution to the bit: sums to codes, masks and moments, and the random numbers of its rounding.

Everything is int64 and exact.  Every array of elements is broadcast against ``acc``; the entries of channels, too, so
their caller gives them an axis (:meth:`Entries.along`).  docs/programs.md states the same arithmetic for packets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from host.arrays import I64, U32, U64, Array, Codes
from host.numerics import code_limits, fmix32
from hw.contract import (
    ENTRY_WORDS,
    GF_POLYNOMIAL,
    MULTIPLIER_BITS,
    OFFSET_BITS,
    OPERAND_SHIFT,
    VALUE_BITS,
    VALUE_OFFSET_BITS,
)

Bools = npt.NDArray[np.bool_]

RANDOM_BITS = 16  #: of the random number of an element


class EpilogueError(ValueError):
    """Settings or entries that no packet can state; the message names the value and its limits."""


_ENTRY_FIELDS = ("m", "o", "n", "l", "b", "c")
_ENTRY_BITS = (*[MULTIPLIER_BITS] * 4, OFFSET_BITS, VALUE_OFFSET_BITS)
#: least and greatest of each field of an entry, and the bits that it has in a word; one row for each field
_LIMITS = np.array([code_limits(n, True) for n in _ENTRY_BITS]).T[:, :, None]
_MASKS = np.array([(1 << n) - 1 for n in _ENTRY_BITS])[:, None]


@dataclass(frozen=True)
class Entries:
    """Parameters of channels: the entries of buffer E.

    Attributes:
        m, o, n, l: factors of the sum, of the added code, of x, and of the side code; 18-bit signed.
        b: added to ``acc * m``; 48-bit signed.
        c: added to ``x * n``; 40-bit signed.

    Raises:
        EpilogueError: a value that its field does not hold.
    """

    m: I64
    o: I64
    n: I64
    l: I64  # noqa: E741
    b: I64
    c: I64

    def __post_init__(self) -> None:
        arrays = [np.asarray(values, np.int64) for values in (self.m, self.o, self.n, self.l, self.b, self.c)]
        for name, values in zip(_ENTRY_FIELDS, arrays, strict=True):
            object.__setattr__(self, name, values)
        if all(values.shape == arrays[0].shape for values in arrays):
            table = np.array(arrays).reshape(len(arrays), -1)
            if not ((table < _LIMITS[0]) | (table > _LIMITS[1])).any():
                return
        for name, values, low, high in zip(_ENTRY_FIELDS, arrays, *_LIMITS[..., 0].tolist(), strict=True):
            if values.size and (int(values.min()) < low or int(values.max()) > high):
                raise EpilogueError(
                    f"entries {name} span {int(values.min())}..{int(values.max())}, outside {low}..{high} of "
                    f"{(high - low).bit_length()} signed bits; choose a smaller shift"
                )

    @classmethod
    def of(cls, channels: int, **values: npt.ArrayLike) -> Entries:
        """Entries of ``channels`` channels; fields that are not named are zero."""
        return cls(*(np.zeros(channels, np.int64) + np.asarray(values.get(f.name, 0)) for f in fields(cls)))

    @classmethod
    def from_words(cls, words: U64) -> Entries:
        """From words as LOAD brings them: uint64 (channels, 4)."""
        first, second, third = (words[:, i].astype(np.uint64) for i in range(3))
        m, o, n = (_signed(first >> np.uint64(MULTIPLIER_BITS * i), MULTIPLIER_BITS) for i in range(3))
        return cls(
            m, o, n, _signed(third >> np.uint64(VALUE_OFFSET_BITS), MULTIPLIER_BITS), _signed(second, OFFSET_BITS),
            _signed(third, VALUE_OFFSET_BITS),
        )  # fmt: skip

    def words(self) -> U64:
        """As LOAD brings them, the unused bits zero: uint64 (channels, 4)."""
        table = np.array([self.m, self.o, self.n, self.l, self.b, self.c])
        m, o, n, side, b, c = (table & _MASKS).view(np.uint64)
        words = np.zeros((len(m), ENTRY_WORDS), np.uint64)
        words[:, 0] = m | o << np.uint64(MULTIPLIER_BITS) | n << np.uint64(2 * MULTIPLIER_BITS)
        words[:, 1] = b
        words[:, 2] = c | side << np.uint64(VALUE_OFFSET_BITS)
        return words

    def along(self, axis: int, ndim: int) -> Entries:
        """The same, their one axis at ``axis`` of ``ndim``."""
        shape = [1] * ndim
        shape[axis] = -1
        return Entries(*(getattr(self, field.name).reshape(shape) for field in fields(self)))


def _signed(words: U64, bits: int) -> I64:
    return (words << np.uint64(64 - bits)).astype(np.int64) >> (64 - bits)


@dataclass(frozen=True)
class Epilogue:
    """Settings of an epilogue, named as the fields of a header.

    Attributes:
        shift, value_shift: of x and of w, 0..47.
        relu: w is not negative.
        out_bits, out_shift, out_signed: of the codes A, 1..16 bits.
        keep_bits, keep_shift: of the codes K of x, always signed; 0 bits: none.
        keep_mask: the mask ``w > 0`` leaves too.
        wide_bits, wide_shift: of the codes S, signed as A; 0 bits: none.
        stochastic: A and K are rounded at random; S never is.
    """

    shift: int = 0
    value_shift: int = 0
    relu: bool = False
    out_bits: int = 8
    out_shift: int = 0
    out_signed: bool = False
    keep_bits: int = 0
    keep_shift: int = 0
    keep_mask: bool = False
    wide_bits: int = 0
    wide_shift: int = 0
    stochastic: bool = False


class Outputs(NamedTuple):
    """What an element leaves behind; sections that a packet does not ask for are None.

    Attributes:
        a, k, s: codes, int64.
        mask: whether w is positive.
        w: the value before it is rounded, 18-bit signed.
        saturated: number of elements whose x saturated, plus those whose A was clamped.
    """

    a: I64
    k: I64 | None
    mask: Bools | None
    s: I64 | None
    w: I64
    saturated: int


class Moments(NamedTuple):
    """Of one channel each: sums of x and of x*f, least and greatest x; int64, one axis."""

    total: I64
    products: I64
    least: I64
    greatest: I64


def rshift(values: I64, shift: int) -> I64:
    """``values / 2**shift`` rounded to nearest, halves up."""
    return values + (1 << shift >> 1) >> shift


def saturate(values: I64, bits: int = VALUE_BITS, signed: bool = True) -> I64:
    """The nearest numbers that ``bits`` bits hold."""
    return np.clip(values, *code_limits(bits, signed))


def inner(
    acc: I64, entries: Entries, shift: int, *, added: Codes | None = None, mask: Array | None = None
) -> tuple[I64, int]:
    """x of every element: ``sat18(rshift(acc*m + b + 512*q*o, shift))``, and how many saturated.

    Args:
        acc: exact sums, below 2**31 in magnitude.
        entries: broadcastable against ``acc``.
        added: q, codes of at most 8 bits, signed.
        mask: elements whose mask is 0 are 0.
    """
    p = acc.astype(np.int64) * entries.m + entries.b
    if added is not None:
        p = p + (added.astype(np.int64) * entries.o << OPERAND_SHIFT)
    if mask is not None:
        p = np.where(mask, p, 0)
    exact = rshift(p, shift)
    x = saturate(exact)
    return x, int(np.count_nonzero(x != exact))


def value(x: I64, entries: Entries, value_shift: int, *, side: Codes | None = None, relu: bool = False) -> I64:
    """w of every element: ``sat18(rshift(x*n + c + 512*k*l, value_shift))``, its positive part with ``relu``.

    Args:
        x: of :func:`inner`.
        side: k, codes of at most 8 bits.
    """
    v = x * entries.n + entries.c
    if side is not None:
        v = v + (side.astype(np.int64) * entries.l << OPERAND_SHIFT)
    w = saturate(rshift(v, value_shift))
    return np.maximum(w, 0) if relu else w


def _codes(values: I64, bits: int, shift: int, signed: bool, random: U32 | None) -> tuple[I64, int]:
    """``values / 2**shift`` as codes, to nearest or at random, and how many were clamped."""
    exact = (
        rshift(values, shift)
        if random is None
        else values + (random >> (RANDOM_BITS - shift)).astype(np.int64) >> shift
    )
    codes = saturate(exact, bits, signed)
    return codes, int(np.count_nonzero(codes != exact))


def finish(
    acc: I64,
    entries: Entries,
    settings: Epilogue,
    *,
    side: Codes | None = None,
    mask: Array | None = None,
    added: Codes | None = None,
    random: U32 | None = None,
) -> Outputs:
    """All that a packet of format CODES makes of its sums.

    Args:
        acc: exact sums, int.
        entries: broadcastable against ``acc``.
        settings: of the packet.
        side, mask, added: k, its mask and q, shaped as ``acc``; None where the packet has none.
        random: of :func:`random_numbers`, shaped as ``acc``; only with stochastic rounding.
    """
    if settings.stochastic != (random is not None):
        raise EpilogueError("stochastic rounding takes random numbers, and rounding to nearest takes none")
    x, saturated = inner(acc, entries, settings.shift, added=added, mask=mask)
    w = value(x, entries, settings.value_shift, side=side, relu=settings.relu)
    a, clamped = _codes(w, settings.out_bits, settings.out_shift, settings.out_signed, random)
    k = s = None
    if settings.keep_bits:
        turned = None if random is None else reverse_bits(random)
        k, _ = _codes(x, settings.keep_bits, settings.keep_shift, True, turned)
    if settings.wide_bits:
        s, _ = _codes(w, settings.wide_bits, settings.wide_shift, settings.out_signed, None)
    return Outputs(a, k, w > 0 if settings.keep_mask else None, s, w, saturated + clamped)


def moments(x: I64, factor: Codes | None = None, *, axis: int = 1) -> Moments:
    """Moments of every index of ``axis``.

    Args:
        x: of :func:`inner`, or w; not empty.
        factor: f, the side codes; None: x itself.
    """
    others = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    products = x * (x if factor is None else factor.astype(np.int64))
    return Moments(x.sum(others), products.sum(others), x.min(others), x.max(others))


def times_alpha(values: U32) -> U32:
    """``alpha * values`` in GF(2**16)."""
    one, top = np.uint32(1), np.uint32(RANDOM_BITS - 1)
    return values << one ^ (values >> top) * np.uint32(GF_POLYNOMIAL)


def _multiples(words: U32) -> Iterator[U32]:
    while True:
        yield words
        words = times_alpha(words)


def random_rows(indices: U32, key: int, pixels: int, factor: int = 1) -> U32:
    """Random numbers of the pixels of rows: ``lo ^ factor * alpha**x * hi`` with lo, hi the halves of the row's hash.

    Any two pixels of a row have independent numbers, each uniform over 16 bits.

    Args:
        indices: of the rows, uint32.
        key: of the packet.
        pixels: of a row.
        factor: alpha**x0 where the row's first pixel is pixel x0 of its tensor: :func:`hw.plan.conv_packets.power_of_two`.

    Returns:
        uint32 of the shape of ``indices``, and ``pixels``.
    """
    h = fmix32(np.asarray(indices, np.uint32) ^ np.uint32(key))
    low, start = h & np.uint32(0xFFFF), h >> np.uint32(16)
    high, rest = np.zeros_like(start), factor
    for multiple in _multiples(start):
        if not rest:
            break
        if rest & 1:
            high = high ^ multiple
        rest >>= 1
    out = np.empty((*h.shape, pixels), np.uint32)
    for x, multiple in zip(range(pixels), _multiples(high), strict=False):
        out[..., x] = low ^ multiple
    return out


def random_numbers(shape: tuple[int, int, int, int], key: int) -> U32:
    """Random numbers of a whole tensor (N, C, H, W): row (n, c, y) has the index ``(n*C + c)*H + y``."""
    n, c, height, width = shape
    rows = np.arange(n * c * height, dtype=np.uint64).astype(np.uint32)
    return random_rows(rows.reshape(n, c, height), key, width)


def reverse_bits(random: U32) -> U32:
    """Sixteen bits in the opposite order."""
    x = random
    for mask, by in ((0x5555, 1), (0x3333, 2), (0x0F0F, 4), (0x00FF, 8)):
        low, step = np.uint32(mask), np.uint32(by)
        x = (x & low) << step | (x >> step) & low
    return x
