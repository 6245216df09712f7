"""The Python examples of the pages run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.support.networks_of_others import torchvision_models

ROOT = Path(__file__).parents[1]


def examples(page: str) -> str:
    """Python blocks of a page, each at its line, so that an error names it."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    code, kept = False, []
    for line in lines:
        if line.startswith("```"):
            code = line == "```python"
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
