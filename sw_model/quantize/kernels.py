"""Loads the kernels of ``kernels.cpp`` and ``epilogue.cpp``, compiled by the C++ compiler at first use.

Without a compiler, or with ``FRACTRAIN_FUSED=0`` in the environment, callers take PyTorch operations instead, which
give the same codes several times slower.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from host.operands import Grid
from hw.files import cache_folder, replaced
from hw.tools.compile import CompileError, compiler

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernels.cpp", "epilogue.cpp", "wide.h"))
# No flag here may change a rounding: contraction would fuse a product with a sum.
_FLAGS = ("-O3", "-shared", "-fPIC", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
# Tried in turn: OpenMP's threads are those that PyTorch's operations use; a compiler without it gives one thread.
_THREADING: tuple[tuple[str, ...], ...] = (("-fopenmp",), ())
ROW_GRID = np.dtype(
    [("zero", "f4"), ("reciprocal", "f4"), ("scale", "f4"), ("top", "f4"), ("key", "u4"), ("first", "u4")]
)


@functools.lru_cache(maxsize=1)
def library() -> Any:
    """The compiled kernels, or None if they cannot be had (a warning says why)."""
    if os.environ.get("FRACTRAIN_FUSED") == "0":
        return None
    try:
        command = compiler()
    except CompileError as error:
        warnings.warn(f"{error}; quantizers run in PyTorch, several times slower", stacklevel=2)
        return None
    text = b"".join(source.read_bytes() for source in _SOURCES)
    tag = hashlib.sha256(text + repr((_FLAGS, _THREADING, platform.machine())).encode()).hexdigest()
    try:
        target = cache_folder() / f"fused-{tag[:16]}.so"
        if not target.exists():
            _compile(command, target)
        kernels = ctypes.CDLL(str(target))
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", "") or error
        warnings.warn(f"quantizer kernels cannot be built ({detail}): PyTorch takes over, slower", stacklevel=2)
        return None
    pointer, count, number, real, word = (
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int,
        ctypes.c_float,
        ctypes.c_uint32,
    )
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "minimum_and_range": (number, [pointer, count, number, pointer, pointer]),
        "quantize": (None, [pointer, _Layout, pointer, count, number, number, pointer, pointer]),
        "quantize_affine": (number, [pointer, _Layout, real, real, word, number, number, pointer]),
        "quantize_affine_rows": (number, [pointer, count, count, real, real, number, pointer]),
        "quantize_affine_columns": (number, [pointer, count, count, real, real, number, pointer]),
        "dequantize_codes": (None, [pointer, count, real, real, number, pointer]),
        "normalise": (
            None,
            [
                *[pointer] * 2,
                *[count] * 2,
                *[pointer] * 2,
                real,
                real,
                *[number] * 2,
                *[pointer] * 2,
                _Statistics,
                pointer,
            ],
        ),
        "normalise_gradient": (
            None,
            [*[pointer] * 3, *[count] * 2, _Statistics, number, number, *[pointer] * 4],
        ),
        "epilogue": (None, [pointer, number]),
        "option_products": (None, [pointer, pointer, count, count, count, pointer, number, pointer]),
    }
    for name, (result, arguments) in signatures.items():
        kernel = getattr(kernels, name)
        kernel.restype, kernel.argtypes = result, arguments
    return kernels


def _compile(command: Sequence[str], target: Path) -> None:
    with replaced(target) as scratch:
        for threading_flags in _THREADING:
            units = [str(source) for source in _SOURCES if source.suffix == ".cpp"]
            words = [*command, *_FLAGS, *threading_flags, "-o", str(scratch), *units]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode == 0:
                return
        done.check_returncode()


_portable = threading.local()


@contextmanager
def portable() -> Iterator[None]:
    """On the CPU what accelerators compute, in this thread: PyTorch's operations in place of the kernels, grids as tensors."""
    before, _portable.on = getattr(_portable, "on", False), True
    try:
        yield
    finally:
        _portable.on = before


def behind(device: torch.device) -> bool:
    """Whether the host is ahead of what is computed there, and should not wait for it."""
    return device.type != "cpu" or getattr(_portable, "on", False)


