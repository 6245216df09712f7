"""One self-contained HTML page about a run, or about several side by side: curves, precision over time, cost, cycles."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from hw.cost.training_schedule import RECORD, Mixture, Stage, TrainingSchedule, load_schedule
from hw.files import write_atomically
from hw.networks import PRODUCTS
from sw_model.studies.compare import ComparisonError, read_runs, score_rows, why_not_comparable
from sw_model.studies.run_pictures import bars, curves, precision_map
from sw_model.train.metrics import METRICS, Metric

TEMPLATE = Path(__file__).with_name("run_report.html.j2")
MOST_BARS = 24  #: layers that have a bar of their own; the others share one


@dataclass(frozen=True)
class Table:
    """Rows of texts under headings."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


@dataclass(frozen=True)
class Picture:
    """An SVG element and what it shows."""

    svg: Markup
    caption: str


@dataclass
class Section:
    """A part of the page, in the order of its attributes.

    Attributes:
        key: name for links.
        title, note: above it.
        cards: (name, value) figures to be seen first.
        figures, tables: open; ``folded`` are tables that a reader may open.
        text: settings, folded under ``text_title``.
    """

    key: str
    title: str
    note: str = ""
    cards: Sequence[tuple[str, str]] = ()
    figures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: list[Table] = field(default_factory=list)
    text: str = ""
    text_title: str = "Settings"


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder tells, finished or not.

    Attributes:
        name: of the folder.
        metric: of its scores.
        rows: metrics by epoch: numbers where they are any, None where there was no evaluation.
        result: what it has come to; empty until it has ended.
        schedule: the precision that it used; None if the folder has no record.
        settings: its recipe; device: what computed it.
    """

    name: str
    metric: Metric
    rows: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any]
    schedule: TrainingSchedule | None
    settings: str
    device: Mapping[str, Any]

    def column(self, name: str, factor: float = 1.0) -> tuple[list[float], list[float]]:
        """Epochs that have a value, and the values."""
        found = [(row["epoch"], factor * row[name]) for row in self.rows if isinstance(row.get(name), float)]
        return [epoch for epoch, _ in found], [value for _, value in found]

    @property
    def factor(self) -> float:
        """From a score to what people read."""
        return 100.0 if self.metric.percent else 1.0

    @property
    def scale(self) -> str:
        """The metric with its unit, for an axis."""
        return self.metric.name + (" (%)" if self.metric.percent else "")


def read_record(folder: Path) -> RunRecord:
    """A run from its folder.

    Raises:
        ComparisonError: there is no run, or one of its files is damaged.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        raise ComparisonError(
            f"{folder} has no metrics.csv: no epoch of a run has ended there; name the --out of a training"
        )
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: _number(text) for name, text in row.items()} for row in csv.DictReader(file)]
        tested = next(name for name in rows[0] if name.startswith("test_"))
        metric = METRICS[tested.removeprefix("test_")]
        if not all(isinstance(row["epoch"], float) and isinstance(row["loss"], float) for row in rows):
            raise ValueError("an epoch without number or loss")
    except (ValueError, KeyError, IndexError, StopIteration, AttributeError, csv.Error) as error:
        raise ComparisonError(f"{path} is damaged ({error!r}); restore it, or train again") from error
    record, config = folder / RECORD, folder / "config.toml"
    return RunRecord(
        folder.resolve().name,
        metric,
        rows,
        _object(folder / "result.json"),
        load_schedule(record) if record.is_file() else None,
        config.read_text(encoding="utf-8") if config.is_file() else "",
        _object(folder / "device.json"),
    )


