"""Nodes of a network: convolutions with batch normalisation and what follows it, as the epilogue computes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hw.networks import Bits, ConvShape, Layout


@dataclass(frozen=True)
class StepNode:
    """A convolution with its batch normalisation and what follows it.

    Attributes:
        shape: of the convolution; its name is the node's.
        source: name of the node whose output it takes; empty for the network's input.
        residual: name of the node whose output is added behind the normalisation; empty if there is none.
        relu: whether negative results become zero.
    """

    shape: ConvShape
    source: str
    residual: str = ""
    relu: bool = True

    @property
    def name(self) -> str:
        """Of the convolution."""
        return self.shape.name

    @property
    def on_shortcut(self) -> bool:
        """Whether it is a convolution on a shortcut, whose output is added and not convolved."""
        return self.shape.kind == "shortcut"


def nodes(layout: Layout, image: tuple[int, int, int]) -> list[StepNode]:
    """Nodes of a network in the order in which they run forward; the classifier is none.

    Args:
        image: channels, height and width of the input.

    Raises:
        ValueError: a network whose stem is pooled, which the epilogue does not do.
    """
    return nodes_of(layout.shapes(1, image))


def nodes_of(shapes: Iterable[ConvShape]) -> list[StepNode]:
    """The same from the layers of a network, which are named as :meth:`hw.networks.Layout.shapes` names them.

    Raises:
        ValueError: other layers, or a network whose stem is pooled.
    """
    stem, *others = (shape for shape in shapes if shape.kind != "fc")
    blocks: dict[str, list[ConvShape]] = {}
    for shape in others:
        block, _, layer = shape.name.rpartition(".")
        blocks.setdefault(block.removesuffix(".shortcut") if layer else "", []).append(shape)
    last = blocks.pop("", [])
    if stem.kind != "stem" or len(last) > 1 or not all(block.startswith("blocks.") for block in blocks):
        raise ValueError("the passes of a step are known for ResNets and MobileNetV2 alone; these are other layers")
    if others and stem.out_hw != others[0].in_hw:
        raise ValueError("the stem's max pooling is not one of the fabric's passes; choose a network for small images")
    made = [StepNode(stem, "")]
    before = stem.name
    for inside in blocks.values():
        branch = [shape for shape in inside if shape.kind != "shortcut"]
        depthwise = [shape for shape in inside if shape.kind == "depthwise"]  # of an inverted block
        projections = [StepNode(shape, before, relu=False) for shape in inside if shape.kind == "shortcut"]
        skipped = not depthwise or depthwise[0].stride == 1
        shortcut = projections[0].name if projections else before if skipped else ""
        sources = [before, *(shape.name for shape in branch)]
        row = [StepNode(shape, source) for shape, source in zip(branch, sources, strict=False)]
        row[-1] = replace(row[-1], residual=shortcut, relu=not depthwise)
        made += projections + row
        before = row[-1].name
    return made + [StepNode(shape, before) for shape in last]


@dataclass(frozen=True)
class KeptWidths:
    """Bits of what a step keeps beside its operands.

    Attributes:
        kept: of the normalised activations that the backward pass reads.
        shortcut: of the activations that a shortcut carries.
        gradient: of the gradient that a shortcut carries back, and of the pooled features' gradient.
    """

    kept: int = 6
    shortcut: int = 6
    gradient: int = 6

    @classmethod
    def beside(cls, bits: Bits) -> KeptWidths:
        """Widths that suit operands of ``bits``: 8 where those have 8 or more, else 6."""
        forward, back = (8 if n >= 8 else 6 for n in (bits.a, bits.g))
        return cls(forward, forward, back)
