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

from host.arrays import F32, F64, I64, U64, Array, Codes
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
        "pack_weights": [at, at, *[count] * 4, at],
        "compute": [at, count, at, at],
    }
    for size in (8, 16, 32):
        signatures[f"move_{size}"] = [at, at, count, count, count, at]
        signatures[f"pack_{size}"] = signatures[f"pool_{size}"] = [at, at, count, count, count, at]
    for name, arguments in signatures.items():
        function = getattr(found, name)
        function.restype, function.argtypes = None, arguments
    found.compute.restype = count
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
            np.zeros(weights.shape, np.int16), np.where(most > 0, scale, np.nan), *np.zeros((2, channels), np.int64)
        )
    shape = [1] * 4
    shape[axis] = -1
    codes = np.rint(weights / scale.reshape(shape)).astype(np.int16)
    return Rounded(codes, scale, np.abs(codes).sum(others, dtype=np.int64), codes.sum(others, dtype=np.int64))


def pack_gathered(values: Codes, index: npt.NDArray[np.int32], bits: int, words: int) -> U64:
    """Planes of weight words: uint64 (pairs * bits * words,).

    Args:
        values: codes of ``bits`` bits.
        index: (pairs, elements), of every element the number of its code, one more; 0: none.
        words: of a weight word, 64-bit.
    """
    compiled = compiled_functions()
    if compiled is not None:
        codes = np.ascontiguousarray(values, np.int16)
        out = np.empty(len(index) * bits * words, np.uint64)
        compiled.pack_weights(codes.ctypes.data, index.ctypes.data, *index.shape, words, bits, out.ctypes.data)
        return out
    flat = np.zeros(values.size + 1, np.uint16)
    flat[1:] = values.reshape(-1).astype(np.uint16)
    padded = np.zeros((len(index), words * 64), np.uint16)
    padded[:, : index.shape[1]] = flat.take(index)
    return packing.pack_planes(padded, bits).reshape(-1)


def move_pixels(words: U64, index: npt.NDArray[np.int32], planes: int, channels: int) -> U64:
    """Row words whose pixels come from other row words: uint64.

    Args:
        words: tiles of ``planes`` row words.
        index: (tiles, L), of each pixel the place of its lowest plane among the pixels of ``words``, or -1: zero.
        channels: of a group, bits of a pixel.
    """
    kind, (tiles, lanes) = PIXELS[channels], index.shape
    pixels = words.view(kind)
    compiled = compiled_functions()
    if compiled is not None:
        out = np.empty(tiles * planes * lanes, kind)
        move = getattr(compiled, f"move_{channels}")
        move(pixels.ctypes.data, index.ctypes.data, tiles, planes, lanes, out.ctypes.data)
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
    values, shape = np.ascontiguousarray(codes, np.int32), np.array(codes.shape, np.int64)
    n, c, h, _ = codes.shape
    out = np.empty(-(-n // side) * h * -(-c // channels) * bits * lanes, PIXELS[channels])
    pack = getattr(compiled, f"pack_{channels}")
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
    if compiled is None or channels not in PIXELS:
        return None
    sizes, pixels = np.array(shape, np.int64), words.view(PIXELS[channels])
    sums = np.zeros((shape[0], shape[1] * channels), np.int32)
    pool = getattr(compiled, f"pool_{channels}")
    pool(pixels.ctypes.data, sizes.ctypes.data, side, lanes, bits, sums.ctypes.data)
    return sums.astype(np.int64)


def compute(rows: I64, numbers: F64, pointers: U64) -> int | None:
    """Runs rows of :mod:`host.replay.schedule_builder`; the first that fails, -1 if none does, None where nothing is compiled."""
    compiled = compiled_functions()
    if compiled is None:
        return None
    return int(compiled.compute(address(rows), len(rows), address(numbers), address(pointers)))


def address(array: Array) -> int:
    """Of an array's numbers, which lie side by side."""
    assert array.flags.c_contiguous
    return int(array.__array_interface__["data"][0])
