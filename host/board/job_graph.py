"""Graphs of a job: nodes in order of execution, checked against the operations that there are.

A node is ``{"op", "in", "out", "shapes", "attributes"}``.  Operands are names: ``x`` and ``y`` (images float32
(N, C, H, W), labels int64 (N,)), ``state:NAME`` (a parameter or buffer), or a name that an earlier node has given.
:mod:`host.board.operations` lists the operations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from host.board.job_archive import MAX_ELEMENTS, mapping
from host.board.job_settings import get, integer_list, is_number
from host.board.job_step import BACKWARD, FORWARD, JobStep
from host.board.operations import OPERATIONS, JobError

MAX_NODES = 20_000
MAX_GRAPH_ELEMENTS = 1 << 30  #: of all values of a graph
MAX_OPERANDS = 1 << 13  #: of one node
NAME = re.compile(r"[A-Za-z_%][\w.%:\-]{0,200}")


@dataclass(frozen=True)
class JobNode:
    """One operation: names of operands and results, shapes of the results, and checked attributes."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Graph:
    """What one batch size computes.

    Attributes:
        batch: images per step.
        nodes: in order of execution.
        loss, logits, cost: names of values; an evaluation graph has no loss, and only the training graph of a gated
            network has a cost (percent of float32).
        gradients: parameter -> value that is its gradient.
        buffers: buffer -> value that replaces it.
    """

    batch: int
    nodes: tuple[JobNode, ...]
    logits: str
    loss: str | None
    gradients: Mapping[str, str]
    buffers: Mapping[str, str]
    cost: str | None = None


@dataclass(frozen=True)
class Facts:
    """What a graph refers to: number of layers, names of parameters, number of classes, whether there are gates, and the
    backbone that runs in passes of the fabric, if one does."""

    layers: int
    parameters: Collection[str]
    classes: int
    gated: bool
    step: JobStep | None


def graph_of(raw: Any, batch: int, training: bool, scope: Mapping[str, tuple[int, ...]], facts: Facts) -> Graph:
    """A checked graph.

    Args:
        raw: of the document.
        batch: images per step.
        training: whether it has a loss and gradients.
        scope: names known before the first node, and their shapes.
        facts: what the rest of the job says.

    Raises:
        JobError: naming the node.
    """
    what = f"{'training' if training else 'evaluation'} graph of {batch}"
    graph = mapping(raw, what)
    known = dict(scope)
    nodes = _nodes(get(graph, "nodes", list, what), known, facts, what)
    of_step = [(node.op, node.attributes.get("block", 0)) for node in nodes if node.op in (*FORWARD, *BACKWARD)]
    if facts.step is not None:
        facts.step.check_order(of_step, training, what)
    elif of_step:
        raise JobError(f"{what} has {of_step[0][0]}, and the job no step")

    def value(key: str, shape: tuple[int, ...]) -> str:
        name = get(graph, key, str, what)
        if name not in known or known[name] != shape:
            raise JobError(f"{what}: {key} is {name!r:.60}, which is no value of the right shape")
        return str(name)

    def table(key: str, allowed: set[str]) -> dict[str, str]:
        found = mapping(graph.get(key), f"{what}: {key}")
        for target, name in found.items():
            if target not in allowed or not isinstance(name, str) or known.get(name) != known[f"state:{target}"]:
                raise JobError(f"{what}: {key} of {target!r:.60} is {name!r:.60}, which does not fit")
        return dict(found)

    gradients = table("gradients", set(facts.parameters))
    if training and set(gradients) != set(facts.parameters):
        raise JobError(f"{what} lacks gradients of {sorted(set(facts.parameters) - set(gradients))[0]}")
    buffers = {n.removeprefix("state:") for n in scope if n.startswith("state:")} - set(facts.parameters)
    return Graph(
        batch,
        nodes,
        value("logits", (batch, facts.classes)),
        value("loss", ()) if training else None,
        gradients,
        table("buffers", buffers),
        value("cost", ()) if training and facts.gated else None,
    )