def serve(device: torch.device) -> bool:
    """Whether the kernels compute for tensors there."""
    return not behind(device) and library() is not None


def usable(x: Tensor) -> bool:
    """Whether the kernels can take a tensor."""
    return x.dtype == torch.float32 and serve(x.device)


class _Layout(ctypes.Structure):
    _fields_ = [("samples", ctypes.c_int64), ("channels", ctypes.c_int64), ("pixels", ctypes.c_int64)]


class _Statistics(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("mean", "inverse", "factor", "offset")]


def dense(x: Tensor) -> Tensor:
    """``x`` itself if it is contiguous in C order or with its channels last, else a copy in C order."""
    if x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def _layout(x: Tensor, rows: int = 1) -> _Layout:
    """How a dense tensor lies in memory; one in C order counts as ``rows`` rows of one channel."""
    if x.is_contiguous():
        return _Layout(rows, 1, x.numel() // rows)
    n, channels, height, width = x.shape
    return _Layout(n, channels, height * width)


def row_grids(grids: list[Grid]) -> np.ndarray:
    """Unsigned per-tensor grids as the kernels' records."""
    table = np.zeros(len(grids), ROW_GRID)
    for record, grid in zip(table, grids, strict=True):
        record["zero"], record["scale"] = grid.zero, grid.scale
        record["reciprocal"] = grid.reciprocal
        record["top"], record["key"] = grid.limits[1], grid.key or 0
    return table


_scratch = threading.local()


def scratch(name: str, like: Tensor) -> Tensor:
    """A float32 tensor of the shape and layout of a dense one, to fill and forget: memory of this thread that is used
    again under the same name.

    Fresh memory costs as much as a convolution of few channels, for the system maps it page by page.  The tensor is
    valid until the next call with the name, so it must not be saved for a backward pass or handed out of a function.
    """
    buffers: dict[str, Tensor] = _scratch.__dict__
    count = like.numel()
    if name not in buffers or buffers[name].numel() < count:
        buffers[name] = torch.empty(count)
    return buffers[name].as_strided(like.shape, like.stride())


def _output(x: Tensor, name: str | None) -> Tensor:
    return torch.empty_like(x, dtype=torch.float32) if name is None else scratch(name, x)


def minimum_and_range(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Minimum and range of a tensor, float32 scalars with subnormal numbers flushed; None if they are not finite."""
    x = dense(x.detach())
    low, span = torch.empty(()), torch.empty(())
    threads = torch.get_num_threads()
    failed = library().minimum_and_range(x.data_ptr(), x.numel(), threads, low.data_ptr(), span.data_ptr())
    return None if failed else (low, span)


def quantize_rows(
    x: Tensor, table: np.ndarray, stochastic: bool, codes: Tensor | None = None, scratch: str | None = None
) -> Tensor:
    """Values of x on given grids, in the layout of x.

    Args:
        x: float32, dense (see :func:`dense`).
        table: records of :data:`ROW_GRID`: one for all of x, or one for every sample x[n].
        stochastic: rounding.
        codes: uint8 tensor like x that receives the codes (rounding to nearest only, at most 8 bits).
        scratch: name of the scratch memory that holds the values; None takes fresh memory.
    """
    x = x.detach()
    values = _output(x, scratch)
    library().quantize(
        x.data_ptr(),
        _layout(x, len(table)),
        table.ctypes.data,
        len(table),
        stochastic,
        torch.get_num_threads(),
        values.data_ptr(),
        None if codes is None else codes.data_ptr(),
    )
    return values


def quantize_affine(x: Tensor, steps: int, floor: float, key: int | None, scratch: str | None = None) -> Tensor | None:
    """Values of a dense tensor on its own affine grid of ``steps`` steps, in the layout of x; None if it has none."""
    x = x.detach()
    values = _output(x, scratch)
    threads = torch.get_num_threads()
    failed = library().quantize_affine(
        x.data_ptr(), _layout(x), steps, floor, key or 0, key is not None, threads, values.data_ptr()
    )
    return None if failed else values


def quantize_affine_channels(x: Tensor, axis: int, steps: int, floor: float) -> Tensor | None:
    """Values of a weight (O, I, kh, kw) on one affine grid per index of axis 0 or 1, rounded to nearest, with the
    channels last; None if a channel has no grid."""
    x = x.detach().contiguous(memory_format=torch.channels_last)
    values = torch.empty_like(x)
    rows = x.shape[0] if axis == 0 else x.numel() // x.shape[1]
    kernel = library().quantize_affine_rows if axis == 0 else library().quantize_affine_columns
    failed = kernel(x.data_ptr(), rows, x.numel() // rows, steps, floor, torch.get_num_threads(), values.data_ptr())
    return None if failed else values


def dequantize_codes(codes: Tensor, grid: Grid, scratch: str | None = None) -> Tensor:
    """Values of dense uint8 codes on a per-tensor grid: float32, in the layout of the codes."""
    values = _output(codes, scratch)
    scale, zero = float(grid.scale), float(grid.zero)
    library().dequantize_codes(codes.data_ptr(), codes.numel(), scale, zero, torch.get_num_threads(), values.data_ptr())
    return values


def fused_option_products(x: Tensor, weight: Tensor, table: np.ndarray) -> Tensor:
    """``sum_i weight[n, i] * Q_k(x)[n, i]`` for every row n and grid k: float32 (N, K); both tensors in one layout."""
    sums = torch.empty(len(x), len(table))
    library().option_products(
        x.data_ptr(),
        weight.data_ptr(),
        len(x),
        x.numel() // max(len(x), 1),
        len(table),
        table.ctypes.data,
        torch.get_num_threads(),
        sums.data_ptr(),
    )
    return sums


def _rows(x: Tensor) -> tuple[int, int]:
    """Rows and channels of the matrix that a tensor (N, C, H, W) with the channels last is in memory."""
    return x.numel() // x.shape[1], x.shape[1]


def _statistics(table: Tensor) -> _Statistics:
    return _Statistics(*(row.data_ptr() for row in table))


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def normalise_batch(
    x: Tensor, norm: nn.BatchNorm2d, momentum: float, residual: Tensor | None, positive: bool
) -> tuple[Tensor, Tensor]:
    """Batch normalisation in training, then ``+ residual``, then the positive part; updates the running statistics.

    Args:
        x: float32 (N, C, H, W) with the channels last.
        norm: with weight, bias and running statistics.
        momentum: share of the batch in the new running statistics.
        residual: like x, or None.
        positive: whether to take the positive part.

    Returns:
        the result, like x, and the statistics (4, C) that :func:`normalise_gradient` wants.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    y, table = torch.empty_like(x), torch.empty(4, x.shape[1])
    library().normalise(
        x.data_ptr(),
        _address(residual),
        *_rows(x),
        norm.weight.data_ptr(),
        norm.bias.data_ptr(),
        momentum,
        norm.eps,
        positive,
        torch.get_num_threads(),
        norm.running_mean.data_ptr(),
        norm.running_var.data_ptr(),
        _statistics(table),
        y.data_ptr(),
    )
    return y, table


def normalise_gradient(
    grad: Tensor, x: Tensor, y: Tensor | None, table: Tensor, positive: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of :func:`normalise_batch` by x, weight, bias and, if ``y`` is given, by the residual.

    Args:
        grad: gradient by the result, like x.
        x, table: what :func:`normalise_batch` took and returned.
        y: the result, if a residual was added before the positive part was taken.
        positive: whether the positive part was taken.
    """
    dx, parameters = torch.empty_like(x), torch.empty(2, x.shape[1])
    kept = None if y is None else torch.empty_like(x)
    dweight, dbias = parameters
    library().normalise_gradient(
        grad.data_ptr(),
        x.data_ptr(),
        _address(y),
        *_rows(x),
        _statistics(table),
        positive,
        torch.get_num_threads(),
        _address(kept),
        dx.data_ptr(),
        dweight.data_ptr(),
        dbias.data_ptr(),
    )
    return dx, dweight, dbias, kept
