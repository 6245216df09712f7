"""Layer shapes of the networks whose training is costed, as plain data: no tensor library is needed to read them.

Every product of training is described by the forward convolution it belongs to.  A matrix product of R rows is a 1x1
convolution over an ``(R, 1)`` image, a fully connected layer one over a ``(1, 1)`` image, and the two products of
attention are grouped convolutions with one group per head.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

PRODUCTS = ("forward", "input_gradient", "weight_gradient")
KINDS = ("stem", "conv", "depthwise", "shortcut", "fc", "attention")


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
        if self.kind not in KINDS:
            raise ValueError(f"layer {self.name}: kind {self.kind!r} is unknown; use one of {', '.join(KINDS)}")
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


def resnet_cifar(
    depth: int, classes: int = 10, width: int = 16, image: tuple[int, int, int] = (3, 32, 32)
) -> list[ConvShape]:
    """ResNet-(6n+2) for small images: three stages of n two-convolution blocks, every stage with twice the channels.

    A 1x1 convolution is on the shortcut wherever the channel count changes.

    Args:
        depth: 6n+2; 38 and 74 in the paper.
        classes: outputs of the classifier.
        width: channels of the first stage.
        image: channels, height and width of the input.

    Raises:
        ValueError: the depth is not 6n+2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"a CIFAR ResNet has 6n+2 layers, not {depth}; use for example 8, 20, 38 or 74")
    size = image[1:]
    shapes = [ConvShape("stem", image[0], width, 3, 1, 1, size, kind="stem")]
    channels = width
    for stage, out in enumerate((width, 2 * width, 4 * width), 1):
        for block in range((depth - 2) // 6):
            stride = 2 if out != channels else 1
            name = f"stage{stage}.{block}"
            shapes.append(ConvShape(f"{name}.conv1", channels, out, 3, stride, 1, size))
            if stride == 2:
                shapes.append(ConvShape(f"{name}.shortcut", channels, out, 1, 2, 0, size, kind="shortcut"))
                size = shapes[-1].out_hw
            shapes.append(ConvShape(f"{name}.conv2", out, out, 3, 1, 1, size))
            channels = out
    shapes.append(ConvShape("fc", channels, classes, 1, 1, 0, (1, 1), kind="fc"))
    return shapes


def resnet_imagenet(depth: int, classes: int = 1000, size: int = 224) -> list[ConvShape]:
    """ResNet-18 or ResNet-34: 7x7 stem, max pooling, four stages of two-convolution blocks.

    Args:
        depth: 18 or 34.
        classes: outputs of the classifier.
        size: height and width of the image, in pixels, a multiple of 32.

    Raises:
        ValueError: unknown depth, or a size that the five halvings do not divide.
    """
    stages = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
    if depth not in stages:
        raise ValueError(f"ResNet-{depth} has no two-convolution blocks here; use depth 18 or 34")
    if size % 32:
        raise ValueError(f"an image of {size} pixels does not halve five times; use a multiple of 32")
    shapes = [ConvShape("stem", 3, 64, 7, 2, 3, (size, size), kind="stem")]
    channels, size = 64, size // 4
    for stage, (blocks, width) in enumerate(zip(stages[depth], (64, 128, 256, 512), strict=True), 1):
        for block in range(blocks):
            stride = 2 if width != channels else 1
            name = f"stage{stage}.{block}"
            shapes.append(ConvShape(f"{name}.conv1", channels, width, 3, stride, 1, (size, size)))
            if stride == 2:
                shapes.append(ConvShape(f"{name}.shortcut", channels, width, 1, 2, 0, (size, size), kind="shortcut"))
                size //= 2
            shapes.append(ConvShape(f"{name}.conv2", width, width, 3, 1, 1, (size, size)))
            channels = width
    shapes.append(ConvShape("fc", channels, classes, 1, 1, 0, (1, 1), kind="fc"))
    return shapes


def mobilenetv2_cifar(classes: int = 10, size: tuple[int, int] = (32, 32)) -> list[ConvShape]:
    """MobileNetV2 for small images: stem and second stage keep the resolution, the first stage expands by one.

    As in the network that the paper trains, a block of stride 1 that changes the channel count has a 1x1
    convolution on its shortcut, and blocks of stride 2 have no shortcut.
    """
    plan = (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )  # expansion, output channels, blocks, stride of the first block
    shapes = [ConvShape("stem", 3, 32, 3, 1, 1, size, kind="stem")]
    channels = 32
    for stage, (expansion, width, blocks, first_stride) in enumerate(plan, 1):
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            name, hidden = f"stage{stage}.{block}", channels * expansion
            shapes.append(ConvShape(f"{name}.expand", channels, hidden, 1, 1, 0, size))
            depthwise = ConvShape(f"{name}.depthwise", hidden, hidden, 3, stride, 1, size, hidden, "depthwise")
            shapes.append(depthwise)
            if stride == 1 and channels != width:
                shapes.append(ConvShape(f"{name}.shortcut", channels, width, 1, 1, 0, size, kind="shortcut"))
            size = depthwise.out_hw
            shapes.append(ConvShape(f"{name}.project", hidden, width, 1, 1, 0, size))
            channels = width
    shapes.append(ConvShape("head", channels, 1280, 1, 1, 0, size))
    shapes.append(ConvShape("fc", 1280, classes, 1, 1, 0, (1, 1), kind="fc"))
    return shapes


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
        for part in ("query", "key", "value"):
            shapes.append(ConvShape(f"layer{layer}.{part}", width, width, 1, 1, 0, rows))
        # The second operand of both attention products is itself an activation: one "weight" matrix per head.
        shapes.append(ConvShape(f"layer{layer}.scores", width, heads * tokens, 1, 1, 0, rows, heads, "attention"))
        shapes.append(ConvShape(f"layer{layer}.context", heads * tokens, width, 1, 1, 0, rows, heads, "attention"))
        shapes.append(ConvShape(f"layer{layer}.output", width, width, 1, 1, 0, rows))
        shapes.append(ConvShape(f"layer{layer}.expand", width, hidden, 1, 1, 0, rows))
        shapes.append(ConvShape(f"layer{layer}.contract", hidden, width, 1, 1, 0, rows))
    if vocabulary is not None:
        shapes.append(ConvShape("logits", width, vocabulary, 1, 1, 0, rows, kind="fc"))
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
    digits = key.removeprefix("resnet")
    imagenet = key in ("resnet18", "resnet34")
    layouts = {name.replace("-", ""): sizes for name, sizes in TRANSFORMERS.items()}
    layout = layouts.get("transformerbase" if key == "transformer" else key)
    if image is not None and len(image) != (3 if layout is None else 1):
        wanted = "images: (channels, height, width)" if layout is None else "text: (tokens,)"
        raise ValueError(f"{model} takes {wanted}, not {image}")
    if layout is not None:
        (tokens,) = image or (512,)
        return transformer_lm(layout.layers, layout.width, layout.heads, layout.hidden, tokens, classes or None)
    if key.startswith("resnet") and digits.isdigit() and not imagenet:
        check_basic_blocks(int(digits))
        channels, *size = image or (3, 32, 32)
        return resnet_cifar(int(digits), classes or 10, width or 16, (channels, size[0], size[1]))
    if not imagenet and key != "mobilenetv2":
        raise ValueError(f"model {model!r} is unknown; use one of {', '.join(MODELS)}")
    side = 224 if imagenet else 32
    channels, *size = image or (3, side, side)
    if channels != 3 or (imagenet and size[0] != size[1]):
        raise ValueError(f"{model} takes {'square ' if imagenet else ''}images of 3 channels, not {image}")
    if imagenet:
        return resnet_imagenet(int(digits), classes or 1000, size[0])
    return mobilenetv2_cifar(classes or 10, (size[0], size[1]))
