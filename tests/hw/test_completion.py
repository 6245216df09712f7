"""Tab completion, asked for as a shell does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hw.design import ROOT


@pytest.mark.parametrize(
    ("line", "offered", "other"),
    [
        ("fractrain ge", "generate", "train"),
        ("fractrain generate --de", "--design", "--out"),
        ("fractrain generate --design zc", "zcu104", "sim-small"),
        ("fractrain train --recipe paper/fig", "paper/figure3-resnet38-cifar10-pfq", "digits-demo"),
    ],
)
def test_words_are_completed(line: str, offered: str, other: str, tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    asked = {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line, "COMP_POINT": str(len(line)),
    }  # fmt: skip
    subprocess.run([sys.executable, "-m", "fractrain"], cwd=ROOT, env={**os.environ, **asked}, check=True)
    words = answer.read_text(encoding="utf-8").split()
    assert offered in words and other not in words
