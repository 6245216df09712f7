"""Command line of the search for a design: ``explore``."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hw.cost.explore import Point, Request


def run_explore(arguments: argparse.Namespace) -> int:
    """``fractrain explore``: 0 on success, 2 if nothing fits or the request is impossible."""
    from hw.commands.cost_commands import note_memory, read_training
    from hw.cost.explore import Request, best, committed, find_part, mean_work, pareto, table, write_results
    from hw.cost.fabric import bandwidth

    summaries: list[dict[str, Any]] = []
    try:
        if not arguments.jobs:
            raise ValueError("no processes explore nothing; give --jobs 1 or more, or -1 for all cores")
        memories = arguments.memory
        if len(set(memories)) != len(memories):
            raise ValueError(f"memory {', '.join(memories)}: name each once")
        training = read_training(arguments)
        request = Request(
            find_part(arguments.part),
            training.model,
            mean_work(training.shapes, training.schedule, training.count),
            training.batch,
            arguments.max_lut,
            arguments.max_bram,
            tuple(arguments.clock or ()),
        )
        for memory in memories:
            bandwidth(request.part, memory)  # refused before the first of them takes its time
        for memory in memories:
            folder = arguments.out
            if folder and len(memories) > 1:
                folder = folder / memory
            points = _explore(replace(request, memory=memory), folder, arguments.jobs)
            chosen = best(points)
            title = (
                f"{training.model}, {training.schedule.name}, batch {training.batch}, {request.part}, memory {memory}"
            )
            if memory != "ps":
                title += " (unverified)"
            files = write_results(points, folder, title) if folder else []
            names = {design.name for design in committed(request.part)}
            known = [p for p in points if p.design.name in names]
            front = pareto(points)
            summaries.append(
                {
                    "title": title,
                    "memory": memory,
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
            )
            if not arguments.json:
                print(
                    f"{title}: {len(points)} designs fit, {len(front)} on the front of latency, LUT, block RAM and energy"
                )
                print(table(front[: arguments.show]))
                print("best:")
                print(table([chosen]))
                if known:
                    print("committed:")
                    print(table(known))
            note_memory(memory)
            for file in files:
                print(file, file=sys.stderr if arguments.json else sys.stdout)
    except (OSError, ValueError) as error:
        print(f"fractrain explore: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(summaries[0] if len(summaries) == 1 else summaries, indent=2))
        return 0
    first = summaries[0]["seconds_per_sample"]
    for summary in summaries[1:]:
        saved = 100 * (1 - summary["seconds_per_sample"] / first)
        print(
            f"memory {summary['memory']} (unverified) against {memories[0]}: the best design takes {saved:.1f} % less time"
        )
    print("clocks are assumed, energies estimated; confirm the area with fractrain synth")
    return 0


def _explore(request: Request, folder: Path | None, jobs: int) -> list[Point]:
    """``hw.cost.explore.explore`` behind a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from hw.cost.explore import explore

    columns = (TextColumn("explore"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("explore")
        return explore(request, folder, jobs, lambda done, number: bar.update(task, completed=done, total=number))


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``explore`` to the command line."""
    from hw.commands.cost_commands import add_memory
    from hw.networks import MODELS

    parser = subparsers.add_parser(
        "explore",
        help="best design of a chip for a training",
        description="Costs every design that fits a chip with the models and shows those that no other one beats in "
        "latency, LUT, block RAM and energy at once. Energies are estimates, clocks assumptions.",
    )
    parser.add_argument("--part", required=True, help="chip, for example xc7z045")
    parser.add_argument("--model", help=f"one of {', '.join(MODELS)} (default: the one that a run has trained)")
    widths = parser.add_mutually_exclusive_group(required=True)
    widths.add_argument("--bits", metavar="W,A,G", help="the same widths throughout")
    widths.add_argument("--schedule", help="as for fractrain cost")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run: goes on where an earlier one stopped"
    )
    parser.add_argument("--epochs", type=float, help="length of the training (default: the paper's)")
    parser.add_argument("--stages", metavar="E,E,...", help="epochs per stage")
    parser.add_argument("--batch", type=int, help="samples per step (default: the run's, else 128)")
    add_memory(parser, several=True)
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
    parser.set_defaults(run=run_explore, machine="explore", samples=None, count=None)
