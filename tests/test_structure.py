"""Rules of the house that a machine can check: sizes, one name for one module, and the way imports point.

Complexity and the number of parameters are checked by ruff (``pyproject.toml``).  Every exception below says why; one
that is no longer needed fails, so that the list only holds what is true.
"""

from __future__ import annotations

import ast
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from hw.design import ROOT

ROOMS = ("hw", "host", "sw_model")
LONGEST_FILE, LONGEST_FUNCTION, MOST_FILES = 500, 60, 12

#: file -> why it may be longer than :data:`LONGEST_FILE` lines
LONG_FILES: dict[str, str] = {}
#: "file:function" -> why its body may be longer than :data:`LONGEST_FUNCTION` lines
LONG_FUNCTIONS = {
}
#: folder -> why it may hold more than :data:`MOST_FILES` modules
FULL_FOLDERS: dict[str, str] = {}
#: file or folder -> why its files need not be written whole or not at all, by :mod:`hw.files`
WRITTEN_IN_PLACE = {
    "hw/files.py": "the writer itself",
    "hw/tools": "scratch files and logs of tools, in folders made for one call",
    "host/verify": "stimuli and reports between a simulator and its caller, in folders made for one call",
    "host/measure/saif.py": "made by a simulator, in place",
    "host/devices/zynq/fpga_manager.py": "attributes of the kernel, which takes each write as a command",
    "host/devices/zynq/interrupt.py": "a file of the kernel, each write to which lets an interrupt through",
    "host/devices/remote.py": "a new token's file must not exist, and is never replaced",
}
#: class or constant -> why more than one module defines it
SAME_CLASSES = {
    "DEPTHWISE": "the widths of depthwise layers, as costs and as PyTorch's layers count widths",
}
_ARRAYS = "of NumPy arrays and of PyTorch's tensors, the same codes: tests/sw_model/quantize/test_affine.py"
_EPILOGUE = "a stage of the fabric's epilogue: its integers, and how a pass or a channel comes to them"
_COMMANDS = "what every module of commands has for the command line"
#: public function -> why more than one module defines it
SAME_FUNCTIONS = {
    **dict.fromkeys(("extremes", "flush", "grid_from_range", "quantize"), _ARRAYS),
    **dict.fromkeys(("finish", "inner", "random_numbers", "value"), _EPILOGUE),
    **dict.fromkeys(("register", "register_bench", "register_report", "run"), _COMMANDS),
    "build": "what a tool makes of sources: g++ a program, Vivado a bitstream",
    "check": "refuses a failed result: of a device's program, of its memory",
}
#: base names that stand for the same thing in every room
SHARED_NAMES = {"__init__.py"}


def sources(*endings: str) -> list[Path]:
    """Production files of the rooms and of the HLS kernel, relative to the root, that git knows or would add."""
    named = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *ROOMS, "hls_templates", "fractrain.py"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    return [Path(name) for name in named if name.endswith(endings) and (ROOT / name).is_file()]


def lines_of(path: Path) -> int:
    return len((ROOT / path).read_text(encoding="utf-8").splitlines())


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """(name, lines without the docstring) of every function of a module."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            yield node.name, (node.end_lineno or 0) - node.lineno + 1 - (text.count("\n") + 1 if text else 0)


def imports(path: Path) -> set[str]:
    """Modules of the rooms that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name for name in names if name.split(".")[0] in ROOMS}
    return found


def writes(path: Path) -> list[int]:
    """Lines of a module that write a file under its own name: its text, its bytes, a picture, or an open one."""
    found = []
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        scratch = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "scratch"
        modes = [a.value for a in node.args if isinstance(a, ast.Constant) and a.value in ("w", "wb", "r+", "r+b")]
        if not scratch and (name in ("write_text", "write_bytes", "savefig") or (name in ("open", "fdopen") and modes)):
            found.append(node.lineno)
    return found


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def test_files_are_short() -> None:
    long = {str(p): n for p in sources(".py", ".sv", ".cpp", ".h", ".j2") if (n := lines_of(p)) > LONGEST_FILE}
    assert {f: n for f, n in long.items() if f not in LONG_FILES} == {}, "split them by purpose"
    assert set(LONG_FILES) <= set(long), "exceptions that are no longer needed"


