"""What a training step did: its passes, what the host moved between them, and the tape of its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from host.arrays import F32, U64, Array
from host.driver.memory_tensors import HostTensor, MemoryTensor, ResultTensor
from host.driver.memory_views import MemoryArea, ViewPlace
from host.driver.pass_template import Template
from host.epilogue import Entries, Moments
from host.step.coded import CodedWeights
from host.step.passes import ProductPass
from host.step.recorded import NumberTape, Recorded, RecordedEntries, Requirement, value_of
from hw.nodes import StepNode


@dataclass(eq=False)
class StepWeights:
    """Weights of a node as codes: for its output, or for its input gradient."""

    node: StepNode
    back: bool
    coded: CodedWeights
    numbers: tuple[Recorded, ...]  #: scale, magnitudes, totals
    weight: F32 = field(default_factory=lambda: np.zeros(0, np.float32))  #: of the step that runs


@dataclass(eq=False)
class RecordedPass:
    """A pass that ran.

    Attributes:
        numbers: entries, then the patched fields.
        channels: that have entries.
        number: among the tape's operations.
        moments: recorded; ``gradient``: node and scale.
        tail: words that it leaves, when it runs again; ``readers``: numbers of the computations that read them.
    """

    template: Template
    context: str
    numbers: tuple[Recorded, ...]
    channels: int
    weights: StepWeights | None
    number: int
    moments: tuple[Recorded, ...] = ()
    gradient: tuple[str, Recorded] | None = None
    tail: U64 = field(default_factory=lambda: np.zeros(0, np.uint64))
    readers: list[int] = field(default_factory=list)


@dataclass(eq=False)
class StepMove:
    """Pixels of a tensor, or codes of the host, that were put into an area."""

    tensor: MemoryTensor
    place: ViewPlace
    area: MemoryArea


@dataclass(eq=False)
class StepHalf:
    """Forward or backward: events, and the numbers that it leaves."""

    events: list[RecordedPass | StepMove | Requirement] = field(default_factory=list)
    left: list[Recorded] = field(default_factory=list)
    tops: dict[str, Recorded] = field(default_factory=dict)


class StepRecorder:
    """Notes a step while it runs.

    Args:
        done: called when the step has ended, with all names of ranges that it knows then.

    Attributes:
        tape: of its numbers.
        spoiled: whether it did something that another step would do otherwise.
    """

    def __init__(self, done: Callable[[StepRecorder, set[str]], None]) -> None:
        self._done, self.tape, self.spoiled = done, NumberTape(), False
        self.halves = [StepHalf(), StepHalf()]
        self.weighted: dict[int, StepWeights] = {}  #: by the identity of their codes
        self.sources: dict[int, tuple[str, Any]] = {}  #: names of codes that the host makes, by their identity
        self.counters: dict[str, tuple[int, ...]] = {}
        self.features: tuple[Any, Recorded] | None = None
        self.statistics_of: list[tuple[str, Recorded, Recorded, int]] = []
        self.affine: dict[str, tuple[Recorded, Recorded]] = {}
        self._half = self.halves[0]
        self._last: RecordedPass | None = None
        self._requirements = 0
        self._entries: set[MemoryArea] = set()

    # -- told by the step -------------------------------------------------------------------------------------------

    def weights(self, coded: CodedWeights, node: StepNode, back: bool) -> CodedWeights:
        """Takes in weights; returns them with recorded numbers."""
        names = ("scale", "magnitudes", "totals")
        values = coded.scale, *coded.sums
        numbers = tuple(self.tape.input(("weights", node.name, back, n), v) for n, v in zip(names, values, strict=True))
        self.weighted[id(coded.codes.values)] = StepWeights(node, back, coded, numbers)
        return replace(coded, scale=numbers[0], sums=(numbers[1], numbers[2]))

    def host(self, name: str, codes: Array, counters: tuple[int, ...] = ()) -> None:
        """Takes in codes that the host makes: "images" or "features"."""
        self.sources[id(codes)] = name, codes
        self.counters[name] = counters

    def statistics(self, name: str, mean: Recorded, variance: Recorded, values: int) -> None:
        """Takes in what running statistics are made of."""
        self.statistics_of.append((name, mean, variance, values))

    def pooled(self, codes: Any, scale: Recorded, tops: dict[str, Recorded]) -> None:
        """Takes in the last node's codes and the scale of their sums, with which the forward half ends."""
        self.features = codes, scale
        self._note_requirements()
        self._half.left = [scale, *(number for _, *pair, _ in self.statistics_of for number in pair), *tops.values()]
        self._half.tops = dict(tops)
        self._half = self.halves[1]

    def gradient(self, node: str, scale: Recorded) -> None:
        """Says whose weight gradient the last pass had, and its unit."""
        if self._last is None or self._last.gradient is not None:
            self.spoiled = True
        else:
            self._last.gradient = node, scale

    def finish(self, affine: dict[str, tuple[Recorded, Recorded]], tops: dict[str, Recorded]) -> None:
        """Ends the step, which may run again from now on."""
        self.affine = affine
        self._note_requirements()
        self._half.left = [*(number for pair in affine.values() for number in pair), *tops.values()]
        self._half.tops = dict(tops)
        self._done(self, set(tops))

    def release(self) -> None:
        """Drops operations and events, which a schedule has taken over."""
        self.halves = []
        self.tape.release()

    # -- told by the engine -----------------------------------------------------------------------------------------

    def settled(self, wanted: ProductPass) -> ProductPass:
        """The pass with numbers as they are now."""
        behind = wanted.behind
        if behind is None:
            return wanted
        self.spoiled |= not isinstance(behind.entries, RecordedEntries)
        form = behind.settings
        form = replace(form, shift=int(value_of(form.shift)), value_shift=int(value_of(form.value_shift)))
        e = behind.entries
        plain = Entries(e.m, e.o, e.n, e.l, e.b, e.c)
        return replace(wanted, behind=replace(behind, entries=plain, settings=form, key=int(value_of(behind.key))))

    def ran(self, wanted: ProductPass, template: Template, context: str, moments: Moments | None) -> Moments | None:
        """Takes in a pass; returns its moments as recorded numbers.

        Args:
            wanted: as it was asked for.
        """
        numbers: tuple[Any, ...] = ()
        channels = 0
        if (behind := wanted.behind) is not None and isinstance(behind.entries, RecordedEntries):
            numbers, channels = (*behind.entries.numbers, *behind.header.values()), len(behind.entries.m)
        self.spoiled |= template.gradient is not None and template.gradient.index is None
        if template.entries is not None:  # what lies there then has two meanings in a step
            self.spoiled |= template.entries in self._entries
            self._entries.add(template.entries)
        weights = None if wanted.w is None else self.weighted.get(id(wanted.w.values))
        self._note_requirements()
        numbers = tuple(self.tape.number(each) for each in numbers)
        ran = self._last = RecordedPass(template, context, numbers, channels, weights, self.tape.next())
        self._half.events.append(ran)
        if moments is None:
            return None
        ran.moments = tuple(self.tape.place(each, ran) for each in moments)
        return Moments(*ran.moments)  # type: ignore[arg-type]

    def moved(self, tensor: MemoryTensor, place: ViewPlace, area: MemoryArea) -> None:
        """Takes in what the host has put into an area."""
        self.spoiled |= not isinstance(tensor, ResultTensor) and self.source(tensor) is None
        self._half.events.append(StepMove(tensor, place, area))

    def source(self, tensor: MemoryTensor) -> str | None:
        """Name of the codes that a tensor of the host holds."""
        found = self.sources.get(id(tensor.values[0])) if isinstance(tensor, HostTensor) else None
        return found[0] if found else None

    def _note_requirements(self) -> None:
        new = self.tape.requirements[self._requirements :]
        self._half.events += new
        self._requirements += len(new)
