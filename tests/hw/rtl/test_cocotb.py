"""Builds and runs the cocotb benches of the fabric and of its units."""

from __future__ import annotations

import pytest

from host.cosim.simulation import build_fabric, run_bench
from hw.design import load_design

FABRIC = "tests.hw.rtl.bench_fabric"


def run_fabric(name: str, testcase: str | None = None, **environment: str) -> dict[str, str]:
    """Outcomes of the fabric's bench on a design."""
    build = build_fabric(load_design(name))
    return run_bench(build, "fabric", FABRIC, {"BENCH_DESIGN": name, **environment}, testcase)


def check(outcomes: dict[str, str], at_least: int) -> None:
    """All tests ran and passed."""
    failed = {name: text for name, text in outcomes.items() if text}
    assert not failed, "\n".join(f"{name}: {text}" for name, text in failed.items())
    assert len(outcomes) >= at_least


def test_fabric_sim_small() -> None:
    check(run_fabric("sim-small", BENCH_PART="0", BENCH_PARTS="2"), 9)


@pytest.mark.slow
def test_fabric_zc706() -> None:
    check(run_fabric("zc706", BENCH_PROGRAMS="6", BENCH_PART="0", BENCH_PARTS="8"), 9)


@pytest.mark.slow
def test_fabric_sim_small_at_length() -> None:
    check(run_fabric("sim-small", BENCH_PROGRAMS="120"), 9)
