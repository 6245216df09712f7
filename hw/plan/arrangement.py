"""How a tensor is arranged before it is cut, and how a correlation's kernel is made of weights: shapes, no data.

``host/driver/layout.py`` does to arrays what is described here.  A tensor has shape (N, C, H, W).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hw.contract import ROW_BANKS
from hw.plan.tiling import Piece

TensorShape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Arrangement:
    """An operand's tensor as LOAD packets carry it.

    Attributes:
        operand: "x", "g" or "w".
        shape: (N, C, H, W) when all moves are done.
        moves: names and arguments of what is done to the operand's array, in order.
        rows_per: rows of H under one row of the output: 4 for what STRIDE_2 reads.
    """

    operand: str
    shape: TensorShape
    moves: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    rows_per: int = 1

    @classmethod
    def whole(cls, operand: str, shape: TensorShape) -> Arrangement:
        """The operand as it is."""
        return cls(operand, shape)

    @property
    def images(self) -> int:
        """N."""
        return self.shape[0]

    @property
    def channels(self) -> int:
        """C."""
        return self.shape[1]

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width at the resolution of the output."""
        return self.shape[2] // self.rows_per, self.shape[3]

    def _moved(self, name: str, arguments: tuple[Any, ...], shape: TensorShape, **more: Any) -> Arrangement:
        return replace(self, moves=(*self.moves, (name, arguments)), shape=shape, **more)

    def transposed(self) -> Arrangement:
        """Axes N and C exchanged."""
        n, c, h, w = self.shape
        return self._moved("transposed", (), (c, n, h, w))

    def phase(self, y: int, x: int, stride: int) -> Arrangement:
        """Every ``stride``-th pixel, from row y and column x on."""
        n, c, h, w = self.shape
        shape = n, c, max(0, -(-(h - y) // stride)), max(0, -(-(w - x) // stride))
        return self._moved("phase", (y, x, stride), shape)

    def merged(self, phases: tuple[tuple[int, int], ...], stride: int) -> Arrangement:
        """Phases (row, column) as extra channels, phase by phase."""
        n, c, h, w = self.shape
        shape = n, len(phases) * c, -(-h // stride), -(-w // stride)
        return self._moved("merged", (phases, stride), shape)

    def interleaved(self) -> Arrangement:
        """Even and odd columns of each row as two rows, for STRIDE_2."""
        n, c, h, w = self.shape
        return self._moved("interleaved", (), (n, c, 2 * h, w // 2), rows_per=4)

    def mirrored(self) -> Arrangement:
        """Both image axes from the far end."""
        return self._moved("mirrored", (), self.shape)

    def paired(self) -> Arrangement:
        """The two halves of the channels as one, for STRIDE_2."""
        n, c, h, w = self.shape
        return self._moved("paired", (), (n, -(-c // 2), 4 * h, w), rows_per=4)

    def row_of_pixels(self, lanes: int) -> Arrangement:
        """(N, C, 1, 1) as one image of rows of ``lanes`` pixels, one pixel for each batch element."""
        count, channels = self.shape[:2]
        width = min(lanes, count)
        shape = 1, channels, -(-count // width), width
        return self._moved("row_of_pixels", (lanes,), shape)

    def contracted(self, lanes: int) -> Arrangement:
        """(N, K, 1, 1) with K along pixels, rows and images and N as channels."""
        count, inner = self.shape[:2]
        width = min(lanes, inner)
        rows = min(ROW_BANKS, -(-inner // width))
        shape = -(-inner // (rows * width)), count, rows, width
        return self._moved("contracted", (lanes,), shape)


#: along one axis: where a phase's part of the kernel begins, and the indices of the weight that lie there
Along = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class Kernel:
    """A correlation's kernel (outputs, inputs, ny, nx), made of a weight (O, I, kh, kw) phase by phase.

    Attributes:
        channels: O and I.
        back: of an input gradient: contracts over O, and phases are extra output channels; else they are extra inputs.
        phases: rows and columns of each.
        size: ny and nx.
        paired: for a tensor that is mirrored, its channel groups in pairs.
    """

    channels: tuple[int, int]
    back: bool
    phases: tuple[tuple[Along, Along], ...]
    size: tuple[int, int]
    paired: bool = False

    @property
    def outputs(self) -> int:
        """Output channels."""
        return len(self.phases) * self.channels[1] if self.back else self.channels[0]

    @property
    def inputs(self) -> int:
        """Channels of the tensor."""
        if not self.back:
            return len(self.phases) * self.channels[1]
        return -(-self.channels[0] // 2) if self.paired else self.channels[0]

    @property
    def full(self) -> bool:
        """Whether one sum takes in every element, as the fabric's own sums of nine taps do."""
        return (
            (not self.back or len(self.phases) == 1)  # one sum for each phase that is an output
            and self.size == (3, 3)
            and all((len(y), len(x)) == self.size for (_, y), (_, x) in self.phases)
        )

    def kept_groups(self, piece: Piece, channels: int) -> list[bool]:
        """Of each group of output channels, whether it has a weight in a piece of the kernel."""
        groups = -(-self.outputs // channels)
        if self.paired or not self.back:
            return [True] * groups
        kept = [False] * groups
        for p, ((y0, ys), (x0, xs)) in enumerate(self.phases):
            if any(0 <= y - y0 < len(ys) and 0 <= x - x0 < len(xs) for _, y, x in piece.taps):
                first, last = p * self.channels[1], (p + 1) * self.channels[1] - 1
                for group in range(first // channels, last // channels + 1):
                    kept[group] = True
        return kept
