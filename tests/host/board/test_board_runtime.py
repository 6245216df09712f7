"""Jobs: exported from PyTorch, run without it, to the same codes; killed and resumed; broken files refused."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import subprocess
import sys
import time
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fractrain import main
from host.board.job import build_job, load_job
from host.board.job_archive import members_of, npy_bytes, parse_npy, read_members, write_members
from host.board.operations import JobError
from host.board.runtime import RunResult, Training, run_job
from host.devices.device import DeviceError
from host.devices.pynq_device import PynqDevice
from host.devices.reference import ReferenceDevice
from host.driver.fabric_engine import FabricEngine
from host.exact_engine import ExactEngine
from host.grids import host_codes
from host.operands import ConvGeometry, Engine, Operand, Sums
from hw.design import ROOT, load_design
from hw.networks import MOBILENETV2, BlockLayout
from sw_model.export.aten_graph import ExportError
from sw_model.export.training_job import export_job
from sw_model.nn.models import CifarMobileNetV2
from sw_model.train.loop import train
from sw_model.train.recipe import TrainConfig
from tests.support.jobs import colours, fuzz, refused, same_training
from tests.support.observed_engine import ObservedEngine
from tests.support.substitute_pynq import Board, install
from tests.support.substitute_pynq import overlay_files as overlay_files_of

DEMO = ROOT / "configs" / "recipes" / "digits-demo.toml"
GATED = DEMO.with_name("digits-fractrain.toml")


def small(**changes: Any) -> TrainConfig:
    settings = {"train_limit": 80, "test_limit": 40, "epochs": 3, "deadlines": (0, 1, 2), "width": 8}
    settings |= {"range_momentum": 0.3, **changes}
    return TrainConfig.from_recipe(DEMO, **settings)


def gated(**changes: Any) -> TrainConfig:
    settings = {"train_limit": 64, "test_limit": 32, "epochs": 3, "targets": (1.8, 4.6, 4.6), "deadlines": (0, 1)}
    settings |= {"width": 4, "seed": 35, **changes}  # gates of this seed choose differently from the first step on
    return TrainConfig.from_recipe(GATED, **settings)


@pytest.fixture(scope="module")
def gated_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gated") / "job.zip"
    export_job(gated(), path)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("job") / "job.zip"
    export_job(small(), path)
    return path


class Recorder(ObservedEngine):
    """An engine that keeps the codes of every product."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.seen: Counter[str] = Counter()

    def observe(self, product: str, a: Operand, b: Operand, sums: Sums) -> None:
        codes = [host_codes(a), host_codes(b)]
        digest = hashlib.sha256(b"".join(c.tobytes() for c in codes)).hexdigest()
        self.seen[f"{product} {codes[0].shape} {codes[1].shape} {a.grid.bits} {b.grid.bits} {digest}"] += 1


