"""Command line of the generator."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hw.commands import options
from hw.design import load_design


def run(arguments: argparse.Namespace) -> int:
    """``fractrain generate``."""
    from hw.generate import MANIFEST, generate
    from hw.model.resources import beyond_part

    design = load_design(arguments.design)
    out = generate(design, arguments.out or options.usable_folder(Path("build") / design.name))
    summary = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    print(
        f"{design.name}: {len(summary['files'])} files in {out}, {design.binary_macs} binary MAC per cycle on "
        f"{design.part}, design hash {summary['design_hash']}"
    )
    if excess := beyond_part(design):
        print(
            f"fractrain generate: by the area model it takes {excess} of {design.part}: it can be simulated, "
            'not built for this part; choose fewer channels, accumulators = "lut" or a larger part to build it',
            file=sys.stderr,
        )
    return 0


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``generate`` to the command line."""
    parser = subparsers.add_parser("generate", help="render a design into HLS C++, SystemVerilog and documentation")
    parser.add_argument("--design", default="sim-small", help="name in configs/designs, or a TOML file")
    parser.add_argument("--out", type=options.output_folder, help="folder to write (default: build/DESIGN)")
    parser.set_defaults(run=run)
