"""The epilogue against a second reading, element by element in Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host import epilogue
from host.epilogue import Entries, Epilogue, EpilogueError
from host.numerics import fmix32
from hw.contract import GF_POLYNOMIAL
from hw.plan.conv_packets import power_of_two

WIDTHS = {"m": 18, "o": 18, "n": 18, "l": 18, "b": 48, "c": 40}


def signed(bits: int) -> st.SearchStrategy[int]:
    return st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def shifted(t: int, s: int) -> int:
    return (t + (2 ** (s - 1) if s else 0)) // 2**s


def clamped(t: int, bits: int, is_signed: bool = True) -> int:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    return min(max(t, low), high)


def field_product(a: int, b: int) -> int:
    """``a * b`` in GF(2**16)."""
    result = 0
    while b:
        if b & 1:
            result ^= a
        a, b = a << 1 ^ (a >> 15) * GF_POLYNOMIAL, b >> 1
    return result


def alpha_times(a: int) -> int:
    a *= 2
    return a ^ 0x1100B if a >> 16 else a


@st.composite
def cases(draw: st.DrawFn) -> dict[str, object]:
    entry = {name: draw(signed(bits)) for name, bits in WIDTHS.items()}
    if draw(st.booleans()):  # small ones, whose results do not all saturate
        entry = {name: draw(signed(9)) for name in WIDTHS}
    form = Epilogue(
        shift=draw(st.integers(0, 47)), value_shift=draw(st.integers(0, 47)), relu=draw(st.booleans()),
        out_bits=draw(st.integers(1, 16)), out_shift=draw(st.integers(0, 16)), out_signed=draw(st.booleans()),
        keep_bits=draw(st.integers(0, 8)), keep_shift=draw(st.integers(0, 16)), keep_mask=draw(st.booleans()),
        wide_bits=draw(st.integers(0, 8)), wide_shift=draw(st.integers(0, 16)), stochastic=draw(st.booleans()),
    )  # fmt: skip
    return {
        "acc": draw(signed(32)), "entry": entry, "form": form, "k": draw(st.none() | st.integers(-128, 255)),
        "q": draw(st.none() | signed(8)), "mask": draw(st.none() | st.booleans()), "r": draw(st.integers(0, 0xFFFF)),
    }  # fmt: skip


def expected(acc: int, entry: dict[str, int], form: Epilogue, k, q, mask, r: int) -> tuple[object, ...]:  # type: ignore[no-untyped-def]
    p = acc * entry["m"] + entry["b"] + 512 * (q or 0) * entry["o"]
    exact = shifted(0 if mask is False else p, form.shift)
    x = clamped(exact, 18)
    w = clamped(shifted(x * entry["n"] + entry["c"] + 512 * (k or 0) * entry["l"], form.value_shift), 18)
    w = max(w, 0) if form.relu else w

    def rounded(t: int, s: int, word: int) -> int:
        return (t + (word >> (16 - s))) // 2**s if form.stochastic else shifted(t, s)

    a = rounded(w, form.out_shift, r)
    code = clamped(a, form.out_bits, form.out_signed)
    backwards = int(f"{r:016b}"[::-1], 2)
    kept = clamped(rounded(x, form.keep_shift, backwards), form.keep_bits) if form.keep_bits else None
    wide = clamped(shifted(w, form.wide_shift), form.wide_bits, form.out_signed) if form.wide_bits else None
    return code, kept, w > 0 if form.keep_mask else None, wide, w, (x != exact) + (a != code)


@settings(max_examples=300, deadline=None)
@given(cases())
def test_epilogue_is_the_formula(case: dict[str, object]) -> None:
    def array(value: object, kind: type) -> np.ndarray | None:
        return None if value is None else np.array([[[[value]]]], kind)

    form, entry = case["form"], case["entry"]
    assert isinstance(form, Epilogue) and isinstance(entry, dict)
    out = epilogue.finish(
        np.array([[[[case["acc"]]]]]), Entries.of(1, **entry).along(1, 4), form,
        side=array(case["k"], np.int64), mask=array(case["mask"], bool), added=array(case["q"], np.int64),
        random=array(case["r"], np.uint32) if form.stochastic else None,
    )  # fmt: skip
    got = [None if each is None else int(np.asarray(each).ravel()[0]) for each in out]
    want = expected(case["acc"], entry, form, case["k"], case["q"], case["mask"], case["r"])  # type: ignore[arg-type]
    assert got == [None if each is None else int(each) for each in want]  # type: ignore[call-overload]


@given(st.lists(st.fixed_dictionaries({name: signed(bits) for name, bits in WIDTHS.items()}), min_size=1, max_size=5))
def test_entries_pass_through_their_words(rows: list[dict[str, int]]) -> None:
    entries = Entries.of(len(rows), **{name: [row[name] for row in rows] for name in WIDTHS})
    words = entries.words()
    for row, word in zip(rows, words, strict=True):
        fields = [int(word[0]) >> 18 * i & 0x3FFFF for i in range(3)]
        assert fields == [row[name] & 0x3FFFF for name in "mon"]
        assert int(word[2]) >> 40 & 0x3FFFF == row["l"] & 0x3FFFF
    words[:, 3] = 99  # ignored, as are the high bits of words 1 and 2
    words[:, 1] |= np.uint64(0xFFFF << 48)
    words[:, 2] |= np.uint64(0x3F << 58)
    words[:, 0] |= np.uint64(0x3FF << 54)
    again = Entries.from_words(words)
    assert all((getattr(again, name) == getattr(entries, name)).all() for name in WIDTHS)


@pytest.mark.parametrize("name", WIDTHS)
def test_entries_refuse_what_their_field_does_not_hold(name: str) -> None:
    Entries.of(2, **{name: [0, (1 << (WIDTHS[name] - 1)) - 1]})
    with pytest.raises(EpilogueError, match=f"entries {name} .*{WIDTHS[name]} signed bits"):
        Entries.of(2, **{name: [0, 1 << (WIDTHS[name] - 1)]})


def test_stochastic_rounding_needs_its_numbers() -> None:
    with pytest.raises(EpilogueError):
        epilogue.finish(np.zeros((1, 1, 1, 1), np.int64), Entries.of(1).along(1, 4), Epilogue(stochastic=True))


def test_moments_are_those_of_every_channel() -> None:
    rng = np.random.default_rng(1)
    x, k = rng.integers(-(1 << 17), 1 << 17, (3, 4, 5, 6)), rng.integers(-128, 256, (3, 4, 5, 6))
    found, crossed = epilogue.moments(x), epilogue.moments(x, k)
    for c in range(4):
        values, codes = [int(v) for v in x[:, c].ravel()], [int(v) for v in k[:, c].ravel()]
        assert [int(each[c]) for each in found] == [sum(values), sum(v * v for v in values), min(values), max(values)]
        assert int(crossed.products[c]) == sum(v * f for v, f in zip(values, codes, strict=True))


def test_random_numbers_are_those_of_the_definition() -> None:
    shape, key = (2, 3, 4, 37), 0xDEADBEEF
    found = epilogue.random_numbers(shape, key)
    for n, c, y, x in np.ndindex(*shape):
        h = fmix32(((n * 3 + c) * 4 + y) ^ key)
        high = h >> 16
        for _ in range(x):
            high = alpha_times(high)
        assert int(found[n, c, y, x]) == (h & 0xFFFF) ^ high


@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF), st.integers(1, 1000))
def test_a_segment_goes_on_where_the_one_before_ended(index: int, key: int, cut: int) -> None:
    rows = np.array([index], np.uint32)
    whole = epilogue.random_rows(rows, key, cut + 8)
    assert (whole[:, cut:] == epilogue.random_rows(rows, key, 8, power_of_two(cut))).all()


def test_powers_of_alpha_are_all_numbers_but_zero() -> None:
    seen, power = set(), 1
    while power not in seen:
        seen.add(power)
        power = alpha_times(power)
    assert len(seen) == 0xFFFF


@given(st.integers(1, 0xFFFF), st.lists(st.integers(0, 31), min_size=2, max_size=2, unique=True))
def test_random_numbers_of_two_pixels_of_a_segment_are_independent(factor: int, pixels: list[int]) -> None:
    """They are 32 independent linear forms of the hash's 32 bits, so all pairs of numbers are equally likely."""

    def numbers(h: int) -> int:
        multiple = field_product(factor, h >> 16)
        words = [h & 0xFFFF ^ field_product(multiple, power_of_two(x)) for x in pixels]
        return words[0] | words[1] << 16

    rows = [numbers(1 << bit) for bit in range(32)]
    rank = 0
    while rows:
        row = rows.pop()
        if row:
            rank += 1
            low = row & -row
            rows = [other ^ row if other & low else other for other in rows]
    assert rank == 32


