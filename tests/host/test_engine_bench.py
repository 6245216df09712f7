"""``fractrain bench engine``: what it refuses before it opens a device, and what it measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fractrain
from host import engine_bench
from host.engine_bench import refuse_unfit
from hw.design import load_design
from hw.layers import Bits, ConvShape
from hw.workload import WorkloadError

SMALL = ConvShape("small", 8, 8, 3, 1, 1, (8, 8))


class Opened(Exception):
    """A device was asked for."""


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise Opened

    monkeypatch.setattr("host.device.open_device", refuse)


def test_a_good_command_opens_the_device(no_device: None, tmp_path: Path) -> None:
    with pytest.raises(Opened):
        fractrain.main(["bench", "engine", "--design", "zc706", "--save", str(tmp_path / "new" / "x.json")])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--bits", "2/2/2", "99/8/8"],
        ["--bits", "2/2/2", "8/8"],
        ["--bits", "8/8/²"],
        ["--batch", "0"],
        ["--batch", "-3"],
        ["--save", "FOLDER"],
        ["--figure", "FILE/x.svg"],
        ["--figure", "FOLDER/x.nothing"],
        ["--bits", "8/8/8", "16/16/16"],
        ["--model", "resnet18"],
        ["--design", "sim-small"],
    ],
    ids=" ".join,
)
def test_bad_input_is_refused_before_the_device_is_opened(
    arguments: list[str], no_device: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    places = {"FOLDER": str(tmp_path), "FILE": str(tmp_path / "file")}
    for name, place in places.items():
        arguments = [a.replace(name, place) for a in arguments]
    assert fractrain.main(["bench", "engine", *arguments]) == 1
    assert capsys.readouterr().out == ""


def test_a_layer_that_the_design_cannot_hold_is_named() -> None:
    wide = ConvShape("wide", 8, 8, 3, 1, 1, (64, 64))
    with pytest.raises(WorkloadError, match="wide"):
        refuse_unfit(load_design("sim-small"), [SMALL, wide], Bits(2, 2, 2))
    with pytest.raises(WorkloadError, match="small"):
        refuse_unfit(load_design("sim-small"), [SMALL], Bits(16, 16, 16))
    refuse_unfit(load_design("sim-small"), [SMALL], Bits(4, 3, 6))


def test_json_is_printed_and_saved_alike(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hw.layers.network", lambda _: [SMALL])
    monkeypatch.setattr(engine_bench, "proportionality", lambda *_: [{"deviation": 0.0, "a_bits": 8, "b_bits": 8}])
    saved, figure = tmp_path / "new" / "x.json", tmp_path / "x.svg"
    command = ["bench", "engine", "--design", "sim-small", "--bits", "2/2/2", "1/1/1", "--output", "codes"]
    assert fractrain.main([*command, "--json", "--save", str(saved), "--figure", str(figure)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(saved.read_text())
    assert [run["bits"] for run in printed["runs"]] == ["2/2/2", "1/1/1"]
    assert figure.stat().st_size
    assert fractrain.main(command) == 0
    assert "2/2/2" in capsys.readouterr().out
