"""Passes on a device with memory: tensors stay there, a pass is built once and replayed with a few words patched.

Implements :class:`host.step.passes.PassEngine`.  Codes that a pass leaves are handles (:class:`host.driver.memory_tensors.MemoryCodes`),
which other passes take as they take arrays.  A pass whose moments or sums nobody needs yet waits for the next one, and
both run as one program.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from host.arrays import U64
from host.devices.memory import MemoryDevice, MemoryStreams, check
from host.driver.fabric_engine import FabricEngine
from host.driver.fabric_passes import FabricPasses, check_phases, parts_of
from host.driver.memory_tensors import HostTensor, MemoryCodes, MemoryTensor, ResultTensor, checked
from host.driver.memory_views import Arena, MemoryArea, ViewPlace
from host.driver.pass_template import PassPlan, Template, TemplateBuilder, WeightArea, plan_of
from host.epilogue import Bools
from host.numerics import check_codes
from host.replay.program import PassProgram
from host.replay.step_schedule import Schedules
from host.step.passes import CodeTensor, PassEpilogue, PassError, PassMeter, PassResult, ProductPass
from hw.packet import all_planes
from hw.plan.product import LoweringError, PartialSumsError


@dataclass(eq=False)
class _Shape:
    """A pass but for the areas of its operands; ``phases``: its result is computed in several."""

    plan: PassPlan
    phases: bool
    templates: dict[tuple[MemoryArea, ...], Template] = field(default_factory=dict)


class MemoryPasses:
    """Runs passes on a device with memory, to the bit as :class:`host.driver.fabric_passes.FabricPasses` does.

    A pass that leaves codes only may wait for the next one; its saturations count with the pass behind which it runs.
    What a design computes in partial sums runs as a stream program, and the host does what stands behind them.
    ``meter`` has the device's counters, PASSES, PROGRAMS, and WORDS_PATCHED of headers and entries.

    Args:
        memory: the device; the engine takes all of its memory.
        deadline: cycles of one program, 0: none.
        engine: of sums, on a part of the memory that is its own; its meter counts all.
    """

    def __init__(self, memory: MemoryDevice, deadline: int = 0, engine: FabricEngine | None = None) -> None:
        self.memory, self.design, self._deadline = memory, memory.info.design, deadline
        own = engine is not None and isinstance(engine.device, MemoryStreams)
        self.arena = Arena(memory, engine.device.reserved if own else 0)  # type: ignore[union-attr]
        self.arena.settle = self.flush
        self._shapes: dict[Hashable, _Shape] = {}
        self._programs: dict[tuple[Template, ...], PassProgram] = {}
        self._hosted: dict[Hashable, HostTensor] = {}
        self._promised: dict[Hashable, int] = {}  #: beats, by kinds of steps
        self._queue: list[Template] = []
        self._context = ""
        self._saturated = 0  #: of programs that no pass has reported yet
        if engine is None:
            streams = MemoryStreams(memory, lambda beats: self.arena.area("streams", beats).offset, deadline)
            engine = FabricEngine(streams, keep_rows=False)
        self._streams = FabricPasses(engine)
        self.meter, self.schedules = PassMeter(engine.meter.totals), Schedules(self)
        self.arena.moved = self._moved
        self.writer: object = self  #: who has last used the areas: passes one by one, or a schedule

    # -- passes -----------------------------------------------------------------------------------------------------

    def run(self, wanted: ProductPass) -> PassResult:
        """Runs a pass, or lets it wait for the next one if it leaves codes only.

        Raises:
            PassError: the design or the memory cannot hold it, or its result has no epilogue.
            ProgramError, MemoryFaultError: the device refused a program, perhaps of a pass before.
        """
        recorder, asked = self.schedules.recorder, wanted
        if recorder is not None:
            wanted = recorder.settled(wanted)
        self.writer = self
        operands = self._operands(wanted)
        try:
            template = self._template(wanted, operands)
        except PartialSumsError:
            if recorder is not None:
                recorder.spoiled = True
            return self._streamed(wanted)
        except (LoweringError, PassError) as error:
            kind = type(error) if isinstance(error, PassError) else PassError
            raise kind(f"{wanted.node}, {wanted.purpose}: {error}") from None
        self._fill(wanted, template)
        self._queue.append(template)
        self._context = f"{wanted.node}, {wanted.purpose}"
        self.arena.busy |= template.areas
        self.meter.add("PASSES", 1)
        moments = gradient = None
        if template.tail is not None:
            self.flush()
            words = self.tail(template)
            moments = None if template.moments is None else template.moments.moments(words)
            gradient = None if template.gradient is None else template.gradient.gradient(words)
        if recorder is not None:
            moments = recorder.ran(asked, template, self._context, moments)
        codes = self._codes(wanted, template)
        return replace(codes, moments=moments, weight_gradient=gradient, saturated=self.reported())

    def tail(self, template: Template) -> U64:
        """Words that a pass leaves behind its codes."""
        assert template.tail is not None
        words = self.arena.read(template.tail, template.tail_beats, "moments")
        if template.gradient is not None:
            sums = words.nbytes - (0 if template.moments is None else 8 * template.moments.words)
            self.arena.touched["read", "moments"] -= sums
            self.arena.touched["read", "weight gradients"] += sums
        return words

    def _moved(self, tensor: MemoryTensor, place: ViewPlace, area: MemoryArea) -> None:
        if self.schedules.recorder is not None:
            self.schedules.recorder.moved(tensor, place, area)

    def _streamed(self, wanted: ProductPass) -> PassResult:
        """A pass that the design computes in partial sums: with arrays, in programs of its own."""
        self.flush()
        behind = wanted.behind
        if behind is not None:
            mask = None if behind.mask is None else np.asarray(behind.mask)
            behind = replace(behind, side=_as_array(behind.side), added=_as_array(behind.added), mask=mask)
        arrays = replace(wanted, x=_as_array(wanted.x), g=_as_array(wanted.g), behind=behind)
        self.meter.add("STREAMED_PASSES", 1)
        return self._streams.run(arrays)

    def make_room(self, kind: Hashable, beats: int, *, grows: bool = False) -> None:
        """Before a step: if the memory has no room for its plans, all others are given up.

        Args:
            kind: of steps that share their plans.
            beats: that the plans of the kind take in all.
            grows: its steps ask for ever new plans, each step for so many beats at most: gates divide batches anew.
        """
        room = self.memory.beats - self.arena.first
        free = room - (self.arena.used - self.arena.first if grows else sum(self._promised.values()))
        if (grows or kind not in self._promised) and free < beats and (self._promised or self._shapes):
            self.flush()
            for known in (self._shapes, self._programs, self._hosted, self._promised):
                known.clear()
            self.arena.clear()
            self.schedules = Schedules(self)
            self.meter.add("REPLANNED", 1)
        self._promised[kind] = beats

    def flush(self) -> None:
        """Runs what waits.

        Raises:
            ProgramError, MemoryFaultError: the device refused it.
        """
        if not self._queue:
            return
        key = tuple(self._queue)
        self._queue = []
        self.arena.busy.clear()
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = PassProgram(self.arena, key, self)
        self.meter.add("WORDS_PATCHED", program.send(self.arena))
        self.execute(program, self._context)

    def execute(self, program: PassProgram, context: str) -> None:
        """Runs a program.

        Args:
            context: for errors.

        Raises:
            ProgramError, MemoryFaultError: the device refused it.
        """
        try:
            result = check(self.memory.execute(program.area.offset, self._deadline), context)
        except Exception:
            for area in (area for template in program.templates for area in template.writes):
                area.owner = None  # nobody knows what lies there
            self.writer = None
            raise
        for name, value in result.counters.items():
            self.meter.add(name, value)
        self.meter.add("PROGRAMS", 1)
        self._saturated += result.counters.get("SATURATED", 0)

    def reported(self) -> int:
        """Saturations of programs that nobody has reported yet."""
        found, self._saturated = self._saturated, 0
        return found

    # -- for schedules ----------------------------------------------------------------------------------------------

    def claim(self, owner: object, templates: Sequence[Template]) -> None:
        """Gives the areas of passes to a schedule, which fills them from now on."""
        self.writer = owner
        self._hosted.clear()
        for template in templates:
            if template.entries is not None:
                template.entries.owner = owner
            if template.weights is not None:
                template.weights.values = None
            for area in template.writes:
                area.owner = owner

    def put(self, cause: str, at: int, words: U64, patched: int) -> None:
        """Writes words from a beat on, of which so many are patches of headers and entries."""
        self.arena.touched["written", cause] += words.nbytes
        if cause in ("entries", "records"):
            self.meter.add("WORDS_PATCHED", patched)
        self.memory.write(at, words)

    # -- operands ---------------------------------------------------------------------------------------------------

    def _operands(self, wanted: ProductPass) -> dict[str, MemoryTensor]:
        """Tensors of the operands, those of arrays taken into memory."""
        found = {}
        for name, codes, what in (("x", wanted.x, "activations"), ("g", wanted.g, "output gradients")):
            if codes is not None:
                found[name] = self._tensor(wanted.node, name, codes, what)
        if wanted.behind is None:
            return found
        if (side := self._side(wanted.node, wanted.behind)) is not None:
            found["side"] = side
        if wanted.behind.added is not None:
            found["added"] = self._tensor(wanted.node, "added", wanted.behind.added, "added codes")
        return found

    def _tensor(self, node: str, name: str, codes: CodeTensor, what: str) -> MemoryTensor:
        values: Any = codes.values
        if isinstance(values, MemoryCodes) and (values.bits, values.tensor.planes) == (codes.bits, codes.bits):
            return values.tensor
        return self._host_tensor((node, name), (values,), lambda: checked(codes, what), codes.bits)

    def _side(self, node: str, behind: PassEpilogue) -> MemoryTensor | None:
        """Codes of SIDE with the mask on top."""
        side, mask = behind.side, behind.mask
        if side is None and mask is None:
            return None
        codes: Any = side.values if side is not None else None
        above: Any = mask
        planes = (side.bits if side is not None else 0) + (mask is not None)
        for one, low in ((codes, 0), (above, planes - 1)):
            if isinstance(one, MemoryCodes) and one.tensor.planes == planes and one.low == low and (
                codes is None or above is None or getattr(codes, "tensor", None) is getattr(above, "tensor", 0)
            ):  # fmt: skip
                return one.tensor
        return self._host_tensor((node, "side"), (codes, above), lambda: _side_planes(side, mask), planes)

    def _host_tensor(self, name: Hashable, values: tuple[Any, ...], codes: Any, planes: int) -> HostTensor:
        """The tensor of arrays; the same as long as they are the same objects."""
        found = self._hosted.get(name)
        if found is None or found.planes != planes or any(
            a is not b for a, b in zip(found.values, values, strict=True)
        ):  # fmt: skip
            found = HostTensor(self.arena, self.design, name, values, codes(), planes)
            self._hosted[name] = found
        return found

    # -- templates --------------------------------------------------------------------------------------------------

    def _template(self, wanted: ProductPass, operands: dict[str, MemoryTensor]) -> Template:
        key = _key(wanted)
        shape = self._shapes.get(key)
        if shape is None:
            plan = plan_of(self.arena, self.design, wanted, parts_of(self.design, wanted))
            shape = self._shapes[key] = _Shape(plan, any(part.order.phases > 1 for part in plan.parts))
        if shape.phases and wanted.behind is not None:
            for part in shape.plan.parts:
                check_phases(wanted, self.design, part)
        areas = tuple(
            operands[need.operand].place(place) for need, place in zip(shape.plan.needs, shape.plan.places, strict=True)
        )
        template = shape.templates.get(areas)
        if template is None:
            bits = 0 if wanted.behind is None else wanted.behind.settings.out_bits
            name = wanted.node, wanted.purpose, wanted.kind, wanted.geometry, bits
            template = TemplateBuilder(self.arena, self.design, name, wanted, shape.plan, areas).build()
            shape.templates[areas] = template
        return template

    def _fill(self, wanted: ProductPass, template: Template) -> None:
        """Puts this step's weights and entries into memory, and says what its headers have."""
        if template in self._queue:
            self.flush()
        if template.weights is not None:
            assert wanted.w is not None
            self._fill_weights(template.weights, wanted.w)
        behind = wanted.behind
        if behind is None:
            return
        words = np.concatenate([behind.entries.words(), np.zeros((1, 4), np.uint64)])[template.entry_index].reshape(-1)
        assert template.entries is not None
        if not np.array_equal(cast(Any, template.entries.owner), words):  # templates may share an area
            self.arena.write(template.entries, words, "entries")
            self.meter.add("WORDS_PATCHED", words.size)
            template.entries.owner = words
        template.patch = tuple(behind.header.values())

    def _fill_weights(self, place: WeightArea, weights: CodeTensor) -> None:
        if place.values is weights.values:
            return
        check_codes(weights.values, weights.bits, weights.signed, "weights")
        self.arena.write(place.area, place.words(weights.values), "weights")
        place.values = weights.values

    # -- results ----------------------------------------------------------------------------------------------------

    def _codes(self, wanted: ProductPass, template: Template) -> PassResult:
        """Handles of the codes that a pass leaves."""
        if not template.storages or wanted.behind is None:
            return PassResult()
        form = wanted.behind.settings
        tensors = {
            name: ResultTensor(
                self.arena, self.design, (wanted.node, wanted.purpose, name), wanted.result_shape, planes, template.storages[name]
            )
            for name, planes in (("a", form.out_bits), ("keep", form.keep_bits + form.keep_mask), ("s", form.wide_bits))
            if planes
        }  # fmt: skip
        found: dict[str, Any] = {"a": MemoryCodes(tensors["a"], 0, form.out_bits, form.out_signed)}
        if form.keep_bits:
            found["k"] = MemoryCodes(tensors["keep"], 0, form.keep_bits, True)
        if form.keep_mask:
            found["mask"] = MemoryCodes(tensors["keep"], form.keep_bits, 1, False, mask=True)
        if form.wide_bits:
            found["s"] = MemoryCodes(tensors["s"], 0, form.wide_bits, form.out_signed)
        return PassResult(**cast(dict[str, Any], found))


