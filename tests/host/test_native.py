"""The compiled functions of a host against NumPy, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from host import native
from host.program import packing

SEED = st.integers(0, 1 << 30)


def both(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> tuple[Any, Any]:
    """What a call gives compiled and in NumPy."""
    assert native.compiled_functions() is not None
    compiled = call()
    with monkeypatch.context() as without:
        without.setattr(native, "compiled_functions", lambda: None)
        return compiled, call()


@settings(max_examples=60, deadline=None)
@given(SEED, st.integers(2, 16), st.integers(0, 1))
@example(504, 2, 0)  # a channel with NaN beside one of zeros
def test_weights_are_rounded_alike(seed: int, bits: int, axis: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, (9, 9, 4, 4)))
    weights = (rng.normal(size=shape) * 10.0 ** rng.integers(-30, 30)).astype(np.float32)
    weights[rng.random(shape) < 0.2] = 0
    if seed % 3 == 0:  # halves are frequent
        weights = rng.integers(-8, 9, shape).astype(np.float32) / 2
    if seed % 7 == 0:
        weights[0] = rng.choice([np.nan, np.inf, -np.inf, 0])
    with pytest.MonkeyPatch.context() as monkeypatch:
        found, wanted = both(monkeypatch, lambda: native.round_weights(weights, axis, (1 << bits - 1) - 1))
    bad = ~np.isfinite(wanted.scale)
    assert np.array_equal(bad, ~np.isfinite(found.scale))
    if not bad.any():
        assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
        assert np.array_equal(
            found.magnitudes, np.abs(found.codes.astype(int)).sum(tuple(i for i in range(4) if i != axis))
        )


@settings(max_examples=40, deadline=None)
@given(SEED, st.integers(1, 16))
def test_weights_are_packed_alike(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(-(1 << bits - 1), 1 << bits - 1, int(rng.integers(1, 50)))
    pairs, size = int(rng.integers(1, 4)), int(rng.integers(1, 150))
    index = rng.integers(0, len(values) + 1, (pairs, size)).astype(np.int32 if seed % 2 else np.uint16)
    words = 2 * -(-size // 128)
    with pytest.MonkeyPatch.context() as monkeypatch:
        found, wanted = both(monkeypatch, lambda: native.pack_gathered(values, index, bits, words))
    assert np.array_equal(found, wanted)


@settings(max_examples=30, deadline=None)
@given(SEED, st.integers(1, 9), st.sampled_from([8, 16, 32]))
def test_pixels_are_moved_alike(seed: int, planes: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    lanes, tiles = 32 if seed % 2 else 2 * channels, int(rng.integers(1, 12))
    words = rng.integers(0, 1 << 63, tiles * planes * lanes * channels // 64, dtype=np.uint64)
    tile, lane = rng.integers(0, tiles, (3, lanes)), rng.integers(0, lanes, (3, lanes))
    index = np.where(rng.random((3, lanes)) < 0.3, -1, tile * planes * lanes + lane).astype(np.int32)
    moves = native.PixelMoves.of(index, planes, channels)
    with pytest.MonkeyPatch.context() as monkeypatch:
        found, wanted = both(monkeypatch, lambda: native.move_pixels(words, moves, planes, channels))
    assert np.array_equal(found, wanted)


@settings(max_examples=30, deadline=None)
@given(SEED, st.integers(1, 8), st.sampled_from([8, 16, 32]))
def test_images_are_packed_as_row_words_and_pooled(seed: int, bits: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    n, c, h = (int(v) for v in rng.integers(1, (6, 40, 5)))
    lanes = 2 * channels
    w = int(rng.integers(1, lanes + 1))
    side, groups = lanes // w, -(-c // channels)
    codes = rng.integers(0, 1 << bits, (n, c, h, w))
    words = native.pack_codes(codes, side, lanes, bits, channels)
    assert words is not None
    images = -(-n // side)
    virtual = np.zeros((images, h, groups, lanes, channels), int)
    for i, k in np.ndindex(n, c):
        at = i % side * w
        virtual[i // side, :, k // channels, at : at + w, k % channels] = codes[i, k]
    assert np.array_equal(words, packing.pack_rows(virtual, bits))
    sums = native.pooled(words, (n, groups, h, w), side, lanes, bits, channels)
    assert sums is not None
    assert np.array_equal(sums[:, :c], codes.sum((2, 3)))
    assert not sums[:, c:].any()


def test_without_a_compiler_numpy_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    native.compiled_functions.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no C compiler"):
            assert native.compiled_functions() is None
    finally:
        native.compiled_functions.cache_clear()
