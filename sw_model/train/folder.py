"""A run's folder: settings, device, checkpoint, metrics, precision used, result and figure, each replaced
atomically, and the events that TensorBoard draws."""

from __future__ import annotations

import csv
import io
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hw.cost.training_schedule import RECORD
from hw.files import locked, remove_scratch, save_picture, write_atomically
from sw_model.train.metrics import Metric
from sw_model.train.recipe import ConfigError, TrainConfig
from sw_model.train.run_device import RunDevice

CHECKPOINT, CURVES = "checkpoint.pt", "curves.png"
CONFIG, DEVICE, METRICS, RESULT = "config.toml", "device.json", "metrics.csv", "result.json"
CHECKPOINT_FORMAT = 2


def read_tensors(path: Path) -> Any:
    """What ``torch.save`` put into a file: tensors and plain containers only, on the CPU.

    Raises:
        ConfigError: anything else, in a few words of its own: PyTorch's fill a screen and advise to load it all the same.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(f"{path} holds other things than tensors and plain containers, or is damaged") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error}), or is cut off") from error
    except Exception as error:
        raise ConfigError(f"{path} is damaged or cut off ({type(error).__name__})") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents: tensors and plain containers only.

    Raises:
        ConfigError: if the file is missing, broken or of another format.
    """
    if not path.is_file():
        raise ConfigError(f"no checkpoint at {path}; start without resuming")
    try:
        state = read_tensors(path)
    except ConfigError as error:
        raise ConfigError(f"checkpoint {error}; it cannot be read: start again without resuming") from error
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise ConfigError(f"checkpoint {path} has another format; it was written by another version")
    return state


