"""Precision schedules: which bits all layers use, epoch by epoch.

* ``Static``: one precision throughout (SBM's FW8/BW8 and the like).
* ``Pfq``: FracTrain's progressive fractional quantization (Fu et al. 2020, Algorithm 1): precision rises in stages,
  each time the training loss stops falling.
* ``Cyclic``: cyclic precision training (Fu et al. 2021), a cosine between two precisions.
* ``Manual``: stages at given epochs.

A precision is a tuple of widths in bits: weight, activation, gradient[, gradient in the weight gradient]; 0 stands for
float32.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Widths = tuple[int, ...]

#: Detail of the published indicator that mode "paper" keeps and a recipe's mode may name: its threshold decays after the
#: first two turns only, which shows where there are more than three.
SCHEDULE_DEFECTS = ("eps-decay",)
PUBLISHED_DECAYS = 2


class PrecisionSchedule(Protocol):
    """What the training loop asks of a schedule.  Epochs count from 0."""

    @property
    def stage(self) -> int:
        """Index of the current stage, for the record."""
        ...

    def widths(self, epoch: int, step: int, steps: int) -> Widths:
        """Widths of training step ``step`` of ``steps`` (of the whole training), which lies in ``epoch``."""
        ...

    def epoch_finished(self, epoch: int, loss: float) -> bool:
        """Takes the mean training loss of an epoch; True if the stage has changed."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Static:
    """The same precision at every step."""

    def __init__(self, widths: Widths) -> None:
        self._widths = widths
        self.stage = 0

    def widths(self, epoch: int, step: int, steps: int) -> Widths:
        return self._widths

    def epoch_finished(self, epoch: int, loss: float) -> bool:
        return False

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class Indicator:
    """PFQ's convergence indicator, apart from what a turn means.

    At the end of every epoch: ``S`` is the mean loss of the first ``norm_epochs`` epochs (of those so far, until then).
    While turns remain, the last ``window`` losses are kept; once there are that many and every earlier one differs from
    the last by at most ``eps * S``, a turn fires, the window empties and ``eps`` is multiplied by ``alpha``.

    Args:
        turns: how many turns there are (stages - 1).
        decays: turns after which eps decays, from the first on; None: all of them, as the paper has it.
        eps, alpha: threshold and its decay; 0.05 and 0.3 in the paper.
        window: losses compared, the last included; 5 in the published code, so turns are at least 5 epochs apart.
        norm_epochs: epochs whose mean loss normalises; 10 in the published code.
        deadlines: epoch (counted from 0) at whose end turn k is forced if it has not fired; one per turn, rising.  The
            published code has none, so a noisy loss may end training below its last stage.
    """

    def __init__(
        self,
        turns: int,
        eps: float = 0.05,
        alpha: float = 0.3,
        window: int = 5,
        norm_epochs: int = 10,
        deadlines: Sequence[int] | None = None,
        decays: int | None = None,
    ) -> None:
        if turns < 0 or window < 2 or norm_epochs < 1 or eps < 0 or not 0 < alpha <= 1:
            raise ValueError(
                f"indicator with turns={turns}, eps={eps}, alpha={alpha}, window={window}, norm_epochs={norm_epochs}: "
                "needs turns >= 0, eps >= 0, 0 < alpha <= 1, window >= 2, norm_epochs >= 1"
            )
        if deadlines is not None and (len(deadlines) != turns or list(deadlines) != sorted(set(deadlines))):
            raise ValueError(f"deadlines {list(deadlines)} must be {turns} rising epochs, one per turn")
        self.turns_total, self.alpha, self.window, self.norm_epochs = turns, alpha, window, norm_epochs
        self.deadlines = tuple(deadlines) if deadlines is not None else None
        self.decays = turns if decays is None else decays
        self.eps = eps
        self.turns = 0
        self.forced = 0
        self._losses: list[float] = []
        self._norm_sum, self._norm_count = 0.0, 0

    def epoch_finished(self, epoch: int, loss: float) -> bool:
        """Takes an epoch's mean loss; True if a turn fires (or its deadline forces it)."""
        if not math.isfinite(loss):
            raise ValueError(f"the loss of epoch {epoch} is {loss}; training has diverged: lower the learning rate")
        if self._norm_count < self.norm_epochs:
            self._norm_sum += loss
            self._norm_count += 1
        if self.turns >= self.turns_total:
            return False
        self._losses = [*self._losses, loss][-self.window :]
        scale = self._norm_sum / self._norm_count
        converged = len(self._losses) == self.window and all(
            abs(earlier - loss) <= self.eps * scale for earlier in self._losses[:-1]
        )
        overdue = self.deadlines is not None and epoch >= self.deadlines[self.turns]
        if not converged and not overdue:
            return False
        self.turns += 1
        self.forced += not converged
        self._losses = []
        if self.turns <= self.decays:
            self.eps *= self.alpha
        return True

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as plain numbers and lists."""
        return {
            "eps": self.eps,
            "turns": self.turns,
            "forced": self.forced,
            "losses": list(self._losses),
            "norm_sum": self._norm_sum,
            "norm_count": self._norm_count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: it is not of that form; nothing has changed then.
        """
        turns, forced, count = int(state["turns"]), int(state["forced"]), int(state["norm_count"])
        if not 0 <= forced <= turns <= self.turns_total:
            raise ValueError(f"{turns} turns, {forced} of them forced, of {self.turns_total}")
        eps, losses, total = float(state["eps"]), [float(v) for v in state["losses"]], float(state["norm_sum"])
        self.eps, self.turns, self.forced = eps, turns, forced
        self._losses, self._norm_sum, self._norm_count = losses, total, count


