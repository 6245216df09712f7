"""Passes on a device with memory: tensors stay there, a pass is built once and replayed with a few words patched.

Implements :class:`host.step.passes.PassEngine`.  Codes that a pass leaves are handles (:class:`host.driver.memory_tensors.MemoryCodes`),
which other passes take as they take arrays.  A pass whose moments or sums nobody needs yet waits for the next one, and
both run as one program.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from host.devices.memory import MemoryDevice, MemoryStreams, check, record_words
from host.driver.fabric_engine import FabricEngine
from host.driver.fabric_passes import FabricPasses, check_phases, parts_of
from host.driver.memory_tensors import HostTensor, MemoryCodes, MemoryTensor, ResultTensor, checked
from host.driver.memory_views import Arena, MemoryArea
from host.driver.pass_template import PassPlan, Template, TemplateBuilder, WeightArea, plan_of
from host.epilogue import Bools
from host.numerics import check_codes
from host.step.passes import CodeTensor, PassEpilogue, PassError, PassMeter, PassResult, ProductPass
from hw.contract import FIELD, RECORD_FIELD, RECORD_WORDS, RecordFlag
from hw.packet import END, all_planes
from hw.plan.product import LoweringError, PartialSumsError
from hw.plan.records import Record

#: header fields that change from step to step
_PATCHED = ("shift", "value_shift", "out_shift", "keep_shift", "wide_shift", "key")
#: of records, word and bit at which the flag WAIT stands, at either port
_FLAGS = RECORD_FIELD["record_flags"]
_WAIT_WORD = _FLAGS.half // 2
_WAIT = np.uint64(int(RecordFlag.WAIT) << 32 * (_FLAGS.half % 2) + _FLAGS.lsb)


@dataclass(eq=False)
class _Shape:
    """A pass but for the areas of its operands; ``phases``: its result is computed in several."""

    plan: PassPlan
    phases: bool
    templates: dict[tuple[MemoryArea, ...], Template] = field(default_factory=dict)


class _Program:
    """Templates that run one after the other, and END: a copy of their records, with the words that changed."""

    def __init__(self, arena: Arena, templates: tuple[Template, ...]) -> None:
        self._arena, self.templates = arena, templates
        end = record_words([Record(END, flags=RecordFlag.LAST)]).reshape(1, RECORD_WORDS, 2)
        self._starts = np.cumsum([0, *(len(t.words) for t in templates)]).tolist()
        self.words = np.concatenate([*(t.words for t in templates), end])
        self.area = arena.area(("program", *map(id, templates)), len(self.words) * RECORD_WORDS)
        self._patches: list[tuple[int, ...] | None] = [None] * len(templates)
        self._wait()

    def _wait(self) -> None:
        """A record that reads what the program has written waits for it; those behind it need not."""
        pending: set[MemoryArea] = set()
        for start, template in zip(self._starts, self.templates, strict=False):
            for record, area in template.reads:
                if area in pending:
                    self.words[start + record, _WAIT_WORD] |= _WAIT
                    pending.clear()
            pending |= set(template.writes)

    def send(self) -> int:
        """Writes the records that changed; returns how many words did."""
        changed = 0
        for number, template in enumerate(self.templates):
            patch, before = template.patch, self._patches[number]
            if before == patch:
                continue
            start, stop = self._starts[number : number + 2]
            rows = self.words[start:stop]
            for word, mask in patched_words(template.patch):
                rows[template.convs, word // 2, word % 2] = template.words[template.convs, word // 2, word % 2] ^ mask
                changed += len(template.convs)
            stop += before is None and number == len(self.templates) - 1  # END, once
            self._arena.write(self.area, self.words[start:stop].reshape(-1), start * RECORD_WORDS)
            self._patches[number] = patch
        return changed


def patched_words(values: tuple[int, ...]) -> list[tuple[int, np.uint64]]:
    """What the values of the patched fields change in a header that has zeros there: (word, bits), its checksum too."""
    words: dict[int, int] = {}
    check_at = FIELD["check"]
    for name, value in zip(_PATCHED, values, strict=True):
        place = FIELD[name]
        bits = value << place.lsb
        words[place.half // 2] = words.get(place.half // 2, 0) ^ bits << 32 * (place.half % 2)
        words[check_at.half // 2] = words.get(check_at.half // 2, 0) ^ bits << 32 * (check_at.half % 2)
    return [(word, np.uint64(bits)) for word, bits in words.items()]


class MemoryPasses:
    """Runs passes on a device with memory, to the bit as :class:`host.driver.fabric_passes.FabricPasses` does.

    A pass that leaves codes only may wait for the next one; its saturations count with the pass behind which it runs.
    What a design computes in partial sums runs as a stream program, and the host does what stands behind them.
    ``meter`` has the device's counters, PASSES, PROGRAMS, and what the host did: WORDS_PATCHED of headers and entries,
    BYTES_WRITTEN to and BYTES_READ from the memory.

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
        self._programs: dict[tuple[Template, ...], _Program] = {}
        self._hosted: dict[Hashable, HostTensor] = {}
        self._queue: list[Template] = []
        self._context = ""
        self._saturated = 0  #: of programs that no pass has reported yet
        if engine is None:
            streams = MemoryStreams(memory, lambda beats: self.arena.area("streams", beats).offset, deadline)
            engine = FabricEngine(streams, keep_rows=False)
        self._streams = FabricPasses(engine)
        self.meter, self.schedules = PassMeter(engine.meter.totals), None

    # -- passes -----------------------------------------------------------------------------------------------------

    def run(self, wanted: ProductPass) -> PassResult:
        """Runs a pass, or lets it wait for the next one if it leaves codes only.

        Raises:
            PassError: the design or the memory cannot hold it, or its result has no epilogue.
            ProgramError, MemoryFaultError: the device refused a program, perhaps of a pass before.
        """
        operands = self._operands(wanted)
        try:
            template = self._template(wanted, operands)
        except PartialSumsError:
            return self._streamed(wanted)
        except (LoweringError, PassError) as error:
            kind = type(error) if isinstance(error, PassError) else PassError
            raise kind(f"{wanted.node}, {wanted.purpose}: {error}") from None
        self._fill(wanted, template)
        self._queue.append(template)
        self._context = f"{wanted.node}, {wanted.purpose}"
        self.arena.busy |= template.areas
        self.meter.add("PASSES", 1)
        codes = self._codes(wanted, template)
        if template.moments is None and template.gradient is None:
            return replace(codes, saturated=self._reported())
        self.flush()
        assert template.tail is not None
        words = self.arena.read(template.tail, template.tail_beats)
        return replace(
            codes,
            moments=template.moments.moments(words) if template.moments is not None else None,
            weight_gradient=template.gradient.gradient(words) if template.gradient is not None else None,
            saturated=self._reported(),
        )

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
            program = self._programs[key] = _Program(self.arena, key)
        self.meter.add("WORDS_PATCHED", program.send())
        try:
            result = check(self.memory.execute(program.area.offset, self._deadline), self._context)
        except Exception:
            for area in (area for template in key for area in template.writes):
                area.owner = None  # nobody knows what lies there
            raise
        for name, value in result.counters.items():
            self.meter.add(name, value)
        self.meter.add("PROGRAMS", 1)
        self._saturated += result.counters.get("SATURATED", 0)
        self.meter.totals["BYTES_READ"] = self.arena.touched["read"]
        self.meter.totals["BYTES_WRITTEN"] = self.arena.touched["written"]

    def _reported(self) -> int:
        found, self._saturated = self._saturated, 0
        return found

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
        if template.last_entries is None or not np.array_equal(words, template.last_entries):
            assert template.entries is not None
            self.arena.write(template.entries, words)
            self.meter.add("WORDS_PATCHED", words.size)
            template.last_entries = words
        form = behind.settings
        template.patch = (
            (form.shift, 0, 0, 0, 0, 0)
            if behind.moments
            else (
                form.shift, form.value_shift, form.out_shift, form.keep_shift if form.keep_bits else 0,
                form.wide_shift if form.wide_bits else 0, behind.key if form.stochastic else 0,
            )
        )  # fmt: skip

    def _fill_weights(self, place: WeightArea, weights: CodeTensor) -> None:
        if place.values is weights.values:
            return
        check_codes(weights.values, weights.bits, weights.signed, "weights")
        self.arena.write(place.area, place.words(weights.values))
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
