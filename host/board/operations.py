"""The operations of a job's graphs, in NumPy.

All values are float32 but labels (int64).  Reductions are formed in float64 and rounded once, where the training
library does the same, so that results agree with it to the last bit or nearly so.

==================== ========================================= ===================================================
operation            operands                                  result
==================== ========================================= ===================================================
product              x (N,I,H,W), w (O,I,kh,kw)                convolution, quantized at the layer's precision
input_gradient       g (N,O,OH,OW), w, x                       its gradient by x
weight_gradient      g, x, w                                   its gradient by w
batch_norm           x, weight, bias, mean, variance           y, batch mean, 1/std, new mean, new variance
batch_norm_fixed     x, weight, bias, mean, variance           y with the running statistics
batch_norm_gradient  g, x, weight, batch mean, 1/std           gradients by x, weight, bias
relu                 x                                         max(x, 0)
relu_gradient        g, y                                      g where y > 0, else 0
add                  a, b                                      a + b, broadcast
scale                a                                         a * factor
divide               a                                         a / divisor
reshape              a                                         the same elements in another shape
expand               a                                         broadcast to another shape
sum                  a                                         sum over axes, which stay with length 1 or go
mean                 a                                         mean over axes, likewise
fill                 a                                         a constant in a's shape
log_softmax          a                                         along one axis
log_softmax_gradient g, y                                      gradient by the operand, y the result
nll                  y, labels                                 mean negative log-likelihood, number of labels
nll_gradient         g, y, labels, number                      gradient by y
==================== ========================================= ===================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
F32 = np.float32


class JobError(ValueError):
    """A job file, or a step of it, is not what this program can run; the message names what and where."""


@dataclass(frozen=True)
class Operation:
    """Number of operands and results, attributes with their ranges, and the function (None: done by the runtime)."""

    inputs: int
    outputs: int
    run: Callable[..., Any] | None
    attributes: Mapping[str, tuple[str, float, float]] = field(default_factory=dict)


def _column(values: Array) -> Array:
    return values.reshape(-1, 1, 1)


def _affine(x: Array, factor: Array, offset: Array) -> Array:
    """x * factor + offset per channel, rounded once as a fused multiply-add does."""
    total = x.astype(np.float64)
    total *= _column(factor)
    total += _column(offset)
    return total.astype(F32)


def _fused(a: Array, b: Array, c: Array) -> Array:
    """a * b + c, rounded once."""
    return (a.astype(np.float64) * b + c).astype(F32)


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
    centre = x.mean((0, 2, 3), dtype=np.float64)
    squares = np.square(x - _column(centre)).sum((0, 2, 3))
    batch_mean = centre.astype(F32)
    inverse = (1.0 / np.sqrt(_rounded(squares / n) + eps)).astype(F32)
    y = _affine(x, inverse * weight, _fused(-batch_mean, inverse * weight, bias))
    new_mean = (momentum * centre + (1 - momentum) * mean.astype(np.float64)).astype(F32)
    new_variance = (momentum * squares / (n - 1) + (1 - momentum) * variance.astype(np.float64)).astype(F32)
    return y, batch_mean, inverse, new_mean, new_variance


def _rounded(values: Array) -> Array:
    """Rounded to single precision, kept in double."""
    return values.astype(F32).astype(np.float64)


def batch_norm_fixed(x: Array, weight: Array, bias: Array, mean: Array, variance: Array, *, eps: float) -> Array:
    """Normalisation with running statistics."""
    _image(x, weight, bias, mean, variance)
    inverse = (1.0 / np.sqrt(variance.astype(np.float64) + eps)).astype(F32)
    return _affine(x, inverse * weight, _fused(-mean, inverse * weight, bias))


def batch_norm_gradient(g: Array, x: Array, weight: Array, mean: Array, inverse: Array) -> tuple[Array, Array, Array]:
    """Gradients by x, weight and bias."""
    _image(x, weight, mean, inverse)
    if g.shape != x.shape:
        raise JobError(f"batch norm's gradient {g.shape} differs from its input {x.shape}")
    n = x.size // x.shape[1]
    centred = x - _column(mean)
    bias = g.sum((0, 2, 3), dtype=np.float64)
    dot = (centred.astype(np.float64) * g).sum((0, 2, 3))
    factor = (dot * inverse.astype(np.float64) ** 2 / n).astype(F32)
    dx = (g - _column((bias / n).astype(F32)) - centred * _column(factor)) * _column(inverse) * _column(weight)
    return dx, (dot * inverse).astype(F32), bias.astype(F32)


def _axes(a: Array, axes: Sequence[int]) -> tuple[int, ...]:
    if any(axis >= a.ndim for axis in axes) or len(set(axes)) != len(axes):
        raise JobError(f"axes {list(axes)} of a value with {a.ndim} axes")
    return tuple(axes)


def _total(a: Array, axes: Sequence[int], keep: int) -> Array:
    return np.asarray(a.sum(_axes(a, axes), dtype=F32, keepdims=bool(keep)))


def _mean(a: Array, axes: Sequence[int], keep: int) -> Array:
    count = F32(np.prod([a.shape[i] for i in _axes(a, axes)], dtype=np.int64))
    return np.asarray(_total(a, axes, keep) / count)


def _log_softmax(a: Array, *, axis: int) -> Array:
    _axes(a, (axis,))
    moved = a - a.max(axis, keepdims=True)
    return np.asarray(moved - np.log(np.exp(moved).sum(axis, keepdims=True, dtype=F32)))


def _log_softmax_gradient(g: Array, y: Array, *, axis: int) -> Array:
    _axes(g, (axis,))
    return np.asarray(g - np.exp(y) * g.sum(axis, keepdims=True, dtype=F32))


def _labels(y: Array, labels: Array) -> None:
    if y.ndim != 2 or labels.shape != y.shape[:1] or labels.dtype.kind != "i":
        raise JobError(f"likelihood of {y.shape} values with labels {labels.dtype} {labels.shape}")
    if labels.size and (labels.min() < 0 or labels.max() >= y.shape[1]):
        raise JobError(f"labels {labels.min()}..{labels.max()} with {y.shape[1]} classes")


def _nll(y: Array, labels: Array) -> tuple[Array, Array]:
    _labels(y, labels)
    count = F32(len(labels))
    return np.asarray(-y[np.arange(len(labels)), labels].sum(dtype=F32) / count), np.asarray(count)


def _nll_gradient(g: Array, y: Array, labels: Array, count: Array) -> Array:
    _labels(y, labels)
    if g.shape != () or count.shape != ():
        raise JobError("the gradient of a likelihood is one number")
    out = np.zeros_like(y)
    out[np.arange(len(labels)), labels] = -g / count
    return out


_AXIS = {"axis": ("int", 0, 7)}
_AXES = {"axes": ("ints", 0, 7), "keep": ("int", 0, 1)}
_PRODUCT = {"layer": ("int", 0, 9999), "stride": ("int", 1, 16), "padding": ("int", 0, 16)}

OPERATIONS: dict[str, Operation] = {
    "product": Operation(2, 1, None, _PRODUCT),
    "input_gradient": Operation(3, 1, None, _PRODUCT),
    "weight_gradient": Operation(3, 1, None, _PRODUCT),
    "batch_norm": Operation(5, 5, batch_norm, {"momentum": ("float", 0, 1), "eps": ("float", 1e-12, 1)}),
    "batch_norm_fixed": Operation(5, 1, batch_norm_fixed, {"eps": ("float", 1e-12, 1)}),
    "batch_norm_gradient": Operation(5, 3, batch_norm_gradient),
    "relu": Operation(1, 1, lambda x: np.maximum(x, F32(0))),
    "relu_gradient": Operation(2, 1, lambda g, y: np.where(y > 0, g, F32(0))),
    "add": Operation(2, 1, lambda a, b: a + b),
    "scale": Operation(1, 1, lambda a, factor: a * F32(factor), {"factor": ("float", -1e9, 1e9)}),
    "divide": Operation(1, 1, lambda a, divisor: a / F32(divisor), {"divisor": ("float", 1e-9, 1e9)}),
    "reshape": Operation(1, 1, lambda a, shape: a.reshape(shape), {"shape": ("ints", 0, 1 << 30)}),
    "expand": Operation(1, 1, lambda a, shape: np.broadcast_to(a, shape), {"shape": ("ints", 0, 1 << 30)}),
    "sum": Operation(1, 1, _total, _AXES),
    "mean": Operation(1, 1, _mean, _AXES),
    "fill": Operation(1, 1, lambda a, value: np.full(a.shape, value, F32), {"value": ("float", -1e9, 1e9)}),
    "log_softmax": Operation(1, 1, _log_softmax, _AXIS),
    "log_softmax_gradient": Operation(2, 1, _log_softmax_gradient, _AXIS),
    "nll": Operation(2, 2, _nll),
    "nll_gradient": Operation(4, 1, _nll_gradient),
}

#: operations whose operands are broadcast against each other; checked before they are run, so that nothing explodes
BROADCAST = frozenset({"add", "relu_gradient", "log_softmax_gradient", "expand"})