# -- against PyTorch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"schedule": "static", "stages": ((8, 8, 8, 6),), "deadlines": ()}, marks=pytest.mark.slow),
        pytest.param({"quantize_stem": False, "quantize_head": False}, marks=pytest.mark.slow),
    ],
    ids=["pfq", "bifurcated", "float-ends"],
)
def test_codes_of_the_first_step_are_pytorchs(path: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = small(**changes)
    eager = Recorder(ExactEngine())
    losses: list[float | None] = []
    train(config, eager, stop_after=1, on_step=lambda step: losses.append(step.loss))
    if changes:
        path = tmp_path / "job.zip"
        export_job(config, path)
    numpy_ = Recorder(ExactEngine())
    line = Training(load_job(path), numpy_).train_step()
    assert sum(numpy_.seen.values()) > 20
    assert eager.seen == numpy_.seen
    assert line["loss"] == losses[0]


def test_training_is_pytorchs_to_the_bit(path: Path, tmp_path: Path) -> None:
    board = same_training(small(), path, tmp_path)
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 4
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == board.steps == 9


def test_gated_training_is_pytorchs_to_the_bit(gated_path: Path, tmp_path: Path) -> None:
    """FracTrain: choices, their gradients, the cost term with both signs, and the targets' turns."""
    board = same_training(gated(), gated_path, tmp_path)
    assert [row["target"] for row in board.history] == [1.8, 4.6, 4.6]
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    targets = [row["target"] for row in board.history]
    assert len({line["cp"] > targets[line["epoch"]] for line in lines}) == 2, "both signs must have been met"


@pytest.mark.parametrize(
    "changes",
    [
        {"beta": 5.0, "cap": 0.01},
        pytest.param({"band": 10.0}, marks=pytest.mark.slow),
        pytest.param({"quantize_stem": True, "quantize_head": True}, marks=pytest.mark.slow),
    ],
    ids=["capped", "in-band", "quantized-ends"],
)
def test_the_cost_term_is_pytorchs(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = gated(epochs=1, targets=(2.0,), deadlines=(), **changes)
    export_job(config, tmp_path / "job.zip")
    same_training(config, tmp_path / "job.zip", tmp_path)


def test_options_are_products_of_their_own_on_the_fabric(gated_path: Path) -> None:
    job = load_job(gated_path)
    exact, recorder = Training(job, ExactEngine()), Recorder(ExactEngine())
    fabric = Training(job, FabricEngine(ReferenceDevice(load_design("sim-small")), keep_rows=False))
    assert exact.train_step() == fabric.train_step() == Training(job, recorder).train_step()
    for name in job.state:
        assert np.array_equal(exact.state[name], fabric.state[name]), name
    pairs = {tuple(map(int, entry.split(")")[-1].split()[:2])) for entry in recorder.seen}
    assert len(pairs) > 4, "samples must differ in their bits for the test to mean something"


@pytest.mark.slow
def test_the_gated_digits_recipe_is_pytorchs_to_the_bit(tmp_path: Path) -> None:
    config = TrainConfig.from_recipe(GATED)
    export_job(config, tmp_path / "job.zip")
    assert same_training(config, tmp_path / "job.zip", tmp_path).test_accuracy >= 0.96


def test_depthwise_convolutions_train_as_in_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = (BlockLayout(32, 4, 1, 1), BlockLayout(4, 6, 2, 3), BlockLayout(6, 6, 1, 3))
    monkeypatch.setattr(CifarMobileNetV2, "layout", MOBILENETV2._replace(blocks=blocks))
    config = small(model="mobilenetv2", epochs=1, deadlines=(), batch=8, train_limit=0, test_limit=0)
    export_job(config, tmp_path / "job.zip", colours(16))
    job = load_job(tmp_path / "job.zip")
    assert {layer.fixed for layer in job.layers if layer.name.endswith("depthwise")} == {(8, 8, 16)}
    same_training(config, tmp_path / "job.zip", tmp_path, colours(16))
    fabric = Training(job, FabricEngine(ReferenceDevice(load_design("sim-small")), keep_rows=False))
    assert fabric.train_step() == Training(job, ExactEngine()).train_step()


def test_a_step_on_the_fabric_is_the_step_in_numpy(path: Path) -> None:
    job = load_job(path)
    exact = Training(job, ExactEngine())
    fabric = Training(job, FabricEngine(ReferenceDevice(load_design("sim-small")), keep_rows=False))
    assert exact.train_step() == fabric.train_step()
    for name in job.state:
        assert np.array_equal(exact.state[name], fabric.state[name]), name


def test_a_step_through_the_boards_driver(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job, the engine and the driver together, as on the board."""
    design = load_design("sim-small")
    board = Board(ReferenceDevice(design), design)
    install(board, monkeypatch)
    job = load_job(path)
    exact = Training(job, ExactEngine())
    device = PynqDevice(design, overlay_files_of(tmp_path), beats=1 << 16)
    driven = Training(job, FabricEngine(device, keep_rows=False))
    assert exact.train_step() == driven.train_step()
    assert board.programs > 1
    board.faults = {"READ_SLVERR"}
    with pytest.raises(DeviceError, match="the memory refused a read"):
        driven.train_step()


@pytest.mark.slow
@pytest.mark.parametrize("device", ["hls", "rtl"])
def test_a_step_on_simulated_hardware(path: Path, device: str) -> None:
    from host.devices.device import open_device

    job = load_job(path)
    exact = Training(job, ExactEngine())
    simulated = Training(job, FabricEngine(open_device(device, load_design("sim-small")), keep_rows=False))
    for _ in range(2):
        assert exact.train_step() == simulated.train_step()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_digits_recipe_is_pytorchs_to_the_bit(tmp_path: Path, seed: int) -> None:
    config = TrainConfig.from_recipe(DEMO, seed=seed)
    export_job(config, tmp_path / "job.zip")
    assert same_training(config, tmp_path / "job.zip", tmp_path).test_accuracy >= 0.97


# -- resume -------------------------------------------------------------------------------------------------------


def test_stopped_and_resumed_is_as_if_never_stopped(path: Path, tmp_path: Path) -> None:
    job = load_job(path)
    whole = run_job(job, ExactEngine(), tmp_path / "whole")
    parts = run_job(job, ExactEngine(), tmp_path / "parts", stop_after=2)
    assert not parts.finished
    parts = run_job(job, ExactEngine(), tmp_path / "parts", resume=True, stop_after=7)
    # what a kill leaves: steps that the checkpoint does not know, and half a line
    with (tmp_path / "parts" / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "loss": 0}\n{"step": 8, "lo')
    parts = run_job(job, ExactEngine(), tmp_path / "parts", resume=True)

    def timeless(result: RunResult) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k not in ("seconds", "energy_j")} for row in result.history]

    assert timeless(whole) == timeless(parts)
    assert (tmp_path / "whole" / "log.jsonl").read_text() == (tmp_path / "parts" / "log.jsonl").read_text()
    with np.load(tmp_path / "whole" / "checkpoint.npz") as a, np.load(tmp_path / "parts" / "checkpoint.npz") as b:
        for name in a.files:
            if name != "rest":
                assert np.array_equal(a[name], b[name]), name


def test_killed_before_an_epochs_row_it_resumes_with_the_epochs_bits(path: Path, tmp_path: Path) -> None:
    job = load_job(path)
    job = replace(job, recipe={**job.recipe, "checkpoint_every": 3, "eval_every": 3})

    def die(line: dict[str, Any]) -> None:
        if "stage" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job, ExactEngine(), tmp_path / "run", on_line=die)
    result = run_job(job, ExactEngine(), tmp_path / "run", resume=True)
    assert [row["bits"] for row in result.history] == ["3/3/6", "4/4/6", "6/6/8"]


def test_a_killed_process_resumes(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; from fractrain import main; sys.exit(main())"]
    words = ["board", "run", str(path), "--device", "numpy", "--out", str(tmp_path / "run")]
    process = subprocess.Popen([*command, *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "checkpoint.npz").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    result = run_job(load_job(path), ExactEngine(), tmp_path / "run", resume=True)
    whole = run_job(load_job(path), ExactEngine(), None)
    assert result.test_accuracy == whole.test_accuracy
    assert result.history[-1]["loss"] == whole.history[-1]["loss"]


def test_checkpoints_of_other_jobs_and_broken_ones_are_refused(path: Path, tmp_path: Path) -> None:
    job = load_job(path)
    run_job(job, ExactEngine(), tmp_path / "run", stop_after=1)
    with pytest.raises(JobError, match="holds a run already"):
        run_job(job, ExactEngine(), tmp_path / "run")
    with pytest.raises(JobError, match="no checkpoint"):
        run_job(job, ExactEngine(), tmp_path / "none", resume=True)
    with pytest.raises(JobError, match="another job"):
        run_job(replace(job, digest="0"), ExactEngine(), tmp_path / "run", resume=True)
    data = (tmp_path / "run" / "checkpoint.npz").read_bytes()
    rng = random.Random(1)
    for _ in range(60):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.3:
            del broken[rng.randrange(len(broken)) :]
        (tmp_path / "run" / "checkpoint.npz").write_bytes(bytes(broken))
        state = Training(job, ExactEngine())
        try:
            state.load(tmp_path / "run" / "checkpoint.npz")
        except JobError as e:
            assert "checkpoint" in str(e) or "another job" in str(e)
            assert state.global_step == 0


# -- refusals -----------------------------------------------------------------------------------------------------


def test_recipes_that_a_job_cannot_express(tmp_path: Path) -> None:
    for changes, message in (
        ({"mode": "paper"}, "mode = 'paper'"),
        ({"quantizer": "wageubn"}, "quantizer = 'wageubn'"),
        ({"norm": "range"}, "norm = 'range'"),
        ({"init": "runs/earlier"}, "init = 'runs/earlier'"),
        ({"schedule": "static", "stages": ((0, 8, 8),), "deadlines": ()}, "mixes integers and float32"),
        ({"train_limit": 65, "batch": 32}, "last batch of one"),
    ):
        with pytest.raises(ExportError, match=message):
            export_job(small(**changes), tmp_path / "job.zip")
    with pytest.raises(ExportError, match="skipping"):
        export_job(gated(options=((0, 0), (4, 8))), tmp_path / "job.zip")
    assert not (tmp_path / "job.zip").exists()
    with pytest.raises(ValueError, match="does not exist"):
        export_job(small(), tmp_path / "none" / "job.zip")


def test_npy_members_have_one_form() -> None:
    for array in (
        np.zeros((), np.float32),
        np.arange(5, dtype=np.int64),
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        np.zeros((0, 3), np.float32),
    ):
        assert np.array_equal(parse_npy(npy_bytes(array), "a"), array)
        from io import BytesIO

        assert np.array_equal(np.load(BytesIO(npy_bytes(array)), allow_pickle=False), array)
    with pytest.raises(ValueError, match="float32, int64 and uint8"):
        npy_bytes(np.zeros(3))
    good = npy_bytes(np.zeros(3, np.float32))
    for bad in (
        good[:-1],
        good + b"x",
        good.replace(b"<f4", b"|O8"),
        good.replace(b"(3,)", b"(__import__('os'),)"),
        b"",
    ):
        with pytest.raises(JobError):
            parse_npy(bad, "a")


def test_what_is_wrong_is_named(path: Path, tmp_path: Path) -> None:
    members, _ = read_members(path)
    document = json.loads(members["job.json"])

    def changed(edit: Any) -> dict[str, bytes]:
        other = copy.deepcopy(document)
        edit(other)
        return {**members, "job.json": json.dumps(other).encode()}

    node = document["graphs"]["train"]["32"]["nodes"]

    def edit_node(**changes: Any) -> Any:
        return lambda d: d["graphs"]["train"]["32"]["nodes"][3].update(changes)

    assert node
    assert "recipe: 'lr'" in refused(changed(lambda d: d["recipe"].pop("lr")))
    assert "lr = -1" in refused(changed(lambda d: d["recipe"].update(lr=-1)))
    assert "stage [3, 0, 3]" in refused(changed(lambda d: d["recipe"].update(stages=[[3, 0, 3]])))
    assert "no operation 'eval'" in refused(changed(edit_node(op="eval")))
    assert "not defined before" in refused(changed(edit_node(**{"in": ["%9999"] * len(node[3]["in"])})))
    assert "attribute" in refused(changed(edit_node(attributes={"code": "import os"})))
    assert "is outside" in refused(
        changed(lambda d: d["graphs"]["train"]["32"]["nodes"][0]["attributes"].update(stride=0))
    )
    assert "values become too large" in refused(changed(edit_node(shapes=[[1 << 20, 1 << 20]] * len(node[3]["out"]))))
    assert "needs batch sizes" in refused(changed(lambda d: d["graphs"]["train"].pop("32")))
    assert "lacks gradients" in refused(changed(lambda d: d["graphs"]["train"]["32"]["gradients"].clear()))
    assert "which the archive lacks" in refused(changed(lambda d: d["data"].update(train_images="../x.npy")))
    assert "labels span" in refused({**members, "data/train_labels.npy": npy_bytes(np.full(80, 99))})
    assert "deadlines" in refused(changed(lambda d: d["recipe"].update(deadlines=[3, 2, 1])))
    assert "not valid JSON" in refused({**members, "job.json": b"[" * 100000})
    assert "not valid JSON" in refused({**members, "job.json": b'{"a": NaN}'})
    assert "repeated key" in refused({**members, "job.json": b'{"a": 1, "a": 2}'})
    write_members(tmp_path / "more.zip", {**members, "../evil": b""})
    with pytest.raises(JobError, match="no name for a member"):
        load_job(tmp_path / "more.zip")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b" " * (1 << 27))
    with pytest.raises(JobError, match="more than"):
        load_job(tmp_path / "bomb.zip")
    (tmp_path / "text").write_text("hello")
    for name, message in (("text", "intact zip"), ("none", "cannot be read")):
        with pytest.raises(JobError, match=message):
            load_job(tmp_path / name)


def test_broken_archives_are_refused(path: Path) -> None:
    """Bytes changed at random: the checksums notice, whatever was hit."""
    blob = path.read_bytes()
    rng = random.Random(7)
    for _ in range(600):
        broken = bytearray(blob)
        kind = rng.random()
        if kind < 0.5:
            for _ in range(rng.randint(1, 5)):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
        elif kind < 0.7:
            # the directory of the archive, where most of its structure lies
            for _ in range(rng.randint(1, 5)):
                broken[-rng.randrange(1, 4000)] = rng.randrange(256)
        elif kind < 0.85:
            del broken[rng.randrange(len(broken)) :]
        else:
            at = rng.randrange(len(broken))
            broken[at:at] = rng.randbytes(rng.randint(1, 40))
        try:
            members, digest = members_of(bytes(broken), "job")
            build_job(members, digest)
        except JobError as e:
            assert len(str(e)) > 10
        else:
            assert members == read_members(path)[0], "a change that the checksums missed"


def test_other_versions_are_refused_by_name(path: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "old.zip", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data.replace(b'"version": 3', b'"version": 1') if name == "manifest.json" else data)
    with pytest.raises(JobError, match="version 1, this program reads 'fractrain-job' version 3"):
        load_job(tmp_path / "old.zip")


def test_changed_jobs_are_refused_or_run_but_never_crash(path: Path, gated_path: Path) -> None:
    """Contents changed with checksums made right again, so that the checks behind them are reached."""
    assert fuzz(path, 100, 1)["refused"] > 45
    assert fuzz(gated_path, 100, 1)["refused"] > 45


@pytest.mark.slow
def test_thousands_of_changed_jobs(path: Path, gated_path: Path) -> None:
    for job in (path, gated_path):
        assert fuzz(job, 3000, 2)["refused"] > 1500


def test_commands_name_what_is_wrong(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*words: str) -> int:
        return main(["board", *words])

    assert command("check", str(path)) == 0
    assert "80 training and 40 test images" in capsys.readouterr().out
    assert command("check", str(tmp_path / "none")) == 2
    assert command("run", str(path), "--device", "magic") == 2
    assert "no device kind 'magic'" in capsys.readouterr().err
    assert command("run", str(path), "--device", "pynq", "--out", str(tmp_path / "r")) == 1
    assert "pynq" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


class Together(ExactEngine):
    """Computes both gradients in one go; apart only where nothing by the input is wanted, or widths differ."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def backward_mixed(self, members: Any, w: Operand) -> list[tuple[Sums, Sums]]:
        self.calls["both"] += 1
        return [(super(Together, self).input_gradient(g, w, m), super(Together, self).weight_gradient(x, g, m)) for x, g, m in members]  # fmt: skip

    def input_gradient(self, g: Operand, w: Operand, geometry: ConvGeometry) -> Sums:
        self.calls["input"] += 1
        return super().input_gradient(g, w, geometry)

    def weight_gradient(self, x: Operand, g: Operand, geometry: ConvGeometry) -> Sums:
        self.calls["weight"] += 1
        return super().weight_gradient(x, g, geometry)


@pytest.mark.parametrize("kind", ["path", "gated_path"])
def test_both_gradients_are_asked_for_at_once(kind: str, request: pytest.FixtureRequest) -> None:
    """So that a device gets the output gradient once; the first layer has no gradient by its input."""
    job = load_job(request.getfixturevalue(kind))
    together, apart = Training(job, Together()), Training(job, ExactEngine())
    assert together.train_step() == apart.train_step()
    assert isinstance(together.engine, Together)
    calls = together.engine.calls
    assert calls["input"] == 0 and calls["weight"] <= 1 and calls["both"] > 5
    assert all(np.array_equal(together.state[name], apart.state[name]) for name in job.state)
