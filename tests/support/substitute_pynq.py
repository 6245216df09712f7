"""Stands in for the module ``pynq``: Overlay, allocate and MMIO over any simulated fabric, with faults on demand.

The accelerator is modelled by its registers, its memory front end by the one in NumPy. Buffers are NumPy arrays whose cached
and physical contents are kept apart, so that a forgotten flush or invalidate gives wrong data as it would on the board.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import tty
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from host.devices.memory import MemoryDevice, StreamMemory
from hw.boards import BOARDS
from hw.contract import LINE_BEATS, MEMORY_PORTS, MEMORY_REGISTER, REGISTER, Fault, MemoryInterrupt, MemoryStatus
from hw.design import Design

FABRIC = 0x4000_0000
PAGE = 0x1000  #: bytes of registers
BLOCKS = {"fabric": FABRIC}  #: block -> address of its registers
_AFI = 0xF800_8000
_NAMES = {r.offset: name for table in (REGISTER, MEMORY_REGISTER) for name, r in table.items()}


class Buffer(np.ndarray):
    """What ``allocate`` returns: the array is the cached view, ``physical`` what the accelerator sees."""

    physical: np.ndarray
    physical_address: int
    board: Board
    whole: Buffer

    def __array_finalize__(self, obj: Any) -> None:
        if isinstance(obj, Buffer):
            self.whole = getattr(obj, "whole", obj)

    def _part(self) -> slice:
        whole = self.whole
        begin = (self.__array_interface__["data"][0] - whole.__array_interface__["data"][0]) // self.itemsize
        return slice(begin, begin + self.size)

    def flush(self) -> None:
        board = self.whole.board
        board.fail("flush")
        self.whole.physical[self._part()] = self
        board.flushed += self.nbytes

    def invalidate(self) -> None:
        board = self.whole.board
        board.fail("invalidate")
        self[:] = self.whole.physical[self._part()]
        board.invalidated += self.nbytes

    def freebuffer(self) -> None:
        del self.board.memory[self.physical_address]


class Line:
    """The kernel's file of an interrupt, a pseudo-terminal: masked when the interrupt comes, until the driver writes."""

    def __init__(self) -> None:
        self._kernel, self._driver = os.openpty()
        tty.setraw(self._driver)
        self.path = os.ttyname(self._driver)
        self.masked, self.came = True, 0

    def raise_(self) -> None:
        """The line goes high."""
        while select.select([self._kernel], [], [], 0)[0]:
            assert os.read(self._kernel, 4) == (1).to_bytes(4, sys.byteorder)
            self.masked = False
        if not self.masked:
            self.masked, self.came = True, self.came + 1
            os.write(self._kernel, self.came.to_bytes(4, sys.byteorder))


