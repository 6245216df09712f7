"""Operands as tensors that LOAD packets carry, and the arrangements of rows and channels that products read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from host.arrays import I64, Array
from host.numerics import check_codes
from host.operands import Grid, Operand
from hw.contract import ROW_BANKS, TAPS
from hw.design import Design
from hw.packet import all_planes
from hw.plan.arrangement import Arrangement, Kernel
from hw.plan.steps import KernelBlock, StackWindow


@dataclass(frozen=True)
class Tensor:
    """Images on their way into a tensor buffer.

    Attributes:
        array: (N, C, H, W): codes as uint16 two's complement of ``bits`` bits.
        grid: grid of the codes.
        planes: mask of the planes that may hold ones.
    """

    array: Array
    grid: Grid
    planes: int

    def arranged(self, arrangement: Arrangement) -> Tensor:
        """The tensor after all moves of an arrangement."""
        tensor = self
        for name, arguments in arrangement.moves:
            tensor = replace(tensor, array=_MOVES[name](tensor, *arguments))
        return tensor

    def window(self, window: StackWindow, design: Design) -> Array:
        """A stack's part of the tensor as virtual images, filled up where it lies outside: (images, rows, groups, L, C)."""
        return self.cut(window, design.lanes, design.channels)

    def cut(self, window: StackWindow, lanes: int, channels: int) -> Array:
        """The same for groups of so many channels."""
        stack, (first, groups) = window.stack, window.channels
        per = window.tensor.rows_per
        rows, columns = stack.region.rows, stack.region.columns
        spans = []
        for cut, shift, times in ((rows, window.shift[0], per), (columns, window.shift[1], 1)):
            kept = (cut.own_start, cut.own_stop) if window.own_only else (cut.start, cut.stop)
            # in the virtual image, and in the tensor
            spans.append((cut.start * times, cut.stop * times, kept[0] * times, kept[1] * times, shift))
        part = self.array[stack.first : stack.first + stack.count, first : first + groups * channels]
        out = np.zeros((*part.shape[:2], window.rows, columns.size), dtype=part.dtype)
        at: list[slice] = []
        of: list[slice] = []
        for (start, _, kept_start, kept_stop, shift), size in zip(spans, part.shape[2:], strict=True):
            low, high = max(kept_start - shift, 0), min(kept_stop - shift, size)
            high = max(low, high)
            of.append(slice(low, high))
            at.append(slice(low + shift - start, high + shift - start))
        if all(each.start < each.stop for each in of):
            out[:, :, at[0], at[1]] = part[:, :, of[0], of[1]]
        return _side_by_side(out, stack.region.side, groups, (lanes, channels))


def tensor_of(operand: Operand, what: str) -> Tensor:
    """An operand's tensor as LOAD packets carry it.

    Raises:
        ValueError: codes outside the grid.
    """
    grid = operand.grid
    codes = np.asarray(operand.codes)
    check_codes(codes, grid.bits, grid.signed, f"codes of the {what}")
    masked = (codes.astype(np.int64) & all_planes(grid.bits)).astype(np.uint16)
    return Tensor(masked, grid, int(np.bitwise_or.reduce(masked, axis=None)))


# -- arrangements: what hw.plan.arrangement describes, done to arrays -----------------------------------------------


def _transposed(tensor: Tensor) -> Array:
    return tensor.array.swapaxes(0, 1)


def _phase(tensor: Tensor, y: int, x: int, stride: int) -> Array:
    return tensor.array[:, :, y::stride, x::stride]


