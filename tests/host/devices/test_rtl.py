"""The Verilated RTL as a device against the reference: random, malformed, paused, reset, and broken on purpose."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.devices import rtl
from host.devices.device import U64, DeviceError, Result
from host.devices.reference import ReferenceDevice
from host.devices.rtl import RtlDevice, rtl_sources
from host.program.builder import ProgramBuilder
from hw.contract import FUNCTIONAL_COUNTERS, Error, Flag, Opcode, Target
from hw.design import Design, load_design
from hw.generate import generate, render
from hw.packet import load_entries, load_tensor, product, read_entries
from tests.support.malformed import Malformed, good_program, malformed_programs
from tests.support.random_programs import random_program, random_programs

SMALL = load_design("sim-small")
DESIGNS = [
    SMALL,
    pytest.param(load_design("zc706"), marks=pytest.mark.slow),  # its build takes minutes
]
COUNTS = {"sim-small": 60, "zc706": 300}


def by_name(design: Design) -> str:
    return design.name


@cache
def device_of(design: Design) -> RtlDevice:
    """One instance for all tests: whatever a program leaves behind must not matter to the next."""
    return RtlDevice(design)


def pace(device: RtlDevice, pauses: int, seed: int = 1) -> RtlDevice:
    """The device with every stream pausing in about ``pauses`` of 1000 cycles."""
    device.library.fabric_pauses(device.handle, pauses, seed)
    return device


def differences(found: Result, expected: Result) -> list[str]:
    """What differs; after an error only two counters are promised."""
    names = FUNCTIONAL_COUNTERS if expected.error is Error.NONE else ("PACKETS", "WORDS_OUT")
    out = [
        f"{n}: {found.counters[n]} != {expected.counters[n]}"
        for n in names
        if found.counters[n] != expected.counters[n]
    ]
    if (found.error, found.position) != (expected.error, expected.position):
        out.append(f"{found.error.name} at {found.position} != {expected.error.name} at {expected.position}")
    if not np.array_equal(found.words, expected.words):
        out.append(f"words: {found.words.size}, expected {expected.words.size}")
    return out


@pytest.mark.parametrize("design", DESIGNS, ids=by_name)
def test_random_programs(design: Design) -> None:
    device, reference = pace(device_of(design), 0), ReferenceDevice(design)
    compared = 0
    for seed, words in enumerate(random_programs(design, COUNTS[design.name])):
        expected = reference.run(words)
        result = device.run(words)
        assert not differences(result, expected), seed
        compared += expected.words.size
        assert result.counters["CYCLES"] > result.counters["BUSY"]
    assert compared > 10_000


@pytest.mark.parametrize("taps", [1 << 4, 0b101])
@pytest.mark.parametrize("a_planes", [0, 1])
def test_a_first_tile_of_one_diagonal_before_a_tile_of_ones(a_planes: int, taps: int) -> None:
    """A tile of one plane pair is over before anything is known of the next one but by looking ahead."""
    builder = ProgramBuilder(SMALL)
    words = np.random.default_rng(3).integers(0, 1 << 63, 3 * SMALL.row_words, dtype=np.uint64)
    for target in (Target.A, Target.G):
        builder.add(load_tensor(SMALL, target, 1, 3, 1, 1), words)
    wgrad = product(
        Opcode.WGRAD, images=1, rows=3, groups=1, out_groups=1, a_bits=1, b_bits=1, a_planes=a_planes, taps=taps,
        flags=Flag.ONES | Flag.CLEAR,
    )  # fmt: skip
    builder.add(wgrad)
    builder.add(read_entries(wgrad.entries(SMALL)))
    program = builder.end().words()
    assert not differences(pace(device_of(SMALL), 0).run(program), ReferenceDevice(SMALL).run(program))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1 << 32), packets=st.integers(2, 12), pauses=st.integers(0, 950), order=st.integers(1, 1 << 31)
)
def test_pauses_do_not_change_the_answer(seed: int, packets: int, pauses: int, order: int) -> None:
    words = random_program(SMALL, seed, packets=packets, max_bits=8)
    result = pace(device_of(SMALL), pauses, order).run(words)
    assert not differences(result, ReferenceDevice(SMALL).run(words))


def test_pauses_stall_the_streams() -> None:
    """Without this the tests above could pass with pauses that never happen."""
    words = random_program(SMALL, 5, packets=10, max_bits=4)
    free = pace(device_of(SMALL), 0).run(words).counters
    slow = pace(device_of(SMALL), 700).run(words).counters
    assert free["STALL_OUT"] == 0 < slow["STALL_OUT"]
    assert free["STALL_IN"] < slow["STALL_IN"]
    assert slow["CYCLES"] > 2 * free["CYCLES"]


@pytest.mark.parametrize("pauses", [0, 400])
@pytest.mark.parametrize("design", DESIGNS, ids=by_name)
def test_malformed_programs_and_the_good_one_after_each(design: Design, pauses: int) -> None:
    device, reference = pace(device_of(design), pauses, 9), ReferenceDevice(design)
    good = good_program(design)
    expected = reference.run(good)
    assert not differences(device.run(good), expected)
    for case in malformed_programs(design):
        result = device.run_streams(case.words0, case.words1)
        assert (result.error, result.position) == (case.error, case.position), case.name
        assert not differences(result, reference.run_streams(case.words0, case.words1)), case.name
        assert not differences(device.run(good), expected), f"the good program after {case.name}"
        reference.run(good)


@pytest.mark.parametrize("design", DESIGNS, ids=by_name)
def test_run_twice_takes_the_same_cycles(design: Design) -> None:
    device = pace(device_of(design), 0)
    for seed in range(5):
        words = random_program(design, 900 + seed, packets=8, max_bits=6)
        first, second = device.run(words), device.run(words)
        assert np.array_equal(first.words, second.words)
        assert first.counters == second.counters


def test_deadline_then_reset_then_a_good_program() -> None:
    device = RtlDevice(SMALL)
    good = good_program(SMALL)
    expected = ReferenceDevice(SMALL).run(good)
    for cycles in (1, 7, 60, 150, 300):  # in a header, in payloads, while results leave
        with pytest.raises(DeviceError, match="no trailer within"):
            device.run(good, timeout=cycles / 1e5)
        device.reset()
        assert not differences(device.run(good), expected), f"after {cycles} cycles and a reset"


def test_instances_do_not_share_state() -> None:
    first, second = RtlDevice(SMALL), RtlDevice(SMALL)
    words = [random_program(SMALL, seed, packets=6, max_bits=5) for seed in (1, 2)]
    expected = [ReferenceDevice(SMALL).run(w) for w in words]
    assert not differences(first.run(words[0]), expected[0])
    assert not differences(second.run(words[1]), expected[1])
    assert not differences(first.run(words[1]), expected[1])


def test_synthesis_form_of_the_operand_network_is_the_same(tmp_path: Path) -> None:
    """The other form for synthesis, the dot product's, is compared on its own: its primitives simulate slowly."""
    folder = generate(SMALL, tmp_path)
    special = folder / "rtl" / "xc7" / "operand_network.sv"
    sources = [special if path.name == special.name else path for path in rtl_sources(folder)]
    assert special in sources
    device, reference = RtlDevice(SMALL, sources), ReferenceDevice(SMALL)
    for seed, words in enumerate(random_programs(SMALL, 30, max_bits=6)):
        assert not differences(device.run(words), reference.run(words)), seed


