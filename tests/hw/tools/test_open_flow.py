"""The way to a bitstream without the vendor's tools: netlist, constraints, script, overlay package."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fractrain import main
from hw.design import load_design
from hw.generate import generate
from hw.tools.open_flow import SUPPORTED, clock_for, netlist, prepare, read_cells, render_open
from hw.tools.vivado import BitstreamError, collect, package_name
from hw.tools.yosys import pieces, synthesize

SMALL = load_design("sim-small")


@given(st.floats(5, 500))
def test_the_clock_is_never_faster_than_asked_for(mhz: float) -> None:
    clock = clock_for(mhz)
    assert clock.mhz <= mhz * (1 + 1e-9)
    assert 600 <= 100 * clock.multiply <= 1200 and 1 <= clock.divide <= 128


def test_the_clocks_of_the_designs_are_met_exactly() -> None:
    assert [clock_for(mhz).mhz for mhz in (50, 100, 120, 150)] == [50, 100, 120, 150]
    with pytest.raises(BitstreamError, match="set clock_mhz = 5 or more"):
        clock_for(1)


def test_other_families_are_refused() -> None:
    with pytest.raises(BitstreamError, match=r"no bitstream for xczu7ev.*--flow rtl"):
        render_open(load_design("zcu104"))


class Netlist:
    """Cells of a netlist and what their ports are connected to."""

    def __init__(self, path: Path) -> None:
        self.cells = read_cells(path)

    def only(self, kind: str) -> dict[str, Any]:
        (cell,) = (cell for cell in self.cells.values() if cell["type"] == kind)
        return cell

    def driver(self, bit: int | str) -> tuple[str, str]:
        """Type and port of the cell that drives a net."""
        (found,) = {
            (cell["type"], port)
            for cell in self.cells.values()
            for port, bits in cell["connections"].items()
            if bit in bits and cell["port_directions"][port] == "output"
        }
        return found


def test_the_processor_is_connected_as_the_block_wants_it(tmp_path: Path) -> None:
    prepare(SMALL, tmp_path)
    cells = netlist(tmp_path, boxes=("accelerator",), seconds=300)
    assert cells["PS7"] == cells["MMCME2_ADV"] == cells["accelerator"] == 1 and cells["BUFG"] == 2
    found = Netlist(tmp_path / "open_top.json")
    processor = found.only("PS7")["connections"]
    clocks = {processor[f"{port}ACLK"][0] for port in ("MAXIGP0", "SAXIHP0", "SAXIHP2")}
    (clk,) = clocks
    assert found.driver(clk) == ("BUFG", "O")
    manager = found.only("MMCME2_ADV")
    assert found.driver(manager["connections"]["CLKIN1"][0]) == ("BUFG", "O")
    assert int(manager["parameters"]["CLKFBOUT_MULT_F"], 2) / int(manager["parameters"]["CLKOUT0_DIVIDE_F"], 2) == 1.0
    block = found.only("accelerator")["connections"]
    for port, name in (("m_axi_0", "SAXIHP0"), ("m_axi_1", "SAXIHP2")):
        for signal in ("ARADDR", "ARLEN", "ARVALID", "AWADDR", "AWLEN", "WDATA", "WSTRB", "WLAST", "RREADY", "BREADY"):
            assert processor[f"{name}{signal}"] == block[f"{port}_{signal}"], (name, signal)
        for signal in ("ARREADY", "RDATA", "RRESP", "RLAST", "RVALID", "AWREADY", "WREADY", "BRESP", "BVALID"):
            assert processor[f"{name}{signal}"] == block[f"{port}_{signal}"], (name, signal)
        assert processor[f"{name}ARID"][1:] == processor[f"{name}WID"][1:] == ["0"] * 5
    assert processor["IRQF2P"] == [block["interrupt"][0], *["0"] * 19]
    assert "SAXIHP1ARVALID" not in processor and "SAXIHP3ARVALID" not in processor
    assert len(block["s_axi_control_ARADDR"]) == 9
    assert all(found.driver(bit)[0] == "FDRE" for bit in block["s_axi_control_ARADDR"])


@pytest.mark.slow
def test_the_netlist_holds_only_what_nextpnr_knows(tmp_path: Path) -> None:
    prepare(SMALL, tmp_path)
    netlist(tmp_path, boxes=("fabric",))
    folder = generate(SMALL, tmp_path / "design")
    for piece in pieces(SMALL):
        unknown = set(synthesize(piece, folder).cells) - SUPPORTED - {name for name, _ in piece.boxes}
        assert not unknown, piece.name


def test_a_cell_that_nextpnr_does_not_know_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(SMALL, tmp_path)
    monkeypatch.setattr("hw.tools.open_flow.write_netlist", lambda *_: {"LUT6": 3, "RAM64X1Q": 1})
    with pytest.raises(BitstreamError, match="does not know the cells RAM64X1Q"):
        netlist(tmp_path)


#: what each tool must be given, and the file that it leaves
TOOLS = {
    "bbasm": '[ "$1" = -l ] && cp "$2" "$3"',
    "nextpnr-xilinx": 'test "$1$3$5$7" = --chipdb--xdc--json--fasm && test -f "$2" && test -f "$4" && test -f "$6" && echo x > "$8"'
    " && echo \"Info: Max frequency for clock 'clk': $CLOCK MHz\"",
    "fasm2frames": 'test "$1$3" = --part--db-root && test -f "$5" && echo frames',
    "xc7frames2bit": 'test "$1$3$5$7" = --part_file--part_name--frm_file--output_file && test -f "$2" && echo bits > "$8"',
    "pypy3": 'test "$2$4" = --device--bba && echo > "$5"',
}


def test_the_script_gives_the_tools_what_they_want_and_the_result_is_collected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build, tools = tmp_path / "build", tmp_path / "bin"
    assert main(["bitstream", "--flow", "open", "--design", "pynq-z2", "--scripts-only", "--build", str(build)]) == 0
    assert "build.sh" in capsys.readouterr().out
    (build / "open_top.json").write_text("{}")
    tools.mkdir()
    for name, text in TOOLS.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(stat.S_IRWXU)
    database = tmp_path / "db" / "zynq7" / "xc7z020clg400-1"
    database.mkdir(parents=True)
    (database / "part.yaml").write_text("")
    environment = {**os.environ, "PATH": f"{tools}:/usr/bin:/bin", "CLOCK": "81.25"}
    done = subprocess.run(["sh", str(build / "build.sh")], capture_output=True, text=True, env=environment)
    assert done.returncode != 0 and "openXC7's nextpnr-xilinx" in done.stderr
    environment |= {"NEXTPNR_XILINX_DIR": str(tmp_path), "PRJXRAY_DB_DIR": str(tmp_path / "db")}
    for _ in range(2):  # the chip's database is made once
        subprocess.run(["sh", str(build / "build.sh")], check=True, env=environment)
        (tools / "bbasm").unlink(missing_ok=True)
    words = ["bitstream", "--flow", "open", "--design", "pynq-z2", "--build", str(build), "--out", str(tmp_path / "o")]
    assert main([*words, "--collect-only"]) == 1
    assert "timing is not met" in (error := capsys.readouterr().err) and "set clock_mhz = 81" in error
    assert main([*words, "--collect-only", "--accept-timing"]) == 0
    design = load_design("pynq-z2")
    package = tmp_path / "o" / package_name(design)
    assert json.loads((package / "pynq-z2.json").read_text())["flow"] == "open"
    assert (package / "pynq-z2.bit").read_text() == "bits\n" and not (package / "pynq-z2.hwh").exists()


def test_a_build_that_has_not_run_is_not_collected(tmp_path: Path) -> None:
    with pytest.raises(BitstreamError, match=r"nextpnr\.log is missing"):
        collect(SMALL, "open", tmp_path, tmp_path / "o")
    (tmp_path / "nextpnr.log").write_text("ERROR: no routing\n")
    with pytest.raises(BitstreamError, match="names no greatest frequency"):
        collect(replace(SMALL), "open", tmp_path, tmp_path / "o")
