"""Job files: a training run as data, exported on a workstation and run on the board.

A job is a zip archive of ``manifest.json`` (format, version, length and SHA-256 of every other member), ``job.json``
(recipe, layers, graphs, names of tensors) and ``.npy`` members (data set, initial state).  Nothing in it is code, and
nothing is unpickled: ``.npy`` headers are matched against one fixed form.  Everything is checked before anything is
run; whatever is wrong ends in a :class:`JobError` that names it.

A graph is a list of nodes in order of execution: ``{"op", "in", "out", "shapes", "attributes"}``.  Operands are names:
``x`` and ``y`` (images float32 (N, C, H, W), labels int64 (N,)), ``state:NAME`` (a parameter or buffer), or a name that
an earlier node has given.  :mod:`host.board.operations` lists the operations.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from host.arrays import Array
from host.board.gate_decisions import Gates
from host.board.operations import OPERATIONS, JobError
from hw.files import replaced

FORMAT, VERSION = "fractrain-job", 2
MAX_FILE = 1 << 31  #: bytes of an archive, and of its members together
MAX_MEMBERS = 8192
MAX_JSON = 1 << 26
MAX_NODES = 20_000
MAX_ELEMENTS = 1 << 27  #: of one tensor
MAX_GRAPH_ELEMENTS = 1 << 30  #: of all values of a graph
MAX_OPERANDS = 256  #: of one node
MAX_STEPS = 100_000_000


_DTYPES: dict[str, np.dtype[Any]] = {"<f4": np.dtype("<f4"), "<i8": np.dtype("<i8"), "|u1": np.dtype("|u1")}
_NPY = re.compile(
    rb"\{'descr': '(<f4|<i8|\|u1)', 'fortran_order': False, 'shape': (\((?:\d{1,10}, ?)*(?:\d{1,10},?)?\)), \} *\n"
)
_MEMBER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,200}(?:/[A-Za-z0-9_][A-Za-z0-9_.\-]{0,200}){0,3}")
_NAME = re.compile(r"[A-Za-z_%][\w.%:\-]{0,200}")


@dataclass(frozen=True)
class Node:
    """One operation: names of operands and results, shapes of the results, and checked attributes."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Graph:
    """What one batch size computes.

    Attributes:
        batch: images per step.
        nodes: in order of execution.
        loss, logits, cost: names of values; an evaluation graph has no loss, and only the training graph of a gated
            network has a cost (percent of float32).
        gradients: parameter -> value that is its gradient.
        buffers: buffer -> value that replaces it.
    """

    batch: int
    nodes: tuple[Node, ...]
    logits: str
    loss: str | None
    gradients: Mapping[str, str]
    buffers: Mapping[str, str]
    cost: str | None = None


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
        recipe: settings of the training, see :data:`RECIPE`.
        layers: by number.
        state: parameter and buffer name -> initial value.
        parameters: names in the optimizer's order.
        gates: what the gates of a gated network choose from.
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


# -- writing ------------------------------------------------------------------------------------------------------


def npy_bytes(array: Array) -> bytes:
    """A ``.npy`` file (version 1.0, C order) of a float32, int64 or uint8 array."""
    kinds = {"f4": "<f4", "i8": "<i8", "u1": "|u1"}
    key = array.dtype.str[1:]
    if key not in kinds:
        raise ValueError(f"a job holds float32, int64 and uint8 arrays, not {array.dtype}")
    shape = "(" + "".join(f"{n}, " for n in array.shape).rstrip(" ") + ")"
    if array.ndim != 1:
        shape = "(" + ", ".join(map(str, array.shape)) + ")"
    header = f"{{'descr': '{kinds[key]}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(10 + len(header) + 1) % 64) + "\n"
    data = np.ascontiguousarray(array).astype(_DTYPES[kinds[key]], copy=False).tobytes()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


