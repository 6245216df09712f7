"""The way to a bitstream without the tools: scripts under a strict stub, reports, probes, overlay package."""

from __future__ import annotations

import io
import json
import re
import shutil
import stat
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from fractrain import main
from hw.boards import BOARDS
from hw.design import ROOT, load_design
from hw.generate import generate
from hw.tools.compile import BIT_SERIAL
from hw.tools.vivado import (
    BitstreamError,
    Flow,
    collect,
    find_hls,
    find_vivado,
    package_name,
    parse_power,
    parse_timing,
    parse_utilization,
    render_scripts,
    vivado_version,
    write_scripts,
)
from hw.tools.yosys import primitive_headers, synthesis_sources
from tests.hw.rtl.test_lint import lint

STUB = ROOT / "tests" / "support" / "vivado_stub.tcl"
TCLSH = shutil.which("tclsh")
needs_tcl = pytest.mark.skipif(TCLSH is None, reason="tclsh is missing: the Tcl scripts cannot be run against the stub")

TIMING = """\
| Design Timing Summary
| ---------------------

    WNS(ns)      TNS(ns)  TNS Failing Endpoints  TNS Total Endpoints      WHS(ns)      THS(ns)  THS Failing Endpoints
    -------      -------  ---------------------  -------------------      -------      -------  ---------------------
      {wns}        0.000                      0               412345        0.021        0.000                      0
"""
UTILIZATION = """\
| Site Type                  |  Used  | Fixed | Prohibited | Available | Util% |
+----------------------------+--------+-------+------------+-----------+-------+
| Slice LUTs                 | 142011 |     0 |          0 |    218600 | 64.96 |
|   LUT as Logic             | 140000 |     0 |          0 |    218600 | 64.04 |
| Slice Registers            | 160234 |     0 |          0 |    437200 | 36.65 |
| Block RAM Tile             |  345.5 |     0 |          0 |       545 | 63.39 |
| DSPs                       |    513 |     0 |          0 |       900 | 57.00 |
"""
POWER = "| Total On-Chip Power (W)  | 7.321        |\n"


def reports(folder: Path, wns: str = "0.104") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "timing.rpt").write_text(TIMING.format(wns=wns))
    (folder / "utilization.rpt").write_text(UTILIZATION)
    (folder / "power.rpt").write_text(POWER)
    return folder


def prepared(design_name: str, flow: Flow, folder: Path) -> Path:
    """Build folder with all scripts, and for HLS with a packaged block."""
    write_scripts(render_scripts(load_design(design_name), flow), folder)
    if flow == "hls":
        verilog = folder / "hls" / "export" / "hdl" / "verilog"
        verilog.mkdir(parents=True)
        (verilog / "fabric.v").write_text("")
    return folder


def stubbed(
    folder: Path, script: str = "build.tcl", tool: str = "vivado", **env: str
) -> subprocess.CompletedProcess[str]:
    assert TCLSH is not None
    command = [TCLSH, str(STUB), tool, str(folder / script), str(reports(folder / "canned"))]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, env=env or None)


@needs_tcl
@pytest.mark.parametrize(
    ("name", "flow"), [("zc706", "rtl"), ("zc706", "hls"), ("pynq-z2", "rtl"), ("zcu104", "hls"), ("sim-small", "rtl")]
)
def test_all_scripts_run_under_the_stub_and_give_an_overlay(name: str, flow: Flow, tmp_path: Path) -> None:
    design = load_design(name)
    folder = prepared(name, flow, tmp_path / "build")
    done = stubbed(folder)
    assert done.returncode == 0, done.stderr
    summary = collect(design, flow, folder / "out", tmp_path / "overlay")
    assert summary["design_hash"] == f"{design.hash64:016x}"
    assert summary["report"]["utilization"]["lut"] == {"used": 142011, "available": 218600}
    package = tmp_path / "overlay" / package_name(design)
    assert {p.suffix for p in package.iterdir() if p.is_file()} == {".py", ".bit", ".hwh", ".json"}


