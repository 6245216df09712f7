"""Stands in for the module ``pynq``: Overlay, allocate and MMIO over any simulated fabric, with faults on demand.

The AXI DMAs are modelled by their registers (direct mode), the memory by NumPy arrays whose cached and physical
contents are kept apart, so that a forgotten flush or invalidate gives wrong data as it would on the board.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from host.devices.device import Result
from hw.contract import REGISTER, TRAILER_MAGIC
from hw.design import Design

BASES = {
    "fabric": 0x4000_0000,
    "dma_in0": 0x4040_0000,
    "dma_in1": 0x4041_0000,
    "dma_out0": 0x4042_0000,
    "dma_out1": 0x4043_0000,
}
_GPIO = 0x4120_0000
_AFI = 0xF800_8000
BLOCKS = {**BASES, "fabric_reset": _GPIO}  #: block -> address of its registers


class Buffer(np.ndarray):
    """What ``allocate`` returns: the array is the cached view, ``physical`` what the DMAs see."""

    physical: np.ndarray
    physical_address: int
    board: Board

    def flush(self) -> None:
        self.physical[:] = self
        self.board.cache_operations += 1
        self.board.flushed += self.nbytes

    def invalidate(self) -> None:
        self[:] = self.physical
        self.board.cache_operations += 1

    def freebuffer(self) -> None:
        del self.board.memory[self.physical_address]


class Board:
    """A board whose fabric is ``device`` (any :class:`host.devices.device.Device`).

    Attributes:
        faults: names of the faults to inject into the next program: "stall_in1", "stall_result", "bus_error",
            "decode_error", "truncated_input", "truncated_result", "wrong_word", "dead" (DMAs do not leave their
            halted state; stays until removed).
        memory_limit: bytes of contiguous memory.
        flushed: bytes of all flushes so far.
        raises: what a use of the module raises next, by its name: "allocate", "Overlay", "MMIO".
        on_start: called when a program starts, with the fabric busy; what it raises comes out of the register access.
    """

    def __init__(
        self, device: Any, design: Design, *, length_width: int = 26, gpio: bool = True, hls: bool = False
    ) -> None:
        self.asleep = hls  # an HLS kernel's registers are empty until it has returned once
        self._soft_reset = 0
        self.device, self.design, self.gpio = device, design, gpio
        self.faults: set[str] = set()
        self.memory: dict[int, Buffer] = {}
        self.memory_limit = 64 << 20
        self.cache_operations = 0
        self.flushed = 0
        self.raises: dict[str, Exception] = {}
        self.on_start: Callable[[], None] | None = None
        self.programs = 0
        self.resets = 0
        self.narrow_port = False
        self.hash64 = design.hash64
        self.contract = design.contract_register
        self.outputs = design.output_streams
        self.length_width = length_width
        self.stream_width = 64
        self._next = 0x1000_0000
        self._fabric: dict[int, int] = {}
        self._started = False
        self._dma = {name: dict.fromkeys((0x00, 0x04, 0x18, 0x1C, 0x28), 0) for name in BASES if name != "fabric"}
        self._armed: set[str] = set()
        for registers in self._dma.values():
            registers[0x04] = 1

    @property
    def busy(self) -> bool:
        """Whether a program runs."""
        return self._started

    # -- what the module offers ---------------------------------------------------------------------------------------

    def module(self) -> types.ModuleType:
        """The module object."""
        board = self
        module = types.ModuleType("pynq")

        class Overlay:
            """Hardware description as PYNQ gives it."""

            def __init__(self, path: str) -> None:
                board.fail("Overlay")
                if not str(path).endswith(".bit"):
                    raise OSError(f"{path} is no bitstream")
                self.bitfile_name = str(path)
                common = {"c_sg_length_width": str(board.length_width), "C_INCLUDE_SG": "0"}
                width = str(board.stream_width)
                self.ip_dict: dict[str, Any] = {
                    name: {"phys_addr": base, "addr_range": 0x10000, "parameters": {}} for name, base in BASES.items()
                }
                for name in ("dma_in0", "dma_in1"):
                    self.ip_dict[name]["parameters"] = {**common, "c_m_axis_mm2s_tdata_width": width}
                for name in ("dma_out0", "dma_out1"):
                    self.ip_dict[name]["parameters"] = {**common, "c_s_axis_s2mm_tdata_width": width}
                if board.gpio:
                    self.ip_dict["fabric_reset"] = {"phys_addr": _GPIO, "addr_range": 0x10000, "parameters": {}}

        class Mmio:
            """Register access."""

            def __init__(self, base: int, length: int = 4) -> None:
                board.fail("MMIO")
                self.base, self.length = base, length

            def read(self, offset: int = 0) -> int:
                assert 0 <= offset < self.length and offset % 4 == 0
                return board.read(self.base + offset)

            def write(self, offset: int, value: int) -> None:
                # PYNQ takes plain integers only, no NumPy ones
                assert type(value) is int and 0 <= value < 1 << 32
                assert 0 <= offset < self.length and offset % 4 == 0
                board.write(self.base + offset, value)

        module.Overlay, module.MMIO, module.allocate = Overlay, Mmio, board.allocate  # type: ignore[attr-defined]
        return module

    def fail(self, name: str) -> None:
        """Raise what a test wants ``name`` to raise."""
        if name in self.raises:
            raise self.raises.pop(name)

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> Buffer:
        self.fail("allocate")
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if sum(b.nbytes for b in self.memory.values()) + size > self.memory_limit:
            raise RuntimeError("Failed to allocate Memory!")
        buffer = np.full(shape, 0xABABABABABABABAB, dtype=dtype).view(Buffer)
        buffer.physical = np.full(shape, 0xCDCDCDCDCDCDCDCD, dtype=dtype)
        buffer.physical_address, buffer.board = self._next, self
        self.memory[self._next] = buffer
        self._next += -(-size // 4096) * 4096
        return buffer

    # -- buses --------------------------------------------------------------------------------------------------------

    def read(self, address: int) -> int:
        if _AFI <= address < _AFI + 0x4000:
            return int(self.narrow_port)
        name, offset = self._decode(address)
        if name == "fabric":
            return self._read_fabric(offset)
        if name == "fabric_reset":
            return 0
        base = 0x30 if name.startswith("dma_out") else 0
        return self._dma[name].get(offset - base, 0)

    def write(self, address: int, value: int) -> None:
        name, offset = self._decode(address)
        if name == "fabric_reset":
            if not value:
                self._reset_fabric()
        elif name == "fabric":
            if offset == REGISTER["CTRL"].offset and value & 1:
                self.asleep = False
                self._started = not self._soft_reset
                self._advance()
            elif offset == REGISTER["SOFT_RESET"].offset:
                self._soft_reset = value & 1
                if value & 1:
                    self._reset_fabric()
        else:
            self._write_dma(name, offset - (0x30 if name.startswith("dma_out") else 0), value)

    @staticmethod
    def _decode(address: int) -> tuple[str, int]:
        for name, base in BLOCKS.items():
            if base <= address < base + 0x10000:
                return name, address - base
        raise AssertionError(f"nothing answers at {address:#x}")

    def _read_fabric(self, offset: int) -> int:
        fixed = {"HASH_LO": self.hash64 & 0xFFFFFFFF, "HASH_HI": self.hash64 >> 32, "CONTRACT": self.contract}
        for name, value in fixed.items():
            if offset == REGISTER[name].offset:
                return 0 if self.asleep else value
        if offset == REGISTER["CTRL"].offset:
            return 0 if self._started else 4
        return self._fabric.get(offset, 0)

    def _reset_fabric(self) -> None:
        self._started = False
        self.resets += 1
        self.device.reset()

    def _write_dma(self, name: str, offset: int, value: int) -> None:
        registers = self._dma[name]
        if offset == 0x00 and value & 4:
            registers.update(dict.fromkeys(registers, 0))
            registers[0x04] = 1
            self._armed.discard(name)
            return
        registers[offset] = value
        if offset == 0x00 and value & 1 and "dead" not in self.faults:
            registers[0x04] = 0 if registers[0x04] & 1 else registers[0x04]
        if offset == 0x28:
            assert registers[0x00] & 1, f"{name} was given a length before it ran"
            assert 0 < value < 1 << self.length_width, f"{name} cannot transfer {value} bytes"
            assert value % 8 == 0 and registers[0x18] % 8 == 0, f"{name} has no realignment"
            registers[0x04] = 0
            self._armed.add(name)
            self._advance()

    def _advance(self) -> None:
        """Once everything has been started the whole program runs."""
        if not self._started or len(self._armed) < 2 + self.outputs:
            return
        if self.on_start is not None:
            self.on_start()
        self._armed.clear()
        self.programs += 1
        faults, self.faults = self.faults, set()
        for name, fault, bits in (("dma_in0", "bus_error", 0x21), ("dma_in1", "decode_error", 0x41)):
            if fault in faults:
                self._dma[name][0x04] = bits
                return
        if "stall_in1" in faults:
            self._dma["dma_in0"][0x04] = 2
            return
        words0, words1 = self._stream("dma_in0"), self._stream("dma_in1")
        if "truncated_input" in faults:
            words1 = words1[: max(1, words1.size // 2)]
        result: Result = self.device.run_streams(words0, words1)
        self._registers(result)
        trailer = [TRAILER_MAGIC << 32 | int(result.error), result.counters["PACKETS"] << 32 | result.position]
        out = np.concatenate([result.words, np.array(trailer, dtype=np.uint64)])
        if "wrong_word" in faults and result.words.size:
            out[result.words.size // 2] ^= np.uint64(1)
        if "truncated_result" in faults:
            out = out[: out.size // 2]
        if "stall_result" not in faults:
            self._receive(out)
            self._started = False
        self._dma["dma_in0"][0x04] = self._dma["dma_in1"][0x04] = 2

    def _target(self, name: str) -> tuple[np.ndarray, int]:
        registers = self._dma[name]
        address = registers[0x18] | registers[0x1C] << 32
        buffer = self.memory[address]
        assert registers[0x28] <= buffer.nbytes, f"{name} runs beyond its buffer"
        return buffer.physical, registers[0x28] // 8

    def _stream(self, name: str) -> np.ndarray:
        memory, words = self._target(name)
        return np.array(memory[:words])

    def _receive(self, out: np.ndarray) -> None:
        for k in range(self.outputs):
            name, part = f"dma_out{k}", out[k :: self.outputs]
            memory, words = self._target(name)
            if part.size > words:
                self._dma[name][0x04] = 0x11
                return
            memory[: part.size] = part
            self._dma[name][0x28] = part.size * 8
            self._dma[name][0x04] = 0x1002

    def _registers(self, result: Result) -> None:
        values = {**result.counters, "ERROR": int(result.error), "POSITION": result.position}
        self._fabric = {REGISTER[name].offset: value for name, value in values.items()}


def install(board: Board, monkeypatch: Any) -> Callable[[], None]:
    """Make ``import pynq`` find the board; undone by pytest's ``monkeypatch``."""
    monkeypatch.setitem(sys.modules, "pynq", board.module())
    return lambda: monkeypatch.delitem(sys.modules, "pynq")


def overlay_files(folder: Path, name: str = "fabric") -> Path:
    """An empty bitstream and hardware description; returns the path of the former."""
    (folder / f"{name}.bit").write_bytes(b"")
    (folder / f"{name}.hwh").write_text("")
    return folder / f"{name}.bit"
