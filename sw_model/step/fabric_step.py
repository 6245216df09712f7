"""A network's backbone as one operation of PyTorch: all its nodes, forward and backward, in passes of the fabric.

From the images to the pooled features every value is a code or an integer; between the passes there are numbers per
channel, in float64.  Head, loss and optimizer stay PyTorch's.  What computes the passes follows the engine of the run:
compiled kernels on the fast path, NumPy, or a fabric; all give the same bits.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from host.driver import pass_engine as engines
from host.operands import Engine
from host.step.backward import Backward, range_names, step_key
from host.step.coded import Ranges, count
from host.step.compiled import MemoryPasses
from host.step.forward import Choose, Forward, Parameters, Statistics
from host.step.memory_need import precision_key
from host.step.node_precision import kept_widths, node_bits
from host.step.passes import PassEngine
from hw.networks import Bits, Layout
from hw.nodes import KeptWidths, StepNode, nodes
from sw_model.nn.layers import QConv2d
from sw_model.nn.precision import Precision, Run
from sw_model.step.fast_engine import FastEngine

#: an image that every network takes, to name its nodes
_ANY_IMAGE = (3, 64, 64)


def pass_engine_or_fast(engine: Engine | None) -> PassEngine:
    """What computes the passes of a run with this engine; None is the fast path.

    Raises:
        ValueError: an engine that computes single products only.
    """
    return FastEngine() if engine is None else engines.pass_engine(engine)


def bits_of(precision: Precision, groups: int = 1) -> Bits:
    """Bits of a layer's codes."""
    return node_bits(precision.widths if precision.quantized else (), groups)


@dataclass
class _Members:
    """Modules of a node."""

    node: StepNode
    convolution: QConv2d
    norm: nn.BatchNorm2d

    def parameters(self) -> list[nn.Parameter]:
        return [self.convolution.weight, self.norm.weight, self.norm.bias]

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Running mean and variance."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None
        return mean, variance

    def values(self) -> Parameters:
        weight, gamma, beta, mean, variance = (t.detach().numpy() for t in (*self.parameters(), *self.statistics()))
        return Parameters(weight, gamma, beta, mean, variance, self.norm.eps)

    @torch.no_grad()
    def note(self, statistics: Statistics) -> None:
        """Takes the statistics of a batch into the running ones."""
        norm = self.norm
        assert norm.momentum is not None and norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        running = self.statistics()
        mixed = statistics.mixed(running[0].numpy(), running[1].numpy(), norm.momentum)
        for old, new in zip(running, mixed, strict=True):
            old.copy_(torch.from_numpy(new))


def _norm_name(convolution: str) -> str:
    """Name of the normalisation behind a convolution of :class:`sw_model.nn.models.Backbone`."""
    block, _, layer = convolution.rpartition(".")
    names = {
        "stem": "bn", "last": "bn_last", "conv1": "bn1", "conv2": "bn2", "expand": "bn1", "depthwise": "bn2",
        "project": "bn3", "0": "1",
    }  # fmt: skip
    return f"{block}.{names[layer]}" if block else names[layer]


@dataclass
class StepGates:
    """Gates as a step asks them.

    Attributes:
        choose: see :data:`host.step.forward.Choose`; it appends to ``masks``.
        options: bits of every option.
        layers: names of the convolutions that they govern.
        masks: choices of the blocks so far, one-hot rows (N, options) with a straight-through gradient.
    """

    choose: Choose
    options: list[Bits]
    layers: set[str]
    masks: list[Tensor]


@dataclass
class _Call:
    """One forward pass of a step."""

    step: FabricStep
    members: list[_Members]
    forward: Forward
    options: Sequence[int] = ()

    @property
    def run(self) -> Run:
        return self.members[0].convolution.run


