"""Devices with memory of their own: they run programs whose packets say where payloads and results lie.

:class:`StreamMemory` is the memory front end in NumPy, over any device that runs streams: the living definition of what
docs/programs.md says of programs in memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from host.arrays import U64
from host.devices.device import (
    DEFAULT_TIMEOUT,
    Device,
    DeviceError,
    DeviceInfo,
    HasWords,
    ProgramError,
    Result,
    open_device,
    program_words,
)
from host.program.builder import read_program
from hw.contract import (
    DESTINATIONS,
    HEADER_WORDS,
    LINE_BEATS,
    MAGIC,
    MEMORY_PORTS,
    RECORD_HEADER_WORDS,
    RECORD_WORDS,
    Error,
    Fault,
    RecordFlag,
)
from hw.design import Design
from hw.packet import END
from hw.plan.records import Chunks, Record, RecordError, unpack_fields

Beats = npt.NDArray[np.int64]
MEMORY = "-memory"  #: ends the kinds of devices whose programs lie in a memory of their own

#: what each fault means and what helps, for people
FAULT_MEANING: dict[Fault, tuple[str, str]] = {
    Fault.NONE: ("no fault", "nothing to do"),
    Fault.READ_SLVERR: ("the memory refused a read", "check the addresses of the buffers, then reset"),
    Fault.READ_DECERR: ("no memory answers at an address that was read", "check the addresses of the buffers"),
    Fault.WRITE_SLVERR: ("the memory refused a write", "check the addresses of the buffers, then reset"),
    Fault.WRITE_DECERR: ("no memory answers at an address that was written", "check the addresses of the buffers"),
    Fault.RANGE: (
        "a record is no good, or names beats beyond the memory",
        "build records with hw.plan.records, and check them",
    ),
    Fault.RESULTS: (
        "there are more or fewer results than the records have places for",
        "check records before they run",
    ),
    Fault.DEADLINE: (
        "the program did not end in time",
        "raise the deadline; if it did not move at all, reset the device",
    ),
    Fault.STOPPED: ("the host stopped the program", "run it again"),
}


class MemoryFaultError(DeviceError):
    """The memory front end stopped a program.

    Attributes:
        fault: why.
        offset: the beat that it is about.
    """

    def __init__(self, fault: Fault, offset: int, context: str = "") -> None:
        meaning, remedy = FAULT_MEANING[fault]
        where = f" of {context}" if context else ""
        super().__init__(f"{fault.name} at beat {offset}{where}: {meaning}; {remedy}")
        self.fault, self.offset = fault, offset


@dataclass(frozen=True)
class MemoryResult:
    """Answer to a program in memory.

    Attributes:
        error, position: as of :class:`host.devices.device.Result`.
        counters: of the core and of the memory front end, by name.
        fault: why the memory front end stopped the program, or ``Fault.NONE``.
        fault_offset: the beat that the fault is about; docs/programs.md says which.
    """

    error: Error = Error.NONE
    position: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    fault: Fault = Fault.NONE
    fault_offset: int = 0


@runtime_checkable
class MemoryDevice(Protocol):
    """Anything that runs programs in memory.

    Attributes:
        beats: size of its memory, in beats of two 64-bit words.
    """

    beats: int

    @property
    def info(self) -> DeviceInfo: ...

    def write(self, offset: int, words: U64) -> None:
        """Write words, uint64 (2 * beats,) in their natural order, from beat ``offset`` on.

        Raises:
            ValueError: an odd number of words, or beats beyond the memory.
        """
        ...

    def read(self, offset: int, beats: int) -> U64:
        """Words of ``beats`` beats from ``offset`` on, uint64 (2 * beats,); a copy.

        Raises:
            ValueError: beats beyond the memory.
        """
        ...

    def execute(self, program: int, deadline: int = 0) -> MemoryResult:
        """Run a program to its end, its first error or fault.

        Args:
            program: beat of its first record, a multiple of 16.
            deadline: clock cycles after which it ends with ``Fault.DEADLINE``; 0: never.  Devices without a clock have none.

        Raises:
            DeviceError: no answer.
        """
        ...

    def reset(self) -> None:
        """Back to idle.  The memory keeps its contents, the core's buffers need not."""
        ...


