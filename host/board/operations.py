"""The operations of a job's graphs, in NumPy.

All values are float32 but labels (int64).  Results do not depend on the machine's vector width: sums are formed in
float64 in a fixed order (:func:`tree_sum`), transcendental functions and matrix products in float64, each rounded once;
everything else is single float32 operations.  The software model computes the same with an exact engine
(``sw_model/nn/reproducible.py``), so that a job trains to the same bits as its recipe there.

==================== ========================================= ===================================================
operation            operands                                  result
==================== ========================================= ===================================================
product              x (N,I,H,W), w (O,I,kh,kw)                convolution, quantized at the layer's precision
input_gradient       g (N,O,OH,OW), w, x                       its gradient by x
weight_gradient      g, x, w                                   its gradient by w
gated_product        x, w, choice (N,P)                        convolution, each sample at the bits that it chose
gated_input_gradient g, w, x, choice                           its gradient by x
gated_weight_gradient g, x, w, choice                          its gradient by w
gated_mask_gradient  gradient by x, x, choice                  its gradient by the choice, for all options
choice               probabilities (N,P)                       1 at the greatest of each row, 0 elsewhere
cost_term            cost, task loss                           cost times its signed weight, see host/board/gate_decisions.py
cost_term_gradient   g, cost, task loss                        its gradient by the cost
batch_norm           x, weight, bias, mean, variance           y, batch mean, 1/std, new mean, new variance
batch_norm_fixed     x, weight, bias, mean, variance           y with the running statistics
batch_norm_gradient  g, x, weight, batch mean, 1/std           gradients by x, weight, bias
relu                 x                                         max(x, 0)
relu_gradient        g, y                                      g where y > 0, else 0
add                  a, b                                      a + b, broadcast
multiply             a, b                                      a * b, broadcast
scale                a                                         a * factor
divide               a                                         a / divisor
reshape              a                                         the same elements in another shape
expand               a                                         broadcast to another shape
transpose            a                                         axes in another order
slice                a                                         a range of one axis
concatenate          a, ...                                    one after the other along an axis
zeros                                                          zeros of a shape
matmul               a (M,K), b (K,N) or (K,)                  matrix product
affine               bias, a (M,K), b (K,N)                    matrix product plus a bias per column
sigmoid, tanh        a                                         the function of every element
sigmoid_gradient, tanh_gradient  g, y                          gradient by the operand, y the result
softmax              a                                         along one axis
softmax_gradient     g, y                                      gradient by the operand, y the result
sum                  a                                         sum over axes, which stay with length 1 or go
mean                 a                                         mean over axes, likewise
fill                 a                                         a constant in a's shape
passes, ...          a backbone in passes of the fabric, see host/board/job_step.py
log_softmax          a                                         along one axis
log_softmax_gradient g, y                                      gradient by the operand, y the result
nll                  y, labels                                 mean negative log-likelihood, number of labels
nll_gradient         g, y, labels, number                      gradient by y
==================== ========================================= ===================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from host.arrays import Array
from host.numerics import tree_sum_of_rows


class JobError(ValueError):
    """A job file, or a step of it, is not what this program can run; the message names what and where."""


@dataclass(frozen=True)
class Operation:
    """Number of operands and of results (None: one or more), attributes with their ranges, and the function (None: done by the runtime)."""

    inputs: int | None
    outputs: int | None
    run: Callable[..., Any] | None
    attributes: Mapping[str, tuple[str, float, float]] = field(default_factory=dict)


def _column(values: Array) -> Array:
    return values.reshape(-1, 1, 1)


def tree_sum(a: Array, axes: Sequence[int]) -> Array:
    """Sum over axes in float64, in the order of :func:`host.numerics.tree_sum_of_rows`."""
    kept = [i for i in range(a.ndim) if i not in axes]
    rows = a.transpose(*axes, *kept).reshape(-1, *(a.shape[i] for i in kept)).astype(np.float64)
    return np.asarray(tree_sum_of_rows(rows))


def _image(x: Array, *parameters: Array) -> None:
    if x.ndim != 4 or any(p.shape != (x.shape[1],) for p in parameters):
        raise JobError(f"batch norm of {x.shape} needs parameters of one number per channel")


def batch_norm(
    x: Array, weight: Array, bias: Array, mean: Array, variance: Array, *, momentum: float, eps: float
) -> tuple[Array, ...]:
    """Normalisation with the batch's statistics; see the table."""
    _image(x, weight, bias, mean, variance)
    n = x.size // x.shape[1]
    if n < 2:
        raise JobError("batch norm in training needs more than one value per channel; use larger batches")
    exact = tree_sum(x, (0, 2, 3)) / n
    batch_mean = exact.astype(np.float32)
    squares = tree_sum(np.square(x - _column(batch_mean), dtype=np.float64), (0, 2, 3))
    inverse = (1 / np.sqrt(squares / n + eps)).astype(np.float32)
    new_mean = (momentum * exact + (1 - momentum) * mean.astype(np.float64)).astype(np.float32)
    new_variance = (momentum * squares / (n - 1) + (1 - momentum) * variance.astype(np.float64)).astype(np.float32)
    return _normalised(x, weight, bias, batch_mean, inverse), batch_mean, inverse, new_mean, new_variance


