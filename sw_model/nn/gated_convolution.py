"""A convolution of a batch whose samples have different bits, as gates choose them; see :mod:`sw_model.nn.gates`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from host.board.gate_decisions import exact_option_products
from host.operands import ConvGeometry, Grid, backward_mixed, several
from sw_model.nn.convolution import convolve, gradients
from sw_model.nn.layers import QConv2d, QLayer, batch_extremes
from sw_model.nn.parallel import ALONE, Shard
from sw_model.nn.precision import Precision
from sw_model.nn.quantized_product import layer_weight_operand, tensor_operand
from sw_model.quantize.affine import (
    Group,
    affine_values,
    derive_key,
    fake_quantize_groups,
    grid_from_range,
    option_products,
)


@dataclass(frozen=True)
class Assignment:
    """Which samples have which option: what the layers of a block share, so that an accelerator is asked for choices once.

    Attributes:
        members: samples here by option; options that none has are left out.
        parts: samples of every option, here and in other processes.
    """

    members: list[tuple[int, Tensor]]
    parts: list[Shard]

    @classmethod
    def of(cls, mask: Tensor, shard: Shard | None) -> Assignment:
        """What a mask says, float32 (N, P), one-hot rows.

        Args:
            shard: this process's part of the batch, if several share it.
        """
        choice = mask.detach().argmax(1).cpu()
        parts = (shard or Shard.of_batch(ALONE, len(mask))).groups(choice, mask.shape[1])
        members = [(k, torch.nonzero(choice == k)[:, 0].to(mask.device)) for k, part in enumerate(parts) if part.count]
        return cls(members, parts)


@dataclass
class _Dispatch:
    """One call of a gated layer.

    Attributes:
        shape: of the convolution.
        members: samples here by option; options that none has are left out.
        before: samples of each option in earlier parts of the batch.
        shard: this process's part of the batch, if several share it.
        low, span: activation range of the whole batch.
        key: of the random numbers.
    """

    layer: QLayer
    shape: ConvGeometry
    options: Sequence[Precision]
    members: list[tuple[int, Tensor]]
    before: list[int]
    shard: Shard | None
    low: Tensor
    span: Tensor
    key: int
    grids: dict[int, Grid] = field(default_factory=dict)

    def geometry(self, batch: int) -> ConvGeometry:
        return replace(self.shape, batch=batch)

    def activation_grid(self, option: int) -> Grid:
        grid = self.grids.get(option)
        if grid is None:
            bits = self.options[option].activation
            grid = self.grids[option] = grid_from_range(self.low, self.span, bits, mode=self.layer.run.scale_mode)
        return grid

    def mixed_input(self, x: Tensor) -> Tensor:
        groups = [Group(index, self.activation_grid(option)) for option, index in self.members]
        return fake_quantize_groups(x, groups, "activation")

    @property
    def weight_bits(self) -> int:
        """Width of the weights, which all options share."""
        return self.options[0].weight


class _DispatchedConvolution(torch.autograd.Function):
    """Convolution of a batch whose samples have different bits; see :mod:`sw_model.nn.gates`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, mask: Tensor, call: _Dispatch) -> Tensor:
        ctx.call = call
        layer, engine = call.layer, call.layer.run.engine
        bits = call.weight_bits
        if engine is None:
            x = x.contiguous(memory_format=torch.channels_last)
            ctx.save_for_backward(x, weight)
            xq = call.mixed_input(x)
            wq = affine_values(weight, bits, axis=0, mode=layer.run.scale_mode)
            return convolve(xq, wq, call.shape.stride, call.shape.padding)
        ctx.save_for_backward(x, weight)
        w = layer_weight_operand(weight, bits, 0)
        y = torch.empty(len(x), call.shape.out_channels, *call.shape.out_hw)
        members = [
            (tensor_operand(x[index], call.activation_grid(k)), w, call.geometry(len(index)))
            for k, index in call.members
        ]
        for (a, _, _), (_, index), sums in zip(members, call.members, several(engine, "forward", members), strict=True):
            y[index] = torch.from_numpy(sums.real(a.grid, w.grid, 1))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:  # type: ignore[override]
        call: _Dispatch = ctx.call
        x, weight = ctx.saved_tensors
        need_x, need_w, need_mask = ctx.needs_input_grad[:3]
        layer, engine = call.layer, call.layer.run.engine
        bits = call.weight_bits
        mode = layer.run.scale_mode
        grad = grad.contiguous(memory_format=torch.channels_last if engine is None else torch.contiguous_format)
        low, span = batch_extremes(grad, call.shard)

        def gradient_grid(option: int) -> Grid:
            # Options are separate products on the engine, so each has a key of its own.
            return grid_from_range(low, span, call.options[option].grad, key=derive_key(call.key, option), mode=mode)

        dx = dw = None
        if engine is None:
            groups = [Group(index, gradient_grid(k), call.before[k]) for k, index in call.members]
            gq = fake_quantize_groups(grad, groups, "gradient")
            need = (need_x or need_mask, need_w)
            wq = affine_values(weight, bits, axis=layer.run.input_gradient_axis, mode=mode) if need[0] else weight
            xq = call.mixed_input(x) if need_w else x
            dx, dw = gradients(xq, wq, gq, call.shape.stride, call.shape.padding, of=need)
        else:
            w = layer_weight_operand(weight, bits, 1)
            if need_x or need_mask:
                dx = torch.empty_like(x)
            dw = torch.zeros_like(weight) if need_w else None
            members = [
                (
                    tensor_operand(x[index], call.activation_grid(k)),
                    tensor_operand(grad[index], gradient_grid(k)),
                    call.geometry(len(index)),
                )
                for k, index in call.members
            ]
            both = backward_mixed(engine, members, w) if dx is not None and dw is not None else None
            for i, ((a, g, geometry), (_, index)) in enumerate(zip(members, call.members, strict=True)):
                if dx is not None:
                    sums = both[i][0] if both else engine.input_gradient(g, w, geometry)
                    dx[index] = torch.from_numpy(sums.real(g.grid, w.grid, 1))
                if dw is not None:
                    sums = both[i][1] if both else engine.weight_gradient(a, g, geometry)
                    dw += torch.from_numpy(sums.real(a.grid, g.grid))
        dmask = None
        if need_mask:
            assert dx is not None
            live = [k for k, precision in enumerate(call.options) if precision.activation]
            dmask = x.new_zeros(len(x), len(call.options))
            grids = [call.activation_grid(k) for k in live]
            if engine is None:
                dmask[:, live] = option_products(x, dx, grids)
            else:  # as in the run's job, to the bit
                dmask[:, live] = torch.from_numpy(exact_option_products(x.numpy(), dx.numpy(), grids))
        return (dx if need_x else None), dw, dmask, None


