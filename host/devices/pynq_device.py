"""The accelerator on a board, driven through PYNQ: one process, two banks of memory, deadlines everywhere.

The block design (``hw/vivado``) holds the accelerator as ``fabric``, whose registers are all that there is to drive: it
fetches programs and tensors itself from two contiguous buffers. Of PYNQ three things are used - ``Overlay`` to load the
bitstream and find the registers, ``allocate`` for contiguous memory, ``MMIO`` for registers.

Standard library, NumPy and pynq only.
"""

from __future__ import annotations

import importlib
import json
import math
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from host.arrays import U64
from host.devices.device import DEFAULT_TIMEOUT, DeviceError, DeviceInfo, HasWords, Result, check
from host.devices.library import COUNTERS
from host.devices.memory import Memory, MemoryResult, MemoryStreams
from host.devices.zynq.banks import Bank, asked_of_pynq
from host.devices.zynq.fpga_manager import ManagedOverlay
from host.devices.zynq.interrupt import ProgramEnd
from host.devices.zynq.power import PowerMeter, PowerSensor
from host.program.builder import ProgramBuilder
from hw import contract
from hw.boards import BOARDS
from hw.contract import (
    LINE_BEATS,
    MEMORY_COUNTERS,
    MEMORY_PORTS,
    MEMORY_REGISTERS,
    REGISTER,
    REGISTERS,
    Error,
    Fault,
    Flag,
    MemoryStatus,
    Opcode,
    OutputFormat,
    Target,
)
from hw.design import BEAT_BITS, STREAM_BITS, Design
from hw.packet import product, read_entries

RESET_TIMEOUT = 1.0  #: seconds that a reset may take
_OFFSETS = {r.name: r.offset for r in (*REGISTERS, *MEMORY_REGISTERS)}
_MOST_CYCLES = (1 << 32) - 1  #: of the register DEADLINE

# high-performance ports of the Zynq-7000: bit 0 of either control register narrows the port to 32 bits
_AFI_BASE, _AFI_STEP, _AFI_READ, _AFI_WRITE = 0xF8008000, 0x1000, 0x00, 0x14


def _pynq() -> Any:
    try:
        with asked_of_pynq(
            "the Python package pynq cannot be imported", "install 'pynq>=3.0.1,<4' on the board's image"
        ):
            return importlib.import_module("pynq")
    except DeviceError as e:
        if not isinstance(e.__cause__, ModuleNotFoundError) or e.__cause__.name != "pynq":
            raise
        raise DeviceError(
            "the Python package pynq is missing; on the board install 'pynq>=3.0.1,<4' (version 4 has no Zynq-7000), "
            "on another computer use --device rtl or tcp://BOARD:PORT"
        ) from e.__cause__


def self_test_program(design: Design) -> U64:
    """Words of a short program that uses both input streams, all buffers and the array in every direction."""
    rng = np.random.default_rng(5)
    builder = ProgramBuilder(design)
    c, lanes = design.channels, design.lanes
    rows, bits = 3, 3
    codes = rng.integers(0, 1 << bits, size=(1, rows, 1, lanes, c))
    builder.load_packed(Target.A | Target.G, codes, bits)
    builder.load_packed(Target.A, rng.integers(-8, 8, size=(1, rows, 1, lanes, c)), 4, bits)
    builder.load_weights(rng.integers(-4, 4, size=(1, 1, c, contract.TAPS, c)), bits)
    shape = {"images": 1, "rows": rows, "groups": 1, "out_groups": 1, "b_bits": bits}
    signs = Flag.A_SIGNED | Flag.B_SIGNED
    builder.add(product(Opcode.CONV, **shape, a_bits=bits, flags=Flag.B_SIGNED | Flag.A_SUM))
    builder.add(product(Opcode.CONV, **shape, a_bits=4, base_a=bits, flags=signs, format=OutputFormat.INT64))
    accumulated = Flag.A_SIGNED | Flag.ONES | Flag.CLEAR
    builder.add(product(Opcode.WGRAD, **shape, a_bits=4, base_a=bits, flags=accumulated))
    builder.add(read_entries(2 * contract.TAPS * (c + 1)))
    return builder.words()


