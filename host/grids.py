"""From real arrays to codes: ranges, affine grids over them, and the codes of operands."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from host.arrays import F32, I64
from host.numerics import SMALLEST_NORMAL, check_codes, flush, quantize
from host.operands import Grid, Operand

#: Scales whose reciprocals are normal single-precision numbers.
SMALLEST_SCALE, LARGEST_SCALE = SMALLEST_NORMAL, np.float32(2.0**126)


def extremes(x: F32, axis: int | None = None) -> tuple[F32, F32]:
    """Minimum and range of ``x`` over everything, or per index of ``axis``; float32, subnormals flushed.

    Raises:
        ValueError: NaN, infinity or a range beyond float32.
    """
    others = tuple(i for i in range(x.ndim) if i != axis) if axis is not None else None
    low, high = flush(np.asarray(x.min(others))), flush(np.asarray(x.max(others)))
    with np.errstate(over="ignore", invalid="ignore"):
        span = high - low
    if not np.isfinite(span).all():
        raise ValueError(
            f"a tensor of shape {x.shape} holds NaN or infinity, or a range beyond float32; training has diverged: "
            "lower the learning rate or raise the precision"
        )
    return low.astype(np.float32), flush(span).astype(np.float32)


def check_width(bits: int) -> None:
    """Refuses widths that no code has.

    Raises:
        ValueError: out of 1..16.
    """
    if not 1 <= bits <= 16:
        raise ValueError(
            f"cannot quantize to {bits} bits: a code has 1 to 16; leave the operand unquantized (0) instead"
        )


def grid_from_range(
    low: F32, span: F32, bits: int, key: int | None = None, smallest_scale: np.float32 = SMALLEST_SCALE
) -> Grid:
    """The affine grid of ``bits`` bits over ``[low, low + span]`` (float32, shape () or (C,)).

    Args:
        key: of stochastic rounding; None rounds to nearest even.
        smallest_scale: what the scale of a tiny range becomes.

    Raises:
        ValueError: if ``bits`` is out of 1..16 or the scale exceeds 2**126, where its reciprocal would be subnormal.
    """
    check_width(bits)
    scale = np.maximum(span / np.float32((1 << bits) - 1), smallest_scale)
    if (scale > LARGEST_SCALE).any():
        raise ValueError(
            f"range {span.max():g} is too large for {bits} bits (scale above 2**126), training has diverged; lower the "
            "learning rate or rescale the tensor"
        )
    return Grid(bits, False, scale, low, key)


def weight_operand(weight: F32, bits: int, axis: int) -> Operand:
    """A weight (O, I, kh, kw) as codes on one grid per index of ``axis``, rounded to nearest even."""
    grid = grid_from_range(*extremes(weight, axis), bits)
    shape = [1] * weight.ndim
    shape[axis] = -1
    codes, _ = quantize(weight, grid.zero.reshape(shape), grid.reciprocal.reshape(shape), bits, False)
    return Operand(grid, codes=codes)


def coded(operand: Operand) -> Operand:
    """An operand as codes, those of :func:`host_codes`; raises as that does."""
    return operand if operand.codes is not None else replace(operand, codes=host_codes(operand), values=None)


def host_codes(operand: Operand) -> I64:
    """Codes of an operand, int64: its own, or its values quantized on their grid.

    Raises:
        ValueError: codes outside the grid, values that are not finite.
    """
    grid = operand.grid
    if operand.codes is not None:
        codes = np.asarray(operand.codes)
        check_codes(codes, grid.bits, grid.signed)
        return codes.astype(np.int64)
    values = np.asarray(operand.values, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError("values to quantize hold NaN or infinity; check them before the product")
    indices = None if grid.key is None else np.arange(values.size, dtype=np.uint32).reshape(values.shape)
    codes, _ = quantize(values, grid.zero, grid.reciprocal, grid.bits, grid.signed, grid.key, indices)
    return codes.astype(np.int64)
