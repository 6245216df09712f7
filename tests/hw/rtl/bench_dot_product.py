"""cocotb bench of dot_product_unit: whole products of two operands of any precision, plane pair by plane pair."""

from __future__ import annotations

import os
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge

BITS = int(os.environ["BENCH_BITS"])
ACC = 48
PRODUCTS = int(os.environ.get("BENCH_PRODUCTS", "150"))


def steps(a_bits: int, b_bits: int, a_signed: bool, b_signed: bool) -> list[tuple[int, int, int, int, int]]:
    """(plane of a, plane of b, first, shift, negative) of every step, by falling diagonals."""
    out = []
    for d in range(a_bits + b_bits - 2, -1, -1):
        pairs = [(i, d - i) for i in range(a_bits) if 0 <= d - i < b_bits]
        for n, (i, j) in enumerate(pairs):
            negative = (a_signed and i == a_bits - 1) ^ (b_signed and j == b_bits - 1)
            out.append((i, j, int(not out), int(n == 0 and bool(out)), int(negative)))
    return out


@cocotb.test()
async def products_of_every_precision(dut: Any) -> None:
    rng = np.random.default_rng(21)
    Clock(dut.clk_i, 10, unit="ns").start()
    edge = FallingEdge(dut.clk_i)
    control = (dut.count_i, dut.sign_i, dut.valid_i)
    await edge
    for n in range(PRODUCTS):
        a_bits, b_bits = (16, 16) if n < 6 else (int(v) for v in rng.integers(1, 9, size=2))
        a_signed, b_signed = (bool(v) for v in rng.integers(0, 2, size=2))
        terms = int(rng.integers(1, 4))  # words of BITS codes that one sum runs over

        def draw(bits: int, signed: bool, worst: bool = n % 3 == 0, count: int = terms) -> np.ndarray[Any, Any]:
            low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
            if worst:
                return np.full((count, BITS), low if signed else high, dtype=np.int64)
            return rng.integers(low, high + 1, size=(count, BITS))

        a, b = draw(a_bits, a_signed), draw(b_bits, b_signed)
        want = int((a * b).sum())
        work = [
            (t, i, j, first and t == 0, shift and t == 0, negative)
            for i, j, first, shift, negative in steps(a_bits, b_bits, a_signed, b_signed)
            for t in range(terms)
        ]
        # controls follow their operands by one and by two cycles; idle cycles in between must not disturb
        queue: list[Any] = []
        for item in work:
            queue += [None] * int(rng.random() < 0.2) + [item]
        queue += [None] * 2
        for k in range(len(queue)):
            now, one, two = (queue[k - back] if k >= back else None for back in range(3))
            for signal, item in zip(control, (now, one, two), strict=True):
                signal.value = int(item is not None)
            if now is not None:
                t, i, j, *_ = now
                dut.a_i.value = int.from_bytes(np.packbits(a[t] >> i & 1, bitorder="little").tobytes(), "little")
                dut.b_i.value = int.from_bytes(np.packbits(b[t] >> j & 1, bitorder="little").tobytes(), "little")
            else:
                dut.a_i.value = dut.b_i.value = (1 << BITS) - 1
            dut.negative_i.value = one[5] if one is not None else 1
            dut.first_i.value = int(two[3]) if two is not None else 1
            dut.shift_i.value = int(two[4]) if two is not None else 1
            await edge
        found = int(dut.acc_o.value)
        found -= (found >> ACC - 1) << ACC
        assert found == want, f"{a_bits}x{b_bits} bits, signed {a_signed}, {b_signed}: {found}, expected {want}"
        for signal in control:
            signal.value = 0
