"""Command line of the cost models: ``cost`` for one network and schedule, ``report`` for the paper's tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from hw.commands import options

if TYPE_CHECKING:
    from hw.cost.training import CostRequest


def _show(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e5 or abs(value) >= 1e9 else f"{value:,.0f}"


def _print_table(result: Mapping[str, Any]) -> None:
    rows = result["per_sample_layers"]
    keys = list(rows[0])
    total: dict[str, Any] = {"layer": "all", "product": ""}
    for key in keys[2:]:
        total[key] = sum(row[key] for row in rows)
    cells = [
        keys,
        *([str(row[k]) if isinstance(row[k], str) else _show(row[k]) for k in keys] for row in (*rows, total)),
    ]
    widths = [max(len(line[at]) for line in cells) for at in range(len(keys))]
    print(
        f"{result['model']}, {result['schedule']}, machine {result['machine']}, count '{result['count']}': per sample, "
        f"mean over {result['epochs']:.4g} epochs of {result['samples_per_epoch']:,} samples"
    )
    for line in cells:
        first = f"{line[0]:<{widths[0]}}  {line[1]:<{widths[1]}}"
        print("  ".join([first, *(f"{cell:>{width}}" for cell, width in zip(line[2:], widths[2:], strict=True))]))
    if "memory_unverified" in result:
        print(f"memory {result['memory']}, unverified: {result['memory_unverified']}")
    if "latency_ms" in result["per_sample"]:
        print(f"per sample: latency {result['per_sample']['latency_ms']:.4g} ms")
    for step, parts in result.get("full_step", {}).items():
        print(f"full step, {step} (host estimated): " + ", ".join(f"{k} {_show(v)}" for k, v in parts.items()))
    print("whole training: " + ", ".join(f"{key} {_show(value)}" for key, value in result["whole_training"].items()))


def request(arguments: argparse.Namespace) -> CostRequest:
    """What the options of ``cost``, ``explore`` or ``report roofline`` ask for.

    Raises:
        ValueError: options that contradict one another.
    """
    from hw.cost.training import CostRequest

    return CostRequest(**{f.name: getattr(arguments, f.name) for f in fields(CostRequest)})


def run_cost(arguments: argparse.Namespace) -> int:
    """``fractrain cost``."""
    from hw.console import Progress
    from hw.cost.tables import cost_table
    from hw.cost.training import read_training

    training = read_training(request(arguments))
    with Progress(f"cost of {training.model} on {arguments.machine}: layers") as progress:
        result = cost_table(
            training, arguments.machine, arguments.memory, lambda done, total: progress.at(done, total=total)
        )
    for note in result.get("notes", ()):
        print(f"note: {note}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        _print_table(result)
    return 0


def run_paper_report(arguments: argparse.Namespace) -> int:
    """``fractrain report paper``."""
    from hw.cost.step_cost import paper_fabric
    from hw.cost.tables import our_machine
    from hw.reports.paper_report import write_report

    machine = None if arguments.design == "none" else our_machine(arguments.design, 128)
    if machine is None and arguments.design != "none":
        raise ValueError(f"{arguments.design} is in the report anyway; name one of our designs, or none")
    fabric = paper_fabric(machine) if machine else None
    for file in write_report(arguments.out, fabric, figures=not arguments.no_figures):
        print(file)
    return 0


def add_memory(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add the option that ``cost``, ``explore`` and ``report roofline`` share; ``several`` compares memories."""
    text = "DDR of our designs: ps, the processor's, or ps+pl, with that beside the logic, whose 10 GB/s no board has confirmed"
    if several:
        text += "; both of them: one search each, and what the second saves"
        parser.add_argument("--memory", nargs="+", choices=("ps", "ps+pl"), default=["ps"], help=text)
    else:
        parser.add_argument("--memory", choices=("ps", "ps+pl"), default="ps", help=text)


def note_memory(memory: str) -> None:
    """Say on standard error where an unverified bandwidth comes from, if one was used."""
    from hw.cost.fabric import PL_SOURCE

    if memory != "ps":
        print(f"memory {memory}, unverified: {PL_SOURCE}", file=sys.stderr)