class Pfq:
    """Progressive fractional quantization: a list of precisions, advanced by :class:`Indicator`.

    Args:
        stages: precisions, lowest first; four in the paper.
        indicator: decides the turns; needs one turn less than there are stages.
    """

    def __init__(self, stages: Sequence[Widths], indicator: Indicator) -> None:
        if not stages or indicator.turns_total != len(stages) - 1:
            raise ValueError(f"{len(stages)} stages need {len(stages) - 1} turns, not {indicator.turns_total}")
        self.stages, self.indicator = tuple(stages), indicator

    @property
    def stage(self) -> int:
        return self.indicator.turns

    def widths(self, epoch: int, step: int, steps: int) -> Widths:
        return self.stages[self.stage]

    def epoch_finished(self, epoch: int, loss: float) -> bool:
        return self.indicator.epoch_finished(epoch, loss)

    def warn_if_unfinished(self, epochs: int, what: str = "") -> None:
        """Warns if training of ``epochs`` epochs has ended below the last stage, which ``what`` may describe."""
        if self.stage < len(self.stages) - 1:
            what = what or f"{'/'.join(map(str, self.stages[self.stage]))} bits"
            warnings.warn(
                f"PFQ ended after {epochs} epochs in stage {self.stage + 1} of {len(self.stages)} "
                f"({what}); set deadlines, raise eps or train longer",
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        return self.indicator.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.indicator.load_state_dict(state)


class Cyclic:
    """Cyclic precision training: weights and activations swing between two widths on a cosine, gradients stay.

    ``b(t) = rint(low + (high - low) / 2 * (1 - cos(pi * (t mod T) / T)))``, T = steps / cycles.  ``stage`` is the width
    last asked for.
    """

    def __init__(self, low: int = 3, high: int = 8, grad: int = 8, cycles: int = 32) -> None:
        if not 1 <= low <= high <= 16 or cycles < 1:
            raise ValueError(f"cyclic precision {low}..{high} bits in {cycles} cycles: needs 1 <= low <= high <= 16")
        self.low, self.high, self.grad, self.cycles = low, high, grad, cycles
        self.stage = low

    def widths(self, epoch: int, step: int, steps: int) -> Widths:
        period = max(steps / self.cycles, 1.0)
        bits = round(self.low + (self.high - self.low) / 2 * (1 - math.cos(math.pi * (step % period) / period)))
        self.stage = bits
        return bits, bits, self.grad

    def epoch_finished(self, epoch: int, loss: float) -> bool:
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"stage": self.stage}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stage = int(state["stage"])