def test_functions_are_short() -> None:
    long = {f"{p}:{f}": n for p in sources(".py") for f, n in functions(p) if n > LONGEST_FUNCTION}
    assert {f: n for f, n in long.items() if f not in LONG_FUNCTIONS} == {}, "split them into steps with names"
    assert set(LONG_FUNCTIONS) <= set(long), "exceptions that are no longer needed"


def test_every_module_has_a_name_of_its_own() -> None:
    places = defaultdict(list)
    for path in sources(".py"):
        places[path.name].append(str(path))
    assert {n: p for n, p in places.items() if len(p) > 1 and n not in SHARED_NAMES} == {}


def classes_and_constants(path: Path) -> Iterator[str]:
    """Public names of a module's top level that begin with a capital: classes, aliases of types, constants."""
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = [node.name] if isinstance(node, ast.ClassDef) else [t.id for t in targets if isinstance(t, ast.Name)]
        yield from (name for name in names if name[0].isupper())


def test_a_class_and_a_constant_have_one_meaning() -> None:
    places = defaultdict(list)
    for path in sources(".py"):
        for name in set(classes_and_constants(path)):
            places[name].append(str(path))
    twice = {n: p for n, p in places.items() if len(p) > 1}
    assert {n: p for n, p in twice.items() if n not in SAME_CLASSES} == {}, "name them for what they are"
    assert set(SAME_CLASSES) <= set(twice), "exceptions that are no longer needed"


def public_functions(path: Path) -> list[str]:
    """Functions of a module's top level, without those that begin with an underscore."""
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    names = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [name for name in names if not name.startswith("_")]


def test_a_public_function_has_one_meaning() -> None:
    places = defaultdict(list)
    for path in sources(".py"):
        for name in public_functions(path):
            places[name].append(str(path))
    twice = {n: p for n, p in places.items() if len(p) > 1}
    assert {n: p for n, p in twice.items() if n not in SAME_FUNCTIONS} == {}, "name them for what they do"
    assert set(SAME_FUNCTIONS) <= set(twice), "exceptions that are no longer needed"
    in_commands = [p for n, why in SAME_FUNCTIONS.items() if why == _COMMANDS for p in twice[n]]
    assert all(Path(p).name.endswith("_commands.py") for p in in_commands), "for modules of commands alone"


def test_files_are_written_whole_or_not_at_all() -> None:
    where = {str(p): lines for p in sources(".py") if (lines := writes(p))}
    excused = {f: [e for e in WRITTEN_IN_PLACE if f == e or f.startswith(e + "/")] for f in where}
    assert {f: lines for f, lines in where.items() if not excused[f]} == {}, "use hw.files"
    assert set(WRITTEN_IN_PLACE) <= {e for each in excused.values() for e in each}, (
        "exceptions that are no longer needed"
    )


def test_folders_are_small() -> None:
    counts: dict[str, int] = defaultdict(int)
    for path in sources(".py"):
        if path.name not in SHARED_NAMES:
            counts[str(path.parent)] += 1
    full = {folder: n for folder, n in counts.items() if n > MOST_FILES}
    assert {folder: n for folder, n in full.items() if folder not in FULL_FOLDERS} == {}, "divide them"
    assert set(FULL_FOLDERS) <= set(full), "exceptions that are no longer needed"


@pytest.mark.parametrize(("room", "above"), [("hw", ("host", "sw_model")), ("host", ("sw_model",))])
def test_imports_point_down(room: str, above: tuple[str, ...]) -> None:
    up = {str(p): sorted(u) for p in sources(".py") if p.parts[0] == room
          and (u := {name for name in imports(p) if name.split(".")[0] in above})}  # fmt: skip
    assert up == {}


def test_imports_have_no_circle() -> None:
    modules = {module_name(path): path for path in sources(".py")}
    arrows = {name: {i for i in imports(path) if i in modules and i != name} for name, path in modules.items()}
    while leaves := {name for name, to in arrows.items() if not to & arrows.keys()}:
        arrows = {name: to for name, to in arrows.items() if name not in leaves}
    assert arrows == {}, "modules that import each other"