def _nodes(raw: list[Any], known: dict[str, tuple[int, ...]], facts: Facts, what: str) -> tuple[JobNode, ...]:
    """Nodes in order, whose results ``known`` takes."""
    if not 1 <= len(raw) <= MAX_NODES:
        raise JobError(f"{what} has {len(raw)} nodes; 1 to {MAX_NODES} are allowed")
    total, checked = 0, []
    for i, entry in enumerate(raw):
        node = _node(mapping(entry, f"{what}, node {i}"), known, facts, f"{what}, node {i}")
        total += sum(math.prod(shape) for shape in node.shapes)
        if total > MAX_GRAPH_ELEMENTS:
            raise JobError(f"{what}, node {i}: values become too large; use a smaller batch")
        known.update(zip(node.outputs, node.shapes, strict=True))
        checked.append(node)
    return tuple(checked)


def _node(node: dict[str, Any], known: Mapping[str, tuple[int, ...]], facts: Facts, where: str) -> JobNode:
    op = get(node, "op", str, where)
    if op not in OPERATIONS:
        raise JobError(f"{where}: no operation {op!r:.60}; this release has {', '.join(sorted(OPERATIONS))}")
    rule = OPERATIONS[op]
    inputs, outputs = get(node, "in", list, where), get(node, "out", list, where)
    shapes = get(node, "shapes", list, where)
    if not _fits(inputs, rule.inputs) or not _fits(outputs, rule.outputs) or len(shapes) != len(outputs):
        wanted, given = (f"1 to {MAX_OPERANDS}" if n is None else n for n in (rule.inputs, rule.outputs))
        raise JobError(f"{where}: {op} takes {wanted} operands and gives {given} results")
    for name in inputs:
        if not isinstance(name, str) or name not in known:
            raise JobError(f"{where}: operand {name!r:.60} is not defined before")
    sized: dict[str, tuple[int, ...]] = {}
    for name, shape in zip(outputs, shapes, strict=True):
        if not isinstance(name, str) or not NAME.fullmatch(name) or name in known or name in sized:
            raise JobError(f"{where}: {name!r:.60} cannot name a result, or names another one already")
        sized[name] = integer_list(shape, f"{where}: shape", 0, MAX_ELEMENTS, 8)
        if math.prod(sized[name]) > MAX_ELEMENTS:
            raise JobError(f"{where}: values become too large; use a smaller batch")
    attributes = _attributes(node, rule.attributes, where)
    if "layer" in attributes and attributes["layer"] >= facts.layers:
        raise JobError(f"{where}: there is no layer {attributes['layer']}")
    if op in (*FORWARD, *BACKWARD) and facts.step is not None:
        _check_step(facts.step, op, attributes.get("block", 0), [known[name] for name in inputs], [*sized.values()], where)
    return JobNode(op, tuple(inputs), tuple(outputs), tuple(sized.values()), attributes)


def _fits(names: list[Any], count: int | None) -> bool:
    return 1 <= len(names) <= MAX_OPERANDS if count is None else len(names) == count


def _check_step(
    step: JobStep, op: str, block: int, operands: list[tuple[int, ...]], results: list[tuple[int, ...]], where: str
) -> None:
    """Refuses an operation of the step with operands or results of other shapes than the backbone's."""
    if block >= max(step.blocks, 1):
        raise JobError(f"{where}: there is no block {block} whose bits gates choose")
    batch = operands[0][0] if operands[0] else 0
    for kind, found, wanted in zip(("operands", "results"), (operands, results), step.shapes(op, batch, block), strict=True):
        if found != wanted:
            odd = next((pair for pair in zip(found, wanted, strict=False) if pair[0] != pair[1]), (len(found), len(wanted)))
            raise JobError(f"{where}: {op} has {kind} of {odd[0]} where the backbone has {odd[1]}")


def _attributes(node: dict[str, Any], rules: Mapping[str, tuple[Any, ...]], where: str) -> dict[str, Any]:
    raw = mapping(node.get("attributes"), f"{where}: attributes")
    if odd := sorted(set(raw) ^ set(rules)):
        raise JobError(f"{where}: attribute {odd[0]!r:.60} is missing or unknown")
    clean: dict[str, Any] = {}
    for key, (kind, low, high) in rules.items():
        if kind == "ints":
            clean[key] = integer_list(raw[key], f"{where}: {key}", low, high, 8)
            continue
        good = is_number(raw[key]) if kind == "float" else isinstance(raw[key], int) and is_number(raw[key])
        if not good or not low <= raw[key] <= high:
            raise JobError(f"{where}: {key} = {raw[key]!r:.60} is outside {low}..{high}")
        clean[key] = float(raw[key]) if kind == "float" else raw[key]
    return clean
