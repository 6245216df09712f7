"""The bitstream of the HLS flow is elaborated around the kernel as a black box with the ports that HLS gives it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hw.design import ROOT, load_design
from hw.tools.vivado import render_scripts, write_scripts
from tests.hw.rtl.test_lint import lint

#: byte lanes of an input stream, which the kernel does not read, and of an output stream, which nobody does
UNREAD = re.compile(r"in\d_T(KEEP|STRB)|out\d_TSTRB")
#: an AXI4-Lite slave's signals and whether they enter it; sizes that HLS makes parameters of
LITE = (
    ("AWADDR", "ADDR", True), ("AWVALID", "", True), ("AWREADY", "", False), ("WDATA", "DATA", True),
    ("WSTRB", "WSTRB", True), ("WVALID", "", True), ("WREADY", "", False), ("BRESP", "2", False), ("BVALID", "", False),
    ("BREADY", "", True), ("ARADDR", "ADDR", True), ("ARVALID", "", True), ("ARREADY", "", False),
    ("RDATA", "DATA", False), ("RRESP", "2", False), ("RVALID", "", False), ("RREADY", "", True),
)  # fmt: skip


def kernel_box(files: dict[str, str]) -> str:
    """Verilog header of the kernel as HLS writes it, from the sources that HLS is given.

    The streams are of ``ap_axiu<64, 0, 0, 0>``, which has byte lanes and TLAST beside the data; the registers' address is
    as wide as the last of them needs, with the word after it that tells whether it is valid.
    """
    source, contract = files["hls/fabric.cpp"], files["hls/contract.h"]
    assert "port = return offset" not in source
    assert re.findall(r"mode = axis port = (in\d)", source) == ["in0", "in1"]
    registers = re.search(r"#define KERNEL_REGISTERS\(X\)(.*?)\n\n", contract, re.DOTALL)
    results = re.search(r"#define RESULT_STREAMS\(X\)(.*)", contract)
    assert registers and results
    last = max(int(byte, 16) for byte in re.findall(r"0x[0-9A-Fa-f]+", registers[1]))
    width = (last + 8 - 1).bit_length()
    ports = ["input ap_clk", "input ap_rst_n", "output interrupt"]
    for name, size, enters in LITE:
        bits = {"": "", "2": "[1:0]", "WSTRB": "[C_S_AXI_CONTROL_WSTRB_WIDTH-1:0]"}.get(
            size, f"[C_S_AXI_CONTROL_{size}_WIDTH-1:0]"
        )
        ports.append(f"{'input' if enters else 'output'} {bits} s_axi_control_{name}")
    for stream in ("in0", "in1", *re.findall(r"X\((\w+)\)", results[1])):
        there, back = ("input", "output") if stream.startswith("in") else ("output", "input")
        ports += [f"{there} [63:0] {stream}_TDATA", f"{there} [7:0] {stream}_TKEEP", f"{there} [7:0] {stream}_TSTRB"]
        ports += [f"{there} [0:0] {stream}_TLAST", f"{there} {stream}_TVALID", f"{back} {stream}_TREADY"]
    parameters = (
        f"parameter C_S_AXI_CONTROL_ADDR_WIDTH = {width}, parameter C_S_AXI_CONTROL_DATA_WIDTH = 32, "
        "parameter C_S_AXI_DATA_WIDTH = 32, parameter C_S_AXI_CONTROL_WSTRB_WIDTH = C_S_AXI_CONTROL_DATA_WIDTH / 8"
    )
    return f"module fabric #({parameters}) (\n  " + ",\n  ".join(ports) + "\n);\nendmodule\n"


def prepared(name: str, folder: Path) -> list[Path]:
    """Sources of the HLS flow in reading order, the kernel's box in front."""
    files = render_scripts(load_design(name), "hls")
    write_scripts(files, folder)
    box = folder / "fabric.v"
    box.write_text(kernel_box(files))
    order = re.findall(r"\brtl/[\w/]+\.sv\b", files["package_rtl.tcl"]) or [n for n in files if n.endswith(".sv")]
    packages = [n for n in order if n.endswith("_pkg.sv")]
    return [box, *(folder / n for n in dict.fromkeys((*packages, *order))), folder / "fabric_top.v"]


def elaborated(sources: list[Path], folder: Path) -> dict[str, Any]:
    """Netlist of ``fabric_top`` after elaboration, in Yosys' JSON form; Yosys runs in a process of its own."""
    out = folder / "top.json"
    code = (
        "from pyosys import libyosys; d = libyosys.Design();"
        f"libyosys.run_pass('read_slang --top fabric_top --blackboxed-module fabric {' '.join(map(str, sources))}', d);"
        f"libyosys.run_pass('hierarchy -check -top fabric_top', d); libyosys.run_pass('write_json {out}', d)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and out.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    modules: dict[str, Any] = json.loads(out.read_text())["modules"]
    return modules


def test_the_top_is_elaborated_around_the_kernel(tmp_path: Path) -> None:
    modules = elaborated(prepared("sim-small", tmp_path), tmp_path)
    (cell,) = (cell for module in modules.values() for cell in module["cells"].values() if cell["type"] == "fabric")
    box = modules["fabric"]["ports"]
    left_open = {port for port in box if not UNREAD.fullmatch(port) and port not in cell["connections"]}
    assert left_open == set()
    for port, declared in box.items():
        bits = cell["connections"].get(port, [])
        if declared["direction"] == "input" and not UNREAD.fullmatch(port):
            assert len(bits) == len(declared["bits"]) and "x" not in bits, port


@pytest.mark.parametrize("name", ["zc706", "zcu104"])  # AXI3, AXI4
def test_the_kernel_s_ports_are_as_wide_as_what_they_are_connected_to(name: str, tmp_path: Path) -> None:
    sources = prepared(name, tmp_path)
    found = [line for line in lint(sources, "fabric_top") if re.search(r"^%(Error|Warning-(WIDTH|PINMISSING))", line)]
    assert [line for line in found if not ("PINMISSING" in line and UNREAD.search(line))] == []


def test_a_port_of_another_width_is_seen(tmp_path: Path) -> None:
    sources = prepared("sim-small", tmp_path)
    sources[0].write_text(sources[0].read_text().replace("CONTROL_ADDR_WIDTH = 8", "CONTROL_ADDR_WIDTH = 7"))
    assert any("WIDTH" in line and "AWADDR" in line for line in lint(sources, "fabric_top"))
