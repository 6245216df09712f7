"""How good a trained network is (accuracy of a classifier, perplexity of a language model), and what training it took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A figure of merit.

    Attributes:
        name: as columns and results call it.
        higher_is_better: which way it improves.
        exponential: the value is exp of the mean score instead of the mean score itself.
        percent: people read it in percent.
    """

    name: str
    higher_is_better: bool
    exponential: bool
    percent: bool

    def value(self, total: float, count: int) -> float:
        """The metric of ``count`` targets whose scores add up to ``total``."""
        if not self.exponential:
            return total / count
        # A network that is worse than guessing by far, as at the start, may exceed what a float can hold.
        mean = total / count
        return math.exp(mean) if mean < 700 else math.inf

    def best(self, values: Sequence[float]) -> float:
        """The best of several values."""
        return max(values) if self.higher_is_better else min(values)

    def text(self, value: float) -> str:
        """The value as people read it."""
        return f"{100 * value:.2f} %" if self.percent else f"{value:.2f}"


ACCURACY = Metric("accuracy", higher_is_better=True, exponential=False, percent=True)
PERPLEXITY = Metric("perplexity", higher_is_better=False, exponential=True, percent=False)
METRICS = {metric.name: metric for metric in (ACCURACY, PERPLEXITY)}


@dataclass(frozen=True)
class TrainingResult:
    """What a training run has come to.

    Attributes:
        metric: what scores are: "accuracy" (share of test images classified rightly) or "perplexity".
        test_score, best_score: at the end, and best of all evaluations; None if there was none.
        history: one row per epoch: epoch, stage, bits, loss, train and test metric (the latter may be None), cp
            (percent, as published: mean over samples and layers that the schedule governs), target, lr, cc, cc_full,
            seconds.
        cc: computational cost, paper's count, in float32 MACs; cc_full: every product as it ran; cc_static: paper's
            count of the same images at 8/8/8.
        cp: cc as a percentage of float32 training.  The paper's count of a gated run is that of the gated blocks, in
            ``cc``, ``cc_static`` and ``cp`` alike.
        images, steps: inputs (images or sequences) and steps trained on in total.
        finished: False if ``stop_after`` ended the run early.
        seconds: wall time of this call.
        counters: the engine's counters after the run (empty without an engine).
    """

    metric: str
    test_score: float | None
    best_score: float | None
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

    @property
    def test_accuracy(self) -> float:
        """``test_score`` of a classifier that has been tested."""
        return self._accuracy(self.test_score)

    @property
    def best_accuracy(self) -> float:
        """``best_score`` of a classifier that has been tested."""
        return self._accuracy(self.best_score)

    def _accuracy(self, score: float | None) -> float:
        if self.metric != "accuracy" or score is None:
            raise ValueError(f"no accuracy: the metric is {self.metric}, the score {score}")
        return score