def _number(text: str) -> float | str | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _object(path: Path) -> Mapping[str, Any]:
    """A JSON object from a file; empty if there is none."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ComparisonError(f"{path} is damaged ({error}); restore it, or train again") from error
    if not isinstance(found, dict):
        raise ComparisonError(f"{path} holds {type(found).__name__}, not what a run has written; restore it")
    return found


def write_page(folders: Sequence[Path], out: Path) -> None:
    """Writes the page about the runs of ``folders``, the baseline first, to ``out``.

    Raises:
        ComparisonError: a folder without a run, or runs that cannot be compared.
    """
    records = [read_record(folder) for folder in folders]
    sections = [_comparison(folders, records)] if len(records) > 1 else []
    for number, record in enumerate(records):
        sections.append(_run(f"run{number}", record))
    names = ", ".join(record.name for record in records)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=f"Training {names}" if len(records) == 1 else f"Trainings {names}",
        subtitle="Cost is in float32 multiply-accumulates; widths are in bits.",
        sections=sections,
    )
    write_atomically(out, page)


def _picture(svg: str, caption: str) -> Picture:
    return Picture(Markup(svg), caption)


def _comparison(folders: Sequence[Path], records: Sequence[RunRecord]) -> Section:
    runs = read_runs(folders)
    base = records[0]
    over_epochs = {run.name: (run.epochs, run.tested) for run in runs}
    over_cost = {run.name: (run.spent, run.tested) for run in runs}
    rows = [
        (str(row["run"]), f"{row[base.metric.name]:.2f}", f"{row['difference']:+.2f}", f"{row['cc']:.4g}",
         f"{row['cc_saved']:.1f} %", f"{row['cc_full']:.4g}", f"{row['cc_full_saved']:.1f} %")
        for row in score_rows(runs)
    ]  # fmt: skip
    headings = ("run", f"test {base.scale}", "difference", "CC as published", "saved", "CC of every product", "saved")
    return Section(
        "comparison",
        "Side by side",
        "; ".join(why_not_comparable(runs)),
        figures=[
            _picture(curves("both-epochs", over_epochs, "epoch", f"test {base.scale}"), "Test score over epochs"),
            _picture(
                curves("both-cost", over_cost, "cost so far (as published)", f"test {base.scale}"),
                "Test score over cost",
            ),
        ],
        tables=[Table(headings, rows)],
    )


def _run(key: str, record: RunRecord) -> Section:
    metric, result = record.metric, record.result
    cards = [("epochs", f"{record.rows[-1]['epoch']:.0f}")]
    if (score := result.get("test_score")) is not None:
        cards += [
            (f"test {metric.name}", metric.text(score)),
            (f"best {metric.name}", metric.text(result["best_score"])),
        ]
    cards += [("device", str(record.device.get("device", "unknown")))]
    if "cc" in result:
        cards += [("cost as published", f"{result['cc']:.3g}"), ("share of float32", f"{result['cp']:.2f} %")]
        if result.get("cc_static"):
            cards += [("saved against 8/8/8", f"{100 * (1 - result['cc'] / result['cc_static']):.1f} %")]
        cards += [("inputs trained on", f"{result['images']:,}")]
    cycles = {name: value for name, value in result.get("counters", {}).items() if isinstance(value, int)}
    if "CYCLES" in cycles:
        cards += [("cycles", f"{cycles['CYCLES']:,}")]
    tested, trained = (record.column(f"{part}_{metric.name}", record.factor) for part in ("test", "train"))
    section = Section(
        key, record.name, "" if result.get("finished") else "This run has not ended.", cards, text=record.settings
    )
    section.figures += [
        _picture(curves(f"{key}-score", {"test": tested, "training": trained}, "epoch", record.scale), "Score"),
        _picture(curves(f"{key}-loss", {"loss": record.column("loss")}, "epoch", "training loss"), "Training loss"),
        _picture(curves(f"{key}-cost", _cost(record), "epoch", "float32 MAC"), "Cost so far"),
    ]
    section.figures += _precision(key, record)
    if by_layer := result.get("cost_by_layer"):
        section.figures.append(_picture(_layer_bars(key, by_layer), "Cost of every product as it ran, by layer"))
    if cycles:
        section.tables.append(Table(("counter", "value"), [(n, f"{v:,}") for n, v in cycles.items()]))
    headings = list(record.rows[0])
    rows = [[_cell(row[name]) for name in headings] for row in record.rows]
    section.folded.append(Table(headings, rows, title="Every epoch"))
    return section


def _cell(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.6g}"


def _cost(record: RunRecord) -> dict[str, tuple[list[float], list[float]]]:
    return {"as published": record.column("cc"), "every product": record.column("cc_full")}


def _precision(key: str, record: RunRecord) -> list[Picture]:
    """Widths over time: those of the schedule, or the cost that gates chose; then the width of every layer."""
    found = []
    cp, target = record.column("cp"), record.column("target")
    if target[0]:
        lines = {"gates' choices": cp, "target": target}
        found.append(_picture(curves(f"{key}-cp", lines, "epoch", "% of float32"), "Cost that gates chose"))
    schedule = record.schedule
    stages = [] if schedule is None else [stage for stage in schedule.stages if stage.epochs > 0]
    if schedule is None or not stages:
        return found
    names = _layers(schedule)
    bits = np.array([[_width(_mixture(schedule, stage, name)) for stage in stages] for name in names])
    ends = np.cumsum([stage.epochs for stage in stages]).tolist()
    caption = "Mean width of the activations of every layer; float32 is grey, an input that skips a layer counts 0"
    return [*found, _picture(precision_map(f"{key}-bits", names, ends, bits), caption)]


def _layers(schedule: TrainingSchedule) -> list[str]:
    """Names of the layers, from the input on."""
    named = sorted(set().union(*({*stage.layers, *(stage.ran or {})} for stage in schedule.stages)))
    try:
        return [shape.name for shape in schedule.trained.shapes()] if schedule.trained else named or ["all layers"]
    except ValueError:  # a network that the cost models do not know
        return named or ["all layers"]


def _mixture(schedule: TrainingSchedule, stage: Stage, layer: str) -> Mixture:
    return (stage.ran or {}).get(layer) or stage.layers.get(layer, stage.mixture)


def _width(mixture: Mixture) -> float:
    whole = sum(share for share, _ in mixture)
    return sum(share * bits.a for share, bits in mixture) / whole


def _layer_bars(key: str, by_layer: Mapping[str, Mapping[str, float]]) -> str:
    dearest = sorted(by_layer, key=lambda name: -sum(by_layer[name].values()))
    own = set(dearest[:MOST_BARS])
    labels = [name for name in by_layer if name in own]
    parts = {product: [by_layer[name].get(product, 0.0) for name in labels] for product in PRODUCTS}
    if others := dearest[MOST_BARS:]:
        labels.append(f"{len(others)} others")
        for product, values in parts.items():
            values.append(sum(by_layer[name].get(product, 0.0) for name in others))
    return bars(f"{key}-layers", labels, {name.replace("_", " "): v for name, v in parts.items()}, "float32 MAC")
