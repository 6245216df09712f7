"""Operands as tensors that LOAD packets carry, and the arrangements of rows and channels that products read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from host.driver.tiling import Cut
from host.operands import Grid, Operand
from host.program import packing
from hw.contract import ROW_BANKS
from hw.design import Design

I64 = npt.NDArray[np.int64]
Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Tensor:
    """Images on their way into a tensor buffer.

    Attributes:
        array: (N, C, H, W): codes as uint16 two's complement of ``bits`` bits, or float32 values.
        grid: grid of the codes.
        index: random index of element [0, 0, 0, 0]; only stochastic values use it.
        strides: steps of the random index along N, C, H, W.
        planes: mask of the planes that may hold ones, or None if the host does not know.
        rows_per: rows of H under one row of the output: 4 for what STRIDE_2 reads.
    """

    array: Array
    grid: Grid
    index: int = 0
    strides: tuple[int, int, int, int] = (0, 0, 0, 0)
    planes: int | None = None
    rows_per: int = 1

    @property
    def is_values(self) -> bool:
        return self.array.dtype == np.float32

    @property
    def stochastic(self) -> bool:
        return self.is_values and self.grid.key is not None

    @property
    def channels(self) -> int:
        return int(self.array.shape[1])

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width at the resolution of the output."""
        return self.array.shape[2] // self.rows_per, self.array.shape[3]

    @property
    def fill(self) -> np.float32 | np.uint16:
        """What becomes code 0."""
        return np.float32(self.grid.zero) if self.is_values else np.uint16(0)

    def phase(self, y: int, x: int, stride: int) -> Tensor:
        """Every ``stride``-th pixel, from row y and column x on."""
        n, c, h, w = self.strides
        return replace(
            self,
            array=self.array[:, :, y::stride, x::stride],
            index=self.index + y * h + x * w,
            strides=(n, c, h * stride, w * stride),
        )

    def window(self, images: slice, channels: slice, rows: Cut, columns: Cut) -> Array:
        """Part of the tensor, filled up where it lies outside: (n, c, rows, columns)."""
        part = self.array[images, channels]
        _, _, height, width = part.shape
        out = np.full((*part.shape[:2], rows.size, columns.size), self.fill, dtype=part.dtype)
        y0, y1 = max(rows.start, 0), min(rows.stop, height)
        x0, x1 = max(columns.start, 0), min(columns.stop, width)
        if y0 < y1 and x0 < x1:
            out[:, :, y0 - rows.start : y1 - rows.start, x0 - columns.start : x1 - columns.start] = part[
                :, :, y0:y1, x0:x1
            ]
        return out


