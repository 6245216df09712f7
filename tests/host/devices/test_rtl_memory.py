"""Programs in memory on the Verilated accelerator: the same memory as the definition leaves, whatever the memory's pace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from host.devices.device import DeviceError
from host.devices.memory import StreamMemory, check
from host.devices.reference import ReferenceDevice
from host.devices.rtl import rtl_sources
from host.devices.rtl_memory import MemoryModel, RtlMemoryDevice
from host.verify.stimuli import precision_sweep
from hw.contract import HEADER_WORDS, Error
from hw.design import load_design
from hw.generate import generate
from tests.host.devices.test_rtl import CHOOSER, Mutant, replace_once
from tests.support.malformed import good_program
from tests.support.memory_faults import TrialWriter, random_model
from tests.support.random_programs import random_program
from tests.support.scattered import Scattered, reading_results, scattered

SMALL = load_design("sim-small")
ONE_STREAM = replace(SMALL, name="sim-small-one", output_streams=1)


@pytest.fixture(scope="module", params=[SMALL, ONE_STREAM], ids=["two streams", "one stream"])
def device(request: pytest.FixtureRequest) -> Iterator[RtlMemoryDevice]:
    opened = RtlMemoryDevice(request.param, 1 << 12, timeout=20)
    yield opened
    opened.close()


def random_case(device: RtlMemoryDevice, seed: int) -> Scattered:
    """A random program, scattered in the device's memory, which now answers at a random pace.

    Every other one reads some of its own results.
    """
    rng = np.random.default_rng(seed)
    device.model = random_model(rng)
    words = random_program(device.info.design, seed, packets=seed % 12 + 2, max_rows=8, max_bits=5)
    program = scattered(device.info.design, words, seed)
    return placed(device, reading_results(program, rng) if rng.integers(2) else program)


def placed(device: RtlMemoryDevice, program: Scattered) -> Scattered:
    """The program in the device's memory, where nothing else is."""
    device.resize(program.beats)
    program.place(device)
    return program


def compare(device: RtlMemoryDevice, program: Scattered, core: ReferenceDevice) -> None:
    """Runs what lies in the device's memory, which must then be as the definition leaves it."""
    definition = StreamMemory(core, device.beats)
    program.place(definition)
    wanted, found = definition.execute(program.program), device.execute(program.program)
    assert (found.fault, found.error, found.position) == (wanted.fault, wanted.error, wanted.position)
    assert np.array_equal(device.read(0, device.beats), definition.read(0, device.beats))
    assert {name: found.counters[name] for name in wanted.counters} == wanted.counters


def test_random_programs_at_any_pace(device: RtlMemoryDevice) -> None:
    core = ReferenceDevice(device.info.design)
    for seed in range(150):
        compare(device, random_case(device, seed), core)


