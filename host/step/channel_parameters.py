"""Per-channel parameters of passes, in float64 from moments: the only arithmetic of a step that is not in integers.

A *unit* is the real value of a 1 in an integer of the epilogue.  Factors are integers of 18 bits with one shift per
pass; where a unit is free it follows from the rounded factor, so that rounding it costs no accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from host.arrays import F64, I64
from host.epilogue import Bools, Entries, Moments
from host.step.passes import PassError
from hw.contract import MAX_SHIFT, OFFSET_BITS, OPERAND_SHIFT, VALUE_BITS, VALUE_OFFSET_BITS

UNIT = 1 << OPERAND_SHIFT  #: times which the codes of operands count
GREATEST = (1 << VALUE_BITS - 1) - 1  #: of x, w and the factors
#: of w: offsets beyond their bits saturate w behind this shift, so that they may be clipped
LARGEST_VALUE_SHIFT = VALUE_OFFSET_BITS - VALUE_BITS - 2
_LARGEST_OFFSET = (1 << OFFSET_BITS - 1) - 1
_LARGEST_VALUE_OFFSET = (1 << VALUE_OFFSET_BITS - 1) - 1
#: of w where codes have their greatest value; what is above records how far a range was passed
PEAK = 1 << VALUE_BITS - 2
#: ratio of the least to the greatest factor of channels: a channel whose sums hardly differ gives up some of its bits
SPREAD = 256


@dataclass(frozen=True)
class ChannelMoments:
    """Real moments of every channel over a batch, float64.

    Attributes:
        total, products: sums of a value, and of its products.
        least, greatest: extremes.
    """

    total: F64
    products: F64
    least: F64
    greatest: F64

    @classmethod
    def of(cls, parts: list[tuple[Moments, F64, F64]]) -> ChannelMoments:
        """From parts of a batch, added in their order.

        Args:
            parts: moments of integers, their units, and the units of their products.
        """
        total, products = np.zeros(len(parts[0][1])), np.zeros(len(parts[0][1]))
        for moments, unit, squared in parts:
            total = total + moments.total * unit
            products = products + moments.products * squared
        least = np.minimum.reduce([moments.least * unit for moments, unit, _ in parts])
        greatest = np.maximum.reduce([moments.greatest * unit for moments, unit, _ in parts])
        return cls(total, products, least, greatest)


def _fit(values: F64, limit: float) -> int:
    """The greatest shift that keeps ``values * 2**shift`` within a limit."""
    most = float(np.max(np.abs(values), initial=0.0))
    if most == 0.0:
        return MAX_SHIFT
    return min(MAX_SHIFT, math.frexp(limit / most)[1] - 1)


def integers(values: F64, shift: int) -> I64:
    """``values * 2**shift`` to nearest even."""
    return np.rint(np.ldexp(values, shift)).astype(np.int64)


@dataclass(frozen=True)
class Inner:
    """How x is made of sums: entries ``m``, ``b``, ``o``, their shift, and the unit of x per channel."""

    m: I64
    b: I64
    o: I64
    shift: int
    unit: F64


def inner(sums: F64, unit: F64, *, offset: F64 | None = None, added: F64 | None = None, free: bool = True) -> Inner:
    """Factors for x.

    Args:
        sums: unit of the exact sums, per channel.
        unit: wanted of x, per channel; larger where factors could not hold it.
        offset: real value that is added.
        added: unit of the added codes.
        free: x may have a slightly larger unit, for which the factors are exact.
    """
    offset = np.zeros_like(sums) if offset is None else offset
    added = np.zeros_like(sums) if added is None else added
    unit = np.maximum(unit, np.maximum(sums, added / UNIT) / GREATEST)
    unit = np.maximum(unit, np.abs(offset) / _LARGEST_OFFSET)
    factors = np.stack([sums / unit, added / (UNIT * unit)])
    shift = min(_fit(factors, GREATEST), _fit(offset / unit, _LARGEST_OFFSET))
    if free:
        m = np.maximum(np.floor(np.ldexp(sums / unit, shift)), 1.0)
        unit = np.ldexp(sums, shift) / m
    else:
        m = np.rint(np.ldexp(sums / unit, shift))
    return Inner(
        m.astype(np.int64), integers(offset / unit, shift), integers(added / (UNIT * unit), shift), shift, unit
    )


def bounded(sums: F64, bound: F64, *, added: F64 | None = None, added_top: int = 0) -> Inner:
    """Factors for x of which only a bound is known, so that it never saturates.

    Args:
        sums: unit of the exact sums, per channel.
        bound: greatest magnitude of the exact sums, per channel.
        added, added_top: unit and greatest magnitude of the added codes.
    """
    extra = np.zeros_like(sums) if added is None else added * added_top
    unit = np.maximum(sums * bound + extra, sums) / (GREATEST - 1)
    if added is None and (bound < GREATEST).all():  # the sums as they are
        zero = np.zeros(len(sums), np.int64)
        return Inner(zero + 1, zero, zero, 0, sums.copy())
    return inner(sums, _spread(sums, unit, bound > 0), added=added)


def _spread(sums: F64, unit: F64, live: Bools) -> F64:
    """Units, raised where a channel would take factors much larger than those of the ``live`` ones."""
    ratio = sums / unit
    return np.asarray(sums / np.minimum(ratio, SPREAD * ratio[live].min(initial=np.inf)))


def measured(sums: F64, peak: F64, shift: int, top: int, offset: F64 | None = None, **more: F64 | bool | None) -> Inner:
    """Factors for x whose extremes are known: codes of x after ``shift`` have the greatest value where x has.

    Args:
        sums: unit of the exact sums, per channel.
        peak: greatest magnitude of the real value, per channel; 0 where it is always 0.
        shift, top: of the codes K, and their greatest value.
        offset, more: of :func:`inner`.
    """
    least = float(peak[peak > 0].min(initial=np.inf))
    if not math.isfinite(least):
        least = float(sums.max())
    unit = np.where(peak > 0, peak, least) / (top << shift)
    return inner(sums, _spread(sums, unit, peak > 0), offset=offset, **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Value:
    """How w is made of x: entries ``n``, ``c``, ``l`` and their shift."""

    n: I64
    c: I64
    l: I64  # noqa: E741
    shift: int


def value(factor: F64, offset: F64, side: F64, unit: float) -> Value:
    """Factors for w.

    Args:
        factor: real value of w for a 1 in x, per channel.
        offset: real value that is added.
        side: real value of a 1 in the side codes.
        unit: of w.
    """
    n, c, l = factor / unit, offset / unit, side / (UNIT * unit)  # noqa: E741
    shift = min(LARGEST_VALUE_SHIFT, _fit(np.stack([n, l]), GREATEST))
    if shift < 0:
        raise PassError(f"factors up to {np.abs([n, l]).max():g} do not fit 18 bits; training has diverged")
    offsets = np.clip(np.ldexp(c, shift), -_LARGEST_VALUE_OFFSET, _LARGEST_VALUE_OFFSET)
    return Value(integers(n, shift), integers(offsets, 0), integers(l, shift), shift)


def entries(x: Inner, w: Value | None = None) -> Entries:
    """Both together, as a packet carries them."""
    zero = np.zeros_like(x.m)
    return Entries(x.m, x.o, zero, zero, x.b, zero) if w is None else Entries(x.m, x.o, w.n, w.l, x.b, w.c)


def code_top(bits: int, signed: bool) -> int:
    """Greatest code that is used: symmetric where codes are signed."""
    return (1 << bits - signed) - 1


def code_shift(bits: int, signed: bool) -> int:
    """From w, whose peak is :data:`PEAK`, to codes."""
    return VALUE_BITS - 2 - bits + signed


def grid_scale(top: float, bits: int, signed: bool) -> float:
    """Real value of a code's 1, if the greatest code stands for ``top``."""
    return top / code_top(bits, signed)


def value_unit(top: float, bits: int, signed: bool) -> float:
    """Unit of w, if the greatest code stands for ``top``."""
    return math.ldexp(grid_scale(top, bits, signed), -code_shift(bits, signed))
