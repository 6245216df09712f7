"""Command line of the way to a bitstream: ``fractrain bitstream``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hw.design import DesignError, load_design


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``bitstream`` to the command line."""
    parser = subparsers.add_parser(
        "bitstream",
        help="build a bitstream with Vivado and collect it as a PYNQ overlay package",
        description="Build a bitstream: HLS or RTL packaging, block design, implementation, reports, overlay package.",
    )
    parser.add_argument(
        "--design", default="zc706", help="name in configs/designs, or a TOML file (default: %(default)s)"
    )
    parser.add_argument(
        "--flow", choices=("rtl", "hls"), default="rtl", help="where the fabric comes from (default: %(default)s)"
    )
    parser.add_argument("--build", type=Path, help="build folder (default: build/bitstream-DESIGN-FLOW)")
    parser.add_argument("--out", type=Path, help="folder of the overlay package (default: build/overlay-DESIGN-FLOW)")
    parser.add_argument("--jobs", type=int, default=2, help="parallel runs of Vivado (default: %(default)s)")
    parser.add_argument("--scripts-only", action="store_true", help="write sources and scripts, run no tool")
    parser.add_argument(
        "--collect-only", action="store_true", help="collect from a build folder that has run elsewhere"
    )
    parser.add_argument("--accept-timing", action="store_true", help="collect a result that misses timing")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """``fractrain bitstream``: 0 on success, 2 on anything that stops it."""
    from hw.tools.vivado import BitstreamError, build, collect, render_scripts, write_scripts

    try:
        if arguments.scripts_only and arguments.collect_only:
            raise ValueError("--scripts-only and --collect-only exclude each other")
        design = load_design(arguments.design)
        folder = arguments.build or Path("build") / f"bitstream-{design.name}-{arguments.flow}"
        out = arguments.out or Path("build") / f"overlay-{design.name}-{arguments.flow}"
        if arguments.scripts_only:
            files = render_scripts(design, arguments.flow, arguments.jobs)
            write_scripts(files, folder)
            first = "cd hls and run HLS, unpack export.zip to ip/fabric_hls, then " if arguments.flow == "hls" else ""
            print(f"{len(files)} files in {folder}; there, {first}vivado -mode batch -source build.tcl")
            return 0
        tools = {} if arguments.collect_only else build(design, arguments.flow, folder, arguments.jobs)
        summary = collect(
            design, arguments.flow, folder / "out", out, accept_timing=arguments.accept_timing, tools=tools
        )
    except (DesignError, BitstreamError, ValueError, OSError) as e:
        print(f"fractrain bitstream: {e}", file=sys.stderr)
        return 2
    report = summary["report"]
    used = {k: f"{v['used']:g}/{v['available']:g}" for k, v in report["utilization"].items()}
    print(
        f"overlay package in {out}: slack {report['timing']['wns']} ns at {report['clock_mhz']:g} MHz, "
        f"{json.dumps(used)}"
    )
    print(f"on the board: pip install {out.name}")
    return 0
