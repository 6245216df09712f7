"""The fabric on a board, driven through PYNQ: one process, three DMAs, deadlines everywhere.

The block design (``hw/vivado``) holds the fabric as ``fabric``, one AXI DMA per stream as ``dma_in0``, ``dma_in1``,
``dma_out0`` and, in a design with two output streams, ``dma_out1``, and a GPIO ``fabric_reset`` whose only bit resets the fabric.  Of PYNQ only three things are used -
``Overlay`` to load the bitstream and find addresses, ``allocate`` for contiguous memory, ``MMIO`` for registers - so
that nothing depends on a PYNQ version's DMA driver, whose ``wait()`` has no deadline.

Standard library, NumPy and pynq only.
"""

from __future__ import annotations

import importlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from host.arrays import U64
from host.devices import dma
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
from host.devices.dma import (
    FROM_STREAM,
    SCATTER_GATHER,
    TO_STREAM,
    WORD_BYTES,
    ContiguousBuffer,
    DmaChannel,
    asked_of_pynq,
    split_program,
)
from host.devices.library import COUNTERS, result_bound
from host.devices.power import PowerMeter, PowerSensor
from host.program.builder import ProgramBuilder
from hw import contract
from hw.contract import HEADER_WORDS, REGISTER, REGISTERS, Error, Flag, Opcode, OutputFormat, Target
from hw.design import STREAM_BITS, Design
from hw.packet import product, read_entries

INPUTS = ("dma_in0", "dma_in1")
OUTPUTS = ("dma_out0", "dma_out1")  #: of which a design has as many as output streams
LENGTH_BITS = 26  #: of the DMAs' length registers, as the block design sets them

