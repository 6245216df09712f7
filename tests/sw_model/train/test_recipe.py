"""Recipes: whatever TOML gives is a valid configuration or refused by name, before anything is written."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from host.exact_engine import ExactEngine
from hw.design import load_design
from sw_model.train.loop import train
from sw_model.train.recipe import ConfigError, TrainConfig

NUMBERS = st.one_of(st.integers(-3, 40), st.integers(), st.floats(-1, 2), st.floats())
SCALARS = st.one_of(NUMBERS, st.booleans(), st.text(), st.dates(), st.times(), st.datetimes())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=2)),
    max_leaves=8,
)
WORDS = (
    "static",
    "pfq",
    "cyclic",
    "manual",
    "dfq",
    "adam",
    "steps",
    "inverse-sqrt",
    "transformer-small",
    "paper",
    "psq",
)
ROWS = st.lists(st.lists(st.integers(-1, 33), max_size=5), max_size=4)
KEYS = [field.name for field in fields(TrainConfig)]
GATED = {"schedule": "dfq", "stages": [[8, 8, 8]], "targets": [3.0], "options": [[3, 6], [4, 8]]}


@settings(deadline=None, max_examples=400)
@given(
    st.dictionaries(st.sampled_from(KEYS), st.one_of(VALUES, st.sampled_from(WORDS), ROWS), max_size=4), st.booleans()
)
@example({"stages": [8, 8, 8]}, False)
@example({"options": [3, 6]}, True)
@example({"betas": ["a", "b"]}, False)
@example({"lr": 10**400}, False)
@example({"data": '\x7f\U0001f600\n"'}, False)
def test_every_value_gives_a_configuration_or_a_config_error(values: dict[str, Any], gated: bool) -> None:
    try:
        config = TrainConfig.from_mapping({**(GATED if gated else {}), **values})
    except ConfigError as error:
        assert any(name in str(error) for name in (*KEYS, "stage", "indicator", "cyclic", "bits"))
        return
    assert TrainConfig.from_toml(config.to_toml(), "again") == config
    assert config.make_schedule().widths(0, 0, 10) and config.precisions()


@pytest.mark.parametrize(
    ("key", "value", "gated"),
    [
        ("lr", float("nan"), False),
        ("lr", float("inf"), False),
        ("weight_decay", float("nan"), False),
        ("eps", float("nan"), False),
        ("seed", -1, False),
        ("seed", 1 << 64, False),
        ("milestones", ["a"], False),
        ("milestones", [0.5, 50.0], False),
        ("lr_decay", -0.1, False),
        ("nesterov", True, False),
        ("deadlines", [-3, 1, 2], False),
        ("stages", [8, 8, 8], False),
        ("stages", [[8, 8, 8.0]], False),
        ("stages", [[8, 8, True]], False),
        ("betas", ["a", "b"], False),
        ("betas", [0.9], False),
        ("options", [3, 6], True),
        ("options", [[3, "6"], [4, 8]], True),
        ("targets", [-1.0], True),
        ("targets", [0.0], True),
        ("targets", [3.0, 2.0], True),
        ("targets", [float("nan")], True),
        ("beta", -1.0, True),
        ("band", -1.0, True),
        ("cap", -0.5, True),
        ("weight_bits", 0, True),
    ],
)
def test_values_that_mean_nothing_are_refused_by_key(key: str, value: Any, gated: bool) -> None:
    momentum = {"momentum": 0.0} if key == "nesterov" else {}
    with pytest.raises(ConfigError, match=key):
        TrainConfig.from_mapping({**(GATED if gated else {}), **momentum, key: value})


def test_configurations_made_in_python_are_checked_alike() -> None:
    with pytest.raises(ConfigError, match="lr"):
        TrainConfig(lr=float("nan"))
    with pytest.raises(ConfigError, match="stages"):
        TrainConfig(stages=(8, 8, 8))  # type: ignore[arg-type]
    assert TrainConfig(lr=1).to_toml() == TrainConfig(lr=1.0).to_toml()


@pytest.mark.parametrize(
    "values",
    [
        {"schedule": "static", "stages": [[8, 8, 0]]},
        {"schedule": "static", "stages": [[8, 0, 8]]},
        {"schedule": "manual", "stages": [[8, 8, 8], [0, 8, 8]], "starts": [0, 1]},
        {"schedule": "cyclic", "stages": [[8, 8, 0]]},
        {**GATED, "stages": [[8, 8, 0]]},
    ],
)
def test_engines_refuse_float32_operands_before_anything_is_written(tmp_path: Path, values: dict[str, Any]) -> None:
    config = TrainConfig.from_mapping({**values, "width": 4, "train_limit": 32, "test_limit": 32, "epochs": 1})
    with pytest.raises(ConfigError, match="stages"):
        train(config, ExactEngine(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unquantized_stage_needs_no_integers(tmp_path: Path) -> None:
    config = TrainConfig(
        width=4, train_limit=32, test_limit=32, batch=32, epochs=1, schedule="static", stages=((0, 0, 0),)
    )
    assert train(config, ExactEngine()).counters == {}


@pytest.mark.parametrize("values", [{"quantizer": "mxint"}, {"stages": [[8, 8, 0]]}, {"stages": [[8, 0, 8]]}])
def test_attention_quantizes_both_operands_or_none(values: dict[str, Any]) -> None:
    static = {"model": "transformer-small", "schedule": "static", "stages": [[8, 8, 8]]}
    with pytest.raises(ConfigError, match=next(iter(values))):
        TrainConfig.from_mapping({**static, **values})
    for stage in ([0, 0, 0], [0, 8, 8], [8, 8, 8]):
        TrainConfig.from_mapping({**static, "stages": [stage]})


def test_unreadable_recipe_is_named(tmp_path: Path) -> None:
    recipe = tmp_path / "a.toml"
    for content in (b"\xff\xfe", b"lr = ", None):
        if content is not None:
            recipe.write_bytes(content)
        with pytest.raises(ConfigError, match=r"a\.toml|recipe"):
            TrainConfig.from_recipe(recipe if content is not None else tmp_path)


def test_byte_order_mark_before_a_recipe_and_a_design_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(b"\xef\xbb\xbfepochs = 3\n")
    assert TrainConfig.from_recipe(tmp_path / "recipe.toml").epochs == 3
    design = Path(__file__).parents[3] / "configs" / "designs" / "sim-small.toml"
    (tmp_path / "sim-small.toml").write_bytes(b"\xef\xbb\xbf" + design.read_bytes())
    assert load_design(tmp_path / "sim-small.toml") == load_design("sim-small")
