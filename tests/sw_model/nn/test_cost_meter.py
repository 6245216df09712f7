"""Cost against published counts, and what a recipe's mode means to its schedule."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from host.training.precision_schedule import Pfq
from sw_model.nn.cost_meter import CostMeter, layer_macs, step_factor
from sw_model.nn.layers import attach, set_precision
from sw_model.nn.models import build_model
from sw_model.nn.precision import Precision, Run
from sw_model.train.recipe import ConfigError, TrainConfig


def test_the_published_threshold_decays_less_often_by_name() -> None:
    recipe = TrainConfig(stages=[[3, 3, 4]] * 5, eps=0.1, alpha=0.1)
    for mode, decays in {"fixed": 4, "paper": 2, "eps-decay": 2, "weight-grid+eps-decay": 2}.items():
        schedule = replace(recipe, mode=mode).make_schedule()
        assert isinstance(schedule, Pfq) and schedule.indicator.decays == decays
    with pytest.raises(ConfigError, match="eps-decay"):
        replace(recipe, stages=((8, 8, 8),), schedule="static", mode="eps-decay")


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
