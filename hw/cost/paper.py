"""The paper's cost tables, recomputed: published value, our value by the published accounting, and why they differ.

Published figures are data (``paper_tables.toml``); everything else is computed.  A line of the report never claims
more than its status says:

- ``reproduced``: follows from the published accounting alone, within the tolerance;
- ``inferred epochs``: the accounting holds if training is counted up to some epoch that the paper does not state;
- ``assumed stages``: as above, with assumed stage lengths; other lengths or epochs can give the published figure;
- ``consistent``: agrees with other published figures that it follows from whatever the machine, so nothing was recomputed;
- ``restated``: formed from figures that other lines count already, so that it is no evidence of its own;
- ``differs``: computed by the published accounting, outside the tolerance, or within it by accident;
- ``not reproducible``: no reading of the published accounting gives the figure.

Energies are estimates of an analytic model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hw.cost.bitfusion import BITFUSION, scheduled_costs
from hw.cost.count import computational_cost
from hw.cost.training_schedule import CIFAR_OPTIONS, IMAGENET_OPTIONS, TrainingSchedule, parse_schedule
from hw.files import TomlError, parse_toml
from hw.networks import Bits, ConvShape, network

TABLES = Path(__file__).with_name("paper_tables.toml")
REPRODUCED, INFERRED, ASSUMED = "reproduced", "inferred epochs", "assumed stages"
CONSISTENT, RESTATED = "consistent", "restated"
DIFFERS, IMPOSSIBLE = "differs", "not reproducible"
STATUSES = (REPRODUCED, INFERRED, ASSUMED, CONSISTENT, RESTATED, DIFFERS, IMPOSSIBLE)
CC_TOLERANCE = 3.0  # percent
MACHINE_TOLERANCE = 10.0  # percent, energy and latency
RATIO_TOLERANCE = 5.0  # percent, energy and latency relative to the baseline of the same network
ROUNDING_POINTS = 0.3  # percentage points, savings formed from rounded figures

# Below this share of the formula, "counted up to the best epoch" is no longer a credible explanation.
LEAST_COUNTED = 0.1

CycleFunction = Callable[[Sequence[ConvShape], Bits], float]


@dataclass(frozen=True)
class Fabric:
    """Our own accelerator, as the report needs it.

    Attributes:
        name: of the design, for the column heading.
        clock_hz: its clock, in Hz.
        cycles: (layers, widths) -> cycles of the three products for one sample, summed over the layers.
        variants: label -> the same with more of a training step than that, for the board measurement's lines.
    """

    name: str
    clock_hz: float
    cycles: CycleFunction
    variants: Mapping[str, CycleFunction] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """One published figure.

    Attributes:
        table: "1" to "5", or "ZC706".
        group, method, precision: the row of the table.
        quantity, unit: what is compared.
        published: as printed, or as it follows from printed figures if ``quantity`` says so.
        recomputed: by the published accounting, or None where that is impossible.
        status: one of ``STATUSES``.
        epochs: how many epochs the recomputed value counts, None where that has no meaning.
        implied_epochs: for CC, after how many epochs the formula gives the published value, where that explains it.
        explanation: what was assumed, or why the figures differ.
        fabric: the same quantity on our own accelerator, None where that has no meaning or none was given.
    """

    table: str
    group: str
    method: str
    precision: str
    quantity: str
    unit: str
    published: float
    recomputed: float | None
    status: str
    epochs: float | None = None
    implied_epochs: float | None = None
    explanation: str = ""
    fabric: float | None = None

    @property
    def deviation(self) -> float | None:
        """Recomputed against published: in percent, or in percentage points where the unit is percent."""
        if self.recomputed is None:
            return None
        if self.unit == "%":
            return self.recomputed - self.published
        return 100 * (self.recomputed / self.published - 1)


@dataclass(frozen=True)
class Recipe:
    """How a data set is trained, see ``[datasets]`` of the data file; ``epochs`` is the whole training."""

    samples: int
    classes: int
    epochs: float
    early: float
    unknown: str = ""  # why the recipe is a stand-in, if it is


def load_tables(path: Path = TABLES) -> dict[str, Any]:
    """Published figures.

    Raises:
        ValueError: the file is not TOML or has no rows.
    """
    try:
        data = parse_toml(path.read_text(encoding="utf-8"))
    except TomlError as error:
        raise ValueError(f"{path} is not valid TOML: {error}; correct the line that it names") from error
    for section in ("datasets", "row", "saving", "zc706"):
        if section not in data:
            raise ValueError(f"{path} has no section {section!r}; restore it from the repository")
    return data


def _recipe(data: Mapping[str, Any], dataset: str) -> Recipe:
    d = data["datasets"][dataset]
    epochs = d["epochs"] if "epochs" in d else d["iterations"] * d["batch"] / d["samples"]
    return Recipe(d["samples"], d["classes"], float(epochs), d["early"], d.get("unknown", ""))


@cache
def _network(model: str, classes: int) -> tuple[ConvShape, ...]:
    return tuple(network(model, classes))


@dataclass(frozen=True)
class _Row:
    """A row of a table with everything that is computed about it once."""

    data: Mapping[str, Any]
    recipe: Recipe
    shapes: tuple[ConvShape, ...]
    schedule: TrainingSchedule
    per_epoch: tuple[float, ...]  # CC of an epoch in each stage
    formula: float  # CC over the whole training

    @property
    def counted(self) -> float:
        """Epochs after which the training has cost the published CC, if its stages have the lengths assumed."""
        left, epochs = self.data["cc"], 0.0
        for stage, per_epoch in zip(self.schedule.stages, self.per_epoch, strict=True):
            if left <= stage.epochs * per_epoch:
                break
            epochs, left = epochs + stage.epochs, left - stage.epochs * per_epoch
        return epochs + left / per_epoch

    @property
    def dearest(self) -> float:
        """CC of the whole training at the precision of the dearest stage: no stage lengths give more."""
        return self.recipe.epochs * max(self.per_epoch)

    @property
    def credible(self) -> bool:
        """Whether unpublished stage lengths and counted epochs can explain the published CC."""
        return LEAST_COUNTED * self.formula <= self.data["cc"] <= self.dearest * (1 + CC_TOLERANCE / 100)

    @property
    def assumes_stages(self) -> bool:
        return len(self.schedule.stages) > 1

    def line(
        self, quantity: str, unit: str, published: float, recomputed: float | None, status: str, **more: Any
    ) -> Line:
        d = self.data
        return Line(
            str(d["table"]),
            d["group"],
            d["method"],
            d["precision"],
            quantity,
            unit,
            published,
            recomputed,
            status,
            **more,
        )


def _row(data: Mapping[str, Any], row: Mapping[str, Any]) -> _Row:
    recipe = _recipe(data, row["dataset"])
    shapes = _network(row["model"], recipe.classes)
    options = IMAGENET_OPTIONS if row["dataset"] == "imagenet" else CIFAR_OPTIONS
    schedule = parse_schedule(row["precision"], recipe.epochs, options=options, early=recipe.early)
    cost = computational_cost(shapes, schedule, recipe.samples)
    per_epoch = tuple(sample * recipe.samples for sample in cost.per_sample)
    return _Row(row, recipe, shapes, schedule, per_epoch, cost.total)


def _bitfusion(row: _Row, epochs: float) -> tuple[float, float]:
    """Minutes and (estimated) kilojoules of the training on BitFusion, batch 1, counted over ``epochs``."""
    minutes = kilojoules = 0.0
    for span, cost in scheduled_costs(row.shapes, row.schedule.truncated(epochs)):
        samples = span * row.recipe.samples
        minutes += cost.cycles * samples / BITFUSION.clock_hz / 60
        kilojoules += cost.energy_pj * samples * 1e-15
    return minutes, kilojoules


def _fabric_minutes(row: _Row, epochs: float, fabric: Fabric | None, variant: str = "") -> float | None:
    """Minutes of the same training on our accelerator; layers of equal widths are passed to it together."""
    if fabric is None:
        return None
    cycles = fabric.variants[variant] if variant else fabric.cycles
    minutes = 0.0
    for stage in row.schedule.truncated(epochs).stages:
        groups: dict[tuple[float, Bits], list[ConvShape]] = {}
        for shape in row.shapes:
            for choice in row.schedule.mixture(stage, shape):
                groups.setdefault(choice, []).append(shape)
        for (share, bits), shapes in groups.items():
            samples = share * stage.epochs * row.recipe.samples
            minutes += cycles(shapes, bits) * samples / fabric.clock_hz / 60
    return minutes


def _cc_line(row: _Row) -> Line:
    published, total, epochs = row.data["cc"], row.recipe.epochs, row.counted
    conditional = ASSUMED if row.assumes_stages else INFERRED
    if row.recipe.unknown:
        status, why = IMPOSSIBLE, row.recipe.unknown
    elif abs(row.formula / published - 1) <= CC_TOLERANCE / 100:
        status = ASSUMED if row.assumes_stages else REPRODUCED
        why = f"formula over all {total:.1f} epochs"
    elif not row.credible:
        status = IMPOSSIBLE
        ratio = published / row.formula
        times = f"{1 / ratio:.1f} times below" if ratio < 1 else f"{ratio:.2f} times"
        why = f"the published figure is {times} the formula over {total:.1f} epochs"
    elif epochs > total:
        status = conditional
        why = f"stages turned earlier than assumed: any lengths give up to {row.dearest:.3g} over {total:.1f} epochs"
    else:
        status = conditional
        why = "counted up to the best accuracy, presumably, after epochs that the paper does not state"
        if row.data["table"] == 5:
            why = "epochs are of 50,000 samples: neither the size of the subset nor the iterations are published"
    notes = [why]
    if row.assumes_stages:
        notes.append("stage lengths are not published: the early ones share the time before the first drop of the rate")
    if row.schedule.gated:
        notes.append("the gates' choices are not published: the two options around each target are mixed")
    if note := row.data.get("note"):
        notes.append(note)
    implied = None if status == IMPOSSIBLE or epochs > total else epochs
    return row.line(
        "CC", "MAC", published, row.formula, status,
        epochs=total, implied_epochs=implied, explanation="; ".join(notes),
    )  # fmt: skip


def _table1_lines(row: _Row, data: Mapping[str, Any]) -> list[Line]:
    """The baseline that the published saving implies, which counts for the saving, and the saving itself."""
    saving = row.data["saving_percent"]
    last = row.data["precision"].replace("(", "").replace(")", "").split("/")
    final = "/".join(f"{part[:2]}-{part.split(',')[-1]}" for part in last)
    baseline = _row(data, {**row.data, "method": "SBM", "precision": final, "cc": row.data["cc"] / (1 - saving / 100)})
    line = _cc_line(baseline)
    implied = baseline.line(
        "CC (implied by the published saving)", "MAC", line.published, line.recomputed, line.status,
        epochs=line.epochs, implied_epochs=line.implied_epochs, explanation=line.explanation,
    )  # fmt: skip
    computed = 100 * (1 - row.formula / baseline.formula)
    greatest = 100 * (1 - min(row.per_epoch) / baseline.per_epoch[0])
    why = f"both trainings in full, with assumed stage lengths; other lengths save from 0 to {greatest:.1f} %"
    return [
        implied,
        row.line(
            "CC saving", "%", saving, computed, RESTATED if 0 <= saving <= greatest else DIFFERS,
            epochs=row.recipe.epochs, explanation=why,
        ),
    ]  # fmt: skip


@dataclass(frozen=True)
class _Machines:
    """A quantity of a group of Table 3, as the models have it.

    Attributes:
        key, name, unit: of the quantity.  rows, base: the group, and its row of the baseline (SBM).
        ours, board: on BitFusion, and on our accelerator (None where that has no meaning), by the row's id.
    """

    key: str
    name: str
    unit: str
    rows: Sequence[_Row]
    base: _Row
    ours: Mapping[int, float]
    board: Mapping[int, float | None]


def _machine_lines(rows: Sequence[_Row], fabric: Fabric | None) -> list[Line]:
    """Energy and latency of a group of Table 3, absolute and relative to SBM, per sample and whole training."""
    base = next(row for row in rows if row.data["method"] == "SBM")
    ours = {id(row): _bitfusion(row, row.counted) for row in rows}
    minutes = {id(row): _fabric_minutes(row, row.counted, fabric) for row in rows}
    lines: list[Line] = []
    for at, (key, name, unit) in enumerate(
        (("latency_min", "latency", "min"), ("energy_kj", "energy (estimate)", "kJ"))
    ):
        board = minutes if key == "latency_min" else dict.fromkeys(minutes)
        machines = _Machines(key, name, unit, rows, base, {row: both[at] for row, both in ours.items()}, board)
        lines += _absolute_lines(machines)
        for row in rows:
            if row is not base:
                lines += _relative_lines(machines, row)
    return lines


def _absolute_lines(machines: _Machines) -> list[Line]:
    """The quantity of every row; where the baseline is off already, a match is an accident."""
    lines = []
    ours, key, base, quantity, unit = machines.ours, machines.key, machines.base, machines.name, machines.unit
    scale = ours[id(base)] / base.data[key]
    scale_holds = abs(scale - 1) <= MACHINE_TOLERANCE / 100
    for row in machines.rows:
        value, published = ours[id(row)], row.data[key]
        assumed = ASSUMED if row.assumes_stages else INFERRED
        near = abs(value / published - 1) <= MACHINE_TOLERANCE / 100
        close = near and scale_holds
        why = "three products at batch 1 over the epochs that the published CC implies"
        if not close:
            why += (
                f"; the published simulator's equations and constants give {scale:.2f} of the published {quantity} "
                "already for SBM, where only the counted epochs are open, so the paper ran another configuration "
                "(array, memory interface or constants), which it does not state"
            )
        if near and not close:
            why += "; this row is within the tolerance by accident, because it departs from SBM's scale"
        lines.append(
            row.line(
                quantity, unit, published, value, assumed if close else DIFFERS,
                epochs=row.counted, explanation=why, fabric=machines.board[id(row)],
            )
        )  # fmt: skip
    return lines


def _relative_lines(machines: _Machines, row: _Row) -> list[Line]:
    """The quantity of a row over the baseline's, of the whole training and per sample."""
    lines = []
    ours, board, key, base, quantity = machines.ours, machines.board, machines.key, machines.base, machines.name
    epochs = row.counted / base.counted
    for scope, divide in (("whole training", 1.0), ("per sample", epochs)):
        published = row.data[key] / base.data[key] / divide
        value = ours[id(row)] / ours[id(base)] / divide
        close = abs(value / published - 1) <= RATIO_TOLERANCE / 100
        if scope == "per sample":
            status = RESTATED
            why = "the whole training's ratio, both values over the ratio of counted epochs: the same deviation"
        elif row.data["precision"] == base.data["precision"]:
            status = CONSISTENT if close else DIFFERS
            why = "at equal precision the ratio is that of the published CC, on any machine"
        else:
            status = (ASSUMED if row.assumes_stages else INFERRED) if close else DIFFERS
            why = ""
        why += f"{'; ' if why else ''}counted epochs are {epochs:.2f} of SBM's"
        if not close and not row.schedule.gated:
            why += (
                f"; at equal precision {quantity} must scale with CC, but the published one is "
                f"{row.data[key] / base.data[key] / epochs:.2f} of that"
            )
        elif not close:
            sense = "dearer" if value < published else "cheaper"
            why += f"; the published {quantity} points to {sense} precisions than those assumed to meet cp"
        mine, reference = board[id(row)], board[id(base)]
        lines.append(
            row.line(
                f"{quantity} relative to SBM, {scope}", "", published, value,
                status, epochs=row.counted, explanation=why,
                fabric=mine / reference / divide if mine and reference else None,
            )
        )  # fmt: skip
    return lines


