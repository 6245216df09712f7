"""What a host does to many numbers between the passes of a step, in C; the same in NumPy where there is no compiler.

``native.c`` is compiled at first use and kept by its contents.  Without a compiler, or with ``FRACTRAIN_FUSED=0`` in the
environment, NumPy gives the same bits more slowly.  Standard library and NumPy only: boards compile it as well.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from host.arrays import F32, F64, I32, I64, U64, Array, Codes
from host.program import packing
from hw.contract import (
    MEMORY_PORTS,
    MOMENT_WORDS,
    MULTIPLIER_BITS,
    OFFSET_BITS,
    RECORD_WORDS,
    VALUE_OFFSET_BITS,
)
from hw.files import cache_folder, replaced

_SOURCE = Path(__file__).with_suffix(".c")
# contraction would fuse a product with a sum and change a rounding
_FLAGS = ("-O3", "-shared", "-fPIC", "-std=c11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
#: functions for rows of so many pixels of so many bits
_ROWS = {(8, 16): "shuffle_8_16", (8, 32): "shuffle_8_32", (16, 32): "shuffle_16_32"}
#: rows from which one row's pixels may come, before each pixel is fetched by itself
_MOST_ROWS = 8
_MOST_LANES = 256  #: of a row that is pooled
#: numbers of the contract
_NUMBERS = {
    "MOMENT_WORDS": MOMENT_WORDS, "MULTIPLIER_BITS": MULTIPLIER_BITS, "OFFSET_BITS": OFFSET_BITS,
    "VALUE_OFFSET_BITS": VALUE_OFFSET_BITS, "RECORD_SIZE": RECORD_WORDS * MEMORY_PORTS,
}  # fmt: skip
ROW = 12  #: numbers of a row of :mod:`host.replay.schedule_builder`
#: of a pixel of one plane, by channels of a group
PIXELS = {8: np.uint8, 16: np.uint16, 32: np.uint32}


@functools.lru_cache(maxsize=1)
def compiled_functions() -> Any:
    """The compiled functions, or None if they cannot be had (a warning says why)."""
    if os.environ.get("FRACTRAIN_FUSED") == "0":
        return None
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        warnings.warn(
            "there is no C compiler: NumPy packs and rounds, more slowly; install gcc or set CC", stacklevel=2
        )
        return None
    try:
        found = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", "") or error
        warnings.warn(f"{_SOURCE.name} cannot be built ({detail}): NumPy takes over, more slowly", stacklevel=2)
        return None
    at, count = ctypes.c_void_p, ctypes.c_int64
    signatures: dict[str, list[Any]] = {
        "round_weights": [at, count, count, count, ctypes.c_double, *[at] * 4],
        "pack_weights_16": [at, at, at, *[count] * 4, at],
        "pack_weights_32": [at, at, at, *[count] * 4, at],
        "magnitude": [at, count],
        "round_images": [at, count, ctypes.c_double, ctypes.c_double, at],
        "descend": [at, count, *[ctypes.c_float] * 3, count],
        "compute": [at, count, at, at],
    }
    for size in (8, 16, 32):
        signatures[f"move_{size}"] = [at, at, count, count, count, at]
        for name in ("pack", "spread", "pool"):
            signatures[f"{name}_{size}"] = [at, at, count, count, count, at]
    for name in _ROWS.values():
        signatures[name] = [at, at, at, at, count, count, count, at]
    for name, arguments in signatures.items():
        function = getattr(found, name)
        function.restype, function.argtypes = None, arguments
    found.compute.restype, found.magnitude.restype = count, ctypes.c_float
    return found


def _compiled(compiler: str) -> Path:
    """The library for this machine's processor, whose own instructions it may use."""
    numbers = [f"-D{name}={value}" for name, value in _NUMBERS.items()]
    processor = platform.machine(), _instructions()
    tag = hashlib.sha256(_SOURCE.read_bytes() + repr((_FLAGS, numbers, processor)).encode()).hexdigest()
    target = cache_folder() / f"native-{tag[:16]}.so"
    if target.exists():
        return target
    for own in (["-march=native"], []):
        try:
            with replaced(target) as scratch:
                command = [compiler, *_FLAGS, *own, *numbers, "-o", str(scratch), str(_SOURCE), "-lm"]
                subprocess.run(command, capture_output=True, text=True, check=True)
            break
        except subprocess.CalledProcessError:
            if not own:
                raise
    return target


