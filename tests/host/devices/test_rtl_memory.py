"""Programs in memory on the Verilated accelerator: the same memory as the definition leaves, whatever the memory's pace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from host.devices.memory import StreamMemory, check
from host.devices.reference import ReferenceDevice
from host.devices.rtl_memory import MemoryModel, RtlMemoryDevice
from hw.design import load_design
from tests.support.random_programs import random_program
from tests.support.scattered import Scattered, scattered

SMALL = load_design("sim-small")
ONE_STREAM = replace(SMALL, name="sim-small-one", output_streams=1)


@pytest.fixture(scope="module", params=[SMALL, ONE_STREAM], ids=["two streams", "one stream"])
def device(request: pytest.FixtureRequest) -> Iterator[RtlMemoryDevice]:
    opened = RtlMemoryDevice(request.param, 1 << 12, timeout=20)
    yield opened
    opened.close()


def random_model(rng: np.random.Generator) -> MemoryModel:
    """A memory of any pace, steady or not."""
    least = int(rng.integers(1, 60))
    return MemoryModel(
        least, least + int(rng.integers(0, 60)), int(rng.choice([0, 20, 300, 700])), int(rng.integers(1, 1 << 31))
    )


def random_case(device: RtlMemoryDevice, seed: int) -> Scattered:
    """A random program, scattered in the device's memory, which now answers at a random pace."""
    device.model = random_model(np.random.default_rng(seed))
    program = scattered(device.info.design, random_program(device.info.design, seed, max_bits=6), seed)
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


def test_the_counters_tell_how_long_the_ports_waited(device: RtlMemoryDevice) -> None:
    program = random_case(device, 0)
    waits = []
    for latency in (1, 80):
        device.model = MemoryModel(latency, latency)
        waits.append(check(device.execute(program.program)).counters["READ_WAIT"])
    assert waits[0] < waits[1]
