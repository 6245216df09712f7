"""The training loop: quantized training by a recipe, resumable to the bit.

A run is a function of its :class:`TrainConfig`: initialisation, order, augmentation and every stochastic rounding
derive from the seed and counters.  With an exact engine it is the same everywhere; on the fast path PyTorch's products
add float32 in an order that follows the machine and the number of threads, so there the same bits take the same of both.
See :mod:`sw_model.train.folder` for what a run leaves behind.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from host.operands import Engine
from host.training.precision_schedule import Pfq, learning_rate, scheduled_precisions
from hw.console import Progress
from sw_model.convert.references import is_reference
from sw_model.convert.shapes import check_fits
from sw_model.data.identity import Identity
from sw_model.data.image_folders import FolderSet
from sw_model.data.images import ImageSet
from sw_model.data.text import TokenSet
from sw_model.nn.cost_meter import CostMeter, layer_macs, step_factor
from sw_model.nn.gates import gated_loss
from sw_model.nn.layers import attach, quantized_layers, set_precision
from sw_model.nn.parallel import ALONE, Ranks, Shard, share_statistics
from sw_model.nn.precision import Precision, Run
from sw_model.nn.reproducible import arithmetic
from sw_model.nn.transformer import QMatmul
from sw_model.quantize.affine import straight_through
from sw_model.quantize.kernels import behind
from sw_model.step.step_memory import check_step_memory
from sw_model.train.accelerator import choose_accelerator, is_finite, move, on
from sw_model.train.folder import EventLog, RunFolder
from sw_model.train.metrics import TrainingResult
from sw_model.train.pretrained import build_network
from sw_model.train.recipe import ConfigError, TrainConfig
from sw_model.train.record import GATED, RunSchedule
from sw_model.train.run_device import RunDevice, check_accelerator, check_engine, check_ranks
from sw_model.train.tasks import Task, evaluate_network, open_task, smallest_batch


@dataclass(frozen=True)
class TrainingStep:
    """Where training stands, for hooks.

    Attributes:
        epoch: from 0; step: within the epoch, from 0; global_step: within the training.
        stage: of the schedule; stage_step: steps since the stage began.
        precision: of this step.
        images: inputs (images or sequences) in this step's batch.
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


