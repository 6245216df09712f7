"""The HLS kernel against the reference: random, malformed and broken on purpose, in both forms of its array."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest

import hw.csim
from host import csim_commands
from host.csim_commands import cases_of, simulate
from host.device import DeviceError, Result, split_streams
from host.hls import HlsDevice, build_hls
from host.library import LibraryDevice, result_bound
from host.reference import ReferenceDevice
from host.stimuli import ALL_POINTS, precision_sweep
from hw.contract import FUNCTIONAL_COUNTERS, TIMING_COUNTERS, Error
from hw.csim import BIT_SERIAL, SANITIZE_FLAGS, CompileError, ap_types, build_bench, hls_files, run_bench, stimuli_text
from hw.design import Design, load_design
from tests.host.malformed import good_program, malformed_programs
from tests.host.random_programs import random_program, random_programs

SMALL = load_design("sim-small")
PLAIN = load_design("pynq-z2")  #: without stochastic results
DESIGNS = [SMALL, load_design("zc706"), PLAIN]


def by_name(design: Design) -> str:
    return design.name


def assert_alike(ours: Result, expected: Result, what: object) -> None:
    assert (ours.error, ours.position) == (expected.error, expected.position), what
    assert np.array_equal(ours.words, expected.words), what
    exact = FUNCTIONAL_COUNTERS if expected.error is Error.NONE else ("PACKETS", "WORDS_OUT")
    assert {k: ours.counters[k] for k in exact} == {k: expected.counters[k] for k in exact}, what


def bit_serial_device(design: Design) -> HlsDevice:
    return HlsDevice(design, flags=["-O2", BIT_SERIAL, "-isystem", str(ap_types())])


@pytest.mark.parametrize("design", DESIGNS, ids=by_name)
def test_random_programs(design: Design) -> None:
    device, reference = HlsDevice(design), ReferenceDevice(design)
    for seed, words in enumerate(random_programs(design, 120)):
        assert_alike(device.run(words), reference.run(words), seed)


@pytest.mark.parametrize("design", DESIGNS, ids=by_name)
def test_malformed_programs_and_the_good_one_after_each(design: Design) -> None:
    device, reference = HlsDevice(design), ReferenceDevice(design)
    good = good_program(design)
    expected = reference.run(good)
    for case in malformed_programs(design):
        result = device.run_streams(case.words0, case.words1)
        assert (result.error, result.position) == (case.error, case.position), case.name
        assert_alike(result, reference.run_streams(case.words0, case.words1), case.name)
        assert_alike(device.run(good), expected, f"the good program after {case.name}")


def test_run_twice_gives_the_same() -> None:
    device = HlsDevice(SMALL)
    for seed in range(20):
        words = random_program(SMALL, seed)
        first = device.run(words)
        device.reset()
        assert_alike(device.run(words), first, seed)


def test_buffers_keep_their_contents_and_devices_do_not_share_them() -> None:
    program = good_program(SMALL)
    loads, rest = _split_after_loads(program)
    device, other = HlsDevice(SMALL), HlsDevice(SMALL)
    together = device.run(program)
    device = HlsDevice(SMALL)
    assert device.run(loads).error is Error.NONE
    assert np.array_equal(device.run(rest).words, together.words)
    blank = other.run(rest).words
    assert not np.array_equal(blank, together.words)
    assert np.array_equal(blank, ReferenceDevice(SMALL).run(rest).words), "buffers are zero at power-up"


def _split_after_loads(program: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A program as two: its LOAD packets, and what follows them."""
    at = 0
    while int(program[at]) >> 24 & 0xFF == 1:
        at += 10 + (int(program[at]) >> 32)
    return np.concatenate([program[:at], program[-10:]]), program[at:]


def test_the_array_that_synthesis_sees_agrees_with_the_fast_one() -> None:
    fast, slow = HlsDevice(SMALL), bit_serial_device(SMALL)
    for seed, words in enumerate(random_programs(SMALL, 25, max_bits=4, max_rows=10)):
        assert_alike(slow.run(words), fast.run(words), seed)
    for stimulus in precision_sweep(SMALL, seed=5, max_pairs=16):
        assert_alike(slow.run(stimulus.words), fast.run(stimulus.words), stimulus.name)
    large, large_slow = HlsDevice(DESIGNS[1]), bit_serial_device(DESIGNS[1])
    for seed, words in enumerate(random_programs(DESIGNS[1], 6, max_bits=2, max_rows=9)):
        assert_alike(large_slow.run(words), large.run(words), seed)


