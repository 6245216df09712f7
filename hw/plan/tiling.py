"""How a convolution is cut for the array: kernels into pieces, strides into phases, images into regions and stacks.

Index arithmetic only; what lies in the tensors does not matter here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hw import contract

_OVERLAP = 4  #: stacks that a batch is cut into, if it is large enough, beside the small ones that come first


@dataclass(frozen=True)
class Cut:
    """A range of rows or columns: ``start..stop`` is loaded, results of ``own_start..own_stop`` are kept."""

    start: int
    stop: int
    own_start: int
    own_stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def cuts(low: int, high: int, limit: int) -> list[Cut]:
    """Cut ``low..high`` into ranges of at most ``limit`` that overlap by a halo of one on either side of a cut."""
    if high - low <= limit:
        return [Cut(low, high, low, high)]
    if limit < 3:
        raise ValueError(f"cannot cut {high - low} rows or columns into {limit}, which leaves no room between halos")
    out = []
    own = low
    while own < high:
        start = own if own == low else own - 1
        stop = min(start + limit, high)
        own_stop = high if stop == high else stop - 1
        out.append(Cut(start, stop, own, own_stop))
        own = own_stop
    return out


@dataclass(frozen=True)
class Region:
    """A rectangle that is cut out of every image; ``side`` images lie side by side in a virtual row."""

    rows: Cut
    columns: Cut
    side: int
    segment_start: int


def regions_of(rows: tuple[int, int], columns: tuple[int, int], max_rows: int, lanes: int) -> list[Region]:
    out = []
    for r, c in itertools.product(cuts(*rows, max_rows), cuts(*columns, lanes)):
        side = lanes // c.size
        starts = sum(1 << (k * c.size) for k in range(side))
        if side * c.size < lanes:
            starts |= 1 << (side * c.size)  # unused lanes are a segment of their own: nobody's neighbours
        out.append(Region(r, c, side, starts))
    return out


def _pieces(first: int, count: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """Cut offsets ``first .. first+count-1`` into pieces: (centre, [(tap 0..2, index of the offset)])."""
    out = []
    for start in range(0, count, 3):
        offsets = range(first + start, first + min(start + 3, count))
        # a piece of one or two offsets may choose its centre: the nearer to zero, the smaller the halo
        centre = min(range(offsets[-1] - 1, offsets[0] + 2), key=abs)
        out.append((centre, [(o - centre + 1, o - first) for o in offsets]))
    return out


@dataclass(frozen=True)
class Piece:
    """Up to 3x3 offsets of a kernel.

    Attributes:
        centre: row and column offset of the middle tap.
        taps: (tap 0..8, row index, column index of the kernel).
    """

    centre: tuple[int, int]
    taps: tuple[tuple[int, int, int], ...]


def kernel_pieces(origin: tuple[int, int], size: tuple[int, int]) -> list[Piece]:
    out = []
    for (cy, ys), (cx, xs) in itertools.product(_pieces(origin[0], size[0]), _pieces(origin[1], size[1])):
        out.append(Piece((cy, cx), tuple((3 * ty + tx, iy, ix) for ty, iy in ys for tx, ix in xs)))
    return out


def extent(real: int, out: int, centres: list[int], first: int, count: int) -> tuple[int, int]:
    """Rows (or columns) that a virtual image needs: those computed, and those real ones that are looked at."""
    low = min(min(centres), max(0, min(first, real)))
    high = max(max(centres) + out, min(real, out + first + count - 1))
    return low, high


def axis_phases(kernel: int, stride: int, padding: int) -> list[tuple[int, int, list[int]]]:
    """Forward: input phases with (phase, first offset, kernel indices by rising offset)."""
    out = []
    for phase in range(stride):
        indices = [k for k in range(kernel) if (k - padding) % stride == phase]
        if indices:
            out.append((phase, (indices[0] - padding - phase) // stride, indices))
    return out


def axis_phases_back(kernel: int, stride: int, padding: int) -> list[tuple[int, int, list[int]]]:
    """Input gradient: phases of the result with (phase, first offset, kernel indices by rising offset)."""
    out = []
    for phase in range(stride):
        indices = [k for k in range(kernel - 1, -1, -1) if (phase + padding - k) % stride == 0]
        if indices:
            out.append((phase, (phase + padding - indices[0]) // stride, indices))
    return out


@dataclass(frozen=True)
class Stack:
    """Virtual images of one region that lie in a buffer together: batch elements ``first .. first+count-1``."""

    region: Region
    first: int
    count: int
    images: int


def stacks_of(batch: int, regions: list[Region], fit: Callable[[int], int], least: int = 1) -> list[Stack]:
    """Cut the batch into stacks.

    Args:
        fit: how many virtual images of so many rows may lie together.
        least: virtual images that are worth a packet.  Beyond that, several stacks are made even of a small batch,
            so that the fabric can load one while it computes on another.  Nothing hides the first load, so stacks begin
            small and double.
    """
    out = []
    for region in regions:
        wanted = -(-batch // (region.side * _OVERLAP))
        most = max(1, min(contract.LIMITS["images"], fit(region.rows.size), max(wanted, least)))
        first, images = 0, min(most, least)
        while first < batch:
            count = min(images * region.side, batch - first)
            out.append(Stack(region, first, count, -(-count // region.side)))
            first, images = first + count, min(most, 2 * images)
    return out


def split_range(total: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, step):
        yield start, min(step, total - start)
