"""The cost term of a gated network's loss (Fu et al. 2020): what steers the gates to their target."""

from __future__ import annotations

import numpy as np


def cost_factors(
    cost: float, task: float, target: float, beta: float, *, band: float = 0.0, cap: float = 0.0
) -> tuple[float, ...]:
    """What the cost is multiplied by, one factor after the other in single precision, to become its term of the loss.

    Above the target cost is punished, below it rewarded, so the gates use the budget up.

    Args:
        cost, target: percent of float32.
        task: the task's loss.
        beta: weight of the cost.
        band: no term while the cost is within this many percent of the target.
        cap: limit of the term as a share of the task's loss (the published code offers 0.1); 0: none.

    Returns:
        Weight, share that the limit leaves (if it does limit), and sign; nothing inside the band.
    """
    if abs(cost - target) <= band:
        return ()
    sign = 1.0 if cost > target else -1.0
    term, limit = float(np.float32(beta) * np.float32(cost)), cap * task
    return (beta, limit / term, sign) if cap and term > limit else (beta, sign)
