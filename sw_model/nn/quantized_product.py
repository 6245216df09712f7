"""The three quantized products of one call of a layer, as one differentiable operation; see :mod:`sw_model.nn.layers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from host import grids
from host.driver.unfolded import convolution_sums
from host.operands import ConvGeometry, Engine, Grid, Operand, backward_mixed
from host.windows import Window
from sw_model.nn.convolution import convolve, gradients
from sw_model.nn.parallel import Shard
from sw_model.nn.precision import Precision, Run
from sw_model.quantize.affine import (
    affine_grid,
    affine_values,
    derive_key,
    grid_from_range,
    kept_values,
    quantize_and_keep,
)
from sw_model.quantize.statquant import QUANTIZERS


class Caller(Protocol):
    """What a product asks of its layer."""

    run: Run

    def activation_range(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass
class Call:
    """One forward call of a layer: what its backward pass needs besides tensors."""

    layer: Caller
    geometry: ConvGeometry | Window
    groups: int
    precision: Precision
    engine: Engine | None
    key: int
    shard: Shard | None
    grid: Grid | None = None


def dilation_of(geometry: ConvGeometry | Window) -> int | tuple[int, int]:
    """Distance of a kernel's positions, in pixels."""
    return 1 if isinstance(geometry, ConvGeometry) else geometry.dilation


def _numpy(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().cpu().numpy())


def layer_weight_operand(weight: Tensor, bits: int, axis: int) -> Operand:
    """A weight (O, I, kh, kw) as codes, one grid per output (axis 0) or input channel (axis 1)."""
    return grids.weight_operand(_numpy(weight), bits, axis)


def tensor_operand(x: Tensor, grid: Grid) -> Operand:
    """Values for the engine to quantize."""
    return Operand(grid, values=_numpy(x))


