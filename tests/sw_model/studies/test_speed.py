"""``fractrain bench train``: what it measures, where, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fractrain import main
from sw_model.quantize import kernels
from sw_model.studies import speed
from sw_model.studies.speed import VARIANTS, bench_training, print_training


def test_all_variants_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "train.json"
    words = ["--depth", "8", "--batch", "3", "--threads", "1", "--rounds", "1", "--pixels", "8"]
    assert main(["bench", "train", *words, "--accelerator", "cpu", "--json", "--save", str(saved)]) == 0
    report = json.loads(saved.read_text())
    assert json.loads(capsys.readouterr().out) == report
    assert report["accelerator"] == "cpu" and report["device"]
    (network,) = report["networks"]
    for variant in VARIANTS:
        assert network[variant]["time_ratio"] > 0 and network[variant]["peak_memory_mb"] > 50


def test_every_size_is_measured_whoever_counts_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "peak_memory", lambda *_: None)
    report = bench_training((8, 18), (2, 3), 1, 1, ("fp32", "gated"), pixels=32)
    sizes = [(network["model"], network["batch"]) for network in report["networks"]]
    assert sizes == [("resnet-8", 2), ("resnet-8", 3), ("resnet-18", 2), ("resnet-18", 3)]
    print_training(report, as_json=False)
    out = capsys.readouterr().out
    assert all(name in out for name in ("resnet-8", "resnet-18", "gated", report["device"]))


@pytest.mark.skipif(kernels.library() is None, reason="no C++ compiler")
def test_the_first_codes_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "peak_memory", lambda *_: None)

    def first() -> dict[str, int]:
        found: dict[str, int] = bench_training((8,), (2,), 1, 1, ("fp32", "static"))["networks"][0]["first_codes"]
        return found

    codes = first()
    # images, and the weights of ResNet-8's nine convolutions on two grids each
    weights = 3 * 16 * 9 + 16 * 16 * 18 + 16 * 32 * 10 + 32 * 32 * 9 + 32 * 64 * 10 + 64 * 64 * 9
    assert codes == {"values": 2 * 3 * 32 * 32 + 2 * weights, "different": 0}
    whole = kernels.quantize_affine
    monkeypatch.setattr(kernels, "quantize_affine", lambda *a: whole(*a) + 1e-3)
    assert first()["different"] == 2 * 3 * 32 * 32


@pytest.mark.parametrize("kind", ["train", "codes"])
def test_an_accelerator_that_is_not_there_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", kind, "--accelerator", "cuda", "--save", str(tmp_path / "r.json")]) == 2
    error = capsys.readouterr().err
    assert "'cuda'" in error and "no such device" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
