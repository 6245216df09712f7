"""Networks built from quantized convolutions: CIFAR ResNets, ImageNet ResNets, MobileNetV2.

Batch normalisation, activation functions and pooling stay in float32.  ``keep_full`` of a model names the layers that a
precision schedule leaves in float32.

Every network is a row of blocks between an ``entry`` and an ``exit``.  A block is a residual branch and a skip connection,
so that gates (:mod:`sw_model.nn.gates`) can choose each block's precision without knowing the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hw.networks import (
    IMAGENET_STAGES,
    MOBILENETV2,
    BlockLayout,
    Layout,
    check_basic_blocks,
    cifar_resnet_layout,
    imagenet_resnet_layout,
    spelled,
)
from hw.nodes import KeptWidths
from sw_model.nn.layers import QConv2d, QLinear
from sw_model.nn.normalisation import normalise
from sw_model.quantize.methods import RangeBatchNorm2d
from sw_model.step.fabric_step import FabricStep

#: How a block computes one of its convolutions; gates put their own in place of :func:`plain`.
Convolve = Callable[[QConv2d, Tensor], Tensor]


def plain(layer: QConv2d, x: Tensor) -> Tensor:
    """The layer at the precision that it has."""
    result: Tensor = layer(x)
    return result


class GateShape(NamedTuple):
    """Published shape of a network's gates.

    Attributes:
        projection: widths of the linear layers from the pooled input to the LSTM, with ReLU between them.
        hidden: width of the LSTM's state.
    """

    projection: tuple[int, ...]
    hidden: int


class Block(nn.Module):
    """A residual branch, a skip connection, and how the two meet; maps (N, C, H, W) to (N, C', H', W')."""

    shortcut: nn.Sequential | None
    #: Whether there is a skip connection, so that gates may skip the branch.
    skippable = True

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        raise NotImplementedError

    def residual(self, x: Tensor, convolve: Convolve = plain) -> Tensor:
        """The residual branch up to its last normalisation, which :meth:`join` does together with the sum."""
        raise NotImplementedError

    def skip_connection(self, x: Tensor, convolve: Convolve = plain) -> Tensor | None:
        """What the skip connection carries: the input itself or a convolution of it; None if the block has none."""
        if self.shortcut is None:
            return x
        convolution, normalisation = self.shortcut
        assert isinstance(convolution, QConv2d)
        return normalise(normalisation, convolve(convolution, x), relu=False)

    def join(self, residual: Tensor | None, skip: Tensor | None) -> Tensor:
        """The block's output from what :meth:`residual` and :meth:`skip_connection` return.

        Without a residual it is the output of a block that is skipped.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.residual(x), self.skip_connection(x))


def _projection(layout: BlockLayout) -> nn.Sequential | None:
    """The convolution on a shortcut with its normalisation, where there is one."""
    if not layout.projected:
        return None
    convolution = QConv2d(layout.in_channels, layout.out_channels, 1, layout.stride)
    return nn.Sequential(convolution, nn.BatchNorm2d(layout.out_channels))


class BasicBlock(Block):
    """Two 3x3 convolutions with batch normalisation, and a shortcut (1x1 convolution where the shape changes)."""

    def __init__(self, layout: BlockLayout) -> None:
        super().__init__()
        out_channels = layout.out_channels
        self.conv1 = QConv2d(layout.in_channels, out_channels, 3, layout.stride, 1)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = QConv2d(out_channels, out_channels, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _projection(layout)

    @property
    def in_channels(self) -> int:
        return self.conv1.in_channels

    def residual(self, x: Tensor, convolve: Convolve = plain) -> Tensor:
        return convolve(self.conv2, normalise(self.bn1, convolve(self.conv1, x)))

    def join(self, residual: Tensor | None, skip: Tensor | None) -> Tensor:
        assert skip is not None
        return F.relu(skip) if residual is None else normalise(self.bn2, residual, skip)


class InvertedResidual(Block):
    """MobileNetV2's block: 1x1 expansion, 3x3 depthwise, 1x1 projection without activation."""

    def __init__(self, layout: BlockLayout) -> None:
        super().__init__()
        hidden = layout.hidden
        self.expand = QConv2d(layout.in_channels, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.depthwise = QConv2d(hidden, hidden, 3, layout.stride, 1, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.project = QConv2d(hidden, layout.out_channels, 1)
        self.bn3 = nn.BatchNorm2d(layout.out_channels)
        self.skippable = layout.skippable
        self.shortcut = _projection(layout)

    @property
    def in_channels(self) -> int:
        return self.expand.in_channels

    def residual(self, x: Tensor, convolve: Convolve = plain) -> Tensor:
        y = normalise(self.bn1, convolve(self.expand, x))
        y = normalise(self.bn2, convolve(self.depthwise, y))
        return convolve(self.project, y)

    def skip_connection(self, x: Tensor, convolve: Convolve = plain) -> Tensor | None:
        return super().skip_connection(x, convolve) if self.skippable else None

    def join(self, residual: Tensor | None, skip: Tensor | None) -> Tensor:
        if residual is None:
            assert skip is not None
            return skip
        return normalise(self.bn3, residual, skip, relu=False)


class Backbone(nn.Module):
    """A network of a layout, whose blocks gates can govern; maps float32 (N, C, H, W) to logits (N, classes).

    Args:
        layout: from :mod:`hw.networks`.
        classes: number of outputs.
        in_channels: C, of the images.
        quantize_stem: whether schedules apply to the first convolution.
        quantize_head: whether schedules apply to the classifier.

    Attributes:
        gate: shape of its gates.
        keep_full: names of layers that schedules leave in float32.
    """

    gate: GateShape

    def __init__(
        self, layout: Layout, classes: int, in_channels: int, quantize_stem: bool = True, quantize_head: bool = False
    ) -> None:
        super().__init__()
        channels, kernel, stride = layout.stem
        self.layout, self.pooled = layout, layout.pooled
        self.step: FabricStep | None = None
        self.stem = QConv2d(in_channels, channels, kernel, stride, kernel // 2)
        self.bn = nn.BatchNorm2d(channels)
        self.blocks = nn.ModuleList(InvertedResidual(b) if b.expansion else BasicBlock(b) for b in layout.blocks)
        self.last = QConv2d(layout.blocks[-1].out_channels, layout.last, 1) if layout.last else None
        self.bn_last = nn.BatchNorm2d(layout.last) if layout.last else None
        self.head = QLinear(layout.features, classes)
        self.keep_full = ({"stem"} if not quantize_stem else set()) | ({"head"} if not quantize_head else set())

    def block_list(self) -> list[Block]:
        """The blocks in order."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def ungated(self) -> set[str]:
        """Names of layers that the published gated network leaves in float32 besides stem and head."""
        return set()

    def entry(self, x: Tensor) -> Tensor:
        """From the image to the first block's input."""
        x = normalise(self.bn, self.stem(x))
        return F.max_pool2d(x, 3, 2, 1) if self.pooled else x

    def exit(self, x: Tensor) -> Tensor:
        """From the last block's output to the logits."""
        if self.last is not None and self.bn_last is not None:
            x = normalise(self.bn_last, self.last(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        if self.step is not None and self.quantized:
            logits: Tensor = self.head(self.step(self, x))
            return logits
        x = self.entry(x)
        for block in self.blocks:
            x = block(x)
        return self.exit(x)

    @property
    def quantized(self) -> bool:
        """Whether a layer before the head is."""
        return any(layer.precision.quantized for layer in self.modules() if isinstance(layer, QConv2d))


class CifarResNet(Backbone):
    """ResNet of depth 6n+2 for small images: :func:`hw.networks.cifar_resnet_layout`.

    Args:
        depth: 8, 14, 20, ... = 6n+2.
        classes: number of outputs.
        in_channels: 3 for CIFAR, 1 for digits.
        width: channels of the first stage.
        quantize_stem, quantize_head: see :class:`Backbone`.
    """

    gate = GateShape((32, 16), 16)

    def __init__(
        self, depth: int, classes: int = 10, in_channels: int = 3, width: int = 16, *,
        quantize_stem: bool = True, quantize_head: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(cifar_resnet_layout(depth, width), classes, in_channels, quantize_stem, quantize_head)


class ImageNetResNet(Backbone):
    """ResNet-18 or -34 for 224-pixel images: :func:`hw.networks.imagenet_resnet_layout`."""

    gate = GateShape((40,), 20)

    def __init__(
        self, depth: int, classes: int = 1000, *,
        width: int = 64, quantize_stem: bool = True, quantize_head: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(imagenet_resnet_layout(depth, width), classes, 3, quantize_stem, quantize_head)

    def ungated(self) -> set[str]:
        return {f"blocks.{i}.shortcut.0" for i, block in enumerate(self.block_list()) if block.shortcut is not None}


class CifarMobileNetV2(Backbone):
    """MobileNetV2 for 32-pixel images of three channels: :data:`hw.networks.MOBILENETV2`."""

    gate = GateShape((64, 32), 32)
    layout = MOBILENETV2

    def __init__(self, classes: int = 10, *, quantize_stem: bool = True, quantize_head: bool = False) -> None:
        super().__init__(self.layout, classes, 3, quantize_stem, quantize_head)

    def ungated(self) -> set[str]:
        return {"last"}


def use_range_norm(model: nn.Module) -> nn.Module:
    """``model`` with Range BN in place of every batch normalisation."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, RangeBatchNorm2d(child.num_features))
    return model


def use_fabric_step(model: Backbone, widths: KeptWidths) -> Backbone:
    """``model`` with its backbone computed in passes of the fabric.

    Raises:
        ValueError: a network that has no such passes.
    """
    model.step = FabricStep(model.layout, widths)
    return model


def build_model(
    name: str,
    classes: int,
    image: tuple[int, int, int],
    *,
    width: int = 16,
    quantize_stem: bool = True,
    quantize_head: bool = False,
    norm: str = "batch",
    seed: int = 0,
) -> nn.Module:
    """A freshly initialised network.

    Args:
        name: "resnet-N" (N = 6n+2: for small images; 18 and 34: the ImageNet networks), or "mobilenetv2".
        classes: number of outputs.
        image: channels, height and width of the input.
        width: channels of the first group (CIFAR ResNets only).
        quantize_stem, quantize_head: whether schedules apply to the first and the last layer.
        norm: "batch", or "range" for :class:`sw_model.quantize.methods.RangeBatchNorm2d`.
        seed: initialisation; the caller's random state is left as it was.

    Raises:
        ValueError: if the name is unknown or does not suit the images.
    """
    options = {"quantize_stem": quantize_stem, "quantize_head": quantize_head}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(name, classes, image, width, options)
    return use_range_norm(model) if norm == "range" else model


def _build(name: str, classes: int, image: tuple[int, int, int], width: int, options: dict[str, bool]) -> Backbone:
    kind, _, number = spelled(name).partition("-")
    if kind == "resnet" and number.isdecimal():
        if int(number) in IMAGENET_STAGES:
            return ImageNetResNet(int(number), classes, **options)
        check_basic_blocks(int(number))
        return CifarResNet(int(number), classes, image[0], width, **options)
    if kind == "mobilenetv2":
        if image[0] != 3:
            raise ValueError(f"mobilenetv2 takes images of 3 channels, not {image[0]}; use resnet-8, -14, -20, ...")
        return CifarMobileNetV2(classes, **options)
    raise ValueError(
        f"unknown model {name!r}; use resnet-8, resnet-38, resnet-74, resnet-18, resnet-34, mobilenetv2, "
        "transformer-small or transformer-base"
    )
