"""What products mean: results of correlations and gradients become :class:`host.operands.Sums`.

Sums that do not depend on data, or that the host adds up more simply than the fabric, are made here.
"""

from __future__ import annotations

import itertools

import numpy as np

from host.arrays import I64
from host.driver.session import Results
from host.grids import host_codes
from host.operands import ConvGeometry, Operand, Sums
from hw.plan.product import Lowered
from hw.plan.tiling import axis_phases_back


def forward_sums(lowered: Lowered, found: Results, x: Operand, weight: I64) -> Sums:
    """Output of a convolution.

    Args:
        weight: codes (O, I, kh, kw).
    """
    m = lowered.product.geometry
    valid_y, valid_x = valid_taps(m)
    b_sum = np.einsum("okl,ky,lx->oyx", weight.sum(axis=1), valid_y, valid_x)[None]
    count = m.in_channels * np.outer(valid_y.sum(axis=0), valid_x.sum(axis=0))[None, None]
    if lowered.along_pixels:
        return Sums(*_along_pixels(found), b_sum, count)
    dot, a_sum = found.dot, found.a_sum
    assert dot is not None and a_sum is not None
    if m.is_linear:
        dot, a_sum = _from_row(dot, m.batch), _from_row(a_sum, m.batch)
    if not lowered.correlations[0].kernel.full:
        a_sum = _window_sums(host_codes(x).sum(axis=1), m)
    return Sums(dot, a_sum, b_sum, count)


def input_gradient_sums(lowered: Lowered, found: Results, g: Operand, weight: I64) -> Sums:
    """Gradient of the input."""
    m, s = lowered.product.geometry, lowered.product.geometry.stride
    valid_y, valid_x = _valid_taps_back(m)
    b_sum = np.einsum("ckl,ky,lx->cyx", weight.sum(axis=0), valid_y, valid_x)[None]
    count = m.out_channels * np.outer(valid_y.sum(axis=0), valid_x.sum(axis=0))[None, None]
    if lowered.along_pixels:
        return Sums(*_along_pixels(found), b_sum, count)
    (task,) = lowered.correlations
    assert found.dot is not None and found.a_sum is not None
    dot, a_sum = found.dot, found.a_sum
    if m.is_linear:
        dot, a_sum = _from_row(dot, m.batch), _from_row(a_sum, m.batch)
    elif s > 1:  # phases are channels
        dot = np.zeros((m.batch, m.in_channels, *m.in_hw), dtype=np.int64)
        whole = np.flip(dot, (2, 3)) if task.kernel.paired else dot
        ys, xs = (axis_phases_back(k, s, 0 if task.kernel.paired else m.padding) for k in m.kernel)
        for p, ((py, _, _), (px, _, _)) in enumerate(itertools.product(ys, xs)):
            view = whole[:, :, py::s, px::s]
            h, v = view.shape[2:]
            view[...] = found.dot[:, p * m.in_channels : (p + 1) * m.in_channels, :h, :v]
    if not task.kernel.full:
        a_sum = _scatter_sums(host_codes(g).sum(axis=1), m)
    return Sums(dot, a_sum, b_sum, count)


def weight_gradient(lowered: Lowered, found: Results) -> I64:
    """Gradient of the weights without operand sums: int64 (O, I, kh, kw)."""
    m = lowered.product.geometry
    dot = np.zeros((m.out_channels, m.in_channels, *m.kernel), dtype=np.int64)
    first = 1 if lowered.along_pixels else 0  # the gradient before it is that of the input
    for gradient, arrays in zip(lowered.gradients[first:], found.gradients[first:], strict=True):
        for p, ((y0, ys), (x0, xs)) in enumerate(gradient.phases):
            channels = slice(p * m.in_channels, (p + 1) * m.in_channels)
            for (j, ky), (i, kx) in itertools.product(enumerate(ys), enumerate(xs)):
                dot[:, :, ky, kx] = arrays["dot"][:, channels, y0 + j, x0 + i]
    return dot


def weight_gradient_sums(lowered: Lowered, found: Results, x: Operand, g: Operand) -> Sums:
    """Gradient of the weights."""
    m = lowered.product.geometry
    a_sum = np.zeros((1, m.in_channels, *m.kernel), dtype=np.int64)
    b_sum = np.zeros((m.out_channels, 1, *m.kernel), dtype=np.int64)
    first = 1 if lowered.along_pixels else 0  # the gradient before it is that of the input
    for gradient, arrays in zip(lowered.gradients[first:], found.gradients[first:], strict=True):
        for p, ((y0, ys), (x0, xs)) in enumerate(gradient.phases):
            channels = slice(p * m.in_channels, (p + 1) * m.in_channels)
            for (j, ky), (i, kx) in itertools.product(enumerate(ys), enumerate(xs)):
                a_sum[0, :, ky, kx] = arrays["a_sum"][channels, y0 + j, x0 + i]
                b_sum[:, 0, ky, kx] = arrays["b_sum"][:, y0 + j, x0 + i]
    if "a_sum" in lowered.host_sums:
        a_sum = _element_sums(host_codes(x).sum(axis=0), m, 1)[None]
    if "b_sum" in lowered.host_sums:
        b_sum = _element_sums(host_codes(g).sum(axis=0), m, 0)[:, None]
    valid_y, valid_x = valid_taps(m)
    count = m.batch * np.outer(valid_y.sum(axis=1), valid_x.sum(axis=1))[None, None]
    return Sums(weight_gradient(lowered, found), a_sum, b_sum, count)


