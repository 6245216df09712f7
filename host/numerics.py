"""Arithmetic that every device shares: the hash behind random numbers, ranges of codes, and the quantizer.

All of it is NumPy on single precision, one IEEE operation at a time, so that codes agree to the bit everywhere.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from host.arrays import F32, I32, U32, Array, Codes

SMALLEST_NORMAL = np.float32(2.0**-126)
_UNIT = 2.0**-24
_WORD = 0xFFFFFFFF
_Words = TypeVar("_Words", int, U32)


def ceil_div(a: int, b: int) -> int:
    """The quotient of two integers, rounded up; ``b`` is positive."""
    return -(-a // b)


def fmix32(h: _Words) -> _Words:
    """MurmurHash3's 32-bit finalizer, of an integer below 2**32 or of every element of an array.

    It is a bijection on 32-bit words in which every input bit stirs every output bit.
    """
    x: Any = h
    x = x ^ x >> 16
    x = x * 0x85EBCA6B & _WORD
    x = x ^ x >> 13
    x = x * 0xC2B2AE35 & _WORD
    return x ^ x >> 16


def derive_key(*words: int) -> int:
    """A 32-bit key from a list of counters such as (seed, step, layer): a chain of :func:`fmix32`, so reproducible."""
    key = 0x9E3779B9
    for word in words:
        for half in (word & _WORD, word >> 32 & _WORD):
            key = fmix32(key ^ half) + 0x9E3779B9 & _WORD
    return fmix32(key)


def code_limits(bits: int, signed: bool) -> tuple[int, int]:
    """Least and greatest code of a precision."""
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def check_codes(codes: Codes, bits: int, signed: bool, what: str = "codes") -> None:
    """Refuse codes that ``bits`` bits do not hold.

    Raises:
        ValueError: naming the span found and the span allowed.
    """
    low, high = code_limits(bits, signed)
    if codes.size and (int(codes.min()) < low or int(codes.max()) > high):
        raise ValueError(
            f"{what} span {int(codes.min())}..{int(codes.max())}, outside {low}..{high} of {bits} "
            f"{'signed' if signed else 'unsigned'} bits; quantize with the grid that is passed"
        )


def flush(x: F32) -> F32:
    """``x`` with subnormal values replaced by zero."""
    return np.where(np.abs(x) < SMALLEST_NORMAL, np.float32(0), x)


def tree_sum_of_rows(rows: Any) -> Any:
    """Sum over the leading axis of float64, a NumPy array or a tensor, which is overwritten; in an order that is part of
    the definition: the two halves of the list are added element by element, then the halves of that, until one is left
    (the middle element of an odd list waits)."""
    n = len(rows)
    while n > 1:
        half = (n + 1) // 2
        rows[: n - half] += rows[half:n]
        n = half
    return rows[:1].sum(0)  # of one row, or of none


def running_mean(old: Any, new: Any, share: float) -> Any:
    """``share * old + (1 - share) * new`` in single precision, every operation rounded: of NumPy arrays or of tensors."""
    return old * np.float32(share) + new * np.float32(1 - share)


def quantize(
    x: F32,
    zero: Array | np.float32,
    reciprocal: Array | np.float32,
    bits: int,
    signed: bool,
    key: int | None = None,
    indices: U32 | None = None,
) -> tuple[I32, int]:
    """The quantizer, the same bit for bit wherever there is one: finite float32 values -> int32 codes of the same shape, and number clamped.

    Args:
        x: finite values.
        zero, reciprocal: z and r, finite, broadcastable against x.
        key: of the stochastic rounding, or None for rounding to nearest even.
        indices: random index of each element, uint32 of x's shape; only with ``key``.
    """
    low, high = code_limits(bits, signed)
    z, r = flush(np.asarray(zero, dtype=np.float32)), flush(np.asarray(reciprocal, dtype=np.float32))
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        difference = flush(flush(x) - z)
        t = flush(difference * r)
        if not r.all():  # an overflowed difference times a zero reciprocal is zero, not NaN: zero wins
            t = np.where(r == 0, np.float32(0), t)
        if key is None:
            q = np.rint(t)
        else:
            assert indices is not None
            # float64 holds the sum, or rounds it on the same side of every integer
            u = (fmix32(indices ^ np.uint32(key)) >> 8).astype(np.float64) * _UNIT
            q = np.floor(t + u)
    clamped = np.clip(q, np.float32(low), np.float32(high))
    return clamped.astype(np.int32), int(np.count_nonzero(clamped != q))
