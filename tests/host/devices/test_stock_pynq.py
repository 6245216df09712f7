"""The driver on PYNQ's own classes, which run off the board on a device that answers for it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from host.board.job import load_job
from host.board.runtime import Training
from host.devices.hls import build_hls
from host.exact_engine import ExactEngine
from hw.design import ROOT, load_design
from sw_model.export.training_job import export_job
from sw_model.train.recipe import TrainConfig

REQUIREMENTS = ("pynq==3.1.2", "pycparser<3", "numpy<2")


def environment() -> Path:
    """Python of an environment with PYNQ, made once below build/; pynq pins a NumPy that the rest does not use."""
    folder = ROOT / "build" / f"pynq-{hashlib.sha256(repr((REQUIREMENTS, sys.version)).encode()).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        install = [str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS]
        for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], install):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no environment with PYNQ here: {done.stderr.strip()[-200:]}")
        (folder / "complete").touch()
    return python


@pytest.mark.slow
def test_a_step_through_pynqs_own_classes(tmp_path: Path) -> None:
    recipe = ROOT / "configs" / "recipes" / "digits-demo.toml"
    export_job(TrainConfig.from_recipe(recipe, train_limit=64, test_limit=32), tmp_path / "job.zip")
    library = build_hls(load_design("sim-small"))
    script = ROOT / "tests" / "support" / "stock_pynq.py"
    words = [str(environment()), str(script), str(tmp_path / "job.zip"), str(library), "sim-small", str(tmp_path)]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["pynq"] == "3.1.2"
    assert found["programs"] > 1
    assert found["line"] == Training(load_job(tmp_path / "job.zip"), ExactEngine()).train_step()
