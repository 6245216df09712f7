"""The training loop: quantized training by a recipe, resumable to the bit.

A run is a function of its :class:`TrainConfig`: initialisation, order, augmentation and every stochastic rounding
derive from the seed and counters.  The run folder holds ``config.toml``, ``metrics.csv``, ``checkpoint.pt`` (replaced
atomically), ``result.json`` and ``curves.png``.
"""

from __future__ import annotations

import csv
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from host.products import Engine
from sw_model.cost import CostMeter, layer_macs, step_factor
from sw_model.data import ImageSet, load_data
from sw_model.gates import GatedResNet, gated_loss
from sw_model.layers import Precision, Run, attach, set_precision
from sw_model.models import CifarResNet, build_model
from sw_model.quantizers import Mode
from sw_model.schedules import Cyclic, Indicator, Manual, Pfq, Schedule, Static

CHECKPOINT_FORMAT = 1


class ConfigError(ValueError):
    """A recipe or option is wrong; the message names it, its value and what is allowed."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a training run.  A recipe is a TOML file with these names as keys.

    Attributes:
        data: "digits" or a path, see :func:`sw_model.data.load_data`; train_limit, test_limit: images used (0: all).
        model, width, quantize_stem, quantize_head: see :func:`sw_model.models.build_model`.
        schedule: "static", "pfq", "cyclic", "manual" or "dfq" (gates; with several targets FracTrain).
        stages: bits (weight, activation, gradient[, gradient in the weight gradient]) of each stage; 0: float32.
        starts: manual schedule only: first epoch of each stage.
        eps, alpha, window, norm_epochs, deadlines: PFQ's indicator, see :class:`sw_model.schedules.Indicator`.
        options: gated training ("dfq"): (activation, gradient) widths that gates choose from; [0, 0] skips a block.
        weight_bits: gated training: width of the weights in gated blocks.
        targets: gated training: cost to aim at, percent of float32; several make FracTrain, which advances from one to
            the next by PFQ's indicator.  Ungated layers follow ``stages`` (one entry serves all targets).
        beta, band, cap: gated training: weight of the cost term, dead band around the target in percent, limit of the
            term as a share of the task loss (0: none); see :func:`sw_model.gates.gated_loss`.
        low, high, cycles: cyclic schedule's widths and number of cycles; its gradient width is that of stages[0].
        epochs, batch: length of training and images per step.
        lr, momentum, nesterov, weight_decay: SGD; weight decay applies to all parameters.
        lr_schedule: "cosine" (to zero) or "steps" (times lr_decay at each of the milestones, shares of training).
        warmup: share of training over which the learning rate rises linearly.
        augment: whether training images are shifted (and flipped, where the data set allows).
        mode: "fixed" or "paper" quantizer defects, see :class:`sw_model.layers.Run`.
        gradient: quantizer of gradients, see :class:`sw_model.layers.Run`.
        seed: of everything random.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        eval_batch: images per evaluation step; 0 means ``batch``.
        checkpoint_every: steps between checkpoints; 0 means at the end of every epoch only.
    """

    data: str = "digits"
    train_limit: int = 0
    test_limit: int = 0
    model: str = "resnet-8"
    width: int = 8
    quantize_stem: bool = True
    quantize_head: bool = False
    schedule: str = "pfq"
    stages: tuple[tuple[int, ...], ...] = ((3, 3, 4), (4, 4, 6), (6, 6, 8), (8, 8, 8))
    starts: tuple[int, ...] = ()
    eps: float = 0.05
    alpha: float = 0.3
    window: int = 5
    norm_epochs: int = 10
    deadlines: tuple[int, ...] = ()
    options: tuple[tuple[int, ...], ...] = ()
    weight_bits: int = 4
    targets: tuple[float, ...] = ()
    beta: float = 1e-3
    band: float = 0.0
    cap: float = 0.0
    low: int = 3
    high: int = 8
    cycles: int = 8
    epochs: int = 10
    batch: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    lr_schedule: str = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    lr_decay: float = 0.1
    warmup: float = 0.0
    augment: bool = True
    mode: str = "fixed"
    gradient: str = "affine"
    seed: int = 1
    eval_every: int = 1
    eval_batch: int = 0
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "eval_every", "width", "cycles", "window", "norm_epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 1")
        for name in ("train_limit", "test_limit", "eval_batch", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)} must not be negative (0 means the default)")
        choices = {
            "schedule": ("static", "pfq", "cyclic", "manual", "dfq"),
            "lr_schedule": ("cosine", "steps"),
            "mode": ("fixed", "paper"),
            "gradient": ("affine", "ptq", "psq", "bhq"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} = {getattr(self, name)!r}; use one of {', '.join(allowed)}")
        if not self.stages:
            raise ConfigError("stages is empty; give at least one [weight, activation, gradient]")
        for stage in self.stages:
            if len(stage) not in (3, 4):
                raise ConfigError(
                    f"stage {list(stage)} needs 3 or 4 widths: weight, activation, gradient[, weight gradient]"
                )
        if self.lr <= 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0 or not 0 <= self.warmup < 1:
            raise ConfigError(
                f"lr {self.lr}, momentum {self.momentum}, weight_decay {self.weight_decay}, warmup {self.warmup}: need "
                "lr > 0, 0 <= momentum < 1, weight_decay >= 0, 0 <= warmup < 1"
            )
        try:
            self.make_schedule()
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def make_schedule(self) -> Schedule:
        """A fresh schedule as configured."""
        stages = [Precision(*stage) for stage in self.stages]
        if self.schedule == "static":
            if len(stages) != 1:
                raise ConfigError(f"a static schedule has one stage, not {len(stages)}")
            return Static(stages[0])
        if self.schedule == "dfq":
            if not self.targets or len(self.options) < 2 or any(len(option) != 2 for option in self.options):
                raise ConfigError(
                    f"dfq needs targets and at least two options [activation, gradient]; has targets "
                    f"{list(self.targets)}, options {[list(o) for o in self.options]}"
                )
            stages = stages * len(self.targets) if len(stages) == 1 else stages
            if len(stages) != len(self.targets):
                raise ConfigError(f"{len(self.targets)} targets need one stage or as many, not {len(stages)}")
        elif self.options or self.targets:
            raise ConfigError(f"options and targets belong to schedule 'dfq', not {self.schedule!r}")
        if self.schedule == "cyclic":
            return Cyclic(self.low, self.high, stages[0].grad, self.cycles)
        if self.schedule == "manual":
            if len(self.starts) != len(stages):
                raise ConfigError(f"{len(stages)} manual stages need as many starts, not {len(self.starts)}")
            return Manual(list(zip(self.starts, stages, strict=True)))
        indicator = Indicator(
            len(stages) - 1, self.eps, self.alpha, self.window, self.norm_epochs, self.deadlines or None
        )
        return Pfq(stages, indicator)

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> TrainConfig:
        """A configuration from plain values (a parsed recipe), types checked, unknown names refused."""
        known = {f.name: f for f in fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(f"unknown recipe keys {', '.join(unknown)}; known are {', '.join(known)}")
        clean: dict[str, Any] = {}
        for name, value in values.items():
            default = known[name].default
            if isinstance(default, tuple):
                if not isinstance(value, list | tuple):
                    raise ConfigError(f"{name} = {value!r} must be a list")
                clean[name] = tuple(tuple(v) if isinstance(v, list | tuple) else v for v in value)
            elif isinstance(default, bool | str):
                if not isinstance(value, type(default)):
                    raise ConfigError(f"{name} = {value!r} must be a {type(default).__name__}")
                clean[name] = value
            else:
                numeric = isinstance(value, int | float) and not isinstance(value, bool)
                if not numeric or (isinstance(default, int) and not isinstance(value, int)):
                    raise ConfigError(
                        f"{name} = {value!r} must be {'an integer' if isinstance(default, int) else 'a number'}"
                    )
                clean[name] = float(value) if isinstance(default, float) else value
        return cls(**clean)

    @classmethod
    def from_recipe(cls, path: Path, **overrides: Any) -> TrainConfig:
        """A configuration from a TOML recipe; ``overrides`` win."""
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"recipe {path} does not exist; see configs/recipes/") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"recipe {path} is not valid TOML: {error}") from error
        return cls.from_mapping({**values, **overrides})

    def to_toml(self) -> str:
        """The configuration as a recipe; JSON's scalars and arrays are TOML's."""
        return "".join(f"{name} = {json.dumps(value)}\n" for name, value in asdict(self).items())


