"""Whether the memory of a run's device holds the steps of a job, asked before the run begins."""

from __future__ import annotations

from host.board.job import Job
from host.board.layer_products import LayerProducts
from host.board.step_passes import BackbonePasses
from host.operands import Engine
from host.step.memory_need import check_memory
from host.training.precision_schedule import scheduled_precisions


def check_job_memory(job: Job, engine: Engine, products: LayerProducts, passes: BackbonePasses | None) -> None:
    """Refuses steps that the memory does not hold, at any precision that the schedule or the gates may choose.

    Args:
        products: which know the widths of layers; their step is begun anew.
        passes: of the backbone, which then know what their steps need; or None: nothing is kept in memory.

    Raises:
        MemoryPlanError: too many.
    """
    if passes is None:
        return
    precisions = []
    for widths in scheduled_precisions(job.recipe):
        products.begin(widths, 0, training=True)
        precisions.append(passes.bits())
    passes.needs = check_memory(engine, passes.planned(precisions, list(job.train), list(job.evaluate)))
