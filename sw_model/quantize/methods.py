"""Quantizers of the methods that FracTrain is compared with, and formats related to its own, as fake quantization.

All map float32 tensors to float32 tensors on the grid; gradients' rounding takes a 32-bit key
(:func:`sw_model.quantize.affine.derive_key`).  :data:`METHODS` are layers' convolutions by each method, forward and
backward as published; batch normalisation stays in float32, as in FracTrain's comparison (section 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sw_model.nn.convolution import convolve, gradients
from sw_model.quantize.affine import derive_key, round_stochastically, straight_through


def _steps(bits: int) -> int:
    if not 1 <= bits <= 16:
        raise ValueError(f"cannot quantize to {bits} bits: a code has 1 to 16")
    return (1 << bits) - 1


# -- DoReFa (Zhou et al. 2016): q_k(x) = round(x * (2**k - 1)) / (2**k - 1) on [0, 1] --------------------------------


def dorefa_weight(w: Tensor, bits: int) -> Tensor:
    """``2 q_k(tanh w / (2 max|tanh w|) + 1/2) - 1``; at one bit ``sign(w) * mean|w|``, zero counting as positive."""
    n = _steps(bits)
    if bits == 1:
        return torch.where(w >= 0, 1.0, -1.0) * w.abs().mean()
    t = torch.tanh(w)
    largest = t.abs().max().clamp_min(2.0**-126)
    return 2 * torch.round((t / (2 * largest) + 0.5) * n) / n - 1


def dorefa_activation(x: Tensor, bits: int) -> Tensor:
    """``q_k(clip(x, 0, 1))``."""
    n = _steps(bits)
    return torch.round(x.clamp(0, 1) * n) / n


def dorefa_gradient(g: Tensor, bits: int, key: int) -> Tensor:
    """``2 M (q_k(clip(g / (2 M) + 1/2 + noise, 0, 1)) - 1/2)``, M = max|g| per sample.

    The noise is uniform in +-1/(2 (2**k - 1)): half a step, so that rounding to nearest is rounding at random, which is
    how it is done here, since float32 would round the noise itself at many bits.

    Args:
        g: (N, ...).
    """
    n = _steps(bits)
    m = g.abs().flatten(1).amax(1).clamp_min(2.0**-126).reshape(-1, *[1] * (g.ndim - 1))
    return 2 * m * (round_stochastically((g / (2 * m) + 0.5) * n, key).clamp(0, n) / n - 0.5)


# -- WAGEUBN (Yang et al. 2019): Q(x, k) = round(x * 2**(k-1)) / 2**(k-1), R(x) = 2**round(log2 max|x|) ---------------


def _fixed(x: Tensor, bits: int) -> Tensor:
    step = 2.0 ** (bits - 1)
    return torch.round(x * step) / step


def _power(x: Tensor) -> float:
    largest = float(x.abs().max())
    return 2.0 ** round(math.log2(largest)) if largest > 0 else 1.0


def wageubn_weight(w: Tensor, bits: int = 8) -> Tensor:
    """``clip(Q(w, k), +-(1 - 2**-(k-1)))``."""
    _steps(bits)
    end = 1 - 2.0 ** (1 - bits)
    return _fixed(w, bits).clamp(-end, end)


def wageubn_activation(x: Tensor, bits: int = 8) -> Tensor:
    """``Q(x, k)``, not clipped: the format's integer part is free."""
    _steps(bits)
    return _fixed(x, bits)


def wageubn_error(e: Tensor, bits: int = 8) -> Tensor:
    """The error between layers, E1: ``R clip(Q(e / R, k), +-1)``."""
    _steps(bits)
    r = _power(e)
    return r * _fixed(e / r, bits).clamp(-1, 1)


def wageubn_error_flagged(e: Tensor, bits: int = 8) -> Tensor:
    """The error inside a batch normalisation, E2: with Sc = R / 2**(k-1), values below Sc get k bits of their own
    (``Sc Q(e / Sc, k)``), the others ``Sc clip(round(e / Sc), +-(2**(k-1) - 1))``: one flag bit says which."""
    _steps(bits)
    sc = _power(e) / 2 ** (bits - 1)
    t = e / sc
    end = 2 ** (bits - 1) - 1
    return sc * torch.where(t.abs() < 1, _fixed(t, bits), torch.round(t).clamp(-end, end))


