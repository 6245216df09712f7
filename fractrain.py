"""The ``fractrain`` command: every room brings its own sub-commands, imported only when they can be."""

from __future__ import annotations

import argparse
import importlib
import sys

#: modules that offer ``register(subparsers)`` or ``register_bench(kinds)``; none of them imports anything heavy before its command runs
ROOMS = (
    "hw.commands.generate_commands",
    "hw.commands.synthesis_commands",
    "hw.commands.bitstream_commands",
    "hw.commands.cost_commands",
    "hw.commands.explore_commands",
    "host.commands.csim_commands",
    "host.commands.cosim_commands",
    "host.commands.bench_commands",
    "host.commands.saif_commands",
    "host.commands.simulation_commands",
    "host.commands.board_commands",
    "sw_model.commands.training_commands",
    "sw_model.commands.export_commands",
    "sw_model.commands.demo_commands",
)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; a room that is not installed (the board has no torch) leaves its commands out."""
    parser = argparse.ArgumentParser(
        prog="fractrain", description="Train neural networks at fractional precision on an FPGA, or its simulation."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    bench = subparsers.add_parser("bench", help="measure the engine, training speed or quantizers")
    kinds = bench.add_subparsers(dest="bench", required=True, metavar="WHAT")
    for room in ROOMS:
        try:
            module = importlib.import_module(room)
        except ModuleNotFoundError as e:
            if e.name is not None and e.name.split(".")[0] in ("hw", "host", "sw_model", "torch"):
                continue
            raise
        if hasattr(module, "register"):
            module.register(subparsers)
        if hasattr(module, "register_bench"):
            module.register_bench(kinds)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; expected failures end in one line on standard error."""
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except (ValueError, OSError, RuntimeError) as e:
        print(f"fractrain {arguments.command}: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
