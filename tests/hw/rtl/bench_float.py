"""cocotb bench of fp32_add, fp32_multiply and fp32_from_int against NumPy's single precision; subnormals are zero."""

from __future__ import annotations

import os
from typing import Any

import cocotb
import numpy as np
import numpy.typing as npt
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge

from host.arrays import U32

OPERATION = os.environ["BENCH_OPERATION"]
VECTORS = int(os.environ.get("BENCH_VECTORS", "5000"))
CYCLES = {"add": 3, "multiply": 2, "from_int": 2}[OPERATION]

CORNERS = np.array(
    [0, 1, 0x007FFFFF, 0x00800000, 0x00800001, 0x00FFFFFF, 0x01000000, 0x33800000, 0x3F000000, 0x3F7FFFFF, 0x3F800000,
     0x3F800001, 0x3FFFFFFF, 0x40000000, 0x4B000000, 0x4B7FFFFF, 0x4B800000, 0x7F000000, 0x7F7FFFFE, 0x7F7FFFFF],
    dtype=np.uint32,
)  # fmt: skip


def flush(x: U32) -> U32:
    """Subnormals to positive zero, and negative zero too: the sign of a zero is not promised."""
    return np.where(x & 0x7F800000 == 0, 0, x).astype(np.uint32)


def expected(a: U32, b: U32) -> U32:
    """What NumPy makes of the flushed operands, flushed; an integer is the first operand's bits."""
    if OPERATION == "from_int":
        return a.view(np.int32).astype(np.float32).view(np.uint32)
    x, y = flush(a).view(np.float32), flush(b).view(np.float32)
    with np.errstate(all="ignore"):
        result = x + y if OPERATION == "add" else x * y
    return flush(result.view(np.uint32))


def operands(seed: int) -> tuple[U32, U32]:
    """All pairs of corner values, then random pairs: any exponents, near exponents, and results near the edges."""
    rng = np.random.default_rng(seed)
    corners = np.concatenate([CORNERS, CORNERS | 0x80000000])
    first, second = (m.ravel() for m in np.meshgrid(corners, corners))
    n = VECTORS

    def floats(exponents: npt.NDArray[np.integer]) -> U32:
        fraction = rng.integers(0, 1 << 23, size=exponents.size)
        kind = rng.integers(0, 4, size=exponents.size)
        fraction = np.where(kind == 0, fraction & rng.integers(0, 1 << 23, size=exponents.size) & 0x700007, fraction)
        fraction = np.where(kind == 1, 0x7FFFFF ^ (fraction & 3), fraction)  # carries run through
        sign = rng.integers(0, 2, size=exponents.size)
        return (sign << 31 | np.clip(exponents, 0, 254) << 23 | fraction).astype(np.uint32)

    any_a, any_b = floats(rng.integers(0, 255, size=n)), floats(rng.integers(0, 255, size=n))
    e = rng.integers(0, 255, size=n)
    near_a, near_b = floats(e), floats(e + rng.integers(-27, 28, size=n))
    if OPERATION == "add":  # cancellation: almost equal values of opposite sign
        a = floats(e)
        pair_a, pair_b = a, ((a ^ 0x80000000) + rng.integers(-3, 4, size=n)).astype(np.uint32)
        pair_b = np.where(pair_b & 0x7F800000 == 0x7F800000, 0, pair_b).astype(np.uint32)
    elif OPERATION == "from_int":  # around the halves that round to even, at every magnitude
        high = rng.integers(0, 1 << 26, size=n) << 1 | 1
        pair_a = ((high << rng.integers(0, 6, size=n)) + rng.integers(-1, 2, size=n)).astype(np.uint32)
        pair_b = pair_a
    else:  # exponents that meet at either end of the range
        target = np.where(rng.integers(0, 2, size=n) == 0, 126, 381) + rng.integers(-2, 3, size=n)
        e = rng.integers(1, 255, size=n)
        pair_a, pair_b = floats(e), floats(target - e)
    return (
        np.concatenate([first, any_a, near_a, pair_a]).astype(np.uint32),
        np.concatenate([second, any_b, near_b, pair_b]).astype(np.uint32),
    )


def drive(dut: Any, a: int, b: int) -> None:
    """Operands of one cycle."""
    if OPERATION == "from_int":
        dut.x_i.value = a - (a >> 31 << 32)
    else:
        dut.a_i.value, dut.b_i.value = a, b


async def outputs(dut: Any, a: U32, b: U32) -> U32:
    """Results of a stream of operands, one pair per cycle."""
    Clock(dut.clk_i, 10, unit="ns").start()
    dut.enable_i.value = 1
    found = np.zeros(a.size, dtype=np.uint32)
    edge = FallingEdge(dut.clk_i)
    await edge
    for k in range(a.size + CYCLES):
        if k >= CYCLES:
            found[k - CYCLES] = int(dut.y_o.value)
        if k < a.size:
            drive(dut, int(a[k]), int(b[k]))
        await edge
    return found


async def compare(dut: Any, a: U32, b: U32) -> None:
    found, want = flush(await outputs(dut, a, b)), expected(a, b)
    wrong = np.flatnonzero(found != want)
    lines = [f"{a[k]:08x} {OPERATION} {b[k]:08x}: {found[k]:08x}, expected {want[k]:08x}" for k in wrong[:5]]
    assert not wrong.size, f"{wrong.size} of {a.size} results: {lines}"


@cocotb.test()
async def numpy_agrees(dut: Any) -> None:
    await compare(dut, *operands(seed=1))


@cocotb.test(skip=OPERATION != "multiply")
async def products_that_round_up_to_the_smallest_normal(dut: Any) -> None:
    """IEEE rounds them at the subnormals' spacing: up to half of it below 2**-126 is 2**-126, and not zero."""
    m = np.arange(0x800001, 0x1000000, 3, dtype=np.int64)
    scaled = (1 << 47) // m  # m * n just below 2**47, within half a spacing of it
    close = (scaled < 1 << 24) & (scaled >= 1 << 23) & ((1 << 47) - m * scaled <= 1 << 23)
    m, n = m[close][:4000], scaled[close][:4000]
    assert m.size == 4000
    a = ((m & 0x7FFFFF) | 60 << 23).astype(np.uint32)
    b = ((n & 0x7FFFFF) | 67 << 23).astype(np.uint32)
    assert (expected(a, b) == 0x00800000).all()
    await compare(dut, a, b)


@cocotb.test()
async def pipeline_holds_while_disabled(dut: Any) -> None:
    a, b = operands(seed=2)
    a, b = a[-50:], b[-50:]
    Clock(dut.clk_i, 10, unit="ns").start()
    edge = FallingEdge(dut.clk_i)
    want = expected(a, b)
    await edge
    for k in range(a.size + CYCLES):
        if k >= CYCLES:
            assert flush(np.array([int(dut.y_o.value)], dtype=np.uint32))[0] == want[k - CYCLES]
        if k < a.size:
            drive(dut, int(a[k]), int(b[k]))
        dut.enable_i.value = 1
        await edge
        dut.enable_i.value = 0
        drive(dut, 0x3F800000, int(b[min(k, b.size - 1)]))
        for _ in range(k % 4):
            await edge
