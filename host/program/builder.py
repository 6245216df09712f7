"""Stream programs: a builder that writes good ones, packet by packet, and a reader.

The rules that a packet must keep are :class:`hw.packet.Packet`'s; :class:`ProgramBuilder` raises the reason before
anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from host.arrays import U64, Codes
from host.epilogue import Entries
from host.numerics import check_codes
from host.program import packing
from hw.contract import HEADER_WORDS, TAPS, Error, Opcode, Target
from hw.design import Design
from hw.packet import END, Packet, load_entries, load_tensor


def read_program(words: U64) -> Iterator[tuple[int, Packet]]:
    """(first word, packet) of a program's words (even number,), END included, in order; payloads are passed over."""
    at = 0
    while at < words.size:
        packet = Packet.unpack([int(w) for w in words[at : at + HEADER_WORDS]])
        yield at, packet
        at += HEADER_WORDS + packet.payload_words


@lru_cache(maxsize=1 << 14)
def _judged(design: Design, packet: Packet) -> tuple[Error, str, U64, int]:
    """What the check of a packet says, its header's words and its result words; training sends most packets again."""
    error, reason = packet.check(design)
    if error is not Error.NONE:
        return error, reason, np.empty(0, dtype=np.uint64), 0
    return error, reason, np.array(packet.pack(), dtype=np.uint64), packet.result_words(design)


class PacketError(ValueError):
    """A packet that the fabric would refuse, found before it was sent.

    Attributes:
        error: code that the fabric would report.
    """

    def __init__(self, error: Error, operation: str, position: int, reason: str) -> None:
        super().__init__(f"packet {position} ({operation}): {reason} [{error.name}]")
        self.error = error


@dataclass(frozen=True)
class Program:
    """A finished program.

    Attributes:
        data: uint64, its words.
        result_words: words that it will send, without the trailer.
        packets: number of packets, END included.
    """

    data: U64
    result_words: int
    packets: int

    def words(self) -> U64:
        """The words, uint64 (even number,)."""
        return self.data


class ProgramBuilder:
    """Writes a program packet by packet; every packet is checked as the fabric will check it.

    Raises (all methods):
        PacketError: the fabric would refuse the packet.
        ValueError: data of the wrong shape or range.
    """

    def __init__(self, design: Design) -> None:
        self.design = design
        self.result_words = 0
        self.packets = 0
        self.size = 0  #: words so far, without END
        self._parts: list[U64] = []
        self._ended = False

    def add(self, packet: Packet, payload: U64 | None = None) -> slice:
        """Add a packet and its payload words (uint64), whose number is filled in.

        Returns:
            The range of result words that it will send; empty if none.
        """
        if self._ended:
            raise ValueError("the program has its END packet already; start a new builder")
        size = 0 if payload is None else payload.size
        if packet.payload_words != size:
            packet = replace(packet, payload_words=size)
        error, reason, header, results = _judged(self.design, packet)
        if error is not Error.NONE:
            name = Opcode(packet.opcode).name if error is not Error.BAD_OPCODE else "unknown"
            raise PacketError(error, name, self.packets, reason)
        self._parts.append(header)
        if payload is not None:
            self._parts.append(np.ascontiguousarray(payload, dtype=np.uint64))
        self.packets += 1
        self.size += HEADER_WORDS + size
        first = self.result_words
        self.result_words += results
        return slice(first, self.result_words)

    def _check_groups(self, shape: tuple[int, ...], wanted: str) -> None:
        if shape[-2:] != (self.design.lanes, self.design.channels):
            raise ValueError(
                f"array of shape {shape} should be {wanted} with L = {self.design.lanes} and C = {self.design.channels}"
            )

    def load_packed(self, target: Target, codes: Codes, bits: int, base: int = 0, base_g: int | None = None) -> None:
        """Load codes as bit planes.

        Args:
            target: A, G or A|G.
            codes: integers (images, rows, groups, L, C) of either sign that ``bits`` bits hold.
            bits: 1..16.
            base: first address (of A if both are written).
            base_g: first address in G if both are written; ``base`` by default.
        """
        if codes.ndim != 5:
            raise ValueError(f"codes of shape {codes.shape} should be (images, rows, groups, L, C)")
        self._check_groups(codes.shape, "(images, rows, groups, L, C)")
        check_codes(codes, bits, bool(codes.size and codes.min() < 0))
        base_g = base if base_g is None else base_g
        images, rows, groups = codes.shape[:3]
        packet = load_tensor(self.design, target, images, rows, groups, bits, base, base_g)
        self.add(packet, packing.pack_rows(codes, bits))

    def load_weights(self, codes: Codes, bits: int, base: int = 0) -> None:
        """Load weights (out_groups, groups, C out, 9 taps, C in) of ``bits`` bits at address ``base``."""
        c = self.design.channels
        if codes.ndim != 5 or codes.shape[2:] != (c, TAPS, c):
            raise ValueError(f"weights of shape {codes.shape} should be (out_groups, groups, {c}, 9, {c})")
        check_codes(codes, bits, bool(codes.size and codes.min() < 0), "weights")
        payload = packing.pack_weights(codes, bits, self.design)
        self.add(load_entries(self.design, Target.W, payload.shape[0], base), payload.reshape(-1))

    def load_epilogue(self, entries: Entries, base: int = 0) -> None:
        """Load epilogue entries, one per output channel, at entry ``base``."""
        payload = entries.words()
        self.add(load_entries(self.design, Target.E, payload.shape[0], base), payload.reshape(-1))

    def end(self) -> Program:
        """Close the program."""
        self.add(END)
        self._ended = True
        return Program(np.concatenate(self._parts), self.result_words, self.packets)

    def words(self) -> U64:
        """Words of the program, closed by END if it was not yet; uint64 (even number,)."""
        if not self._ended:
            self.end()
        return np.concatenate(self._parts)
