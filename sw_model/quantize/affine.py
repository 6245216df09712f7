"""Affine quantizers of FracTrain, stated so that software and fabric agree on every code.

Formula (Banner et al. 2018, "Scalable methods for 8-bit training", as FracTrain uses it), with ``n = 2**bits - 1``::

    z = min x,  R = max x - min x,  s = max(R / n, floor),  r = 1 / s
    t = (x - z) * r
    q = clamp(rne(t), 0, n)          to nearest, ties to even
    q = clamp(floor(t + u), 0, n)    stochastic, u uniform on [0, 1) in steps of 2**-24; the sum is exact

Every other step is one IEEE single-precision operation.  Subnormal inputs and subnormal intermediate results count as zero,
as they do on the fabric.  The random number of element ``i`` (flat C-order index) is a function of ``i`` and a 32-bit
key alone, so the order in which elements are visited, and by how many lanes, does not matter.

Codes come back as float32 tensors holding integers (exact up to 2**24), ready for both the fast path, which multiplies
fake-quantized floats, and the exact one, which converts them to integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from host import grids
from host.numerics import derive_key as derive_key  # part of this module's interface too
from host.operands import Grid
from sw_model.quantize import kernels
from sw_model.quantize.tensor_grid import grid_where_range_is

Mode = Literal["fixed", "paper"]

#: Smallest scale: the published code's constant, or the smallest normal float32, whose reciprocal is still finite.
SCALE_FLOOR: dict[str, np.float32] = {"paper": np.float32(1e-8), "fixed": grids.SMALLEST_SCALE}
#: Largest float32 that is subnormal; ``hardshrink`` zeroes everything up to and including it.
_LARGEST_SUBNORMAL = 2.0**-126 - 2.0**-149
_MASK32 = 0xFFFFFFFF


def _as_int32(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def random_units(count: int, key: int, first: int = 0, device: torch.device | None = None) -> Tensor:
    """The uniform numbers ``u_i = (fmix32(i ^ key) >> 8) * 2**-24``, i from ``first``: float32, shape (count,).

    The same bits on every ``device`` (None: the CPU).

    Torch's int32 multiplication wraps modulo 2**32 as the hash wants; its right shift is arithmetic, hence the masks.
    """
    end = first + count
    if end > 1 << 32:
        raise ValueError(f"a tensor of {end} elements repeats its random numbers; split it below 2**32 elements")
    if end > 1 << 31:
        h = torch.arange(first, end, dtype=torch.int64, device=device).to(torch.int32)
    else:
        h = torch.arange(first, end, dtype=torch.int32, device=device)
    h ^= _as_int32(key & _MASK32)
    return _units(h)


def _units(h: Tensor) -> Tensor:
    """The numbers of words ``i ^ key``, int32, which are overwritten."""
    h ^= (h >> 16).bitwise_and_(0xFFFF)
    h *= _as_int32(0x85EBCA6B)
    h ^= (h >> 13).bitwise_and_(0x7FFFF)
    h *= _as_int32(0xC2B2AE35)
    h ^= (h >> 16).bitwise_and_(0xFFFF)
    h >>= 8
    h &= 0xFFFFFF
    return h.to(torch.float32).mul_(2.0**-24)


def round_stochastically(t: Tensor, key: int, first: int = 0) -> Tensor:
    """``floor(t + u)`` of the exact sum: integers stay, any other t goes up with the probability of its fraction.

    A sum in float32 would not do: u has 24 bits, so beside a large t it is rounded itself, and now and then up to one.

    Args:
        t: float32 or float64 of any shape.
        key, first: of the numbers u, see :func:`random_units`.
    """
    return _round_up(t, random_units(t.numel(), key, first, t.device).reshape(t.shape))


def _round_up(t: Tensor, u: Tensor) -> Tensor:
    """``floor(t + u)`` of the exact sum."""
    whole = t.trunc()
    part = t - whole  # exact, with the sign of t, and so are 1 - u and -u
    return whole + (part >= 1 - u).to(t.dtype) - (part < -u).to(t.dtype)


def flush(x: Tensor) -> Tensor:
    """``x`` with subnormal float32 values replaced by zero; NaN and infinity pass."""
    return torch.nn.functional.hardshrink(x, _LARGEST_SUBNORMAL)


def extremes(x: Tensor, axis: int | None = None) -> tuple[Tensor, Tensor]:
    """Minimum and range (max - min) of ``x`` over everything, or per index of ``axis``; float32 where ``x`` is, flushed.

    On an accelerator nobody waits for them: where the range is not finite, grids made of it turn all values into NaN
    (:class:`sw_model.quantize.tensor_grid.TensorGrid`).

    Raises:
        TypeError: if ``x`` is not float32.
        ValueError: if ``x`` is empty; on the CPU, if it holds NaN or infinity, or its range overflows.
    """
    if x.dtype != torch.float32:
        raise TypeError(f"quantizers take float32 tensors, not {x.dtype}; convert with .float() first")
    if x.numel() == 0:
        raise ValueError(
            f"cannot choose a grid for an empty tensor of shape {tuple(x.shape)}; skip the product instead"
        )
    if axis is None and kernels.usable(x):
        found = kernels.minimum_and_range(x)
        if found is not None:
            return found
    if axis is None:
        lo, hi = torch.aminmax(x)
    else:
        lo, hi = torch.aminmax(x.movedim(axis, 0).reshape(x.shape[axis], -1), dim=1)
    lo, hi = flush(lo), flush(hi)
    span = hi - lo
    if not kernels.behind(x.device):
        refuse_non_finite(x, lo, span)
    return lo, flush(span)


def refuse_non_finite(x: Tensor, lo: Tensor, span: Tensor) -> None:
    """Refuses a tensor for its minimum and range, and waits for them.

    Raises:
        ValueError: the range is not finite.
    """
    if not bool(torch.isfinite(span).all()):
        raise ValueError(
            f"a tensor of shape {tuple(x.shape)} holds NaN or infinity, or a range beyond float32 (min {lo.min():g}, "
            f"max {(lo + span).max():g}); training has diverged: lower the learning rate or raise the precision"
        )


def grid_from_range(lo: Tensor, span: Tensor, bits: int, *, key: int | None = None, mode: Mode = "fixed") -> Grid:
    """The affine grid over ``[lo, lo + span]``, see :func:`host.grids.grid_from_range`; on an accelerator one that stays there."""
    if kernels.behind(lo.device):
        return grid_where_range_is(lo, span, bits, key, SCALE_FLOOR[mode])
    return grids.grid_from_range(lo.numpy(), span.numpy(), bits, key, SCALE_FLOOR[mode])


def affine_grid(x: Tensor, bits: int, *, axis: int | None = None, key: int | None = None, mode: Mode = "fixed") -> Grid:
    """The affine grid of a tensor: one per tensor, or one per index of ``axis``.

    Args:
        x: float32 tensor of any shape.
        bits: width of a code, 1..16.
        axis: None for one grid per tensor; 0 for one per sample of an activation (N, ...) or per output channel of a
            weight (O, I, kh, kw); 1 for one per input channel of a weight.
        key: 32-bit key of stochastic rounding; None rounds to nearest even.
        mode: "paper" keeps the published scale floor of 1e-8, which silently costs small gradients their precision;
            "fixed" only avoids division by zero.

    A constant tensor (R = 0) gets code 0 everywhere, whose value is the constant itself.
    """
    lo, span = extremes(x, axis)
    return grid_from_range(lo, span, bits, key=key, mode=mode)


def _along(values: np.ndarray | Tensor, ndim: int, axis: int | None, device: torch.device) -> Tensor | float:
    """Grid numbers as something that broadcasts against a tensor of ``ndim`` axes."""
    if values.ndim == 0:
        return values if isinstance(values, Tensor) else float(values)
    if axis is None:
        raise ValueError(f"a grid of {values.shape[0]} scales needs the axis that they belong to; pass axis=0 or 1")
    shape = [1] * ndim
    shape[axis] = -1
    return torch.as_tensor(values).reshape(shape).to(device)


def quantize(x: Tensor, grid: Grid, axis: int | None = None, first: int = 0) -> Tensor:
    """Codes of ``x`` on ``grid``: a new float32 tensor of the same shape that holds integers within ``grid.limits``.

    ``first`` is the number of the first element in stochastic rounding, where ``x`` is a part of a larger tensor.

    Values outside the grid clamp to its ends (only evaluation, with its running ranges, has such values).  The caller
    vouches for finite input, as :func:`extremes` does for any grid taken from the tensor itself.
    """
    zero = _along(grid.zero, x.ndim, axis, x.device)
    reciprocal = _along(grid.reciprocal, x.ndim, axis, x.device)
    t = flush(flush(x) - zero).mul_(reciprocal)
    low, high = grid.limits
    if grid.key is None:
        t.round_()
    else:
        t = round_stochastically(flush(t), grid.key, first)
    return t.clamp_(low, high)


def dequantize(codes: Tensor, grid: Grid, axis: int | None = None) -> Tensor:
    """Values ``s * q + z`` of codes, float32; :meth:`host.operands.Sums.real` states the exact arithmetic."""
    scale = _along(grid.scale, codes.ndim, axis, codes.device)
    zero = _along(grid.zero, codes.ndim, axis, codes.device)
    return codes.to(torch.float32) * scale + zero


def _fused(x: Tensor, grids: list[Grid]) -> bool:
    """Whether the kernels can put a tensor on per-tensor grids."""
    return kernels.usable(x) and all(not grid.signed and grid.scale.ndim == 0 for grid in grids)


def fake_quantize(x: Tensor, grid: Grid, axis: int | None = None, first: int = 0) -> Tensor:
    """``x`` moved to the nearest (or stochastically chosen) point of ``grid``, float32; see :func:`quantize`."""
    if _fused(x, [grid]):
        table = kernels.row_grids([grid])
        table["first"] = first & _MASK32
        return kernels.quantize_rows(kernels.dense(x), table, grid.key is not None)
    return dequantize(quantize(x, grid, axis, first), grid, axis)


def affine_values(
    x: Tensor,
    bits: int,
    *,
    axis: int | None = None,
    key: int | None = None,
    mode: Mode = "fixed",
    scratch: str | None = None,
) -> Tensor:
    """``x`` on its own affine grid: ``fake_quantize(x, affine_grid(x, bits, ...), axis)`` in fewer passes.

    Args:
        x, bits, axis, key, mode: see :func:`affine_grid`.
        scratch: name of the scratch memory that may hold the result, see :func:`sw_model.quantize.kernels.scratch`.
    """
    shape_fits = axis is None or (key is None and axis < 2 and x.ndim == 4)
    if kernels.usable(x) and shape_fits and x.numel() and 1 <= bits <= 16:
        steps, floor = (1 << bits) - 1, float(SCALE_FLOOR[mode])
        if axis is None:
            values = kernels.quantize_affine(kernels.dense(x), steps, floor, key, scratch)
        else:
            values = kernels.quantize_affine_channels(x, axis, steps, floor)
        if values is not None:
            return values
    # Also the way to the error message of whatever the kernels refused.
    grid = affine_grid(x, bits, axis=axis, key=key, mode=mode)
    return dequantize(quantize(x, grid, axis), grid, axis)


def quantize_and_keep(x: Tensor, grid: Grid, scratch: str | None = None) -> tuple[Tensor, Tensor]:
    """Values of ``x`` on a per-tensor grid rounded to nearest, and a compact form to keep: see :func:`kept_values`.

    Only the values may lie in scratch memory, and only if they are not themselves what is kept.
    """
    if grid.bits > 8:
        values = fake_quantize(x, grid)
        return values, values
    if _fused(x, [grid]):
        x = kernels.dense(x)
        codes = torch.empty_like(x, dtype=torch.uint8)
        return kernels.quantize_rows(x, kernels.row_grids([grid]), False, codes, scratch), codes
    exact = quantize(x, grid)
    return dequantize(exact, grid), exact.to(torch.uint8)


def kept_values(kept: Tensor, grid: Grid, scratch: str | None = None) -> Tensor:
    """The values that :func:`quantize_and_keep` returned, from what it said to keep."""
    if kept.dtype != torch.uint8:
        return kept
    if kernels.serve(kept.device):
        return kernels.dequantize_codes(kept, grid, scratch)
    return dequantize(kept, grid)


class Group(NamedTuple):
    """Samples of a tensor that lie on one grid.  Random numbers count elements as if the group were a tensor of its own.

    Attributes:
        samples: their indices, int64 (n,), rising.
        grid: per tensor.
        before: samples of the group in earlier parts of a tensor that several processes share.
    """

    samples: Tensor
    grid: Grid
    before: int = 0


def fake_quantize_groups(x: Tensor, groups: Sequence[Group], scratch: str | None = None) -> Tensor:
    """Values of ``x`` (N, ...) whose samples lie on different grids.

    Args:
        x: float32.
        groups: name every sample once.
        scratch: name of the scratch memory that may hold the result, see :func:`sw_model.quantize.kernels.scratch`.
    """
    if not len(x):
        return x
    grids = [group.grid for group in groups]
    stochastic = grids[0].key is not None
    if _fused(x, grids):
        table = np.zeros(len(x), kernels.ROW_GRID)
        length = x.numel() // len(x)
        for group, record in zip(groups, kernels.row_grids(grids), strict=True):
            rows = group.samples.numpy()
            table[rows] = record
            places = group.before + np.arange(len(rows), dtype=np.uint64)
            table["first"][rows] = (places * length).astype(np.uint32)
        return kernels.quantize_rows(kernels.dense(x), table, stochastic, None, scratch)
    return _on_rows(x, groups)


def _on_rows(x: Tensor, groups: Sequence[Group]) -> Tensor:
    """:func:`fake_quantize_groups` in PyTorch's operations: every sample with the numbers of its grid, all at once."""
    table = x.new_empty(5, len(x))  # zero, reciprocal, scale, least and greatest code of every sample
    keys, first = (torch.empty(len(x), dtype=torch.int32, device=x.device) for _ in range(2))
    length = x.numel() // len(x)
    for samples, grid, before in groups:
        for row, value in zip(table, (grid.zero, grid.reciprocal, grid.scale, *grid.limits), strict=True):
            row[samples] = torch.as_tensor(value, dtype=torch.float32, device=x.device)
        keys[samples] = _as_int32((grid.key or 0) & _MASK32)
        places = torch.arange(before, before + len(samples), device=x.device)
        first[samples] = (places * length).to(torch.int32)
    zero, reciprocal, scale, low, high = (row.reshape(-1, *[1] * (x.ndim - 1)) for row in table)
    t = flush(flush(x) - zero).mul_(reciprocal)
    if groups[0].grid.key is None:
        t.round_()
    else:
        words = torch.arange(length, dtype=torch.int32, device=x.device) + first[:, None]
        t = _round_up(flush(t), _units(words ^ keys[:, None]).reshape(x.shape))
    return t.clamp_(low, high) * scale + zero


def option_products(x: Tensor, weight: Tensor, grids: list[Grid]) -> Tensor:
    """``sum weight[n] * Q_k(x)[n]`` for every sample n and per-tensor grid k rounded to nearest: float32 (N, K), in an order
    of the processor's own; :func:`host.board.gate_decisions.exact_option_products` settles it."""
    if _fused(x, grids):
        x, weight = kernels.dense(x.detach()), weight.detach()
        if weight.stride() != x.stride():
            weight = torch.empty_like(x).copy_(weight)
        return kernels.fused_option_products(x, weight, kernels.row_grids(grids))
    columns = [(weight * dequantize(quantize(x, grid), grid)).flatten(1).sum(1) for grid in grids]
    return torch.stack(columns, 1)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, estimate: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, grad


def straight_through(value: Tensor, estimate: Tensor) -> Tensor:
    """``value`` forward, to the bit (``value - estimate + estimate`` rounds), the gradient of ``estimate`` backward."""
    result: Tensor = _StraightThrough.apply(value, estimate)
    return result
