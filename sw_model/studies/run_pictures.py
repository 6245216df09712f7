"""Pictures of a report on runs, as SVG to stand inside a page: curves, and the precision of every layer over time."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

#: Okabe and Ito's colours, which colour-blind people tell apart
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]  #: name -> x and y of equal length


def _svg(name: str, draw: Callable[[Axes], None], height: float = 2.8) -> str:
    """What ``draw`` draws, as an element that takes the width it is given; small enough to be read on a phone."""
    # the same runs give the same bytes, and pictures of one page no names in common
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"}):
        figure = Figure(figsize=(4.6, height), dpi=72, layout="constrained")
        canvas = FigureCanvasSVG(figure)
        draw(figure.subplots())
        text = io.StringIO()
        canvas.print_svg(text, metadata={"Date": None, "Creator": None})
    element = text.getvalue()[text.getvalue().index("<svg") :]
    return re.sub(
        r'\b(id="|url\(#|href="#)', rf"\g<1>{name}-", re.sub(r' (width|height)="[\d.]+pt"', "", element, count=2)
    )


def curves(name: str, series: Series, x: str, y: str, *, steps: bool = False) -> str:
    """Lines over epochs or cost."""

    def draw(axes: Axes) -> None:
        for number, (label, (places, values)) in enumerate(series.items()):
            colour = COLOURS[number % len(COLOURS)]
            if steps:
                # equal widths lie upon one another, so each line is thinner than the one below it
                axes.step(places, values, where="mid", color=colour, label=label, linewidth=max(6 - 2 * number, 1.2))
            else:
                marker = "." if len(places) <= 40 else ""
                axes.plot(places, values, marker=marker, color=colour, label=label)
        axes.set(xlabel=x, ylabel=y)
        if x == "epoch":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if steps:
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if len(series) > 1:
            axes.legend(loc="best", fontsize=8)

    return _svg(name, draw)


def precision_map(name: str, layers: Sequence[str], ends: Sequence[float], bits: np.ndarray) -> str:
    """Mean width of every layer over time; float32 has a colour of its own, so that the others can be told apart.

    Args:
        name: of the picture.
        layers: names, from the input on.
        ends: epoch at which every stage ends, rising.
        bits: mean width of activations, float (layers, stages).
    """

    def draw(axes: Axes) -> None:
        edges = np.array([0.0, *ends]), np.arange(len(layers) + 1) - 0.5
        quantized = bits[bits < 32]
        most = max(8.0, float(quantized.max(initial=0.0)))
        colours = mpl.colormaps["viridis"].with_extremes(over="#d5d9df")
        shown = axes.pcolormesh(*edges, bits, cmap=colours, vmin=0, vmax=most)
        every = max(1, -(-len(layers) // 24))
        axes.set_yticks(range(0, len(layers), every), layers[::every], fontsize=7)
        axes.set(xlabel="epoch")
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        bar = axes.figure.colorbar(
            shown, ax=axes, label="bits of activations", extend="max" if quantized.size < bits.size else "neither"
        )
        bar.solids.set_edgecolor("face")  # type: ignore[union-attr]

    return _svg(name, draw, height=max(2.8, 0.7 + 0.16 * min(len(layers), 24)))


def bars(name: str, labels: Sequence[str], parts: Mapping[str, Sequence[float]], x: str) -> str:
    """Horizontal bars, one for every label, of parts that add up."""

    def draw(axes: Axes) -> None:
        left = np.zeros(len(labels))
        for number, (part, values) in enumerate(parts.items()):
            axes.barh(labels, values, left=left, color=COLOURS[number % len(COLOURS)], label=part)
            left += np.asarray(values, float)
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize=7)
        axes.set(xlabel=x)
        axes.grid(alpha=0.3, axis="x")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(parts), fontsize=8, frameon=False)

    return _svg(name, draw, height=max(2.8, 0.9 + 0.16 * len(labels)))
