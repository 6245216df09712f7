"""The HLS kernel under strict compilers and on two libraries of arbitrary-precision integers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from host.devices.hls import HlsDevice
from host.devices.reference import ReferenceDevice
from hw.design import load_design
from hw.tools.compile import BIT_SERIAL, LIGHT_STREAM, ap_types, build, hls_files
from tests.support.kernel import assert_alike, second_library
from tests.support.malformed import malformed_programs
from tests.support.random_programs import random_programs

SMALL = load_design("sim-small")
FIRST = ("-isystem", str(ap_types()))
STRICT = ("-std=c++14", "-Wall", "-Wextra", "-pedantic-errors", "-Werror", "-Wno-unknown-pragmas", "-fsyntax-only")
FORMS = {
    "fast": FIRST,
    "bit-serial": (BIT_SERIAL, *FIRST),
    "library": (BIT_SERIAL, LIGHT_STREAM, *FIRST),
    "second library": (BIT_SERIAL, *second_library()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_strict_cpp14(compiler: str, form: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    for name, text in hls_files(SMALL).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = [compiler, *STRICT, *FORMS[form], "fabric.cpp"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["sim-small", pytest.param("zc706", marks=pytest.mark.slow)])
def test_results_are_the_same_on_the_second_library(name: str) -> None:
    design = load_design(name)
    device, reference = HlsDevice(design, flags=["-O1", BIT_SERIAL, *second_library()]), ReferenceDevice(design)
    for seed, words in enumerate(random_programs(design, 20, max_bits=3, max_rows=9)):
        assert_alike(device.run(words), reference.run(words), seed)
    for case in malformed_programs(design):
        if not case.slow:
            result = device.run_streams(case.words0, case.words1)
            assert_alike(result, reference.run_streams(case.words0, case.words1), case.name)


RECORDS = """
#include <cstdio>
#include "channels.h"
#include "buffers.h"
#include "streams.h"
using namespace kernel;

struct Widths {
    unsigned sum = 0;
    template <unsigned WIDTH, typename Field> void unsigned_field(const Field&) { sum += WIDTH; }
    template <unsigned WIDTH, typename Field> void signed_field(const Field&) { sum += WIDTH; }
};

template <typename Record> int wrong(const char* name) {
    const Record record = Record();
    Widths widths;
    Record::fields(record, widths);
    if (widths.sum != Record::BITS) std::printf("%s: %u bits, not %u\\n", name, widths.sum, Record::BITS);
    return widths.sum != Record::BITS;
}

template <typename Value> int lost(const char* name, Value before, Value after) {
    if (before != after) std::printf("%s is cut\\n", name);
    return before != after;
}

int main() {
    int faults = wrong<Packet>("Packet") + wrong<OutputHeader>("OutputHeader") + wrong<Write>("Write") +
                 wrong<Line>("Line") + wrong<Command>("Command") + wrong<SumEntry>("SumEntry") +
                 wrong<Entry>("Entry") + wrong<Moments>("Moments") + wrong<ResultBeat>("ResultBeat");
    Packet packet = Packet();
    Header& h = packet.header;
    packet.error = ERR_ACCUMULATOR_RANGE;
#define GREATEST(X) \\
    X(opcode, OP_END) X(format, FORMAT_MOMENTS) X(rows, MAX_ENTRIES) X(out_groups, MAX_OUT_GROUPS) \\
    X(flags, 2 * FLAG_RECORDS - 1) X(side_bits, MAX_SIDE_BITS) X(added_bits, MAX_SIDE_BITS) \\
    X(groups, MAX_GROUPS) X(images, MAX_IMAGES) X(a_bits, MAX_BITS) X(b_bits, MAX_BITS) X(a_planes, 0xFFFF) \\
    X(b_planes, 0xFFFF) X(base_a, DEPTH_A) X(base_b, 0xFFFF) X(base_side, DEPTH_G) X(base_added, DEPTH_G) \\
    X(taps, 511) X(first_row, MAX_ROWS) X(last_row, MAX_ROWS) X(out_bits, MAX_BITS) X(keep_bits, MAX_SIDE_BITS) \\
    X(wide_bits, MAX_SIDE_BITS) X(shift, MAX_SHIFT) X(value_shift, MAX_SHIFT) X(out_shift, MAX_CODE_SHIFT) \\
    X(keep_shift, MAX_CODE_SHIFT) X(wide_shift, MAX_CODE_SHIFT) X(key, 0xFFFFFFFF) X(index, 0xFFFFFFFF) \\
    X(channel_stride, 0xFFFFFFFF) X(image_stride, 0xFFFFFFFF) X(row_stride, 0xFFFFFFFF) X(factor, 0xFFFF) \\
    X(base_epilogue, DEPTH_EPILOGUE) X(base_accumulator, 0xFFFF)
#define SET(field, value) h.field = value;
    GREATEST(SET)
    const Packet after = unpack<Packet>(pack(packet));
#define COMPARE(field, value) faults += lost(#field, uint32_t(value), after.header.field);
    GREATEST(COMPARE)
    faults += lost("error", packet.error, after.error);
    Command command = make_command(COMMAND_STOP, 0xFFFF, ERR_ACCUMULATOR_RANGE);
    command.row = MAX_IMAGES * MAX_ROWS - 1;
    command.out_group = MAX_OUT_GROUPS - 1;
    const Command obeyed = unpack<Command>(pack(command));
    faults += lost("kind", command.kind, obeyed.kind) + lost("row", command.row, obeyed.row) +
              lost("out_group", command.out_group, obeyed.out_group) + lost("entry", command.entry, obeyed.entry);
    Write write = Write();
    write.target = TARGET_A | TARGET_G | TARGET_W | TARGET_E;
    write.bank = ROW_BANKS - 1;
    write.word = WEIGHT_WORDS - 2;
    const Write taken = unpack<Write>(pack(write));
    faults += lost("target", write.target, taken.target) + lost("bank", write.bank, taken.bank) +
              lost("word", write.word, taken.word);
    return faults;
}
"""


@pytest.mark.parametrize("name", ["sim-small", "zc706"])
@pytest.mark.parametrize("library", [FIRST, second_library()], ids=["first", "second"])
def test_words_hold_all_that_records_may_hold(name: str, library: tuple[str, ...]) -> None:
    files = {**hls_files(load_design(name)), "records.cpp": RECORDS}
    bench = build(files, ["records.cpp"], ["-O1", BIT_SERIAL, *library], "records")
    done = subprocess.run([str(bench)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
