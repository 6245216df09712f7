"""``fractrain cosim``: agreement is reported with its figures, and disagreement fails the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import host.verify.cosim
from fractrain import main
from host.devices.rtl import rtl_sources
from host.verify.cosim import cosimulate
from hw.design import load_design
from hw.generate import generate


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """One short run for all tests."""
    return cosimulate("sim-small", 2, 1)


def test_report_of_a_short_run(report: dict[str, Any]) -> None:
    assert not report["mismatches"] and not report["differences"] and not report["failed_tests"]
    assert report["words_compared"] > 10_000
    assert report["cycles"] > 10_000
    assert sum(report["refusals"].values()) == 8
    assert report["resets"] == 2
    assert report["coverage"]["precision_pairs"] == {"CONV": 32, "WGRAD": 32}
    points = report["coverage"]["points"]
    assert all(report["coverage"]["precision_pairs_of_conv_by_stride"].values())
    assert {1, 9} <= set(report["coverage"]["taps_of_wgrad"]) <= set(range(1, 10))
    for product in ("CONV", "WGRAD"):
        assert {b for name, _, b, *_ in points if name == product} == set(range(1, 17))
        assert len({a for name, a, *_ in points if name == product}) == 2
    json.dumps(report)


def test_command_prints_the_figures_and_fails_on_disagreement(
    report: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(**change: Any) -> int:
        monkeypatch.setattr(host.verify.cosim, "cosimulate", lambda *_, **__: {**report, **change})
        return main(["cosim"])

    assert answer() == 0
    text = capsys.readouterr().out
    assert " 0 mismatches" in text and "CONV 32/256" in text
    assert answer(mismatches=1) == 1
    assert answer(words_compared=0) == 1
    assert answer(failed_tests=["refusals: TimeoutError"]) == 1
    assert "refusals: TimeoutError" in capsys.readouterr().out
    assert main(["cosim", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["failed_tests"] == ["refusals: TimeoutError"]


def test_no_programs_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cosim", "--programs", "0"]) == 2
    assert "--programs" in capsys.readouterr().err


def test_missing_cocotb_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cocotb_tools.runner", None)
    assert main(["cosim", "--programs", "1"]) == 1
    error = capsys.readouterr().err
    assert "cocotb_tools" in error and "pip install 'fractrain-fabric[sim]'" in error


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sim-small", "zc706"])
def test_every_precision_pair(name: str) -> None:
    report = cosimulate(name, 16, 2)
    assert report["mismatches"] == 0 and not report["failed_tests"]
    assert report["coverage"]["precision_pairs"] == {"CONV": 256, "WGRAD": 256}
    assert report["output_stalls"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("dot_product_unit", "acc_q <<< 1", "acc_q >>> 1"),
        ("packed_place", "line_q + line_t'(1)", "line_q + line_t'(2)"),
    ],
)
def test_a_flipped_operator_is_found(tmp_path: Path, file: str, old: str, new: str) -> None:
    sources = rtl_sources(generate(load_design("sim-small"), tmp_path))
    path = next(p for p in sources if p.stem == file)
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    report = cosimulate("sim-small", 4, 1, sources)
    assert report["mismatches"] > 0 and report["differences"]
