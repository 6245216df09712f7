"""Command line of the way to a bitstream: ``fractrain bitstream``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hw.commands import options
from hw.design import load_design


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``bitstream`` to the command line."""
    parser = subparsers.add_parser(
        "bitstream",
        help="build a bitstream with Vivado and collect it as a PYNQ overlay package",
        description="Build a bitstream: HLS or RTL packaging, block design, implementation, reports, overlay package.",
    )
    parser.add_argument("--design", default="zc706", help="name in configs/designs, or a TOML file")
    parser.add_argument(
        "--flow",
        choices=("rtl", "hls", "open"),
        default="rtl",
        help="where the fabric comes from; open: a netlist for openXC7's tools instead of Vivado",
    )
    parser.add_argument(
        "--build", type=options.output_folder, help="build folder (default: build/bitstream-DESIGN-FLOW)"
    )
    parser.add_argument(
        "--out", type=options.output_folder, help="folder of the overlay package (default: build/overlay-DESIGN-FLOW)"
    )
    parser.add_argument("--jobs", type=options.positive, default=2, help="parallel runs of Vivado")
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--scripts-only", action="store_true", help="write sources and scripts, run no tool")
    steps.add_argument("--collect-only", action="store_true", help="collect from a build folder that has run elsewhere")
    parser.add_argument("--accept-timing", action="store_true", help="write and collect a bitstream that misses timing")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """``fractrain bitstream``."""
    from hw.tools.vivado import build, collect, render_scripts, write_scripts

    design = load_design(arguments.design)
    folder = arguments.build or options.usable_folder(
        Path("build") / f"bitstream-{design.name}-{arguments.flow}", "--build"
    )
    out = arguments.out or options.usable_folder(Path("build") / f"overlay-{design.name}-{arguments.flow}")
    if arguments.flow == "open" and not arguments.collect_only:
        from hw.tools.open_flow import netlist, prepare

        prepare(design, folder)
        if not arguments.scripts_only:
            cells = netlist(folder)
            print(f"{sum(cells.values())} cells in {folder / 'open_top.json'}, all known to nextpnr-xilinx")
        print(f"with openXC7's tools, {folder / 'build.sh'}, then fractrain bitstream --flow open --collect-only")
        return 0
    if arguments.scripts_only:
        files = render_scripts(design, arguments.flow, arguments.jobs, arguments.accept_timing)
        write_scripts(files, folder)
        first = "cd hls and run HLS, unpack its export.zip to hls/export, then " if arguments.flow == "hls" else ""
        print(f"{len(files)} files in {folder}; there, {first}vivado -mode batch -source build.tcl")
        return 0
    tools = {}
    if not arguments.collect_only:
        tools = build(design, arguments.flow, folder, arguments.jobs, accept_timing=arguments.accept_timing)
    summary = collect(design, arguments.flow, folder / "out", out, accept_timing=arguments.accept_timing, tools=tools)
    report = summary["report"]
    used = {k: f"{v['used']:g}/{v['available']:g}" for k, v in report["utilization"].items()}
    print(
        f"overlay package in {out}: slack {report['timing']['wns']} ns at {report['clock_mhz']:g} MHz, "
        f"{json.dumps(used)}"
    )
    print(f"on the board: pip install {out.name}")
    return 0
