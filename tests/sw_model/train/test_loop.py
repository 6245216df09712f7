"""Training end to end on small data: it learns, it resumes to the bit, its hooks and files do what they say."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from fractrain import main
from host.exact_engine import ExactEngine
from host.operands import Engine
from host.training.precision_schedule import learning_rate
from sw_model.train.folder import load_checkpoint
from sw_model.train.loop import TrainingStep, train
from sw_model.train.metrics import Metric
from sw_model.train.recipe import ConfigError, TrainConfig

RECIPES = Path(__file__).parents[3] / "configs" / "recipes"
SMALL = TrainConfig(
    width=4, epochs=3, batch=32, train_limit=100, test_limit=40, window=2, norm_epochs=2, deadlines=(0, 1, 2)
)


def state_of(folder: Path) -> dict[str, Any]:
    state = load_checkpoint(folder / "checkpoint.pt")
    for row in state["history"]:
        row.pop("seconds")
    return state


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("engine", [None, ExactEngine()], ids=["fast", "exact"])
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(tmp_path: Path, engine: Engine | None) -> None:
    train(SMALL, engine, out=tmp_path / "whole")
    # Stops in the middle of an epoch, at an epoch's end, and right before the last step.
    for stop in (2, 4, 9, 11):
        part = train(SMALL, engine, out=tmp_path / "parts", resume=stop > 2, stop_after=stop)
        assert not part.finished and part.steps == stop
    torch.manual_seed(99)  # the caller's random state must not matter
    last = train(SMALL, engine, out=tmp_path / "parts", resume=True)
    assert last.finished and last.steps == 12
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))


def test_killed_run_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    config = replace(SMALL, checkpoint_every=1)
    train(config, out=tmp_path / "whole")

    def die(step: TrainingStep) -> None:
        if step.global_step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, out=tmp_path / "killed", on_step=die)
    assert load_checkpoint(tmp_path / "killed" / "checkpoint.pt")["position"][:2] == [1, 2]
    train(config, out=tmp_path / "killed", resume=True)
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "killed"))


@pytest.mark.parametrize(
    "changes", [{}, {"schedule": "cyclic", "cycles": 5, "deadlines": (), "eval_every": 3}], ids=["pfq", "cyclic"]
)
def test_run_killed_while_it_was_tested_resumes_at_the_precision_of_its_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """The checkpoint of an epoch's last step comes before its evaluation, which a resumed run begins with."""
    config = replace(SMALL, checkpoint_every=4, **changes)
    train(config, out=tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Metric, "value", Mock(side_effect=KeyboardInterrupt))
        train(config, out=tmp_path / "killed")
    assert load_checkpoint(tmp_path / "killed" / "checkpoint.pt")["position"][:2] == [0, 4]
    train(config, out=tmp_path / "killed", resume=True)
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "killed"))


def test_same_seed_same_run_other_seed_other_run(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(replace(SMALL, seed=seed), out=tmp_path / name)
    assert same(state_of(tmp_path / "a"), state_of(tmp_path / "b"))
    assert not same(state_of(tmp_path / "a")["model"], state_of(tmp_path / "c")["model"])


def test_run_folder_holds_what_it_should(tmp_path: Path) -> None:
    result = train(SMALL, out=tmp_path / "run")
    assert TrainConfig.from_recipe(tmp_path / "run" / "config.toml") == SMALL
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["bits"] for row in rows] == ["3/3/4", "4/4/6", "6/6/8"]
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in result.history]
    summary = json.loads((tmp_path / "run" / "result.json").read_text())
    assert summary["cc"] == result.cc and summary["images"] == 300
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="already holds a run"):
        train(SMALL, out=tmp_path / "run")
    with pytest.raises(ConfigError, match="other values of lr"):
        train(replace(SMALL, lr=0.01), out=tmp_path / "run", resume=True)
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"rubbish")
    with pytest.raises(ConfigError, match="cannot be read"):
        train(SMALL, out=tmp_path / "run", resume=True)


def test_static_cost_is_the_yardstick() -> None:
    static = train(replace(SMALL, schedule="static", stages=((8, 8, 8),), epochs=1))
    assert static.cc == static.cc_static and static.cp == pytest.approx(6.25)
    assert train(replace(SMALL, epochs=1)).cc < static.cc / 2


