"""From a design to an overlay package: HLS or RTL packaging, block design, implementation, reports, collection.

Everything that the tools run is rendered from ``hw/vivado`` beforehand, so that the scripts can be read, kept and
tested without the tools.  Tools are looked for by what they can do, since their names have changed with the releases.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2

from hw import contract
from hw.boards import BOARDS
from hw.design import ROOT, Design
from hw.files import write_atomically
from hw.generate import compile_order, manifest, render
from hw.tools import ports

Flow = Literal["rtl", "hls", "open"]
TEMPLATES = ROOT / "hw" / "vivado"
BUILD_TIMEOUT = 24 * 3600.0  #: seconds for one tool

VIVADO_VERSIONS = "2022.1 (for PYNQ 3.0) or 2024.1 (for PYNQ 3.1)"


class BitstreamError(RuntimeError):
    """A tool is missing or failed, or its reports say that the result must not be used."""


#: identity of the accelerator's block
VLNV = {"vendor": "fractrain", "library": "fabric", "version": "1.0"}


# -- tools ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HlsTool:
    """How to run HLS with what is installed.

    Attributes:
        name: program that decides the era.
        commands: argument lists, one after the other, in the folder of the sources.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]


def find_hls(which: Callable[[str], str | None] = shutil.which) -> HlsTool:
    """The newest way of running HLS that this computer has.

    Raises:
        BitstreamError: none.
    """
    if which("v++") and which("vitis-run"):
        common = ("--mode", "hls", "--config", "fabric.cfg", "--work_dir", "work_hls")
        return HlsTool("v++", (("v++", "-c", *common), ("vitis-run", "--package", *common)))
    if which("vitis-run"):
        return HlsTool("vitis-run", (("vitis-run", "--mode", "hls", "--tcl", "hls.tcl"),))
    if which("vitis_hls"):
        return HlsTool("vitis_hls", (("vitis_hls", "-f", "hls.tcl"),))
    raise BitstreamError(
        "no HLS tool: neither v++ with vitis-run (Vitis 2023.2 and later) nor vitis_hls (2020.2 to 2024.2) is on the "
        "PATH; source settings64.sh of Vitis, or use --flow rtl, which needs Vivado only"
    )


def find_vivado(design: Design, which: Callable[[str], str | None] = shutil.which) -> str:
    """Path of Vivado.

    Raises:
        BitstreamError: there is none.
    """
    found = which("vivado")
    if found is None:
        extra = ""
        if not BOARDS[design.part].free_edition:
            free = " and ".join(part[:7].upper() for part, board in BOARDS.items() if board.free_edition)
            extra = f"; the {design.part[:7].upper()} needs a licence beyond the free edition, {free} do not"
        raise BitstreamError(
            f"vivado is not on the PATH; install {VIVADO_VERSIONS} and source its settings64.sh{extra}. "
            "--scripts-only writes the scripts without it"
        )
    return found


def vivado_version(text: str) -> str | None:
    """Release in what ``vivado -version`` prints, such as "2024.1"."""
    match = re.search(r"\b[vV]ivado v(\d{4}\.\d)", text)
    return match[1] if match else None


# -- scripts ----------------------------------------------------------------------------------------------------------


def _environment(folder: Path) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def package_name(design: Design) -> str:
    """Python name of a design's overlay package."""
    return "fractrain_overlay_" + re.sub(r"\W", "_", design.name)


