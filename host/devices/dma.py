"""The way of words between a program and the board's streams: contiguous memory, DMA transfers, programs that fit one.

Why the DMAs work in their simple mode: it sets TLAST at the end of every transfer, so a program cannot be cut into
several transfers.  A transfer holds up to 64 MiB less one word (26-bit length).  Longer programs are cut between
packets instead, into programs of their own, which is equivalent because buffers keep their contents; so no descriptor
memory and no descriptor errors exist.

Standard library and NumPy only; PYNQ is what the device hands in.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from host.arrays import U64
from host.devices.device import DeviceError
from hw.contract import HEADER_WORDS, Error, Opcode
from hw.design import STREAM_BITS, Design
from hw.packet import END, Packet, check_header

WORD_BYTES = STREAM_BITS // 8
RESET_TIMEOUT = 1.0  #: seconds that a reset may take
TO_STREAM, FROM_STREAM = 0x00, 0x30  #: bases of a DMA's two channels
SCATTER_GATHER = 1 << 3  #: of a channel's status: it is built for descriptors

# AXI DMA, direct register mode; offsets from the channel's base
_CONTROL, _STATUS, _ADDRESS, _ADDRESS_HIGH, _LENGTH = 0x00, 0x04, 0x18, 0x1C, 0x28
_RUN, _RESET = 1 << 0, 1 << 2
_HALTED, _IDLE = 1 << 0, 1 << 1
_FAULTS = {
    1 << 4: "internal error: the stream did not fit the buffer, or a length was zero",
    1 << 5: "bus error: a slave answered an access with an error",
    1 << 6: "bus error: no slave answers at this address",
}
_LEAST_BUFFER = 1 << 12  #: words of the smallest allocation, eight pages


@contextmanager
def asked_of_pynq(what: str, remedy: str) -> Iterator[None]:
    """Around every use of PYNQ, which lets through whatever its parser, kernel interface or NumPy raise.

    Raises:
        DeviceError: what could not be done, PYNQ's own words, and the remedy.
    """
    try:
        yield
    except DeviceError:
        raise
    except Exception as e:
        if isinstance(e, AttributeError | TypeError) and int(np.__version__.split(".")[0]) >= 2:
            remedy = f"PYNQ 3 needs NumPy below 2, here is {np.__version__}: pip install 'numpy<2'"
        raise DeviceError(f"{what} ({type(e).__name__}: {e}); {remedy}") from e


class ContiguousBuffer:
    """Physically contiguous memory for one stream, and the only place where caches are maintained.

    PYNQ maintains the caches of a whole allocation, whatever part of it was asked for.  So there is one allocation for
    every power of two, and a program uses the least that holds it: a short one costs little after a long one.

    Args:
        pynq: the module whose ``allocate`` makes the memory.
        what: name for error messages.
        most: words that one DMA transfer can hold.
    """

    def __init__(self, pynq: Any, what: str, most: int) -> None:
        self._pynq, self._what, self._most = pynq, what, most
        self._sizes: dict[int, Any] = {}
        self._memory: Any = None  # the one of the present program

    @property
    def address(self) -> int:
        """Physical address of the first word."""
        return int(self._memory.physical_address)

    def reserve(self, words: int) -> None:
        """Room for ``words`` words.

        Raises:
            DeviceError: more than a transfer holds, or no contiguous memory left.
        """
        if words > self._most:
            raise DeviceError(f"{self._what} needs {words} words, a DMA transfer holds {self._most}; split the program")
        size = min(self._most, max(_LEAST_BUFFER, 1 << (words - 1).bit_length()))
        if size not in self._sizes:
            self._sizes[size] = self._allocate(size)
        self._memory = self._sizes[size]

    def _allocate(self, size: int) -> Any:
        def allocate() -> Any:
            with asked_of_pynq(
                f"{self._what}: no {size * WORD_BYTES} bytes of contiguous memory",
                "free other buffers, raise the kernel's cma= argument, or use smaller batches",
            ):
                return self._pynq.allocate(shape=(size,), dtype=np.uint64)

        try:
            memory = allocate()
        except DeviceError:
            if not self._sizes:
                raise
            self.free()  # the other sizes may be what is in the way
            memory = allocate()
        if int(memory.physical_address) % WORD_BYTES:
            address = int(memory.physical_address)
            memory.freebuffer()
            raise DeviceError(f"{self._what}: memory at {address:#x} is not aligned to words, which the DMAs need")
        return memory

    def send(self, words: U64) -> None:
        """Put words in and make the DMA see them."""
        self._memory[: words.size] = words
        self._memory.flush()

    def expect(self) -> None:
        """Before receiving: no dirty cache line may be written back over what the DMA writes."""
        self._memory.flush()

    def received(self, words: int) -> U64:
        """Copy of the first ``words`` words that the DMA has written."""
        self._memory.invalidate()
        return np.array(self._memory[:words], dtype=np.uint64)

    def free(self) -> None:
        """Give the memory back."""
        sizes, self._sizes, self._memory = self._sizes, {}, None
        for memory in sizes.values():
            memory.freebuffer()


class DmaChannel:
    """One direction of an AXI DMA in direct register mode.

    Args:
        mmio: registers of the DMA.
        base: ``0x00`` memory to stream, ``0x30`` stream to memory.
        name: for error messages.
    """

    def __init__(self, mmio: Any, base: int, name: str) -> None:
        self._mmio, self._base, self.name = mmio, base, name

    @property
    def status(self) -> int:
        """Status register."""
        return int(self._mmio.read(self._base + _STATUS))

    @property
    def length(self) -> int:
        """Bytes of the last transfer; for a receiving channel those that came."""
        return int(self._mmio.read(self._base + _LENGTH))

    def start(self, address: int, length: int) -> None:
        """Begin a transfer of ``length`` bytes at physical ``address``.

        Raises:
            DeviceError: the channel does not leave its halted state, in which a length would be ignored.
        """
        self._mmio.write(self._base + _CONTROL, _RUN)
        deadline = time.monotonic() + RESET_TIMEOUT
        while self.status & _HALTED:
            if time.monotonic() > deadline:
                raise DeviceError(f"{self.name} stays halted when told to run (status {self.status:#010x})")
        self._mmio.write(self._base + _ADDRESS, address & 0xFFFFFFFF)
        self._mmio.write(self._base + _ADDRESS_HIGH, address >> 32)
        self._mmio.write(self._base + _LENGTH, length)

    def idle(self) -> bool:
        """Whether the transfer is over.

        Raises:
            DeviceError: the DMA has stopped with an error.
        """
        status = self.status
        faults = [text for bit, text in _FAULTS.items() if status & bit]
        if faults:
            raise DeviceError(f"{self.name}: {'; '.join(faults)} (status {status:#010x})")
        if status & _HALTED:
            raise DeviceError(
                f"{self.name} has halted without an error (status {status:#010x}); was it reset elsewhere?"
            )
        return bool(status & _IDLE)

    def reset(self) -> None:
        """Abandon whatever is under way.

        Raises:
            DeviceError: the reset does not end, as when the DMA's clock stands still.
        """
        self._mmio.write(self._base + _CONTROL, _RESET)
        deadline = time.monotonic() + RESET_TIMEOUT
        while int(self._mmio.read(self._base + _CONTROL)) & _RESET:
            if time.monotonic() > deadline:
                raise DeviceError(f"{self.name} stays in reset; load the overlay again or switch the board off and on")

    def state(self) -> str:
        """One line for people."""
        control = int(self._mmio.read(self._base + _CONTROL))
        return f"{self.name} control {control:#x} status {self.status:#x} length {self.length}"


def split_program(words: U64, design: Design, most_in: int, most_out: int) -> list[tuple[U64, int, int]]:
    """A program as a list of shorter ones, cut between packets.

    Args:
        words: uint64 (even number,).
        design: by whose rules headers are judged.
        most_in: words that one input stream may hold.
        most_out: result words, trailer included, that one part may send.

    Returns:
        Parts, the number of packets before each, and the result words that it sends at most, trailer included.  A program with a header that the fabric would refuse is cut up to
        there; the rest, which the fabric swallows, stays in one part if it fits.

    Raises:
        DeviceError: a single packet is too long.
    """
    end = np.array(END.pack(), dtype=np.uint64)
    parts: list[tuple[U64, int, int]] = []
    start = at = packets = first = 0
    sent = 2
    while at + HEADER_WORDS <= words.size:
        header = [int(w) for w in words[at : at + HEADER_WORDS]]
        size, results = words.size - at, 0
        if check_header(design, header)[0] is Error.NONE and (packet := Packet.unpack(header)).opcode != Opcode.END:
            size = min(size, HEADER_WORDS + packet.payload_words)
            results = packet.result_words(design)
        if at > start and ((at + size - start + HEADER_WORDS) // 2 > most_in or sent + results > most_out):
            parts.append((np.concatenate([words[start:at], end]), first, sent))
            start, first, sent = at, packets, 2
        if (size + HEADER_WORDS) // 2 > most_in or 2 + results > most_out:
            raise DeviceError(
                f"packet {packets} needs {size} words in and {results} out; a DMA transfer holds {most_in} per input "
                f"stream and {most_out} out: tile the product into smaller packets"
            )
        sent += results
        at += size
        packets += 1
    parts.append((words[start:], first, sent))
    return parts
