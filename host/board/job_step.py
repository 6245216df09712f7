"""The backbone of a job whose normalisation the fabric does: its nodes, and checks of the operations that run them.

``job.json`` describes it under ``step``: the layout of the network, the widths of what is kept, each node's layer, and
the constants of its normalisation.  In the graphs it is a few operations, which run in this order:

=================== ========================================================= =========================================
operation           operands                                                  results
=================== ========================================================= =========================================
passes              x, and of every node weight, gamma, beta, running mean    pooled codes: what the first block's gate
                    and variance                                              sees, without gates the features
passes_chosen       choice (N,P) of the block that it names                   what the next block's gate sees, or features
passes_statistics   features                                                  of every node running mean and variance
passes_gradient     gradient by the features                                  gradients by the choice of every block, then
                                                                              of every node by weight, gamma and beta
=================== ========================================================= =========================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from host.board.gate_decisions import Gates
from host.board.job_archive import MAX_ELEMENTS, mapping
from host.board.job_settings import get, integer_list, is_number
from host.board.operations import JobError, Shape
from hw.networks import BlockLayout, Layout
from hw.nodes import KeptWidths, StepNode, nodes

MAX_BLOCKS, MAX_CHANNELS, MAX_PIXELS = 1000, 1 << 16, 1 << 12
#: the operations of a step; evaluation takes those of the forward pass
FORWARD, BACKWARD = ("passes", "passes_chosen"), ("passes_statistics", "passes_gradient")


@dataclass(frozen=True)
class JobStep:
    """A checked backbone.

    Attributes:
        graph: its nodes.
        widths: of what is kept; 0 where those beside it decide.
        layers: number of each node's layer.
        constants: of each node's normalisation, what is added to the variance and the share of new statistics.
        gated: names of the nodes whose bits gates choose.
        blocks: number of blocks whose bits gates choose, 0 without gates.
        options: of the gates, 0 without.
    """

    graph: tuple[StepNode, ...]
    widths: KeptWidths
    layers: tuple[int, ...]
    constants: tuple[tuple[float, float], ...]
    gated: frozenset[str]
    blocks: int
    options: int

    def pooled(self, block: int) -> int:
        """Channels of what the gate of a block sees, or of the features for the number behind the last."""
        if block == self.blocks:
            return self.graph[-1].shape.out_channels
        return next(node for node in self.graph if node.name.startswith(f"blocks.{block}.")).shape.in_channels

    def parameters(self) -> list[list[Shape]]:
        """Shapes of every node's weight, gamma and beta."""
        made = []
        for node in self.graph:
            s = node.shape
            channels = (s.out_channels,)
            made.append([(s.out_channels, s.in_channels // s.groups, s.kernel, s.kernel), channels, channels])
        return made

    def shapes(self, op: str, batch: int, block: int) -> tuple[list[Shape], list[Shape]]:
        """Operands and results of an operation for a batch; ``block`` is what ``passes_chosen`` names."""
        own = self.parameters()
        features = (batch, self.pooled(self.blocks))
        if op == "passes":
            first, *_ = self.graph
            image = (batch, first.shape.in_channels, *first.shape.in_hw)
            operands = [shape for node in own for shape in (*node, node[1], node[1])]
            return [image, *operands], [(batch, self.pooled(0))]
        if op == "passes_chosen":
            return [(batch, self.options)], [(batch, self.pooled(block + 1))]
        if op == "passes_statistics":
            return [features], [node[1] for node in own for _ in range(2)]
        return [features], [(batch, self.options)] * self.blocks + [shape for node in own for shape in node]

    def check_order(self, found: Sequence[tuple[str, int]], training: bool, what: str) -> None:
        """Refuses a graph that does not run the step once, from its beginning to its end.

        Args:
            found: operations of the step with the blocks that they name, as they come.
            training: whether the graph goes back.
            what: the graph.
        """
        forward = [("passes", 0), *(("passes_chosen", block) for block in range(self.blocks))]
        back = sorted((op, 0) for op in BACKWARD) if training else []
        if list(found[: len(forward)]) != forward or sorted(found[len(forward) :]) != back:
            raise JobError(
                f"{what} does not run the step once and in order: passes, {self.blocks} times passes_chosen"
                f"{', passes_statistics and passes_gradient' if training else ''}"
            )


def checked_step(
    raw: Any, recipe: Mapping[str, Any], layers: Sequence[str], gates: Gates | None, image: Shape
) -> JobStep | None:
    """The backbone of a job; None if the host normalises.

    Args:
        raw: of the document.
        recipe: checked.
        layers: names, by number.
        gates: of the job.
        image: channels, height and width.

    Raises:
        JobError: naming what is wrong.
    """
    if raw is None:
        return None
    step = mapping(raw, "step")
    if odd := sorted(set(step) ^ {"layout", "kept", "layers", "constants", "gated"}):
        raise JobError(f"step: {odd[0]!r:.60} is missing or unknown")
    layout = _layout(step["layout"], image)
    try:
        graph = tuple(nodes(layout, (image[0], image[1], image[2])))
    except ValueError as error:
        raise JobError(f"step: {error}") from error
    _check_sizes(graph, max(recipe["batch"], recipe["eval_batch"]))
    kept = integer_list(step["kept"], "step: kept", 0, 8, 3)
    if len(kept) != 3 or 1 in kept:
        raise JobError(f"step: kept = {list(kept)} must be three widths of 2 to 8 bits, or 0")
    numbers = integer_list(step["layers"], "step: layers", 0, len(layers) - 1, len(graph))
    if len(numbers) != len(graph) or len(set(numbers)) != len(graph):
        raise JobError(f"step: layers must name a layer of its own for each of {len(graph)} nodes")
    _check_widths(recipe, gates)
    return JobStep(
        graph, KeptWidths(*kept), numbers, _constants(step["constants"], len(graph)), _gated(step["gated"], graph, gates),
        len(layout.blocks) if gates is not None else 0, len(gates.options) if gates is not None else 0,
    )  # fmt: skip


def _layout(raw: Any, image: Shape) -> Layout:
    table = mapping(raw, "step: layout")
    if odd := sorted(set(table) ^ {"stem", "blocks", "last"}):
        raise JobError(f"step: layout: {odd[0]!r:.60} is missing or unknown")
    stem = integer_list(table["stem"], "step: stem", 1, MAX_CHANNELS, 3)
    if len(stem) != 3 or stem[1] > 63 or not stem[1] % 2 or stem[2] > 16:
        raise JobError(f"step: stem {list(stem)} must be channels, an odd kernel up to 63, and a stride up to 16")
    (last,) = integer_list([table["last"]], "step: last", 0, MAX_CHANNELS)
    rows = get(table, "blocks", list, "step: layout")
    if not 1 <= len(rows) <= MAX_BLOCKS:
        raise JobError(f"step: {len(rows)} blocks; 1 to {MAX_BLOCKS} are allowed")
    blocks, before = [], stem[0]
    for number, row in enumerate(rows):
        values = integer_list(row, f"step: block {number}", 0, MAX_CHANNELS, 4)
        if len(values) != 4 or values[0] != before or not values[1] or not 1 <= values[2] <= 16 or values[3] > 64:
            raise JobError(
                f"step: block {number} is {list(values)}; it must be {before} channels in, channels out, a stride of 1 to "
                "16 and an expansion up to 64"
            )
        blocks.append(BlockLayout(*values))
        before = blocks[-1].out_channels
    if max(image[1:]) > MAX_PIXELS:
        raise JobError(f"step: images of {image[1]} x {image[2]} pixels; up to {MAX_PIXELS} along an axis are allowed")
    return Layout((stem[0], stem[1], stem[2]), tuple(blocks), last=last)


def _check_sizes(graph: Sequence[StepNode], batch: int) -> None:
    """Refuses tensors that are empty or too large."""
    for node in graph:
        s = node.shape
        largest = batch * max(s.out_channels * math.prod(s.out_hw), s.in_channels * math.prod(s.in_hw))
        if min(s.out_hw) < 1 or largest > MAX_ELEMENTS or s.in_channels * s.out_channels > MAX_ELEMENTS:
            raise JobError(f"step: {node.name} has {s.in_channels} x {s.in_hw} pixels in and {s.out_channels} x {s.out_hw} "
                           "out, which are none or too many; use other images or a smaller batch")  # fmt: skip


def _check_widths(recipe: Mapping[str, Any], gates: Gates | None) -> None:
    """Refuses bits that no pass computes."""
    stages = [
        (recipe["low"], recipe["low"], stage[2]) if recipe["schedule"] == "cyclic" else stage
        for stage in recipe["stages"]
    ]
    for widths in [*stages, *((gates.weight_bits, *option) for option in gates.options)] if gates else stages:
        if min(widths[0], *widths[2:]) < 2 or widths[1] < 1:
            raise JobError(f"step: {'/'.join(map(str, widths))} bits; passes take weights and gradients of 2..16 bits")


def _constants(raw: Any, count: int) -> tuple[tuple[float, float], ...]:
    if not isinstance(raw, list) or len(raw) != count:
        raise JobError(f"step: constants must have a pair for each of {count} nodes")
    for pair in raw:
        if not isinstance(pair, list) or len(pair) != 2 or not all(is_number(v) for v in pair):
            raise JobError(f"step: constants {pair!r:.60} are no pair of numbers")
        if not 1e-12 <= pair[0] <= 1 or not 0 <= pair[1] <= 1:
            raise JobError(
                f"step: constants {pair!r:.60} are outside 1e-12..1 (added to the variance) and 0..1 (share)"
            )
    return tuple((float(eps), float(momentum)) for eps, momentum in raw)


def _gated(raw: Any, graph: Sequence[StepNode], gates: Gates | None) -> frozenset[str]:
    dense = {node.name for node in graph if node.name.startswith("blocks.") and node.shape.groups == 1}
    if not isinstance(raw, list) or any(not isinstance(name, str) or name not in dense for name in raw):
        raise JobError(f"step: gated = {raw!r:.80} must name dense convolutions in blocks")
    if bool(raw) != (gates is not None):
        raise JobError("step: gated nodes belong to gates, and gates to them")
    return frozenset(raw)
