"""Networks built from quantized convolutions: CIFAR ResNets, ImageNet ResNets, MobileNetV2.

Batch normalisation, activation functions and pooling stay in float32.  ``keep_full`` of a model names the layers that a
precision schedule leaves in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sw_model.baselines import RangeBatchNorm2d
from sw_model.layers import QConv2d, QLinear


def _stem_and_head(model: nn.Module, quantize_stem: bool, quantize_head: bool) -> set[str]:
    keep = set() if quantize_stem else {"stem"}
    if not quantize_head:
        keep.add("head")
    return keep


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and a shortcut (1x1 convolution where the shape changes)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = QConv2d(in_channels, out_channels, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = QConv2d(out_channels, out_channels, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(QConv2d(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))

    def skip(self, x: Tensor) -> Tensor:
        """The shortcut alone: what a block costs and gives when its residual branch is left out."""
        return x if self.shortcut is None else self.shortcut(x)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.skip(x))


class CifarResNet(nn.Module):
    """ResNet of depth 6n+2 for small images (He et al. 2016): three groups of n blocks, the last two halving the image.

    Args:
        depth: 8, 14, 20, ... = 6n+2.
        classes: number of outputs.
        in_channels: 3 for CIFAR, 1 for digits.
        width: channels of the first group; the groups have width, 2*width, 4*width.
        quantize_stem: whether schedules apply to the first convolution.
        quantize_head: whether schedules apply to the classifier.

    Maps float32 (N, in_channels, H, W) to logits (N, classes).
    """

    def __init__(
        self,
        depth: int,
        classes: int = 10,
        in_channels: int = 3,
        width: int = 16,
        *,
        quantize_stem: bool = True,
        quantize_head: bool = False,
    ) -> None:
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"a CIFAR ResNet has depth 6n+2 (8, 14, 20, ...), not {depth}")
        super().__init__()
        per_group = (depth - 2) // 6
        self.stem = QConv2d(in_channels, width, 3, 1, 1)
        self.bn = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        channels = width
        for group in range(3):
            for block in range(per_group):
                out = width << group
                blocks.append(BasicBlock(channels, out, 2 if group and not block else 1))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        self.head = QLinear(channels, classes)
        self.keep_full = _stem_and_head(self, quantize_stem, quantize_head)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


#: Blocks per group of the ImageNet networks, by depth.
IMAGENET_LAYOUT: dict[int, Sequence[int]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class ImageNetResNet(nn.Module):
    """ResNet-18 or -34 for 224-pixel images: 7x7 stem with stride 2, max pooling, four groups of basic blocks."""

    def __init__(
        self,
        depth: int,
        classes: int = 1000,
        *,
        width: int = 64,
        quantize_stem: bool = True,
        quantize_head: bool = False,
    ) -> None:
        if depth not in IMAGENET_LAYOUT:
            raise ValueError(f"an ImageNet ResNet of basic blocks has depth 18 or 34, not {depth}")
        super().__init__()
        self.stem = QConv2d(3, width, 7, 2, 3)
        self.bn = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        channels = width
        for group, count in enumerate(IMAGENET_LAYOUT[depth]):
            for block in range(count):
                out = width << group
                blocks.append(BasicBlock(channels, out, 2 if group and not block else 1))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        self.head = QLinear(channels, classes)
        self.keep_full = _stem_and_head(self, quantize_stem, quantize_head)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn(self.stem(x))), 3, 2, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1x1 expansion, 3x3 depthwise, 1x1 projection without activation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = QConv2d(in_channels, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.depthwise = QConv2d(hidden, hidden, 3, stride, 1, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.project = QConv2d(hidden, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.shortcut: nn.Sequential | None = None
        if stride == 1 and in_channels != out_channels:
            self.shortcut = nn.Sequential(QConv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.expand(x)))
        y = F.relu(self.bn2(self.depthwise(y)))
        y = self.bn3(self.project(y))
        if self.stride != 1:
            return y
        return y + (x if self.shortcut is None else self.shortcut(x))


class CifarMobileNetV2(nn.Module):
    """MobileNetV2 for 32-pixel images: the original's layout with the first two strides removed.

    Maps float32 (N, 3, 32, 32) to logits (N, classes).
    """

    # expansion, channels, blocks, stride of the first block
    LAYOUT = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, classes: int = 10, *, quantize_stem: bool = True, quantize_head: bool = False) -> None:
        super().__init__()
        self.stem = QConv2d(3, 32, 3, 1, 1)
        self.bn = nn.BatchNorm2d(32)
        blocks: list[nn.Module] = []
        channels = 32
        for expansion, out, count, stride in self.LAYOUT:
            for block in range(count):
                blocks.append(InvertedResidual(channels, out, stride if block == 0 else 1, expansion))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        self.last = QConv2d(channels, 1280, 1)
        self.bn_last = nn.BatchNorm2d(1280)
        self.head = QLinear(1280, classes)
        self.keep_full = _stem_and_head(self, quantize_stem, quantize_head)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        x = F.relu(self.bn_last(self.last(x)))
        return self.head(x.mean((2, 3)))


def use_range_norm(model: nn.Module) -> nn.Module:
    """``model`` with Range BN in place of every batch normalisation."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, RangeBatchNorm2d(child.num_features))
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
        norm: "batch", or "range" for :class:`sw_model.baselines.RangeBatchNorm2d`.
        seed: initialisation; the caller's random state is left as it was.

    Raises:
        ValueError: if the name is unknown or does not suit the images.
    """
    options = {"quantize_stem": quantize_stem, "quantize_head": quantize_head}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(name, classes, image, width, options)
    return use_range_norm(model) if norm == "range" else model


def _build(name: str, classes: int, image: tuple[int, int, int], width: int, options: dict[str, bool]) -> nn.Module:
    kind, _, number = name.partition("-")
    if kind == "resnet" and number.isdecimal():
        if int(number) in IMAGENET_LAYOUT:
            return ImageNetResNet(int(number), classes, **options)
        return CifarResNet(int(number), classes, image[0], width, **options)
    if name == "mobilenetv2":
        if image[0] != 3:
            raise ValueError(f"mobilenetv2 takes images of 3 channels, not {image[0]}; use resnet-8, -14, -20, ...")
        return CifarMobileNetV2(classes, **options)
    raise ValueError(
        f"unknown model {name!r}; use resnet-8, resnet-38, resnet-74, resnet-18, resnet-34, mobilenetv2, "
        "transformer-small or transformer-base"
    )
