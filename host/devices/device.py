"""What every device answers alike: run a program, say why it stopped, tell what it is.

A device takes the words of a stream program and gives back the result words.  A program that the fabric refuses is not
an exception by itself, so that refusals can be compared between devices; :func:`check` turns one into
:class:`ProgramError`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np

from host.arrays import U64
from hw.contract import TRAILER_MAGIC, Error
from hw.design import Design

DEFAULT_TIMEOUT = 600.0  #: seconds

#: what each error means and what helps, for people
ERROR_MEANING: dict[Error, tuple[str, str]] = {
    Error.NONE: ("no error", "nothing to do"),
    Error.BAD_MAGIC: ("a header does not start with the magic number and version", "check the payload_words before it"),
    Error.BAD_CHECK: ("a header's checksum is wrong", "build headers with hw.contract.pack_header; check the transfer"),
    Error.BAD_OPCODE: ("the operation does not exist", "use one of hw.contract.Opcode"),
    Error.BAD_FIELD: (
        "a field that the operation does not use is set, or a flag, format, target or mask is not allowed",
        "compare the header with the field table in docs/programs.md",
    ),
    Error.BAD_BITS: ("a precision is outside 1..16, or a shift outside 0..47", "split the operand or change the bits"),
    Error.BAD_SHAPE: (
        "a dimension is zero or beyond its limit, or the segments do not fit the row",
        "tile the product into smaller packets",
    ),
    Error.BAD_LENGTH: ("payload_words is not what the shape needs", "compute it as docs/programs.md says"),
    Error.OUT_OF_BUFFER: (
        "an address range ends beyond its buffer",
        "tile the product or choose a design with more depth",
    ),
    Error.OVERFLOW: ("the result could overflow", "use INT64, fewer bits, or split the contraction"),
    Error.TRUNCATED: ("a stream ended before the END packet", "send END, and TLAST on the last word only"),
    Error.TRAILING: ("a stream goes on after the END packet", "set TLAST on the last word of both streams"),
    Error.ACCUMULATOR_RANGE: (
        "a weight gradient left the accumulator's or the output format's range",
        "read and clear more often, or read as INT64",
    ),
}


class DeviceError(RuntimeError):
    """The device itself failed: no answer in time, or an answer that is not one."""


class ProgramError(RuntimeError):
    """The fabric refused a program.

    Attributes:
        error: code of the refusal.
        position: index of the packet that stopped the program.
    """

    def __init__(self, error: Error, position: int, context: str = "") -> None:
        meaning, remedy = ERROR_MEANING[error]
        where = f" of {context}" if context else ""
        super().__init__(f"{error.name} ({int(error)}) at packet {position}{where}: {meaning}; {remedy}")
        self.error = error
        self.position = position


@dataclass(frozen=True)
class Result:
    """Answer to one program.

    Attributes:
        words: uint64 (n,), the results without the trailer.
        counters: counter name (``hw.contract.REGISTERS``) -> value; devices without hardware have the functional ones.
        error: why the program stopped, or ``Error.NONE``.
        position: index of the packet that stopped it; 0 if none did.
    """

    words: U64
    counters: dict[str, int] = field(default_factory=dict)
    error: Error = Error.NONE
    position: int = 0


class HasWords(Protocol):
    """A program that can be sent: :class:`host.program.builder.Program`."""

    def words(self) -> U64: ...


@dataclass(frozen=True)
class DeviceInfo:
    """What a device is.

    Attributes:
        kind: "reference", "hls", "rtl" or "pynq".
        design: parameters that it was built from.
        hash64: design hash; read back from the device where it can be.
    """

    kind: str
    design: Design
    hash64: int


class Device(Protocol):
    """Anything that runs stream programs."""

    @property
    def info(self) -> DeviceInfo: ...

    def run(self, program: HasWords | U64, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Run one program to its end or its first error.  Buffers keep their contents from run to run.

        Args:
            program: a program, or its words, uint64 (even number,).
            timeout: seconds to wait for the trailer.

        Raises:
            DeviceError: no trailer within ``timeout``, or a malformed one.
        """
        ...

    def run_streams(self, words0: U64, words1: U64, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Run with the two input streams given separately, for tests: TLAST on the last word of each; lengths >= 1."""
        ...

    def reset(self) -> None:
        """Back to idle, whatever the device was doing.  Buffer contents are unspecified afterwards."""
        ...


def program_words(program: HasWords | U64) -> U64:
    """Words of a program as a contiguous uint64 array (even number,).

    Raises:
        ValueError: an odd or zero number of words.
    """
    words = program if isinstance(program, np.ndarray) else program.words()
    words = np.ascontiguousarray(words, dtype=np.uint64)
    if words.ndim != 1 or words.size == 0 or words.size % 2:
        raise ValueError(
            f"a program is a list of an even number of words, not shape {words.shape}; see docs/programs.md"
        )
    return words


def split_streams(words: U64) -> tuple[U64, U64]:
    """The two input streams of a program: even words, odd words."""
    return np.ascontiguousarray(words[0::2]), np.ascontiguousarray(words[1::2])


def parse_output(raw: U64, counters: dict[str, int]) -> Result:
    """Result from everything that left on the output stream, trailer included.

    Raises:
        DeviceError: the last two words are not a trailer.
    """
    if raw.size < 2 or int(raw[-2]) >> 32 != TRAILER_MAGIC:
        got = " ".join(f"{int(w):016x}" for w in raw[-2:])
        raise DeviceError(f"output of {raw.size} words ends with [{got}], not with a trailer; reset the device")
    code = int(raw[-2]) & 0xFFFFFFFF
    if code not in set(Error):
        raise DeviceError(f"trailer holds error code {code}, which the contract does not have; rebuild the device")
    return Result(raw[:-2], counters, Error(code), int(raw[-1]) & 0xFFFFFFFF)


def check(result: Result, context: str = "") -> Result:
    """The result itself, if its program ended well.

    Raises:
        ProgramError: otherwise; ``context`` says in the message which program it was.
    """
    if result.error is not Error.NONE:
        raise ProgramError(result.error, result.position, context)
    return result


DEVICE_KINDS = {
    "reference": ("host.devices.reference", "ReferenceDevice"),
    "hls": ("host.devices.hls", "HlsDevice"),
    "rtl": ("host.devices.rtl", "RtlDevice"),
    "pynq": ("host.devices.pynq_device", "PynqDevice"),
    # their programs lie in a memory of their own, and a step's tensors with them
    "reference-memory": ("host.devices.memory", "reference_memory"),
    "hls-memory": ("host.devices.memory", "hls_memory"),
    "rtl-memory": ("host.devices.memory", "rtl_memory"),
}


def open_device(kind: str, design: Design, **options: Any) -> Device:
    """A device by its kind, one of :data:`DEVICE_KINDS`; modules are imported only when asked for.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in DEVICE_KINDS:
        raise ValueError(f"no device kind {kind!r}; use one of {', '.join(DEVICE_KINDS)}")
    module, name = DEVICE_KINDS[kind]
    factory: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return cast(Device, factory(design, **options))
