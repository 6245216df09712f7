"""Nodes of a network: convolutions with batch normalisation and what follows it, as the epilogue computes them."""

from __future__ import annotations

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
    if layout.pooled:
        raise ValueError("the stem's max pooling is not one of the fabric's passes; choose a network for small images")
    shapes = {shape.name: shape for shape in layout.shapes(1, image)}
    made = [StepNode(shapes["stem"], "")]
    before = "stem"
    for index, block in enumerate(layout.blocks):
        inside = [shape for name, shape in shapes.items() if name.startswith(f"blocks.{index}.")]
        branch = [shape for shape in inside if shape.kind != "shortcut"]
        projections = [StepNode(shape, before, relu=False) for shape in inside if shape.kind == "shortcut"]
        shortcut = projections[0].name if projections else before if block.skippable else ""
        sources = [before, *(shape.name for shape in branch)]
        row = [StepNode(shape, source) for shape, source in zip(branch, sources, strict=False)]
        row[-1] = replace(row[-1], residual=shortcut, relu=not block.expansion)
        made += projections + row
        before = row[-1].name
    if layout.last:
        made.append(StepNode(shapes["last"], before))
    return made


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