def wageubn_gradient(g: Tensor, rate: int, key: int) -> Tensor:
    """The weight gradient in integer steps: ``SR(rate g / R)`` clipped to ``+-(rate - 1)``.

    R may lie below max|g|, by up to sqrt(2), so that the largest gradients are cut off: the published format, which
    does not promise an unbiased gradient.

    Args:
        rate: dynamic range, a power of two such as 128.
    """
    if rate < 2 or rate & (rate - 1):
        raise ValueError(f"rate {rate} must be a power of two, at least 2")
    t = g * (rate / _power(g))
    return round_stochastically(t, key).clamp(-(rate - 1), rate - 1)


# -- MXINT: blocks of integers that share a power-of-two scale --------------------------------------------------------


def mxint(x: Tensor, bits: int, block: int = 32, key: int | None = None) -> Tensor:
    """Block floating point: runs of ``block`` elements along the last axis share a scale that is a power of two.

    The scale is the smallest 2**e at which the block's largest magnitude fits ``+-(2**(bits-1) - 1)``.

    Args:
        bits: width of a signed element, 2..16.
        block: elements per scale; the last block of a row may be shorter.
        key: stochastic rounding; None rounds to nearest even.
    """
    if not 2 <= bits <= 16 or block < 1:
        raise ValueError(f"mxint needs 2..16 bits and blocks of at least one element, not {bits} bits, block {block}")
    end = 2 ** (bits - 1) - 1
    width = x.shape[-1]
    padded = nn.functional.pad(x, (0, -width % block)).reshape(*x.shape[:-1], -1, block)
    largest = padded.abs().amax(-1, keepdim=True).double()
    # frexp: largest / end = m * 2**e with m in [1/2, 1), so 2**e fits; 2**(e-1) fits if m is exactly 1/2.
    mantissa, exponent = torch.frexp(largest / end)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent).clamp_min(-126)
    scale = torch.ldexp(torch.ones_like(largest), exponent)
    t = padded.double() / scale
    if key is None:
        codes = torch.round(t)
    else:
        codes = round_stochastically(t, key)
    return (codes.clamp(-end, end) * scale).to(x.dtype).flatten(-2)[..., :width]


# -- convolutions by these methods -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Convolution:
    """What a convolution by a method needs besides its tensors.

    Attributes:
        weight, activation, grad: bits, 0 for unquantized.
        stride, padding, groups: as of :func:`torch.nn.functional.conv2d`.
        key: of all stochastic rounding in this call.
    """

    weight: int
    activation: int
    grad: int
    stride: int
    padding: int
    groups: int
    key: int

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        return convolve(x, weight, self.stride, self.padding, self.groups)


