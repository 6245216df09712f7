"""Steps that run again without their Python: the bits of steps that run pass after pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host import native
from host.replay.step_schedule import Schedule
from host.step.backward import Backward
from host.step.forward import Forward
from host.step.passes import PassError
from host.step.recorded import NUMBER_OPERATIONS, OPERATION_CODES, REDUCTIONS, NumberTape, require
from hw.networks import Bits, Layout
from tests.host.step.test_compiled import (
    BITS,
    KEPT,
    MOBILE,
    NARROW,
    Steps,
    assert_equal,
    memory_passes,
    parameters,
    stream_passes,
)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Halves that ran again."""
    found: list[str] = []
    for name in ("forward", "backward"):
        original = getattr(Schedule, name)

        def seen(schedule: Schedule, *given: Any, name: str = name, original: Any = original) -> Any:
            found.append(name)
            return original(schedule, *given)

        monkeypatch.setattr(Schedule, name, seen)
    return found


@pytest.fixture(params=["compiled", "numpy"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """With and without a compiler."""
    if request.param == "numpy":
        monkeypatch.setattr(native, "compiled_functions", lambda: None)
    return request.param


@pytest.mark.parametrize(
    ("layout", "bits"), [(NARROW, Bits(12, 4, 6, 8)), (MOBILE, BITS)], ids=["narrow", "mobile"]
)
def test_steps_have_the_bits_of_streamed_ones(layout: Layout, bits: Bits, form: str, runs: list[str]) -> None:
    again, streamed = Steps(layout, memory_passes(1 << 19)), Steps(layout, stream_passes())
    for seed in range(4):
        assert_equal(again.run(seed, bits, 3), streamed.run(seed, bits, 3))
    assert runs == ["forward", "backward"] * 2  # the first step knows no ranges, the second one is recorded


def test_precisions_and_single_passes_take_turns(runs: list[str]) -> None:
    """What one schedule has written is not taken for what another one, an evaluation or a step of passes left."""
    again, streamed = Steps(NARROW, memory_passes(1 << 19)), Steps(NARROW, stream_passes())
    order = [(BITS, 2), (BITS, 2), (Bits(6, 4, 8, 6), 2), (BITS, 2), (BITS, 1), (Bits(6, 4, 8, 6), 2), (BITS, 2)]
    for seed, (bits, batch) in enumerate(order):
        assert_equal(again.run(seed % 3, bits, batch), streamed.run(seed % 3, bits, batch))
        assert_equal([evaluated(again)], [evaluated(streamed)])
    assert runs == ["forward", "backward"] * 3


def evaluated(steps: Steps) -> Any:
    images = np.random.default_rng(9).normal(size=(2, 3, steps.size, steps.size)).astype(np.float32)
    wide = {node.name: BITS for node in steps.graph}
    own = parameters(steps.graph, 0)
    return Forward(steps.graph, own, steps.engine, steps.ranges, wide, KEPT, training=False).run(images).features


def begun(steps: Steps, scale: float = 1.0, gamma: float = 1.0) -> Forward:
    """A forward half."""
    own = parameters(steps.graph, 1)
    own["blocks.0.conv1"].weight[0, 0, 0, 0] *= np.float32(scale)
    own["blocks.0.conv2"].gamma[:] *= np.float32(gamma)
    wide = {node.name: BITS for node in steps.graph}
    forward = Forward(steps.graph, own, steps.engine, steps.ranges, wide, KEPT)
    forward.run(np.random.default_rng(1).normal(size=(3, 3, 8, 8)).astype(np.float32))
    return forward


def test_what_a_step_refuses_it_refuses_again_and_the_next_one_is_right(form: str, runs: list[str]) -> None:
    again, streamed = Steps(NARROW, memory_passes(1 << 18)), Steps(NARROW, stream_passes())
    for seed in range(2):
        assert_equal(again.run(seed, batch=3), streamed.run(seed, batch=3))
    before = dict(again.ranges.tops)
    with pytest.raises(PassError, match=r"blocks.0.conv1: weights hold NaN or infinity"):
        begun(again, scale=np.nan)
    with (
        pytest.raises(PassError, match=r"blocks.0.conv2: results up to (inf|nan); training has diverged"),
        np.errstate(over="ignore", invalid="ignore"),
    ):
        begun(again, gamma=np.inf)
    assert runs == ["forward"] * 2
    again.ranges.tops, streamed.ranges.tops = dict(before), dict(before)
    assert_equal(again.run(2, batch=3), streamed.run(2, batch=3))


def test_a_step_goes_back_before_the_next_one(runs: list[str]) -> None:
    steps = Steps(NARROW, memory_passes(1 << 18))
    for seed in range(2):
        steps.run(seed, batch=3)
    gradient = np.ones((3, NARROW.features), np.float32)
    first = begun(steps)
    twice = [Backward(first, 5).run(gradient) for _ in range(2)]
    for name, (weight, *_) in twice[0].items():
        assert np.array_equal(weight, twice[1][name].weight)
    begun(steps)
    with pytest.raises(RuntimeError, match="another step has run"):
        Backward(first, 5).run(gradient)


NUMBERS = st.floats(width=64) | st.sampled_from([0.0, -0.0, 0.5, 1.5, 2.5, -2.5, 1e300])


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(list(NUMBER_OPERATIONS)),
    st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=9),
    st.integers(0, 7),
)
def test_operations_are_those_of_numpy(name: str, rows: list[tuple[float, ...]], scalars: int) -> None:
    if native.compiled_functions() is None:
        pytest.skip("no compiler")
    n = len(rows)
    columns = np.array(rows).T.copy()
    strides = [int(not scalars >> i & 1) for i in range(3)]
    if name == "ldexp":
        columns[1], strides[1] = np.clip(np.nan_to_num(columns[1]), -900, 900).astype(int)[0], 0
    if name == "exponent":
        columns[0] = np.nan_to_num(columns[0])
    operands = [column if stride else column[:1] for column, stride in zip(columns, strides, strict=True)]
    count = {
        "where": 3,
        **dict.fromkeys(("absolute", "negative", "sqrt", "floor", "rint", "isfinite", "exponent", *REDUCTIONS), 1),
    }
    operands = operands[: count.get(name, 2)]
    if name in REDUCTIONS:
        operands = [columns[0]]
    with np.errstate(all="ignore"):
        wanted = np.broadcast_to(NUMBER_OPERATIONS[name](*operands), (1,) if name in REDUCTIONS else (n,)).astype(
            np.float64
        )
    numbers = np.concatenate([columns.reshape(-1), np.zeros(n)])
    row = [OPERATION_CODES[name], n, 3 * n]
    for i, stride in enumerate(strides):
        row += [i * n, stride]
    table = np.array([(row + [0] * native.ROW)[: native.ROW]], np.int64)
    assert native.Rows(table, numbers, np.zeros(1, np.uint64)).compute(slice(0, 1)) == -1
    assert np.array_equal(numbers[3 * n : 3 * n + len(wanted)], wanted, equal_nan=True)


def test_a_recorded_number_decides_nothing() -> None:
    number = NumberTape().input(("x",), 2.0)
    with pytest.raises(TypeError, match=r"np.where or require"):
        bool(number > 1)
    with pytest.raises(TypeError, match="value_of"):
        np.asarray(number)
    with pytest.raises(ValueError, match="not 2"):
        require(number < 1, lambda about: ValueError(f"not {about:g}"), number)
