"""Command line of the generator."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hw.design import DesignError, load_design
from hw.generate import MANIFEST, GenerateError, generate


def run(arguments: argparse.Namespace) -> int:
    """``fractrain generate``: 0 on success, 2 on an impossible design or folder."""
    try:
        design = load_design(arguments.design)
        out = generate(design, arguments.out or Path("build") / design.name)
    except (DesignError, GenerateError) as e:
        print(f"fractrain generate: {e}", file=sys.stderr)
        return 2
    summary = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    print(
        f"{design.name}: {len(summary['files'])} files in {out}, {design.binary_macs} binary MAC per cycle on "
        f"{design.part}, design hash {summary['design_hash']}"
    )
    return 0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``generate`` to the command line."""
    parser = subparsers.add_parser("generate", help="render a design into HLS C++, SystemVerilog and documentation")
    parser.add_argument("--design", default="sim-small", help="name in configs/designs, or a TOML file")
    parser.add_argument("--out", type=Path, help="folder to write (default: build/DESIGN)")
    parser.set_defaults(run=run)
