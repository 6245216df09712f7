"""cocotb bench of the whole fabric: registers, random programs, refusals, resets, stream rules."""

from __future__ import annotations

import os
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, RisingEdge

from host.devices.device import split_streams
from host.devices.reference import ReferenceDevice
from host.verify.testbench import DONE, IDLE, READY, START, TB, differences
from hw.contract import REGISTERS, Error
from hw.design import load_design
from tests.support.malformed import good_program, malformed_programs
from tests.support.random_programs import random_program, random_programs

DESIGN = load_design(os.environ["BENCH_DESIGN"])
PROGRAMS = int(os.environ.get("BENCH_PROGRAMS", "12"))
GOOD = good_program(DESIGN)

#: chances of a pause on in0, in1 and the result
PACES = {
    "free": (0.0, 0.0, 0.0),
    "slow in0": (0.6, 0.0, 0.0),
    "slow in1": (0.0, 0.6, 0.0),
    "slow result": (0.0, 0.0, 0.8),
    "all": (0.3, 0.4, 0.3),
    "crawl": (0.8, 0.8, 0.8),
}


async def _good(tb: TB, what: str) -> None:
    """The good program gives the reference's answer."""
    expected = ReferenceDevice(DESIGN).run(GOOD)
    assert expected.error is Error.NONE and expected.words.size
    found = differences(await tb.run(GOOD), expected)
    assert not found, f"the good program {what}: {found}"


@cocotb.test()
async def identity_and_power_up(dut: Any) -> None:
    tb = TB(dut, DESIGN.output_streams)
    await tb.cycle_reset()
    assert await tb.read("HASH_LO") == DESIGN.hash64 & 0xFFFFFFFF
    assert await tb.read("HASH_HI") == DESIGN.hash64 >> 32
    assert await tb.read("CONTRACT") == DESIGN.contract_register
    assert await tb.read("CTRL") == IDLE
    for name in ("GIE", "IER", "ISR"):
        assert await tb.read(name) == 0, name
    assert int(dut.interrupt.value) == 0
    known = {r.offset for r in REGISTERS}
    for offset in range(0, 0x100, 4):  # holes read zero, and writing them changes nothing
        if offset not in known:
            await tb.write(offset, 0xFFFFFFFF)
            assert await tb.read(offset) == 0, f"{offset:#x}"
    for name in ("HASH_LO", "HASH_HI", "CONTRACT"):
        before = await tb.read(name)
        await tb.write(name, ~before & 0xFFFFFFFF)
        assert await tb.read(name) == before, name
    assert await tb.read("CTRL") == IDLE
    await _good(tb, "after writes to all holes")


@cocotb.test()
async def control_handshake(dut: Any) -> None:
    tb = TB(dut, DESIGN.output_streams)
    await tb.cycle_reset()
    await tb.write("CTRL", START)
    assert await tb.read("CTRL") == START, "running: start is set, not idle, not done"
    await tb.write("CTRL", START)  # a second start while it runs must not disturb
    for source, words in zip(tb.sources, split_streams(GOOD), strict=True):
        source.send_nowait([int(w) for w in words])
    for sink in tb.sinks:
        await sink.recv()
    await ClockCycles(dut.ap_clk, 20)
    assert await tb.read("CTRL") == DONE | IDLE | READY
    assert await tb.read("CTRL") == IDLE, "done and ready are cleared by reading"
    first = await tb.counters()
    assert await tb.counters() == first, "counters stand still when idle"
    assert first["CYCLES"] > first["BUSY"] > 0
    assert first["WORDS_IN"] == GOOD.size
    assert await tb.read("ERROR") == 0 and await tb.read("POSITION") == 0
    await tb.control.write(0x01, b"\x01\x00\x00")  # byte 0 of CTRL is not written: no start
    await ClockCycles(dut.ap_clk, 5)
    assert await tb.read("CTRL") == IDLE
    await tb.write("CTRL", START)
    assert await tb.read("CYCLES") < first["CYCLES"], "counters start again from zero"
    assert await tb.read("WORDS_OUT") == 0


@cocotb.test()
async def interrupts(dut: Any) -> None:
    tb = TB(dut, DESIGN.output_streams)
    await tb.cycle_reset()

    async def pending() -> tuple[int, int]:
        return await tb.read("ISR"), int(dut.interrupt.value)

    await _good(tb, "without interrupts")
    assert await pending() == (0, 0), "nothing is enabled"
    await tb.write("IER", 1)
    await _good(tb, "with IER done")
    assert await pending() == (1, 0), "pending, and masked by GIE"
    await tb.write("GIE", 1)
    assert await pending() == (1, 1)
    await tb.write("ISR", 1)
    assert await pending() == (0, 0), "writing one toggles it off"
    await tb.write("ISR", 3)
    assert await pending() == (3, 1), "and on"
    await tb.write("ISR", 3)
    await tb.write("IER", 3)
    assert await tb.read("IER") == 3 and await tb.read("GIE") == 1
    tb.sources[0].send_nowait([int(w) for w in split_streams(GOOD)[0]])
    tb.sources[1].send_nowait([int(w) for w in split_streams(GOOD)[1]])
    await tb.write("CTRL", START)
    assert int(dut.interrupt.value) == 0
    await RisingEdge(dut.interrupt)
    assert await tb.read("CTRL") & (DONE | IDLE) == DONE | IDLE, "the interrupt comes with done"
    assert await pending() == (3, 1)
    await tb.write("ISR", 1)
    assert await pending() == (2, 1)
    await tb.write("GIE", 0)
    assert await pending() == (2, 0)
    await tb.cycle_reset()
    assert await pending() == (0, 0) and await tb.read("IER") == 0


