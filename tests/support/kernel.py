"""The HLS kernel in tests: its form for synthesis, changes to its text, and its results beside another device's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from host.devices.device import Result
from host.devices.hls import HlsDevice
from hw.contract import FUNCTIONAL_COUNTERS, Error
from hw.design import Design
from hw.tools.compile import BIT_SERIAL, ap_types


def replaced(files: dict[str, str], old: str, new: str) -> dict[str, str]:
    """``files`` with the one place that reads ``old`` reading ``new`` instead."""
    places = [name for name, text in files.items() if old in text]
    assert sum(files[name].count(old) for name in places) == 1, f"one place should read {old!r}; {places} do"
    return files | {name: files[name].replace(old, new) for name in places}


def assert_alike(ours: Result, expected: Result, what: object) -> None:
    assert (ours.error, ours.position) == (expected.error, expected.position), what
    assert np.array_equal(ours.words, expected.words), what
    exact = FUNCTIONAL_COUNTERS if expected.error is Error.NONE else ("PACKETS", "WORDS_OUT")
    assert {k: ours.counters[k] for k in exact} == {k: expected.counters[k] for k in exact}, what


def second_library() -> tuple[str, ...]:
    """Flags that put ac_types, another library of arbitrary-precision integers, under the kernel."""
    names = Path(__file__).parent / "ac_types"
    return (f"-I{names}", "-isystem", str(ap_types().parents[1] / "quartus" / "ac_types"))


def bit_serial_device(design: Design, files: dict[str, str] | None = None) -> HlsDevice:
    return HlsDevice(design, files, ["-O2" if files is None else "-O1", BIT_SERIAL, "-isystem", str(ap_types())])