def _widths(codes: CodeTensor | None) -> tuple[int, bool] | None:
    return None if codes is None else (codes.bits, codes.signed)


def _key(wanted: ProductPass) -> Hashable:
    """What decides a pass but for its values, and for where its operands lie."""
    operands = _widths(wanted.x), _widths(wanted.w), _widths(wanted.g)
    key = wanted.node, wanted.purpose, wanted.kind, wanted.geometry, wanted.groups, operands
    behind = wanted.behind
    if behind is None:
        return key
    beside = (
        _widths(behind.side),
        behind.mask is None,
        _widths(behind.added),
        behind.moments,
        behind.cross,
        behind.records,
    )
    s = behind.settings
    form = s.relu, s.out_bits, s.out_signed, s.keep_bits, s.keep_mask, s.wide_bits, s.stochastic
    return key, beside, form


def _as_array(codes: CodeTensor | None) -> CodeTensor | None:
    return None if codes is None else replace(codes, values=np.asarray(codes.values))


def _side_planes(side: CodeTensor | None, mask: Bools | None) -> Any:
    """Elements of SIDE from arrays."""
    found: Any = 0
    if side is not None:
        found = checked(side, "side codes").astype(np.int64) & all_planes(side.bits)
    if mask is not None:
        found = found | np.asarray(mask).astype(np.int64) << (side.bits if side is not None else 0)
    return found
