"""Layers of a converted network as the cost models have them, from one run on an example batch."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from host.operands import ConvGeometry
from hw.design import Design
from hw.layer_tables import CALL
from hw.networks import PRODUCTS, Bits, ConvShape
from hw.plan.lowering import lower
from hw.plan.product import LoweringError
from hw.plan.training_products import TRAINING, layer_products
from sw_model.convert.observe import Example, run_example, unchanged
from sw_model.convert.sites import MatmulSite, Site
from sw_model.nn.layers import DEPTHWISE, quantized_layers
from sw_model.nn.precision import FULL, Precision


@dataclass(frozen=True)
class Traced:
    """What an example batch met.

    Attributes:
        shapes: a layer per call, in order, for one sample.
        macs: multiply-accumulates per sample and product, by layer, all its calls together.
        sample: shape of a sample of the first input.
        outputs: numbers of the result per sample.
        inputs: shape of the first tensor that came into each module, by path, batch included.
    """

    shapes: tuple[ConvShape, ...]
    macs: dict[str, int]
    sample: tuple[int, ...]
    outputs: int
    inputs: dict[str, tuple[int, ...]]


def _shape(name: str, layer: Any, batch: int) -> ConvShape:
    """A layer's last call, for one sample; what is no square convolution, as the matrix product that it runs as."""
    g, groups = layer.geometry, layer.groups
    out = g.out_channels
    if isinstance(g, ConvGeometry) and g.is_linear:
        rows = math.ceil(g.batch / batch)
        return ConvShape(name, g.in_channels, out, 1, 1, 0, (rows, 1), kind="conv")
    kind = "depthwise" if layer.depthwise else "conv"
    if isinstance(g, ConvGeometry) and g.kernel[0] == g.kernel[1] and min(g.in_hw) + 2 * g.padding >= g.kernel[0]:
        return ConvShape(name, g.in_channels, out, g.kernel[0], g.stride, g.padding, g.in_hw, groups, kind)
    rows = math.prod(g.out_hw) * math.ceil(g.batch / batch)
    return ConvShape(name, g.in_channels * math.prod(g.kernel), out, 1, 1, 0, (rows, 1), groups, kind)


class _Note:
    """Forward hook: collects calls."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.shapes: dict[str, ConvShape] = {}

    def __call__(self, layer: Any, args: tuple[Any, ...], result: Any) -> None:
        name = layer.called
        if isinstance(layer, MatmulSite):
            a, b = args
            heads = max(1, math.prod(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])) // self.batch)
            sizes = heads * a.shape[-1], heads * b.shape[-1]
            shape = ConvShape(name, *sizes, 1, 1, 0, (a.shape[-2], 1), heads, "attention")
        else:
            shape = _shape(name, layer, self.batch)
        before = self.shapes.get(name)
        if before is None:
            self.shapes[name] = shape
        elif replace(before, in_hw=shape.in_hw) == shape and shape.in_hw[1] == 1 == shape.kernel:
            rows = before.in_hw[0] + shape.in_hw[0]  # rows of one matrix product
            self.shapes[name] = replace(shape, in_hw=(rows, 1))
        else:
            call = 1 + sum(each.split(CALL)[0] == name for each in self.shapes)
            self.shapes[f"{name}{CALL}{call}"] = replace(shape, name=f"{name}{CALL}{call}")


def first_tensor(example: Example) -> Tensor:
    """The first tensor of an example, whose leading axis runs over samples.

    Raises:
        ValueError: there is none.
    """
    values = (
        example.values() if isinstance(example, dict) else example if isinstance(example, tuple | list) else [example]
    )
    for value in values:
        if isinstance(value, Tensor) and value.ndim:
            return value
    raise ValueError("the example holds no batch; give a tensor, or arguments of the network with one among them")


def trace(model: nn.Module, example: Example) -> Traced:
    """Layers of a converted network, which is left as it was.

    Args:
        model: converted.
        example: a batch, see :func:`sw_model.convert.observe.run_example`.
    """
    first = first_tensor(example)
    layers = [layer for _, layer in quantized_layers(model) if isinstance(layer, Site | MatmulSite)]
    note = _Note(len(first))
    macs: dict[str, int] = {}

    def count(name: str, product: str, amount: int, a: int, b: int) -> None:
        macs[name] = macs.get(name, 0) + amount

    inputs: dict[str, tuple[int, ...]] = {}

    def enter(path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        for value in args:
            if isinstance(value, Tensor) and value.ndim > 1:
                inputs.setdefault(path, tuple(value.shape))
                return

    before = [(layer, layer.run.on_product, layer.precision) for layer in layers]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    hooks += [m.register_forward_pre_hook(partial(enter, path)) for path, m in model.named_modules()]
    try:
        with torch.no_grad(), unchanged(model):
            for layer in layers:
                layer.run.on_product, layer.precision = count, FULL
            result = run_example(model, example)
    finally:
        for hook in hooks:
            hook.remove()
        for layer, on_product, precision in before:
            layer.run.on_product, layer.precision = on_product, precision
    whole = {name: max(1, round(amount / len(first))) for name, amount in macs.items()}
    outputs = result.numel() // len(first) if isinstance(result, Tensor) else 1
    return Traced(_kinds(list(note.shapes.values())), whole, tuple(first.shape[1:]), max(outputs, 1), inputs)


def check_fits(
    design: Design, shapes: Iterable[ConvShape], precisions: Iterable[Precision], kept: Container[str]
) -> None:
    """Refuses layers that a design cannot hold however they are cut, before anything is trained.

    Args:
        design: of the fabric.
        shapes: layers of the network.
        precisions: that a schedule gives to them.
        kept: names of layers that stay in float32.

    Raises:
        ValueError: a layer, its product and what of the design is too small.
    """
    widths = {tuple(p.widths) for p in precisions if p.quantized}
    for shape in shapes:
        if shape.name.split(CALL)[0] in kept:
            continue
        own = {tuple(DEPTHWISE.widths)} if shape.kind == "depthwise" and widths else widths
        for w, a, g, last in own:
            bits = Bits(w, a, g, 0 if last == g else last)
            for kind in PRODUCTS:
                for _, product in layer_products(shape, bits, 2, kind, TRAINING):
                    try:
                        lower(design, product)
                    except LoweringError as error:
                        raise ValueError(
                            f"layer {shape.name}, {kind}, at {bits}: {error}; or name the layer in keep, which leaves it in "
                            "float32 on the host"
                        ) from error


def _kinds(shapes: list[ConvShape]) -> tuple[ConvShape, ...]:
    """The first layer, which needs no input gradient, and the last one, told apart."""
    if shapes and shapes[0].kind == "conv":
        shapes[0] = replace(shapes[0], kind="stem")
    if len(shapes) > 1 and shapes[-1].kind == "conv":
        shapes[-1] = replace(shapes[-1], kind="fc")
    return tuple(shapes)