def _merged(tensor: Tensor, phases: tuple[tuple[int, int], ...], stride: int) -> Array:
    """Phases as extra channels, phase by phase: (N, phases*C, ceil(H/stride), ceil(W/stride))."""
    n, c, h, w = tensor.array.shape
    shape = (n, len(phases), c, -(-h // stride), -(-w // stride))
    merged = np.zeros(shape, dtype=tensor.array.dtype)
    for i, (y, x) in enumerate(phases):
        part = tensor.array[:, :, y::stride, x::stride]
        merged[:, i, :, : part.shape[2], : part.shape[3]] = part
    return merged.reshape(n, len(phases) * c, *shape[3:])


def _interleaved(tensor: Tensor) -> Array:
    """Even and odd columns of each row as two rows, for STRIDE_2: (N, C, 2*H, W/2)."""
    n, c, h, w = tensor.array.shape
    return tensor.array.reshape(n, c, h, w // 2, 2).swapaxes(3, 4).reshape(n, c, 2 * h, w // 2)


def _mirrored(tensor: Tensor) -> Array:
    return tensor.array[:, :, ::-1, ::-1]


def _paired(tensor: Tensor) -> Array:
    """The two halves F and S of the channels as one, for STRIDE_2: (N, C, H, W) -> (N, ceil(C/2), 4*H, W).

    Row y becomes four virtual rows.  STRIDE_2 reads them as the even and odd columns of two input rows::

        virtual row   read as                   pixel x holds
        4y            row 2y,     even columns  S[y-1][x-1]
        4y + 1        row 2y,     odd columns   S[y][x]
        4y + 2        row 2y + 1, even columns  S[y][x]
        4y + 3        row 2y + 1, odd columns   F[y][x]

    The 3x3 window of output pixel (y, x) then holds the 2x2 windows of F and S that end with (y, x)::

                              kx = 0       kx = 1       kx = 2
        ky = 0, row 2y - 1    F[y-1][x-1]  S[y-1][x]    F[y-1][x]
        ky = 1, row 2y        S[y][x-1]    S[y-1][x-1]  S[y][x]
        ky = 2, row 2y + 1    F[y][x-1]    unused       F[y][x]

    :func:`_paired_kernel` places the weights.
    """
    n, c, h, w = tensor.array.shape
    half = -(-c // 2)
    rows = np.zeros((n, half, h, 4, w), dtype=tensor.array.dtype)
    first, second = tensor.array[:, :half], tensor.array[:, half:]
    rows[:, : c - half, 1:, 0, 1:] = second[:, :, :-1, :-1]
    rows[:, : c - half, :, 1] = rows[:, : c - half, :, 2] = second
    rows[:, :, :, 3] = first
    return rows.reshape(n, half, 4 * h, w)


def _row_of_pixels(tensor: Tensor, lanes: int) -> Array:
    """(N, C, 1, 1) as one image of rows of ``lanes`` pixels, one pixel per batch element: (1, C, rows, lanes)."""
    count, channels = tensor.array.shape[:2]
    width = min(lanes, count)
    rows = -(-count // width)
    padded = np.zeros((rows * width, channels), dtype=tensor.array.dtype)
    padded[:count] = tensor.array[:, :, 0, 0]
    return padded.reshape(rows, width, channels).transpose(2, 0, 1)[None]


def _contracted(tensor: Tensor, lanes: int) -> Array:
    """(N, K, 1, 1) with K along pixels, rows and images and N as channels: (images, N, rows, width)."""
    count, inner = tensor.array.shape[:2]
    width = min(lanes, inner)
    rows = min(ROW_BANKS, -(-inner // width))
    images = -(-inner // (rows * width))
    padded = np.zeros((count, images * rows * width), dtype=tensor.array.dtype)
    padded[:, :inner] = tensor.array[:, :, 0, 0]
    return padded.reshape(count, images, rows, width).transpose(1, 0, 2, 3)


_MOVES: dict[str, Callable[..., Array]] = {
    "transposed": _transposed,
    "phase": _phase,
    "merged": _merged,
    "interleaved": _interleaved,
    "mirrored": _mirrored,
    "paired": _paired,
    "row_of_pixels": _row_of_pixels,
    "contracted": _contracted,
}


def _side_by_side(window: Array, side: int, groups: int, size: tuple[int, int]) -> Array:
    """Images side by side: (n, c, rows, width) -> (ceil(n/side), rows, groups, L, C)."""
    (lanes, channels), (n, c, rows, width) = size, window.shape
    count = -(-n // side)
    shape = (count * side, groups * channels, rows, width)
    if shape != window.shape:
        padded = np.zeros(shape, dtype=window.dtype)
        padded[:n, :c] = window
        window = padded
    split = window.reshape(count, side, groups, channels, rows, width).transpose(0, 4, 2, 1, 5, 3)
    used = side * width
    if used == lanes:
        return split.reshape(count, rows, groups, used, channels)
    out = np.zeros((count, rows, groups, lanes, channels), dtype=window.dtype)
    out[:, :, :, :used] = split.reshape(count, rows, groups, used, channels)
    return out


# -- weights --------------------------------------------------------------------------------------------------------


def correlation_kernel(kernel: Kernel, weight: I64, channels: int) -> I64:
    """A correlation's kernel, made of a weight (O, I, kh, kw): int64 (outputs, inputs, ny, nx).

    Both counts of channels are filled up with zeros to whole groups of ``channels``.
    """
    size = (2, 2) if kernel.paired else kernel.size
    phases = len(kernel.phases)
    outputs, inputs = weight.shape[:2]
    parts = np.zeros((outputs, phases, inputs, *size), dtype=np.int64)
    for p, ((y0, ys), (x0, xs)) in enumerate(kernel.phases):
        parts[:, p, :, y0 : y0 + len(ys), x0 : x0 + len(xs)] = weight[:, :, ys][:, :, :, xs]
    made: I64 = parts.reshape(outputs, phases * inputs, *size)
    if kernel.back:
        made = parts.transpose(1, 2, 0, 3, 4).reshape(phases * inputs, outputs, *size)
    if kernel.paired:
        made = _paired_kernel(made)
    padded = np.zeros((*(-(-n // channels) * channels for n in made.shape[:2]), *made.shape[2:]), dtype=np.int64)
    padded[: made.shape[0], : made.shape[1]] = made
    return padded


def _paired_kernel(kernel: I64) -> I64:
    """A 2x2 kernel in the taps that :func:`_paired` draws: (O, C, 2, 2) -> (O, ceil(C/2), 3, 3); one tap stays zero."""
    out_channels, c = kernel.shape[:2]
    half = -(-c // 2)
    taps = np.zeros((out_channels, half, 3, 3), dtype=kernel.dtype)
    taps[:, :, ::2, ::2] = kernel[:, :half]
    taps[:, : c - half, 1, ::2] = kernel[:, half:, 1]
    taps[:, : c - half, 1, 1], taps[:, : c - half, 0, 1] = kernel[:, half:, 0, 0], kernel[:, half:, 0, 1]
    return taps


def block_codes(block: KernelBlock, kernel: I64, design: Design) -> I64:
    """Weights of a block: (outputs, inputs, ny, nx) in whole groups -> (out_groups, groups, C out, 9 taps, C in)."""
    c, (first, groups), (start, stop) = design.channels, block.inputs, block.outputs
    codes = np.zeros((stop - start, groups * c, TAPS), dtype=np.int64)
    taps, ys, xs = (list(each) for each in zip(*block.piece.taps, strict=True))
    codes[:, :, taps] = kernel[start:stop, first * c : (first + groups) * c, ys, xs]
    return codes.reshape((stop - start) // c, c, groups, c, TAPS).transpose(0, 2, 1, 4, 3)