# high-performance ports of the Zynq-7000: bit 0 of either control register narrows the port to 32 bits
_AFI_BASE, _AFI_STEP, _AFI_READ, _AFI_WRITE = 0xF8008000, 0x1000, 0x00, 0x14
_RESET_PAUSE = 1e-3  #: seconds; the reset controller needs some dozen clock cycles
_LONGEST_SLEEP = 2e-3


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
        self._ins = [DmaChannel(self._mmio(name), TO_STREAM, name) for name in INPUTS]
        self._outs = [DmaChannel(self._mmio(name), FROM_STREAM, name) for name in self._outputs]
        for channel in (*self._ins, *self._outs):
            if channel.status & SCATTER_GATHER:
                raise DeviceError(f"{channel.name} is built with scatter-gather; rebuild with hw/vivado's block design")
        self._wake()
        self._hash = self._check_identity()
        self._check_port_width()
        names = (*INPUTS, *self._outputs)
        self._buffers = {name: ContiguousBuffer(self._pynq, name, self._most) for name in names}
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
        with asked_of_pynq(
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

    def _parameter(self, block: str, name: str) -> int | None:
        """An integer parameter of a block from the hardware description; letter case differs between tool versions."""
        for key, value in dict(self._blocks[block].get("parameters", {})).items():
            if key.lower() == name:
                try:
                    return int(str(value), 0)
                except ValueError:
                    return None
        return None

    @property
    def _outputs(self) -> tuple[str, ...]:
        """DMAs of the output streams, in their order."""
        return OUTPUTS[: self._design.output_streams]

    def _check_dmas(self) -> int:
        """Stream widths and length bits of the DMAs; returns the least number of length bits."""
        least = LENGTH_BITS
        for name in (*INPUTS, *self._outputs):
            if name not in self._blocks:
                self._mmio(name)  # raises
            sending = name in INPUTS
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
        deadline = time.monotonic() + dma.RESET_TIMEOUT
        while not self._register("CTRL") & 4 and time.monotonic() < deadline:
            time.sleep(_LONGEST_SLEEP)
        self._fabric.write(REGISTER["SOFT_RESET"].offset, 0)

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
        for port in range(len(INPUTS) + self._design.output_streams):
            with asked_of_pynq(f"the settings of memory port HP{port} cannot be read", "run as root"):
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
        if bound <= (most_out := self._most * len(self._outs)) and words.size // 2 <= self._most:
            return self._run(*streams, bound, timeout)
        total: Result | None = None
        for part, first, sends in split_program(words, self._design, self._most, most_out):
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
        share = bound // len(self._outs)  # results are an even number of words
        for name, size in (*zip(INPUTS, (words0.size, words1.size), strict=True), *((n, share) for n in self._outputs)):
            self._buffers[name].reserve(size)
        if self._unfinished:
            self.reset()
        try:
            return self._transfer((words0, words1), share, timeout)
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

    def _transfer(self, streams: tuple[U64, U64], share: int, timeout: float) -> Result:
        """Fill the buffers, start everything, wait, and collect; leaves everything as it is on an exception.

        Args:
            share: most words that an output stream brings.
        """
        sources, targets = ([self._buffers[n] for n in names] for names in (INPUTS, self._outputs))
        for source, words in zip(sources, streams, strict=True):
            source.send(np.asarray(words, dtype=np.uint64))
        for target in targets:
            target.expect()
        begun = time.monotonic()
        if not self._register("CTRL") & 4:
            raise DeviceError("the fabric is not idle before the program")
        self._unfinished = True
        joules: float | None = None
        # receivers first and senders last, so that no stream waits for a channel that is not yet running
        for channel, target in zip(self._outs, targets, strict=True):
            channel.start(target.address, share * WORD_BYTES)
        self._fabric.write(REGISTER["CTRL"].offset, 1)
        if self._meter is not None:
            self._meter.start()
        try:
            for channel, source, words in zip(self._ins, sources, streams, strict=True):
                channel.start(source.address, words.size * WORD_BYTES)
            self._wait(begun + timeout, timeout, sum(words.size for words in streams))
        finally:
            if self._meter is not None:
                joules = self._meter.stop()
        counts = [channel.length // WORD_BYTES for channel in self._outs]
        counters = {name: self._register(name) for name in COUNTERS}
        if self._check_identity() != self._hash:
            raise DeviceError("another overlay was loaded meanwhile")
        if len(set(counts)) != 1 or sum(counts) != counters["WORDS_OUT"]:
            raise DeviceError(
                f"{sum(counts)} words arrived and the fabric sent {counters['WORDS_OUT']}: the result stream is truncated"
            )
        # even words have come on the first stream, odd ones on the second
        received = [target.received(n) for target, n in zip(targets, counts, strict=True)]
        result = parse_output(np.stack(received, axis=1).reshape(-1), counters)
        self._unfinished = False
        if joules is not None:
            self.energy += joules
            result.counters["ENERGY_UJ"] = round(joules * 1e6)
        return result

    def _wait(self, deadline: float, timeout: float, words: int) -> None:
        """Until all transfers are over and the fabric is idle."""
        sleep = 0.0
        while True:
            # every channel is asked each time, so that the first error ends the wait
            left = [channel.name for channel in (*self._outs, *self._ins) if not channel.idle()]
            if not left and self._register("CTRL") & 4:
                return
            if time.monotonic() > deadline:
                raise DeviceError(
                    f"no end within {timeout:.3g} s of a program of {words} words, waiting for "
                    f"{', '.join(left) or 'the fabric'}; check the program's TLAST or allow more time"
                )
            if sleep:
                time.sleep(sleep)
            sleep = min(_LONGEST_SLEEP, sleep * 2 or 2e-5)

    def _state(self) -> str:
        """Registers of the fabric and of the DMAs on one line."""
        shown = [f"{r.name} {self._register(r.name):#x}" for r in _dumped()]
        return ", ".join([*shown, *(c.state() for c in (*self._ins, *self._outs))])

    def reset(self) -> None:
        """Back to idle, whatever was under way: DMAs first, so that none feeds or drains the fabric being reset.

        Raises:
            DeviceError: fabric or DMA do not come back.
        """
        for channel in (*self._ins, *self._outs):
            channel.reset()
        if self._reset_gpio is not None:
            self._reset_gpio.write(0, 0)
            time.sleep(_RESET_PAUSE)
            self._reset_gpio.write(0, 1)
            time.sleep(_RESET_PAUSE)  # a register access to a fabric that is still in reset would never be answered
        else:
            self._fabric.write(REGISTER["SOFT_RESET"].offset, 1)
            self._fabric.write(REGISTER["SOFT_RESET"].offset, 0)  # an HLS kernel would find it set at its next start
        deadline = time.monotonic() + dma.RESET_TIMEOUT
        while not self._register("CTRL") & 4:
            if time.monotonic() > deadline:
                raise DeviceError(
                    f"the fabric is not idle {dma.RESET_TIMEOUT:g} s after a reset (CTRL {self._register('CTRL'):#x}); "
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
