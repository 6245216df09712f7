"""The C++ compiler: one place says which, for the C simulation and the quantizers' kernels."""

from __future__ import annotations

import stat
from pathlib import Path

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
    monkeypatch.setattr(tool, "LIBRARY_CACHE", tmp_path / "a cache")
    library = tool.build({"one.cpp": 'extern "C" int one() { return 1; }\n'}, ["one.cpp"], [], "one", shared=True)
    assert library.is_file()
    assert "used" in wrapper.with_name("log").read_text(encoding="utf-8")


def test_the_kernels_take_the_same_compiler(wrapper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sw_model.quantize import kernels

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FRACTRAIN_FUSED", raising=False)
    (tmp_path / "kernels.cpp").write_text("int unused;\n", encoding="utf-8")
    target = tmp_path / "out.so"
    monkeypatch.setattr(kernels, "_SOURCE", tmp_path / "kernels.cpp")
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
