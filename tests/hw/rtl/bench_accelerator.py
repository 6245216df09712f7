"""cocotb bench of the accelerator: registers, programs in memories of another maker's models, interrupts, stops."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, First, RisingEdge, Timer
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam

from host.devices.memory import StreamMemory
from host.devices.reference import ReferenceDevice
from hw.contract import MEMORY_REGISTER, MEMORY_REGISTERS, REGISTER, Fault, MemoryInterrupt, MemoryStatus
from hw.design import load_design
from tests.support.random_programs import random_program
from tests.support.scattered import Scattered, scattered

DESIGN = load_design(os.environ["BENCH_DESIGN"])
PROGRAMS = int(os.environ.get("BENCH_PROGRAMS", "6"))
BASES = (0x2000_0000, 0x3FE0_1000)
SIZE = 1 << 20  #: bytes of a bank


def pauses(chance: float, seed: int) -> Iterator[bool]:
    rng = random.Random(seed)
    while True:
        yield from itertools.repeat(rng.random() < chance, rng.choice((1, 1, 2, 3, 20)))


class Board:
    """The accelerator with a memory behind each port."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        cocotb.start_soon(Clock(dut.ap_clk, 10, "ns").start())
        self.control = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi_control"), dut.ap_clk, dut.ap_rst_n, False)
        self.banks = [
            AxiRam(AxiBus.from_prefix(dut, f"m_axi_{port}"), dut.ap_clk, dut.ap_rst_n, False, size=SIZE)
            for port in range(2)
        ]

    async def start(self) -> None:
        self.dut.ap_rst_n.value = 0
        await ClockCycles(self.dut.ap_clk, 5)
        self.dut.ap_rst_n.value = 1
        await ClockCycles(self.dut.ap_clk, 5)

    def pace(self, chance: float) -> None:
        """Every channel of both memories pauses now and then."""
        for port, bank in enumerate(self.banks):
            write, read = bank.write_if, bank.read_if
            channels = (write.aw_channel, write.w_channel, write.b_channel, read.ar_channel, read.r_channel)
            for k, channel in enumerate(channels):
                channel.set_pause_generator(pauses(chance, 10 * port + k))

    async def write(self, name: str, value: int) -> None:
        offset = (MEMORY_REGISTER | REGISTER)[name].offset
        await self.control.write_dword(offset, value)

    async def read(self, name: str) -> int:
        return int(await self.control.read_dword((MEMORY_REGISTER | REGISTER)[name].offset))

    def load(self, program: Scattered) -> StreamMemory:
        """The program in both banks, and in the definition, which is returned."""
        definition = StreamMemory(ReferenceDevice(DESIGN), program.beats)
        program.place(definition)
        words = definition.read(0, program.beats)
        for port, bank in enumerate(self.banks):
            bank.write(BASES[port] % SIZE, words[port::2].tobytes())
        return definition

    def words(self, beats: int) -> np.ndarray:
        """What both banks hold, as the host sees it."""
        halves = [
            np.frombuffer(bank.read(BASES[port] % SIZE, 8 * beats), np.uint64) for port, bank in enumerate(self.banks)
        ]
        return np.stack(halves, 1).reshape(-1)

    async def execute(self, program: Scattered, deadline: int = 0) -> Fault:
        """Runs a program up to its interrupt."""
        for port, base in enumerate(BASES):
            await self.write(f"BASE{port}_LO", base)
        await self.write("LIMIT", program.beats)
        await self.write("PROGRAM", program.program)
        await self.write("DEADLINE", deadline)
        await self.write("INTERRUPT", 3)
        await self.write("START", 1)
        end = Timer(5, "ms")
        assert await First(RisingEdge(self.dut.interrupt), end) is not end, "no interrupt"
        assert await self.read("STATUS") == MemoryStatus.IDLE | MemoryStatus.DONE
        await self.write("INTERRUPT", 2)
        await ClockCycles(self.dut.ap_clk, 2)  # the line is a register's
        assert int(self.dut.interrupt.value) == 0
        return Fault(await self.read("FAULT"))


