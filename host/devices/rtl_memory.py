"""The Verilated accelerator with its memory front end, on a memory that answers as real ones do, or worse."""

from __future__ import annotations

import ctypes
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from host.arrays import U64
from host.devices.device import DEFAULT_TIMEOUT, DeviceError, DeviceInfo
from host.devices.library import COUNTERS as CORE_COUNTERS
from host.devices.memory import Memory, MemoryResult
from host.devices.rtl import build_rtl
from hw.contract import MEMORY_COUNTERS, MEMORY_REGISTER, MEMORY_REGISTERS, REGISTER, Error, Fault
from hw.design import ROOT, Design

MEMORY_HARNESS = ROOT / "hw" / "sim" / "memory_harness.cpp"
CLOCK_HZ = 1e5  #: clock cycles that a second of timeout allows
_PAGE = 0x100  #: where the front end's registers begin
_SLOTS = 32  #: registers of a page that the library gives back
_DONE, _LATE, _ASSERTION, _RULE = 0, 1, 3, 4


@dataclass(frozen=True)
class MemoryModel:
    """How the simulated memory answers.  Fields are in the order of the harness's ``Settings``.

    Attributes:
        least_latency, most_latency: clock cycles from an access to its answer, drawn anew for each.
        pauses: chance in 1000 that a channel pauses in a cycle.
        seed: of both, and of the order of reads and writes.
        refuse: response to accesses that touch a beat: 0 none, 2 SLVERR, 3 DECERR.
        refuse_port, refuse_write, refuse_offset: which accesses: the port, 1 for writes, the beat.
        silent_after: number of the access from which on nothing is answered, 0: none.
        silent_cycles: for how long.
        stop_after: clock cycles after which the host stops the program, 0: never.
        clear_after: clock cycles after which the host clears the interrupt, 0: not before the end.
    """

    least_latency: int = 30
    most_latency: int = 30
    pauses: int = 0
    seed: int = 1
    refuse: int = 0
    refuse_port: int = 0
    refuse_write: int = 0
    refuse_offset: int = 0
    silent_after: int = 0
    silent_cycles: int = 0
    stop_after: int = 0
    clear_after: int = 0


def _bind(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        library.memory_create.restype = ctypes.c_void_p
        library.memory_destroy.argtypes = library.memory_reset.argtypes = [ctypes.c_void_p]
        library.memory_interrupts.argtypes, library.memory_interrupts.restype = [ctypes.c_void_p], ctypes.c_uint64
        library.memory_execute.restype = ctypes.c_int
        library.memory_execute.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p, ctypes.c_size_t,  # memory
            ctypes.c_uint32, ctypes.c_uint32,  # program, deadline
            ctypes.c_void_p, ctypes.c_uint64,  # model, most cycles
            ctypes.c_void_p, ctypes.c_void_p,  # registers
        ]  # fmt: skip
    except (OSError, AttributeError) as e:
        raise DeviceError(
            f"{path.name} is no library of the accelerator: {e}; delete it so that it is built again"
        ) from e
    return library


class RtlMemoryDevice:
    """Simulated accelerator with memory, cycle for cycle.  Implements :class:`host.devices.memory.MemoryDevice`.

    Args:
        design: what to build.
        beats: size of the memory, a multiple of 16.
        model: how the memory answers; may be changed between programs.
        sources: other SystemVerilog files than the generated ones (tests break them on purpose).
        timeout: seconds of :data:`CLOCK_HZ` cycles that a program may take beyond its deadline.
    """

    def __init__(
        self,
        design: Design,
        beats: int,
        model: MemoryModel | None = None,
        sources: list[Path] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self._design, self.model, self._timeout = design, model or MemoryModel(), timeout
        self.library: Any = _bind(build_rtl(design, sources, harness=MEMORY_HARNESS, top="accelerator"))
        self._handle = ctypes.c_void_p(self.library.memory_create())
        self.resize(beats)

    def resize(self, beats: int) -> None:
        """Another, empty memory of that many beats, a multiple of 16."""
        self._memory = Memory(beats)
        self.beats, self.write, self.read = beats, self._memory.write, self._memory.read

    def close(self) -> None:
        """Free the instance; the device cannot be used afterwards."""
        handle, self._handle = getattr(self, "_handle", None), ctypes.c_void_p()
        if handle:
            self.library.memory_destroy(handle)

    def __del__(self) -> None:
        self.close()

    @property
    def info(self) -> DeviceInfo:
        return DeviceInfo("rtl", self._design, self._design.hash64)

    @property
    def interrupts(self) -> int:
        """How often the interrupt has come since the device was opened."""
        return int(self.library.memory_interrupts(self._handle))

    def reset(self) -> None:
        """As a reset of the programmable logic: the core's registers and buffers' flags are lost, the memory is not."""
        self.library.memory_reset(self._handle)

    def execute(self, program: int, deadline: int = 0) -> MemoryResult:
        """Run a program; see :class:`host.devices.memory.MemoryDevice`.

        A memory that no longer answers leaves the accelerator draining: it is reset, and the fault is told.

        Raises:
            DeviceError: the program did not end, an assertion of the RTL failed, or the memory was used against its rules.
        """
        if not self._handle:
            raise DeviceError("the rtl device is closed; open another one")
        core, front = (np.zeros(_SLOTS, dtype=np.uint32) for _ in range(2))
        model = np.array(astuple(self.model), dtype=np.uint32)
        words: U64 = self._memory.words
        status = self.library.memory_execute(
            self._handle,
            words.ctypes.data, self.beats,
            program, deadline,
            model.ctypes.data, deadline + max(1, int(self._timeout * CLOCK_HZ)),
            core.ctypes.data, front.ctypes.data,
        )  # fmt: skip
        values = {name: int(core[REGISTER[name].offset // 8]) for name in ("ERROR", "POSITION", *CORE_COUNTERS)}
        values |= {r.name: int(front[(r.offset - _PAGE) // 8]) for r in MEMORY_REGISTERS}
        fault = Fault(values["FAULT"])
        if status != _DONE:
            self.reset()
        if status in (_ASSERTION, _RULE):
            raise DeviceError(
                "rtl: an assertion in the SystemVerilog failed, or the memory was asked for what it does not do; which one is "
                "printed above: correct the RTL"
            )
        if status == _LATE and fault is Fault.NONE:
            state = ", ".join(
                f"{r.name} {values[r.name]}" for r in MEMORY_REGISTERS if r.offset >= MEMORY_REGISTER["STATUS"].offset
            )
            raise DeviceError(
                f"rtl: the program at beat {program} did not end within {self._timeout:g} s ({state}); set a deadline, or "
                "allow more time"
            )
        counters = {name: values[name] for name in (*CORE_COUNTERS, *MEMORY_COUNTERS)}
        if fault is not Fault.NONE:
            return MemoryResult(Error.NONE, 0, counters, fault, values["FAULT_OFFSET"])
        return MemoryResult(Error(values["ERROR"]), values["POSITION"], counters)
