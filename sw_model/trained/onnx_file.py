"""A trained network as an ONNX model with QuantizeLinear and DequantizeLinear nodes.

ONNX's quantizers have integer zero points; ours have any real zero, the least value.  So a weight is
``DequantizeLinear(codes) + zero``, and what comes into a layer is ``DequantizeLinear(QuantizeLinear((x - zero) / scale)) +
zero``, where QuantizeLinear, whose own scale is 1, rounds and clamps; without the zero where that is 0, as behind a ReLU.
The quotient is a product with the reciprocal, as it is in our quantizers: on a value half way between two codes, which
pixels with few levels often are, a division would round otherwise.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from host.operands import Grid
from hw.files import write_atomically
from sw_model.nn.layers import QConv2d, QLinear
from sw_model.train.recipe import ConfigError
from sw_model.trained.layer_grids import LayerGrids, layer_grids
from sw_model.trained.trained_network import TrainedNetwork

OPSET = 21  #: of ONNX: the first whose quantizers have 16 bits


def write_onnx(network: TrainedNetwork, out: Path) -> int:
    """Writes the network to ``out``; returns the size in bytes.

    The model maps ``images``, float32 (N, C, H, W) normalised as in training, to ``logits``, float32 (N, classes).  Its
    metadata has the recipe (TOML) and ``inputs`` (JSON: shape, classes, normalisation).

    Raises:
        ConfigError: ONNX is not installed; a network that no fixed graph of layers describes.
    """
    if network.gated:
        raise ConfigError(
            "gates choose the bits of every image anew, which ONNX's quantizers cannot; export to .safetensors"
        )
    if network.inputs is None:
        raise ConfigError(
            f"{network.config.model} multiplies activations with each other, which this export does not quantize; "
            "export to .safetensors"
        )
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError("ONNX is not installed: pip install 'fractrain-fabric[export]'") from error
    model = _with_nodes(network)
    example = torch.zeros(2, *network.inputs.shape)
    with _quiet():
        program = torch.onnx.export(
            model, (example,), dynamo=True, opset_version=OPSET, input_names=["images"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("images")},), verbose=False,
        )  # fmt: skip
    assert program is not None
    program.model.metadata_props.update(recipe=network.config.to_toml(), inputs=json.dumps(network.inputs.record()))
    content = program.model_proto.SerializeToString()
    write_atomically(out, content)
    return len(content)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what PyTorch's exporter says of packages that it could use, and of its own insides."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _with_nodes(network: TrainedNetwork) -> nn.Module:
    """A copy of the network whose quantized layers are written in ONNX's operations."""
    grids = layer_grids(network)
    model = copy.deepcopy(network.model)
    for name, own in grids.items():
        if own.weight is not None or own.inputs:
            layer = model.get_submodule(name)
            assert isinstance(layer, QConv2d | QLinear)
            layer.nodes = _Layer(layer, own)
            layer.forward = layer.nodes.forward  # type: ignore[method-assign]
            del layer.weight
    return model.eval()


class _Quantizer(nn.Module):
    """Values on a grid, by ONNX's nodes."""

    scale: Tensor
    unit: Tensor
    point: Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.kind = torch.uint8 if grid.bits <= 8 else torch.uint16
        self.low, self.reciprocal = float(grid.zero), float(grid.reciprocal)
        self.top = None if grid.bits in (8, 16) else grid.limits[1]  # other widths end below what their type holds
        self.register_buffer("scale", torch.tensor(float(grid.scale)))
        self.register_buffer("unit", torch.ones(()))
        self.register_buffer("point", torch.zeros((), dtype=self.kind))

    def forward(self, x: Tensor) -> Tensor:
        steps = (x - self.low if self.low else x) * self.reciprocal
        if self.top is not None:
            steps = steps.clamp(max=self.top)
        codes = _node("QuantizeLinear", (steps, self.unit, self.point), self.kind, x.shape)
        values = _node("DequantizeLinear", (codes, self.scale, self.point), torch.float32, x.shape)
        return values + self.low if self.low else values


class _Layer(nn.Module):
    """A convolution or linear layer with its weight as codes."""

    codes: Tensor
    scale: Tensor
    point: Tensor
    zero: Tensor

    def __init__(self, layer: QConv2d | QLinear, grids: LayerGrids) -> None:
        super().__init__()
        self.quantizer = _Quantizer(grids.inputs[0]) if grids.inputs else nn.Identity()
        self.weight: Tensor | None = None
        if grids.weight is None or grids.codes is None:
            self.weight = layer.weight.detach()
        else:
            self.register_buffer("codes", torch.from_numpy(grids.codes))
            self.register_buffer("scale", torch.from_numpy(grids.weight.scale))
            self.register_buffer(
                "point", torch.zeros(len(grids.weight.scale), dtype=torch.from_numpy(grids.codes).dtype)
            )
            shape = (-1, *[1] * (layer.weight.ndim - 1))
            self.register_buffer("zero", torch.from_numpy(grids.weight.zero).reshape(shape))
        self.bias = getattr(layer, "bias", None)
        self.window: dict[str, Any] | None = None
        if isinstance(layer, QConv2d):
            self.window = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if weight is None:
            operands = (self.codes, self.scale, self.point)
            weight = _node("DequantizeLinear", operands, torch.float32, self.codes.shape, axis=0) + self.zero
        x = self.quantizer(x)
        return F.linear(x, weight, self.bias) if self.window is None else F.conv2d(x, weight, self.bias, **self.window)


def _node(kind: str, operands: tuple[Tensor, ...], dtype: torch.dtype, shape: Any, **attributes: int) -> Tensor:
    result: Tensor = torch.onnx.ops.symbolic(kind, operands, dict(attributes), dtype=dtype, shape=shape, version=OPSET)
    return result
