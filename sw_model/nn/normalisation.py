"""Batch normalisation with what follows it in a network: the sum with a residual, and ReLU.

As separate operations these read and write every activation four to six times per step, which takes as long as the
quantizers do.  One kernel does all of it in two passes over the data, forward and backward.  It serves the results of
quantized layers, which have their channels last.  Its sums do not depend on the number of threads.  It keeps no more
for the backward pass than PyTorch keeps.

PyTorch's own operations serve all other cases: evaluation; tensors in C order (float32 layers, integer engines); other
normalisations; dispatch modes, which must see the operations themselves (:mod:`sw_model.nn.reproducible`, the capture
of a job).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from sw_model.quantize import kernels


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        norm: nn.BatchNorm2d,
        momentum: float,
        positive: bool,
    ) -> Tensor:
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        y, table = kernels.normalise_batch(x, norm, momentum, residual, positive)
        ctx.positive, ctx.add = positive, residual is not None
        # Without a residual the backward pass tells from x where the result was positive.
        ctx.save_for_backward(x, table, y if positive and ctx.add else None)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, table, y = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        dx, dweight, dbias, dresidual = kernels.normalise_gradient(grad, x, y, table, ctx.positive)
        if ctx.add and not ctx.positive:
            dresidual = grad
        return dx, dweight, dbias, dresidual, None, None, None


def _has_kernel(norm: nn.Module, x: Tensor, residual: Tensor | None) -> bool:
    return (
        type(norm) is nn.BatchNorm2d
        and not is_in_torch_dispatch_mode()
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and kernels.usable(x)
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
        and norm.weight.dtype == torch.float32
        and (residual is None or (residual.shape == x.shape and kernels.usable(residual)))
    )


def normalise(norm: nn.Module, x: Tensor, residual: Tensor | None = None, *, relu: bool = True) -> Tensor:
    """``relu(norm(x) + residual)``, in one kernel if there is one for these tensors.

    Args:
        norm: a normalisation of float32 (N, C, H, W); only :class:`torch.nn.BatchNorm2d` in training has a kernel.
        x: its input.
        residual: what is added to its output, of the same shape; None adds nothing.
        relu: whether to take the positive part.
    """
    if _has_kernel(norm, x, residual):
        assert isinstance(norm, nn.BatchNorm2d) and norm.momentum is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        result: Tensor = _Normalised.apply(x, norm.weight, norm.bias, residual, norm, norm.momentum, relu)
        return result
    y: Tensor = norm(x)
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y