@cocotb.test()
async def registers(dut: Any) -> None:
    board = Board(dut)
    await board.start()
    assert await board.read("STATUS") == MemoryStatus.IDLE
    assert await board.read("HASH_LO") == DESIGN.hash64 & 0xFFFFFFFF, "the core's page"
    kept = {"LIMIT": 0xFFFFFFF0, "BASE0_LO": 0xFFFFF000, "BASE1_LO": 0xFFFFF000}
    for register in MEMORY_REGISTERS:
        if register.access == "rw" and register.name != "INTERRUPT":
            await board.write(register.name, 0xFFFFFFFF)
            assert await board.read(register.name) == kept.get(register.name, 0xFFFFFFFF), register.name
        if register.access == "r":
            before = await board.read(register.name)
            await board.write(register.name, ~before & 0xFFFFFFFF)
            assert await board.read(register.name) == before, register.name
    known = {r.offset for r in MEMORY_REGISTERS}
    for offset in range(0x100, 0x200, 4):
        if offset not in known:
            await board.control.write_dword(offset, 0xFFFFFFFF)
            assert await board.control.read_dword(offset) == 0, f"{offset:#x}"
    await board.write("STOP", 1)  # nothing runs
    assert await board.read("STATUS") == MemoryStatus.IDLE and await board.read("FAULT") == 0


@cocotb.test()
async def interrupts(dut: Any) -> None:
    """The line is low while it is not enabled; an end that came before is told when it is."""
    board = Board(dut)
    await board.start()
    board.load(program := scattered(DESIGN, random_program(DESIGN, 0, packets=2, max_rows=6, max_bits=4), 0))
    await board.execute(program)
    assert await board.read("INTERRUPT") == 0
    await board.write("START", 1)
    while not await board.read("STATUS") & MemoryStatus.DONE:
        assert int(dut.interrupt.value) == 0
    assert await board.read("INTERRUPT") == MemoryInterrupt.PENDING and int(dut.interrupt.value) == 0
    await board.write("INTERRUPT", int(MemoryInterrupt.ENABLE))
    await ClockCycles(dut.ap_clk, 2)
    assert int(dut.interrupt.value) == 1
    await board.write("INTERRUPT", int(MemoryInterrupt.PENDING))
    await ClockCycles(dut.ap_clk, 2)
    assert int(dut.interrupt.value) == 0 and await board.read("INTERRUPT") == 0


@cocotb.test()
async def programs(dut: Any) -> None:
    board = Board(dut)
    await board.start()
    for seed in range(PROGRAMS):
        program = scattered(DESIGN, random_program(DESIGN, seed, packets=6, max_rows=6, max_bits=4), seed)
        definition = board.load(program)
        board.pace((0.0, 0.3, 0.7)[seed % 3])
        assert await board.execute(program) is Fault.NONE
        wanted = definition.execute(program.program)
        assert np.array_equal(board.words(program.beats), definition.read(0, program.beats)), seed
        found = {name: await board.read(name) for name in wanted.counters}
        assert found == wanted.counters, seed


@cocotb.test()
async def deadline_and_stop(dut: Any) -> None:
    board = Board(dut)
    await board.start()
    program = scattered(DESIGN, random_program(DESIGN, 0, packets=6, max_rows=6, max_bits=4), 0)
    definition = board.load(program)
    assert await board.execute(program, deadline=100) is Fault.DEADLINE

    async def stop() -> None:
        while await board.read("STATUS") & MemoryStatus.IDLE:
            pass
        await board.write("STOP", 1)

    stopper = cocotb.start_soon(stop())
    assert await board.execute(program) is Fault.STOPPED
    await stopper
    board.load(program)
    assert await board.execute(program) is Fault.NONE
    definition.execute(program.program)
    assert np.array_equal(board.words(program.beats), definition.read(0, program.beats))
