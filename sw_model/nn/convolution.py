"""Every float convolution of training and its gradients: the only place that calls PyTorch's own.

On a CPU, PyTorch's convolutions are oneDNN's.  The weight gradient of a strided 1x1 kernel, with the channels last,
gathers the pixels under the kernel in a workspace.  The workspace is too small where the input has fewer channels than
the processor has lanes: 8 with AVX2, 16 with AVX-512 (uxlfoundation/oneDNN#6035).  The memory behind it is
overwritten: the gradient is wrong, or the process ends.  So this module picks the pixels, and oneDNN computes a
convolution of stride 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def _picks(kernel: Sequence[int], stride: int) -> bool:
    """Whether a convolution meets only some pixels, one for each output."""
    return stride > 1 and tuple(kernel) == (1, 1)


def _picked(x: Tensor, stride: int, padding: int) -> Tensor:
    """The pixels of ``x`` (N, C, H, W) that a strided 1x1 kernel meets: (N, C, OH, OW)."""
    if padding:
        x = F.pad(x, [padding] * 4)
    return x[:, :, ::stride, ::stride]


def _put_back(picked: Tensor, shape: Sequence[int], stride: int, padding: int) -> Tensor:
    """Transpose of :func:`_picked`: zeros of ``shape``, and the values of ``picked`` where they were taken from."""
    n, c, h, w = shape
    last = picked.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    size = (n, c, h + 2 * padding, w + 2 * padding)
    x = torch.empty(size, dtype=picked.dtype, device=picked.device, memory_format=layout).zero_()
    x[:, :, ::stride, ::stride] = picked
    return x[:, :, padding : padding + h, padding : padding + w] if padding else x


def convolve(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
    """Convolution without bias, differentiable: (N, I, H, W) with (O, I/groups, kh, kw) to (N, O, OH, OW).

    Args:
        x, weight: of one floating type, in any layout; the result has that of ``x``.
        stride, padding: pixels, the same for both axes; padded pixels are zero.
        groups: of channels that do not see each other.
    """
    if _picks(weight.shape[2:], stride):
        x, stride, padding = _picked(x, stride, padding), 1, 0
    return F.conv2d(x, weight, None, stride, padding, 1, groups)


def gradients(
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    *,
    of: tuple[bool, bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`convolve` by its input and its weight, which share one pass over the output gradient.

    Args:
        x, weight, stride, padding, groups: of the convolution.  Of the operand whose values no wanted gradient needs (``x``
            for the input's, ``weight`` for the weight's), only the shape and the layout count.
        grad: by the output, (N, O, OH, OW).
        of: whether the input's and the weight's are wanted.

    Returns:
        Both, None for one that is not wanted.
    """
    if not any(of):
        return None, None
    if x.dtype != grad.dtype:  # only its shape counts
        x = torch.empty_like(x, dtype=grad.dtype)
    shape, picks = x.shape, _picks(weight.shape[2:], stride)
    at, pad = stride, padding
    if picks:
        x, at, pad = _picked(x, stride, padding), 1, 0
    dx, dw, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [at] * 2, [pad] * 2, [1, 1], False, [0, 0], groups, [*of, False]
    )
    if picks and dx is not None:
        dx = _put_back(dx, shape, stride, padding)
    return dx, dw