@pytest.mark.parametrize("array", ["native", "bit-serial"])
def test_clean_under_the_address_and_undefined_behaviour_sanitizers(array: str, tmp_path: Path) -> None:
    native = array == "native"
    sweep = [s.words for s in precision_sweep(SMALL, max_pairs=256 if native else 4)]
    drawn = [random_program(SMALL, seed, max_bits=16 if native else 2) for seed in range(30 if native else 4)]
    programs = [(f"valid-{n}", *split_streams(words)) for n, words in enumerate([*sweep, *drawn])]
    programs += [(m.name, m.words0, m.words1) for m in malformed_programs(SMALL) if native or not m.slow]
    stimuli = tmp_path / "stimuli.txt"
    stimuli.write_text(stimuli_text(cases_of(SMALL, programs)))
    # the vendor's headers shift negative numbers to the left, which C++20 defines and C++17 does not
    flags = SANITIZE_FLAGS if native else (*SANITIZE_FLAGS, BIT_SERIAL, "-std=c++20")
    result = run_bench(build_bench(SMALL, flags), stimuli)
    assert result.programs == len(programs)
    assert result.mismatches == 0, result.log


BOUNDED_STREAM = """
#pragma once
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>
namespace hls {
template <typename T>
class stream {
public:
    explicit stream(size_t depth = SIZE_MAX) : depth_(depth) {}
    void write(const T& value) {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return values_.size() < depth_; });
        values_.push_back(value);
        changed_.notify_all();
    }
    T read() {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return !values_.empty(); });
        const T value = values_.front();
        values_.pop_front();
        changed_.notify_all();
        return value;
    }
    bool empty() {
        std::unique_lock<std::mutex> lock(mutex_);
        return values_.empty();
    }

private:
    size_t depth_;
    std::deque<T> values_;
    std::mutex mutex_;
    std::condition_variable changed_;
};
}
"""


def concurrent_files(design: Design) -> dict[str, str]:
    """The kernel as synthesis builds it: both processes at the same time, streams of the depths that it states."""
    files = hls_files(design)
    kernel, replaced = re.subn(
        r"(CommandStream|LineStream) (\w+);\n(.*\n)?#pragma HLS STREAM variable = \2 depth = (\d+)",
        r"\1 \2(\4);",
        files["fabric.cpp"],
    )
    assert replaced == 2
    kernel, replaced = re.subn(
        r"\n( *engine_process\(.*\);)\n( *output_process\(.*\);)",
        r"\n std::thread engine_thread([&] { \1 });\n\2\n engine_thread.join();",
        kernel,
    )
    assert replaced == 1
    return {**files, "fabric.cpp": kernel, "hls_stream.h": BOUNDED_STREAM}


def test_processes_that_run_at_the_same_time_agree_and_never_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [random_program(SMALL, seed, max_bits=2, max_rows=9) for seed in range(12)]
    programs = [(f"valid-{n}", *split_streams(w)) for n, w in enumerate(words)]
    programs += [(m.name, m.words0, m.words1) for m in malformed_programs(SMALL) if not m.slow]
    stimuli = tmp_path / "stimuli.txt"
    stimuli.write_text(stimuli_text(cases_of(SMALL, programs)))
    monkeypatch.setattr(hw.csim, "_TIMEOUT", 120.0)
    bench = build_bench(SMALL, ["-O1", BIT_SERIAL, "-I.", "-pthread"], concurrent_files(SMALL))
    result = run_bench(bench, stimuli)
    assert (result.programs, result.mismatches) == (len(programs), 0), result.log


# -- C simulation ------------------------------------------------------------------------------------------------------


def test_simulation_covers_every_product_at_every_pair_of_precisions(tmp_path: Path) -> None:
    report = simulate(SMALL, tmp_path, "native")
    assert report["mismatches"] == 0
    assert report["words_compared"] > 100_000
    assert report["coverage"]["missing"] == []
    assert sum(report["coverage"]["covered"].values()) == len(ALL_POINTS) == 512


