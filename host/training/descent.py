"""A step of gradient descent, as jobs take it on the board."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from host.arrays import F32


def descended(
    weight: F32, gradient: F32, velocity: F32 | None, lr: float, recipe: Mapping[str, Any]
) -> tuple[F32, F32 | None]:
    """A weight after a step of stochastic gradient descent, and its velocity; float32, every operation rounded.

    PyTorch has the same in ``torch.optim.SGD``, a library that training on the workstation takes as it is, and that the
    board does not have.  ``tests/host/training/test_descent.py`` holds both equal to the bit.

    Args:
        weight, gradient: of one shape.
        velocity: of the step before; None: this is the first.
        lr: learning rate.
        recipe: has "momentum", "weight_decay" and "nesterov".
    """
    if recipe["weight_decay"]:
        gradient = gradient + np.float32(recipe["weight_decay"]) * weight
    if recipe["momentum"]:
        share = np.float32(recipe["momentum"])
        velocity = np.array(gradient) if velocity is None else share * velocity + gradient
        gradient = gradient + share * velocity if recipe["nesterov"] else velocity
    return weight - np.float32(lr) * gradient, velocity
