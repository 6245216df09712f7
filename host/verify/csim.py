"""C simulation of a design: the rendered test bench on a sweep over all precisions, against the NumPy reference."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from host.devices.device import U64, Result, split_streams
from host.devices.reference import ReferenceDevice
from host.verify.stimuli import ALL_POINTS, PRODUCT_PACKETS, precision_sweep
from hw.contract import MAX_BITS, TRAILER_MAGIC
from hw.design import Design
from hw.tools.compile import BIT_SERIAL, Case, build_bench, fast_flags, run_bench, stimuli_text


@dataclass(frozen=True)
class _Variant:
    """One way to compile the kernel: flags, and the most plane pairs of a product that it is quick enough for."""

    name: str
    flags: tuple[str, ...]
    max_pairs: int
    stimuli: str


def variants(design: Design) -> dict[str, _Variant]:
    """Ways to compile the kernel of a design, by name."""
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
    chosen = variants(design)[path]
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
            "covered": {p: sum(point[0] == p for point in points) for p in PRODUCT_PACKETS},
            "total": {p: sum(point[0] == p for point in wanted) for p in PRODUCT_PACKETS},
            "missing": sorted(wanted - points),
        },
        "build_seconds": round(built - started, 3),
        "run_seconds": round(time.perf_counter() - built, 3),
        "log": result.log.splitlines()[:20],
    }
