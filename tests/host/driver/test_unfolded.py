"""Convolutions of any stride, padding, dilation and groups as matrix products, against plain loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.driver.unfolded import convolution_sums
from host.exact_engine import ExactEngine
from host.operands import Grid, Operand, Sums
from host.windows import Window

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
windows = st.builds(
    lambda batch, into, out, groups, size, kernel, stride, padding, dilation: (
        Window(batch, groups * into, groups * out, size, kernel, stride, padding, dilation), groups
    ),
    st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3),
    st.tuples(st.integers(7, 9), st.integers(7, 9)), pairs, pairs,
    st.tuples(st.integers(0, 2), st.integers(0, 2)), pairs,
)  # fmt: skip


def loops(product: str, a: np.ndarray, b: np.ndarray, m: Window, groups: int) -> Sums:
    """The sums by their definition: every pair of values that meet, one by one."""
    into, out = m.in_channels // groups, m.out_channels // groups
    shape = {
        "forward": (m.batch, m.out_channels, *m.out_hw),
        "input_gradient": (m.batch, m.in_channels, *m.in_hw),
        "weight_gradient": (m.out_channels, into, *m.kernel),
    }[product]
    found = [np.zeros(shape, np.int64) for _ in range(4)]
    for n, o, y, x in np.ndindex(m.batch, m.out_channels, *m.out_hw):
        for i, ky, kx in np.ndindex(into, *m.kernel):
            row = y * m.stride[0] + ky * m.dilation[0] - m.padding[0]
            column = x * m.stride[1] + kx * m.dilation[1] - m.padding[1]
            if not (0 <= row < m.in_hw[0] and 0 <= column < m.in_hw[1]):
                continue
            pixel, weight, result = (n, o // out * into + i, row, column), (o, i, ky, kx), (n, o, y, x)
            left, right, to = {
                "forward": (pixel, weight, result),
                "input_gradient": (result, weight, pixel),
                "weight_gradient": (pixel, result, weight),
            }[product]
            for total, value in zip(found, (a[left] * b[right], a[left], b[right], 1), strict=True):
                total[to] += value
    return Sums(*found)


@pytest.mark.parametrize("product", ["forward", "input_gradient", "weight_gradient"])
@settings(max_examples=12, deadline=None)
@given(windows, st.integers(0, 2**31))
def test_sums_are_those_of_the_definition(product: str, shape: tuple[Window, int], seed: int) -> None:
    m, groups = shape
    rng = np.random.default_rng(seed)
    sizes = {
        "x": (m.batch, m.in_channels, *m.in_hw),
        "w": (m.out_channels, m.in_channels // groups, *m.kernel),
        "g": (m.batch, m.out_channels, *m.out_hw),
    }
    names = {"forward": "xw", "input_gradient": "gw", "weight_gradient": "xg"}[product]
    grid = Grid(5, False, np.float32(0.5), np.float32(-3))
    a, b = (rng.integers(0, 32, size=sizes[name]) for name in names)
    sums = convolution_sums(ExactEngine(), product, Operand(grid, codes=a), Operand(grid, codes=b), m, groups)
    wanted = loops(product, a, b, m, groups)
    for name in ("dot", "a_sum", "b_sum", "count"):
        assert (np.broadcast_to(getattr(sums, name), wanted.dot.shape) == getattr(wanted, name)).all(), name


def test_patches_are_one_matrix_product() -> None:
    assert Window(1, 3, 8, (32, 32), (8, 8), (8, 8)).plain is None
    square = Window(1, 3, 8, (32, 32), (3, 3), (2, 2), (1, 1)).plain
    assert square is not None and Window.of(square) == Window(1, 3, 8, (32, 32), (3, 3), (2, 2), (1, 1))
