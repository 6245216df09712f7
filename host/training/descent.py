"""A step of gradient descent, as jobs take it on the board."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from host import native
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


def all_descended(
    weights: Sequence[F32], gradients: Sequence[F32], velocities: Sequence[F32 | None], lr: float, recipe: Mapping[str, Any]
) -> tuple[list[F32], list[F32 | None]]:
    """All weights after a step, and their velocities, whose arrays it takes over; see :func:`descended`.

    It is one call of C, or the same with NumPy.

    Args:
        velocities: they hold nothing that counts afterwards.
    """
    sizes, momentum = [each.size for each in weights], recipe["momentum"]
    weights, gradients = ([np.ascontiguousarray(a, np.float32) for a in arrays] for arrays in (weights, gradients))
    fresh = [bool(momentum) and each is None for each in velocities]
    moved = [
        np.empty_like(w) if new else np.require(v, np.float32, ["C", "W"]) if momentum else v
        for w, v, new in zip(weights, velocities, fresh, strict=True)
    ]
    flat, starts = np.empty(sum(sizes), np.float32), [0, *itertools.accumulate(sizes)]
    found = [flat[at : at + each.size].reshape(each.shape) for at, each in zip(starts, weights, strict=False)]
    table = np.empty((len(sizes), 6), np.int64)
    table[:, 0], table[:, 1] = [native.address(a) for a in weights], [native.address(a) for a in gradients]
    table[:, 2] = [0 if a is None else native.address(a) for a in moved]
    table[:, 3] = native.address(flat) + flat.itemsize * np.array(starts[:-1])
    table[:, 4], table[:, 5] = fresh, sizes
    if native.descend(table, lr, momentum, recipe["weight_decay"], bool(recipe["nesterov"])):
        return found, moved
    pairs = [descended(*each, lr, recipe) for each in zip(weights, gradients, velocities, strict=True)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
