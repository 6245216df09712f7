"""Places of a network that multiply: quantized layers that take their weights with every call.

A site has what the product of a layer needs beside its operands: precision, random keys, range of activations.  The
weight stays the parameter of the module that calls, so that optimizers, shared weights, parametrizations and state
dicts see nothing new but the ranges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from host.operands import ConvGeometry
from host.windows import Pair, Window
from sw_model.nn.gated_convolution import Assignment, dispatch_product
from sw_model.nn.layers import QLayer
from sw_model.nn.precision import Precision
from sw_model.nn.transformer import QMatmul


class Convolution2d(NamedTuple):
    """Arguments of a convolution as PyTorch's functions take them, in two dimensions."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


def _count_call(layer: Any) -> None:
    """Tells calls of a layer in one training step apart, by which its gradients are rounded; others have no gradients."""
    if layer.training and torch.is_grad_enabled():
        layer.call_index = 0 if layer._at != layer.run.step else layer.call_index + 1
        layer._at = layer.run.step


class Site(QLayer):
    """A quantized product of a module.

    Attributes:
        called: its name in reports, cost and record.
        geometry, groups: of the last product.
        choice: mask and options of the gate that governs it now, and who has which, see :func:`sw_model.nn.gated_convolution.dispatch_product`.
    """

    def __init__(self, called: str) -> None:
        super().__init__()
        self.called = self.name = called
        self.depthwise = False
        self.geometry: ConvGeometry | Window | None = None
        self.groups = 1
        self.choice: tuple[Tensor, Sequence[Precision], Assignment] | None = None
        self._at = -1

    def _multiply(self, x: Tensor, weight: Tensor, window: Window, groups: int) -> Tensor:
        """The product as the next call of this training step."""
        if x.dtype != torch.float32 or weight.dtype != torch.float32:
            raise TypeError(
                f"layer {self.name} multiplies {x.dtype} and {weight.dtype}; quantizers take float32: leave out autocast "
                "and half()"
            )
        _count_call(self)
        geometry = window.plain or window
        self.geometry, self.groups = geometry, groups
        if self.choice is not None and isinstance(geometry, ConvGeometry) and groups == 1:
            return dispatch_product(self, x, weight, geometry, *self.choice)
        return self._product(x, weight, geometry, groups)

    @property
    def gateable(self) -> bool:
        """Whether a gate may choose its bits, by its last product."""
        return isinstance(self.geometry, ConvGeometry) and self.groups == 1

    def extra_repr(self) -> str:
        return f"{self.called}, precision={self.precision}"


class ConvolutionSite(Site):
    """A convolution, over images (N, C, H, W) or rows (N, C, L), or without N."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, how: Convolution2d) -> Tensor:
        """float32 (N, C, H, W) and (O, I/groups, kh, kw) to (N, O, OH, OW); rows are images of one line."""
        line, single = weight.ndim == 3, x.ndim < weight.ndim
        x = x[None] if single else x
        if line:
            x, weight = x[:, :, None], weight[:, :, None]
        n, c, h, w = x.shape
        shape = n, c, weight.shape[0], (h, w), (weight.shape[2], weight.shape[3])
        y = self._multiply(x, weight, Window(*shape, how.stride, how.padding, how.dilation), how.groups)
        y = y if bias is None else y + bias[:, None, None]
        y = y[:, :, 0] if line else y
        return y[0] if single else y


class TransposedSite(Site):
    """A transposed convolution whose kernel is as large as its stride: a matrix product per pixel, laid out as a block."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """float32 (N, I, H, W) and (I, O, k, k') to (N, O, k H, k' W)."""
        n, c, h, w = x.shape
        _, out, down, across = weight.shape
        by_output = weight.flatten(1).T[:, :, None, None]
        y = self._multiply(x, by_output, Window(n, c, len(by_output), (h, w), (1, 1)), 1)
        y = y.reshape(n, out, down, across, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, out, h * down, w * across)
        return y if bias is None else y + bias[:, None, None]


class LinearSite(Site):
    """A matrix product of activations and weights."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """float32 (..., I) and (O, I) to (..., O)."""
        rows = x.reshape(-1, x.shape[-1], 1, 1)
        window = Window(rows.shape[0], x.shape[-1], len(weight), (1, 1), (1, 1))
        y = self._multiply(rows, weight[:, :, None, None], window, 1).reshape(*x.shape[:-1], len(weight))
        return y if bias is None else y + bias


class MatmulSite(QMatmul):
    """A matrix product of two activations: (..., M, K) and (..., K, N) to (..., M, N)."""

    def __init__(self, called: str) -> None:
        super().__init__()
        self.called = self.name = called
        self.right.called = f"{called}.right"
        self.depthwise = False
        self._at = -1

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        left, right = (x.expand(*lead, *x.shape[-2:]).reshape(-1, *x.shape[-2:]) for x in (a, b))
        _count_call(self)
        return super().forward(left, right.transpose(1, 2)).reshape(*lead, a.shape[-2], b.shape[-1])

    def extra_repr(self) -> str:
        return f"{self.called}, precision={self.precision}"


class AttentionSite(nn.Module):
    """Scaled dot-product attention: two products of activations, with softmax in float32 between them."""

    def __init__(self, called: str) -> None:
        super().__init__()
        self.scores, self.mixture = MatmulSite(f"{called}.scores"), MatmulSite(f"{called}.mixture")

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, causal: bool, scale: float | None
    ) -> Tensor:
        """As :func:`torch.nn.functional.scaled_dot_product_attention`."""
        return self.weighed(q, k, v, mask, dropout, causal, scale)[0]

    def weighed(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, causal: bool, scale: float | None
    ) -> tuple[Tensor, Tensor]:
        """The result, and the weights of the mixture."""
        scores = self.scores(q, k.transpose(-2, -1)) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
        if causal:
            mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        weights = scores.softmax(-1)
        if dropout:
            weights = F.dropout(weights, dropout)
        return self.mixture(weights, v), weights


def sites_of(site: Any) -> list[QLayer]:
    """The quantized layers of a site."""
    return [m for m in site.modules() if isinstance(m, Site | MatmulSite)]
