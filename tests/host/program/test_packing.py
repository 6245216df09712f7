"""Packing round trips, bit positions as documented, and the quantizer against exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from host import numerics
from host.arrays import Codes
from host.epilogue import Entries, Moments
from host.program import packing
from host.program.builder import PacketError, ProgramBuilder
from hw.contract import Error, Flag, Opcode, OutputFormat, Target
from hw.design import load_design
from hw.packet import flags_of, load_tensor, product, read_entries

DESIGNS = [load_design("sim-small"), load_design("zc706")]
designs = st.sampled_from(DESIGNS)
seeds = st.integers(0, 2**32 - 1)


def codes(seed: int, shape: tuple[int, ...], bits: int, signed: bool) -> Codes:
    low, high = numerics.code_limits(bits, signed)
    return np.random.default_rng(seed).integers(low, high + 1, size=shape)


@settings(max_examples=60, deadline=None)
@given(designs, st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(1, 16), st.booleans(), seeds)
def test_rows_round_trip(design, images, rows, groups, bits, signed, seed) -> None:  # type: ignore[no-untyped-def]
    x = codes(seed, (images, rows, groups, design.lanes, design.channels), bits, signed)
    words = packing.pack_rows(x, bits)
    assert words.size == images * rows * groups * bits * design.row_words
    assert np.array_equal(packing.unpack_rows(words, design, images, rows, groups, bits, signed), x)


@settings(max_examples=40, deadline=None)
@given(designs, st.integers(1, 3), st.integers(1, 3), st.integers(1, 16), st.booleans(), seeds)
def test_weights_round_trip_whatever_the_padding(design, out_groups, groups, bits, signed, seed) -> None:  # type: ignore[no-untyped-def]
    c = design.channels
    x = codes(seed, (out_groups, groups, c, 9, c), bits, signed)
    words = packing.pack_weights(x, bits, design)
    used = c * design.dot_bits
    if design.weight_words * 64 > used:
        words[:, used // 64 :] |= ~np.uint64((1 << used % 64) - 1) if used % 64 else ~np.uint64(0)
    assert np.array_equal(packing.unpack_weights(words, design, out_groups, groups, bits, signed), x)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 16), st.booleans(), st.integers(0, 2**16 - 1), seeds)
def test_masked_planes_count_as_zero(bits, signed, mask, seed) -> None:  # type: ignore[no-untyped-def]
    x = codes(seed, (3, 128), bits, signed)
    mask &= (1 << bits) - 1
    kept = x & mask
    expected = np.where(kept >> (bits - 1) & 1, kept - (1 << bits), kept) if signed else kept
    assert np.array_equal(packing.unpack_planes(packing.pack_planes(x, bits), bits, signed, mask), expected)


def test_bits_lie_where_the_specification_says() -> None:
    design = DESIGNS[0]
    c, lanes = design.channels, design.lanes
    x = np.zeros((1, 1, 1, lanes, c), dtype=np.int64)
    x[0, 0, 0, 9, 3] = 0b100
    words = packing.pack_rows(x, 3).reshape(3, design.row_words)
    bit = 9 * c + 3
    assert int(words[2, bit // 64]) == 1 << bit % 64
    assert np.count_nonzero(words) == 1
    w = np.zeros((1, 1, c, 9, c), dtype=np.int64)
    w[0, 0, 5, 7, 2] = 1
    flat = packing.pack_weights(w, 1, design)[0]
    bit = (5 * 9 + 7) * c + 2
    assert int(flat[bit // 64]) == 1 << bit % 64


@given(hnp.arrays(np.int64, st.integers(1, 20).map(lambda n: 2 * n), elements=st.integers(-(2**31), 2**31 - 1)))
def test_integers_round_trip(values) -> None:  # type: ignore[no-untyped-def]
    for wide in (False, True):
        words = packing.pack_integers(values, wide)
        assert words.size == values.size // (1 if wide else 2)
        assert np.array_equal(packing.unpack_integers(words, wide), values)


@settings(max_examples=60, deadline=None)
@given(designs, st.integers(1, 16), st.integers(0, 8), st.integers(0, 8), st.booleans(), st.booleans(), seeds)
def test_sections_round_trip_and_what_is_kept_loads_as_a_side_operand(  # type: ignore[no-untyped-def]
    design, out_bits, keep_bits, wide_bits, masked, signed, seed
) -> None:
    flags = flags_of({Flag.OUT_SIGNED: signed, Flag.KEEP_MASK: masked, Flag.RECORDS: seed % 2 == 1})
    packet = product(
        Opcode.CONV, images=2, rows=3, groups=1, out_groups=2, a_bits=1, b_bits=1, format=OutputFormat.CODES,
        out_bits=out_bits, keep_bits=keep_bits, wide_bits=min(wide_bits, 24 - out_bits - keep_bits), flags=flags,
        valid=seed % 2,
    ) if out_bits + keep_bits <= 24 else product(
        Opcode.CONV, images=1, rows=1, groups=1, out_groups=1, a_bits=1, b_bits=1, format=OutputFormat.CODES, out_bits=1
    )  # fmt: skip
    shape = packet.images, packet.rows, packet.out_groups, design.lanes, design.channels
    channels = packet.out_groups * design.channels
    rng = np.random.default_rng(seed)
    sections = packing.Sections(
        codes(seed, shape, packet.out_bits, signed),
        keep=codes(seed + 1, shape, packet.keep_bits, True) if packet.keep_bits else None,
        mask=rng.random(shape) < 0.5 if packet.has(Flag.KEEP_MASK) else None,
        wide=codes(seed + 2, shape, packet.wide_bits, signed) if packet.wide_bits else None,
        moments=Moments(*rng.integers(-(1 << 17), 1 << 17, size=(4, channels))) if packet.has_moments else None,
    )
    words = packing.pack_sections(sections, packet)
    assert words.size == packet.result_words(design)
    back = packing.unpack_sections(words, design, packet)
    for name, wanted in sections._asdict().items():
        got = getattr(back, name)
        assert (got is None) == (wanted is None), name
        assert wanted is None or np.array_equal(got, wanted), name

    planes = packet.keep_bits + packet.has(Flag.KEEP_MASK)
    side = packing.split_sections(words, design, packet).side
    if not planes:
        assert side.size == 0
        return
    load = load_tensor(design, Target.G, packet.images, packet.rows, packet.out_groups, planes)
    assert side.size == load.payload_words
    loaded = packing.unpack_rows(side, design, packet.images, packet.rows, packet.out_groups, planes, False)
    if sections.keep is not None:
        assert np.array_equal(loaded & (1 << packet.keep_bits) - 1, sections.keep & (1 << packet.keep_bits) - 1)
    if sections.mask is not None:
        assert np.array_equal(loaded >> packet.keep_bits, sections.mask)


def test_sections_of_another_packet_are_refused() -> None:
    packet = product(
        Opcode.CONV, images=1, rows=2, groups=1, out_groups=1, a_bits=1, b_bits=1, format=OutputFormat.CODES, out_bits=3
    )
    words = np.zeros(packet.result_words(DESIGNS[0]) + 2, dtype=np.uint64)
    with pytest.raises(ValueError, match=r"sends 12 words, not 14"):
        packing.split_sections(words, DESIGNS[0], packet)


limits = [(1 << bits - 1) for bits in (39, 57, 18, 18)]


@given(st.lists(st.tuples(*(st.integers(-limit, limit - 1) for limit in limits)), min_size=1))
def test_moments_round_trip(channels) -> None:  # type: ignore[no-untyped-def]
    moments = Moments(*np.array(channels, dtype=np.int64).T)
    words = packing.pack_moments(moments)
    assert words.size == 3 * len(channels)
    for got, wanted in zip(packing.unpack_moments(words), moments, strict=True):
        assert np.array_equal(got, wanted)


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
WORD = st.one_of(FINITE, st.sampled_from([0.0, -0.0, 1e-40, -1e-40, 2.0**-126, 3.4e38, -3.4e38, 0.5, 1.5, 2.5]))


def _flushed(x: np.float32) -> np.float32:
    return np.float32(0) if abs(x) < np.float32(2.0**-126) else x


def quantize_one(
    x: np.float32, z: np.float32, r: np.float32, bits: int, signed: bool, u: float | None
) -> tuple[int, bool]:
    """Code of one value and whether it was clamped, one scalar operation at a time."""
    value, zero, scale = (_flushed(n) for n in (x, z, r))
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    with np.errstate(all="ignore"):
        t = np.float32(0) if scale == 0 else _flushed(np.float32(_flushed(np.float32(value - zero)) * scale))
    if np.isinf(t):
        return (high if t > 0 else low), True
    whole = math.floor(Fraction(float(t)) + Fraction(u or 0))  # the sum is exact
    if u is None:
        rest = float(t) - whole
        whole += rest > 0.5 or (rest == 0.5 and whole % 2 == 1)
    return min(max(whole, low), high), not low <= whole <= high


@settings(max_examples=300, deadline=None)
@given(st.lists(WORD, min_size=1, max_size=8), WORD, WORD, st.integers(1, 16), st.booleans(), st.booleans(), seeds)
def test_quantizer_equals_scalar_arithmetic(xs, z, r, bits, signed, stochastic, seed) -> None:  # type: ignore[no-untyped-def]
    x = np.array(xs, dtype=np.float32)
    zero, scale = np.float32(z), np.float32(r)
    indices = np.random.default_rng(seed).integers(0, 1 << 32, size=x.size, dtype=np.uint32)
    got, clamped = numerics.quantize(x, zero, scale, bits, signed, seed if stochastic else None, indices)
    u = [int(h >> np.uint32(8)) / 2**24 for h in numerics.fmix32(indices ^ np.uint32(seed))]
    want = [quantize_one(v, zero, scale, bits, signed, u[i] if stochastic else None) for i, v in enumerate(x)]
    assert got.tolist() == [code for code, _ in want]
    assert clamped == sum(flag for _, flag in want)


def test_hash_is_the_known_finalizer() -> None:
    # published test value of the 32-bit finalizer: 1 -> 0x514E28B7, 0 -> 0
    assert numerics.fmix32(np.array([0, 1], dtype=np.uint32)).tolist() == [0, 0x514E28B7]


def test_builder_refuses_before_anything_is_sent() -> None:
    design = DESIGNS[0]
    builder = ProgramBuilder(design)
    x = np.zeros((1, 2, 1, design.lanes, design.channels), dtype=np.int64)
    builder.load_packed(Target.A, x, 3)
    with pytest.raises(PacketError, match=r"packet 1 \(LOAD\).*buffer A has") as caught:
        builder.load_packed(Target.A, x, 3, base=design.depth_a - 1)
    assert caught.value.error is Error.OUT_OF_BUFFER
    with pytest.raises(ValueError, match=r"span 0\.\.9, outside 0\.\.7 of 3 unsigned bits"):
        builder.load_packed(Target.A, x + np.arange(design.channels) // 7 * 9, 3)
    with pytest.raises(PacketError, match="OVERFLOW"):
        builder.add(product(Opcode.CONV, images=1, rows=1, groups=1, out_groups=1, a_bits=16, b_bits=16))
    with pytest.raises(ValueError, match="should be"):
        builder.load_weights(np.zeros((1, 1, 4, 9, 4), dtype=np.int64), 1)
    with pytest.raises(PacketError, match=r"buffer E has"):
        builder.load_epilogue(Entries.of(design.depth_epilogue + 1, m=1))
    program = builder.end()
    assert program.packets == 2
    assert program.words().size % 2 == 0
    with pytest.raises(ValueError, match="END packet already"):
        builder.add(read_entries(1))
