"""Jobs whose backbone runs in passes of the fabric: PyTorch's bits on every device, killed and resumed, refused if broken."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fractrain import main
from host.board.job import Job, load_job
from host.board.job_archive import npy_bytes, read_members
from host.board.memory_plan import check_job_memory
from host.board.operations import JobError
from host.board.runtime import Training, run_job
from host.board.step_passes import BackbonePasses
from host.devices.device import DeviceError
from host.devices.memory import MemoryResult, MemoryStreams, StreamMemory
from host.devices.pynq_device import PynqDevice
from host.devices.reference import ReferenceDevice
from host.devices.remote import RemoteDevice, Server
from host.driver.fabric_engine import FabricEngine
from host.driver.memory_views import MemoryPlanError
from host.driver.pass_engine import engine_in_memory
from host.exact_engine import ExactEngine
from host.operands import Meter
from host.step.compiled import MemoryPasses
from hw.contract import LINE_BEATS
from hw.design import ROOT, load_design
from hw.networks import MOBILENETV2, BlockLayout
from sw_model.export.aten_graph import ExportError
from sw_model.export.training_job import export_job
from sw_model.nn.models import CifarMobileNetV2
from sw_model.train.recipe import TrainConfig
from tests.support.jobs import colours, fuzz, refused, same_training
from tests.support.substitute_pynq import Board, install, overlay_files

RECIPE = ROOT / "configs" / "recipes" / "digits-fabric.toml"
DESIGN = "sim-small"


def small(**changes: Any) -> TrainConfig:
    settings = {"train_limit": 40, "test_limit": 24, "epochs": 3, "batch": 16, "width": 4, "deadlines": (0, 1, 2)}
    return TrainConfig.from_recipe(RECIPE, **{**settings, **changes})


def gated(**changes: Any) -> TrainConfig:
    options = {"schedule": "dfq", "stages": ((8, 8, 8),), "options": ((3, 6), (4, 8), (8, 8)), "weight_bits": 4}
    options |= {"targets": (3.0, 5.0), "deadlines": (0,), "beta": 0.1, "epochs": 2, "quantize_stem": False}
    return small(**{**options, **changes})  # gates of seed 1 choose differently from the second step on


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("job") / "job.zip"
    export_job(small(), path)
    return path


@pytest.fixture(scope="module")
def gated_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gated") / "job.zip"
    export_job(gated(), path)
    return path


# -- against PyTorch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["reference", "reference-memory"])
def test_training_is_pytorchs_to_the_bit(path: Path, tmp_path: Path, device: str) -> None:
    """PFQ through its stages; the last batch of an epoch is smaller."""
    board = same_training(small(), path, tmp_path, design=DESIGN, device=device)
    assert board.steps == 9 and [row["bits"] for row in board.history] == ["3/3/6", "4/4/6", "6/6/8"]


def test_gated_training_is_pytorchs_to_the_bit(gated_path: Path, tmp_path: Path) -> None:
    same_training(gated(), gated_path, tmp_path, design=DESIGN, device="reference")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len({line["cp"] for line in lines}) > 1, "samples must choose differently for the test to mean something"


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "static", "stages": ((4, 3, 6, 8),), "kept_bits": 5, "shortcut_bits": 4, "momentum": 0.0},
        pytest.param({"schedule": "cyclic", "stages": ((8, 8, 8),), "cycles": 2, "nesterov": True}, marks=pytest.mark.slow),
        pytest.param({"schedule": "static", "stages": ((8, 8, 8),), "quantize_stem": False, "quantize_head": False}, marks=pytest.mark.slow),
    ],
    ids=["bifurcated", "cyclic", "float-ends"],
)  # fmt: skip
def test_other_recipes_are_pytorchs_to_the_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = small(epochs=1, deadlines=(), **changes)
    export_job(config, tmp_path / "job.zip")
    same_training(config, tmp_path / "job.zip", tmp_path)


def test_depthwise_convolutions_train_as_in_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = (BlockLayout(4, 6, 1, 2), BlockLayout(6, 6, 1, 2), BlockLayout(6, 8, 2, 2))
    layout = MOBILENETV2._replace(stem=(4, 3, 1), blocks=blocks, last=12)
    monkeypatch.setattr(CifarMobileNetV2, "layout", layout)
    config = small(model="mobilenetv2", epochs=1, deadlines=(), batch=8, train_limit=0, test_limit=0)
    export_job(config, tmp_path / "job.zip", colours(16))
    same_training(config, tmp_path / "job.zip", tmp_path, colours(16), design=DESIGN, device="reference")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["hls", "rtl", "rtl-memory"])
def test_the_digits_recipe_on_simulated_hardware_is_pytorchs_to_the_bit(tmp_path: Path, device: str) -> None:
    config = TrainConfig.from_recipe(RECIPE, epochs=4, train_limit=320, deadlines=(0, 1, 2))
    export_job(config, tmp_path / "job.zip")
    board = same_training(config, tmp_path / "job.zip", tmp_path, design=DESIGN, device=device)
    assert board.steps == 40 and board.history[-1]["loss"] < board.history[0]["loss"]


@pytest.mark.slow
def test_the_whole_digits_recipe_on_the_rtl_with_its_memory_is_pytorchs_to_the_bit(tmp_path: Path) -> None:
    """As a board runs it, to its end: a quarter of an hour of processor time."""
    config = TrainConfig.from_recipe(RECIPE)
    export_job(config, tmp_path / "job.zip")
    board = same_training(config, tmp_path / "job.zip", tmp_path, design=DESIGN, device="rtl-memory")
    assert board.steps == 360


@pytest.mark.slow
@pytest.mark.parametrize("device", ["rtl", "rtl-memory"])
def test_gated_training_on_the_rtl_is_pytorchs_to_the_bit(gated_path: Path, tmp_path: Path, device: str) -> None:
    same_training(gated(), gated_path, tmp_path, design=DESIGN, device=device)


def test_a_step_through_the_boards_driver(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job, the passes and the driver together, as on the board: tensors stay in its memory."""
    design = load_design(DESIGN)
    board = Board(ReferenceDevice(design), design)
    install(board, monkeypatch)
    job = load_job(path)
    exact = Training(job, ExactEngine(design))
    device = PynqDevice(design, overlay_files(tmp_path), beats=1 << 18)
    driven = Training(job, engine_in_memory(device))
    for step in range(2):
        exact.step = driven.step = step
        assert exact.train_step() == driven.train_step()
    assert all(np.array_equal(exact.state[name], driven.state[name]) for name in job.state)
    assert driven.engine.meter.totals["WORDS_PATCHED"] > 0
    board.faults = {"READ_SLVERR"}
    with pytest.raises(DeviceError, match="the memory refused a read"):
        driven.train_step()


