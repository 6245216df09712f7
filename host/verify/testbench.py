"""Bus models and checks around one fabric, for cocotb benches.  Runs inside the simulator."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Iterator
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, First, RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiStreamBus, AxiStreamSink, AxiStreamSource

from host.devices.device import U64, Result, parse_output, split_streams
from host.devices.library import COUNTERS
from hw.contract import FUNCTIONAL_COUNTERS, REGISTER, REGISTERS

START, DONE, IDLE, READY = 1, 2, 4, 8


def pauses(chance: float, seed: int) -> Iterator[bool]:
    """Endless pause pattern for a stream: runs of pausing and of flowing, pausing ``chance`` of the time."""
    rng = random.Random(seed)
    while True:
        length = rng.choice((1, 1, 2, 3, 20))
        yield from itertools.repeat(rng.random() < chance, length)


class StreamMonitor:
    """Checks the rules of AXI4-Stream on an output, and counts its transfers.

    Once TVALID is high it stays high, with the same data, until TREADY; TKEEP is full; a reset may end that.

    Args:
        dut: the fabric.
        prefix: of the stream's ports.
    """

    def __init__(self, dut: Any, prefix: str) -> None:
        self.dut, self.prefix = dut, prefix
        self.transfers = self.stalled = 0
        self.violations: list[str] = []
        self.paused = False  #: a soft reset is under way: the word on offer may vanish
        cocotb.start_soon(self._run())

    async def _run(self) -> None:
        valid, ready, data, last, keep = (
            getattr(self.dut, f"{self.prefix}_{name}") for name in ("TVALID", "TREADY", "TDATA", "TLAST", "TKEEP")
        )
        # the values that the coming rising edge samples are there, settled, at the falling edge before it
        edge = FallingEdge(self.dut.ap_clk)
        held: tuple[int, int] | None = None
        while True:
            await edge
            if self.paused or not int(self.dut.ap_rst_n.value):
                held = None
                continue
            offered = (int(data.value), int(last.value)) if int(valid.value) else None
            if held is not None and offered != held:
                self.violations.append(f"{self.prefix}: {held} was on offer and not taken, then {offered}")
            if offered is not None and int(keep.value) != 0xFF:
                self.violations.append(f"{self.prefix}: TKEEP {int(keep.value):#x} is not full")
            held = None
            if offered is not None:
                if int(ready.value):
                    self.transfers += 1
                else:
                    self.stalled += 1
                    held = offered


class TB:
    """A clocked fabric with a source on either input, a sink on every output, and a master on the control port.

    Args:
        dut: module ``fabric``.
        outputs: streams on which results leave, of the design.
        in0, in1, result: chance that the stream pauses in a cycle.
        seed: of the pauses.
    """

    def __init__(
        self, dut: Any, outputs: int, in0: float = 0.0, in1: float = 0.0, result: float = 0.0, seed: int = 1
    ) -> None:
        self.dut = dut
        names = [f"out{k}" for k in range(outputs)]
        for name in ("in0", "in1", *names, "s_axi_control"):  # they print whole frames, even as warnings
            logging.getLogger(f"cocotb.{dut._name}.{name}").setLevel(logging.ERROR)
        Clock(dut.ap_clk, 10, unit="ns").start()
        reset = {"reset": dut.ap_rst_n, "reset_active_level": False}
        self.sources = [  # one item of a frame is a word, not a byte
            AxiStreamSource(AxiStreamBus.from_prefix(dut, prefix), dut.ap_clk, byte_lanes=1, **reset)
            for prefix in ("in0", "in1")
        ]
        self.sinks = [AxiStreamSink(AxiStreamBus.from_prefix(dut, name), dut.ap_clk, **reset) for name in names]
        self.control = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi_control"), dut.ap_clk, **reset)
        self.monitors = [StreamMonitor(dut, name) for name in names]
        self.set_pauses(in0, in1, result, seed)

    def set_pauses(self, in0: float, in1: float, result: float, seed: int = 1) -> None:
        """Idle generators of the inputs and the back-pressure generators of the outputs."""
        chances = (in0, in1, *[result] * len(self.sinks))
        for k, (stream, chance) in enumerate(zip((*self.sources, *self.sinks), chances, strict=True)):
            stream.clear_pause_generator()
            stream.pause = False
            if chance:
                stream.set_pause_generator(pauses(chance, 4 * seed + k))

    async def cycle_reset(self) -> None:
        """Reset by the pin; whatever is in the bus models is dropped."""
        for stream in (*self.sources, *self.sinks):
            stream.clear()
        self.dut.ap_rst_n.value = 0
        await ClockCycles(self.dut.ap_clk, 5)
        self.dut.ap_rst_n.value = 1
        await ClockCycles(self.dut.ap_clk, 5)

    async def soft_reset(self) -> None:
        """Reset by register, together with the streams' own engines, as a driver resets its DMA."""
        for monitor in self.monitors:
            monitor.paused = True
        for stream in (*self.sources, *self.sinks):
            stream.assert_reset(True)
            stream.clear()
        await self.write("SOFT_RESET", 1)
        await ClockCycles(self.dut.ap_clk, 5)
        for monitor in self.monitors:
            monitor.paused = False
        for stream in (*self.sources, *self.sinks):
            stream.assert_reset(False)
        await ClockCycles(self.dut.ap_clk, 2)

    @property
    def stalled(self) -> int:
        """Cycles in which a word waited on an output stream, all of them together."""
        return sum(monitor.stalled for monitor in self.monitors)

    @property
    def transfers(self) -> int:
        """Words that have left on all output streams together."""
        return sum(monitor.transfers for monitor in self.monitors)

    # -- registers --------------------------------------------------------------------------------------------------

    async def read(self, name: str | int) -> int:
        """A register by name or by byte offset."""
        offset = REGISTER[name].offset if isinstance(name, str) else name
        return int(await self.control.read_dword(offset))

    async def write(self, name: str | int, value: int) -> None:
        offset = REGISTER[name].offset if isinstance(name, str) else name
        await self.control.write_dword(offset, value)

    async def counters(self) -> dict[str, int]:
        return {name: await self.read(name) for name in COUNTERS}

    # -- programs ---------------------------------------------------------------------------------------------------

    async def launch(self, words0: U64, words1: U64) -> None:
        """Queue a program on the streams, then start the fabric."""
        for source, words in zip(self.sources, (words0, words1), strict=True):
            source.send_nowait([int(w) for w in words])
        await self.write("CTRL", START)

    async def collect(self, cycles: int = 2_000_000) -> Result:
        """The answer to the program that was launched: waits for the trailer, then until the fabric is idle.

        Raises:
            TimeoutError: not within ``cycles`` clock cycles.
        """
        arrival = cocotb.start_soon(self._receive())
        done = await First(arrival, ClockCycles(self.dut.ap_clk, cycles))
        if not arrival.done():
            arrival.cancel()
            state = {r.name: await self.read(r.name) for r in REGISTERS if r.offset >= 0x30}
            raise TimeoutError(f"no trailer within {cycles} cycles: {state}")
        assert done is not None
        for _ in range(1000):
            if await self.read("CTRL") & IDLE:
                break
        else:
            raise TimeoutError("the trailer is sent and the fabric does not become idle")
        if not all(sink.empty() for sink in self.sinks):
            raise AssertionError("more than one frame left for one program")
        if violations := [line for monitor in self.monitors for line in monitor.violations]:
            raise AssertionError("; ".join(violations[:3]))
        return parse_output(arrival.result(), await self.counters())

    async def _receive(self) -> U64:
        """A frame of every output stream, as one row of words: even ones come on the first stream, odd ones on the second."""
        frames = [await sink.recv() for sink in self.sinks]
        streams = [np.frombuffer(bytes(frame.tdata), dtype="<u8").astype(np.uint64) for frame in frames]
        return np.stack(streams, axis=1).reshape(-1)

    async def run_streams(self, words0: U64, words1: U64) -> Result:
        """Run a program given as its two streams."""
        await self.launch(words0, words1)
        result = await self.collect()
        left = [not source.idle() for source in self.sources]
        assert not any(left), f"the fabric is idle and has not read its streams to the end: {left}"
        return result

    async def run(self, words: U64) -> Result:
        """Run a program."""
        return await self.run_streams(*split_streams(words))

    async def wait_taken(self, beats: int) -> None:
        """Until the fabric has taken so many beats of the program that runs."""
        taken = 0
        while taken < beats:
            await RisingEdge(self.dut.ap_clk)
            taken += int(self.dut.in0_TVALID.value) and int(self.dut.in0_TREADY.value)


def differences(found: Result, expected: Result) -> list[str]:
    """How a result differs from the reference's: its words, refusal and, if all went well, functional counters."""
    out = []
    if (found.error, found.position) != (expected.error, expected.position):
        out.append(f"{found.error.name} at {found.position}, expected {expected.error.name} at {expected.position}")
    if found.words.size != expected.words.size:
        out.append(f"{found.words.size} result words, expected {expected.words.size}")
    else:
        wrong = np.flatnonzero(found.words != expected.words)
        if wrong.size:
            k = int(wrong[0])
            out.append(
                f"{wrong.size} of {found.words.size} words differ, first at {k}: "
                f"{int(found.words[k]):016x}, expected {int(expected.words[k]):016x}"
            )
    # after an error only these two are promised
    names = FUNCTIONAL_COUNTERS if not expected.error else ("PACKETS", "WORDS_OUT")
    out += [
        f"{name} {found.counters[name]}, expected {expected.counters[name]}"
        for name in names
        if found.counters[name] != expected.counters[name]
    ]
    return out
