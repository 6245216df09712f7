"""Training steps that run again: a fixed list of numbers to compute, words to write, programs to run.

A step whose samples all have the same bits asks the same of the device every time; only numbers differ.  While it runs
once, a :class:`host.replay.recorder.StepRecorder` notes what it does.  From that a :class:`Schedule` is made: passes whose
parameters are known run as one program, what the host computes between two programs is one call of ``native.c`` (or NumPy,
to the same bits), and results are read when something needs them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from host import native
from host.arrays import F32, F64, U64, Array
from host.driver.memory_tensors import HostTensor
from host.driver.memory_views import Arena, MemoryPlanError
from host.driver.pass_template import Template
from host.numerics import derive_key
from host.replay.program import PassProgram
from host.replay.recorder import StepMove, StepRecorder
from host.replay.schedule_builder import ScheduleBuilder, Segment
from host.step.backward import NodeGradients, pooled_codes
from host.step.coded import image_codes, image_top
from host.step.forward import Forward, Statistics
from host.step.passes import PassMeter
from host.step.recorded import Recorded


class ReplayEngine(Protocol):
    """What a schedule needs of an engine of passes in memory.

    Attributes:
        writer: who has last used the areas of passes.
    """

    arena: Arena
    meter: PassMeter
    writer: object

    def flush(self) -> None:
        """Runs what waits."""

    def claim(self, owner: object, templates: Sequence[Template]) -> None:
        """Gives the areas of passes to a schedule."""

    def put(self, cause: str, at: int, words: U64, patched: int) -> None:
        """Writes words from a beat on, of which so many are patches of headers and entries."""

    def execute(self, program: PassProgram, context: str) -> None:
        """Runs a program."""

    def tail(self, template: Template) -> U64:
        """Words that a pass leaves behind its codes."""
        ...

    def reported(self) -> int:
        """Saturations that nobody has reported yet."""
        ...


class Schedule:
    """A step that runs again.

    Args:
        recorder: of a step that has ended.
    """

    def __init__(self, engine: ReplayEngine, recorder: StepRecorder) -> None:
        self._engine, self._recorder, tape = engine, recorder, recorder.tape
        builder = ScheduleBuilder(engine.arena, recorder, self)
        self.numbers, self._outputs, self._kept = builder.numbers, builder.outputs, builder.kept
        self._segments = builder.segments
        self._rows = np.array([(step.row + [0] * native.ROW)[: native.ROW] for step in builder.steps], np.int64)
        self._errors = {number: step.error for number, step in enumerate(builder.steps) if step.error is not None}
        self._steps = [] if native.compiled_functions() is not None else builder.steps
        self._weights, self._shapes = builder.weights, builder.shapes
        self._pointers = np.zeros(1 + len(self._weights), np.uint64)
        self._native = native.Rows(self._rows, self.numbers, self._pointers)
        self._held: Forward | None = None  #: whose tensors lie in memory
        self._codes: dict[str, Array] = {}  #: of the host
        passes = [each for half in self._segments for segment in half for each in segment.passes]
        self._templates = list(dict.fromkeys(each.template for each in passes))
        moves = [[move for segment in half for move in segment.moves] for half in self._segments]
        self._moves = [*moves[0], *moves[1]]
        #: tensors that are first moved in each half
        tensors = [dict.fromkeys(move.tensor for move in some) for some in moves]
        self._moved = [list(tensors[0]), [each for each in tensors[1] if each not in tensors[0]]]
        self._tops = [{name: top.at for name, top in half.tops.items()} for half in recorder.halves]
        keys: dict[int, list[tuple[Any, ...]]] = {}
        for name in tape.inputs:
            if name[0] == "key":
                keys.setdefault(len(name), []).append(name)
        self._keys = [
            (np.array([tape.inputs[name].at for name in some]), np.array([name[1:] for name in some], np.uint64).T)
            for some in keys.values()
        ]
        self._statistics = _Gathered([pair for _, *pair, _ in recorder.statistics_of])
        self._affine = _Gathered(list(recorder.affine.values()))
        recorder.release()

    def of(self, number: Recorded) -> F64:
        """Where a number lies."""
        return self.numbers[number.at : number.at + number.size]

    # -- forward and backward ---------------------------------------------------------------------------------------

    def forward(self, forward: Forward, images: F32) -> None:
        """The forward half; see :meth:`host.step.forward.Forward.passes`."""
        tape, inputs = forward.tape, self._recorder.tape.inputs
        self._claim()
        self._held = forward
        top = image_top(images)
        bits = forward.bits[forward.graph[0].name].a
        self._codes["images"] = image_codes(images, top, bits)
        self.of(inputs["images",])[:] = top
        for name, known in forward.ranges.tops.items():
            self.of(inputs["range", name])[:] = known
        for node in forward.graph:
            own = forward.parameters[node.name]
            self.of(inputs["gamma", node.name])[:] = own.gamma
            self.of(inputs["beta", node.name])[:] = own.beta
        kept = [np.ascontiguousarray(forward.parameters[each.node.name].weight, np.float32) for each in self._weights]
        self._pointers[1:] = [native.address(weight) for weight in kept]
        for each, weight in zip(self._weights, kept, strict=True):
            each.weight = weight
        self._run(0, forward)
        pairs = self._statistics.of(self.numbers)
        for (name, _, _, values), (mean, variance) in zip(self._recorder.statistics_of, pairs, strict=True):
            tape.statistics[name] = Statistics(mean, variance, values)
        assert self._recorder.features is not None
        codes, scale = self._recorder.features
        codes.forget()
        tape.features = np.asarray(codes.sum((2, 3), dtype=np.int64) * self.of(scale), np.float32)

    def backward(self, forward: Forward, features: F32, key: int) -> dict[str, NodeGradients]:
        """The backward half; see :meth:`host.step.backward.Backward.run`.

        Raises:
            RuntimeError: another step has run meanwhile.
        """
        if self._held is not forward or self._engine.writer is not self:
            raise RuntimeError(
                "what this step kept in memory is gone: another step has run; go back before the next one"
            )
        for tensor in self._moved[1]:
            tensor.forget()
        inputs, last = self._recorder.tape.inputs, forward.graph[-1].shape
        for places, counters in self._keys:
            self.numbers[places] = derive_key(key, *counters)
        own_key = derive_key(key, *self._recorder.counters["features"])
        codes, scale = pooled_codes(features, last.out_hw, forward.widths.gradient, own_key)
        self._codes["features"] = codes
        self.of(inputs["features",])[:] = scale
        gradients = self._outputs["gradients"] = np.empty(self._shapes[-1][2], np.float32)
        self._pointers[0] = native.address(gradients)
        self._run(1, forward)
        weights, at = {}, 0
        for name, shape, stop in self._shapes:
            weights[name], at = gradients[at:stop].reshape(shape), stop
        affine = dict(zip(self._recorder.affine, self._affine.of(self.numbers, np.float32), strict=True))
        return {node.name: NodeGradients(weights[node.name], *affine[node.name]) for node in forward.graph}

    def _claim(self) -> None:
        """Takes the areas, of which another step or pass may have used some."""
        engine = self._engine
        engine.flush()
        for tensor in (*self._moved[0], *self._moved[1]):
            tensor.forget()
        if engine.writer is self:
            return
        engine.claim(self, self._templates)
        for half in self._segments:
            for segment in half:
                for write in segment.writes:
                    write.forced = True
        for move in self._moves:
            move.area.owner = move.tensor
            move.tensor.own()
        assert self._recorder.features is not None
        self._recorder.features[0].tensor.own()

    # -- a half -----------------------------------------------------------------------------------------------------

    def _run(self, number: int, forward: Forward) -> None:
        engine = self._engine
        try:
            for segment in self._segments[number]:
                self._segment(segment)
        except BaseException:
            engine.writer = None  # some words may be told as written that are not
            raise
        engine.meter.add("PASSES", sum(len(segment.passes) for segment in self._segments[number]))
        forward.tape.saturated += engine.reported()
        places = self._tops[number].items()
        forward.ranges.tops.update(
            zip(self._tops[number], self.numbers[[at for _, at in places]].tolist(), strict=True)
        )

    def _segment(self, segment: Segment) -> None:
        engine = self._engine
        self._compute(segment.steps)
        for move in segment.moves:
            self._move(move)
        for write in segment.writes:
            if write.changed[0] or write.forced:
                engine.put(write.cause, write.at, write.words, int(write.changed[0]))
                write.forced = False
        if segment.program is not None:
            engine.execute(segment.program, segment.passes[-1].context)
        for each in segment.passes:
            if each.readers:
                each.tail = engine.tail(each.template)
                address = native.address(each.tail)
                for row in each.readers:
                    self._rows[row, 3] = address

    def _compute(self, steps: slice) -> None:
        failed = self._native.compute(steps)
        if failed is None:  # nothing is compiled
            with np.errstate(all="ignore"):
                failed = next((i for i, step in enumerate(self._steps[steps]) if step.run() is False), -1)
        if failed >= 0:
            raise self._errors[steps.start + failed]()

    def _move(self, move: StepMove) -> None:
        tensor = move.tensor
        source = self._recorder.source(tensor)
        if source is not None:
            codes = self._codes[source]
            tensor = HostTensor(tensor.arena, tensor.design, tensor.name, (codes,), codes, tensor.planes)
        self._engine.put("pixels" if source is None else source, move.area.offset, tensor.arranged(move.place), 0)


class _Gathered:
    """Rows of numbers, which are taken from all others at once."""

    def __init__(self, rows: Sequence[Sequence[Recorded]]) -> None:
        self._rows = [[each.size for each in row] for row in rows]
        self._index = np.concatenate([np.arange(each.at, each.at + each.size) for row in rows for each in row])

    def of(self, numbers: F64, kind: Any = np.float64) -> Iterable[list[Array]]:
        """The rows."""
        found, at = numbers[self._index].astype(kind, copy=False), 0
        for row in self._rows:
            made = []
            for size in row:
                made.append(found[at : at + size])
                at += size
            yield made


class Schedules:
    """The steps that an engine can run again.

    Attributes:
        recorder: of the step that runs now, if it is recorded.
    """

    def __init__(self, engine: ReplayEngine) -> None:
        self._engine = engine
        self._known: dict[Hashable, Schedule | None] = {}
        self.recorder: StepRecorder | None = None

    def begin(self, forward: Forward, images: tuple[int, ...]) -> tuple[Schedule | None, StepRecorder | None]:
        """What runs a step, or else notes it; neither for a step that does something else every time.

        Args:
            images: their shape.
        """
        bits = tuple(forward.bits[node.name] for node in forward.graph)
        constants = tuple(forward.parameters[node.name].eps for node in forward.graph)
        known = frozenset(forward.ranges.tops)
        key: Hashable = tuple(forward.graph), bits, constants, forward.widths, images, forward.ranges.share, known
        self.recorder = None
        if key not in self._known:
            self.recorder = StepRecorder(lambda recorder, now: self._keep(key, recorder, now == known))
        return self._known.get(key), self.recorder

    def _keep(self, key: Hashable, recorder: StepRecorder, steady: bool) -> None:
        """Takes in a step that has ended.

        Args:
            steady: whether it knew all ranges when it began, as every later one does.
        """
        self.recorder = None
        if not steady:
            return
        try:
            self._known[key] = None if recorder.spoiled else Schedule(self._engine, recorder)
        except MemoryPlanError:
            self._known[key] = None  # pass after pass, it fits
