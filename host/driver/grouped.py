"""Products beyond one dense convolution, on any engine: grouped and depthwise convolutions, batched matrix products.

Each is lowered to dense products whose sums are exact, so the results are those of :class:`host.operands.Sums` with
``a_sum`` and ``b_sum`` per output channel or matrix.  Values are quantized on the host, since a random number belongs
to an element of the whole tensor.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from host.grids import coded
from host.operands import ConvGeometry, Engine, Grid, Operand, Sums, several
from hw.networks import PRODUCTS


def _part(operand: Operand, axis: int, start: int, stop: int) -> Operand:
    """Channels of an operand as codes, on one grid: scales do not matter to sums."""
    assert operand.codes is not None
    one = Grid(operand.grid.bits, operand.grid.signed, np.ones((), np.float32), np.zeros((), np.float32))
    return Operand(one, codes=operand.codes[(slice(None),) * axis + (slice(start, stop),)])


def grouped(
    engine: Engine, product: str, a: Operand, b: Operand, geometry: ConvGeometry, groups: int, pack: int = 16
) -> Sums:
    """A convolution whose channels fall into ``groups`` that do not see each other.

    Several groups of few channels share a dense product, whose weights outside the diagonal blocks are zero (or whose
    gradients there are not looked at).

    Args:
        product: "forward", "input_gradient" or "weight_gradient".
        a, b: operands as the engine's product takes them; weights have shape (O, I/groups, kh, kw).
        geometry: of the whole; channel counts over all groups.
        groups: equal to ``geometry.in_channels`` for a depthwise convolution.
        pack: channels that share a dense product; the array's channels per group fill it best.

    Returns:
        Sums that broadcast against ``dot``: (N, O, OH, OW), (N, I, H, W) or (O, I/groups, kh, kw).

    Raises:
        ValueError: an unknown product, or channels that do not divide into the groups.
    """
    m = geometry
    if product not in PRODUCTS:
        raise ValueError(f"no product {product!r}; use one of {', '.join(PRODUCTS)}")
    if m.in_channels % groups or m.out_channels % groups:
        raise ValueError(f"{m.in_channels} -> {m.out_channels} channels do not divide into {groups} groups")
    into, out = m.in_channels // groups, m.out_channels // groups
    a, b = coded(a), coded(b)
    together = max(1, pack // max(into, out))
    counts = [min(together, groups - first) for first in range(0, groups, together)]
    members = []
    for first, count in zip(range(0, groups, together), counts, strict=True):
        block = replace(m, in_channels=count * into, out_channels=count * out)
        i, o = (first * into, (first + count) * into), (first * out, (first + count) * out)
        if product == "weight_gradient":
            members.append((_part(a, 1, *i), _part(b, 1, *o), block))
            continue
        weights = _part(b, 0, *o)
        dense = np.zeros((count * out, count * into, *m.kernel), dtype=np.int64)
        for k in range(count):
            rows = slice(k * out, (k + 1) * out)
            dense[rows, k * into : (k + 1) * into] = weights.codes[rows]  # type: ignore[index]
        part = _part(a, 1, *(i if product == "forward" else o))
        members.append((part, replace(weights, codes=dense), block))
        if count > 1:  # the dense product adds up the operand of all groups
            members.append(_group_sums(product, part, block, count))
    found = iter(several(engine, product, members))
    parts = []
    for count in counts:
        sums = next(found)
        if product == "weight_gradient":
            parts.append(_diagonal(sums, count, into, out))
            continue
        a_sum = next(found).dot if count > 1 else sums.a_sum
        share = out if product == "forward" else into
        parts.append(Sums(sums.dot, np.repeat(a_sum, share, axis=1), sums.b_sum, sums.count // count))
    axis = 0 if product == "weight_gradient" else 1

    def join(name: str) -> np.ndarray:
        return np.concatenate([getattr(p, name) for p in parts], axis=axis)

    return Sums(join("dot"), join("a_sum"), join("b_sum"), parts[0].count)


def product_sums(engine: Engine, product: str, a: Operand, b: Operand, geometry: ConvGeometry, groups: int) -> Sums:
    """A product of any convolution: the engine's own where there is one group, :func:`grouped` elsewhere."""
    if groups > 1:
        return grouped(engine, product, a, b, geometry, groups)
    sums: Sums = getattr(engine, product)(a, b, geometry)
    return sums


def _group_sums(product: str, a: Operand, block: ConvGeometry, count: int) -> tuple[Operand, Operand, ConvGeometry]:
    """A product whose dot is the sums of a's codes under the kernel, one channel per group: ones in the diagonal blocks."""
    inner = a.shape[1] // count
    one = Grid(1, False, np.ones((), np.float32), np.zeros((), np.float32))
    ones = np.zeros((count, count * inner, *block.kernel), dtype=np.int64)
    for k in range(count):
        ones[k, k * inner : (k + 1) * inner] = 1
    if product == "forward":
        return a, Operand(one, codes=ones), replace(block, out_channels=count)
    back = Operand(one, codes=np.ascontiguousarray(ones.swapaxes(0, 1)))
    return a, back, replace(block, in_channels=count)


def _diagonal(sums: Sums, count: int, into: int, out: int) -> Sums:
    """Diagonal blocks of a dense weight gradient: (count*out, count*into, kh, kw) -> (count*out, into, kh, kw)."""
    kernel = sums.dot.shape[2:]
    dot = np.empty((count * out, into, *kernel), dtype=np.int64)
    a_sum = np.empty_like(dot)
    for k in range(count):
        rows, columns = slice(k * out, (k + 1) * out), slice(k * into, (k + 1) * into)
        dot[rows] = sums.dot[rows, columns]
        a_sum[rows] = sums.a_sum[:, columns]
    return Sums(dot, a_sum, sums.b_sum, sums.count)


def batched_matmul(engine: Engine, a: Operand, b: Operand) -> Sums:
    """Matrix products, one per leading index: (B, M, K) times (B, K, N), as attention needs.

    Args:
        a: codes or values (B, M, K).
        b: codes or values (B, K, N).

    Returns:
        dot int64 (B, M, N); a_sum (B, M, 1); b_sum (B, 1, N); count (1, 1, 1).

    Raises:
        ValueError: shapes that do not match.
    """
    if len(a.shape) != 3 or len(b.shape) != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
        raise ValueError(f"shapes {a.shape} and {b.shape} are not (B, M, K) and (B, K, N)")
    a, b = coded(a), coded(b)
    batch, m, k = a.shape
    n = b.shape[2]
    geometry = ConvGeometry(m, k, n, (1, 1))
    members = []
    for i in range(batch):
        rows, columns = _part(a, 0, i, i + 1), _part(b, 0, i, i + 1)
        x = replace(rows, codes=np.asarray(rows.codes).reshape(m, k, 1, 1))
        w = replace(columns, codes=np.asarray(columns.codes)[0].T.reshape(n, k, 1, 1))
        members.append((x, w, geometry))
    parts = several(engine, "forward", members)
    return Sums(
        np.stack([p.dot[:, :, 0, 0] for p in parts]),
        np.stack([p.a_sum[:, :, 0, 0] for p in parts]),
        np.stack([p.b_sum[:, :, 0, 0] for p in parts]),
        np.full((1, 1, 1), k, dtype=np.int64),
    )
