"""A training run as a job file for the board: PyTorch's joint graph, lowered to a few operations, with data and state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from host.board.job_archive import write_job
from host.board.job_settings import RECIPE
from sw_model.data.images import ImageSet
from sw_model.data.own_data import OwnData
from sw_model.export.aten_graph import ExportError, lower_step
from sw_model.nn.gates import GatedNetwork
from sw_model.nn.layers import DEPTHWISE, QLayer, quantized_layers
from sw_model.nn.models import Backbone
from sw_model.nn.precision import Run
from sw_model.quantize.limits import refusal
from sw_model.train.pretrained import RANGES, build_network
from sw_model.train.recipe import ConfigError, TrainConfig
from sw_model.train.tasks import Classification, open_task

#: arrays of an :class:`ImageSet` that a job holds
IMAGES = ("train_images", "train_labels", "test_images", "test_labels")


def _recipe(config: TrainConfig) -> dict[str, Any]:
    """The part of a configuration that the board needs.

    Raises:
        ExportError: something that a job cannot express.
    """
    if config.schedule not in RECIPE["schedule"]:
        raise ExportError(
            f"schedule {config.schedule!r} has no counterpart in jobs; use {', '.join(RECIPE['schedule'])}"
        )
    if why := refusal("job", config):
        raise ExportError(why)
    for key, value in {"optimizer": "sgd", "gate": "argmax", "init": ""}.items():
        if getattr(config, key) != value:
            raise ExportError(f"{key} = {getattr(config, key)!r} has no counterpart in jobs, which have {value!r} only")
    for option in config.options:
        if not all(1 <= bits <= 16 for bits in option):
            raise ExportError(
                f"option {list(option)}: gates of jobs choose among 1..16 bits; skipping is not among them"
            )
    for stage in config.stages:
        widths = [0 if bits == 32 else bits for bits in stage]
        if any(widths) and 0 in widths:
            raise ExportError(f"stage {list(stage)} mixes integers and float32; give all operands 1..16 bits, or none")
    values = {key: getattr(config, key) for key in RECIPE if key != "range_momentum"}
    values["stages"] = [[0 if bits == 32 else bits for bits in stage] for stage in config.stages]
    values["eval_batch"] = config.eval_batch or config.batch
    values["range_momentum"] = Run(mode=config.mode, range_momentum=config.range_momentum).running_share
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _fixed(model: nn.Module, name: str, layer: QLayer) -> list[int] | None:
    """Widths of a layer that does not follow the schedule, as :func:`sw_model.nn.layers.set_precision` has them."""
    if name in getattr(model, "keep_full", set()):
        return [0, 0, 0]
    return [DEPTHWISE.weight, DEPTHWISE.activation, DEPTHWISE.grad] if layer.depthwise else None


def export_job(config: TrainConfig, path: Path, data: ImageSet | None = None) -> dict[str, int]:
    """Write a run as a job file.

    Args:
        config: the recipe.
        path: of the job, replaced in one step.
        data: data set, if not the one that ``config.data`` names.

    Returns:
        Sizes for people: ``nodes``, ``parameters``, ``images``, ``bytes``.

    Raises:
        ExportError: the recipe or the network cannot be expressed.
        ConfigError, DataError: as in training.
    """
    recipe = _recipe(config)
    if not path.parent.is_dir():
        raise ConfigError(f"folder {path.parent} does not exist; make it or choose another path with --out")
    task = open_task(config, data)
    if not isinstance(task, Classification):
        raise ExportError(f"model {config.model} reads text, for which jobs have no form; use a network for images")
    if isinstance(task.data, OwnData):
        raise ExportError(f"a job holds its images, and data = {config.data!r} prepares its own; give images in class folders")
    if not isinstance(task.data, ImageSet):
        raise ExportError(
            f"a job holds its images, and those of {task.data.root} are decoded as training goes; give images of equal size "
            "in class folders train/ and test/"
        )
    data = task.data
    base, gated = build_network(config, task)
    model = base if gated is None else gated
    graphs = _graphs(model, data, config.batch, recipe["eval_batch"])
    state = _state(model)
    arrays = {f"state/{name}.npy": array for name, array in state.items()}
    arrays |= {f"data/{key}.npy": np.ascontiguousarray(getattr(data, key)) for key in IMAGES}
    parameters = [name for name, _ in model.named_parameters()]
    gates = {"options": [list(o) for o in config.options], "weight_bits": config.weight_bits}
    document = {
        "recipe": recipe,
        "classes": len(data.classes),
        "class_names": list(data.classes),
        "model": config.model,
        "layers": [{"name": name, "fixed": _fixed(model, name, layer)} for name, layer in quantized_layers(model)],
        "gates": None if gated is None else gates,
        "step": _step(base, gated, data.image_shape),
        "parameters": parameters,
        "state": {name: f"state/{name}.npy" for name in state},
        "graphs": graphs,
        "data": _data(data),
    }
    write_job(path, document, arrays)
    return {
        "nodes": sum(len(g["nodes"]) for kind in graphs.values() for g in kind.values()),
        "parameters": sum(state[name].size for name in parameters),
        "images": len(data.train_labels) + len(data.test_labels),
        "bytes": path.stat().st_size,
    }


def _step(base: nn.Module, gated: GatedNetwork | None, image: tuple[int, ...]) -> dict[str, Any] | None:
    """The backbone that runs in passes of the fabric, as :mod:`host.board.job_step` reads it; None if the host normalises."""
    if not isinstance(base, Backbone) or base.step is None:
        return None
    model, prefix = (base, "") if gated is None else (gated, "base.")
    numbers = {name: number for number, (name, _) in enumerate(quantized_layers(model))}
    members = base.step.members(base, torch.zeros(1, *image))
    layout, kept = base.layout, base.step.widths
    return {
        "layout": {"stem": list(layout.stem), "blocks": [list(block) for block in layout.blocks], "last": layout.last},
        "kept": [kept.kept, kept.shortcut, kept.gradient],
        "layers": [numbers[prefix + each.node.name] for each in members],
        "constants": [[each.norm.eps, each.norm.momentum] for each in members],
        "gated": [] if gated is None else sorted(gated.gated_names()),
    }


def _graphs(model: nn.Module, data: ImageSet, batch: int, eval_batch: int) -> dict[str, dict[str, Any]]:
    """Graphs of training and evaluation by batch size: whole batches, and the last one of an epoch."""
    graphs: dict[str, dict[str, Any]] = {"train": {}, "evaluate": {}}
    counts = {"train": (len(data.train_labels), batch), "evaluate": (len(data.test_labels), eval_batch)}
    for kind, (count, whole) in counts.items():
        training = kind == "train"
        for size in sorted({min(whole, count), count % whole} - {0}):
            if training and size == 1:
                raise ExportError(
                    f"{count} images leave a last batch of one, which batch norm cannot take; change batch"
                )
            graphs[kind][str(size)] = lower_step(model, data.image_shape, size, training)
    return graphs


def _state(model: nn.Module) -> dict[str, np.ndarray]:
    """Parameters and statistics; ranges and counters of batches are the runtime's own."""
    layers = [name for name, module in model.named_modules() if isinstance(module, QLayer)]
    owned = {f"{name}.{leaf}" for name in layers for leaf in ("running_low", "running_span", "batches")}
    return {
        name: tensor.detach().numpy()
        for name, tensor in model.state_dict().items()
        if name not in owned and not name.endswith(("num_batches_tracked", RANGES))
    }


def _data(data: ImageSet) -> dict[str, Any]:
    """Where a job has its images, and how they are scaled and augmented."""
    return {
        **{key: f"data/{key}.npy" for key in IMAGES},
        "full_scale": data.full_scale,
        "mean": list(data.mean),
        "std": list(data.std),
        "shift": data.shift,
        "flip": data.flip,
    }