def test_a_step_on_a_device_behind_tcp(path: Path) -> None:
    token = b"a token of some thirty letters...."
    server = Server(ReferenceDevice(load_design(DESIGN)), token, port=0)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    device = RemoteDevice("tcp://{}:{}".format(*server.address), token)
    try:
        far = Training(load_job(path), FabricEngine(device, keep_rows=False))
        assert far.train_step() == Training(load_job(path), ExactEngine(load_design(DESIGN))).train_step()
    finally:
        device.close()
        server.stop()
        thread.join(5)


# -- memory -------------------------------------------------------------------------------------------------------


class CountedMemory(StreamMemory):
    """A device with memory that counts what is asked of it."""

    asked = 0

    def execute(self, program: int, deadline: int = 0) -> MemoryResult:
        self.asked += 1
        return super().execute(program, deadline)


@pytest.mark.parametrize("gates", [False, True], ids=["pfq", "gates"])
def test_a_job_that_the_memory_does_not_hold_is_refused_before_anything_starts(
    path: Path, gated_path: Path, tmp_path: Path, gates: bool
) -> None:
    beats = 3 << 14  # enough for the first stage, and for an option
    memory = CountedMemory(ReferenceDevice(load_design(DESIGN)), beats)
    words = r"steps take [\d.]+ MB of memory at batches of 16, and the device has 0\.8 MB: choose a smaller batch"
    with pytest.raises(MemoryPlanError, match=words):
        run_job(load_job(gated_path if gates else path), engine_in_memory(memory), tmp_path / "run")
    assert not (tmp_path / "run").exists() and memory.asked == 0


