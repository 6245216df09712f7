"""Command line of the search for a design: ``explore``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from hw.commands import options
from hw.commands.cost_commands import add_memory, add_training, note_memory, request

if TYPE_CHECKING:
    from hw.reports.explore_report import Found


def run_explore(arguments: argparse.Namespace) -> int:
    """``fractrain explore``."""
    from hw.console import Progress
    from hw.cost.explore import SearchRequest, find_part, work_of_layers
    from hw.cost.training import read_training
    from hw.reports.explore_report import search

    training = read_training(request(arguments))
    wanted = SearchRequest(
        find_part(arguments.part),
        training.model,
        work_of_layers(training.shapes, training.schedule, training.count),
        training.batch,
        arguments.max_lut,
        arguments.max_bram,
        tuple(arguments.clock or ()),
        minimised=arguments.minimise,
    )
    for note in training.notes(ours=True):
        print(f"note: {note}", file=sys.stderr)
    found: list[Found] = []
    with Progress("explore") as progress:
        for one in search(
            wanted, arguments.memory, training.schedule.name, arguments.out, arguments.jobs,
            lambda done, total: progress.at(done, total=total),
        ):  # fmt: skip
            found.append(one)
    for one in found:
        if not arguments.json:
            _print(one, arguments.show)
        note_memory(one.memory)
        for file in one.files:
            print(file, file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        summaries = [one.summary() for one in found]
        print(json.dumps(summaries[0] if len(summaries) == 1 else summaries, indent=2))
        return 0
    for one in found[1:]:
        saved = 100 * (1 - one.best.seconds / found[0].best.seconds)
        print(
            f"memory {one.memory} (unverified) against {found[0].memory}: the best design takes {saved:.1f} % less time"
        )
    print("clocks and energies are estimates; confirm area and paths with fractrain synth --timing")
    return 0


def _print(found: Found, show: int) -> None:
    from hw.reports.explore_report import point_table

    front = found.front
    print(
        f"{found.title}: {len(found.points)} designs fit, {len(front)} on the front of latency, LUT, block RAM and energy"
    )
    print(point_table(front[:show]))
    print("best:")
    print(point_table([found.best]))
    if found.committed:
        print("committed:")
        print(point_table(found.committed))


def _after_interrupt(arguments: argparse.Namespace) -> str:
    if arguments.out is None:
        return "nothing is kept without --out"
    return f"the same command with --out {arguments.out} goes on where it stopped"


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``explore`` to the command line."""
    parser = subparsers.add_parser(
        "explore",
        help="best design of a chip for a training",
        description="Costs every design that fits a chip with the models and shows those that no other one beats in "
        "latency, LUT, block RAM and energy at once. Each runs at the clock that the static estimate of its longest path "
        "allows. Energies are estimates, too.",
    )
    parser.add_argument("--part", required=True, help="chip, for example xc7z045")
    add_training(parser)
    parser.add_argument(
        "--out", type=options.output_folder, metavar="DIR",
        help="folder of the run: goes on where an earlier one stopped",
    )  # fmt: skip
    parser.add_argument("--batch", type=options.positive, help="samples per step (default: the run's, else 128)")
    add_memory(parser, several=True)
    parser.add_argument(
        "--clock", type=options.number, action="append", metavar="MHZ",
        help="clock to try with designs that reach it, repeatable (default: for each what it reaches)",
    )  # fmt: skip
    parser.add_argument(
        "--minimise", choices=("products", "step"), default="products",
        help="time of the three products of all layers, or of whole training steps (default: products)",
    )  # fmt: skip
    parser.add_argument("--max-lut", type=options.percentage, default=80.0, metavar="PERCENT", help="of the part")
    parser.add_argument("--max-bram", type=options.percentage, default=80.0, metavar="PERCENT", help="of the part")
    parser.add_argument("--jobs", type=options.process_count, default=-1, help="processes, -1 for all cores")
    parser.add_argument("--show", type=options.positive, default=20, metavar="N", help="points of the front to print")
    parser.add_argument("--json", action="store_true", help="machine-readable summary")
    parser.set_defaults(run=run_explore, after_interrupt=_after_interrupt, machine="explore", samples=None, count=None)
