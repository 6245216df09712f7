"""Runs that end early go on where they began: on the same device, with files that agree with the checkpoint."""

from __future__ import annotations

import csv
import errno
import json
import os
import pickle
import signal
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from host.devices.device import open_device
from host.driver.fabric_engine import FabricEngine
from host.exact_engine import ExactEngine
from host.operands import Engine
from hw.design import Design, load_design
from hw.files import FolderInUseError
from sw_model.data.sources import DataError
from sw_model.train.folder import CHECKPOINT, DEVICE, RunFolder
from sw_model.train.loop import train
from sw_model.train.recipe import ConfigError, TrainConfig
from sw_model.train.run_device import RunDevice
from tests.support.killed_worker import run_child
from tests.sw_model.train.test_loop import command, same, state_of

STATIC = TrainConfig(width=4, epochs=2, batch=32, train_limit=64, test_limit=32, schedule="static", stages=((8, 8, 8),))


def reference(**changes: Any) -> FabricEngine:
    return FabricEngine(open_device("reference", replace(load_design("sim-small"), **changes)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@pytest.mark.parametrize("device", ["fast", "software", "reference"])
def test_command_line_resumes_on_the_device_that_the_run_began_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    engines: dict[str, Engine | None] = {"fast": None, "software": ExactEngine(), "reference": reference()}
    engine = engines[device]
    train(STATIC, engine, out=tmp_path / "whole")
    train(STATIC, engine, out=tmp_path / "parts", stop_after=3)
    assert command("--resume", str(tmp_path / "parts"), "--json") == 0
    counted = {"fast": set(), "software": {"PRODUCTS"}, "reference": {"PRODUCTS", "PACKETS"}}[device]
    counters = json.loads(capsys.readouterr().out)["counters"]
    assert counted <= set(counters) and bool(counted) == bool(counters)
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))


def test_command_line_refuses_another_device_or_design(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train(STATIC, reference(), out=run, stop_after=1)
    before = contents(run)
    for words, named in (
        (("--device", "fast"), ("fast", "reference", "sim-small")),
        (("--device", "software"), ("software", "reference")),
        (("--design", "zc706"), ("zc706", "sim-small")),
        (("--design", "none"), ("none",)),
    ):
        assert command("--resume", str(run), *words) == 2
        message = capsys.readouterr().err
        assert all(name in message for name in named)
    assert contents(run) == before
    assert command("--resume", str(run), "--device", "reference", "--design", "sim-small", "--json") == 0


def test_run_is_resumed_on_its_own_design_even_if_its_file_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    design = tmp_path / "own.toml"
    text = (Path(__file__).parents[3] / "configs" / "designs" / "sim-small.toml").read_text()
    design.write_text("\n".join(line for line in text.splitlines() if not line.startswith("name")))
    out = tmp_path / "run"
    train(STATIC, FabricEngine(open_device("reference", load_design(design))), out=out, stop_after=1)
    design.unlink()
    assert command("--resume", str(out), "--json") == 0
    recorded = RunFolder(out).device()
    assert recorded is not None and recorded.design is not None and recorded.design.name == "own"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, ExactEngine()),
        (ExactEngine(), None),
        (ExactEngine(), reference()),
        (reference(), reference(depth_a=2 * load_design("sim-small").depth_a)),
    ],
    ids=["fast-software", "software-fast", "software-reference", "another-design"],
)
def test_training_refuses_another_device_before_anything_is_written(
    tmp_path: Path, before: Engine | None, after: Engine | None
) -> None:
    train(STATIC, before, out=tmp_path, stop_after=1)
    files = contents(tmp_path)
    with pytest.raises(ConfigError, match="device"):
        train(STATIC, after, out=tmp_path, resume=True)
    assert contents(tmp_path) == files
    assert train(STATIC, before, out=tmp_path, resume=True).finished


def test_engines_chosen_step_by_step_are_no_device_that_a_command_could_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = ExactEngine()
    train(STATIC, engine, engine_for_step=lambda step: engine, out=tmp_path, stop_after=1)
    assert command("--resume", str(tmp_path)) == 2
    assert "by-step" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="by-step"):
        train(STATIC, engine, out=tmp_path, resume=True)
    assert train(STATIC, engine, engine_for_step=lambda step: engine, out=tmp_path, resume=True).finished


