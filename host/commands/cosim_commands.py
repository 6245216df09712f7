"""Command line of the co-simulation: the generated SystemVerilog under cocotb against the NumPy reference."""

from __future__ import annotations

import argparse
import json
from typing import Any

from hw.commands import options
from hw.contract import MAX_BITS


def _print(report: dict[str, Any]) -> None:
    coverage = report["coverage"]
    pairs = ", ".join(f"{p} {n}/{coverage['precision_pairs_total']}" for p, n in coverage["precision_pairs"].items())
    refusals = ", ".join(f"{name} {count}" for name, count in report["refusals"].items())
    print(f"Co-simulation of {report['design']} against the NumPy reference, seed {report['seed']}")
    print(
        f"  {report['programs']} programs, {report['words_compared']} words compared, "
        f"{report['mismatches']} mismatches, {report['cycles']} cycles"
    )
    print(
        f"  covered: precision pairs {pairs}; {len(coverage['points'])} points of product, bits, stride, taps, format and flags"
    )
    strides = ", ".join(f"{stride}: {n}" for stride, n in coverage["precision_pairs_of_conv_by_stride"].items())
    print(f"           CONV pairs by stride {strides}; taps of WGRAD {', '.join(map(str, coverage['taps_of_wgrad']))}")
    print(f"           formats {', '.join(coverage['formats'])}; flags {', '.join(coverage['flags'])}")
    print(f"  refused: {refusals}; resets in mid-program: {report['resets']}")
    print(f"  cycles in which the output was held up: {report['output_stalls']}")
    print(f"  built in {report['build_seconds']} s, ran {report['run_seconds']} s")
    for line in (*report["differences"], *report["failed_tests"]):
        print(f"    {line}")


def run(arguments: argparse.Namespace) -> int:
    """``fractrain cosim``: 0 if all words agree, 1 if not."""
    from host.verify.cosim import cosimulate
    from hw.console import Progress

    with Progress(f"co-simulation of {arguments.design}") as progress:
        report = cosimulate(arguments.design, arguments.programs, arguments.seed, doing=progress.doing)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 1 if report["mismatches"] or report["failed_tests"] or not report["words_compared"] else 0


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``cosim`` to the command line."""
    parser = subparsers.add_parser("cosim", help="check the RTL under cocotb against the NumPy reference")
    parser.add_argument("--design", default="sim-small", help="name in configs/designs, or a TOML file")
    parser.add_argument(
        "--programs",
        type=options.positive,
        default=MAX_BITS,
        help=f"programs of the sweep; {MAX_BITS} cover every pair of precisions",
    )
    parser.add_argument(
        "--seed", type=options.whole, default=1, help="of programs, pauses, faults and power-up contents"
    )
    parser.add_argument("--json", action="store_true", help="print a machine-readable report")
    parser.set_defaults(run=run)
