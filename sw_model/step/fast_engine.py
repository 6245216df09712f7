"""Passes with PyTorch's convolutions and a compiled epilogue: the integers of :mod:`host.step.software`, at speed.

Sums of integers are exact in floating point in any order while every partial sum stays below 2**24 (float32) or 2**53
(float64).  oneDNN's direct convolutions only add and multiply, so they may be used.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from host.arrays import F32, I64, Array, Codes
from host.epilogue import Entries, Moments
from host.step.passes import PassMeter, PassResult, ProductPass
from host.step.result_order import ResultOrder
from host.step.software import finish, natural_order, random_of
from sw_model.nn.convolution import convolve, gradients
from sw_model.quantize import kernels

_SINGLE = 1 << 24

_POINTERS = ("single", "twice", "entries", "side", "added", "mask", "a", "k", "s", "positive", "moments", "saturated")
_NUMBERS = (
    "shift", "value_shift", "relu", "cross", "out_bits", "out_shift", "out_signed", "keep_bits", "keep_shift",
    "wide_bits", "wide_shift", "stochastic", "codes", "phases", "mirrored", "together", "reached",
)  # fmt: skip


class _EpiloguePass(ctypes.Structure):
    """``EpiloguePass`` of ``epilogue.cpp``."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("images", "channels", "height", "width")),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int32) for name in _NUMBERS),
        ("key", ctypes.c_uint32),
    ]


def _tensor(values: Array, kind: torch.dtype) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(kind)


def _type_of(bound: float) -> torch.dtype:
    return torch.float32 if bound < _SINGLE else torch.float64


class FastEngine:
    """Implements :class:`host.step.passes.PassEngine` with PyTorch; its codes are float32 arrays that hold integers."""

    def __init__(self) -> None:
        self.meter, self.schedules = PassMeter(), None
        #: of the node whose passes run: what its sums were made of, and they
        self._node, self._made = "", list[tuple[Codes, Codes, bool, Tensor]]()

    def run(self, wanted: ProductPass) -> PassResult:
        """Runs a pass."""
        self.meter.add(wanted.purpose, 1)
        gradient = _weight_gradient(wanted) if wanted.kind in ("weight_gradient", "backward") else None
        if wanted.behind is None:
            return PassResult(weight_gradient=gradient)
        sums = self._sums(wanted)
        if not kernels.serve(sums.device):
            done = finish(sums.numpy().astype(np.int64), wanted.behind, random_of(wanted, natural_order(wanted)))
        else:
            done = _fused(sums, wanted, natural_order(wanted))
        return PassResult(done.a, done.k, done.s, done.mask, done.moments, gradient, done.saturated)

    def _sums(self, wanted: ProductPass) -> Tensor:
        """Exact sums; the second pass over a product finds those of the first."""
        operand, weights = wanted.operand, wanted.w
        assert weights is not None
        if self._node != wanted.node:
            self._node, self._made = wanted.node, []
        made_of = (operand.values, weights.values, wanted.kind == "forward")
        for *before, sums in self._made:
            if all(a is b for a, b in zip(before, made_of, strict=True)):
                return sums
        axes = (1, 2, 3) if wanted.kind == "forward" or wanted.groups > 1 else (0, 2, 3)
        most = np.abs(weights.values.astype(np.int64)).sum(axes).max() * operand.greatest
        m, kind = wanted.geometry, _type_of(float(most))
        x, w = _tensor(operand.values, kind), _tensor(weights.values, kind)
        if m.kernel == (1, 1) and m.stride == 1 and wanted.groups == m.in_channels == m.out_channels:
            sums = x * w.reshape(1, -1, 1, 1)
        elif wanted.kind == "forward":
            sums = convolve(x, w, m.stride, m.padding, wanted.groups)
        else:
            inputs = torch.empty(wanted.result_shape, dtype=kind)
            back, _ = gradients(inputs, w, x, m.stride, m.padding, wanted.groups, of=(True, False))
            assert back is not None
            sums = back
        self._made.append((*made_of, sums.contiguous()))
        return self._made[-1][-1]


