"""The reference device against direct loops over the specification, and against every program it must refuse."""

from __future__ import annotations

import numpy as np
import pytest

from host.devices.device import ProgramError, check, program_words
from host.devices.reference import ReferenceDevice
from hw.contract import Error
from hw.design import load_design
from tests.support.direct import Direct
from tests.support.malformed import good_program, malformed_programs
from tests.support.random_programs import random_program

DESIGNS = {
    name: load_design(name) for name in ("sim-small", "zc706", "pynq-z2")
}  # the last cannot round stochastically


@pytest.mark.parametrize("name", ["zc706", "pynq-z2"])
def test_malformed_programs_are_refused_with_the_right_code_and_place(name: str) -> None:
    design = DESIGNS[name]
    device = ReferenceDevice(design)
    good = good_program(design)
    expected = ReferenceDevice(design).run(good)
    assert expected.error is Error.NONE
    cases = malformed_programs(design)
    assert len({case.name for case in cases}) == len(cases)
    assert {case.error for case in cases} == set(Error) - {Error.NONE}
    for case in cases:
        result = device.run_streams(case.words0, case.words1)
        assert (result.error, result.position) == (case.error, case.position), case.name
        assert result.counters["PACKETS"] == case.position, case.name
        assert result.counters["WORDS_OUT"] == result.words.size + 2, case.name
        again = device.run(good)
        assert np.array_equal(again.words, expected.words), f"the good program after {case.name}"
        assert again.counters == expected.counters
        with pytest.raises(ProgramError, match=case.error.name):
            check(result)


def test_random_programs_do_not_depend_on_what_ran_before() -> None:
    design = DESIGNS["sim-small"]
    device = ReferenceDevice(design)
    for seed in range(30):
        words = random_program(design, seed)
        used, fresh = device.run(words), ReferenceDevice(design).run(words)
        assert used.error is Error.NONE
        assert np.array_equal(used.words, fresh.words)
        assert used.counters == fresh.counters


@pytest.mark.parametrize("seed", range(40))
def test_reference_equals_direct_loops(seed: int) -> None:
    design = DESIGNS["sim-small"]
    words = random_program(
        design, 1000 + seed, packets=11, max_rows=10 if seed % 8 == 0 else 3, max_bits=5 if seed % 4 else 16
    )
    slow = Direct(design)
    slow.run([int(w) for w in words])
    result = ReferenceDevice(design).run(words)
    assert result.error is Error.NONE
    assert result.words.tolist() == slow.out
    assert result.counters == {
        "PACKETS": slow.packets,
        "SKIPPED": slow.skipped % (1 << 32),
        "SATURATED": slow.saturated,
        "WORDS_IN": words.size,
        "WORDS_OUT": len(slow.out) + 2,
    }


def test_programs_have_an_even_number_of_words() -> None:
    with pytest.raises(ValueError, match="even"):
        program_words(np.zeros(3, dtype=np.uint64))
