"""A small Transformer language model with quantized linear layers and quantized attention products.

Attention multiplies two activations.  :class:`QMatmul` maps that onto the three products of a linear layer: one factor
takes the place of the weight, on one grid per tensor, at the bits of activations.  Both gradients go on to the layers
below, so both have the bits of the input gradient, and the second width of a bifurcated gradient does not occur (see
also :meth:`hw.networks.ConvShape.operands`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from host.operands import ConvGeometry, Engine, Grid, Operand, several
from hw.networks import TRANSFORMERS
from sw_model.nn.layers import Dropout, QLayer, QLinear
from sw_model.nn.parallel import Shard
from sw_model.nn.precision import Run
from sw_model.quantize.affine import affine_grid, derive_key, fake_quantize, grid_from_range, quantize
from sw_model.quantize.limits import refusal
from sw_model.quantize.statquant import QUANTIZERS


class _Matmul(torch.autograd.Function):
    """``a @ b^T`` for a (B, T, d), b (B, S, d), all three operands of the products quantized."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, layer: QMatmul) -> Tensor:
        p, run = layer.precision, layer.run
        ctx.grids = [None, None]
        if p.activation:
            ctx.grids = [
                grid_from_range(*holder.activation_range(x.detach()), p.activation, mode=run.scale_mode)
                for holder, x in ((layer, a), (layer.right, b))
            ]
        ctx.engine, ctx.bits, ctx.key, ctx.run, ctx.shard = run.engine, p.grad, layer.gradient_key(), run, run.shard
        ctx.save_for_backward(a, b)
        if ctx.engine is None:
            return _values(a, ctx.grids[0]) @ _values(b, ctx.grids[1]).transpose(1, 2)
        return _each(ctx.engine, "forward", (a, ctx.grids[0]), (b, ctx.grids[1]), a.shape, b.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        a, b = ctx.saved_tensors
        grad = grad.contiguous()
        if ctx.engine is None:
            gq = _gradient_values(grad, ctx.bits, ctx.key, ctx.run, ctx.shard)
            return gq @ _values(b, ctx.grids[1]), gq.transpose(1, 2) @ _values(a, ctx.grids[0]), None
        grid = affine_grid(grad, ctx.bits, key=ctx.key, mode=ctx.run.scale_mode)
        da = _each(ctx.engine, "input_gradient", (grad, grid), (b, ctx.grids[1]), a.shape, b.shape)
        db = _each(ctx.engine, "weight_gradient", (a, ctx.grids[0]), (grad, grid), a.shape, b.shape)
        return da, db, None


def _values(x: Tensor, grid: Grid | None) -> Tensor:
    return x if grid is None else fake_quantize(x, grid)


def _gradient_values(grad: Tensor, bits: int, key: int, run: Run, shard: Shard | None) -> Tensor:
    """An output gradient (B, T, S) by the run's quantizer.

    Of StatQuant's, a row of T has the part that samples have elsewhere, since it can leave the sum of ``grad @ b``; the
    transform of BHQ mixes rows of one matrix, as those of two meet different ``b``.
    """
    if not bits:
        return grad
    if run.gradient == "affine":
        return run.gradient_values(grad, bits, key, shard)
    quantizer = QUANTIZERS[run.gradient]
    if run.gradient == "bhq":
        return torch.stack([quantizer(matrix, bits, derive_key(key, i)) for i, matrix in enumerate(grad)])
    return quantizer(grad.flatten(0, 1), bits, key).reshape(grad.shape)


def _each(
    engine: Engine,
    product: str,
    left: tuple[Tensor, Grid],
    right: tuple[Tensor, Grid],
    a_shape: torch.Size,
    b_shape: torch.Size,
) -> Tensor:
    """One product per matrix of the batch, sent together.  Codes are made from the whole tensors, so that random numbers
    do not repeat from matrix to matrix."""
    geometry = ConvGeometry(a_shape[1], a_shape[2], b_shape[1], (1, 1))
    codes = [quantize(x, grid).numpy().astype(np.int32)[..., None, None] for x, grid in (left, right)]
    members = [
        (Operand(left[1], codes=one), Operand(right[1], codes=other), geometry)
        for one, other in zip(*codes, strict=True)
    ]
    sums = several(engine, product, members)
    return torch.from_numpy(np.stack([each.real(left[1], right[1])[:, :, 0, 0] for each in sums]))


class QMatmul(QLayer):
    """``a @ b^T`` with both factors at the activation's bits and the output gradient at the gradient's, in both products;
    see the module's docstring.

    Maps float32 a (B, T, d), b (B, S, d) to (B, T, S).
    """

    def __init__(self) -> None:
        super().__init__()
        self.right = QLayer()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if a.ndim != 3 or b.ndim != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[2]:
            raise ValueError(f"layer {self.name} takes (B, T, d) and (B, S, d), not {tuple(a.shape)}, {tuple(b.shape)}")
        _, activation, grad, _ = self.precision.widths
        macs = self.whole(a.shape[0]) * a.shape[1] * a.shape[2] * b.shape[1]
        self.report("forward", macs, activation, activation)
        if self.training and torch.is_grad_enabled():
            self.report("input_gradient", macs, grad, activation)
            self.report("weight_gradient", macs, activation, grad)
        if min(activation, grad) == 32:
            return a @ b.transpose(1, 2)
        if why := refusal("attention", self.run):
            raise ValueError(f"layer {self.name}: {why}")
        if self.run.engine is not None:
            self.check_integers((activation, grad))
        result: Tensor = _Matmul.apply(a.contiguous(), b.contiguous(), self)
        return result


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (QLinear(width, width) for _ in range(4))
        self.scores, self.mixture = QMatmul(), QMatmul()

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape

        def split(y: Tensor) -> Tensor:
            return y.reshape(n, t, self.heads, -1).transpose(1, 2).reshape(n * self.heads, t, -1)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = self.scores(q, k) / math.sqrt(q.shape[2])
        future = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(2)
        mixed = self.mixture(weights, v.transpose(1, 2))
        return self.output(mixed.reshape(n, self.heads, t, -1).transpose(1, 2).reshape(n, t, width))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.up, self.down = QLinear(width, hidden), QLinear(hidden, width)
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout1(self.attention(self.norm1(x)))
        return x + self.dropout2(self.down(F.relu(self.up(self.norm2(x)))))


class TransformerLM(nn.Module):
    """A causal language model: embedding, learned positions, pre-norm blocks, linear output layer.

    Transformer-base has width 512, 6 layers, 8 heads and 2048 hidden units.  Normalisation, softmax, embeddings and
    (unless ``quantize_head``) the output layer stay in float32.  ``dropout`` is that of Vaswani et al. 2017, section 5.4:
    of the embedded words with their positions, and of what a block's two parts add.

    Maps int64 tokens (N, T) to logits (N, T, vocabulary), T <= context.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        hidden: int = 512,
        context: int = 64,
        *,
        dropout: float = 0.0,
        quantize_head: bool = False,
    ) -> None:
        if width % heads:
            raise ValueError(f"width {width} must be a multiple of the number of heads, {heads}")
        super().__init__()
        self.context = context
        self.embedding, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(width, heads, hidden, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = QLinear(width, vocabulary)
        self.keep_full = set() if quantize_head else {"head"}
        for table in (self.embedding, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.ndim != 2 or tokens.shape[1] > self.context:
            raise ValueError(f"tokens {tuple(tokens.shape)} must be (N, T) with T at most {self.context}")
        x = self.dropout(self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def build_language_model(
    name: str, vocabulary: int, context: int, *, dropout: float = 0.0, quantize_head: bool = False, seed: int = 0
) -> TransformerLM:
    """A freshly initialised language model; the caller's random state is left as it was.

    Args:
        name: a key of :data:`hw.networks.TRANSFORMERS`.
        vocabulary, context: words, and words per sequence.
        dropout: probability, see :class:`TransformerLM`.
        quantize_head: whether schedules apply to the output layer.
        seed: initialisation.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in TRANSFORMERS:
        raise ValueError(f"unknown language model {name!r}; use one of {', '.join(TRANSFORMERS)}")
    width, layers, heads, hidden = TRANSFORMERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TransformerLM(
            vocabulary, width, layers, heads, hidden, context, dropout=dropout, quantize_head=quantize_head
        )