def host_codes(operand: Operand) -> I64:
    """Codes of an operand, int64: its own, or its values quantized on the host exactly as on the fabric.

    Raises:
        ValueError: codes outside the grid, values that are not finite.
    """
    grid = operand.grid
    if operand.codes is not None:
        codes = np.asarray(operand.codes)
        packing.check_codes(codes, grid.bits, grid.signed)
        return codes.astype(np.int64)
    values = np.asarray(operand.values, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError("values to quantize hold NaN or infinity; check them before the product")
    indices = None if grid.key is None else np.arange(values.size, dtype=np.uint32).reshape(values.shape)
    reciprocal = np.float32(1) / np.float32(grid.scale)
    codes, _ = packing.quantize(values, np.float32(grid.zero), reciprocal, grid.bits, grid.signed, grid.key, indices)
    return codes.astype(np.int64)


def tensor_of(operand: Operand, what: str) -> Tensor:
    grid = operand.grid
    if operand.values is not None:
        values = np.ascontiguousarray(operand.values, dtype=np.float32)
        if grid.signed and float(grid.zero):
            raise ValueError(
                f"the signed grid of the {what} has zero point {float(grid.zero)}; signed grids are symmetric"
            )
        _, c, h, w = values.shape
        return Tensor(values, grid, 0, (c * h * w, h * w, w, 1))
    codes = np.asarray(operand.codes)
    packing.check_codes(codes, grid.bits, grid.signed, f"codes of the {what}")
    masked = (codes.astype(np.int64) & ((1 << grid.bits) - 1)).astype(np.uint16)
    return Tensor(masked, grid, planes=int(np.bitwise_or.reduce(masked, axis=None)))


def mask_tensor(shape: tuple[int, int, int, int]) -> Tensor:
    """1-bit ones: marks real positions."""
    return Tensor(np.ones(shape, dtype=np.uint16), Grid(1, False, np.ones((), np.float32), np.zeros((), np.float32)))


def row_of_pixels(tensor: Tensor, lanes: int) -> Tensor:
    """(N, C, 1, 1) as one image of rows of ``lanes`` pixels, one pixel per batch element: (1, C, rows, lanes)."""
    count, channels = tensor.array.shape[:2]
    width = min(lanes, count)
    rows = -(-count // width)
    padded = np.full((rows * width, channels), tensor.fill, dtype=tensor.array.dtype)
    padded[:count] = tensor.array[:, :, 0, 0]
    n, c, _, _ = tensor.strides
    return replace(
        tensor, array=padded.reshape(rows, width, channels).transpose(2, 0, 1)[None], strides=(0, c, width * n, n)
    )


def contracted(tensor: Tensor, lanes: int) -> Tensor:
    """(N, K, 1, 1) with K along pixels, rows and images and N as channels: (images, N, rows, width)."""
    count, inner = tensor.array.shape[:2]
    width = min(lanes, inner)
    rows = min(ROW_BANKS, -(-inner // width))
    images = -(-inner // (rows * width))
    padded = np.full((count, images * rows * width), tensor.fill, dtype=tensor.array.dtype)
    padded[:, :inner] = tensor.array[:, :, 0, 0]
    n, k, _, _ = tensor.strides
    return replace(
        tensor,
        array=padded.reshape(count, images, rows, width).transpose(1, 0, 2, 3),
        strides=(rows * width * k, n, width * k, k),
    )


def interleaved(tensor: Tensor) -> Tensor:
    """Even and odd columns of each row as two rows, for STRIDE_2: (N, C, 2*H, W/2)."""
    n, c, h, w = tensor.array.shape
    array = tensor.array.reshape(n, c, h, w // 2, 2).swapaxes(3, 4).reshape(n, c, 2 * h, w // 2)
    return replace(tensor, array=array, index=0, strides=(0, 0, 0, 0), rows_per=4)


def paired_groups(tensor: Tensor) -> Tensor:
    """The two halves of the channels as one, for STRIDE_2: (N, C, H, W) -> (N, ceil(C/2), 4*H, W).

    Where a stride of two looks at three rows of the input, in even and odd columns, an output pixel sees of each half
    here what lies in the 2x2 window that ends with it.  Row y becomes four:

    - 4y, even columns of the middle row: the second half's row y - 1, moved right by a pixel;
    - 4y + 1, odd columns of the middle row, of which two pixels are seen: the second half's row y;
    - 4y + 2, even columns of the row below, and of the row above output row y + 1: the second half's row y;
    - 4y + 3, odd columns of these: the first half's row y.
    """
    n, c, h, w = tensor.array.shape
    half = -(-c // 2)
    rows = np.full((n, half, h, 4, w), tensor.fill, dtype=tensor.array.dtype)
    first, second = tensor.array[:, :half], tensor.array[:, half:]
    rows[:, : c - half, 1:, 0, 1:] = second[:, :, :-1, :-1]
    rows[:, : c - half, :, 1] = rows[:, : c - half, :, 2] = second
    rows[:, :, :, 3] = first
    return replace(tensor, array=rows.reshape(n, half, 4 * h, w), index=0, strides=(0, 0, 0, 0), rows_per=4)


def paired_kernel(kernel: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A 2x2 kernel for what :func:`paired_groups` makes: (O, C, 2, 2) -> (O, ceil(C/2), 3, 3); one tap stays zero."""
    out_channels, c = kernel.shape[:2]
    half = -(-c // 2)
    taps = np.zeros((out_channels, half, 3, 3), dtype=kernel.dtype)
    taps[:, :, ::2, ::2] = kernel[:, :half]
    taps[:, : c - half, 1, ::2] = kernel[:, half:, 1]
    taps[:, : c - half, 1, 1], taps[:, : c - half, 0, 1] = kernel[:, half:, 0, 0], kernel[:, half:, 0, 1]
    return taps


def merge_phases(tensor: Tensor, phases: list[tuple[int, int]], stride: int) -> Tensor:
    """Phases as extra channels, phase by phase: (N, phases*C, ceil(H/stride), ceil(W/stride))."""
    n, c, h, w = tensor.array.shape
    shape = (n, len(phases), c, -(-h // stride), -(-w // stride))
    merged = np.full(shape, tensor.fill, dtype=tensor.array.dtype)
    for i, (y, x) in enumerate(phases):
        part = tensor.array[:, :, y::stride, x::stride]
        merged[:, i, :, : part.shape[2], : part.shape[3]] = part
    return replace(tensor, array=merged.reshape(n, len(phases) * c, *shape[3:]), index=0, strides=(0, 0, 0, 0))


def side_by_side(tensor: Tensor, window: Array, side: int, groups: int, design: Design) -> Array:
    """Images side by side: (n, c, rows, width) -> (ceil(n/side), rows, groups, L, C)."""
    n, c, rows, width = window.shape
    count = -(-n // side)
    shape = (count * side, groups * design.channels, rows, width)
    if shape != window.shape:
        padded = np.full(shape, tensor.fill, dtype=window.dtype)
        padded[:n, :c] = window
        window = padded
    split = window.reshape(count, side, groups, design.channels, rows, width).transpose(0, 4, 2, 1, 5, 3)
    used = side * width
    if used == design.lanes:
        return split.reshape(count, rows, groups, used, design.channels)
    out = np.full((count, rows, groups, design.lanes, design.channels), tensor.fill, dtype=window.dtype)
    out[:, :, :, :used] = split.reshape(count, rows, groups, used, design.channels)
    return out
