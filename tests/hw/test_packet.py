"""A packet as an object: words and fields, and sizes that are told here by counting."""

from __future__ import annotations

import ast
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw import contract, packet
from hw.contract import FIELD, PACKETS, Error, Flag, Opcode, OutputFormat, Target
from hw.design import load_design
from hw.packet import END, Packet, check_header, load_entries, load_tensor, product, read_entries
from tests.support.malformed import good_packets, malformed_programs

DESIGN = load_design("sim-small")
GOOD = {name: Packet(payload_words=payload.size, **f) for name, (f, payload) in good_packets(DESIGN).items()}
NAMES = [f.name for f in fields(Packet)]

any_packet = st.builds(Packet, **{name: st.integers(0, (1 << FIELD[name].width) - 1) for name in NAMES})


def test_a_packet_has_the_fields_of_the_header() -> None:
    assert {*NAMES, "magic", "version", "check"} == set(FIELD)


def test_no_bit_of_a_header_belongs_to_two_fields_and_all_others_are_refused() -> None:
    bits = [32 * f.half + f.lsb + i for f in contract.FIELDS for i in range(f.width)]
    assert len(set(bits)) == len(bits)
    for bit in set(range(64 * contract.HEADER_WORDS)) - set(bits):
        words = END.pack()
        words[bit // 64] ^= 1 << bit % 64
        words[-1] ^= 1 << 32 + bit % 32  # the checksum is the last half-word
        assert check_header(DESIGN, words)[0] is Error.BAD_FIELD


def test_the_board_needs_no_package_for_packets() -> None:
    for module in (packet, contract):
        tree = ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))
        named = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        named |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert all(name.split(".")[0] in {*sys.stdlib_module_names, "hw"} for name in named)


@given(any_packet)
def test_words_hold_the_packet(p: Packet) -> None:
    assert Packet.unpack(p.pack()) == p
    assert check_header(DESIGN, p.pack()) == p.check(DESIGN)


@pytest.mark.parametrize("name", GOOD)
def test_good_packets_are_good_and_of_a_kind_of_their_own(name: str) -> None:
    p = GOOD[name]
    assert p.check(DESIGN) == (Error.NONE, "")
    assert p.kind is not None
    assert p == p.sized(DESIGN)


def test_the_good_packets_have_every_kind_but_a_narrow_read() -> None:
    missing = {kind.name for kind in PACKETS.values()} - {p.kind.name for p in GOOD.values() if p.kind}
    assert missing == {"READ_INT32"}


@settings(max_examples=300)
@given(st.sampled_from(sorted(GOOD)), st.sampled_from(NAMES), st.data())
def test_a_field_that_a_kind_does_not_use_must_be_zero(name: str, field: str, data: st.DataObject) -> None:
    p = GOOD[name]
    kind = p.kind
    assert kind is not None
    used = {*kind.fields, "opcode", "payload_words", "target", "format", "flags"}
    used |= {name for flag, names in contract.FLAG_FIELDS.items() if p.has(flag) for name in names}
    if field in used:
        return
    value = data.draw(st.integers(1, (1 << FIELD[field].width) - 1))
    assert replace(p, **{field: value}).check(DESIGN)[0] is Error.BAD_FIELD


def test_every_refused_header_has_its_reason() -> None:
    for case in malformed_programs(DESIGN):
        if case.error <= Error.OVERFLOW and case.words0.size == case.words1.size:
            words = [int(w) for pair in zip(case.words0, case.words1, strict=True) for w in pair]
            at = 0
            for _ in range(case.position):
                at += contract.HEADER_WORDS + Packet.unpack(words[at : at + contract.HEADER_WORDS]).payload_words
            header = words[at : at + contract.HEADER_WORDS]
            error, reason = check_header(DESIGN, header)
            assert error is case.error and reason, case.name


small = st.integers(1, 4)
masks = st.integers(0, 15)


@given(small, small, masks, masks, small, small, small, st.booleans())
def test_steps_of_a_convolution_are_its_plane_pairs(
    a_bits: int, b_bits: int, a_planes: int, b_planes: int, groups: int, rows: int, out_groups: int, sums: bool
) -> None:
    a_planes, b_planes = a_planes % (1 << a_bits), b_planes % (1 << b_bits)
    p = product(
        Opcode.CONV, images=2, rows=rows, groups=groups, out_groups=out_groups, a_bits=a_bits, b_bits=b_bits,
        a_planes=a_planes, b_planes=b_planes, flags=Flag.A_SUM if sums else 0,
    )  # fmt: skip
    pairs = {
        (i, j)
        for i in range(a_bits)
        for j in range(b_bits)
        if a_planes >> i & 1 and (b_planes >> j & 1 or (sums and j == 0))
    }
    idle = set(range(a_bits + b_bits - 1)) - {i + j for i, j in pairs}
    tiles = 2 * rows * out_groups
    assert p.steps() == tiles * (len(pairs) * groups + len(idle))
    assert p.skipped() == tiles * groups * a_bits * b_bits - p.steps()