# -- broken on purpose ----------------------------------------------------------------------------------------------


class Mutant(NamedTuple):
    """One operator flipped: an expression that occurs once in a file, and what replaces it."""

    file: str
    old: str
    new: str


MUTANTS = [
    Mutant("dot_product_unit", "a_i & b_i", "a_i | b_i"),
    Mutant("dot_product_unit", "acc_q <<< 1", "acc_q >>> 1"),
    Mutant("dot_product_unit", "-$signed({1'b0, count_q})", "+$signed({1'b0, count_q})"),
    Mutant("sequencer", "b_planes[0] || sums", "b_planes[0] && sums"),
    Mutant("sequencer", "a_address - 17'(a_stride_q)", "a_address + 17'(a_stride_q)"),
    Mutant("sequencer", "stride_q || at.row != 11'(h.rows) - 11'd1", "at.row != 11'(h.rows) - 11'd1"),
    Mutant("sequencer", "h.a_planes & a_found_q", "h.a_planes | a_found_q"),
    Mutant("sequencer", "at.row != 0", "at.row == 0"),
    Mutant("sequencer", "to_next_tile && !first_q ? next_at.a_outer : at.a_outer", "at.a_outer"),
    Mutant("sequencer", "16'(at.row) < h.last_row", "16'(at.row) <= h.last_row"),
    Mutant("tile_walk", "h.taps[8:0] & (9'h1FE << at_q.tap)", "h.taps[8:0] & (9'h1FF << at_q.tap)"),
    Mutant("tile_walk", "last_row_q || block_end_q", "last_row_q && block_end_q"),
    Mutant("plane_pairs", "to_tile ? first_q[ones_i] : next_q", "to_tile ? first_q[0] : next_q"),
    Mutant("plane_pairs", "backward & (backward - MAX_BITS'(1))", "backward"),
    Mutant("operand_network", "(row << CHANNELS) & left_mask", "(row << CHANNELS) | left_mask"),
    Mutant("operand_network", "row & column_mask", "row | column_mask"),
    Mutant("operand_network", "step_q.row[0] ? 3'(2*ky+2) : 3'(2*ky+6)", "step_q.row[0] ? 3'(2*ky+6) : 3'(2*ky+2)"),
    Mutant("accumulators", "lane_i[c] + lane_i[CHANNELS+c]", "lane_i[c] - lane_i[CHANNELS+c]"),
    Mutant("epilogue", "low4_q >>> LOW", "low4_q >> LOW"),
    Mutant("epilogue", "$signed({added3_q, b3_q})", "$signed({added3_q, 9'd0})"),
    Mutant("epilogue", "portion_q[X+2].coding.relu && v_q[VALUE-1]", "portion_q[X+2].coding.relu || v_q[VALUE-1]"),
    Mutant("epilogue", "portion_i.coding.side_signed && side_i[p][MAX_SIDE_BITS-1]", "1'b0"),
    Mutant("epilogue", "!w[VALUE_BITS-1] && w != 0", "!w[VALUE_BITS-1]"),
    Mutant("epilogue", "random_q[15-b]", "random_q[b]"),
    Mutant("epilogue", "portion_q[V].records ? w : x_q[V]", "portion_q[V].records ? x_q[V] : w"),
    Mutant("saturating_shift", "beyond_fine || beyond_coarse_q", "beyond_fine && beyond_coarse_q"),
    Mutant("saturating_shift", "fine_q[FINE-1] != negative2_q", "fine_q[FINE-1] == negative2_q"),
    Mutant("code_rounding", "(shifted ^ {VALUE_BITS + 1{negative}}) & limits_i.beyond", "shifted & limits_i.beyond"),
    Mutant("code_rounding", "negative && !limits_i.is_signed", "negative && limits_i.is_signed"),
    Mutant("nearest_code", "(VALUE_BITS + 1)'(half_i)", "-(VALUE_BITS + 1)'(half_i)"),
    Mutant("row_hash", "product_q >> FOLD", "product_q >> (FOLD - 1)"),
    Mutant("row_hash", "cross_low_q + cross_high_q", "cross_low_q - cross_high_q"),
    Mutant("rounding", "index_q + tile_q.image_stride", "index_q - tile_q.image_stride"),
    Mutant("rounding", "first[(s-1)%PW]", "first[s%PW]"),
    Mutant("rounding", "pixel_t'(p) >= seed.segment.start", "pixel_t'(p) > seed.segment.start"),
    Mutant("moments", "!portion_i.counts[p]", "portion_i.counts[p]"),
    Mutant("moments", "begins || root_least < tile_least_q", "begins || root_least > tile_least_q"),
    Mutant("moments", "first || tile_most_q > read_q.most", "first && tile_most_q > read_q.most"),
    Mutant("code_buffer", "full_q && empty_q", "full_q || empty_q"),
    Mutant("code_buffer", "ahead_q == 2'd1 && timely_q && room_i", "ahead_q == 2'd1"),
    Mutant("side_fetch", "last_row || &bank_t'(row_q)", "last_row && &bank_t'(row_q)"),
    Mutant("side_fetch", "tag.to_top && tag.plane < plane_t'(b)", "tag.to_top && tag.plane > plane_t'(b)"),
    Mutant("side_fetch", "tag.begins && !tag.mask", "tag.begins && tag.mask"),
    Mutant("accumulators", "sum[ACC_BITS] != sum[ACC_BITS-1]", "sum[ACC_BITS] == sum[ACC_BITS-1]"),
    Mutant("header_check", "h.valid & beyond_lanes", "h.valid | beyond_lanes"),
    Mutant("header_check", "h & ~used2_q", "h & used2_q"),
    Mutant("header_check", "h.segment_start & beyond_lanes", "h.segment_start | beyond_lanes"),
    Mutant("loader", "(state_q == PUSH || state_q == PUSH_END) && !full_i", "state_q == PUSH || state_q == PUSH_END"),
    Mutant("stream_register", "spare_full_q ? spare_q : word_i", "word_i"),
    Mutant("stream_register", "!spare_full_d && !rst_i", "!rst_i"),
    Mutant("command_queue", "b0 < e1 && b1 < e0", "b0 < e1 && b1 > e0"),
    Mutant("command_queue", "head_q + PW'(1)", "head_q + PW'(2)"),
    Mutant("tensor_buffer", "write_bank_i == 3'(b) && write_slice_i == 8'(s)", "write_slice_i == 8'(s)"),
    Mutant("tensor_buffer", "was_set || any_q", "was_set && any_q"),
]

