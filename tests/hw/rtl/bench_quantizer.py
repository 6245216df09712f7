"""cocotb bench of one quantizer lane against NumPy, step by step as docs/programs.md words it."""

from __future__ import annotations

import os
from typing import Any

import cocotb
import numpy as np
import numpy.typing as npt
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge

from host.arrays import F32, U32
from host.numerics import quantize

VECTORS = int(os.environ.get("BENCH_VECTORS", "400"))  #: values for each set of constants
CYCLES = 10

EXTREMES = np.array(
    [0, -0.0, 1e-45, -1e-45, 1.1754942e-38, 1.17549435e-38, -1.17549435e-38, 3.4028235e38, -3.4028235e38, 0.5, -0.5,
     1.5, 2.5, -1.5, -2.5, 0.49999997, -0.49999997, 255.5, 65535.0, 65535.5, 65536.0, 131071.5, 262143.5, 262144.0,
     -32768.5, -32768.0, 32767.5, 8388607.5, 8388608.0, 16777215.0, 16777216.0],
    dtype=np.float32,
)  # fmt: skip


def flushed(x: Any) -> F32:
    x = np.asarray(x, dtype=np.float32)
    return np.where(np.abs(x) < np.float32(1.17549435e-38), np.float32(0), x).astype(np.float32)


def mixed(v: U32) -> U32:
    """The 32-bit finalizer of MurmurHash3, on unsigned arithmetic modulo 2**32."""
    h = v.astype(np.uint64)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h ^= h >> np.uint64(shift)
        h = h * np.uint64(factor) & np.uint64(0xFFFFFFFF)
    return h.astype(np.uint32)


