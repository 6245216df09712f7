"""A network's backbone as one operation of PyTorch: all its nodes, forward and backward, in passes of the fabric.

From the images to the pooled features every value is a code or an integer; between the passes there are numbers per
channel, in float64.  Head, loss and optimizer stay PyTorch's.  What computes the passes follows the engine of the run:
compiled kernels on the fast path, NumPy, or a fabric; all give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from host.driver.fabric_engine import FabricEngine
from host.driver.fabric_passes import FabricPasses, computed_order
from host.exact_engine import ExactEngine
from host.operands import Engine
from host.step.backward import Backward
from host.step.coded import Ranges
from host.step.forward import Choose, Forward, Groups, Parameters, Statistics, Tape
from host.step.passes import PassEngine
from host.step.software import SoftwareEngine
from hw.networks import Bits, Layout
from hw.nodes import Node, Widths, nodes
from sw_model.nn.layers import QConv2d
from sw_model.nn.precision import Precision, Run
from sw_model.quantize.affine import derive_key
from sw_model.step.fast_engine import FastEngine

#: of layers that a recipe leaves in float32, which no pass computes
FULL_BITS = Bits(8, 8, 8)

#: an image that every network takes, to name its nodes
_ANY_IMAGE = (3, 64, 64)


def pass_engine(engine: Engine | None) -> PassEngine:
    """What computes the passes of a run with this engine.

    Raises:
        ValueError: an engine that computes single products only.
    """
    if engine is None:
        return FastEngine()
    if isinstance(engine, ExactEngine):
        return SoftwareEngine() if engine.design is None else SoftwareEngine(computed_order(engine.design))
    if isinstance(engine, FabricEngine):
        passes = FabricPasses(engine.device)
        passes.meter.totals = engine.meter.totals
        return passes
    raise ValueError(f"{type(engine).__name__} computes single products, no passes; use norm 'batch' with this device")


def bits_of(precision: Precision) -> Bits:
    """Bits of a layer's codes."""
    if not precision.quantized:
        return FULL_BITS
    w, a, g, last = precision.widths
    return Bits(w, a, g, last if last != g else 0)


@dataclass
class _Members:
    """Modules of a node."""

    node: Node
    convolution: QConv2d
    norm: nn.BatchNorm2d

    def parameters(self) -> list[nn.Parameter]:
        return [self.convolution.weight, self.norm.weight, self.norm.bias]

    def values(self) -> Parameters:
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        weight, gamma, beta = (p.detach().numpy() for p in self.parameters())
        return Parameters(weight, gamma, beta, norm.running_mean.numpy(), norm.running_var.numpy(), norm.eps)

    @torch.no_grad()
    def note(self, statistics: Statistics) -> None:
        """Takes the statistics of a batch into the running ones."""
        norm = self.norm
        assert norm.momentum is not None and norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        for running, new in ((norm.running_mean, statistics.mean), (norm.running_var, statistics.unbiased)):
            assert running is not None
            mixed = (1 - norm.momentum) * running.numpy().astype(np.float64) + norm.momentum * new
            running.copy_(torch.from_numpy(mixed.astype(np.float32)))


def _norm_name(convolution: str) -> str:
    """Name of the normalisation behind a convolution of :class:`sw_model.nn.models.Backbone`."""
    block, _, layer = convolution.rpartition(".")
    names = {
        "stem": "bn", "last": "bn_last", "conv1": "bn1", "conv2": "bn2", "expand": "bn1", "depthwise": "bn2",
        "project": "bn3", "0": "1",
    }  # fmt: skip
    return f"{block}.{names[layer]}" if block else names[layer]


