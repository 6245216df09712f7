"""The quantized products and the gates of a network as operators of their own, which stay whole in a captured graph.

They are traced, never run: what they compute is decided by the job's runtime.  Shapes are those of the results.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from host.operands import ConvGeometry
from sw_model.nn.convolution import convolve
from sw_model.nn.gates import GatedNetwork
from sw_model.nn.layers import QConv2d, quantized_layers, set_precision
from sw_model.nn.models import Backbone, Convolve, plain
from sw_model.nn.precision import Precision
from sw_model.step.fabric_step import FabricStep


def _operator(name: str, result: Callable[..., Any]) -> Any:
    """An operator whose results have the shape and type of ``result(*operands)``."""
    made = torch.library.custom_op(f"fractrain::{name}", result, mutates_args=())
    made.register_fake(result)
    return made


def _convolved(x: Tensor, weight: Tensor, layer: int, stride: int, padding: int, groups: int) -> Tensor:
    return convolve(x, weight, stride, padding, groups)


def _like_x(
    grad: Tensor, weight: Tensor, x: Tensor, layer: int, stride: int, padding: int, groups: int
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape)


def _like_weight(
    grad: Tensor, x: Tensor, weight: Tensor, layer: int, stride: int, padding: int, groups: int
) -> Tensor:  # fmt: skip
    return weight.new_empty(weight.shape)


def _gated(x: Tensor, weight: Tensor, mask: Tensor, layer: int, stride: int, padding: int) -> Tensor:
    return convolve(x, weight, stride, padding)


def _gated_like_x(
    grad: Tensor, weight: Tensor, x: Tensor, mask: Tensor, layer: int, stride: int, padding: int
) -> Tensor:
    return x.new_empty(x.shape)


def _gated_like_weight(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, layer: int, stride: int, padding: int
) -> Tensor:
    return weight.new_empty(weight.shape)


def _like_mask(dx: Tensor, x: Tensor, mask: Tensor, layer: int) -> Tensor:
    return mask.new_empty(mask.shape)


def _like_soft(soft: Tensor) -> Tensor:
    return soft.new_empty(soft.shape)


def _like_cost(cost: Tensor, task: Tensor) -> Tensor:
    return cost.new_empty(cost.shape)


def _like_grad(grad: Tensor, cost: Tensor, task: Tensor) -> Tensor:
    return grad.new_empty(grad.shape)


def _pooled(x: Tensor, own: list[Tensor], channels: int) -> Tensor:
    return x.new_empty(len(x), channels)


def _pooled_behind(choice: Tensor, block: int, channels: int) -> Tensor:
    return choice.new_empty(len(choice), channels)


def _features(pooled: Tensor, choices: list[Tensor], parameters: list[Tensor]) -> Tensor:
    return pooled.new_empty(pooled.shape)


def _like_statistics(features: Tensor, statistics: list[Tensor]) -> list[Tensor]:
    return [each.new_empty(each.shape) for each in statistics]


def _like_leaves(grad: Tensor, choices: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
    return [each.new_empty(each.shape) for each in (*choices, *parameters)]


_product = _operator("product", _convolved)
_input_gradient = _operator("input_gradient", _like_x)
_weight_gradient = _operator("weight_gradient", _like_weight)
_gated_product = _operator("gated_product", _gated)
_gated_input_gradient = _operator("gated_input_gradient", _gated_like_x)
_gated_weight_gradient = _operator("gated_weight_gradient", _gated_like_weight)
_gated_mask_gradient = _operator("gated_mask_gradient", _like_mask)
_choice = _operator("choice", _like_soft)
cost_term = _operator("cost_term", _like_cost)
_cost_term_gradient = _operator("cost_term_gradient", _like_grad)
_passes = _operator("passes", _pooled)
_passes_chosen = _operator("passes_chosen", _pooled_behind)
_passes_features = _operator("passes_features", _features)
_passes_statistics = _operator("passes_statistics", _like_statistics)
_passes_gradient = _operator("passes_gradient", _like_leaves)


def _keep(tensors: int) -> Callable[[Any, tuple[Any, ...], Tensor], None]:
    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.rest = inputs[tensors:]

    return keep


def _product_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    dx = _input_gradient(grad, weight, x, *ctx.rest) if ctx.needs_input_grad[0] else None
    dw = _weight_gradient(grad, x, weight, *ctx.rest) if ctx.needs_input_grad[1] else None
    return dx, dw, None, None, None, None


def _gated_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, mask = ctx.saved_tensors
    dx = _gated_input_gradient(grad, weight, x, mask, *ctx.rest)
    dw = _gated_weight_gradient(grad, x, weight, mask, *ctx.rest)
    return dx, dw, _gated_mask_gradient(dx, x, mask, ctx.rest[0]), None, None, None


def _cost_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _cost_term_gradient(grad, *ctx.saved_tensors), None


def _keep_leaves(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, choices, parameters = inputs
    ctx.save_for_backward(*choices, *parameters)
    ctx.choices = len(choices)


def _features_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    choices, parameters = ctx.saved_tensors[: ctx.choices], ctx.saved_tensors[ctx.choices :]
    found = _passes_gradient(grad, list(choices), list(parameters))
    return None, found[: ctx.choices], found[ctx.choices :]


#: names of the operators of products and gates, which the runtime has under the same name, attributes in the same order
OPERATORS = (
    "product", "input_gradient", "weight_gradient", "gated_product", "gated_input_gradient", "gated_weight_gradient",
    "gated_mask_gradient", "choice", "cost_term", "cost_term_gradient",
)  # fmt: skip

_product.register_autograd(_product_backward, setup_context=_keep(2))
_gated_product.register_autograd(_gated_backward, setup_context=_keep(3))
cost_term.register_autograd(_cost_backward, setup_context=_keep(2))
_passes_features.register_autograd(_features_backward, setup_context=_keep_leaves)


def with_operators(model: nn.Module) -> nn.Module:
    """A copy of a network whose quantized layers and gates call the custom operators."""
    clone = copy.deepcopy(model)
    for index, (_, layer) in enumerate(quantized_layers(clone)):
        layer.index = index

        def product(x: Tensor, weight: Tensor, g: ConvGeometry, groups: int, index: int = index) -> Tensor:
            out: Tensor = _product(x, weight, index, g.stride, g.padding, groups)
            return out

        layer._product = product  # type: ignore[method-assign,assignment]
    base = clone.base if isinstance(clone, GatedNetwork) else clone
    if isinstance(base, Backbone) and base.step is not None:
        set_precision(clone, Precision(8, 8, 8))  # any that takes the way through the step
        _trace_step(base.step, clone)
    elif isinstance(clone, GatedNetwork):
        gates = clone._gates

        def convolution(mask: Tensor) -> Convolve:
            def convolve(layer: QConv2d, x: Tensor) -> Tensor:
                if not gates(layer):
                    return plain(layer, x)
                out: Tensor = _gated_product(x, layer.weight, mask, layer.index, layer.stride, layer.padding)
                return out

            return convolve

        clone._convolution = convolution  # type: ignore[method-assign]
    if isinstance(clone, GatedNetwork):

        def one_hot(soft: Tensor, block: int) -> Tensor:
            out: Tensor = _choice(soft)
            return out

        clone._one_hot = one_hot  # type: ignore[method-assign]
    return clone


def _trace_step(step: FabricStep, model: nn.Module) -> None:
    """Has a network's backbone call the operators of a step."""

    def run(backbone: nn.Module, x: Tensor) -> Tensor:
        members = step.members(backbone, x)
        shapes = [each.node.shape for each in members]
        norms = [each.norm for each in members]
        parameters = [p for each in members for p in each.parameters()]
        own = [t.detach() for each in members for t in (*each.parameters(), *each.statistics())]
        statistics = [t for each in members for t in each.statistics()]
        choices: list[Tensor] = []
        if isinstance(model, GatedNetwork):
            seen = [block.in_channels for block in model.base.block_list()]
            pooled = _passes(x, own, seen[0])
            for block, channels in enumerate([*seen[1:], shapes[-1].out_channels]):
                choices.append(model._gate(block, pooled))
                pooled = _passes_chosen(choices[-1].detach(), block, channels)
        else:
            pooled = _passes(x, own, shapes[-1].out_channels)
        features: Tensor = _passes_features(pooled, choices, parameters)
        if norms[0].training:
            with torch.no_grad():
                for old, new in zip(statistics, _passes_statistics(pooled, statistics), strict=True):
                    old.copy_(new)
        return features

    step.forward = run  # type: ignore[method-assign]
    if isinstance(model, GatedNetwork):
        model._in_passes = lambda step, x: model.base.head(run(model.base, x))  # type: ignore[method-assign]
