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

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from host.operands import Grid
from host.windows import Window
from hw.files import write_atomically
from sw_model.convert.references import is_reference
from sw_model.convert.sites import MatmulSite, Site
from sw_model.data.inputs import ImageInputs
from sw_model.nn.layers import QConv2d, QLinear
from sw_model.train.recipe import ConfigError
from sw_model.trained.converted_layers import replace_products
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
    if not network.example.is_floating_point():
        raise ConfigError(
            f"{network.config.model} multiplies activations with each other, which this export does not quantize; "
            "export to .safetensors"
        )
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError("ONNX is not installed: pip install 'fractrain-fabric[export]'") from error
    model = _with_nodes(network)
    example = network.example.repeat(2, *[1] * (network.example.ndim - 1))
    with _quiet():
        program = torch.onnx.export(
            model, (example,), dynamo=True, opset_version=OPSET, input_names=["images"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("images")},), verbose=False,
        )  # fmt: skip
    assert program is not None
    program.model.metadata_props["recipe"] = network.config.to_toml()
    if isinstance(network.inputs, ImageInputs):
        program.model.metadata_props["inputs"] = json.dumps(network.inputs.record())
    content = program.model_proto.SerializeToString()
    write_atomically(out, content)
    return len(content)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what PyTorch's exporter says of packages that it could use, and of its own insides."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _with_nodes(network: TrainedNetwork) -> nn.Module:
    """A copy of the network whose quantized layers are written in ONNX's operations."""
    grids = layer_grids(network)
    model = copy.deepcopy(network.model)
    if is_reference(network.config.model):
        products = [m for m in model.modules() if isinstance(m, Site | MatmulSite)]
        replace_products(model, {m.called: nodes for m in products if (nodes := _nodes_of(m, grids)) is not None})
        return model.eval()
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


class _Weight(nn.Module):
    """A weight as codes."""

    codes: Tensor
    scale: Tensor
    point: Tensor
    zero: Tensor

    def __init__(self, grid: Grid, codes: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("codes", torch.from_numpy(codes))
        self.register_buffer("scale", torch.from_numpy(grid.scale))
        self.register_buffer("point", torch.zeros(len(grid.scale), dtype=self.codes.dtype))
        self.register_buffer("zero", torch.from_numpy(grid.zero).reshape(-1, *[1] * (codes.ndim - 1)))

    def forward(self) -> Tensor:
        operands = (self.codes, self.scale, self.point)
        return _node("DequantizeLinear", operands, torch.float32, self.codes.shape, axis=0) + self.zero


class _Layer(nn.Module):
    """A convolution or linear layer of ours with its weight as codes."""

    def __init__(self, layer: QConv2d | QLinear, grids: LayerGrids) -> None:
        super().__init__()
        self.quantizer, self.coded = _operands(grids)
        self.weight: Tensor = layer.weight.detach()  # where it is not coded
        self.bias = getattr(layer, "bias", None)
        self.window: dict[str, Any] | None = None
        if isinstance(layer, QConv2d):
            self.window = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.quantizer(x), self.weight if self.coded is None else self.coded()
        return F.linear(x, weight, self.bias) if self.window is None else F.conv2d(x, weight, self.bias, **self.window)


class _Product(nn.Module):
    """A product of a network of others with its weight as codes."""

    def __init__(self, grids: LayerGrids) -> None:
        super().__init__()
        self.quantizer, self.coded = _operands(grids)

    def forward(self, x: Tensor, weight: Tensor, window: Window, groups: int) -> Tensor:
        weight = weight if self.coded is None else self.coded()
        return F.conv2d(self.quantizer(x), weight, None, window.stride, window.padding, window.dilation, groups)


class _Matmul(nn.Module):
    """A product of two activations."""

    def __init__(self, left: LayerGrids, right: LayerGrids) -> None:
        super().__init__()
        self.left, self.right = _operands(left)[0], _operands(right)[0]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        y: Tensor = self.left(a) @ self.right(b)
        return y


def _operands(grids: LayerGrids) -> tuple[nn.Module, _Weight | None]:
    """Quantizer of what comes in, and the weight as codes, where they are quantized."""
    coded = None if grids.weight is None or grids.codes is None else _Weight(grids.weight, grids.codes)
    return _Quantizer(grids.inputs[0]) if grids.inputs else nn.Identity(), coded


def _nodes_of(product: nn.Module, grids: dict[str, LayerGrids]) -> nn.Module | None:
    """A product of a network of others in ONNX's operations; None: in float32."""
    if isinstance(product, MatmulSite):
        both = grids[product.called], grids[product.right.called]
        return _Matmul(*both) if both[0].inputs or both[1].inputs else None
    own = grids[product.called]  # type: ignore[index]
    return _Product(own) if own.weight is not None or own.inputs else None


def _node(kind: str, operands: tuple[Tensor, ...], dtype: torch.dtype, shape: Any, **attributes: int) -> Tensor:
    result: Tensor = torch.onnx.ops.symbolic(kind, operands, dict(attributes), dtype=dtype, shape=shape, version=OPSET)
    return result