def test_command_line_resumes_with_the_threads_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], threads: int
) -> None:
    train(STATIC, out=tmp_path / "run", stop_after=1)
    torch.set_num_threads(threads + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert command("--resume", str(tmp_path / "run"), "--json") == 0
    assert torch.get_num_threads() == threads


def test_other_threads_bring_a_warning_where_they_matter(tmp_path: Path, threads: int) -> None:
    engines: dict[str, Engine | None] = {"fast": None, "software": ExactEngine()}
    for name, engine in engines.items():
        train(STATIC, engine, out=tmp_path / name, stop_after=1)
    torch.set_num_threads(threads + 1)
    with pytest.warns(UserWarning, match="threads"):
        train(STATIC, out=tmp_path / "fast", resume=True, stop_after=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(STATIC, engines["software"], out=tmp_path / "software", resume=True, stop_after=1)


def test_run_without_a_record_goes_on_only_on_a_device_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(STATIC, ExactEngine(), out=tmp_path, stop_after=1)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    del state["device"]
    torch.save(state, tmp_path / CHECKPOINT)
    (tmp_path / DEVICE).unlink()
    before = contents(tmp_path)
    assert command("--resume", str(tmp_path)) == 2
    assert "--device" in capsys.readouterr().err and contents(tmp_path) == before
    with pytest.warns(UserWarning, match="software"):
        assert command("--resume", str(tmp_path), "--device", "software", "--json") == 0
    assert state_of(tmp_path)["device"]["device"] == "software"


def test_recipe_of_a_checkpoint_is_compared_by_its_values(tmp_path: Path) -> None:
    train(STATIC, out=tmp_path, stop_after=1)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert "lr = 0.1\n" in state["config"]
    state["config"] = state["config"].replace("lr = 0.1\n", "lr = 1e-1\n")
    torch.save(state, tmp_path / CHECKPOINT)
    assert train(STATIC, out=tmp_path, resume=True).finished


@pytest.mark.parametrize("kind", ["fast", "software", "rtl"])
def test_device_is_the_same_after_it_was_recorded(kind: str) -> None:
    design = load_design("zc706") if kind == "rtl" else None
    device = RunDevice(kind, 3, 2, design, design.hash64 if design else 0)
    assert RunDevice.from_record(json.loads(json.dumps(device.record()))) == device


def _of_another_version(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "design": {**record["design"], "hash": "00000000deadbeef"}}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: [],
        lambda record: {},
        lambda record: {**record, "threads": "many"},
        lambda record: {**record, "design": 5},
        lambda record: {**record, "design": {**record["design"], "parameters": {"lanes": 3}}},
        _of_another_version,
    ],
)
def test_records_that_mean_nothing_are_refused(spoil: Any) -> None:
    design: Design = load_design("sim-small")
    with pytest.raises(ConfigError, match="version"):
        RunDevice.from_record(spoil(RunDevice("rtl", 1, 1, design, design.hash64).record()))


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run's files say but when, as values."""
    result = json.loads((folder / "result.json").read_text())
    with (folder / "metrics.csv").open() as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for timed in (result, *result["history"], *rows):
        del timed["seconds"]
    texts = {name: (folder / name).read_text() for name in ("config.toml", DEVICE, "schedule.json")}
    names = {path.name for path in folder.iterdir() if not path.name.startswith("events.")}
    return {"state": state_of(folder), "result": result, "metrics": rows, "names": names, **texts}


KILLED = replace(STATIC, checkpoint_every=1)
#: Settings, device; for each epoch a checkpoint for each of two steps and one for its end, metrics, precision used; at the
#: end precision and result.
WRITES = 2 + 2 * (2 + 3) + 2
BEFORE_A_STEPS_CHECKPOINT, BEFORE_THE_LAST_METRICS = 8, 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    torch.manual_seed(0)
    train(KILLED, out=folder)
    return outcome(folder)


@pytest.mark.parametrize(
    "writes",
    [
        pytest.param(n, marks=[] if n in (BEFORE_A_STEPS_CHECKPOINT, BEFORE_THE_LAST_METRICS) else pytest.mark.slow)
        for n in range(WRITES)
    ],
)
def test_run_killed_before_one_of_its_writes_ends_as_if_it_had_not_been(
    tmp_path: Path, whole: dict[str, Any], writes: int
) -> None:
    """SIGKILL between any two files: after any step, between a checkpoint and its metrics, before the result."""
    out = tmp_path / "run"
    assert run_child(KILLED, out, writes) == -signal.SIGKILL
    torch.manual_seed(0)
    train(KILLED, out=out, resume=(out / CHECKPOINT).exists())
    assert same(outcome(out), whole)


