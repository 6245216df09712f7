"""Programs in memory on the reference: the same results as streamed ones, and every fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.devices.device import ProgramError
from host.devices.hls import HlsDevice
from host.devices.memory import MemoryFaultError, MemoryStreams, StreamMemory, check, record_words
from host.devices.reference import ReferenceDevice
from hw.contract import FUNCTIONAL_COUNTERS, RECORD_WORDS, Error, Fault, Opcode, OutputFormat, RecordFlag, Target
from hw.design import load_design
from hw.packet import END, Packet, load_tensor, read_entries
from hw.plan.records import Chunks, Record
from tests.support.memory_faults import KINDS_OF_PROGRAMS, TrialWriter, TriedStreams
from tests.support.random_programs import random_program
from tests.support.scattered import Scattered, reading_results, scattered

DESIGN = load_design("sim-small")


def memory(beats: int = 1 << 12) -> StreamMemory:
    return StreamMemory(ReferenceDevice(DESIGN), beats)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(0, 1 << 30))
def test_scattered_programs_give_the_results_of_streamed_ones(seed: int, places: int) -> None:
    words = random_program(DESIGN, seed)
    wanted = ReferenceDevice(DESIGN).run(words)
    program = scattered(DESIGN, words, places)
    assert all(record.check(DESIGN, program.beats) == "" for record in program.records)
    device = memory(program.beats)
    result = check(device.execute(program.place(device)))
    assert np.array_equal(program.results(device), wanted.words)
    assert {name: result.counters[name] for name in FUNCTIONAL_COUNTERS} == wanted.counters
    assert result.counters["WRITE_BEATS"] == wanted.words.size
    records = 2 * RECORD_WORDS * len(program.records)
    assert result.counters["READ_BEATS"] == wanted.counters["WORDS_IN"] - 12 * len(program.records) + records


def test_a_record_that_waits_reads_what_the_program_has_written() -> None:
    """What a WGRAD made, loaded as codes; without the wait the old contents are read."""
    load = load_tensor(DESIGN, Target.A, 1, 8, 1, 2)
    beats = load.payload_words // 2
    read = read_entries(beats * 2 // 8, form=OutputFormat.INT64)
    again = read_entries(read.rows, form=OutputFormat.INT64)
    rng = np.random.default_rng(0)
    for flag in (RecordFlag.WAIT, RecordFlag(0)):
        device = memory()
        old = rng.integers(0, 1 << 63, 2 * beats, dtype=np.uint64)
        device.write(512, old)
        records = [
            Record(read, tail=(512, beats)),
            Record(load, Chunks(512, beats, 0, 1), flags=flag),
            Record(again, tail=(1024, beats)),
            Record(END, flags=RecordFlag.LAST),
        ]
        device.write(0, record_words(records))
        check(device.execute(0))
        held = device.device._tensors["A"][:, :2].transpose(0, 1, 2).reshape(-1)  # type: ignore[attr-defined]
        assert np.array_equal(held, device.read(512, beats) if flag else old)


def test_after_a_core_error_what_came_before_is_written_and_the_next_program_runs() -> None:
    device = memory()
    read = read_entries(4)
    bad = Record(Packet(Opcode.READ, rows=9, base_accumulator=DESIGN.depth_accumulator - 1, format=OutputFormat.INT64))
    good = [Record(read, tail=(512, 16)), Record(END, flags=RecordFlag.LAST)]
    device.write(512, np.ones(32, np.uint64))
    device.write(0, record_words([good[0], bad, good[1]]))
    result = device.execute(0)
    assert (result.fault, result.error, result.position) == (Fault.NONE, Error.OUT_OF_BUFFER, 1)
    assert not device.read(512, 16).any()
    with pytest.raises(ProgramError, match="OUT_OF_BUFFER"):
        check(result, "a test")
    device.write(0, record_words(good))
    check(device.execute(0))


def _records() -> list[Record]:
    read = read_entries(4)
    return [Record(read, tail=(512, 16)), Record(read, tail=(528, 16)), Record(END, flags=RecordFlag.LAST)]


def _with(change: Callable[[list[Record]], None]) -> list[Record]:
    records = _records()
    change(records)
    return records


def _set(number: int, **fields: object) -> Callable[[list[Record]], None]:
    return lambda records: records.__setitem__(number, replace(records[number], **fields))  # type: ignore[arg-type]


LOAD = load_tensor(DESIGN, Target.A, 1, 8, 1, 2)


@pytest.mark.parametrize(
    ("records", "fault", "offset"),
    [
        (_with(_set(1, tail=(528, 15))), Fault.RESULTS, 0),
        (_with(_set(1, tail=(528, 17))), Fault.RESULTS, 544),
        (_with(_set(1, tail=(4088, 16))), Fault.RANGE, 4096),
        (_with(_set(1, tail=(5000, 16))), Fault.RANGE, 5000),
        (_with(_set(1, packet=LOAD, payload=Chunks(4090, 16, 0, 1), tail=(0, 0))), Fault.RANGE, 4096),
        (_with(_set(1, packet=LOAD, payload=Chunks(0, 8, 6000, 2), tail=(0, 0))), Fault.RANGE, 6000),
        ([*_with(_set(0, tail=(512, 17)))[:1], *_with(_set(1, flags=RecordFlag.WAIT))[1:]], Fault.STOPPED, 0),
    ],
)
def test_faults(records: list[Record], fault: Fault, offset: int) -> None:
    device = memory()
    device.write(0, record_words(records))
    result = device.execute(0)
    assert (result.fault, result.fault_offset) == (fault, offset)
    with pytest.raises(MemoryFaultError, match=f"{fault.name} at beat {offset} of a test"):
        check(result, "a test")
    device.reset()
    device.write(0, record_words(_records()))
    check(device.execute(0))


def test_a_wait_that_never_ends_ends_at_the_deadline() -> None:
    device = memory()
    records = _with(_set(0, tail=(512, 17)))
    device.write(0, record_words([records[0], replace(records[1], flags=RecordFlag.WAIT), records[2]]))
    assert device.execute(0, deadline=10_000).fault is Fault.DEADLINE


def test_programs_that_are_not_aligned_or_set_reserved_bits_or_never_end_are_out_of_range() -> None:
    device = memory()
    device.write(0, record_words(_records()))
    assert (device.execute(8).fault, device.execute(8).fault_offset) == (Fault.RANGE, 8)
    words = device.read(0, 48)
    words[2 * (16 + 15)] = 1  # a bit of the second record's reserved word
    device.write(0, words)
    assert (device.execute(0).fault, device.execute(0).fault_offset) == (Fault.RANGE, 16)
    last = device.beats - RECORD_WORDS
    device.write(last, record_words(_records()[:1]))
    assert (device.execute(last).fault, device.execute(last).fault_offset) == (Fault.RANGE, device.beats)


def test_beats_beyond_the_memory_are_refused() -> None:
    device = memory(32)
    with pytest.raises(ValueError, match=r"beats 31\.\.33 are not in a memory of 32"):
        device.write(31, np.zeros(4, np.uint64))
    with pytest.raises(ValueError, match=r"beats -1\.\.0"):
        device.read(-1, 1)
    with pytest.raises(ValueError, match="no whole beats"):
        device.write(0, np.zeros(3, np.uint64))
    with pytest.raises(ValueError, match="multiple of 16"):
        memory(40)


def test_records_lie_at_the_ports_as_the_front_end_reads_them() -> None:
    program: Scattered = scattered(DESIGN, random_program(DESIGN, 1), 2)
    words = record_words(program.records).reshape(-1, RECORD_WORDS, 2)
    for record, found in zip(program.records, words, strict=True):
        assert found[:, 0].tolist() == record.pack()[0]
        assert found[:, 1].tolist() == record.pack()[1]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 30))
def test_stream_programs_run_in_memory_as_on_streams(seed: int) -> None:
    words = random_program(DESIGN, seed)
    wanted = ReferenceDevice(DESIGN).run(words)
    streams = MemoryStreams(memory(1 << 16), lambda beats: 32)
    found = streams.run(words)
    assert np.array_equal(found.words, wanted.words)
    assert {name: found.counters[name] for name in FUNCTIONAL_COUNTERS} == wanted.counters


def test_a_stream_program_that_the_core_refuses_has_its_error() -> None:
    streams = MemoryStreams(memory(1 << 16), lambda beats: 0)
    words = random_program(DESIGN, 3)
    words[11] ^= np.uint64(1 << 40)
    assert streams.run(words).error is Error.BAD_CHECK
    assert (streams.info.kind, streams.info.design) == ("reference-memory", DESIGN)
    streams.reset()
    with pytest.raises(ValueError, match="for devices with streams"):
        streams.run_streams(words[::2], words[1::2])


@pytest.mark.parametrize("core", [ReferenceDevice, HlsDevice], ids=["reference", "hls"])
def test_after_every_fault_the_next_program_is_right(core: Callable[..., Any]) -> None:
    """The kernel made for HLS keeps its buffers, as the front end leaves them in the middle of a program."""
    device = TriedStreams(core(DESIGN), 1 << 12)
    kinds: Counter[str] = Counter()
    for seed in range(50):
        rng = np.random.default_rng([seed, 5])
        program = scattered(DESIGN, random_program(DESIGN, seed, packets=seed % 6 + 2, max_rows=6, max_bits=4), seed)
        program = reading_results(program, rng)
        for broken in (True, False):
            device.resize(program.beats)
            program.place(device)
            if broken:
                trial = TrialWriter(rng, device, program).any(KINDS_OF_PROGRAMS)
                found = device.execute(trial.program, trial.deadline)
                assert found.fault in trial.faults, (seed, trial, found)
                assert not trial.offsets or found.fault_offset in trial.offsets, (seed, trial, found)
                kinds[trial.kind] += 1
        definition = StreamMemory(ReferenceDevice(DESIGN), program.beats)
        program.place(definition)
        wanted, found = definition.execute(program.program), device.execute(program.program)
        counted = {name: found.counters[name] for name in wanted.counters}
        assert replace(found, counters=counted) == wanted, seed
        assert np.array_equal(device.read(0, program.beats), definition.read(0, program.beats)), seed
    assert set(kinds) == set(KINDS_OF_PROGRAMS), kinds