def check(result: MemoryResult, context: str = "") -> MemoryResult:
    """The result itself, if its program ended well.

    Raises:
        MemoryFaultError, ProgramError: otherwise; ``context`` says in the message which program it was.
    """
    if result.fault is not Fault.NONE:
        raise MemoryFaultError(result.fault, result.fault_offset, context)
    if result.error is not Error.NONE:
        raise ProgramError(result.error, result.position, context)
    return result


def record_words(records: Sequence[Record]) -> U64:
    """Records one after the other as a memory holds them, uint64 (2 * 16 * records,).

    Raises:
        RecordError: a value that does not fit its field.
    """
    packed = np.array([record.pack() for record in records], dtype=np.uint64)
    return packed.transpose(0, 2, 1).reshape(-1)


class Memory:
    """Words of a memory in NumPy, with the checks that every device makes.

    Attributes:
        words: uint64 (beats, 2).
    """

    def __init__(self, beats: int) -> None:
        if beats < RECORD_WORDS or beats % LINE_BEATS:
            raise ValueError(f"a memory of {beats} beats; choose a multiple of {LINE_BEATS}")
        self.beats = beats
        self.words = np.zeros((beats, MEMORY_PORTS), dtype=np.uint64)

    @staticmethod
    def within(memory: int, offset: int, beats: int) -> None:
        """Refuses a range of beats that does not lie in a memory of so many.

        Raises:
            ValueError: it does not.
        """
        if offset < 0 or beats < 0 or offset + beats > memory:
            raise ValueError(f"beats {offset}..{offset + beats} are not in a memory of {memory}")

    @staticmethod
    def whole_beats(words: U64) -> None:
        """Refuses words that are no whole beats.

        Raises:
            ValueError: they are not.
        """
        if words.ndim != 1 or words.size % MEMORY_PORTS:
            raise ValueError(f"words of shape {words.shape} are no whole beats of {MEMORY_PORTS} words")

    def span(self, offset: int, beats: int) -> slice:
        """A range of beats.

        Raises:
            ValueError: it does not lie in the memory.
        """
        self.within(self.beats, offset, beats)
        return slice(offset, offset + beats)

    def write(self, offset: int, words: U64) -> None:
        """See :class:`MemoryDevice`."""
        self.whole_beats(words)
        self.words[self.span(offset, words.size // MEMORY_PORTS)] = words.reshape(-1, MEMORY_PORTS)

    def read(self, offset: int, beats: int) -> U64:
        """See :class:`MemoryDevice`."""
        return self.words[self.span(offset, beats)].reshape(-1).copy()


class MemoryStreams:
    """Runs stream programs on a device with memory.  Implements :class:`host.devices.device.Device`.

    A program is written into memory as it is; a record for each packet says where its payload lies, and results follow.

    Args:
        place: gives the first of so many beats that are free, a multiple of 16.
        deadline: cycles of one program, 0: none.

    Attributes:
        reserved: first beats of the memory, which are for its programs alone.
    """

    def __init__(self, memory: MemoryDevice, place: Callable[[int], int], deadline: int = 0) -> None:
        self.memory, self._place, self._deadline, self.reserved = memory, place, deadline, 0

    @classmethod
    def in_front(cls, memory: MemoryDevice, beats: int, deadline: int = 0) -> MemoryStreams:
        """With the first ``beats`` beats of a memory for its programs."""

        def place(wanted: int) -> int:
            if wanted > beats:
                raise ValueError(f"a stream program of {wanted} beats does not fit the {beats} that are kept for it")
            return 0

        made = cls(memory, place, deadline)
        made.reserved = beats
        return made

    @property
    def info(self) -> DeviceInfo:
        """Of the memory, its kind with :data:`MEMORY` at the end."""
        info = self.memory.info
        return replace(info, kind=info.kind + MEMORY)

    def run(self, program: HasWords | U64, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """See :class:`host.devices.device.Device`; the device's own limits count, not ``timeout``.

        Raises:
            MemoryFaultError: the memory front end stopped the program.
        """
        words = program_words(program)
        packets = list(read_program(words))
        size = words.size // 2
        results = [packet.result_words(self.info.design) // 2 for _, packet in packets]
        at = -(-(size + sum(results)) // RECORD_WORDS) * RECORD_WORDS
        base = self._place(at + RECORD_WORDS * len(packets))
        records, tail = [], base + size
        for (start, packet), beats in zip(packets, results, strict=True):
            payload = Chunks(base + (start + HEADER_WORDS) // 2, packet.payload_words // 2, 0, 1)
            flags = RecordFlag.LAST if packet is packets[-1][1] else RecordFlag(0)
            records.append(Record(packet, payload if payload.beats else Chunks(), tail=(tail, beats), flags=flags))
            tail += beats
        self.memory.write(base, words)
        packed = record_words(records).reshape(-1, RECORD_WORDS, MEMORY_PORTS)
        for record, (start, _) in zip(packed, packets, strict=True):  # headers as they are, good or bad
            record[:RECORD_HEADER_WORDS] = words[start : start + HEADER_WORDS].reshape(-1, MEMORY_PORTS)
        self.memory.write(base + at, packed.reshape(-1))
        done = self.memory.execute(base + at, self._deadline)
        if done.fault is not Fault.NONE:
            check(done)
        found = self.memory.read(base + size, sum(results))
        return Result(found, dict(done.counters), done.error, done.position)

    def run_streams(self, words0: U64, words1: U64, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Not here: a program in memory has one length.

        Raises:
            ValueError: always.
        """
        raise ValueError("streams of their own lengths are for devices with streams; use a program's words")

    def reset(self) -> None:
        """See :class:`host.devices.device.Device`."""
        self.memory.reset()


class _FaultError(Exception):
    """Ends a program."""

    def __init__(self, fault: Fault, offset: int) -> None:
        super().__init__(fault.name)
        self.fault, self.offset = fault, offset


class StreamMemory:
    """The memory front end in NumPy.  Implements :class:`MemoryDevice`.

    Args:
        device: runs the streams; its buffers keep their contents from program to program, so that a program is run in
            parts where a record waits for results.
        beats: size of the memory, a multiple of 16.
        timeout: seconds that a part may take.
    """

    def __init__(self, device: Device, beats: int, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.device, self.beats, self._timeout = device, beats, timeout
        self._memory = Memory(beats)
        self.write, self.read = self._memory.write, self._memory.read

    @property
    def info(self) -> DeviceInfo:
        return self.device.info

    def reset(self) -> None:
        """See :class:`MemoryDevice`."""
        self.device.reset()

    def execute(self, program: int, deadline: int = 0) -> MemoryResult:
        """See :class:`MemoryDevice`; a wait for results that never come ends as the deadline or a STOP would end it."""
        run = _Run(self._memory, self.device, self._timeout)
        try:
            error, position = run.program(program, deadline)
        except _FaultError as stop:
            return MemoryResult(Error.NONE, 0, run.counters, stop.fault, stop.offset)
        return MemoryResult(error, position, run.counters)


class _Run:
    """One program: its records, collected until they run, and its counters."""

    def __init__(self, memory: Memory, device: Device, timeout: float) -> None:
        self.counters: dict[str, int] = {"READ_BEATS": 0, "WRITE_BEATS": 0}
        self._memory, self._device, self._timeout = memory, device, timeout
        self._words: list[U64] = []
        self._places: list[Beats] = []
        self._done = 0  #: packets that ended well in parts before

    def program(self, at: int, deadline: int) -> tuple[Error, int]:
        """Runs a program; returns the core's error and position."""
        while True:
            words = self._record(at)
            try:
                places = unpack_fields(words.T.tolist())
            except RecordError:
                raise _FaultError(Fault.RANGE, at) from None
            flags = RecordFlag(places["record_flags"])
            if flags & RecordFlag.WAIT and self._words:
                error, position = self._run(False, deadline)
                if error is not Error.NONE:
                    return error, position
            self._take(words, places)
            at += RECORD_WORDS
            if flags & RecordFlag.LAST or int(words[0, 0]) & 0xFFFF != MAGIC:  # the core swallows what follows
                return self._run(True, deadline)

    def _record(self, at: int) -> U64:
        """Words of a record, (16, 2)."""
        if at % RECORD_WORDS:
            raise _FaultError(Fault.RANGE, at)
        self._within(at, RECORD_WORDS)
        self.counters["READ_BEATS"] += MEMORY_PORTS * RECORD_WORDS
        return self._memory.words[at : at + RECORD_WORDS]

    def _within(self, offset: int, beats: int) -> None:
        """Refuses a run of beats that leaves the memory, by the first burst that does: the memory ends with a line."""
        if beats and offset + beats > self._memory.beats:
            raise _FaultError(Fault.RANGE, max(offset, self._memory.beats))

    def _take(self, words: U64, v: dict[str, int]) -> None:
        """Takes in a record's packet with its payload, and where its results go."""
        self._words.append(words.reshape(-1)[:HEADER_WORDS])
        if v["payload_beats"] and v["payload_chunks"]:
            starts = v["payload_offset"] + np.arange(v["payload_chunks"]) * v["payload_stride"]
            for start in starts.tolist():
                self._within(start, v["payload_beats"])
            beats = starts[:, None] + np.arange(v["payload_beats"])
            self.counters["READ_BEATS"] += MEMORY_PORTS * beats.size
            self._words.append(self._memory.words[beats.reshape(-1)].reshape(-1))
        tiles, rows = np.arange(v["row_tiles"]), np.arange(v["result_rows"])
        sections = []
        for i in range(DESTINATIONS):
            n = v[f"beats_{i}"]
            starts = v[f"offset_{i}"] + rows[:, None] * v[f"stride_{i}"] + tiles * n
            sections.append(starts[:, :, None] + np.arange(n))
        places = np.concatenate(sections, 2).reshape(-1)
        if v["tail_beats"]:
            places = np.append(places, v["tail_offset"] + np.arange(v["tail_beats"]))
        self._places.append(places)

    def _run(self, last: bool, deadline: int) -> tuple[Error, int]:
        """Runs what has been taken in, and puts its results where they belong."""
        if not last:
            self._words.append(np.array(END.pack(), dtype=np.uint64))
        result = self._device.run(np.concatenate(self._words), self._timeout)
        part = not last and result.error is Error.NONE
        for name, value in result.counters.items():
            # a part's own END and trailer are no part of the program
            extra = {"PACKETS": 1, "WORDS_IN": HEADER_WORDS, "WORDS_OUT": 2}.get(name, 0) if part else 0
            self.counters[name] = self.counters.get(name, 0) + value - extra
        places = np.concatenate(self._places)
        beats = result.words.reshape(-1, MEMORY_PORTS)
        if result.error is Error.NONE and len(beats) < len(places) and not last:
            raise _FaultError(Fault.DEADLINE if deadline else Fault.STOPPED, 0)
        if result.error is Error.NONE and len(beats) != len(places):
            raise _FaultError(Fault.RESULTS, int(places[len(beats)]) if len(beats) < len(places) else 0)
        places, beats = places[: len(beats)], beats[: len(places)]
        if places.size and (beyond := places >= self._memory.beats).any():
            raise _FaultError(Fault.RANGE, int(places[beyond.argmax()]))
        self._memory.words[places] = beats
        self.counters["WRITE_BEATS"] += MEMORY_PORTS * len(beats)
        position = self._done + result.position if result.error is not Error.NONE else 0
        self._done += len(self._places)
        self._words, self._places = [], []
        return result.error, position


#: devices that have a memory, and what opens those with a memory front end of their own; the others have it in NumPy
MEMORY_KINDS = {"reference": None, "hls": None, "rtl": ("host.devices.rtl_memory", "RtlMemoryDevice")}
MEMORY_BYTES = 512 * 2**20  #: of a simulated one, as the smallest board has
STREAM_SHARE = 8  #: a memory's part for stream programs is one in so many


def open_memory(kind: str, design: Design, beats: int = MEMORY_BYTES // 16) -> MemoryDevice:
    """A device with memory; modules are imported only when asked for.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in MEMORY_KINDS:
        raise ValueError(f"no device kind {kind!r} has a memory; use one of {', '.join(MEMORY_KINDS)}")
    own = MEMORY_KINDS[kind]
    if own is None:
        return StreamMemory(open_device(kind, design), beats)
    factory: Callable[..., Any] = getattr(importlib.import_module(own[0]), own[1])
    return cast(MemoryDevice, factory(design, beats))


def streams_of(kind: str, design: Design) -> MemoryStreams:
    """Stream programs on a device with memory, of which they take the first part."""
    return MemoryStreams.in_front(open_memory(kind, design), MEMORY_BYTES // 16 // STREAM_SHARE)


reference_memory, hls_memory, rtl_memory = (partial(streams_of, kind) for kind in MEMORY_KINDS)
