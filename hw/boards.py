"""The boards: a record of each, which everything that depends on a board reads.

Standard library only, as designs are read on the board.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PROCESSOR_CLOCK_MHZ = 100  #: of the clock that the processor gives the logic, which makes its own from it


@dataclass(frozen=True)
class PartColumns:
    """How a part's logic stands in columns, for :mod:`hw.tools.placement`.

    Attributes:
        slices: of four LUTs, eight flip-flops and one CARRY4; memory_slices: those whose LUTs may be memory.
        column: slices of the highest column.
        dsp_columns, bram_columns: DSP slices, and blocks of 36 Kib, of each column.
    """

    slices: int
    memory_slices: int
    column: int
    dsp_columns: tuple[int, ...]
    bram_columns: tuple[int, ...]


# Slices and those with memory: the vendor's table of CLB resources of the Zynq-7000 (UG474).  Columns: Project X-Ray's data
# base of configuration frames (openXC7's copy, part.json of xc7z020clg400-1 and xc7z045ffg900-2) tells the columns of block
# RAM and DSP of every clock region; one is 50 slices, 20 DSP slices or 10 BRAM36 high.  The processor takes the upper two
# regions of two columns of each kind.  In the XC7Z045 the transceivers take the place of the last BRAM column in four of
# its seven regions and the PCI Express block that of five blocks; which column lacks those five the frames do not tell.
# Both sums are those of the vendor's overview (DS190).
XC7Z020_COLUMNS = PartColumns(13_300, 4_350, 150, (60,) * 3 + (20,) * 2, (30,) * 4 + (10,) * 2)
XC7Z045_COLUMNS = PartColumns(54_650, 17_600, 350, (140,) * 5 + (100,) * 2, (70,) * 5 + (65, 50, 50, 30))


@dataclass(frozen=True)
class Part:
    """What a chip holds.

    Attributes:
        name: as tools know it.
        lut, ff, bram36, dsp: how many it has.
        grade: its speed grade, as its name tells it.
        routable: percent of the LUT up to which a design with all of its platform is taken to be routable; an assumption
            (beyond about 80 % runs get long and miss their clocks, the less the slower the clock).
        columns: its columns; None where they are not known in slices of the 7 series.
    """

    name: str
    lut: int
    ff: int
    bram36: int
    dsp: int
    grade: str = "-2"
    routable: int = 80
    columns: PartColumns | None = None

    def limit(self, kind: str) -> float:
        """How much of a kind of resource a design may take."""
        return float(getattr(self, kind)) * (self.routable / 100 if kind == "lut" else 1)


@dataclass(frozen=True)
class MemoryPort:
    """A port of the processor to its memory: its name, its clock pin, the settings that give it 64 bits."""

    name: str
    clock: str
    properties: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Board:
    """A board: its chip, its memory, and what Vivado's block design must know of it.

    Attributes:
        part: its chip.
        memory: usable bandwidth of the processor's DDR in bytes/s, 75 % of the raw rate.
        logic_memory: that of the DDR beside the programmable logic, 0 where there is none: **unverified**, see
            :data:`hw.cost.fabric.PL_SOURCE`.
        free_edition: whether Vivado's edition without a licence has the part.
        name: of the board.
        board_part: pattern of Vivado's board files.
        remedy: what to do where Vivado lacks them.
        ps: library block of the processor; ps_rule: its automation rule; automation: settings of that rule.
        ps_properties: settings beyond the board's preset.
        clock_pin, reset_pin, interrupt_pin, control_port, control_clock: names on the processor.
        interrupt_line: number of that interrupt at the processor, as /proc/interrupts counts.
        protocol: "AXI3" or "AXI4", of control and memory ports.
        control_id_bits, control_address_bits: of the control port's transactions.
        memory_ports: of the accelerator's masters 0 and 1, which share no port of the memory controller.
        address_bits: of the masters.
        port_mhz: greatest clock of the processor's AXI ports, which the logic shares: the vendor's switching characteristics
            (DS187, DS191: 250 MHz; DS925: 333 MHz).
        device_memory_mb: megabytes of the processor's memory that the driver takes for the accelerator, both banks together:
            about a quarter, which the kernel must have set aside (cma=) and which leaves the rest to the host's tensors.
    """

    part: Part
    memory: float
    name: str
    board_part: str
    remedy: str
    ps: str
    ps_rule: str
    automation: str
    ps_properties: tuple[tuple[str, str], ...]
    clock_pin: str
    reset_pin: str
    interrupt_pin: str
    interrupt_line: int
    control_port: str
    control_clock: str
    protocol: str
    control_id_bits: int
    control_address_bits: int
    memory_ports: tuple[MemoryPort, ...]
    address_bits: int
    device_memory_mb: int
    logic_memory: float = 0.0
    free_edition: bool = True
    port_mhz: float = 250.0


def _zynq7(part: Part, memory: float, name: str, board_part: str, remedy: str, **more: Any) -> Board:
    """A board with a Zynq-7000."""
    return Board(
        part,
        memory,
        name,
        board_part,
        remedy,
        ps="processing_system7",
        ps_rule="processing_system7",
        automation='make_external "FIXED_IO, DDR" apply_board_preset "1" Master "Disable" Slave "Disable"',
        ps_properties=(
            ("PCW_USE_M_AXI_GP0", "1"),
            ("PCW_FPGA0_PERIPHERAL_FREQMHZ", str(PROCESSOR_CLOCK_MHZ)),
            ("PCW_USE_FABRIC_INTERRUPT", "1"),
            ("PCW_IRQ_F2P_INTR", "1"),
        ),
        clock_pin="FCLK_CLK0",
        reset_pin="FCLK_RESET0_N",
        interrupt_pin="IRQ_F2P",
        interrupt_line=61,
        control_port="M_AXI_GP0",
        control_clock="M_AXI_GP0_ACLK",
        protocol="AXI3",
        control_id_bits=12,
        control_address_bits=32,
        # HP0 and HP1 share a port of the memory controller, HP2 and HP3 another
        memory_ports=tuple(
            MemoryPort(
                f"S_AXI_HP{i}",
                f"S_AXI_HP{i}_ACLK",
                ((f"PCW_USE_S_AXI_HP{i}", "1"), (f"PCW_S_AXI_HP{i}_DATA_WIDTH", "64")),
            )
            for i in (0, 2)
        ),
        address_bits=32,
        **more,
    )


_BOARDS = (
    _zynq7(
        Part("xc7z045ffg900-2", 218_600, 437_200, 545, 900, columns=XC7Z045_COLUMNS),
        3.2e9,  # of 4.26 GB/s: DDR3-1066 x32
        "zc706",
        "xilinx.com:zc706:part0:*",
        "install the ZC706 board files from the XilinxBoardStore",
        device_memory_mb=256,  # of 1 GB
        logic_memory=1e10,
        free_edition=False,
    ),
    _zynq7(
        Part("xc7z020clg400-1", 53_200, 106_400, 140, 220, "-1", routable=85, columns=XC7Z020_COLUMNS),
        1.575e9,  # DDR3-1050 x16
        "pynq-z2",
        "tul.com.tw:pynq-z2:part0:*",
        "put TUL's PYNQ-Z2 board files into data/boards/board_files of Vivado",
        device_memory_mb=112,  # of 512 MB, as PYNQ's image sets 128 aside
    ),
    Board(
        Part("xczu7ev-ffvc1156-2-e", 230_400, 460_800, 312, 1_728),
        14.4e9,  # DDR4-2400 x64
        "zcu104",
        "xilinx.com:zcu104:part0:*",
        "install the ZCU104 board files from the XilinxBoardStore",
        ps="zynq_ultra_ps_e",
        ps_rule="zynq_ultra_ps_e",
        automation='apply_board_preset "1"',
        ps_properties=(
            ("PSU__USE__M_AXI_GP0", "1"),
            ("PSU__MAXIGP0__DATA_WIDTH", "32"),  # as wide as the registers, so that nothing has to convert
            ("PSU__USE__M_AXI_GP1", "0"),
            ("PSU__USE__M_AXI_GP2", "0"),
            ("PSU__FPGA_PL0_ENABLE", "1"),
            ("PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ", str(PROCESSOR_CLOCK_MHZ)),
            ("PSU__USE__IRQ0", "1"),
        ),
        clock_pin="pl_clk0",
        reset_pin="pl_resetn0",
        interrupt_pin="pl_ps_irq0",
        interrupt_line=121,
        control_port="M_AXI_HPM0_FPD",
        control_clock="maxihpm0_fpd_aclk",
        protocol="AXI4",
        control_id_bits=16,
        control_address_bits=40,
        memory_ports=tuple(
            MemoryPort(
                f"S_AXI_HP{i}_FPD",
                f"saxihp{i}_fpd_aclk",
                ((f"PSU__USE__S_AXI_GP{i + 2}", "1"), (f"PSU__SAXIGP{i + 2}__DATA_WIDTH", "64")),
            )
            for i in range(2)
        ),
        address_bits=40,
        device_memory_mb=512,  # of 2 GB
        port_mhz=333.0,
    ),
)

#: boards by the name of their part
BOARDS = {board.part.name: board for board in _BOARDS}
#: what their chips hold
PARTS = {name: board.part for name, board in BOARDS.items()}
