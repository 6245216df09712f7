"""The Python examples of the pages run as they stand, one after the other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import fractrain
from tests.support.networks_of_others import torchvision_models

ROOT = Path(__file__).parents[1]


def examples(page: str, language: str = "python") -> str:
    """Blocks of a page in a language, each at its line, so that an error names it."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    code, kept = False, []
    for line in lines:
        if line.startswith("```"):
            code = line == f"```{language}"
            kept.append("")
        else:
            kept.append(line if code else "")
    return "\n".join(kept)


def test_examples_of_own_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torchvision_models()
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(compile(examples("docs/own-networks.md"), "docs/own-networks.md", "exec"), names)
    told = re.findall(r"epoch (\d): cost so far ([\d.]+) % of float32, next (\S+) bits", capsys.readouterr().out)
    assert [row[2] for row in told] == ["4/4/6", "6/6/8", "8/8/8", "8/8/8"]
    assert float(told[0][1]) < float(told[3][1]) < 6.25
    assert (tmp_path / "runs/own/schedule.json").is_file() and (tmp_path / "resnet18.json").is_file()


MINE = """
import torch

def images():
    sets = []
    for count in (32, 8):
        numbers = torch.Generator().manual_seed(count)
        data = torch.utils.data.TensorDataset(
            torch.randn(count, 3, 32, 32, generator=numbers), torch.randint(10, (count,), generator=numbers)
        )
        data.classes = [str(n) for n in range(10)]
        sets.append(data)
    return sets
"""


def test_the_recipe_of_own_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torchvision_models()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "mine.toml").write_text(examples("docs/own-networks.md", "toml"), encoding="utf-8")
    assert fractrain.main(["train", "--recipe", "mine.toml", "--out", "runs/mine", "--json"]) == 0
    history = json.loads(capsys.readouterr().out)["history"]
    assert [row["bits"] for row in history] == ["3/3/6", "4/4/6", "6/6/8", "8/8/8"]
    assert fractrain.main(["cost", "--schedule", "runs/mine", "--machine", "zc706"]) == 0


def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads((ROOT / "docs/own-network.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, object] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "outputs are not kept"
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    told = re.findall(r"epoch \d: (\S+) bits, test accuracy ([\d.]+) %", capsys.readouterr().out)
    assert [bits for bits, _ in told][:2] == ["3/3/6", "3/3/6"] and told[-1][0] == "8/8/8"
    assert float(told[-1][1]) > 80
