"""Convolutions that no engine takes as they are, as matrix products of unfolded codes, on any engine.

A padded position holds real zero, which an affine grid may not have.  As code 0 it adds nothing to the products, nor to
the sums of its own operand.  What it would add to the sums of the other operand is known from the shape, so those are
formed here.  The sums are exact, as those of :class:`host.operands.Sums` for the convolution itself.
"""

from __future__ import annotations

import numpy as np

from host.arrays import I64, Array
from host.driver.grouped import product_sums
from host.grids import coded
from host.operands import ConvGeometry, Engine, Grid, Operand, Sums, several
from host.windows import Window


def convolution_sums(
    engine: Engine, product: str, a: Operand, b: Operand, geometry: ConvGeometry | Window, groups: int
) -> Sums:
    """A product of any convolution, in the way that suits its shape.

    Args:
        product: "forward", "input_gradient" or "weight_gradient".
        a, b: operands as the engine's product takes them; weights have shape (O, I/groups, kh, kw).
        geometry: of the whole; channel counts over all groups.
        groups: of channels that do not see each other.

    Returns:
        Sums that broadcast against ``dot``: (N, O, OH, OW), (N, I, H, W) or (O, I/groups, kh, kw).
    """
    plain = geometry if isinstance(geometry, ConvGeometry) else geometry.plain
    if plain is not None:
        return product_sums(engine, product, a, b, plain, groups)
    assert isinstance(geometry, Window)
    return _unfolded(engine, product, coded(a), coded(b), geometry, groups)


def _unfolded(engine: Engine, product: str, a: Operand, b: Operand, m: Window, groups: int) -> Sums:
    into, out = m.in_channels // groups, m.out_channels // groups
    taps, rows = into * m.kernel[0] * m.kernel[1], m.batch * m.out_hw[0] * m.out_hw[1]
    linear = ConvGeometry(rows, taps, out, (1, 1))
    parts = [(_codes(a), _codes(b))]
    if groups > 1:
        channels = into if product != "input_gradient" else out
        parts = [
            (
                parts[0][0][:, k * channels : (k + 1) * channels],
                parts[0][1][:, k * out : (k + 1) * out]
                if product == "weight_gradient"
                else parts[0][1][k * out : (k + 1) * out],
            )
            for k in range(groups)
        ]
    members = []
    for x, y in parts:
        left = _rows(x) if product == "input_gradient" else _windows(x, m)
        right = _rows(y) if product == "weight_gradient" else y.reshape(out, taps)
        members.append((_operand(a.grid, left), _operand(b.grid, right), linear))
    found = several(engine, product, members)
    valid = m.valid().astype(np.int64)
    made = [_SUMS[product](sums, y, m, valid, into, out) for sums, (_, y) in zip(found, parts, strict=True)]
    axis = 0 if product == "weight_gradient" else 1
    shapes = [part.dot.shape for part in made]

    def join(name: str) -> I64:
        each = []
        for part, shape in zip(made, shapes, strict=True):
            sums: I64 = getattr(part, name)
            wanted = list(sums.shape)
            wanted[axis] = shape[axis]
            each.append(np.broadcast_to(sums, wanted))
        return np.concatenate(each, axis=axis)

    return Sums(join("dot"), join("a_sum"), join("b_sum"), made[0].count)


def _codes(operand: Operand) -> Array:
    assert operand.codes is not None
    return np.asarray(operand.codes)


def _operand(grid: Grid, rows: Array) -> Operand:
    """Rows of codes on one grid of the same width: scales do not matter to sums."""
    one = Grid(grid.bits, grid.signed, np.ones((), np.float32), np.zeros((), np.float32))
    return Operand(one, codes=np.ascontiguousarray(rows)[:, :, None, None])


def _rows(x: Array) -> Array:
    """(N, C, H, W) as a row per pixel."""
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])


def _windows(x: Array, m: Window) -> Array:
    """(N, C, H, W) as a row per window."""
    columns = m.unfold(x).transpose(0, 2, 3, 1, 4, 5)
    return columns.reshape(m.batch * m.out_hw[0] * m.out_hw[1], -1)


def _pixels(rows: I64, m: Window) -> I64:
    """A row per output pixel as (N, channels, OH, OW)."""
    return rows.reshape(m.batch, *m.out_hw, -1).transpose(0, 3, 1, 2)


def _forward(sums: Sums, weight: Array, m: Window, valid: I64, into: int, out: int) -> Sums:
    b_sum = np.tensordot(weight.sum(1, dtype=np.int64), valid, ((1, 2), (2, 3)))[None]
    return Sums(_pixels(sums.dot, m), _pixels(sums.a_sum, m), b_sum, valid.sum((2, 3))[None, None] * into)


def _input_gradient(sums: Sums, weight: Array, m: Window, valid: I64, into: int, out: int) -> Sums:
    window = *m.out_hw, into, *m.kernel
    single = *m.out_hw, 1, *m.kernel
    a_sum = np.broadcast_to(sums.a_sum.reshape(m.batch, *m.out_hw, 1, 1, 1), (m.batch, *single))
    b_sum = np.broadcast_to(weight.sum(0, dtype=np.int64), (1, *window))
    count = np.broadcast_to(np.int64(out), (1, *single))
    return Sums(m.fold(sums.dot.reshape(m.batch, *window)), m.fold(a_sum), m.fold(b_sum), m.fold(count))


def _weight_gradient(sums: Sums, grad: Array, m: Window, valid: I64, into: int, out: int) -> Sums:
    b_sum = np.tensordot(grad.sum(0, dtype=np.int64), valid, ((1, 2), (0, 1)))[:, None]
    count = valid.sum((0, 1))[None, None] * m.batch
    shape = into, *m.kernel
    return Sums(sums.dot.reshape(out, *shape), sums.a_sum.reshape(1, *shape), b_sum, count)


_SUMS = {"forward": _forward, "input_gradient": _input_gradient, "weight_gradient": _weight_gradient}