def write_job(path: Path, document: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a job file in one step; the same contents give the same bytes.

    Args:
        path: of the archive.
        document: what becomes ``job.json``.
        arrays: member name (ending in ``.npy``) -> array.
    """
    members = {name: npy_bytes(array) for name, array in arrays.items()}
    members["job.json"] = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    write_members(path, members)


def write_members(path: Path, members: Mapping[str, bytes]) -> None:
    """Write an archive of the given members and their manifest in one step."""
    table = {n: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in sorted(members.items())}
    manifest = json.dumps({"format": FORMAT, "version": VERSION, "members": table}, sort_keys=True).encode()
    with replaced(path) as scratch, zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in [("manifest.json", manifest), *sorted(members.items())]:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)


# -- reading ------------------------------------------------------------------------------------------------------


def parse_npy(data: bytes, name: str) -> Array:
    """Array of a ``.npy`` file of the one form that :func:`npy_bytes` writes.

    Raises:
        JobError: any other form, or a length that differs from the shape.
    """
    if data[:8] != b"\x93NUMPY\x01\x00" or len(data) < 10:
        raise JobError(f"{name} is not a .npy file of version 1.0; export the job again")
    size = int.from_bytes(data[8:10], "little")
    match = _NPY.fullmatch(data[10 : 10 + size])
    if match is None:
        raise JobError(f"{name} has a header other than plain float32, int64 or uint8 in C order; export the job again")
    dtype = _DTYPES[match[1].decode()]
    shape = tuple(int(n) for n in re.findall(rb"\d+", match[2]))
    if len(shape) > 8 or math.prod(shape) > MAX_ELEMENTS * 8:
        raise JobError(f"{name} has the shape {shape}, beyond what a job may hold")
    if math.prod(shape) * dtype.itemsize != len(data) - 10 - size:
        raise JobError(f"{name} has {len(data) - 10 - size} bytes for shape {shape} of {dtype}; export the job again")
    return np.frombuffer(data, dtype=dtype, offset=10 + size).reshape(shape)


def parse_json(data: bytes, name: str) -> Any:
    """Strict JSON: no NaN, no numbers of more than 20 digits, no repeated keys.

    Raises:
        JobError: anything else.
    """

    def refuse(text: str) -> Any:
        raise ValueError(f"the number {text[:30]}")

    def integer(text: str) -> int:
        if len(text) > 20:
            refuse(text)
        return int(text)

    def number(text: str) -> float:
        value = float(text) if len(text) <= 40 else math.inf
        if not math.isfinite(value):
            refuse(text)
        return value

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            raise ValueError("a repeated key")
        return found

    if len(data) > MAX_JSON:
        raise JobError(f"{name} has {len(data)} bytes, more than {MAX_JSON}")
    try:
        return json.loads(data, parse_constant=refuse, parse_int=integer, parse_float=number, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as e:
        raise JobError(f"{name} is not valid JSON ({e}); export the job again") from e


def read_members(path: Path) -> tuple[dict[str, bytes], str]:
    """Members of a job file, each checked against the manifest, and the manifest's SHA-256.

    Raises:
        JobError: not a zip, another format or version, or a member that is missing, extra, too large or changed.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE:
            raise JobError(f"{path.name} has {size} bytes, more than {MAX_FILE}")
        blob = path.read_bytes()
    except OSError as e:
        raise JobError(f"job {path} cannot be read: {e.strerror or e}") from e
    return members_of(blob, path.name)


def members_of(blob: bytes, name: str) -> tuple[dict[str, bytes], str]:
    """As :func:`read_members`, of an archive in memory."""
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            infos = archive.infolist()
            if len(infos) > MAX_MEMBERS or sum(i.file_size for i in infos) > MAX_FILE:
                raise JobError(
                    f"{name} holds {len(infos)} members of {sum(i.file_size for i in infos)} bytes: too much"
                )
            if len({i.filename for i in infos}) != len(infos):
                raise JobError(f"{name} holds a member twice; export the job again")
            found = {}
            for info in infos:
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
                    raise JobError(f"{name}: member {info.filename!r} is encrypted or oddly compressed")
                with archive.open(info) as stream:
                    data = stream.read(info.file_size + 1)
                if len(data) != info.file_size:
                    raise JobError(f"{name}: member {info.filename!r} is longer than it says")
                found[info.filename] = data
    except JobError:
        raise
    except Exception as e:  # zipfile raises struct.error, zlib.error, EOFError and more on broken archives
        raise JobError(f"{name} is not an intact zip archive ({type(e).__name__}: {e}); copy or export it again") from e
    if "manifest.json" not in found:
        raise JobError(f"{name} has no manifest.json; it is not a job file")
    raw = found.pop("manifest.json")
    manifest = _mapping(parse_json(raw, "manifest.json"), "manifest.json")
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise JobError(
            f"{name} is {manifest.get('format')!r} version {manifest.get('version')!r}, this program reads {FORMAT!r} "
            f"version {VERSION}; export the job with the same release"
        )
    table = _mapping(manifest.get("members"), "members of manifest.json")
    if set(table) != set(found):
        odd = sorted(set(table) ^ set(found))[0]
        raise JobError(f"{name}: member {odd!r} is in the archive or in the manifest, not in both")
    for member, data in found.items():
        row = _mapping(table[member], f"manifest row of {member}")
        if row.get("bytes") != len(data) or row.get("sha256") != hashlib.sha256(data).hexdigest():
            raise JobError(f"{name}: member {member} differs from its checksum; copy or export the job again")
        if not _MEMBER.fullmatch(member):
            raise JobError(f"{name}: {member!r} is no name for a member")
    return found, hashlib.sha256(raw).hexdigest()


def load_job(path: Path) -> Job:
    """Read and check a job file.

    Raises:
        JobError: naming what is wrong; nothing has been run or written.
    """
    members, digest = read_members(path)
    return build_job(members, digest)


# -- checks -------------------------------------------------------------------------------------------------------


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise JobError(f"{what} is {type(value).__name__}, not an object")
    return value


def _get(mapping: dict[str, Any], key: str, kind: type | tuple[type, ...], what: str) -> Any:
    if key not in mapping:
        raise JobError(f"{what} lacks {key!r}")
    value = mapping[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise JobError(f"{what}: {key} is {value!r:.60}, of a wrong type")
    return value


def _integers(value: Any, what: str, low: int, high: int, most: int = 64) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > most:
        raise JobError(f"{what} is not a list of at most {most} integers")
    for n in value:
        if not isinstance(n, int) or isinstance(n, bool) or not low <= n <= high:
            raise JobError(f"{what} holds {n!r:.40}, outside {low}..{high}")
    return tuple(value)


#: recipe key -> (type, least, greatest) or allowed words; lists of integers have the type list
RECIPE: dict[str, tuple[Any, ...]] = {
    "schedule": ("static", "pfq", "cyclic", "manual", "dfq"),
    "lr_schedule": ("cosine", "steps"),
    "stages": (list,),
    "starts": (list, 0, 1_000_000),
    "deadlines": (list, 0, 1_000_000),
    "milestones": (list,),
    "targets": (list,),
    "beta": (float, 0.0, 1e9),
    "band": (float, 0.0, 1e9),
    "cap": (float, 0.0, 1e9),
    "eps": (float, 0.0, 1e9),
    "alpha": (float, 1e-9, 1.0),
    "window": (int, 1, 100_000),
    "norm_epochs": (int, 1, 100_000),
    "low": (int, 1, 16),
    "high": (int, 1, 16),
    "cycles": (int, 1, 1_000_000),
    "epochs": (int, 1, 1_000_000),
    "batch": (int, 1, 65_536),
    "eval_batch": (int, 1, 65_536),
    "eval_every": (int, 1, 1_000_000),
    "checkpoint_every": (int, 0, 1_000_000_000),
    "lr": (float, 1e-12, 1e6),
    "lr_decay": (float, 0.0, 1e6),
    "momentum": (float, 0.0, 0.999999),
    "weight_decay": (float, 0.0, 1e6),
    "warmup": (float, 0.0, 0.999999),
    "nesterov": (bool,),
    "seed": (int, 0, (1 << 63) - 1),
    "range_momentum": (float, 0.0, 1.0),
}


def _recipe(raw: Any) -> dict[str, Any]:
    recipe = _mapping(raw, "recipe")
    if unknown := sorted(set(recipe) ^ set(RECIPE)):
        raise JobError(f"recipe: {unknown[0]!r} is missing or unknown")
    clean: dict[str, Any] = {}
    for key, rule in RECIPE.items():
        value = recipe[key]
        if isinstance(rule[0], str):
            if value not in rule:
                raise JobError(f"recipe: {key} = {value!r:.60}; use one of {', '.join(rule)}")
        elif key == "stages":
            if not isinstance(value, list) or not 1 <= len(value) <= 1000:
                raise JobError("recipe: stages must be a list of 1 to 1000 precisions")
            value = tuple(_stage(stage) for stage in value)
        elif key in ("milestones", "targets"):
            if not isinstance(value, list) or len(value) > 1000 or not all(_is_number(v) for v in value):
                raise JobError(f"recipe: {key} must be a list of numbers")
            value = tuple(float(v) for v in value)
        elif rule[0] is list:
            value = _integers(value, f"recipe: {key}", rule[1], rule[2], 1000)
        elif rule[0] is bool:
            value = _get(recipe, key, bool, "recipe")
        else:
            if rule[0] is float:
                if not _is_number(value):
                    raise JobError(f"recipe: {key} = {value!r:.60} is not a number")
                value = float(value)
            else:
                value = _get(recipe, key, int, "recipe")
            if not rule[1] <= value <= rule[2]:
                raise JobError(f"recipe: {key} = {value!r:.60} is outside {rule[1]}..{rule[2]}")
        clean[key] = value
    return clean


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _stage(stage: Any) -> tuple[int, ...]:
    widths = _integers(stage, "a stage", 0, 16, 4)
    if len(widths) not in (3, 4) or (0 in widths and any(widths)):
        raise JobError(f"stage {list(widths)} must be 3 or 4 widths of 1..16, or all 0 for float32")
    return widths


def _graph(raw: Any, batch: int, training: bool, scope: dict[str, tuple[int, ...]], job: dict[str, Any]) -> Graph:
    what = f"{'training' if training else 'evaluation'} graph of {batch}"
    graph = _mapping(raw, what)
    nodes = _get(graph, "nodes", list, what)
    if not 1 <= len(nodes) <= MAX_NODES:
        raise JobError(f"{what} has {len(nodes)} nodes; 1 to {MAX_NODES} are allowed")
    known = dict(scope)
    total = 0
    checked = []
    for i, entry in enumerate(nodes):
        where = f"{what}, node {i}"
        node = _mapping(entry, where)
        op = _get(node, "op", str, where)
        if op not in OPERATIONS:
            raise JobError(f"{where}: no operation {op!r:.60}; this release has {', '.join(sorted(OPERATIONS))}")
        rule = OPERATIONS[op]
        inputs, outputs = _get(node, "in", list, where), _get(node, "out", list, where)
        shapes = _get(node, "shapes", list, where)
        fits = 1 <= len(inputs) <= MAX_OPERANDS if rule.inputs is None else len(inputs) == rule.inputs
        if not fits or len(outputs) != rule.outputs or len(shapes) != rule.outputs:
            wanted = f"1 to {MAX_OPERANDS}" if rule.inputs is None else rule.inputs
            raise JobError(f"{where}: {op} takes {wanted} operands and gives {rule.outputs} results")
        for name in inputs:
            if not isinstance(name, str) or name not in known:
                raise JobError(f"{where}: operand {name!r:.60} is not defined before")
        sized = []
        for name, shape in zip(outputs, shapes, strict=True):
            if not isinstance(name, str) or not _NAME.fullmatch(name) or name in known:
                raise JobError(f"{where}: {name!r:.60} cannot name a result, or names another one already")
            size = _integers(shape, f"{where}: shape", 0, MAX_ELEMENTS, 8)
            total += math.prod(size)
            if math.prod(size) > MAX_ELEMENTS or total > MAX_GRAPH_ELEMENTS:
                raise JobError(f"{where}: values become too large; use a smaller batch")
            known[name] = size
            sized.append(size)
        attributes = _attributes(node, rule.attributes, where)
        if "layer" in attributes and attributes["layer"] >= len(job["layers"]):
            raise JobError(f"{where}: there is no layer {attributes['layer']}")
        checked.append(Node(op, tuple(inputs), tuple(outputs), tuple(sized), attributes))

    def value(key: str, shape: tuple[int, ...] | None = None) -> str:
        name = _get(graph, key, str, what)
        if name not in known or (shape is not None and known[name] != shape):
            raise JobError(f"{what}: {key} is {name!r:.60}, which is no value of the right shape")
        return str(name)

    def table(key: str, allowed: set[str]) -> dict[str, str]:
        found = _mapping(graph.get(key), f"{what}: {key}")
        for target, name in found.items():
            if target not in allowed or not isinstance(name, str) or known.get(name) != known[f"state:{target}"]:
                raise JobError(f"{what}: {key} of {target!r:.60} is {name!r:.60}, which does not fit")
        return dict(found)

    parameters = set(job["parameters"])
    gradients = table("gradients", parameters)
    if training and set(gradients) != parameters:
        raise JobError(f"{what} lacks gradients of {sorted(parameters - set(gradients))[0]}")
    return Graph(
        batch,
        tuple(checked),
        value("logits", (batch, job["classes"])),
        value("loss", ()) if training else None,
        gradients,
        table("buffers", {n.removeprefix("state:") for n in scope if n.startswith("state:")} - parameters),
        value("cost", ()) if training and job["gates"] is not None else None,
    )


def _attributes(node: dict[str, Any], rules: Mapping[str, tuple[Any, ...]], where: str) -> dict[str, Any]:
    raw = _mapping(node.get("attributes"), f"{where}: attributes")
    if odd := sorted(set(raw) ^ set(rules)):
        raise JobError(f"{where}: attribute {odd[0]!r:.60} is missing or unknown")
    clean: dict[str, Any] = {}
    for key, (kind, low, high) in rules.items():
        if kind == "ints":
            clean[key] = _integers(raw[key], f"{where}: {key}", low, high, 8)
            continue
        good = _is_number(raw[key]) if kind == "float" else isinstance(raw[key], int) and _is_number(raw[key])
        if not good or not low <= raw[key] <= high:
            raise JobError(f"{where}: {key} = {raw[key]!r:.60} is outside {low}..{high}")
        clean[key] = float(raw[key]) if kind == "float" else raw[key]
    return clean


def _batch_sizes(count: int, batch: int) -> set[int]:
    return {size for size in (min(batch, count), count % batch) if size}


def build_job(members: Mapping[str, bytes], digest: str) -> Job:
    """A job from its members.

    Raises:
        JobError: naming what is wrong.
    """
    if "job.json" not in members:
        raise JobError("the archive lacks job.json; export the job again")
    document = _mapping(parse_json(members["job.json"], "job.json"), "job.json")
    arrays: dict[str, Array] = {}

    def array(member: Any, what: str) -> Array:
        if not isinstance(member, str) or member not in members:
            raise JobError(f"{what} is in member {member!r:.60}, which the archive lacks")
        if member not in arrays:
            arrays[member] = parse_npy(members[member], member)
        return arrays[member]

    recipe = _recipe(document.get("recipe"))
    data = _mapping(document.get("data"), "data")
    images, labels = {}, {}
    for part in ("train", "test"):
        images[part] = array(data.get(f"{part}_images"), f"{part} images")
        labels[part] = array(data.get(f"{part}_labels"), f"{part} labels")
        if images[part].dtype != np.uint8 or images[part].ndim != 4 or 0 in images[part].shape:
            raise JobError(f"{part} images are {images[part].dtype} {images[part].shape}, not uint8 (N, C, H, W)")
        if labels[part].dtype != np.int64 or labels[part].shape != images[part].shape[:1]:
            raise JobError(f"{part} labels are {labels[part].dtype} {labels[part].shape}, not one int64 per image")
    if images["train"].shape[1:] != images["test"].shape[1:]:
        raise JobError("training and test images have different shapes")
    classes = _get(document, "classes", int, "job.json")
    if not 1 <= classes <= 1 << 20:
        raise JobError(f"{classes} classes are outside 1..{1 << 20}")
    for part, values in labels.items():
        if values.min() < 0 or values.max() >= classes:
            raise JobError(f"{part} labels span {values.min()}..{values.max()} with {classes} classes")
    channels, height, width = images["train"].shape[1:]
    statistics = {}
    for key in ("mean", "std"):
        values = _get(data, key, list, "data")
        if len(values) != channels or not all(_is_number(v) and (key == "mean" or v > 0) for v in values):
            raise JobError(f"data: {key} must be {channels} numbers{' above zero' if key == 'std' else ''}")
        statistics[key] = tuple(float(v) for v in values)
    full_scale = _get(data, "full_scale", (int, float), "data")
    if not 1e-30 < full_scale < 1e30:
        raise JobError(f"data: full_scale = {full_scale!r:.60} must be a number above zero")
    shift = _get(data, "shift", int, "data")
    if not 0 <= shift <= min(height, width):
        raise JobError(f"data: shift {shift} is outside 0..{min(height, width)}")
    layers = _layers(document.get("layers"))
    gates = _gates(document.get("gates"), recipe)
    state = {}
    for name, member in _mapping(document.get("state"), "state").items():
        if not _NAME.fullmatch(name) or ":" in name:
            raise JobError(f"{name!r:.60} is no name for a parameter or buffer")
        state[name] = array(member, f"state {name}")
        if state[name].dtype != np.float32 or not np.isfinite(state[name]).all():
            raise JobError(f"state {name} is {state[name].dtype}, or holds NaN or infinity")
    parameters = _get(document, "parameters", list, "job.json")
    if not parameters or any(not isinstance(n, str) or n not in state for n in parameters):
        raise JobError("parameters must name members of the state")
    if len(set(parameters)) != len(parameters):
        raise JobError("a parameter is listed twice")
    batches = {"train": recipe["batch"], "evaluate": recipe["eval_batch"]}
    counts = {"train": len(labels["train"]), "evaluate": len(labels["test"])}
    if -(-counts["train"] // recipe["batch"]) * recipe["epochs"] > MAX_STEPS:
        raise JobError(f"the recipe asks for more than {MAX_STEPS} steps")
    graphs: dict[str, dict[int, Graph]] = {"train": {}, "evaluate": {}}
    raw_graphs = _mapping(document.get("graphs"), "graphs")
    facts = {"layers": layers, "parameters": parameters, "classes": classes, "gates": gates}
    for kind, found in graphs.items():
        table = _mapping(raw_graphs.get(kind), f"graphs: {kind}")
        wanted = _batch_sizes(counts[kind], batches[kind])
        if set(table) != {str(n) for n in wanted}:
            raise JobError(f"graphs: {kind} needs batch sizes {sorted(wanted)}, not {sorted(table)!r:.80}")
        for size in wanted:
            scope = {f"state:{n}": v.shape for n, v in state.items()}
            scope |= {"x": (size, channels, height, width), "y": (size,)}
            found[size] = _graph(table[str(size)], size, kind == "train", scope, facts)
    try:
        from host.training.precision_schedule import make_schedule

        make_schedule(recipe)
    except ValueError as e:
        raise JobError(f"recipe: {e}") from e
    return Job(
        recipe,
        layers,
        state,
        tuple(parameters),
        gates,
        graphs["train"],
        graphs["evaluate"],
        images["train"],
        labels["train"],
        images["test"],
        labels["test"],
        float(full_scale),
        statistics["mean"],
        statistics["std"],
        shift,
        _get(data, "flip", bool, "data"),
        digest,
    )


def _layers(raw: Any) -> tuple[Layer, ...]:
    if not isinstance(raw, list) or not 1 <= len(raw) <= 10_000:
        raise JobError("layers must be a list of 1 to 10000 layers")
    layers = []
    for i, entry in enumerate(raw):
        layer = _mapping(entry, f"layer {i}")
        name = _get(layer, "name", str, f"layer {i}")
        if not _NAME.fullmatch(name):
            raise JobError(f"layer {i}: {name!r:.60} is no name")
        fixed = None if layer.get("fixed") is None else _stage(layer["fixed"])
        layers.append(Layer(name, i, fixed))
    return tuple(layers)


def _gates(raw: Any, recipe: dict[str, Any]) -> Gates | None:
    if (raw is not None) != (recipe["schedule"] == "dfq"):
        raise JobError("gates belong to schedule 'dfq', and it to them")
    if raw is None:
        return None
    gates = _mapping(raw, "gates")
    options = _get(gates, "options", list, "gates")
    if not 2 <= len(options) <= 64:
        raise JobError(f"gates choose among 2 to 64 options, not {len(options)}")
    pairs = [_integers(option, "an option of the gates", 1, 16, 2) for option in options]
    if any(len(pair) != 2 for pair in pairs):
        raise JobError("an option of the gates is a pair of widths, activation and gradient")
    (bits,) = _integers([gates.get("weight_bits")], "gates: weight_bits", 1, 16)
    return Gates(tuple((a, g) for a, g in pairs), bits, recipe["beta"], recipe["band"], recipe["cap"])
