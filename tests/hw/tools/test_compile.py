"""The C++ compiler: one place says which, for the C simulation and the quantizers' kernels."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from hw.tools import compile as tool
from hw.tools.compile import CompileError, compiler


@pytest.fixture
def wrapper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that notes its use and calls what follows, in a folder with a blank."""
    folder = tmp_path / "my tools"
    folder.mkdir()
    program = folder / "cache"
    program.write_text(f'#!/bin/sh\necho used >> "{folder}/log"\nexec "$@"\n', encoding="utf-8")
    program.chmod(stat.S_IRWXU)
    monkeypatch.setenv("CXX", f"'{program}' g++")
    return program


def test_cxx_may_hold_a_wrapper_and_options(wrapper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiler() == (str(wrapper), "g++")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a cache"))
    library = tool.build({"one.cpp": 'extern "C" int one() { return 1; }\n'}, ["one.cpp"], [], "one", shared=True)
    assert library.is_file()
    assert "used" in wrapper.with_name("log").read_text(encoding="utf-8")


def test_the_kernels_take_the_same_compiler(wrapper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sw_model.quantize import kernels

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FRACTRAIN_FUSED", raising=False)
    (tmp_path / "kernels.cpp").write_text("int unused;\n", encoding="utf-8")
    target = tmp_path / "out.so"
    monkeypatch.setattr(kernels, "_SOURCES", (tmp_path / "kernels.cpp",))
    kernels._compile(compiler(), target)
    assert target.is_file()
    assert "used" in wrapper.with_name("log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "message"), [("no-such-compiler -O2", "no-such-compiler is missing"), ("'g++", "is no command")]
)
def test_a_wrong_cxx_is_named(value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", value)
    with pytest.raises(CompileError, match=message):
        compiler()


def test_without_cxx_it_is_gxx(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", " "):
        monkeypatch.setenv("CXX", value)
        assert Path(compiler()[0]).name == "g++"


def _build(start: Any, place: str) -> None:
    os.environ["XDG_CACHE_HOME"] = place
    start.wait()
    library = tool.build({"two.cpp": 'extern "C" int two() { return 2; }\n'}, ["two.cpp"], [], "two", shared=True)
    sys.exit(0 if ctypes.CDLL(str(library)).two() == 2 else 1)


def test_two_processes_may_build_the_same_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    builders = [context.Process(target=_build, args=(start, str(tmp_path))) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert len(list((tmp_path / "fractrain").iterdir())) == 1, "the library, and no scratch files"
