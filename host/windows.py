"""Windows of a convolution over images, for every stride, padding and dilation: unfolded, and folded back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from host.arrays import Array
from host.operands import ConvGeometry

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Shape of any two-dimensional convolution without bias: :class:`hw.networks.ConvGeometry`, axis by axis.

    Attributes:
        batch, in_channels, out_channels: counts, over all groups.
        in_hw: height and width of the input, in pixels.
        kernel, stride, padding, dilation: height and width; padded positions hold real zero.
    """

    batch: int
    in_channels: int
    out_channels: int
    in_hw: Pair
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    @classmethod
    def of(cls, g: ConvGeometry) -> Window:
        """The window of a convolution that is the same along both axes."""
        pairs = (g.stride, g.stride), (g.padding, g.padding)
        return cls(g.batch, g.in_channels, g.out_channels, g.in_hw, g.kernel, *pairs)

    @property
    def out_hw(self) -> Pair:
        h, w = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(self.in_hw, self.padding, self.dilation, self.kernel, self.stride, strict=True)
        )
        return h, w

    @property
    def plain(self) -> ConvGeometry | None:
        """The same convolution as engines take it; None if it is not the same along both axes, or has gaps.

        None, too, where large windows do not overlap, as of patches: as a matrix product they need no phases.
        """
        square = self.stride[0] == self.stride[1] and self.padding[0] == self.padding[1]
        patches = self.kernel == self.stride and self.stride[0] > 2 and self.padding == (0, 0)
        if not square or self.dilation != (1, 1) or patches:
            return None
        counts = self.batch, self.in_channels, self.out_channels
        return ConvGeometry(*counts, self.in_hw, self.kernel, self.stride[0], self.padding[0])

    def unfold(self, x: Array) -> Array:
        """(N, C, H, W) to (N, C, OH, OW, kh, kw), a view of the padded image."""
        (ph, pw), (sh, sw), (dh, dw) = self.padding, self.stride, self.dilation
        padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
        span = dh * (self.kernel[0] - 1) + 1, dw * (self.kernel[1] - 1) + 1
        windows = np.lib.stride_tricks.sliding_window_view(padded, span, axis=(2, 3))
        return windows[:, :, ::sh, ::sw, ::dh, ::dw]

    def fold(self, columns: Array) -> Array:
        """Transpose of :meth:`unfold`: (N, OH, OW, C, kh, kw) to (N, C, H, W), overlaps added."""
        n, oh, ow, c = columns.shape[:4]
        (ph, pw), (sh, sw), (dh, dw), (h, w) = self.padding, self.stride, self.dilation, self.in_hw
        out = np.zeros((n, c, h + 2 * ph + sh, w + 2 * pw + sw), dtype=columns.dtype)
        for ky in range(self.kernel[0]):
            for kx in range(self.kernel[1]):
                rows, across = slice(dh * ky, dh * ky + sh * oh, sh), slice(dw * kx, dw * kx + sw * ow, sw)
                out[:, :, rows, across] += columns[..., ky, kx].transpose(0, 3, 1, 2)
        return out[:, :, ph : ph + h, pw : pw + w]

    def valid(self) -> Array:
        """1 where a kernel position falls on a pixel: float64 (OH, OW, kh, kw)."""
        return self.unfold(np.ones((1, 1, *self.in_hw)))[0, 0]
