"""Text is read and written as UTF-8 whatever the locale: every call says so."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from hw.design import ROOT

FILES = [
    ROOT / "fractrain.py",
    *(p for room in ("hw", "host", "sw_model") for p in sorted((ROOT / room).rglob("*.py"))),
]


def without_encoding(path: Path) -> list[str]:
    """Calls that open text in the locale's encoding, as LINE: NAME."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(k.arg == "encoding" or k.arg is None for k in node.keywords):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        constants = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        constants += [k.value.value for k in node.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
        modes = [m for m in constants if m and set(m) <= set("rwaxbt+")]
        owner = getattr(getattr(node.func, "value", None), "id", "")
        if name == "read_text" and not node.args:
            found.append(f"{node.lineno}: read_text")
        elif name == "write_text" and len(node.args) == 1:
            found.append(f"{node.lineno}: write_text")
        elif (isinstance(node.func, ast.Name) and name == "open") or (name == "open" and owner and modes):
            if not any("b" in m for m in modes):
                found.append(f"{node.lineno}: open")
        elif name == "fdopen" and not any("b" in m for m in modes):
            found.append(f"{node.lineno}: fdopen")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_text_file_has_its_encoding(path: Path) -> None:
    assert without_encoding(path) == []


def test_the_search_sees_the_calls(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(
        "p.read_text()\np.write_text(x)\nopen(p)\np.open('w')\nopen(p, 'rb')\np.open('wb')\n"
        "p.read_text(encoding='utf-8')\nwrite_text(p, x)\narchive.open(name)\n",
        encoding="utf-8",
    )
    assert [line.split(":")[0] for line in without_encoding(file)] == ["1", "2", "3", "4"]