class RunFolder:
    """Where a run leaves its files.

    Args:
        path: the folder, made by :meth:`begun`; None leaves no files.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def saved(self, resume: bool) -> dict[str, Any] | None:
        """The checkpoint to resume from; None for a new run.

        Raises:
            ConfigError: if there is nothing to resume, or a new run would overwrite another.
        """
        if self.path is None:
            if resume:
                raise ConfigError("resuming needs the run folder; pass out")
            return None
        checkpoint = self.path / CHECKPOINT
        if resume:
            return load_checkpoint(checkpoint)
        if checkpoint.exists():
            raise ConfigError(f"{self.path} already holds a run; resume it or choose another folder")
        self._refuse_other_files()
        return None

    def _refuse_other_files(self) -> None:
        """Refuses a folder with files that a run would overwrite and no run has written."""
        assert self.path is not None
        try:
            if self.device() is not None:  # a run that ended before its first checkpoint
                return
        except ConfigError:
            pass
        names = (CONFIG, DEVICE, METRICS, RECORD, RESULT, CURVES)
        if found := [name for name in names if (self.path / name).exists()]:
            raise ConfigError(
                f"{self.path} holds {', '.join(found)} but no run; move them away, or choose another folder, so that "
                "training does not overwrite them"
            )

    def device(self) -> RunDevice | None:
        """What the run in this folder was trained on; None if an old version wrote it, which kept no record.

        Raises:
            ConfigError: if the record is broken.
        """
        if self.path is None or not (self.path / DEVICE).is_file():
            return None
        try:
            record = json.loads((self.path / DEVICE).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{self.path / DEVICE} is not valid JSON ({error}); restore the file") from error
        return RunDevice.from_record(record)

    @contextmanager
    def begun(self, config: TrainConfig, device: RunDevice) -> Iterator[None]:
        """Makes the folder, without what a killed run left half written; writes the settings and what computes the run.

        Raises:
            FolderInUseError: if another process trains there.
        """
        if self.path is None:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            remove_scratch(self.path)
            # The device first: by it a run that ends before its first checkpoint knows its own files.
            write_atomically(self.path / DEVICE, json.dumps(device.record(), indent=1) + "\n")
            write_atomically(self.path / CONFIG, config.to_toml())
            yield

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the checkpoint."""
        if self.path is not None:
            buffer = io.BytesIO()  # PyTorch's own writing hides what the system says of a full disk
            torch.save({"format": CHECKPOINT_FORMAT, **state}, buffer)
            write_atomically(self.path / CHECKPOINT, buffer.getbuffer())

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Writes one row per epoch."""
        if self.path is not None:
            write_atomically(self.path / METRICS, _metrics_text(history))

    def write_schedule(self, record: str) -> None:
        """Writes the precision that was really used so far, see :mod:`sw_model.train.record`."""
        if self.path is not None:
            write_atomically(self.path / RECORD, record)

    def finish(self, summary: dict[str, Any], history: list[dict[str, Any]], metric: Metric) -> None:
        """Writes the result and draws the curves."""
        if self.path is not None:
            write_atomically(self.path / RESULT, json.dumps(summary, indent=1) + "\n")
            if history:
                draw_curves(history, metric, self.path / CURVES)


class EventLog:
    """TensorBoard's event files: loss and learning rate by step, the row of metrics by epoch.

    Steps count from 1.  A log that goes on after ``step`` hides whatever was logged beyond it, so a run that was killed
    and resumed shows every step once.

    Args:
        folder: where event files lie; None logs nothing.
        step: steps done so far.
    """

    def __init__(self, folder: Path | None, step: int) -> None:
        self._writer: Any = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second, so only runs with a folder pay

            self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def flush(self) -> None:
        """Writes what has been logged, so that a checkpoint never knows more than the log."""
        if self._writer is not None:
            self._writer.flush()

    def step(self, step: int, loss: float, lr: float) -> None:
        """Takes a training step."""
        if self._writer is not None:
            self._writer.add_scalar("step/loss", loss, step)
            self._writer.add_scalar("step/lr", lr, step)

    def epoch(self, step: int, row: dict[str, Any]) -> None:
        """Takes the metrics of an epoch that ended with ``step``."""
        if self._writer is None:
            return
        values = {name: value for name, value in row.items() if isinstance(value, int | float)}
        values |= {f"bits_{name}": bits for name, bits in _widths(row).items()}
        for name, value in values.items():
            self._writer.add_scalar(f"epoch/{name}", value, step)


def _widths(row: dict[str, Any]) -> dict[str, int]:
    """Bits of an epoch by operand, 32 for float32; none where gates choose them."""
    if row["bits"] == "gated":
        return {}
    bits = (0, 0, 0) if row["bits"] == "fp32" else tuple(map(int, row["bits"].split("/")))[:3]
    return {name: width or 32 for name, width in zip(("weight", "activation", "gradient"), bits, strict=True)}


def _metrics_text(history: list[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def draw_curves(history: list[dict[str, Any]], metric: Metric, path: Path) -> None:
    """Loss, metric and bits over epochs as one picture (PNG)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    epochs = [row["epoch"] for row in history]
    upper.plot(epochs, [row["loss"] for row in history], color="tab:blue", marker=".", label="training loss")
    upper.set_ylabel("training loss")
    upper.set_ylim(bottom=0)  # also keeps a single epoch's loss apart from its metric
    upper.grid(alpha=0.3)
    right = upper.twinx()
    column, factor = f"test_{metric.name}", 100 if metric.percent else 1
    tested = [(row["epoch"], factor * row[column]) for row in history if row[column] is not None]
    right.plot(*zip(*tested, strict=True), color="tab:red", marker=".", label=f"test {metric.name}")
    right.set_ylabel(f"test {metric.name}" + (" (%)" if metric.percent else ""))
    upper.legend(handles=[*upper.lines, *right.lines], loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    if history[0]["target"] is not None:
        lower.plot(epochs, [row["cp"] for row in history], marker=".", label="cost of the gates' choices")
        lower.step(epochs, [row["target"] for row in history], where="mid", label="target")
        lower.set_ylabel("% of float32")
    else:
        lower.set_ylabel("bits")
        for position, name in enumerate(_widths(history[0])):
            # Equal widths lie upon one another, so that each line is thinner than the one below it.
            bits = [_widths(row)[name] for row in history]
            line = lower.step(epochs, bits, where="mid", label=name, marker="o", linewidth=max(7 - 2 * position, 1))
            line[0].set_markersize(max(9 - 2 * position, 3))
        lower.set_ylim(0, max((bits for row in history for bits in _widths(row).values()), default=32) + 1)
        lower.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    lower.set_xlabel("epoch")
    lower.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    lower.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)
    lower.grid(alpha=0.3)
    save_picture(figure, path, dpi=120)
