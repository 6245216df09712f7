"""The files of an overlay alone: jobs train where nothing but NumPy is installed, in the versions that boards have."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from host.board.job import load_job
from host.board.runtime import Training
from host.exact_engine import ExactEngine
from hw.design import ROOT, Design, load_design
from hw.tools.vivado import overlay_files
from sw_model.export.training_job import export_job
from sw_model.train.recipe import TrainConfig


@pytest.fixture(scope="module", params=["digits-demo", "digits-fabric"], ids=["batch", "fabric"])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A job, and a device for it: the host normalises, or the fabric does, with tensors in the device's memory."""
    path = tmp_path_factory.mktemp(request.param) / "job.zip"
    recipe = ROOT / "configs" / "recipes" / f"{request.param}.toml"
    export_job(TrainConfig.from_recipe(recipe, train_limit=64, test_limit=32, epochs=4, width=4), path)
    return path, "reference" if request.param == "digits-demo" else "reference-memory"


def write_driver(folder: Path, name: str) -> Design:
    """The overlay package of a design, without its bitstream."""
    design = load_design(name)
    for file, text in overlay_files(design, "rtl").items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    return design


def test_the_overlays_files_alone_train_where_only_numpy_is_installed(job: tuple[Path, str], tmp_path: Path) -> None:
    path, device = job
    design = write_driver(tmp_path / "board", "sim-small")
    code = (
        "import sys, importlib.abc\n"
        "class Only(importlib.abc.MetaPathFinder):\n"
        "    allowed = {'numpy', 'fractrain', 'host', 'hw', 'fractrain_overlay_sim_small'} | sys.stdlib_module_names\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] not in self.allowed:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        f"sys.path[:0] = [{str(tmp_path / 'board')!r}]\n"
        # an installation in development mode would offer the repository's modules too
        "sys.meta_path[:] = [Only(), *(f for f in sys.meta_path if 'editable' not in f.__module__.lower())]\n"
        "import host, host.devices.pynq_device, host.devices.remote, fractrain_overlay_sim_small as overlay\n"
        f"assert host.__file__.startswith({str(tmp_path)!r})\n"
        f"assert overlay.DESIGN.hash64 == {design.hash64}\n"
        "from fractrain import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["board", "run", str(path), "--device", device, "--stop-after", "1", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 1


@pytest.mark.slow
def test_the_boards_versions_give_the_same_steps(job: tuple[Path, str], tmp_path: Path) -> None:
    """Python 3.10 with NumPy 1.21, as PYNQ 3 has them, where they can be had."""
    path, device = job
    python = shutil.which("python3.10")
    if python is None or subprocess.run([python, "-m", "venv", str(tmp_path / "env")]).returncode:
        pytest.skip("no python3.10 with venv here")
    inside = tmp_path / "env" / "bin" / "python"
    install = [str(inside), "-m", "pip", "install", "--quiet", "numpy==1.21.6", "tomli"]
    if subprocess.run(install, capture_output=True).returncode:
        pytest.skip("NumPy 1.21.6 cannot be installed here")
    words = ["board", "run", str(path), "--device", device, "--stop-after", "3", "--out", str(tmp_path / "run")]
    code = "import sys; from fractrain import main; sys.exit(main(sys.argv[1:]))"
    write_driver(tmp_path / "board", "sim-small")
    done = subprocess.run([str(inside), "-c", code, *words], cwd=tmp_path / "board", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    state = Training(load_job(path), ExactEngine(load_design("sim-small")))
    for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines():
        expected = state.train_step()
        state.epoch, state.step = divmod(state.global_step, state.steps_per_epoch)
        assert json.loads(line) == expected