def test_hooks_see_every_step_and_choose_engines() -> None:
    seen: list[TrainingStep] = []
    stage_starts = ExactEngine()

    def choose(step: TrainingStep) -> Engine | None:
        assert step.loss is None
        return stage_starts if step.stage_step == 0 else None

    train(SMALL, on_step=seen.append, engine_for_step=choose, evaluation_engine=None)
    assert [s.global_step for s in seen] == list(range(12))
    assert [(s.epoch, s.step, s.stage, s.stage_step) for s in seen[3:6]] == [(0, 3, 0, 3), (1, 0, 1, 0), (1, 1, 1, 1)]
    assert all(s.loss is not None and s.images == (4 if s.step == 3 else 32) for s in seen)
    # 9 quantized layers (the classifier stays in float32), three products each but the stem's input gradient.
    assert stage_starts.meter.totals["PRODUCTS"] == 3 * (9 * 3 - 1)


def test_fast_and_exact_training_start_alike() -> None:
    losses: list[list[float]] = []
    for engine in (None, ExactEngine()):
        row: list[float] = []
        train(replace(SMALL, epochs=1), engine, on_step=lambda s, row=row: row.append(s.loss))  # type: ignore[misc]
        losses.append(row)
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert losses[0][1] == pytest.approx(losses[1][1], rel=0.05)


def test_digits_recipe_learns() -> None:
    result = train(TrainConfig.from_recipe(RECIPES / "digits-demo.toml"))
    assert result.test_accuracy >= 0.96
    assert result.history[-1]["bits"] == "8/8/8"
    assert result.cc < 0.65 * result.cc_static


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.toml")), ids=lambda p: p.stem)
def test_every_recipe_is_valid(path: Path) -> None:
    config = TrainConfig.from_recipe(path)
    assert TrainConfig.from_toml(config.to_toml(), "again") == config


@pytest.mark.parametrize("gated", [False, True])
def test_training_that_ends_below_the_last_stage_warns_of_what_it_missed(gated: bool) -> None:
    gates: dict[str, Any] = {
        "schedule": "dfq",
        "quantize_stem": False,
        "stages": ((8, 8, 8),),
        "targets": (2.0, 3.0, 4.0, 5.0),
        "options": ((3, 6), (4, 8)),
    }
    config = replace(SMALL, train_limit=32, test_limit=32, epochs=2, **(gates if gated else {}))
    with pytest.warns(UserWarning, match="stage 3 of 4") as caught:
        train(config)
    (text,) = [str(w.message) for w in caught if "stage 3 of 4" in str(w.message)]
    assert ("4.0 %" if gated else "6/6/8") in text


@pytest.mark.parametrize("changes", [{"epochs": 3}, {"schedule": "static", "stages": ((8, 8, 8),), "deadlines": ()}])
def test_training_that_reaches_its_last_stage_or_is_stopped_early_does_not_warn(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = replace(SMALL, train_limit=64, test_limit=32, **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(config, out=tmp_path, stop_after=1)
        train(replace(config), out=tmp_path, resume=True)


def test_learning_rate_shapes() -> None:
    cosine = TrainConfig(lr=0.4, warmup=0.1)
    rates = [learning_rate(vars(cosine), t, 100) for t in range(100)]
    assert rates[0] == pytest.approx(0.04) and max(rates) == pytest.approx(0.4) and rates[-1] < 1e-3
    steps = TrainConfig(lr=0.1, lr_schedule="steps", milestones=(0.5, 0.75))
    assert [learning_rate(vars(steps), t, 100) for t in (0, 49, 50, 74, 75)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001]
    )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"epoch": 3}, "unknown recipe keys epoch"),
        ({"epochs": 2.5}, "integer"),
        ({"epochs": 0}, "at least 1"),
        ({"lr": "fast"}, "number"),
        ({"schedule": "often"}, "one of static"),
        ({"stages": [[3, 3]]}, "3 or 4 widths"),
        ({"stages": [[3, 3, 40]]}, "grad bits"),
        ({"schedule": "static"}, "one stage"),
        ({"schedule": "static", "stages": [[8, 8, 8]], "targets": [3.0]}, "belong to schedule 'dfq'"),
        ({"deadlines": [3]}, "rising"),
        ({"data": 5}, "str"),
        ({"mode": "papr"}, "'papr'; use 'fixed'"),
        ({"mode": "scale-floor+masked-noise"}, "'masked-noise'"),
        (
            {"schedule": "dfq", "targets": [3.0], "options": [[3, 6], [4, 8]], "mode": "norm-per-option"},
            "comes with computing every option",
        ),
    ],
)
def test_wrong_recipes_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        TrainConfig.from_mapping(values)


