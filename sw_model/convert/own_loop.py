"""Precision, cost and record of a training loop of one's own, which calls two lines: see :class:`PrecisionScheduler`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from host.operands import Engine
from host.training.precision_schedule import Cyclic, Indicator, Manual, Pfq, Static
from hw.cost.training_schedule import RECORD, Trained
from hw.files import write_atomically
from sw_model.convert.conversion import as_precision, conversion_of
from sw_model.convert.own_gates import GateSchedule, OwnGates
from sw_model.convert.shapes import check_fits
from sw_model.convert.sites import MatmulSite
from sw_model.nn.cost_meter import CostMeter
from sw_model.nn.layers import QLayer, quantized_layers, set_precision
from sw_model.nn.precision import Precision
from sw_model.quantize.affine import derive_key
from sw_model.quantize.limits import refusal
from sw_model.train.record import RunSchedule

BitsLike = str | Sequence[int] | Precision
AnySchedule = Static | Pfq | Cyclic | Manual | GateSchedule


def _widths(bits: BitsLike) -> tuple[int, ...]:
    p = as_precision(bits)
    return (p.weight, p.activation, p.grad, *(() if p.weight_grad is None else (p.weight_grad,)))


def static(bits: BitsLike) -> Static:
    """One precision throughout, such as "8/8/8"."""
    return Static(_widths(bits))


def pfq(*stages: BitsLike, **indicator: Any) -> Pfq:
    """Progressive fractional quantization: stages in rising order, advanced as the loss settles.

    Args:
        stages: such as "3/3/6", "4/4/6", "8/8/8".
        indicator: ``eps``, ``alpha``, ``window``, ``norm_epochs`` and ``deadlines`` (the last epoch of each stage but the
            last, counted from 0) of :class:`host.training.precision_schedule.Indicator`.
    """
    return Pfq([_widths(stage) for stage in stages], Indicator(len(stages) - 1, **indicator))


def cyclic(low: int = 3, high: int = 8, gradients: int = 8, cycles: int = 8) -> Cyclic:
    """Cyclic precision: weights and activations swing between two widths; a :class:`PrecisionScheduler` with it takes ``steps``."""
    return Cyclic(low, high, gradients, cycles)


def manual(stages: Mapping[int, BitsLike]) -> Manual:
    """Precisions by the epoch (from 0) at which each begins."""
    return Manual([(start, _widths(bits)) for start, bits in sorted(stages.items())])


class PrecisionScheduler:
    """What accompanies a training loop: precision by step, cost, record.

    A loop calls ``step(loss)`` after every step of the optimizer and ``end_epoch()`` after every epoch::

        training = PrecisionScheduler(model, pfq("4/4/6", "8/8/8"))
        for epoch in range(epochs):
            for images, labels in batches:
                loss = cross_entropy(model(images), labels)
                optimizer.zero_grad(); loss.backward(); optimizer.step()
                training.step(loss)
            training.end_epoch()

    Forward passes in evaluation, or without gradients, cost nothing and belong to no step.  Several processes
    (:class:`torch.nn.parallel.DistributedDataParallel` around the model) have ranges and grids of their own batches, as
    they have statistics of normalisation, and advance by the mean loss of all.

    Args:
        model: converted, see :func:`sw_model.convert.conversion.convert`; not a wrapper around it.
        schedule: of :func:`static`, :func:`pfq`, :func:`cyclic`, :func:`manual` or
            :func:`sw_model.convert.own_gates.dfq`, whose gates are then the model's child ``gates``: make the optimizer after
            this, and go backward from ``with_cost(loss)``.
        steps: of the whole training, which a cyclic schedule has to know.
        samples: of an epoch, for the record; by default those of the first epoch.
        engine: computes quantized products as integers, see :func:`sw_model.train.engines.open_engine`; None takes the
            fast path.
        seed: of stochastic rounding.
        name: of the network, in the record.

    Attributes:
        cost: the meter: ``cost.cp`` in percent of float32, ``cost.paper`` and ``cost.full_total`` in float32
            multiply-accumulates.
        schedule: as given; of gates, what advances their target.

    Raises:
        ValueError: a model that is not converted, or precisions that the engine does not compute.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: AnySchedule,
        *,
        steps: int = 0,
        samples: int = 0,
        engine: Engine | None = None,
        seed: int = 0,
        name: str = "",
    ) -> None:
        self.conversion = conversion_of(model)
        self.model, self.steps = model, steps
        self.schedule = schedule.pfq if isinstance(schedule, GateSchedule) else schedule
        if isinstance(schedule, Cyclic) and steps < 1:
            raise ValueError(
                "a cyclic schedule swings over the whole training; give PrecisionScheduler its number of steps"
            )
        layers = dict(quantized_layers(model))
        self.run = next(iter(layers.values())).run
        _check_engine(engine, self.schedule, layers, self.run)
        several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
        self._processes = distributed.get_world_size() if several else 1
        self.run.engine = engine
        self.run.seed = derive_key(seed, distributed.get_rank()) if several else seed
        traced = self.conversion.traced
        if design := getattr(engine, "design", None):
            options = schedule.options if isinstance(schedule, GateSchedule) else ()
            kept: set[str] = getattr(model, "keep_full", set())
            check_fits(design, traced.shapes, [*_precisions(self.schedule), *options], kept)
        depthwise = frozenset(name for name, layer in layers.items() if layer.depthwise)
        attention = frozenset(name for name, layer in layers.items() if isinstance(layer, MatmulSite))
        self.gates: OwnGates | None = None
        counted = dict(traced.macs)
        if isinstance(schedule, GateSchedule):
            if why := refusal("gates", self.run):
                raise ValueError(why)
            self.gates = OwnGates(model, schedule, traced.inputs, traced.macs, self.run)
            counted = {
                name: counted[name] for row in self.gates.layers for name in row
            }  # as published: that of the blocks
        self.cost = CostMeter(counted, depthwise & counted.keys(), attention & counted.keys())
        trained = Trained(
            name or type(model).__name__, traced.outputs, 1, traced.sample or (1,), max(samples, 1), 1, traced.shapes
        )
        gate_macs = 0 if self.gates is None else sum(self.gates.gate_macs())
        blocks = [] if self.gates is None else self.gates.layers
        self.record = RunSchedule(
            trained, traced.macs, depthwise & traced.macs.keys(), self.gates is not None, gate_macs, blocks
        )
        self._samples = samples
        self.run.on_product = self._on_product
        self.epoch, self.global_step, self.seen = 0, 0, 0
        self._images, self._loss_sum, self._counted, self._counts = 0, 0.0, 0, False
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(self._after, always_call=True)
        self._apply()

    @property
    def bits(self) -> Precision:
        """Precision of the step that comes next."""
        return Precision(*self.schedule.widths(self.epoch, self.global_step, max(self.steps, 1)))

    def _apply(self) -> None:
        self.run.step = self.global_step
        set_precision(self.model, self.bits)

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._counts = model.training and torch.is_grad_enabled()
        if self._counts:
            batch = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim), None)
            self._images += 0 if batch is None else len(batch)

    def _after(self, *_: Any) -> None:
        self._counts = False

    def _on_product(self, layer: str, product: str, macs: int, a: int, b: int) -> None:
        if self._counts:
            self.cost.on_product(layer, product, macs, a, b)
            self.record.on_product(layer, product, macs, a, b)

    def with_cost(self, loss: Tensor) -> Tensor:
        """The loss to go backward from: with gates, and the cost of their choices; else as it is."""
        return loss if self.gates is None else self.gates.with_cost(loss)

    def step(self, loss: Tensor | float | None = None) -> None:
        """Closes a step: counts its cost, and sets the precision of the next one.

        Args:
            loss: of the batch, mean over its samples, which PFQ follows.

        Raises:
            RuntimeError: no forward pass in training since the last step; a loss that is not finite, as on an accelerator is
                that of a diverged network, whose quantizers raise nothing there.
        """
        if not self._images:
            raise RuntimeError(
                "no batch has gone through the model in training since the last step; call step() after it"
            )
        value = None if loss is None else float(loss.detach() if isinstance(loss, Tensor) else loss)
        if value is not None and not math.isfinite(value):
            raise RuntimeError(f"the loss is {value} at step {self.global_step}; lower the learning rate")
        precision = self.bits
        if self.gates is None:
            self.cost.step(precision, self._images)
            self.record.step(precision, self._images)
        else:
            choices = self.gates.take_choices()
            self.cost.step_gated(self.gates.shares(choices), precision)
            self.record.step(precision, self._images, self.gates.options, choices)
        if value is not None:
            self._loss_sum += value * self._images
            self._counted += self._images
        self.seen += self._images
        self._images = 0
        self.global_step += 1
        self._apply()

    def end_epoch(self, loss: float | None = None) -> bool:
        """Closes an epoch; True if the next one begins a new stage.

        Args:
            loss: mean training loss of the epoch; by default that of the losses that :meth:`step` was given.

        Raises:
            ValueError: no loss, which a schedule that follows it must have.
        """
        if loss is None and self._counted:
            sums = torch.tensor([self._loss_sum, float(self._counted)], dtype=torch.float64)
            if self._processes > 1:
                distributed.all_reduce(sums)
            loss = float(sums[0] / sums[1])
        if loss is None and isinstance(self.schedule, Pfq):
            raise ValueError("PFQ follows the training loss; give it to step(loss), or its mean to end_epoch(loss)")
        if not self._samples:
            self._samples = self.seen
            self.record.set_samples(self.seen)
        turned = self.schedule.epoch_finished(self.epoch, math.nan if loss is None else loss)
        self.record.finish_epoch()
        self.epoch += 1
        self.seen, self._loss_sum, self._counted = 0, 0.0, 0
        self._apply()
        return turned

    def save_record(self, folder: Path | str) -> Path:
        """Writes what really ran, for ``fractrain cost --schedule FOLDER`` and all that takes the folder of a run."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RECORD, self.record.to_json())
        return folder / RECORD

    def state_dict(self) -> dict[str, Any]:
        """What goes on after a stop, beside the states of model and optimizer; between steps."""
        return {
            "schedule": self.schedule.state_dict(),
            "cost": self.cost.state_dict(),
            "record": self.record.state_dict(),
            "position": [self.epoch, self.global_step, self.seen, self._samples, self._counted],
            "loss": self._loss_sum,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        self.schedule.load_state_dict(state["schedule"])
        self.cost.load_state_dict(state["cost"])
        self.record.load_state_dict(state["record"])
        self.epoch, self.global_step, self.seen, self._samples, self._counted = state["position"]
        self._loss_sum = state["loss"]
        if self._samples:
            self.record.set_samples(self._samples)
        self._apply()


def _precisions(schedule: AnySchedule) -> list[Precision]:
    """Every precision of a schedule; of a cyclic one, whose widths swing, the lowest."""
    assert not isinstance(schedule, GateSchedule)
    if isinstance(schedule, Pfq):
        return [Precision(*stage) for stage in schedule.stages]
    if isinstance(schedule, Manual):
        return [Precision(*widths) for _, widths in schedule.stages]
    return [Precision(*schedule.widths(0, 0, 1))]


def _check_engine(engine: Engine | None, schedule: AnySchedule, layers: dict[str, QLayer], run: Any) -> None:
    """Refuses what an engine, or a product of two activations, cannot compute, before anything is trained."""
    attention = next((name for name, layer in layers.items() if isinstance(layer, MatmulSite)), None)
    for precision in _precisions(schedule):
        if engine is not None and precision.quantized and max(precision.widths) > 16:
            raise ValueError(
                f"precision {precision} leaves an operand in float32, which engines do not multiply; give all operands 1..16 "
                "bits, or none, or take the fast path"
            )
        if attention and precision.quantized and not (precision.activation and precision.grad):
            raise ValueError(
                f"precision {precision} leaves activations or gradients in float32, which {attention} quantizes together"
            )
    if engine is not None and (why := refusal("engine", run)):
        raise ValueError(why)