CHOOSER = """
// Which expression the simulated fabric has broken; read when an instance is made.
static int chosen = 0;
extern "C" int fabric_mutant() { return chosen; }
extern "C" void fabric_choose(int number) { chosen = number; }
"""


def replace_once(text: str, old: str, new: str, where: str) -> str:
    assert text.count(old) == 1, f"{where}: {old!r} occurs {text.count(old)} times; choose another expression to break"
    return text.replace(old, new)


def breakable_sources(folder: Path) -> list[Path]:
    """RTL in which every mutant is present and one at most is active: all share one build."""
    sources = rtl_sources(generate(SMALL, folder))
    texts = {path.stem: path.read_text() for path in sources}
    for number, (file, old, new) in enumerate(MUTANTS, start=1):
        choice = f"(engine_pkg::mutant == 32'd{number} ? ({new}) : ({old}))"
        texts[file] = replace_once(texts[file], old, choice, file)
    declaration = 'import "DPI-C" function int fabric_mutant();\n  int unsigned mutant;\n'
    texts["engine_pkg"] = replace_once(texts["engine_pkg"], "endpackage", f"  {declaration}endpackage", "engine_pkg")
    start = "initial engine_pkg::mutant = unsigned'(engine_pkg::fabric_mutant());\nendmodule"
    texts["fabric"] = replace_once(texts["fabric"], "endmodule", start, "fabric")
    for path in sources:
        path.write_text(texts[path.stem])
    chooser = folder / "rtl" / "chooser.cpp"
    chooser.write_text(CHOOSER)
    return [*sources, chooser]


