"""The HLS kernel against the reference: random, malformed and broken on purpose, in both forms of its array."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import hw.tools.compile
from fractrain import main
from host.devices.device import DeviceError, split_streams
from host.devices.hls import HlsDevice, build_hls
from host.devices.library import LibraryDevice, result_bound
from host.devices.reference import ReferenceDevice
from host.verify import csim
from host.verify.csim import cases_of, simulate
from host.verify.stimuli import ALL_POINTS, precision_sweep
from hw.contract import (
    HEADER_WORDS,
    TIMING_COUNTERS,
    Error,
)
from hw.design import Design, load_design
from hw.tools.compile import (
    CompileError,
    build_bench,
    hls_files,
    run_bench,
    stimuli_text,
)
from tests.support.kernel import assert_alike, bit_serial_device, replaced
from tests.support.malformed import good_program, malformed_programs
from tests.support.random_programs import random_program, random_programs

SMALL = load_design("sim-small")
PLAIN = load_design("pynq-z2")  #: without stochastic results
DESIGNS = [SMALL, load_design("zc706"), PLAIN]


def by_name(design: Design) -> str:
    return design.name


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
        at += HEADER_WORDS + (int(program[at]) >> 32)
    return np.concatenate([program[:at], program[-HEADER_WORDS:]]), program[at:]


def test_the_array_that_synthesis_sees_agrees_with_the_fast_one() -> None:
    fast, slow = HlsDevice(SMALL), bit_serial_device(SMALL)
    for seed, words in enumerate(random_programs(SMALL, 25, max_bits=4, max_rows=10)):
        assert_alike(slow.run(words), fast.run(words), seed)
    for stimulus in precision_sweep(SMALL, seed=5, max_pairs=16):
        assert_alike(slow.run(stimulus.words), fast.run(stimulus.words), stimulus.name)
    large, large_slow = HlsDevice(DESIGNS[1]), bit_serial_device(DESIGNS[1])
    for seed, words in enumerate(random_programs(DESIGNS[1], 6, max_bits=2, max_rows=9)):
        assert_alike(large_slow.run(words), large.run(words), seed)


# -- C simulation ------------------------------------------------------------------------------------------------------


def test_simulation_covers_every_product_at_every_pair_of_precisions(tmp_path: Path) -> None:
    report = simulate(SMALL, tmp_path, "native")
    assert report["mismatches"] == 0
    assert report["words_compared"] > 100_000
    assert report["coverage"]["missing"] == []
    assert sum(report["coverage"]["covered"].values()) == len(ALL_POINTS) == 512


def test_results_leave_on_one_stream_where_the_design_has_one(tmp_path: Path) -> None:
    assert (PLAIN.output_streams, SMALL.output_streams) == (1, 2)
    words = [random_program(PLAIN, seed) for seed in range(8)]
    stimuli = tmp_path / "stimuli.txt"
    stimuli.write_text(stimuli_text(cases_of(PLAIN, [(str(n), *split_streams(w)) for n, w in enumerate(words)])))
    result = run_bench(build_bench(PLAIN, ["-O1"]), stimuli)
    assert (result.programs, result.mismatches) == (len(words), 0), result.log


BREAKS = {
    "an AND that is an OR": ("popcountll(a[n] & b[", "popcountll(a[n] | b["),
    "a pair that does not subtract": (" != (planes.b_signed && j ==", " && (planes.b_signed && j =="),
    "no doubling between diagonals": ("sums[r][oc] *= 2", "sums[r][oc] *= 1"),
    "a tap that crosses a segment's border": ("left[p] = ((has_left(h) >> p) & 1) != 0", "left[p] = p != 0"),
    "a stride without its odd columns": ("at << CHANNELS | odd << (2 * CHANNELS)", "at << CHANNELS"),
    "tiles of a tap mask that overlap": ("entry += CHANNELS + 1;", "entry += CHANNELS;"),
    "zero planes that are not found": ("used |= uint32_t(some) << plane", "used |= 1u << plane"),
    "an epilogue without its half": ("(t + ((int64_t(1) << s) >> 1)) >> s", "t >> s"),
    "codes that are cut": ("section.half = (uint32_t(1) << shift) >> 1", "section.half = 0"),
    "a sum that wraps": ("done.x[k] = saturate(inner)", "done.x[k] = int32_t(inner)"),
    "a saturation that is not counted": ("saturated += done.x[k] != inner ? 1 : 0", "(void)saturated"),
    "a clamp that is not counted": ("clamped += a < out.low || a > out.high ? 1 : 0", "(void)clamped"),
    "a side operand without its sign": ("return is_signed ? int32_t(code ^ sign)", "return false ? int32_t(code ^ sign)"),
    "a mask that lets pass": ("!settings.masked || ((side >>", "true || ((side >>"),
    "the mask of zeros": ("uint32_t(w > 0)", "uint32_t(w >= 0)"),
    "side operands of another row": ("fetch.bank = place.y % ROW_BANKS", "fetch.bank = 0"),
    "side operands of another group": ("Address(h.out_groups) + Address(place.out_group))", "Address(h.out_groups))"),
    "random numbers of another row": ("command.row * h.row_stride", "h.row_stride"),
    "random numbers of another segment": ("index += h.image_stride", "index += 0"),
    "random numbers of another channel": ("channel += h.channel_stride", "channel += 0"),
    "one random number for a segment": ("here ? times_alpha(multiple) : start", "start"),
    "a segment that begins at pixel 0": ("field_product(hash >> RANDOM_BITS, factor)", "hash >> RANDOM_BITS"),
    "KEEP with the bits of A": ("stochastic ? reverse_bits(random)", "stochastic ? random"),
    "moments of all pixels": ("command.counts ? h.valid", "command.counts ? ~0u"),
    "moments of all rows": ("command.counts ? h.valid >> (part * LINE_VALUES) : 0", "h.valid >> (part * LINE_VALUES)"),
    "moments of the packet before": ("if (command.row == 0) clear(moments)", "if (false) clear(moments)"),
    "squares instead of products": ("cross ? done.k : done.x", "done.x"),
    "a counter that miscounts": ("if (empty) ++made;", "if (empty) --made;"),
}  # fmt: skip


@pytest.mark.parametrize("what", BREAKS)
def test_breaking_one_operator_fails_the_simulation(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = replaced(hls_files(SMALL), *BREAKS[what])
    # -O1 builds quicker
    monkeypatch.setattr(csim, "fast_flags", lambda: ("-O1",))
    assert simulate(SMALL, tmp_path, "native", files=files)["mismatches"] > 0


def command(*words: str) -> int:
    """Exit status of ``fractrain`` with these words."""
    return main(["csim", *words])


def test_command_line_and_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--path", "native", "--out", str(tmp_path), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["mismatches"] == 0 and report["words_compared"] > 0

    assert command("--design", "nonsense") == 2
    assert "name one of" in capsys.readouterr().err

    broken = replaced(hls_files(SMALL), "sums[r][oc] *= 2", "sums[r][oc] *= 1")
    monkeypatch.setattr(csim, "fast_flags", lambda: ("-O1",))
    monkeypatch.setattr(hw.tools.compile, "hls_files", lambda design: broken)
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
