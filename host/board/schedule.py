"""Precision schedules and learning rate on the board; the same decisions as the software model's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Widths = tuple[int, ...]  #: weight, activation, gradient[, gradient in the weight gradient]; all 0: float32


class Schedule:
    """One precision per step.

    Args:
        recipe: the keys ``schedule``, ``stages``, ``starts``, ``targets``, ``deadlines``, ``eps``, ``alpha``, ``window``,
            ``norm_epochs``, ``low``, ``high``, ``cycles`` of a job's recipe.

    Raises:
        ValueError: settings that exclude each other.
    """

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        self.kind: str = recipe["schedule"]
        self.stages: tuple[Widths, ...] = tuple(recipe["stages"])
        self.starts: tuple[int, ...] = tuple(recipe["starts"])
        self.deadlines: tuple[int, ...] = tuple(recipe["deadlines"])
        self.low, self.high, self.cycles = recipe["low"], recipe["high"], recipe["cycles"]
        self.alpha, self.window, self.norm_epochs = recipe["alpha"], recipe["window"], recipe["norm_epochs"]
        if self.kind == "static" and len(self.stages) != 1:
            raise ValueError(f"a static schedule has one stage, not {len(self.stages)}")
        if self.kind == "manual" and (
            len(self.starts) != len(self.stages) or self.starts[0] or list(self.starts) != sorted(set(self.starts))
        ):
            raise ValueError(f"manual stages need as many rising starts from 0, not {list(self.starts)}")
        self.targets: tuple[float, ...] = tuple(recipe["targets"])
        if self.kind == "dfq":
            self.stages = self.stages * len(self.targets) if len(self.stages) == 1 else self.stages
            if not self.targets or len(self.stages) != len(self.targets):
                raise ValueError(f"{len(self.targets)} targets need one stage or as many, not {len(self.stages)}")
        turns = len(self.stages) - 1
        if self.kind in ("pfq", "dfq"):
            if self.window < 2:
                raise ValueError(f"window = {self.window} must be at least 2")
            if self.deadlines and (len(self.deadlines) != turns or list(self.deadlines) != sorted(set(self.deadlines))):
                raise ValueError(f"deadlines {list(self.deadlines)} must be {turns} rising epochs")
        if self.kind == "cyclic" and (self.low > self.high or not 1 <= self.stages[0][2] <= 16):
            raise ValueError(f"cyclic precision {self.low}..{self.high} with gradients of {self.stages[0][2]} bits")
        self.stage = 0
        self.eps: float = recipe["eps"]
        self.losses: list[float] = []
        self.norm_sum, self.norm_count = 0.0, 0

    def widths(self, epoch: int, step: int, steps: int) -> Widths:
        """Widths of training step ``step`` of ``steps``, which lies in ``epoch``; both count from 0."""
        if self.kind == "cyclic":
            period = max(steps / self.cycles, 1.0)
            swing = 1 - math.cos(math.pi * (step % period) / period)
            bits = round(self.low + (self.high - self.low) / 2 * swing)
            return bits, bits, self.stages[0][2]
        if self.kind == "manual":
            self.stage = sum(start <= epoch for start in self.starts) - 1
        return self.stages[self.stage]

    @property
    def target(self) -> float | None:
        """Cost that gates aim at now, percent of float32; None without gates."""
        return self.targets[self.stage] if self.targets else None

    def epoch_finished(self, epoch: int, loss: float) -> None:
        """Take an epoch's mean loss; PFQ may turn to its next stage, FracTrain to its next target.

        Raises:
            ValueError: the loss is not finite.
        """
        if not math.isfinite(loss):
            raise ValueError(f"the loss of epoch {epoch} is {loss}; training has diverged: lower the learning rate")
        if self.kind not in ("pfq", "dfq"):
            return
        if self.norm_count < self.norm_epochs:
            self.norm_sum += loss
            self.norm_count += 1
        if self.stage >= len(self.stages) - 1:
            return
        self.losses = [*self.losses, loss][-self.window :]
        limit = self.eps * (self.norm_sum / self.norm_count)
        settled = len(self.losses) == self.window and all(abs(e - loss) <= limit for e in self.losses[:-1])
        overdue = bool(self.deadlines) and epoch >= self.deadlines[self.stage]
        if settled or overdue:
            self.stage += 1
            self.losses = []
            self.eps *= self.alpha

    def state(self) -> dict[str, Any]:
        """Everything that changes, for a checkpoint."""
        return {
            "stage": self.stage,
            "eps": self.eps,
            "losses": list(self.losses),
            "norm_sum": self.norm_sum,
            "norm_count": self.norm_count,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` gave.

        Raises:
            ValueError: it is not of that form.
        """
        stage = int(state["stage"])
        if not 0 <= stage < len(self.stages):
            raise ValueError(f"stage {stage} of {len(self.stages)}")
        self.stage, self.eps = stage, float(state["eps"])
        self.losses = [float(v) for v in state["losses"]]
        self.norm_sum, self.norm_count = float(state["norm_sum"]), int(state["norm_count"])


def make_schedule(recipe: Mapping[str, Any]) -> Schedule:
    """A fresh schedule of a recipe; see :class:`Schedule`."""
    return Schedule(recipe)


def learning_rate(recipe: Mapping[str, Any], step: int, steps: int) -> float:
    """Learning rate of global step ``step`` of ``steps``."""
    position = step / steps
    lr, warmup = float(recipe["lr"]), float(recipe["warmup"])
    if position < warmup:
        return lr * (step + 1) / math.ceil(warmup * steps)
    if recipe["lr_schedule"] == "cosine":
        share = (position - warmup) / (1 - warmup)
        return lr * 0.5 * (1 + math.cos(math.pi * share))
    return lr * float(recipe["lr_decay"]) ** sum(position >= m for m in recipe["milestones"])