def _on_gradient(x: Tensor, quantizer: Callable[[Tensor], Tensor]) -> Tensor:
    """``x``, whose gradient is quantized on its way back; only this use of ``x``, not others."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x
    x = x.view_as(x)
    x.register_hook(quantizer)
    return x


def dorefa_product(x: Tensor, weight: Tensor, call: Convolution) -> Tensor:
    """Straight-through only the rounding: gradients meet the derivative of tanh and its scaling in the weight, and
    vanish where the activation was clipped.  The output gradient is quantized once for both gradients."""
    if call.activation:
        clipped = x.clamp(0, 1)
        x = straight_through(dorefa_activation(clipped.detach(), call.activation), clipped)
    if call.weight == 1:
        weight = straight_through(dorefa_weight(weight.detach(), 1), weight)
    elif call.weight:
        t = torch.tanh(weight)
        smooth = t / t.abs().max().clamp_min(2.0**-126)
        weight = straight_through(dorefa_weight(weight.detach(), call.weight), smooth)
    y = call(x, weight)
    return _on_gradient(y, lambda g: dorefa_gradient(g, call.grad, call.key)) if call.grad else y


#: Fraction bits of WAGEUBN's weight gradients, and their dynamic range at the start of training.
WAGEUBN_FRACTION, WAGEUBN_RATE = 14, 128


def wageubn_product(x: Tensor, weight: Tensor, call: Convolution) -> Tensor:
    """Plain straight-through in weight and activation.  The output gradient is E2, the input gradient E1, and the
    weight gradient integers over 2**14: its own magnitude is lost, as published, so that the learning rate alone sets
    the size of a step.

    Master weights and momentum stay in float32, which holds the published grids of up to 24 bits.
    """
    if call.activation:
        x = _on_gradient(x, lambda g: wageubn_error(g, call.grad)) if call.grad else x
        x = straight_through(wageubn_activation(x.detach(), call.activation), x)
    if call.weight:
        if call.grad:
            weight = _on_gradient(weight, lambda g: wageubn_gradient(g, WAGEUBN_RATE, call.key) / 2**WAGEUBN_FRACTION)
        weight = straight_through(wageubn_weight(weight.detach(), call.weight), weight)
    y = call(x, weight)
    return _on_gradient(y, lambda g: wageubn_error_flagged(g, call.grad)) if call.grad else y


def mxint_along(x: Tensor, bits: int, axis: int, key: int | None = None) -> Tensor:
    """:func:`mxint` with the blocks along ``axis``; 0 bits leave ``x`` alone."""
    return mxint(x.movedim(axis, -1), bits, key=key).movedim(-1, axis) if bits else x


class _MxintProduct(torch.autograd.Function):
    """Each of the three products has blocks along an axis that it contracts: the channels of its two operands, or for
    the weight gradient the samples; so every tensor is quantized twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, call: Convolution) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(x, weight)
        return call(mxint_along(x, call.activation, 1), mxint_along(weight, call.weight, 1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        call: Convolution = ctx.call
        x, weight = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            g = mxint_along(grad, call.grad, 1, call.key)
            w = mxint_along(weight, call.weight, 0)
            dx, _ = gradients(x, w, g, call.stride, call.padding, call.groups, of=(True, False))
        if ctx.needs_input_grad[1]:
            g = mxint_along(grad, call.grad, 0, derive_key(call.key, 1))
            a = mxint_along(x, call.activation, 0)
            _, dw = gradients(a, weight, g, call.stride, call.padding, call.groups, of=(False, True))
        return dx, dw, None


def mxint_product(x: Tensor, weight: Tensor, call: Convolution) -> Tensor:
    """Blocks of 32 with shared power-of-two scales; weights and activations to nearest, gradients stochastically."""
    result: Tensor = _MxintProduct.apply(x, weight, call)
    return result


#: Convolution (activation (N, C, H, W), weight, call) -> output by each method, differentiable as published.
METHODS: dict[str, Callable[[Tensor, Tensor, Convolution], Tensor]] = {
    "dorefa": dorefa_product,
    "wageubn": wageubn_product,
    "mxint": mxint_product,
}


def check_bits(method: str, widths: tuple[int, int, int, int]) -> None:
    """Refuses widths that a method does not define.

    Args:
        method: a key of :data:`METHODS`.
        widths: as of :attr:`sw_model.nn.precision.Precision.widths`, 32 for unquantized.

    Raises:
        ValueError: a bifurcated gradient, or one bit where the format has a sign and a magnitude.
    """
    if widths[3] != widths[2]:
        raise ValueError(f"quantizer {method!r} has one width of gradients, not {widths[2]} and {widths[3]} bits")
    if method != "dorefa" and 1 in widths:
        raise ValueError(f"quantizer {method!r} needs at least 2 bits, a sign and a magnitude; got 1")


# -- Range batch normalisation (Banner et al. 2018) ------------------------------------------------------------------


class RangeBatchNorm2d(nn.Module):
    """Batch normalisation whose deviation is estimated from ranges, which needs no squares.

    ``sigma = C(n) * mean over 16 chunks of (max - min)``, ``C(n) = 0.175 (1 + sqrt(pi ln 4)) / sqrt(2 ln n)``, n the
    chunk's size (as the public code has it).  Gradients flow through mean, maximum and minimum.

    Args:
        channels: C of an input (N, C, H, W).
        momentum: share of the new value in the running statistics.
    """

    CHUNKS = 16
    LEAST = 2 * CHUNKS  #: values per channel that a batch must have

    running_mean: Tensor
    running_deviation: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_deviation", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            rows = x.transpose(0, 1).flatten(1)
            n = rows.shape[1] // self.CHUNKS
            if rows.shape[1] < self.LEAST:
                raise ValueError(
                    f"range batch normalisation needs at least {self.LEAST} values per channel, not {rows.shape[1]}; "
                    "use larger batches"
                )
            chunks = rows[:, : n * self.CHUNKS].reshape(len(rows), self.CHUNKS, n)
            spans = chunks.amax(2) - chunks.amin(2)
            factor = 0.175 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(n))
            mean, deviation = rows.mean(1), factor * spans.mean(1)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_deviation.lerp_(deviation, self.momentum)
        else:
            mean, deviation = self.running_mean, self.running_deviation
        shape = (1, -1, 1, 1)
        y = (x - mean.reshape(shape)) / (deviation.reshape(shape) + self.eps)
        return y * self.weight.reshape(shape) + self.bias.reshape(shape)
