"""The grids of a trained network's layers: of its weights, with their codes, and of what comes in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from host.operands import Grid
from sw_model.convert.references import is_reference
from sw_model.nn.gates import GatedNetwork
from sw_model.nn.layers import QConv2d, QLayer, QLinear, quantized_layers
from sw_model.quantize.affine import affine_grid, grid_from_range, quantize
from sw_model.train.recipe import ConfigError
from sw_model.trained.converted_layers import site_weights
from sw_model.trained.trained_network import TrainedNetwork


@dataclass(frozen=True)
class LayerGrids:
    """How one layer's operands are quantized; a code ``q`` stands for ``scale * q + zero``.

    Attributes:
        weight: one grid per output channel, along axis 0; None: in float32.
        codes: of the weight, in its shape; uint8, beyond 8 bits uint16.
        inputs: the grid of what comes in, one for every width that gates choose from; none: in float32.
    """

    weight: Grid | None
    codes: np.ndarray | None
    inputs: tuple[Grid, ...]


def layer_grids(network: TrainedNetwork) -> dict[str, LayerGrids]:
    """The grids of all layers with weights, by name; of a network of others, of all its products.

    Raises:
        ConfigError: a method's quantizers, which have no affine grids; products whose weights depend on the input.
    """
    if network.config.quantizer != "affine":
        raise ConfigError(
            f"quantizer {network.config.quantizer!r} has grids of its own, which only training knows; export runs of "
            "quantizer 'affine'"
        )
    layers = quantized_layers(network.model)
    if is_reference(network.config.model):
        weights = site_weights(network.model, network.example)
        return {name: _grids(network, layer, weights.get(name)) for name, layer in layers}
    return {
        name: _grids(network, layer, layer.weight) for name, layer in layers if isinstance(layer, QConv2d | QLinear)
    }


def operand_widths(network: TrainedNetwork, layer: QLayer) -> tuple[int, tuple[int, ...]]:
    """Bits of a layer's weight, and those that its input may have; 0: float32."""
    model = network.model
    if isinstance(model, GatedNetwork) and layer in model.gated_layers():
        options = [option for option in model.options if option is not None]
        return options[0].weight, tuple(option.activation for option in options)
    return layer.precision.weight, (layer.precision.activation,)


def _grids(network: TrainedNetwork, layer: QLayer, weight: Tensor | None) -> LayerGrids:
    bits, incoming = operand_widths(network, layer)
    mode, trained = network.run.scale_mode, int(layer.batches) > 0  # gates may have left a layer out of all training
    inputs = tuple(
        grid_from_range(layer.running_low.cpu(), layer.running_span.cpu(), width, mode=mode)
        for width in incoming
        if width and trained
    )
    if not bits or weight is None:
        return LayerGrids(None, None, inputs)
    shape, weight = weight.shape, weight.detach()
    weight = weight if weight.ndim == 4 else weight[:, :, None, None]
    grid = affine_grid(weight, bits, axis=0, mode=mode)
    codes = quantize(weight, grid, axis=0).reshape(shape).numpy()
    return LayerGrids(grid, codes.astype(np.uint8 if bits <= 8 else np.uint16), inputs)