def render_scripts(design: Design, flow: Flow, jobs: int = 2, accept_timing: bool = False) -> dict[str, str]:
    """Sources and scripts of one build: path relative to the build folder -> text.

    Args:
        design, flow: what is built.
        jobs: parallel runs of Vivado.
        accept_timing: write the bitstream even if a path misses the clock; otherwise the build ends and names the path.

    Raises:
        BitstreamError: the kernel of HLS has not the streams that the memory front end wants.
        ValueError: fewer than one job.
    """
    if flow == "hls" and design.output_streams == 1:
        raise BitstreamError(
            f"the kernel of HLS of {design.name!r} has no second output stream, which the memory front end connects; use "
            "--flow rtl, or set output_streams = 2 in the design"
        )
    if jobs < 1:
        raise ValueError(f"--jobs {jobs} must be at least 1")
    generated, board = render(design), BOARDS[design.part]
    # 7-series primitives for every part, which is what hw/tools/yosys.py counts. For UltraScale+ Vivado must retarget CARRY4,
    # DSP48E1 and LUT6_2 when it links the netlist; one that it could not would be a black box, which ends the build.
    sources = compile_order((n.removeprefix("rtl/") for n in generated if n.startswith("rtl/")), True, True)
    if flow == "hls":  # the kernel takes the place of the stream core, behind the same front end
        sources = [name for name in sources if name == "fabric_pkg.sv" or name.startswith("memory/")]
    files = {f"rtl/{name}": generated[f"rtl/{name}"] for name in sources}
    if flow == "hls":
        files |= {name: text for name, text in generated.items() if name.startswith("hls/")}
    values: dict[str, Any] = {
        "design": design,
        "board": board,
        "flow": flow,
        "jobs": jobs,
        "accept_timing": accept_timing,
        "sources": sources,
        "vlnv": VLNV,
        "ports": {name: value for name, value in vars(ports).items() if name.isupper()},
        "control": ports.control_signals(board),
        "memory": ports.memory_signals(board),
        "registers": ports.register_signals(),
        "strategy": {
            "synthesis": "Flow_PerfOptimized_high",
            "implementation": "Performance_ExplorePostRoutePhysOpt",
            "fan_out": 256,
        },
    }
    environment = _environment(TEMPLATES)
    for name in ("build.tcl", "package_rtl.tcl", "fabric_top.v", "block_design.tcl", "implement.tcl", "fabric.xdc"):
        files[name] = environment.get_template(f"{name}.j2").render(values)
    if flow == "hls":
        files["hls/hls.tcl"] = environment.get_template("hls.tcl.j2").render(values)
        config = files["hls/hls_config.cfg"].splitlines()
        # synthesis needs no test bench, whose stimuli are made by the C simulation
        kept = [line for line in config if not line.startswith(("#", "tb.", "csim.", "syn.csimflags"))]
        files["hls/fabric.cfg"] = "\n".join([*kept, "package.output.file=export.zip"]) + "\n"
    return dict(sorted(files.items()))


def write_scripts(files: dict[str, str], out: Path) -> None:
    """Write the files of :func:`render_scripts` below ``out``, each in one step."""
    for name, text in files.items():
        write_atomically(out / name, text)


def unpack_hls_export(out: Path) -> None:
    """Unpack what HLS has exported into ``hls/export``, from where its Verilog is packaged.

    Raises:
        BitstreamError: no export, or one with names that lead elsewhere.
    """
    exports = sorted((out / "hls").rglob("export.zip"), key=lambda p: p.stat().st_mtime)
    target = out / "hls" / "export"
    if not exports:
        raise BitstreamError(f"HLS left no export.zip below {out / 'hls'}; read its log")
    shutil.rmtree(target, ignore_errors=True)
    with zipfile.ZipFile(exports[-1]) as archive:
        for name in archive.namelist():
            if name.startswith("/") or ".." in Path(name).parts:
                raise BitstreamError(f"{exports[-1]} holds the name {name!r}, which leads out of the folder")
        archive.extractall(target)
    if not (target / "hdl" / "verilog" / "fabric.v").is_file():
        raise BitstreamError(f"{exports[-1]} holds no hdl/verilog/fabric.v; it is no packaged kernel")


# -- reports ----------------------------------------------------------------------------------------------------------


def _number(text: str) -> float | None:
    try:
        return float(text.strip().lstrip("<"))
    except ValueError:
        return None


def parse_timing(text: str) -> dict[str, float]:
    """Slack of a timing summary, nanoseconds: ``wns``, ``tns``, ``failing_endpoints``, ``whs``, ``ths``.

    Raises:
        BitstreamError: the report has no summary table.
    """
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if "WNS(ns)" in line and "WHS(ns)" in line:
            # the column order is fixed; names contain blanks, values do not
            for row in lines[i + 1 : i + 4]:
                values = [v for v in (_number(w) for w in row.split()) if v is not None]
                if len(values) >= 6:
                    return dict(
                        zip(("wns", "tns", "failing_endpoints", "endpoints", "whs", "ths"), values[:6], strict=True)
                    )
    raise BitstreamError("the timing report has no table with WNS and WHS; was the design routed and clocked?")


_ROWS = {
    "lut": ("Slice LUTs", "CLB LUTs"),
    "ff": ("Slice Registers", "CLB Registers"),
    "bram36": ("Block RAM Tile",),
    "uram": ("URAM",),
    "dsp": ("DSPs",),
}


def parse_utilization(text: str) -> dict[str, dict[str, float]]:
    """Used and available resources: ``lut``, ``ff``, ``bram36``, ``dsp`` (and ``uram``) -> ``used``, ``available``.

    Raises:
        BitstreamError: a row is missing.
    """
    found: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip().strip("|").split("|")]
        for name, titles in _ROWS.items():
            if name in found or len(cells) < 4 or cells[0].rstrip("*") not in titles:
                continue
            values = [v for v in map(_number, cells[1:]) if v is not None]
            if len(values) >= 3:  # Used, Fixed, (Prohibited,) Available, Util%
                found[name] = {"used": values[0], "available": values[-2]}
    missing = [n for n in ("lut", "ff", "bram36", "dsp") if n not in found]
    if missing:
        raise BitstreamError(f"the utilisation report has no row for {', '.join(missing)}; is it of this release?")
    return found


