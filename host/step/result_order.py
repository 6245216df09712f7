"""Where the elements of a result lie while it is computed: random numbers belong to these places."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from host.arrays import U32, Array
from host.epilogue import random_rows

ResultShape = tuple[int, int, int, int]


class ResultOrder(NamedTuple):
    """Where an element of a result lies while it is computed, which decides its random number.

    The result of a strided product, perhaps seen from its far corner, is computed as ``phases * phases`` parts side by side
    in the channels, part ``(y mod phases, x mod phases)``.

    Attributes:
        phases: 1, or the stride.
        mirrored: rows and columns count from the far end, before they are taken apart.
        channels: groups of so many channels are computed one after the other, each with indices of its own that go on
            where the last one's ended; 0: all together.
        reached: parts that are computed, the first ones; 0: all.  What a strided kernel does not reach is zero.
    """

    phases: int = 1
    mirrored: bool = False
    channels: int = 0
    reached: int = 0

    @property
    def parts(self) -> int:
        """Number of parts that are computed."""
        return self.reached or self.phases**2


def computed(natural: Array, order: ResultOrder) -> Array:
    """A result (N, C, H, W) as it is computed: (N, phases**2 * C, ceil(H/phases), ceil(W/phases)), zeros where nothing is."""
    n, c, h, w = natural.shape
    s = order.phases
    rows, columns = -(-h // s), -(-w // s)
    padded = np.zeros((n, c, rows * s, columns * s), natural.dtype)
    padded[:, :, :h, :w] = natural[:, :, ::-1, ::-1] if order.mirrored else natural
    return padded.reshape(n, c, rows, s, columns, s).transpose(0, 3, 5, 1, 2, 4).reshape(n, s * s * c, rows, columns)


def natural(parts: Array, shape: ResultShape, order: ResultOrder) -> Array:
    """The inverse of :func:`computed`, for a result of this shape."""
    n, c, h, w = shape
    s = order.phases
    rows, columns = parts.shape[2:]
    whole = parts.reshape(n, s, s, c, rows, columns).transpose(0, 3, 4, 1, 5, 2)
    whole = whole.reshape(n, c, rows * s, columns * s)[:, :, :h, :w]
    return whole[:, :, ::-1, ::-1] if order.mirrored else whole


def random_numbers(shape: ResultShape, key: int, order: ResultOrder) -> U32:
    """Random numbers of a result (N, C, H, W).

    Row (n, c, y) of what is computed has the index ``(n*C + c)*H + y``, behind the indices of the channels before, where
    these are computed apart; see :func:`host.epilogue.random_rows`.  What is not computed has zeros.
    """
    n, c, h, w = shape
    s, step = order.phases, order.channels or c
    rows, columns = -(-h // s), -(-w // s)
    out, first = np.empty(shape, np.uint32), 0
    for start in range(0, c, step):
        count = min(step, c - start)
        parts = n, order.parts * count, rows
        size = n * order.parts * count * rows
        indices = np.arange(first, first + size, dtype=np.uint64).astype(np.uint32)
        drawn = np.zeros((n, s * s * count, rows, columns), np.uint32)
        drawn[:, : order.parts * count] = random_rows(indices.reshape(parts), key, columns)
        out[:, start : start + count] = natural(drawn, (n, count, h, w), order)
        first += size
    return out
