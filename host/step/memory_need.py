"""How much of a device's memory the steps of a training take: they are planned without data before anything starts.

The plan of a pass follows from shapes and widths alone, so passes over a memory that keeps nothing ask for the same areas as
those of the training.  Every precision that a schedule may choose is planned.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from host.arrays import U64, Array
from host.devices.device import DeviceInfo
from host.devices.memory import MemoryResult, MemoryStreams
from host.driver.fabric_engine import FabricEngine
from host.driver.memory_views import MemoryPlanError
from host.driver.pass_template import Template
from host.operands import Engine
from host.step.backward import Backward
from host.step.channel_parameters import PEAK
from host.step.coded import Ranges
from host.step.compiled import MemoryPasses
from host.step.forward import Forward, Parameters
from host.step.node_precision import chosen_groups, kept_widths
from host.step.passes import PassResult, ProductPass
from hw.contract import MOMENT_WORDS
from hw.design import BEAT_BITS
from hw.networks import Bits
from hw.nodes import KeptWidths, StepNode

_MOST_BEATS = 1 << 32  #: that an offset can name


class NoMemory:
    """A memory that keeps nothing: programs end at once, and what is read is zero.

    Implements :class:`host.devices.memory.MemoryDevice`.
    """

    def __init__(self, info: DeviceInfo, beats: int = _MOST_BEATS) -> None:
        self.info, self.beats = info, beats

    def write(self, offset: int, words: U64) -> None:
        """Nothing."""

    def read(self, offset: int, beats: int) -> U64:
        """Zeros."""
        return np.zeros(2 * beats, np.uint64)

    def execute(self, program: int, deadline: int = 0) -> MemoryResult:
        """Nothing."""
        return MemoryResult()

    def reset(self) -> None:
        """Nothing."""


class _DryPasses(MemoryPasses):
    """Passes that leave moments of ordinary size, behind which a step goes on."""

    _most = 0

    def run(self, wanted: ProductPass) -> PassResult:
        """See :class:`host.step.compiled.MemoryPasses`."""
        self._most = PEAK if wanted.behind is not None and wanted.behind.records else 500  # of w, or of x
        return super().run(wanted)

    def tail(self, template: Template) -> U64:
        """See :class:`host.step.compiled.MemoryPasses`."""
        words = super().tail(template)
        if template.moments is not None:
            ends = self._most << 32 | -self._most & 0xFFFFFFFF
            words[: template.moments.words].reshape(-1, MOMENT_WORDS)[:, :3] = 1000, 10**9, ends
        return words


@dataclass(frozen=True)
class PlannedTraining:
    """What the steps of a training are, but for their data.

    Attributes:
        graph: nodes of the backbone.
        precisions: bits of every node, at every precision that the schedule may choose, lowest first.
        widths: of what a step keeps, 0 where those beside it decide.
        batches, tests: numbers of images of training and of test batches.
        gated: names of the nodes whose bits gates choose; ``options``: what they choose from.
    """

    graph: Sequence[StepNode]
    precisions: Sequence[Mapping[str, Bits]]
    widths: KeptWidths
    batches: Sequence[int]
    tests: Sequence[int]
    gated: frozenset[str] = frozenset()
    options: Sequence[Bits] = ()

    def choices(self, batch: int) -> list[Array]:
        """Options of a batch's samples: each one for all of them, and all of them mixed."""
        if not self.options:
            return [np.zeros(batch, np.int64)]
        count = len(self.options)
        return [*(np.full(batch, option) for option in range(count)), np.arange(batch) % count]


class _DryRun:
    """Steps without data."""

    def __init__(self, training: PlannedTraining, engine: MemoryPasses) -> None:
        self.training, self.engine, self.rng = training, engine, np.random.default_rng(0)
        self.parameters: dict[str, Parameters] = {}
        self.ranges = Ranges()
        for node in training.graph:
            s = node.shape
            size = s.out_channels, s.in_channels // s.groups, s.kernel, s.kernel
            weight = self.rng.normal(0, (2 / np.prod(size[1:])) ** 0.5, size).astype(np.float32)
            ones, zeros = np.ones(s.out_channels, np.float32), np.zeros(s.out_channels, np.float32)
            self.parameters[node.name] = Parameters(weight, ones, zeros, zeros, ones, 1e-5)

    @np.errstate(over="ignore")  # these moments belong to no network, whose numbers may grow from node to node
    def step(self, bits: Mapping[str, Bits], batch: int, choice: Array, training: bool) -> None:
        """One step, or one test batch."""
        plan, first = self.training, self.training.graph[0].shape
        beside = [bits[node.name] for node in plan.graph if node.shape.groups == 1]
        forward = Forward(
            plan.graph, self.parameters, self.engine, self.ranges, bits,
            kept_widths(plan.widths, list(plan.options) or beside), training=training,
            chosen=(lambda node: node.name in plan.gated) if plan.gated else None,
        )  # fmt: skip
        images = self.rng.normal(size=(batch, first.in_channels, *first.in_hw)).astype(np.float32)
        tape = forward.run(images, lambda block, pooled: chosen_groups(choice, plan.options))
        if training:
            assert tape.features is not None
            gradient = self.rng.normal(0, 1 / batch, tape.features.shape).astype(np.float32)
            Backward(forward, 0, [each.a for each in plan.options]).run(gradient)
        self.engine.flush()


def beats_needed(training: PlannedTraining, streams: MemoryStreams) -> list[int]:
    """Beats of memory that the steps of each precision take, without those that are kept for stream programs.

    No step takes more, however gates divide its batch: every option is planned for all samples.

    Raises:
        PassError: the design cannot hold a pass.
    """
    memory, needs = NoMemory(streams.memory.info), []
    for bits in training.precisions:
        engine = FabricEngine(MemoryStreams.in_front(memory, streams.reserved), keep_rows=False)
        passes = _DryPasses(memory, engine=engine)
        dry = _DryRun(training, passes)
        for batch in training.batches:
            for choice in training.choices(batch):
                dry.ranges = Ranges()
                for _ in range(2):  # the first step measures the ranges that the second one knows, which is recorded to run again
                    dry.step(bits, batch, choice, True)
        for batch in training.tests:
            for choice in training.choices(batch):
                dry.step(bits, batch, choice, False)
        needs.append(passes.arena.used - streams.reserved)
    return needs


def check_memory(engine: Engine | None, training: PlannedTraining) -> dict[Hashable, int]:
    """Refuses a training whose steps the memory of a run's device does not hold, at one precision at least.

    Returns:
        Beats that the steps of every precision take, by :func:`precision_key` of its bits; nothing for engines that keep no
        tensors in a memory.

    Raises:
        MemoryPlanError: too many; the message says how many there are and what to change.
        PassError: the design cannot hold a pass.
    """
    if not isinstance(engine, FabricEngine) or not isinstance(engine.device, MemoryStreams):
        return {}
    needs = beats_needed(training, engine.device)
    needed, there = max(needs) + engine.device.reserved, engine.device.memory.beats
    if needed > there:
        megabytes = BEAT_BITS / 8e6
        raise MemoryPlanError(
            f"the steps take {needed * megabytes:.1f} MB of memory at batches of {max(training.batches)}, and the device has "
            f"{there * megabytes:.1f} MB: choose a smaller batch or eval_batch, fewer bits or options, or a device with more "
            "memory"
        )
    return {precision_key(bits): need for bits, need in zip(training.precisions, needs, strict=True)}


def precision_key(bits: Mapping[str, Bits]) -> Hashable:
    """What a precision is known by, see :meth:`host.step.compiled.MemoryPasses.make_room`."""
    return tuple(bits.values())
