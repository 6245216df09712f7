"""Networks as plain data: layouts, layer names and layer shapes, which no tensor library is needed to read.

``sw_model.nn`` builds its modules from the layouts here, and a layer has the name of its module: ``blocks.0.conv1``.

Every product of training is described by the forward convolution it belongs to.  A matrix product of R rows is a 1x1
convolution over an ``(R, 1)`` image, a fully connected layer one over a ``(1, 1)`` image, and the two products of
attention are grouped convolutions with one group per head.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

PRODUCTS = ("forward", "input_gradient", "weight_gradient")
LAYER_KINDS = ("stem", "conv", "depthwise", "shortcut", "fc", "attention")


class Bits(NamedTuple):
    """Bit widths of the three tensors of a layer: weights, activations, gradients (32 stands for unquantized).

    ``weight_g`` is the width of the gradient in the weight gradient, where that is another than ``g``, the one in the
    input gradient (a bifurcated gradient); 0 where they are the same.
    """

    w: int
    a: int
    g: int
    weight_g: int = 0

    @classmethod
    def parse(cls, text: str) -> Bits:
        """Read ``w/a/g`` or ``w,a,g``, for example ``4/3/6``; a fourth width is ``weight_g``.

        A width of 0 is float32, as 32 is.  This is the one syntax of precisions on every command line.

        Raises:
            ValueError: not three or four integers of 0 to 32.
        """
        parts = [part.strip() for part in text.replace(",", "/").split("/")]
        if len(parts) not in (3, 4) or not all(part.isdecimal() and int(part) <= 32 for part in parts):
            raise ValueError(
                f"bit widths {text!r} are not w/a/g with 1 to 32 bits each (0 or 32: float32); write for example 4/3/6"
            )
        w, a, g, *last = (int(part) or 32 for part in parts)
        return cls(w, a, g, *(width for width in last if width != g))

    def __str__(self) -> str:
        return f"w{self.w}/a{self.a}/g{self.g}" + (f"+{self.weight_g}" if self.weight_g else "")


@dataclass(frozen=True)
class ConvGeometry:
    """Shape of a two-dimensional convolution without bias; a linear layer is a 1x1 kernel on 1x1 images.

    Attributes:
        batch, in_channels, out_channels: counts.
        in_hw: height and width of the input, in pixels.
        kernel: height and width of the kernel.
        stride, padding: the same for both axes; padded positions hold real zero.
    """

    batch: int
    in_channels: int
    out_channels: int
    in_hw: tuple[int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: int = 0

    @property
    def out_hw(self) -> tuple[int, int]:
        h, w = ((n + 2 * self.padding - k) // self.stride + 1 for n, k in zip(self.in_hw, self.kernel, strict=True))
        return h, w

    @property
    def is_linear(self) -> bool:
        """Whether it is a matrix product: one pixel, one kernel element."""
        return self.kernel == self.in_hw == (1, 1) and self.stride == 1 and not self.padding


@dataclass(frozen=True)
class ConvShape:
    """Shape of one bias-free convolution, for one sample.

    Attributes:
        name: unique within a network, for reports.
        in_channels, out_channels: counts over all groups.
        kernel, stride, padding: the same along both axes, in pixels.
        in_hw: height and width of the input, in pixels.
        groups: channel groups that do not see each other; equal to ``in_channels`` for a depthwise convolution.
        kind: one of ``KINDS``: what the layer is to the network, which decides how schedules treat it.

    Raises:
        ValueError: a count is not positive, channels do not divide into groups, the kernel does not fit the padded
            input, or the kind is unknown.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    padding: int
    in_hw: tuple[int, int]
    groups: int = 1
    kind: str = "conv"

    def __post_init__(self) -> None:
        counts = {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel": self.kernel,
            "stride": self.stride,
            "in_hw": min(self.in_hw),
            "groups": self.groups,
        }
        for field, value in counts.items():
            if value < 1:
                raise ValueError(f"layer {self.name}: {field} is {value}; give at least 1")
        if self.padding < 0:
            raise ValueError(f"layer {self.name}: padding is {self.padding}; give 0 or more")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"layer {self.name}: {self.in_channels} -> {self.out_channels} channels do not divide into "
                f"{self.groups} groups; choose a common divisor"
            )
        if self.kind not in LAYER_KINDS:
            raise ValueError(f"layer {self.name}: kind {self.kind!r} is unknown; use one of {', '.join(LAYER_KINDS)}")
        if min(self.in_hw) + 2 * self.padding < self.kernel:
            raise ValueError(
                f"layer {self.name}: a {self.kernel}x{self.kernel} kernel does not fit {self.in_hw} pixels padded by "
                f"{self.padding}; enlarge the input or the padding"
            )

    @property
    def out_hw(self) -> tuple[int, int]:
        """Height and width of the output, in pixels."""
        h, w = ((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in self.in_hw)
        return h, w

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the forward product for one sample; each gradient product has as many.

        Padded positions count, as they do in the published figures.
        """
        return self.out_hw[0] * self.out_hw[1] * self.weights

    @property
    def weights(self) -> int:
        """Elements of the second operand: weights, or for attention the keys or values of all heads."""
        return self.out_channels * (self.in_channels // self.groups) * self.kernel**2

    def operands(self, bits: Bits) -> dict[str, tuple[int, int]]:
        """Bit widths of the two operands of each product, streamed operand first.

        The second operand of attention is itself an activation, so neither the weights' width nor that of a gradient for
        weights occurs there.
        """
        attention = self.kind == "attention"
        w = bits.a if attention else bits.w
        last = bits.g if attention else bits.weight_g or bits.g
        return {"forward": (bits.a, w), "input_gradient": (bits.g, w), "weight_gradient": (bits.a, last)}

    @property
    def inputs(self) -> int:
        """Elements of the input of one sample."""
        return self.in_channels * self.in_hw[0] * self.in_hw[1]

    @property
    def outputs(self) -> int:
        """Elements of the output of one sample."""
        return self.out_channels * self.out_hw[0] * self.out_hw[1]


def total_macs(shapes: Iterable[ConvShape], kinds: Iterable[str] | None = None) -> int:
    """Forward multiply-accumulates of one sample, over all layers or over the given kinds only."""
    wanted = None if kinds is None else set(kinds)
    return sum(shape.macs for shape in shapes if wanted is None or shape.kind in wanted)


#: Depths of residual networks that elsewhere mean blocks with a bottleneck, though some of them are 6n+2.
BOTTLENECKS = (50, 101, 152, 164, 200)


def check_basic_blocks(depth: int) -> None:
    """Refuses a depth that names another network elsewhere.

    Raises:
        ValueError: it does.
    """
    if depth in BOTTLENECKS:
        raise ValueError(
            f"resnet-{depth} means a network of bottleneck blocks, which there is none of; basic blocks: resnet-18 or "
            "-34 for large images, resnet-38, -74, -110 for small ones"
        )


class BlockLayout(NamedTuple):
    """A residual block.

    Attributes:
        in_channels, out_channels: counts.
        stride: of the first convolution of a basic block, of the depthwise one of an inverted block.
        expansion: hidden channels of an inverted residual block as a multiple of ``in_channels``; 0 is a basic block of
            two 3x3 convolutions.
    """

    in_channels: int
    out_channels: int
    stride: int
    expansion: int = 0

    @property
    def hidden(self) -> int:
        """Channels inside an inverted residual block."""
        return self.in_channels * self.expansion

    @property
    def skippable(self) -> bool:
        """Whether the block has a shortcut: an inverted one of stride 2 has none."""
        return not self.expansion or self.stride == 1

    @property
    def projected(self) -> bool:
        """Whether a 1x1 convolution is on the shortcut, as the shape changes."""
        return self.skippable and (self.stride != 1 or self.in_channels != self.out_channels)

    def shapes(self, name: str, in_hw: tuple[int, int]) -> list[ConvShape]:
        """Convolutions of the block, which is called ``name``, on an input of ``in_hw`` pixels; the last one is its end."""
        i, o, hidden, stride = self.in_channels, self.out_channels, self.hidden, self.stride
        branch = [ConvShape(f"{name}.conv1", i, o, 3, stride, 1, in_hw)]
        if self.expansion:
            depthwise = ConvShape(f"{name}.depthwise", hidden, hidden, 3, stride, 1, in_hw, hidden, "depthwise")
            branch = [ConvShape(f"{name}.expand", i, hidden, 1, 1, 0, in_hw), depthwise]
        out_hw = branch[-1].out_hw
        if self.projected:
            branch.append(ConvShape(f"{name}.shortcut.0", i, o, 1, stride, 0, in_hw, kind="shortcut"))
        if self.expansion:
            return [*branch, ConvShape(f"{name}.project", hidden, o, 1, 1, 0, out_hw)]
        return [*branch, ConvShape(f"{name}.conv2", o, o, 3, 1, 1, out_hw)]


class Layout(NamedTuple):
    """A network for images: a stem, residual blocks, global pooling and a classifier.

    Attributes:
        stem: channels, kernel and stride of the first convolution.
        blocks: in order.
        pooled: whether a max pooling halves the stem's output.
        last: channels of a 1x1 convolution behind the blocks; 0 where there is none.
    """

    stem: tuple[int, int, int]
    blocks: tuple[BlockLayout, ...]
    pooled: bool = False
    last: int = 0

    @property
    def features(self) -> int:
        """Inputs of the classifier."""
        return self.last or self.blocks[-1].out_channels

    def shapes(self, classes: int, image: tuple[int, int, int]) -> list[ConvShape]:
        """Shapes of all layers, in order.

        Args:
            classes: outputs of the classifier.
            image: channels, height and width of the input.
        """
        channels, kernel, stride = self.stem
        shapes = [ConvShape("stem", image[0], channels, kernel, stride, kernel // 2, image[1:], kind="stem")]
        h, w = shapes[-1].out_hw
        size = ((h + 1) // 2, (w + 1) // 2) if self.pooled else (h, w)
        for index, block in enumerate(self.blocks):
            shapes += block.shapes(f"blocks.{index}", size)
            size = shapes[-1].out_hw
        if self.last:
            shapes.append(ConvShape("last", self.blocks[-1].out_channels, self.last, 1, 1, 0, size))
        return [*shapes, ConvShape("head", self.features, classes, 1, 1, 0, (1, 1), kind="fc")]


def _blocks(channels: int, stages: Iterable[tuple[int, int, int, int]]) -> tuple[BlockLayout, ...]:
    """The blocks behind a stem of ``channels``, from (expansion, output channels, blocks, stride of the first) per stage."""
    blocks = []
    for expansion, out, count, first_stride in stages:
        for block in range(count):
            blocks.append(BlockLayout(channels, out, 1 if block else first_stride, expansion))
            channels = out
    return tuple(blocks)


def cifar_resnet_layout(depth: int, width: int = 16) -> Layout:
    """ResNet-(6n+2) for small images (He et al. 2016): three stages of n blocks, each with twice the channels.

    Args:
        depth: 6n+2; 38 and 74 in the paper.
        width: channels of the first stage.

    Raises:
        ValueError: the depth is not 6n+2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"a CIFAR ResNet has 6n+2 layers, not {depth}; use for example 8, 20, 38 or 74")
    stages = ((0, width << stage, (depth - 2) // 6, 2 if stage else 1) for stage in range(3))
    return Layout((width, 3, 1), _blocks(width, stages))


#: Blocks of the four stages of the ImageNet networks, by depth.
IMAGENET_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def imagenet_resnet_layout(depth: int, width: int = 64) -> Layout:
    """ResNet-18 or ResNet-34: 7x7 stem, max pooling, four stages of basic blocks.

    Args:
        depth: 18 or 34.
        width: channels of the first stage.

    Raises:
        ValueError: unknown depth.
    """
    if depth not in IMAGENET_STAGES:
        raise ValueError(f"ResNet-{depth} has no two-convolution blocks here; use depth 18 or 34")
    stages = ((0, width << i, count, 2 if i else 1) for i, count in enumerate(IMAGENET_STAGES[depth]))
    return Layout((width, 7, 2), _blocks(width, stages), pooled=True)


#: MobileNetV2 for small images: the original's layout with the first two strides removed, and its first stage expands by
#: one.  As in the network that the paper trains, a block of stride 1 that changes the channel count has a 1x1 convolution
#: on its shortcut.
MOBILENETV2 = Layout(
    (32, 3, 1),
    _blocks(
        32,
        (
            (1, 16, 1, 1),
            (6, 24, 2, 1),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ),
    ),
    last=1280,
)


class TransformerLayout(NamedTuple):
    """Sizes of a Transformer: width of its activations, layers, heads of attention, hidden units of a layer."""

    width: int
    layers: int
    heads: int
    hidden: int


#: Language models by name; "base" has the sizes of Vaswani et al. 2017.
TRANSFORMERS = {
    "transformer-base": TransformerLayout(512, 6, 8, 2048),
    "transformer-small": TransformerLayout(128, 2, 4, 512),
}


def transformer_lm(
    layers: int = 6,
    width: int = 512,
    heads: int = 8,
    hidden: int = 2048,
    tokens: int = 512,
    vocabulary: int | None = None,
) -> list[ConvShape]:
    """Matrix products of a decoder-only Transformer language model, for one sequence of ``tokens`` tokens.

    Attention is counted over the full square of positions, as dense hardware computes it before masking.

    Args:
        layers, width, heads, hidden: the base configuration by default.
        tokens: sequence length; the paper does not state its own.
        vocabulary: rows of the output projection; None leaves it out, since an adaptive softmax has no single size.

    Raises:
        ValueError: the width does not divide into heads.
    """
    if width % heads:
        raise ValueError(f"a width of {width} does not divide into {heads} heads; choose a common divisor")
    rows = (tokens, 1)
    shapes: list[ConvShape] = []
    for layer in range(layers):
        name = f"blocks.{layer}"
        for part in ("query", "key", "value"):
            shapes.append(ConvShape(f"{name}.attention.{part}", width, width, 1, 1, 0, rows))
        # The second operand of both attention products is itself an activation: one "weight" matrix per head.
        keys = heads * tokens
        shapes.append(ConvShape(f"{name}.attention.scores", width, keys, 1, 1, 0, rows, heads, "attention"))
        shapes.append(ConvShape(f"{name}.attention.mixture", keys, width, 1, 1, 0, rows, heads, "attention"))
        shapes.append(ConvShape(f"{name}.attention.output", width, width, 1, 1, 0, rows))
        shapes.append(ConvShape(f"{name}.up", width, hidden, 1, 1, 0, rows))
        shapes.append(ConvShape(f"{name}.down", hidden, width, 1, 1, 0, rows))
    if vocabulary is not None:
        shapes.append(ConvShape("head", width, vocabulary, 1, 1, 0, rows, kind="fc"))
    return shapes


MODELS = (
    "resnet38", "resnet74", "mobilenetv2", "resnet18", "resnet34", "resnet8", "resnet20", "resnet32", "resnet56",
    "resnet110", "transformer", "transformer-small",
)  # fmt: skip


def canonical(model: str) -> str:
    """A model's name as its spellings share it: ``ResNet-38``, ``resnet_38`` and ``resnet38`` are one network."""
    return model.lower().replace("-", "").replace("_", "")


def spelled(model: str) -> str:
    """A model's name as recipes and records spell it: ``resnet-38``, ``mobilenetv2``, ``transformer-base``.

    Any spelling that :func:`canonical` takes for the same network gives the same name; other words come back as they are.
    """
    key = canonical(model)
    for family in ("resnet", "transformer"):
        rest = key.removeprefix(family)
        if rest != key and (rest.isdecimal() if family == "resnet" else True):
            return f"{family}-{rest or 'base'}"
    return key if key == "mobilenetv2" else model


def network(
    model: str,
    classes: int | None = None,
    *,
    width: int | None = None,
    image: tuple[int, ...] | None = None,
) -> list[ConvShape]:
    """Layer list of a model by name.

    Args:
        model: one of ``MODELS``; ``resnetD`` for any other D = 6n+2 is a CIFAR ResNet too, "transformer" is short for
            "transformer-base".
        classes: outputs of the classifier; 1000 for ResNet-18 and ResNet-34, 10 otherwise.  Of a transformer, words of
            the vocabulary; without them the output projection is left out.
        width: channels of the first stage of a CIFAR ResNet, 16 by default; others do not have it.
        image: channels, height and width of the input; by default 3 x 32 x 32, or 3 x 224 x 224 for ResNet-18 and
            ResNet-34.  Of a transformer, (tokens,), 512 by default.

    Raises:
        ValueError: unknown model, or a width or an image that the model does not take.
    """
    key = canonical(model)
    layouts = {name.replace("-", ""): sizes for name, sizes in TRANSFORMERS.items()}
    layout = layouts.get("transformerbase" if key == "transformer" else key)
    if layout is not None:
        if image is not None and len(image) != 1:
            raise ValueError(f"{model} takes text: (tokens,), not {image}")
        (tokens,) = image or (512,)
        return transformer_lm(layout.layers, layout.width, layout.heads, layout.hidden, tokens, classes or None)
    found, size = image_layout(model, width=width, image=image)
    return found.shapes(classes or (1000 if found.pooled else 10), size)


def image_layout(
    model: str, *, width: int | None = None, image: tuple[int, ...] | None = None
) -> tuple[Layout, tuple[int, int, int]]:
    """Layout of a network for images, and channels, height and width of its input; arguments as of :func:`network`.

    Raises:
        ValueError: as of :func:`network`, and a model for text.
    """
    key = canonical(model)
    digits = key.removeprefix("resnet")
    imagenet = key in ("resnet18", "resnet34")
    if image is not None and len(image) != 3:
        raise ValueError(f"{model} takes images: (channels, height, width), not {image}")
    side = 224 if imagenet else 32
    channels, height, across = image or (3, side, side)
    size = channels, height, across
    if key.startswith("resnet") and digits.isdigit() and not imagenet:
        check_basic_blocks(int(digits))
        return cifar_resnet_layout(int(digits), width or 16), size
    if not imagenet and key != "mobilenetv2":
        raise ValueError(f"model {model!r} is unknown; use one of {', '.join(MODELS)}")
    if channels != 3 or (imagenet and height != across):
        raise ValueError(f"{model} takes {'square ' if imagenet else ''}images of 3 channels, not {image}")
    if not imagenet:
        return MOBILENETV2, size
    if height % 32:
        raise ValueError(f"an image of {height} pixels does not halve five times; use a multiple of 32")
    return imagenet_resnet_layout(int(digits)), size
