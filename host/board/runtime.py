"""Runs a job: trains, evaluates, logs, checkpoints and resumes; NumPy and the standard library only.

A run is a function of the job and the device's arithmetic, which is the same everywhere: order, augmentation and every
rounding come from the seed and counters.  The run folder holds ``log.jsonl`` (a line per step), ``metrics.csv`` (a row
per epoch), ``checkpoint.npz`` and ``result.json``; all but the log are replaced in one step.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from host.arrays import Array
from host.board.job import Job
from host.board.job_graph import Graph
from host.board.layer_products import LayerProducts, LayerState
from host.board.memory_plan import check_job_memory
from host.board.operations import OPERATIONS, RESULT_SHAPE, JobError
from host.board.step_passes import BackbonePasses
from host.driver.pass_engine import pass_engine
from host.numerics import ceil_div
from host.operands import Engine
from host.training import batches
from host.training.descent import all_descended
from host.training.precision_schedule import learning_rate, make_schedule
from hw.files import write_atomically

JOB_CHECKPOINT_FORMAT = 4


@dataclass(frozen=True)
class RunResult:
    """What a run has come to.

    Attributes:
        test_accuracy, best_accuracy: shares of test images classified rightly, 0..1; NaN-free, 0 before any test.
        history: a row per epoch.
        steps: done in total.
        finished: False if stopped early.
        seconds: of this call.
        counters: of the engine in this call.
    """

    test_accuracy: float
    best_accuracy: float
    history: list[dict[str, Any]]
    steps: int
    finished: bool
    seconds: float
    counters: dict[str, int] = field(default_factory=dict)


def execute(graph: Graph, values: dict[str, Array], performers: Sequence[object]) -> dict[str, Array]:
    """Run a graph.

    Args:
        graph: checked by :func:`host.board.job.load_job`.
        values: ``x``, ``y`` and ``state:NAME`` entries; results are added.
        performers: what has methods of the names of the operations that are no functions.

    Returns:
        ``values``, without intermediate ones that are not used again.

    Raises:
        JobError: a node cannot be computed, or gives another shape than the job says.
    """
    last: dict[str, int] = {}
    for i, node in enumerate(graph.nodes):
        for name in (*node.inputs, *node.outputs):
            last[name] = i
    for name in (
        graph.logits,
        graph.loss or graph.logits,
        graph.cost or graph.logits,
        *graph.gradients.values(),
        *graph.buffers.values(),
    ):
        last[name] = len(graph.nodes)
    for i, node in enumerate(graph.nodes):
        operands = [values[name] for name in node.inputs]
        try:
            wanted = node.shapes[0]
            shape_of = RESULT_SHAPE.get(node.op)
            given = tuple(node.attributes.get("shape", wanted)) if shape_of is None else wanted
            if given != wanted or (shape_of is not None and shape_of(*(o.shape for o in operands)) != wanted):
                raise JobError(f"operands {[o.shape for o in operands]} do not give {wanted}")
            if any(o.dtype.kind == "i" for o in operands) and not node.op.startswith("nll"):
                raise JobError("labels are no operand of arithmetic")
            run = OPERATIONS[node.op].run or next(getattr(p, node.op) for p in performers if hasattr(p, node.op))
            with np.errstate(all="ignore"):
                found = run(*operands, **node.attributes)
        except (ValueError, TypeError, IndexError, MemoryError, ZeroDivisionError, OverflowError) as e:
            raise JobError(f"node {i} ({node.op}, {', '.join(node.outputs)}): {e}") from e
        results = found if isinstance(found, tuple) else (found,)
        for name, shape, value in zip(node.outputs, node.shapes, results, strict=True):
            if value.shape != shape or value.dtype != np.float32:
                raise JobError(f"node {i} ({node.op}): {name} is {value.dtype} {value.shape}, the job says {shape}")
            values[name] = value
        for name in {*node.inputs, *node.outputs}:
            if last[name] == i and not name.startswith("state:") and name not in ("x", "y"):
                del values[name]
    return values


class Training:
    """State of a run between steps.

    Args:
        job: what to train.
        engine: multiplies codes.
    """

    def __init__(self, job: Job, engine: Engine) -> None:
        self.job, self.engine = job, engine
        self.state = {name: np.array(value) for name, value in job.state.items()}
        self.momentum: dict[str, Array] = {}
        self.layers = [LayerState(layer.name) for layer in job.layers]
        fixed = {layer.index: layer.fixed for layer in job.layers if layer.fixed is not None}
        recipe = job.recipe
        seed, momentum = recipe["seed"], recipe["range_momentum"]
        self.products = LayerProducts(engine, self.layers, fixed, seed, momentum, job.gates)
        self.passes: BackbonePasses | None = None
        if job.step is not None:
            widths = self.products.layer_widths
            self.passes = BackbonePasses(job.step, pass_engine(engine), widths, seed, momentum, job.gates)
        self.schedule = make_schedule(recipe)
        self.epoch, self.step, self.seen, self.right = 0, 0, 0, 0
        self.loss_sum, self.cost_sum = 0.0, 0.0
        self.history: list[dict[str, Any]] = []
        self.steps_per_epoch = ceil_div(len(job.train_labels), recipe["batch"])

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * int(self.job.recipe["epochs"])

    @property
    def global_step(self) -> int:
        """Steps done."""
        return self.epoch * self.steps_per_epoch + self.step

    @property
    def target(self) -> float | None:
        """Cost that gates aim at now, percent of float32; None without gates."""
        targets = self.job.recipe["targets"]
        return float(targets[self.schedule.stage]) if targets else None

    # -- data -----------------------------------------------------------------------------------------------------

    def _normalised(self, images: Array) -> Array:
        return batches.normalised(images, self.job.full_scale, self.job.mean, self.job.std)

    def train_batch(self, epoch: int, index: int) -> tuple[Array, Array]:
        """Shuffled, augmented batch: float32 (n, C, H, W) and int64 (n,); a function of seed, epoch and index."""
        job, seed = self.job, self.job.recipe["seed"]
        _, chosen = next(batches.epoch_batches(len(job.train_labels), job.recipe["batch"], seed, epoch, index))
        images = batches.augmented(job.train_images[chosen], seed, epoch, index, shift=job.shift, flip=job.flip)
        return self._normalised(images), job.train_labels[chosen]

    def test_batches(self) -> Iterator[tuple[Array, Array]]:
        """Test batches in file order."""
        batch = self.job.recipe["eval_batch"]
        for first in range(0, len(self.job.test_labels), batch):
            part = slice(first, first + batch)
            yield self._normalised(self.job.test_images[part]), self.job.test_labels[part]

    # -- steps ----------------------------------------------------------------------------------------------------

    def _execute(
        self, graph: Graph, x: Array, y: Array, widths: tuple[int, ...], number: int, training: bool
    ) -> dict[str, Array]:
        """Run a graph as step ``number`` at a precision; see :func:`execute`."""
        self.products.begin(widths, number, training=training, target=self.target or 0.0)
        performers: list[object] = [self.products]
        if self.passes is not None:
            self.passes.begin(number, training)
            performers.append(self.passes)
        state = {f"state:{name}": value for name, value in self.state.items()}
        return execute(graph, {"x": x, "y": y, **state}, performers)

    def train_step(self) -> dict[str, Any]:
        """One step; returns its log line.

        Raises:
            JobError: the loss or a gradient is not finite, or a node cannot be computed.
        """
        recipe = self.job.recipe
        at = self.global_step
        widths = self.schedule.widths(self.epoch, at, self.steps)
        lr = learning_rate(recipe, at, self.steps)
        x, y = self.train_batch(self.epoch, self.step)
        graph = self.job.train[len(y)]
        values = self._execute(graph, x, y, widths, at, True)
        assert graph.loss is not None
        loss = float(values[graph.loss])
        if not math.isfinite(loss):
            raise JobError(f"the loss is {loss} at step {at}; lower lr ({recipe['lr']})")
        self._update({name: values[graph.gradients[name]] for name in self.job.parameters}, lr)
        for name, value in graph.buffers.items():
            self.state[name] = np.array(values[value])
        right = int((values[graph.logits].argmax(1) == y).sum())
        self.loss_sum += loss * len(y)
        self.seen += len(y)
        self.right += right
        self.step += 1
        line = {"step": at, "epoch": self.epoch, "bits": self.bits(widths), "lr": lr, "loss": loss, "right": right}
        if graph.cost is not None:
            cost = float(values[graph.cost])
            line["cp"] = cost
            self.cost_sum += cost * len(y)
        return {**line, "images": len(y)}

    def bits(self, widths: tuple[int, ...]) -> str:
        """A step's precision for people."""
        if self.job.gates is not None:
            return "gated"
        return "/".join(map(str, widths)) if any(widths) else "fp32"

    def _update(self, gradients: dict[str, Array], lr: float) -> None:
        """Takes a step with all parameters."""
        weights, before = [self.state[name] for name in gradients], [self.momentum.get(name) for name in gradients]
        found, velocities = all_descended(weights, list(gradients.values()), before, lr, self.job.recipe)
        for name, weight, velocity in zip(gradients, found, velocities, strict=True):
            self.state[name] = weight
            if velocity is not None:
                self.momentum[name] = velocity

    @property
    def last_widths(self) -> tuple[int, ...]:
        """Widths of the step before, at which an epoch is tested."""
        return self.schedule.widths(self.epoch, max(0, self.global_step - 1), self.steps)

    def evaluate(self) -> float:
        """Share of test images classified rightly, 0..1."""
        widths, right = self.last_widths, 0
        for x, y in self.test_batches():
            graph = self.job.evaluate[len(y)]
            values = self._execute(graph, x, y, widths, 0, False)
            right += int((values[graph.logits].argmax(1) == y).sum())
        return right / len(self.job.test_labels)

    def row(self, accuracy: float | None) -> dict[str, Any]:
        """What an epoch has come to, with its accuracy if it was tested."""
        return {
            "epoch": self.epoch + 1,
            "stage": self.schedule.stage,
            "bits": self.bits(self.last_widths),
            "loss": self.loss_sum / self.seen,
            "train_accuracy": self.right / self.seen,
            "test_accuracy": accuracy,
            # of the gates' choices, percent of float32, and what they aimed at; None without gates
            "cp": self.cost_sum / self.seen if self.job.gates is not None else None,
            "target": self.target,
        }

    def finish_epoch(self, row: dict[str, Any]) -> None:
        """Go on to the next epoch; ``row`` is what this one has come to."""
        self.history.append(row)
        self.schedule.epoch_finished(self.epoch, row["loss"])
        self.epoch += 1
        self.step, self.seen, self.right = 0, 0, 0
        self.loss_sum, self.cost_sum = 0.0, 0.0

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write everything that changes."""
        arrays: dict[str, Array] = {f"state.{n}": v for n, v in self.state.items()}
        arrays |= {f"momentum.{n}": v for n, v in self.momentum.items()}
        arrays["ranges"] = np.array([(s.low, s.span) for s in self.layers], np.float32)
        arrays["batches"] = np.array([s.batches for s in self.layers], np.int64)
        arrays["tops"] = self.passes.tops if self.passes is not None else np.zeros(0)
        rest = {
            "format": JOB_CHECKPOINT_FORMAT,
            "job": self.job.digest,
            "position": [self.epoch, self.step, self.seen, self.right],
            "sums": [self.loss_sum, self.cost_sum],
            "history": self.history,
            "schedule": self.schedule.state_dict(),
        }
        arrays["rest"] = np.frombuffer(json.dumps(rest).encode(), np.uint8)
        stream = io.BytesIO()
        np.savez(stream, **arrays)  # type: ignore[arg-type]
        write_atomically(path, stream.getbuffer())

    def load(self, path: Path) -> None:
        """Take back a checkpoint of the same job; nothing is changed unless all of it fits.

        Raises:
            JobError: missing, broken, or of another job.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            rest = json.loads(arrays.pop("rest").tobytes())
            if rest["format"] != JOB_CHECKPOINT_FORMAT or rest["job"] != self.job.digest:
                raise JobError(f"{path} belongs to another job or release; choose another run folder")
            state = {n: arrays[f"state.{n}"] for n in self.job.state}
            momentum = {n[9:]: v for n, v in arrays.items() if n.startswith("momentum.")}
            for name, value in [*state.items(), *momentum.items()]:
                if value.dtype != np.float32 or value.shape != self.job.state[name].shape:
                    raise ValueError(f"{name} is {value.dtype} {value.shape}")
            ranges, batches, tops = arrays["ranges"], arrays["batches"], arrays["tops"]
            if ranges.shape != (len(self.layers), 2) or batches.shape != (len(self.layers),):
                raise ValueError("another number of layers")
            if tops.shape != (len(self.passes.names) if self.passes is not None else 0,) or not (tops >= 0).all():
                raise ValueError("another number of ranges, or one below zero")
            epoch, step, seen, right = (int(v) for v in rest["position"])
            loss_sum, cost_sum = (float(v) for v in rest["sums"])
            history = list(rest["history"])
            schedule = make_schedule(self.job.recipe)
            schedule.load_state_dict(rest["schedule"])
        except FileNotFoundError as e:
            raise JobError(f"no checkpoint at {path}; start without resuming") from e
        except JobError:
            raise
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as e:
            raise JobError(f"checkpoint {path} is broken ({e}); start again in another folder") from e
        self.state, self.momentum, self.schedule = state, momentum, schedule
        self.epoch, self.step, self.seen, self.right = epoch, step, seen, right
        self.loss_sum, self.cost_sum, self.history = loss_sum, cost_sum, history
        for layer, (low, span), count in zip(self.layers, ranges, batches, strict=True):
            layer.low, layer.span, layer.batches = np.asarray(low), np.asarray(span), int(count)
        if self.passes is not None:
            self.passes.tops = tops


