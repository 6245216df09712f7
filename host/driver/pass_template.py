"""A pass of a training step as records in memory, built once: what changes from step to step is named, the rest stays.

Terms as in :mod:`host.driver.memory_tensors`.  Nothing here looks at values: a template follows from shapes, widths and the
areas of operands and results.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from host import native
from host.arrays import I64, U64, Array
from host.devices.memory import record_words
from host.driver.fabric_passes import PassPart, PassResults, check_format, dense_weights, diagonal
from host.driver.layout import block_codes, correlation_kernel
from host.driver.memory_tensors import Storage
from host.driver.memory_views import Arena, Channels, MemoryArea, View, ViewPlace, place_of, resized
from host.epilogue import Moments
from host.step.passes import PassError, ProductPass
from hw.contract import ENTRY_WORDS, MEMORY_PORTS, MOMENT_WORDS, RECORD_WORDS, OutputFormat
from hw.design import Design
from hw.packet import Packet
from hw.plan.lowering import lower
from hw.plan.plan import steps
from hw.plan.records import NOWHERE, Chunks, Destination, Record, section_planes, tail_beats
from hw.plan.steps import Boundary, Conv, Load, LoadEpilogue, Read, Step, Weights

SECTIONS = ("a", "keep", "s")  #: of results, in the order of a record's destinations


@dataclass(frozen=True)
class Need:
    """A view of an operand that a template loads.

    Attributes:
        operand: "x", "g", "side" or "added".
        channels: of the operand, which has ``all_channels``.
    """

    operand: str
    view: View
    channels: Channels
    all_channels: int


@dataclass(frozen=True)
class PassPlan:
    """Steps of a pass, and what they load."""

    parts: tuple[PassPart, ...]
    steps: tuple[Step, ...]
    needs: tuple[Need, ...]
    places: tuple[ViewPlace, ...]


def plan_of(arena: Arena, design: Design, wanted: ProductPass, parts: Sequence[PassPart]) -> PassPlan:
    """The plan of a pass.

    Raises:
        LoweringError, PassError: the design cannot hold it.
    """
    found = [step for step in steps(design, [part.product for part in parts]) if not isinstance(step, Boundary)]
    needs = dict.fromkeys(_need(wanted, step, parts[step.member]) for step in found if isinstance(step, Load))
    for step in found:
        if isinstance(step, Conv):
            check_format(step.packets[0])
    places = tuple(place_of(arena, design, need.view, need.channels, need.all_channels) for need in needs)
    return PassPlan(tuple(parts), tuple(found), tuple(needs), places)


def _need(wanted: ProductPass, step: Load, part: PassPart) -> Need:
    window = step.window
    operand = window.tensor.operand
    channels = {"x": part.into, "g": part.out}.get(operand, part.channels)
    m = wanted.geometry
    all_channels = {"x": m.in_channels, "g": m.out_channels}.get(operand, wanted.result_shape[1])
    view = View.of(window.tensor, window.stack.region, window.shift, window.own_only)
    return Need(operand, view, channels, all_channels)


@dataclass(eq=False)
class Template:
    """A pass as records.

    Attributes:
        words: uint64 (records, 16, 2); shifts and keys of ``convs`` are zero.
        convs: numbers of the records whose packets have an epilogue.
        reads: (record, area) of the operands, in order; ``writes``: areas of codes.
        entries, entry_index: where the entries lie, and of which channel each is, -1: of none.
        weights: where they lie, and which element each one is.
        areas: all that it reads or writes; ``own``: those of its results and entries.
        tail: of all records, one after the other; ``tail_beats``: in all.
        storages: of each section.
    """

    words: U64
    convs: Array
    reads: list[tuple[int, MemoryArea]]
    writes: list[MemoryArea]
    entries: MemoryArea | None
    entry_index: Array
    weights: WeightArea | None
    tail: MemoryArea | None
    tail_beats: int
    storages: dict[str, tuple[Storage, ...]]
    moments: MomentTail | None
    gradient: GradientTail | None
    patch: tuple[int, ...] = (0,) * 6
    areas: frozenset[MemoryArea] = frozenset()
    own: frozenset[MemoryArea] = frozenset()

    def __post_init__(self) -> None:
        self.own = frozenset([*self.writes, *(area for area in (self.entries, self.tail) if area is not None)])
        weights = [] if self.weights is None else [self.weights.area]
        self.areas = self.own.union((area for _, area in self.reads), weights)


@dataclass(eq=False)
class WeightArea:
    """Packed weights in memory.

    Attributes:
        index: of every bit of a weight word (pairs, C*K) the element of the pass' weights, one more than its number; 0: none.
        values: what lies there.
    """

    area: MemoryArea
    index: Array
    bits: int
    design: Design
    values: object = None

    @property
    def size(self) -> int:
        """Of its words."""
        return len(self.index) * self.bits * self.design.weight_words

    def words(self, values: Array) -> U64:
        """Weight words of weights (O, I/groups, kh, kw)."""
        return native.pack_gathered(values, self.index, self.bits, self.design.weight_words)


@dataclass
class MomentTail:
    """Moments among the words of a tail.

    Attributes:
        words: of the tail, the first ones, that are moments.
        order: numbers of those that count, channel by channel; ``starts``: where each channel begins.
        zeros: channels of which some phases are zero.
    """

    words: int
    order: Array
    starts: Array
    zeros: Array | None

    @classmethod
    def of(cls, channels: I64, count: int, zeros: Array | None) -> MomentTail:
        """From the channel of every one, -1 for none."""
        order = np.argsort(channels, kind="stable")[np.count_nonzero(channels < 0) :]
        starts = np.searchsorted(channels[order], np.arange(count))
        return cls(len(channels) * MOMENT_WORDS, order, starts, zeros)

    def moments(self, words: U64) -> Moments:
        """Of every channel."""
        table = words[: self.words].reshape(-1, MOMENT_WORDS)[self.order]
        total, products = (np.add.reduceat(table[:, i].view(np.int64), self.starts) for i in (0, 1))
        ends = np.ascontiguousarray(table[:, 2]).view(np.int32).reshape(-1, 2).astype(np.int64)
        least = np.minimum.reduceat(ends[:, 0], self.starts)
        greatest = np.maximum.reduceat(ends[:, 1], self.starts)
        if self.zeros is not None:
            least, greatest = np.where(self.zeros, np.minimum(least, 0), least), np.where(self.zeros, np.maximum(greatest, 0), greatest)  # fmt: skip
        return Moments(total, products, least, greatest)


@dataclass
class GradientTail:
    """Accumulators among the words of a tail.

    Attributes:
        reads: (part, step, first word) of each READ.
        index: of every weight the number of its integer among the tail's of one width, if it has one only.
        wide: integers of 64 bits.
    """

    wanted: ProductPass
    parts: tuple[PassPart, ...]
    reads: list[tuple[int, Read, slice]]
    design: Design
    index: Array | None = None
    wide: bool = False

    def __post_init__(self) -> None:
        formats = {step.packets[0].format for _, step, _ in self.reads}
        if len(formats) != 1:
            return
        self.wide = formats == {OutputFormat.INT64}
        per = 1 if self.wide else 2
        count = self._summed(lambda words: np.ones(per * (words.stop - words.start), np.int64))
        where = self._summed(lambda words: np.arange(per * words.start, per * words.stop))
        if (count == 1).all():
            self.index = where

    def _summed(self, integers: Callable[[slice], Array]) -> I64:
        """The gradient, of what a function of their words says that its integers are."""

        def read(step: Read, at: slice) -> tuple[Read, U64]:
            wide = replace(step, packets=(replace(step.packets[0], format=OutputFormat.INT64),))
            return wide, integers(at).astype(np.int64).view(np.uint64)

        return self._added(read)

    def _added(self, read: Callable[[Read, slice], tuple[Read, U64]]) -> I64:
        """The gradient, added up read by read."""
        found = [PassResults(lower(self.design, part.product)) for part in self.parts]
        for part, step, at in self.reads:
            found[part].add(self.design, *read(step, at))
        return np.concatenate([diagonal(self.wanted, each.lowered, each) for each in found])

    def gradient(self, words: U64) -> I64:
        """Exact sums (O, I/groups, kh, kw)."""
        if self.index is None:
            return self._added(lambda step, at: (step, words[at]))
        return np.asarray(words.view(np.int64 if self.wide else np.int32).take(self.index), np.int64)


class TemplateBuilder:
    """Builds the template of a pass.

    Args:
        name: of the pass, for its areas.
        areas: of each of the plan's places.
    """

    def __init__(
        self, arena: Arena, design: Design, name: Hashable, wanted: ProductPass, plan: PassPlan,
        areas: Sequence[MemoryArea],
    ) -> None:  # fmt: skip
        self.arena, self.design, self.name, self.wanted, self.plan = arena, design, name, wanted, plan
        self._places = dict(zip(plan.needs, zip(areas, plan.places, strict=True), strict=True))
        self._row = design.row_words // 2
        self._c = design.channels
        self._records: list[Record] = []
        self._convs: list[int] = []
        self._reads: list[tuple[int, MemoryArea]] = []
        self._entry_index: list[Array] = []
        self._moments: list[tuple[int, Conv, int]] = []  #: member, step and beats of what leaves behind tiles
        self._sums: list[tuple[int, Read, int]] = []  #: the same of accumulators
        self._storages = self._results() if wanted.behind is not None and not wanted.behind.moments else {}

    def build(self) -> Template:
        """The template."""
        weights = self._weight_area()
        convs = [s for s in self.plan.steps if isinstance(s, LoadEpilogue)]
        count = sum(block.outputs[1] - block.outputs[0] for step in convs for block in step.blocks)
        entries = self.arena.area((self.name, "entries"), count * ENTRY_WORDS // 2) if count else None
        of_moments, of_sums = (
            sum(tail_beats(self.design, step.packets[0]) for step in self.plan.steps if isinstance(step, kind))
            for kind in (Conv, Read)
        )
        tails = of_moments + of_sums  # all moments come first
        tail = self.arena.area((self.name, "tail"), tails) if tails else None
        self._at = {"weights": weights.area.offset if weights else 0, "entries": entries.offset if entries else 0}
        self._at["moments"] = tail.offset if tail else 0
        self._at["sums"] = self._at["moments"] + of_moments
        for step in self.plan.steps:
            record = self._record(step)
            error, reason = record.packet.check(self.design)
            reason = reason or record.check(self.design, self.arena.memory.beats)
            if reason:
                raise PassError(f"record {len(self._records)}, {type(step).__name__}: {reason} [{error.name}]")
            self._records.append(record)
        return Template(
            record_words(self._records).reshape(-1, RECORD_WORDS, MEMORY_PORTS), np.array(self._convs, np.int64), self._reads,
            list({id(area): area for made in self._storages.values() for one in made for _, area in one.views}.values()),
            entries, np.concatenate(self._entry_index) if self._entry_index else np.zeros(0, np.int64), weights, tail,
            tails, self._storages, self._moment_tail(), self._gradient_tail(),
        )  # fmt: skip

    # -- records ----------------------------------------------------------------------------------------------------

    def _record(self, step: Step) -> Record:
        (packet,) = step.packets
        if isinstance(step, Load):
            return self._load(step, packet)
        if isinstance(step, Weights | LoadEpilogue):
            what = "weights" if isinstance(step, Weights) else "entries"
            beats = packet.payload_words // 2
            self._at[what] += beats
            if isinstance(step, LoadEpilogue):
                self._entries(step)
            return Record(packet, Chunks(self._at[what] - beats, beats, 0, 1))
        if isinstance(step, Conv):
            return self._conv(step, packet)
        if isinstance(step, Read):
            return replace(Record(packet), tail=self._take_tail(step, packet))
        return Record(packet)

    def _load(self, step: Load, packet: Packet) -> Record:
        """A stack's part of an operand; all its groups lie together, or some of every row."""
        need = _need(self.wanted, step, self.plan.parts[step.member])
        area, place = self._places[need]
        groups = place.groups
        window, tile = step.window, packet.a_bits * self._row
        start = window.channels[0] // self._c + place.first
        rows = window.stack.first // need.view.region.side * need.view.rows
        offset = area.offset + (rows * groups + start) * tile
        self._reads.append((len(self._records), area))
        count = packet.images * packet.rows
        if packet.groups == groups:
            return Record(packet, Chunks(offset, count * groups * tile, 0, 1))
        if count >= 1 << 16:
            raise PassError(f"{count} rows of a stack are more than a record names; choose a design with less depth_a")
        return Record(packet, Chunks(offset, packet.groups * tile, groups * tile, count))

    def _conv(self, step: Conv, packet: Packet) -> Record:
        part = self.plan.parts[step.member]
        self._convs.append(len(self._records))
        if self._stochastic:
            packet = replace(packet, index=(packet.index + part.first) % (1 << 32))
        record = Record(packet, tail=self._take_tail(step, packet))
        if not packet.section_planes:
            return record
        view = View.of(step.task.result, step.stack.region, step.block.piece.centre, True)
        made = []
        for name, planes in zip(SECTIONS, section_planes(packet), strict=True):
            made.append(self._destination(name, planes, view, step) if planes else NOWHERE)
        rows = packet.images * packet.rows
        return replace(record, destinations=(made[0], made[1], made[2]), rows=rows, row_tiles=packet.out_groups)

    @property
    def _stochastic(self) -> bool:
        behind = self.wanted.behind
        return behind is not None and behind.settings.stochastic and not behind.moments

    def _destination(self, name: str, planes: int, view: View, step: Conv) -> Destination:
        storage, first = self._storage_of(name, self.plan.parts[step.member])
        area = dict(storage.views)[resized(view, storage.views[0][0].arrangement.channels)]
        groups, tile = -(-storage.computed // self._c), planes * self._row
        row = step.stack.first // view.region.side * view.rows
        offset = area.offset + (row * groups + first + step.block.outputs[0] // self._c) * tile
        return Destination(offset, tile, groups * tile)

    def _take_tail(self, step: Conv | Read, packet: Packet) -> tuple[int, int]:
        beats = tail_beats(self.design, packet)
        if not beats:
            return 0, 0
        what = "moments" if isinstance(step, Conv) else "sums"
        if isinstance(step, Conv):
            self._moments.append((step.member, step, beats))
        else:
            self._sums.append((step.member, step, beats))
        self._at[what] += beats
        return self._at[what] - beats, beats

    # -- results ----------------------------------------------------------------------------------------------------

    def _shared(self) -> bool:
        """Whether the parts of a result lie in one tensor: computed as it is, in whole groups."""
        return all(part.order.phases == 1 and not part.order.mirrored for part in self.plan.parts) and all(
            part.channels[0] % self._c == 0 for part in self.plan.parts
        )

    def _storage_of(self, name: str, part: PassPart) -> tuple[Storage, int]:
        """Where a part's section goes, and its first group there."""
        storages = self._storages[name]
        if len(storages) == 1 and self._shared():
            return storages[0], part.channels[0] // self._c
        return next(s for s in storages if s.channels == part.channels), 0

    def _results(self) -> dict[str, tuple[Storage, ...]]:
        """Areas for all sections."""
        behind = self.wanted.behind
        assert behind is not None
        form = behind.settings
        planes = {"a": form.out_bits, "keep": form.keep_bits + form.keep_mask, "s": form.wide_bits}
        return {name: tuple(self._section(name, n)) for name, n in planes.items() if n}

    def _section(self, name: str, planes: int) -> Iterator[Storage]:
        shared, channels = self._shared(), self.wanted.result_shape[1]
        for number, part in enumerate(self.plan.parts[:1] if shared else self.plan.parts):
            convs = [s for s in self.plan.steps if isinstance(s, Conv) and (shared or s.member == number)]
            computed = channels if shared else convs[0].task.kernel.outputs
            views = dict.fromkeys(
                resized(View.of(s.task.result, s.stack.region, s.block.piece.centre, True), computed) for s in convs
            )
            made = []
            for place, view in enumerate(views):
                beats = view.beats(self.design, -(-computed // self._c), planes)
                made.append((view, self.arena.area((self.name, name, number, place), beats)))
            mine = (0, channels) if shared else part.channels
            yield Storage.of(self.arena, self.design.lanes, mine, computed, part.order, made)

    # -- entries and weights ------------------------------------------------------------------------------------------

    def _entries(self, step: LoadEpilogue) -> None:
        """Phases of a pixel have the entries of the pixel's channel."""
        part = self.plan.parts[step.member]
        first, stop = part.channels
        for block in step.blocks:
            channels = np.arange(*block.outputs)
            index = first + channels % (stop - first)
            index[channels >= block.kernel.outputs] = -1
            self._entry_index.append(index)

    def _weight_area(self) -> WeightArea | None:
        loads = [step for step in self.plan.steps if isinstance(step, Weights)]
        if not loads:
            return None
        weight = self.wanted.w
        assert weight is not None
        contents = tuple(step.block.content(step.member) for step in loads)
        key = self.wanted.node, "weights", weight.bits, self.wanted.groups, weight.values.shape, contents
        beats = sum(step.packets[0].payload_words for step in loads) // 2
        area = self.arena.area(key, beats)
        if not isinstance(area.owner, WeightArea):
            area.owner = WeightArea(area, self._weight_index(loads, weight.values), weight.bits, self.design)
        return area.owner

    def _weight_index(self, loads: Sequence[Weights], values: Array) -> Array:
        """Of every bit of all weight words the element, by packing their numbers as weights."""
        numbers = np.arange(1, values.size + 1).reshape(values.shape)
        kernels: dict[object, I64] = {}
        codes = []
        for step in loads:
            key = step.member, step.block.kernel
            if key not in kernels:
                dense = dense_weights(numbers, self.plan.parts[step.member])
                kernels[key] = correlation_kernel(step.block.kernel, dense, self._c)
            made = block_codes(step.block, kernels[key], self.design)
            codes.append(made.reshape(made.shape[0] * made.shape[1], -1))
        return native.as_index(np.concatenate(codes), values.size + 1)

    # -- tails --------------------------------------------------------------------------------------------------------

    def _moment_tail(self) -> MomentTail | None:
        behind = self.wanted.behind
        if behind is None or not (behind.moments or behind.records):
            return None
        channels, zeros = [], np.zeros(self.wanted.result_shape[1], bool)
        for member, step, beats in self._moments:
            part = self.plan.parts[member]
            first, stop = part.channels
            computed = step.block.outputs[0] + np.arange(2 * beats // MOMENT_WORDS)
            outputs = step.task.kernel.outputs
            found = first + computed % (stop - first)
            found[computed >= outputs] = -1
            channels.append(found)
            zeros[first:stop] = outputs < part.order.phases**2 * (stop - first)
        return MomentTail.of(np.concatenate(channels), len(zeros), zeros if zeros.any() else None)

    def _gradient_tail(self) -> GradientTail | None:
        at, reads = 2 * sum(beats for _, _, beats in self._moments), []
        for member, step, beats in self._sums:
            reads.append((member, step, slice(at, at + 2 * beats)))
            at += 2 * beats
        return GradientTail(self.wanted, self.plan.parts, reads, self.design) if reads else None
