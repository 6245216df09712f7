"""Devices that live in a shared library: the compiled HLS kernel and the Verilated RTL, behind one C interface.

A library offers ``fabric_create``, ``fabric_destroy``, ``fabric_reset`` and ``fabric_run``; every instance has its own
handle, so several devices live in one process.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from host.devices.device import (
    DEFAULT_TIMEOUT,
    U64,
    DeviceError,
    DeviceInfo,
    HasWords,
    Result,
    parse_output,
    program_words,
    split_streams,
)
from hw.contract import HEADER_WORDS, REGISTER, REGISTERS, Error, Opcode
from hw.design import Design
from hw.packet import Packet, check_header

REGISTER_SLOTS = max(r.offset for r in REGISTERS) // 8 + 1
COUNTERS = tuple(r.name for r in REGISTERS if r.doc.startswith("counter"))

_DONE, _DEADLINE, _CAPACITY, _ASSERTION = 0, 1, 2, 3
_FIRST_CAPACITY = 1 << 16  #: words
_MOST_CAPACITY = 1 << 28


def _bind(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        words, size = ctypes.c_void_p, ctypes.c_size_t
        library.fabric_create.restype = ctypes.c_void_p
        library.fabric_create.argtypes = []
        library.fabric_destroy.restype = None
        library.fabric_destroy.argtypes = [ctypes.c_void_p]
        library.fabric_reset.restype = None
        library.fabric_reset.argtypes = [ctypes.c_void_p]
        library.fabric_run.restype = ctypes.c_int
        library.fabric_run.argtypes = [
            ctypes.c_void_p,
            words, size,  # stream 0
            words, size,  # stream 1
            words, size, ctypes.POINTER(size),  # output
            words,  # registers
            ctypes.c_uint64,
        ]  # fmt: skip
    except (OSError, AttributeError) as e:
        raise DeviceError(f"{path.name} is no library of the fabric: {e}; delete it so that it is built again") from e
    return library


class LibraryDevice:
    """A fabric in a shared library.  Implements :class:`host.devices.device.Device`.

    Args:
        kind: "hls" or "rtl".
        design: what the library was built from; its hash must be the library's.
        path: the library.
        clock_hz: clock cycles that a second of timeout allows, for libraries that count cycles.
    """

    def __init__(self, kind: str, design: Design, path: Path, clock_hz: float = 1e5) -> None:
        self._kind, self._design, self._clock_hz = kind, design, clock_hz
        self.library: Any = _bind(Path(path))
        self.handle = ctypes.c_void_p(self.library.fabric_create())
        if not self.handle:
            raise DeviceError(f"no memory for a {kind} device of design {design.name!r}")
        self._out: U64 = np.empty(_FIRST_CAPACITY, dtype=np.uint64)
        self._registers = np.zeros(REGISTER_SLOTS, dtype=np.uint32)
        self._hash: int | None = None

    def close(self) -> None:
        """Free the instance; the device cannot be used afterwards."""
        handle, self.handle = getattr(self, "handle", None), ctypes.c_void_p()
        if handle:
            self.library.fabric_destroy(handle)

    def __del__(self) -> None:
        self.close()

    @property
    def info(self) -> DeviceInfo:
        return DeviceInfo(self._kind, self._design, self._design.hash64 if self._hash is None else self._hash)

    def run(self, program: HasWords | U64, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Run a program; see :class:`host.devices.device.Device`."""
        in0, in1 = split_streams(program_words(program))
        # a program that knows its number of results spares a walk over its headers
        known = getattr(program, "result_words", None)
        return self._run(in0, in1, timeout, result_bound(in0, in1, self._design) if known is None else known + 2)

    def run_streams(self, words0: U64, words1: U64, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Run from two streams with TLAST on the last word of each.

        Raises:
            DeviceError: no trailer in time, a malformed one, or a library of another design.
            ValueError: an empty stream, which cannot carry TLAST.
        """
        if words0.size == 0 or words1.size == 0:
            raise ValueError("a stream needs at least one word, which carries TLAST")
        in0 = np.ascontiguousarray(words0, dtype=np.uint64)
        in1 = np.ascontiguousarray(words1, dtype=np.uint64)
        return self._run(in0, in1, timeout, result_bound(in0, in1, self._design))

    def _run(self, in0: U64, in1: U64, timeout: float, bound: int) -> Result:
        """Run from two contiguous streams a program that sends at most ``bound`` words."""
        if not self.handle:
            raise DeviceError(f"the {self._kind} device is closed; open another one")
        self._reserve(bound)
        count = ctypes.c_size_t()
        status = self.library.fabric_run(
            self.handle,
            in0.ctypes.data, in0.size,
            in1.ctypes.data, in1.size,
            self._out.ctypes.data, self._out.size, ctypes.byref(count),
            self._registers.ctypes.data,
            max(1, int(timeout * self._clock_hz)),
        )  # fmt: skip
        if status == _DEADLINE:
            state = ", ".join(f"{r.name} {self._register(r.name)}" for r in REGISTERS if r.offset >= 0x30)
            raise DeviceError(
                f"{self._kind}: no trailer within {timeout:g} s of {in0.size + in1.size} words ({state}); "
                "reset the device, check the program's TLAST, or allow more time"
            )
        if status == _CAPACITY:
            raise DeviceError(
                f"{self._kind}: more than the {self._out.size} result words that the program's headers ask for; "
                "rebuild the device"
            )
        if status == _ASSERTION:
            raise DeviceError(
                f"{self._kind}: an assertion in the SystemVerilog failed, printed above with file and line; the RTL breaks "
                "a rule of its own: correct it, or reset the device to go on"
            )
        if status != _DONE:
            raise DeviceError(f"{self._kind}: fabric_run returned {status}, not a known status; rebuild the device")
        self._check_identity()
        counters = {name: self._register(name) for name in COUNTERS}
        return parse_output(self._out[: count.value].copy(), counters)

    def reset(self) -> None:
        """Back to idle."""
        self.library.fabric_reset(self.handle)

    def _register(self, name: str) -> int:
        return int(self._registers[REGISTER[name].offset // 8])

    def _reserve(self, needed: int) -> None:
        """Room for everything that the program can send."""
        if needed > _MOST_CAPACITY:
            raise DeviceError(
                f"{self._kind}: the program may send {needed} words, more than {_MOST_CAPACITY}; split the program"
            )
        if needed > self._out.size:
            self._out = np.empty(max(needed, 2 * self._out.size), dtype=np.uint64)

    def _check_identity(self) -> None:
        """The registers must tell the design that this device was opened with."""
        found = self._register("HASH_LO") | self._register("HASH_HI") << 32
        contract_value = self._design.contract_register
        if found != self._design.hash64 or self._register("CONTRACT") != contract_value:
            raise DeviceError(
                f"{self._kind}: registers tell design {found:016x}, contract {self._register('CONTRACT'):#x}; design "
                f"{self._design.name!r} is {self._design.hash64:016x}, contract {contract_value:#x}: rebuild the device"
            )
        self._hash = found


def result_bound(in0: U64, in1: U64, design: Design) -> int:
    """Words that a program can send at most, trailer included, from its headers up to the first that is none."""
    beats, header_beats = min(in0.size, in1.size), HEADER_WORDS // 2
    at, total = 0, 2
    while at + header_beats <= beats:
        header = np.stack([in0[at : at + header_beats], in1[at : at + header_beats]], axis=1).reshape(-1)
        words = [int(w) for w in header]
        if check_header(design, words)[0] is not Error.NONE:
            break
        packet = Packet.unpack(words)
        if packet.opcode == Opcode.END:
            break
        total += packet.result_words(design)
        at += header_beats + packet.payload_words // 2
    return total
