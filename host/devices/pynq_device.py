"""The fabric on a board, driven through PYNQ: one process, three DMAs, deadlines everywhere.

The block design (``hw/vivado``) holds the fabric as ``fabric``, one AXI DMA per stream as ``dma_in0``, ``dma_in1`` and
``dma_result``, and a GPIO ``fabric_reset`` whose only bit resets the fabric.  Of PYNQ only three things are used -
``Overlay`` to load the bitstream and find addresses, ``allocate`` for contiguous memory, ``MMIO`` for registers - so
that nothing depends on a PYNQ version's DMA driver, whose ``wait()`` has no deadline.

Why the DMAs work in their simple mode: it sets TLAST at the end of every transfer, so a program cannot be cut into
several transfers.  A transfer holds up to 64 MiB less one word (26-bit length).  Longer programs are cut between
packets instead, into programs of their own, which is equivalent because buffers keep their contents; so no descriptor
memory and no descriptor errors exist.

Standard library, NumPy and pynq only.
"""

from __future__ import annotations

import importlib
import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from host.arrays import U64
from host.devices.device import (
    DEFAULT_TIMEOUT,
    DeviceError,
    DeviceInfo,
    HasWords,
    Result,
    check,
    parse_output,
    program_words,
    split_streams,
)
from host.devices.library import COUNTERS, result_bound
from host.program.builder import ProgramBuilder, float_bits
from hw import contract
from hw.contract import HEADER_WORDS, REGISTER, REGISTERS, Error, Flag, Opcode, OutputFormat, Target
from hw.design import STREAM_BITS, Design
from hw.packet import END, Packet, check_header, product, read_entries

WORD_BYTES = STREAM_BITS // 8
DMA_NAMES = ("dma_in0", "dma_in1", "dma_result")
LENGTH_BITS = 26  #: of the DMAs' length registers, as the block design sets them

# AXI DMA, direct register mode; offsets from the channel's base
_MM2S, _S2MM = 0x00, 0x30
_CONTROL, _STATUS, _ADDRESS, _ADDRESS_HIGH, _LENGTH = 0x00, 0x04, 0x18, 0x1C, 0x28
_RUN, _RESET = 1 << 0, 1 << 2
_HALTED, _IDLE, _SCATTER_GATHER = 1 << 0, 1 << 1, 1 << 3
_FAULTS = {
    1 << 4: "internal error: the stream did not fit the buffer, or a length was zero",
    1 << 5: "bus error: a slave answered an access with an error",
    1 << 6: "bus error: no slave answers at this address",
}
# high-performance ports of the Zynq-7000: bit 0 of either control register narrows the port to 32 bits
_AFI_BASE, _AFI_STEP, _AFI_READ, _AFI_WRITE = 0xF8008000, 0x1000, 0x00, 0x14
_RESET_TIMEOUT = 1.0  #: seconds that a reset may take
_RESET_PAUSE = 1e-3  #: seconds; the reset controller needs some dozen clock cycles
_LONGEST_SLEEP = 2e-3
_LEAST_BUFFER = 1 << 12  #: words of the smallest allocation, eight pages


@contextmanager
def _asked_of_pynq(what: str, remedy: str) -> Iterator[None]:
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


