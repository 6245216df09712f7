"""The HLS kernel held to its pragmas and to its cycle model, on programs that cover the precisions."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from host.devices.device import U64, split_streams
from host.devices.reference import ReferenceDevice
from host.verify.csim import cases_of
from host.verify.stimuli import precision_sweep
from hw.design import Design
from hw.model.kernel_cycles import loop_cycles
from hw.packet import END, Packet
from hw.tools.compile import stimuli_text
from hw.tools.kernel_counts import KernelCounts, Loop, count_kernel, loops_without_promise

STIMULI = "stimuli-counting.txt"


def quick_pairs(design: Design) -> int:
    """Most plane pairs of a product for which the build that counts is quick enough."""
    return max(4, 16 * 9216 // design.binary_macs)


class _Walked(ReferenceDevice):
    """The reference, which also tells the packets of a program with the planes that the array has walked."""

    def __init__(self, design: Design) -> None:
        super().__init__(design)
        self._planes: dict[str, int] = {}

    def _operand(self, f: Packet, buffer: str) -> tuple[npt.NDArray[np.int32], int]:
        codes, walked = super()._operand(f, buffer)
        self._planes["a_planes" if buffer == "A" else "b_planes"] = walked
        return codes, walked

    def _execute(self, f: Packet, payload: U64, out: list[U64], counts: Any) -> None:
        self._planes = {}
        super()._execute(f, payload, out, counts)
        self.packets.append(replace(f, **self._planes))

    def packets_of(self, words: U64) -> list[Packet]:
        """The packets of a good program, END included."""
        self.packets: list[Packet] = []
        self.run(words)
        return [*self.packets, END]


def count_program(
    design: Design, words: U64, out: Path, files: dict[str, str] | None = None
) -> tuple[KernelCounts, dict[str, int]]:
    """What the kernel does in one good program, and the cycles of its loops by the model.

    Args:
        design: what to render.
        words: of the program.
        out: folder for the stimuli.
        files: C++ texts instead of the rendered ones.

    Raises:
        CompileError: the kernel cannot be prepared, built or run.
    """
    file = out / STIMULI
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(stimuli_text(cases_of(design, [("program", *split_streams(words))])), encoding="utf-8")
    return count_kernel(design, file, files), loop_cycles(design, _Walked(design).packets_of(words))


def check_kernel(
    design: Design, out: Path, files: dict[str, str] | None = None, programs: Iterable[U64] | None = None
) -> dict[str, Any]:
    """Count what the kernel does in good programs, each by itself.

    Args:
        programs: their words, instead of a sweep over the lowest precisions.
        design, out, files: as for :func:`count_program`.

    Returns:
        ``faults`` are broken promises of pragmas; ``loops`` has the cycles of each pipelined loop, by function, as counted
        and as the model says; ``differences`` are the programs and functions in which the two differ.

    Raises:
        CompileError: the kernel cannot be prepared, built or run.
    """
    started = time.perf_counter()
    faults: dict[str, None] = {}
    differences: list[str] = []
    loops: dict[str, dict[str, int]] = {}
    chosen = programs or (s.words for s in precision_sweep(design, max_pairs=quick_pairs(design)))
    all_loops: list[Loop] = []
    mismatches = number = 0
    for number, words in enumerate(chosen, 1):
        counts, model = count_program(design, words, out, files)
        mismatches += counts.mismatches
        faults |= dict.fromkeys(counts.faults)
        all_loops += counts.loops
        counted = counts.cycles()
        for function in sorted(counted.keys() | model.keys()):
            ours, theirs = counted.get(function, 0), model.get(function, 0)
            row = loops.setdefault(function, {"counted": 0, "model": 0})
            row["counted"] += ours
            row["model"] += theirs
            if ours != theirs:
                differences.append(f"program {number}, {function}: {ours} cycles, {theirs} by the model")
    return {
        "path": "counting",
        "programs": number,
        "mismatches": mismatches,
        "faults": [*faults, *loops_without_promise(all_loops)],
        "differences": differences,
        "loops": loops,
        "seconds": round(time.perf_counter() - started, 3),
    }