def parse_power(text: str) -> float | None:
    """Total on-chip power in watts, as estimated."""
    match = re.search(r"Total On-Chip Power \(W\)\s*\|\s*([0-9.]+)", text)
    return float(match[1]) if match else None


def read_reports(folder: Path, design: Design) -> dict[str, Any]:
    """Summary of the reports in ``folder`` (timing.rpt, utilization.rpt, power.rpt).

    Raises:
        BitstreamError: a report is missing or not understood.
    """
    texts = {}
    for name in ("timing", "utilization", "power"):
        path = folder / f"{name}.rpt"
        if not path.is_file():
            raise BitstreamError(f"{path} is missing; did implementation run to its end?")
        texts[name] = path.read_text(encoding="utf-8", errors="replace")
    timing = parse_timing(texts["timing"])
    period = 1000 / design.clock_mhz
    return {
        "clock_mhz": design.clock_mhz,
        "timing": timing,
        "timing_met": timing["wns"] >= 0 and timing["whs"] >= 0,
        "reachable_mhz": round(1000 / max(period - timing["wns"], 1e-3), 2),
        "utilization": parse_utilization(texts["utilization"]),
        "power_w": parse_power(texts["power"]),
    }


def read_open_report(folder: Path, design: Design) -> dict[str, Any]:
    """The same summary from the log of nextpnr-xilinx (nextpnr.log), which knows the slack of setup alone.

    Raises:
        BitstreamError: the log is missing or names no frequency.
    """
    path = folder / "nextpnr.log"
    if not path.is_file():
        raise BitstreamError(f"{path} is missing; did build.sh run to its end?")
    found = re.findall(r"Max frequency for clock\s+'clk': ([0-9.]+) MHz", path.read_text(encoding="utf-8", errors="replace"))
    if not found:
        raise BitstreamError(f"{path} names no greatest frequency of clock clk; did nextpnr-xilinx route the design?")
    reached = float(found[-1])
    slack = round(1000 / design.clock_mhz - 1000 / reached, 3)
    return {
        "clock_mhz": design.clock_mhz,
        "timing": {"wns": slack},
        "timing_met": slack >= 0,
        "reachable_mhz": reached,
        "utilization": {},
        "power_w": None,
    }


# -- overlay ----------------------------------------------------------------------------------------------------------


def overlay_files(design: Design, flow: Flow, with_driver: bool = True) -> dict[str, str]:
    """Texts of the overlay package, without bitstream and reports: path -> text.

    Args:
        design, flow: what was built.
        with_driver: include the driver and board runtime, so that the board needs no other package.
    """
    package = package_name(design)
    driver = _driver_files() if with_driver else {}
    values: dict[str, Any] = {
        "design": design,
        "board": BOARDS[design.part],
        "contract": contract,
        "vlnv": VLNV,
        "package": package,
        "driver_packages": sorted({str(Path(n).parent).replace("/", ".") for n in driver if "/" in n}),
    }
    environment = _environment(TEMPLATES / "overlay")
    # as Python writes them
    values["parameters"] = {key: json.dumps(v) if isinstance(v, str) else repr(v) for key, v in asdict(design).items()}
    texts = {
        "pyproject.toml": environment.get_template("pyproject.toml.j2").render(values),
        f"{package}/__init__.py": environment.get_template("__init__.py.j2").render(values),
        f"{package}/notebooks/__init__.py": '"""Notebooks of the overlay."""\n',
        f"{package}/notebooks/first_run.ipynb": environment.get_template("first_run.ipynb.j2").render(values),
    }
    # hw.design finds designs by name in configs/designs beside the package
    lines = [f"{key} = {json.dumps(value)}" for key, value in asdict(design).items()]
    texts[f"configs/designs/{design.name}.toml"] = "\n".join(lines) + "\n"
    return {**texts, **driver}


