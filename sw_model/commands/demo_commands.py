"""``fractrain demo``: the main job from one command."""

from __future__ import annotations

import argparse
from typing import Any

from hw.commands import options
from sw_model.commands.training_commands import recipe


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the command to the parser of ``fractrain``."""
    demo = subparsers.add_parser(
        "demo", help="train on handwritten digits with every quantized product on the simulated RTL, and report"
    )
    demo.add_argument("--recipe", type=recipe, default="digits-fabric", help="a name in configs/recipes, or a TOML file")
    demo.add_argument("--design", default="sim-small", help="design of the fabric")
    demo.add_argument("--out", type=options.output_folder, default="runs/demo", help="folder for results")
    demo.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Returns 0 if no word differed."""
    from rich.table import Table

    from hw.console import console
    from sw_model.studies.demo import run_demo

    s = run_demo(arguments.recipe, arguments.design, arguments.out)
    table = Table(title=f"{arguments.recipe.stem} on {s['design']} (RTL)")
    for heading in ("", "PFQ", "static 8/8/8", "saved"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("test accuracy", f"{100 * s['test_accuracy']:.2f} %", f"{100 * s['test_accuracy_static']:.2f} %", "")
    table.add_row("cycles", f"{s['cycles']:,}", f"{s['cycles_static']:,}", f"{100 * s['latency_saved']:.1f} %")
    table.add_row("CC", f"{s['cc']:.3g}", f"{s['cc_static']:.3g}", f"{100 * s['cc_saved']:.1f} %")
    table.add_row("words compared", f"{s['words_compared']:,}", "", "")
    table.add_row("mismatches", str(s["mismatches"]), "", "")
    table.add_row("wall time", f"{s['wall_seconds']:.0f} s", "", "")
    screen = console()
    screen.print(table)
    screen.print(f"Report: {arguments.out / 'report.md'}")
    return 0 if s["mismatches"] == 0 and s["words_compared"] > 0 else 1
