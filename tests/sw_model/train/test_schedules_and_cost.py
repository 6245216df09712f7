"""Schedules against plain restatements of their definitions; cost against published counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sw_model.nn.cost_meter import CostMeter, layer_macs, step_factor
from sw_model.nn.layers import Precision, Run, attach, set_precision
from sw_model.nn.models import build_model
from sw_model.train.recipe import ConfigError, TrainConfig
from sw_model.train.schedules import Cyclic, Indicator, Manual, Pfq

STAGES = [Precision(3, 3, 6), Precision(4, 4, 8), Precision(6, 6, 8), Precision(8, 8, 8)]


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
    recipe = TrainConfig(stages=[[3, 3, 4]] * 5, **settings)
    for mode, decays in {"fixed": 4, "paper": 2, "eps-decay": 2, "weight-grid+eps-decay": 2}.items():
        schedule = replace(recipe, mode=mode).make_schedule()
        assert isinstance(schedule, Pfq) and schedule.indicator.decays == decays
    with pytest.raises(ConfigError, match="eps-decay"):
        replace(recipe, stages=((8, 8, 8),), schedule="static", mode="eps-decay")


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
    bits = [cyclic.precision(0, t, 400).weight for t in range(400)]
    assert bits[0] == 3 and max(bits) == 8 and bits[:100] == bits[100:200] == bits[300:]
    assert bits[:100] == sorted(bits[:100])
    assert bits[50] == round(5.5)


def test_manual_stages_start_where_told() -> None:
    manual = Manual([(0, STAGES[0]), (3, STAGES[3])])
    seen = []
    for e in range(5):
        seen.append(manual.precision(e, 0, 10))
        assert manual.epoch_finished(e, 1.0) == (e == 2)
    assert seen == [STAGES[0]] * 3 + [STAGES[3]] * 2
    with pytest.raises(ValueError, match="rising"):
        Manual([(1, STAGES[0])])


@pytest.mark.parametrize(
    ("name", "classes", "image", "macs"),
    [
        ("resnet-38", 10, (3, 32, 32), 83_280_512),
        ("resnet-74", 10, (3, 32, 32), 168_215_168),
        ("mobilenetv2", 10, (3, 32, 32), 91_154_944),
        ("resnet-18", 1000, (3, 224, 224), 1_814_073_344),
        ("resnet-34", 1000, (3, 224, 224), 3_663_761_408),
    ],
)
def test_macs_equal_the_published_counts(name: str, classes: int, image: tuple[int, int, int], macs: int) -> None:
    model = build_model(name, classes, image)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert sum(layer_macs(model, image).values()) == macs
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_cc_of_a_full_static_training_equals_the_formula() -> None:
    meter = CostMeter({"all": 83_280_512})
    for _ in range(3):
        meter.step(Precision(8, 8, 8), 128)
    assert meter.paper / 3 * 64_000 == pytest.approx(1.279e14, rel=1e-3)
    assert meter.cp == pytest.approx(6.25)


@pytest.mark.parametrize(
    ("bits", "cp"),
    [((4, 3, 6), 1.758), ((4, 4, 6), 2.083), ((4, 6, 12), 4.688), ((6, 3, 6), 2.344), ((6, 8, 16), 8.854),
     ((8, 8, 16), 10.417)],
)  # fmt: skip
def test_cp_of_published_options(bits: tuple[int, int, int], cp: float) -> None:
    assert 100 * step_factor(Precision(*bits)) / 3 == pytest.approx(cp, abs=5e-4)


def test_full_count_charges_what_ran() -> None:
    model = build_model("resnet-8", 10, (1, 8, 8), width=4)
    macs = layer_macs(model, (1, 8, 8))
    meter = CostMeter(macs)
    attach(model, Run(on_product=meter.on_product))
    set_precision(model, Precision(4, 6, 8))
    model(torch.randn(5, 1, 8, 8)).sum().backward()
    stem, conv, head = meter.full["stem"], meter.full["blocks.0.conv1"], meter.full["head"]
    assert stem["input_gradient"] == 0, "images need no gradient"
    assert conv["forward"] == 5 * macs["blocks.0.conv1"] * 24 / 1024
    assert conv["input_gradient"] == 5 * macs["blocks.0.conv1"] * 32 / 1024
    assert conv["weight_gradient"] == 5 * macs["blocks.0.conv1"] * 48 / 1024
    assert head["forward"] == 5 * macs["head"], "the classifier stays in float32"
    restored = CostMeter(macs)
    restored.load_state_dict(meter.state_dict())
    assert restored.full_total == meter.full_total > 0