def overwriting_program() -> U64:
    """Long products, and behind each of them a load into what it reads."""
    rng, builder = np.random.default_rng(1), ProgramBuilder(SMALL)
    rows = bits = 8

    def load(target: Target) -> None:
        tensor = target != Target.W
        packet = load_tensor(SMALL, target, 1, rows, 1, bits) if tensor else load_entries(SMALL, target, bits)
        builder.add(packet, rng.integers(0, 1 << 64, packet.payload_words, dtype=np.uint64))

    load(Target.A | Target.G)
    load(Target.W)
    for target in (Target.A, Target.W, Target.G, Target.A):
        opcode = Opcode.WGRAD if target == Target.G else Opcode.CONV
        builder.add(product(opcode, images=1, rows=rows, groups=1, out_groups=1, a_bits=bits, b_bits=bits))
        load(target)
    return builder.words()


class Breakable:
    """The device with a chosen mutant, and programs that look for it."""

    def __init__(self, folder: Path) -> None:
        self.sources = breakable_sources(folder)
        reference = ReferenceDevice(SMALL)
        self.programs: list[tuple[U64, Result]] = []
        for words in [good_program(SMALL), *random_programs(SMALL, 40, max_bits=8), overwriting_program()]:
            self.programs.append((words, reference.run(words)))
        self.refusals: list[Malformed] = malformed_programs(SMALL)[::40]

    def first_difference(self, number: int) -> str | None:
        """How the device with mutant ``number`` gives itself away; None if it does not."""
        device = RtlDevice(SMALL, self.sources)
        device.library.fabric_choose(number)
        device.close()
        device = RtlDevice(SMALL, self.sources)
        try:
            for k, (words, expected) in enumerate(self.programs):
                if found := differences(device.run(words, timeout=2), expected):
                    return f"program {k}: {found}"
            for case in self.refusals:
                result = device.run_streams(case.words0, case.words1, timeout=2)
                if (result.error, result.position) != (case.error, case.position):
                    return f"{case.name}: {result.error.name} at {result.position}"
        except DeviceError as e:
            return str(e)
        return None


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> Breakable:
    return Breakable(tmp_path_factory.mktemp("breakable"))