class Board:
    """A board whose stream core is ``device`` (any :class:`host.devices.device.Device`), or whose accelerator is ``front``.

    Attributes:
        faults: names of the faults to inject into the next program: "hang" (no end until it is stopped), "stuck" (a memory
            port never answers: stays busy for good), "wrong_word", "truncated" (the last result is missing), and names of
            ``hw.contract.Fault``, which the memory front end reports.
        memory_limit: bytes of contiguous memory.
        flushed, invalidated: bytes of all cache maintenance so far.
        raises: what a use of the module raises next, by its name: "allocate", "Overlay", "MMIO", "flush", "invalidate".
        line: the kernel's file of the accelerator's interrupt; None: the image has none.
        ends_after: seconds after its start at which a program ends; 0: at once, before the driver can wait.
        looked: reads of STATUS so far.
        on_start: called when a program starts, with the accelerator busy; what it raises comes out of the register access.
    """

    def __init__(self, device: Any, design: Design, *, hls: bool = False, front: MemoryDevice | None = None) -> None:
        self.asleep = hls  # an HLS kernel's registers are empty until it has returned once
        self.device, self.design, self.front = device, design, front
        self.faults: set[str] = set()
        self.memory: dict[int, Any] = {}
        self.memory_limit = 64 << 20
        self.flushed = self.invalidated = 0
        self.raises: dict[str, Exception] = {}
        self.on_start: Callable[[], None] | None = None
        self.line: Line | None = None
        self.ends_after, self.looked = 0.0, 0
        self.programs = self.resets = self.stops = 0
        self.narrow_port = False
        self.hash64 = design.hash64
        self.contract = design.contract_register
        self.busy = False  #: whether a program runs
        self._stuck = False
        self._next = 0x1000_0000
        self._registers: dict[str, int] = {}

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
                self.ip_dict = {"fabric": {"phys_addr": FABRIC, "addr_range": PAGE, "parameters": {}}}

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
                assert type(value) is int and 0 <= value < 1 << 32, value
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
        buffer.physical_address, buffer.board, buffer.whole = self._next, self, buffer
        self.memory[self._next] = buffer
        self._next += -(-size // 4096) * 4096
        return buffer

    # -- registers ----------------------------------------------------------------------------------------------------

    def read(self, address: int) -> int:
        if _AFI <= address < _AFI + 0x4000:
            return int(self.narrow_port)
        name = _NAMES[address - FABRIC]
        fixed = {"HASH_LO": self.hash64 & 0xFFFFFFFF, "HASH_HI": self.hash64 >> 32, "CONTRACT": self.contract}
        if name in fixed:
            return 0 if self.asleep else fixed[name]
        if name == "CTRL":
            return 0 if self.busy else 4
        if name == "STATUS":
            self.looked += 1
            done = MemoryStatus.DONE if self._registers.get("done") else MemoryStatus(0)
            state = MemoryStatus.DRAINING if self._stuck else MemoryStatus(0) if self.busy else MemoryStatus.IDLE
            return int(state | done)
        return self._registers.get(name, 0)

    def write(self, address: int, value: int) -> None:
        name = _NAMES[address - FABRIC]
        if name == "CTRL" and value & 1:
            self.asleep = False
        elif name == "SOFT_RESET":
            assert not self.busy, "the core is reset under the memory front end"
            if value & 1:
                self.resets += 1
                self.device.reset()
        elif name == "START" and value & 1:
            self._start()
        elif name == "INTERRUPT":
            pending = self._registers.get(name, 0) & ~value & MemoryInterrupt.PENDING
            self._registers[name] = pending | value & MemoryInterrupt.ENABLE
        elif name == "STOP" and value & 1 and self.busy:
            self.stops += 1
            if not self._stuck:
                self._end(Fault.STOPPED)
        else:
            self._registers[name] = value

    # -- programs -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        assert not self.busy, "a program is started while another runs"
        self.busy, self._registers["done"] = True, 0
        if self.on_start is not None:
            self.on_start()
        self.programs += 1
        faults, self.faults = self.faults, set()
        if "stuck" in faults:
            self._stuck = True
        if faults & {"hang", "stuck"}:
            return
        if self.ends_after:
            threading.Timer(self.ends_after, self._run, (faults,)).start()
        else:
            self._run(faults)

    def _run(self, faults: set[str]) -> None:
        if named := faults & {f.name for f in Fault}:
            self._end(Fault[named.pop()], 77)
            return
        beats = self._registers["LIMIT"]
        assert beats % LINE_BEATS == 0 and self._registers["PROGRAM"] % LINE_BEATS == 0
        banks = []
        for port in range(MEMORY_PORTS):
            address = self._registers[f"BASE{port}_LO"] | self._registers[f"BASE{port}_HI"] << 32
            if address not in self.memory:
                self._end(Fault.READ_DECERR, self._registers["PROGRAM"])
                return
            banks.append(self.memory[address].physical)
            assert banks[-1].size >= beats, "LIMIT is beyond the buffer"
        front = self.front or StreamMemory(self.device, beats)
        before = np.stack([bank[:beats] for bank in banks], axis=1)
        front.write(0, before.reshape(-1))
        result = front.execute(self._registers["PROGRAM"], self._registers["DEADLINE"])
        after = front.read(0, beats).reshape(before.shape)
        changed = np.argwhere(after != before)
        if changed.size and "wrong_word" in faults:
            after[tuple(changed[len(changed) // 2])] ^= np.uint64(1)
        if changed.size and "truncated" in faults:
            after[tuple(changed[-1])] = before[tuple(changed[-1])]
        for port, bank in enumerate(banks):
            bank[:beats] = after[:, port]
        self._registers |= result.counters
        self._end(result.fault, result.fault_offset, int(result.error), result.position)

    def _end(self, fault: Fault, offset: int = 0, error: int = 0, position: int = 0) -> None:
        self.busy = False
        self._registers |= {
            "FAULT": int(fault),
            "FAULT_OFFSET": offset,
            "ERROR": error,
            "POSITION": position,
            "INTERRUPT": self._registers.get("INTERRUPT", 0) | MemoryInterrupt.PENDING,
        }
        if fault:
            self.device.reset()
        self._registers["done"] = 1  # what the driver sees of an end in another thread
        if self.line is not None and self._registers["INTERRUPT"] & MemoryInterrupt.ENABLE:
            self.line.raise_()


def install(board: Board, monkeypatch: Any) -> Callable[[], None]:
    """Make ``import pynq`` find the board; undone by pytest's ``monkeypatch``."""
    monkeypatch.setitem(sys.modules, "pynq", board.module())
    interrupt = types.ModuleType("pynq.interrupt")
    lines = {} if board.line is None else {BOARDS[board.design.part].interrupt_line: board.line.path}
    interrupt.get_uio_irq = lines.get  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynq.interrupt", interrupt)
    return lambda: monkeypatch.delitem(sys.modules, "pynq")


def overlay_files(folder: Path, name: str = "fabric") -> Path:
    """An empty bitstream and hardware description; returns the path of the former."""
    (folder / f"{name}.bit").write_bytes(b"")
    (folder / f"{name}.hwh").write_text("")
    return folder / f"{name}.bit"