def test_ones_of_a_weight_gradient_are_tiles_of_one_bit() -> None:
    shape = {"images": 3, "rows": 9, "groups": 2, "out_groups": 2, "a_bits": 3, "b_bits": 2}
    plain = product(Opcode.WGRAD, **shape, taps=0b101)
    with_ones = replace(plain, flags=Flag.ONES)
    inner = 3 * 2  # images, blocks of eight rows
    assert plain.steps() == 2 * 2 * 2 * 3 * 2 * inner
    assert with_ones.steps() - plain.steps() == 2 * 2 * 2 * inner
    assert with_ones.entries(DESIGN) == 2 * 3 * 2 * (DESIGN.channels + 1)


def test_ranges_of_what_loads_write_and_products_read() -> None:
    both = load_tensor(DESIGN, Target.A | Target.G, 2, 9, 3, 4, 10, 20)
    size = 2 * 2 * 3 * 4
    assert both.ranges(DESIGN) == {"A": ((10, 10 + size),), "G": ((20, 20 + size),)}
    assert load_entries(DESIGN, Target.W, 7, 5).ranges(DESIGN) == {"W": ((5, 12),)}
    assert load_entries(DESIGN, Target.E, 7, 5).ranges(DESIGN) == {"E": ((5, 12),)}
    shape = {"images": 2, "rows": 2, "groups": 3, "out_groups": 2, "a_bits": 4, "b_bits": 5, "base_a": 1, "base_b": 2}
    conv = product(Opcode.CONV, **shape, base_epilogue=4, format=OutputFormat.CODES, out_bits=2)
    expected = {"A": ((1, 25),), "W": ((2, 32),), "E": ((4, 4 + 2 * DESIGN.channels),)}
    assert conv.ranges(DESIGN) == expected
    strided = replace(conv, format=OutputFormat.INT32, flags=Flag.STRIDE_2, rows=3)  # twelve virtual rows
    assert strided.ranges(DESIGN) == {"A": ((1, 49),), "W": ((2, 32),)}
    wgrad = product(Opcode.WGRAD, **shape, base_accumulator=3, taps=1)
    entries = 2 * 3 * (DESIGN.channels + 1)
    assert wgrad.ranges(DESIGN) == {"A": ((1, 25),), "G": ((2, 22),), "accumulator": ((3, 3 + entries),)}
    assert read_entries(6, 3).ranges(DESIGN) == {"accumulator": ((3, 9),)}
    assert END.ranges(DESIGN) == {}


@given(st.integers(0, 8), st.integers(0, 8), st.booleans(), st.booleans(), st.integers(1, 9))
def test_operands_of_an_epilogue_lie_in_buffer_g(
    side_bits: int, added_bits: int, masked: bool, moments: bool, rows: int
) -> None:
    shape = {"images": 3, "rows": rows, "groups": 2, "out_groups": 2, "a_bits": 2, "b_bits": 2}
    p = product(
        Opcode.CONV, **shape, format=OutputFormat.MOMENTS if moments else OutputFormat.CODES, out_bits=1, valid=1,
        flags=Flag.MASKED if masked else 0, side_bits=side_bits, added_bits=added_bits, base_side=5, base_added=40,
    )  # fmt: skip
    per_plane = 3 * -(-rows // 8) * 2
    wanted = [(5, 5 + per_plane * (side_bits + masked))] if side_bits + masked else []
    wanted += [(40, 40 + per_plane * added_bits)] if added_bits else []
    assert p.ranges(DESIGN).get("G", ()) == tuple(wanted)
    assert "G" not in replace(p, format=OutputFormat.INT32).ranges(DESIGN)


@given(st.integers(1, 16), st.integers(0, 8), st.integers(0, 8), st.booleans(), st.booleans(), st.integers(1, 2))
def test_results_of_codes_are_their_planes_and_then_the_moments(
    out_bits: int, keep_bits: int, wide_bits: int, mask: bool, records: bool, out_groups: int
) -> None:
    flags = (Flag.KEEP_MASK if mask else Flag(0)) | (Flag.RECORDS if records else Flag(0))
    p = product(
        Opcode.CONV, images=2, rows=3, groups=1, out_groups=out_groups, a_bits=1, b_bits=1, format=OutputFormat.CODES,
        out_bits=out_bits, keep_bits=keep_bits, wide_bits=wide_bits, flags=flags, valid=1 if records else 0,
    )  # fmt: skip
    planes = out_bits + keep_bits + mask + wide_bits
    moments = out_groups * DESIGN.channels * 3 if records else 0
    assert p.result_words(DESIGN) == 2 * 3 * out_groups * planes * DESIGN.row_words + moments
    assert p.result_words(DESIGN) % 2 == 0  # two output streams take as many words each
    assert p.check(DESIGN)[0] is (Error.BAD_BITS if planes > 25 else Error.NONE)


def test_sums_at_the_limit_of_their_format_are_allowed_and_beyond_are_not() -> None:
    longest = (1 << 31 - 12) // DESIGN.dot_bits
    conv = product(Opcode.CONV, images=1, rows=1, out_groups=1, a_bits=6, b_bits=6, groups=longest)
    assert not conv.overflows(DESIGN)
    longer = replace(conv, groups=longest + 1)
    assert longer.overflows(DESIGN)
    assert not replace(longer, format=OutputFormat.INT64).overflows(DESIGN)
    rows = (1 << 47 - 32) // DESIGN.lanes
    wgrad = product(Opcode.WGRAD, images=1, rows=rows, groups=1, out_groups=1, a_bits=16, b_bits=16)
    assert not wgrad.overflows(DESIGN)
    assert replace(wgrad, rows=rows + 1).overflows(DESIGN)
