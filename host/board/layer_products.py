"""Quantized products of a layer on the board: ranges, keys, gates, and the float32 fall-back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from host.arrays import Array
from host.board.gate_decisions import Gates, exact_option_products
from host.board.operations import JobError
from host.driver.grouped import product_sums
from host.exact_engine import correlate, correlate_back, correlate_weight
from host.grids import extremes, grid_from_range, weight_operand
from host.numerics import derive_key, running_mean
from host.operands import ConvGeometry, Engine, Operand, backward_mixed, several

MAX_COLUMNS = 1 << 28  #: elements of an unfolded operand


# -- convolutions -------------------------------------------------------------------------------------------------


def job_geometry(
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


def _once(product: Callable[..., Array], a: Array, b: Array, g: ConvGeometry) -> Array:
    """A float32 product, formed in float64 and rounded once."""
    return product(a.astype(np.float64), b.astype(np.float64), g).astype(np.float32)


# -- layers -------------------------------------------------------------------------------------------------------


class LayerState:
    """Running activation range of one layer, for evaluation."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.low, self.span = np.zeros((), np.float32), np.zeros((), np.float32)
        self.batches = 0

    def note(self, low: Array, span: Array, momentum: float) -> None:
        """Fold in a batch's range: ``r <- m * r + (1 - m) * new``, the first batch as it is."""
        if self.batches:
            low, span = running_mean(self.low, low, momentum), running_mean(self.span, span, momentum)
        self.low, self.span = np.asarray(low), np.asarray(span)
        self.batches += 1


