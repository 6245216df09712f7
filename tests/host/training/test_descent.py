"""A step of descent in NumPy against PyTorch's optimizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from host import native
from host.training.descent import all_descended, descended
from sw_model.nn.reproducible import Reproducible


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.5, 0.9, 0.999]),
    st.sampled_from([0.0, 1e-4, 0.03]),
    st.booleans(),
    st.floats(1e-4, 0.5),
)
def test_steps_are_pytorchs_to_the_bit(
    seed: int, count: int, momentum: float, decay: float, nesterov: bool, lr: float
) -> None:
    random = np.random.default_rng(seed)
    weight = random.standard_normal(count, dtype=np.float32)
    recipe = {"momentum": momentum, "weight_decay": decay, "nesterov": nesterov and momentum > 0}
    parameter, velocity = torch.nn.Parameter(torch.from_numpy(weight.copy())), None
    optimizer = torch.optim.SGD([parameter], lr=1.0, **recipe)
    for turn in range(4):
        gradient = random.standard_normal(count, dtype=np.float32)
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.param_groups[0]["lr"] = lr / (turn + 1)
        with Reproducible():
            optimizer.step()
        weight, velocity = descended(weight, gradient, velocity, lr / (turn + 1), recipe)
        assert weight.dtype == np.float32 and np.array_equal(weight, parameter.detach().numpy())
    assert (velocity is None) == (momentum == 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.9]), st.sampled_from([0.0, 1e-2]), st.booleans(), st.booleans())
def test_all_weights_together_take_the_steps_of_each(
    seed: int, momentum: float, decay: float, nesterov: bool, compiled: bool
) -> None:
    random = np.random.default_rng(seed)
    shapes = [(3, 2, 1, 1), (5,), (1,)][: 1 + seed % 3]
    recipe = {"momentum": momentum, "weight_decay": decay, "nesterov": nesterov and momentum > 0}
    weights = [random.standard_normal(shape, dtype=np.float32) for shape in shapes]
    alone, together = [(w, None) for w in weights], (weights, [None] * len(shapes))
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(native, "compiled_functions", lambda: None)
        for _ in range(3):
            gradients = [random.standard_normal(shape, dtype=np.float32) for shape in shapes]
            alone = [descended(w, g, v, 0.3, recipe) for (w, v), g in zip(alone, gradients, strict=True)]
            together = all_descended(together[0], gradients, together[1], 0.3, recipe)
            for (weight, velocity), *other in zip(alone, *together, strict=True):
                assert np.array_equal(weight, other[0])
                assert (velocity is None) == (other[1] is None)
                assert velocity is None or np.array_equal(velocity, other[1])