def _by_input(weight: Any, groups: int) -> Any:
    """A grouped weight (O, I/groups, kh, kw), tensor or array, with its input channels first: (I, O/groups, kh, kw)."""
    o, i, kh, kw = weight.shape
    return weight.reshape(groups, o // groups, i, kh, kw).swapaxes(1, 2).reshape(groups * i, o // groups, kh, kw)


def _by_output(weight: Any, groups: int) -> Any:
    """Transpose of :func:`_by_input`."""
    i, o, kh, kw = weight.shape
    return weight.reshape(groups, i // groups, o, kh, kw).swapaxes(1, 2).reshape(groups * o, i // groups, kh, kw)


def input_gradient_weight(weight: Tensor, bits: int, groups: int = 1) -> Operand:
    """A weight (O, I/groups, kh, kw) as codes for the input gradient: one grid per input channel, over all groups."""
    if groups == 1:
        return layer_weight_operand(weight, bits, 1)
    operand = layer_weight_operand(_by_input(weight.detach(), groups), bits, 0)
    return Operand(operand.grid, codes=np.ascontiguousarray(_by_output(operand.codes, groups)))


def _input_gradient_values(call: Call, weight: Tensor) -> Tensor:
    """As :func:`input_gradient_weight`, fake-quantized; in some modes on the forward product's grids."""
    run, bits, groups = call.layer.run, call.precision.weight, call.groups
    axis = run.input_gradient_axis
    if groups == 1 or axis == 0:
        return affine_values(weight, bits, axis=axis, mode=run.scale_mode)
    by_input = _by_input(weight, groups).contiguous()
    return _by_output(affine_values(by_input, bits, axis=0, mode=run.scale_mode), groups).contiguous()


class _QuantizedProduct(torch.autograd.Function):
    """The three products of one layer call."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, call: Call) -> Tensor:
        ctx.call = call
        p, g, groups = call.precision, call.geometry, call.groups
        if p.activation:
            low, span = call.layer.activation_range(x.detach())
            call.grid = grid_from_range(low, span, p.activation, mode=call.layer.run.scale_mode)
        if call.engine is None:
            # oneDNN's convolutions of few channels take half the time with the channels last; what follows keeps that.
            x = x.contiguous(memory_format=torch.channels_last)
            xq, kept = x, x
            if call.grid is not None:
                xq, kept = quantize_and_keep(x, call.grid, "activation")
            wq = weight
            if p.weight:
                wq = affine_values(weight, p.weight, axis=0, mode=call.layer.run.scale_mode)
            ctx.save_for_backward(kept, weight)
            return convolve(xq, wq, g.stride, g.padding, groups, dilation_of(g))
        ctx.save_for_backward(x, weight)
        assert call.grid is not None
        a = tensor_operand(x, call.grid)
        w = layer_weight_operand(weight, p.weight, 0)
        y = convolution_sums(call.engine, "forward", a, w, g, groups).real(a.grid, w.grid, 1)
        return torch.from_numpy(y).to(x.device)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        call: Call = ctx.call
        kept, weight = ctx.saved_tensors
        need = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        p, run = call.precision, call.layer.run
        if run.gradient != "affine":
            return *_statquant_gradients(call, kept, weight, grad.contiguous(), need), None
        split = p.weight_grad is not None and p.weight_grad != p.grad
        # A key of its own: the two roundings of a bifurcated gradient are independent.
        last_key = derive_key(call.key, 1) if split else call.key
        if call.engine is not None:
            return *_exact_gradients(call, call.engine, kept, weight, grad.contiguous(), need, last_key), None
        grad = grad.contiguous(memory_format=torch.channels_last)
        gq = run.gradient_values(grad, p.grad, call.key, call.shard, "gradient") if p.grad else grad
        last_gq = gq
        if split:
            last_gq = run.gradient_values(grad, p.weight_grad, last_key, call.shard) if p.weight_grad else grad
        return *_fast_gradients(call, kept, weight, gq, last_gq, need), None


def quantized_product(x: Tensor, weight: Tensor, call: Call) -> Tensor:
    """A layer's product, with both gradients: float32 (N, I, H, W) and (O, I/groups, kh, kw) to (N, O, OH, OW)."""
    result: Tensor = _QuantizedProduct.apply(x, weight, call)
    return result


def _exact_gradients(
    call: Call, engine: Engine, x: Tensor, weight: Tensor, grad: Tensor, need: tuple[bool, bool], last_key: int
) -> tuple[Tensor | None, Tensor | None]:
    """Input and weight gradient as integer sums; a bifurcated gradient's second rounding has ``last_key``."""
    p, g, groups, mode = call.precision, call.geometry, call.groups, call.layer.run.scale_mode
    need_x, need_w = need
    dx = dw = None
    grid = affine_grid(grad, p.grad, key=call.key, mode=mode)
    last_grid = grid
    split = last_key != call.key
    if split and p.weight_grad:
        last_grid = affine_grid(grad, p.weight_grad, key=last_key, mode=mode)
    assert call.grid is not None
    gradient = tensor_operand(grad, grid)
    last = tensor_operand(grad, last_grid) if split else gradient
    if need_x and need_w and not split and groups == 1 and isinstance(g, ConvGeometry):
        w = input_gradient_weight(weight, p.weight)
        a = tensor_operand(x, call.grid)
        ((to_x, to_w),) = backward_mixed(engine, [(a, gradient, g)], w)  # sends the output gradient once
        dx = torch.from_numpy(to_x.real(grid, w.grid, 1)).to(grad.device)
        return dx, torch.from_numpy(to_w.real(a.grid, grid)).to(grad.device)
    if need_x:
        w = input_gradient_weight(weight, p.weight, groups)
        real = convolution_sums(engine, "input_gradient", gradient, w, g, groups).real(grid, w.grid, 1)
        dx = torch.from_numpy(real).to(grad.device)
    if need_w:
        a = tensor_operand(x, call.grid)
        real = convolution_sums(engine, "weight_gradient", a, last, g, groups).real(a.grid, last_grid)
        dw = torch.from_numpy(real).to(grad.device)
    return dx, dw


def _fast_gradients(
    call: Call, kept: Tensor, weight: Tensor, gq: Tensor, last_gq: Tensor, need: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Input and weight gradient from fake-quantized output gradients, in one call where both are the same."""
    p, g = call.precision, call.geometry
    need_x, need_w = need
    wq = _input_gradient_values(call, weight) if p.weight and need_x else weight
    xq = kept
    if call.grid is not None and need_w:
        xq = kept_values(kept, call.grid, "activation")
    shape = g.stride, g.padding, call.groups, dilation_of(g)
    if gq is last_gq:
        return gradients(xq, wq, gq, *shape, of=need)
    dx, _ = gradients(xq, wq, gq, *shape, of=(need_x, False))
    _, dw = gradients(xq, wq, last_gq, *shape, of=(False, need_w))
    return dx, dw


def _statquant_gradients(
    call: Call, kept: Tensor, weight: Tensor, grad: Tensor, need: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients with one of StatQuant's quantizers on the output gradient, a matrix of samples and features."""
    p = call.precision
    quantizer = QUANTIZERS[call.layer.run.gradient]
    rows = grad.flatten(1)
    gq = quantizer(rows, p.grad, call.key).reshape(grad.shape) if p.grad else grad
    last_gq = gq
    if p.weight_grad is not None and p.weight_grad != p.grad:
        key = derive_key(call.key, 1)
        last_gq = quantizer(rows, p.weight_grad, key).reshape(grad.shape) if p.weight_grad else grad
    return _fast_gradients(call, kept, weight, gq, last_gq, need)
