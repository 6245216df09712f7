"""Gates on the board: what they choose from, and the cost term of the loss (Fu et al. 2020, as the software model)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from host.arrays import Array
from host.board.operations import JobError, tree_sum
from host.grids import host_codes
from host.operands import Grid, Operand


@dataclass(frozen=True)
class Gates:
    """A job's gates.

    Attributes:
        options: widths (activation, gradient) that every sample chooses from at every block.
        weight_bits: width of the weights in gated layers.
        beta, band, cap: weight of the cost, dead band around the target in percent, limit of the term as a share of the
            task loss (0: none).
    """

    options: tuple[tuple[int, int], ...]
    weight_bits: int
    beta: float
    band: float
    cap: float

    def members(self, mask: Array, samples: int) -> list[tuple[int, Array]]:
        """(option, indices of its samples) of every option that a sample has chosen.

        Raises:
            JobError: a mask of another shape.
        """
        if mask.shape != (samples, len(self.options)):
            raise JobError(f"a choice of {mask.shape} for {samples} samples and {len(self.options)} options")
        choice = mask.argmax(1)
        return [(k, np.flatnonzero(choice == k)) for k in range(len(self.options)) if (choice == k).any()]

    def cost_factors(self, cost: Array, task: Array, target: float) -> tuple[np.float32, ...]:
        """What the cost is multiplied by, factor by factor, to become its term of the loss: sign, limit and weight.

        Above the target cost is punished, below it rewarded; inside the band there is no term.

        Raises:
            JobError: operands that are no numbers.
        """
        if cost.shape != () or task.shape != ():
            raise JobError("cost and loss are one number each")
        now = float(cost)
        if abs(now - target) <= self.band:
            return (np.float32(0),)
        beta = np.float32(self.beta)
        sign = np.float32(1 if now > target else -1)
        term, limit = float(beta * cost), self.cap * float(task)
        if self.cap and term > limit:
            return beta, np.float32(limit / term), sign
        return beta, sign


def option_products(x: Array, weight: Array, grids: list[Grid]) -> Array:
    """``sum weight[n] * Q_k(x)[n]`` for every sample n and per-tensor grid k: float32 (N, K)."""
    columns = []
    for grid in grids:
        values = host_codes(Operand(grid, values=x)).astype(np.float32) * grid.scale + grid.zero
        columns.append(tree_sum((weight * values).reshape(len(x), -1), (1,)))
    return np.stack(columns, 1).astype(np.float32)
