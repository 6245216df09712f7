"""The demo from end to end: a training of one step on the RTL, the baseline in a process beside it, replay, report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sw_model.studies.demo import run_demo
from sw_model.train.recipe import TrainConfig
from sw_model.train.recipes import find_recipe

FILES = ("report.md", "cycles.png", "accuracy-cost.png", "train/result.json", "static/result.json")


@pytest.mark.slow
def test_one_step_is_trained_replayed_and_compared_with_the_baseline(tmp_path: Path) -> None:
    recipe, out = tmp_path / "one.toml", tmp_path / "out"
    whole = TrainConfig.from_recipe(find_recipe("digits-fabric"))
    short = replace(whole, stages=((3, 3, 6),), deadlines=(), epochs=1, train_limit=32, test_limit=16)
    recipe.write_text(short.to_toml())
    summary = run_demo(recipe, "sim-small", out, progress=False)
    assert summary == json.loads((out / "summary.json").read_text())
    assert (summary["steps"], summary["images"]) == (1, 32)
    assert summary["words_compared"] > 0 == summary["mismatches"]
    assert summary["cycles"] == summary["counters"]["CYCLES"] < 0.6 * summary["cycles_static"]
    assert all((out / name).stat().st_size for name in FILES)

    # an earlier demo is replaced, anything else kept
    other = tmp_path / "other"
    other.mkdir()
    (other / "kept").touch()
    with pytest.raises(ValueError, match="something else than a demo"):
        run_demo(recipe, "sim-small", other, progress=False)
    assert (other / "kept").exists()
