"""Command line of the generator."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hw.commands import options
from hw.design import load_design


def run(arguments: argparse.Namespace) -> int:
    """``fractrain generate``."""
    from hw.generate import MANIFEST, generate

    design = load_design(arguments.design)
    out = generate(design, arguments.out or Path("build") / design.name)
    summary = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    print(
        f"{design.name}: {len(summary['files'])} files in {out}, {design.binary_macs} binary MAC per cycle on "
        f"{design.part}, design hash {summary['design_hash']}"
    )
    return 0


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``generate`` to the command line."""
    parser = subparsers.add_parser("generate", help="render a design into HLS C++, SystemVerilog and documentation")
    parser.add_argument("--design", default="sim-small", help="name in configs/designs, or a TOML file")
    parser.add_argument("--out", type=options.output_folder, help="folder to write (default: build/DESIGN)")
    parser.set_defaults(run=run)