class LayerProducts:
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
        self._by_weight: dict[int, tuple[Array, Array, Array]] = {}  # output gradient, input -> gradient by the weight

    def begin(self, widths: tuple[int, ...], step: int, training: bool, target: float = 0.0) -> None:
        """Start a step: precision, its number (part of the keys), whether ranges are taken from the batch, and the
        cost that gates aim at, percent of float32."""
        self.widths, self._step, self._training, self._target = widths, step, training, target
        self._activation.clear()
        self._gradient.clear()
        self._by_weight.clear()

    def layer_widths(self, layer: int) -> tuple[int, ...]:
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
        g = job_geometry(x.shape, weight.shape, stride, padding, groups)
        widths = self.layer_widths(layer)
        if not any(widths):
            return _once(correlate, x, weight, self._dense(g, groups, layer))
        grid = grid_from_range(*self._activation_range(x, layer), widths[1])
        w = weight_operand(weight, widths[0], 0)
        a = Operand(grid, values=np.ascontiguousarray(x))
        return product_sums(self.engine, "forward", a, w, g, groups).real(grid, w.grid, 1)

    def _dense(self, g: ConvGeometry, groups: int, layer: int) -> ConvGeometry:
        if groups != 1:
            raise JobError(f"layer {self.layers[layer].name} is a grouped convolution, which has no float32 form here")
        return g

    def _bifurcated(self, layer: int) -> bool:
        """Whether the output gradient has another width in the weight gradient."""
        widths = self.layer_widths(layer)
        return len(widths) == 4 and widths[3] != widths[2]

    def _known_by_weight(self, grad: Array, x: Array, layer: int) -> Array | None:
        """Gradient by the weight if it was computed with that by these inputs."""
        of, at, found = self._by_weight.pop(layer, (None, None, None))
        return found if of is grad and at is x else None

    def _activation_operand(self, x: Array, layer: int) -> Operand:
        """A layer's input on the grid of its forward product."""
        grid = grid_from_range(*self._kept_range(layer), self.layer_widths(layer)[1])
        return Operand(grid, values=np.ascontiguousarray(x))

    def _gradient_operand(self, grad: Array, layer: int, last: bool) -> Operand:
        """The output gradient; with a width of its own in the weight gradient it is rounded independently."""
        widths, key = self.layer_widths(layer), self._key(layer)
        bits = widths[2]
        if last and self._bifurcated(layer):
            bits, key = widths[3], derive_key(key, 1)
        values = np.ascontiguousarray(grad)
        return Operand(grid_from_range(*self._gradient_range(values, layer), bits, key), values=values)

    def input_gradient(
        self, grad: Array, weight: Array, x: Array, *, layer: int, stride: int, padding: int, groups: int
    ) -> Array:
        """Gradient of the product by x, float32."""
        g = self._checked(grad, x, weight, stride, padding, groups)
        widths = self.layer_widths(layer)
        if not any(widths):
            return _once(correlate_back, grad, weight, self._dense(g, groups, layer))
        operand = self._gradient_operand(grad, layer, last=False)
        w = weight_operand(weight, widths[0], 0 if groups > 1 else 1)
        if groups > 1 or self._bifurcated(layer):
            return product_sums(self.engine, "input_gradient", operand, w, g, groups).real(operand.grid, w.grid, 1)
        # A job asks for the gradient by the weight next; both in one program send the output gradient once.
        a = self._activation_operand(x, layer)
        ((by_x, by_w),) = backward_mixed(self.engine, [(a, operand, g)], w)
        self._by_weight[layer] = grad, x, by_w.real(a.grid, operand.grid)
        return by_x.real(operand.grid, w.grid, 1)

    def weight_gradient(
        self, grad: Array, x: Array, weight: Array, *, layer: int, stride: int, padding: int, groups: int
    ) -> Array:
        """Gradient of the product by the weight, float32."""
        g = self._checked(grad, x, weight, stride, padding, groups)
        widths = self.layer_widths(layer)
        if not any(widths):
            return _once(correlate_weight, x, grad, self._dense(g, groups, layer))
        known = self._known_by_weight(grad, x, layer)
        if known is not None:
            return known
        a = self._activation_operand(x, layer)
        operand = self._gradient_operand(grad, layer, last=True)
        return product_sums(self.engine, "weight_gradient", a, operand, g, groups).real(a.grid, operand.grid)

    @staticmethod
    def _checked(grad: Array, x: Array, weight: Array, stride: int, padding: int, groups: int = 1) -> ConvGeometry:
        g = job_geometry(x.shape, weight.shape, stride, padding, groups)
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
        return Operand(grid_from_range(*self._activation[layer], bits), values=np.ascontiguousarray(x[index]))

    def _gradients(self, grad: Array, index: Array, option: int, layer: int) -> Operand:
        key, bits = derive_key(self._key(layer), option), self.gates.options[option][1]
        grid = grid_from_range(*self._gradient_range(grad, layer), bits, key)
        return Operand(grid, values=np.ascontiguousarray(grad[index]))

    def gated_product(
        self, x: Array, weight: Array, mask: Array, *, layer: int, stride: int, padding: int
    ) -> Array:  # fmt: skip
        """Convolution of x with weight, each sample at the bits that it chose, float32."""
        g, members = job_geometry(x.shape, weight.shape, stride, padding), self.gates.members(mask, len(x))
        self._activation_range(x, layer)
        w = weight_operand(weight, self.gates.weight_bits, 0)
        y = np.empty((g.batch, g.out_channels, *g.out_hw), np.float32)
        each = [
            (self._activations(x, index, option, layer), w, replace(g, batch=len(index))) for option, index in members
        ]
        for (a, _, _), (_, index), sums in zip(each, members, several(self.engine, "forward", each), strict=True):
            y[index] = sums.real(a.grid, w.grid, 1)
        return y

    def gated_input_gradient(
        self, grad: Array, weight: Array, x: Array, mask: Array, *, layer: int, stride: int, padding: int
    ) -> Array:
        """Gradient of the gated product by x, float32."""
        g = self._checked(grad, x, weight, stride, padding)
        self._kept_range(layer)
        w = weight_operand(weight, self.gates.weight_bits, 1)
        dx, dw = np.empty(x.shape, np.float32), np.zeros(weight.shape, np.float32)
        members = self.gates.members(mask, len(x))
        each = [
            (
                self._activations(x, index, option, layer),
                self._gradients(grad, index, option, layer),
                replace(g, batch=len(index)),
            )
            for option, index in members
        ]
        both = backward_mixed(self.engine, each, w)
        for (a, d, _), (_, index), (by_x, by_w) in zip(each, members, both, strict=True):
            dx[index] = by_x.real(d.grid, w.grid, 1)
            dw += by_w.real(a.grid, d.grid)
        self._by_weight[layer] = grad, x, dw
        return dx

    def gated_weight_gradient(
        self, grad: Array, x: Array, weight: Array, mask: Array, *, layer: int, stride: int, padding: int
    ) -> Array:
        """Gradient of the gated product by the weight, float32."""
        g = self._checked(grad, x, weight, stride, padding)
        self._kept_range(layer)
        known = self._known_by_weight(grad, x, layer)
        if known is not None:
            return known
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
        return exact_option_products(
            np.ascontiguousarray(x), dx, [grid_from_range(low, span, bits) for bits, _ in self.gates.options]
        )

    def cost_term(self, cost: Array, task: Array) -> Array:
        """The cost's term of the loss; see :meth:`host.board.gate_decisions.Gates.cost_term`."""
        return self.gates.cost_term(cost, task, self._target)

    def cost_term_gradient(self, grad: Array, cost: Array, task: Array) -> Array:
        """Its gradient by the cost."""
        return self.gates.cost_term(cost, task, self._target, grad)
