"""Arithmetic beside the exact products: PyTorch's to rounding, and the board's to the bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from host.board import operations
from sw_model.nn.reproducible import Reproducible, sum_over


class Small(nn.Module):
    """A network with every kind of operation that the mode treats."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.cell, self.head = nn.LSTMCell(4, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x))).mean((2, 3))
        state = self.cell(x)
        state = self.cell(x, state)
        logits: Tensor = self.head(state[0])
        return logits * logits.softmax(1)


def step(threads: int, reproducible: bool) -> list[Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        network = Small()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        generator = torch.Generator().manual_seed(2)
        for _ in range(2):
            x, y = torch.randn(16, 3, 12, 12, generator=generator), torch.arange(16) % 6

            def run(x: Tensor = x, y: Tensor = y) -> None:
                optimizer.zero_grad()
                F.cross_entropy(network(x), y).backward()
                optimizer.step()

            if reproducible:
                with Reproducible():
                    run()
            else:
                run()
        return [v.detach().clone() for v in network.state_dict().values()]
    finally:
        torch.set_num_threads(before)


def test_steps_are_pytorchs_to_rounding_and_the_same_for_any_number_of_threads() -> None:
    plain, one, two = step(1, False), step(1, True), step(2, True)
    for a, b, c in zip(plain, one, two, strict=True):
        assert torch.equal(b, c)
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.data())
def test_sums_are_the_boards_to_the_bit(seed: int, shape: list[int], data: st.DataObject) -> None:
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True).map(sorted))
    values = (np.random.default_rng(seed).normal(size=shape) * 10.0 ** (seed % 7)).astype(np.float32)
    ours, theirs = operations.tree_sum(values, axes), sum_over(torch.from_numpy(values), axes).numpy()
    assert np.array_equal(ours, theirs)
    assert ours == pytest.approx(values.astype(np.float64).sum(tuple(axes)), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (5, 2, 3, 3), (8, 4, 7, 5)])
def test_batch_norm_is_the_boards_to_the_bit(shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    channels = shape[1]
    x, grad = torch.randn(shape).add(2).requires_grad_(), torch.randn(shape)
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            assert tensor is not None
            tensor.normal_()
    state = [t.detach().numpy().copy() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]  # type: ignore[union-attr]
    with Reproducible():
        y = norm(x)
        y.backward(grad)
    values = x.detach().numpy()
    ours, mean, inverse, new_mean, new_variance = operations.batch_norm(values, *state, momentum=0.1, eps=norm.eps)
    dx, dw, db = operations.batch_norm_gradient(grad.numpy(), values, state[0], mean, inverse)
    pairs: list[tuple[np.ndarray, Tensor | None]] = [
        (ours, y), (new_mean, norm.running_mean), (new_variance, norm.running_var),
        (dx, x.grad), (dw, norm.weight.grad), (db, norm.bias.grad),
    ]  # fmt: skip
    for found, wanted in pairs:
        assert wanted is not None
        assert np.array_equal(found, wanted.detach().numpy())
    norm.eval()
    with Reproducible(), torch.no_grad():
        fixed = norm(x)
    again = operations.batch_norm_fixed(values, state[0], state[1], new_mean, new_variance, eps=norm.eps)
    assert np.array_equal(again, fixed.numpy())


def layer_norm(a: Tensor, b: Tensor) -> Tensor:
    """The result, and the gradient by the bias."""
    bias = b[0].clone().requires_grad_()
    y = F.layer_norm(a, (a.shape[1],), b[1], bias)
    return torch.cat([y.detach(), torch.autograd.grad(y, bias, b)[0][None]])


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a.clone().lerp_(b, 0.1),
        lambda a, b: a.clone().addcmul_(b, b, value=0.3),
        lambda a, b: a.clone().addcdiv_(b, a.abs().add(1), value=-0.7),
        layer_norm,
    ],
    ids=["lerp", "addcmul", "addcdiv", "layer_norm"],
)
def test_operations_of_adam_and_transformers_round_once(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    a, b = torch.randint(-1000, 1000, (2, 40, 30), generator=torch.Generator().manual_seed(3)) / 1024
    with Reproducible():
        found = function(a, b)
    assert torch.equal(found, function(a.double(), b.double()).float())


@pytest.mark.parametrize("function", [F.relu, lambda x: x.mean((2, 3)), lambda x: x.sum((0, 2))])
def test_values_that_need_no_care_are_left_alone(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 3, 5, 5)
    with Reproducible():
        found = function(x)
        large = torch.full((3, 3), 2**40 + 1.0, dtype=torch.float64)
        assert torch.equal(large @ torch.eye(3, dtype=torch.float64), large)
        assert torch.equal(large[:1].sum(0), large[0])
    assert torch.allclose(found, function(x), atol=1e-5)