def _pynq() -> Any:
    try:
        with _asked_of_pynq(
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
            with _asked_of_pynq(
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
        deadline = time.monotonic() + _RESET_TIMEOUT
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
        deadline = time.monotonic() + _RESET_TIMEOUT
        while int(self._mmio.read(self._base + _CONTROL)) & _RESET:
            if time.monotonic() > deadline:
                raise DeviceError(f"{self.name} stays in reset; load the overlay again or switch the board off and on")

    def state(self) -> str:
        """One line for people."""
        control = int(self._mmio.read(self._base + _CONTROL))
        return f"{self.name} control {control:#x} status {self.status:#x} length {self.length}"


class PowerSensor:
    """Board power from the kernel's hardware monitors (PMBus regulators on the ZC706 and ZCU104).

    Args:
        folder: where the monitors are; tests give their own.
    """

    def __init__(self, folder: Path = Path("/sys/class/hwmon")) -> None:
        self._power: list[Path] = []
        self._pairs: list[tuple[Path, Path]] = []
        for monitor in sorted(folder.glob("hwmon*")):
            power = sorted(monitor.glob("power*_input"))
            self._power += power
            if not power:  # regulators without a power reading: volts times amperes of the same rail
                volts = {self._label(p): p for p in monitor.glob("in*_input")}
                for amperes in sorted(monitor.glob("curr*_input")):
                    if (rail := self._label(amperes).replace("iout", "vout")) in volts:
                        self._pairs.append((volts[rail], amperes))

    @staticmethod
    def _label(path: Path) -> str:
        label = path.with_name(path.name.replace("_input", "_label"))
        return label.read_text(encoding="utf-8").strip() if label.is_file() else path.name.replace("curr", "in")

    @property
    def present(self) -> bool:
        """Whether any rail can be read."""
        return bool(self._power or self._pairs)

    def watts(self) -> float | None:
        """Sum over all rails now, or None without a readable sensor."""
        try:
            total = sum(int(p.read_text(encoding="utf-8")) * 1e-6 for p in self._power)
            total += sum(
                int(v.read_text(encoding="utf-8")) * int(a.read_text(encoding="utf-8")) * 1e-6 for v, a in self._pairs
            )
        except (OSError, ValueError):
            return None
        return total if self.present else None


class PowerMeter:
    """Energy of the board while programs run, from a sensor that a thread of its own reads.

    A reading takes milliseconds on the regulators' bus, so no program waits for one: a program's energy is its duration
    times the mean of the readings begun and ended while it ran, or, where it was too short for one, of all readings
    that were begun while a program ran.

    Args:
        sensor: what is read.
        period: seconds between the ends and beginnings of readings.

    Raises:
        DeviceError: the sensor cannot be read.
    """

    def __init__(self, sensor: PowerSensor, period: float = 0.02) -> None:
        if sensor.watts() is None:
            raise DeviceError(
                "no power monitor can be read on this board; measure without energy, or load the kernel's drivers of "
                "its regulators (they appear below /sys/class/hwmon)"
            )
        self._sensor, self._period = sensor, period
        self._lock = threading.Lock()
        self._running, self._closed = threading.Event(), threading.Event()
        self._here: list[float] = []  # readings, in watts, of the present program,
        self._sum, self._count = 0.0, 0  # and of all
        self._begun = 0.0
        self._program = 0
        self._thread = threading.Thread(target=self._read, name="power", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._closed.is_set():
            if not self._running.wait(timeout=0.5):
                continue
            program = self._program
            watts = self._sensor.watts()
            with self._lock:
                if watts is not None:
                    self._sum, self._count = self._sum + watts, self._count + 1
                    if self._running.is_set() and program == self._program:
                        self._here.append(watts)
            self._closed.wait(self._period)

    def start(self) -> None:
        """A program begins."""
        with self._lock:
            self._program += 1
            self._here = []
            self._begun = time.monotonic()
        self._running.set()

    def stop(self) -> float | None:
        """The program is over: its joules, or None while nothing has been read yet."""
        seconds = time.monotonic() - self._begun
        with self._lock:
            self._running.clear()
            if self._here:
                return seconds * sum(self._here) / len(self._here)
            return seconds * self._sum / self._count if self._count else None

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join(timeout=1.0)


def self_test_program(design: Design) -> U64:
    """Words of a short program that uses both input streams, all buffers and the array in every direction."""
    rng = np.random.default_rng(5)
    builder = ProgramBuilder(design)
    c, lanes = design.channels, design.lanes
    rows, bits = 3, 3
    codes = rng.integers(0, 1 << bits, size=(1, rows, 1, lanes, c))
    builder.load_packed(Target.A | Target.G, codes, bits)
    values = rng.standard_normal((rows, 1, lanes, c)).astype(np.float32)
    random = {"key": 0x1234567, "channel_stride": 1, "row_stride": 977, "pixel_stride": 31}
    quantizer = {"reciprocal": float_bits(3), "segment_start": 1, "flags": Flag.A_SIGNED | Flag.STOCHASTIC}
    builder.load_float(Packet(Opcode.LOAD, target=Target.A, a_bits=4, base_a=bits, **quantizer, **random), values)
    builder.load_weights(rng.integers(-4, 4, size=(1, 1, c, contract.TAPS, c)), bits)
    shape = {"images": 1, "rows": rows, "groups": 1, "out_groups": 1, "b_bits": bits}
    signs = Flag.A_SIGNED | Flag.B_SIGNED
    builder.add(product(Opcode.CONV, **shape, a_bits=bits, flags=Flag.B_SIGNED | Flag.A_SUM))
    builder.add(product(Opcode.CONV, **shape, a_bits=4, base_a=bits, flags=signs, format=OutputFormat.INT64))
    accumulated = Flag.A_SIGNED | Flag.ONES | Flag.CLEAR
    builder.add(product(Opcode.WGRAD, **shape, a_bits=4, base_a=bits, flags=accumulated))
    builder.add(read_entries(2 * contract.TAPS * (c + 1)))
    return builder.words()


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


class PynqDevice:
    """A board with the overlay loaded.  Implements :class:`host.devices.device.Device`.

    Args:
        design: that the bitstream was built from.
        overlay: path of the ``.bit`` file (its ``.hwh`` beside it), or a loaded ``pynq.Overlay``; None takes
            ``DESIGN.bit`` from the installed overlay packages.
        self_test: run a short program after loading and compare its answer with the reference.
        sensor: board power, read by a thread while programs run: results then count ``ENERGY_UJ``.  None measures none.

    Raises:
        DeviceError: no pynq or one that does not work here, a bitstream of another design, a wrong port width, a failed
            self-test, or a sensor that cannot be read.
    """

    def __init__(
        self, design: Design, overlay: Any = None, *, self_test: bool = True, sensor: PowerSensor | None = None
    ) -> None:
        self._design = design
        self._pynq = _pynq()
        self._buffers: dict[str, ContiguousBuffer] = {}
        self._meter: PowerMeter | None = None
        self._unfinished = False  # a program was abandoned and the reset after it did not end
        self.energy = 0.0  #: joules of all programs so far, of the whole board; 0 without a sensor
        self.overlay = self._load(overlay)
        self._fabric = self._mmio("fabric")
        self._reset_gpio = self._mmio("fabric_reset") if "fabric_reset" in self._blocks else None
        width = self._check_dmas()
        self._most = (1 << width) // WORD_BYTES - 1  # words of one transfer
        mmios = {name: self._mmio(name) for name in DMA_NAMES}
        self._in0 = DmaChannel(mmios["dma_in0"], _MM2S, "dma_in0")
        self._in1 = DmaChannel(mmios["dma_in1"], _MM2S, "dma_in1")
        self._out = DmaChannel(mmios["dma_result"], _S2MM, "dma_result")
        for channel in (self._in0, self._in1, self._out):
            if channel.status & _SCATTER_GATHER:
                raise DeviceError(f"{channel.name} is built with scatter-gather; rebuild with hw/vivado's block design")
        self._wake()
        self._hash = self._check_identity()
        self._check_port_width()
        self._buffers = {name: ContiguousBuffer(self._pynq, name, self._most) for name in DMA_NAMES}
        try:
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
            for needed in (bit, bit.with_suffix(".hwh")):
                if not needed.is_file():
                    raise DeviceError(f"{needed} does not exist; an overlay is a .bit and a .hwh of the same name")
            self._check_manifest(bit)
        with _asked_of_pynq(
            f"overlay {path} cannot be loaded",
            f"install the overlay package of design {self._design.name!r} or give the path of its .bit, run as root, and "
            "see that the .hwh is of this bitstream and of the Vivado release that this PYNQ reads (docs/board.md)",
        ):
            return self._pynq.Overlay(path)

    def _check_manifest(self, bit: Path) -> None:
        """A manifest beside the bitstream is compared before the chip is touched."""
        path = bit.with_suffix(".json")
        if not path.is_file():
            return
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            found, version = str(manifest["design_hash"]), int(manifest["contract_version"])
        except (ValueError, KeyError, TypeError, OSError) as e:
            raise DeviceError(f"{path} is not a manifest ({e!r}); collect the overlay again") from e
        if found != f"{self._design.hash64:016x}" or version != contract.VERSION:
            raise DeviceError(
                f"{bit.name} was built from design {found}, contract {version}; {self._design.name!r} "
                f"is {self._design.hash64:016x}, contract {contract.VERSION}: name the right design or build again"
            )

    @property
    def _blocks(self) -> dict[str, Any]:
        with _asked_of_pynq(
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
        with _asked_of_pynq(
            f"the registers of block {name!r} cannot be reached",
            "run as root; if the description of the block is incomplete, build the overlay with fractrain bitstream",
        ):
            return self._pynq.MMIO(int(blocks[name]["phys_addr"]), int(blocks[name]["addr_range"]))

    def _parameter(self, block: str, name: str) -> int | None:
        """An integer parameter of a block from the hardware description; letter case differs between tool versions."""
        for key, value in dict(self._blocks[block].get("parameters", {})).items():
            if key.lower() == name:
                try:
                    return int(str(value), 0)
                except ValueError:
                    return None
        return None

    def _check_dmas(self) -> int:
        """Stream widths and length bits of the three DMAs; returns the least number of length bits."""
        least = LENGTH_BITS
        for name in DMA_NAMES:
            if name not in self._blocks:
                self._mmio(name)  # raises
            sending = name != "dma_result"
            axis = self._parameter(name, "c_m_axis_mm2s_tdata_width" if sending else "c_s_axis_s2mm_tdata_width")
            if axis is not None and axis != STREAM_BITS:
                raise DeviceError(
                    f"{name} has a stream of {axis} bits, the fabric of {STREAM_BITS}; rebuild the overlay"
                )
            bits = self._parameter(name, "c_sg_length_width")
            least = min(least, 14 if bits is None else bits)  # 14 bits are the block's own default
        return least

    def _register(self, name: str) -> int:
        return int(self._fabric.read(REGISTER[name].offset))

    def _wake(self) -> None:
        """A kernel made by HLS fills its identity registers when it first returns: start it once with nothing to do."""
        if self._register("HASH_LO") or self._register("HASH_HI") or not self._register("CTRL") & 4:
            return
        self._fabric.write(REGISTER["SOFT_RESET"].offset, 1)
        self._fabric.write(REGISTER["CTRL"].offset, 1)
        deadline = time.monotonic() + _RESET_TIMEOUT
        while not self._register("CTRL") & 4 and time.monotonic() < deadline:
            time.sleep(_LONGEST_SLEEP)
        self._fabric.write(REGISTER["SOFT_RESET"].offset, 0)

    def _check_identity(self) -> int:
        """Hash, contract version, channels and stream width as the hardware tells them."""
        found = self._register("HASH_LO") | self._register("HASH_HI") << 32
        value = self._register("CONTRACT")
        expected = contract.VERSION | self._design.channels << 8 | STREAM_BITS << 16
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
        if value >> 16 != STREAM_BITS:
            raise DeviceError(f"the overlay's streams have {value >> 16} bits, not {STREAM_BITS}; rebuild the overlay")
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
        for port in range(3):
            with _asked_of_pynq(f"the settings of memory port HP{port} cannot be read", "run as root"):
                afi = self._pynq.MMIO(_AFI_BASE + port * _AFI_STEP, 0x1000)
            for offset, direction in ((_AFI_READ, "read"), (_AFI_WRITE, "write")):
                if int(afi.read(offset)) & 1:
                    raise DeviceError(
                        f"memory port HP{port} is {direction} with 32 bits, the DMAs use 64; boot with an image whose "
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

    def run(self, program: HasWords | U64, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Run a program; see :class:`host.devices.device.Device`.  One longer than a transfer runs in parts.

        Raises:
            DeviceError: see :meth:`run_streams`; also a single packet too long for a transfer.
        """
        words = program_words(program)
        streams = split_streams(words)
        # a program that knows its number of results spares a walk over its headers
        known = getattr(program, "result_words", None)
        bound = result_bound(*streams, self._design) if known is None else known + 2
        deadline = time.monotonic() + timeout
        if words.size // 2 <= self._most and bound <= self._most:
            return self._run(*streams, bound, timeout)
        total: Result | None = None
        for part, first, sends in split_program(words, self._design, self._most, self._most):
            result = self._run(*split_streams(part), sends, max(0.0, deadline - time.monotonic()))
            if total is None:
                total = result
                continue
            both = (total.counters, result.counters)
            counters = {k: sum(c.get(k, 0) for c in both) & 0xFFFFFFFF for k in both[0] | both[1]}
            counters["PACKETS"] -= 1  # the END that was added to the part before,
            counters["WORDS_IN"] -= HEADER_WORDS
            counters["WORDS_OUT"] -= 2  # and its trailer
            position = result.position + first if result.error is not Error.NONE else 0
            words_out = np.concatenate([total.words, result.words])
            total = replace(result, words=words_out, counters=counters, position=position)
            if result.error is not Error.NONE:
                break
        assert total is not None
        return total

    def run_streams(self, words0: U64, words1: U64, timeout: float = DEFAULT_TIMEOUT) -> Result:
        """Run from two streams with TLAST on the last word of each.

        Whatever ends it before its time, an interrupt from the keyboard too, the fabric and its DMAs are reset, so that
        the next program runs.

        Raises:
            DeviceError: no trailer in time, a DMA error, or fewer words than the fabric says it has sent; the message
                holds the state of fabric and DMAs.
            ValueError: an empty stream, which cannot carry TLAST.
        """
        if words0.size == 0 or words1.size == 0:
            raise ValueError("a stream needs at least one word, which carries TLAST")
        return self._run(words0, words1, result_bound(words0, words1, self._design), timeout)

    def _run(self, words0: U64, words1: U64, bound: int, timeout: float) -> Result:
        """Run from two streams a program that sends at most ``bound`` words."""
        if not self._buffers:
            raise DeviceError("the pynq device is closed; open another one")
        if not math.isfinite(timeout):
            raise ValueError(f"timeout {timeout} must be a finite number of seconds")
        for name, size in zip(DMA_NAMES, (words0.size, words1.size, bound), strict=True):
            self._buffers[name].reserve(size)
        if self._unfinished:
            self.reset()
        try:
            return self._transfer(words0, words1, bound, timeout)
        except DeviceError as e:
            try:
                state = self._state()
            except Exception as unread:
                state = f"the registers cannot be read: {unread}"
            outcome = "the device was reset and takes the next program"
            try:
                self.reset()
            except DeviceError as failed:
                outcome = f"and the reset failed: {failed}"
            raise DeviceError(f"pynq: {e} [{state}]; {outcome}") from e
        except BaseException:
            with suppress(DeviceError):  # the next program tries again, and says so if that fails
                self.reset()
            raise

    def _transfer(self, words0: U64, words1: U64, bound: int, timeout: float) -> Result:
        """Fill the buffers, start everything, wait, and collect; leaves everything as it is on an exception."""
        in0, in1, out = (self._buffers[name] for name in DMA_NAMES)
        in0.send(np.asarray(words0, dtype=np.uint64))
        in1.send(np.asarray(words1, dtype=np.uint64))
        out.expect()
        begun = time.monotonic()
        if not self._register("CTRL") & 4:
            raise DeviceError("the fabric is not idle before the program")
        self._unfinished = True
        joules: float | None = None
        # receiver first and senders last, so that no stream waits for a channel that is not yet running
        self._out.start(out.address, bound * WORD_BYTES)
        self._fabric.write(REGISTER["CTRL"].offset, 1)
        if self._meter is not None:
            self._meter.start()
        try:
            self._in0.start(in0.address, words0.size * WORD_BYTES)
            self._in1.start(in1.address, words1.size * WORD_BYTES)
            self._wait(begun + timeout, timeout, words0.size + words1.size)
        finally:
            if self._meter is not None:
                joules = self._meter.stop()
        count = self._out.length // WORD_BYTES
        counters = {name: self._register(name) for name in COUNTERS}
        if self._check_identity() != self._hash:
            raise DeviceError("another overlay was loaded meanwhile")
        if count != counters["WORDS_OUT"]:
            raise DeviceError(
                f"{count} words arrived and the fabric sent {counters['WORDS_OUT']}: the result stream is truncated"
            )
        result = parse_output(out.received(count), counters)
        self._unfinished = False
        if joules is not None:
            self.energy += joules
            result.counters["ENERGY_UJ"] = round(joules * 1e6)
        return result

    def _wait(self, deadline: float, timeout: float, words: int) -> None:
        """Until all three transfers are over and the fabric is idle."""
        sleep = 0.0
        while True:
            # every channel is asked each time, so that the first error ends the wait
            done = [channel.idle() for channel in (self._out, self._in0, self._in1)]
            if all(done) and self._register("CTRL") & 4:
                return
            if time.monotonic() > deadline:
                names = [n for n, over in zip(("dma_result", "dma_in0", "dma_in1"), done, strict=True) if not over]
                raise DeviceError(
                    f"no end within {timeout:.3g} s of a program of {words} words, waiting for "
                    f"{', '.join(names) or 'the fabric'}; check the program's TLAST or allow more time"
                )
            if sleep:
                time.sleep(sleep)
            sleep = min(_LONGEST_SLEEP, sleep * 2 or 2e-5)

    def _state(self) -> str:
        """Registers of the fabric and of the DMAs on one line."""
        shown = [f"{r.name} {self._register(r.name):#x}" for r in _dumped()]
        return ", ".join([*shown, *(c.state() for c in (self._in0, self._in1, self._out))])

    def reset(self) -> None:
        """Back to idle, whatever was under way: DMAs first, so that none feeds or drains the fabric being reset.

        Raises:
            DeviceError: fabric or DMA do not come back.
        """
        for channel in (self._in0, self._in1, self._out):
            channel.reset()
        if self._reset_gpio is not None:
            self._reset_gpio.write(0, 0)
            time.sleep(_RESET_PAUSE)
            self._reset_gpio.write(0, 1)
            time.sleep(_RESET_PAUSE)  # a register access to a fabric that is still in reset would never be answered
        else:
            self._fabric.write(REGISTER["SOFT_RESET"].offset, 1)
            self._fabric.write(REGISTER["SOFT_RESET"].offset, 0)  # an HLS kernel would find it set at its next start
        deadline = time.monotonic() + _RESET_TIMEOUT
        while not self._register("CTRL") & 4:
            if time.monotonic() > deadline:
                raise DeviceError(
                    f"the fabric is not idle {_RESET_TIMEOUT:g} s after a reset (CTRL {self._register('CTRL'):#x}); "
                    "load the overlay again"
                )
        self._unfinished = False

    def close(self) -> None:
        """Free the contiguous memory; the device cannot be used afterwards."""
        if self._meter is not None:
            self._meter.close()
        buffers, self._buffers = self._buffers, {}
        for buffer in buffers.values():
            buffer.free()


def _dumped() -> Iterator[contract.Register]:
    return (r for r in REGISTERS if r.name == "CTRL" or r.offset >= REGISTER["ERROR"].offset)
