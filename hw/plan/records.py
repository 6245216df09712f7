"""Programs in device memory: a packet as a record that says where its payload and its results lie.

The memory is counted in *beats* of two 64-bit words, the even one behind port 0, the odd one behind port 1.  docs/programs.md
says what a record does; its fields are a table in ``hw/contract.py``.  Standard library only, and no data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_

from hw.contract import (
    DESTINATIONS,
    HEADER_WORDS,
    MEMORY_PORTS,
    RECORD_FIELD,
    RECORD_FIELDS,
    RECORD_HEADER_WORDS,
    RECORD_WORDS,
    Opcode,
    RecordFlag,
)
from hw.design import Design
from hw.packet import Packet

#: half-words behind a record's header, and of each the bits that belong to a field; all others must be zero
_HALVES = range(2 * RECORD_HEADER_WORDS, 2 * RECORD_WORDS)
_USED = {h: sum((1 << f.width) - 1 << f.lsb for f in RECORD_FIELDS if f.half == h) for h in _HALVES}
_FLAGS = int(reduce(or_, RecordFlag))

BeatRange = tuple[int, int]  #: first beat, and how many


class RecordError(ValueError):
    """A record that the memory front end would refuse, or that does not say where all its words lie."""


@dataclass(frozen=True)
class Chunks:
    """Where a payload lies: ``count`` runs of ``beats`` beats, which begin ``stride`` beats apart."""

    offset: int = 0
    beats: int = 0
    stride: int = 0
    count: int = 0

    @property
    def size(self) -> int:
        """Beats of the payload."""
        return self.beats * self.count

    def spans(self) -> Iterator[BeatRange]:
        """All runs in order."""
        if self.beats:
            yield from ((self.offset + k * self.stride, self.beats) for k in range(self.count))


@dataclass(frozen=True)
class Destination:
    """Where one section of every tile goes: rows begin ``stride`` beats apart, the tiles of a row lie side by side.

    Attributes:
        offset: first beat of the first row.
        beats: of a tile's section, 0: the tiles have no such section.
    """

    offset: int = 0
    beats: int = 0
    stride: int = 0


NOWHERE = Destination()


@dataclass(frozen=True)
class Record:
    """A packet and where its payload and results lie in device memory; offsets and sizes in beats.

    Attributes:
        packet: its header.
        payload: of a LOAD.
        destinations: of a tile's sections, in the order in which they leave.
        rows, row_tiles: of the results, and how many tiles a row has.
        tail: the results that follow all tiles: moments, accumulators, integers.
        flags: LAST and WAIT.
    """

    packet: Packet
    payload: Chunks = Chunks()
    destinations: tuple[Destination, Destination, Destination] = (NOWHERE, NOWHERE, NOWHERE)
    rows: int = 0
    row_tiles: int = 0
    tail: BeatRange = (0, 0)
    flags: RecordFlag = field(default=RecordFlag(0))

    # -- what it reads and writes -----------------------------------------------------------------------------------

    @property
    def result_beats(self) -> int:
        """Beats of results that it has places for."""
        return self.rows * self.row_tiles * sum(d.beats for d in self.destinations) + self.tail[1]

    def reads(self) -> Iterator[BeatRange]:
        """Runs of beats that make up its payload, in order."""
        return self.payload.spans()

    def writes(self) -> Iterator[BeatRange]:
        """Runs of beats to which its results go, in the order in which they leave."""
        for row in range(self.rows):
            for tile in range(self.row_tiles):
                for d in self.destinations:
                    if d.beats:
                        yield d.offset + row * d.stride + tile * d.beats, d.beats
        if self.tail[1]:
            yield self.tail

    # -- rules ------------------------------------------------------------------------------------------------------

    def check(self, design: Design, limit: int) -> str:
        """What is wrong with it in a memory of ``limit`` beats; empty if nothing is.

        The packet itself is judged by :meth:`hw.packet.Packet.check`.
        """
        values = self.fields()
        for name, value in values.items():
            if not 0 <= value < 1 << RECORD_FIELD[name].width:
                return f"{name} = {value} does not fit its {RECORD_FIELD[name].width} bits"
        if 2 * self.payload.size != self.packet.payload_words:
            return f"the packet takes {self.packet.payload_words} words of payload, {2 * self.payload.size} are named"
        if 2 * self.result_beats != (words := self.packet.result_words(design)):
            return f"the packet sends {words} words of results, {2 * self.result_beats} have a place"
        if bool(self.flags & RecordFlag.LAST) != (self.packet.opcode == Opcode.END):
            return "LAST belongs to the record of END, and to no other"
        ends = [offset + beats for offset, beats in (*self.reads(), *self.writes())]
        if ends and max(ends) > limit:
            return f"beats up to {max(ends)} are read or written, and the memory has {limit}"
        return ""

    # -- words ------------------------------------------------------------------------------------------------------

    def fields(self) -> dict[str, int]:
        """Its fields behind the header, by name."""
        p = self.payload
        values = {"payload_offset": p.offset, "payload_beats": p.beats, "payload_stride": p.stride}
        values |= {"payload_chunks": p.count, "record_flags": int(self.flags)}
        for i, d in enumerate(self.destinations):
            values |= {f"offset_{i}": d.offset, f"beats_{i}": d.beats, f"stride_{i}": d.stride}
        values |= {"result_rows": self.rows, "row_tiles": self.row_tiles}
        return values | {"tail_offset": self.tail[0], "tail_beats": self.tail[1]}

    def pack(self) -> list[list[int]]:
        """Its 64-bit words at each port.

        Raises:
            RecordError: a value that does not fit its field.
        """
        halves = dict.fromkeys(_HALVES, 0)
        for name, value in self.fields().items():
            place = RECORD_FIELD[name]
            if not 0 <= value < 1 << place.width:
                raise RecordError(f"{name} = {value} does not fit its {place.width} bits")
            halves[place.half] |= value << place.lsb
        behind = [halves[h] | halves[h + 1] << 32 for h in _HALVES[::2]]
        header = self.packet.pack()
        return [[*header[port::MEMORY_PORTS], *behind] for port in range(MEMORY_PORTS)]

    @classmethod
    def unpack(cls, words: Sequence[Sequence[int]]) -> Record:
        """The record of the words at each port.

        Raises:
            RecordError: as of :func:`unpack_fields`.
        """
        v = unpack_fields(words)
        header = [int(words[i % MEMORY_PORTS][i // MEMORY_PORTS]) for i in range(HEADER_WORDS)]
        first, second, third = (
            Destination(v[f"offset_{i}"], v[f"beats_{i}"], v[f"stride_{i}"]) for i in range(DESTINATIONS)
        )
        return cls(
            Packet.unpack(header),
            Chunks(v["payload_offset"], v["payload_beats"], v["payload_stride"], v["payload_chunks"]),
            (first, second, third),
            v["result_rows"],
            v["row_tiles"],
            (v["tail_offset"], v["tail_beats"]),
            RecordFlag(v["record_flags"]),
        )


def unpack_fields(words: Sequence[Sequence[int]]) -> dict[str, int]:
    """The fields behind a record's header, from the words at each port.

    Raises:
        RecordError: bits that belong to no field are set, or the ports' copies differ.
    """
    behind = [[int(w) for w in port[RECORD_HEADER_WORDS:]] for port in words]
    if any(port != behind[0] for port in behind):
        raise RecordError("the words behind the header differ between the ports")
    halves = dict(zip(_HALVES, (w >> s & 0xFFFFFFFF for w in behind[0] for s in (0, 32)), strict=True))
    if spare := [h for h, value in halves.items() if value & ~_USED[h]]:
        raise RecordError(f"half-word {spare[0]} has bits that belong to no field")
    values = {f.name: halves[f.half] >> f.lsb & (1 << f.width) - 1 for f in RECORD_FIELDS}
    if values["record_flags"] & ~_FLAGS:
        raise RecordError(f"record_flags = {values['record_flags']:#x} has bits that are no flag")
    return values


def section_planes(packet: Packet) -> tuple[int, int, int]:
    """Planes that a tile of a packet sends to each destination: codes A, K with the mask on top, S."""
    if not packet.section_planes:
        return 0, 0, 0
    return packet.out_bits, packet.section_planes - packet.out_bits - packet.wide_bits, packet.wide_bits


def tail_beats(design: Design, packet: Packet) -> int:
    """Beats of a packet's results that follow its tiles."""
    codes = packet.images * packet.rows * packet.out_groups * packet.section_planes * design.row_words
    return (packet.result_words(design) - codes) // 2
