"""Searches of :mod:`hw.cost.explore` with one memory or several, and the files that hold what they found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hw.cost.explore import DesignPoint, SearchRequest, best, committed, explore, pareto
from hw.cost.fabric import bandwidth
from hw.files import save_picture, write_atomically


@dataclass(frozen=True)
class Found:
    """Result of a search with one memory: every point, fastest first, and the files that hold it."""

    title: str
    memory: str
    points: Sequence[DesignPoint]
    files: Sequence[Path]

    @property
    def best(self) -> DesignPoint:
        """The fastest point."""
        return best(self.points)

    @property
    def front(self) -> list[DesignPoint]:
        """Points that no other one beats in everything."""
        return pareto(self.points)

    @property
    def committed(self) -> list[DesignPoint]:
        """Points of the designs in ``configs/designs``."""
        names = {design.name for design in committed(self.points[0].design.part)}
        return [p for p in self.points if p.design.name in names]

    def summary(self) -> dict[str, Any]:
        """The result as plain data; units are in the keys."""
        chosen = self.best
        return {
            "title": self.title,
            "memory": self.memory,
            "points": len(self.points),
            "front": len(self.front),
            "best": chosen.design.name,
            "fabrics": chosen.fabrics,
            "seconds_per_sample": chosen.seconds,
            "images_per_second": 1 / chosen.seconds,
            "clock_mhz": chosen.design.clock_mhz,
            "energy_estimate_j": chosen.energy_j,
            "percent": {kind: chosen.percent(kind) for kind in ("lut", "ff", "bram36", "dsp")},
            "full_step_estimate_s": chosen.steps,
            "committed": {p.design.name: p.seconds for p in self.committed},
        }


def search(
    request: SearchRequest, memories: Sequence[str], schedule: str, folder: Path | None = None, jobs: int = 1,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Iterator[Found]:  # fmt: skip
    """Searches with one memory after the other; with several, each has its own folder below ``folder``.

    Args:
        request: what is optimised; its memory is passed over.
        memories: some of ``hw.cost.fabric.MEMORIES``.
        schedule: its name, for titles.
        folder, jobs, progress: see :func:`explore`.

    Raises:
        ExploreError: see :func:`explore`.
        ValueError: a memory is named twice, or the part's board does not have it: before the first search.
    """
    if len(set(memories)) != len(memories):
        raise ValueError(f"memory {', '.join(memories)}: name each once")
    for memory in memories:
        bandwidth(request.part, memory)
    for memory in memories:
        own = folder / memory if folder and len(memories) > 1 else folder
        points = explore(replace(request, memory=memory), own, jobs, progress)
        title = f"{request.model}, {schedule}, batch {request.batch}, {request.part}, memory {memory}"
        title += ", whole steps" if request.minimised == "step" else ", products"
        if memory != "ps":
            title += " (unverified)"
        yield Found(title, memory, points, write_results(points, own, title) if own else [])


# -- results --------------------------------------------------------------------------------------------------------


def design_toml(point: DesignPoint, name: str, note: str = "") -> str:
    """A design file for ``--design``; what is estimated about it is in its comments."""
    d = asdict(point.design)
    lines = [
        f"# Found by fractrain explore{': ' + note if note else ''}.",
        f"# By the models: {point.seconds * 1e3:.4g} ms per sample (products {point.products * 1e3:.4g}), "
        f"{point.percent('lut'):.1f} % LUT, {point.percent('bram36'):.1f} % block RAM.",
    ]
    if point.fabrics > 1:
        lines.append(f"# For {point.fabrics} of these on the chip, each taking its share of a batch.")
    lines.append(f"name = {json.dumps(name)}")
    lines += [f"{key} = {json.dumps(value)}" for key, value in d.items() if key != "name"]
    return "\n".join(lines) + "\n"


def point_table(points: Iterable[DesignPoint]) -> str:
    """Points as text, one per line."""
    rows = [["design", "fabrics", "MHz", "images/s", "products ms", "step ms", "LUT %", "BRAM %", "DSP %", "mJ"]]
    for p in points:
        percents = [f"{p.percent(kind):.1f}" for kind in ("lut", "bram36", "dsp")]
        step = min(p.steps.values())
        times = [
            f"{1 / p.seconds:.4g}",
            f"{p.products * 1e3:.4g}",
            f"{step * 1e3:.4g}",
            *percents,
            f"{p.energy_j * 1e3:.4g}",
        ]
        rows.append([p.design.name, str(p.fabrics), f"{p.design.clock_mhz:g}", *times])
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join([f"{row[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def draw_points(points: Sequence[DesignPoint], path: Path, title: str) -> None:
    """Latency against LUT and block RAM of all points, the front, the best and the committed designs."""
    from matplotlib.figure import Figure

    front, chosen = pareto(points), best(points)
    names = {d.name for d in committed(chosen.design.part)}
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, kind, label in zip(figure.subplots(1, 2), ("lut", "bram36"), ("LUT", "block RAM"), strict=True):
        shade: Any = None
        for shown, size, edge in ((points, 14, "none"), (front, 34, "black")):
            shade = axes.scatter(
                [p.percent(kind) for p in shown], [p.seconds * 1e3 for p in shown], s=size, edgecolors=edge,
                c=[p.energy_j * 1e3 for p in shown], vmin=0, vmax=max(p.energy_j for p in points) * 1e3,
                label="Pareto front" if shown is front else "",
            )  # fmt: skip
        for p in points:
            if p.design.name in names:
                axes.plot(p.percent(kind), p.seconds * 1e3, "s", ms=11, mfc="none", mec="tab:red", label=p.design.name)
        axes.plot(chosen.percent(kind), chosen.seconds * 1e3, "*", ms=15, mfc="none", mec="tab:blue", label="best")
        axes.set(yscale="log", xlabel=f"{label}, % of {chosen.design.part}", ylabel="ms per sample")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.legend(fontsize=8)
        if kind == "bram36":
            figure.colorbar(shade, ax=axes, label="mJ per sample (estimate)")
    figure.suptitle(title, fontsize=10)
    save_picture(figure, path)


def write_results(points: Sequence[DesignPoint], folder: Path, title: str) -> list[Path]:
    """Write ``best.toml``, ``front.json`` and ``explore.svg``; returns the files."""
    chosen = best(points)
    files = [folder / "best.toml", folder / "front.json", folder / "explore.svg"]
    write_atomically(files[0], design_toml(chosen, f"best-{chosen.design.part[:7]}", title))
    write_atomically(files[1], json.dumps([asdict(p) for p in pareto(points)], indent=1) + "\n")
    draw_points(points, files[2], title)
    return files
