"""How good a trained network is: accuracy of a classifier, perplexity of a language model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


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
