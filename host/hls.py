"""The rendered HLS C++ as a device: compiled with g++ into a shared library, cached by content."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from host.device import DeviceError
from host.library import LibraryDevice
from hw.design import ROOT, Design
from hw.generate import render

CACHE = ROOT / "build" / "cache"

# fused multiply-add would round once where the quantizer rounds twice, so contraction is off
BASE_FLAGS = ("-std=c++17", "-Wall", "-Wno-unknown-pragmas", "-ffp-contract=off")
FAST_FLAGS = ("-O3", "-march=native")
SANITIZE_FLAGS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
WIDE_VECTORS = "-mprefer-vector-width=512"


def compiler() -> str:
    """Path of g++.

    Raises:
        DeviceError: there is none.
    """
    found = shutil.which("g++")
    if found is None:
        raise DeviceError("g++ is missing; the HLS simulation needs a C++17 compiler: install g++ 9 or later")
    return found


@functools.cache
def _machine(gxx: str) -> str:
    """What -march=native means here, so that a library is not run on a lesser processor."""
    shown = subprocess.run([gxx, "-march=native", "-Q", "--help=target"], capture_output=True, text=True)
    version = subprocess.run([gxx, "--version"], capture_output=True, text=True)
    return platform.machine() + version.stdout.splitlines()[0] + shown.stdout


def ap_types() -> Path | None:
    """Folder of the arbitrary-precision headers in the installed hls4ml package, or None."""
    try:
        package = importlib.metadata.distribution("hls4ml")
    except importlib.metadata.PackageNotFoundError:
        return None
    folder = Path(str(package.locate_file("hls4ml/templates/vivado/ap_types")))
    return folder if (folder / "ap_int.h").is_file() else None


def build(
    files: dict[str, str], sources: Sequence[str], flags: Sequence[str], name: str, shared: bool, cache: Path = CACHE
) -> Path:
    """Compile C++ texts; the same texts, flags, compiler and machine are compiled once.

    Args:
        files: file name -> text, all that the sources include.
        sources: which of them to compile.
        flags: of the compiler.
        name: start of the result's file name.
        shared: a shared library instead of a program.

    Raises:
        DeviceError: no compiler, or it refuses the code (its message is included).
    """
    gxx = compiler()
    digest = hashlib.sha256(repr((_machine(gxx), list(sources), list(flags), shared)).encode())
    for key in sorted(files):
        digest.update(repr((key, files[key])).encode())
    result = cache / f"{name}-{digest.hexdigest()[:16]}{'.so' if shared else ''}"
    if result.exists():
        return result
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        for key, text in files.items():
            (Path(work) / key).write_text(text, encoding="utf-8")
        target = Path(work) / "out"
        kind = ["-fPIC", "-shared"] if shared else []
        command = [gxx, *BASE_FLAGS, *flags, *kind, *sources, "-o", str(target)]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line][:20] or done.stderr.splitlines()[-20:]
            raise DeviceError(f"g++ could not build {name}:\n" + "\n".join(errors))
        os.replace(target, result)
    return result


def hls_files(design: Design) -> dict[str, str]:
    """The rendered C++ of a design, file name -> text."""
    return {name.removeprefix("hls/"): text for name, text in render(design).items() if name.startswith("hls/")}


def fast_flags() -> tuple[str, ...]:
    """Flags for speed on this machine."""
    return (*FAST_FLAGS, WIDE_VECTORS) if platform.machine() in ("x86_64", "AMD64") else FAST_FLAGS


def build_hls(design: Design, files: dict[str, str] | None = None, flags: Sequence[str] | None = None) -> Path:
    """Shared library of the rendered kernel.

    Args:
        design: what to render.
        files: C++ texts to compile instead of the freshly rendered ones.
        flags: of the compiler, instead of the fast ones.

    Raises:
        DeviceError: see :func:`build`.
    """
    files = hls_files(design) if files is None else files
    flags = fast_flags() if flags is None else tuple(flags)
    code = {name: text for name, text in files.items() if name in ("fabric.cpp", "fabric.h", "contract.h", "library.cpp")}
    return build(
        code, ["fabric.cpp", "library.cpp"], [*flags, "-DFABRIC_LIGHT_STREAM"], f"hls-{design.name}", shared=True
    )


class HlsDevice(LibraryDevice):
    """The HLS kernel, compiled for this machine; functionally exact, without timing.

    Args:
        design: what to render and compile.
        files: other C++ texts than the rendered ones (tests break them on purpose).
    """

    def __init__(self, design: Design, files: dict[str, str] | None = None) -> None:
        super().__init__("hls", design, build_hls(design, files))