def run_roofline(arguments: argparse.Namespace) -> int:
    """``fractrain report roofline``."""
    from hw.cost.tables import our_machine
    from hw.cost.training import read_training
    from hw.layer_tables import layers_of
    from hw.reports.roofline_figures import write_roofline, write_run

    widths, arguments.bits = arguments.bits, None
    training = None if widths else read_training(request(arguments))
    machine = our_machine(arguments.machine, training.batch if training else arguments.batch or 128, arguments.memory)
    if machine is None:
        raise ValueError(f"{arguments.machine} has no streams and no DDR to draw; name one of our designs")
    if training:
        files = write_run(
            machine, training.model, training.shapes, training.schedule, training.samples, arguments.out,
            arguments.memory, training.count,
        )  # fmt: skip
    else:
        if arguments.model is None:
            raise ValueError("no network to draw; give --model")
        shapes = layers_of(arguments.model, arguments.classes)
        files = write_roofline(machine, arguments.model, shapes, widths, arguments.out, arguments.memory)
    note_memory(arguments.memory)
    for file in files:
        print(file)
    return 0


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``cost`` and ``explore`` share: network and widths."""
    from hw.networks import MODELS

    parser.add_argument("--model", help=f"one of {', '.join(MODELS)}, or a table of layers (.json, see fractrain layers; default: the one that a run has trained)")
    widths = parser.add_mutually_exclusive_group(required=True)
    widths.add_argument(
        "--bits", type=options.bits, metavar="W/A/G",
        help="the same widths of weights, activations and gradients throughout, such as 4/3/6",
    )  # fmt: skip
    widths.add_argument(
        "--schedule",
        help="FW-8/BW-8, FW(3,4,6,8)/BW(6,6,8,8), cp=3, cp=1.5/2/2.5/3, or the folder of a run (or its schedule.json)",
    )
    parser.add_argument("--epochs", type=options.number, help="length of the training (default: the paper's)")
    parser.add_argument(
        "--stages", type=options.numbers, metavar="E,E,...",
        help="epochs per stage (default: early stages share the first part)",
    )  # fmt: skip
    parser.add_argument("--classes", type=options.positive, help="outputs of the classifier")


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``cost`` to the command line."""
    parser = subparsers.add_parser(
        "cost",
        help="operations, cycles, traffic, energy and latency of a training",
        description="Cost of the three products of training per layer, sample and training. Energies are estimates.",
    )
    add_training(parser)
    parser.add_argument(
        "--machine",
        default="cc",
        metavar="cc|bitfusion|DESIGN",
        help="cc: operations only; a design's name or TOML file: our fabric",
    )
    parser.add_argument(
        "--count",
        choices=("paper", "full"),
        help="paper: all layers as scheduled; full: unquantized layers with 32 bits, of a run every product as it ran "
        "(default: paper, of a run full)",
    )
    parser.add_argument(
        "--samples",
        type=options.positive,
        help="samples per epoch (default: the run's, else 50,000, ImageNet networks 1,281,167)",
    )
    parser.add_argument(
        "--batch",
        type=options.positive,
        help="samples that the machine takes at once (default: 1, on a design the run's or 128)",
    )
    add_memory(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run_cost)


def register_report(kinds: argparse._SubParsersAction[Any]) -> None:
    """Add ``report paper`` and ``report roofline`` to the command line."""
    paper = kinds.add_parser(
        "paper", help="every published cost beside its recomputation, as CSV, Markdown and figures"
    )
    paper.add_argument("--out", type=options.output_folder, required=True, metavar="DIR", help="folder to write")
    paper.add_argument("--no-figures", action="store_true", help="tables only")
    paper.add_argument("--design", default="zc706", help="our fabric's column: a design's name or file, or none")
    paper.set_defaults(run=run_paper_report)
    _register_roofline(kinds)


def _register_roofline(kinds: argparse._SubParsersAction[Any]) -> None:
    from hw.networks import MODELS

    roofline = kinds.add_parser(
        "roofline",
        help="roofline of a network's training products on one of our designs, and where their time goes",
        description="Every layer and product between the roofs of array, DDR and streams, and the time of every layer "
        "by what it waits for, from the cycle model. Pictures, and CSV with the same figures.",
    )
    roofline.add_argument("--design", dest="machine", default="zc706", help="a design's name or file")
    roofline.add_argument("--model", help=f"one of {', '.join(MODELS)}, or a table of layers (.json, see fractrain layers; default: the one that a run has trained)")
    drawn = roofline.add_mutually_exclusive_group(required=True)
    drawn.add_argument(
        "--bits", type=options.bits, nargs="+", metavar="W/A/G", help="widths of weights, activations, gradients"
    )
    drawn.add_argument(
        "--schedule",
        "--run",
        metavar="RUN",
        help="as for fractrain cost: what a run really used on the mean, and its time over the epochs",
    )
    roofline.add_argument("--batch", type=options.positive, help="samples per step (default: the run's, else 128)")
    roofline.add_argument("--classes", type=options.positive, help="outputs of the classifier")
    roofline.add_argument("--count", choices=("paper", "full"), help="as for fractrain cost")
    add_memory(roofline)
    roofline.add_argument("--out", type=options.output_folder, required=True, metavar="DIR", help="folder to write")
    roofline.set_defaults(run=run_roofline, epochs=None, stages=None, samples=None)