def _normalised(x: Array, weight: Array, bias: Array, mean: Array, inverse: Array) -> Array:
    factor = inverse * weight
    return np.asarray(x * _column(factor) + _column(bias - mean * factor))


def batch_norm_fixed(x: Array, weight: Array, bias: Array, mean: Array, variance: Array, *, eps: float) -> Array:
    """Normalisation with running statistics."""
    _image(x, weight, bias, mean, variance)
    inverse = (1 / np.sqrt(variance.astype(np.float64) + eps)).astype(np.float32)
    return _normalised(x, weight, bias, mean, inverse)


def batch_norm_gradient(g: Array, x: Array, weight: Array, mean: Array, inverse: Array) -> tuple[Array, Array, Array]:
    """Gradients by x, weight and bias."""
    _image(x, weight, mean, inverse)
    if g.shape != x.shape:
        raise JobError(f"batch norm's gradient {g.shape} differs from its input {x.shape}")
    n = x.size // x.shape[1]
    centred = x - _column(mean)
    bias = tree_sum(g, (0, 2, 3))
    dot = tree_sum(np.multiply(centred, g, dtype=np.float64), (0, 2, 3))
    slope = (dot * np.square(inverse, dtype=np.float64) / n).astype(np.float32)
    dx = (g - _column((bias / n).astype(np.float32)) - centred * _column(slope)) * _column(inverse * weight)
    return dx, (dot * inverse).astype(np.float32), bias.astype(np.float32)


def _axes(a: Array, axes: Sequence[int]) -> tuple[int, ...]:
    if any(axis >= a.ndim for axis in axes) or len(set(axes)) != len(axes):
        raise JobError(f"axes {list(axes)} of a value with {a.ndim} axes")
    return tuple(axes)


def _reduced(a: Array, axes: Sequence[int], keep: int, share: bool) -> Array:
    total = tree_sum(a, _axes(a, axes))
    if share:
        total = total / math.prod(a.shape[i] for i in axes)
    shape = [1 if i in axes else n for i, n in enumerate(a.shape)]
    return np.asarray(total.reshape(shape) if keep else total, np.float32)


def _total(a: Array, axes: Sequence[int], keep: int) -> Array:
    return _reduced(a, axes, keep, False)


def _mean(a: Array, axes: Sequence[int], keep: int) -> Array:
    return _reduced(a, axes, keep, True)


def _softmax(a: Array, *, axis: int) -> Array:
    _axes(a, (axis,))
    powers = np.exp(a.astype(np.float64) - a.max(axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis, keepdims=True), np.float32)


def _softmax_gradient(g: Array, y: Array, *, axis: int) -> Array:
    _axes(g, (axis,))
    product = np.multiply(g, y, dtype=np.float64)
    return np.asarray(product - y * product.sum(axis, keepdims=True), np.float32)


