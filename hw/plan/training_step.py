"""A whole training step of a network on the fabric: its nodes, and the passes of each over a batch, without data.

The epilogue computes what follows a convolution behind the array, in passes over the batch (:data:`PASSES`).  Between
them the host turns a few numbers per channel into the parameters of the next pass.  ``host/step`` runs the same passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hw.contract import OutputFormat
from hw.networks import Bits, ConvShape
from hw.nodes import KeptWidths, StepNode
from hw.plan.product import EpilogueForm, Product, Source
from hw.plan.training_products import geometries

#: what each pass is for, in the order in which a node takes them
PASSES = {
    "statistics": "convolution, of which nothing leaves but moments per channel",
    "codes": "the same convolution: normalised, with shortcut and ReLU, as codes of the next layer and what backward needs",
    "moments": "input gradient of the layer above, of which moments per channel leave; its weight gradient beside it",
    "gradients": "the same input gradient: through ReLU and normalisation, as codes of the output gradient",
    "shortcut": "input gradient of a convolution on a shortcut, as codes that the node below adds",
    "weights": "weight gradient of the first layer",
}

POOLED_BITS = 8  #: of the last node's codes, which the host pools
#: bits of the weights of an identity, which takes codes through the array as they are
_IDENTITY_BITS = 1


@dataclass(frozen=True)
class StepPass:
    """One pass of a node.

    Attributes:
        node: its name.
        kind: of :data:`PASSES`.
        layer: the convolution whose weights it takes; the node's own where codes pass through.
        products: how often, and which.
    """

    node: str
    kind: str
    layer: str
    products: tuple[tuple[int, Product], ...]


class StepPasses:
    """Passes of a training step at one precision.

    Args:
        graph: of :func:`nodes`.
        batch: images.
        bits: of weights, activations and gradients.
        widths: of what is kept.
    """

    def __init__(self, graph: list[StepNode], batch: int, bits: Bits, widths: KeptWidths) -> None:
        self.graph, self.batch, self.bits, self.widths = graph, batch, bits, widths
        self._by_name = {node.name: node for node in graph}
        self._takers: dict[str, list[StepNode]] = {node.name: [] for node in graph}
        for node in graph:
            if node.source:
                self._takers[node.source].append(node)

    def passes(self) -> Iterator[StepPass]:
        """Of the forward pass in order, then of the backward pass from the last node on."""
        for node in self.graph:
            yield from self._forward(node)
        for node in reversed(self.graph):
            yield from self._backward(node)

    # -- what a node's codes are ------------------------------------------------------------------------------------

    def _activations(self, name: str) -> Source:
        """Codes of a node's output, or of the network's input."""
        signed = not (name and self._by_name[name].relu)
        return Source(self.bits.a, signed)

    def _carried(self, name: str) -> bool:
        """Whether a shortcut carries a node's output as it is."""
        return any(node.residual == name for node in self.graph) and not self._by_name[name].on_shortcut

    def _wide(self, node: StepNode) -> int:
        """Bits of the codes that a shortcut carries, or the host pools."""
        if self._carried(node.name):
            return self.widths.shortcut
        return POOLED_BITS if not self._takers[node.name] and not node.on_shortcut else 0

    # -- passes -----------------------------------------------------------------------------------------------------

    def _forward(self, node: StepNode) -> Iterator[StepPass]:
        widths = self.widths
        yield self._pass(node, "statistics", EpilogueForm(OutputFormat.MOMENTS))
        side, signed = 0, False
        if node.residual:
            side, signed = widths.shortcut, not self._by_name[node.residual].relu
        codes = EpilogueForm(
            OutputFormat.CODES, side, signed, relu=node.relu,
            out=widths.shortcut if node.on_shortcut else self.bits.a, out_signed=not node.relu,
            keep=widths.kept, keep_mask=node.relu, wide=self._wide(node),
            records=bool(node.residual),
        )  # fmt: skip
        yield self._pass(node, "codes", codes)

    def _pass(self, node: StepNode, kind: str, behind: EpilogueForm) -> StepPass:
        """A forward product of a node."""
        x, w = self._activations(node.source), Source(self.bits.w, True)
        return StepPass(node.name, kind, node.name, _products("forward", node.shape, self.batch, behind, x=x, w=w))

    def _backward(self, node: StepNode) -> Iterator[StepPass]:
        widths, takers = self.widths, self._takers[node.name]
        straight = [taker for taker in takers if not taker.on_shortcut]
        for taker in takers:
            if taker.on_shortcut and straight:
                behind = EpilogueForm(OutputFormat.CODES, out=widths.gradient, out_signed=True, stochastic=True, records=True)
                yield self._back(taker, node, "shortcut", "backward", behind)
        added = widths.gradient if len(takers) > len(straight) or self._carried(node.name) else 0
        moments = EpilogueForm(OutputFormat.MOMENTS, widths.kept, True, node.relu, added, cross=True)
        gradients = replace(
            moments, form=OutputFormat.CODES, cross=False, out=self.bits.g, out_signed=True, stochastic=True,
            keep=widths.gradient if node.residual else 0,
        )  # fmt: skip
        if straight:
            (taker,) = straight
            yield self._back(taker, node, "moments", "backward", moments)
            yield self._back(taker, node, "gradients", "input_gradient", gradients)
        else:  # the last node, and a convolution on a shortcut: gradients come as codes
            yield self._through(node, "moments", moments)
            yield self._through(node, "gradients", gradients)
        if not node.source:
            g, x = Source(self.bits.g, True), self._activations("")
            yield StepPass(node.name, "weights", node.name, _products("weight_gradient", node.shape, self.batch, None, x=x, g=g))

    def _back(self, taker: StepNode, node: StepNode, kind: str, product: str, behind: EpilogueForm) -> StepPass:
        """A product of the layer above, whose results are the node's."""
        x = self._activations(node.name) if product == "backward" else None
        g, w = Source(self.bits.g, True), Source(self.bits.w, True)
        return StepPass(node.name, kind, taker.name, _products(product, taker.shape, self.batch, behind, x=x, w=w, g=g))

    def _through(self, node: StepNode, kind: str, behind: EpilogueForm) -> StepPass:
        """Codes of a gradient, taken through the array as they are."""
        channels = node.shape.out_channels
        identity = ConvShape("identity", channels, channels, 1, 1, 0, node.shape.out_hw, channels)
        x, w = Source(self.widths.gradient, True), Source(_IDENTITY_BITS)
        return StepPass(node.name, kind, node.name, _products("forward", identity, self.batch, behind, x=x, w=w))


def _products(
    kind: str, shape: ConvShape, batch: int, behind: EpilogueForm | None, **sources: Source | None
) -> tuple[tuple[int, Product], ...]:
    x, w, g = (sources.get(name) for name in "xwg")
    return tuple(
        (count, Product(kind, geometry, x, w, g, False, behind)) for count, geometry in geometries(shape, batch)
    )