class FabricStep(nn.Module):
    """The backbone of a network of a layout, without modules of its own but for the ranges that it has seen.

    Args:
        layout: of the network.
        widths: of what a step keeps; a width of 0 is 8 where activations have 8 bits or more, else 6.

    Attributes:
        tops: greatest magnitudes of tensors by ``names``, float64; 0: unknown.  They are state: ranges that are not
            known before a tensor is quantized are those that earlier steps saw.
    """

    tops: Tensor

    def __init__(self, layout: Layout, widths: Widths = Widths(0, 0, 0)) -> None:  # noqa: B008 - a constant
        super().__init__()
        self.layout, self.widths = layout, widths
        graph = nodes(layout, _ANY_IMAGE)
        gradients = [f"{node.name}.gradient" for node in graph if node.on_shortcut]
        self.names = ["", *(node.name for node in graph), *gradients]
        self.register_buffer("tops", torch.zeros(len(self.names), dtype=torch.float64))
        self._engine: tuple[Engine | None, PassEngine] | None = None

    def forward(self, backbone: nn.Module, x: Tensor) -> Tensor:
        """Pooled features, float32 (N, C), of images (N, C, H, W)."""
        members = self.members(backbone, x)
        parameters = [p for each in members for p in each.parameters()]
        result: Tensor = _Backbone.apply(x, (self, members), *parameters)
        return result

    def engine(self, engine: Engine | None) -> PassEngine:
        """What computes the passes of a run with this engine; the same as long as it is."""
        if self._engine is None or self._engine[0] is not engine:
            self._engine = engine, pass_engine(engine)
        return self._engine[1]

    def members(self, backbone: nn.Module, x: Tensor) -> list[_Members]:
        """The modules of every node, for images like ``x``."""
        by_name = dict(backbone.named_modules())
        made = []
        for node in nodes(self.layout, (x.shape[1], x.shape[2], x.shape[3])):
            convolution, norm = by_name[node.name], by_name[_norm_name(node.name)]
            assert isinstance(convolution, QConv2d) and isinstance(norm, nn.BatchNorm2d)
            made.append(_Members(node, convolution, norm))
        return made

    def begin(self, members: Sequence[_Members], choose: Choose | None = None) -> Forward:
        """A forward pass that has not run."""
        run, training = members[0].convolution.run, members[0].norm.training
        share = run.running_share
        ranges = Ranges(share, {name: top for name, top in zip(self.names, self.tops.tolist(), strict=True) if top})
        bits = {each.node.name: bits_of(each.convolution.precision) for each in members}
        return Forward(
            [each.node for each in members], {each.node.name: each.values() for each in members},
            self.engine(run.engine), ranges, bits, self.widths_at(bits.values()), training=training, choose=choose,
            gated=lambda node: node.shape.groups == 1,
        )  # fmt: skip

    def widths_at(self, bits: Any) -> Widths:
        """Widths of what is kept beside operands of these bits."""
        wide = 8 if max(each.a for each in bits if each is not FULL_BITS) >= 8 else 6
        return Widths(*(width or wide for width in (self.widths.kept, self.widths.shortcut, self.widths.gradient)))

    @torch.no_grad()
    def finish(self, forward: Forward, tape: Tape, members: Sequence[_Members]) -> None:
        """Takes what a forward pass in training has seen into the state."""
        if not forward.training:
            return
        for each in members:
            each.note(tape.kept[each.node.name].statistics)
        self.note_ranges(forward)

    @torch.no_grad()
    def note_ranges(self, forward: Forward) -> None:
        """Takes the ranges that a pass has seen into the state."""
        tops = [forward.ranges.tops.get(name, 0.0) for name in self.names]
        self.tops.copy_(torch.tensor(tops, dtype=torch.float64))

    def report(self, members: Sequence[_Members], forward: Forward, batch: int, grad: bool) -> None:
        """Tells the run's hook of all products."""
        for each in members:
            layer = each.convolution
            macs = each.node.shape.macs
            for samples, bits in forward.groups[each.node.name]:
                some = macs * (batch if isinstance(samples, slice) else len(samples))
                layer.report("forward", some, bits.a, bits.w)
                if forward.training and grad:
                    if each.node.source:
                        layer.report("input_gradient", some, bits.g, bits.w)
                    layer.report("weight_gradient", some, bits.a, bits.weight_g or bits.g)


def step_key(run: Run) -> int:
    """Key of the random numbers of a step, apart from those of layers."""
    return derive_key(run.seed, run.step, 1 << 33)


def parameter_gradients(backward: Backward, features: Tensor, members: Sequence[_Members]) -> Iterator[Tensor]:
    """Gradients in the order of the members' parameters."""
    found = backward.run(features.detach().numpy())
    for each in members:
        gradients = found[each.node.name]
        yield from (torch.from_numpy(np.ascontiguousarray(g)) for g in gradients)


class _Backbone(torch.autograd.Function):
    """All nodes of a network."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: tuple[FabricStep, list[_Members]], *parameters: Tensor) -> Tensor:
        step, members = call
        forward = step.begin(members)
        tape = forward.run(x.detach().numpy())
        step.report(members, forward, len(x), any(ctx.needs_input_grad))
        step.finish(forward, tape, members)
        ctx.call, ctx.forward_pass = call, forward
        assert tape.features is not None
        return torch.from_numpy(tape.features)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        step, members = ctx.call
        forward: Forward = ctx.forward_pass
        if not forward.training:
            raise RuntimeError("a step in evaluation has no gradients; call .train() first")
        backward = Backward(forward, step_key(members[0].convolution.run))
        gradients = list(parameter_gradients(backward, grad, members))
        step.note_ranges(forward)
        return None, None, *gradients


__all__ = ["FULL_BITS", "FabricStep", "Groups", "bits_of", "pass_engine"]