def codes(
    x: F32, z: np.float32, r: np.float32, bits: int, signed: bool, key: int | None, index: U32
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Codes, and which of them the clamp changed; written from the specification, apart from the reference device."""
    with np.errstate(all="ignore"):
        t = flushed(flushed(flushed(x) - flushed(z)) * flushed(r))
        if flushed(r) == 0:
            t = np.zeros_like(t)
        if key is None:
            q = np.rint(t)
        else:
            u = (mixed(index ^ np.uint32(key)) >> np.uint32(8)).astype(np.float64) * 2.0**-24
            q = np.floor(t + u)  # float64: the sum is not rounded up to an integer
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    clamped = np.clip(q.astype(np.float64), low, high)
    return clamped.astype(np.int64), clamped != q


class TB:
    """One lane, one value per cycle; constants change only while the pipeline is empty, as between packets."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        Clock(dut.clk_i, 10, unit="ns").start()
        dut.enable_i.value = 1

    async def run(
        self, x: F32, z: np.float32, r: np.float32, bits: int, signed: bool, key: int | None, index: U32
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        dut, n = self.dut, x.size
        dut.zero_i.value, dut.reciprocal_i.value = int(z.view(np.uint32)), int(r.view(np.uint32))
        dut.bits_i.value, dut.signed_i.value = bits, int(signed)
        dut.stochastic_i.value, dut.key_i.value = int(key is not None), key or 0
        words = x.view(np.uint32)
        found = np.zeros(n, dtype=np.int64)
        clamped = np.zeros(n, dtype=bool)
        edge = FallingEdge(dut.clk_i)
        await edge
        for k in range(n + CYCLES):
            if k >= CYCLES:
                found[k - CYCLES], clamped[k - CYCLES] = int(dut.code_o.value), bool(int(dut.clamped_o.value))
            if k < n:
                dut.x_i.value, dut.index_i.value = int(words[k]), int(index[k])
            await edge
        return (np.where(found >= 1 << 15, found - (1 << 16), found) if signed else found), clamped

    async def compare(
        self, x: F32, z: np.float32, r: np.float32, bits: int, signed: bool, key: int | None, index: U32
    ) -> int:
        """Number of codes that were strictly inside the range, which shows that the test is not all clamped."""
        assert np.isfinite(x).all()
        found, clamped = await self.run(x, z, r, bits, signed, key, index)
        want, changed = codes(x, z, r, bits, signed, key, index)
        wrong = np.flatnonzero((found != want) | (clamped != changed))
        case = f"z={z!r} r={r!r} bits={bits} signed={signed} key={key}"
        lines = [f"{x[k]!r} #{index[k]}: {found[k]}, {clamped[k]}; expected {want[k]}, {changed[k]}" for k in wrong[:5]]
        assert not wrong.size, f"{case}: {wrong.size} of {x.size}: {lines}"
        reference, count = quantize(x, z, r, bits, signed, key, None if key is None else index)
        assert np.array_equal(reference, want) and count == np.count_nonzero(changed), f"the reference differs: {case}"
        return int(np.count_nonzero(~changed))


def values(rng: np.random.Generator, z: np.float32, r: np.float32, bits: int) -> F32:
    """Values over the range of codes, exact ties, extremes, and any bit pattern that is finite."""
    n = VECTORS
    scale = 1 / float(r) if r else 1.0
    spread = (float(z) + scale * (1 << bits) * (rng.random(n) * 2.2 - 1.1)).clip(-3.4e38, 3.4e38).astype(np.float32)
    ties = (float(z) + scale * 0.5 * rng.integers(-2 << bits, 2 << bits, size=n // 2)).clip(-3.4e38, 3.4e38)
    patterns = rng.integers(0, 1 << 32, size=n // 2, dtype=np.uint64).astype(np.uint32)
    patterns = np.where(patterns & 0x7F800000 == 0x7F800000, patterns & 0x807FFFFF, patterns).astype(np.uint32)
    return np.concatenate([EXTREMES, spread, ties.astype(np.float32), patterns.view(np.float32), [z]]).astype(
        np.float32
    )


@cocotb.test()
async def every_width_sign_and_rounding(dut: Any) -> None:
    tb = TB(dut)
    rng = np.random.default_rng(11)
    inside = 0
    for bits in range(1, 17):
        for signed in (False, True):
            for stochastic in (False, True):
                simple = rng.random() < 0.4  # powers of two make exact ties
                r = np.float32(2.0 ** rng.integers(-4, 5)) if simple else np.float32(rng.random() * 10 + 0.01)
                z = np.float32(rng.integers(-4, 5)) if simple else np.float32(rng.normal())
                x = values(rng, z, r, bits)
                index = rng.integers(0, 1 << 32, size=x.size, dtype=np.uint64).astype(np.uint32)
                key = int(rng.integers(0, 1 << 32)) if stochastic else None
                inside += await tb.compare(x, z, r, bits, signed, key, index)
    assert inside > 32 * VECTORS


@cocotb.test()
async def extreme_constants(dut: Any) -> None:
    tb = TB(dut)
    rng = np.random.default_rng(12)
    constants = np.array(
        [0, -0.0, 1e-40, -1e-40, 1.17549435e-38, 3.4028235e38, -3.4028235e38, -1, 1e30], dtype=np.float32
    )
    for z in constants:
        for r in constants:
            x = np.concatenate([EXTREMES, -EXTREMES, constants])
            index = rng.integers(0, 1 << 32, size=x.size, dtype=np.uint64).astype(np.uint32)
            for key in (None, 12345):
                await tb.compare(x, z, r, 8, bool(rng.integers(0, 2)), key, index)


@cocotb.test()
async def dither_of_zero_keeps_the_sign_of_the_smallest_values(dut: Any) -> None:
    """With u = 0 the floor of the smallest negative normal number is -1; a subnormal is zero, so its floor is 0."""
    tb = TB(dut)
    x = np.array([-1.17549435e-38, 1.17549435e-38, -1.1754942e-38, -1e-45, -0.0, -1, -1.0000001], dtype=np.float32)
    index = np.full(x.size, 77, dtype=np.uint32)  # the finalizer of index ^ key = 0 is 0
    zero, one = np.float32(0), np.float32(1)
    want, _ = codes(x, zero, one, 8, True, 77, index)
    assert want.tolist() == [-1, 0, 0, 0, 0, -1, -2]
    await tb.compare(x, zero, one, 8, True, 77, index)
    # products that round up in magnitude to the smallest normal number, at the subnormals' spacing
    x = np.array([0xBF7FFFFF, 0xBF7FFFFE, 0xBF7FFFFD], dtype=np.uint32).view(np.float32)
    want, _ = codes(x, zero, np.float32(1.17549435e-38), 8, True, 77, index[:3])
    assert want.tolist() == [-1, 0, 0]
    await tb.compare(x, zero, np.float32(1.17549435e-38), 8, True, 77, index[:3])


@cocotb.test()
async def sums_next_to_an_integer(dut: Any) -> None:
    """Values whose sum with u is an integer or just beside it, which single precision would not tell apart."""
    tb = TB(dut)
    rng = np.random.default_rng(13)
    n = 4 * VECTORS
    up = 0
    for largest, bits in ((2, 10), (300, 10), (1 << 15, 16)):
        index = rng.integers(0, 1 << 32, size=n, dtype=np.uint64).astype(np.uint32)
        u = (mixed(index ^ np.uint32(9)) >> np.uint32(8)).astype(np.float64) * 2.0**-24
        whole = rng.integers(-largest, largest, size=n)
        near = (whole - u).astype(np.float32)
        steps = rng.integers(-2, 3, size=n)
        x = np.where(steps < 0, np.nextafter(near, np.float32(-np.inf)), near)
        x = np.where(steps > 0, np.nextafter(near, np.float32(np.inf)), x).astype(np.float32)
        up += np.count_nonzero(np.floor(x + u) != np.floor((x + u).astype(np.float32)))
        for signed, z in ((True, np.float32(0)), (False, np.float32(-largest))):
            await tb.compare(x, z, np.float32(1), bits, signed, 9, index)
    assert up > 100, "single precision would do"


@cocotb.test()
async def integers_stay_whatever_the_random_number(dut: Any) -> None:
    tb = TB(dut)
    rng = np.random.default_rng(14)
    for signed, least in ((False, 0), (True, -(1 << 15))):
        x = rng.integers(least, least + (1 << 16), size=4 * VECTORS)
        index = rng.integers(0, 1 << 32, size=x.size, dtype=np.uint64).astype(np.uint32)
        found, clamped = await tb.run(x.astype(np.float32), np.float32(0), np.float32(1), 16, signed, 9, index)
        assert np.array_equal(found, x) and not clamped.any()
