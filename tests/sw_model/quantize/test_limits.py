"""Where quantizers run: every name is either taken or refused with a reason, and what recipes refuse layers refuse too."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from host.exact_engine import ExactEngine
from sw_model.export.aten_graph import ExportError
from sw_model.export.training_job import export_job
from sw_model.nn.layers import QLinear
from sw_model.nn.precision import Precision, Run
from sw_model.quantize.limits import PLACES, refusal
from sw_model.quantize.methods import METHODS
from sw_model.quantize.statquant import QUANTIZERS
from sw_model.train.recipe import CHOICES, ConfigError, TrainConfig
from sw_model.train.run_device import check_engine

RECIPE = TrainConfig(quantize_stem=False, quantize_head=False)
OTHERS = [("quantizer", name) for name in METHODS] + [("gradient", name) for name in QUANTIZERS]


def test_the_table_names_settings_and_values_that_there_are() -> None:
    settings = {field.name for field in fields(TrainConfig)}
    for place in PLACES.values():
        assert set(place.takes) <= settings
        for name, values in place.takes.items():
            assert values and set(values) <= set(CHOICES.get(name, values))


@pytest.mark.parametrize("place", sorted(PLACES))
def test_the_defaults_run_everywhere(place: str) -> None:
    assert refusal(place, TrainConfig()) is None


@pytest.mark.parametrize(("setting", "value"), OTHERS)
def test_a_recipe_and_its_layers_are_refused_alike_on_an_engine(setting: str, value: str) -> None:
    why = refusal("engine", replace(RECIPE, **{setting: value}))
    assert why is not None and value in why
    with pytest.raises(ConfigError, match=value):
        check_engine(replace(RECIPE, **{setting: value}))
    layer = QLinear(4, 3)
    layer.run = Run(engine=ExactEngine(), **{setting: value})
    layer.precision = Precision(8, 8, 8)
    with pytest.raises(ValueError, match=value):
        layer(torch.zeros(2, 4))


@pytest.mark.parametrize(("setting", "value"), OTHERS)
def test_recipes_refuse_gates_and_jobs(setting: str, value: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="gates"):
        TrainConfig(schedule="dfq", **{setting: value})
    with pytest.raises(ExportError, match=value):
        export_job(replace(RECIPE, **{setting: value}), tmp_path / "job.zip")
