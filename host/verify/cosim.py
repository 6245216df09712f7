"""Co-simulation of a design: the generated SystemVerilog under cocotb against the NumPy reference, and what it covered."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from host.verify.simulation import build_fabric, run_cocotb_bench
from hw.contract import MAX_BITS
from hw.design import DesignError, load_design

BENCH = "host.verify.bench"
_SUMMED = ("programs", "words_compared", "mismatches", "cycles", "resets", "output_stalls")


def cosimulate(
    design: str, programs: int, seed: int, sources: list[Path] | None = None,
    doing: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:  # fmt: skip
    """Build the fabric of a design, run the bench on it, and sum up what it found.

    Args:
        design: name in ``configs/designs``, or a TOML file.
        programs: programs of the precision sweep; refusals and resets scale with it.
        seed: of programs, pauses, faults and power-up contents, at least 0.
        sources: SystemVerilog files to build instead of the generated ones.
        doing: called with what is done now, for people.

    Raises:
        DeviceError: a tool is missing, or the simulation cannot be built or run.
        DesignError, GenerateError: the design is impossible.
        ValueError: a negative seed.
    """
    if programs < 1:
        raise DesignError(
            f"--programs {programs}: at least one program is needed; {MAX_BITS} cover every precision pair"
        )
    if seed < 0:
        raise ValueError(f"--seed {seed}: seeds are not negative; give 0 or more")
    started = time.perf_counter()
    doing("building the simulator")
    build = build_fabric(load_design(design), sources)
    built = time.perf_counter()
    doing(f"simulating {programs} programs")
    with tempfile.TemporaryDirectory() as folder:
        where = str(Path(design).resolve()) if design.endswith(".toml") else design
        environment = {
            "COSIM_DESIGN": where,
            "COSIM_PROGRAMS": str(programs),
            "COSIM_SEED": str(seed),
            "COSIM_REPORT": folder,
        }
        outcomes = run_cocotb_bench(build, "fabric", BENCH, environment, seed=seed)
        parts = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(Path(folder).glob("*.json"))]
    return {
        "design": design,
        "seed": seed,
        **_summed(parts),
        "failed_tests": [f"{name}: {text}" for name, text in outcomes.items() if text],
        "coverage": _coverage([point for part in parts for point in part.get("coverage", [])]),
        "build_seconds": round(built - started, 3),
        "run_seconds": round(time.perf_counter() - built, 3),
    }


def _summed(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the tests of the bench found, all together."""
    refusals: Counter[str] = Counter()
    for part in parts:
        refusals.update(part["refusals"])
    return {
        **{name: sum(part[name] for part in parts) for name in _SUMMED},
        "refusals": dict(sorted(refusals.items())),
        "differences": [line for part in parts for line in part["differences"]][:20],
    }


def _coverage(points: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Products by precision, stride, taps, format and flags, from the bench's points."""

    def pairs(product: str, stride: int | None = None) -> int:
        return len({(a, b) for name, a, b, s, *_ in points if name == product and stride in (None, s)})

    return {
        "precision_pairs": {product: pairs(product) for product in ("CONV", "WGRAD")},
        "precision_pairs_total": MAX_BITS * MAX_BITS,
        "precision_pairs_of_conv_by_stride": {stride: pairs("CONV", stride) for stride in (1, 2)},
        "taps_of_wgrad": sorted({taps for name, _, _, _, taps, *_ in points if name == "WGRAD"}),
        "formats": sorted({form for *_, form, _, _ in points}),
        "flags": sorted({flag for *_, flags, _ in points for flag in flags.split("|") if flag}),
        "point": ["product", "a_bits", "b_bits", "stride", "taps", "format", "flags", "count"],
        "points": points,
    }
