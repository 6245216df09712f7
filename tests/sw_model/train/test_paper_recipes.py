"""The recipes of the paper's tables: one for every published row, with that row's network, precisions and length."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from hw.cost.count import computational_cost
from hw.cost.paper import load_tables
from hw.cost.training_schedule import CIFAR_OPTIONS, IMAGENET_OPTIONS, parse_schedule
from hw.networks import Bits, network, total_macs
from sw_model.nn.cost_meter import CostMeter, layer_macs
from sw_model.nn.gates import GatedNetwork
from sw_model.nn.layers import QConv2d, quantized_layers
from sw_model.nn.models import Backbone, build_model
from sw_model.nn.precision import Precision
from sw_model.nn.transformer import build_language_model
from sw_model.train.recipe import TrainConfig

FOLDER = Path(__file__).parents[3] / "configs" / "recipes" / "paper"
TABLES = load_tables()


def recipe_name(row: Mapping[str, Any]) -> str:
    """File name of a row: table, network, data and method; Table 1 has three precisions per network."""
    model, dataset, method = row["model"], row["dataset"], row["method"].lower()
    table = 2 if (row["table"], model, method) == (4, "resnet18", "sbm") else row["table"]  # a row of both tables
    regime = row["group"].rpartition(" ")[2].replace("-", "") + "-" if table == 5 else ""
    name = f"table{table}-{model}-{dataset}-{regime}{method}"
    return f"{name}-bw{re.findall('[0-9]+', row['precision'])[-1]}" if table == 1 else name


def with_baselines(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row, and in Table 1 the static baseline that its saving refers to."""
    rows = [dict(row)]
    if row["table"] == 1:
        last = re.findall("[0-9]+", row["precision"])[-1]
        rows.append({**row, "method": "SBM", "precision": f"FW-8/BW-{last}"})
    return rows


ROWS = [each for row in TABLES["row"] for each in with_baselines(row)]


@functools.cache
def built(model: str, classes: int) -> tuple[torch.nn.Module, dict[str, int], frozenset[str]]:
    """A recipe's network, its operations per image and product, and its depthwise layers."""
    if model.startswith("transformer"):
        net = build_language_model(model, 50, 512)
        macs = layer_macs(net, torch.zeros(1, 512, dtype=torch.int64))
        return net, {name: count for name, count in macs.items() if name != "head"}, frozenset()
    image = (3, 224, 224) if model in ("resnet-18", "resnet-34") else (3, 32, 32)
    net = build_model(model, classes, image)
    depthwise = {n for n, m in quantized_layers(net) if isinstance(m, QConv2d) and m.groups > 1}
    return net, layer_macs(net, image), frozenset(depthwise)


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{recipe_name(r)}")
def test_every_published_row_has_its_recipe(row: dict[str, Any]) -> None:
    config = TrainConfig.from_recipe(FOLDER / f"{recipe_name(row)}.toml")
    facts = TABLES["datasets"][row["dataset"]]
    wanted = parse_schedule(row["precision"], 1.0)
    assert config.data.replace("-", "").endswith(row["dataset"])
    assert config.model.startswith(re.sub(r"resnet(\d+)", r"resnet-\1", row["model"]))

    shapes = network(row["model"], facts["classes"] or None)
    net, macs, depthwise = built(config.model, facts["classes"])
    assert sum(macs.values()) == total_macs(shapes)

    if wanted.gated:
        assert config.schedule == "dfq"
        assert list(config.targets) == [float(t) for t in row["precision"].removeprefix("cp=").split("/")]
        options = IMAGENET_OPTIONS if row["dataset"] == "imagenet" else CIFAR_OPTIONS
        assert [Bits(config.weight_bits, *option) for option in config.options] == list(options)
        assert isinstance(net, Backbone)
        gates = GatedNetwork(net, [(a, g) for a, g in config.options], config.weight_bits)
        costs = sorted(float(f) for f in gates.factors)
        # Every target but the first, where it is said so, lies between the cheapest and the dearest option.
        assert all(costs[0] < t < costs[-1] for t in config.targets if t != 1.5)
        assert not config.quantize_stem
    else:
        assert config.schedule == ("static" if len(wanted.stages) == 1 else "pfq")
        assert [Bits(*stage) for stage in config.stages] == [stage.mixture[0][1] for stage in wanted.stages]
        meter = CostMeter(macs, depthwise)
        published = computational_cost(shapes, wanted, 1).per_sample
        assert [meter.per_image(Precision(*stage)) for stage in config.stages] == pytest.approx(list(published))
    method = row["method"].lower()
    assert config.quantizer == (method if method in ("dorefa", "wageubn") else "affine")
    # The rows of Table 5 start from a trained network, by a recipe of its own.
    assert bool(config.init) == (row["table"] == 5)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda p: p.stem)
def test_recipes_train_with_the_published_settings(path: Path) -> None:
    config = TrainConfig.from_recipe(path)
    if config.model.startswith("transformer"):  # its settings are not published
        return
    dataset = Path(config.data).name.replace("-", "")
    facts, training = TABLES["datasets"][dataset], TABLES["training"]
    names = set(training) - {"beta"}
    assert {name: getattr(config, name) for name in names} == {name: training[name] for name in names}
    assert (config.optimizer, config.lr_schedule, config.warmup) == ("sgd", "steps", 0)
    assert list(config.milestones) == facts["drops"] and config.batch == facts["batch"]
    samples = facts["samples"] if config.subset == "all" else facts["samples"] / 2
    wanted_steps = facts.get("iterations") or facts["epochs"] * samples / facts["batch"]
    assert config.epochs * math.ceil(samples / config.batch) == pytest.approx(wanted_steps, rel=0.003)
    assert (config.band, config.cap, config.deadlines, config.mode) == (0, 0, (), "fixed")
    if config.schedule == "dfq":
        net = built(config.model, facts["classes"])[0]
        assert isinstance(net, Backbone)
        # The published term is a sum over images, blocks and products of shares; ours weighs their mean in percent.
        terms = facts["batch"] * len(net.block_list()) * 3
        assert config.beta == pytest.approx(training["beta"] * terms / 100)


def test_no_recipe_is_without_its_row() -> None:
    names = {recipe_name(row) for row in ROWS}
    others = {path.stem for path in FOLDER.glob("*.toml")} - names
    assert all(name.startswith("figure") or name.endswith("-pretrain") for name in others), others
