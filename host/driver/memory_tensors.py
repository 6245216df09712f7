"""Tensors in a device's memory: where they lie, how they lie there, and what moves them between views.

A *view* of a tensor is what LOAD packets take of it: virtual images of one region, row by row, group by group, plane by
plane.  What a CODES packet leaves is a view as well, so most products read what others wrote.  Where a product reads
another view, the host moves pixels: those of one plane and one group of channels lie side by side, in C bits.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from host import native
from host.arrays import U64, Array, Codes
from host.driver.layout import Tensor
from host.driver.memory_views import Arena, Channels, MemoryArea, View, ViewPlace
from host.numerics import check_codes
from host.operands import Grid
from host.program import packing
from host.step.passes import CodeTensor
from host.step.result_order import ResultOrder, natural
from hw.design import Design
from hw.packet import all_planes

_NO_GRID = Grid(1, False, np.ones((), np.float32), np.zeros((), np.float32))


class MemoryTensor:
    """Codes of a tensor in memory.

    Args:
        name: tells its areas from those of others.
        shape: (N, C, H, W).
        planes: bits of an element.
    """

    def __init__(
        self, arena: Arena, design: Design, name: Hashable, shape: tuple[int, int, int, int], planes: int
    ) -> None:
        self.arena, self.design, self.name, self.shape, self.planes = arena, design, name, shape, planes
        self.areas: dict[int, MemoryArea] = {}  #: by the number of a place

    def elements(self) -> Array:
        """All elements, uint16 (N, C, H, W), their planes as bits."""
        raise NotImplementedError

    def place(self, place: ViewPlace) -> MemoryArea:
        """The area of a view, which the host fills if nobody has."""
        area = self.areas.get(place.key)
        if area is None:
            beats = place.view.beats(self.design, place.groups, self.planes)
            area = self.arena.area((self.name, place.key), beats)
            self.arena.write(
                area, self.arranged(place), "pixels" if isinstance(self, ResultTensor) else "codes of the host"
            )
            self.arena.moved(self, place, area)
            area.owner = self
            self.areas[place.key] = area
        elif area.owner is not self:
            self.check(area)
        return area

    def sources(self) -> list[MemoryArea]:
        """Areas that a pass fills."""
        return []

    def own(self) -> None:
        """Says that these areas hold it."""
        for area in self.sources():
            area.owner = self

    def forget(self) -> None:
        """Drops what has been read, as its pass runs again."""

    def check(self, area: MemoryArea) -> None:
        """Refuses an area that holds something else by now."""
        if area.owner is not self:
            raise RuntimeError(
                f"codes of {self.name} are gone: a later pass has overwritten them, or their program failed; read them before"
            )

    def arranged(self, place: ViewPlace) -> U64:
        """Words of a view."""
        view, array = place.view, self.elements()[:, slice(*place.channels)]
        tensor = Tensor(array, _NO_GRID, 0).arranged(view.arrangement)
        groups = -(-view.arrangement.channels // self.design.channels)
        virtual = tensor.window(view.window(groups), self.design)
        return packing.pack_rows(virtual.astype(np.uint16, copy=False), self.planes)


class HostTensor(MemoryTensor):
    """Codes that the host has made.

    Args:
        values: whose tensor it is, as long as they are the same objects.
        codes: (N, C, H, W), of which ``planes`` bits count.
    """

    def __init__(
        self, arena: Arena, design: Design, name: Hashable, values: tuple[Any, ...], codes: Codes, planes: int
    ) -> None:
        n, c, h, w = codes.shape
        super().__init__(arena, design, name, (n, c, h, w), planes)
        self.values, self._codes = values, codes

    def elements(self) -> Array:
        """See :class:`MemoryTensor`."""
        return (self._codes.astype(np.int64) & all_planes(self.planes)).astype(np.uint16)

    def arranged(self, place: ViewPlace) -> U64:
        """See :class:`MemoryTensor`."""
        view = place.view
        if view.whole:
            codes = self._codes[:, slice(*place.channels)]
            packed = native.pack_codes(codes, view.region.side, self.design.lanes, self.planes, self.design.channels)
            if packed is not None:
                return packed
        return super().arranged(place)


def checked(codes: CodeTensor, what: str) -> Codes:
    """Codes as an array.

    Raises:
        ValueError: codes outside their bits.
    """
    values = np.asarray(codes.values)
    check_codes(values, codes.bits, codes.signed, what)
    return values


@dataclass(frozen=True)
class Storage:
    """Where a pass leaves some channels of a result.

    Attributes:
        channels: which.
        computed: channels of the result as it is computed, its phases among them.
        order: where its elements lie then.
        views: of the result as it is computed, with all its groups of channels.
        exact: those in which a load finds what it wants, by the number of their place.
    """

    channels: Channels
    computed: int
    order: ResultOrder
    views: tuple[tuple[View, MemoryArea], ...]
    exact: tuple[tuple[int, MemoryArea], ...]

    @classmethod
    def of(
        cls, arena: Arena, lanes: int, channels: Channels, computed: int, order: ResultOrder,
        views: list[tuple[View, MemoryArea]],
    ) -> Storage:  # fmt: skip
        """With the places that loads may find."""
        exact = [(arena.number((view, channels)), area) for view, area in views if view.exact(lanes)]
        return cls(channels, computed, order, tuple(views), tuple(exact))


class ResultTensor(MemoryTensor):
    """Codes that a pass leaves."""

    def __init__(
        self, arena: Arena, design: Design, name: Hashable, shape: tuple[int, int, int, int], planes: int,
        storages: tuple[Storage, ...],
    ) -> None:  # fmt: skip
        super().__init__(arena, design, name, shape, planes)
        self._storages = storages
        self._read: Array | None = None
        self._held: dict[MemoryArea, U64] = {}
        self._moves: dict[int, native.PixelMoves | None] = {}  #: by the number of a place
        for storage in storages:
            for key, area in storage.exact:
                self.areas[key] = area
        self.own()

    def sources(self) -> list[MemoryArea]:
        """See :class:`MemoryTensor`."""
        return [area for storage in self._storages for _, area in storage.views]

    def forget(self) -> None:
        """See :class:`MemoryTensor`."""
        self._read = None
        self._held.clear()

    def elements(self) -> Array:
        """See :class:`MemoryTensor`."""
        if self._read is None:
            self._read = self._natural(self._codes, self.design.channels, np.uint16)
        return self._read

    def pooled(self) -> Array | None:
        """Sums of the elements over the pixels, int64 (N, C), if they lie as whole images."""
        storage, c = self._storages[0], self.design.channels
        (view, area), n = storage.views[0], self.shape[0]
        if len(self._storages) > 1 or len(storage.views) > 1 or not view.whole:
            return None
        groups = -(-self.shape[1] // c)
        words, shape = self._words(view, area, groups), (n, groups, *self.shape[2:])
        found = native.pooled(words, shape, view.region.side, self.design.lanes, self.planes, c)
        return None if found is None else found[:, : self.shape[1]]

    def _words(self, view: View, area: MemoryArea, groups: int) -> U64:
        """Words of a view, which are read once."""
        if area not in self._held:
            self.check(area)
            self._held[area] = self.arena.read(area, view.beats(self.design, groups, self.planes), "pixels")
        return self._held[area]

    def _codes(self, view: View, area: MemoryArea, groups: int, base: int) -> Array:
        """Elements of a view (images, rows, groups, L, C)."""
        words = self._words(view, area, groups)
        return packing.unpack_rows(words, self.design, view.images, view.rows, groups, self.planes, False)

    def _natural(self, read: Callable[[View, MemoryArea, int, int], Array], c: int, kind: npt.DTypeLike) -> Array:
        """The whole tensor (N, channels of c each, H, W), of what ``read`` says of every view."""
        n, _, h, w = self.shape
        parts, base = [], 0
        for storage in self._storages:
            count = -(-(storage.channels[1] - storage.channels[0]) * c // self.design.channels)
            height, width = storage.views[0][0].arrangement.hw
            outputs = storage.order.phases**2 * count
            found = np.zeros((n, max(outputs, -(-storage.computed * c // self.design.channels)), height, width), kind)
            for view, area in storage.views:
                codes = read(view, area, -(-storage.computed // self.design.channels), base)
                base += codes.size
                _put(found, codes, view)
            shape = n, count, h, w
            parts.append(natural(found[:, :outputs], shape, storage.order))
        return np.concatenate(parts, 1) if len(parts) > 1 else parts[0]

    # -- pixels -----------------------------------------------------------------------------------------------------

    def arranged(self, place: ViewPlace) -> U64:
        """See :class:`MemoryTensor`; whole pixels are moved where groups of channels stay together."""
        if place.key not in self._moves:
            self._moves[place.key] = _moves(self, place.view, place.channels)
        moves = self._moves[place.key]
        if moves is None:
            return super().arranged(place)
        words = [
            self._words(v, area, -(-s.computed // self.design.channels)) for s in self._storages for v, area in s.views
        ]
        source = np.concatenate(words) if len(words) > 1 else words[0]
        return native.move_pixels(source, moves, self.planes, self.design.channels)

    def signature(self) -> Hashable:
        """What decides where its pixels lie."""
        views = tuple((s.channels, s.computed, s.order, *(view for view, _ in s.views)) for s in self._storages)
        return self.shape, self.planes, views

    def pixel_index(self) -> Array | None:
        """Of each pixel (N, groups, H, W) one more than its number in what :meth:`arranged` reads, if groups stay whole."""
        c = self.design.channels
        if c not in native.PIXELS or any(
            s.channels[0] % c or (s.order.phases > 1 and s.channels[1] % c) for s in self._storages
        ):
            return None

        def read(view: View, area: MemoryArea, groups: int, base: int) -> Array:
            shape = view.images, view.rows, groups, self.design.lanes, 1
            return 1 + base + np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)

        return self._natural(read, 1, np.int64)


def _put(target: Array, codes: Array, view: View) -> None:
    """Puts codes (images, rows, groups, L, c) of a view where they belong: ``target`` (N, channels, H, W)."""
    region, (cy, cx) = view.region, view.shift
    images, rows, groups, _, c = codes.shape
    side, width = region.side, region.columns.size
    split = codes[:, :, :, : side * width].reshape(images, rows, groups, side, width, c)
    pixels = split.transpose(0, 3, 2, 5, 1, 4).reshape(images * side, groups * c, rows, width)
    n, channels = len(target), min(groups * c, target.shape[1])
    spans = []
    for cut, centre, size in zip((region.rows, region.columns), (cy, cx), target.shape[2:], strict=True):
        spans.append((max(cut.own_start, centre), max(min(cut.own_stop, centre + size), max(cut.own_start, centre))))
    (y0, y1), (x0, x1) = spans
    r, k = region.rows.start, region.columns.start
    target[:, :channels, y0 - cy : y1 - cy, x0 - cx : x1 - cx] = pixels[:n, :channels, y0 - r : y1 - r, x0 - k : x1 - k]


def _moves(tensor: ResultTensor, view: View, channels: Channels) -> native.PixelMoves | None:
    """Which pixel goes where; None if groups of channels mix."""
    key = tensor.signature(), view, channels
    known = tensor.arena.moves
    if key not in known:
        known[key] = _new_moves(tensor, view, channels)
    return known[key]


def _new_moves(tensor: ResultTensor, view: View, channels: Channels) -> native.PixelMoves | None:
    c, (first, stop) = tensor.design.channels, channels
    names = {name for name, _ in view.arrangement.moves}
    whole = first % c == 0 and ((stop - first) % c == 0 or not names & {"merged", "paired"})
    if not whole or names - {"merged", "paired", "phase", "interleaved", "mirrored"}:
        return None
    if "paired" in names and (stop - first) % (2 * c):
        return None
    index = tensor.pixel_index()
    if index is None:
        return None
    groups = -(-view.arrangement.channels // c)
    arranged = Tensor(index[:, first // c : -(-stop // c)], _NO_GRID, 0).arranged(view.arrangement)
    lanes = tensor.design.lanes
    number = arranged.cut(view.window(groups), lanes, 1).reshape(-1, lanes) - 1
    at = np.where(number < 0, -1, number // lanes * lanes * tensor.planes + number % lanes).astype(np.int32)
    return native.PixelMoves.of(at, tensor.planes, c)


# -- what takes the place of arrays ---------------------------------------------------------------------------------


@dataclass(eq=False)
class MemoryCodes:
    """Takes the place of an array of codes: some planes of a tensor in memory, which is read when numbers are needed.

    Attributes:
        tensor: whose.
        low, bits, signed: lowest plane and number of planes, and how they make a code; one bit that is not signed is a mask
            if ``mask`` says so.
    """

    tensor: MemoryTensor
    low: int
    bits: int
    signed: bool
    mask: bool = False
    _array: Array | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return self.tensor.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what is read."""
        return np.dtype(bool if self.mask else np.int32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and index == slice(None):
            return self
        return self.read()[index]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        found = self.read()
        return found if dtype is None else found.astype(dtype)

    def read(self) -> Array:
        """The codes as an array: int32, or bool."""
        if self._array is None:
            planes = self.tensor.elements().astype(np.int32) >> self.low & all_planes(self.bits)
            if self.mask:
                self._array = planes.astype(bool)
            elif self.signed:
                self._array = planes << 32 - self.bits >> 32 - self.bits
            else:
                self._array = planes
        return self._array

    def forget(self) -> None:
        """Drops what has been read, as its pass runs again."""
        self._array = None
        self.tensor.forget()

    def sum(self, axes: tuple[int, ...], dtype: npt.DTypeLike | None = None) -> Array:
        """Of the codes."""
        tensor, plain = self.tensor, self.bits == self.tensor.planes and not self.signed
        if axes == (2, 3) and plain and isinstance(tensor, ResultTensor):
            sums = tensor.pooled()
            if sums is not None:
                return sums
        return np.asarray(self.read().sum(axes, dtype=dtype))
