"""C simulation: compile the rendered C++ with g++ and run its test bench on stored programs.

Compiled files are kept by the content of their sources, flags, compiler and machine, so that nothing is built twice
and a stale file is never run.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hw.contract import FUNCTIONAL_COUNTERS
from hw.design import Design
from hw.files import cache_folder
from hw.generate import render

_logger = logging.getLogger(__name__)

# fused multiply-add would round once where the quantizers' kernels round twice, so contraction is off
BASE_FLAGS = ("-std=c++17", "-Wall", "-Wno-unknown-pragmas", "-ffp-contract=off")
SANITIZE_FLAGS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
BIT_SERIAL = "-DFABRIC_BIT_SERIAL"  #: compile the array code that synthesis sees
LIGHT_STREAM = "-DFABRIC_LIGHT_STREAM"  #: plain memory in place of hls::stream

_TIMEOUT = 1800.0  #: seconds for one run of a bench


class CompileError(RuntimeError):
    """C++ could not be compiled, or a bench not be run; the message holds the cause."""


def compiler() -> tuple[str, ...]:
    """The C++ compiler as the first words of a command: what the variable ``CXX`` says, or g++.

    ``CXX`` is read as a shell reads it, so that it may hold a wrapper or options, such as ``ccache g++``.

    Raises:
        CompileError: there is none, or ``CXX`` is no command.
    """
    wanted = os.environ.get("CXX", "").strip() or "g++"
    try:
        program, *rest = shlex.split(wanted)
    except ValueError as e:
        raise CompileError(f"CXX = {wanted!r} is no command ({e}); set it to a C++ compiler or unset it") from e
    found = shutil.which(program)
    if found is None:
        remedy = "install g++ 9 or later" if program == "g++" else "set CXX to a C++17 compiler or unset it"
        raise CompileError(f"the C++ compiler {program} is missing; {remedy}")
    return (found, *rest)


@functools.cache
def machine(command: tuple[str, ...]) -> str:
    """What -march=native means here, so that a library is not run on a lesser processor."""
    version = subprocess.run([*command, "--version"], capture_output=True, text=True).stdout
    options = subprocess.run([*command, "-march=native", "-Q", "--help=target"], capture_output=True, text=True).stdout
    return platform.machine() + version + options


def fast_flags() -> tuple[str, ...]:
    """Flags for speed on this machine."""
    wide = ("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()
    return ("-O3", "-march=native", *wide)


def ap_types() -> Path:
    """Folder of the arbitrary-precision headers, in the installed hls4ml package.

    Raises:
        CompileError: the package is not installed.
    """
    try:
        package = importlib.metadata.distribution("hls4ml")
        folder = Path(str(package.locate_file("hls4ml/templates/vivado/ap_types")))
    except importlib.metadata.PackageNotFoundError:
        folder = Path()
    if not (folder / "ap_int.h").is_file():
        raise CompileError(
            f"ap_int.h and hls_stream.h are missing: pip install 'fractrain-fabric[sim]' in {sys.prefix} brings them, with "
            "hls4ml"
        )
    return folder


def hls_files(design: Design) -> dict[str, str]:
    """The rendered C++ of a design, file name -> text."""
    return {name.removeprefix("hls/"): text for name, text in render(design).items() if name.startswith("hls/")}


def build(files: dict[str, str], sources: Sequence[str], flags: Sequence[str], name: str, shared: bool = False) -> Path:
    """Compile C++ texts into the cache, see :func:`hw.files.cache_folder`.

    Args:
        files: file name -> text; files that are neither sources nor headers are left out.
        sources: which of them to compile.
        flags: of the compiler.
        name: start of the result's file name.
        shared: a shared library instead of a program.

    Raises:
        CompileError: no compiler, or it refuses the code (its messages are included).
        OSError: the cache cannot be written.
    """
    cxx = compiler()
    used = {key: text for key, text in files.items() if key in sources or key.endswith(".h")}
    digest = hashlib.sha256(repr((machine(cxx), list(sources), list(flags), shared)).encode())
    digest.update(repr(sorted(used.items())).encode())
    cache = cache_folder()
    result = cache / f"{name}-{digest.hexdigest()[:16]}{'.so' if shared else ''}"
    if result.exists():
        _logger.debug("%s is built already", result)
        return result
    with tempfile.TemporaryDirectory(dir=cache) as work:
        for key, text in used.items():
            (Path(work) / key).write_text(text, encoding="utf-8")
        kind = ["-fPIC", "-shared"] if shared else []
        command = [*cxx, *BASE_FLAGS, *flags, *kind, *sources, "-o", "result"]
        _logger.debug("%s", shlex.join(command))
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.splitlines()
            errors = [line for line in lines if "error" in line][:20] or lines[-20:]
            raise CompileError(f"{' '.join(cxx)} could not build {name}:\n" + "\n".join(errors))
        os.replace(Path(work) / "result", result)
    return result


@dataclass(frozen=True)
class Case:
    """One program and what it must give.

    Attributes:
        name: of the program.
        words0, words1: the two input streams, uint64 (n,), n >= 1.
        expected: all output words, trailer included.
        counters: functional counters.
    """

    name: str
    words0: npt.NDArray[np.uint64]
    words1: npt.NDArray[np.uint64]
    expected: npt.NDArray[np.uint64]
    counters: dict[str, int]


@dataclass(frozen=True)
class BenchResult:
    """What a bench has compared; ``log`` is what it printed."""

    programs: int
    words: int
    mismatches: int
    log: str


def stimuli_text(cases: Iterable[Case]) -> str:
    """The file that the test bench reads."""
    lines: list[str] = []
    for case in cases:
        words = (case.words0, case.words1, case.expected)
        numbers = [*(w.size for w in words), *(case.counters[name] for name in FUNCTIONAL_COUNTERS)]
        lines.append(" ".join(["program", "_".join(case.name.split()), *map(str, numbers)]))
        lines += [f"{word:x}" for w in words for word in w.tolist()]
    return "\n".join(lines) + "\n"


def build_bench(design: Design, flags: Sequence[str], files: dict[str, str] | None = None) -> Path:
    """Test bench and kernel as a program.

    Args:
        design: what to render.
        flags: of the compiler.
        files: C++ texts to compile instead of the freshly rendered ones.

    Raises:
        CompileError: see :func:`build` and :func:`ap_types`.
    """
    # as system headers, so that their warnings stay out
    headers = ["-isystem", str(ap_types())]
    files = hls_files(design) if files is None else files
    return build(files, ["fabric.cpp", "testbench.cpp"], [*flags, *headers], f"csim-{design.name}")


def run_bench(bench: Path, stimuli: Path) -> BenchResult:
    """Run a test bench on a file of programs.

    Raises:
        CompileError: it has crashed, could not read the file, or did not end within half an hour.
    """
    try:
        _logger.debug("%s %s", bench, stimuli)
        done = subprocess.run([str(bench), str(stimuli)], capture_output=True, text=True, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired as e:
        raise CompileError(f"{bench.name} did not end {stimuli} within {_TIMEOUT:g} s; give it fewer programs") from e
    summary = re.search(r"^programs (\d+) words (\d+) mismatches (\d+)$", done.stdout, re.MULTILINE)
    if summary is None or done.returncode not in (0, 1):
        log = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise CompileError(f"{bench.name} ended with code {done.returncode} and without a summary:\n{log}")
    programs, words, mismatches = map(int, summary.groups())
    if done.returncode == 1 and mismatches == 0:
        raise CompileError(f"{bench.name} reports failure but no mismatch:\n{done.stdout}")
    return BenchResult(programs, words, mismatches, done.stdout)
