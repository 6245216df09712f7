"""The exact engine in NumPy: the three training products as integer sums, the yardstick for every device.

Each product is one matrix product over an unfolded (im2col) operand.  Integers are carried in float32 while every
partial sum stays below 2**24, in float64 below 2**53: within those bounds floating-point addition of integers is exact
in any order, so the fast matrix kernels of the processor may be used.  (A convolution kernel may not: some of them use
Winograd transforms, whose intermediate values are fractions.)
"""

from __future__ import annotations

import numpy as np

from host.arrays import I64, Array
from host.grids import host_codes
from host.operands import ConvGeometry, Grid, Meter, Operand, Sums
from host.windows import Window
from hw.design import Design


def correlate(x: Array, weight: Array, g: ConvGeometry) -> Array:
    """Output (N, O, OH, OW), in the operands' type."""
    return np.tensordot(Window.of(g).unfold(x), weight, ((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)


def correlate_back(grad: Array, weight: Array, g: ConvGeometry) -> Array:
    """Input gradient (N, I, H, W)."""
    return Window.of(g).fold(np.tensordot(grad, weight, ((1,), (0,))))


def correlate_weight(x: Array, grad: Array, g: ConvGeometry) -> Array:
    """Weight gradient (O, I, kh, kw)."""
    return np.tensordot(grad, Window.of(g).unfold(x), ((0, 2, 3), (0, 2, 3)))


def _integers(values: Array) -> I64:
    return np.asarray(values).astype(np.int64)


def _carried(a: Operand, b: Operand, terms: int) -> tuple[Array, Array]:
    """Codes of both operands in the floating-point type that holds all sums of ``terms`` products exactly."""
    greatest = [max(-low, high) for low, high in (a.grid.limits, b.grid.limits)]
    bound = greatest[0] * greatest[1] * terms
    if bound >= 1 << 53:
        raise ValueError(f"a sum may reach {bound}, beyond 2**53; split the contraction of {terms} terms")
    kind = np.float32 if bound < 1 << 24 else np.float64
    return host_codes(a).astype(kind), host_codes(b).astype(kind)


def _check(name: str, operand: Operand, wanted: tuple[int, ...]) -> None:
    if operand.shape != wanted:
        raise ValueError(f"{name} has shape {operand.shape}, the geometry asks for {wanted}")


class ExactEngine:
    """Implements :class:`host.operands.Engine` on the processor.

    ``meter.totals`` counts ``PRODUCTS``, ``MACS`` (multiply-accumulates of the dense product, padding included) and
    ``BIT_MACS`` (macs times both widths).

    Args:
        design: whose order of results the random numbers of a whole step's passes follow; None: that of any design.
    """

    def __init__(self, design: Design | None = None) -> None:
        self.meter, self.design = Meter(), design

    def _count(self, a: Grid, b: Grid, macs: int) -> None:
        totals = self.meter.totals
        for name, amount in (("PRODUCTS", 1), ("MACS", macs), ("BIT_MACS", macs * a.bits * b.bits)):
            totals[name] = totals.get(name, 0) + amount

    def forward(self, x: Operand, w: Operand, geometry: ConvGeometry) -> Sums:
        """Output: contraction over input channels and kernel positions.  See :class:`host.operands.Sums` for shapes."""
        g, window = geometry, Window.of(geometry)
        _check("activation", x, (g.batch, g.in_channels, *g.in_hw))
        _check("weight", w, (g.out_channels, g.in_channels, *g.kernel))
        a, b = _carried(x, w, g.in_channels * g.kernel[0] * g.kernel[1])
        valid = window.valid()
        self._count(x.grid, w.grid, g.batch * b.size * g.out_hw[0] * g.out_hw[1])
        return Sums(
            _integers(correlate(a, b, g)),
            _integers(window.unfold(a.sum(1, keepdims=True, dtype=np.float64)).sum((4, 5))),
            _integers(np.tensordot(b.sum(1, dtype=np.float64), valid, ((1, 2), (2, 3)))[None]),
            _integers(valid.sum((2, 3))[None, None] * g.in_channels),
        )

    def input_gradient(self, g: Operand, w: Operand, geometry: ConvGeometry) -> Sums:
        """Input gradient: contraction over output channels and the kernel positions that reach a pixel."""
        m, window = geometry, Window.of(geometry)
        _check("output gradient", g, (m.batch, m.out_channels, *m.out_hw))
        _check("weight", w, (m.out_channels, m.in_channels, *m.kernel))
        grad, b = _carried(g, w, m.out_channels * m.kernel[0] * m.kernel[1])
        oh, ow = m.out_hw
        flat = np.broadcast_to(
            grad.sum(1, dtype=np.float64)[:, :, :, None, None, None], (m.batch, oh, ow, 1, *m.kernel)
        )
        weights = np.broadcast_to(b.sum(0, dtype=np.float64)[None, None, None], (1, oh, ow, m.in_channels, *m.kernel))
        ones = np.broadcast_to(np.float64(m.out_channels), (1, oh, ow, 1, *m.kernel))
        self._count(g.grid, w.grid, m.batch * b.size * oh * ow)
        return Sums(
            _integers(correlate_back(grad, b, m)),
            _integers(window.fold(flat)),
            _integers(window.fold(weights)),
            _integers(window.fold(ones)),
        )

    def weight_gradient(self, x: Operand, g: Operand, geometry: ConvGeometry) -> Sums:
        """Weight gradient: contraction over images and output pixels."""
        m, window = geometry, Window.of(geometry)
        _check("activation", x, (m.batch, m.in_channels, *m.in_hw))
        _check("output gradient", g, (m.batch, m.out_channels, *m.out_hw))
        terms = m.batch * m.out_hw[0] * m.out_hw[1]
        a, grad = _carried(x, g, terms)
        valid = window.valid()
        dot = correlate_weight(a, grad, m)
        self._count(x.grid, g.grid, dot.size * terms)
        return Sums(
            _integers(dot),
            _integers(window.unfold(a).sum((0, 2, 3), dtype=np.float64)[None]),
            _integers(np.tensordot(grad.sum(0, dtype=np.float64), valid, ((1, 2), (0, 1)))[:, None]),
            _integers(valid.sum((0, 1))[None, None] * m.batch),
        )
