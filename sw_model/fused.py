"""Loads the one-pass quantizer kernels of ``fused_quantizer.cpp``, compiled by the C++ compiler at first use.

Without a compiler, or with ``FRACTRAIN_FUSED=0`` in the environment, callers take PyTorch operations instead, which
give the same codes several times slower.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from host.products import Grid

_SOURCE = Path(__file__).with_name("fused_quantizer.cpp")
# No flag here may change a rounding: contraction would fuse a product with a sum.
_FLAGS = ("-O3", "-shared", "-fPIC", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
ROW_GRID = np.dtype(
    [("zero", "f4"), ("reciprocal", "f4"), ("scale", "f4"), ("top", "f4"), ("key", "u4"), ("first", "u4")]
)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fractrain"


@functools.lru_cache(maxsize=1)
def library() -> Any:
    """The compiled kernels, or None if they cannot be had (a warning says why)."""
    if os.environ.get("FRACTRAIN_FUSED") == "0":
        return None
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        warnings.warn("no C++ compiler found: quantizers run in PyTorch, several times slower", stacklevel=2)
        return None
    tag = hashlib.sha256(_SOURCE.read_bytes() + repr((_FLAGS, platform.machine())).encode()).hexdigest()[:16]
    try:
        folder = _cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"fused_quantizer-{tag}.so"
        if not target.exists():
            handle, scratch = tempfile.mkstemp(dir=folder, suffix=".so")
            os.close(handle)
            subprocess.run([compiler, *_FLAGS, "-o", scratch, str(_SOURCE)], check=True, capture_output=True, text=True)
            os.replace(scratch, target)
        kernels = ctypes.CDLL(str(target))
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", "") or error
        warnings.warn(f"quantizer kernels cannot be built ({detail}): PyTorch takes over, slower", stacklevel=2)
        return None
    pointer, count, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    kernels.quantize_nearest.argtypes = [pointer, count, count, pointer, pointer, pointer]
    kernels.quantize_stochastic.argtypes = [pointer, count, count, pointer, pointer]
    kernels.dequantize_codes.argtypes = [pointer, count, real, real, pointer]
    kernels.option_products.argtypes = [pointer, pointer, count, count, count, pointer, pointer]
    for name in ("quantize_nearest", "quantize_stochastic", "dequantize_codes", "option_products"):
        getattr(kernels, name).restype = None
    return kernels


def usable(x: Tensor) -> bool:
    """Whether the kernels can take a tensor."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and library() is not None


def row_grids(grids: list[Grid]) -> np.ndarray:
    """Unsigned per-tensor grids as the kernels' records."""
    return np.concatenate([channel_grids(grid) for grid in grids])


def channel_grids(grid: Grid) -> np.ndarray:
    """An unsigned grid as the kernels' records, one per scale."""
    table = np.zeros(grid.scale.size, ROW_GRID)
    table["zero"], table["scale"] = grid.zero, grid.scale
    table["reciprocal"] = np.float32(1) / grid.scale
    table["top"], table["key"] = grid.limits[1], grid.key or 0
    return table


_scratch = threading.local()


def scratch(name: str, shape: torch.Size) -> Tensor:
    """A float32 tensor to fill and forget: memory of this thread that is used again under the same name.

    Fresh memory costs as much as a convolution of few channels, for the system maps it page by page.  The tensor is
    valid until the next call with the name, so it must not be saved for a backward pass or handed out of a function.
    """
    buffers: dict[str, Tensor] = _scratch.__dict__
    count = math.prod(shape)
    if name not in buffers or buffers[name].numel() < count:
        buffers[name] = torch.empty(count)
    return buffers[name][:count].view(shape)


def quantize_rows(
    x: Tensor, table: np.ndarray, stochastic: bool, codes: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """Values of x on the grids of its rows.

    Args:
        x: float32, contiguous; viewed as ``len(table)`` rows of equal length.
        table: records of :data:`ROW_GRID`.
        stochastic: rounding.
        codes: uint8 tensor like x that receives the codes (rounding to nearest only, at most 8 bits).
        out: contiguous float32 tensor like x that receives the values; None makes one.
    """
    x = x.detach()
    values = torch.empty_like(x) if out is None else out
    length = x.numel() // len(table)
    if stochastic:
        library().quantize_stochastic(x.data_ptr(), len(table), length, table.ctypes.data, values.data_ptr())
    else:
        where = None if codes is None else codes.data_ptr()
        library().quantize_nearest(x.data_ptr(), len(table), length, table.ctypes.data, values.data_ptr(), where)
    return values


def dequantize_codes(codes: Tensor, grid: Grid, out: Tensor | None = None) -> Tensor:
    """Values of uint8 codes on a per-tensor grid, float32, in ``out`` if given."""
    values = torch.empty(codes.shape) if out is None else out
    library().dequantize_codes(codes.data_ptr(), codes.numel(), float(grid.scale), float(grid.zero), values.data_ptr())
    return values


def option_products(x: Tensor, weight: Tensor, table: np.ndarray) -> Tensor:
    """``sum_i weight[n, i] * Q_k(x)[n, i]`` for every row n and grid k: float32 (N, K)."""
    sums = torch.empty(len(x), len(table))
    library().option_products(
        x.data_ptr(),
        weight.data_ptr(),
        len(x),
        x.numel() // max(len(x), 1),
        len(table),
        table.ctypes.data,
        sums.data_ptr(),
    )
    return sums
