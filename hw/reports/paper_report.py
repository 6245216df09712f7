"""The report of the paper's costs, recomputed: Markdown, CSV and figures of the lines of :mod:`hw.cost.paper`."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hw.cost.paper import (
    ASSUMED,
    CC_TOLERANCE,
    CONSISTENT,
    DIFFERS,
    IMPOSSIBLE,
    INFERRED,
    MACHINE_TOLERANCE,
    RATIO_TOLERANCE,
    REPRODUCED,
    RESTATED,
    ROUNDING_POINTS,
    STATUSES,
    Fabric,
    Line,
    recompute,
)  # fmt: skip
from hw.files import save_picture, write_atomically


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if abs(value) >= 1e6 else f"{value:.4g}"


def _cells(line: Line, fabric: Fabric | None) -> dict[str, str | float | None]:
    """Column name -> value, explanation last."""
    cells: dict[str, str | float | None] = {
        "table": line.table,
        "group": line.group,
        "method": line.method,
        "precision": line.precision,
        "quantity": line.quantity,
        "unit": line.unit,
        "published": line.published,
        "recomputed": line.recomputed,
        "deviation": line.deviation,
        "status": line.status,
        "epochs": line.epochs,
        "implied epochs": line.implied_epochs,
    }
    if fabric:
        cells[f"fabric {fabric.name}"] = line.fabric
    return {**cells, "explanation": line.explanation}


def to_csv(lines: Sequence[Line], fabric: Fabric | None = None) -> str:
    """All lines as CSV, numbers in full; the fabric column is there only if a fabric is given."""
    out = io.StringIO()
    rows = [_cells(line, fabric) for line in lines]
    writer = csv.DictWriter(out, rows[0] if rows else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def to_markdown(lines: Sequence[Line], fabric: Fabric | None = None, figures: Iterable[str] = ()) -> str:
    """All lines as Markdown, one table per table of the paper, explanations as numbered notes below it.

    Args:
        lines: as ``recompute`` returns them.
        fabric: adds a column, if given.
        figures: paths of figures to show, relative to the Markdown file.
    """
    counts = Counter(line.status for line in lines)
    meaning = {
        REPRODUCED: "follows from the published accounting alone",
        INFERRED: "holds if training is counted up to an unstated epoch, which is inferred from the published CC",
        ASSUMED: "as above, with assumed stage lengths; other lengths or epochs can give the published figure",
        CONSISTENT: "agrees with other published figures that it follows from on any machine; nothing was recomputed",
        RESTATED: "formed from figures that other lines count already; no evidence of its own, whatever the deviation",
        DIFFERS: "recomputed by the published accounting, outside the tolerance, or within it by accident",
        IMPOSSIBLE: "no reading of the published accounting gives the figure",
    }
    out = [
        "# The paper's costs, recomputed",
        "",
        "CC is the number of multiply-accumulates, each weighted by bits_a/32 * bits_b/32, over the whole training and "
        "all three products of every layer. Energy and latency are those of an analytic model of BitFusion; energies "
        f"are estimates. Tolerances: CC {CC_TOLERANCE:g} %, energy and latency {MACHINE_TOLERANCE:g} %, their ratios "
        f"{RATIO_TOLERANCE:g} %, savings {ROUNDING_POINTS:g} percentage points. Deviations are in percent, for savings in "
        "percentage points.",
        "",
        "| status | lines | meaning |",
        "|---|---|---|",
        *(f"| {status} | {counts[status]} | {meaning[status]} |" for status in STATUSES),
        "",
        *(f"![{Path(name).stem.replace('_', ' ')}]({name})\n" for name in figures),
    ]
    for table in dict.fromkeys(line.table for line in lines):
        chosen = [line for line in lines if line.table == table]
        notes = list(dict.fromkeys(line.explanation for line in chosen if line.explanation))
        heads = [*list(_cells(chosen[0], fabric))[1:-1], "note"]
        out += [
            f"## {'Table ' if table.isdigit() else ''}{table}",
            "",
            f"| {' | '.join(heads)} |",
            "|---" * len(heads) + "|",
        ]
        for line in chosen:
            values = list({**_cells(line, fabric), "deviation": None}.values())[1:-1]
            cells = [value if isinstance(value, str) else _text(value) for value in values]
            if line.deviation is not None:
                cells[heads.index("deviation")] = f"{line.deviation:+.1f}"
            note = str(notes.index(line.explanation) + 1) if line.explanation else ""
            out.append(f"| {' | '.join([*cells, note])} |")
        out += ["", *(f"{number}. {note}" for number, note in enumerate(notes, 1)), ""]
    return "\n".join(out)


def draw_figures(lines: Sequence[Line], folder: Path, fabric: Fabric | None = None) -> list[Path]:
    """Figures as SVG: published against recomputed CC, Table 3's energy and latency, savings.

    Args:
        lines: as ``recompute`` returns them.
        folder: exists.
        fabric: adds its bars, if given.

    Returns:
        The files written.
    """
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "paper"  # the same figures give the same bytes
    figures = {
        "computational_cost": _draw_costs(lines),
        "table3_latency": _draw_machines(lines, "latency", "min", fabric),
        "table3_energy": _draw_machines(lines, "energy (estimate)", "kJ", fabric),
        "savings": _draw_savings(lines, fabric),
    }
    files = []
    for name, figure in figures.items():
        files.append(folder / f"{name}.svg")
        save_picture(figure, files[-1], bbox_inches="tight")
    return files


def _new_figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def _draw_costs(lines: Sequence[Line]) -> Any:
    """CC recomputed against CC published."""
    colours = dict(
        zip(
            STATUSES,
            ("tab:green", "tab:blue", "tab:cyan", "tab:olive", "tab:gray", "tab:orange", "tab:red"),
            strict=True,
        )
    )
    figure, axes = _new_figure(6, 5)
    costs = [line for line in lines if line.unit == "MAC" and line.recomputed]
    for status in dict.fromkeys(line.status for line in costs):
        chosen = [line for line in costs if line.status == status]
        axes.scatter(
            [line.published for line in chosen], [line.recomputed or 0 for line in chosen], s=22, c=colours[status],
            label=f"{status} ({len(chosen)})",
        )  # fmt: skip
    ends = [min(line.published for line in costs), max(line.recomputed or 0 for line in costs)]
    axes.plot(ends, ends, color="gray", linewidth=0.8)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="published CC, float32 MAC",
        ylabel="formula over the whole training, float32 MAC",
    )
    axes.set_title("Computational cost: points above the line are counted only in part")
    axes.legend(fontsize=8)
    return figure


def _draw_machines(lines: Sequence[Line], quantity: str, unit: str, fabric: Fabric | None) -> Any:
    """A quantity of Table 3, of every row."""
    chosen = [line for line in lines if line.table == "3" and line.quantity == quantity]
    figure, axes = _new_figure(11, 4)
    series: list[tuple[str, list[float]]] = [
        ("published", [line.published for line in chosen]),
        ("BitFusion model, epochs inferred from CC", [line.recomputed or 0 for line in chosen]),
    ]
    if fabric and any(line.fabric for line in chosen):
        series.append((f"fabric {fabric.name}", [line.fabric or 0 for line in chosen]))
    _bars(axes, [f"{line.group}\n{line.method}" for line in chosen], series)
    axes.set(ylabel=f"{quantity}, {unit}", title=f"Table 3: {quantity} of the whole training")
    return figure


def _draw_savings(lines: Sequence[Line], fabric: Fabric | None) -> Any:
    """Savings of CC and latency, published and recomputed."""
    chosen = [line for line in lines if "latency saving" in line.quantity or line.quantity == "CC saving"]
    figure, axes = _new_figure(9, 1 + 0.27 * len(chosen))
    series = [
        ("published", [line.published for line in chosen]),
        ("recomputed", [line.recomputed or 0 for line in chosen]),
    ]
    if fabric:
        series.append((f"fabric {fabric.name}", [line.fabric or 0 for line in chosen]))
    _bars(axes, [_saving_label(line) for line in chosen], series, across=True)
    axes.set_xlabel("saving, %")
    axes.set_title("Savings", loc="left")
    return figure


def _saving_label(line: Line) -> str:
    """Names a saving apart from all others, in one line."""
    place = f"Table {line.table}" if line.table.isdigit() else line.table
    precision = "" if "cp=" in line.precision else f" {line.precision}"
    return f"{place}, {line.group}{precision}: {line.quantity.replace(' saving', '', 1)}"


def _bars(
    axes: Any, labels: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], across: bool = False
) -> None:
    """Groups of bars: upright, or ``across`` the page from top to bottom, which leaves long labels room."""
    width = 0.8 / len(series)
    for at, (name, values) in enumerate(series):
        places = [x + (at - (len(series) - 1) / 2) * width for x in range(len(labels))]
        (axes.barh if across else axes.bar)(places, values, width, label=name)
    if across:
        axes.set_yticks(range(len(labels)), labels, fontsize=7)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.grid(axis="x", alpha=0.3)
        axes.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(series))
    else:
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6)
        axes.margins(y=0.08)
        axes.legend(fontsize=8)


def write_report(folder: Path, fabric: Fabric | None = None, figures: bool = True) -> list[Path]:
    """Write ``paper.csv``, ``paper.md`` and the figures.

    Args:
        folder: created if missing.
        fabric: our own accelerator; adds a column and bars.
        figures: also draw.

    Returns:
        The files written, the Markdown first.
    """
    lines = recompute(fabric=fabric)
    drawn = draw_figures(lines, folder, fabric) if figures else []
    markdown, table = folder / "paper.md", folder / "paper.csv"
    write_atomically(markdown, to_markdown(lines, fabric, [path.name for path in drawn]))
    write_atomically(table, to_csv(lines, fabric))
    return [markdown, table, *drawn]
