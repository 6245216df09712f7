"""Builds and runs the cocotb benches of the fabric and of its units."""

from __future__ import annotations

from pathlib import Path

import pytest

from host.devices.device import DeviceError
from host.devices.rtl import rtl_sources
from host.verify.simulation import build_fabric, build_simulation, run_cocotb_bench
from hw.design import load_design
from hw.generate import RTL_SOURCES, generate, generated

FABRIC = "tests.hw.rtl.bench_fabric"


def run_fabric(name: str, testcase: str | None = None, **environment: str) -> dict[str, str]:
    """Outcomes of the fabric's bench on a design."""
    build = build_fabric(load_design(name))
    return run_cocotb_bench(build, "fabric", FABRIC, {"BENCH_DESIGN": name, **environment}, testcase)


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


def unit(name: str, *sources: str, **parameters: int) -> Path:
    """Simulator of one module, which needs none of the generated numbers."""
    return build_simulation(name, [RTL_SOURCES / f"{s}.sv" for s in (*sources, name)], parameters=parameters)


@pytest.mark.parametrize("bits", [72, pytest.param(144, marks=pytest.mark.slow)])
def test_dot_product_unit(bits: int) -> None:
    build = unit("dot_product_unit", BITS=bits)
    outcomes = run_cocotb_bench(build, "dot_product_unit", "tests.hw.rtl.bench_dot_product", {"BENCH_BITS": str(bits)})
    check(outcomes, 1)


def test_accelerator() -> None:
    design = load_design("sim-small")
    # the memories are AXI4 ones; AXI3 differs in widths and WID alone
    build = build_simulation("accelerator", rtl_sources(generated(design), memory=True), parameters={"AXI3": 0})
    check(run_cocotb_bench(build, "accelerator", "tests.hw.rtl.bench_accelerator", {"BENCH_DESIGN": design.name}), 4)


def test_control_bridge() -> None:
    sources = [RTL_SOURCES / "memory" / "control_bridge.sv"]
    # the master is an AXI4 one; AXI3 differs in the width of the length alone
    build = build_simulation("control_bridge", sources, parameters={"LEN_BITS": 8})
    check(run_cocotb_bench(build, "control_bridge", "tests.hw.rtl.bench_control_bridge", {}), 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new", "testcase"),
    [
        ("control_registers", "isr_q ^ wdata_i[1:0]", "isr_q | wdata_i[1:0]", "interrupts"),
        ("control_registers", "wstrb_i[0] && wdata_i[0] && idle_i", "wdata_i[0] && idle_i", "control_handshake"),
        (
            "result_port",
            "assign left        = valid_q & ~out_ready_i",
            "assign left        = '0",
            "pace_does_not_change_the_answer",
        ),
    ],
)
def test_a_broken_protocol_is_found(tmp_path: Path, file: str, old: str, new: str, testcase: str) -> None:
    """What the answers of programs alone do not show, the bench does."""
    design = load_design("sim-small")
    sources = rtl_sources(generate(design, tmp_path))
    path = next(p for p in sources if p.stem == file)
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new))
    build = build_fabric(design, sources)
    try:
        outcomes = run_cocotb_bench(build, "fabric", FABRIC, {"BENCH_DESIGN": design.name}, testcase)
    except DeviceError as error:  # an assertion in the RTL was first, and ended the simulator
        assert "Assertion failed" in str(error)
    else:
        assert outcomes[testcase]