@dataclass(frozen=True)
class Step:
    """Where training stands, for hooks.

    Attributes:
        epoch: from 0; step: within the epoch, from 0; global_step: within the training.
        stage: of the schedule; stage_step: steps since the stage began.
        precision: of this step.
        images: in this step's batch.
        loss: mean training loss of the batch (None before the step is done).
    """

    epoch: int
    step: int
    global_step: int
    stage: int
    stage_step: int
    precision: Precision
    images: int
    loss: float | None = None


@dataclass(frozen=True)
class Result:
    """What a training run has come to.

    Attributes:
        test_accuracy: share of test images classified rightly at the end, 0..1.
        best_accuracy: best of all evaluations.
        history: one row per epoch: epoch, stage, bits, loss, train_accuracy, test_accuracy (or None), cp (percent, as
            published: mean over samples and layers that the schedule governs), target, lr, cc, cc_full, seconds.
        cc: computational cost, paper's count, in float32 MACs; cc_full: every product as it ran; cc_static: paper's
            count of the same images at 8/8/8.
        cp: cc as a percentage of float32 training.
        images, steps: trained on in total.
        finished: False if ``stop_after`` ended the run early.
        seconds: wall time of this call.
        counters: the engine's counters after the run (empty without an engine).
    """

    test_accuracy: float
    best_accuracy: float
    history: list[dict[str, Any]]
    cc: float
    cc_full: float
    cc_static: float
    cp: float
    images: int
    steps: int
    finished: bool
    seconds: float
    counters: dict[str, int] = field(default_factory=dict)


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Learning rate of global step ``step`` of ``steps``."""
    position = step / steps
    if position < config.warmup:
        return config.lr * (step + 1) / math.ceil(config.warmup * steps)
    if config.lr_schedule == "cosine":
        share = (position - config.warmup) / (1 - config.warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * share))
    return config.lr * config.lr_decay ** sum(position >= milestone for milestone in config.milestones)


@torch.no_grad()
def evaluate(model: nn.Module, data: ImageSet, batch: int, on_batch: Callable[[int], None] | None = None) -> float:
    """Share of test images that the model classifies rightly, in evaluation mode; the mode is restored."""
    was_training = model.training
    model.eval()
    right = 0
    try:
        for x, y in data.test_batches(batch):
            right += int((model(x).argmax(1) == y).sum())
            if on_batch is not None:
                on_batch(len(y))
    finally:
        model.train(was_training)
    return right / len(data.test_labels)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Lets ``write`` fill a scratch file beside ``path``, then replaces ``path``: readers see the old or the new."""
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        write(Path(scratch))
        with open(scratch, "rb") as written:
            os.fsync(written.fileno())
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents: tensors and plain containers only.

    Raises:
        ConfigError: if the file is missing, broken or of another format.
    """
    if not path.is_file():
        raise ConfigError(f"no checkpoint at {path}; start without resuming")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(f"checkpoint {path} cannot be read ({error}); start again without resuming") from error
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise ConfigError(f"checkpoint {path} has another format; it was written by another version")
    return state


class _Progress:
    """A live progress bar on the terminal, or nothing."""

    def __init__(self, active: bool, total: int) -> None:
        self._bar = None
        if active:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._task = self._bar.add_task("training", total=total, note="")

    def __enter__(self) -> _Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def at(self, step: int, note: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)

    def line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)


class _Training:
    """State of a run between steps: all of it goes into the checkpoint."""

    def __init__(self, config: TrainConfig, data: ImageSet) -> None:
        self.config, self.data = config, data
        self.model = build_model(
            config.model,
            len(data.classes),
            data.image_shape,
            width=config.width,
            quantize_stem=config.quantize_stem,
            quantize_head=config.quantize_head,
            seed=config.seed,
        )
        self.schedule = config.make_schedule()
        macs = layer_macs(self.model, data.image_shape)
        self.gated: GatedResNet | None = None
        if config.schedule == "dfq":
            if not isinstance(self.model, CifarResNet):
                raise ConfigError(f"gates exist for CIFAR ResNets (resnet-6n+2), not for {config.model}")
            options = [(option[0], option[1]) for option in config.options]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed + 1)
                self.gated = GatedResNet(self.model, options, config.weight_bits)
            self.model = self.gated
            macs = {f"base.{name}": count for name, count in macs.items()}
        self.cost = CostMeter(macs)
        self.run = attach(
            self.model,
            Run(
                seed=config.seed,
                mode=cast(Mode, config.mode),
                gradient=config.gradient,
                on_product=self.cost.on_product,
            ),
        )
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
        self.epoch, self.step, self.stage_step = 0, 0, 0
        self.loss_sum, self.cp_sum, self.seen, self.right = 0.0, 0.0, 0, 0
        self.history: list[dict[str, Any]] = []
        self.steps_per_epoch = data.train_steps(config.batch)

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    @property
    def global_step(self) -> int:
        return self.epoch * self.steps_per_epoch + self.step

    def state_dict(self) -> dict[str, Any]:
        return {
            "format": CHECKPOINT_FORMAT,
            "config": self.config.to_toml(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "cost": self.cost.state_dict(),
            "position": [self.epoch, self.step, self.stage_step, self.seen, self.right],
            "sums": [self.loss_sum, self.cp_sum],
            "history": self.history,
            "rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["config"] != self.config.to_toml():
            changed = set(state["config"].splitlines()) ^ set(self.config.to_toml().splitlines())
            names = sorted({line.split(" = ")[0] for line in changed})
            raise ConfigError(
                f"the checkpoint was written with other values of {', '.join(names)}; resume with the run folder's "
                "config.toml as the recipe, or choose another folder"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.cost.load_state_dict(state["cost"])
        self.epoch, self.step, self.stage_step, self.seen, self.right = state["position"]
        self.loss_sum, self.cp_sum = state["sums"]
        self.history = list(state["history"])
        torch.set_rng_state(state["rng"])

    def train_step(self, x: Tensor, y: Tensor, precision: Precision) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.global_step, self.steps)
        set_precision(self.model, precision)
        self.run.step = self.global_step
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.model(x)
        loss = F.cross_entropy(logits, y)
        value = float(loss.detach())
        if self.gated is None:
            loss.backward()
            self.cost.step(precision, len(y))
            cp = 100 * step_factor(precision) / 3
        else:
            config, cost = self.config, self.gated.cp()
            target = config.targets[self.schedule.stage]
            gated_loss(loss, cost, target, config.beta, band=config.band, cap=config.cap or None).backward()
            self.cost.step_gated(self.gated.shares())
            cp = float(cost.detach())
        self.optimizer.step()
        if not math.isfinite(value):
            raise RuntimeError(f"the loss is {value} at step {self.global_step}; lower lr ({self.config.lr})")
        self.loss_sum += value * len(y)
        self.cp_sum += cp * len(y)
        self.seen += len(y)
        self.right += int((logits.detach().argmax(1) == y).sum())
        return value


@contextmanager
def _without_cost(cost: CostMeter) -> Iterator[None]:
    cost.paused = True
    try:
        yield
    finally:
        cost.paused = False


def train(
    config: TrainConfig,
    engine: Engine | None = None,
    *,
    out: Path | None = None,
    on_step: Callable[[Step], None] | None = None,
    engine_for_step: Callable[[Step], Engine | None] | None = None,
    evaluation_engine: Engine | Literal["same"] | None = "same",
    data: ImageSet | None = None,
    resume: bool = False,
    progress: bool = False,
    stop_after: int | None = None,
) -> Result:
    """Trains a network as configured.

    Args:
        config: the recipe.
        engine: computes the quantized products exactly; None takes the fast floating-point path with the same codes.
        out: run folder, made if missing; None leaves no files.
        on_step: called after every step, with its loss.
        engine_for_step: called before every step; the engine that it returns computes that step (None: fast path).
        evaluation_engine: engine of the test passes; "same" takes ``engine``.
        data: data set, if not the one that ``config.data`` names.
        resume: continue from the run folder's checkpoint; the rest of the run is bit for bit what it would have been.
        progress: draw a progress bar.
        stop_after: stop, with a checkpoint, once this many steps are done in total.

    Raises:
        ConfigError, DataError: before anything is written, if a choice is wrong or the data is unusable.
    """
    started = time.monotonic()
    if resume and out is None:
        raise ConfigError("resuming needs the run folder; pass out")
    checkpoint = out / "checkpoint.pt" if out is not None else None
    saved = load_checkpoint(checkpoint) if resume and checkpoint is not None else None
    if not resume and checkpoint is not None and checkpoint.exists():
        raise ConfigError(f"{out} already holds a run; resume it or choose another folder")
    if data is None:
        data = load_data(config.data, cache=None if out is None else out.parent / "cache")
    data = data.limited(config.train_limit, config.test_limit)
    if not config.augment:
        data = replace(data, shift=0, flip=False)
    state = _Training(config, data)
    if saved is not None:
        state.load_state_dict(saved)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "config.toml", lambda p: write_text(p, config.to_toml()))

    def save() -> None:
        if checkpoint is not None:
            write_atomically(checkpoint, lambda p: torch.save(state.state_dict(), p))

    tester = engine if evaluation_engine == "same" else evaluation_engine
    stopped = False
    state.model.train()
    with _Progress(progress, state.steps) as bar:
        while state.epoch < config.epochs and not stopped:
            epoch_started = time.monotonic()
            precision = state.schedule.precision(state.epoch, state.global_step, state.steps)
            for x, y in data.train_batches(config.batch, config.seed, state.epoch, state.step):
                if stop_after is not None and state.global_step >= stop_after:
                    stopped = True
                    break
                precision = state.schedule.precision(state.epoch, state.global_step, state.steps)
                now = Step(
                    state.epoch,
                    state.step,
                    state.global_step,
                    state.schedule.stage,
                    state.stage_step,
                    precision,
                    len(y),
                )
                state.run.engine = engine if engine_for_step is None else engine_for_step(now)
                loss = state.train_step(x, y, precision)
                state.step += 1
                state.stage_step += 1
                bar.at(
                    state.global_step,
                    f"epoch {state.epoch + 1} bits {precision} loss {state.loss_sum / state.seen:.3f}",
                )
                if on_step is not None:
                    on_step(replace(now, loss=loss))
                if config.checkpoint_every and state.global_step % config.checkpoint_every == 0:
                    save()
            if stopped:
                break
            accuracy = None
            if (state.epoch + 1) % config.eval_every == 0 or state.epoch + 1 == config.epochs:
                state.run.engine = tester
                with _without_cost(state.cost):
                    accuracy = evaluate(state.model, data, config.eval_batch or config.batch)
            mean_loss = state.loss_sum / state.seen
            row = {
                "epoch": state.epoch + 1,
                "stage": state.schedule.stage,
                "bits": str(precision) if state.gated is None else "gated",
                "loss": mean_loss,
                "train_accuracy": state.right / state.seen,
                "test_accuracy": accuracy,
                "cp": state.cp_sum / state.seen,
                "target": config.targets[state.schedule.stage] if config.targets else None,
                "lr": state.optimizer.param_groups[0]["lr"],
                "cc": state.cost.paper,
                "cc_full": state.cost.full_total,
                "seconds": round(time.monotonic() - epoch_started, 3),
            }
            state.history.append(row)
            tested = "" if accuracy is None else f"  test {100 * accuracy:.2f} %"
            bar.line(
                f"epoch {row['epoch']:3d}  bits {row['bits']:>8}  cp {row['cp']:5.2f} %  loss {mean_loss:.4f}  "
                f"train {100 * state.right / state.seen:.2f} %{tested}  {row['seconds']:.1f} s"
            )
            if state.schedule.epoch_finished(state.epoch, mean_loss):
                state.stage_step = 0
            state.epoch += 1
            state.step, state.seen, state.right = 0, 0, 0
            state.loss_sum, state.cp_sum = 0.0, 0.0
            save()
            if out is not None:
                write_atomically(out / "metrics.csv", lambda p: _write_metrics(p, state.history))
    if stopped:
        save()
    elif isinstance(state.schedule, Pfq):
        what = f"cost target {config.targets[state.schedule.stage]} %" if config.targets else ""
        state.schedule.warn_if_unfinished(config.epochs, what)
    tested_rows = [row["test_accuracy"] for row in state.history if row["test_accuracy"] is not None]
    result = Result(
        test_accuracy=tested_rows[-1] if tested_rows else 0.0,
        best_accuracy=max(tested_rows, default=0.0),
        history=state.history,
        cc=state.cost.paper,
        cc_full=state.cost.full_total,
        cc_static=sum(state.cost.macs.values()) * step_factor(Precision(8, 8, 8)) * state.cost.images,
        cp=state.cost.cp,
        images=state.cost.images,
        steps=state.global_step,
        finished=not stopped,
        seconds=time.monotonic() - started,
        counters=dict(engine.meter.totals) if engine is not None else {},
    )
    if out is not None:
        summary = {**asdict(result), "cost_by_layer": state.cost.full}
        write_atomically(out / "result.json", lambda p: write_text(p, json.dumps(summary, indent=1) + "\n"))
        if state.history:
            draw_curves(state.history, out / "curves.png")
    return result


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` to ``path`` as UTF-8; for use with :func:`write_atomically`."""
    path.write_text(text, encoding="utf-8")


