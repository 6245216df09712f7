"""What training costs: CC (computational cost) and cp (its share of float32), by product and layer.

FracTrain's count (Fu et al. 2020, section 4.1): a product of ``m`` multiply-accumulates on operands of ``a`` and ``b``
bits costs ``m * a * b / 1024``, where 1024 = 32*32 makes one float32 multiply-accumulate cost 1.  A training step is
thus ``MAC * (a*w + g*w + a*g) / 1024`` per image.

Two counts are kept apart.  The *paper's* takes every convolution and linear layer at the scheduled precision and
charges all three products of each, whether or not they run so.  The *full* one takes every product that was computed,
at the widths it had: layers left in float32 and the gates at 32 bits, no input gradient for the first layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hw.networks import PRODUCTS
from sw_model.nn.layers import DEPTHWISE, quantized_layers
from sw_model.nn.precision import FULL, Precision, Run

GATES = "gates."  #: before a block's number, in the name by which its gate reports


def step_factor(precision: Precision) -> float:
    """Cost of one MAC of a layer over the three products of a training step, in float32 MACs (3 for float32)."""
    w, a, g, last = precision.widths
    return (a * w + g * w + a * last) / 1024


@torch.no_grad()
def layer_macs(model: nn.Module, example: Tensor | tuple[int, int, int]) -> dict[str, int]:
    """Multiply-accumulates per image and product of every convolution and linear layer, found by running one image.

    Args:
        model: the network.
        example: a batch of one input, or the shape of an image.

    The model is left as it was: parameters, running statistics, mode and run.
    """
    found: dict[str, int] = {}

    def note(layer: str, product: str, macs: int, a: int, b: int) -> None:
        found[layer] = found.get(layer, 0) + macs

    layers, run = list(quantized_layers(model)), Run(on_product=note)
    before = [(layer, layer.run, layer.name, layer.precision) for _, layer in layers]
    was_training = model.training
    try:
        model.eval()
        for name, layer in layers:
            layer.run, layer.name, layer.precision = run, name, FULL
        device = next(model.parameters()).device
        model(example.to(device) if isinstance(example, Tensor) else torch.zeros(1, *example, device=device))
    finally:
        for layer, run, name, precision in before:
            layer.run, layer.name, layer.precision = run, name, precision
        model.train(was_training)
    return found


@dataclass
class CostMeter:
    """Adds up cost during training.

    Attributes:
        macs: per image and product, by layer that the paper's count has.
        depthwise: layers that keep ``DEPTHWISE`` in the paper's count whenever the others are quantized.
        attention: layers that multiply two activations, so that the second has the activation's width.
        paper: CC of the paper's count so far, in float32 MACs.
        full: cost by layer and product so far, in float32 MACs; fed by :meth:`on_product`.
        images: training images so far.
    """

    macs: dict[str, int]
    depthwise: frozenset[str] = frozenset()
    attention: frozenset[str] = frozenset()
    paper: float = 0.0
    full: dict[str, dict[str, float]] = field(default_factory=dict)
    images: int = 0
    paused: bool = False

    def on_product(self, layer: str, product: str, macs: int, a: int, b: int) -> None:
        """Hook for :class:`sw_model.nn.precision.Run`; evaluation passes are not training cost, so it may be paused."""
        if not self.paused:
            row = self.full.setdefault(layer, dict.fromkeys(PRODUCTS, 0.0))
            row[product] += macs * a * b / 1024

    def step(self, precision: Precision, images: int) -> None:
        """Counts one training step of ``images`` images at ``precision`` in the paper's count."""
        self.paper += self.per_image(precision) * images
        self.images += images

    def per_image(self, precision: Precision) -> float:
        """Cost of training on one image at ``precision`` in the paper's count."""
        whole = sum(self.macs.values())
        own = sum(self.macs[name] for name in self.depthwise) if precision.quantized else 0
        both = sum(self.macs[name] for name in self.attention)
        _, a, g, _ = precision.widths
        attention = Precision(a, a, g)
        rest = whole - own - both
        return rest * step_factor(precision) + own * step_factor(DEPTHWISE) + both * step_factor(attention)

    def step_gated(self, shares: dict[str, Tensor], precision: Precision) -> None:
        """Counts one training step in which every gated block's layers cost a share of float32 that varies by sample.

        Args:
            shares: cost of each sample relative to float32, (N,), by prefix of the layers' names.  Layers under no
                prefix stay out of the paper's count, as they do in the published one.
            precision: of the schedule, by which depthwise layers under a prefix go: gates do not govern them.
        """
        own = step_factor(DEPTHWISE if precision.quantized else precision)
        for prefix, share in shares.items():
            inside = {name: n for name, n in self.macs.items() if name == prefix or name.startswith(prefix + ".")}
            if not inside:
                raise ValueError(f"no layer's name starts with {prefix!r}")
            fixed = sum(count for name, count in inside.items() if name in self.depthwise)
            self.paper += 3.0 * (sum(inside.values()) - fixed) * float(share.double().sum()) + own * fixed * len(share)
        self.images += len(next(iter(shares.values())))

    @property
    def full_total(self) -> float:
        """CC of the full count so far, in float32 MACs."""
        return sum(sum(row.values()) for row in self.full.values())

    @property
    def cp(self) -> float:
        """Mean cost so far as a percentage of float32, paper's count."""
        whole = 3.0 * sum(self.macs.values()) * self.images
        return 100 * self.paper / whole if whole else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"paper": self.paper, "full": {k: dict(v) for k, v in self.full.items()}, "images": self.images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.paper, self.images = state["paper"], state["images"]
        self.full = {k: dict(v) for k, v in state["full"].items()}
