"""Functional coverage of the lowering on RTL: every product, precision pair, stride and kernel, counted in a file.

Both input streams pause and the output is held up at random. ``python -m tests.host.devices.test_rtl_coverage`` runs every point
and writes the committed record.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from host.devices.device import U64, Result
from host.devices.reference import ReferenceDevice
from host.devices.rtl import RtlDevice
from host.driver.fabric_engine import FabricEngine
from host.grids import host_codes
from host.operands import ConvGeometry, Operand
from hw.contract import FUNCTIONAL_COUNTERS, MAX_BITS, Error
from hw.design import ROOT, load_design
from hw.networks import PRODUCTS
from tests.host.driver.test_fabric_engine import make_grid, make_operand, shapes, truth

Point = tuple[str, int, int, int, int]  #: product, bits of a, bits of b, stride, kernel

BITS = range(1, MAX_BITS + 1)
STRIDES = (1, 2)
KERNELS = (1, 3, 5, 7)
ALL: tuple[Point, ...] = tuple(itertools.product(PRODUCTS, BITS, BITS, STRIDES, KERNELS))
RECORD = ROOT / "docs" / "measurements" / "rtl-coverage.json"
PAUSES = 300  #: chance in 1000 that a stream pauses in a cycle


@dataclass
class Coverage:
    """Runs points on RTL and remembers which came out right.

    The streams pause. Every program is replayed on the reference device, word by word and counter by counter; the sums of the product are
    compared with PyTorch's in float64.
    """

    seed: int
    design: str = "sim-small"
    hits: dict[Point, int] = field(default_factory=dict)
    programs: int = 0
    words: int = 0
    cycles: int = 0
    waits: int = 0
    held_up: int = 0
    mismatches: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        design = load_design(self.design)
        self.rng = np.random.default_rng(self.seed)
        self.device = RtlDevice(design, pauses=PAUSES, seed=self.seed)
        self.reference = ReferenceDevice(design)
        self.engine = FabricEngine(self.device, recorder=self._replay, keep_rows=False)

    def _replay(self, words: U64, result: Result) -> None:
        expected = self.reference.run(words)
        self.programs += 1
        self.words += expected.words.size
        self.cycles += result.counters["CYCLES"]
        self.waits += result.counters["STALL_IN"]
        self.held_up += result.counters["STALL_OUT"]
        same = (
            expected.error is result.error is Error.NONE
            and np.array_equal(result.words, expected.words)
            and all(result.counters[n] == expected.counters[n] for n in FUNCTIONAL_COUNTERS)
        )
        if not same:
            self.mismatches.append(f"program {self.programs}")

    def geometry(self, stride: int, kernel: int) -> ConvGeometry:
        """A small random geometry; now and then wider than the lanes, or with more channels than a group."""
        rng = self.rng
        low = kernel if kernel > 3 else 1
        side = rng.integers(max(low, stride), low + 8, size=2)
        if rng.random() < 0.1:
            side[1] += 2 * load_design(self.design).channels
        return ConvGeometry(
            batch=int(rng.integers(1, 4)),
            in_channels=int(rng.integers(1, 12)),
            out_channels=int(rng.integers(1, 12)),
            in_hw=(int(side[0]), int(side[1])),
            kernel=(kernel, kernel),
            stride=stride,
            padding=kernel // 2 if kernel > 1 or rng.random() < 0.9 else 1,
        )

    def operand(self, shape: tuple[int, ...], bits: int, is_weight: bool) -> Operand:
        """Codes, extreme codes, or values that the engine quantizes, with and without stochastic rounding."""
        rng = self.rng
        values = not is_weight and rng.random() < 0.4
        key = int(rng.integers(0, 1 << 32)) if values and rng.random() < 0.5 else None
        grid = make_grid(bits, bool(rng.random() < 0.5), key)
        return make_operand(rng, shape, grid, values, bool(rng.random() < 0.2))

    def run(self, point: Point) -> None:
        """One product at a point."""
        product, a_bits, b_bits, stride, kernel = point
        m = self.geometry(stride, kernel)
        shape_a, shape_b = shapes(product, m)
        a = self.operand(shape_a, a_bits, False)
        b = self.operand(shape_b, b_bits, product != "weight_gradient")
        got = getattr(self.engine, product)(a, b, m)
        want = truth(product, host_codes(a), host_codes(b), m)
        for name in ("dot", "a_sum", "b_sum", "count"):
            have = np.broadcast_to(getattr(got, name), want.dot.shape)
            if not np.array_equal(have, getattr(want, name)):
                self.mismatches.append(f"{name} of {point}, {m}")
        self.hits[point] = self.hits.get(point, 0) + 1

    def summary(self) -> dict[str, Any]:
        """What is stored: totals, and precision pairs covered of each product, stride and kernel."""
        rows = []
        for product, stride, kernel in itertools.product(PRODUCTS, STRIDES, KERNELS):
            pairs = {(a, b) for name, a, b, s, k in self.hits if (name, s, k) == (product, stride, kernel)}
            rows.append({"product": product, "stride": stride, "kernel": kernel, "precision_pairs": len(pairs)})
        return {
            "design": self.design,
            "device": "rtl",
            "command": "python -m tests.host.devices.test_rtl_coverage",
            "seed": self.seed,
            "pauses_permille": PAUSES,
            "point": "product, a_bits, b_bits, stride, kernel",
            "points_covered": len(self.hits),
            "points_total": len(ALL),
            "programs": self.programs,
            "words_compared": self.words,
            "cycles": self.cycles,
            "cycles_without_input": self.waits,
            "cycles_with_output_held_up": self.held_up,
            "mismatches": len(self.mismatches),
            "rows": rows,
        }

    def store(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.summary(), indent=2) + "\n", encoding="utf-8")


def test_random_points_on_rtl(tmp_path: Path) -> None:
    coverage = Coverage(seed=3)
    chosen = coverage.rng.choice(len(ALL), size=60, replace=False)
    for k in chosen:
        coverage.run(ALL[k])
    assert not coverage.mismatches
    coverage.store(tmp_path / "coverage.json")
    stored = json.loads((tmp_path / "coverage.json").read_text())
    assert stored["points_covered"] == 60 == sum(row["precision_pairs"] for row in stored["rows"])
    assert stored["words_compared"] > 10_000
    assert stored["cycles_without_input"] > 0 and stored["cycles_with_output_held_up"] > 0


def every_point() -> Coverage:
    """All points in a seeded order."""
    coverage = Coverage(seed=4)
    for k in coverage.rng.permutation(len(ALL)):
        coverage.run(ALL[k])
    return coverage


@pytest.mark.slow
def test_every_point_on_rtl() -> None:
    coverage = every_point()
    assert not coverage.mismatches, coverage.mismatches[:10]
    assert len(coverage.hits) == len(ALL)


def test_the_committed_record_is_complete() -> None:
    record = json.loads(RECORD.read_text())
    rows = {(row["product"], row["stride"], row["kernel"]): row["precision_pairs"] for row in record["rows"]}
    assert rows == dict.fromkeys(itertools.product(PRODUCTS, STRIDES, KERNELS), len(BITS) ** 2)
    assert record["points_covered"] == record["points_total"] == len(ALL)
    assert record["mismatches"] == 0 and record["words_compared"] > 0
    assert record["pauses_permille"] == PAUSES > 0
    assert record["cycles_without_input"] > 0 and record["cycles_with_output_held_up"] > 0


if __name__ == "__main__":
    every_point().store(RECORD)