def _log_softmax(a: Array, *, axis: int) -> Array:
    _axes(a, (axis,))
    moved = a.astype(np.float64) - a.max(axis, keepdims=True)
    return np.asarray(moved - np.log(np.exp(moved).sum(axis, keepdims=True)), np.float32)


def _log_softmax_gradient(g: Array, y: Array, *, axis: int) -> Array:
    _axes(g, (axis,))
    return np.asarray(g - np.exp(y, dtype=np.float64) * g.sum(axis, keepdims=True, dtype=np.float64), np.float32)


def _labels(y: Array, labels: Array) -> None:
    if y.ndim != 2 or labels.shape != y.shape[:1] or labels.dtype.kind != "i":
        raise JobError(f"likelihood of {y.shape} values with labels {labels.dtype} {labels.shape}")
    if labels.size and (labels.min() < 0 or labels.max() >= y.shape[1]):
        raise JobError(f"labels {labels.min()}..{labels.max()} with {y.shape[1]} classes")


def _nll(y: Array, labels: Array) -> tuple[Array, Array]:
    _labels(y, labels)
    count = np.float32(len(labels))
    return np.asarray(-tree_sum(y[np.arange(len(labels)), labels], (0,)) / len(labels), np.float32), np.asarray(count)


def _nll_gradient(g: Array, y: Array, labels: Array, count: Array) -> Array:
    _labels(y, labels)
    if g.shape != () or count.shape != ():
        raise JobError("the gradient of a likelihood is one number")
    out = np.zeros_like(y)
    out[np.arange(len(labels)), labels] = -g / count
    return out


def _slice(a: Array, *, axis: int, start: int, stop: int) -> Array:
    _axes(a, (axis,))
    return a[(slice(None),) * axis + (slice(start, stop),)]


def _concatenate(*parts: Array, axis: int) -> Array:
    _axes(parts[0], (axis,))
    return np.concatenate(parts, axis)


def _matmul(a: Array, b: Array) -> Array:
    return np.asarray(a.astype(np.float64) @ b.astype(np.float64), np.float32)


def _affine(bias: Array, a: Array, b: Array) -> Array:
    return np.asarray(a.astype(np.float64) @ b.astype(np.float64) + bias, np.float32)


def _sigmoid(a: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-a.astype(np.float64))), np.float32)


def _sigmoid_gradient(g: Array, y: Array) -> Array:
    return np.asarray(g * ((1 - y.astype(np.float64)) * y), np.float32)


def _tanh_gradient(g: Array, y: Array) -> Array:
    return np.asarray(g * (1 - np.square(y, dtype=np.float64)), np.float32)


def _choice(soft: Array) -> Array:
    if soft.ndim != 2 or not soft.shape[1]:
        raise JobError(f"a choice among probabilities of shape {soft.shape}; they are (samples, options)")
    return np.eye(soft.shape[1], dtype=np.float32)[soft.argmax(1)]


_AXIS = {"axis": ("int", 0, 7)}
_AXES = {"axes": ("ints", 0, 7), "keep": ("int", 0, 1)}
_LAYER = {"layer": ("int", 0, 9999)}
_GATED = {**_LAYER, "stride": ("int", 1, 16), "padding": ("int", 0, 16)}
_PRODUCT = {**_GATED, "groups": ("int", 1, 1 << 20)}

