"""Float arithmetic around the exact products of a training step, with the same bits on every machine.

PyTorch's kernels depend on the machine: vector width and number of threads decide the order of float32 sums, some
processors fuse products with sums, and libraries differ in their exponentials.  Training at few bits is chaotic: one
last bit changes one code, and two runs part.

Inside :class:`Reproducible`, sums are formed in float64 in a fixed order.  Transcendental functions and matrix
products are computed in float64 and rounded once.  Everything else takes single float32 operations.  The board's
runtime (:mod:`host.board.operations`) states the same arithmetic in NumPy.  So a run with an exact engine is the same
on every machine, and the same as its job.

It is a dispatch mode, so it sees the operations of the backward pass and of the optimizer, too; no layer has to know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from host.numerics import tree_sum_of_rows
from sw_model.nn.precision import Run

_aten = torch.ops.aten

#: formed in float64 from float32 operands, each result rounded once
_ONCE = {
    _aten.convolution.default,
    _aten.convolution_backward.default,
    _aten.addmm.default,
    _aten.mm.default,
    _aten.mv.default,
    _aten._softmax.default,
    _aten._softmax_backward_data.default,
    _aten._log_softmax.default,
    _aten._log_softmax_backward_data.default,
    _aten.nll_loss_forward.default,
    _aten.nll_loss_backward.default,
    _aten.sigmoid.default,
    _aten.sigmoid_backward.default,
    _aten.tanh.default,
    _aten.tanh_backward.default,
    _aten.native_layer_norm.default,
    _aten.native_layer_norm_backward.default,
}
_IN_PLACE = {
    _aten.sigmoid_.default: _aten.sigmoid.default,
    _aten.tanh_.default: _aten.tanh.default,
    # of Adam and of running statistics
    _aten.lerp_.Scalar: _aten.lerp.Scalar,
    _aten.addcmul_.default: _aten.addcmul.default,
    _aten.addcdiv_.default: _aten.addcdiv.default,
}


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.dtype == torch.float32 else value
    return torch.float64 if value is torch.float32 else value


def _narrowed(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float64 else value


def _once(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not any(isinstance(a, Tensor) and a.dtype == torch.float32 for a in args):
        return func(*args, **kwargs)  # the exact engine's sums, which float32 would not hold
    found = func(*map(_widened, args), **{k: _widened(v) for k, v in kwargs.items()})
    return tuple(map(_narrowed, found)) if isinstance(found, tuple) else _narrowed(found)


def _column(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1)


def sum_over(a: Tensor, axes: Sequence[int]) -> Tensor:
    """Sum over axes in float64, in the order of :func:`host.numerics.tree_sum_of_rows`."""
    kept = [i for i in range(a.ndim) if i not in axes]
    rows = a.permute(*axes, *kept).reshape(-1, *(a.shape[i] for i in kept)).to(torch.float64, copy=True)
    found: Tensor = tree_sum_of_rows(rows)
    return found


def _reduced(func: Any, a: Tensor, axes: Sequence[int] | None, keep: bool = False, **kwargs: Any) -> Tensor:
    """A sum or mean of float32; other types take PyTorch's."""
    if a.dtype != torch.float32 or any(v is not None for v in kwargs.values()):
        return cast(Tensor, func(a, axes, keep, **kwargs))
    reduced = [i % a.ndim for i in axes] if axes else list(range(a.ndim))
    total = sum_over(a, reduced)
    if func is _aten.mean.dim:
        total = total / math.prod(a.shape[i] for i in reduced)
    return (total.reshape([1 if i in reduced else n for i, n in enumerate(a.shape)]) if keep else total).float()


def _batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`host.board.operations.batch_norm`; updates the running statistics in place."""
    if training:
        n = x.numel() // x.shape[1]
        exact = sum_over(x, (0, 2, 3)) / n
        batch_mean = exact.float()
        squares = sum_over((x - _column(batch_mean)).double().square(), (0, 2, 3))
        inverse = (1 / (squares / n + eps).sqrt()).float()
        mean.copy_(momentum * exact + (1 - momentum) * mean.double())
        variance.copy_(momentum * squares / (n - 1) + (1 - momentum) * variance.double())
    else:
        batch_mean, inverse = mean, (1 / (variance.double() + eps).sqrt()).float()
    factor = inverse * weight
    y = x * _column(factor) + _column(bias - batch_mean * factor)
    return y, batch_mean.clone(), inverse


def _batch_norm_backward(  # noqa: PLR0913 - those of PyTorch's operator
    grad: Tensor, x: Tensor, weight: Tensor, running_mean: Tensor, running_variance: Tensor, mean: Tensor,
    inverse: Tensor, training: bool, eps: float, mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As :func:`host.board.operations.batch_norm_gradient`."""
    if not training:
        raise ValueError("no gradient through a normalisation with running statistics; call .train()")
    n = x.numel() // x.shape[1]
    centred = x - _column(mean)
    bias = sum_over(grad, (0, 2, 3))
    dot = sum_over(centred.double() * grad.double(), (0, 2, 3))
    slope = (dot * inverse.double().square() / n).float()
    dx = (grad - _column((bias / n).float()) - centred * _column(slope)) * _column(inverse * weight)
    return dx, (dot * inverse.double()).float(), bias.float()


def _sum_of_two(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``a + alpha * b`` with the product rounded, where the kernel would fuse it with the sum."""
    alpha = kwargs.get("alpha", 1)
    if alpha == 1 or not isinstance(args[1], Tensor) or not args[1].is_floating_point():
        return func(*args, **kwargs)
    return func(args[0], args[1] * alpha)


_OWN: dict[Any, Callable[..., Any]] = {
    _aten.native_batch_norm.default: _batch_norm,
    _aten.native_batch_norm_backward.default: _batch_norm_backward,
    _aten.sum.dim_IntList: partial(_reduced, _aten.sum.dim_IntList),
    _aten.mean.dim: partial(_reduced, _aten.mean.dim),
    _aten.sum.default: partial(_reduced, _aten.sum.dim_IntList, axes=None),
    _aten.mean.default: partial(_reduced, _aten.mean.dim, axes=None),
}


class Reproducible(TorchDispatchMode):
    """Makes the float operations inside it those of the board; see the module's docstring."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ONCE:
            return _once(func, args, kwargs)
        if func in _OWN:
            return _OWN[func](*args, **kwargs)
        if func in _IN_PLACE:
            return args[0].copy_(_once(_IN_PLACE[func], args, kwargs))
        if func in (_aten.add.Tensor, _aten.add_.Tensor):
            return _sum_of_two(func, args, kwargs)
        return func(*args, **kwargs)


def arithmetic(run: Run) -> AbstractContextManager[Any]:
    """Where products are exact, so is everything around them: such a run is the same on any machine and as a job."""
    return nullcontext() if run.engine is None else Reproducible()
