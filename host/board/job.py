"""Job files: a training run as data, exported on a workstation and run on the board.

A job is a zip archive of ``manifest.json`` (format, version, length and SHA-256 of every other member), ``job.json``
(recipe, layers, graphs, names of tensors) and ``.npy`` members (data set, initial state).  Nothing in it is code, and
nothing is unpickled: ``.npy`` headers are matched against one fixed form.  Everything is checked before anything is
run; whatever is wrong ends in a :class:`JobError` that names it.

:mod:`host.board.job_archive` reads the members, :mod:`host.board.job_settings` and :mod:`host.board.job_graph` check them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from host.arrays import Array
from host.board.gate_decisions import Gates
from host.board.job_archive import mapping, parse_json, parse_npy, read_members
from host.board.job_graph import NAME, Facts, Graph, graph_of
from host.board.job_settings import checked_gates, checked_recipe, checked_widths, get, is_number
from host.board.job_step import JobStep, checked_step
from host.board.operations import JobError
from host.numerics import ceil_div

MAX_STEPS = 100_000_000


@dataclass(frozen=True)
class Layer:
    """A layer with quantized products: its name, its number (part of the random keys), and its widths whenever the
    schedule quantizes, if it does not follow the schedule (all 0: it stays float32)."""

    name: str
    index: int
    fixed: tuple[int, ...] | None


@dataclass(frozen=True)
class Job:
    """A checked job.

    Attributes:
        recipe: settings of the training, see :data:`host.board.job_settings.RECIPE`.
        layers: by number.
        state: parameter and buffer name -> initial value.
        parameters: names in the optimizer's order.
        gates: what the gates of a gated network choose from.
        step: the backbone that runs in passes of the fabric; None if the host normalises.
        train, evaluate: graphs by batch size.
        train_images, test_images: uint8 (N, C, H, W); train_labels, test_labels: int64 (N,).
        full_scale, mean, std, shift, flip: preparation of images, as in the software model's data sets.
        digest: SHA-256 of the manifest, which identifies the job in checkpoints.
    """

    recipe: Mapping[str, Any]
    layers: tuple[Layer, ...]
    state: Mapping[str, Array]
    parameters: tuple[str, ...]
    gates: Gates | None
    step: JobStep | None
    train: Mapping[int, Graph]
    evaluate: Mapping[int, Graph]
    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array
    full_scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shift: int
    flip: bool
    digest: str


def load_job(path: Path) -> Job:
    """Read and check a job file.

    Raises:
        JobError: naming what is wrong; nothing has been run or written.
    """
    members, digest = read_members(path)
    return build_job(members, digest)


class _Arrays:
    """Arrays of the members, each parsed once."""

    def __init__(self, members: Mapping[str, bytes]) -> None:
        self._members = members
        self._parsed: dict[str, Array] = {}

    def get(self, member: Any, what: str) -> Array:
        if not isinstance(member, str) or member not in self._members:
            raise JobError(f"{what} is in member {member!r:.60}, which the archive lacks")
        if member not in self._parsed:
            self._parsed[member] = parse_npy(self._members[member], member)
        return self._parsed[member]


def build_job(members: Mapping[str, bytes], digest: str) -> Job:
    """A job from its members.

    Raises:
        JobError: naming what is wrong.
    """
    if "job.json" not in members:
        raise JobError("the archive lacks job.json; export the job again")
    document = mapping(parse_json(members["job.json"], "job.json"), "job.json")
    arrays = _Arrays(members)
    recipe = checked_recipe(document.get("recipe"))
    classes = get(document, "classes", int, "job.json")
    if not 1 <= classes <= 1 << 20:
        raise JobError(f"{classes} classes are outside 1..{1 << 20}")
    data = mapping(document.get("data"), "data")
    images, labels = _images(data, arrays, classes)
    layers = _layers(document.get("layers"))
    gates = checked_gates(document.get("gates"), recipe)
    state, parameters = _state(document, arrays)
    if ceil_div(len(labels["train"]), recipe["batch"]) * recipe["epochs"] > MAX_STEPS:
        raise JobError(f"the recipe asks for more than {MAX_STEPS} steps")
    scope = {f"state:{name}": value.shape for name, value in state.items()}
    shape = images["train"].shape[1:]
    step = checked_step(document.get("step"), recipe, [layer.name for layer in layers], gates, shape)
    facts = Facts(len(layers), parameters, classes, gates is not None, step)
    graphs = mapping(document.get("graphs"), "graphs")
    sizes = {
        "train": _batch_sizes(len(labels["train"]), recipe["batch"]),
        "evaluate": _batch_sizes(len(labels["test"]), recipe["eval_batch"]),
    }
    found = {kind: _graphs(graphs.get(kind), kind, sizes[kind], shape, scope, facts) for kind in sizes}
    return Job(
        recipe,
        layers,
        state,
        parameters,
        gates,
        step,
        found["train"],
        found["evaluate"],
        images["train"],
        labels["train"],
        images["test"],
        labels["test"],
        *_preparation(data, shape),
        digest,
    )


def _batch_sizes(count: int, batch: int) -> set[int]:
    return {size for size in (min(batch, count), count % batch) if size}


def _images(data: dict[str, Any], arrays: _Arrays, classes: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """Images and labels by part, "train" and "test"."""
    images, labels = {}, {}
    for part in ("train", "test"):
        images[part] = arrays.get(data.get(f"{part}_images"), f"{part} images")
        labels[part] = arrays.get(data.get(f"{part}_labels"), f"{part} labels")
        if images[part].dtype != np.uint8 or images[part].ndim != 4 or 0 in images[part].shape:
            raise JobError(f"{part} images are {images[part].dtype} {images[part].shape}, not uint8 (N, C, H, W)")
        if labels[part].dtype != np.int64 or labels[part].shape != images[part].shape[:1]:
            raise JobError(f"{part} labels are {labels[part].dtype} {labels[part].shape}, not one int64 per image")
        if labels[part].min() < 0 or labels[part].max() >= classes:
            raise JobError(f"{part} labels span {labels[part].min()}..{labels[part].max()} with {classes} classes")
    if images["train"].shape[1:] != images["test"].shape[1:]:
        raise JobError("training and test images have different shapes")
    return images, labels


def _preparation(
    data: dict[str, Any], shape: tuple[int, ...]
) -> tuple[float, tuple[float, ...], tuple[float, ...], int, bool]:
    """Full scale, mean, deviation, shift and flip of images (C, H, W)."""
    channels, height, width = shape
    full_scale = get(data, "full_scale", (int, float), "data")
    if not 1e-30 < full_scale < 1e30:
        raise JobError(f"data: full_scale = {full_scale!r:.60} must be a number above zero")
    statistics = []
    for key in ("mean", "std"):
        values = get(data, key, list, "data")
        if len(values) != channels or not all(is_number(v) and (key == "mean" or v > 0) for v in values):
            raise JobError(f"data: {key} must be {channels} numbers{' above zero' if key == 'std' else ''}")
        statistics.append(tuple(float(v) for v in values))
    shift = get(data, "shift", int, "data")
    if not 0 <= shift <= min(height, width):
        raise JobError(f"data: shift {shift} is outside 0..{min(height, width)}")
    return float(full_scale), statistics[0], statistics[1], shift, get(data, "flip", bool, "data")


def _state(document: dict[str, Any], arrays: _Arrays) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Parameters and buffers by name, and the names of the parameters."""
    state = {}
    for name, member in mapping(document.get("state"), "state").items():
        if not NAME.fullmatch(name) or ":" in name:
            raise JobError(f"{name!r:.60} is no name for a parameter or buffer")
        state[name] = arrays.get(member, f"state {name}")
        if state[name].dtype != np.float32 or not np.isfinite(state[name]).all():
            raise JobError(f"state {name} is {state[name].dtype}, or holds NaN or infinity")
    parameters = get(document, "parameters", list, "job.json")
    if not parameters or any(not isinstance(n, str) or n not in state for n in parameters):
        raise JobError("parameters must name members of the state")
    if len(set(parameters)) != len(parameters):
        raise JobError("a parameter is listed twice")
    return state, tuple(parameters)


def _graphs(
    raw: Any, kind: str, sizes: set[int], image: tuple[int, ...], state: dict[str, tuple[int, ...]], facts: Facts
) -> dict[int, Graph]:
    """Graphs of a kind by batch size."""
    table = mapping(raw, f"graphs: {kind}")
    if set(table) != {str(n) for n in sizes}:
        raise JobError(f"graphs: {kind} needs batch sizes {sorted(sizes)}, not {sorted(table)!r:.80}")
    return {
        n: graph_of(table[str(n)], n, kind == "train", {**state, "x": (n, *image), "y": (n,)}, facts) for n in sizes
    }


def _layers(raw: Any) -> tuple[Layer, ...]:
    if not isinstance(raw, list) or not 1 <= len(raw) <= 10_000:
        raise JobError("layers must be a list of 1 to 10000 layers")
    layers = []
    for i, entry in enumerate(raw):
        layer = mapping(entry, f"layer {i}")
        name = get(layer, "name", str, f"layer {i}")
        if not NAME.fullmatch(name):
            raise JobError(f"layer {i}: {name!r:.60} is no name")
        fixed = None if layer.get("fixed") is None else checked_widths(layer["fixed"])
        layers.append(Layer(name, i, fixed))
    return tuple(layers)
