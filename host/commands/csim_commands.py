"""Command line of the C simulation: the rendered test bench against the NumPy reference."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hw.commands import options
from hw.design import load_design


def run(arguments: argparse.Namespace) -> int:
    """``fractrain csim``: 0 if all words agree, 1 if not."""
    from host.verify.csim import simulate, variants
    from host.verify.stimuli import PRODUCT_PACKETS
    from hw.console import Progress
    from hw.generate import generate

    design = load_design(arguments.design)
    # beside the kernel, where the tool configuration expects them
    out = generate(design, arguments.out or options.usable_folder(Path("build") / design.name)) / "hls"
    names = list(variants(design)) if arguments.path == "both" else [arguments.path]
    reports = []
    with Progress(f"C simulation of {design.name}: paths", len(names)) as progress:
        for done, name in enumerate(names):
            progress.at(done, name)
            reports.append(simulate(design, out, name, arguments.seeds))
    mismatches = sum(r["mismatches"] for r in reports)
    incomplete = any(r["coverage"]["missing"] for r in reports)
    if arguments.json:
        summary = {
            "design": design.name,
            "words_compared": sum(r["words_compared"] for r in reports),
            "mismatches": mismatches,
            "paths": reports,
        }
        print(json.dumps(summary, indent=2))
    else:
        print(f"C simulation of {design.name} against the NumPy reference")
        for r in reports:
            covered = ", ".join(
                f"{p} {r['coverage']['covered'][p]}/{r['coverage']['total'][p]} precision pairs"
                for p in PRODUCT_PACKETS
            )
            print(
                f"  {r['path']:10} {r['programs']} programs, {r['words_compared']} words compared, "
                f"{r['mismatches']} mismatches; {covered}; built in {r['build_seconds']} s, ran {r['run_seconds']} s"
            )
            if r["mismatches"]:
                print("\n".join("    " + line for line in r["log"]))
    return 1 if mismatches or incomplete else 0


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``csim`` to the command line."""
    parser = subparsers.add_parser("csim", help="check the HLS C++ against the NumPy reference")
    parser.add_argument("--design", default="sim-small", help="name in configs/designs, or a TOML file")
    parser.add_argument("--path", choices=["both", "native", "bit-serial"], default="both", help="array code to run")
    parser.add_argument("--seeds", type=options.positive, default=1, help="sweeps over all precisions")
    parser.add_argument("--out", type=options.output_folder, help="folder for generated files (default: build/DESIGN)")
    parser.add_argument("--json", action="store_true", help="print a machine-readable report")
    parser.set_defaults(run=run)
