"""``fractrain bench step``: the passes of a whole training step on the RTL, and what the model says of them."""

from __future__ import annotations

import argparse
from typing import Any

from host.commands.bench_commands import deliver, slashed, written
from hw.commands import options
from hw.networks import Bits


def register_bench(kinds: argparse._SubParsersAction[Any]) -> None:
    """Adds ``step`` to ``fractrain bench``."""
    step = kinds.add_parser("step", help="cycles of a network's whole training step on the RTL, pass by pass")
    step.add_argument("--design", default="zc706", help="name in configs/designs, or a TOML file")
    step.add_argument("--model", default="resnet38", help="network for images")
    step.add_argument(
        "--bits",
        type=options.fabric_bits,
        nargs="+",
        default=[Bits(8, 8, 8), Bits(4, 3, 6)],
        metavar="W/A/G",
        help="precisions, baseline first (default: 8/8/8 4/3/6)",
    )
    step.add_argument(
        "--kept",
        type=options.positive,
        help="bits of normalised activations, shortcuts and their gradients (default: 8 where operands have 8, else 6)",
    )
    step.add_argument(
        "--mix",
        type=_share,
        nargs="+",
        default=[],
        metavar="W/A/G=N",
        help="also a step whose images gates have sorted: N images of the batch at these widths, and so on",
    )
    step.add_argument("--batch", type=options.positive, default=128, help="images of a step")
    step.add_argument("--predict", action="store_true", help="by the cycle model alone, without the RTL")
    step.add_argument("--figure", type=options.picture_file, help="draw the result into this file (SVG or PNG)")
    step.add_argument("--json", action="store_true", help="print JSON")
    step.add_argument("--save", type=options.output_file, help="also write the JSON to this file")
    step.set_defaults(run=run_step)


def _share(text: str) -> tuple[Bits, int]:
    """Widths and a number of images."""
    bits, _, images = text.partition("=")
    return options.fabric_bits(bits), options.positive(images)


def step_command(arguments: argparse.Namespace) -> str:
    """The command that makes the result with these arguments anew, for the record."""
    words = ["fractrain bench step --design", arguments.design, "--model", arguments.model, "--bits"]
    words += map(slashed, arguments.bits)
    words += ["--mix", *(f"{slashed(bits)}={n}" for bits, n in arguments.mix)] if arguments.mix else []
    words += ["--kept", str(arguments.kept)] if arguments.kept else []
    words += ["--batch", str(arguments.batch)]
    words += ["--predict"] if arguments.predict else []
    return " ".join([*words, *written(arguments)])


def run_step(arguments: argparse.Namespace) -> int:
    """Returns the exit status."""
    from host.devices.device import open_device
    from host.measure.step_bench import bench_step, draw_step, mixture
    from hw.console import Progress
    from hw.design import load_design
    from hw.generate import rtl_digest
    from hw.networks import image_layout
    from hw.nodes import KeptWidths, nodes

    design = load_design(arguments.design)
    graph = nodes(*image_layout(arguments.model))
    digest = rtl_digest(design)  # of what is opened now, whatever is edited during the run
    device = None if arguments.predict else open_device("rtl", design)
    with Progress(f"bench step of {design.name}") as progress:

        def measured(bits: Bits, batch: int) -> dict[str, Any]:
            widths = KeptWidths.beside(bits) if arguments.kept is None else KeptWidths(*[arguments.kept] * 3)
            return bench_step(device, design, graph, bits, widths, batch, progress.doing)

        runs = [measured(bits, arguments.batch) for bits in arguments.bits]
        if arguments.mix:
            runs.append(mixture([(measured(bits, images), images) for bits, images in arguments.mix], design))
    for run in runs:
        run["saved"] = 1 - run["cycles_per_image"] / runs[0]["cycles_per_image"]
    result = {
        "command": step_command(arguments),
        "design": design.name,
        "hash": f"{design.hash64:016x}",
        "rtl": digest,
        "device": "model" if device is None else "rtl",
        "model": arguments.model,
        "batch": arguments.batch,
        "runs": runs,
    }
    deliver(arguments, result, draw_step, lambda: print_step(result, design.clock_mhz))
    return 0


def print_step(result: dict[str, Any], clock_mhz: float) -> None:
    """The result for people, on standard output."""
    from rich.table import Table

    from hw.console import console

    screen = console()
    source = "RTL counters" if result["device"] == "rtl" else "cycle model"
    table = Table(title=f"{result['model']} on {result['design']} at {clock_mhz:g} MHz, whole training step, {source}")
    for heading in ("w/a/g", "kept", "cycles/image", "images/s", "array", "KiB/image", "saved", "model"):
        table.add_column(heading, justify="right")
    for run in result["runs"]:
        table.add_row(
            run["bits"],
            "/".join(str(bits) for bits in run["widths"].values()) or "each its own",
            f"{run['cycles_per_image']:,.0f}",
            f"{run['images_per_second']:,.0f}",
            f"{100 * run['array_share']:.1f} %",
            f"{run['bytes_per_image'] / 1024:,.0f}",
            f"{100 * run['saved']:.1f} %",
            f"{100 * (run['predicted_per_image'] / run['cycles_per_image'] - 1):+.1f} %",
        )
    screen.print(table)
    for run in result["runs"]:
        screen.print(_passes_table(run))
    hosts = sorted({row["node"] for run in result["runs"] for row in run["rows"] if not row["epilogue"]})
    if hosts:
        screen.print(f"sums that the host turns into codes, as one packet does not hold them: {', '.join(hosts)}")


def _passes_table(run: dict[str, Any]) -> Any:
    """Cycles of one run, pass by pass."""
    from rich.table import Table

    rows = Table(title=f"{run['bits']}: cycles and bytes per image")
    for heading in ("node", "times", "pass", "cycles", "array", "wait drain", "idle", "bytes in", "out", "model"):
        rows.add_column(heading, justify="left" if heading in ("node", "pass") else "right")
    for r in run["rows"]:
        numbers = (f"{r[name]:,.0f}" for name in ("cycles", "array", "drain", "idle", "bytes_in", "bytes_out"))
        rows.add_row(r["node"], str(r["count"]), r["kind"], *numbers, f"{100 * r['model_error']:+.1f} %")
    return rows