def test_diverged_training_says_so() -> None:
    with pytest.raises((RuntimeError, ValueError), match=r"lower|diverged"):
        train(replace(SMALL, lr=1e30))


def test_command_line_imports_no_torch_until_it_trains() -> None:
    code = (
        "import argparse, sys, sw_model.commands.training_commands as c; p = argparse.ArgumentParser();"
        "c.register(p.add_subparsers()); p.parse_args(['train', '--epochs', '3']);"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def command(*words: str) -> int:
    """Exit status of ``fractrain`` with these words."""
    return main(["train", *words])


def test_command_line_trains_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    small = ["--epochs", "1", "--train-limit", "64", "--test-limit", "32", "--width", "4", "--bits", "8/8/8"]
    assert command(*small, "--device", "software", "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["counters"]["PRODUCTS"] > 0
    assert command("--resume", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["finished"]
    assert command("--resume", out, "--seed", "2") == 2
    assert "leave out" in capsys.readouterr().err
    assert command("--bits", "8", "--out", str(tmp_path / "no")) == 2
    assert command("--data", str(tmp_path / "none"), "--out", str(tmp_path / "no")) == 2
    assert "existing path" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    gated = str(RECIPES / "digits-fractrain.toml")
    assert command("--recipe", gated, *small, "--out", str(tmp_path / "static"), "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["cp"] == pytest.approx(6.25) and result["history"][0]["target"] is None


def test_reference_device_trains_to_the_same_bits_as_software(tmp_path: Path) -> None:
    from sw_model.train.engines import open_engine

    config = replace(SMALL, width=8, epochs=2, train_limit=24, batch=12, test_limit=8, quantize_head=True)
    for device in ("software", "reference"):
        train(config, open_engine(device, "sim-small"), out=tmp_path / device)
    states = [state_of(tmp_path / device) for device in ("software", "reference")]
    assert [state.pop("device")["device"] for state in states] == ["software", "reference"]
    assert same(*states)


def test_gradient_quantizers_have_the_variance_that_theory_gives(capsys: pytest.CaptureFixture[str]) -> None:
    from sw_model.data.images import load_data
    from sw_model.studies.noise import bench_quantizers, print_quantizers
    noise = bench_quantizers(load_data("digits"), width=4, batch=16, warmup_steps=12, rounds=12, bits=(4,))["bits"][4]
    assert noise["variance"]["bhq"] < noise["variance"]["psq"] < noise["variance"]["ptq"]
    assert noise["variance"]["ptq"] <= noise["bound"]["ptq"] and noise["variance"]["psq"] <= noise["bound"]["psq"]
    assert all(abs(noise["bias"][name] - 1) < 0.2 for name in noise["bias"])
    about = {"model": "m", "warmup_steps": 12, "rounds": 12, "batch": 16, "batches": 0, "draws": 2}
    print_quantizers({**about, "bits": {4: noise}}, as_json=False)
    assert "bhq" in capsys.readouterr().out.lower()


def test_the_variance_of_quantized_gradients_is_the_sum_of_the_layers(tmp_path: Path) -> None:
    path = tmp_path / "new" / "quantizers.json"
    options = ["--bits", "5", "--rounds", "2", "--steps", "20", "--batches", "2", "--draws", "4", "--save", str(path)]
    assert main(["bench", "quantizers", *options]) == 0
    rows = json.loads(path.read_text())["bits"]["5"]["decomposition"]
    assert set(rows) == {"ptq", "psq", "bhq"}
    for row in rows.values():
        assert row["sum"]["mean"] == pytest.approx(sum(row["layers"].values()))
        assert min(row["layers"].values()) > 0 and len(row["layers"]) == 10
        # Theorem 2: layers add up, and on top of the variance over batches.
        assert 0.7 < row["ratio"]["mean"] < 1.4 and 0.6 < row["total_ratio"]["mean"] < 1.5
        assert row["qat"] > 0 and 0.3 < row["bias"]["mean"] < 2
    assert rows["bhq"]["all"]["mean"] < rows["psq"]["all"]["mean"] < rows["ptq"]["all"]["mean"]
    assert main(["bench", "quantizers", "--batches", "1"]) == 2


@pytest.mark.parametrize("gradient", ["ptq", "psq", "bhq"])
def test_statquant_gradients_train(gradient: str) -> None:
    config = replace(SMALL, schedule="static", stages=((8, 8, 5),), gradient=gradient, deadlines=(), epochs=4)
    assert train(config).history[-1]["loss"] < 2.3
    with pytest.raises(ValueError, match="fast path"):
        train(config, ExactEngine())
