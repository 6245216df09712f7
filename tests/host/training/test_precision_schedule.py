"""Schedules against plain restatements of their definitions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.training.precision_schedule import Cyclic, Indicator, Manual, Pfq, make_schedule

STAGES = [(3, 3, 6), (4, 4, 8), (6, 6, 8), (8, 8, 8)]


def turns_by_definition(losses: list[float], turns: int, eps: float, alpha: float, window: int, norm: int) -> list[int]:
    """Epochs after which a turn fires, looking at the whole history at once."""
    fired: list[int] = []
    begin = 0
    for e in range(len(losses)):
        if len(fired) == turns:
            break
        s = float(np.mean(losses[: min(e + 1, norm)]))
        recent = losses[begin : e + 1]
        if len(recent) >= window:
            recent = recent[-window:]
            if max(abs(v - recent[-1]) / s for v in recent[:-1]) <= eps * alpha ** len(fired):
                fired.append(e)
                begin = e + 1
    return fired


@given(st.lists(st.floats(0.5, 1.0), min_size=1, max_size=60), st.floats(0.01, 0.5), st.integers(2, 5))
def test_indicator_equals_its_definition(losses: list[float], eps: float, window: int) -> None:
    wanted = turns_by_definition(losses, 3, eps, 0.5, window, 10)
    indicator = Indicator(3, eps, 0.5, window)
    assert [e for e, loss in enumerate(losses) if indicator.epoch_finished(e, loss)] == wanted


def test_published_indicator_leaves_five_epochs_between_turns() -> None:
    indicator = Indicator(3)
    assert [e for e in range(30) if indicator.epoch_finished(e, 1.0)] == [4, 9, 14]


def test_published_threshold_decays_after_two_turns_only() -> None:
    losses = [1.0] * 15 + [1.0, 1.0005, 1.0, 1.0005, 1.0]
    settings = {"eps": 0.1, "alpha": 0.1}
    turns = {
        decays: [e + 1 for e, loss in enumerate(losses) if indicator.epoch_finished(e, loss)]
        for decays in (None, 2)
        for indicator in [Indicator(4, **settings, decays=decays)]
    }
    assert turns == {None: [5, 10, 15], 2: [5, 10, 15, 20]}


def test_deadlines_force_turns() -> None:
    indicator = Indicator(3, deadlines=[2, 5, 7])
    assert [e for e in range(10) if indicator.epoch_finished(e, 2.0**-e)] == [2, 5, 7]
    assert indicator.forced == 3
    with pytest.raises(ValueError, match="rising"):
        Indicator(3, deadlines=[2, 5])
    with pytest.raises(ValueError, match="diverged"):
        Indicator(1).epoch_finished(0, float("nan"))


def test_indicator_state_survives_a_restart() -> None:
    rng = np.random.default_rng(5)
    losses = (1 + 0.05 * rng.random(40)).tolist()
    whole = Indicator(3, eps=0.04)
    halves = Indicator(3, eps=0.04)
    for e, loss in enumerate(losses):
        if e == 7:
            restored = Indicator(3, eps=0.04)
            restored.load_state_dict(halves.state_dict())
            halves = restored
        assert whole.epoch_finished(e, loss) == halves.epoch_finished(e, loss)
    assert whole.state_dict() == halves.state_dict()


def test_unfinished_pfq_warns() -> None:
    pfq = Pfq(STAGES, Indicator(3))
    with pytest.warns(UserWarning, match="stage 1 of 4"):
        pfq.warn_if_unfinished(3)


def test_cyclic_precision_follows_its_cosine() -> None:
    cyclic = Cyclic(3, 8, 8, cycles=4)
    bits = [cyclic.widths(0, t, 400)[0] for t in range(400)]
    assert bits[0] == 3 and max(bits) == 8 and bits[:100] == bits[100:200] == bits[300:]
    assert bits[:100] == sorted(bits[:100])
    assert bits[50] == round(5.5)


def test_manual_stages_start_where_told() -> None:
    manual = Manual([(0, STAGES[0]), (3, STAGES[3])])
    seen = []
    for e in range(5):
        seen.append(manual.widths(e, 0, 10))
        assert manual.epoch_finished(e, 1.0) == (e == 2)
    assert seen == [STAGES[0]] * 3 + [STAGES[3]] * 2
    with pytest.raises(ValueError, match="rising"):
        Manual([(1, STAGES[0])])


RECIPE: dict[str, Any] = {
    "schedule": "pfq", "stages": STAGES, "starts": (), "targets": (), "deadlines": (), "eps": 0.05, "alpha": 0.5,
    "window": 3, "norm_epochs": 10, "low": 3, "high": 8, "cycles": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{}, {"deadlines": (3, 5, 9)}, {"schedule": "manual", "starts": (0, 3, 5, 9)}, {"schedule": "cyclic"},
     {"schedule": "static", "stages": STAGES[:1]}, {"schedule": "dfq", "stages": STAGES[:1], "targets": (2.0, 3.0)}],
    ids=["pfq", "deadlines", "manual", "cyclic", "static", "dfq"],
)  # fmt: skip
def test_a_schedule_goes_on_from_its_state_as_json(changes: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    whole, parts = make_schedule(RECIPE | changes), make_schedule(RECIPE | changes)
    for epoch in range(30):
        parts, state = make_schedule(RECIPE | changes), json.loads(json.dumps(parts.state_dict()))
        parts.load_state_dict(state)
        assert parts.widths(epoch, 4 * epoch, 120) == whole.widths(epoch, 4 * epoch, 120)
        assert parts.stage == whole.stage
        loss = 1.0 / (1 + epoch) + 0.01 * float(rng.random())
        assert parts.epoch_finished(epoch, loss) == whole.epoch_finished(epoch, loss)


@pytest.mark.parametrize("changes", [{"turns": 4}, {"turns": -1}, {"forced": 2}, {"losses": 3}, {"eps": "small"}])
def test_a_state_of_another_form_changes_nothing(changes: dict[str, Any]) -> None:
    indicator = Indicator(3)
    before = indicator.state_dict()
    with pytest.raises((TypeError, ValueError)):
        indicator.load_state_dict(before | changes)
    assert indicator.state_dict() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"schedule": "static"}, "one stage"), ({"schedule": "manual", "starts": (0, 1)}, "as many starts"),
     ({"schedule": "dfq", "targets": (1.0, 2.0)}, "as many, not 4"), ({"deadlines": (3, 2, 1)}, "deadlines")],
)  # fmt: skip
def test_settings_that_exclude_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_schedule(RECIPE | changes)
