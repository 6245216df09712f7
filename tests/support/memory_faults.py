"""Programs in memory with one thing wrong, and the faults that may be told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from host.devices.memory import MemoryDevice, StreamMemory, record_words
from host.devices.rtl_memory import MemoryModel
from hw.contract import RECORD_WORDS, Fault
from hw.plan.records import Record
from tests.support.scattered import Scattered

LONG = 60_000  #: clock cycles that no short program takes

REFUSALS = {2: (Fault.READ_SLVERR, Fault.WRITE_SLVERR), 3: (Fault.READ_DECERR, Fault.WRITE_DECERR)}


@dataclass(frozen=True)
class Trial:
    """What to run, and what is told.

    Attributes:
        kind: what is wrong.
        program: beat to start at.
        deadline: clock cycles.
        faults: one of which is told.
        offsets: one of which is told with it; empty: any.
    """

    kind: str
    program: int
    deadline: int
    faults: tuple[Fault, ...]
    offsets: range = range(0)


def random_model(rng: np.random.Generator) -> MemoryModel:
    """A memory of any pace, steady or not."""
    least = int(rng.integers(1, 60))
    pauses, seed = int(rng.choice([0, 20, 300, 700])), int(rng.integers(1, 1 << 31))
    return MemoryModel(least, least + int(rng.integers(0, 60)), pauses, seed)


class TriedDevice(MemoryDevice, Protocol):
    """A device with memory of any size."""

    beats: int
    model: MemoryModel

    def resize(self, beats: int) -> None:
        """Another, empty memory of that many beats."""


class TriedStreams(StreamMemory):
    """The memory front end in NumPy, of any size, in front of a device with streams; its memory answers at once."""

    model = MemoryModel()

    def resize(self, beats: int) -> None:
        """Another, empty memory of that many beats."""
        super().__init__(self.device, beats)


#: what is wrong with a program, whatever its memory does
KINDS_OF_PROGRAMS = ("unaligned", "reserved", "beyond_record", "more", "fewer", "beyond_result", "beyond_payload")


class TrialWriter:
    """Spoils one thing of a program that lies in a device's memory."""

    def __init__(self, rng: np.random.Generator, device: TriedDevice, program: Scattered) -> None:
        self.rng, self.device, self.program = rng, device, program

    def pick(self, beats: list[tuple[int, int]]) -> int:
        """Any beat of these spans."""
        offset, count = beats[self.rng.integers(len(beats))]
        return offset + int(self.rng.integers(count))

    def change(self, index: int, record: Record) -> int:
        """Another record; returns its beat."""
        at = self.program.program + RECORD_WORDS * index
        self.device.write(at, record_words([record]))
        return at

    def with_results(self) -> int:
        """Number of a record with results."""
        found = [i for i, record in enumerate(self.program.records) if record.result_beats]
        return found[self.rng.integers(len(found))]

    def any(self, kinds_wanted: Sequence[str] = ()) -> Trial:
        """One of all kinds that the program allows, or of those wanted among them."""
        kinds = ["read", "unaligned", "reserved", "late", "silent", "stopped", "beyond_record"]
        if any(record.result_beats for record in self.program.records):
            kinds += ["write", "more", "fewer", "beyond_result"]
        if any(record.payload.size for record in self.program.records):
            kinds.append("beyond_payload")
        kinds = [kind for kind in kinds if not kinds_wanted or kind in kinds_wanted]
        kind = kinds[self.rng.integers(len(kinds))]
        return getattr(self, kind)()  # type: ignore[no-any-return]

    def read(self) -> Trial:
        spans = [span for record in self.program.records for span in record.reads()]
        spans.append((self.program.program, RECORD_WORDS * len(self.program.records)))
        return self.refusal(0, self.pick(spans))

    def write(self) -> Trial:
        return self.refusal(1, self.pick([span for record in self.program.records for span in record.writes()]))

    def refusal(self, write: int, beat: int) -> Trial:
        response, port = int(self.rng.integers(2, 4)), int(self.rng.integers(2))
        self.device.model = replace(
            self.device.model, refuse=response, refuse_port=port, refuse_write=write, refuse_offset=beat
        )
        # a write is told by the burst's first beat, which lies in the same line
        offsets = range(beat // RECORD_WORDS * RECORD_WORDS, beat + 1) if write else range(beat, beat + 1)
        fault = REFUSALS[response][write]
        return Trial("write" if write else "read", self.program.program, LONG, (fault,), offsets)

    def unaligned(self) -> Trial:
        at = self.program.program + int(self.rng.integers(1, RECORD_WORDS))
        return Trial("unaligned", at, LONG, (Fault.RANGE,), range(at, at + 1))

    def reserved(self) -> Trial:
        index = int(self.rng.integers(len(self.program.records)))
        at = self.program.program + RECORD_WORDS * index
        words = record_words([self.program.records[index]])
        word, bit = [(7, 50), (8, 48), (9, 63), (10, 55), (12, 32), (13, 48), (15, 0), (15, 63)][self.rng.integers(8)]
        words[2 * word : 2 * word + 2] |= np.uint64(1 << bit)
        self.device.write(at, words)
        return Trial("reserved", self.program.program, LONG, (Fault.RANGE,), range(at, at + 1))

    def beyond_record(self) -> Trial:
        """Nothing ends the program, and the memory ends behind its last record but one."""
        limit = self.program.program + RECORD_WORDS * (len(self.program.records) - 1)
        words = self.device.read(0, limit)
        self.device.resize(limit)
        self.device.write(0, words)
        return Trial("beyond_record", self.program.program, LONG, (Fault.RANGE,), range(limit, limit + 1))

    def beyond_payload(self) -> Trial:
        found = [i for i, record in enumerate(self.program.records) if record.payload.size]
        index = found[self.rng.integers(len(found))]
        record, limit = self.program.records[index], self.device.beats
        inside = int(self.rng.integers(record.payload.beats))
        payload = replace(record.payload, offset=limit - inside, count=1)
        self.change(index, replace(record, payload=payload))
        return Trial("beyond_payload", self.program.program, LONG, (Fault.RANGE,), range(limit, limit + 1))

    def beyond_result(self) -> Trial:
        index, limit = self.with_results(), self.device.beats
        record = self.program.records[index]
        beats = record.result_beats
        behind = self.program.program + RECORD_WORDS * len(self.program.records)  # the records must stay
        inside = int(self.rng.integers(min(beats, limit - behind + 1)))
        record = replace(record, rows=0, row_tiles=0, tail=(limit - inside, beats))
        self.change(index, record)
        return Trial("beyond_result", self.program.program, LONG, (Fault.RANGE,), range(limit, limit + 1))

    def more(self) -> Trial:
        """More results than places: those of the records behind fill up early, and what is left has none."""
        index = self.with_results()
        record = self.program.records[index]
        beats = record.result_beats - int(self.rng.integers(1, record.result_beats + 1))
        self.change(index, replace(record, rows=0, row_tiles=0, tail=(0, beats)))
        return Trial("more", self.program.program, LONG, (Fault.RESULTS,))

    def fewer(self) -> Trial:
        """Fewer results than places; records that wait for them run into the deadline."""
        index = self.with_results()
        record = self.program.records[index]
        beats = record.result_beats + int(self.rng.integers(1, 40))
        self.change(index, replace(record, rows=0, row_tiles=0, tail=(0, beats)))
        return Trial("fewer", self.program.program, LONG, (Fault.RESULTS, Fault.DEADLINE))

    def late(self) -> Trial:
        return Trial("late", self.program.program, int(self.rng.integers(1, 150)), (Fault.DEADLINE,), range(1))

    def silent(self) -> Trial:
        """The memory falls silent, and answers again behind the deadline."""
        after = int(self.rng.integers(1, 5))
        self.device.model = replace(self.device.model, silent_after=after, silent_cycles=5000)
        return Trial("silent", self.program.program, 2000, (Fault.DEADLINE,), range(1))

    def stopped(self) -> Trial:
        self.device.model = replace(self.device.model, stop_after=int(self.rng.integers(1, 150)))
        return Trial("stopped", self.program.program, LONG, (Fault.STOPPED,), range(1))