@settings(max_examples=100, deadline=None)
@given(signed(18), st.integers(0, 16), st.integers(1, 0xFFFF), st.integers(0, 31))
def test_stochastic_rounding_of_both_sections_is_unbiased(value: int, shift: int, factor: int, pixel: int) -> None:
    """The mean of a code over all low halves of a hash is exactly its value: neither section favours a side."""
    offset = field_product(field_product(factor, 0x1234), power_of_two(pixel))
    random = np.arange(1 << 16, dtype=np.uint32) ^ np.uint32(offset)
    form = Epilogue(out_bits=16, out_shift=shift, out_signed=True, keep_bits=8, keep_shift=shift, stochastic=True)
    value = max(min(value, 126 << shift), -126 << shift)  # codes of both sections hold it
    acc = np.full((1, 1, 1, random.size), value)
    entries = Entries.of(1, m=1, n=1).along(1, 4)
    out = epilogue.finish(acc, entries, form, random=random.reshape(acc.shape))
    assert out.k is not None
    assert out.saturated == 0
    for codes in (out.a, out.k):
        assert int(codes.sum()) << shift == value << 16


def test_reverse_bits_is_its_own_inverse() -> None:
    words = np.arange(1 << 16, dtype=np.uint32)
    assert (epilogue.reverse_bits(epilogue.reverse_bits(words)) == words).all()
    assert int(epilogue.reverse_bits(np.array([1], np.uint32))[0]) == 1 << 15