def _saving_lines(saving: Mapping[str, Any], rows: Sequence[_Row]) -> list[Line]:
    """A published saving against the published figures that it is formed from."""
    key, names = saving["quantity"], {"cc": "CC", "latency_min": "latency", "energy_kj": "energy"}
    group = {row.data["method"]: row.data for row in rows}

    def extremes(method: str) -> list[float]:
        values = sorted(100 * (1 - group[method][key] / group[other][key]) for other in saving["against"])
        return [values[0], values[-1]]

    own = extremes(saving["method"])
    bounds = ("least", "greatest") if len(saving["published_percent"]) == 2 else ("",)
    lines = []
    for at, (bound, published) in enumerate(zip(bounds, saving["published_percent"], strict=True)):
        close = abs(own[at] - published) <= ROUNDING_POINTS
        why = "formed from the table's own figures"
        if not close:
            others = [m for m in group if m not in (saving["method"], *saving["against"])]
            match = [m for m in others if abs(extremes(m)[at] - published) <= ROUNDING_POINTS]
            why += f", which give {own[at]:.1f} %"
            if match:
                why += f"; the published saving is that of {match[0]}"
        lines.append(
            Line(
                str(saving["table"]), saving["group"], saving["method"], group[saving["method"]]["precision"],
                f"{names[key]} saving{', ' + bound if bound else ''}", "%", published, own[at],
                CONSISTENT if close else DIFFERS, explanation=why,
            )
        )  # fmt: skip
    return lines