def test_the_command_refuses_it_in_words(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    beats, design = 3 << 13, load_design(DESIGN)
    monkeypatch.setattr("host.devices.memory.open_memory", lambda *_: StreamMemory(ReferenceDevice(design), beats))
    monkeypatch.setattr("host.devices.memory.MEMORY_BYTES", 16 * beats)
    command = ["board", "run", str(path), "--device", "reference-memory", "--design", DESIGN, "--out", str(tmp_path / "run")]
    assert main(command) != 0
    assert "MB of memory at batches of 16" in capsys.readouterr().err and not (tmp_path / "run").exists()


def planned(job: Job, beats: int) -> tuple[Training, MemoryPasses, list[int]]:
    """A training with so much memory for its steps, its passes, and what the steps of each precision need."""
    head = 1 << 12  # for the products behind the backbone
    memory = StreamMemory(ReferenceDevice(load_design(DESIGN)), beats + head)
    streams = MemoryStreams.in_front(memory, head)
    training = Training(job, FabricEngine(streams, keep_rows=False))
    assert training.passes is not None and isinstance(training.passes.engine, MemoryPasses)
    check_job_memory(job, training.engine, training.products, training.passes)
    return training, training.passes.engine, list(training.passes.needs.values())


def test_what_is_planned_is_what_the_steps_take(tmp_path: Path) -> None:
    """Training and tests, one precision after the other: the plans of the first go, for which there is no room."""
    config = small(epochs=2, stages=((3, 3, 6), (4, 3, 6, 8)), deadlines=(0,), train_limit=32, test_limit=8)
    export_job(config, tmp_path / "job.zip")
    job = load_job(tmp_path / "job.zip")
    needs = planned(job, 1 << 18)[2]
    training, passes, _ = planned(job, max(needs))
    for need in needs:
        for _ in range(training.steps_per_epoch):
            training.train_step()
        training.finish_epoch(training.row(training.evaluate()))
        assert need / 1.1 <= passes.arena.used - passes.arena.first <= need
    assert passes.meter.totals["REPLANNED"] == 1
    with pytest.raises(MemoryPlanError):
        planned(job, max(needs) - LINE_BEATS)


@pytest.mark.slow
def test_gates_may_divide_batches_as_they_like_in_the_memory_that_was_planned(
    gated_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every new division of a batch has areas of its own; when the memory is full the plans are given up."""
    job = load_job(gated_path)
    (need,) = planned(job, 1 << 19)[2]
    training, passes, _ = planned(job, need)
    trainings = [Training(job, ExactEngine(load_design(DESIGN))), training]
    rng, chosen = np.random.default_rng(0), BackbonePasses.passes_chosen
    for _ in range(2):
        choices = [np.eye(3, dtype=np.float32)[rng.integers(0, 3, 16)] for _ in range(9)]
        lines = []
        for each in trainings:
            assert each.passes is not None
            monkeypatch.setattr(
                each.passes, "passes_chosen", lambda _, block, p=each.passes, c=choices: chosen(p, c[block], block=block)
            )
            each.step = 0
            lines.append(each.train_step())
        assert lines[0] == lines[1]
    assert all(np.array_equal(trainings[0].state[name], training.state[name]) for name in job.state)
    assert passes.meter.totals["REPLANNED"] > 0


# -- resume -------------------------------------------------------------------------------------------------------


def kill_and_resume(path: Path, folder: Path, device: str, kills: int) -> int:
    """Trains a job in processes of which the first ones are killed at random times; returns how many were."""
    rng, killed = random.Random(3), 0
    code = "import sys; from fractrain import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "board", "run", str(path), "--device", device, "--design", DESIGN]
    for attempt in range(kills + 1):
        resume = ["--resume"] if (folder / "checkpoint.npz").exists() else []
        process = subprocess.Popen([*words, "--out", str(folder), *resume], cwd=ROOT, stdout=subprocess.DEVNULL)
        if attempt == kills:
            assert process.wait(600) == 0
            break
        log, before = folder / "log.jsonl", time.monotonic()
        # at a random moment of the first steps that follow, as long as these take on this machine
        steps, part = divmod(rng.uniform(0, 3), 1)
        old = len(log.read_bytes().splitlines()) if log.exists() else 0
        begun = before
        for wanted in range(old + 1, old + 2 + int(steps)):
            begun = time.monotonic()
            while (not log.exists() or len(log.read_bytes().splitlines()) < wanted) and process.poll() is None:
                assert time.monotonic() < before + 300
                time.sleep(0.002)
        time.sleep(min(0.5, part * (time.monotonic() - begun)))
        process.kill()
        killed += process.wait() < 0
    return killed


def same_run(job: Path, folder: Path, whole: Path) -> None:
    run_job(load_job(job), ExactEngine(load_design(DESIGN)), whole)
    assert (whole / "log.jsonl").read_text() == (folder / "log.jsonl").read_text()
    with np.load(whole / "checkpoint.npz") as a, np.load(folder / "checkpoint.npz") as b:
        assert a.files == b.files and (a["tops"] > 0).any()
        assert all(np.array_equal(a[name], b[name]) for name in a.files if name != "rest")


def with_checkpoints(config: TrainConfig, path: Path) -> Path:
    """The job of a recipe with a checkpoint behind every second step."""
    export_job(TrainConfig.from_recipe(RECIPE, **{**vars(config), "checkpoint_every": 2}), path)
    return path


def test_stopped_and_resumed_is_as_if_never_stopped(path: Path, tmp_path: Path) -> None:
    """Ranges among the state; the first evaluation comes behind the first stop."""
    job, engine = load_job(path), ExactEngine(load_design(DESIGN))
    for stop in (2, 4, 8, None):
        run_job(job, engine, tmp_path / "parts", resume=stop != 2, stop_after=stop)
    same_run(path, tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["numpy", "rtl", "rtl-memory"])
def test_killed_ten_times_it_resumes_to_the_bit(tmp_path: Path, device: str) -> None:
    job = with_checkpoints(small(train_limit=480, epochs=4), tmp_path / "job.zip")
    killed = kill_and_resume(job, tmp_path / "run", device, 10)
    assert killed == 10, "training was over before it was killed ten times"
    same_run(job, tmp_path / "run", tmp_path / "whole")


def test_a_checkpoint_of_other_ranges_is_refused(path: Path, tmp_path: Path) -> None:
    job = load_job(path)
    run_job(job, ExactEngine(), tmp_path / "run", stop_after=1)
    file = tmp_path / "run" / "checkpoint.npz"
    with np.load(file) as archive:
        arrays = dict(archive)
    for tops in (arrays["tops"][:-1], -arrays["tops"], np.full_like(arrays["tops"], np.nan)):
        np.savez(file, **{**arrays, "tops": tops})
        state = Training(job, ExactEngine())
        with pytest.raises(JobError, match=r"checkpoint .* is broken .*range"):
            state.load(file)
        assert state.global_step == 0


# -- refusals -----------------------------------------------------------------------------------------------------


def test_what_is_wrong_is_named(path: Path, gated_path: Path) -> None:
    def changed(job: Path, edit: Any) -> dict[str, bytes]:
        members, _ = read_members(job)
        other = json.loads(members["job.json"])
        edit(other)
        return {**members, "job.json": json.dumps(other).encode()}

    def step(job: Path = path, **changes: Any) -> str:
        return refused(changed(job, lambda d: d["step"].update(changes)))

    def layout(**changes: Any) -> str:
        return refused(changed(path, lambda d: d["step"]["layout"].update(changes)))

    def nodes(edit: Any, job: Path = path) -> str:
        return refused(changed(job, lambda d: edit(d["graphs"]["train"]["16"]["nodes"])))

    assert "passes, and the job no step" in refused(changed(path, lambda d: d.update(step=None)))
    assert "'more' is missing or unknown" in step(more=1)
    assert "kept = [6, 6, 1]" in step(kept=[6, 6, 1])
    assert "a layer of its own" in step(layers=[0] * 9)
    assert "a pair for each of 9 nodes" in step(constants=[[1e-5, 0.1]])
    assert "outside 1e-12..1" in step(constants=[[0.0, 0.1]] * 9)
    assert "gates to them" in step(gated=["blocks.0.conv1"])
    assert "gates to them" in step(gated_path, gated=[])
    assert "an odd kernel" in layout(stem=[4, 2, 1])
    assert "it must be 8 channels in" in layout(blocks=[[4, 8, 1, 0], [4, 8, 1, 0]])
    assert "none or too many" in layout(stem=[65536, 3, 1], blocks=[[65536, 65536, 1, 0]])
    assert "passes has operands of" in layout(blocks=[[4, 4, 1, 0], [4, 8, 2, 0], [8, 20, 2, 0]])
    assert "weights and gradients of 2..16 bits" in refused(
        changed(path, lambda d: d["recipe"].update(stages=[[1, 3, 6], *d["recipe"]["stages"][1:]]))
    )
    assert "does not run the step once and in order" in nodes(lambda n: n.pop(next(i for i, v in enumerate(n) if v["op"] == "passes_statistics")))  # fmt: skip

    def swap(n: list[dict[str, Any]]) -> None:
        first, second = [v for v in n if v["op"] == "passes_chosen"][:2]
        first["attributes"], second["attributes"] = second["attributes"], first["attributes"]

    assert "passes_chosen has results of (16, 4) where the backbone has (16, 8)" in nodes(swap, gated_path)
    mean = {**read_members(path)[0], "state/bn.running_mean.npy": npy_bytes(np.zeros(5, np.float32))}
    assert "passes has operands of (5,) where the backbone has (4,)" in refused(mean)


def test_recipes_that_a_job_cannot_express(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="last batch of one"):
        export_job(small(train_limit=33), tmp_path / "job.zip")
    with pytest.raises(ExportError, match="init = 'runs/earlier'"):
        export_job(small(init="runs/earlier"), tmp_path / "job.zip")
    assert not (tmp_path / "job.zip").exists()


def test_an_engine_without_passes_is_refused(path: Path) -> None:
    class Products:
        meter = Meter()

    with pytest.raises(ValueError, match="Products computes single products"):
        Training(load_job(path), Products())  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_names_its_node(path: Path) -> None:
    job = load_job(path)
    state = Training(job, ExactEngine())
    state.state["bn.weight"] = np.full_like(state.state["bn.weight"], np.inf)
    with pytest.raises(JobError, match=r"node 0 \(passes.*stem: results up to"):
        state.train_step()


def test_changed_jobs_are_refused_or_run_but_never_crash(path: Path, gated_path: Path) -> None:
    assert fuzz(path, 60, 1, "step", "step", "step", "step")["refused"] > 25
    assert fuzz(gated_path, 40, 1, "step", "step", "step")["refused"] > 15


@pytest.mark.slow
def test_thousands_of_changed_jobs(path: Path, gated_path: Path) -> None:
    for job in (path, gated_path):
        assert fuzz(job, 2000, 2, "step", "step", "step", "step")["refused"] > 1000


# -- commands -----------------------------------------------------------------------------------------------------


def test_the_commands_know_such_jobs(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["board", "check", str(path)]) == 0
    assert "9 nodes in passes of the fabric" in capsys.readouterr().out
    words = ["board", "run", str(path), "--device", "numpy", "--design", DESIGN, "--stop-after", "2"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    fabric = FabricEngine(ReferenceDevice(load_design(DESIGN)), keep_rows=False)
    run_job(load_job(path), fabric, tmp_path / "fabric", stop_after=2)
    assert (tmp_path / "run" / "log.jsonl").read_text() == (tmp_path / "fabric" / "log.jsonl").read_text()
    counters = Counter(json.loads((tmp_path / "fabric" / "result.json").read_text())["counters"])
    assert counters["PASSES"] > 60 and counters["statistics.PACKETS"] > 20
