"""Studies: intervals, pairing, and that every study's recipes train."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fractrain import main
from sw_model.studies import accuracy
from sw_model.studies.accuracy import Estimate, Outcome, Runs, Study, TrainedVariant, compare, run_trainings, show
from sw_model.train.recipe import ConfigError, TrainConfig

STUDIES = [accuracy.statquant(5), accuracy.statquant(4), accuracy.methods(), accuracy.defects(), accuracy.fabric()]


def tiny(config: TrainConfig) -> TrainConfig:
    return replace(config, model="resnet-8", width=4, epochs=1, train_limit=32, test_limit=20, batch=16)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(3, 2, (4000, 5))
    hits = sum(abs((e := Estimate.of(list(row))).mean - 3) <= e.half for row in rows)
    assert hits / 4000 == pytest.approx(0.95, abs=0.015)


def collected(ended: Iterable[tuple[str, int, TrainedVariant]]) -> Runs:
    runs: Runs = {}
    for name, seed, trained in ended:
        runs.setdefault(name, {})[seed] = trained
    return runs


def command(*options: str) -> int:
    return main(["bench", "accuracy", *options])


def test_a_study_is_saved_continued_and_repeated_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny(accuracy.methods().variants["SBM"])
    study = Study("parts", {"SBM": base, "slow": replace(base, lr=0.01), "fast": replace(base, lr=0.2)}, "SBM")
    monkeypatch.setattr(accuracy, "methods", lambda: study)
    path = tmp_path / "new" / "study.json"

    def trained(*options: str) -> list[str]:
        assert command("methods", "--json", "--save", str(path), *options) == 0
        return [line.split(":")[0] for line in capsys.readouterr().err.splitlines()]

    assert trained("--seeds", "2", "--only", "slow", "fast") == [
        f"seed {s}  {n}" for s in (1, 2) for n in ("slow", "fast")
    ]
    part = json.loads(path.read_text())
    assert set(part["variants"]) == {"slow", "fast"} and part["variants"]["slow"]["accuracy_gain"] is None
    assert sorted(trained("--seeds", "3")) == sorted(
        ["seed 3  slow", "seed 3  fast", *(f"seed {s}  SBM" for s in (1, 2, 3))]
    )
    whole = json.loads(path.read_text())
    assert compare(study, collected(run_trainings(study, [1, 2, 3])), [1, 2, 3]) == {
        name: Outcome(**{k: Estimate(**v) if v else None for k, v in row.items()})
        for name, row in whole["variants"].items()
    }
    assert trained("--seeds", "3") == [] and len(trained("--seeds", "3", "--only", "SBM", "--again")) == 3
    assert json.loads(path.read_text()) == whole

    other = replace(study, variants={**study.variants, "slow": replace(base, lr=0.02)})
    monkeypatch.setattr(accuracy, "methods", lambda: other)
    assert command("methods", "--save", str(path)) == 2 and "another recipe" in capsys.readouterr().err
    for text in ("{}", "[1]", "no JSON", '{"recipes": {}, "runs": {"SBM": {"x": 1}}}'):
        path.write_text(text)
        assert command("methods", "--save", str(path)) == 2 and "no report" in capsys.readouterr().err
        assert path.read_text() == text


@pytest.mark.slow
def test_several_processes_train_what_one_does() -> None:
    base = tiny(accuracy.methods().variants["SBM"])
    study = Study("jobs", {"SBM": base, "PSQ": replace(base, gradient="psq")}, "SBM")
    assert collected(run_trainings(study, [1, 2], jobs=2)) == collected(run_trainings(study, [1, 2]))


def test_gains_are_paired_by_seed(capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny(accuracy.defects().variants["fixed"])
    study = Study("pairs", {"same": base, "reference": base, "other": replace(base, lr=0.01)}, "reference")
    ended = list(run_trainings(study, [1, 2]))
    assert [(name, seed) for name, seed, _ in ended] == [(name, seed) for seed in (1, 2) for name in study.variants]
    outcomes = compare(study, runs := collected(ended), [1, 2])
    assert outcomes["reference"].loss_gain is None
    assert outcomes["same"].loss_gain == Estimate(0.0, 0.0) and outcomes["same"].loss.half > 0
    gain = outcomes["other"].loss_gain
    assert gain is not None
    assert gain.mean == pytest.approx(outcomes["other"].loss.mean - outcomes["reference"].loss.mean)
    show(study, runs, [1, 2], as_json=True)
    assert json.loads(capsys.readouterr().out)["variants"]["same"]["loss_gain"] == {"mean": 0.0, "half": 0.0}


@pytest.mark.parametrize("study", STUDIES, ids=lambda s: s.title)
def test_every_variant_of_every_study_trains(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    small = replace(study, variants={name: tiny(config) for name, config in study.variants.items()})
    outcomes = compare(small, runs := collected(run_trainings(small, [1, 2])), [1, 2])
    assert all(np.isfinite(o.loss.mean) and 0 <= o.accuracy.mean <= 100 for o in outcomes.values())
    losses = [o.loss.mean for o in outcomes.values()]
    # Two steps do not show every published detail: running ranges, for one, matter to evaluation only.
    assert len(set(losses)) >= len(losses) / 2
    show(small, runs, [1, 2], as_json=False)
    assert study.reference in capsys.readouterr().out


def test_senseless_studies_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    study = accuracy.methods()
    for seeds in ([1], [2, 2]):
        with pytest.raises(ConfigError, match="two seeds"):
            compare(study, {}, seeds)
    for wrong in ({"only": ["DFQ"]}, {"study": replace(study, reference="DFQ")}):
        with pytest.raises(ConfigError, match="'DFQ' is none of the variants"):
            next(run_trainings(**{"study": study, "seeds": [1, 2], **wrong}))
    assert command("methods", "--seeds", "1") == 2
    assert "--seeds" in capsys.readouterr().err
