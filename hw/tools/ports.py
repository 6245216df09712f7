"""Ports of the block that a bitstream holds beside the processor, as tables that its wrapper is rendered from.

The wrapper (``hw/vivado/fabric_top.v.j2``) is plain Verilog: the processor's control port goes through the bridge to the
accelerator's registers, the accelerator's two memory ports go to ports of the processor's memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from hw.boards import Board

CONTROL, MEMORIES, CLOCK, RESET, INTERRUPT = "s_axi_control", ("m_axi_0", "m_axi_1"), "ap_clk", "ap_rst_n", "interrupt"
REGISTER_ADDRESS_BITS = 9  #: of the accelerator's registers
MASTER_ID_BITS = 6  #: of the memory ports' transactions, on either family; the accelerator uses one identifier


@dataclass(frozen=True)
class Signal:
    """A signal of an AXI interface: its name, its bits, and whether a slave takes it in."""

    name: str
    bits: int
    to_slave: bool = True

    def declaration(self, port: str, slave: bool) -> str:
        """As a port of a Verilog module."""
        size = f"[{self.bits - 1}:0]" if self.bits > 1 else ""
        return f"{'input' if self.to_slave == slave else 'output':<6} wire {size:<6} {port}_{self.name}"


def _address(letter: str, board: Board, id_bits: int, address_bits: int) -> list[Signal]:
    """An address channel."""
    length = 4 if board.protocol == "AXI3" else 8
    sizes = (("ID", id_bits), ("ADDR", address_bits), ("LEN", length), ("SIZE", 3), ("BURST", 2), ("VALID", 1))
    return [Signal(f"A{letter}{name}", bits) for name, bits in sizes] + [Signal(f"A{letter}READY", 1, False)]


def _axi(board: Board, id_bits: int, address_bits: int, data_bits: int) -> list[Signal]:
    """All channels of an AXI interface without the signals that only a master drives."""
    return [
        *_address("R", board, id_bits, address_bits),
        Signal("RID", id_bits, False),
        Signal("RDATA", data_bits, False),
        Signal("RRESP", 2, False),
        Signal("RLAST", 1, False),
        Signal("RVALID", 1, False),
        Signal("RREADY", 1),
        *_address("W", board, id_bits, address_bits),
        Signal("WDATA", data_bits),
        Signal("WSTRB", data_bits // 8),
        Signal("WLAST", 1),
        Signal("WVALID", 1),
        Signal("WREADY", 1, False),
        Signal("BID", id_bits, False),
        Signal("BRESP", 2, False),
        Signal("BVALID", 1, False),
        Signal("BREADY", 1),
    ]


def control_signals(board: Board) -> list[Signal]:
    """Of the control port, as the processor drives it; protection, cache and lock are left open."""
    return _axi(board, board.control_id_bits, board.control_address_bits, 32)


def memory_signals(board: Board) -> list[Signal]:
    """Of a memory port."""
    kinds = [("LOCK", 2 if board.protocol == "AXI3" else 1), ("CACHE", 4), ("PROT", 3)]
    more = [Signal(f"A{letter}{name}", bits) for letter in "RW" for name, bits in kinds]
    if board.protocol == "AXI3":
        more.append(Signal("WID", MASTER_ID_BITS))
    return _axi(board, MASTER_ID_BITS, board.address_bits, 64) + more


def register_signals() -> list[Signal]:
    """Of the AXI4-Lite port of the accelerator's registers."""
    return [
        *(
            signal
            for letter in "RW"
            for signal in (
                Signal(f"A{letter}ADDR", REGISTER_ADDRESS_BITS),
                Signal(f"A{letter}VALID", 1),
                Signal(f"A{letter}READY", 1, False),
            )
        ),
        Signal("RDATA", 32, False),
        Signal("RRESP", 2, False),
        Signal("RVALID", 1, False),
        Signal("RREADY", 1),
        Signal("WDATA", 32),
        Signal("WSTRB", 4),
        Signal("WVALID", 1),
        Signal("WREADY", 1, False),
        Signal("BRESP", 2, False),
        Signal("BVALID", 1, False),
        Signal("BREADY", 1),
    ]