def _keep_lines(path: Path, steps: int) -> None:
    """Drop log lines of steps that the checkpoint does not know, and a line cut short by the kill."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if line.endswith(b"\n") and int(json.loads(line)["step"]) < steps:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    write_atomically(path, b"".join(kept))


def run_job(
    job: Job,
    engine: Engine,
    out: Path | None,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    on_line: Callable[[dict[str, Any]], None] | None = None,
) -> RunResult:
    """Train a job to its end.

    Args:
        job: from :func:`host.board.job.load_job`.
        engine: multiplies codes: :class:`host.driver.fabric_engine.FabricEngine` on any device, or
            :class:`host.exact_engine.ExactEngine`.
        out: run folder, made if missing; None leaves no files.
        resume: continue from the folder's checkpoint; the result is bit for bit that of an unbroken run.
        stop_after: stop, with a checkpoint, once so many steps are done in total.
        on_line: called with every log line and every epoch's row.

    Raises:
        JobError: the folder holds another run, the checkpoint does not fit, or training fails.
        MemoryPlanError: before anything is written, if the device's memory does not hold the steps.
    """
    begun = time.monotonic()
    training = Training(job, engine)
    check_job_memory(job, engine, training.products, training.passes)
    folder = _Folder(out)
    folder.open(training, resume)
    epochs, finished = job.recipe["epochs"], True
    try:
        while training.epoch < epochs and finished:
            finished = _epoch(training, folder, stop_after, on_line)
        if not finished:
            folder.save(training)
    finally:
        folder.close()
    tested = [r["test_accuracy"] for r in training.history if r["test_accuracy"] is not None]
    result = RunResult(
        tested[-1] if tested else 0.0,
        max(tested, default=0.0),
        training.history,
        training.global_step,
        finished,
        time.monotonic() - begun,
        dict(engine.meter.totals),
    )
    folder.write_result(result)
    return result


class _Folder:
    """What a run leaves behind; nothing if ``path`` is None."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._log: BinaryIO | None = None

    def open(self, training: Training, resume: bool) -> None:
        """Take back the checkpoint if a run is resumed, and begin the log behind it.

        Raises:
            JobError: the folder holds another run, or no checkpoint that fits.
        """
        if self.path is None:
            if resume:
                raise JobError("resuming needs the run folder")
            return
        checkpoint = self.path / "checkpoint.npz"
        if resume:
            training.load(checkpoint)
        elif checkpoint.exists():
            raise JobError(f"{self.path} holds a run already; resume it or choose another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        _keep_lines(self.path / "log.jsonl", training.global_step)
        self._log = (self.path / "log.jsonl").open("ab")

    def line(self, line: dict[str, Any]) -> None:
        """Log a step."""
        if self._log is not None:
            self._log.write(json.dumps(line).encode() + b"\n")

    def save(self, training: Training) -> None:
        """Write the checkpoint, never ahead of the log."""
        if self._log is not None and self.path is not None:
            self._log.flush()
            os.fsync(self._log.fileno())
            training.save(self.path / "checkpoint.npz")

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write the epochs' rows as a table."""
        if self.path is not None:
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, fieldnames=list(history[-1]))
            writer.writeheader()
            writer.writerows(history)
            write_atomically(self.path / "metrics.csv", text.getvalue())

    def write_result(self, result: RunResult) -> None:
        """Write what the run has come to."""
        if self.path is not None:
            write_atomically(self.path / "result.json", json.dumps(asdict(result), indent=1) + "\n")

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()


