"""Quantizers against formulations of their own: Python integers, NumPy scalars, the published formula."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from host import grids, numerics
from host.operands import Grid
from sw_model.quantize import affine as Q
from sw_model.quantize import kernels

TINY = np.float32(2.0**-126)


def flushed(value: np.float32) -> np.float32:
    return np.float32(0) if abs(value) < TINY else np.float32(value)


def word(index: int, key: int) -> float:
    """The published finalizer of MurmurHash3, step by step on Python integers."""
    h = (index ^ key) % 2**32
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h = (h ^ (h >> shift)) * factor % 2**32
    return (h >> 8) / 2**24


def scalar_codes(x: np.ndarray, bits: int, key: int | None) -> list[int]:
    """The contract element by element, in NumPy scalars."""
    clean = [flushed(v) for v in x.ravel()]
    low = min(clean)
    span = flushed(np.float32(max(clean) - low))
    n = 2**bits - 1
    scale = max(np.float32(span / np.float32(n)), TINY)
    reciprocal = np.float32(np.float32(1) / scale)
    codes = []
    for i, v in enumerate(clean):
        t = flushed(np.float32(flushed(np.float32(v - low)) * reciprocal))
        if key is None:
            q = round(float(t))  # Python rounds halves to even, too
        else:
            q = math.floor(float(t) + word(i, key))  # in float64, which does not round the sum up to an integer
        codes.append(min(max(q, 0), n))
    return codes


floats = hnp.arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.one_of(
        st.floats(-100, 100, width=32),
        st.floats(-(2.0**-122), 2.0**-122, width=32),
        st.sampled_from([0.0, -0.0, 1e-40, -1e-45, 1e30, -1e30]).map(np.float32),
    ),
)


@settings(max_examples=300, deadline=None)
@given(floats, st.integers(1, 16), st.one_of(st.none(), st.integers(0, 2**32 - 1)))
def test_codes_equal_the_contract_element_by_element(x: np.ndarray, bits: int, key: int | None) -> None:
    tensor = torch.from_numpy(x)
    codes = Q.quantize(tensor, Q.affine_grid(tensor, bits, key=key))
    assert codes.tolist() == scalar_codes(x, bits, key)


@settings(max_examples=200, deadline=None)
@given(floats, st.integers(1, 16), st.one_of(st.none(), st.integers(0, 2**32 - 1)), st.integers(1, 4))
def test_numpy_has_the_same_flush_ranges_grids_and_codes(x: np.ndarray, bits: int, key: int | None, rows: int) -> None:
    x = np.resize(x, (rows, x.size))
    tensor = torch.from_numpy(x)
    assert np.array_equal(numerics.flush(x), Q.flush(tensor).numpy())
    for axis in (None, 0, 1):
        theirs = [part.numpy() for part in Q.extremes(tensor, axis)]
        ours = grids.extremes(x, axis)
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
        grid, other = grids.grid_from_range(*ours, bits, key), Q.grid_from_range(*Q.extremes(tensor, axis), bits, key=key)
        with kernels.portable():
            third = Q.grid_from_range(*Q.extremes(tensor, axis), bits, key=key)
        for found in (other, third):
            assert (found.bits, found.limits, found.key) == (grid.bits, grid.limits, grid.key)
            for name in ("scale", "zero", "reciprocal"):
                assert np.array_equal(getattr(grid, name), np.asarray(getattr(found, name))), name
        if axis is None:
            index = np.arange(x.size, dtype=np.uint32).reshape(x.shape)
            codes, _ = numerics.quantize(x, grid.zero, grid.reciprocal, bits, False, key, None if key is None else index)
            assert np.array_equal(codes, Q.quantize(tensor, other).numpy())
            assert np.array_equal(codes, Q.quantize(tensor, third).numpy())


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8, 10])
def test_codes_equal_the_published_division_almost_everywhere(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    different = total = 0
    for trial in range(8):
        x = torch.randn(200_000, generator=generator) * 10.0 ** (trial - 4)
        grid = Q.affine_grid(x, bits)
        published = torch.round(((x - float(grid.zero)) / float(grid.scale)).clamp(0, 2**bits - 1))
        gap = (Q.quantize(x, grid) - published).abs()
        assert gap.max() <= 1
        different, total = different + int((gap > 0).sum()), total + x.numel()
    assert different <= 1e-5 * total


def test_wide_codes_differ_from_the_published_division_by_at_most_one() -> None:
    # At 16 bits float32 itself resolves t to 2**-8 only, so the reciprocal's last bit shows more often.
    x = torch.randn(500_000, generator=torch.Generator().manual_seed(0))
    grid = Q.affine_grid(x, 16)
    published = torch.round((x - float(grid.zero)) / float(grid.scale))
    gap = (Q.quantize(x, grid) - published).abs()
    assert gap.max() <= 1
    assert (gap > 0).float().mean() < 1e-3


@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_random_words_are_those_of_the_hash(key: int, count: int) -> None:
    assert Q.random_units(count, key).tolist() == [word(i, key) for i in range(count)]


def test_stochastic_rounding_is_unbiased() -> None:
    x = torch.rand(64, generator=torch.Generator().manual_seed(3))
    rounds = 4000
    total = torch.zeros(64, dtype=torch.float64)
    grid = Q.affine_grid(x, 3)
    for i in range(rounds):
        noisy = Grid(grid.bits, grid.signed, grid.scale, grid.zero, Q.derive_key(7, i))
        total += Q.fake_quantize(x, noisy).double()
    # One rounding's error is at most s/2 in standard deviation; 64 means stay within 4.5 of theirs.
    assert ((total / rounds - x).abs() < 4.5 * float(grid.scale) / 2 / rounds**0.5).all()


def key_of(units: int) -> int:
    """The key under which the random number of element 0 is ``units * 2**-24``: the finalizer backwards."""
    h = units << 8
    h ^= h >> 16
    h = h * pow(0xC2B2AE35, -1, 1 << 32) % 2**32
    h ^= h >> 13 ^ h >> 26
    h = h * pow(0x85EBCA6B, -1, 1 << 32) % 2**32
    h ^= h >> 16
    assert word(0, h) == units / 2**24
    return h


LARGEST = key_of(2**24 - 1)  #: u of element 0 is so close to one that float32 rounds its sum with a wide code up


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 16), st.integers(-60, 60), st.one_of(st.just(LARGEST), st.integers(0, 2**32 - 1)), st.data())
def test_values_on_the_grid_stay_whatever_the_random_number(
    bits: int, exponent: int, key: int, data: st.DataObject
) -> None:
    top = 2**bits - 1
    some = data.draw(st.lists(st.integers(0, top), max_size=20))
    codes = torch.tensor([top - 1, top, 0, *some], dtype=torch.float32)
    x = codes * 2.0**exponent
    grid = Q.affine_grid(x, bits, key=key)
    assert torch.equal(Q.quantize(x, grid), codes)
    assert torch.equal(Q.affine_values(x, bits, key=key), x)


@settings(max_examples=300, deadline=None)
@given(st.floats(0, 65534, width=32), st.booleans())
@example(50000 + 2**-8, False)
@example(2.0**-24, False)
@example(2.0**-30, False)
@example(2.0**15 - 2.0**-24, True)
@example(2.0**15 - 2.0**-30, True)
def test_a_value_goes_up_with_the_probability_of_its_fraction(above: float, signed: bool) -> None:
    """Exactly: for the numbers u from one minus the fraction on, and for no smaller one; on every path alike."""
    t = np.float32(above - 2.0**15) if signed else np.float32(above)
    whole = math.floor(t)
    fraction = math.floor((float(t) - whole) * 2**24)  # cut to the steps of u

    def code(units: int) -> int:
        grid = Grid(16, signed, np.float32(1), np.float32(0), key_of(units))
        value = np.array([t])
        found = Q.quantize(torch.from_numpy(value), grid)
        index = np.zeros(1, np.uint32)
        assert numerics.quantize(value, grid.zero, grid.scale, 16, signed, grid.key, index)[0] == found.numpy()
        assert torch.equal(Q.fake_quantize(torch.from_numpy(value), grid), found)
        return int(found)

    assert code(2**24 - 1 - fraction) == whole
    if fraction:
        assert code(2**24 - fraction) == whole + 1


@pytest.mark.parametrize("t", [49999.0, 50000.5, 32768 - 2**-9, 32768 + 2**-8, 65533 + 2**-8])
def test_wide_codes_are_unbiased(t: float) -> None:
    count = 1 << 20
    x = torch.full((count,), t)
    codes = Q.fake_quantize(x, Grid(16, False, np.float32(1), np.float32(0), 3)).double()
    part = t - math.floor(t)
    assert abs(float((codes - t).mean())) <= 4 * math.sqrt(part * (1 - part) / count)


def test_subnormal_values_are_zero_before_the_random_number_too() -> None:
    grid = Grid(8, True, np.float32(2), np.float32(0), key_of(0))
    assert float(Q.quantize(torch.tensor([-(2.0**-126)]), grid)) == 0  # times a half: subnormal, and u = 0


def test_keys_differ_with_every_counter() -> None:
    keys = {Q.derive_key(a, b, c) for a in range(12) for b in range(12) for c in range(12)}
    assert len(keys) == 12**3
    assert Q.derive_key(1, 2**33) != Q.derive_key(1, 0)


@pytest.mark.parametrize("axis", [0, 1])
def test_per_channel_equals_channel_by_channel(axis: int) -> None:
    w = torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    codes = Q.quantize(w, Q.affine_grid(w, 4, axis=axis), axis)
    for c in range(w.shape[axis]):
        part = w.select(axis, c)
        assert torch.equal(codes.select(axis, c), Q.quantize(part, Q.affine_grid(part, 4)))


@settings(deadline=None)
@given(floats, st.integers(1, 8))
def test_values_lie_within_half_a_step(x: np.ndarray, bits: int) -> None:
    tensor = torch.from_numpy(x)
    grid = Q.affine_grid(tensor, bits)
    error = (Q.fake_quantize(tensor, grid) - tensor).abs()
    assert (error <= 0.5001 * float(grid.scale) + 1e-6 * tensor.abs().max() + 2.0**-126).all()


def test_constant_tensor_gets_code_zero_and_keeps_its_value() -> None:
    for value in (0.0, -3.5, 1e-40):
        x = torch.full((3, 4), value)
        for key in (None, 5):
            grid = Q.affine_grid(x, 4, key=key)
            assert not Q.quantize(x, grid).any()
            assert torch.equal(Q.fake_quantize(x, grid), Q.flush(x))


def test_paper_floor_cuts_small_gradients() -> None:
    x = torch.linspace(0, 1e-7, 100)
    assert Q.quantize(x, Q.affine_grid(x, 8, mode="paper")).max() == 10
    assert Q.quantize(x, Q.affine_grid(x, 8)).max() == 255


def test_out_of_range_values_clamp() -> None:
    grid = Q.grid_from_range(torch.tensor(0.0), torch.tensor(1.0), 3)
    assert Q.quantize(torch.tensor([-5.0, 0.6, 1e38]), grid).tolist() == [0, 4, 7]


@pytest.mark.parametrize(
    ("x", "bits", "error", "text"),
    [
        (torch.tensor([1.0, float("nan")]), 4, ValueError, "NaN"),
        (torch.tensor([1.0, float("inf")]), 4, ValueError, "infinity"),
        (torch.tensor([3e38, -3e38]), 4, ValueError, "range"),
        (torch.tensor([3e38, 0.0]), 1, ValueError, "too large"),
        (torch.empty(0, 3), 4, ValueError, "empty"),
        (torch.ones(3, dtype=torch.float64), 4, TypeError, "float32"),
        (torch.ones(3), 17, ValueError, "17 bits"),
        (torch.ones(3), 0, ValueError, "0 bits"),
    ],
)
def test_unusable_input_is_refused(x: torch.Tensor, bits: int, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Q.affine_grid(x, bits)


@settings(max_examples=200, deadline=None)
@given(floats, st.integers(1, 16), st.one_of(st.none(), st.integers(0, 2**32 - 1)))
def test_fused_kernels_give_the_same_values(x: np.ndarray, bits: int, key: int | None) -> None:
    tensor = torch.from_numpy(x)
    grid = Q.affine_grid(tensor, bits, key=key)
    wanted = Q.dequantize(Q.quantize(tensor, grid), grid)
    assert torch.equal(Q.fake_quantize(tensor, grid), wanted)
    if key is None:
        values, kept = Q.quantize_and_keep(tensor, grid)
        assert torch.equal(values, wanted) and torch.equal(Q.kept_values(kept, grid), wanted)


@pytest.mark.skipif(Q.kernels.library() is None, reason="no C++ compiler")
@pytest.mark.parametrize("key", [None, 77])
def test_groups_equal_separate_tensors_with_and_without_kernels(
    key: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(9, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    low, span = Q.extremes(x)
    groups = []
    for k, bits in enumerate((3, 8, 12)):
        own = None if key is None else key + k
        groups.append(Q.Group(torch.arange(k, 9, 3), Q.grid_from_range(low, span, bits, key=own)))
    mixed = Q.fake_quantize_groups(x, groups)
    for index, grid, _ in groups:
        assert torch.equal(mixed[index], Q.fake_quantize(x[index], grid))
    later = [Q.Group(samples[samples >= 4] - 4, grid, int((samples < 4).sum())) for samples, grid, _ in groups]
    assert torch.equal(Q.fake_quantize_groups(x[4:], later), mixed[4:])
    assert Q.fake_quantize_groups(x[:0], []).shape == (0, 3, 7, 5)
    weight = torch.randn(9, 3, 7, 5)
    sums = Q.option_products(x, weight, [g.grid for g in groups]) if key is None else None
    monkeypatch.setattr(Q.kernels, "library", lambda: None)
    assert torch.equal(Q.fake_quantize_groups(x, groups), mixed)
    assert torch.equal(Q.fake_quantize_groups(x[4:], later), mixed[4:])
    if sums is not None:
        assert torch.allclose(Q.option_products(x, weight, [g.grid for g in groups]), sums, rtol=1e-4, atol=1e-4)


def in_layout(x: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "strided":
        return torch.stack([x, x], -1)[..., 0]
    return x.contiguous(memory_format=torch.channels_last if layout == "channels last" else torch.contiguous_format)


@pytest.mark.parametrize("layout", ["C order", "channels last", "strided"])
@pytest.mark.parametrize("shape", [(3, 5, 37, 23), (2, 64, 16, 16)])
@pytest.mark.parametrize("key", [None, 99])
@pytest.mark.parametrize("compiler", [True, False])
def test_values_depend_on_neither_layout_nor_threads_nor_kernels(
    layout: str, shape: tuple[int, ...], key: int | None, compiler: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x[0, 1, 2, :3] = torch.tensor([1e-40, -1e-42, 0.0])  # subnormal numbers count as zero
    grid = Q.affine_grid(x, 5, key=key)
    wanted = Q.dequantize(Q.quantize(x, grid), grid)
    members = [
        Q.Group(torch.tensor([1]), Q.affine_grid(x, 3, key=key)),
        Q.Group(torch.tensor([i for i in range(len(x)) if i != 1]), grid),
    ]
    mixed = torch.empty_like(x)
    for index, own, _ in members:
        mixed[index] = Q.dequantize(Q.quantize(x[index], own), own)
    if not compiler:
        monkeypatch.setattr(Q.kernels, "library", lambda: None)
    there = in_layout(x, layout)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(Q.affine_values(there, 5, key=key), wanted)
            assert torch.equal(Q.fake_quantize(there, grid), wanted)
            assert torch.equal(Q.fake_quantize_groups(there, members), mixed)
            assert Q.extremes(there) == (x.min(), x.max() - x.min())
            if key is None:
                values, kept = Q.quantize_and_keep(there, grid, "values")
                assert torch.equal(values, wanted)
                assert torch.equal(Q.kept_values(kept, grid, "values"), wanted)
                for axis in (0, 1):
                    channels = Q.affine_grid(x, 4, axis=axis)
                    expected = Q.dequantize(Q.quantize(x, channels, axis), channels, axis)
                    assert torch.equal(Q.affine_values(there, 4, axis=axis), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3.4e38])
@pytest.mark.parametrize("place", [0, 70])
def test_values_of_unusable_tensors_are_refused(axis: int | None, bad: float, place: int) -> None:
    x = torch.full((2, 40, 1, 1), -3.4e38)
    x.view(-1)[place] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        Q.affine_values(x, 4, axis=axis)
