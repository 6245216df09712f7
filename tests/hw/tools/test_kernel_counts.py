"""The HLS kernel held to its pragmas and its cycle model, and changes that C simulation does not find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fractrain import main
from host.verify.kernel_check import check_kernel
from hw.design import Design, load_design
from hw.tools.compile import hls_files
from hw.tools.kernel_counts import counting_files
from tests.support.kernel import replaced
from tests.support.random_programs import random_programs

SMALL = load_design("sim-small")
#: functions with pipelined loops that good programs run
LOOPS = {
    "read_header", "load_tensor", "load_beats", "finish_load", "planes_in_use", "compute_tile", "finish_fetch",
    "finish_tile", "draw", "finish_sums_of_tile", "send_planes", "take_tile", "add_entries", "send_entries",
    "send_moments", "result_port",
}  # fmt: skip


def assert_kept(design: Design, report: dict[str, Any]) -> None:
    assert (report["mismatches"], report["faults"], report["differences"]) == (0, [], [])
    ran = {name for name, row in report["loops"].items() if row["counted"]}
    assert ran == LOOPS - (set() if design.rounding else {"draw"})


def test_the_kernel_keeps_its_promises_on_all_kinds_of_packets(tmp_path: Path) -> None:
    assert_kept(SMALL, check_kernel(SMALL, tmp_path))


def test_random_programs_take_the_cycles_of_the_model(tmp_path: Path) -> None:
    report = check_kernel(SMALL, tmp_path, programs=random_programs(SMALL, 20, max_bits=3, max_rows=9))
    assert (report["programs"], report["mismatches"], report["faults"], report["differences"]) == (20, 0, [], [])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pynq-z2", "zc706", "zcu104"])
def test_the_kernels_of_the_boards_keep_their_promises(name: str, tmp_path: Path) -> None:
    design = load_design(name)
    assert_kept(design, check_kernel(design, tmp_path))


W_LOOP = """    for (unsigned word = 0; word < WEIGHT_WORDS; ++word) {
#pragma HLS UNROLL
        const bool hit = (write.target & TARGET_W) != 0 && write.word == word / 2 * 2;
        if (hit) buffers.w[write.other][word] = write.data[word % 2];
"""
W_STORES = """    for (unsigned word = 0; word < 2; ++word) {
#pragma HLS UNROLL
        if ((write.target & TARGET_W) != 0) buffers.w[write.other][write.word + word] = write.data[word];
"""
#: changes, and the fault that they are
MUTANTS: dict[str, tuple[list[tuple[str, str]], str]] = {
    "a second store, whose bank is no constant": (
        [(W_LOOP, W_STORES)],
        "2 writes of a memory of operand_buffers.w in 1 cycle",
    ),
    "banks that are not split": (
        [("#pragma HLS ARRAY_PARTITION variable = operand_buffers.a complete dim = 1\n", "")],
        "8 writes of a memory of operand_buffers.a in 1 cycle",
    ),
    "a copy that is not unrolled": (
        [("#pragma HLS UNROLL\n        shadow.tile.own[lane] =", "        shadow.tile.own[lane] =")],
        "neither pipelined nor unrolled",
    ),
    "moments through the memory for every line": (
        [("    if (part == 0) {\n        const Packed<Moments>", "    {\n        const Packed<Moments>"),
         ("if (command.row == 0) clear(moments)", "if (command.row == 0 && part == 0) clear(moments)"),
         ("if (part == PARTS - 1) buffers.moments", "buffers.moments")],
        "a pragma denies the RAW dependence on result_buffers.moments between iterations",
    ),
    "a dependence of which no pragma speaks": (
        [("#pragma HLS DEPENDENCE variable = buffers.accumulator type = inter dependent = false\n", "")],
        "reads may depend on writes of earlier iterations: result_buffers.accumulator",
    ),
    "two results in the cycle of one": (
        [("#pragma HLS PIPELINE II = PAIRS_INTERVAL", "#pragma HLS PIPELINE II = 1")],
        "2 writes of a stream, results in 1 cycle",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MUTANTS)
def test_a_promise_that_is_not_kept_is_found_though_results_are_right(what: str, tmp_path: Path) -> None:
    changes, fault = MUTANTS[what]
    files = hls_files(SMALL)
    for old, new in changes:
        files = replaced(files, old, new)
    words = list(random_programs(SMALL, 6, max_bits=2, max_rows=9))
    report = check_kernel(SMALL, tmp_path, files, words)
    assert report["mismatches"] == 0
    assert any(fault in found for found in report["faults"]), report["faults"]


def test_a_slower_loop_is_a_difference_to_the_model(tmp_path: Path) -> None:
    files = replaced(hls_files(SMALL), "#pragma HLS PIPELINE II = EPILOGUE_INTERVAL", "#pragma HLS PIPELINE II = 3")
    words = list(random_programs(SMALL, 4, max_bits=2, max_rows=9))
    report = check_kernel(SMALL, tmp_path, files, words)
    assert (report["mismatches"], report["faults"]) == (0, [])
    assert any("finish_sums_of_tile" in line for line in report["differences"])


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("type = ram_2p impl = lutram", "type = ram_t2p impl = lutram", "ram_t2p"),
        ("#pragma HLS UNROLL\n        ones +=", "#pragma HLS UNROLLED\n        ones +=", "not known"),
        ("    while (intake.ended == 0) {\n", "    while (intake.ended == 0)\n    {\n", "the body of a loop"),
    ],
)
def test_text_that_cannot_be_prepared_is_refused(old: str, new: str, reason: str) -> None:
    files = {name: text.replace(old, new) for name, text in hls_files(SMALL).items()}
    with pytest.raises(ValueError, match=reason):
        counting_files(files)


def test_command_reports_what_has_been_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["csim", "--path", "counting", "--out", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["design"], report["path"]) == ("sim-small", "counting")
    assert_kept(SMALL, report)
