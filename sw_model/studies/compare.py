"""Finished runs side by side: accuracy or perplexity against epochs and against cost, as a table and a figure."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """

    name: str
    metric: Metric
    score: float
    cc: float
    cc_full: float
    epochs: tuple[int, ...]
    tested: tuple[float, ...]
    spent: tuple[float, ...]


def read_run(folder: Path) -> FinishedRun:
    """A run from its folder's ``metrics.csv`` and ``result.json``.

    Raises:
        ComparisonError: the folder lacks one of them, or the run has no score or has not finished.
    """
    for name in ("metrics.csv", "result.json"):
        if not (folder / name).is_file():
            raise ComparisonError(
                f"{folder} has no {name}: it is no finished run; finish it with train --resume {folder}"
            )
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    metric = METRICS[result["metric"]]
    column, factor = f"test_{metric.name}", 100 if metric.percent else 1
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get(column)]
    if not result.get("finished") or not rows:
        raise ComparisonError(f"{folder} holds a run without an end or a score; finish it with train --resume {folder}")
    return FinishedRun(
        folder.name,
        metric,
        factor * float(result["test_score"]),
        float(result["cc"]),
        float(result["cc_full"]),
        tuple(int(row["epoch"]) for row in rows),
        tuple(factor * float(row[column]) for row in rows),
        tuple(float(row["cc"]) for row in rows),
    )


def read_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Runs of several folders.

    Raises:
        ComparisonError: as :func:`read_run`, or the runs have different metrics.
    """
    runs = [read_run(folder) for folder in folders]
    if len(names := {run.metric.name for run in runs}) > 1:
        raise ComparisonError(f"runs are measured by {' and '.join(sorted(names))}; compare runs of one kind")
    return runs


def table(runs: Sequence[FinishedRun]) -> list[dict[str, float | str]]:
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


def draw(runs: Sequence[FinishedRun], path: Path) -> None:
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
    figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
