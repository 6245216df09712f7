"""The generated RTL is clean under Verilator's lint, in the form for simulation and in the form for synthesis."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from host.devices.rtl import rtl_sources, verilator_environment
from hw.design import load_design
from hw.generate import RTL_SOURCES, generate
from hw.tools.yosys import primitive_headers, synthesis_sources

#: warning, file and text that are meant, and why
WAIVERS = (
    # packages hold the whole contract for every module and for readers
    ("UNUSEDPARAM", "_pkg.sv", r"Parameter is not used"),
    # choices of form that only the other form of the module has
    ("UNUSEDPARAM", "dot_product_unit.sv", r"Parameter is not used: '(ONES|DSP)'"),
    # records and buses of which a module needs a part; a signal that is not used at all is still reported
    ("UNUSEDSIGNAL", "", r"Bits of (signal|function variable) are not used"),
    # carries beyond the last column of the bit heap, which are always zero, and the last carry of a chain
    ("UNUSEDSIGNAL", "xc7/dot_product_unit.sv", r"nor used: 'carry[12]'"),
    ("UNUSEDSIGNAL", "xc7/counter_7_3.sv", r"Signal is not used: 'carry'"),
    ("UNDRIVEN", "xc7/", r"Bits of signal are not driven"),
    # ports of a primitive are left open by name
    ("PINCONNECTEMPTY", "xc7/", r""),
    # the interrupt has the name that every HLS block gives it
    ("SYMRSVDWORD", "", r"'interrupt'"),
    # what AXI has and a master of one ID, or a passer-on of answers that are always good, does not look at
    ("UNUSEDSIGNAL", "memory/", r"Signal is not used: '(m_axi_\d_[RB]ID|core_[br]resp_i|out_keep)'"),
    # the primitives' declarations: several to a file, outputs without a body
    ("DECLFILENAME", "primitives.v", r""),
    ("UNDRIVEN", "primitives.v", r""),
    ("UNUSEDSIGNAL", "primitives.v", r""),
    ("UNUSEDPARAM", "primitives.v", r""),
)


def lint(sources: list[Path], top: str = "fabric") -> list[str]:
    """Warnings and errors that no waiver covers."""
    done = subprocess.run(
        ["verilator", "--lint-only", "-Wall", "--top-module", top, *map(str, sources)],
        env=verilator_environment(), capture_output=True, text=True,
    )  # fmt: skip
    left = []
    for line in done.stderr.splitlines():
        if not line.startswith("%") or "Exiting due to" in line:
            continue
        match = re.match(r"%Warning-(\w+): (\S+?):\d+:\d+: (.*)", line)
        if match and any(
            match[1] == code and name in match[2] and re.search(text, match[3]) for code, name, text in WAIVERS
        ):
            continue
        left.append(line)
    return left


@pytest.mark.parametrize("name", ["sim-small", "zc706"])
def test_simulation_form_is_clean(tmp_path: Path, name: str) -> None:
    assert lint(rtl_sources(generate(load_design(name), tmp_path))) == []


@pytest.mark.parametrize("name", ["sim-small", "pynq-z2"])  # two output streams, one
def test_accelerator_is_clean(tmp_path: Path, name: str) -> None:
    assert lint(rtl_sources(generate(load_design(name), tmp_path), memory=True), "accelerator") == []


def test_synthesis_form_is_clean(tmp_path: Path) -> None:
    folder = generate(load_design("sim-small"), tmp_path)
    headers = tmp_path / "primitives.v"
    headers.write_text(primitive_headers())
    assert lint([headers, *synthesis_sources(folder)], "accelerator") == []


@pytest.mark.parametrize("bits", [4, 8])
def test_control_bridge_is_clean(tmp_path: Path, bits: int) -> None:
    text = (RTL_SOURCES / "memory" / "control_bridge.sv").read_text()
    source = tmp_path / "control_bridge.sv"
    source.write_text(text.replace("LEN_BITS = 4,", f"LEN_BITS = {bits},"))
    assert lint([source], "control_bridge") == []


def test_synthesis_form_replaces_modules_of_the_same_name(tmp_path: Path) -> None:
    folder = generate(load_design("sim-small"), tmp_path)
    simulated = {p.name: p for p in rtl_sources(folder, memory=True)}
    synthesised = {p.name: p for p in synthesis_sources(folder)}
    assert set(simulated) < set(synthesised)
    assert {n for n in simulated if simulated[n] != synthesised[n]} == {"dot_product_unit.sv", "operand_network.sv"}


def test_lint_sees_a_fault(tmp_path: Path) -> None:
    folder = generate(load_design("sim-small"), tmp_path)
    array = folder / "rtl" / "dot_product_array.sv"
    text = array.read_text()
    array.write_text(text.replace("logic sum_sign_q;", "logic sum_sign_q;\n    logic forgotten;"))
    assert any("forgotten" in line for line in lint(rtl_sources(folder)))
