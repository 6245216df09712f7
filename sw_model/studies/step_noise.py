"""Measurements: what a step's arithmetic does to its gradients, the fabric's and that with float32 normalisation.

Trainings show accuracy, which seeds move by points; a gradient shows rounding itself, in minutes: how far the mean over
roundings lies from float32's gradient (bias), and how far single ones lie from their mean (variance).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hw.nodes import KeptWidths
from sw_model.data.images import ImageSet
from sw_model.nn.layers import attach, set_precision
from sw_model.nn.models import Backbone, build_model, use_fabric_step
from sw_model.nn.precision import FULL, Precision, Run
from sw_model.step.fabric_step import bits_of
from sw_model.studies.accuracy import Estimate
from sw_model.studies.noise import warm_up

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class StepVariant:
    """How a step computes.

    Attributes:
        precision: of the operands.
        kept: widths of what the fabric's step keeps; None: normalisation in float32.
    """

    precision: Precision
    kept: KeptWidths | None = None


def step_variants(precision: Precision, widths: Sequence[int]) -> dict[str, StepVariant]:
    """Float32 normalisation and the fabric's step at a precision, and the latter with a width of what it keeps changed at a
    time.
    """
    own = KeptWidths.beside(bits_of(precision))
    found = {"float32 normalisation": StepVariant(precision), "fabric": StepVariant(precision, own)}
    for bits in widths:
        found[f"kept {bits}"] = StepVariant(precision, KeptWidths(bits, own.shortcut, own.gradient))
        found[f"shortcut {bits}"] = StepVariant(precision, KeptWidths(own.kept, bits, own.gradient))
        found[f"shortcut's gradient {bits}"] = StepVariant(precision, KeptWidths(own.kept, own.shortcut, bits))
    return found


@dataclass
class _Stepper:
    """A network that computes gradients as a variant does, its weights those of a trained one."""

    model: nn.Module
    run: Run

    @classmethod
    def of(cls, variant: StepVariant, trained: Mapping[str, Tensor], build: Callable[[], nn.Module]) -> _Stepper:
        model = build()
        if variant.kept is not None:
            assert isinstance(model, Backbone)
            use_fabric_step(model, variant.kept)
        model.load_state_dict(trained, strict=False)  # ranges that a step has seen are its own
        run = attach(model, Run())
        set_precision(model, variant.precision)
        return cls(model.train(), run)

    def gradient(self, batch: Batch, draw: int) -> Tensor:
        """Of all parameters, one float64 vector; ``draw`` counts roundings."""
        self.run.step = draw
        self.model.zero_grad(set_to_none=True)
        F.cross_entropy(self.model(batch[0]), batch[1]).backward()
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None]).double()

    def draws(self, before: Batch, batch: Batch, rounds: int) -> Tensor:
        """Gradients of ``rounds`` roundings; ranges are those behind the batch before, as in training."""
        self.gradient(before, 0)
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        found = []
        for draw in range(1, rounds + 1):
            self.model.load_state_dict(state)
            found.append(self.gradient(batch, draw))
        return torch.stack(found)


def _errors(found: Tensor, exact: Tensor) -> tuple[float, float]:
    """Variance and squared bias, the latter less what sampling adds, over the squared norm of the exact gradient."""
    mean, size = found.mean(0), float(exact.square().sum())
    variance = float(found.var(0).sum())
    return variance / size, (float((mean - exact).square().sum()) - variance / len(found)) / size


def bench_gradients(  # noqa: PLR0913 - the options of the command
    data: ImageSet,
    precisions: Sequence[Precision],
    widths: Sequence[int] = (4, 6),
    depth: int = 20,
    width: int = 16,
    batch: int = 128,
    steps: int = 100,
    batches: int = 4,
    rounds: int = 4,
    seed: int = 1,
    doing: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Bias and variance of a step's gradients against float32's, of a network in the midst of training.

    Args:
        data: images.
        precisions: of the operands.
        widths: to try for each thing that the fabric's step keeps.
        depth, width: of the ResNet.
        batch: images of a step.
        steps: of training before that, in float32.
        batches: to measure on, at least two.
        rounds: roundings of each, at least two.
        seed: of weights and order of images.
        doing: called with what is done now, for people.

    Returns:
        by precision and variant: ``variance`` and ``bias`` (squared), over the squared norm of float32's gradient, each the
        mean over batches and half of its 95 % interval; ``between_batches``: the variance of float32's gradients.

    Raises:
        ValueError: too few batches or rounds for an interval, or fewer images than a batch and its predecessor.
    """
    if batches < 2 or rounds < 2:
        raise ValueError(f"{batches} batches of {rounds} rounds have no interval; give two or more of each")

    def build() -> nn.Module:
        return build_model(f"resnet-{depth}", len(data.classes), data.image_shape, width=width, seed=seed)

    doing(f"{steps} training steps")
    trained = build()
    epoch = warm_up(trained, data, batch, steps, seed)
    drawn = [some for _, some in zip(range(batches + 1), data.train_batches(batch, seed, epoch + 1), strict=False)]
    if len(drawn) < batches + 1:
        raise ValueError(f"{batches} batches of {batch} and one before them are more than the images; give fewer")
    pairs, weights = list(itertools.pairwise(drawn)), trained.state_dict()
    float32 = _Stepper.of(StepVariant(FULL), weights, build)
    exact = [float32.gradient(now, 0) for _, now in pairs]
    report: dict[str, Any] = {"model": f"resnet-{depth}", "width": width, "batch": batch, "steps": steps, "seed": seed}
    report |= {"batches": batches, "rounds": rounds, "precisions": {}}
    sizes = sum(float(g.square().sum()) for g in exact) / batches
    report["between_batches"] = float(torch.stack(exact).var(0).sum()) / sizes
    for precision in precisions:
        rows = report["precisions"][str(precision)] = {}
        for name, variant in step_variants(precision, widths).items():
            doing(f"{precision}: {name}")
            stepper = _Stepper.of(variant, weights, build)
            errors = [_errors(stepper.draws(*pair, rounds), g) for pair, g in zip(pairs, exact, strict=True)]
            variance, bias = (asdict(Estimate.of(values)) for values in zip(*errors, strict=True))
            rows[name] = {"variance": variance, "bias": bias}
    return report


def print_gradients(report: dict[str, Any], as_json: bool) -> None:
    """The report of :func:`bench_gradients` as JSON or as a table."""
    if as_json:
        print(json.dumps(report))
        return
    from rich.table import Table

    from hw.console import console

    title = (
        f"gradients of {report['model']} after {report['steps']} steps against float32's, percent of their squared norm; "
        f"between batches {100 * report['between_batches']:.0f}"
    )
    table = Table("bits", "step", "variance", "squared bias", title=title)
    for precision, rows in report["precisions"].items():
        for name, row in rows.items():
            shown = (f"{100 * row[key]['mean']:.2f} ± {100 * row[key]['half']:.2f}" for key in ("variance", "bias"))
            table.add_row(precision, name, *shown)
    console().print(table)
