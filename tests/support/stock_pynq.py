"""Runs a step of a job through PYNQ's own classes; started by ``test_stock_pynq.py`` in an environment that has pynq.

PYNQ reaches hardware through a ``Device``.  This one answers for the board of ``substitute_pynq.py``: registers and memory are
modelled there, the fabric is a simulation.  Overlay, MMIO, allocate, buffers and the parser of hardware descriptions are
PYNQ's, as is the driver under test ours, all unmodified.

    python tests/support/stock_pynq.py job.zip LIBRARY DESIGN FOLDER

drives the compiled simulation LIBRARY and prints the log line of one step and the number of programs as JSON.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pynq
from pynq.buffer import PynqBuffer
from pynq.pl_server.device import Device
from pynq.pl_server.hwh_parser import _HWHZynq
from substitute_pynq import BLOCKS, Board  # its folder is that of this script

from host.board.job import load_job
from host.board.runtime import Training
from host.devices.library import LibraryDevice
from host.devices.pynq_device import PynqDevice
from host.driver.fabric_engine import FabricEngine
from hw.design import load_design

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_READ_WRITE, _PRIVATE_ANONYMOUS = 3, 0x22


class Memory:
    """What the accelerator sees of a buffer."""

    def __init__(self, words: int) -> None:
        self.physical = np.full(words, 0xCDCDCDCDCDCDCDCD, dtype=np.uint64)
        self.nbytes = self.physical.nbytes


class Parser(_HWHZynq):
    """PYNQ's, without the clocks of a processor that is not there."""

    systemgraph = None

    def init_clk_dict(self, mod: Any) -> None:
        """No clocks."""


class SimulatedDevice(Device):
    """A board as PYNQ sees one.  No ``_probe_``, so it is found only where it is made the active device."""

    def __init__(self, board: Board) -> None:
        super().__init__("simulated")
        self.name, self.board = "simulated", board
        self.capabilities = {"REGISTER_RW": True}
        self._next = 0x1000_0000

    def set_bitfile_name(self, bitfile_name: str) -> None:
        self.bitfile_name = bitfile_name
        self.parser = Parser(str(Path(bitfile_name).with_suffix(".hwh")))

    def download(self, bitstream: Any, parser: Any = None) -> None:
        self.post_download(bitstream, parser or self.parser)

    def get_bitfile_metadata(self, bitfile_name: str, partial: bool = False) -> Any:
        return self.parser

    def allocate(self, shape: Any, dtype: Any, **_: Any) -> PynqBuffer:
        count = int(np.prod(shape))
        size = count * np.dtype(dtype).itemsize
        # a buffer gives its memory back with munmap
        address = _LIBC.mmap(None, size, _READ_WRITE, _PRIVATE_ANONYMOUS, -1, 0)
        memory = (ctypes.c_ubyte * size).from_address(address)
        buffer = PynqBuffer(shape, dtype, memory, device=self, device_address=self._next, bo=self._next)
        self.board.memory[self._next] = Memory(-(-size // 8))  # type: ignore[assignment]
        self._next += -(-size // 4096) * 4096
        return buffer

    def _views(self, bo: int, offset: int, address: int, nbytes: int) -> tuple[np.ndarray, np.ndarray]:
        cached = np.frombuffer((ctypes.c_ubyte * nbytes).from_address(address), dtype=np.uint8)
        return cached, self.board.memory[bo].physical.view(np.uint8)[offset : offset + nbytes]

    def flush(self, bo: int, offset: int, address: int, nbytes: int) -> None:
        cached, physical = self._views(bo, offset, address, nbytes)
        physical[:] = cached

    def invalidate(self, bo: int, offset: int, address: int, nbytes: int) -> None:
        cached, physical = self._views(bo, offset, address, nbytes)
        cached[:] = physical

    def read_registers(self, address: int, length: int) -> bytes:
        assert length == 4
        return self.board.read(address).to_bytes(4, "little")

    def write_registers(self, address: int, data: bytes) -> None:
        assert len(data) == 4
        self.board.write(address, int.from_bytes(data, "little"))


def hardware_description() -> str:
    """A .hwh of the block of the board's design: its address, and what PYNQ's parser wants besides."""
    ranges = "".join(
        f'<MEMRANGE INSTANCE="{name}" BASEVALUE="{base:#x}" HIGHVALUE="{base + 0xFFF:#x}" MEMTYPE="REGISTER" '
        'SLAVEBUSINTERFACE="s_axi_control"/>'
        for name, base in BLOCKS.items()
    )
    modules = "".join(
        f'<MODULE INSTANCE="{name}" FULLNAME="/{name}" MODTYPE="fabric" VLNV="fractrain:fabric:fabric:1.0">'
        "<PARAMETERS/></MODULE>"
        for name in BLOCKS
    )
    return (
        '<EDKSYSTEM><EXTERNALPORTS/><MODULES><MODULE INSTANCE="ps" FULLNAME="/ps" MODTYPE="processing_system7" '
        f'VLNV="xilinx.com:ip:processing_system7:5.5"><PARAMETERS/><MEMORYMAP>{ranges}</MEMORYMAP></MODULE>'
        f"{modules}</MODULES></EDKSYSTEM>"
    )


def main(job: str, library: str, design_name: str, folder: str) -> None:
    """One step; see the module's docstring."""
    design = load_design(design_name)
    board = Board(LibraryDevice("hls", design, Path(library)), design)
    bitstream = Path(folder) / "fabric.bit"
    bitstream.write_bytes(b"")
    bitstream.with_suffix(".hwh").write_text(hardware_description())
    Device.active_device = SimulatedDevice(board)
    device = PynqDevice(design, bitstream, beats=1 << 16)
    assert type(device.overlay) is pynq.Overlay
    training = Training(load_job(Path(job)), FabricEngine(device, keep_rows=False))
    line = training.train_step()
    print(json.dumps({"line": line, "programs": board.programs, "pynq": pynq.__version__}))


if __name__ == "__main__":
    main(*sys.argv[1:])