def _instructions() -> str:
    """What Linux says that the processor has; empty where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


class Rounded(NamedTuple):
    """Weights as symmetric codes.

    Attributes:
        codes: int16, shaped as the weights.
        scale: float64, one per channel; NaN or infinite where weights are.
        magnitudes, totals: sums of the codes' magnitudes, and of the codes, int64, one per channel.
    """

    codes: npt.NDArray[np.int16]
    scale: F64
    magnitudes: I64
    totals: I64


def round_weights(weights: F32, axis: int, top: int) -> Rounded:
    """To nearest even, with a scale for each channel, for which the greatest magnitude has the code ``top``.

    Args:
        weights: float32, of four axes.
        axis: of the channels.
    """
    others = tuple(i for i in range(4) if i != axis)
    channels = weights.shape[axis]
    outer, inner = int(np.prod(weights.shape[:axis])), int(np.prod(weights.shape[axis + 1 :]))
    compiled = compiled_functions()
    if compiled is not None and inner <= 1 << 16 and weights.dtype == np.float32:
        weights = np.ascontiguousarray(weights)
        codes, scale = np.empty(weights.shape, np.int16), np.empty(channels)
        sums = np.empty((2, channels), np.int64)
        compiled.round_weights(
            weights.ctypes.data, outer, channels, inner, top, scale.ctypes.data, codes.ctypes.data, sums[0].ctypes.data,
            sums[1].ctypes.data,
        )  # fmt: skip
        return Rounded(codes, scale, sums[0], sums[1])
    most = np.maximum(weights.max(others), -weights.min(others)).astype(np.float64)
    scale = np.where(most > 0, most, 1.0) / top
    if not np.isfinite(most).all():
        return Rounded(
            np.zeros(weights.shape, np.int16), np.where(np.isfinite(most), scale, np.nan), *np.zeros((2, channels), np.int64)
        )
    shape = [1] * 4
    shape[axis] = -1
    codes = np.rint(weights / scale.reshape(shape)).astype(np.int16)
    return Rounded(codes, scale, np.abs(codes).sum(others, dtype=np.int64), codes.sum(others, dtype=np.int64))


def magnitude(values: F32) -> float:
    """The greatest magnitude; NaN or infinite where some value is."""
    compiled = compiled_functions()
    if compiled is None or values.dtype != np.float32:
        return float(np.abs(values).max())
    values = np.ascontiguousarray(values)
    return float(compiled.magnitude(address(values), values.size))


def descend(table: I64, lr: float, momentum: float, decay: float, nesterov: bool) -> bool:
    """Steps of gradient descent as :func:`host.training.descent.descended` states one; False where nothing is compiled.

    Args:
        table: of every weight the addresses of the weight, its gradient, its velocity, which becomes the new one, and of
            the new weight; whether there was no velocity before; and how many numbers each has.
    """
    compiled = compiled_functions()
    if compiled is None:
        return False
    compiled.descend(address(table), len(table), lr, momentum, decay, nesterov)
    return True


def round_images(images: F32, scale: float, most: int) -> I32:
    """Codes of images, to nearest even, no greater than ``most``."""
    compiled = compiled_functions()
    if compiled is None or images.dtype != np.float32:
        return np.clip(np.rint(images.astype(np.float64) / scale), -most, most).astype(np.int32)
    images, codes = np.ascontiguousarray(images), np.empty(images.shape, np.int32)
    compiled.round_images(address(images), images.size, scale, most, address(codes))
    return codes


def index_bits(values: int) -> int:
    """Bits of an index into so many values: 16 if they do, else 32."""
    return 16 if values <= 1 << 16 else 32


def as_index(index: Array, values: int) -> Array:
    """An index into so many values, as C takes it: uint16 or int32."""
    return np.ascontiguousarray(index, np.uint16 if index_bits(values) == 16 else np.int32)


def pack_gathered(values: Codes, index: Array, bits: int, words: int) -> U64:
    """Planes of weight words: uint64 (pairs * bits * words,).

    Args:
        values: codes of ``bits`` bits.
        index: of :func:`as_index`, contiguous, (pairs, elements), of every element the number of its code, one more; 0: none.
        words: of a weight word, 64-bit.
    """
    compiled = compiled_functions()
    if compiled is not None:
        halves = np.zeros((2, values.size + 1), np.uint8)
        codes = values.reshape(-1).astype(np.int16, copy=False)
        halves[0, 1:], halves[1, 1:] = codes & 255, codes >> 8 & 255
        out = np.empty(len(index) * bits * words, np.uint64)
        pack = getattr(compiled, f"pack_weights_{8 * index.itemsize}")
        pack(address(halves), address(halves[1]), address(index), *index.shape, words, bits, address(out))
        return out
    flat = np.zeros(values.size + 1, np.uint16)
    flat[1:] = values.reshape(-1).astype(np.uint16)
    padded = np.zeros((len(index), words * 64), np.uint16)
    padded[:, : index.shape[1]] = flat.take(index)
    return packing.pack_planes(padded, bits).reshape(-1)


class PixelMoves(NamedTuple):
    """Pixels of row words that come from other row words.

    Attributes:
        pixels: int32 (tiles, L), of each pixel the place of its lowest plane among the pixels of the words, or -1: zero.
        rows: int32 (tiles, pairs, 2), where the rows begin from which a tile's pixels come; None: they are too many.
        patterns: int32 (tiles,), number of each tile's mask.
        masks: (patterns, pairs, 2, L), of two rows side by side the pixel for each place, and all ones where it counts.
    """

    pixels: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32] | None
    patterns: npt.NDArray[np.int32]
    masks: Array

    @classmethod
    def of(cls, index: npt.NDArray[np.int32], planes: int, channels: int) -> PixelMoves:
        """From the index of every pixel.

        Args:
            planes: of a tile.
            channels: of a group, bits of a pixel.
        """
        lanes, none = index.shape[1], np.iinfo(np.int32).max
        left = np.where(index < 0, none, index // (lanes * planes) * (lanes * planes))
        number = np.full(index.shape, -1)
        rows: list[Array] = []
        while (left < none).any() and len(rows) < _MOST_ROWS:
            row = left.min(1)
            here = (left == row[:, None]) & (left < none)
            number[here] = len(rows)
            left[here] = none
            rows.append(np.where(row < none, row, 0))
        if (left < none).any() or (channels, lanes) not in _ROWS:
            return cls(index, None, np.zeros(0, np.int32), np.zeros(0))
        if len(rows) % 2 or not rows:
            rows.append(np.zeros(len(index), np.int32))
        found, patterns = np.unique(np.where(number < 0, -1, number * lanes + index % lanes), axis=0, return_inverse=True)
        kind: Any = PIXELS[channels]
        pairs = np.arange(len(rows) // 2)[:, None] * 2 * lanes
        places = found[:, None] - pairs
        inside = (places >= 0) & (places < 2 * lanes) & (found[:, None] >= 0)
        masks = np.stack([np.where(inside, places, 0).astype(kind), np.where(inside, np.iinfo(kind).max, 0).astype(kind)], 2)
        table = np.stack(rows, 1).astype(np.int32).reshape(len(index), -1, 2)
        return cls(index, np.ascontiguousarray(table), patterns.reshape(-1).astype(np.int32), np.ascontiguousarray(masks))


def move_pixels(words: U64, moves: PixelMoves, planes: int, channels: int) -> U64:
    """Row words whose pixels come from other row words: uint64.

    Args:
        words: tiles of ``planes`` row words.
        moves: which pixel goes where.
        channels: of a group, bits of a pixel.
    """
    index = moves.pixels
    kind, (tiles, lanes) = PIXELS[channels], index.shape
    pixels = words.view(kind)
    compiled = compiled_functions()
    if compiled is not None:
        out = np.empty(tiles * planes * lanes, kind)
        if moves.rows is not None:
            shuffle = getattr(compiled, _ROWS[channels, lanes])
            rows, patterns, masks = (address(each) for each in (moves.rows, moves.patterns, moves.masks))
            shuffle(address(pixels), rows, patterns, masks, tiles, planes, moves.rows.shape[1], address(out))
        else:
            move = getattr(compiled, f"move_{channels}")
            move(address(pixels), address(index), tiles, planes, lanes, address(out))
        return out.view(np.uint64)
    steps = np.arange(planes)[:, None] * lanes
    found = pixels.take(np.maximum(index, 0)[:, None] + steps)
    return np.where(index[:, None] < 0, 0, found).astype(kind).reshape(-1).view(np.uint64)


def pack_codes(codes: Codes, side: int, lanes: int, bits: int, channels: int) -> U64 | None:
    """Row words of whole images, ``side`` of them side by side: uint64; None where nothing is compiled.

    Args:
        codes: (N, C, H, W) of ``bits`` bits, of which ``side`` images are no wider than the lanes.
        channels: of a group.
    """
    compiled = compiled_functions()
    if compiled is None or channels not in PIXELS:
        return None
    shape = np.array(codes.shape, np.int64)
    n, c, h, _ = codes.shape
    constant = codes.strides[2:] == (0, 0)  # in every image, as a gradient behind a mean is
    values = np.ascontiguousarray(codes[:, :, 0, 0] if constant else codes, np.int32)
    out = np.empty(-(-n // side) * h * -(-c // channels) * bits * lanes, PIXELS[channels])
    pack = getattr(compiled, f"{'spread' if constant else 'pack'}_{channels}")
    pack(values.ctypes.data, shape.ctypes.data, side, lanes, bits, out.ctypes.data)
    return out.view(np.uint64)


def pooled(
    words: U64, shape: tuple[int, int, int, int], side: int, lanes: int, bits: int, channels: int
) -> Array | None:
    """Sums of unsigned codes over the pixels of each image, int64 (N, groups * channels); None where nothing is compiled.

    Args:
        words: of whole images, as of :func:`pack_codes`.
        shape: N, groups, H, W.
        channels: of a group.
    """
    compiled = compiled_functions()
    if compiled is None or channels not in PIXELS or lanes > _MOST_LANES:
        return None
    sizes, pixels = np.array(shape, np.int64), words.view(PIXELS[channels])
    sums = np.zeros((shape[0], shape[1] * channels), np.int32)
    pool = getattr(compiled, f"pool_{channels}")
    pool(pixels.ctypes.data, sizes.ctypes.data, side, lanes, bits, sums.ctypes.data)
    return sums.astype(np.int64)


class Rows:
    """Rows of :mod:`host.replay.schedule_builder` with their numbers and pointers, which stay where they are."""

    def __init__(self, rows: I64, numbers: F64, pointers: U64) -> None:
        self._arrays = rows, numbers, pointers
        self._at, self._row = [address(each) for each in self._arrays], rows.strides[0]

    def compute(self, rows: slice) -> int | None:
        """Runs rows; the first one that fails, counted from the first, -1 if none does, None where nothing is compiled."""
        compiled = compiled_functions()
        if compiled is None:
            return None
        first, numbers, pointers = self._at
        return int(compiled.compute(first + rows.start * self._row, rows.stop - rows.start, numbers, pointers))


def address(array: Array) -> int:
    """Of an array's numbers, which lie side by side."""
    assert array.flags.c_contiguous
    return int(array.__array_interface__["data"][0])
