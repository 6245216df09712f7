"""``fractrain bench host``: what the host computes in a training step on a device with memory."""

from __future__ import annotations

import argparse
from typing import Any

from host.commands.bench_commands import deliver, slashed, written
from hw.commands import options
from hw.networks import Bits


def register_bench(kinds: argparse._SubParsersAction[Any]) -> None:
    """Adds ``host`` to ``fractrain bench``."""
    host = kinds.add_parser(
        "host",
        help="processor time, programs and bytes of a training step, on a device with memory that answers at once",
    )
    host.add_argument("--design", default="zc706", help="name in configs/designs, or a TOML file")
    host.add_argument("--model", default="resnet38", help="network for images")
    host.add_argument(
        "--bits", type=options.fabric_bits, nargs="+", default=[Bits(8, 8, 8), Bits(4, 3, 6)], metavar="W/A/G",
        help="precisions (default: 8/8/8 4/3/6)",
    )  # fmt: skip
    host.add_argument("--batch", type=options.positive, default=128, help="images of a step")
    host.add_argument("--steps", type=options.positive, default=10, help="of which the median counts")
    host.add_argument("--memory", type=options.positive, default=512, help="MB of the device")
    host.add_argument("--json", action="store_true", help="print JSON")
    host.add_argument("--save", type=options.output_file, help="also write the JSON to this file")
    host.set_defaults(run=run_host, figure=None)


def command_of(arguments: argparse.Namespace) -> str:
    """The command that makes the result with these arguments anew, for the record."""
    words = ["fractrain bench host --design", arguments.design, "--model", arguments.model, "--bits"]
    words += [*map(slashed, arguments.bits), "--batch", str(arguments.batch), "--steps", str(arguments.steps)]
    return " ".join([*words, "--memory", str(arguments.memory), *written(arguments)])


def run_host(arguments: argparse.Namespace) -> int:
    """Returns the exit status."""
    import platform

    from host.measure.host_bench import bench
    from hw.design import load_design
    from hw.networks import image_layout
    from hw.nodes import KeptWidths, nodes

    design = load_design(arguments.design)
    graph = nodes(*image_layout(arguments.model))
    beats = arguments.memory * 10**6 // 256 * 16
    runs = [
        bench(design, graph, bits, KeptWidths.beside(bits), arguments.batch, arguments.steps, beats)
        for bits in arguments.bits
    ]
    result = {
        "command": command_of(arguments),
        "design": design.name,
        "hash": f"{design.hash64:016x}",
        "machine": platform.machine(),
        "model": arguments.model,
        "batch": arguments.batch,
        "runs": runs,
    }
    deliver(arguments, result, lambda *_: None, lambda: print_table(result))
    return 0


def print_table(result: dict[str, Any]) -> None:
    """The result for people, on standard output."""
    from rich.table import Table

    from hw.console import console

    table = Table(title=f"{result['model']} on {result['design']}, batch {result['batch']}: the host's part of a step")
    headings = "w/a/g", "ms", "least", "forward", "backward", "update", "passes", "programs", "words patched"
    for heading in (*headings, "MB read", "MB written", "MB in use"):
        table.add_column(heading, justify="right")
    for run in result["runs"]:
        table.add_row(
            run["bits"],
            f"{run['milliseconds']:.1f}",
            f"{run['least_milliseconds']:.1f}",
            *(f"{value:.1f}" for value in run["parts"].values()),
            *(f"{run[name]:,.0f}" for name in ("passes", "programs", "words_patched")),
            *(f"{run[name] / 1e6:.1f}" for name in ("bytes_read", "bytes_written", "memory_bytes")),
        )
    console().print(table)
    touched = Table(title="MB that the host touches in a step, by cause")
    for heading in ("w/a/g", "", "cause", "MB"):
        touched.add_column(heading, justify="left" if heading in ("", "cause") else "right")
    for run in result["runs"]:
        for direction, causes in run["by_cause"].items():
            for cause, size in causes.items():
                touched.add_row(run["bits"], direction, cause, f"{size / 1e6:.2f}")
    console().print(touched)