def images(folder: Path, shade: int = 0) -> None:
    for part in ("train", "test"):
        for n, title in enumerate(("cat", "dog")):
            (folder / part / title).mkdir(parents=True, exist_ok=True)
            for k in range(4):
                Image.new("RGB", (8, 8), (20 * n, 30 * k, shade)).save(folder / part / title / f"{k}.png")


def add(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "train" / "cat" / "9.png")


def remove(folder: Path) -> None:
    (folder / "test" / "dog" / "1.png").unlink()


def relabel(folder: Path) -> None:
    for one, other in (("cat", "dog"), ("dog", "cat")):
        (folder / "train" / one / "1.png").rename(folder / "train" / other / f"1-{one}.png")


def rename(folder: Path) -> None:
    for part in ("train", "test"):
        (folder / part / "dog").rename(folder / part / "eel")


def repaint(folder: Path) -> None:
    images(folder, shade=7)


@pytest.mark.parametrize("change", [add, remove, relabel, rename, repaint])
def test_resuming_on_other_data_is_refused_before_anything_is_written(tmp_path: Path, change: Any) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    images(data)
    config = replace(STATIC, data=str(data), batch=4, train_limit=0, test_limit=0)
    train(config, out=run, stop_after=1)
    before = contents(run)
    change(data)
    with pytest.raises(DataError, match="other data"):
        train(config, out=run, resume=True)
    assert contents(run) == before


def test_resuming_on_the_same_data_in_other_files_goes_on(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    images(data)
    config = replace(STATIC, data=str(data), batch=4, train_limit=0, test_limit=0)
    train(config, out=run, stop_after=1)
    images(data)
    assert train(config, out=run, resume=True).finished


@pytest.mark.parametrize("name", ["metrics.csv", "config.toml", "result.json", "schedule.json", "device.json"])
def test_files_of_no_run_are_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=name):
        train(STATIC, out=tmp_path)
    assert contents(tmp_path) == {name: b"mine"}


def test_run_that_ended_before_its_first_checkpoint_starts_again(tmp_path: Path) -> None:
    def stop(step: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(STATIC, out=tmp_path, on_step=stop)
    assert not (tmp_path / CHECKPOINT).exists()
    assert train(STATIC, out=tmp_path).finished


def test_second_training_in_a_folder_is_refused(tmp_path: Path) -> None:
    tried = []

    def second(step: object) -> None:
        if not tried:
            with pytest.raises(FolderInUseError) as caught:
                train(STATIC, out=tmp_path)
            tried.append(str(caught.value))

    assert train(STATIC, out=tmp_path, on_step=second).finished
    assert str(tmp_path) in tried[0] and str(os.getpid()) in tried[0]


def test_metrics_outlive_a_checkpoint_that_the_disk_has_no_place_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: RunFolder, state: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / CHECKPOINT))

    monkeypatch.setattr(RunFolder, "save", full)
    with pytest.raises(OSError, match=CHECKPOINT):
        train(STATIC, out=tmp_path)
    with (tmp_path / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1"]


@pytest.mark.parametrize("damage", ["half", "text", "pickle", "empty"])
def test_damaged_checkpoint_is_named_in_one_line(tmp_path: Path, damage: str) -> None:
    train(STATIC, out=tmp_path / "run", stop_after=1)
    path = tmp_path / "run" / CHECKPOINT
    whole = path.read_bytes()
    path.write_bytes(
        {"half": whole[: len(whole) // 2], "text": b"text", "pickle": pickle.dumps(print), "empty": b""}[damage]
    )
    for config, resume in ((STATIC, True), (replace(STATIC, init=str(path)), False)):
        with pytest.raises(ConfigError, match=CHECKPOINT) as caught:
            train(config, out=tmp_path / ("run" if resume else "other"), resume=resume)
        assert "\n" not in str(caught.value) and "cannot be read" in str(caught.value)


def test_batch_larger_than_the_data_brings_a_warning() -> None:
    with pytest.warns(UserWarning, match="larger than the 64"):
        train(replace(STATIC, batch=100, epochs=1))
