"""Studies: intervals, pairing, and that every study's recipes train."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest

from sw_model.studies import accuracy
from sw_model.studies.accuracy import Estimate, Study, compare, show
from sw_model.train.recipe import ConfigError, TrainConfig

STUDIES = [accuracy.statquant(5), accuracy.statquant(4), accuracy.methods(), accuracy.defects()]


def tiny(config: TrainConfig) -> TrainConfig:
    return replace(config, model="resnet-8", width=4, epochs=1, train_limit=32, test_limit=20, batch=16)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(3, 2, (4000, 5))
    hits = sum(abs((e := Estimate.of(list(row))).mean - 3) <= e.half for row in rows)
    assert hits / 4000 == pytest.approx(0.95, abs=0.015)


def test_gains_are_paired_by_seed(capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny(accuracy.defects().variants["fixed"])
    study = Study("pairs", {"same": base, "reference": base, "other": replace(base, lr=0.01)}, "reference")
    seen: list[tuple[str, int]] = []
    outcomes = compare(study, [1, 2], on_run=lambda name, seed, *_: seen.append((name, seed)))
    assert seen == [(name, seed) for seed in (1, 2) for name in study.variants]
    assert outcomes["reference"].loss_gain is None
    assert outcomes["same"].loss_gain == Estimate(0.0, 0.0) and outcomes["same"].loss.half > 0
    gain = outcomes["other"].loss_gain
    assert gain is not None
    assert gain.mean == pytest.approx(outcomes["other"].loss.mean - outcomes["reference"].loss.mean)
    show(study, outcomes, [1, 2], as_json=True)
    assert json.loads(capsys.readouterr().out)["variants"]["same"]["loss_gain"] == {"mean": 0.0, "half": 0.0}


@pytest.mark.parametrize("study", STUDIES, ids=lambda s: s.title)
def test_every_variant_of_every_study_trains(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    small = replace(study, variants={name: tiny(config) for name, config in study.variants.items()})
    outcomes = compare(small, [1, 2])
    assert all(np.isfinite(o.loss.mean) and 0 <= o.accuracy.mean <= 100 for o in outcomes.values())
    losses = [o.loss.mean for o in outcomes.values()]
    # Two steps do not show every published detail: running ranges, for one, matter to evaluation only.
    assert len(set(losses)) >= len(losses) / 2
    show(small, outcomes, [1, 2], as_json=False)
    assert study.reference in capsys.readouterr().out


def test_senseless_studies_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    study = accuracy.methods()
    for seeds in ([1], [2, 2]):
        with pytest.raises(ConfigError, match="two seeds"):
            compare(study, seeds)
    with pytest.raises(ConfigError, match="none of the variants"):
        compare(replace(study, reference="DFQ"), [1, 2])
    from sw_model.commands.training_commands import register_bench

    parser = argparse.ArgumentParser()
    register_bench(parser.add_subparsers())
    arguments = parser.parse_args(["accuracy", "methods", "--seeds", "1"])
    assert arguments.run(arguments) == 2
    assert "two seeds" in capsys.readouterr().err