def _along_pixels(found: Results) -> tuple[I64, I64]:
    """Result (N, O, 1, 1) and sums (N, 1, 1, 1) of a matrix product that was computed as a weight gradient."""
    arrays = found.gradients[0]
    return arrays["dot"].swapaxes(0, 1), arrays["a_sum"][:, None]


def _from_row(values: I64, batch: int) -> I64:
    """Pixels of a row back to batch elements: (1, C, rows, lanes) -> (batch, C, 1, 1)."""
    return values[0].reshape(values.shape[1], -1)[:, :batch].T[:, :, None, None]


# -- sums of the host -----------------------------------------------------------------------------------------------


def valid_taps(geometry: ConvGeometry) -> tuple[I64, I64]:
    """Per axis, whether kernel index k at output o falls on a real pixel: int64 (k, out)."""
    out = []
    for size, kernel, steps in zip(geometry.in_hw, geometry.kernel, geometry.out_hw, strict=True):
        at = np.arange(steps)[None, :] * geometry.stride + np.arange(kernel)[:, None] - geometry.padding
        out.append(((at >= 0) & (at < size)).astype(np.int64))
    return out[0], out[1]


def _valid_taps_back(geometry: ConvGeometry) -> tuple[I64, I64]:
    """Per axis, whether kernel index k reaches input pixel i from some output: int64 (k, in)."""
    out = []
    for size, kernel, steps in zip(geometry.in_hw, geometry.kernel, geometry.out_hw, strict=True):
        at = np.arange(size)[None, :] + geometry.padding - np.arange(kernel)[:, None]
        fits = (at % geometry.stride == 0) & (at >= 0) & (at // geometry.stride < steps)
        out.append(fits.astype(np.int64))
    return out[0], out[1]


def _tap_slices(k: int, size: int, steps: int, stride: int, padding: int) -> tuple[slice, slice]:
    """Outputs and inputs of one axis that kernel index ``k`` connects."""
    first = max(0, -((k - padding) // stride))
    last = min(steps, (size - 1 + padding - k) // stride + 1)
    last = max(last, first)
    start = first * stride + k - padding
    return slice(first, last), slice(start, start + (last - first) * stride, stride)


def _window_sums(image_sums: I64, m: ConvGeometry) -> I64:
    """Sums of codes under the kernel: int64 (N, H, W) -> (N, 1, OH, OW)."""
    out = np.zeros((m.batch, 1, *m.out_hw), dtype=np.int64)
    for ky, kx in itertools.product(range(m.kernel[0]), range(m.kernel[1])):
        oy, iy = _tap_slices(ky, m.in_hw[0], m.out_hw[0], m.stride, m.padding)
        ox, ix = _tap_slices(kx, m.in_hw[1], m.out_hw[1], m.stride, m.padding)
        out[:, 0, oy, ox] += image_sums[:, iy, ix]
    return out


def _scatter_sums(gradient_sums: I64, m: ConvGeometry) -> I64:
    """Sums of output-gradient codes that reach a pixel: int64 (N, OH, OW) -> (N, 1, H, W)."""
    out = np.zeros((m.batch, 1, *m.in_hw), dtype=np.int64)
    for ky, kx in itertools.product(range(m.kernel[0]), range(m.kernel[1])):
        oy, iy = _tap_slices(ky, m.in_hw[0], m.out_hw[0], m.stride, m.padding)
        ox, ix = _tap_slices(kx, m.in_hw[1], m.out_hw[1], m.stride, m.padding)
        out[:, 0, iy, ix] += gradient_sums[:, oy, ox]
    return out


def _element_sums(batch_sums: I64, m: ConvGeometry, side: int) -> I64:
    """Sums of codes over the positions under each kernel element: int64 (C, H, W) -> (C, kh, kw).

    Args:
        side: 0 for output gradients, 1 for activations.
    """
    out = np.zeros((batch_sums.shape[0], *m.kernel), dtype=np.int64)
    for ky, kx in itertools.product(range(m.kernel[0]), range(m.kernel[1])):
        y = _tap_slices(ky, m.in_hw[0], m.out_hw[0], m.stride, m.padding)[side]
        x = _tap_slices(kx, m.in_hw[1], m.out_hw[1], m.stride, m.padding)[side]
        out[:, ky, kx] = batch_sums[:, y, x].sum(axis=(1, 2))
    return out