class Manual:
    """Stages that begin at given epochs.

    Args:
        stages: (first epoch, precision) pairs, the first at epoch 0, rising.
    """

    def __init__(self, stages: Sequence[tuple[int, Widths]]) -> None:
        starts = [start for start, _ in stages]
        if not stages or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"manual stages must start at rising epochs beginning with 0, not {starts}")
        self.stages = tuple(stages)
        self.stage = 0

    def widths(self, epoch: int, step: int, steps: int) -> Widths:
        self.stage = sum(start <= epoch for start, _ in self.stages) - 1
        return self.stages[self.stage][1]

    def epoch_finished(self, epoch: int, loss: float) -> bool:
        return sum(start <= epoch + 1 for start, _ in self.stages) - 1 != self.stage

    def state_dict(self) -> dict[str, Any]:
        return {"stage": self.stage}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stage = int(state["stage"])


def make_schedule(recipe: Mapping[str, Any], decays: int | None = None) -> PrecisionSchedule:
    """A fresh schedule of a recipe.

    Args:
        recipe: settings by name; read are ``schedule``, ``stages``, ``starts``, ``targets``, ``deadlines``, ``eps``,
            ``alpha``, ``window``, ``norm_epochs``, ``low``, ``high`` and ``cycles``.
        decays: see :class:`Indicator`.

    Raises:
        ValueError: settings that exclude each other.
    """
    kind, targets = recipe["schedule"], recipe["targets"]
    stages: list[Widths] = [tuple(stage) for stage in recipe["stages"]]
    if kind == "static":
        if len(stages) != 1:
            raise ValueError(f"a static schedule has one stage, not {len(stages)}")
        return Static(stages[0])
    if kind == "cyclic":
        return Cyclic(recipe["low"], recipe["high"], stages[0][2], recipe["cycles"])
    if kind == "manual":
        if len(recipe["starts"]) != len(stages):
            raise ValueError(f"{len(stages)} manual stages need as many starts, not {len(recipe['starts'])}")
        return Manual(list(zip(recipe["starts"], stages, strict=True)))
    if kind == "dfq":
        stages = stages * len(targets) if len(stages) == 1 else stages
        if not targets or len(stages) != len(targets):
            raise ValueError(f"{len(targets)} targets need one stage or as many, not {len(stages)}")
    eps, alpha, window, norm_epochs = (recipe[name] for name in ("eps", "alpha", "window", "norm_epochs"))
    indicator = Indicator(len(stages) - 1, eps, alpha, window, norm_epochs, recipe["deadlines"] or None, decays)
    return Pfq(stages, indicator)


def scheduled_precisions(recipe: Mapping[str, Any]) -> list[Widths]:
    """All that a recipe's schedule may choose, those of a cyclic one with the lowest first; see :func:`make_schedule`."""
    stages: list[Widths] = [tuple(stage) for stage in recipe["stages"]]
    if recipe["schedule"] == "cyclic":
        return [(bits, bits, stages[0][2]) for bits in range(recipe["low"], recipe["high"] + 1)]
    return list(dict.fromkeys(stages))


def learning_rate(recipe: Mapping[str, Any], step: int, steps: int) -> float:
    """Learning rate of global step ``step`` of ``steps``.

    Args:
        recipe: settings by name; read are ``lr``, ``lr_schedule``, ``warmup``, and ``lr_decay`` and ``milestones``
            where the schedule is "steps".
    """
    position = step / steps
    lr, warmup, kind = float(recipe["lr"]), float(recipe["warmup"]), recipe["lr_schedule"]
    if position < warmup:
        return lr * (step + 1) / math.ceil(warmup * steps)
    if kind == "cosine":
        share = (position - warmup) / (1 - warmup)
        return lr * 0.5 * (1 + math.cos(math.pi * share))
    if kind == "inverse-sqrt":
        return lr * math.sqrt(math.ceil(warmup * steps) / (step + 1))
    return lr * float(recipe["lr_decay"]) ** sum(position >= milestone for milestone in recipe["milestones"])