def _zc706_lines(entry: Mapping[str, Any], rows: Sequence[_Row], fabric: Fabric | None) -> list[Line]:
    """The board measurement against BitFusion with the same schedules, and against our accelerator."""
    by_method = {row.data["method"]: row for row in rows}
    row, base = by_method[entry["method"]], by_method[entry["against"]]
    epochs = row.counted / base.counted
    ours, reference = _bitfusion(row, row.counted), _bitfusion(base, base.counted)
    mine, yours = _fabric_minutes(row, row.counted, fabric), _fabric_minutes(base, base.counted, fabric)
    lines = []
    for at, (key, table3, name) in enumerate(
        (
            ("latency_saving_percent", "latency_min", "latency saving"),
            ("energy_saving_percent", "energy_kj", "energy saving (estimate)"),
        )
    ):
        own = 100 * (1 - row.data[table3] / base.data[table3])
        for scope, divide in (("whole training", 1.0), ("per sample", epochs)):
            lines.append(
                Line(
                    "ZC706", entry["group"], entry["method"], entry["precision"], f"{name}, {scope}", "%", entry[key],
                    100 * (1 - ours[at] / reference[at] / divide), IMPOSSIBLE,
                    explanation=(
                        "measured on a board; clock, utilisation and absolute times are not published, nor whether the "
                        f"saving is per sample; recomputed on BitFusion; Table 3's own figures give "
                        f"{own:.1f} % for the whole training, over {epochs:.2f} of SBM's counted epochs"
                    ),
                    fabric=100 * (1 - mine / yours / divide) if at == 0 and mine and yours else None,
                )
            )  # fmt: skip
    for variant in fabric.variants if fabric else ():
        mine, yours = (_fabric_minutes(r, r.counted, fabric, variant) for r in (row, base))
        assert mine is not None and yours is not None
        for scope, divide in (("whole training", 1.0), ("per sample", epochs)):
            lines.append(
                Line(
                    "ZC706", entry["group"], entry["method"], entry["precision"],
                    f"latency saving, {scope}: {variant}", "%", entry["latency_saving_percent"], None, IMPOSSIBLE,
                    explanation=(
                        "what the published measurement includes of a training step is not stated; the fabric's column "
                        "is its cycle and memory model, host work estimated"
                    ),
                    fabric=100 * (1 - mine / yours / divide),
                )
            )  # fmt: skip
    return lines


def recompute(data: Mapping[str, Any] | None = None, fabric: Fabric | None = None) -> list[Line]:
    """Every line of the report, in the order of the tables.

    Args:
        data: published figures; by default those of the paper.
        fabric: our own accelerator; without one, no line has a fabric value.
    """
    data = load_tables() if data is None else data
    groups: dict[tuple[int, str], list[_Row]] = {}
    for entry in data["row"]:
        groups.setdefault((entry["table"], entry["group"]), []).append(_row(data, entry))
    lines: list[Line] = []
    for (table, group), rows in groups.items():
        for row in rows:
            lines.append(_cc_line(row))
            if "saving_percent" in row.data:
                lines.extend(_table1_lines(row, data))
        if all("latency_min" in row.data for row in rows):
            lines.extend(_machine_lines(rows, fabric))
        for saving in data["saving"]:
            if (saving["table"], saving["group"]) == (table, group):
                lines.extend(_saving_lines(saving, rows))
    for entry in data["zc706"]:
        lines.extend(_zc706_lines(entry, groups[3, entry["group"]], fabric))
    return lines
