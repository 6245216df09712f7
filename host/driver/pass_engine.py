"""What computes the passes of a whole step, by the engine of a run's products."""

from __future__ import annotations

from host.devices.memory import STREAM_SHARE, MemoryDevice, MemoryStreams
from host.driver.fabric_engine import FabricEngine
from host.driver.fabric_passes import FabricPasses, computed_order
from host.exact_engine import ExactEngine
from host.operands import Engine
from host.step.compiled import MemoryPasses
from host.step.passes import PassEngine
from host.step.software import SoftwareEngine
from hw.contract import LINE_BEATS
from hw.plan.plan import PROGRAM_WORDS


def engine_in_memory(memory: MemoryDevice) -> FabricEngine:
    """An engine whose passes keep a step's tensors in a device's memory; a part of it is for programs of products."""
    beats = memory.beats // STREAM_SHARE // LINE_BEATS * LINE_BEATS
    # a program may pass its limit by a packet, so half of the part is its limit
    return FabricEngine(MemoryStreams.in_front(memory, beats), keep_rows=False, program_words=min(PROGRAM_WORDS, beats))


def pass_engine(engine: Engine) -> PassEngine:
    """What computes the passes of a run with this engine.

    Raises:
        ValueError: an engine that computes single products only.
    """
    if isinstance(engine, ExactEngine):
        return SoftwareEngine() if engine.design is None else SoftwareEngine(computed_order(engine.design))
    if isinstance(engine, FabricEngine) and isinstance(engine.device, MemoryStreams):
        return MemoryPasses(engine.device.memory, engine=engine)
    if isinstance(engine, FabricEngine):
        return FabricPasses(engine)
    raise ValueError(f"{type(engine).__name__} computes single products, no passes; use norm 'batch' with this device")
