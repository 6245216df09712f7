"""Replays every product of a training step on the fast path and on the exact engine, with the step's own operands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from host.exact_engine import ExactEngine
from host.operands import Engine
from sw_model.convert.sites import MatmulSite, Site


def _distance(a: Tensor, b: Tensor) -> float:
    """Greatest difference, as a share of the greatest value."""
    return float(((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).detach())


class BothPaths:
    """Hooks on the quantized layers of a converted network; ``distances`` has (layer, tensor, distance)."""

    def __init__(self, model: nn.Module) -> None:
        self.distances: list[tuple[str, str, float]] = []
        self._busy = False
        for module in model.modules():
            if isinstance(module, Site | MatmulSite):
                module.register_forward_hook(self._compare)

    @contextmanager
    def _again(self, layer: Any, engine: Engine | None) -> Iterator[None]:
        """The layer computes the same call again, on an engine."""
        ranges = [layer, getattr(layer, "right", layer)]
        before = layer.call_index, layer.run.engine
        layer.call_index, layer.run.engine, self._busy = layer.call_index - 1, engine, True
        for each in ranges:
            each.updates_range = False
        try:
            yield
        finally:
            (layer.call_index, layer.run.engine), self._busy = before, False
            for each in ranges:
                each.updates_range = True

    def _compare(self, layer: Any, args: tuple[Any, ...], output: Tensor) -> None:
        if self._busy or not layer.precision.quantized:
            return
        results = []
        for engine in (None, ExactEngine()):
            operands = [a.detach().clone().requires_grad_() if isinstance(a, Tensor) else a for a in args]
            with self._again(layer, engine):
                results.append((operands, layer(*operands)))
        (fast, y), (exact, z) = results
        self.distances.append((layer.name, "output", _distance(y, z)))

        def backward(grad: Tensor) -> None:
            # hooks run in the backward pass, where the engine of a call is that of its forward pass
            for made in (y, z):
                made.backward(grad)
            for position, (a, b) in enumerate(zip(fast, exact, strict=True)):
                if isinstance(a, Tensor) and b.grad is not None:
                    self.distances.append((layer.name, f"gradient {position}", _distance(a.grad, b.grad)))

        output.register_hook(backward)


def train_a_step(model: nn.Module, example: Any) -> float:
    """One step of gradient descent on a loss without meaning; the loss."""
    model.train()
    output = model(*example) if isinstance(example, tuple) else model(example)
    loss = output.square().mean() + output.mean()
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    return float(loss.detach())
