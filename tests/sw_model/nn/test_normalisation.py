"""Batch normalisation's kernel against PyTorch in double precision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sw_model.nn.models import build_model
from sw_model.nn.normalisation import normalise
from sw_model.quantize import kernels

compiled = pytest.mark.skipif(kernels.library() is None, reason="no C++ compiler")


def make(channels: int, offset: float = 0.0, size: tuple[int, int] = (9, 7)) -> tuple[nn.BatchNorm2d, Tensor, Tensor]:
    torch.manual_seed(channels)
    norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.3)
    nn.init.uniform_(norm.weight, -1, 2)
    nn.init.normal_(norm.bias)
    x = torch.randn(6, channels, *size) * torch.rand(channels, 1, 1) + offset
    return norm, x, torch.randn_like(x)


def results(norm: nn.Module, x: Tensor, residual: Tensor | None, relu: bool, plain: bool) -> dict[str, Tensor]:
    """Output, gradients and running statistics of a copy of ``norm``."""
    norm = copy.deepcopy(norm).to(x.dtype)
    leaves = {"x": x.clone().requires_grad_()}
    if residual is not None:
        leaves["residual"] = residual.clone().requires_grad_()
    if plain:
        y = norm(leaves["x"])
        y = y if residual is None else y + leaves["residual"]
        y = F.relu(y) if relu else y
    else:
        y = normalise(norm, leaves["x"], leaves.get("residual"), relu=relu)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape).cos())
    found = {"y": y.detach(), **{f"{k} gradient": v.grad for k, v in leaves.items()}}
    found |= {f"{k} gradient": v.grad for k, v in norm.named_parameters()}
    return {**found, **dict(norm.named_buffers())}  # type: ignore[dict-item]


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@compiled
@pytest.mark.parametrize("channels", [3, 16, 40])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_kernel_is_as_close_to_double_precision_as_pytorch(
    channels: int, add: bool, relu: bool, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm, x, more = make(channels, offset)
    residual = more if add else None
    wanted = results(norm, x.double(), more.double() if add else None, relu, plain=True)
    usual = results(norm, last(x), None if residual is None else last(residual), relu, plain=True)
    calls = []
    kernel = kernels.normalise_batch
    monkeypatch.setattr(kernels, "normalise_batch", lambda *a: calls.append(1) or kernel(*a))
    found = results(norm, last(x), residual, relu, plain=False)
    assert calls and found.keys() == wanted.keys()
    for name, value in found.items():
        exact, scale = wanted[name].double(), float(wanted[name].double().abs().max())
        error, allowed = (value - exact).abs().max(), (usual[name] - exact).abs().max()
        assert error <= 4 * allowed + 1e-6 * scale, name


@compiled
def test_results_do_not_depend_on_threads() -> None:
    norm, x, residual = make(24, size=(40, 40))
    before = torch.get_num_threads()
    every = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            every.append(results(norm, last(x), last(residual), True, plain=False))
    finally:
        torch.set_num_threads(before)
    for name, value in every[0].items():
        assert all(torch.equal(value, other[name]) for other in every[1:]), name


@compiled
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stay_visible(value: float) -> None:
    norm, x, _ = make(16)
    x[0, 3, 0, 0] = value
    assert normalise(norm, last(x))[:, 3].isnan().any()


def test_whatever_has_no_kernel_is_pytorchs() -> None:
    norm, x, residual = make(4)
    for other in (norm.eval(), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, momentum=None), nn.Identity()):
        assert torch.equal(normalise(copy.deepcopy(other), last(x), residual), F.relu(other(last(x)) + residual))
    norm.train()
    assert torch.equal(normalise(copy.deepcopy(norm), x, relu=False), norm(x))
    with pytest.raises(ValueError, match="more than 1 value"):
        normalise(norm, torch.randn(1, 4, 1, 1))


@compiled
@pytest.mark.parametrize("name", ["resnet-8", "resnet-18", "mobilenetv2"])
def test_networks_compute_the_same_with_and_without_the_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    # In float32, for rounding would make large differences of small ones.
    x, y = last(torch.randn(8, 3, 32, 32)), torch.randint(0, 10, (8,))
    gradients = []
    for compiler in (True, False):
        model = build_model(name, 10, (3, 32, 32), width=8)
        if not compiler:
            monkeypatch.setattr(kernels, "library", lambda: None)
        F.cross_entropy(model(x), y).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).norm() <= 5e-2 * gradients[1].norm()  # a rounding may flip a ReLU