OPERATIONS: dict[str, Operation] = {
    "product": Operation(2, 1, None, _PRODUCT),
    "input_gradient": Operation(3, 1, None, _PRODUCT),
    "weight_gradient": Operation(3, 1, None, _PRODUCT),
    "gated_product": Operation(3, 1, None, _GATED),
    "gated_input_gradient": Operation(4, 1, None, _GATED),
    "gated_weight_gradient": Operation(4, 1, None, _GATED),
    "gated_mask_gradient": Operation(3, 1, None, _LAYER),
    "choice": Operation(1, 1, _choice),
    "cost_term": Operation(2, 1, None),
    "cost_term_gradient": Operation(3, 1, None),
    "batch_norm": Operation(5, 5, batch_norm, {"momentum": ("float", 0, 1), "eps": ("float", 1e-12, 1)}),
    "batch_norm_fixed": Operation(5, 1, batch_norm_fixed, {"eps": ("float", 1e-12, 1)}),
    "batch_norm_gradient": Operation(5, 3, batch_norm_gradient),
    "relu": Operation(1, 1, lambda x: np.maximum(x, np.float32(0))),
    "relu_gradient": Operation(2, 1, lambda g, y: np.where(y > 0, g, np.float32(0))),
    "add": Operation(2, 1, lambda a, b: a + b),
    "multiply": Operation(2, 1, lambda a, b: a * b),
    "scale": Operation(1, 1, lambda a, factor: a * np.float32(factor), {"factor": ("float", -1e9, 1e9)}),
    "divide": Operation(1, 1, lambda a, divisor: a / np.float32(divisor), {"divisor": ("float", 1e-9, 1e9)}),
    "reshape": Operation(1, 1, lambda a, shape: a.reshape(shape), {"shape": ("ints", 0, 1 << 30)}),
    "expand": Operation(1, 1, lambda a, shape: np.broadcast_to(a, shape), {"shape": ("ints", 0, 1 << 30)}),
    "transpose": Operation(1, 1, lambda a, axes: a.transpose(axes), {"axes": ("ints", 0, 7)}),
    "slice": Operation(1, 1, _slice, {**_AXIS, "start": ("int", 0, 1 << 30), "stop": ("int", 0, 1 << 30)}),
    "concatenate": Operation(None, 1, _concatenate, _AXIS),
    "zeros": Operation(0, 1, lambda shape: np.zeros(shape, np.float32), {"shape": ("ints", 0, 1 << 30)}),
    "matmul": Operation(2, 1, _matmul),
    "affine": Operation(3, 1, _affine),
    "sigmoid": Operation(1, 1, _sigmoid),
    "sigmoid_gradient": Operation(2, 1, _sigmoid_gradient),
    "tanh": Operation(1, 1, lambda a: np.tanh(a.astype(np.float64)).astype(np.float32)),
    "tanh_gradient": Operation(2, 1, _tanh_gradient),
    "softmax": Operation(1, 1, _softmax, _AXIS),
    "softmax_gradient": Operation(2, 1, _softmax_gradient, _AXIS),
    "sum": Operation(1, 1, _total, _AXES),
    "mean": Operation(1, 1, _mean, _AXES),
    "fill": Operation(1, 1, lambda a, value: np.full(a.shape, value, np.float32), {"value": ("float", -1e9, 1e9)}),
    "log_softmax": Operation(1, 1, _log_softmax, _AXIS),
    "log_softmax_gradient": Operation(2, 1, _log_softmax_gradient, _AXIS),
    "nll": Operation(2, 2, _nll),
    "nll_gradient": Operation(4, 1, _nll_gradient),
    "passes": Operation(None, 1, None),
    "passes_chosen": Operation(1, 1, None, {"block": ("int", 0, 9999)}),
    "passes_statistics": Operation(1, None, None),
    "passes_gradient": Operation(1, None, None),
}

Shape = tuple[int, ...]


def _matrix_shape(a: Shape, b: Shape) -> Shape:
    if len(a) != 2 or len(b) not in (1, 2) or a[1] != b[0]:
        raise JobError(f"a matrix product of {a} and {b}")
    return a[0], *b[1:]


def _affine_shape(bias: Shape, a: Shape, b: Shape) -> Shape:
    shape = _matrix_shape(a, b)
    if len(shape) != 2 or bias != shape[1:]:
        raise JobError(f"a bias of {bias} for a matrix product of {a} and {b}")
    return shape


#: shape of the result by the operands' shapes, where a result may be larger than its operands; checked before an
#: operation is run, so that nothing explodes
RESULT_SHAPE: dict[str, Callable[..., Shape]] = {
    **dict.fromkeys(
        (
            "add", "multiply", "relu_gradient", "log_softmax_gradient", "softmax_gradient", "sigmoid_gradient",
            "tanh_gradient",
        ),
        np.broadcast_shapes,
    ),
    "matmul": _matrix_shape,
    "affine": _affine_shape,
}  # fmt: skip
