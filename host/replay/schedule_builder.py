"""Makes the list of a schedule from what a step did.

Every computation is a row for ``native.c`` and a function of NumPy that does the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from host import native
from host.arrays import F32, F64, I64, U64, Array
from host.driver.memory_views import Arena, MemoryArea
from host.driver.pass_template import Template, WeightArea
from host.epilogue import Entries
from host.replay.program import PassProgram, patch_records
from host.replay.recorder import RecordedPass, StepMove, StepRecorder, StepWeights
from host.step.channel_parameters import code_top
from host.step.coded import channel_axis, not_finite
from host.step.passes import HEADER_VALUES, PassError
from host.step.recorded import NUMBER_OPERATIONS, OPERATION_CODES, REDUCTIONS, NumberOperation, Recorded, Requirement
from hw.contract import ENTRY_WORDS, FIELD, MEMORY_PORTS, RECORD_WORDS

#: codes of rows behind those of :data:`host.step.recorded.NUMBER_OPERATIONS`
_REQUIRE, _MOMENTS, _ENTRIES, _PATCH, _GRADIENT, _ROUND, _PACK = range(len(OPERATION_CODES), len(OPERATION_CODES) + 7)
#: numbers of a pass that are of its entries; those of its header follow
_ENTRY_FIELDS = 6
#: word and bit of each patched field, and of the checksum
_FIELD_PLACES = np.array(
    [(FIELD[name].half // 2, 32 * (FIELD[name].half % 2) + FIELD[name].lsb) for name in (*HEADER_VALUES, "check")],
    np.int64,
)


@dataclass(eq=False)
class Computation:
    """One thing to compute: as a row for ``native.c``, and in NumPy; ``error``: if it cannot be."""

    row: list[int]
    run: Callable[[], bool | None]  #: False: it cannot
    error: Callable[[], Exception] | None = None


@dataclass(eq=False)
class MemoryWrite:
    """Words that go to the memory if some of them have changed, or if another has written there (``forced``); their cause
    is for reports."""

    cause: str
    at: int
    words: U64
    changed: I64
    forced: bool = True


@dataclass(eq=False)
class Segment:
    """What the host computes, moves and writes before a program, the program, and the passes whose results are read then."""

    steps: slice
    moves: list[StepMove]
    writes: list[MemoryWrite]
    program: PassProgram | None
    passes: list[RecordedPass]


class ScheduleBuilder:
    """Makes the list of a schedule.

    Args:
        owner: of the programs.

    Attributes:
        numbers: of the tape.
        steps: of both halves; ``segments``: of each half.
        kept: arrays whose addresses the rows hold.
        outputs: arrays of the step that runs: "gradients", where weight gradients go in NumPy.
        weights: in the order of their pointers.
        shapes: of the weight gradients, which lie one after the other, and where each ends.
    """

    def __init__(self, arena: Arena, recorder: StepRecorder, owner: object) -> None:
        self._arena, self._owner = arena, owner
        self.numbers = np.zeros(recorder.tape.size)
        for constant in recorder.tape.constants.values():
            self._of(constant)[:] = constant.value
        self.outputs: dict[str, F32] = {}
        self.steps: list[Computation] = []
        self.segments: list[list[Segment]] = [[], []]
        self.weights = list(recorder.weighted.values())
        self.shapes: list[tuple[str, tuple[int, ...], int]] = []
        self._done: set[Any] = set()
        self._pending: list[RecordedPass] = []
        self._moves: list[StepMove] = []
        self._writes: list[MemoryWrite] = []
        self._begun = 0  #: first step of the segment
        self._holds: dict[WeightArea, StepWeights] = {}
        self.kept: list[Array] = []
        #: low and high bytes of codes, behind a 0
        self._codes = {each: np.zeros((2, 1 + each.coded.codes.values.size), np.uint8) for each in self.weights}
        for each in self.weights:
            self._round(each)
        for half, segments in zip(recorder.halves, self.segments, strict=True):
            self._half = segments
            for event in half.events:
                if isinstance(event, RecordedPass):
                    self._pass(event)
                elif isinstance(event, StepMove):
                    self._move(event)
                else:
                    self._need([event.true, event.about])
                    self._add(self._requirement(event))
            self._need(half.left)
            self._flush()
            self._flush()  # the weight gradients of the last program

    def _at(self, array: Array) -> int:
        """Address of an array, which is kept for it."""
        self.kept.append(array)
        return native.address(array)

    def _of(self, number: Recorded) -> F64:
        return self.numbers[number.at : number.at + number.size]

    # -- order ------------------------------------------------------------------------------------------------------

    def _need(self, numbers: Iterable[Recorded]) -> None:
        """Computes numbers, behind the programs whose results they come from."""
        found: set[Any] = set()
        waiting = [number.source for number in numbers]
        while waiting:
            source = waiting.pop()
            if source is None or source in found or source in self._done:
                continue
            found.add(source)
            if isinstance(source, NumberOperation):
                waiting += [each.source for each in source.args]
        if any(source in self._pending for source in found):
            self._flush()
        for source in sorted(found, key=lambda each: each.number):
            self._add(self._operation(source) if isinstance(source, NumberOperation) else self._moments(source))
        self._done |= found

    def _pass(self, event: RecordedPass) -> None:
        self._need(event.numbers)
        template = event.template
        written: set[MemoryArea] = set()
        for each in self._pending:
            written |= each.template.own
        if template.own & written or (template.weights is not None and self._other_weights(event)):
            self._flush()
        self._pending.append(event)
        if (
            template.weights is not None
            and event.weights is not None
            and self._holds.get(template.weights) is not event.weights
        ):
            self._pack(template.weights, event.weights)

    def _other_weights(self, event: RecordedPass) -> bool:
        """Whether a pass that waits has other weights in the same area."""
        area = event.template.weights
        return any(each.template.weights is area and each.weights is not event.weights for each in self._pending)

    def _move(self, event: StepMove) -> None:
        touched = {event.area, *event.tensor.sources()}
        if any(touched & each.template.areas for each in self._pending):
            self._flush()
        self._moves.append(event)

    def _flush(self) -> None:
        """Ends a segment, with the program of the passes that wait."""
        program = None
        if self._pending:
            program = PassProgram(self._arena, tuple(each.template for each in self._pending), self._owner)
            self._arena.write(program.area, program.words.reshape(-1), "records")
            for number, each in enumerate(self._pending):
                self._fill(each, program, number)
        if program is None and self._begun == len(self.steps) and not self._moves and not self._writes:
            return
        steps = slice(self._begun, len(self.steps))
        self._half.append(Segment(steps, self._moves, self._writes, program, self._pending))
        passes = self._pending
        self._begun, self._moves, self._writes, self._pending = len(self.steps), [], [], []
        for each in passes:
            if each.gradient is not None:
                self._need([each.gradient[1]])
                self._add(self._gradient(each, *each.gradient))

    # -- steps ------------------------------------------------------------------------------------------------------

    def _add(self, step: Computation) -> None:
        self.steps.append(step)

    def _write(self, cause: str, at: int, words: U64) -> I64:
        """Words that are written before the next program; returns where to say how many changed."""
        changed = np.ones(1, np.int64)
        self._writes.append(MemoryWrite(cause, at, words, changed))
        return changed

    def _operation(self, done: NumberOperation) -> Computation:
        views = [self._of(each) for each in done.args]
        result, function = self._of(done.result), NUMBER_OPERATIONS[done.name]
        count = done.args[0].size if done.name in REDUCTIONS else done.result.size

        def run() -> None:
            result[:] = function(*views)

        operands = [number for each in done.args for number in (each.at, int(each.size > 1))]
        return Computation([OPERATION_CODES[done.name], count, done.result.at, *operands], run)

    def _requirement(self, event: Requirement) -> Computation:
        true, about = self._of(event.true), self._of(event.about)
        return Computation([_REQUIRE, 1, 0, event.true.at], lambda: bool(true[0]), lambda: event.error(float(about[0])))

    def _moments(self, event: RecordedPass) -> Computation:
        tail, places = event.template.moments, [self._of(each) for each in event.moments]
        assert tail is not None
        zeros = 0 if tail.zeros is None else self._at(tail.zeros)

        def run() -> None:
            for place, values in zip(places, tail.moments(event.tail), strict=True):
                place[:] = values

        event.readers.append(len(self.steps))
        first, order = event.moments[0], tail.order
        row = [_MOMENTS, first.size, first.at, 0, self._at(order), self._at(tail.starts), len(order), zeros]
        return Computation(row, run)

    def _fill(self, event: RecordedPass, program: PassProgram, number: int) -> None:
        """Entries and headers of a pass."""
        if not event.numbers:
            return
        template, values = event.template, event.numbers
        if template.entries is not None:
            self._add(self._entries(template, values[:_ENTRY_FIELDS], event.channels))
        words = program.words[program.rows(number)]
        at = program.area.offset + program.rows(number).start * RECORD_WORDS
        self._add(self._patch(template, values[_ENTRY_FIELDS:], words, self._write("records", at, words.reshape(-1))))

    def _entries(self, template: Template, values: Sequence[Recorded], channels: int) -> Computation:
        assert template.entries is not None
        index, views = template.entry_index, [self._of(each) for each in values]
        words = np.full((len(index), ENTRY_WORDS), -1, np.int64).view(np.uint64)
        changed = self._write("entries", template.entries.offset, words.reshape(-1))
        places = np.array([(each.at, int(each.size > 1)) for each in values], np.int64)
        made = np.zeros((channels + 1, ENTRY_WORDS), np.uint64)

        def entries() -> Entries:
            return Entries(*((np.zeros(channels) + view).astype(np.int64) for view in views))

        def run() -> bool:
            try:
                made[:-1] = entries().words()
            except ValueError:
                return False
            changed[:] = 0 if np.array_equal(words, made[index]) else words.size
            words[:] = made[index]
            return True

        def error() -> Exception:
            try:
                entries()
            except ValueError as wrong:
                return wrong
            return PassError("entries do not fit their fields; training has diverged")

        row = [
            _ENTRIES,
            channels,
            len(index),
            self._at(index),
            self._at(words),
            self._at(places),
            self._at(made),
            self._at(changed),
        ]
        return Computation(row, run, error)

    def _patch(self, template: Template, values: Sequence[Recorded], words: U64, changed: I64) -> Computation:
        last, views = np.full(len(HEADER_VALUES), -1, np.int64), [self._of(each) for each in values]
        places = np.array([each.at for each in values], np.int64)

        def run() -> None:
            patch = [int(view[0]) for view in views]
            changed[:] = 0 if patch == last.tolist() else patch_records(words, template, patch)
            last[:] = patch

        row = [
            _PATCH,
            0,
            len(template.convs),
            self._at(template.convs),
            self._at(template.words),
            self._at(words),
            self._at(places),
        ]
        return Computation([*row, self._at(_FIELD_PLACES), self._at(last), self._at(changed)], run)

    def _round(self, each: StepWeights) -> None:
        """Codes of weights, with scale and sums per channel."""
        weight, halves = each.coded.codes.values, self._codes[each]
        axis, top = channel_axis(each.back, each.node.shape.groups), code_top(each.coded.codes.bits, True)
        outer, inner = int(np.prod(weight.shape[:axis])), int(np.prod(weight.shape[axis + 1 :]))
        scale, *others = [self._of(number) for number in each.numbers]
        sums, codes = np.zeros((2, scale.size), np.int64), np.zeros(weight.shape, np.int16)

        def run() -> bool:
            found = native.round_weights(each.weight, axis, top)
            if not np.isfinite(found.scale).all():
                return False
            halves[:, 1:] = found.codes.reshape(-1) & 255, found.codes.reshape(-1) >> 8 & 255
            for place, values in zip((scale, *others), (found.scale, found.magnitudes, found.totals), strict=True):
                place[:] = values
            return True

        row = [_ROUND, scale.size, each.numbers[0].at, 1 + self.weights.index(each), outer, inner, top]
        row += [
            self._at(codes),
            self._at(sums),
            self._at(halves),
            self._at(halves[1]) if each.coded.codes.bits > 8 else 0,
        ]
        self._add(Computation(row, run, lambda: not_finite(each.node.name)))

    def _pack(self, area: WeightArea, weights: StepWeights) -> None:
        """Words of weights."""
        halves, words = self._codes[weights], np.zeros(area.size, np.uint64)
        self._holds[area] = weights
        self._write("weights", area.area.offset, words)

        def run() -> None:
            words[:] = area.words(halves[0, 1:] | halves[1, 1:].astype(np.int16) << 8)

        pairs, size = area.index.shape
        row = [
            _PACK,
            pairs,
            self._at(halves),
            self._at(area.index),
            size,
            area.design.weight_words,
            area.bits,
            self._at(words),
        ]
        self._add(Computation([*row, 8 * area.index.itemsize, self._at(halves[1])], run))

    def _gradient(self, event: RecordedPass, node: str, scale: Recorded) -> Computation:
        """A weight gradient, behind those before."""
        tail = event.template.gradient
        assert tail is not None and tail.index is not None
        ints = 2 * MEMORY_PORTS * event.template.tail_beats
        index, factor = native.as_index(tail.index.reshape(-1), ints), self._of(scale)
        at = self.shapes[-1][2] if self.shapes else 0
        self.shapes.append((node, tail.index.shape, at + index.size))
        event.readers.append(len(self.steps))

        def run() -> None:
            self.outputs["gradients"][at : at + index.size] = tail.gradient(event.tail).reshape(-1) * factor

        row = [_GRADIENT, index.size, at, 0, self._at(index), scale.at, int(tail.wide), 8 * index.itemsize]
        return Computation(row, run)
