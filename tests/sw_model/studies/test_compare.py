"""Finished runs side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fractrain import main
from sw_model.studies.compare import ComparisonError, draw_runs, read_run, score_rows
from sw_model.train.loop import train
from sw_model.train.recipe import TrainConfig


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("runs")
    common = {"train_limit": 64, "test_limit": 50, "epochs": 2, "batch": 32, "schedule": "static"}
    out = []
    for name, stages in (("wide", [[8, 8, 8]]), ("narrow", [[4, 4, 4]])):
        train(TrainConfig.from_mapping({**common, "stages": stages}), out=base / name)
        out.append(base / name)
    return out


def test_table_is_against_the_first_run(folders: list[Path]) -> None:
    wide, narrow = score_rows([read_run(folder) for folder in folders])
    assert wide["difference"] == wide["cc_saved"] == 0
    assert narrow["cc_saved"] == pytest.approx(75)
    assert narrow["accuracy"] == pytest.approx(wide["accuracy"] + narrow["difference"])


def test_command_prints_and_draws(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "new" / "runs.svg"
    assert main(["compare", *map(str, folders), "--figure", str(figure), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in rows] == ["wide", "narrow"]
    assert "narrow" in figure.read_text() and "float32 MAC" in figure.read_text()
    assert main(["compare", *map(str, folders)]) == 0
    assert "75.0 %" in capsys.readouterr().out


def test_a_run_that_has_not_finished_is_named(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig.from_mapping({"train_limit": 64, "test_limit": 50, "epochs": 2, "batch": 32})
    train(config, out=tmp_path / "cut", stop_after=3)
    with pytest.raises(ComparisonError, match="cut"):
        read_run(tmp_path / "cut")
    assert main(["compare", str(tmp_path / "cut"), str(folders[0])]) == 2
    assert "--resume" in capsys.readouterr().err
    with pytest.raises(ComparisonError, match=r"no metrics\.csv"):
        read_run(tmp_path)


def test_picture_of_one_run(folders: list[Path], tmp_path: Path) -> None:
    draw_runs([read_run(folders[0])], tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 5000
