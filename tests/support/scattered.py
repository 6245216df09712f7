"""Stream programs scattered in a memory: payloads in chunks, results in rows and tiles, at places drawn at random."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from host.arrays import U64
from host.devices.memory import MemoryDevice, record_words
from host.program.builder import read_program
from hw.contract import HEADER_WORDS, LINE_BEATS, RECORD_WORDS, Opcode, RecordFlag
from hw.design import Design
from hw.packet import Packet
from hw.plan.records import NOWHERE, Chunks, Destination, Record, section_planes, tail_beats


@dataclass
class Scattered:
    """Records of a program, with the words that they read.

    Attributes:
        program: beat of the first record.
        records: of all packets.
        contents: (beat, words) of payloads.
        beats: of the memory that they need, a multiple of a line.
    """

    program: int
    records: list[Record]
    contents: list[tuple[int, U64]] = field(default_factory=list)
    beats: int = 0

    def place(self, device: MemoryDevice) -> int:
        """Writes everything into a device's memory; returns the program."""
        for offset, words in self.contents:
            device.write(offset, words)
        device.write(self.program, record_words(self.records))
        return self.program

    def results(self, device: MemoryDevice) -> U64:
        """Result words in the order in which they leave."""
        found = [device.read(*span) for record in self.records for span in record.writes()]
        return np.concatenate(found) if found else np.zeros(0, np.uint64)


class _Scatter:
    """Gives out places of a memory that has no end, with gaps."""

    def __init__(self, design: Design, seed: int) -> None:
        self.design, self.rng, self.end = design, np.random.default_rng(seed), 0

    def draw(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def divisor(self, number: int) -> int:
        """One of a number's divisors."""
        found = [d for d in range(1, number + 1) if number % d == 0]
        return found[self.draw(0, len(found) - 1)]

    def take(self, beats: int) -> int:
        """The first of ``beats`` beats that nobody else has."""
        self.end += self.draw(0, 40)
        self.end += beats
        return self.end - beats

    def payload(self, beats: int) -> Chunks:
        each = self.divisor(beats)
        count = beats // each
        if count >= 1 << 16:
            each, count = beats, 1
        stride = each + self.draw(0, 20)
        return Chunks(self.take(count * stride), each, stride, count)

    def record(self, packet: Packet, wait: bool) -> Record:
        d = self.design
        flags = RecordFlag.WAIT if wait else RecordFlag(0)
        record = Record(packet, flags=flags | (RecordFlag.LAST if packet.opcode == Opcode.END else RecordFlag(0)))
        if packet.payload_words:
            record = replace(record, payload=self.payload(packet.payload_words // 2))
        planes = section_planes(packet)
        if any(planes):
            tiles = packet.images * packet.rows * packet.out_groups
            row_tiles = self.divisor(tiles)
            rows = tiles // row_tiles
            made = []
            for n in (p * d.row_words // 2 for p in planes):
                stride = row_tiles * n + self.draw(0, 20)
                made.append(Destination(self.take(rows * stride), n, stride) if n else NOWHERE)
            record = replace(record, destinations=(made[0], made[1], made[2]), rows=rows, row_tiles=row_tiles)
        if tail := tail_beats(d, packet):
            record = replace(record, tail=(self.take(tail), tail))
        return record


def scattered(design: Design, words: U64, seed: int) -> Scattered:
    """A good program of stream words, scattered."""
    scatter = _Scatter(design, seed)
    made = Scattered(0, [])
    for at, packet in read_program(words):
        record = scatter.record(packet, scatter.draw(0, 4) == 0)
        made.records.append(record)
        begin = at + HEADER_WORDS
        payload = words[begin : begin + packet.payload_words]
        done = 0
        for offset, beats in record.reads():
            made.contents.append((offset, payload[done : done + 2 * beats]))
            done += 2 * beats
    made.program = -(-scatter.take(0) // RECORD_WORDS) * RECORD_WORDS
    scatter.end = made.program + len(made.records) * RECORD_WORDS
    made.beats = -(-scatter.take(1) // LINE_BEATS) * LINE_BEATS
    return made


def reading_results(program: Scattered, rng: np.random.Generator) -> Scattered:
    """The same packets, but about half of the payloads that can lie where earlier records have written: their records wait.

    What a packet brings may be any words, so the program stays a good one, with other results.
    """
    records: list[Record] = []
    written: list[tuple[int, int]] = []
    for record in program.records:
        size = record.payload.size
        if size and written and rng.integers(2):
            # mostly the newest ones, which are still under way
            start, _ = written[-1] if rng.integers(4) else written[rng.integers(len(written))]
            if start + size <= program.beats:
                payload = Chunks(start, size, 0, 1)
                record = replace(record, payload=payload, flags=record.flags | RecordFlag.WAIT)
        records.append(record)
        written += record.writes()
    return replace(program, records=records)
