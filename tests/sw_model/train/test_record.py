"""The record of a run's precision: what the cost models compute from it is what the run's own meter has counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fractrain import main
from hw.cost.count import computational_cost
from hw.cost.training_schedule import Trained, TrainingSchedule, load_schedule
from hw.networks import TRANSFORMERS, Bits
from sw_model.data.images import ImageSet
from sw_model.data.text import TokenSet
from sw_model.nn.cost_meter import layer_macs
from sw_model.nn.models import build_model
from sw_model.nn.precision import Precision
from sw_model.nn.transformer import build_language_model
from sw_model.train.folder import load_checkpoint
from sw_model.train.loop import train
from sw_model.train.metrics import TrainingResult
from sw_model.train.recipe import ConfigError, TrainConfig
from sw_model.train.record import GATED, RunSchedule

FEW: dict[str, Any] = {"width": 4, "epochs": 3, "batch": 32, "train_limit": 100, "test_limit": 40, "lr": 0.05}
GATES: dict[str, Any] = {
    **FEW, "schedule": "dfq", "options": ((0, 0), (3, 6), (4, 8)), "targets": (1.0, 2.5), "deadlines": (0,), "beta": 0.5,
    "stages": ((8, 8, 8),),
}  # fmt: skip
RUNS = {
    "static": TrainConfig(**FEW, schedule="static", stages=((8, 8, 8),)),
    "float32 head and stem": TrainConfig(**FEW, schedule="static", stages=((4, 3, 6),), quantize_stem=False),
    "all quantized": TrainConfig(**FEW, schedule="static", stages=((4, 3, 6),), quantize_head=True),
    "float32": TrainConfig(**FEW, schedule="static", stages=((0, 0, 0),)),
    "bifurcated": TrainConfig(**FEW, schedule="static", stages=((8, 8, 8, 16),)),
    "pfq": TrainConfig(**FEW, schedule="pfq", stages=((3, 3, 4), (4, 4, 6), (8, 8, 8)), deadlines=(0, 1)),
    "manual": TrainConfig(**FEW, schedule="manual", stages=((3, 3, 4), (8, 8, 8)), starts=(0, 2)),
    "cyclic": TrainConfig(**FEW, schedule="cyclic", stages=((8, 8, 8),), low=3, high=8, cycles=3),
    "dfq with skip": TrainConfig(**GATES),
    "dfq, float32 stem": TrainConfig(**{**GATES, "options": ((3, 6), (4, 8))}, quantize_stem=False),
    "dfq, every option": TrainConfig(**{**GATES, "options": ((3, 6), (4, 8))}, mode="masked-noise"),
    "dfq with skip, every option": TrainConfig(**GATES, mode="masked-noise+norm-per-option"),
}


def agrees(schedule: TrainingSchedule, result: TrainingResult) -> None:
    """Both counts of the cost from the record equal the meter's, which adds up gates' shares in float32."""
    assert schedule.trained is not None
    shapes, samples = schedule.trained.shapes(), schedule.trained.samples
    for count, expected in (("paper", result.cc), ("full", result.cc_full)):
        cost = computational_cost(shapes, schedule, samples, count).total
        assert cost == pytest.approx(expected, rel=1e-6 if schedule.gated and count == "paper" else 1e-12), count


@pytest.mark.parametrize("name", RUNS)
def test_costs_from_the_record_are_the_meters(name: str, tmp_path: Path) -> None:
    result = train(RUNS[name], out=tmp_path)
    schedule = load_schedule(tmp_path)
    assert schedule.epochs == pytest.approx(3)
    assert schedule.trained is not None
    schedule.check(schedule.trained.shapes(), name)
    agrees(schedule, result)


WORDS = np.random.default_rng(0).integers(2, 20, 300)
TEXT = TokenSet(WORDS, WORDS[:60], ("<unk>", "<eos>", *"abcdefghijklmnopqr"), 8)
WRITTEN: dict[str, Any] = {**FEW, "model": "transformer-small", "batch": 12, "train_limit": 30, "test_limit": 2}
TEXT_RUNS = {
    "static": TrainConfig(**WRITTEN, schedule="static", stages=((8, 8, 8),)),
    "float32": TrainConfig(**WRITTEN, schedule="static", stages=((0, 0, 0),)),
    "weights wider": TrainConfig(**WRITTEN, schedule="static", stages=((6, 3, 4),)),
    "bifurcated, all quantized": TrainConfig(**WRITTEN, schedule="static", stages=((8, 6, 8, 16),), quantize_head=True),
    "pfq": TrainConfig(**WRITTEN, schedule="pfq", stages=((3, 3, 6), (4, 4, 6), (8, 8, 8)), deadlines=(0, 1)),
}


@pytest.mark.parametrize("name", TEXT_RUNS)
def test_costs_of_a_language_model_are_the_meters(name: str, tmp_path: Path) -> None:
    result = train(TEXT_RUNS[name], out=tmp_path, data=TEXT)
    schedule = load_schedule(tmp_path)
    assert schedule.epochs == pytest.approx(3) and schedule.trained is not None
    assert schedule.trained == Trained("transformer-small", 20, 128, (8,), 30, 12)
    schedule.check(schedule.trained.shapes(), name)
    agrees(schedule, result)


def test_a_resumed_language_model_has_the_same_record_and_the_command_costs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(TEXT_RUNS["pfq"], out=tmp_path / "whole", data=TEXT)
    part = train(TEXT_RUNS["pfq"], out=tmp_path / "part", data=TEXT, stop_after=4)
    agrees(load_schedule(tmp_path / "part"), part)
    result = train(TEXT_RUNS["pfq"], out=tmp_path / "part", data=TEXT, resume=True)
    records = [(tmp_path / folder / "schedule.json").read_text() for folder in ("whole", "part")]
    assert records[0] == records[1]
    for machine in ("bitfusion", "zc706"):
        assert main(["cost", "--schedule", str(tmp_path / "part"), "--machine", machine, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)["whole_training"]
        assert report["cc_paper"] == pytest.approx(result.cc) and report["cc_full"] == pytest.approx(result.cc_full)


def test_the_command_costs_gates_in_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(RUNS["dfq with skip"], out=tmp_path)
    for machine in ("cc", "zc706"):
        assert main(["cost", "--schedule", str(tmp_path), "--machine", machine, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        gates = [row for row in report["per_sample_layers"] if row["layer"] == "gates"]
        assert sum(row["cc"] for row in gates) == 3 * load_schedule(tmp_path).gate_macs
        assert report["per_sample"]["cc"] * result.images == pytest.approx(result.cc_full)


def test_a_checkpoint_without_a_record_is_not_resumed(tmp_path: Path) -> None:
    """As old versions wrote of language models."""
    train(TEXT_RUNS["pfq"], out=tmp_path, data=TEXT, stop_after=2)
    checkpoint = tmp_path / "checkpoint.pt"
    torch.save({**load_checkpoint(checkpoint), "record": None}, checkpoint)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match="record"):
        train(TEXT_RUNS["pfq"], out=tmp_path, data=TEXT, resume=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("model", TRANSFORMERS)
def test_layers_of_language_models_are_the_same(model: str) -> None:
    macs = layer_macs(build_language_model(model, 11, 6), torch.zeros(1, 6, dtype=torch.int64))
    shapes = Trained(model, 11, 1, (6,), 1, 1).shapes()
    assert macs == {s.name: s.macs for s in shapes}


def test_every_product_of_a_layer_costs_what_it_did(tmp_path: Path) -> None:
    """Layer by layer and product by product, skipped blocks and their shortcuts included."""
    from hw.cost.count import counted_cost, layer_mixture

    train(RUNS["dfq with skip"], out=tmp_path)
    schedule = load_schedule(tmp_path)
    assert schedule.trained is not None
    shapes, cost = schedule.trained.shapes(), {}
    for stage in schedule.stages:
        for shape, mixture in zip(shapes, layer_mixture(shapes, schedule, stage, "full"), strict=True):
            row = cost.setdefault(shape.name, {})
            for share, bits in mixture:
                for product, value in counted_cost(schedule, shape, bits, "full").items():
                    weight = share * stage.epochs * schedule.trained.samples
                    row[product] = row.get(product, 0.0) + weight * value
    measured = json.loads((tmp_path / "result.json").read_text())["cost_by_layer"]
    gates = [measured.pop(f"gates.{block}") for block in range(3)]
    images = schedule.epochs * schedule.trained.samples
    for product in ("forward", "input_gradient", "weight_gradient"):
        assert sum(row[product] for row in gates) == pytest.approx(schedule.gate_macs * images)
    for name, row in measured.items():
        assert cost[name.removeprefix(GATED)] == pytest.approx(row, rel=1e-9), name


def test_what_a_record_says(tmp_path: Path) -> None:
    train(RUNS["pfq"], out=tmp_path / "pfq")
    pfq = load_schedule(tmp_path / "pfq")
    assert [(s.epochs, s.mixture) for s in pfq.stages] == [
        (1, ((1.0, Bits(3, 3, 4)),)), (1, ((1.0, Bits(4, 4, 6)),)), (1, ((1.0, Bits(8, 8, 8)),))
    ]  # fmt: skip
    assert all(s.ran == {"head": ((1.0, Bits(32, 32, 32)),)} for s in pfq.stages)
    train(RUNS["static"], out=tmp_path / "static")
    assert [s.epochs for s in load_schedule(tmp_path / "static").stages] == [3]
    train(RUNS["cyclic"], out=tmp_path / "cyclic")
    assert all(len(s.mixture) > 1 for s in load_schedule(tmp_path / "cyclic").stages)
    train(RUNS["dfq with skip"], out=tmp_path / "dfq")
    dfq = load_schedule(tmp_path / "dfq")
    assert dfq.uncounted == {"stem", "head"}
    assert dfq.stages[0].mixture == ((1.0, Bits(8, 8, 8)),)
    assert set(dfq.stages[0].layers) == {s.name for s in dfq.trained.shapes()} - {"stem", "head"}  # type: ignore[union-attr]
    chosen = {bits for stage in dfq.stages for mixture in stage.layers.values() for _, bits in mixture}
    assert Bits(0, 0, 0) in chosen and len(chosen) > 1  # the run is a test of skipping only if it skips


@pytest.mark.parametrize("name", ["pfq", "dfq with skip"])
@pytest.mark.parametrize("stop", [2, 6])
def test_a_resumed_run_has_the_same_record(name: str, stop: int, tmp_path: Path) -> None:
    """Stopped inside an epoch: the record agrees with the meter then, too."""
    train(RUNS[name], out=tmp_path / "whole")
    part = train(RUNS[name], out=tmp_path / "part", stop_after=stop)
    agrees(load_schedule(tmp_path / "part"), part)
    train(RUNS[name], out=tmp_path / "part", resume=True)
    records = [(tmp_path / folder / "schedule.json").read_text() for folder in ("whole", "part")]
    assert records[0] == records[1]


@pytest.mark.parametrize(
    ("model", "image", "width"),
    [
        ("resnet-8", (1, 8, 8), 4),
        ("resnet-14", (3, 15, 21), 8),
        ("resnet-38", (3, 32, 32), 16),
        ("resnet-18", (3, 64, 64), 64),
        ("resnet-34", (3, 32, 32), 64),
        ("mobilenetv2", (3, 32, 32), 16),
        ("mobilenetv2", (3, 30, 33), 16),
    ],
)
def test_layers_of_hardware_and_software_are_the_same(model: str, image: tuple[int, int, int], width: int) -> None:
    macs = layer_macs(build_model(model, 7, image, width=width), image)
    shapes = Trained(model, 7, width, image, 1, 1).shapes()
    assert macs == {s.name: s.macs for s in shapes}


@pytest.mark.parametrize(("gated", "mode"), [(False, "fixed"), (True, "fixed"), (True, "masked-noise")])
def test_depthwise_layers_keep_their_widths(gated: bool, mode: str, tmp_path: Path) -> None:
    data = digits_in_colour()
    gates = {"schedule": "dfq", "options": ((3, 6), (4, 8)), "targets": (2.0,)}
    config = TrainConfig.from_mapping(
        {"model": "mobilenetv2", "schedule": "static", "stages": ((4, 4, 6),), "epochs": 1, "batch": 4}
        | {"mode": mode}
        | (gates if gated else {})
    )
    result = train(config, out=tmp_path, data=data)
    agrees(load_schedule(tmp_path), result)


def digits_in_colour() -> ImageSet:
    from dataclasses import replace

    from sw_model.data.images import load_data

    data = load_data("digits").limited(4, 4)
    return replace(
        data,
        train_images=data.train_images.repeat(3, 1),
        test_images=data.test_images.repeat(3, 1),
        mean=data.mean * 3,
        std=data.std * 3,
    )


@pytest.mark.parametrize("where", ["stages", "chosen", "ran"])
def test_records_with_other_names_of_layers_are_not_continued(where: str) -> None:
    """As checkpoints of old versions have them, whose "head" was another layer than today's."""
    trained = Trained("resnet-8", 10, 4, (1, 8, 8), 12, 6)
    record = RunSchedule(trained, layer_macs(build_model("resnet-8", 10, (1, 8, 8), width=4), (1, 8, 8)))
    record.step(Precision(8, 8, 8), 12)
    state = record.state_dict()
    mixture = {"stage1.0.conv1": [[1.0, [8, 8, 8]]], "fc": [[1.0, [8, 8, 8]]]}
    state[where] = [{"epochs": 1, "options": [], "layers": mixture, "ran": {}}] if where == "stages" else mixture
    with pytest.raises(ConfigError, match=r"resnet-8 does not have: fc, stage1\.0\.conv1"):
        record.load_state_dict(state)
    record.load_state_dict(record.state_dict())


def test_gates_alone_do_not_change_the_record_of_others() -> None:
    """Counting by hand: 6 images, two blocks, one option of which is to skip."""
    shapes = Trained("resnet-8", 10, 4, (1, 8, 8), 12, 6)
    macs = {f"base.{n}": m for n, m in layer_macs(build_model("resnet-8", 10, (1, 8, 8), width=4), (1, 8, 8)).items()}
    record = RunSchedule(shapes, macs, gated=True)
    options: Sequence[Precision | None] = (None, Precision(4, 3, 6))
    record.step(Precision(8, 8, 8), 6, options, torch.tensor([[0] * 6, [1] * 6, [0, 1, 1, 1, 1, 1]]))
    (stage,) = json.loads(record.to_json())["stages"]
    assert stage["epochs"] == 0.5
    assert stage["options"] == [[1.0, [8, 8, 8]]]
    assert stage["layers"]["blocks.0.conv2"] == [[1.0, [0, 0, 0]]]
    assert stage["layers"]["blocks.2.shortcut.0"] == [
        [pytest.approx(1 / 6), [0, 0, 0]],
        [pytest.approx(5 / 6), [4, 3, 6]],
    ]
