"""Command line of the C simulation: the rendered test bench against the NumPy reference."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hw.commands import options
from hw.design import Design, load_design


def run(arguments: argparse.Namespace) -> int:
    """``fractrain csim``: 0 if all words agree, 1 if not."""
    from host.verify.csim import simulate, variants
    from host.verify.stimuli import PRODUCT_PACKETS
    from hw.console import Progress
    from hw.generate import generate

    design = load_design(arguments.design)
    # beside the kernel, where the tool configuration expects them
    out = generate(design, arguments.out or options.usable_folder(Path("build") / design.name)) / "hls"
    if arguments.path == "counting":
        return _count(design, out, arguments.json)
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


def _count(design: Design, out: Path, as_json: bool) -> int:
    """Hold the kernel to its pragmas and to its cycle model: 0 if it keeps them."""
    from host.verify.kernel_check import check_kernel

    report = check_kernel(design, out)
    if as_json:
        print(json.dumps({"design": design.name, **report}, indent=2))
    else:
        cycles = sum(row["counted"] for row in report["loops"].values())
        print(
            f"kernel of {design.name}, counted: {report['programs']} programs, {report['mismatches']} mismatches; "
            f"{len(report['faults'])} promises of pragmas broken; {len(report['loops'])} pipelined loops, {cycles} cycles, "
            f"{len(report['differences'])} differences to the model; {report['seconds']} s"
        )
        print("\n".join(f"  {line}" for line in [*report["faults"], *report["differences"]][:20]), end="")
    return 1 if report["mismatches"] or report["faults"] or report["differences"] else 0


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``csim`` to the command line."""
    parser = subparsers.add_parser("csim", help="check the HLS C++ against the NumPy reference")
    parser.add_argument("--design", default="sim-small", help="name in configs/designs, or a TOML file")
    parser.add_argument(
        "--path",
        choices=["both", "native", "bit-serial", "counting"],
        default="both",
        help="array code to run; counting: hold the code that synthesis sees to its pragmas and its cycle model",
    )
    parser.add_argument("--seeds", type=options.positive, default=1, help="sweeps over all precisions")
    parser.add_argument("--out", type=options.output_folder, help="folder for generated files (default: build/DESIGN)")
    parser.add_argument("--json", action="store_true", help="print a machine-readable report")
    parser.set_defaults(run=run)
