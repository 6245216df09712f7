"""Passes: what they refuse; where results lie; the engine in NumPy against sums that are written out."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host import epilogue
from host.epilogue import Entries, Epilogue
from host.step.passes import CodeTensor, PassEpilogue, PassError, ProductPass, identity
from host.step.result_order import ResultOrder, computed, natural, random_numbers
from host.step.software import SoftwareEngine
from hw.networks import ConvGeometry
from tests.support.random_passes import codes, random_pass

orders = st.builds(ResultOrder, st.integers(1, 3), st.booleans())


@given(st.tuples(*[st.integers(1, 7)] * 4), orders)
def test_a_result_comes_back_from_where_it_is_computed(shape: tuple[int, int, int, int], order: ResultOrder) -> None:
    result = np.arange(1, np.prod(shape) + 1).reshape(shape)
    parts = computed(result, order)
    assert parts.shape[1] == order.phases**2 * shape[1]
    assert (natural(parts, shape, order) == result).all()


@given(st.tuples(*[st.integers(1, 5)] * 4), orders, st.integers(0, 5), st.integers(0, 9))
def test_random_numbers_belong_to_places_where_results_are_computed(
    shape: tuple[int, int, int, int], order: ResultOrder, together: int, reached: int
) -> None:
    order = order._replace(channels=together, reached=min(reached, order.phases**2))
    found = random_numbers(shape, 77, order)
    first, step = 0, together or shape[1]
    for start in range(0, shape[1], step):
        part = (shape[0], min(step, shape[1] - start), *shape[2:])
        there = computed(np.zeros(part), order).shape
        some = there[0], order.parts * part[1], there[2]
        rows = np.arange(first, first + np.prod(some), dtype=np.uint32).reshape(some)
        drawn = np.zeros(there, np.uint32)
        drawn[:, : some[1]] = epilogue.random_rows(rows, 77, there[3])
        assert (found[:, start : start + step] == natural(drawn, part, order)).all()
        first += rows.size


def written_out(wanted: ProductPass) -> np.ndarray:
    """Sums of a forward pass or an input gradient, one product after the other."""
    m, sums = wanted.geometry, np.zeros(wanted.result_shape, np.int64)
    assert wanted.w is not None
    w, into = wanted.w.values, m.in_channels // wanted.groups
    each = m.out_channels // wanted.groups
    for n, o, i, y, x in product(range(m.batch), range(m.out_channels), range(into), *map(range, m.out_hw)):
        c = o // each * into + i
        for ky, kx in product(*map(range, m.kernel)):
            at = y * m.stride + ky - m.padding, x * m.stride + kx - m.padding
            if not (0 <= at[0] < m.in_hw[0] and 0 <= at[1] < m.in_hw[1]):
                continue
            if wanted.kind == "forward":
                sums[n, o, y, x] += int(wanted.operand.values[(n, c, *at)]) * int(w[o, i, ky, kx])
            else:
                sums[(n, c, *at)] += int(wanted.operand.values[n, o, y, x]) * int(w[o, i, ky, kx])
    return sums


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 32))
def test_sums_in_numpy_are_those_written_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wanted = random_pass(rng)
    if wanted.kind != "weight_gradient":
        assert (SoftwareEngine().sums(wanted) == written_out(wanted)).all()


def test_an_identity_passes_codes_on() -> None:
    rng = np.random.default_rng(3)
    x = codes(rng, (2, 5, 4, 3), 6, True)
    form = Epilogue(out_bits=6, out_signed=True)
    behind = PassEpilogue(Entries.of(5, m=1, n=1), form)
    wanted = ProductPass("n", "codes", "forward", ConvGeometry(2, 5, 5, (4, 3)), 5, x, identity(5), None, behind)
    assert (SoftwareEngine().run(wanted).a == x.values).all()


def test_a_pass_refuses_what_does_not_fit() -> None:
    rng = np.random.default_rng(1)
    x, w = codes(rng, (1, 2, 4, 4), 4, False), codes(rng, (3, 2, 3, 3), 4, True)
    m, behind = ConvGeometry(1, 2, 3, (4, 4), (3, 3), 1, 1), PassEpilogue(Entries.of(3), Epilogue())
    good = ProductPass("a.node", "codes", "forward", m, 1, x, w, None, behind)
    for change, words in (
        ({"kind": "input_gradient"}, "takes gw"),
        ({"behind": None}, "epilogue"),
        ({"x": codes(rng, (1, 3, 4, 4), 4, False)}, r"x is \(1, 3, 4, 4\), not \(1, 2, 4, 4\)"),
        ({"behind": replace(behind, side=x)}, "side is"),
        ({"behind": replace(behind, mask=np.ones((1, 3, 4, 5), bool))}, "mask is"),
    ):
        with pytest.raises(PassError, match=f"a.node.*{words}"):
            replace(good, **change)  # type: ignore[arg-type]


def test_greatest_code() -> None:
    assert [CodeTensor(np.zeros(1, int), 3, signed).greatest for signed in (True, False)] == [4, 7]
