"""``fractrain bench engine`` and ``kernel``: a network's training products on the RTL, and what the HLS kernel takes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hw.commands import options
from hw.files import write_atomically
from hw.networks import Bits

#: weights/activations/gradients of the committed measurement; savings are against the first
PRECISIONS = (Bits(8, 8, 8), Bits(4, 4, 8), Bits(4, 3, 6), Bits(3, 3, 6), Bits(2, 2, 4))


def register_bench(kinds: argparse._SubParsersAction[Any]) -> None:
    """Adds ``engine`` and ``kernel`` to ``fractrain bench``."""
    engine = kinds.add_parser(
        "engine", help="cycles of a network's three training products on the RTL, and the model's"
    )
    engine.add_argument("--design", default="zc706", help="name in configs/designs, or a TOML file")
    engine.add_argument("--model", default="resnet38", help="network")
    engine.add_argument(
        "--bits",
        type=options.fabric_bits,
        nargs="+",
        default=list(PRECISIONS),
        metavar="W/A/G",
        help=f"precisions, baseline first (default: {' '.join(map(slashed, PRECISIONS))})",
    )
    programs = engine.add_mutually_exclusive_group()
    programs.add_argument(
        "--output", choices=("codes", "int32", "both"), default="both", help="how results leave the fabric"
    )
    programs.add_argument(
        "--driver",
        action="store_true",
        help="as PyTorch's layers use the driver: codes in, 32-bit sums and sums of the operands out",
    )
    engine.add_argument("--split", action="store_true", help="the two gradients as programs of their own")
    engine.add_argument(
        "--batch",
        type=options.positive,
        default=128,
        help="images that a layer's products take at once",
    )
    engine.add_argument("--figure", type=options.picture_file, help="draw the result into this file (SVG or PNG)")
    engine.add_argument("--json", action="store_true", help="print JSON")
    engine.add_argument("--save", type=options.output_file, help="also write the JSON to this file")
    engine.set_defaults(run=run_engine)
    kernel = kinds.add_parser(
        "kernel", help="loop iterations of the HLS kernel on a network, by what overlaps with its array"
    )
    kernel.add_argument("--design", default="zc706", help="name in configs/designs, or a TOML file")
    kernel.add_argument("--model", default="resnet38", help="network")
    kernel.add_argument(
        "--bits",
        type=options.fabric_bits,
        nargs="+",
        default=[Bits(8, 8, 8), Bits(4, 3, 6)],
        metavar="W/A/G",
        help="precisions (default: 8/8/8 4/3/6)",
    )
    kernel.add_argument("--batch", type=options.positive, default=128, help="images over which fixed costs are spread")
    kernel.add_argument("--json", action="store_true", help="print JSON")
    kernel.set_defaults(run=run_kernel)


def slashed(bits: Bits) -> str:
    """A precision as ``--bits`` takes it."""
    return f"{bits.w}/{bits.a}/{bits.g}"


def run_kernel(arguments: argparse.Namespace) -> int:
    """Returns the exit status."""
    from rich.table import Table

    from hw.console import console
    from hw.design import load_design
    from hw.layer_tables import layers_of
    from hw.model.kernel_cycles import Overlap, kernel_training_cycles

    design, shapes = load_design(arguments.design), layers_of(arguments.model)
    rows: list[dict[str, Any]] = []
    for bits in arguments.bits:
        forms = {f.name.lower(): kernel_training_cycles(design, shapes, bits, arguments.batch, f) for f in Overlap}
        rows.append({"bits": slashed(bits), **forms, "saved": 1 - forms["tiles"] / forms["none"]})
    if arguments.json:
        print(json.dumps({"design": design.name, "model": arguments.model, "rows": rows}, indent=1))
        return 0
    table = Table(title=f"{arguments.model} on the HLS kernel of {design.name}: loop iterations per image")
    for heading in ("w/a/g", "nothing overlaps", "loads do", "tiles leave too", "saved"):
        table.add_column(heading, justify="right")
    for row in rows:
        iterations = (f"{row[f.name.lower()]:,.0f}" for f in Overlap)
        table.add_row(row["bits"], *iterations, f"{100 * row['saved']:.1f} %")
    console().print(table)
    return 0


def engine_command(arguments: argparse.Namespace) -> str:
    """The command that makes the result with these arguments anew, for the record."""
    words = ["fractrain bench engine --design", arguments.design, "--model", arguments.model, "--bits"]
    words += map(slashed, arguments.bits)
    words += ["--driver"] if arguments.driver else ["--output", arguments.output]
    words += ["--split"] if arguments.split else []
    words += ["--batch", str(arguments.batch)]
    return " ".join([*words, *written(arguments)])


def written(arguments: argparse.Namespace) -> list[str]:
    """The options that name the files of a result."""
    files = {option: getattr(arguments, option) for option in ("save", "figure")}
    return [word for option, path in files.items() if path for word in (f"--{option}", path.as_posix())]


def deliver(
    arguments: argparse.Namespace,
    result: dict[str, Any],
    draw: Callable[[dict[str, Any], Path], None],
    show: Callable[[], None],
) -> None:
    """Writes a result into the files that were asked for, and prints it: JSON if that was, else as ``show`` does."""
    text = json.dumps(result, indent=1)
    if arguments.save:
        write_atomically(arguments.save, text + "\n")
    if arguments.figure:
        draw(result, arguments.figure)
    if arguments.json:
        print(text)
    else:
        show()


def run_engine(arguments: argparse.Namespace) -> int:
    """Returns the exit status."""
    from host.devices.device import open_device
    from host.measure.engine_bench import (
        FORMS,
        Row,
        bench_engine,
        draw_engine,
        measure_product,
        proportionality,
        refuse_unfit,
    )
    from hw.console import Progress
    from hw.design import load_design
    from hw.generate import rtl_digest
    from hw.layer_tables import layers_of
    from hw.networks import ConvShape

    design = load_design(arguments.design)
    shapes = layers_of(arguments.model)
    outputs = ["codes", "int32"] if arguments.output == "both" else [arguments.output]
    outputs = ["driver"] if arguments.driver else outputs
    if arguments.driver and arguments.split:
        raise ValueError("--split asks for programs that the driver does not send; leave it or --driver out")
    for bits in arguments.bits:
        for output in outputs:
            refuse_unfit(design, shapes, bits, FORMS[output], arguments.split, arguments.batch)
    digest = rtl_digest(design)  # of what is opened now, whatever is edited during the run
    device = open_device("rtl", design)

    def rows_of(output: str, shape: ConvShape, bits: Bits, count: int, first: bool) -> list[Row]:
        return measure_product(device, design, shape, bits, count, output, arguments.batch, arguments.split, first)

    with Progress(f"bench engine of {design.name}") as progress:
        runs = [
            bench_engine(design, shapes, bits, partial(rows_of, output), progress.doing)
            for bits in arguments.bits
            for output in outputs
        ]
        progress.doing("cycles against plane pairs")
        pairs = [] if arguments.driver or arguments.split else proportionality(device, design)
    for run in runs:
        base = next(r for r in runs if r["output"] == run["output"])
        run["saved"] = 1 - run["cycles_per_image"] / base["cycles_per_image"]

    result = {
        "command": engine_command(arguments),
        "design": design.name,
        "hash": f"{design.hash64:016x}",
        "rtl": digest,
        "model": arguments.model,
        "batch": arguments.batch,
        "runs": runs,
        "proportionality": pairs,
    }
    deliver(arguments, result, draw_engine, lambda: print_engine(result, design.clock_mhz))
    return 0


def print_engine(result: dict[str, Any], clock_mhz: float) -> None:
    """The result of ``bench engine`` for people, on standard output."""
    from rich.table import Table

    from hw.console import console

    screen, runs, pairs = console(), result["runs"], result["proportionality"]
    table = Table(
        title=f"{result['model']} on {result['design']} at {clock_mhz:g} MHz, convolutions of training, RTL counters"
    )
    for heading in ("w/a/g", "output", "cycles/image", "images/s", "utilisation", "saved", "model error"):
        table.add_column(heading, justify="right")
    for run in runs:
        worst = max((abs(row["model_error"]) for row in run["rows"]), default=0.0)
        table.add_row(
            run["bits"],
            run["output"],
            f"{run['cycles_per_image']:,.0f}",
            f"{run['images_per_second']:,.0f}",
            f"{100 * run['utilisation']:.1f} %",
            f"{100 * run['saved']:.1f} %",
            f"{100 * worst:.1f} %",
        )
    screen.print(table)
    for run in runs:
        if run["output"] != "int32":
            screen.print(_layers_table(run))
    for product, groups in dict.fromkeys((p["product"], p["groups"]) for p in pairs):
        screen.print(_proportionality(product, groups, pairs))


def _layers_table(run: dict[str, Any]) -> Any:
    """Cycles of one run, layer by layer and product by product."""
    from rich.table import Table

    from host.measure.engine_bench import STATES

    rows = Table(title=f"{run['bits']}, {run['output']}: cycles per image")
    for heading in (
        "layer",
        "times",
        "pass",
        "cycles",
        "ideal",
        "utilisation",
        "busy",
        "wait drain",
        "idle",
        "model",
    ):
        rows.add_column(heading, justify="left" if heading in ("layer", "pass") else "right")
    for r in run["rows"]:
        rows.add_row(
            r["layer"],
            str(r["count"]),
            r["product"],
            f"{r['cycles']:,.0f}",
            f"{r['ideal']:,.0f}",
            f"{100 * r['utilisation']:.1f} %",
            *(f"{r[state]:,.0f}" for state in STATES),
            f"{100 * r['model_error']:+.1f} %",
        )
    return rows


def _proportionality(product: str, groups: int, pairs: list[dict[str, Any]]) -> str:
    """How far the cycles of a product are from proportional to its bit pairs, in a sentence."""
    of = [p for p in pairs if (p["product"], p["groups"]) == (product, groups)]
    bound = [p for p in of if p["compute_bound"]]
    worst_pair = max(bound, key=lambda p: abs(p["deviation"]))
    return (
        f"{product} of {groups} group{'s' * (groups > 1)}, {len(of)} pairs of 2..8 x 2..16 bits: {len(bound)} compute-bound, "
        f"at most {100 * abs(worst_pair['deviation']):.1f} % from proportional "
        f"(at {worst_pair['a_bits']}x{worst_pair['b_bits']}); of the others at most "
        f"{100 * max((p['deviation'] for p in of if not p['compute_bound']), default=0):.1f} % more"
    )