def dispatch(
    layer: QConv2d, x: Tensor, mask: Tensor, options: Sequence[Precision], assigned: Assignment | None = None
) -> Tensor:
    """A layer's convolution in which sample ``n`` has the precision ``options[argmax mask[n]]``.

    Args:
        layer: dense convolution; its own ``precision`` is ignored, its run, ranges and weight are used.
        x: float32 (N, C, H, W).
        mask, options, assigned: see :func:`dispatch_product`.

    Raises:
        ValueError: if the layer is depthwise, a sample skips, or weight bits differ.
    """
    if layer.groups != 1:
        raise ValueError(f"layer {layer.name} is depthwise; gates choose bits of dense convolutions only")
    return dispatch_product(layer, x, layer.weight, layer.geometry(x), mask, options, assigned)


def dispatch_product(
    layer: QLayer,
    x: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    mask: Tensor,
    options: Sequence[Precision],
    assigned: Assignment | None = None,
) -> Tensor:
    """A convolution in which sample ``n`` has the precision ``options[argmax mask[n]]``.

    Args:
        layer: whose run, ranges and keys are used.
        x: float32 (N, C, H, W).
        weight: float32 (O, C, kh, kw).
        geometry: of the convolution.
        mask: float32 (N, P), one-hot rows with a straight-through gradient; no row may choose a skip option here.
        options: P precisions that share their weight bits; (0, 0) activation and gradient mean skip.
        assigned: what the mask says, if it is known.

    Raises:
        ValueError: if a sample skips, or weight bits differ.
    """
    if len({p.weight for p in options}) != 1:
        raise ValueError(f"options {[str(p) for p in options]} must share their weight bits")
    shard = layer.run.shard
    assigned = assigned or Assignment.of(mask, shard)
    parts = assigned.parts
    if any(part.total and precision.activation == 0 for part, precision in zip(parts, options, strict=True)):
        raise ValueError("a sample that skips the block has no convolution; leave it out of the batch")
    low, span = layer.activation_range(x.detach())
    before = [part.before for part in parts]
    call = _Dispatch(layer, geometry, options, assigned.members, before, shard, low, span, layer.gradient_key())
    for k, part in enumerate(parts):
        if not part.total:
            continue
        macs = part.total * weight.numel() * math.prod(geometry.out_hw)
        w, a, g, last = options[k].widths
        layer.report("forward", macs, a, w)
        if layer.training and torch.is_grad_enabled():
            layer.report("input_gradient", macs, g, w)
            layer.report("weight_gradient", macs, a, last)
    result: Tensor = _DispatchedConvolution.apply(x, weight, mask, call)
    return result


class Relative(torch.autograd.Function):
    """A mask of samples that do not skip, whose gradient is counted from the chosen option.

    Only differences between options matter to the softmax behind it, and that of skipping is told apart (zero here).
    """

    @staticmethod
    def forward(ctx: Any, mask: Tensor, skip: int) -> Tensor:
        ctx.skip = skip
        ctx.save_for_backward(mask)
        return mask.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (mask,) = ctx.saved_tensors
        grad = grad - (grad * mask).sum(1, keepdim=True)
        grad[:, ctx.skip] = 0
        return grad, None
