"""cocotb bench behind ``fractrain cosim``: a sweep over precisions, refusals, repeats and resets, counted in a report.

Everything is compared with the reference device.  Takes its parameters from the environment variables in
:class:`Settings`; writes its findings as JSON, one file per test.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles

from host.devices.device import U64, Result, split_streams
from host.devices.reference import ReferenceDevice
from host.program.builder import read_program
from host.verify.stimuli import precision_sweep
from host.verify.testbench import IDLE, START, TB, differences
from hw import contract
from hw.contract import FIELDS, HEADER_WORDS, Error, Flag, Opcode, OutputFormat
from hw.design import Design, load_design

#: chances of a pause on in0, in1 and the result
PACES = ((0.0, 0.0, 0.0), (0.5, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 0.7), (0.3, 0.4, 0.3))


@dataclass(frozen=True)
class Settings:
    """What to run, from the environment."""

    design: Design = field(default_factory=lambda: load_design(os.environ["COSIM_DESIGN"]))
    programs: int = field(default_factory=lambda: int(os.environ["COSIM_PROGRAMS"]))
    seed: int = field(default_factory=lambda: int(os.environ["COSIM_SEED"]))
    report: Path = field(default_factory=lambda: Path(os.environ["COSIM_REPORT"]))


@dataclass
class Tally:
    """What was compared, and what differed."""

    programs: int = 0
    words_compared: int = 0
    mismatches: int = 0
    cycles: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    resets: int = 0
    output_stalls: int = 0
    differences: list[str] = field(default_factory=list)

    def compare(self, found: Result, expected: Result, what: str) -> None:
        """Count a result; a missing or surplus word and a wrong status are mismatches too."""
        self.programs += 1
        self.words_compared += expected.words.size
        self.cycles += found.counters["CYCLES"]
        if lines := differences(found, expected):
            n = min(found.words.size, expected.words.size)
            wrong = int(np.count_nonzero(found.words[:n] != expected.words[:n]))
            self.mismatches += max(1, wrong + abs(found.words.size - expected.words.size))
            self.differences.append(f"{what}: {'; '.join(lines)}")


SETTINGS = Settings()


#: product, a_bits, b_bits, stride, kernel taps, format, flags
SweepPoint = tuple[str, int, int, int, int, str, str]


def products(words: U64) -> Counter[SweepPoint]:
    """Products of a program. A CONV has all nine taps: layers of other kernels are lowered to it before there are packets."""
    out: Counter[SweepPoint] = Counter()
    for _, f in read_program(words):
        if f.is_product:
            is_conv = f.opcode == Opcode.CONV
            flags = "|".join(flag.name or "" for flag in Flag if f.has(flag))
            stride = 2 if f.has(Flag.STRIDE_2) else 1
            taps = contract.TAPS if is_conv else f.tap_count
            name = OutputFormat(f.format).name if is_conv else "ACCUMULATE"
            out[Opcode(f.opcode).name, f.a_bits, f.b_bits, stride, taps, name, flags] += 1
    return out


def sweep() -> list[tuple[str, U64]]:
    """Programs in a seeded order, so that a few of them already spread over the precisions."""
    out: list[tuple[str, U64]] = []
    for seed in range(SETTINGS.seed, SETTINGS.seed + -(-SETTINGS.programs // contract.MAX_BITS)):
        stimuli = list(precision_sweep(SETTINGS.design, seed))
        order = np.random.default_rng(seed).permutation(len(stimuli))
        out += [(stimuli[i].name, stimuli[i].words) for i in order]
    return out[: SETTINGS.programs]


def write(name: str, tally: Tally, **more: Any) -> None:
    """Leave the findings of one test for the command."""
    (SETTINGS.report / f"{name}.json").write_text(json.dumps({**asdict(tally), **more}), encoding="utf-8")


def spoil(words: U64, rng: np.random.Generator) -> tuple[U64, U64, int]:
    """The streams of a program with one fault, and the index of the packet that has it."""
    found = list(read_program(words))
    k = int(rng.integers(0, len(found)))
    at, f = found[k]
    spoilt = words.copy()
    kind = int(rng.integers(0, 3))
    if kind == 0:  # a stream ends too early
        w0, w1 = split_streams(words)
        beat = int(rng.integers(at // 2 + 1, at // 2 + HEADER_WORDS // 2 + 1))
        return (w0[:beat], w1, k) if rng.integers(0, 2) else (w0, w1[:beat], k)
    if kind == 1:  # a bit of a header flips on its way
        spoilt[at + int(rng.integers(0, HEADER_WORDS))] ^= np.uint64(1 << int(rng.integers(0, 64)))
    else:  # a field holds nonsense, under a valid checksum
        chosen = FIELDS[int(rng.integers(0, len(FIELDS) - 1))]
        value = int(rng.integers(0, 1 << chosen.width))
        header = contract.pack_header(**{**vars(f), chosen.name: value})
        spoilt[at : at + HEADER_WORDS] = header
    return *split_streams(spoilt), k


@cocotb.test()
async def every_precision(dut: Any) -> None:
    """The sweep, each program at another pace; the identity first."""
    design, tally = SETTINGS.design, Tally()
    tb = TB(dut, design.output_streams)
    await tb.cycle_reset()
    identity = await tb.read("HASH_LO") | await tb.read("HASH_HI") << 32
    assert identity == design.hash64, f"the fabric says it is design {identity:016x}"
    assert await tb.read("CONTRACT") == design.contract_register
    reference = ReferenceDevice(design)
    coverage: Counter[SweepPoint] = Counter()
    for k, (name, words) in enumerate(sweep()):
        tb.set_pauses(*PACES[k % len(PACES)], seed=SETTINGS.seed + k)
        tally.compare(await tb.run(words), reference.run(words), name)
        coverage += products(words)
    tally.output_stalls = tb.stalled
    write("every_precision", tally, coverage=[[*point, n] for point, n in sorted(coverage.items())])


@cocotb.test()
async def refusals(dut: Any) -> None:
    """Programs with one fault are refused as the reference refuses them; the good program after them runs."""
    design, tally = SETTINGS.design, Tally()
    tb = TB(dut, design.output_streams)
    await tb.cycle_reset()
    reference = ReferenceDevice(design)
    rng = np.random.default_rng(SETTINGS.seed)
    good = next(iter(precision_sweep(design, SETTINGS.seed, max_bits=3))).words
    expected = reference.run(good)
    wanted = 4 * SETTINGS.programs
    while sum(tally.refusals.values()) < wanted:
        w0, w1, position = spoil(good, rng)
        refusal = ReferenceDevice(design).run_streams(w0, w1)
        if refusal.error is Error.NONE or refusal.position != position:
            continue  # the fault made another valid program, which may read what was never written
        done = sum(tally.refusals.values())
        tb.set_pauses(*PACES[done % len(PACES)], seed=done)
        tally.compare(await tb.run_streams(w0, w1), refusal, f"{refusal.error.name} in packet {position}")
        tally.refusals[refusal.error.name] = tally.refusals.get(refusal.error.name, 0) + 1
        if done % 4 == 0:
            tally.compare(await tb.run(good), expected, f"the good program after {refusal.error.name}")
    write("refusals", tally)


@cocotb.test()
async def repeats_and_resets(dut: Any) -> None:
    """Twice the same program, then resets by pin and by register in the middle of a packet."""
    design, tally = SETTINGS.design, Tally()
    tb = TB(dut, design.output_streams)
    await tb.cycle_reset()
    words = next(iter(precision_sweep(design, SETTINGS.seed + 1, max_bits=3))).words
    expected = ReferenceDevice(design).run(words)
    rng = np.random.default_rng(SETTINGS.seed)
    for turn in ("first", "second"):
        tally.compare(await tb.run(words), expected, f"the {turn} run")
    for k in range(max(2, SETTINGS.programs)):
        tb.set_pauses(*PACES[k % len(PACES)], seed=k)
        await tb.launch(*split_streams(words))
        beat = int(rng.integers(0, words.size // 2 - 1))
        await tb.wait_taken(beat)
        await ClockCycles(dut.ap_clk, int(rng.integers(1, 8)))
        await (tb.cycle_reset() if k % 2 else tb.soft_reset())
        tally.resets += 1
        assert await tb.read("CTRL") & (START | IDLE) == IDLE, f"not idle after a reset at beat {beat}"
        tb.set_pauses(0, 0, 0)
        tally.compare(
            await tb.run(words), expected, f"after a reset at beat {beat}, by {'pin' if k % 2 else 'register'}"
        )
    write("repeats_and_resets", tally)
