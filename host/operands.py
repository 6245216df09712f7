"""The three quantized products of training, as every engine answers them.

An engine takes two operands on their grids and returns exact integer sums; what a sum means as a real number is
decided here, once, for every engine: PyTorch on the workstation, NumPy, compiled HLS, simulated RTL and the board.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from host.arrays import F32, I64, Codes
from host.numerics import code_limits
from hw.networks import ConvGeometry as ConvGeometry


@dataclass(frozen=True)
class Grid:
    """A quantization grid: code ``q`` of ``bits`` bits stands for the value ``scale * q + zero``.

    Attributes:
        bits: width of a code, 1..16.
        signed: two's complement codes (symmetric quantizers) instead of 0 .. 2**bits - 1.
        scale: float32, shape () for one grid per tensor, or (C,) for a weight: one per channel that the *product*
            outputs (axis 0 of the weight in a forward product, axis 1 in an input gradient).
        zero: float32, same shape as ``scale``.
        key: 32-bit key of the stochastic rounding, or None for rounding to nearest even.
    """

    bits: int
    signed: bool
    scale: F32
    zero: F32
    key: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise ValueError(f"a code has 1 to 16 bits, not {self.bits}; use the unquantized layer for more")
        object.__setattr__(self, "scale", np.asarray(self.scale, dtype=np.float32))
        object.__setattr__(self, "zero", np.asarray(self.zero, dtype=np.float32))
        if self.scale.shape != self.zero.shape or self.scale.ndim > 1:
            raise ValueError(f"scale {self.scale.shape} and zero {self.zero.shape} must both be () or (C,)")

    @property
    def reciprocal(self) -> F32:
        """``1 / scale``, rounded once: what quantizers multiply by, like ``scale``."""
        return np.asarray(np.float32(1) / self.scale)

    @property
    def limits(self) -> tuple[int, int]:
        """Least and greatest code."""
        return code_limits(self.bits, self.signed)


@dataclass(frozen=True)
class Operand:
    """One operand of a product: codes, or float32 values that the engine quantizes on ``grid`` itself, on the host.

    Attributes:
        grid: the grid of the codes.
        codes: int array (N, C, H, W) or weight (O, I, kh, kw), or None if ``values`` is given.
        values: float32 array of the same shape, quantized by the engine; only grids with one scale per tensor.  Element ``i`` in C order draws random word ``i`` of the key.
    """

    grid: Grid
    codes: Codes | None = None
    values: F32 | None = None

    def __post_init__(self) -> None:
        if (self.codes is None) == (self.values is None):
            raise ValueError("an operand has either codes or values, not both or neither")
        if self.values is not None and self.grid.scale.ndim:
            raise ValueError(
                "values are quantized by the engine on one grid per tensor; pass codes for per-channel grids"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.codes if self.codes is not None else self.values).shape  # type: ignore[union-attr]


@dataclass(frozen=True)
class Sums:
    """Exact integer sums of a product over its contraction, broadcastable against ``dot``.

    Attributes:
        dot: sum of q_a * q_b, int64: (N, O, OH, OW) forward, (N, I, H, W) input gradient, (O, I, kh, kw) weight gradient.
        a_sum: sum of q_a over the valid positions (activation or gradient operand; activations in a weight gradient).
        b_sum: sum of q_b over the valid positions (weights; output gradient in a weight gradient).
        count: number of valid positions; padded positions count for nothing since they hold real zero.
    """

    dot: I64
    a_sum: I64
    b_sum: I64
    count: I64

    def real(self, a: Grid, b: Grid, b_axis: int | None = None) -> F32:
        """The real-valued product, float32: formed in float64 from the exact sums and rounded once.

        ``sum (s_a q_a + z_a)(s_b q_b + z_b) = s_a s_b dot + s_a z_b a_sum + z_a s_b b_sum + z_a z_b count``.

        Args:
            a: grid of operand a (one scale per tensor).
            b: grid of operand b.
            b_axis: axis of ``dot`` along which b's per-channel scales run: 1 for the output and the input gradient, None
                for one scale per tensor.  A scale must not run along a contracted axis, so the weights of an input
                gradient, which contracts over the output channels, have one grid per *input* channel.
        """
        shape = [1] * self.dot.ndim
        if b.scale.ndim:
            if b_axis is None:
                raise ValueError("per-channel scales of b need b_axis")
            shape[b_axis] = -1
        sa, za = a.scale.astype(np.float64), a.zero.astype(np.float64)
        sb, zb = b.scale.astype(np.float64).reshape(shape), b.zero.astype(np.float64).reshape(shape)
        total = (sa * sb) * self.dot + (sa * zb) * self.a_sum + (za * sb) * self.b_sum + (za * zb) * self.count
        return total.astype(np.float32)


@dataclass
class Meter:
    """What an engine has spent: counter name -> total, and a row per product call."""

    totals: dict[str, int] = field(default_factory=dict)
    rows: list[dict[str, int | str]] = field(default_factory=list)

    def add_row(
        self, product: str, widths: tuple[int | str, int | str], batch: int, m: ConvGeometry, counters: dict[str, int]
    ) -> None:
        """Adds the row of a call.

        Args:
            widths: bits of the operands.
            batch: images of all its products, which have the geometry ``m`` otherwise.
            counters: what the call has spent.
        """
        row: dict[str, int | str] = {
            "product": product,
            "bits_a": widths[0],
            "bits_b": widths[1],
            "batch": batch,
            "in_channels": m.in_channels,
            "out_channels": m.out_channels,
            "height": m.in_hw[0],
            "width": m.in_hw[1],
            "kernel_height": m.kernel[0],
            "kernel_width": m.kernel[1],
            "stride": m.stride,
            "padding": m.padding,
        }
        self.rows.append({**row, **counters})


class Engine(Protocol):
    """Anything that computes the three products exactly.

    An engine may also have ``several`` and ``backward_mixed``, which compute many products in one go;
    :func:`several` and :func:`backward_mixed` use them or do without.
    """

    meter: Meter

    def forward(self, x: Operand, w: Operand, geometry: ConvGeometry) -> Sums: ...

    def input_gradient(self, g: Operand, w: Operand, geometry: ConvGeometry) -> Sums: ...

    def weight_gradient(self, x: Operand, g: Operand, geometry: ConvGeometry) -> Sums: ...


def several(engine: Engine, product: str, members: Sequence[tuple[Operand, Operand, ConvGeometry]]) -> list[Sums]:
    """Products of one kind that do not wait for each other, together if the engine can.

    Args:
        product: "forward", "input_gradient" or "weight_gradient".
        members: both operands, and a geometry that fits them.

    Returns:
        For each member what the engine's method of that name returns.
    """
    together = getattr(engine, "several", None)
    return list(together(product, members)) if together else [getattr(engine, product)(*each) for each in members]


def backward_mixed(
    engine: Engine, members: Sequence[tuple[Operand, Operand, ConvGeometry]], w: Operand
) -> list[tuple[Sums, Sums]]:
    """Both gradients for operands on grids of their own under the same weights, together if the engine can.

    Args:
        members: activations, output gradient, and a geometry that fits them.

    Returns:
        For each member what ``engine.input_gradient`` and ``engine.weight_gradient`` return.
    """
    together = getattr(engine, "backward_mixed", None)
    if together:
        return list(together(members, w))
    return [(engine.input_gradient(g, w, m), engine.weight_gradient(x, g, m)) for x, g, m in members]
