"""Pictures and tables of :mod:`hw.cost.roofline`, as SVG and CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from hw.cost.count import mean_work
from hw.cost.fabric import FabricMachine
from hw.cost.roofline import (
    CAUSES,
    RooflineError,
    RooflinePoint,
    Roofs,
    Share,
    Span,
    mean_points,
    mean_shares,
    points,
    roofs,
    shares,
    spans,
)  # fmt: skip
from hw.cost.step_cost import STEPS
from hw.cost.training_schedule import TrainingSchedule
from hw.files import replaced, save_picture
from hw.networks import Bits, ConvShape


def _new_figure(width: float, height: float) -> Any:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "roofline"  # the same figures give the same bytes
    return Figure(figsize=(width, height), layout="constrained")


def draw_roofline(
    peak: Roofs, listed: Sequence[RooflinePoint], path: Path, title: str, memory: str = "ps", mixed: bool = False
) -> None:
    """Binary MAC/s against binary MAC per DDR byte, on logarithmic axes, with the roofs.

    Points are coloured by their label, or where they are ``mixed``, by their bit pairs.
    """
    from matplotlib.colors import Normalize

    figure = _new_figure(8, 5)
    axes = figure.subplots()
    widths = list(dict.fromkeys(p.label for p in listed))
    products = list(dict.fromkeys(p.product for p in listed))
    low = min(p.intensity for p in listed) / 2
    high = max(*(p.intensity for p in listed), peak.array / peak.memory) * 3
    label = "DDR" if memory == "ps" else f"DDR {memory}, of which 10 GB/s unverified"
    for rate, style, name in (
        (peak.memory, "-", f"{label}, {peak.memory / 1e9:g} GB/s"),
        (peak.streams, "--", f"all streams, {peak.streams / 1e9:g} GB/s"),
        (peak.outputs, ":", f"output stream alone, {peak.outputs / 1e9:g} GB/s"),
    ):
        ridge = peak.array / rate
        axes.plot([low, ridge], [low * rate, peak.array], style, color="black", lw=1, label=name)
    axes.plot(
        [low, high], [peak.array] * 2, color="tab:red", lw=1, label=f"array, {peak.array / 1e12:.4g} T binary MAC/s"
    )
    markers = dict(zip(products, "o^s", strict=False))
    if mixed:
        norm = Normalize(min(p.pairs for p in listed) * 0.99, max(p.pairs for p in listed) * 1.01)
        for product in products:
            chosen = [p for p in listed if p.product == product]
            dots = axes.scatter(
                [p.intensity for p in chosen], [p.rate for p in chosen], 36, [p.pairs for p in chosen],
                marker=markers[product], norm=norm, cmap="viridis_r", alpha=0.8, edgecolors="black", linewidths=0.4,
                label=product.replace("_", " "),
            )  # fmt: skip
        figure.colorbar(dots, label="bits × bits, mean over samples and epochs")
    for index, bits in enumerate(() if mixed else widths):
        for product in products:
            chosen = [p for p in listed if p.label == bits and p.product == product]
            axes.plot(
                [p.intensity for p in chosen], [p.rate for p in chosen], markers[product], color=f"C{index}", ms=6,
                alpha=0.7, label=f"{bits} {product.replace('_', ' ')}",
            )  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlim=(low, high), ylim=(min(p.rate for p in listed) / 2, peak.array * 1.5),
        xlabel="binary MAC per byte of DDR traffic", ylabel="binary MAC/s", title=title,
    )  # fmt: skip
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")
    save_picture(figure, path)


def draw_shares(listed: Sequence[Share], path: Path, title: str) -> None:
    """Microseconds per sample and layer by cause; layers of the same shape stand in one bar, their times added."""
    widths = list(dict.fromkeys(s.label for s in listed))
    groups: dict[ConvShape, list[Share]] = {}
    for s in listed:
        groups.setdefault(s.shape, []).append(s)
    figure = _new_figure(4 + 3.5 * len(widths), 1.8 + 0.32 * len(groups))
    panels = figure.subplots(1, len(widths), sharey=True, sharex=True, squeeze=False)[0]
    names = [f"{g[0].layer} ×{len(g) // len(widths)}" for g in groups.values()]
    for axes, bits in zip(panels, widths, strict=True):
        left = [0.0] * len(groups)
        for cause in CAUSES:
            values = [1e6 * sum(s.seconds[cause] for s in g if s.label == bits) for g in groups.values()]
            axes.barh(names, values, left=left, label=cause)
            left = [a + b for a, b in zip(left, values, strict=True)]
        axes.set(title=f"{bits}: {sum(left):.4g} µs", xlabel="µs per sample")
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=len(CAUSES))
    figure.suptitle(title, fontsize=10)
    save_picture(figure, path)


def draw_spans(listed: Sequence[Span], samples: int, path: Path, title: str) -> None:
    """Time of an epoch by cause, over the epochs: products alone, and whole steps; above them, the cost."""
    figure = _new_figure(8, 9)
    panels = figure.subplots(4, 1, sharex=True, height_ratios=(1, 2, 2, 2))
    edges = [0.0, *accumulate(span.epochs for span in listed)]
    panels[0].stairs([span.cp for span in listed], edges, baseline=None, color="black")
    panels[0].set(ylabel="CC, % of\nfloat32", ylim=(0, None))
    panels[0].grid(alpha=0.3)
    names = {"array": "array (compute)", "output stream": "output stream (store)", "input streams": "input streams (load)",
             "memory": "DDR", "host": "host (estimate)"}  # fmt: skip
    shown: dict[str, Any] = {}
    for axes, kind, what in zip(
        panels[1:],
        ("products", *STEPS),
        (
            "products alone, results as codes",
            "whole step, the host normalises",
            "whole step, the fabric normalises",
        ),
        strict=True,
    ):
        below = [0.0] * len(listed)
        for index, cause in enumerate(CAUSES):
            parts = [samples * getattr(span, kind)[cause] for span in listed]
            above = [a + b for a, b in zip(below, parts, strict=True)]
            if any(parts):
                shown[names.get(cause, cause)] = axes.stairs(above, edges, baseline=below, fill=True, color=f"C{index}")
            below = above
        whole = sum(span.epochs * value for span, value in zip(listed, below, strict=True))
        axes.set(ylabel="s per epoch", ylim=(0, None))
        axes.set_title(f"{what}: {_duration(whole)}", fontsize=9, loc="left")
    panels[-1].set(xlabel="epoch", xlim=(0, edges[-1]))
    figure.legend(shown.values(), shown.keys(), fontsize=8, loc="outside lower center", ncols=4)
    figure.suptitle(title, fontsize=10)
    save_picture(figure, path)


def _duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _write_points(path: Path, listed: Iterable[RooflinePoint]) -> None:
    with replaced(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream, lineterminator="\n")
        lines.writerow(
            ["bits", "layer", "product", "binary_macs", "read_bytes", "write_bytes", "us", "binary_macs_per_byte",
             "binary_macs_per_second", "bit_pairs", "bound", "bound_us"]
        )  # fmt: skip
        for p in listed:
            values = (p.binary_macs, p.read_bytes, p.write_bytes, 1e6 * p.seconds, p.intensity, p.rate, p.pairs)
            figures = [f"{v:.6g}" for v in values]
            lines.writerow([p.label, p.layer, p.product, *figures, p.bound, f"{1e6 * p.bound_seconds:.6g}"])


def _write_shares(path: Path, listed: Iterable[Share]) -> None:
    with replaced(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream, lineterminator="\n")
        lines.writerow(["bits", "layer", *(f"{cause.replace(' ', '_')}_us" for cause in CAUSES), "us"])
        for s in listed:
            figures = [f"{1e6 * s.seconds[cause]:.6g}" for cause in CAUSES]
            lines.writerow([s.label, s.layer, *figures, f"{1e6 * sum(s.seconds.values()):.6g}"])


def _write_spans(path: Path, listed: Iterable[Span]) -> None:
    causes = CAUSES
    with replaced(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream, lineterminator="\n")
        names = [f"{kind}_{cause.replace(' ', '_')}_us" for kind in ("products", *STEPS) for cause in causes]
        lines.writerow(["first_epoch", "epochs", "cp_percent", *names])
        first = 0.0
        for span in listed:
            values = [1e6 * getattr(span, kind)[cause] for kind in ("products", *STEPS) for cause in causes]
            lines.writerow([f"{v:.6g}" for v in (first, span.epochs, span.cp, *values)])
            first += span.epochs


def write_roofline(
    machine: FabricMachine, model: str, shapes: Sequence[ConvShape], widths: Sequence[Bits], folder: Path,
    memory: str = "ps",
) -> list[Path]:  # fmt: skip
    """Write ``roofline-DESIGN`` and ``time-DESIGN``, each as SVG and CSV; returns the files.

    Args:
        machine: what computes.
        model: name of the network, for titles.
        shapes: the network.
        widths: for all layers, one set after the other.
        folder: created if it is missing.
        memory: what the machine's bandwidth stands for, for the label.

    Raises:
        RooflineError: no or equal widths, or such that the fabric does not have.
        LoweringError: a layer that the buffers cannot hold.
        OSError: the folder cannot be written.
    """
    if not widths or len(set(widths)) != len(widths):
        raise RooflineError("name every set of bit widths once, and at least one")
    dots = [p for bits in widths for p in points(machine, shapes, bits)]
    times = [s for bits in widths for s in shares(machine, shapes, bits)]
    peak = roofs(machine)
    name = machine.design.name
    title = f"Training products of {model} on {name} at {machine.design.clock_mhz:g} MHz, batch {machine.batch}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{kind}-{name}.{end}" for kind in ("roofline", "time") for end in ("svg", "csv")]
    draw_roofline(peak, dots, files[0], title, memory)
    _write_points(files[1], dots)
    draw_shares(times, files[2], title)
    _write_shares(files[3], times)
    return files


def write_run(
    machine: FabricMachine, model: str, shapes: Sequence[ConvShape], schedule: TrainingSchedule, samples: int, folder: Path,
    memory: str = "ps", count: str = "full",
) -> list[Path]:  # fmt: skip
    """Write ``roofline-DESIGN``, ``time-DESIGN`` and ``epochs-DESIGN`` of a schedule, each as SVG and CSV.

    The first two are of the mean sample, the last is over the epochs; all CSV figures are for one sample.

    Args:
        machine: what computes.
        model: name of the network, for titles.
        shapes: the network.
        schedule: its precisions, for instance those of a run.
        samples: of an epoch.
        folder: created if it is missing.
        memory: what the machine's bandwidth stands for, for the label.
        count: which widths layers have, see ``hw.cost.count``.

    Returns:
        The files.

    Raises:
        RooflineError: nothing is trained on the fabric.
        ValueError: unknown count, or a schedule without length.
        LoweringError: a layer that the buffers cannot hold.
        OSError: the folder cannot be written.
    """
    work = mean_work(shapes, schedule, count)
    dots, times = mean_points(machine, work, schedule.name), mean_shares(machine, work, schedule.name)
    if not dots:
        raise RooflineError(f"schedule {schedule.name} leaves nothing to the fabric: all of it runs in float32")
    listed = spans(machine, shapes, schedule, count)
    name = machine.design.name
    title = f"{model}, {schedule.name}, on {name} at {machine.design.clock_mhz:g} MHz, batch {machine.batch}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{kind}-{name}.{end}" for kind in ("roofline", "time", "epochs") for end in ("svg", "csv")]
    draw_roofline(roofs(machine), dots, files[0], f"Training products of {title}", memory, mixed=True)
    _write_points(files[1], dots)
    draw_shares(times, files[2], f"Training products of {title}")
    _write_shares(files[3], times)
    unverified = "\nDDR beside the logic unverified" if memory != "ps" else ""
    draw_spans(listed, samples, files[4], title + unverified)
    _write_spans(files[5], listed)
    return files