def run_trials(device: RtlMemoryDevice, seeds: Iterable[int]) -> Counter[str]:
    """Programs of which one in two has something wrong; the one behind it must be right.  Returns how many of each kind."""
    design = device.info.design
    good = [stimulus.words for seed in range(6) for stimulus in precision_sweep(design, seed, max_bits=2)]
    kinds: Counter[str] = Counter()
    begun = device.interrupts
    for seed in seeds:
        rng = np.random.default_rng([seed, 1])
        program = random_case(device, seed)
        if seed % 2:
            trial = TrialWriter(rng, device, program).any()
            kinds[trial.kind] += 1
            found = device.execute(trial.program, trial.deadline)
            assert found.fault in trial.faults, (seed, trial, found)
            assert not trial.offsets or found.fault_offset in trial.offsets, (seed, trial, found)
            # buffers are as the fault left them: this program reads nothing that it has not written
            device.model = random_model(rng)
            program = placed(device, scattered(design, good[seed // 2 % len(good)], seed))
        compare(device, program, ReferenceDevice(design))
        kinds["good"] += 1
        assert device.interrupts - begun == kinds.total(), "one for every end, good or bad"
    return kinds


def test_every_fault_is_told_and_the_next_program_is_right(device: RtlMemoryDevice) -> None:
    kinds = run_trials(device, range(1, 240, 2))
    assert len(kinds) == 13, kinds


def test_an_end_is_told_although_the_host_clears_the_interrupt_meanwhile(device: RtlMemoryDevice) -> None:
    """Whenever the host does: one interrupt comes, neither none nor two."""
    program = placed(device, scattered(device.info.design, good_program(device.info.design)[-HEADER_WORDS:], 0))
    for cycles in range(1, 160):
        begun = device.interrupts
        device.model = MemoryModel(clear_after=cycles)
        check(device.execute(program.program))
        assert device.interrupts == begun + 1, cycles


def test_an_error_of_the_core_ends_the_program_without_a_fault(device: RtlMemoryDevice) -> None:
    """Bad headers in the middle of a program: what came before is written, the rest is swallowed."""
    design = device.info.design
    core = ReferenceDevice(design)
    for seed in range(40):
        rng = np.random.default_rng([seed, 2])
        program = random_case(device, seed)
        index = int(rng.integers(len(program.records)))
        half = int(rng.integers(12))
        header = program.program + 16 * index + half // 2
        words = device.read(header, 1)
        words[half % 2] ^= np.uint64(1 << int(rng.integers(64)))
        definition = StreamMemory(core, device.beats)
        program.place(definition)
        for memory in (device, definition):
            memory.write(header, words)
        wanted, found = definition.execute(program.program), device.execute(program.program)
        assert wanted.error is not Error.NONE
        assert (found.fault, found.error, found.position) == (wanted.fault, wanted.error, wanted.position), seed
        assert np.array_equal(device.read(0, device.beats), definition.read(0, device.beats)), seed


@pytest.mark.slow
def test_ten_thousand_programs_with_and_without_faults(device: RtlMemoryDevice) -> None:
    kinds = run_trials(device, range(1000, 11_000))
    assert sum(kinds.values()) >= 10_000 and len(kinds) == 13, kinds


@pytest.mark.slow
def test_programs_with_and_without_faults_on_the_design_of_the_zc706() -> None:
    """The whole array behind the memory front end, as its bitstream has it; building it takes minutes."""
    device = RtlMemoryDevice(load_design("zc706"), 1 << 12, timeout=20)
    try:
        assert run_trials(device, range(60)).total() == 90
    finally:
        device.close()


def test_the_counters_tell_how_long_the_ports_waited(device: RtlMemoryDevice) -> None:
    program = random_case(device, 0)
    waits = []
    for latency in (1, 80):
        device.model = MemoryModel(latency, latency)
        waits.append(check(device.execute(program.program)).counters["READ_WAIT"])
    assert waits[0] < waits[1]


# -- broken on purpose ----------------------------------------------------------------------------------------------

MUTANTS = [
    Mutant("memory_reader", "burst.ends && last_q", "burst.ends"),
    Mutant("memory_reader", "!next_wait_q || written_i", "1'b1"),
    Mutant("memory_reader", "chunk_ends_q ? stride_q : 32'(length_q)", "32'(length_q)"),
    Mutant("memory_reader", "chunks_q != 16'd1", "chunks_q == 16'd1"),
    Mutant("memory_reader", "record_q >= limit_i", "record_q > limit_i"),
    Mutant("memory_reader", "at_q[31:4] >= limit_i", "at_q[31:4] > limit_i"),
    Mutant("memory_reader", "response_q[0] ? FAULT_READ_DECERR : FAULT_READ_SLVERR", "FAULT_READ_SLVERR"),
    Mutant("memory_reader", "burst.offset[3:0] + index_q", "burst.offset[3:0] - index_q"),
    Mutant("memory_reader", "data_q & ~RECORD_BITS[index_q]", "data_q & RECORD_BITS[index_q] & ~RECORD_BITS[index_q]"),
    Mutant("memory_reader", "finish_i && stopped_q && open_q == 0", "1'b0"),
    Mutant("memory_writer", "to_q[0].row + to_q[0].stride", "to_q[0].row - to_q[0].stride"),
    Mutant("memory_writer", "rows_q == 32'd1", "rows_q == 32'd2"),
    Mutant("memory_writer", "!any_q || rows_q == 0", "any_q || rows_q == 0"),
    Mutant("memory_writer", "at_q[31:4] >= limit_i", "at_q[31:4] > limit_i"),
    Mutant("memory_writer", "open_q == 0 && records_q <= 3'(newest_q)", "records_q <= 3'(newest_q)"),
    Mutant("memory_writer", "b_response_q[0] ? FAULT_WRITE_DECERR : FAULT_WRITE_SLVERR", "FAULT_WRITE_SLVERR"),
    Mutant("memory_writer", "records_q == 0 && free_q != 0", "1'b0"),
    Mutant("memory_port", "(ADDRESS_BITS - 12)'(offset[31:9])", "(ADDRESS_BITS - 12)'(offset[31:9] & ~23'd1)"),
    Mutant(
        "memory_registers",
        "ends_i || pending_q && !(asks && core_wdata_o[INTERRUPT_PENDING])",
        "(ends_i || pending_q) && !(asks && core_wdata_o[INTERRUPT_PENDING])",
    ),
    Mutant("memory_registers", "enable_q && pending_q", "enable_q"),
    Mutant("memory_control", "state_q == RESET || state_q == IDLE", "1'b0"),
    Mutant("memory_control", "&quiet_i", "1'b1"),
    Mutant("memory_control", "cycles_q >= deadline_i", "cycles_q >= 4 * deadline_i"),
]


def breakable_sources(folder: Path) -> list[Path]:
    """RTL in which every mutant is present and one at most is active: all share one build."""
    sources = rtl_sources(generate(SMALL, folder), memory=True)
    texts = {path.stem: path.read_text() for path in sources}
    for number, (file, old, new) in enumerate(MUTANTS, start=1):
        texts[file] = replace_once(texts[file], old, f"(memory_pkg::mutant == 32'd{number} ? ({new}) : ({old}))", file)
    declaration = 'import "DPI-C" function int fabric_mutant();\n  int unsigned mutant;\n'
    texts["memory_pkg"] = replace_once(texts["memory_pkg"], "endpackage", f"  {declaration}endpackage", "memory_pkg")
    start = "initial memory_pkg::mutant = unsigned'(memory_pkg::fabric_mutant());\nendmodule"
    texts["accelerator"] = replace_once(texts["accelerator"], "endmodule", start, "accelerator")
    for path in sources:
        path.write_text(texts[path.stem])
    chooser = folder / "rtl" / "chooser.cpp"
    chooser.write_text(CHOOSER)
    return [*sources, chooser]


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return breakable_sources(tmp_path_factory.mktemp("breakable"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", range(len(MUTANTS) + 1), ids=["unbroken", *(f"{mutant.file}: {mutant.new}" for mutant in MUTANTS)]
)
def test_one_flipped_operator_is_found(breakable: list[Path], number: int) -> None:
    chooser = RtlMemoryDevice(SMALL, 1 << 12, sources=breakable)
    chooser.library.fabric_choose(number)
    chooser.close()
    device = RtlMemoryDevice(SMALL, 1 << 12, sources=breakable, timeout=0.5)
    try:
        run_trials(device, range(1, 160))
        test_an_error_of_the_core_ends_the_program_without_a_fault(device)
        test_an_end_is_told_although_the_host_clears_the_interrupt_meanwhile(device)
    except (AssertionError, DeviceError) as found:
        assert number, found
    else:
        assert not number, f"nothing tells {MUTANTS[number - 1]} from correct RTL"