@cocotb.test()
async def random_programs_at_every_pace(dut: Any) -> None:
    tb = TB(dut, DESIGN.output_streams)
    await tb.cycle_reset()
    reference = ReferenceDevice(DESIGN)
    for k, words in enumerate(random_programs(DESIGN, PROGRAMS, seed=500, max_bits=9)):
        name, pace = list(PACES.items())[k % len(PACES)]
        tb.set_pauses(*pace, seed=k)
        stalled = tb.stalled
        result = await tb.run(words)
        found = differences(result, reference.run(words))
        assert not found, f"program {500 + k}, {name}: {found}"
        if pace[2] and result.words.size > 100:
            assert tb.stalled > stalled, "the output was never held up: the bench has no back-pressure"
            assert result.counters["STALL_OUT"] > 0
        if pace[0] or pace[1]:
            assert result.counters["STALL_IN"] > 0


@cocotb.test()
async def pace_does_not_change_the_answer(dut: Any) -> None:
    tb = TB(dut, DESIGN.output_streams)
    await tb.cycle_reset()
    expected = ReferenceDevice(DESIGN).run(GOOD)
    for name, pace in PACES.items():
        tb.set_pauses(*pace, seed=7)
        found = differences(await tb.run(GOOD), expected)
        assert not found, f"{name}: {found}"


@cocotb.test()
async def run_twice(dut: Any) -> None:
    tb = TB(dut, DESIGN.output_streams)
    await tb.cycle_reset()
    words = random_program(DESIGN, 77, packets=8, max_bits=6)
    first, second = await tb.run(words), await tb.run(words)
    assert first.words.size and not differences(second, first)
    assert first.counters["CYCLES"] == second.counters["CYCLES"], "nothing is left over from the first run"


@cocotb.test()
async def malformed_programs_are_refused(dut: Any) -> None:
    tb = TB(dut, DESIGN.output_streams)
    await tb.cycle_reset()
    reference = ReferenceDevice(DESIGN)
    reference.run(GOOD)
    await _good(tb, "at first")  # buffers are known from here on
    cases = [case for case in malformed_programs(DESIGN) if not case.slow]
    part, parts = int(os.environ.get("BENCH_PART", "0")), int(os.environ.get("BENCH_PARTS", "1"))
    wrong = []
    for k, case in enumerate(cases[part::parts]):
        pace = list(PACES.values())[k % 5]
        tb.set_pauses(*pace, seed=k)
        found = differences(
            await tb.run_streams(case.words0, case.words1), reference.run_streams(case.words0, case.words1)
        )
        if found:
            wrong.append(f"{case.name}: {found}")
        if k % 8 == 0 or found:
            tb.set_pauses(0, 0, 0)
            await _good(tb, f"after {case.name}")
    assert not wrong, f"{len(wrong)} programs: {wrong[:10]}"


@cocotb.test()
async def resets_in_mid_packet(dut: Any) -> None:
    tb = TB(dut, DESIGN.output_streams)
    await tb.cycle_reset()
    await _good(tb, "at first")
    beats = GOOD.size // 2
    for k, cut in enumerate([0, 1, 3, 5, 9, *range(17, beats, max(1, beats // 24))]):
        tb.set_pauses(*list(PACES.values())[k % 5], seed=k)
        await tb.launch(*split_streams(GOOD))
        await tb.wait_taken(cut)
        await ClockCycles(dut.ap_clk, k % 4)
        if k % 2:
            await tb.cycle_reset()
        else:
            await tb.soft_reset()
        assert await tb.read("CTRL") & (START | IDLE) == IDLE
        tb.set_pauses(0, 0, 0)
        await _good(tb, f"after a reset at beat {cut}, {'pin' if k % 2 else 'register'}")


@cocotb.test()
async def resets_while_results_leave(dut: Any) -> None:
    tb = TB(dut, DESIGN.output_streams)
    await tb.cycle_reset()
    words = random_program(DESIGN, 31, packets=12, max_bits=4)
    expected = ReferenceDevice(DESIGN).run(words)
    assert expected.words.size > 300
    for k in range(10):
        tb.set_pauses(0, 0, 0.7, seed=k)
        before = tb.transfers
        await tb.launch(*split_streams(words))
        while tb.transfers < before + k * expected.words.size // 10:
            await RisingEdge(dut.ap_clk)
        await (tb.cycle_reset() if k % 2 else tb.soft_reset())
        tb.set_pauses(0, 0, 0)
        found = differences(await tb.run(words), expected)
        assert not found, f"after a reset with {k}/10 of the results sent: {found}"
