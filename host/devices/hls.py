"""The rendered HLS C++ as a device: compiled with g++ into a shared library, cached by content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from host.devices.device import DeviceError
from host.devices.library import LibraryDevice
from hw.design import Design
from hw.tools.compile import LIGHT_STREAM, CompileError, build, fast_flags, hls_files


def build_hls(design: Design, files: dict[str, str] | None = None, flags: Sequence[str] | None = None) -> Path:
    """Shared library of the rendered kernel.

    Args:
        design: what to render.
        files: C++ texts to compile instead of the freshly rendered ones.
        flags: of the compiler, instead of those for speed.

    Raises:
        DeviceError: no compiler, or it refuses the code.
    """
    files = hls_files(design) if files is None else files
    chosen = fast_flags() if flags is None else tuple(flags)
    try:
        return build(files, ["fabric.cpp", "library.cpp"], [*chosen, LIGHT_STREAM], f"hls-{design.name}", shared=True)
    except CompileError as e:
        raise DeviceError(str(e)) from e


class HlsDevice(LibraryDevice):
    """The HLS kernel, compiled for this machine: exact words and functional counters, no timing.

    Args:
        design: what to render and compile.
        files: other C++ texts than the rendered ones (tests break them on purpose).
        flags: other compiler flags than those for speed.
    """

    def __init__(self, design: Design, files: dict[str, str] | None = None, flags: Sequence[str] | None = None) -> None:
        super().__init__("hls", design, build_hls(design, files, flags))
