"""The exact engine in PyTorch: the three training products as integer sums, the yardstick for every device.

Each product is one matrix product over an unfolded (im2col) operand.  Integers are carried in float32 while every
partial sum stays below 2**24, in float64 below 2**53: within those bounds floating-point addition of integers is exact
in any order, so the fast matrix kernels of the CPU may be used.  (A convolution kernel may not: some of them use
Winograd transforms, whose intermediate values are fractions.)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from host.operands import ConvGeometry, Grid, Meter, Operand, Sums
from sw_model.quantize.affine import quantize


def operand_codes(operand: Operand) -> np.ndarray:
    """Integer codes of an operand, int64: its own, or those of its values on its grid.

    Raises:
        ValueError: if codes lie outside the grid's limits, or values are not finite.
    """
    low, high = operand.grid.limits
    if operand.codes is not None:
        codes = np.asarray(operand.codes, dtype=np.int64)
        if codes.size and (codes.min() < low or codes.max() > high):
            raise ValueError(
                f"codes span {codes.min()}..{codes.max()}, outside {low}..{high} of a {operand.grid.bits}-bit grid; "
                "quantize with the same grid that is passed"
            )
        return codes
    assert operand.values is not None
    if not np.isfinite(operand.values).all():
        raise ValueError("values to quantize hold NaN or infinity; check them before the product")
    return quantize(torch.from_numpy(np.ascontiguousarray(operand.values)), operand.grid).numpy().astype(np.int64)


def _largest(grid: Grid) -> int:
    low, high = grid.limits
    return max(-low, high, 1)


class SoftwareEngine:
    """Implements :class:`host.operands.Engine` on the CPU.

    ``meter.totals`` counts ``products``, ``macs`` (multiply-accumulates of the dense product, padding included) and
    ``bit_macs`` (macs times both widths); ``meter.rows`` has one row per product if ``keep_rows``.
    """

    def __init__(self, *, keep_rows: bool = False) -> None:
        self.meter = Meter()
        self._keep_rows = keep_rows

    def _carrier(self, a: Grid, b: Grid, contraction: int) -> torch.dtype:
        bound = _largest(a) * _largest(b) * contraction
        if bound < 1 << 24:
            return torch.float32
        if bound < 1 << 53:
            return torch.float64
        raise ValueError(f"a sum may reach {bound}, beyond 2**53; split the contraction of {contraction} terms")

    def _record(self, product: str, a: Grid, b: Grid, macs: int) -> None:
        totals = self.meter.totals
        for name, amount in (("products", 1), ("macs", macs), ("bit_macs", macs * a.bits * b.bits)):
            totals[name] = totals.get(name, 0) + amount
        if self._keep_rows:
            self.meter.rows.append({"product": product, "bits_a": a.bits, "bits_b": b.bits, "macs": macs})

    @staticmethod
    def _columns(codes: np.ndarray, geometry: ConvGeometry, dtype: torch.dtype) -> Tensor:
        """Unfolded images: (N, C*kh*kw, OH*OW)."""
        images = torch.from_numpy(codes).to(dtype)
        return F.unfold(images, geometry.kernel, padding=geometry.padding, stride=geometry.stride)

    @staticmethod
    def _valid(geometry: ConvGeometry) -> Tensor:
        """1 where a kernel position falls on a real pixel, 0 on padding: (kh*kw, OH*OW), float64."""
        ones = torch.ones(1, 1, *geometry.in_hw, dtype=torch.float64)
        return F.unfold(ones, geometry.kernel, padding=geometry.padding, stride=geometry.stride)[0]

    @staticmethod
    def _check(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        if shape != wanted:
            raise ValueError(f"{name} has shape {shape}, the geometry asks for {wanted}")

    def forward(self, x: Operand, w: Operand, geometry: ConvGeometry) -> Sums:
        """Output: contraction over input channels and kernel positions.  See :class:`host.operands.Sums` for shapes."""
        g = geometry
        self._check("activation", x.shape, (g.batch, g.in_channels, *g.in_hw))
        self._check("weight", w.shape, (g.out_channels, g.in_channels, *g.kernel))
        taps = g.kernel[0] * g.kernel[1]
        dtype = self._carrier(x.grid, w.grid, g.in_channels * taps)
        columns = self._columns(operand_codes(x), g, dtype)
        weight = torch.from_numpy(operand_codes(w)).to(dtype).reshape(g.out_channels, -1)
        valid = self._valid(g)
        b_sum = weight.double().reshape(g.out_channels, g.in_channels, taps).sum(1) @ valid
        self._record("forward", x.grid, w.grid, g.batch * weight.numel() * g.out_hw[0] * g.out_hw[1])
        return Sums(
            _int64(torch.matmul(weight, columns), (g.batch, g.out_channels, *g.out_hw)),
            _int64(columns.sum(1), (g.batch, 1, *g.out_hw)),
            _int64(b_sum, (1, g.out_channels, *g.out_hw)),
            _int64(valid.sum(0) * g.in_channels, (1, 1, *g.out_hw)),
        )

    def input_gradient(self, g: Operand, w: Operand, geometry: ConvGeometry) -> Sums:
        """Input gradient: contraction over output channels and the kernel positions that reach a pixel."""
        m = geometry
        self._check("output gradient", g.shape, (m.batch, m.out_channels, *m.out_hw))
        self._check("weight", w.shape, (m.out_channels, m.in_channels, *m.kernel))
        taps = m.kernel[0] * m.kernel[1]
        dtype = self._carrier(g.grid, w.grid, m.out_channels * taps)
        gradient = torch.from_numpy(operand_codes(g)).to(dtype).reshape(m.batch, m.out_channels, -1)
        weight = torch.from_numpy(operand_codes(w)).to(dtype).reshape(m.out_channels, -1)
        pixels = gradient.shape[2]

        def fold(columns: Tensor) -> Tensor:
            return F.fold(columns, m.in_hw, m.kernel, padding=m.padding, stride=m.stride)

        a_sum = fold(gradient.sum(1, keepdim=True).expand(-1, taps, -1))
        b_columns = weight.double().sum(0).reshape(1, -1, 1).expand(-1, -1, pixels)
        count = fold(torch.ones(1, taps, pixels, dtype=torch.float64)) * m.out_channels
        self._record("input_gradient", g.grid, w.grid, m.batch * weight.numel() * pixels)
        return Sums(
            _int64(fold(torch.matmul(weight.t(), gradient)), (m.batch, m.in_channels, *m.in_hw)),
            _int64(a_sum, (m.batch, 1, *m.in_hw)),
            _int64(fold(b_columns), (1, m.in_channels, *m.in_hw)),
            _int64(count, (1, 1, *m.in_hw)),
        )

    def weight_gradient(self, x: Operand, g: Operand, geometry: ConvGeometry) -> Sums:
        """Weight gradient: contraction over images and output pixels."""
        m = geometry
        self._check("activation", x.shape, (m.batch, m.in_channels, *m.in_hw))
        self._check("output gradient", g.shape, (m.batch, m.out_channels, *m.out_hw))
        taps = m.kernel[0] * m.kernel[1]
        pixels = m.out_hw[0] * m.out_hw[1]
        dtype = self._carrier(x.grid, g.grid, m.batch * pixels)
        columns = self._columns(operand_codes(x), m, dtype).transpose(0, 1).reshape(m.in_channels * taps, -1)
        gradient = torch.from_numpy(operand_codes(g)).to(dtype).reshape(m.batch, m.out_channels, -1)
        valid = self._valid(m)
        b_sum = gradient.double().sum(0) @ valid.t()
        rows = gradient.transpose(0, 1).reshape(m.out_channels, -1)
        self._record("weight_gradient", x.grid, g.grid, m.out_channels * m.in_channels * taps * m.batch * pixels)
        return Sums(
            _int64(rows @ columns.t(), (m.out_channels, m.in_channels, *m.kernel)),
            _int64(columns.sum(1), (1, m.in_channels, *m.kernel)),
            _int64(b_sum, (m.out_channels, 1, *m.kernel)),
            _int64(valid.sum(1) * m.batch, (1, 1, *m.kernel)),
        )


def _int64(sums: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    return sums.reshape(shape).to(torch.int64).numpy()