class PynqDevice:
    """A board with the overlay loaded.  Implements :class:`host.devices.memory.MemoryDevice` and, on top of it,
    :class:`host.devices.device.Device`: a stream program is written to the beginning of the memory, and so overwrites it.

    Args:
        design: that the bitstream was built from.
        overlay: path of the ``.bit`` file (its ``.hwh`` beside it), or a loaded overlay with an ``ip_dict``; None takes
            ``DESIGN.bit`` from the installed overlay packages.
        self_test: run a short program after loading and compare its answer with the reference.
        sensor: board power, read by a thread while programs run: results then count ``ENERGY_UJ``.  None measures none.
        beats: size of the memory in beats of 16 bytes, a multiple of 256; None takes what the board has for it.
        timeout: seconds that a program without a deadline may take.

    Attributes:
        end: how the end of a program is learned, ``end.way`` in words: by interrupt, or by polling and why.

    Raises:
        DeviceError: no pynq or one that does not work here, a bitstream of another design, a wrong port width, too little
            memory, a failed self-test, or a sensor that cannot be read.
    """

    def __init__(
        self,
        design: Design,
        overlay: Any = None,
        *,
        self_test: bool = True,
        sensor: PowerSensor | None = None,
        beats: int | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self._design, self._timeout = design, timeout
        self.beats = (BOARDS[design.part].device_memory_mb << 20) * 8 // BEAT_BITS if beats is None else beats
        if self.beats < LINE_BEATS or self.beats % LINE_BEATS:
            raise ValueError(f"a memory of {self.beats} beats; choose a multiple of {LINE_BEATS}")
        self._pynq = _pynq()
        self._banks: list[Bank] = []
        self._meter: PowerMeter | None = None
        self._unfinished = False  # a program was abandoned and the reset after it did not end
        self.energy = 0.0  #: joules of all programs so far, of the whole board; 0 without a sensor
        self.overlay = self._load(overlay)
        self._fabric = self._mmio("fabric")
        self.end = ProgramEnd(BOARDS[design.part].interrupt_line, self._ended, partial(self._set, "INTERRUPT"))
        self._wake()
        self._hash = self._check_identity()
        self._check_port_width()
        try:
            for port in range(MEMORY_PORTS):
                self._banks.append(Bank(self._pynq, f"bank {port}", self.beats))
            self.reset()
            if self_test:
                self.self_test()
            if sensor is not None:
                self._meter = PowerMeter(sensor)
        except BaseException:
            self.close()
            raise

    # -- loading ----------------------------------------------------------------------------------------------------

    def _load(self, overlay: Any) -> Any:
        if overlay is not None and not isinstance(overlay, str | Path):
            return overlay
        path = f"{self._design.name}.bit" if overlay is None else str(overlay)
        if overlay is not None:
            bit = Path(path)
            if bit.is_file() and self._check_manifest(bit) == "open":
                with asked_of_pynq("PYNQ has no Clocks", "install 'pynq>=3.0.1,<4' on the board's image"):
                    clocks = importlib.import_module("pynq").Clocks
                return ManagedOverlay(bit, clocks)
            for needed in (bit, bit.with_suffix(".hwh")):
                if not needed.is_file():
                    raise DeviceError(f"{needed} does not exist; an overlay is a .bit and a .hwh of the same name")
        with asked_of_pynq(
            f"overlay {path} cannot be loaded",
            f"install the overlay package of design {self._design.name!r} or give the path of its .bit, run as root, and "
            "see that the .hwh is of this bitstream and of the Vivado release that this PYNQ reads (docs/board.md)",
        ):
            return self._pynq.Overlay(path)

    def _check_manifest(self, bit: Path) -> str:
        """A manifest beside the bitstream is compared before the chip is touched; the flow that it names, or ""."""
        path = bit.with_suffix(".json")
        if not path.is_file():
            return ""
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            found, version = str(manifest["design_hash"]), int(manifest["contract_version"])
            flow = str(manifest.get("flow", ""))
        except (ValueError, KeyError, TypeError, OSError) as e:
            raise DeviceError(f"{path} is not a manifest ({e!r}); collect the overlay again") from e
        if found != f"{self._design.hash64:016x}" or version != contract.VERSION:
            raise DeviceError(
                f"{bit.name} was built from design {found}, contract {version}; {self._design.name!r} "
                f"is {self._design.hash64:016x}, contract {contract.VERSION}: name the right design or build again"
            )
        return flow

    @property
    def _blocks(self) -> dict[str, Any]:
        with asked_of_pynq(
            "the overlay does not say what it holds", "build it with fractrain bitstream and keep its .hwh beside it"
        ):
            return dict(self.overlay.ip_dict)

    def _mmio(self, name: str) -> Any:
        blocks = self._blocks
        if name not in blocks:
            raise DeviceError(
                f"the overlay has no block {name!r} but {', '.join(sorted(blocks)) or 'none'}; "
                "build it with fractrain bitstream"
            )
        with asked_of_pynq(
            f"the registers of block {name!r} cannot be reached",
            "run as root; if the description of the block is incomplete, build the overlay with fractrain bitstream",
        ):
            return self._pynq.MMIO(int(blocks[name]["phys_addr"]), int(blocks[name]["addr_range"]))

    def _register(self, name: str) -> int:
        return int(self._fabric.read(_OFFSETS[name]))

    def _set(self, name: str, value: int) -> None:
        self._fabric.write(_OFFSETS[name], value)

    def _wake(self) -> None:
        """A kernel made by HLS fills its identity registers when it first returns: start it once with nothing to do."""
        if self._register("HASH_LO") or self._register("HASH_HI") or not self._register("CTRL") & 4:
            return
        self._set("SOFT_RESET", 1)
        self._set("CTRL", 1)
        deadline = time.monotonic() + RESET_TIMEOUT
        while not self._register("CTRL") & 4 and time.monotonic() < deadline:
            time.sleep(1e-3)
        self._set("SOFT_RESET", 0)

    def _check_identity(self) -> int:
        """Hash, contract version, channels and stream width as the hardware tells them."""
        found = self._register("HASH_LO") | self._register("HASH_HI") << 32
        value = self._register("CONTRACT")
        expected = self._design.contract_register
        if found in (0, (1 << 64) - 1):
            raise DeviceError(
                f"the fabric's hash register reads {found:#x}: no clock, a held reset or a wrong address; load the "
                "overlay again"
            )
        if value & 0xFF != contract.VERSION:
            raise DeviceError(
                f"the overlay speaks contract version {value & 0xFF}, this driver {contract.VERSION}; "
                "install driver and overlay of the same release"
            )
        if value >> 16 & 0xFF != STREAM_BITS:
            raise DeviceError(
                f"the overlay's streams have {value >> 16 & 0xFF} bits, not {STREAM_BITS}; rebuild the overlay"
            )
        if found != self._design.hash64 or value != expected:
            raise DeviceError(
                f"the overlay holds design {found:016x} ({value >> 8 & 0xFF} channels), design {self._design.name!r} "
                f"is {self._design.hash64:016x} ({self._design.channels}): load the right overlay or name its design"
            )
        return found

    def _check_port_width(self) -> None:
        """Zynq-7000 only: boot loaders may leave the memory ports 32 bits wide, which loses every other word half."""
        if not self._design.part.startswith("xc7z"):
            return
        for port in (int(port.name.removeprefix("S_AXI_HP")) for port in BOARDS[self._design.part].memory_ports):
            with asked_of_pynq(f"the settings of memory port HP{port} cannot be read", "run as root"):
                afi = self._pynq.MMIO(_AFI_BASE + port * _AFI_STEP, 0x1000)
            for offset, direction in ((_AFI_READ, "read"), (_AFI_WRITE, "write")):
                if int(afi.read(offset)) & 1:
                    raise DeviceError(
                        f"memory port HP{port} is {direction} with 32 bits, the accelerator uses 64; boot with an image whose "
                        "first-stage loader was built for 64-bit HP ports (docs/board.md)"
                    )

    def self_test(self) -> None:
        """Run a short program and compare every word with the reference.

        Raises:
            DeviceError: a difference; the message names the first.
        """
        from host.devices.reference import ReferenceDevice

        words = self_test_program(self._design)
        expected = check(ReferenceDevice(self._design).run(words), "the self-test")
        got = check(self.run(words, timeout=10.0), "the self-test")
        if got.words.size != expected.words.size:
            raise DeviceError(
                f"self-test: {got.words.size} result words instead of {expected.words.size}; rebuild the overlay"
            )
        wrong = np.flatnonzero(got.words != expected.words)
        if wrong.size:
            at = int(wrong[0])
            nature = "all of them zero" if not got.words.any() else f"first word {at}: {int(got.words[at]):016x}"
            raise DeviceError(
                f"self-test: {wrong.size} of {expected.words.size} result words are wrong ({nature}, expected "
                f"{int(expected.words[at]):016x}); check timing reports, port widths and clock (docs/board.md)"
            )

    # -- running ----------------------------------------------------------------------------------------------------

    @property
    def info(self) -> DeviceInfo:
        return DeviceInfo("pynq", self._design, self._hash)

    # -- memory -----------------------------------------------------------------------------------------------------

    def _opened(self) -> list[Bank]:
        """The banks of a device that is open."""
        if not self._banks:
            raise DeviceError("the pynq device is closed; open another one")
        return self._banks

    def write(self, offset: int, words: U64) -> None:
        """See :class:`host.devices.memory.MemoryDevice`."""
        Memory.whole_beats(words)
        Memory.within(self.beats, offset, words.size // MEMORY_PORTS)
        for port, bank in enumerate(self._opened()):
            bank.write(offset, np.ascontiguousarray(words[port::MEMORY_PORTS], dtype=np.uint64))

    def read(self, offset: int, beats: int) -> U64:
        """See :class:`host.devices.memory.MemoryDevice`."""
        Memory.within(self.beats, offset, beats)
        words = np.empty(MEMORY_PORTS * beats, dtype=np.uint64)
        for port, bank in enumerate(self._opened()):
            bank.read(offset, words[port::MEMORY_PORTS])
        return words

    # -- running ----------------------------------------------------------------------------------------------------

    def execute(self, program: int, deadline: int = 0) -> MemoryResult:
        """Run a program in memory; see :class:`host.devices.memory.MemoryDevice`.

        Whatever ends it before its time, an interrupt from the keyboard too, the accelerator is stopped and reset, so that
        the next program runs.

        Raises:
            DeviceError: no end within the deadline and the time that a reset takes, or, without a deadline, within the
                device's timeout; another overlay was loaded meanwhile. The message holds the state of the registers.
        """
        self._opened()
        if self._unfinished:
            self.reset()
        try:
            return self._execute(program, deadline)
        except DeviceError as e:
            try:
                state = ", ".join(f"{name} {self._register(name):#x}" for name in _DUMPED)
            except Exception as unread:
                state = f"the registers cannot be read: {unread}"
            outcome = "the device was reset and takes the next program"
            try:
                self.reset()
            except DeviceError as failed:
                outcome = f"and the reset failed: {failed}"
            raise DeviceError(f"pynq: {e} [{state}]; {outcome}") from e
        except BaseException:
            with suppress(Exception):  # the next program tries again, and says so if that fails
                self.reset()
            raise

    def _execute(self, program: int, deadline: int) -> MemoryResult:
        """Start, wait and collect; leaves everything as it is on an exception."""
        if not self._register("STATUS") & MemoryStatus.IDLE:
            raise DeviceError("the accelerator is not idle before the program")
        self._unfinished = True
        self._set("PROGRAM", program)
        self._set("DEADLINE", deadline)
        seconds = deadline / (self._design.clock_mhz * 1e6) + RESET_TIMEOUT if deadline else self._timeout
        joules: float | None = None
        begun = time.monotonic()
        if self._meter is not None:
            self._meter.start()
        try:
            self.end.expect()
            self._set("START", 1)
            if not self.end.wait(begun + seconds):
                raise DeviceError(f"no end within {seconds:.3g} s of the program at beat {program}; allow more time")
        finally:
            if self._meter is not None:
                joules = self._meter.stop()
        counters = {name: self._register(name) for name in (*COUNTERS, *MEMORY_COUNTERS)}
        fault, error = self._register("FAULT"), self._register("ERROR")
        if fault not in set(Fault) or error not in set(Error):
            raise DeviceError(f"fault {fault} and error {error} are not of the contract; rebuild the overlay")
        if self._check_identity() != self._hash:
            raise DeviceError("another overlay was loaded meanwhile")
        self._unfinished = False
        self.end.quiet()
        if joules is not None:
            self.energy += joules
            counters["ENERGY_UJ"] = round(joules * 1e6)
        if fault:
            offset = self._register("FAULT_OFFSET")
            self.reset()  # of a kernel made by HLS the register that stops it would stay set
            return MemoryResult(Error.NONE, 0, counters, Fault(fault), offset)
        return MemoryResult(Error(error), self._register("POSITION") if error else 0, counters)

    def _ended(self) -> bool:
        return bool(self._register("STATUS") & MemoryStatus.DONE)

    def run(self, program: HasWords | U64, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Run a stream program; see :class:`host.devices.device.Device`.

        Raises:
            DeviceError: see :meth:`execute`; a fault, or a program that does not fit the memory.
        """
        if not math.isfinite(timeout):
            raise ValueError(f"timeout {timeout} must be a finite number of seconds")
        cycles = min(_MOST_CYCLES, max(1, int(timeout * self._design.clock_mhz * 1e6)))
        return MemoryStreams(self, self._place, cycles).run(program, timeout)

    def run_streams(self, words0: U64, words1: U64, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Not here: a program in memory has one length.

        Raises:
            ValueError: always.
        """
        return MemoryStreams(self, self._place).run_streams(words0, words1, timeout)

    def _place(self, beats: int) -> int:
        """Where a stream program lies."""
        if beats > self.beats:
            raise DeviceError(
                f"the program needs {beats} beats with its results, and the memory has {self.beats}: split the program, or "
                "open the device with more"
            )
        return 0

    def reset(self) -> None:
        """Back to idle, whatever was under way: accesses that were begun are finished, then the core is reset.

        Raises:
            DeviceError: the accelerator does not come back.
        """
        if not self._register("STATUS") & MemoryStatus.IDLE:
            self._set("STOP", 1)
            self._idle("STATUS", MemoryStatus.IDLE)
        self.end.quiet()
        self._set("SOFT_RESET", 1)
        self._set("SOFT_RESET", 0)  # a kernel made by HLS would find it set at its next start
        self._idle("CTRL", 4)
        for port, bank in enumerate(self._banks):
            self._set(f"BASE{port}_LO", bank.address & 0xFFFFFFFF)
            self._set(f"BASE{port}_HI", bank.address >> 32)
        self._set("LIMIT", self.beats)
        self._unfinished = False

    def _idle(self, name: str, bit: int) -> None:
        """Until a bit of a register is set."""
        deadline = time.monotonic() + RESET_TIMEOUT
        while not self._register(name) & bit:
            if time.monotonic() > deadline:
                raise DeviceError(
                    f"the accelerator is not idle {RESET_TIMEOUT:g} s after a reset ({name} {self._register(name):#x}); load "
                    "the overlay again, or switch the board off and on"
                )

    def close(self) -> None:
        """Free the contiguous memory; the device cannot be used afterwards."""
        if self._meter is not None:
            self._meter.close()
        self.end.close()
        banks, self._banks = self._banks, []
        for bank in banks:
            bank.free()


#: registers that messages show
_DUMPED = (
    "CTRL",
    *(r.name for r in MEMORY_REGISTERS if "r" in r.access),
    *(r.name for r in REGISTERS if r.offset >= REGISTER["ERROR"].offset),
)