def _norms(codes: Tensor) -> float:
    """Greatest Euclidean norm of a channel over the batch."""
    return float(codes.square().sum((0, 2, 3), dtype=torch.float64).max().sqrt())


def _weight_gradient(wanted: ProductPass) -> I64:
    """Exact sums (O, I/groups, kh, kw), in parts of the batch that are small enough for float32.

    By Cauchy and Schwarz no partial sum exceeds the product of two channels' norms.
    """
    assert wanted.x is not None and wanted.g is not None
    m, shape = wanted.geometry, (wanted.geometry.out_channels, wanted.geometry.in_channels // wanted.groups)
    x, g = _tensor(wanted.x.values, torch.float32), _tensor(wanted.g.values, torch.float32)
    total, pieces = torch.zeros(*shape, *m.kernel, dtype=torch.float64), [(x, g)]
    while pieces:
        a, b = pieces.pop()
        kind = _type_of(_norms(a) * _norms(b))
        if kind == torch.float64 and len(a) > 1:
            half = len(a) // 2
            pieces += [(a[half:], b[half:]), (a[:half], b[:half])]
            continue
        weight = torch.empty(*shape, *m.kernel, dtype=kind)
        _, part = gradients(a.to(kind), weight, b.to(kind), m.stride, m.padding, wanted.groups, of=(False, True))
        assert part is not None
        total += part
    return total.numpy().astype(np.int64)


def _entries(entries: Entries) -> I64:
    return np.ascontiguousarray(
        np.stack([entries.m, entries.o, entries.n, entries.l, entries.b, entries.c], 1), np.int64
    )


def _fused(sums: Tensor, wanted: ProductPass, order: ResultOrder) -> PassResult:
    """The epilogue of a pass in one sweep over its sums."""
    behind = wanted.behind
    assert behind is not None
    form, shape, codes = behind.settings, wanted.result_shape, not behind.moments
    channels = shape[1]
    held: dict[str, Any] = {
        "entries": _entries(behind.entries), "saturated": np.zeros(channels, np.int64),
        "single" if sums.dtype == torch.float32 else "twice": sums.numpy(),
    }  # fmt: skip
    for name, tensor in (("side", behind.side), ("added", behind.added)):
        if tensor is not None:
            held[name] = np.ascontiguousarray(tensor.values, np.float32)
    if behind.mask is not None:
        held["mask"] = np.ascontiguousarray(behind.mask).view(np.uint8)
    sections = {"a": codes, "k": codes and form.keep_bits, "s": codes and form.wide_bits}
    made: dict[str, F32] = {name: np.empty(shape, np.float32) for name, there in sections.items() if there}
    if codes and form.keep_mask:
        held["positive"] = np.empty(shape, np.uint8)
    if behind.moments or behind.records:
        held["moments"] = np.empty((channels, 4), np.int64)
    held |= made
    numbers = {name: int(getattr(form, name)) for name in _NUMBERS if hasattr(form, name)}
    numbers |= {"cross": int(behind.cross), "codes": int(codes), "key": behind.key, "phases": order.phases}
    numbers |= {"mirrored": int(order.mirrored), "together": order.channels, "reached": order.parts}
    pointers = {name: array.ctypes.data for name, array in held.items()}
    record = _EpiloguePass(*shape, **pointers, **numbers)
    kernels.library().epilogue(ctypes.byref(record), torch.get_num_threads())
    moments = Moments(*held["moments"].T) if "moments" in held else None
    mask = held["positive"].view(np.bool_) if "positive" in held else None
    saturated = int(held["saturated"].sum())
    return PassResult(made.get("a"), made.get("k"), made.get("s"), mask, moments, saturated=saturated)  # type: ignore[arg-type]
