"""StatQuant's unbiased gradient quantizers (Chen et al. 2020, "A statistical framework for low-bitwidth training").

All take a matrix x (N, D), one row per sample, round stochastically and are unbiased: E[Q(x)] = x.  With
B = 2**bits - 1 and R the range (max - min) of what shares a grid:

* per tensor (PTQ): one grid, with zero as a point, so that R is taken with zero.  Var <= N D R**2 / (4 (B - 1)**2).
* per sample (PSQ): a grid per row.  Var <= D / (4 B**2) * sum_i R_i**2, much less when few rows are large.
* block Householder (BHQ): every block of rows has one large row and some small ones.  The rows of a block are scaled
  against each other, and an orthogonal (Householder) reflection spreads the large row over them.  The result is
  quantized as in PSQ and transformed back.

Random numbers come from :func:`sw_model.quantize.affine.random_units`, so a key fixes the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sw_model.quantize.affine import extremes, refuse_non_finite, round_stochastically

_SMALLEST = 2.0**-126


def _check(x: Tensor, bits: int) -> None:
    if x.ndim != 2:
        raise ValueError(
            f"gradient quantizers take a matrix (samples, features), not shape {tuple(x.shape)}; flatten it"
        )
    if not 1 <= bits <= 16:
        raise ValueError(f"cannot quantize to {bits} bits: a code has 1 to 16")


def _round_rows(x: Tensor, low: Tensor, span: Tensor, bits: int, key: int) -> Tensor:
    """Stochastic rounding on grids over ``[low, low + span]``, broadcast against x."""
    scale = (span / (2**bits - 1)).clamp_min(_SMALLEST)
    t = (x - low) / scale
    codes = round_stochastically(t, key).clamp_(0, 2**bits - 1)
    return codes * scale + low


def grid_with_zero(bottom: float, top: float, steps: int) -> tuple[float, int]:
    """The finest grid of ``steps`` equal steps that covers ``[bottom, top]`` and has zero as one of its points.

    Its step is at most ``(top - bottom) / (steps - 1)``, by which the range may grow to put zero on a point.

    Args:
        bottom, top: ``bottom <= 0 <= top``; two steps at least where zero lies strictly between them.

    Returns:
        the step, and the number of steps below zero.
    """
    if bottom == 0 or top == 0:
        return max((top - bottom) / steps, _SMALLEST), steps if bottom else 0
    # Fewer steps below zero stretch the grid's lower part, more of them its upper part: the best number is beside the
    # real one.  Both parts keep a step, or all values of one sign would become zero.
    exact = steps * -bottom / (top - bottom)
    beside = {min(max(whole, 1), steps - 1) for whole in (math.floor(exact), math.ceil(exact))}
    step, offset = min((max(-bottom / o, top / (steps - o)), o) for o in beside)
    return max(step, _SMALLEST), offset


def ptq(x: Tensor, bits: int, key: int) -> Tensor:
    """Per tensor, with zero on the grid; one bit has no point to spare for a zero inside the range and takes its ends."""
    _check(x, bits)
    low, span = extremes(x)
    refuse_non_finite(x, low, span)
    bottom, top = min(float(low), 0.0), max(float(x.max()), 0.0)
    if bits == 1 and bottom < 0 < top:
        return _round_rows(x, low, span, bits, key)
    steps = 2**bits - 1
    scale, offset = grid_with_zero(bottom, top, steps)
    return round_stochastically(x / scale, key).clamp_(-offset, steps - offset) * scale


def psq(x: Tensor, bits: int, key: int) -> Tensor:
    """Per sample: one affine grid for every row."""
    _check(x, bits)
    low, span = extremes(x, 0)
    return _round_rows(x, low[:, None], span[:, None], bits, key)


def bhq_blocks(magnitude: Tensor) -> tuple[Tensor, Tensor]:
    """Groups rows into blocks of one large row and several small ones.

    The smallest rows are set aside one by one until ``n_small * (smallest large) / (sum of large) > 1``; each large row
    heads a block and receives small rows in proportion to its magnitude (rounded cumulative sums).

    Args:
        magnitude: (N,) range of every row.

    Returns:
        block of every row, int64 (N,), and whether the row heads it, bool (N,).
    """
    n = len(magnitude)
    ordered, order = torch.sort(magnitude, descending=True, stable=True)
    running = torch.cumsum(ordered.double(), 0)
    large = n
    while large > 1 and not (n - large) * float(ordered[large - 1]) > float(running[large - 1]):
        large -= 1
    block = torch.empty(n, dtype=torch.int64)
    head = torch.zeros(n, dtype=torch.bool)
    block[order[:large]] = torch.arange(large)
    head[order[:large]] = True
    small = n - large
    if small:
        total = float(running[large - 1])
        shares = running[:large] / total if total > 0 else torch.arange(1, large + 1) / large
        ends = torch.round(shares * small).to(torch.int64)
        ends[-1] = small
        # Row j of the small ones belongs to the first block whose end lies beyond j.
        block[order[large:]] = torch.searchsorted(ends, torch.arange(small), right=True)
    return block, head


def bhq(x: Tensor, bits: int, key: int) -> Tensor:
    """Block Householder quantizer: see the module's docstring.

    In a block of k rows, Q is the reflection that maps the head's unit vector to 1/sqrt(k) everywhere.  With lambda1
    the range of the head, lambda2 the largest range of the others, w1 = lambda1 / sqrt(k) and w2 = lambda2 * max|Q|,
    the rows are scaled by s1 ~ w1**(-1/3) and s2 ~ (w2 / (k - 1))**(-1/3): the least variance for a given range.
    """
    _check(x, bits)
    low, span = extremes(x, 0)
    refuse_non_finite(x, low, span)
    block, head = bhq_blocks(span.cpu())
    count = int(block.max()) + 1
    # Blocks are chosen on the CPU, one row after another; what follows is done where the gradient is.
    block, head = block.to(x.device), head.to(x.device)
    nothing, one = x.new_zeros(count), x.new_ones(())
    size = nothing.index_add(0, block, one.expand(len(x)))
    root = size.sqrt()
    lambda1 = nothing.index_add(0, block[head], span[head])
    lambda2 = nothing.scatter_reduce(0, block[~head], span[~head], "amax")
    v_head, v_rest = 1 - 1 / root, -1 / root
    norm = (v_head**2 + (size - 1) * v_rest**2).clamp_min(_SMALLEST)
    several = size > 1
    # Q holds 1/sqrt(k) in the head's row and column, else 1 - off on the diagonal and -off beside it (from k = 3 on).
    off = 2 * v_rest**2 / norm
    largest = torch.maximum(1 / root, (1 - off).abs())
    largest = torch.where(size > 2, torch.maximum(largest, off), largest)
    w1 = (lambda1 / root).clamp_min(1e-30)
    # A block of rows that are all but zero keeps a finite scale.
    w2 = torch.maximum(lambda2 * largest, w1 * 1e-6)
    ratio = torch.where(several, (w2 / (size - 1).clamp_min(1) / w1) ** (-1 / 3), one)
    scale = torch.where(head, one, ratio[block])[:, None]
    v = torch.where(head, v_head[block], v_rest[block])[:, None]

    def reflect(rows: Tensor) -> Tensor:
        weighted = rows.new_zeros(count, rows.shape[1]).index_add_(0, block, v * rows)
        factor = torch.where(several, 2 / norm, nothing)[:, None]
        return rows - v * (factor * weighted)[block]

    transformed = reflect(scale * x)
    t_low, t_high = torch.aminmax(transformed, dim=1)
    rounded = _round_rows(transformed, t_low[:, None], (t_high - t_low)[:, None], bits, key)
    return reflect(rounded) / scale


def ptq_variance_bound(x: Tensor, bits: int) -> float:
    """Upper bound of PTQ's total variance, N D R**2 / (4 (B - 1)**2), R the range including zero.

    Without zero on the grid it is N D R**2 / (4 B**2); see :func:`grid_with_zero` for the step that zero costs.
    """
    span = max(float(x.max()), 0.0) - min(float(x.min()), 0.0)
    steps = 2**bits - 1
    return x.numel() * (span / max(steps - 1, 1)) ** 2 / 4


def psq_variance_bound(x: Tensor, bits: int) -> float:
    """Upper bound of PSQ's total variance, D / (4 B**2) * sum R_i**2."""
    _, span = extremes(x, 0)
    return x.shape[1] * float((span.double() ** 2).sum()) / (4 * (2**bits - 1) ** 2)


QUANTIZERS: dict[str, Callable[[Tensor, int, int], Tensor]] = {"ptq": ptq, "psq": psq, "bhq": bhq}
