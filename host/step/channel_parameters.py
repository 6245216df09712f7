"""Per-channel parameters of passes, in float64 from moments: the only arithmetic of a step that is not in integers.

A *unit* is the real value of a 1 in an integer of the epilogue.  Factors are integers of 18 bits with one shift per
pass; where a unit is free it follows from the rounded factor, so that rounding it costs no accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from host.epilogue import Entries, Moments
from host.step.passes import PassError
from host.step.recorded import Recorded, RecordedEntries, as_integer, exponent, ldexp, require, value_of
from hw.contract import INT32_LIMIT, MAX_SHIFT, OFFSET_BITS, OPERAND_SHIFT, VALUE_BITS, VALUE_OFFSET_BITS

#: float64, one or one per channel; integers among them are exact.  They may be recorded (:mod:`host.step.recorded`)
Numbers = Any

UNIT = 1 << OPERAND_SHIFT  #: times which the codes of operands count
GREATEST = (1 << VALUE_BITS - 1) - 1  #: of x, w and the factors
#: of w: offsets beyond their bits saturate w behind this shift, so that they may be clipped
LARGEST_VALUE_SHIFT = VALUE_OFFSET_BITS - VALUE_BITS - 2
_LARGEST_OFFSET = (1 << OFFSET_BITS - 1) - 1
_LARGEST_VALUE_OFFSET = (1 << VALUE_OFFSET_BITS - 1) - 1
#: of w where codes have their greatest value; what is above records how far a range was passed
PEAK = 1 << VALUE_BITS - 2
_SMALLEST = 5e-324  #: number that is positive
#: ratio of the least to the greatest factor of channels: a channel whose sums hardly differ gives up some of its bits
SPREAD = 256


@dataclass(frozen=True)
class ChannelMoments:
    """Real moments of every channel over a batch.

    Attributes:
        total, products: sums of a value, and of its products.
        least, greatest: extremes.
    """

    total: Numbers
    products: Numbers
    least: Numbers
    greatest: Numbers

    @classmethod
    def of(cls, parts: list[tuple[Moments, Numbers, Numbers]]) -> ChannelMoments:
        """From parts of a batch, added in their order.

        Args:
            parts: moments of integers, their units, and the units of their products.
        """
        total = products = 0.0
        least, greatest = np.inf, -np.inf
        for moments, unit, squared in parts:
            total = total + moments.total * unit
            products = products + moments.products * squared
            least, greatest = np.minimum(least, moments.least * unit), np.maximum(greatest, moments.greatest * unit)
        return cls(total, products, least, greatest)


def _fit(limit: float, *values: Numbers) -> Numbers:
    """The greatest shift that keeps ``values * 2**shift`` within a limit."""
    most = np.abs(values[0]).max()
    for more in values[1:]:
        most = np.maximum(most, np.abs(more).max())
    zero = most < _SMALLEST
    shift = exponent(limit / np.where(zero, limit, most)) - 1
    return np.where(zero, MAX_SHIFT, np.minimum(shift, MAX_SHIFT))


def integers(values: Numbers, shift: Numbers) -> Numbers:
    """``values * 2**shift`` to nearest even."""
    return np.rint(ldexp(values, shift))


@dataclass(frozen=True)
class Inner:
    """How x is made of sums: entries ``m``, ``b``, ``o``, their shift, and the unit of x per channel."""

    m: Numbers
    b: Numbers
    o: Numbers
    shift: Numbers
    unit: Numbers


def inner(
    sums: Numbers, unit: Numbers, *, offset: Numbers | None = None, added: Numbers | None = None, free: bool = True
) -> Inner:
    """Factors for x.

    Args:
        sums: unit of the exact sums, per channel.
        unit: wanted of x, per channel; larger where factors could not hold it.
        offset: real value that is added.
        added: unit of the added codes.
        free: x may have a slightly larger unit, for which the factors are exact.
    """
    least = sums if added is None else np.maximum(sums, added / UNIT)
    unit = np.maximum(unit, least / GREATEST)
    if offset is not None:
        unit = np.maximum(unit, np.abs(offset) / _LARGEST_OFFSET)
    factor = sums / unit
    beside = None if added is None else added / (UNIT * unit)
    shift = _fit(GREATEST, factor) if beside is None else _fit(GREATEST, factor, beside)
    if offset is not None:
        shift = np.minimum(shift, _fit(_LARGEST_OFFSET, offset / unit))
    if free:
        m = np.maximum(np.floor(ldexp(factor, shift)), 1.0)
        unit = ldexp(sums, shift) / m
    else:
        m = np.rint(ldexp(factor, shift))
    b = 0.0 if offset is None else integers(offset / unit, shift)
    o = 0.0 if added is None else integers(added / (UNIT * unit), shift)
    return Inner(m, b, o, as_integer(shift), unit)


def bounded(sums: Numbers, bound: Numbers, *, added: Numbers | None = None, added_top: int = 0) -> Inner:
    """Factors for x of which only a bound is known, so that it never saturates.

    Args:
        sums: unit of the exact sums, per channel.
        bound: greatest magnitude of the exact sums, per channel.
        added, added_top: unit and greatest magnitude of the added codes.
    """
    extra = 0.0 if added is None else added * added_top
    unit = np.maximum(sums * bound + extra, sums) / (GREATEST - 1)
    found = inner(sums, _spread(sums, unit, bound > 0), added=added)
    if added is not None:
        return found
    plain = bound.max() < GREATEST  # the sums as they are
    m, shift, unit = np.where(plain, 1.0, found.m), np.where(plain, 0, found.shift), np.where(plain, sums, found.unit)
    return Inner(m, 0.0, 0.0, as_integer(shift), unit)


def _spread(sums: Numbers, unit: Numbers, live: Numbers) -> Numbers:
    """Units, raised where a channel would take factors much larger than those of the ``live`` ones."""
    ratio = sums / unit
    return sums / np.minimum(ratio, SPREAD * np.where(live, ratio, np.inf).min())


def measured(sums: Numbers, peak: Numbers, shift: int, top: int, offset: Numbers | None = None, **more: Any) -> Inner:
    """Factors for x whose extremes are known: codes of x after ``shift`` have the greatest value where x has.

    Args:
        sums: unit of the exact sums, per channel.
        peak: greatest magnitude of the real value, per channel; 0 where it is always 0.
        shift, top: of the codes K, and their greatest value.
        offset, more: of :func:`inner`.
    """
    live = peak > 0
    least = np.where(live, peak, np.inf).min()
    least = np.where(least < np.inf, least, sums.max())
    unit = np.where(live, peak, least) / (top << shift)
    return inner(sums, _spread(sums, unit, live), offset=offset, **more)


@dataclass(frozen=True)
class Value:
    """How w is made of x: entries ``n``, ``c``, ``l`` and their shift."""

    n: Numbers
    c: Numbers
    l: Numbers  # noqa: E741
    shift: Numbers


def _too_large(most: float) -> PassError:
    return PassError(f"factors up to {most:g} do not fit 18 bits; training has diverged")


def value(factor: Numbers, unit: Numbers, *, offset: Numbers | None = None, side: Numbers | None = None) -> Value:
    """Factors for w.

    Args:
        factor: real value of w for a 1 in x, per channel.
        unit: of w.
        offset: real value that is added, per channel.
        side: real value of a 1 in the side codes.
    """
    n = factor / unit
    l = None if side is None else side / (UNIT * unit)  # noqa: E741
    shift = np.minimum(LARGEST_VALUE_SHIFT, _fit(GREATEST, n) if l is None else _fit(GREATEST, n, l))
    most = np.abs(n).max() if l is None else np.maximum(np.abs(n).max(), np.abs(l).max())
    require(shift > -1, _too_large, most)
    c: Numbers = 0.0
    if offset is not None:
        c = ldexp(offset / unit, shift)
        c = np.rint(np.minimum(np.maximum(c, -_LARGEST_VALUE_OFFSET), _LARGEST_VALUE_OFFSET))
    return Value(integers(n, shift), c, 0.0 if l is None else integers(l, shift), as_integer(shift))


def entries(x: Inner, w: Value | None = None) -> Entries:
    """Both together, as a packet carries them."""
    n, l, c = (0.0, 0.0, 0.0) if w is None else (w.n, w.l, w.c)  # noqa: E741
    numbers = x.m, x.o, n, l, x.b, c
    zero = np.zeros(len(x.unit))
    arrays = [zero + value_of(each) for each in numbers]
    if any(isinstance(each, Recorded) for each in numbers):
        m, o, n, l, b, c = arrays  # noqa: E741
        return RecordedEntries(m, o, n, l, b, c, numbers)
    return Entries(*arrays)


def or_one(top: Numbers) -> Numbers:
    """A greatest magnitude, 1 where it is zero."""
    return np.where(top < _SMALLEST, 1.0, top)


def check_bound(node: str, bound: Numbers) -> None:
    """Refuses sums that the epilogue does not take."""

    def error(most: float) -> PassError:
        return PassError(
            f"{node}: a sum may reach {most:.0f}, beyond 32 bits; give its operands fewer bits or it fewer channels"
        )

    most = bound.max()
    require(most < INT32_LIMIT, error, most)


def farthest(moments: Moments) -> Numbers:
    """Greatest magnitude of integers of all channels, at least 1."""
    return np.maximum(np.maximum(moments.greatest.max(), -moments.least.min()), 1.0)


def code_top(bits: int, signed: bool) -> int:
    """Greatest code that is used: symmetric where codes are signed."""
    return (1 << bits - signed) - 1


def code_shift(bits: int, signed: bool) -> int:
    """From w, whose peak is :data:`PEAK`, to codes."""
    return VALUE_BITS - 2 - bits + signed


def grid_scale(top: Numbers, bits: int, signed: bool) -> Numbers:
    """Real value of a code's 1, if the greatest code stands for ``top``."""
    return top / code_top(bits, signed)


def value_unit(top: Numbers, bits: int, signed: bool) -> Numbers:
    """Unit of w, if the greatest code stands for ``top``."""
    return grid_scale(top, bits, signed) * 2.0 ** -code_shift(bits, signed)
