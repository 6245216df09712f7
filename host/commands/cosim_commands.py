"""Command line of the co-simulation: the generated SystemVerilog under cocotb against the NumPy reference."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from host.devices.device import DeviceError
from host.verify.simulation import build_fabric, run_bench
from hw.contract import MAX_BITS
from hw.design import DesignError, load_design
from hw.generate import GenerateError

BENCH = "host.verify.bench"


def cosimulate(design: str, programs: int, seed: int, sources: list[Path] | None = None) -> dict[str, Any]:
    """Build the fabric of a design, run the bench on it, and sum up what it found.

    Args:
        design: name in ``configs/designs``, or a TOML file.
        programs: programs of the precision sweep; refusals and resets scale with it.
        seed: of programs, pauses, faults and power-up contents.
        sources: SystemVerilog files to build instead of the generated ones.

    Raises:
        DeviceError: a tool is missing, or the simulation cannot be built or run.
        DesignError, GenerateError: the design is impossible.
    """
    if programs < 1:
        raise DesignError(
            f"--programs {programs}: at least one program is needed; {MAX_BITS} cover every precision pair"
        )
    started = time.perf_counter()
    build = build_fabric(load_design(design), sources)
    built = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        where = str(Path(design).resolve()) if design.endswith(".toml") else design
        environment = {
            "COSIM_DESIGN": where,
            "COSIM_PROGRAMS": str(programs),
            "COSIM_SEED": str(seed),
            "COSIM_REPORT": folder,
        }
        outcomes = run_bench(build, "fabric", BENCH, environment, seed=seed)
        parts = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(Path(folder).glob("*.json"))]
    coverage = [point for part in parts for point in part.get("coverage", [])]
    refusals: dict[str, int] = {}
    for part in parts:
        for name, count in part["refusals"].items():
            refusals[name] = refusals.get(name, 0) + count
    failures = [f"{name}: {text}" for name, text in outcomes.items() if text]
    return {
        "design": design,
        "seed": seed,
        "programs": sum(p["programs"] for p in parts),
        "words_compared": sum(p["words_compared"] for p in parts),
        "mismatches": sum(p["mismatches"] for p in parts),
        "cycles": sum(p["cycles"] for p in parts),
        "refusals": dict(sorted(refusals.items())),
        "resets": sum(p["resets"] for p in parts),
        "output_stalls": sum(p["output_stalls"] for p in parts),
        "differences": [line for p in parts for line in p["differences"]][:20],
        "failed_tests": failures,
        "coverage": {
            "precision_pairs": {
                product: len({(a, b) for name, a, b, *_ in coverage if name == product})
                for product in ("CONV", "WGRAD")
            },
            "precision_pairs_total": MAX_BITS * MAX_BITS,
            "precision_pairs_of_conv_by_stride": {
                stride: len({(a, b) for name, a, b, s, *_ in coverage if (name, s) == ("CONV", stride)})
                for stride in (1, 2)
            },
            "taps_of_wgrad": sorted({taps for name, _, _, _, taps, *_ in coverage if name == "WGRAD"}),
            "formats": sorted({form for *_, form, _, _ in coverage}),
            "flags": sorted({flag for *_, flags, _ in coverage for flag in flags.split("|") if flag}),
            "point": ["product", "a_bits", "b_bits", "stride", "taps", "format", "flags", "count"],
            "points": coverage,
        },
        "build_seconds": round(built - started, 3),
        "run_seconds": round(time.perf_counter() - built, 3),
    }


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
    """``fractrain cosim``: 0 if all words agree, 1 if not, 2 if it cannot run."""
    try:
        report = cosimulate(arguments.design, arguments.programs, arguments.seed)
    except (DesignError, GenerateError, DeviceError) as e:
        print(f"fractrain cosim: {e}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 1 if report["mismatches"] or report["failed_tests"] or not report["words_compared"] else 0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``cosim`` to the command line."""
    parser = subparsers.add_parser("cosim", help="check the RTL under cocotb against the NumPy reference")
    parser.add_argument("--design", default="sim-small", help="name in configs/designs, or a TOML file")
    parser.add_argument(
        "--programs",
        type=int,
        default=MAX_BITS,
        help=f"programs of the sweep; {MAX_BITS} cover every pair of precisions",
    )
    parser.add_argument("--seed", type=int, default=1, help="of programs, pauses, faults and power-up contents")
    parser.add_argument("--json", action="store_true", help="print a machine-readable report")
    parser.set_defaults(run=run)
