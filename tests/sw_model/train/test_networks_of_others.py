"""Recipes with networks and data of others: trained, recorded, costed, resumed; what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fractrain
from host.board.job import load_job
from host.board.runtime import run_job
from host.exact_engine import ExactEngine
from hw.layer_tables import layers_of
from hw.networks import ConvShape, network
from sw_model.export.training_job import export_job
from sw_model.train.folder import load_checkpoint
from sw_model.train.loop import train
from sw_model.train.recipe import ConfigError, TrainConfig
from tests.support.networks_of_others import torchvision_models

OWN = """
import torch
from torch import nn
from torch.utils.data import Dataset


def network(classes, image):
    return nn.Sequential(
        nn.Conv2d(image[0], 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes)
    )


def ready(classes, image):
    model = network(classes, image)
    model(torch.zeros(2, *image))
    return model


class Plain(nn.Module):
    def __init__(self, classes, image):
        super().__init__()
        self.one, self.two = nn.Conv2d(image[0], 4, 3, 1, 1, bias=False), nn.Conv2d(4, 4, 3, 2, 1, bias=False)
        self.norm1, self.norm2, self.head = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(4, classes)

    def forward(self, x):
        x = self.norm2(self.two(self.norm1(self.one(x)).relu())).relu()
        return self.head(x.mean((2, 3)))


def plain(classes, image):
    return Plain(classes, image)


class Noise(Dataset):
    classes = ["dark", "bright"]

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        label = index % 2
        return torch.rand(3, 9, 9) + label, label  # random numbers of PyTorch, as transforms draw them


def data():
    return Noise(14), Noise(6)


def no_classes():
    return [(torch.zeros(3, 9, 9), 0)], [(torch.zeros(3, 9, 9), 0)]
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return file


def config(own: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "model": f"{own}:ready", "data": f"{own}:data", "schedule": "pfq", "stages": ((3, 3, 4), (8, 8, 8)),
        "window": 2, "deadlines": (0,), "epochs": 3, "batch": 4, "lr": 0.05,
    }  # fmt: skip
    return TrainConfig(**values | changes)


def test_a_recipe_trains_networks_and_data_of_others(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(config(own), out=tmp_path / "run")
    assert result.finished and result.test_accuracy == 1.0 and result.images == 3 * 14
    record = json.loads((tmp_path / "run/schedule.json").read_text())
    assert [row["name"] for row in record["trained"]["layers"]] == ["0", "4"]
    assert fractrain.main(["cost", "--schedule", str(tmp_path / "run"), "--machine", "zc706"]) == 0
    capsys.readouterr()
    assert fractrain.main(["cost", "--schedule", str(tmp_path / "run"), "--count", "paper", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["whole_training"]["cc"] == pytest.approx(result.cc)


@pytest.mark.parametrize("engine", [None, ExactEngine()])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(engine: Any, own: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config(own), engine, out=whole)
    train(config(own), engine, out=parts, stop_after=6)
    train(config(own), engine, out=parts, resume=True)
    one, other = (load_checkpoint(run / "checkpoint.pt")["model"] for run in (whole, parts))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_libraries_are_taken_by_name(tmp_path: Path) -> None:
    torchvision_models()
    for model in ("timm:convnext_atto", "timm:vit_tiny_patch16_224"):
        table = tmp_path / "net.json"
        assert fractrain.main(["layers", model, "--input", "1,32,32", "--classes", "10", "--out", str(table)]) == 0
        assert fractrain.main(["cost", "--model", str(table), "--bits", "4/3/6"]) == 0
    table = tmp_path / "vision.json"
    assert fractrain.main(["layers", "torchvision:resnet18", "--input", "3,32,32", "--out", str(table)]) == 0


def test_the_job_of_a_network_of_others_trains_to_the_same_bits(own: Path, tmp_path: Path) -> None:
    settings = {"data": "digits", "train_limit": 32, "test_limit": 8, "epochs": 2, "batch": 16, "model": f"{own}:plain"}
    recipe = config(own, **settings, quantize_head=True)
    export_job(recipe, tmp_path / "job.zip")
    board = run_job(load_job(tmp_path / "job.zip"), ExactEngine(), None)
    assert [row["loss"] for row in board.history] == [row["loss"] for row in train(recipe, ExactEngine()).history]


def test_a_traced_network_has_the_layers_of_its_description(tmp_path: Path) -> None:
    torchvision_models()
    table = tmp_path / "vision.json"
    assert fractrain.main(["layers", "torchvision:resnet18", "--out", str(table)]) == 0

    def sizes(shapes: Sequence[ConvShape]) -> list[dict[str, Any]]:
        return sorted((asdict(replace(s, name="", kind="conv")) for s in shapes), key=str)

    assert sizes(layers_of(str(table))) == sizes(network("resnet18"))
    assert [s.kind for s in layers_of(str(table))][:: len(network("resnet18")) - 1] == ["stem", "fc"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "{own}:nothing"}, "has no function 'nothing'; it has network, ready, plain, data, no_classes"),
        ({"model": "elsewhere.py:network"}, "no file"),
        ({"model": "{own}:data"}, "no torch.nn.Module"),
        ({"model": "timm:no_such_network"}, "no model"),
        ({"data": "{own}:no_classes"}, "classes"),
        ({"data": "{own}:network"}, "missing|classes"),
        ({"norm": "range"}, "norm"),
        ({"quantizer": "dorefa"}, "quantizer"),
        ({"subset": "first-classes"}, "subset"),
        ({"augment": False}, "augment"),
        ({"keep": ("elsewhere",)}, "elsewhere"),
        ({"model": "resnet-8", "keep": ("head",)}, "keep"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(own: Path, changes: dict[str, Any], named: str) -> None:
    filled = {k: v.format(own=own) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises((ConfigError, ValueError, TypeError), match=named):
        train(config(own, **filled))
