"""Gates on the board: what they choose from, and the cost term of the loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from host.arrays import Array
from host.board.operations import JobError, tree_sum
from host.grids import host_codes
from host.operands import Grid, Operand
from host.training.gate_cost import cost_factors


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

    def cost_term(self, cost: Array, task: Array, target: float, grad: Array | None = None) -> Array:
        """The cost's term of the loss, see :func:`host.training.gate_cost.cost_factors`; or its gradient by the cost.

        Args:
            cost, task, target: cost in percent of float32, loss of the task, cost to aim at.
            grad: gradient by the term; None asks for the term.

        Raises:
            JobError: operands that are not one number each.
        """
        value = cost if grad is None else grad
        if value.shape != () or cost.shape != () or task.shape != ():
            raise JobError("cost, loss and gradient are one number each")
        factors = cost_factors(float(cost), float(task), target, self.beta, band=self.band, cap=self.cap)
        if not factors:
            return np.zeros_like(value)
        for factor in factors if grad is None else reversed(factors):
            value = np.asarray(value * np.float32(factor))
        return value


def exact_option_products(x: Array, weight: Array, grids: list[Grid]) -> Array:
    """``sum weight[n] * Q_k(x)[n]`` for every sample n and per-tensor grid k: float32 (N, K)."""
    columns = []
    for grid in grids:
        values = host_codes(Operand(grid, values=x)).astype(np.float32) * grid.scale + grid.zero
        columns.append(tree_sum((weight * values).reshape(len(x), -1), (1,)))
    return np.stack(columns, 1).astype(np.float32)