def _epoch(
    training: Training, folder: _Folder, stop_after: int | None, on_line: Callable[[dict[str, Any]], None] | None
) -> bool:
    """Train to the end of the epoch; False if stopped before.  See :func:`run_job`."""
    recipe, totals = training.job.recipe, training.engine.meter.totals
    begun, energy = time.monotonic(), totals.get("ENERGY_UJ", 0)
    while training.step < training.steps_per_epoch:
        if stop_after is not None and training.global_step >= stop_after:
            return False
        line = training.train_step()
        folder.line(line)
        if on_line is not None:
            on_line(line)
        if recipe["checkpoint_every"] and training.global_step % recipe["checkpoint_every"] == 0:
            folder.save(training)
    last = training.epoch + 1 == recipe["epochs"]
    row = training.row(training.evaluate() if last or (training.epoch + 1) % recipe["eval_every"] == 0 else None)
    row["seconds"] = round(time.monotonic() - begun, 3)
    # of the whole board while programs ran; None where it was not measured
    row["energy_j"] = (totals["ENERGY_UJ"] - energy) / 1e6 if "ENERGY_UJ" in totals else None
    if on_line is not None:
        on_line(row)
    training.finish_epoch(row)
    folder.save(training)
    folder.write_metrics(training.history)
    return True