@needs_tcl
@pytest.mark.parametrize("flow", ["hls"])
def test_the_script_for_old_hls_tools(flow: Flow, tmp_path: Path) -> None:
    folder = prepared("zc706", flow, tmp_path)
    done = subprocess.run(
        [str(TCLSH), str(STUB), "vitis_hls", "hls.tcl", str(tmp_path)],
        cwd=folder / "hls",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    script = folder / "hls" / "hls.tcl"
    script.write_text(script.read_text().replace("csynth_design\n", ""))
    done = subprocess.run(
        [str(TCLSH), str(STUB), "vitis_hls", "hls.tcl", str(tmp_path)],
        cwd=folder / "hls",
        capture_output=True,
        text=True,
    )
    assert "export_design before csynth_design" in done.stderr


@needs_tcl
def test_the_vendors_c_simulation_runs_the_code_that_is_synthesized(tmp_path: Path) -> None:
    folder = prepared("sim-small", "hls", tmp_path) / "hls"
    (folder / "stimuli-bit-serial.txt").write_text("")
    done = subprocess.run(
        [str(TCLSH), str(STUB), "vitis_hls", "csim.tcl", str(tmp_path)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    config = (folder / "hls_config.cfg").read_text().splitlines()
    for setting in ("syn.csimflags=", "tb.cflags="):
        assert f"{setting}{BIT_SERIAL}" in config
    # the documented names (UG1399, HLS config file)
    known = {
        "part",
        "clock",
        "flow_target",
        "syn.top",
        "syn.file",
        "syn.csimflags",
        "tb.file",
        "tb.cflags",
        "csim.argv",
    }
    known |= {"package.output.format", "package.output.file"}
    for name in ("hls_config.cfg", "fabric.cfg"):
        lines = (folder / name).read_text().splitlines()
        assert {line.partition("=")[0] for line in lines if "=" in line and not line.startswith("#")} <= known


MISTAKES = [
    ("block_design.tcl", "CONFIG.RESET_PORT", "CONFIG.RESET_PROT", "no property CONFIG.RESET_PROT"),
    ("block_design.tcl", "PRIM_SOURCE {No_buffer}", "PRIM_SOURCE {No_bufer}", "cannot be 'No_bufer'"),
    ("block_design.tcl", "fabric/ap_rst_n", "fabric/ap_rstn", "has no pin ap_rstn"),
    ("block_design.tcl", "fabric/s_axi_control", "fabric/s_axi_ctrl", "has no interface s_axi_ctrl"),
    ("block_design.tcl", "validate_bd_design", "validate_bd_desing", "unknown command validate_bd_desing"),
    ("block_design.tcl", "create_bd_cell -type ip -vlnv", "create_bd_cell -type ip -vnlv", "no option -vnlv"),
    ("block_design.tcl", "proc_sys_reset\n", "proc_sys_rest\n", "Vivado has no block xilinx.com:ip:proc_sys_rest"),
    ("block_design.tcl", "validate_bd_design\nsave_bd_design", "save_bd_design\nvalidate_bd_design", "before validate"),
    ("block_design.tcl", "assign_bd_address\n", "", "address space ps/Data lacks SEG_fabric"),
    ("block_design.tcl", "update_ip_catalog -rebuild\n", "", "no block fractrain:fabric:fabric:1.0"),
    ("block_design.tcl", "fabric/m_axi_1]", "fabric/s_axi_control]", "connected already"),
    ("block_design.tcl", "[get_bd_intf_pins ps/S_AXI_HP2]", "[get_bd_intf_pins fabric/m_axi_0]", "connected already"),
    ("block_design.tcl", "ps/M_AXI_GP0] [get_bd_intf_pins fabric/s_axi_control", "ps/S_AXI_HP0] [get_bd_intf_pins fabric/s_axi_control",
     "one must be master"),
    ("block_design.tcl", "[get_bd_pins ps/S_AXI_HP2_ACLK] ", "", "ps/S_AXI_HP2_ACLK is not connected"),
    ("block_design.tcl", "CONFIG.PCW_USE_S_AXI_HP2 1", "CONFIG.PCW_USE_S_AXI_HP2 0", "has no interface S_AXI_HP2"),
    ("block_design.tcl", "HP2_DATA_WIDTH 64", "HP2_DATA_WIDTH 32", "AXI3/64/6 AXI3/32/6"),
    ("block_design.tcl", "connect_bd_net [get_bd_pins clock/locked]",
     "connect_bd_net [get_bd_pins clock/clk_out1] [get_bd_pins clock/locked]", "drive one net"),
    ("package_rtl.tcl", "ipx::save_core $core", "ipx::save_core", "takes 1 arguments"),
    ("package_rtl.tcl", "set_property top fabric_top ", "set_property topp fabric_top ", "no property topp"),
    ("package_rtl.tcl", "ipx::update_checksums $core\n", "", "before ipx::update_checksums"),
    ("package_rtl.tcl", "ipx::package_project", "ipx::package_projekt", "unknown command ipx::package_projekt"),
    ("package_rtl.tcl", " fabric.sv", "", "no source holds the module fabric"),
    ("package_rtl.tcl", "set_property top fabric_top ", "set_property top fabric ", "takes no SystemVerilog top"),
    ("package_rtl.tcl", "set_property range 4096 $registers\n", "", "address space ps/Data lacks SEG_fabric"),
    ("package_rtl.tcl", "    set_property range 4G $space\n", "", "no address space m_axi_0 with a range"),
    ("package_rtl.tcl", "    set_property master_address_space_ref $name $master\n", "", "no address space fabric/m_axi_0"),
    ("implement.tcl", "report_timing_summary -max_paths", "report_timing_summary -max_path", "no option -max_path"),
    ("implement.tcl", "finish synth_1\n", "", "before synth_1 is finished"),
    ("implement.tcl", "Flow_PerfOptimized_high", "Flow_PerfOptimised_high", "no strategy Flow_PerfOptimised_high"),
    ("implement.tcl", "ARGS.FANOUT_LIMIT 256", "ARGS.FANOUT_LIMIT none", "FANOUT_LIMIT cannot be none"),
    ("implement.tcl", "ARGS.KEEP_EQUIVALENT_REGISTERS true", "ARGS.KEEP_EQUIVALENT true", "no option KEEP_EQUIVALENT"),
    ("implement.tcl", "set_property strategy Performance_ExplorePostRoutePhysOpt [get_runs impl_1]\n",
     "set_property STEPS.SYNTH_DESIGN.ARGS.FANOUT_LIMIT 9 [get_runs synth_1]\n"
     "set_property strategy Flow_PerfOptimized_high [get_runs synth_1]\n", "sets the options of synth_1 anew"),
    ("implement.tcl", "-to_step write_bitstream ", "", "no such file or directory"),
    ("implement.tcl", "open_run impl_1\n", "", "before open_run"),
    ("implement.tcl", "foreach kind {setup hold}", "foreach kind {setup}", "before the slack of hold was read"),
    ("implement.tcl", "close_design\n", "", "while a design is open"),
    ("implement.tcl", "set_property synth_checkpoint_mode None $system\n", "", "reaches the wrapper alone"),
    ("fabric_top.v", "xilinx.com:interface:aximm:1.0 m_axi_1 WDATA", "xilinx.com:interface:axi5:1.0 m_axi_1 WDATA", "no interface"),
    ("fabric_top.v", '    (* X_INTERFACE_INFO = "xilinx.com:interface:aximm:1.0 m_axi_1 RREADY" *)\n', "", "ports and 1"),
    ("fabric_top.v", "PROTOCOL AXI3", "PROTOCOL AXI4", "s_axi_control_ARLEN is not as wide as AXI4 says"),
    ("fabric_top.v", "[3:0]  m_axi_0_ARLEN", "[7:0]  m_axi_0_ARLEN", "m_axi_0_ARLEN is not as wide as AXI3 says"),
]  # fmt: skip


@needs_tcl
@pytest.mark.parametrize(("script", "right", "wrong", "message"), MISTAKES, ids=[m[3] for m in MISTAKES])
def test_the_stub_catches_mistakes(script: str, right: str, wrong: str, message: str, tmp_path: Path) -> None:
    folder = prepared("zc706", "rtl", tmp_path)
    text = (folder / script).read_text()
    assert right in text
    (folder / script).write_text(text.replace(right, wrong, 1))
    done = stubbed(folder)
    assert done.returncode == 1
    assert message in done.stderr, done.stderr


@needs_tcl
def test_scripts_run_in_a_folder_with_a_blank(tmp_path: Path) -> None:
    done = stubbed(prepared("zc706", "rtl", tmp_path / "my board (v2)"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("part", ["xc7z020clg400-1", "xczu7ev-ffvc1156-2-e"])
def test_the_wrapper_connects_every_port(part: str, tmp_path: Path) -> None:
    """Verilator finds ports that do not exist, are left out, or have other bits."""
    files = render_scripts(replace(load_design("sim-small"), part=part), "rtl")
    write_scripts(files, tmp_path)
    (tmp_path / "primitives.v").write_text(primitive_headers())
    sources = re.search(r"foreach name \{(.*?)\}", files["package_rtl.tcl"])
    assert sources is not None
    paths = [tmp_path / "primitives.v", *(tmp_path / "rtl" / name for name in sources[1].split())]
    found = lint([*paths, tmp_path / "fabric_top.v"], "fabric_top")
    # the interrupt has the name that every block gives it, and AXI4 has no WID
    meant = r"SYMRSVDWORD.*'interrupt'|PINCONNECTEMPTY.*'m_axi_[01]_WID'"
    assert [line for line in found if "fabric_top" in line and not re.search(meant, line)] == []


@pytest.mark.parametrize("part", [part for part in BOARDS if part.startswith("xc7z")])
def test_the_masters_share_no_port_of_the_memory_controller(part: str) -> None:
    """HP0 and HP1 meet at one port of the Zynq-7000's controller, HP2 and HP3 at another."""
    halves = [int(port.name.removeprefix("S_AXI_HP")) // 2 for port in BOARDS[part].memory_ports]
    assert sorted(halves) == [0, 1]


def test_a_kernel_of_hls_without_the_second_stream_is_refused() -> None:
    with pytest.raises(BitstreamError, match=r"no second output stream.*--flow rtl"):
        render_scripts(load_design("pynq-z2"), "hls")


def test_the_kernel_of_hls_stands_where_the_stream_core_would() -> None:
    files = render_scripts(load_design("zc706"), "hls")
    assert "rtl/memory/accelerator.sv" in files and "rtl/fabric.sv" not in files
    assert "hls export hdl verilog" in files["package_rtl.tcl"]
    rtl = render_scripts(load_design("zc706"), "rtl")
    for name in ("fabric_top.v", "block_design.tcl", "implement.tcl"):
        assert files[name] == rtl[name], name


@needs_tcl
def test_a_failed_run_names_its_log(tmp_path: Path) -> None:
    done = stubbed(prepared("zc706", "rtl", tmp_path), STUB_FAILED_RUN="impl_1")
    assert done.returncode == 1
    assert "run impl_1 ended with route_design ERROR" in done.stderr
    assert "runme.log" in done.stderr


@needs_tcl
@pytest.mark.parametrize("kind", ["setup", "hold"])
def test_no_bitstream_is_written_of_a_design_that_misses_its_clock(kind: str, tmp_path: Path) -> None:
    folder = prepared("zc706", "rtl", tmp_path / "build")
    done = stubbed(folder, STUB_SLACK=f"{kind} -0.31")
    assert done.returncode == 1
    assert (
        f"no bitstream is written: {kind} is missed by 0.31 ns from a_reg/C to b_reg/D: 12 levels of logic, 2.1 ns in "
        "cells and 4.8 ns in nets, where 6.667 ns are allowed" in done.stderr
    ), done.stderr
    assert not list(folder.rglob("*.bit"))
    assert (folder / "out" / "timing.rpt").is_file()
    write_scripts(render_scripts(load_design("zc706"), "rtl", accept_timing=True), folder)
    done = stubbed(folder, STUB_SLACK=f"{kind} -0.31")
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "zc706.bit").is_file()


def test_a_missing_tool_is_named_with_the_versions_that_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(name: str) -> None:
        return None

    with pytest.raises(BitstreamError, match=r"2022\.1.*2024\.1.*XC7Z045 needs a licence"):
        find_vivado(load_design("zc706"), none)
    with pytest.raises(BitstreamError, match=r"v\+\+ with vitis-run .*vitis_hls .*--flow rtl"):
        find_hls(none)
    assert find_hls(lambda name: name).name == "v++"
    assert find_hls(lambda name: name if name != "v++" else None).name == "vitis-run"
    assert find_hls(lambda name: name if name == "vitis_hls" else None).commands == (("vitis_hls", "-f", "hls.tcl"),)
    assert vivado_version("Vivado v2022.1 (64-bit)\n") == "2022.1"
    assert vivado_version("vivado v2024.1 (64-bit)\n") == "2024.1"
    assert vivado_version("") is None
    if shutil.which("vivado") is None:
        assert command("--design", "zc706", "--build", str(tmp_path / "b")) == 1
        assert "vivado is not on the PATH" in capsys.readouterr().err
        assert not (tmp_path / "b").exists()


def command(*words: str) -> int:
    """Exit status of ``fractrain`` with these words."""
    return main(["bitstream", *words])


@needs_tcl
@pytest.mark.parametrize("flow", ["rtl", "hls"])
def test_the_whole_command_with_stubbed_tools(
    flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Programs named as the vendor's, which run the scripts under the stub."""
    tools = tmp_path / "bin"
    tools.mkdir()
    canned = reports(tmp_path / "canned")
    exported = io.BytesIO()
    with zipfile.ZipFile(exported, "w") as archive:
        archive.writestr("hdl/verilog/fabric.v", "")
    (tmp_path / "export.zip").write_bytes(exported.getvalue())
    texts = {
        "vivado": f'if [ "$1" = -version ]; then echo "Vivado v2024.1 (64-bit)"; exit; fi\n'
        f"exec {TCLSH} {STUB} vivado build.tcl {canned}\n",
        "v++": "test -f fabric.cfg && grep -q syn.top=fabric fabric.cfg && ! grep -q ^tb fabric.cfg\n",
        "vitis-run": f"cp {tmp_path / 'export.zip'} .\n",
    }
    for name, text in texts.items():
        (tools / name).write_text("#!/bin/sh\n" + text)
        (tools / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    words = ("--design", "zc706", "--flow", flow, "--build", str(tmp_path / "b"), "--out", str(tmp_path / "o"))
    assert command(*words) == 0, capsys.readouterr().err
    assert "slack 0.104 ns at 150 MHz" in capsys.readouterr().out
    summary = json.loads((tmp_path / "o" / "fractrain_overlay_zc706" / "zc706.json").read_text())
    assert summary["tools"]["vivado"] == "2024.1"
    assert command(*words, "--collect-only") == 0  # replaces the package
    (tmp_path / "b" / "block_design.tcl").unlink()
    (tools / "vivado").write_text("#!/bin/sh\necho 'ERROR: [Place 30-640] does not fit'\nexit 1\n")
    assert command(*words) == 1
    assert "[Place 30-640] does not fit" in capsys.readouterr().err


def test_reports_of_both_families() -> None:
    assert parse_timing(TIMING.format(wns="-0.310"))["wns"] == -0.31
    newer = UTILIZATION.replace("Slice LUTs ", "CLB LUTs*  ").replace("Slice Registers", "CLB Registers  ")
    assert parse_utilization(newer)["ff"]["available"] == 437200
    assert parse_utilization(UTILIZATION)["bram36"]["used"] == 345.5
    assert parse_power(POWER) == 7.321
    assert parse_power("") is None
    with pytest.raises(BitstreamError, match="no table with WNS"):
        parse_timing("")
    with pytest.raises(BitstreamError, match="no row for lut, ff, bram36, dsp"):
        parse_utilization("")


def test_a_result_that_misses_timing_is_not_collected(tmp_path: Path) -> None:
    design = load_design("zc706")
    folder = reports(tmp_path / "out", wns="-0.500")
    with pytest.raises(BitstreamError, match=r"timing is not met.*set clock_mhz = 139"):
        collect(design, "rtl", folder, tmp_path / "overlay")
    reports(folder)
    with pytest.raises(BitstreamError, match=r"zc706\.bit is missing"):
        collect(design, "rtl", folder, tmp_path / "overlay")
    assert not (tmp_path / "overlay").exists()
    for suffix in ("bit", "hwh"):
        (folder / f"zc706.{suffix}").write_text("x")
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "mine.txt").write_text("keep")
    with pytest.raises(BitstreamError, match="no overlay package"):
        collect(design, "rtl", folder, tmp_path / "overlay")
    assert (tmp_path / "overlay" / "mine.txt").read_text() == "keep"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".overlay")] == []


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "configs" / "designs").glob("*.toml")))
def test_the_bitstream_is_made_of_the_sources_whose_area_is_counted(name: str, tmp_path: Path) -> None:
    design = load_design(name)
    files = render_scripts(design, "rtl")
    counted = [p.relative_to(tmp_path / "rtl").as_posix() for p in synthesis_sources(generate(design, tmp_path))]
    listed = re.search(r"foreach name \{(.*?)\}", files["package_rtl.tcl"])
    assert listed is not None and listed[1].split() == counted
    assert all(files[f"rtl/{source}"] == (tmp_path / "rtl" / source).read_text() for source in counted)


def test_scripts_are_the_same_every_time(tmp_path: Path) -> None:
    for name in ("zc706", "zcu104"):
        design = load_design(name)
        assert design.part in BOARDS
        files = render_scripts(design, "rtl")
        assert files == render_scripts(design, "rtl")
    assert command("--scripts-only", "--design", "zc706", "--flow", "hls", "--build", str(tmp_path)) == 0
    assert (tmp_path / "hls" / "fabric.cfg").is_file()
