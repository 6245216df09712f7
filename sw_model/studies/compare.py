"""Finished runs side by side: accuracy or perplexity against epochs and against cost, as a table and a figure."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hw.files import parse_toml, save_picture
from sw_model.train.metrics import METRICS, Metric


class ComparisonError(ValueError):
    """A folder holds no finished run, or runs cannot be compared; the message says why."""


@dataclass(frozen=True)
class FinishedRun:
    """What a comparison needs of a run.

    Attributes:
        name: of its folder.
        metric: what its scores are.
        score: of the test data at the end, as people read it (accuracy in percent).
        cc: cost as published, in float32 MACs; cc_full: of every product as it ran.
        epochs, tested: epochs with an evaluation and their scores.
        spent: cost as published, accumulated, at those epochs.
        settings: epochs trained, and what it was trained on, as far as the folder says.
    """

    name: str
    metric: Metric
    score: float
    cc: float
    cc_full: float
    epochs: tuple[int, ...]
    tested: tuple[float, ...]
    spent: tuple[float, ...]
    settings: Mapping[str, Any]


def read_run(folder: Path) -> FinishedRun:
    """A run from its folder's ``metrics.csv`` and ``result.json``.

    Raises:
        ComparisonError: the folder lacks one of them, or the run has no score or has not finished.
    """
    if not folder.is_dir():
        raise ComparisonError(f"{folder} is no folder; name that of a run (its --out)")
    for name in ("metrics.csv", "result.json"):
        if not (folder / name).is_file():
            raise ComparisonError(
                f"{folder} has no {name}: it is no finished run; finish it with train --resume {folder}"
            )
    result = _read_result(folder / "result.json")
    metric = METRICS[result["metric"]]
    column, factor = f"test_{metric.name}", 100 if metric.percent else 1
    try:
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            every = list(csv.DictReader(file))
        rows = [row for row in every if row.get(column)]
        epochs = tuple(int(row["epoch"]) for row in rows)
        tested = tuple(factor * float(row[column]) for row in rows)
        spent = tuple(float(row["cc"]) for row in rows)
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ComparisonError(f"{folder / 'metrics.csv'} is damaged ({error!r}); restore it, or train again") from error
    if not result["finished"] or not rows:
        raise ComparisonError(f"{folder} holds a run without an end or a score; finish it with train --resume {folder}")
    return FinishedRun(
        folder.name,
        metric,
        factor * float(result["test_score"]),
        float(result["cc"]),
        float(result["cc_full"]),
        epochs,
        tested,
        spent,
        {"epochs": len(every), **_read_settings(folder / "config.toml")},
    )


def _read_result(path: Path) -> dict[str, Any]:
    """What :class:`sw_model.train.metrics.TrainingResult` left, as far as a comparison needs it."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ComparisonError(f"{path} is damaged ({error}); restore it, or train again") from error
    if not isinstance(result, dict):
        raise ComparisonError(f"{path} holds {type(result).__name__}, not the result of a training; restore it")
    wanted = {"metric": str, "test_score": int | float, "cc": int | float, "cc_full": int | float, "finished": bool}
    wrong = [key for key, kind in wanted.items() if not isinstance(result.get(key), kind)]
    if result.get("test_score", 0) is None and not result.get("finished"):
        wrong = [key for key in wrong if key != "test_score"]
    if wrong or result["metric"] not in METRICS:
        raise ComparisonError(
            f"{path} is not the result of a training: {', '.join(wrong or ['metric'])} missing or of another kind; restore "
            "it, or train again"
        )
    return result


#: settings that two runs must share for their scores to be comparable: what they were trained and tested on
DATA = ("data", "subset", "train_limit", "test_limit")


def _read_settings(path: Path) -> dict[str, Any]:
    """The settings of a run that say on what it was trained; none where the run has no settings (a board's)."""
    if not path.is_file():
        return {}
    try:
        values = parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: values[name] for name in DATA if name in values}


def why_not_comparable(runs: Sequence[FinishedRun]) -> list[str]:
    """Why scores of runs should not be compared: they were not trained as long, or on the same data."""
    found = []
    for name in ("epochs", *DATA):
        values = {run.name: run.settings[name] for run in runs if name in run.settings}
        if len(set(values.values())) > 1:
            told = ", ".join(f"{run} {value!r}" for run, value in values.items())
            found.append(f"runs differ in {name}: {told}")
    return found


def read_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Runs of several folders.

    Raises:
        ComparisonError: as :func:`read_run`, or the runs have different metrics.
    """
    runs = [read_run(folder) for folder in folders]
    if len(names := {run.metric.name for run in runs}) > 1:
        raise ComparisonError(f"runs are measured by {' and '.join(sorted(names))}; compare runs of one kind")
    return runs


def score_rows(runs: Sequence[FinishedRun]) -> list[dict[str, float | str]]:
    """Score, its difference to the first run's, and the share of the first run's cost saved, in percent."""
    base = runs[0]
    return [
        {
            "run": run.name,
            run.metric.name: run.score,
            "difference": run.score - base.score,
            "cc": run.cc,
            "cc_saved": 100 * (1 - run.cc / base.cc),
            "cc_full": run.cc_full,
            "cc_full_saved": 100 * (1 - run.cc_full / base.cc_full),
        }
        for run in runs
    ]


def draw_runs(runs: Sequence[FinishedRun], path: Path) -> None:
    """Test scores of all runs over epochs and over cost as one picture (the suffix of ``path`` says which format)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for run in runs:
        left.plot(run.epochs, run.tested, marker=".", label=run.name)
        right.plot(run.spent, run.tested, marker=".", label=run.name)
    metric = runs[0].metric
    left.set(xlabel="epoch", ylabel=f"test {metric.name}" + (" (%)" if metric.percent else ""))
    right.set(xlabel="cost so far, float32 MAC (as published)")
    left.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    save_picture(figure, path, dpi=120)
