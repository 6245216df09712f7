"""From a design to a bitstream without the vendor's tools: a netlist of primitives, and openXC7's commands for the rest.

The accelerator, the processor's PS7, an MMCM and clock buffers are all that the netlist holds, so that nothing of it needs
the vendor's blocks.  Yosys writes it here; place and route (nextpnr-xilinx) and the bitstream (Project X-Ray) are run by the
script beside it, where openXC7 is installed.  Zynq-7000 only, as that is what nextpnr-xilinx writes bitstreams for.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from hw.boards import BOARDS, PROCESSOR_CLOCK_MHZ
from hw.design import Design
from hw.files import write_atomically
from hw.tools import ports
from hw.tools.vivado import TEMPLATES, BitstreamError, render_scripts
from hw.tools.yosys import write_netlist

_VCO_MHZ = (600.0, 1200.0)  #: of an MMCM in speed grade -1 (DS187); grade -2 reaches further

#: primitives that nextpnr-xilinx packs for the 7 series: openXC7/nextpnr-xilinx, xilinx/pack.cc (LUTs, flip-flops, SRLs,
#: inverters, wide multiplexers, constants, block RAM), pack_carry_xc7.cc, pack_dram.cc, pack_dsp_xc7.cc,
#: pack_clocking_xc7.cc and pack_io_xc7.cc (PS7)
SUPPORTED = frozenset(
    (
        *(f"LUT{n}" for n in range(1, 7)), "LUT6_2", "INV", "GND", "VCC", "MUXF7", "MUXF8", "CARRY4",
        "FDRE", "FDSE", "FDCE", "FDPE", "FDRE_1", "FDSE_1", "FDCE_1", "FDPE_1", "SRL16E", "SRLC32E",
        "RAM32X1S", "RAM32X1D", "RAM64X1S", "RAM64X1D", "RAM128X1S", "RAM128X1D", "RAM256X1S", "RAM32M", "RAM64M",
        "RAMB18E1", "RAMB36E1", "DSP48E1", "BUFG", "BUFGCTRL", "MMCME2_ADV", "PLLE2_ADV", "PS7",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Clock:
    """How the MMCM makes the clock: its source times ``multiply``, divided by ``divide``."""

    multiply: int
    divide: int

    @property
    def mhz(self) -> float:
        """What comes out."""
        return PROCESSOR_CLOCK_MHZ * self.multiply / self.divide


def clock_for(mhz: float) -> Clock:
    """The fastest clock up to ``mhz`` from whole factors.

    Raises:
        BitstreamError: none, as for less than 5 MHz.
    """
    low, high = (limit / PROCESSOR_CLOCK_MHZ for limit in _VCO_MHZ)
    made = [Clock(m, d) for m in range(int(low), int(high) + 1) for d in range(1, 129)]
    fit = [clock for clock in made if clock.mhz <= mhz * (1 + 1e-9)]
    if not fit:
        raise BitstreamError(f"no MMCM setting gives a clock of at most {mhz:g} MHz; set clock_mhz = 5 or more")
    return max(fit, key=lambda clock: (clock.mhz, clock.multiply))


def render_open(design: Design) -> dict[str, str]:
    """Sources, constraints and script: path relative to the build folder -> text.

    Raises:
        BitstreamError: the part is no Zynq-7000.
    """
    board = BOARDS[design.part]
    if not design.part.startswith("xc7z"):
        raise BitstreamError(f"nextpnr-xilinx writes no bitstream for {design.part}; use --flow rtl, or a Zynq-7000")
    files = {n: t for n, t in render_scripts(design, "rtl").items() if n.startswith("rtl/") or n == "fabric_top.v"}
    control, memory = ports.control_signals(board), ports.memory_signals(board)
    interfaces = [(ports.CONTROL, control), *((port, memory) for port in ports.MEMORIES)]
    names = ["MAXIGP0", *(port.name.replace("_", "") for port in board.memory_ports)]
    values: dict[str, Any] = {
        "design": design,
        "board": board,
        "clock": clock_for(design.clock_mhz),
        "source_mhz": PROCESSOR_CLOCK_MHZ,
        "ports": {name: value for name, value in vars(ports).items() if name.isupper()},
        "interfaces": interfaces,
        "processor": [(*interface, name) for interface, name in zip(interfaces, names, strict=True)],
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES / "open"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    for name in ("open_top.v", "open_top.xdc", "build.sh"):
        files[name] = environment.get_template(f"{name}.j2").render(values)
    return dict(sorted(files.items()))


def netlist(folder: Path, boxes: tuple[str, ...] = (), seconds: float = 4 * 3600) -> dict[str, int]:
    """Netlist ``open_top.json`` of a folder that holds what :func:`render_open` gives; cells by type.

    Args:
        folder: of the build.
        boxes: modules left out, for tests of what is around them.
        seconds: most time that Yosys may take.

    Raises:
        BitstreamError: a cell that nextpnr-xilinx does not know.
        SynthesisError: Yosys is missing, refused the sources or did not end.
    """
    sources = [folder / "rtl" / name for name in _order(folder)]
    cells = write_netlist(
        "open_top", [*sources, folder / "fabric_top.v", folder / "open_top.v"], folder, boxes, seconds
    )
    if unknown := sorted(set(cells) - SUPPORTED - set(boxes)):
        raise BitstreamError(f"nextpnr-xilinx does not know the cells {', '.join(unknown)}; correct the RTL")
    return cells


def _order(folder: Path) -> list[str]:
    """Sources in reading order."""
    from hw.generate import compile_order

    names = (path.relative_to(folder / "rtl").as_posix() for path in (folder / "rtl").rglob("*.sv"))
    return compile_order(names, primitives=True, memory=True)


def prepare(design: Design, folder: Path) -> None:
    """Write the files of :func:`render_open` into a build folder, each in one step."""
    shutil.rmtree(folder / "rtl", ignore_errors=True)
    for name, text in render_open(design).items():
        write_atomically(folder / name, text)
    (folder / "build.sh").chmod(0o755)


def read_cells(path: Path) -> dict[str, dict[str, Any]]:
    """Cells of the top of a netlist in JSON, by name."""
    cells: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["modules"]["open_top"]["cells"]
    return cells
