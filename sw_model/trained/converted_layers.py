"""Weights of a network of others as its products take them: what its modules make of their parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from host.windows import Window
from sw_model.convert.observe import unchanged
from sw_model.convert.sites import Site
from sw_model.train.recipe import ConfigError


def site_weights(model: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """The weights (O, I/groups, kh, kw) of a converted network's products, by the names of the products.

    Args:
        model: in evaluation mode; left as it was.
        example: a batch of its inputs.

    Raises:
        ConfigError: a product whose weights depend on the input, or change from call to call, so that they have no codes.
    """
    found: dict[str, Tensor] = {}
    for batch in (example, torch.ones_like(example)):
        with _watched(model, found), torch.no_grad(), unchanged(model):
            model(batch)
    return found


@contextmanager
def _watched(model: nn.Module, found: dict[str, Tensor]) -> Iterator[None]:
    """Collects the weights of the products that a network makes."""
    sites = [module for module in model.modules() if isinstance(module, Site)]

    def watch(site: Site) -> None:
        def multiply(x: Tensor, weight: Tensor, window: Window, groups: int) -> Tensor:
            before = found.setdefault(site.called, weight.detach().clone())
            if not torch.equal(before, weight.detach()):
                raise ConfigError(
                    f"the weights of {site.called} depend on its network's input, so they have no codes of their own"
                )
            return type(site)._multiply(site, x, weight, window, groups)

        site._multiply = multiply  # type: ignore[method-assign]

    for site in sites:
        watch(site)
    try:
        yield
    finally:
        for site in sites:
            del site._multiply


def replace_products(model: nn.Module, layers: dict[str, Any]) -> None:
    """Has a converted network's products computed by other modules, in place.

    Args:
        layers: module by the name of a product; it takes what :meth:`Site._multiply` takes, or the factors (..., M, K) and
            (..., K, N) of a product of two activations.
    """
    for module in model.modules():
        layer = layers.get(getattr(module, "called", ""))
        if layer is not None:
            module.nodes = layer
            if isinstance(module, Site):
                module._multiply = layer.forward  # type: ignore[method-assign]
            else:
                module.forward = layer.forward  # type: ignore[method-assign]
