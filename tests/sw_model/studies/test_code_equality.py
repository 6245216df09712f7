"""``fractrain bench codes``: compiled kernels and PyTorch's operations give the same codes, and a difference shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fractrain import main
from sw_model.quantize import affine, kernels
from sw_model.studies import code_equality
from sw_model.studies.code_equality import COMPILED, PORTABLE, compare_codes
from sw_model.train.recipe import ConfigError

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="no C++ compiler")


def test_codes_are_equal_over_all_quantizers_and_widths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "codes.json"
    assert main(["bench", "codes", "--values", "1", "--json", "--save", str(saved)]) == 0
    report = json.loads(saved.read_text())
    assert json.loads(capsys.readouterr().out) == report
    assert report["different"] == 0 and report["failed"] == [] and report["widths"] == [1, 16]
    assert set(report["quantizers"]) == set(COMPILED)
    assert all(row["values"] >= 16 * 4 * 4096 for row in report["quantizers"].values())


def test_ten_million_codes_of_every_quantizer_are_equal() -> None:
    report = compare_codes(10_000_000, seed=1)
    assert all(row["values"] >= 10_000_000 for row in report["quantizers"].values())
    assert report["different"] == 0


def test_a_single_code_that_differs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = kernels.quantize_rows

    def wrong(x: torch.Tensor, table: Any, stochastic: bool, *rest: Any) -> torch.Tensor:
        values = whole(x, table, stochastic, *rest)
        if stochastic and len(table) == 1:
            values[1, 2, 3, 4] += float(table["scale"][0])
        return values

    monkeypatch.setattr(kernels, "quantize_rows", wrong)
    report = compare_codes(1)
    assert report["failed"] == ["on a given grid, stochastic"] and report["different"] == 16 * 4


def test_another_device_computes_forms_without_kernels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU in the place of another device, with a random number that is off there."""
    true = affine.random_units
    moved = torch.Tensor.to

    class Elsewhere:
        type = "elsewhere"

    here = lambda x, *a, **b: x if isinstance(a[0], Elsewhere) else moved(x, *a, **b)  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "to", here)

    report = compare_codes(1, Elsewhere())  # type: ignore[arg-type]
    assert set(report["quantizers"]) == {*COMPILED, *PORTABLE} and report["different"] == 0
    shifted = lambda *a: true(*a) if kernels.serve(torch.device("cpu")) else 1 - true(*a)  # noqa: E731
    monkeypatch.setattr(affine, "random_units", shifted)
    assert set(compare_codes(1, Elsewhere())["failed"]) > {"affine, stochastic", "StatQuant's PSQ", "MXINT"}  # type: ignore[arg-type]


def test_without_kernels_there_is_nothing_to_compare() -> None:
    with kernels.portable(), pytest.raises(ConfigError, match=r"g\+\+"):
        code_equality.compare_codes(1)