BREAKS = {
    "an AND that is an OR": ("popcountll(a[n] & b[", "popcountll(a[n] | b["),
    "a pair that does not subtract": (" != (planes.b_signed && j ==", " && (planes.b_signed && j =="),
    "no doubling between diagonals": ("sums[r][oc] *= 2", "sums[r][oc] *= 1"),
    "a tap that crosses a segment's border": ("left[p] = ((has_left(h) >> p) & 1) != 0", "left[p] = p != 0"),
    "a stride without its odd columns": ("at << CHANNELS | odd << (2 * CHANNELS)", "at << CHANNELS"),
    "tiles of a tap mask that overlap": ("entry += CHANNELS + 1;", "entry += CHANNELS;"),
    "zero planes that are not found": ("used |= uint32_t(some) << plane", "used |= 1u << plane"),
    "ties that round up": ("fraction > half || (fraction == half && (whole & 1) != 0)", "fraction >= half"),
    "an epilogue without its half": ("0 : int64_t(1) << (h.shift - 1)", "0 : 0"),
    "random numbers of another pixel": ("state.pixel_index[first + k]", "state.pixel_index[k]"),
    "statistics of all pixels": ("first + k >= command.header.pixels", "first + k >= LANES"),
    "an offset with the wrong half": ("(uint32_t(offset >> 32) & 0xFFFFu)", "(uint32_t(offset >> 16) & 0xFFFFu)"),
    "a counter that miscounts": ("if (empty) --saved;", "if (empty) ++saved;"),
}  # fmt: skip


@pytest.mark.parametrize("what", BREAKS)
def test_breaking_one_operator_fails_the_simulation(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = hls_files(SMALL)
    old, new = BREAKS[what]
    assert files["fabric.cpp"].count(old) == 1, "the code to break is no longer there"
    files["fabric.cpp"] = files["fabric.cpp"].replace(old, new)
    # -O1 builds quicker
    monkeypatch.setattr(csim_commands, "fast_flags", lambda: ("-O1",))
    assert simulate(SMALL, tmp_path, "native", files=files)["mismatches"] > 0


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    csim_commands.register(parser.add_subparsers())
    arguments = parser.parse_args(["csim", *words])
    return int(arguments.run(arguments))


def test_command_line_and_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--path", "native", "--out", str(tmp_path), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["mismatches"] == 0 and report["words_compared"] > 0

    assert command("--design", "nonsense") == 2
    assert "name one of" in capsys.readouterr().err

    broken = hls_files(SMALL)
    broken["fabric.cpp"] = broken["fabric.cpp"].replace("sums[r][oc] *= 2", "sums[r][oc] *= 1")
    monkeypatch.setattr(csim_commands, "fast_flags", lambda: ("-O1",))
    monkeypatch.setattr(hw.csim, "hls_files", lambda design: broken)
    assert command("--path", "native", "--out", str(tmp_path)) == 1
    assert "expected" in capsys.readouterr().out


# -- devices in shared libraries ---------------------------------------------------------------------------------------


def test_device_tells_what_it_is_and_counts_only_what_it_can() -> None:
    device = HlsDevice(SMALL)
    assert (device.info.kind, device.info.design) == ("hls", SMALL)
    result = device.run(good_program(SMALL))
    assert device.info.hash64 == SMALL.hash64
    assert {name: result.counters[name] for name in TIMING_COUNTERS} == dict.fromkeys(TIMING_COUNTERS, 0)


def test_a_library_of_another_design_is_refused() -> None:
    device = LibraryDevice("hls", DESIGNS[1], build_hls(SMALL))
    with pytest.raises(DeviceError, match="rebuild the device"):
        device.run(good_program(SMALL))


def test_streams_that_cannot_carry_a_program_are_refused() -> None:
    device = HlsDevice(SMALL)
    words = good_program(SMALL)
    with pytest.raises(ValueError, match="TLAST"):
        device.run_streams(words[:0], words)
    with pytest.raises(ValueError, match="even number"):
        device.run(words[:-1])
    device.close()
    with pytest.raises(DeviceError, match="closed"):
        device.run(words)


def test_the_bound_on_results_is_what_a_program_sends() -> None:
    reference = ReferenceDevice(SMALL)
    for seed in range(30):
        words = random_program(SMALL, seed)
        assert result_bound(*split_streams(words), SMALL) == reference.run(words).words.size + 2


def test_files_that_are_no_library_and_missing_compilers_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "none.so"
    path.write_text("text")
    with pytest.raises(DeviceError, match=r"none\.so is no library"):
        LibraryDevice("hls", SMALL, path)
    broken = {**hls_files(SMALL), "fabric.cpp": "not C++\n"}
    with pytest.raises(DeviceError, match=r"could not build hls-sim-small(.|\n)*error"):
        HlsDevice(SMALL, files=broken)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(DeviceError, match=r"g\+\+ is missing.*install"):
        HlsDevice(SMALL)
    with pytest.raises(CompileError, match=r"g\+\+ is missing"):
        build_bench(SMALL, ["-O0"])
