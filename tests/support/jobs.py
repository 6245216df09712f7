"""What tests of jobs share: a job's run beside PyTorch's, and jobs with places changed at random."""

from __future__ import annotations

import copy
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from host.board.job import build_job, load_job
from host.board.job_archive import read_members
from host.board.operations import OPERATIONS, JobError
from host.board.runtime import RunResult, Training, run_job
from host.devices.device import open_device
from host.driver.fabric_engine import FabricEngine
from host.exact_engine import ExactEngine
from hw.design import load_design
from sw_model.data.images import ImageSet
from sw_model.train.folder import load_checkpoint
from sw_model.train.loop import train
from sw_model.train.pretrained import RANGES
from sw_model.train.recipe import TrainConfig


def colours(count: int) -> ImageSet:
    """A small set of images in four colours."""
    rng = np.random.default_rng(4)
    images = rng.integers(0, 256, (count + 8, 3, 8, 8)).astype(np.uint8)
    labels = np.arange(count + 8) % 4
    images[:, 0] = (images[:, 0] // 4) + (48 * labels)[:, None, None].astype(np.uint8)
    return ImageSet(
        images[:count],
        labels[:count],
        images[count:],
        labels[count:],
        tuple("abcd"),
        255.0,
        (0.5,) * 3,
        (0.25,) * 3,
        1,
        True,
    )


SAME_ROW = ("bits", "stage", "loss", "train_accuracy", "test_accuracy", "target")


def same_training(
    config: TrainConfig, path: Path, folder: Path, data: ImageSet | None = None, design: str = "", device: str = "numpy"
) -> RunResult:
    """Train by PyTorch in software and by the job on a device, and compare all that changes to the bit."""
    exact = ExactEngine(load_design(design) if design else None)
    train(config, exact, out=folder / "eager", data=data)
    eager = load_checkpoint(folder / "eager" / "checkpoint.pt")
    engine = exact if device == "numpy" else FabricEngine(open_device(device, exact.design), keep_rows=False)
    board = run_job(load_job(path), engine, folder / "run")
    for ours, theirs in zip(board.history, eager["history"], strict=True):
        assert {k: ours[k] for k in SAME_ROW} == {k: theirs[k] for k in SAME_ROW}
        assert ours["cp"] in (None, theirs["cp"])
    with np.load(folder / "run" / "checkpoint.npz") as found:
        names = [n for n in eager["model"] if f"state.{n}" in found.files]
        assert len(names) == sum(n.startswith("state.") for n in found.files)
        for name in names:
            assert np.array_equal(found[f"state.{name}"], eager["model"][name].numpy()), name
        tops = [value.numpy() for name, value in eager["model"].items() if name.endswith(RANGES)]
        assert np.array_equal(found["tops"], np.concatenate([*tops, np.zeros(0)]))
    return board


def refused(members: dict[str, bytes]) -> str:
    with pytest.raises(JobError) as caught:
        build_job(members, "")
    return str(caught.value)


_STRANGE: list[Any] = [
    None, True, -1, 0, 1, 2, 17, 1 << 31, 1 << 63, 10**19, 0.0, -0.5, 1e300, "", "x", "y", "state:", "%1", "eval", "__class__",
    [], [[]], [0], [1, 2, 3, 4], [1 << 26, 1 << 26], {}, {"a": 1}, "../../etc/passwd", "relu", [8, 8, 8],
]  # fmt: skip


def _mutate(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one or two places changed."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 2)):
        holder: Any = value
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = rng.choice(keys)
            inner = holder[key]
            if isinstance(inner, dict | list) and inner and rng.random() < 0.9:
                holder = inner
                continue
            action = rng.random()
            if action < 0.15:
                del holder[key]
            elif action < 0.3 and isinstance(holder, list):
                holder.insert(key, rng.choice(_STRANGE))
            elif action < 0.5 and isinstance(inner, int | float) and not isinstance(inner, bool):
                holder[key] = inner + rng.choice((-1, 1, 0.5, 1 << 20))
            elif action < 0.7 and isinstance(inner, str):
                names = [f"%{rng.randrange(120)}", "x", "y", "state:stem.weight", rng.choice(sorted(OPERATIONS))]
                holder[key] = rng.choice(names)
            else:
                holder[key] = rng.choice(_STRANGE)
            break
    return value


def fuzz(path: Path, count: int, seed: int, *parts: str) -> Counter[str]:
    """What becomes of ``count`` jobs with one or two places changed, in the usual parts or in ``parts``; each is refused, or
    loads and runs a step."""
    members, _ = read_members(path)
    document = json.loads(members["job.json"])
    rng = random.Random(seed)
    outcome: Counter[str] = Counter()
    for _ in range(count):
        other = dict(document)
        part = rng.choice(("graphs", "graphs", "graphs", "recipe", "data", "layers", "state", "parameters", "whole", *parts))
        if part == "whole":
            other = _mutate(document, rng)
        else:
            other[part] = _mutate(document[part], rng)
        changed = dict(members)
        if rng.random() < 0.1:
            name = rng.choice(sorted(n for n in members if n.endswith(".npy")))
            data = bytearray(members[name])
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(min(len(data), 300))] = rng.randrange(256)
            changed[name] = bytes(data)
        changed["job.json"] = json.dumps(other).encode()
        begun = time.monotonic()
        try:
            job = build_job(changed, "")
            outcome["loaded"] += 1
            if outcome["loaded"] % 4 == 0 or count <= 400:
                state = Training(job, ExactEngine())
                state.train_step()
                outcome["ran"] += 1
        except JobError as e:
            assert len(str(e)) > 10
            outcome["refused"] += 1
        assert time.monotonic() - begun < 20
    return outcome
