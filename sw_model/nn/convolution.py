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

#: rows and columns, or the same for both
Pixels = int | tuple[int, int]


def pair(pixels: Pixels) -> tuple[int, int]:
    """Rows and columns."""
    return (pixels, pixels) if isinstance(pixels, int) else pixels


def _picks(kernel: Sequence[int], stride: tuple[int, int]) -> bool:
    """Whether a convolution meets only some pixels, one for each output."""
    return max(stride) > 1 and tuple(kernel) == (1, 1)


def _picked(x: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """The pixels of ``x`` (N, C, H, W) that a strided 1x1 kernel meets: (N, C, OH, OW)."""
    if any(padding):
        x = F.pad(x, [padding[1], padding[1], padding[0], padding[0]])
    return x[:, :, :: stride[0], :: stride[1]]


def _put_back(picked: Tensor, shape: Sequence[int], stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Transpose of :func:`_picked`: zeros of ``shape``, and the values of ``picked`` where they were taken from."""
    n, c, h, w = shape
    (down, across), (sy, sx) = padding, stride
    last = picked.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    size = (n, c, h + 2 * down, w + 2 * across)
    x = torch.empty(size, dtype=picked.dtype, device=picked.device, memory_format=layout).zero_()
    x[:, :, ::sy, ::sx] = picked
    return x[:, :, down : down + h, across : across + w] if any(padding) else x


def convolve(
    x: Tensor, weight: Tensor, stride: Pixels = 1, padding: Pixels = 0, groups: int = 1, dilation: Pixels = 1
) -> Tensor:
    """Convolution without bias, differentiable: (N, I, H, W) with (O, I/groups, kh, kw) to (N, O, OH, OW).

    Args:
        x, weight: of one floating type, in any layout; the result has that of ``x``.
        stride, padding: pixels; padded pixels are zero.
        groups: of channels that do not see each other.
        dilation: pixels from one position of the kernel to the next.
    """
    if _picks(weight.shape[2:], pair(stride)):
        x, stride, padding = _picked(x, pair(stride), pair(padding)), 1, 0
    return F.conv2d(x, weight, None, stride, padding, dilation, groups)


def gradients(
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    stride: Pixels = 1,
    padding: Pixels = 0,
    groups: int = 1,
    dilation: Pixels = 1,
    *,
    of: tuple[bool, bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`convolve` by its input and its weight, which share one pass over the output gradient.

    Args:
        x, weight, stride, padding, groups, dilation: of the convolution.  Of the operand whose values no wanted gradient
            needs (``x`` for the input's, ``weight`` for the weight's), only the shape and the layout count.
        grad: by the output, (N, O, OH, OW).
        of: whether the input's and the weight's are wanted.

    Returns:
        Both, None for one that is not wanted.
    """
    if not any(of):
        return None, None
    if x.dtype != grad.dtype:  # only its shape counts
        x = torch.empty_like(x, dtype=grad.dtype)
    stride, padding = pair(stride), pair(padding)
    shape, picks = x.shape, _picks(weight.shape[2:], stride)
    at, pad = stride, padding
    if picks:
        x, at, pad = _picked(x, stride, padding), (1, 1), (0, 0)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [*at], [*pad], [*pair(dilation)], False, [0, 0], groups, [*of, False]
    )
    if picks and dx is not None:
        dx = _put_back(dx, shape, stride, padding)
    return dx, dw
