"""The wheel, outside the checkout: it holds all that the packages read, and works where nothing of it may be written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import fractrain
from hw.design import ROOT

#: one training step
STEP = "train --recipe digits-demo --model resnet8 --width 4 --epochs 1 --train-limit 32 --test-limit 16"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git has or would add, so that nothing else can get into the wheel."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    copy = tmp_path_factory.mktemp("sources")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=sources, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


def environment(folder: Path, *install: str) -> Path:
    """A fresh environment in ``folder`` where pip has installed what ``install`` names; its folder of packages."""
    venv.create(folder, with_pip=True)
    words = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *install]
    subprocess.run(words, check=True, cwd=folder)
    return next((folder / "lib").glob("python*/site-packages"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; what it depends on is that of this process, found after the wheel's packages."""
    folder = tmp_path_factory.mktemp("environment")
    packages = environment(folder, "--no-index", "--no-deps", str(wheel))
    # a folder named in such a file is not searched for others, so the checkout, if installed there, stays out
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and date of all files below a folder."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def use(folder: Path, place: Path, *devices: str) -> None:
    """Generates, checks and trains with the package of the environment ``folder``, read-only, from an empty ``place``.

    Args:
        folder, place: see above.
        devices: to take a training step on.
    """
    packages = next((folder / "lib").glob("python*/site-packages"))
    rooms = [packages / room for room in ("hw", "host", "sw_model")]
    for path in (path for room in rooms for path in [room, *room.rglob("*")]):
        path.chmod(path.stat().st_mode & ~0o222)
    before = {name: kept for room in rooms for name, kept in state(room).items()}
    variables = {"PATH": os.environ["PATH"], "HOME": str(place / "home"), "OMP_NUM_THREADS": "1"}
    work = place / "elsewhere"
    for path in (work, place / "home"):
        path.mkdir()

    def command(line: str) -> str:
        words = [str(folder / "bin" / "fractrain"), *line.split()]
        done = subprocess.run(words, cwd=work, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert command("--version") == f"fractrain {fractrain.version()}\n"
    command("generate --design sim-small --out design")
    assert (work / "design" / "rtl" / "fabric.sv").is_file() and (work / "design" / "hls" / "fabric.cpp").is_file()
    assert "0 mismatches" in command("csim --design sim-small --path native")
    for device in devices:
        command(f"{STEP} --device {device} --out {device}")
        assert (work / device / "checkpoint.pt").is_file()
    assert {name: kept for room in rooms for name, kept in state(room).items()} == before
    assert list((place / "home" / ".cache" / "fractrain").glob("csim-*")), "compiled code is in the user's cache"


def test_the_wheel_holds_the_packages_and_their_data(wheel: Path, sources: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for room in ("hw", "host", "sw_model"):
        assert {p.relative_to(sources).as_posix() for p in (sources / room).rglob("*") if p.is_file()} <= names
    for data in ("configs", "hls_templates"):
        assert {f"hw/data/{p.relative_to(sources)}" for p in (sources / data).rglob("*") if p.is_file()} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {
        "fractrain.py", "fractrain_fabric", "host", "hw", "sw_model",
    }  # fmt: skip


def test_the_wheel_works_from_another_folder(installed: Path, tmp_path: Path) -> None:
    use(installed, tmp_path, "fast")


@pytest.mark.slow
def test_the_wheel_brings_what_it_needs(wheel: Path, tmp_path: Path) -> None:
    environment(tmp_path / "fresh", f"fractrain-fabric[sim] @ {wheel.as_uri()}")
    use(tmp_path / "fresh", tmp_path, "fast", "rtl")
