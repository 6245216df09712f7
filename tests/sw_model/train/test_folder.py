"""The files of a run that other programs read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sw_model.train.loop import TrainingStep, train
from tests.sw_model.train.test_loop import SMALL


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_log_of_a_killed_and_resumed_run_is_that_of_a_whole_one(tmp_path: Path) -> None:
    config = replace(SMALL, checkpoint_every=3)
    losses: list[float | None] = []
    whole = train(config, out=tmp_path / "whole", on_step=lambda step: losses.append(step.loss))

    def die(step: TrainingStep) -> None:
        if step.global_step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, out=tmp_path / "parts", on_step=die)
    train(config, out=tmp_path / "parts", resume=True)
    logged = scalars(tmp_path / "whole")
    assert [step for step, _ in logged["step/loss"]] == list(range(1, 13))
    assert [value for _, value in logged["step/loss"]] == pytest.approx(losses)
    assert [value for _, value in logged["epoch/bits_gradient"]] == [4, 6, 8]
    for name in ("loss", "test_accuracy", "lr", "cc"):
        assert [step for step, _ in logged[f"epoch/{name}"]] == [4, 8, 12]
        assert [value for _, value in logged[f"epoch/{name}"]] == pytest.approx([row[name] for row in whole.history])
    resumed = scalars(tmp_path / "parts")
    for log in (logged, resumed):
        log.pop("epoch/seconds")
    assert resumed == logged


def test_run_without_a_folder_leaves_no_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(replace(SMALL, epochs=1))
    assert not list(tmp_path.iterdir())


def test_curves_and_log_show_an_unquantized_operand_as_32_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: dict[str, list[float]] = {}

    plain = Axes.step

    def step(self: Axes, x: Any, y: list[float], *, label: str, **options: Any) -> Any:
        drawn[label] = [round(value) for value in y]
        return plain(self, x, y, label=label, **options)

    monkeypatch.setattr(Axes, "step", step)
    config = replace(SMALL, epochs=2, schedule="manual", stages=((8, 8, 0), (0, 0, 0)), starts=(0, 1), deadlines=())
    train(config, out=tmp_path)
    logged = scalars(tmp_path)
    for name, bits in {"weight": [8, 32], "activation": [8, 32], "gradient": [32, 32]}.items():
        assert drawn[name] == bits == [value for _, value in logged[f"epoch/bits_{name}"]]
