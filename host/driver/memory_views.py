"""Areas of a device's memory, and views: how codes of a tensor lie there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

from host.arrays import U64
from host.devices.memory import MemoryDevice
from host.step.passes import PassError
from hw.contract import LINE_BEATS
from hw.design import Design
from hw.plan.arrangement import Arrangement
from hw.plan.steps import StackWindow
from hw.plan.tiling import Cut, Region, Stack

Channels = tuple[int, int]  #: first, and behind the last


class MemoryPlanError(PassError):
    """A step that the memory does not hold; the message says how much it has."""


@dataclass(eq=False)
class MemoryArea:
    """A range of beats that serves one purpose.

    Attributes:
        owner: the tensor that it holds now; of entries, their words.
    """

    offset: int
    beats: int
    owner: object | None = None


class Arena:
    """Gives out areas of a device's memory.  What is asked for again keeps its place.

    Args:
        first: beat that may be given out.

    Attributes:
        used: beats given out, and those before the first.
        busy: areas that a program which has not run yet reads or writes.
        settle: runs that program; called before the host touches a busy area.
        moved: called with a tensor, a place and its area when the host has filled it.
        touched: bytes that the host has read and written, by cause.
    """

    def __init__(self, memory: MemoryDevice, first: int = 0) -> None:
        self.memory, self.first, self.used = memory, first, first
        self.busy: set[MemoryArea] = set()
        self.settle: Callable[[], None] = lambda: None
        self.moved: Callable[[Any, ViewPlace, MemoryArea], None] = lambda *_: None
        self.touched: Counter[tuple[str, str]] = Counter()
        self.moves: dict[Hashable, Any] = {}  #: where pixels go, see :mod:`host.driver.memory_tensors`
        self._areas: dict[Hashable, MemoryArea] = {}
        self._numbers: dict[Hashable, int] = {}

    def number(self, key: Hashable) -> int:
        """A number that stands for a key."""
        return self._numbers.setdefault(key, len(self._numbers))

    def area(self, key: Hashable, beats: int) -> MemoryArea:
        """The area of this name, of at least so many beats.

        Raises:
            MemoryPlanError: the memory is full.
        """
        found = self._areas.get(key)
        if found is not None and found.beats >= beats:
            return found
        size = -(-beats // LINE_BEATS) * LINE_BEATS
        if self.used + size > self.memory.beats:
            raise MemoryPlanError(
                f"the step needs more than the {self.memory.beats * 16 / 1e6:.0f} MB of the device's memory, of which "
                f"{self.used * 16 / 1e6:.0f} MB are taken when {size * 16 / 1e6:.1f} MB are asked for; choose a smaller batch"
            )
        found = self._areas[key] = MemoryArea(self.used, size)
        self.used += size
        return found

    def clear(self) -> None:
        """Takes all areas back; what lay there belongs to nobody."""
        for area in self._areas.values():
            area.owner = None
        self._areas.clear()
        self.used = self.first

    def write(self, area: MemoryArea, words: U64, cause: str, at: int = 0) -> None:
        """Writes words from beat ``at`` of an area on."""
        if area in self.busy:
            self.settle()
        self.touched["written", cause] += words.nbytes
        self.memory.write(area.offset + at, words)

    def read(self, area: MemoryArea, beats: int, cause: str) -> U64:
        """The first words of an area."""
        if area in self.busy:
            self.settle()
        self.touched["read", cause] += 16 * beats
        return self.memory.read(area.offset, beats)


# -- views ----------------------------------------------------------------------------------------------------------


def _plain(cut: Cut, own_only: bool) -> Cut:
    return cut if own_only else Cut(cut.start, cut.stop, cut.start, cut.stop)


@dataclass(frozen=True)
class View:
    """How codes of a tensor lie in memory: virtual images of a region, their rows, groups and planes.

    Attributes:
        arrangement: of the tensor, whatever operand it is.
        region: which part of every image.
        shift, own_only: as of :class:`hw.plan.steps.StackWindow`.
    """

    arrangement: Arrangement
    region: Region
    shift: tuple[int, int]
    own_only: bool = False

    @classmethod
    def of(cls, tensor: Arrangement, region: Region, shift: tuple[int, int], own_only: bool = False) -> View:
        """The same for all that lie alike."""
        halo = any((cut.own_start, cut.own_stop) != (cut.start, cut.stop) for cut in (region.rows, region.columns))
        own_only &= halo
        plain = replace(region, rows=_plain(region.rows, own_only), columns=_plain(region.columns, own_only))
        return cls(replace(tensor, operand=""), plain, shift, own_only)

    @property
    def images(self) -> int:
        """Virtual images of the whole batch."""
        return -(-self.arrangement.images // self.region.side)

    @property
    def rows(self) -> int:
        """Rows of a virtual image."""
        return self.region.rows.size * self.arrangement.rows_per

    def window(self, groups: int) -> StackWindow:
        """All of it, with so many groups of channels."""
        stack = Stack(self.region, 0, self.arrangement.images, self.images)
        return StackWindow(self.arrangement, stack, (0, groups), self.shift, self.own_only)

    def beats(self, design: Design, groups: int, planes: int) -> int:
        """Of so many groups."""
        return self.images * self.rows * groups * planes * design.row_words // 2

    @property
    def whole(self) -> bool:
        """Whether it is all of every image as it is."""
        rows, columns = self.region.rows, self.region.columns
        cuts = (rows.start, rows.stop), (columns.start, columns.stop)
        height, width = self.arrangement.hw
        plain = not self.arrangement.moves and self.shift == (0, 0) and not self.own_only
        return plain and cuts == ((0, height), (0, width))

    def exact(self, lanes: int) -> bool:
        """Whether a result leaves the codes in it that a load would put there, zeros beside and around them included."""
        region, (height, width) = self.region, self.arrangement.hw
        inside = [
            cut.start >= shift and cut.stop <= shift + size
            for cut, shift, size in zip((region.rows, region.columns), self.shift, (height, width), strict=True)
        ]
        full = region.side * region.columns.size == lanes and self.arrangement.images % region.side == 0
        return all(inside) and full and not self.own_only


def resized(view: View, channels: int) -> View:
    """The view of a tensor with other channels."""
    n, _, h, w = view.arrangement.shape
    return replace(view, arrangement=replace(view.arrangement, shape=(n, channels, h, w)))


@dataclass(frozen=True)
class ViewPlace:
    """A view of some channels of a tensor, as the tensor keeps it.

    Attributes:
        key: number of the view and its channels in an arena.
        view: of these channels, or of all of the tensor's.
        channels: that it holds.
        groups: that it has.
        first: of its groups, where the wanted channels begin.
    """

    key: int
    view: View
    channels: Channels
    groups: int
    first: int


def place_of(arena: Arena, design: Design, view: View, channels: Channels, all_channels: int) -> ViewPlace:
    """Where some channels lie: in a view of the whole tensor, if groups of channels stay as they are.

    Args:
        view: of these channels.
        all_channels: of the tensor.
    """
    c, first = design.channels, 0
    if not view.arrangement.moves and channels[0] % c == 0:
        first = channels[0] // c
        view, channels = resized(view, all_channels), (0, all_channels)
    groups = -(-view.arrangement.channels // c)
    return ViewPlace(arena.number((view, channels)), view, channels, groups, first)
