"""Command line of the search for a design: ``explore``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def run_explore(arguments: argparse.Namespace) -> int:
    """``fractrain explore``: 0 on success, 2 if nothing fits or the request is impossible."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from hw.cost_commands import read_training
    from hw.explore import Request, best, committed, explore, find_part, mean_work, pareto, table, write_results

    try:
        if arguments.batch < 1:
            raise ValueError(f"a batch of {arguments.batch} samples has no cost; give at least 1")
        if not arguments.jobs:
            raise ValueError("no processes explore nothing; give --jobs 1 or more, or -1 for all cores")
        training = read_training(arguments)
        request = Request(
            find_part(arguments.part),
            training.model,
            mean_work(training.shapes, training.schedule, training.count),
            training.batch,
            arguments.max_lut,
            arguments.max_bram,
            tuple(arguments.clock or ()),
            arguments.memory,
        )
        columns = (TextColumn("explore"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("explore")
            points = explore(
                request,
                arguments.out,
                arguments.jobs,
                lambda done, number: bar.update(task, completed=done, total=number),
            )
        chosen = best(points)
        title = f"{training.model}, {training.schedule.name}, batch {training.batch}, {request.part}"
        if request.memory != "ps":
            title += f", memory {request.memory} (unverified)"
        files = write_results(points, arguments.out, title) if arguments.out else []
    except (OSError, ValueError) as error:
        print(f"fractrain explore: {error}", file=sys.stderr)
        return 2
    names = {design.name for design in committed(request.part)}
    known = [p for p in points if p.design.name in names]
    front = pareto(points)
    if arguments.json:
        summary = {
            "title": title,
            "points": len(points),
            "front": len(front),
            "best": chosen.design.name,
            "fabrics": chosen.fabrics,
            "seconds_per_sample": chosen.seconds,
            "energy_estimate_j": chosen.energy_j,
            "percent": {kind: chosen.percent(kind) for kind in ("lut", "ff", "bram36", "dsp")},
            "full_step_estimate_s": chosen.steps,
            "committed": {p.design.name: p.seconds for p in known},
        }
        print(json.dumps(summary, indent=2))
    else:
        print(f"{title}: {len(points)} designs fit, {len(front)} on the front of latency, LUT, block RAM and energy")
        print(table(front[: arguments.show]))
        print("best:")
        print(table([chosen]))
        if known:
            print("committed:")
            print(table(known))
        print("clocks are assumed, energies estimated; confirm the area with fractrain synth")
    for file in files:
        print(file, file=sys.stderr if arguments.json else sys.stdout)
    return 0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``explore`` to the command line."""
    from hw.cost_commands import add_memory
    from hw.layers import MODELS

    parser = subparsers.add_parser(
        "explore",
        help="best design of a chip for a training",
        description="Costs every design that fits a chip with the models and shows those that no other one beats in "
        "latency, LUT, block RAM and energy at once. Energies are estimates, clocks assumptions.",
    )
    parser.add_argument("--part", required=True, help="chip, for example xc7z045")
    parser.add_argument("--model", required=True, help=f"one of {', '.join(MODELS)}")
    widths = parser.add_mutually_exclusive_group(required=True)
    widths.add_argument("--bits", metavar="W,A,G", help="the same widths throughout")
    widths.add_argument("--schedule", help="as for fractrain cost")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run: goes on where an earlier one stopped"
    )
    parser.add_argument("--epochs", type=float, help="length of the training (default: the paper's)")
    parser.add_argument("--stages", metavar="E,E,...", help="epochs per stage")
    parser.add_argument("--batch", type=int, default=128, help="samples per step (default: %(default)s)")
    add_memory(parser)
    parser.add_argument("--classes", type=int, help="outputs of the classifier")
    parser.add_argument(
        "--clock", type=float, action="append", metavar="MHZ",
        help="clock to try, repeatable (default: two thirds of the committed design's, and all of it)",
    )  # fmt: skip
    parser.add_argument("--max-lut", type=float, default=75.0, metavar="PERCENT", help="(default: %(default)g)")
    parser.add_argument("--max-bram", type=float, default=80.0, metavar="PERCENT", help="(default: %(default)g)")
    parser.add_argument("--jobs", type=int, default=-1, help="processes, -1 for all cores (default: %(default)s)")
    parser.add_argument("--show", type=int, default=20, metavar="N", help="points of the front to print (default: 20)")
    parser.add_argument("--json", action="store_true", help="machine-readable summary")
    parser.set_defaults(run=run_explore, machine="explore", samples=None, count="paper")
