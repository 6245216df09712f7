"""The pages as a site, with those that are made from the code; the tutorial's commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from html import unescape
from pathlib import Path

import pytest

import fractrain
from hw.contract import REGISTERS, Opcode
from hw.design import ROOT
from sw_model.train.recipe import TrainConfig

TUTORIAL = ROOT / "docs" / "tutorial.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def text_of(page: Path) -> str:
    return unescape(page.read_text(encoding="utf-8"))


def test_site_has_every_page_and_asks_no_other_host(site: Path) -> None:
    pages = {page.relative_to(site).as_posix() for page in site.rglob("*.html")}
    assert {f"{page.stem}.html" for page in (ROOT / "docs").glob("*.md")} | {"index.html"} <= pages
    for page in site.rglob("*.html"):
        asked = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text(encoding="utf-8"))
        assert not asked, f"{page.name} loads {asked}"


def test_reference_has_all_commands_keys_and_names(site: Path) -> None:
    commands = text_of(site / "reference" / "commands.html")
    for command in ("train", "predict", "report run", "bench engine", "board run"):
        assert f"usage: fractrain {command} " in commands
    keys = text_of(site / "reference" / "recipes.html")
    for field in fields(TrainConfig):
        assert f"<code>{field.name}</code>" in keys, field.name
    interface = text_of(site / "reference" / "interface.html")
    for name in fractrain.INTERFACE:
        assert name in interface
    registers = text_of(site / "reference" / "registers.html")
    for register in REGISTERS:
        assert f">{register.name}<" in registers or f"`{register.name}`" in registers
    packets = text_of(site / "reference" / "packets.html")
    for opcode in Opcode:
        assert opcode.name in packets


def blocks() -> list[str]:
    """The shell commands of the tutorial, block by block."""
    return re.findall(r"^```sh\n(.*?)^```", TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_tutorial_has_commands_and_options_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ("first", "static"):
        (tmp_path / "runs" / run).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks() for line in block.splitlines()]
    assert len(lines) >= 10
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "fractrain"
        fractrain.build_parser().parse_args(words)


@pytest.mark.slow
def test_tutorial_runs_from_top_to_bottom(tmp_path: Path) -> None:
    (tmp_path / "fractrain").write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m fractrain "$@"\n')
    (tmp_path / "fractrain").chmod(0o755)
    variables = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for block in blocks():
        done = subprocess.run(["bash", "-e"], input=block, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}{done.stdout}{done.stderr}"
    for name in ("runs.html", "first.safetensors", "build/pynq-z2/rtl/fabric.sv", "runs/fabric/result.json"):
        assert (tmp_path / name).is_file()