def _write_metrics(path: Path, history: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def draw_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Loss, accuracy and bits over epochs as one picture (PNG)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    epochs = [row["epoch"] for row in history]
    upper.plot(epochs, [row["loss"] for row in history], color="tab:blue", marker=".", label="training loss")
    upper.set_ylabel("training loss")
    upper.grid(alpha=0.3)
    right = upper.twinx()
    tested = [(row["epoch"], 100 * row["test_accuracy"]) for row in history if row["test_accuracy"] is not None]
    right.plot(*zip(*tested, strict=True), color="tab:red", marker=".", label="test accuracy")
    right.set_ylabel("test accuracy (%)")
    upper.legend(handles=[*upper.lines, *right.lines], loc="center right")
    if history[0]["target"] is not None:
        lower.plot(epochs, [row["cp"] for row in history], marker=".", label="cost of the gates' choices")
        lower.step(epochs, [row["target"] for row in history], where="mid", label="target")
        lower.set_ylabel("% of float32")
    else:
        lower.set_ylabel("bits")
        for position, name in enumerate(("weight", "activation", "gradient")):
            bits = [32 if row["bits"] == "fp32" else int(row["bits"].split("/")[position]) for row in history]
            # Equal widths would hide one another, so the lines are set apart a little.
            lower.step(epochs, [b + 0.06 * (position - 1) for b in bits], where="mid", label=name)
    lower.set_xlabel("epoch")
    lower.legend(loc="lower right")
    lower.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