class FabricStep(nn.Module):
    """The backbone of a network of a layout, without modules of its own but for the ranges that it has seen.

    Args:
        layout: of the network.
        widths: of what a step keeps; a width of 0 is that of :meth:`hw.nodes.KeptWidths.beside`.

    Attributes:
        needs: beats of a device's memory that the steps of every precision take, from
            :func:`host.step.memory_need.check_memory`.
        tops: greatest magnitudes of tensors by ``names``, float64; 0: unknown.  They are state: ranges that are not
            known before a tensor is quantized are those that earlier steps saw.
    """

    tops: Tensor

    def __init__(self, layout: Layout, widths: KeptWidths = KeptWidths(0, 0, 0)) -> None:  # noqa: B008 - a constant
        super().__init__()
        self.layout, self.widths = layout, widths
        self.names = range_names(nodes(layout, _ANY_IMAGE))
        self.register_buffer("tops", torch.zeros(len(self.names), dtype=torch.float64))
        self._engine: tuple[Engine | None, PassEngine] | None = None
        self.needs: Mapping[Hashable, int] = {}

    def forward(self, backbone: nn.Module, x: Tensor) -> Tensor:
        """Pooled features, float32 (N, C), of images (N, C, H, W)."""
        members = self.members(backbone, x)
        forward = self._run(x, members, None)
        return self._recorded(_Call(self, members, forward), [])

    def gated(self, backbone: nn.Module, x: Tensor, gates: StepGates) -> Tensor:
        """Pooled features of images whose bits gates choose block by block.

        The gates see pooled codes, without a gradient to the backbone: it learns nothing from what they like to see.
        """
        members = self.members(backbone, x)
        forward = self._run(x, members, gates)
        return self._recorded(_Call(self, members, forward, [each.a for each in gates.options]), gates.masks)

    def _run(self, x: Tensor, members: list[_Members], gates: StepGates | None) -> Forward:
        """Runs the forward pass and takes what it has seen into the state."""
        forward = self._begin(members, gates)
        forward.run(x.detach().numpy(), None if gates is None else gates.choose)
        self._report(members, forward, torch.is_grad_enabled())
        if forward.training:
            for each in members:
                each.note(forward.tape.statistics[each.node.name])
            self.note_ranges(forward)
        return forward

    def _recorded(self, call: _Call, masks: Sequence[Tensor]) -> Tensor:
        """The features of a forward pass, with what PyTorch needs to go back."""
        features = call.forward.tape.features
        assert features is not None
        parameters = [p for each in call.members for p in each.parameters()]
        result: Tensor = _Backbone.apply(torch.from_numpy(features), call, len(masks), *masks, *parameters)
        return result

    def engine(self, engine: Engine | None) -> PassEngine:
        """What computes the passes of a run with this engine; the same as long as it is."""
        if self._engine is None or self._engine[0] is not engine:
            self._engine = engine, pass_engine_or_fast(engine)
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

    def _begin(self, members: Sequence[_Members], gates: StepGates | None) -> Forward:
        """A forward pass that has not run."""
        run, training = members[0].convolution.run, members[0].norm.training
        known = {name: top for name, top in zip(self.names, self.tops.tolist(), strict=True) if top}
        bits = {n.node.name: bits_of(n.convolution.precision, n.convolution.groups) for n in members}
        dense = [bits[each.node.name] for each in members if each.convolution.groups == 1]
        widths = kept_widths(self.widths, dense if gates is None else gates.options)
        layers = set() if gates is None else gates.layers
        engine, kind = self.engine(run.engine), precision_key(bits)
        if kind in self.needs and isinstance(engine, MemoryPasses):
            engine.make_room(kind, self.needs[kind], grows=gates is not None)
        return Forward(
            [each.node for each in members], {each.node.name: each.values() for each in members},
            engine, Ranges(run.running_share, known), bits, widths, training=training,
            chosen=None if gates is None else lambda node: node.name in layers,
        )  # fmt: skip

    @torch.no_grad()
    def note_ranges(self, forward: Forward) -> None:
        """Takes the ranges that a pass has seen into the state."""
        tops = [forward.ranges.tops.get(name, 0.0) for name in self.names]
        self.tops.copy_(torch.tensor(tops, dtype=torch.float64))

    def _report(self, members: Sequence[_Members], forward: Forward, grad: bool) -> None:
        """Tells the run's hook of all products."""
        for each in members:
            layer, macs = each.convolution, each.node.shape.macs
            for samples, bits in forward.groups[each.node.name]:
                some = macs * count(samples, forward.tape.batch)
                layer.report("forward", some, bits.a, bits.w)
                if forward.training and grad:
                    if each.node.source:
                        layer.report("input_gradient", some, bits.g, bits.w)
                    layer.report("weight_gradient", some, bits.a, bits.weight_g or bits.g)


class _Backbone(torch.autograd.Function):
    """All nodes of a network, whose forward pass has run."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, call: _Call, masks: int, *leaves: Tensor) -> Tensor:
        ctx.call, ctx.masks = call, masks
        return features.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        call: _Call = ctx.call
        if not call.forward.training:
            raise RuntimeError("a step in evaluation has no gradients; call .train() first")
        backward = Backward(call.forward, step_key(call.run.seed, call.run.step), call.options)
        found = backward.run(grad.detach().numpy())
        call.step.note_ranges(call.forward)
        by_mask = [backward.option_gradients[f"blocks.{block}"] for block in range(ctx.masks)]
        nodes = [array for each in call.members for array in found[each.node.name]]
        arrays = [*(mask.astype(np.float32) for mask in by_mask), *nodes]
        return None, None, None, *(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