def _driver_files() -> dict[str, str]:
    """Modules that the board imports, and C that it compiles: the driver, its runtime and the contract."""
    files = {"fractrain.py": (ROOT / "fractrain.py").read_text(encoding="utf-8")}
    hardware = ("__init__", "commands/__init__", "commands/completion", "commands/options", "boards", "contract", "design",
                "files", "networks", "nodes", "packet", "pipeline", "tiles", "model/__init__", "model/cycles")  # fmt: skip
    host = [path for ending in ("py", "c") for path in sorted((ROOT / "host").rglob(f"*.{ending}"))]
    rooms = [*host, *sorted((ROOT / "hw" / "plan").glob("*.py"))]
    for path in [*rooms, *(ROOT / "hw" / f"{name}.py" for name in hardware)]:
        files[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
    return files


def collect(
    design: Design,
    flow: Flow,
    results: Path,
    out: Path,
    *,
    accept_timing: bool = False,
    tools: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Overlay package from a finished build.

    Args:
        design, flow: what was built.
        results: folder with ``DESIGN.bit``, ``DESIGN.hwh`` and the reports.
        out: folder of the package; replaced as a whole once it is complete.
        accept_timing: collect even if timing is not met.
        tools: names and versions, for the manifest.

    Returns:
        The overlay's manifest.

    Raises:
        BitstreamError: something is missing, or timing is not met.
    """
    report = read_open_report(results, design) if flow == "open" else read_reports(results, design)
    if not report["timing_met"] and not accept_timing:
        raise BitstreamError(
            f"timing is not met: worst slack {report['timing']['wns']} ns (hold {report['timing'].get('whs', 'unknown')} ns) "
            f"at {report['clock_mhz']:g} MHz; set clock_mhz = {int(report['reachable_mhz'])} or lower in the design, or pass "
            "--accept-timing to have it nevertheless"
        )
    payload = {}
    for suffix in ("bit",) if flow == "open" else ("bit", "hwh"):
        path = results / f"{design.name}.{suffix}"
        if not path.is_file() or not path.stat().st_size:
            raise BitstreamError(f"{path} is missing or empty; did implementation run to its end?")
        payload[suffix] = path.read_bytes()
    summary = {
        **manifest(design, render(design)),
        "board": BOARDS[design.part].name,
        "flow": flow,
        "report": report,
        "tools": tools or {},
    }
    package = package_name(design)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        for name, text in overlay_files(design, flow).items():
            write_atomically(scratch / name, text)
        for suffix, data in payload.items():
            write_atomically(scratch / package / f"{design.name}.{suffix}", data)
        text = json.dumps(summary, indent=2, sort_keys=True) + "\n"
        write_atomically(scratch / package / f"{design.name}.json", text)
        os.chmod(scratch, 0o755)
        if out.exists():
            if not (out / package).is_dir() and any(out.iterdir()):
                raise BitstreamError(f"{out} exists and is no overlay package; name another folder with --out")
            shutil.rmtree(out)
        os.replace(scratch, out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return summary


# -- build ------------------------------------------------------------------------------------------------------------


def run_tool(command: tuple[str, ...], folder: Path, log: Path, timeout: float = BUILD_TIMEOUT) -> None:
    """Run one tool in ``folder`` with its output in ``log``.

    Raises:
        BitstreamError: it failed or did not end; the message quotes its errors and names the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    try:
        with log.open("w", encoding="utf-8") as stream:
            done = subprocess.run(
                command, cwd=folder, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=timeout
            )
    except subprocess.TimeoutExpired as e:
        raise BitstreamError(f"{command[0]} did not end within {timeout / 3600:g} h; see {log}") from e
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if line.startswith(("ERROR", "CRITICAL WARNING", "stub:"))][:10] or lines[-10:]
        raise BitstreamError(
            f"{command[0]} failed with status {done.returncode} after {time.monotonic() - begun:.0f} s; see {log}:\n"
            + "\n".join(errors)
        )


def build(
    design: Design,
    flow: Flow,
    folder: Path,
    jobs: int = 2,
    *,
    accept_timing: bool = False,
    timeout: float = BUILD_TIMEOUT,
) -> dict[str, str]:
    """Render, run HLS if asked for, and implement; results lie in ``folder/out``.

    Tools are looked for before anything is written.

    Returns:
        Tools used and their versions.

    Raises:
        BitstreamError: a tool is missing or failed.
    """
    vivado = find_vivado(design)
    hls = find_hls() if flow == "hls" else None
    shown = subprocess.run([vivado, "-version"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    tools = {"vivado": vivado_version(shown.stdout) or "unknown"}
    write_scripts(render_scripts(design, flow, jobs, accept_timing), folder)
    shutil.rmtree(folder / "out", ignore_errors=True)
    if hls is not None:
        tools["hls"] = hls.name
        for i, command in enumerate(hls.commands):
            run_tool(command, folder / "hls", folder / "log" / f"hls{i}.log", timeout)
        unpack_hls_export(folder)
    command = (vivado, "-mode", "batch", "-notrace", "-nojournal", "-log", "log/vivado.log", "-source", "build.tcl")
    run_tool(command, folder, folder / "log" / "console.log", timeout)
    return tools
