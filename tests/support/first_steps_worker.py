"""Trains twenty steps on the fast path in a process of its own; arguments: width, threads, bits such as 8/8/8, folder.

Prints the greatest difference of the first step's gradients from the exact engine's, relative to the layer's greatest: of
every layer alone, on the operands that it had in the network.  (Through the whole network a sum's last bit may turn a
code, and what lies behind it.)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from host.exact_engine import ExactEngine
from sw_model.nn import layers as L
from sw_model.train.loop import build_network, train
from sw_model.train.recipe import TrainConfig
from sw_model.train.tasks import open_task


def first_gradients_differ(config: TrainConfig) -> float:
    model, _ = build_network(config, open_task(config))
    L.attach(model, L.Run(seed=config.seed))
    L.set_precision(model, L.Precision(*config.stages[0]))
    seen: dict[str, list[Tensor]] = {}

    def keep(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[layer.name] = [inputs[0].detach()]
        output.register_hook(lambda grad: seen[layer.name].append(grad.clone()))

    chosen = [layer for _, layer in L.quantized_layers(model) if layer.precision.quantized]
    for layer in chosen:
        layer.register_forward_hook(keep)
    x = torch.randn(config.batch, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(model(x), torch.arange(config.batch) % 10).backward()
    fast = {layer.name: layer.weight.grad for layer in chosen}
    L.attach(model, L.Run(seed=config.seed, engine=ExactEngine()))
    worst = 0.0
    for layer in chosen:
        layer._forward_hooks.clear()
        layer.weight.grad = None
        x, grad = seen[layer.name]
        layer(x.requires_grad_()).backward(grad)
        exact, found = layer.weight.grad, fast[layer.name]
        assert exact is not None and found is not None
        worst = max(worst, float((found - exact).abs().max() / exact.abs().max()))
    return worst


def main() -> None:
    width, threads, bits, folder = sys.argv[1:]
    torch.set_num_threads(int(threads))
    stage = tuple(map(int, bits.split("/")))
    config = TrainConfig(
        width=int(width), epochs=1, batch=32, train_limit=640, test_limit=32, schedule="static", stages=(stage,)
    )  # fmt: skip
    print(first_gradients_differ(config))
    assert train(config, out=Path(folder)).steps == 20


if __name__ == "__main__":
    main()