class _Training:
    """State of a run between steps: all of it goes into the checkpoint."""

    def __init__(
        self, config: TrainConfig, task: Task, device: RunDevice, ranks: Ranks, *, pretrained: bool = True
    ) -> None:
        self.config, self.task, self.device, self.ranks = config, task, device, ranks
        base, self.gated = build_network(config, task, pretrained=pretrained)
        self.model: nn.Module = base if self.gated is None else self.gated
        if ranks.several:
            share_statistics(self.model, ranks)
        self.schedule = config.make_schedule()
        macs = layer_macs(base, task.example())
        if self.gated is not None:
            macs = {f"{GATED}{name}": count for name, count in macs.items()}
        depthwise = frozenset(n for n, m in quantized_layers(self.model) if m.depthwise)
        attention = frozenset(n for n, m in quantized_layers(self.model) if isinstance(m, QMatmul))
        # The published cost of a gated network is that of its blocks.
        counted = {n: count for n, count in macs.items() if self.gated is None or n.startswith(f"{GATED}blocks.")}
        self.cost = CostMeter(counted, depthwise, attention)
        gate_macs = 0 if self.gated is None else sum(self.gated.gate_macs())
        layers = base.__dict__["conversion"].traced.shapes if is_reference(config.model) else ()
        if layers and device.design is not None:
            check_fits(device.design, layers, config.precisions(), getattr(base, "keep_full", set()))
        self.record = RunSchedule(task.trained(config, layers), macs, depthwise, self.gated is not None, gate_macs)
        self.accelerator = torch.device(device.accelerator)
        move(self.model, self.accelerator)
        self.run = attach(
            self.model,
            Run(
                seed=config.seed,
                mode=config.mode,
                quantizer=config.quantizer,
                gradient=config.gradient,
                range_momentum=config.range_momentum,
                on_product=self._on_product,
            ),
        )
        self.optimizer = _optimizer(config, self.model.parameters())
        self.epoch, self.step, self.stage_step = 0, 0, 0
        self.loss_sum, self.cp_sum, self.score_sum, self.seen = 0.0, 0.0, 0.0, 0
        self.history: list[dict[str, Any]] = []
        self.data: Identity | None = None
        self.steps_per_epoch = task.data.train_steps(config.batch)

    def _on_product(self, layer: str, product: str, macs: int, a: int, b: int) -> None:
        if not self.cost.paused:
            self.cost.on_product(layer, product, macs, a, b)
            self.record.on_product(layer, product, macs, a, b)

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    @property
    def global_step(self) -> int:
        return self.epoch * self.steps_per_epoch + self.step

    def precision(self, step: int) -> Precision:
        """What the schedule says of a step of this epoch, counted over the training."""
        return Precision(*self.schedule.widths(self.epoch, step, self.steps))

    def check_memory(self, engine: Engine | None) -> None:
        """Refuses steps that the memory of an engine's device does not hold."""
        config, data = self.config, self.task.data
        tested = config.eval_batch or config.batch
        rest = len(getattr(data, "test_labels", ())) % tested
        check_step_memory(
            engine, self.model, self.task.example(), [Precision(*each) for each in scheduled_precisions(vars(config))],
            sorted({config.batch, smallest_batch(data, config.batch)}), sorted({tested, rest or tested}),
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        inputs = self.task.data.inputs()
        return {
            "config": self.config.to_toml(),
            "device": self.device.record(),
            "data": None if self.data is None else self.data.record(),
            "inputs": None if inputs is None else inputs.record(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "cost": self.cost.state_dict(),
            "record": self.record.state_dict(),
            "position": [self.epoch, self.step, self.stage_step, self.seen],
            "sums": [self.loss_sum, self.cp_sum, self.score_sum],
            "history": self.history,
            "rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        trained = TrainConfig.from_toml(state["config"], "of the checkpoint")
        if names := self.config.other_than(trained):
            raise ConfigError(
                f"the checkpoint was written with other values of {', '.join(names)}; resume with the run folder's "
                "config.toml as the recipe, or choose another folder"
            )
        before = RunDevice.from_record(state["device"]) if "device" in state else None
        if before is not None:
            self.device.check_same(before)
        if self.data is not None and state.get("data") is not None:
            self.data.check_same(state["data"])
        if state["record"] is None:
            raise ConfigError(
                "the checkpoint has no record of the precision that was used: an old version wrote it, of a language "
                "model; train in another folder, with init naming this one to start from its weights"
            )
        if before is None and self.ranks.main:
            warnings.warn(
                "the checkpoint does not say which device computed it, as an old version wrote it; the run goes on with "
                f"device {self.device}",
                stacklevel=2,
            )
        elif before is not None and self.ranks.main:
            self.device.warn_of_rounding(before)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.cost.load_state_dict(state["cost"])
        self.record.load_state_dict(state["record"])
        self.epoch, self.step, self.stage_step, self.seen = state["position"]
        self.loss_sum, self.cp_sum, self.score_sum = state["sums"]
        self.history = list(state["history"])
        torch.set_rng_state(state["rng"])

    def batch_size(self) -> int:
        """Inputs of the batch that comes next, over all processes."""
        return min(self.config.batch, self.task.data.train_count - self.step * self.config.batch)

    def train_step(self, x: Tensor, y: Tensor, precision: Precision) -> float:
        """Trains on this process's part of a batch; returns the loss of all of it."""
        shard = Shard.of_batch(self.ranks, self.batch_size())
        self.run.shard = shard if self.ranks.several else None
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(vars(self.config), self.global_step, self.steps)
        set_precision(self.model, precision)
        self.run.step = self.global_step
        self.optimizer.zero_grad(set_to_none=True)
        x, y = on(self.accelerator, x, y)
        output = self.model(x)
        loss, score = self._mean(self.task.loss(output, y), shard), self.task.score(output.detach(), y)
        score = float(self.ranks.sum(torch.tensor(score, dtype=torch.float64)))
        value = float(loss.detach())
        if self.gated is None:
            loss.backward()
            self.cost.step(precision, shard.total)
            self.record.step(precision, shard.total)
            cp = 100 * step_factor(precision) / 3
        else:
            config, cost = self.config, self._mean(self.gated.cp(), shard)
            target = config.targets[self.schedule.stage]
            gated_loss(loss, cost, target, config.beta, band=config.band, cap=config.cap or None).backward()
            choices = self.gated.choices()
            self.cost.step_gated(self.gated.shares(choices), precision)
            self.record.step(precision, shard.total, self.gated.options, choices)
            cp = float(cost.detach())
        self.ranks.sum_gradients(self.model)
        self.run.shard = None
        self.optimizer.step()
        if not math.isfinite(value):
            raise RuntimeError(f"the loss is {value} at step {self.global_step}; lower lr ({self.config.lr})")
        if behind(self.accelerator) and not is_finite(self.model):
            raise RuntimeError(
                f"weights or their gradients are not finite after step {self.global_step}; lower lr ({self.config.lr})"
            )
        targets = shard.whole(y.numel())
        self.loss_sum += value * targets
        self.cp_sum += cp * targets
        self.score_sum += score
        self.seen += targets
        return value

    def _mean(self, x: Tensor, shard: Shard) -> Tensor:
        """The mean over the whole batch of what has the mean ``x`` here; its gradient is this process's share."""
        if not self.ranks.several:
            return x
        own = x * shard.share
        return straight_through(self.ranks.sum(own.detach().double()).to(x.dtype), own)


def _optimizer(config: TrainConfig, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        betas = (config.betas[0], config.betas[1])
        return torch.optim.AdamW(parameters, lr=config.lr, betas=betas, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
    )


@contextmanager
def _without_cost(cost: CostMeter) -> Iterator[None]:
    cost.paused = True
    try:
        yield
    finally:
        cost.paused = False


@dataclass(frozen=True)
class _Engines:
    """Which engine computes the quantized products; None is the fast path.

    Attributes:
        whole: of all steps.
        by_step: chooses the engine of a step instead, where it is given.
        evaluation: of the test passes.
    """

    whole: Engine | None
    by_step: Callable[[TrainingStep], Engine | None] | None
    evaluation: Engine | None

    def of(self, step: TrainingStep) -> Engine | None:
        return self.whole if self.by_step is None else self.by_step(step)


class _Loop:
    """Training from where a state stands, epoch by epoch, with what is written and shown of it."""

    def __init__(self, state: _Training, folder: RunFolder, engines: _Engines, bar: Progress, events: EventLog) -> None:
        self.state, self.folder, self.engines, self.bar, self.events = state, folder, engines, bar, events

    def epoch(self, on_step: Callable[[TrainingStep], None] | None, stop_after: int | None) -> bool:
        """Trains the rest of an epoch; returns False if ``stop_after`` ends it early."""
        state, config, started = self.state, self.state.config, time.monotonic()
        # A run resumed at the end of an epoch is tested at the precision of the step before.
        precision = state.precision(state.global_step - (state.step > 0))
        set_precision(state.model, precision)
        part = state.ranks.part
        for x, y in state.task.data.train_batches(config.batch, config.seed, state.epoch, state.step, part):
            if stop_after is not None and state.global_step >= stop_after:
                return False
            precision = state.precision(state.global_step)
            done = self._step(x, y, precision)
            if on_step is not None:
                on_step(done)
            if config.checkpoint_every and state.global_step % config.checkpoint_every == 0:
                self.events.flush()
                self.folder.save(state.state_dict())
        self._report(self._evaluate(), precision, started)
        self._close_epoch()
        return True

    def _step(self, x: Tensor, y: Tensor, precision: Precision) -> TrainingStep:
        """One step, with its line in the log and on the bar."""
        state = self.state
        now = TrainingStep(
            state.epoch,
            state.step,
            state.global_step,
            state.schedule.stage,
            state.stage_step,
            precision,
            state.batch_size(),
        )
        state.run.engine = self.engines.of(now)
        with arithmetic(state.run):
            loss = state.train_step(x, y, precision)
        state.step += 1
        state.stage_step += 1
        self.events.step(state.global_step, loss, state.optimizer.param_groups[0]["lr"])
        mean = state.loss_sum / state.seen
        self.bar.at(state.global_step, f"epoch {state.epoch + 1} bits {precision} loss {mean:.3f}")
        return replace(now, loss=loss)

    def _evaluate(self) -> float | None:
        """The test metric, where the recipe asks for it after this epoch."""
        state, config = self.state, self.state.config
        if (state.epoch + 1) % config.eval_every and state.epoch + 1 != config.epochs:
            return None
        state.run.engine = self.engines.evaluation
        with _without_cost(state.cost), arithmetic(state.run):
            return evaluate_network(state.model, state.task, config.eval_batch or config.batch, state.ranks)

    def _report(self, tested: float | None, precision: Precision, started: float) -> None:
        """Adds the epoch's row to the history and shows it."""
        state, metric, targets = self.state, self.state.task.metric, self.state.config.targets
        mean_loss, trained = state.loss_sum / state.seen, metric.value(state.score_sum, state.seen)
        row: dict[str, Any] = {
            "epoch": state.epoch + 1,
            "stage": state.schedule.stage,
            "bits": str(precision) if state.gated is None else "gated",
            "loss": mean_loss,
            f"train_{metric.name}": trained,
            f"test_{metric.name}": tested,
            "cp": state.cp_sum / state.seen,
            "target": targets[state.schedule.stage] if targets else None,
            "lr": state.optimizer.param_groups[0]["lr"],
            "cc": state.cost.paper,
            "cc_full": state.cost.full_total,
            "seconds": round(time.monotonic() - started, 3),
        }
        state.history.append(row)
        self.events.epoch(state.global_step, row)
        after = "" if tested is None else f"  test {metric.text(tested)}"
        self.bar.line(
            f"epoch {row['epoch']:3d}  bits {row['bits']:>8}  cp {row['cp']:5.2f} %  loss {mean_loss:.4f}  "
            f"train {metric.text(trained)}{after}  {row['seconds']:.1f} s"
        )

    def _close_epoch(self) -> None:
        """Moves the state to the next epoch and writes it."""
        state = self.state
        if state.schedule.epoch_finished(state.epoch, state.loss_sum / state.seen):
            state.stage_step = 0
        state.record.finish_epoch()
        state.epoch += 1
        state.step, state.seen = 0, 0
        state.loss_sum, state.cp_sum, state.score_sum = 0.0, 0.0, 0.0
        self.events.flush()
        try:
            self.folder.save(state.state_dict())
        finally:  # they may have their place on a disk that is too full for the checkpoint
            self.folder.write_metrics(state.history)
            self.folder.write_schedule(state.record.to_json())


def _result(state: _Training, *, finished: bool, seconds: float, counters: dict[str, int]) -> TrainingResult:
    """What the run has come to, from its state."""
    metric, cost = state.task.metric, state.cost
    scores = [row[f"test_{metric.name}"] for row in state.history if row[f"test_{metric.name}"] is not None]
    return TrainingResult(
        metric=metric.name,
        test_score=scores[-1] if scores else None,
        best_score=metric.best(scores) if scores else None,
        history=state.history,
        cc=cost.paper,
        cc_full=cost.full_total,
        cc_static=cost.per_image(Precision(8, 8, 8)) * cost.images,
        cp=cost.cp,
        images=cost.images,
        steps=state.global_step,
        finished=finished,
        seconds=seconds,
        counters=counters,
    )


def train(  # noqa: PLR0913 - what a program may ask of a training
    config: TrainConfig,
    engine: Engine | None = None,
    *,
    out: Path | None = None,
    on_step: Callable[[TrainingStep], None] | None = None,
    engine_for_step: Callable[[TrainingStep], Engine | None] | None = None,
    evaluation_engine: Engine | Literal["same"] | None = "same",
    data: ImageSet | FolderSet | TokenSet | None = None,
    resume: bool = False,
    progress: bool = False,
    stop_after: int | None = None,
    ranks: Ranks = ALONE,
    accelerator: str = "cpu",
) -> TrainingResult:
    """Trains a network as configured.

    Args:
        config: the recipe.
        engine: computes the quantized products exactly; None takes the fast floating-point path with the same codes.
        out: run folder, made if missing; None leaves no files.
        on_step: called after every step, with its loss.
        engine_for_step: called before every step; the engine that it returns computes that step (None: fast path).
        evaluation_engine: engine of the test passes; "same" takes ``engine``.
        data: data set, if not the one that ``config.data`` names.
        resume: continue from the run folder's checkpoint, on the device that the run began on; the rest of the run is
            bit for bit what it would have been (with another number of threads, which brings a warning, up to the last
            bits of float32 sums).  ``config`` may have more epochs: learning rate and cyclic precision then go on where
            they would be in a training of that length.
        progress: draw a progress bar.
        ranks: the processes that train together, each calling this function; only the first writes files.
        stop_after: stop, with a checkpoint, once this many steps are done in total.
        accelerator: see :func:`sw_model.train.accelerator.choose_accelerator`; exact engines take the CPU.

    Raises:
        ConfigError, DataError: before anything is written, if a choice is wrong or the data is unusable.
        MemoryPlanError: likewise, if the memory of the engine's device does not hold the steps.
    """
    started = time.monotonic()
    if engine is not None:
        check_engine(config)
    folder = RunFolder(out)
    saved = folder.saved(resume)
    task = open_task(config, data, None if out is None else out.parent / "cache")
    if ranks.several:
        check_ranks(config, task, engine is not None or engine_for_step is not None, ranks)
    device = RunDevice.of(
        engine, by_step=engine_for_step is not None, ranks=ranks, accelerator=choose_accelerator(accelerator).type
    )
    check_accelerator(config, device.accelerator)
    state = _Training(config, task, device, ranks, pretrained=saved is None)
    if out is not None:
        state.data = task.data.identity()
    if saved is not None:
        state.load_state_dict(saved)
    state.check_memory(engine)
    if not ranks.main:
        folder, progress = RunFolder(None), False
    engines = _Engines(engine, engine_for_step, engine if evaluation_engine == "same" else evaluation_engine)
    with folder.begun(config, device):
        if state.history:
            # A kill may have come between the checkpoint and what is written after it.
            folder.write_metrics(state.history)
            folder.write_schedule(state.record.to_json())
        finished = True
        state.model.train()
        with (
            Progress("training", state.steps, active=progress, stderr=False) as bar,
            EventLog(folder.path, state.global_step) as events,
        ):
            loop = _Loop(state, folder, engines, bar, events)
            while state.epoch < config.epochs and finished:
                finished = loop.epoch(on_step, stop_after)
        if not finished:
            folder.save(state.state_dict())
        elif isinstance(state.schedule, Pfq):
            what = f"cost target {config.targets[state.schedule.stage]} %" if config.targets else ""
            state.schedule.warn_if_unfinished(config.epochs, what)
        counters = dict(engine.meter.totals) if engine is not None else {}
        result = _result(state, finished=finished, seconds=time.monotonic() - started, counters=counters)
        folder.write_schedule(state.record.to_json())
        folder.finish({**asdict(result), "cost_by_layer": state.cost.full}, state.history, task.metric)
        return result