def test_nothing_is_found_in_unbroken_rtl(breakable: Breakable) -> None:
    assert breakable.first_difference(0) is None


@pytest.mark.parametrize("number", range(1, len(MUTANTS) + 1), ids=[f"{m.file}: {m.new}" for m in MUTANTS])
def test_one_flipped_operator_is_found(breakable: Breakable, number: int) -> None:
    found = breakable.first_difference(number)
    assert found is not None, f"nothing tells {MUTANTS[number - 1]} from correct RTL"


def test_a_broken_handshake_is_told_by_an_assertion(breakable: Breakable) -> None:
    number = next(n for n, mutant in enumerate(MUTANTS, start=1) if "!full_i" in mutant.old)
    assert "an assertion in the SystemVerilog failed" in str(breakable.first_difference(number))


def test_a_build_below_a_folder_with_a_blank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "my fabric"
    try:
        rtl.verilator_environment()
    except DeviceError as e:
        pytest.skip(str(e))
    # the ports alone: what is built does not matter, and builds in seconds
    header = re.search(r"^module\b.*?^\);", render(SMALL)["rtl/fabric.sv"], re.MULTILINE | re.DOTALL)
    assert header is not None
    for name in ("fabric_pkg.sv", "engine_pkg.sv"):
        (place / "rtl").mkdir(parents=True, exist_ok=True)
        (place / "rtl" / name).write_text(render(SMALL)[f"rtl/{name}"], encoding="utf-8")
    (place / "rtl" / "fabric.sv").write_text(f"{header[0]}\nendmodule\n", encoding="utf-8")
    (place / "tool").symlink_to(rtl.verilator_root().parent)
    (place / "sim").symlink_to(rtl.HARNESS.parent)
    found = rtl.verilator_root().name
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.setattr(rtl, "verilator_root", lambda: place / "tool" / found)
    library = rtl.build_rtl(SMALL, rtl_sources(place), harness=place / "sim" / rtl.HARNESS.name)
    assert library.is_relative_to(place) and library.is_file()
    assert [p.name for p in library.parent.iterdir()] == [library.name]
