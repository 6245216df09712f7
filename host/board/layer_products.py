"""Quantized products of a layer on the board: grids, keys, the exact NumPy engine, and the float32 fall-back.

The grids and keys are those of the software model, in single precision step by step, so that codes agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from host.board.gate_decisions import Gates, option_products
from host.board.operations import JobError
from host.driver.grouped import product_sums
from host.driver.layout import host_codes
from host.operands import ConvGeometry, Engine, Grid, Meter, Operand, Sums, derive_key
from host.program.packing import flush

Array = npt.NDArray[Any]

_SMALLEST_SCALE, _LARGEST_SCALE = np.float32(2.0**-126), np.float32(2.0**126)
MAX_COLUMNS = 1 << 28  #: elements of an unfolded operand


def extremes(x: Array, axis: int | None = None) -> tuple[Array, Array]:
    """Minimum and range of ``x`` over everything, or per index of ``axis``; float32, subnormals flushed.

    Raises:
        JobError: NaN, infinity or a range beyond float32.
    """
    others = tuple(i for i in range(x.ndim) if i != axis) if axis is not None else None
    low, high = flush(np.asarray(x.min(others))), flush(np.asarray(x.max(others)))
    with np.errstate(over="ignore", invalid="ignore"):
        span = high - low
    if not np.isfinite(span).all():
        raise JobError(
            f"a tensor of shape {x.shape} holds NaN or infinity, or a range beyond float32; training has diverged: "
            "lower the learning rate or raise the precision"
        )
    return low.astype(np.float32), flush(span).astype(np.float32)


def grid_of(low: Array, span: Array, bits: int, key: int | None = None) -> Grid:
    """The affine grid of ``bits`` bits over ``[low, low + span]``.

    Raises:
        JobError: the range is too large.
    """
    scale = np.maximum(span / np.float32((1 << bits) - 1), _SMALLEST_SCALE)
    if (scale > _LARGEST_SCALE).any():
        raise JobError(f"range {span.max():g} is too large for {bits} bits; training has diverged")
    return Grid(bits, False, scale, low, key)


def weight_operand(weight: Array, bits: int, axis: int) -> Operand:
    """A weight (O, I, kh, kw) as codes on one grid per index of ``axis``."""
    grid = grid_of(*extremes(weight, axis), bits)
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    zero, reciprocal = grid.zero.reshape(shape), (np.float32(1) / grid.scale).reshape(shape)
    t = flush(flush(flush(weight) - zero) * reciprocal)
    codes = np.clip(np.rint(t), 0, (1 << bits) - 1).astype(np.int32)
    return Operand(grid, codes=codes)


# -- convolutions -------------------------------------------------------------------------------------------------


def geometry_of(
    x: tuple[int, ...], weight: tuple[int, ...], stride: int, padding: int, groups: int = 1
) -> ConvGeometry:
    """Geometry of a convolution; its weights are (O, I/groups, kh, kw).

    Raises:
        JobError: shapes that do not fit each other, or an operand that would become too large.
    """
    if len(x) != 4 or len(weight) != 4 or x[1] != weight[1] * groups or 0 in x or 0 in weight:
        raise JobError(f"a convolution of {x} with weights {weight}: need (N, I, H, W) and (O, I/groups, kh, kw)")
    if weight[0] % groups:
        raise JobError(f"weights {weight} do not divide into {groups} groups")
    g = ConvGeometry(x[0], x[1], weight[0], (x[2], x[3]), (weight[2], weight[3]), stride, padding)
    if min(g.out_hw) < 1 or max(g.kernel) > 64:
        raise JobError(f"a convolution of {x} with weights {weight}, stride {stride}, padding {padding} has no output")
    if g.batch * g.in_channels * g.kernel[0] * g.kernel[1] * g.out_hw[0] * g.out_hw[1] > MAX_COLUMNS:
        raise JobError(f"a convolution of {x} with weights {weight} is too large; use a smaller batch")
    return g


def _columns(x: Array, g: ConvGeometry) -> Array:
    """(N, C, H, W) -> (N, C, OH, OW, kh, kw), a view of the padded image."""
    p = g.padding
    padded = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, g.kernel, axis=(2, 3))
    return windows[:, :, :: g.stride, :: g.stride]


def _valid(g: ConvGeometry) -> Array:
    """1 where a kernel position falls on a pixel: float64 (OH, OW, kh, kw)."""
    one = ConvGeometry(1, 1, 1, g.in_hw, g.kernel, g.stride, g.padding)
    return _columns(np.ones((1, 1, *g.in_hw)), one)[0, 0]


def _fold(columns: Array, g: ConvGeometry) -> Array:
    """Transpose of :func:`_columns`: (N, OH, OW, C, kh, kw) -> (N, C, H, W), overlaps added."""
    n, oh, ow, c = columns.shape[:4]
    s, p = g.stride, g.padding
    h, w = g.in_hw
    out = np.zeros((n, c, h + 2 * p + s, w + 2 * p + s), dtype=columns.dtype)
    for ky in range(g.kernel[0]):
        for kx in range(g.kernel[1]):
            out[:, :, ky : ky + s * oh : s, kx : kx + s * ow : s] += columns[..., ky, kx].transpose(0, 3, 1, 2)
    return out[:, :, p : p + h, p : p + w]


def _once(product: Callable[..., Array], a: Array, b: Array, g: ConvGeometry) -> Array:
    """A float32 product, formed in float64 and rounded once."""
    return product(a.astype(np.float64), b.astype(np.float64), g).astype(np.float32)


def correlate(x: Array, weight: Array, g: ConvGeometry) -> Array:
    """Output (N, O, OH, OW), in the operands' type."""
    return np.tensordot(_columns(x, g), weight, ((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)


def correlate_back(grad: Array, weight: Array, g: ConvGeometry) -> Array:
    """Input gradient (N, I, H, W)."""
    return _fold(np.tensordot(grad, weight, ((1,), (0,))), g)


def correlate_weight(x: Array, grad: Array, g: ConvGeometry) -> Array:
    """Weight gradient (O, I, kh, kw)."""
    return np.tensordot(grad, _columns(x, g), ((0, 2, 3), (0, 2, 3)))


class ExactEngine:
    """Implements :class:`host.operands.Engine` in NumPy: integers carried in float32 or float64, exact in any order."""

    def __init__(self) -> None:
        self.meter = Meter()

    @staticmethod
    def _carried(operand: Operand, other: Operand, terms: int) -> Array:
        bound = terms << (operand.grid.bits + other.grid.bits)
        if bound < 1 << 24:
            return host_codes(operand).astype(np.float32)
        if bound >= 1 << 53:
            raise JobError(f"a sum of {terms} products of {operand.grid.bits} x {other.grid.bits} bits is not exact")
        return host_codes(operand).astype(np.float64)

    def _count(self, a: Grid, b: Grid, macs: int) -> None:
        totals = self.meter.totals
        for name, amount in (("PRODUCTS", 1), ("MACS", macs), ("BIT_MACS", macs * a.bits * b.bits)):
            totals[name] = totals.get(name, 0) + amount

    def forward(self, x: Operand, w: Operand, geometry: ConvGeometry) -> Sums:
        """See :class:`host.operands.Sums` for shapes."""
        g = geometry
        terms = g.in_channels * g.kernel[0] * g.kernel[1]
        a, b = self._carried(x, w, terms), self._carried(w, x, terms)
        valid = _valid(g)
        self._count(x.grid, w.grid, g.batch * b.size * g.out_hw[0] * g.out_hw[1])
        return Sums(
            _integers(correlate(a, b, g)),
            _integers(_columns(a.sum(1, keepdims=True, dtype=np.float64), g).sum((4, 5))),
            _integers(np.tensordot(b.sum(1, dtype=np.float64), valid, ((1, 2), (2, 3)))[None]),
            _integers(valid.sum((2, 3))[None, None] * g.in_channels),
        )

    def input_gradient(self, g: Operand, w: Operand, geometry: ConvGeometry) -> Sums:
        """See :class:`host.operands.Sums` for shapes."""
        m = geometry
        terms = m.out_channels * m.kernel[0] * m.kernel[1]
        grad, b = self._carried(g, w, terms), self._carried(w, g, terms)
        oh, ow = m.out_hw
        flat = np.broadcast_to(
            grad.sum(1, dtype=np.float64)[:, :, :, None, None, None], (m.batch, oh, ow, 1, *m.kernel)
        )
        weights = np.broadcast_to(b.sum(0, dtype=np.float64)[None, None, None], (1, oh, ow, m.in_channels, *m.kernel))
        ones = np.broadcast_to(np.float64(m.out_channels), (1, oh, ow, 1, *m.kernel))
        self._count(g.grid, w.grid, m.batch * b.size * oh * ow)
        return Sums(
            _integers(correlate_back(grad, b, m)),
            _integers(_fold(flat, m)),
            _integers(_fold(weights, m)),
            _integers(_fold(ones, m)),
        )

    def weight_gradient(self, x: Operand, g: Operand, geometry: ConvGeometry) -> Sums:
        """See :class:`host.operands.Sums` for shapes."""
        m = geometry
        terms = m.batch * m.out_hw[0] * m.out_hw[1]
        a, grad = self._carried(x, g, terms), self._carried(g, x, terms)
        valid = _valid(m)
        dot = correlate_weight(a, grad, m)
        self._count(x.grid, g.grid, dot.size * terms)
        return Sums(
            _integers(dot),
            _integers(_columns(a, m).sum((0, 2, 3), dtype=np.float64)[None]),
            _integers(np.tensordot(grad.sum(0, dtype=np.float64), valid, ((1, 2), (0, 1)))[:, None]),
            _integers(valid.sum((0, 1))[None, None] * m.batch),
        )


def _integers(values: Array) -> npt.NDArray[np.int64]:
    return np.asarray(values).astype(np.int64)


# -- layers -------------------------------------------------------------------------------------------------------


class LayerState:
    """Running activation range of one layer, for evaluation."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.low, self.span = np.zeros((), np.float32), np.zeros((), np.float32)
        self.batches = 0

    def note(self, low: Array, span: Array, momentum: float) -> None:
        """Fold in a batch's range: ``r <- m * r + (1 - m) * new``, the first batch as it is."""
        old = momentum if self.batches else 0.0
        m, share = np.float32(old), np.float32(1.0 - old)
        self.low = np.asarray(self.low * m + low * share)
        self.span = np.asarray(self.span * m + span * share)
        self.batches += 1


class Products:
    """The three products of all layers during one step.

    Args:
        engine: multiplies codes.
        layers: running ranges by layer number.
        fixed: layer number -> widths that it has whenever the schedule quantizes at all; all 0: it stays float32.
        seed: of the stochastic rounding.
        momentum: of the running ranges.
        gates: of a gated network.
    """

    def __init__(
        self,
        engine: Engine,
        layers: list[LayerState],
        fixed: Mapping[int, tuple[int, ...]],
        seed: int,
        momentum: float,
        gates: Gates | None = None,
    ) -> None:
        self.engine, self.layers, self._fixed, self._gates = engine, layers, fixed, gates
        self._seed, self._momentum = seed, momentum
        self._step, self._training, self._target = 0, False, 0.0
        self.widths: tuple[int, ...] = (0, 0, 0)
        self._activation: dict[int, tuple[Array, Array]] = {}
        self._gradient: dict[int, tuple[Array, Array]] = {}

    def begin(self, widths: tuple[int, ...], step: int, training: bool, target: float = 0.0) -> None:
        """Start a step: precision, its number (part of the keys), whether ranges are taken from the batch, and the
        cost that gates aim at, percent of float32."""
        self.widths, self._step, self._training, self._target = widths, step, training, target
        self._activation.clear()
        self._gradient.clear()

    def _widths(self, layer: int) -> tuple[int, ...]:
        """Widths of a layer in this step, all 0 for float32."""
        return self._fixed.get(layer, self.widths) if any(self.widths) else self.widths

    def _key(self, layer: int) -> int:
        return derive_key(self._seed, self._step, layer, 0)

    def _activation_range(self, x: Array, layer: int) -> tuple[Array, Array]:
        """Minimum and range of a layer's input: of the batch in training, kept for its gradients; else the running ones."""
        state = self.layers[layer]
        low, span = extremes(x)
        if self._training:
            if layer in self._activation:
                raise JobError(f"layer {state.name} is used twice in one step, which has no random numbers of its own")
            state.note(low, span, self._momentum)
        elif not state.batches:
            raise JobError(f"layer {state.name} has not seen a training batch, so its range is unknown; train first")
        else:
            low, span = state.low, state.span
        self._activation[layer] = low, span
        return low, span

    def _kept_range(self, layer: int) -> tuple[Array, Array]:
        if layer not in self._activation:
            raise JobError(f"layer {self.layers[layer].name} has a gradient without a product before it")
        return self._activation[layer]

    def _gradient_range(self, grad: Array, layer: int) -> tuple[Array, Array]:
        if layer not in self._gradient:
            self._gradient[layer] = extremes(grad)
        return self._gradient[layer]

    # -- one precision per layer ----------------------------------------------------------------------------------

    def product(self, x: Array, weight: Array, *, layer: int, stride: int, padding: int, groups: int) -> Array:
        """Convolution of x with weight, float32."""
        g = geometry_of(x.shape, weight.shape, stride, padding, groups)
        widths = self._widths(layer)
        if not any(widths):
            return _once(correlate, x, weight, self._dense(g, groups, layer))
        grid = grid_of(*self._activation_range(x, layer), widths[1])
        w = weight_operand(weight, widths[0], 0)
        a = Operand(grid, values=np.ascontiguousarray(x))
        return product_sums(self.engine, "forward", a, w, g, groups).real(grid, w.grid, 1)

    def _dense(self, g: ConvGeometry, groups: int, layer: int) -> ConvGeometry:
        if groups != 1:
            raise JobError(f"layer {self.layers[layer].name} is a grouped convolution, which has no float32 form here")
        return g

    def _gradient_operand(self, grad: Array, layer: int, last: bool) -> Operand:
        """The output gradient; with a width of its own in the weight gradient it is rounded independently."""
        widths, key = self._widths(layer), self._key(layer)
        bits = widths[2]
        if last and len(widths) == 4 and widths[3] != bits:
            bits, key = widths[3], derive_key(key, 1)
        values = np.ascontiguousarray(grad)
        return Operand(grid_of(*self._gradient_range(values, layer), bits, key), values=values)

    def input_gradient(
        self, grad: Array, weight: Array, x: Array, *, layer: int, stride: int, padding: int, groups: int
    ) -> Array:
        """Gradient of the product by x, float32."""
        g = self._checked(grad, x, weight, stride, padding, groups)
        widths = self._widths(layer)
        if not any(widths):
            return _once(correlate_back, grad, weight, self._dense(g, groups, layer))
        operand = self._gradient_operand(grad, layer, last=False)
        w = weight_operand(weight, widths[0], 0 if groups > 1 else 1)
        return product_sums(self.engine, "input_gradient", operand, w, g, groups).real(operand.grid, w.grid, 1)

    def weight_gradient(
        self, grad: Array, x: Array, weight: Array, *, layer: int, stride: int, padding: int, groups: int
    ) -> Array:
        """Gradient of the product by the weight, float32."""
        g = self._checked(grad, x, weight, stride, padding, groups)
        widths = self._widths(layer)
        if not any(widths):
            return _once(correlate_weight, x, grad, self._dense(g, groups, layer))
        a = Operand(grid_of(*self._kept_range(layer), widths[1]), values=np.ascontiguousarray(x))
        operand = self._gradient_operand(grad, layer, last=True)
        return product_sums(self.engine, "weight_gradient", a, operand, g, groups).real(a.grid, operand.grid)

    @staticmethod
    def _checked(grad: Array, x: Array, weight: Array, stride: int, padding: int, groups: int = 1) -> ConvGeometry:
        g = geometry_of(x.shape, weight.shape, stride, padding, groups)
        if grad.shape != (g.batch, g.out_channels, *g.out_hw):
            raise JobError(f"an output gradient of {grad.shape} does not fit {x.shape} and weights {weight.shape}")
        return g

    # -- one precision per sample ---------------------------------------------------------------------------------
    #
    # Samples that chose the same option are one product of the engine; options have random numbers of their own.

    @property
    def gates(self) -> Gates:
        """Of this job.

        Raises:
            JobError: it has none.
        """
        if self._gates is None:
            raise JobError("a gated operation in a job without gates")
        return self._gates

    def _activations(self, x: Array, index: Array, option: int, layer: int) -> Operand:
        bits = self.gates.options[option][0]
        return Operand(grid_of(*self._activation[layer], bits), values=np.ascontiguousarray(x[index]))

    def _gradients(self, grad: Array, index: Array, option: int, layer: int) -> Operand:
        key, bits = derive_key(self._key(layer), option), self.gates.options[option][1]
        grid = grid_of(*self._gradient_range(grad, layer), bits, key)
        return Operand(grid, values=np.ascontiguousarray(grad[index]))

    def gated_product(
        self, x: Array, weight: Array, mask: Array, *, layer: int, stride: int, padding: int
    ) -> Array:  # fmt: skip
        """Convolution of x with weight, each sample at the bits that it chose, float32."""
        g, members = geometry_of(x.shape, weight.shape, stride, padding), self.gates.members(mask, len(x))
        self._activation_range(x, layer)
        w = weight_operand(weight, self.gates.weight_bits, 0)
        y = np.empty((g.batch, g.out_channels, *g.out_hw), np.float32)
        for option, index in members:
            a = self._activations(x, index, option, layer)
            y[index] = self.engine.forward(a, w, replace(g, batch=len(index))).real(a.grid, w.grid, 1)
        return y

    def gated_input_gradient(
        self, grad: Array, weight: Array, x: Array, mask: Array, *, layer: int, stride: int, padding: int
    ) -> Array:
        """Gradient of the gated product by x, float32."""
        g = self._checked(grad, x, weight, stride, padding)
        w = weight_operand(weight, self.gates.weight_bits, 1)
        dx = np.empty(x.shape, np.float32)
        for option, index in self.gates.members(mask, len(x)):
            d = self._gradients(grad, index, option, layer)
            dx[index] = self.engine.input_gradient(d, w, replace(g, batch=len(index))).real(d.grid, w.grid, 1)
        return dx

    def gated_weight_gradient(
        self, grad: Array, x: Array, weight: Array, mask: Array, *, layer: int, stride: int, padding: int
    ) -> Array:
        """Gradient of the gated product by the weight, float32."""
        g = self._checked(grad, x, weight, stride, padding)
        self._kept_range(layer)
        dw = np.zeros(weight.shape, np.float32)
        for option, index in self.gates.members(mask, len(x)):
            a, d = self._activations(x, index, option, layer), self._gradients(grad, index, option, layer)
            dw += self.engine.weight_gradient(a, d, replace(g, batch=len(index))).real(a.grid, d.grid)
        return dw

    def gated_mask_gradient(self, dx: Array, x: Array, mask: Array, *, layer: int) -> Array:
        """Gradient of the gated product by the choice, float32 (N, P): that of the mixture of all options."""
        self.gates.members(mask, len(x))
        if dx.shape != x.shape:
            raise JobError(f"a gradient of {dx.shape} for values of {x.shape}")
        low, span = self._kept_range(layer)
        return option_products(
            np.ascontiguousarray(x), dx, [grid_of(low, span, bits) for bits, _ in self.gates.options]
        )

    def cost_term(self, cost: Array, task: Array) -> Array:
        """The cost's term of the loss; see :meth:`host.board.gate_decisions.Gates.cost_factors`."""
        for factor in self.gates.cost_factors(cost, task, self._target):
            cost = np.asarray(cost * factor)
        return cost

    def cost_term_gradient(self, grad: Array, cost: Array, task: Array) -> Array:
        """Its gradient by the cost."""
        if grad.shape != ():
            raise JobError("the gradient of a cost is one number")
        for factor in reversed(self.gates.cost_factors(cost, task, self._target)):
            grad = np.asarray(grad * factor)
        return grad
