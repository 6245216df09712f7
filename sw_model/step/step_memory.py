"""Whether the memory of a run's device holds the steps of a network, asked before a run begins."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from host.operands import Engine
from host.step.memory_need import PlannedTraining, check_memory
from sw_model.nn.gates import GatedNetwork
from sw_model.nn.layers import set_precision
from sw_model.nn.models import Backbone
from sw_model.nn.precision import Precision
from sw_model.step.fabric_step import bits_of


def check_step_memory(
    engine: Engine | None, network: nn.Module, example: Tensor, precisions: Sequence[Precision],
    batches: Sequence[int], tests: Sequence[int],
) -> None:  # fmt: skip
    """Refuses a training whose steps the device's memory does not hold.

    Args:
        engine: of the run.
        network: a backbone, with gates or without; its precision is changed.
        example: images like those of the run, (1, C, H, W).
        precisions: all that the schedule may choose.
        batches, tests: numbers of images of training and of test batches.

    Raises:
        MemoryPlanError: see :func:`host.step.memory_need.check_memory`.
    """
    gated = network if isinstance(network, GatedNetwork) else None
    base = network if gated is None else gated.base
    if engine is None or not isinstance(base, Backbone) or base.step is None:
        return
    bits = []
    for precision in precisions:
        set_precision(network, precision)
        members = base.step.members(base, example)
        bits.append({m.node.name: bits_of(m.convolution.precision, m.convolution.groups) for m in members})
    graph = [member.node for member in base.step.members(base, example)]
    names = frozenset() if gated is None else frozenset(gated.gated_names())
    options = () if gated is None else gated.option_bits
    planned = PlannedTraining(graph, bits, base.step.widths, batches, tests, names, options)
    base.step.needs = check_memory(engine, planned)
