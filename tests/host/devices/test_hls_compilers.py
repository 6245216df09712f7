"""The HLS kernel under strict compilers and on two libraries of arbitrary-precision integers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from host.devices.hls import HlsDevice
from host.devices.reference import ReferenceDevice
from hw.design import load_design
from hw.tools.compile import BIT_SERIAL, LIGHT_STREAM, ap_types, hls_files
from tests.support.kernel import assert_alike, second_library
from tests.support.malformed import malformed_programs
from tests.support.random_programs import random_programs

SMALL = load_design("sim-small")
FIRST = ("-isystem", str(ap_types()))
STRICT = ("-std=c++14", "-Wall", "-Wextra", "-pedantic-errors", "-Werror", "-Wno-unknown-pragmas", "-fsyntax-only")
FORMS = {
    "fast": FIRST,
    "bit-serial": (BIT_SERIAL, *FIRST),
    "library": (BIT_SERIAL, LIGHT_STREAM, *FIRST),
    "second library": (BIT_SERIAL, *second_library()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_strict_cpp14(compiler: str, form: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    for name, text in hls_files(SMALL).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = [compiler, *STRICT, *FORMS[form], "fabric.cpp"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["sim-small", pytest.param("zc706", marks=pytest.mark.slow)])
def test_results_are_the_same_on_the_second_library(name: str) -> None:
    design = load_design(name)
    device, reference = HlsDevice(design, flags=["-O1", BIT_SERIAL, *second_library()]), ReferenceDevice(design)
    for seed, words in enumerate(random_programs(design, 20, max_bits=3, max_rows=9)):
        assert_alike(device.run(words), reference.run(words), seed)
    for case in malformed_programs(design):
        if not case.slow:
            result = device.run_streams(case.words0, case.words1)
            assert_alike(result, reference.run_streams(case.words0, case.words1), case.name)
