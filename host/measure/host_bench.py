"""``fractrain bench host``: what the host computes in a training step, on a device that answers at once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from host.arrays import F32
from host.devices.device import DeviceInfo
from host.devices.memory import Memory, MemoryResult
from host.step.backward import Backward, NodeGradients
from host.step.channel_parameters import PEAK
from host.step.coded import Ranges
from host.step.compiled import MemoryPasses
from host.step.forward import Forward, Parameters
from host.training.descent import all_descended
from hw.contract import MOMENT_WORDS, RECORD_WORDS, Error, RecordFlag
from hw.design import Design
from hw.networks import Bits
from hw.nodes import KeptWidths, StepNode
from hw.plan.records import Record

_CLASSES = 10
_RECIPE = {"momentum": 0.9, "weight_decay": 1e-4, "nesterov": False}
#: steps that build what is run again: passes one by one, a step that is recorded, one for which the device draws results
_BUILDING = 3
#: what the meter counts of a step
_COUNTS = ("PASSES", "PROGRAMS", "WORDS_PATCHED")


class InstantMemory:
    """A device with memory that answers at once: results are drawn when a program first runs, and stay.

    Implements :class:`host.devices.memory.MemoryDevice`.  Moments are such as real ones are; codes are any.
    """

    def __init__(self, design: Design, beats: int, seed: int = 0) -> None:
        self.design, self.beats = design, beats
        self._memory, self._rng = Memory(beats), np.random.default_rng(seed)
        self._known: dict[int, int] = {}
        self.write, self.read = self._memory.write, self._memory.read

    @property
    def info(self) -> DeviceInfo:
        return DeviceInfo("instant", self.design, self.design.hash64)

    def reset(self) -> None:
        """Nothing is ever under way here."""

    def execute(self, program: int, deadline: int = 0) -> MemoryResult:
        """See :class:`host.devices.memory.MemoryDevice`."""
        if program not in self._known:
            self._known[program] = self._draw(program)
        return MemoryResult(Error.NONE, 0, {"PACKETS": self._known[program]})

    def _draw(self, at: int) -> int:
        """Draws the results of a program; returns its packets."""
        packets = 0
        while True:
            record = Record.unpack(self._memory.words[at : at + RECORD_WORDS].T.tolist())
            packets += 1
            for d in record.destinations:
                if d.beats:
                    self._fill(d.offset, (record.rows - 1) * d.stride + record.row_tiles * d.beats)
            offset, beats = record.tail
            if record.packet.has_moments:
                table = np.zeros((2 * beats // MOMENT_WORDS, MOMENT_WORDS), np.int64)
                table[:, 0] = self._rng.integers(-10_000, 10_000, len(table))
                table[:, 1] = self._rng.integers(10**8, 10**9, len(table))
                most = PEAK if record.packet.section_planes else 500  # of w, or of x
                least, greatest = (sign * self._rng.integers(most // 2, most, len(table)) for sign in (-1, 1))
                table[:, 2] = greatest << 32 | least & 0xFFFFFFFF
                self.write(offset, table.reshape(-1).view(np.uint64))
            elif beats:
                sums = self._rng.integers(-2_000, 2_000, 4 * beats).astype(np.int32)
                self.write(offset, sums.view(np.uint64))
            if record.flags & RecordFlag.LAST:
                return packets
            at += RECORD_WORDS

    def _fill(self, offset: int, beats: int) -> None:
        self.write(offset, self._rng.integers(0, 1 << 64, 2 * beats, dtype=np.uint64))


@dataclass
class HostStep:
    """All that a host computes for training: images to codes, passes, head, loss, update.

    Attributes:
        parameters: of every node; ``head``: float32 (classes, features).
        spent: processor seconds of forward, backward and update, step by step.
    """

    graph: list[StepNode]
    engine: MemoryPasses
    bits: Bits
    widths: KeptWidths
    batch: int
    rng: np.random.Generator
    ranges: Ranges = field(default_factory=Ranges)
    parameters: dict[str, Parameters] = field(default_factory=dict)
    momentum: list[F32 | None] = field(default_factory=list)
    spent: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        first = self.graph[0].shape
        shape = self.batch, first.in_channels, *first.in_hw
        self.images = self.rng.normal(size=shape).astype(np.float32)
        self.labels = self.rng.integers(0, _CLASSES, self.batch)
        for node in self.graph:
            s = node.shape
            size = s.out_channels, s.in_channels // s.groups, s.kernel, s.kernel
            weight = self.rng.normal(0, (2 / np.prod(size[1:])) ** 0.5, size).astype(np.float32)
            ones, zeros = np.ones(s.out_channels, np.float32), np.zeros(s.out_channels, np.float32)
            self.parameters[node.name] = Parameters(weight, ones, zeros, zeros.copy(), ones.copy(), 1e-5)
        features = self.graph[-1].shape.out_channels
        self.head = self.rng.normal(0, features**-0.5, (_CLASSES, features)).astype(np.float32)

    @np.errstate(over="ignore", invalid="ignore")  # drawn moments belong to no network, whose numbers may grow from node to node
    def run(self, number: int) -> None:
        """One step."""
        times = [time.process_time()]
        forward = Forward(
            self.graph, self.parameters, self.engine, self.ranges, {n.name: self.bits for n in self.graph}, self.widths
        )
        features = forward.run(self.images).features
        assert features is not None
        times.append(time.process_time())
        back, head = self._head(features)
        found = Backward(forward, number).run(back)
        times.append(time.process_time())
        self._update(found, head)
        for node in self.graph:
            own, seen = self.parameters[node.name], forward.tape.statistics[node.name]
            own.mean[:] = 0.9 * own.mean + 0.1 * seen.mean
            own.variance[:] = 0.9 * own.variance + 0.1 * seen.unbiased
        times.append(time.process_time())
        self.spent.append(dict(zip(("forward", "backward", "update"), np.diff(times).tolist(), strict=True)))

    def _head(self, features: F32) -> tuple[F32, F32]:
        """Gradients of cross-entropy by the features and by the head."""
        logits = features @ self.head.T
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        shares[np.arange(self.batch), self.labels] -= 1
        shares /= self.batch
        return shares @ self.head, shares.T @ features

    def _update(self, gradients: Mapping[str, NodeGradients], head: F32) -> None:
        """SGD with momentum and weight decay."""
        own = [self.head, *(a for node in self.graph for a in self._trained(node.name))]
        found = [head, *(a for node in self.graph for a in gradients[node.name])]
        # the new weights are dropped: drawn gradients are no descent
        _, self.momentum = all_descended(own, found, self.momentum or [None] * len(own), 0.05, _RECIPE)

    def _trained(self, name: str) -> tuple[F32, F32, F32]:
        own = self.parameters[name]
        return own.weight, own.gamma, own.beta


def bench(
    design: Design, graph: list[StepNode], bits: Bits, widths: KeptWidths, batch: int, steps: int, beats: int
) -> dict[str, Any]:
    """Processor time of steps behind the first ones, which build what is run again: the median, and the least, which other
    load on the machine lengthens less."""
    memory = InstantMemory(design, beats)
    engine = MemoryPasses(memory)
    host = HostStep(graph, engine, bits, widths, batch, np.random.default_rng(0))
    begun = time.process_time()
    for number in range(_BUILDING):
        host.run(number)
    building = time.process_time() - begun
    before, touched = dict(engine.meter.totals), engine.arena.touched.copy()
    host.spent.clear()
    for number in range(steps):
        host.run(number + _BUILDING)
    by_cause = {
        direction: {
            cause: (engine.arena.touched[each, cause] - touched[each, cause]) / steps
            for each, cause in sorted(engine.arena.touched)
            if each == direction
        }
        for direction in ("read", "written")
    }
    parts = {name: 1e3 * statistics.median(each[name] for each in host.spent) for name in host.spent[0]}
    return {
        "bits": f"{bits.w}/{bits.a}/{bits.g}",
        "milliseconds": 1e3 * statistics.median(sum(each.values()) for each in host.spent),
        "least_milliseconds": 1e3 * min(sum(each.values()) for each in host.spent),
        "parts": parts,
        "building_seconds": building,
        "memory_bytes": 16 * engine.arena.used,
        **{f"bytes_{direction}": sum(causes.values()) for direction, causes in by_cause.items()},
        "by_cause": by_cause,
        **{name.lower(): (engine.meter.totals[name] - before[name]) / steps for name in _COUNTS},
    }
