"""Runs a step of a job through PYNQ's own classes; started by ``test_stock_pynq.py`` in an environment that has pynq.

PYNQ reaches hardware through a ``Device``.  This one answers for the board of ``substitute_pynq.py``: registers, memory
and DMAs are modelled there, the fabric is a simulation.  Overlay, MMIO, allocate, buffers, the parser of hardware
descriptions and the DMA driver are PYNQ's, as is the driver under test ours, all unmodified.

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
from pynq.lib.dma import DMA
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
    """What the DMAs see of a buffer."""

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
        self.board.cache_operations += 1

    def invalidate(self, bo: int, offset: int, address: int, nbytes: int) -> None:
        cached, physical = self._views(bo, offset, address, nbytes)
        cached[:] = physical
        self.board.cache_operations += 1

    def read_registers(self, address: int, length: int) -> bytes:
        assert length == 4
        return self.board.read(address).to_bytes(4, "little")

    def write_registers(self, address: int, data: bytes) -> None:
        assert len(data) == 4
        self.board.write(address, int.from_bytes(data, "little"))


def hardware_description(board: Board) -> str:
    """A .hwh of the blocks of the board's design: their addresses, and the parameters that drivers read."""
    dma = {
        "C_INCLUDE_SG": 0, "c_include_sg": 0, "c_sg_length_width": board.length_width, "c_include_mm2s": 1,
        "c_include_s2mm": 1, "c_m_axi_mm2s_data_width": 64, "c_m_axi_s2mm_data_width": 64, "c_include_mm2s_dre": 0,
        "c_include_s2mm_dre": 0, "c_micro_dma": 0, "c_addr_width": 32,
        "c_m_axis_mm2s_tdata_width": board.stream_width, "c_s_axis_s2mm_tdata_width": board.stream_width,
    }  # fmt: skip
    ranges, modules = [], []
    for name, base in BLOCKS.items():
        is_dma = name.startswith("dma")
        kind = "axi_dma:7.1" if is_dma else "axi_gpio:2.0" if name == "fabric_reset" else "fabric:1.0"
        parameters = dict(dma) if is_dma else {}
        if is_dma:
            other = "s2mm" if not name.startswith("dma_out") else "mm2s"
            parameters[f"c_include_{other}"] = 0
        listed = "".join(f'<PARAMETER NAME="{k}" VALUE="{v}"/>' for k, v in parameters.items())
        ranges.append(
            f'<MEMRANGE INSTANCE="{name}" BASEVALUE="{base:#x}" HIGHVALUE="{base + 0xFFFF:#x}" MEMTYPE="REGISTER" '
            'SLAVEBUSINTERFACE="S_AXI"/>'
        )
        modules.append(
            f'<MODULE INSTANCE="{name}" FULLNAME="/{name}" MODTYPE="{kind.split(":")[0]}" VLNV="xilinx.com:ip:{kind}">'
            f"<PARAMETERS>{listed}</PARAMETERS></MODULE>"
        )
    return (
        '<EDKSYSTEM><EXTERNALPORTS/><MODULES><MODULE INSTANCE="ps" FULLNAME="/ps" MODTYPE="processing_system7" '
        f'VLNV="xilinx.com:ip:processing_system7:5.5"><PARAMETERS/><MEMORYMAP>{"".join(ranges)}</MEMORYMAP></MODULE>'
        f"{''.join(modules)}</MODULES></EDKSYSTEM>"
    )


def main(job: str, library: str, design_name: str, folder: str) -> None:
    """One step; see the module's docstring."""
    design = load_design(design_name)
    board = Board(LibraryDevice("hls", design, Path(library)), design)
    bitstream = Path(folder) / "fabric.bit"
    bitstream.write_bytes(b"")
    bitstream.with_suffix(".hwh").write_text(hardware_description(board))
    Device.active_device = SimulatedDevice(board)
    device = PynqDevice(design, bitstream)
    assert type(device.overlay) is pynq.Overlay
    assert type(device.overlay.dma_in0) is DMA, "the description must be good enough for PYNQ's own DMA driver"
    training = Training(load_job(Path(job)), FabricEngine(device, keep_rows=False))
    line = training.train_step()
    print(json.dumps({"line": line, "programs": board.programs, "pynq": pynq.__version__}))


if __name__ == "__main__":
    main(*sys.argv[1:])
