"""Command line of the C simulation: the rendered test bench against the NumPy reference."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from host.devices.device import U64, DeviceError, Result, split_streams
from host.devices.reference import ReferenceDevice
from host.verify.stimuli import ALL_POINTS, PRODUCTS, precision_sweep
from hw.contract import MAX_BITS, TRAILER_MAGIC
from hw.design import Design, DesignError, load_design
from hw.generate import GenerateError, generate
from hw.tools.compile import BIT_SERIAL, Case, CompileError, build_bench, fast_flags, run_bench, stimuli_text


@dataclass(frozen=True)
class _Variant:
    """One way to compile the kernel: flags, and the most plane pairs of a product that it is quick enough for."""

    name: str
    flags: tuple[str, ...]
    max_pairs: int
    stimuli: str


def _variants(design: Design) -> dict[str, _Variant]:
    # bit by bit, a product costs its plane pairs times the size of the array
    quick = max(1, 64 * 9216 // design.binary_macs)
    return {
        "native": _Variant("native", fast_flags(), MAX_BITS * MAX_BITS, "stimuli.txt"),
        "bit-serial": _Variant("bit-serial", ("-O2", BIT_SERIAL), quick, "stimuli-bit-serial.txt"),
    }


def expected_words(result: Result) -> U64:
    """Everything that leaves the fabric for a result: its words and the trailer."""
    trailer = [TRAILER_MAGIC << 32 | int(result.error), result.counters["PACKETS"] << 32 | result.position]
    return np.concatenate([result.words, np.array(trailer, dtype=np.uint64)])


def cases_of(design: Design, programs: Iterable[tuple[str, U64, U64]]) -> list[Case]:
    """What the reference device answers to programs (name, stream 0, stream 1) that run one after the other."""
    device = ReferenceDevice(design)
    cases = []
    for name, words0, words1 in programs:
        result = device.run_streams(words0, words1)
        cases.append(Case(name, words0, words1, expected_words(result), result.counters))
    return cases


def simulate(
    design: Design, out: Path, path: str, seeds: int = 1, files: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run the test bench of a design on a sweep over all precisions.

    Args:
        design: what to simulate.
        out: folder for the stimuli.
        path: "native", or "bit-serial" for the array code that synthesis sees (low precisions only: it is slow).
        seeds: sweeps with different shapes, signs, masks and data.
        files: C++ texts to compile instead of the rendered ones.

    Raises:
        CompileError: the bench cannot be built or run.
    """
    chosen = _variants(design)[path]
    stimuli = [s for seed in range(seeds) for s in precision_sweep(design, seed, max_pairs=chosen.max_pairs)]
    file = out / chosen.stimuli
    file.parent.mkdir(parents=True, exist_ok=True)
    cases = cases_of(design, ((s.name, *split_streams(s.words)) for s in stimuli))
    file.write_text(stimuli_text(cases), encoding="utf-8")
    started = time.perf_counter()
    bench = build_bench(design, chosen.flags, files)
    built = time.perf_counter()
    result = run_bench(bench, file)
    points = frozenset().union(*(s.points for s in stimuli))
    wanted = frozenset(p for p in ALL_POINTS if p[1] * p[2] <= chosen.max_pairs)
    return {
        "path": chosen.name,
        "programs": result.programs,
        "words_compared": result.words,
        "mismatches": result.mismatches,
        "coverage": {
            "points": "product, a_bits, b_bits",
            "covered": {p: sum(point[0] == p for point in points) for p in PRODUCTS},
            "total": {p: sum(point[0] == p for point in wanted) for p in PRODUCTS},
            "missing": sorted(wanted - points),
        },
        "build_seconds": round(built - started, 3),
        "run_seconds": round(time.perf_counter() - built, 3),
        "log": result.log.splitlines()[:20],
    }


def run(arguments: argparse.Namespace) -> int:
    """``fractrain csim``: 0 if all words agree, 1 if not, 2 if it cannot run."""
    try:
        design = load_design(arguments.design)
        # beside the kernel, where the tool configuration expects them
        out = generate(design, arguments.out or Path("build") / design.name) / "hls"
        names = list(_variants(design)) if arguments.path == "both" else [arguments.path]
        reports = [simulate(design, out, name, arguments.seeds) for name in names]
    except (DesignError, GenerateError, CompileError, DeviceError) as e:
        print(f"fractrain csim: {e}", file=sys.stderr)
        return 2
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
                f"{p} {r['coverage']['covered'][p]}/{r['coverage']['total'][p]} precision pairs" for p in PRODUCTS
            )
            print(
                f"  {r['path']:10} {r['programs']} programs, {r['words_compared']} words compared, "
                f"{r['mismatches']} mismatches; {covered}; built in {r['build_seconds']} s, ran {r['run_seconds']} s"
            )
            if r["mismatches"]:
                print("\n".join("    " + line for line in r["log"]))
    return 1 if mismatches or incomplete else 0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``csim`` to the command line."""
    parser = subparsers.add_parser("csim", help="check the HLS C++ against the NumPy reference")
    parser.add_argument("--design", default="sim-small", help="name in configs/designs, or a TOML file")
    parser.add_argument("--path", choices=["both", "native", "bit-serial"], default="both", help="array code to run")
    parser.add_argument("--seeds", type=int, default=1, help="sweeps over all precisions")
    parser.add_argument("--out", type=Path, help="folder for generated files (default: build/DESIGN)")
    parser.add_argument("--json", action="store_true", help="print a machine-readable report")
    parser.set_defaults(run=run)
