"""Layers and trainings by the methods that FracTrain is compared with, against formulas worked out element by element."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from host.exact_engine import ExactEngine
from sw_model.data.images import ImageSet
from sw_model.nn.layers import QConv2d, QLinear
from sw_model.nn.models import build_model
from sw_model.nn.precision import Precision, Run
from sw_model.nn.transformer import QMatmul
from sw_model.quantize.affine import derive_key, random_units
from sw_model.quantize.methods import RangeBatchNorm2d
from sw_model.train.loop import train
from sw_model.train.recipe import ConfigError, TrainConfig

BITS = Precision(4, 3, 5)


def layer_and_tensors(quantizer: str, channels: int = 3) -> tuple[QConv2d, Tensor, Tensor]:
    torch.manual_seed(3)
    layer = QConv2d(channels, 4, 3, 2, 1)
    layer.run, layer.precision = Run(seed=5, step=7, quantizer=quantizer), BITS
    x = (0.7 * torch.randn(6, channels, 5, 5)).requires_grad_()
    return layer, x, torch.randn(6, 4, 3, 3) * torch.logspace(-2, 0, 6)[:, None, None, None]


def plain_gradients(x: Tensor, w: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Of a convolution of stride 2 and padding 1, by autograd in double precision."""
    x, w = x.detach().double().requires_grad_(), w.detach().double().requires_grad_()
    F.conv2d(x, w, None, 2, 1).backward(g.double())
    assert x.grad is not None and w.grad is not None
    return x.grad, w.grad


def each(function: Any, *tensors: Tensor) -> Tensor:
    """A scalar function applied element by element in Python's double precision."""
    values = [function(*(float(v) for v in row)) for row in zip(*(t.flatten() for t in tensors), strict=True)]
    return torch.tensor(values, dtype=torch.float64).reshape(tensors[0].shape)


def close(a: Tensor | None, b: Tensor) -> bool:
    assert a is not None
    return bool((a.double() - b).abs().max() <= 1e-5 * b.abs().max())


def test_dorefa_layer_follows_its_formulas() -> None:
    layer, x, grad = layer_and_tensors("dorefa")
    y = layer(x)
    y.backward(grad)
    w = layer.weight.detach()
    top = max(abs(math.tanh(float(v))) for v in w.flatten())
    wq = each(lambda v: 2 * round((math.tanh(v) / (2 * top) + 0.5) * 15) / 15 - 1, w)
    xq = each(lambda v: round(min(max(v, 0.0), 1.0) * 7) / 7, x.detach())
    assert close(y.detach(), F.conv2d(xq, wq, None, 2, 1))
    units = random_units(grad.numel(), layer.gradient_key()).reshape(grad.shape)
    largest = grad.abs().amax((1, 2, 3), keepdim=True).expand_as(grad)
    gq = each(
        lambda g, m, u: 2 * m * (round(min(max(g / (2 * m) + 0.5 + (u - 0.5) / 31, 0), 1) * 31) / 31 - 0.5),
        grad, largest, units,
    )  # fmt: skip
    dx, dw = plain_gradients(xq, wq, gq)
    assert close(x.grad, dx * ((x >= 0) & (x <= 1)))
    # Straight through the rounding only: the derivative of tanh w / max |tanh w|, by differences in double precision.
    slope = torch.zeros_like(dw).flatten()
    flat = w.double().flatten()

    def smooth(v: Tensor) -> Tensor:
        return torch.tanh(v) / torch.tanh(v).abs().max()

    for i in range(len(flat)):
        step = torch.zeros_like(flat)
        step[i] = 1e-6
        slope[i] = (dw.flatten() * (smooth(flat + step) - smooth(flat - step))).sum() / 2e-6
    assert close(layer.weight.grad, slope.reshape(dw.shape))


def test_wageubn_layer_follows_its_formulas() -> None:
    layer, x, grad = layer_and_tensors("wageubn")
    y = layer(x)
    y.backward(grad)
    wq = each(lambda v: min(max(round(v * 8) / 8, -7 / 8), 7 / 8), layer.weight.detach())
    xq = each(lambda v: round(v * 4) / 4, x.detach())
    assert close(y.detach(), F.conv2d(xq, wq, None, 2, 1))

    def power(t: Tensor) -> float:
        return 2.0 ** round(math.log2(float(t.abs().max())))

    sc = power(grad) / 16
    e2 = each(lambda g: sc * (round(g / sc * 16) / 16 if abs(g / sc) < 1 else min(max(round(g / sc), -15), 15)), grad)
    dx, dw = plain_gradients(xq, wq, e2)
    r = power(dx)
    assert close(x.grad, each(lambda g: r * min(max(round(g / r * 16) / 16, -1), 1), dx))
    units = random_units(dw.numel(), layer.gradient_key()).reshape(dw.shape)
    rate = 128 / power(dw)
    steps = each(lambda g, u: min(max(math.floor(g * rate + u), -127), 127), dw, units)
    # A sum at the edge of two steps may fall to either side in single precision.
    assert layer.weight.grad is not None
    assert ((layer.weight.grad * 2**14 - steps).abs() > 0.5).sum() <= 1


def blocks_of(x: Tensor, bits: int, axis: int, units: Tensor | None = None) -> Tensor:
    """MXINT with blocks of 32 along an axis, block by block."""
    rows = x.detach().double().movedim(axis, -1).contiguous()
    result, last = torch.empty_like(rows), rows.shape[-1]
    flat, out = rows.reshape(-1, last), result.view(-1, last)
    end = 2 ** (bits - 1) - 1
    padded = -(-last // 32) * 32
    for i, first in np.ndindex(len(flat), padded // 32):
        part = flat[i, first * 32 : first * 32 + 32]
        scale = 2.0 ** math.ceil(math.log2(float(part.abs().max()) / end))
        t = part / scale
        if units is None:
            codes = torch.round(t)
        else:
            start = i * padded + first * 32
            codes = torch.floor(t + units[start : start + len(t)])
        out[i, first * 32 : first * 32 + len(t)] = codes.clamp(-end, end) * scale
    return result.movedim(-1, axis)


def test_mxint_layer_blocks_what_each_product_contracts() -> None:
    layer, x, grad = layer_and_tensors("mxint", channels=40)
    y = layer(x)
    y.backward(grad)
    w, key = layer.weight.detach(), layer.gradient_key()
    assert close(y.detach(), F.conv2d(blocks_of(x, 3, 1), blocks_of(w, 4, 1), None, 2, 1))
    count = 6 * 9 * 32
    g_in = blocks_of(grad, 5, 1, random_units(count, key).double())
    assert close(x.grad, plain_gradients(x, blocks_of(w, 4, 0), g_in)[0])
    g_out = blocks_of(grad, 5, 0, random_units(4 * 9 * 32, derive_key(key, 1)).double())
    assert close(layer.weight.grad, plain_gradients(blocks_of(x, 3, 0), w, g_out)[1])


@pytest.mark.parametrize("quantizer", ["dorefa", "wageubn", "mxint"])
def test_linear_and_depthwise_layers_have_the_methods_too(quantizer: str) -> None:
    torch.manual_seed(0)
    for layer, x in (
        (QLinear(6, 3), torch.rand(5, 6)),
        (QConv2d(6, 6, 3, 1, 1, groups=6), torch.rand(5, 6, 4, 4)),
    ):
        layer.run, layer.precision = Run(quantizer=quantizer), Precision(8, 8, 8)
        y = layer(x)
        y.square().sum().backward()
        assert torch.isfinite(y).all() and layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0
        layer.precision = Precision(16, 16, 16)
        fine = layer(x).detach()
        layer.precision = Precision(0, 0, 0)
        if quantizer != "dorefa":  # whose weights are scaled to -1..1
            assert torch.allclose(fine, layer(x).detach(), atol=2e-3)


def recipe(**changes: Any) -> TrainConfig:
    values = {
        "quantize_stem": False, "schedule": "static", "stages": [[8, 8, 8]], "epochs": 6, "train_limit": 384,
        "batch": 32, "test_limit": 100, "warmup": 0.1,
    }  # fmt: skip
    return TrainConfig.from_mapping({**values, **changes})


@pytest.mark.parametrize(
    "changes",
    [{"quantizer": "dorefa"}, {"quantizer": "wageubn"}, {"quantizer": "mxint"}, {"norm": "range"}],
    ids=lambda c: "-".join(c.values()),
)
def test_methods_learn_and_repeat_themselves(tmp_path: Path, changes: dict[str, Any]) -> None:
    result = train(recipe(**changes), out=tmp_path / "whole")
    assert result.history[-1]["loss"] < 0.7 * result.history[0]["loss"]
    assert result.test_accuracy > 0.5  # after 72 steps
    train(recipe(**changes), out=tmp_path / "parts", stop_after=30)
    again = train(recipe(**changes), out=tmp_path / "parts", resume=True)
    assert [row["loss"] for row in again.history] == [row["loss"] for row in result.history]


def test_range_norm_replaces_every_normalisation_and_keeps_the_weights() -> None:
    batch, ranged = (build_model("resnet-8", 10, (1, 8, 8), width=4, norm=norm) for norm in ("batch", "range"))
    kinds = [type(m).__name__ for m in ranged.modules()]
    assert kinds.count("RangeBatchNorm2d") == 9 and "BatchNorm2d" not in kinds
    parameters = dict(ranged.named_parameters())
    assert all(torch.equal(p, parameters[name]) for name, p in batch.named_parameters())
    assert isinstance(build_model("mobilenetv2", 10, (3, 32, 32), norm="range").get_submodule("bn"), RangeBatchNorm2d)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"quantizer": "mxint", "gradient": "bhq"}, "gradient = 'bhq'"),
        ({"quantizer": "mxint", "mode": "paper"}, "mode = 'paper'"),
        ({"quantizer": "dorefa", "quantize_stem": True}, "quantize_stem"),
        ({"quantizer": "dorefa", "quantize_head": True}, "quantize_head"),
        ({"quantizer": "dorefa", "model": "mobilenetv2"}, "bottlenecks"),
        ({"quantizer": "wageubn", "stages": [[8, 8, 1]]}, "at least 2 bits"),
        ({"quantizer": "wageubn", "stages": [[8, 8, 8, 16]]}, "8 and 16 bits"),
        ({"quantizer": "mxint", "schedule": "dfq", "options": [[3, 6], [4, 8]], "targets": [2.0]}, "gates"),
        ({"gradient": "psq", "schedule": "dfq", "options": [[3, 6], [4, 8]], "targets": [2.0]}, "gates"),
        ({"quantizer": "int8"}, "one of affine, dorefa"),
        ({"norm": "group"}, "one of batch, range"),
    ],
)
def test_senseless_combinations_are_refused_by_name(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        recipe(**changes)


@pytest.mark.parametrize("changes", [{"quantizer": "mxint"}, {"gradient": "bhq"}, {"mode": "paper"}])
def test_engines_refuse_other_grids_before_anything_is_written(tmp_path: Path, changes: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes.values()))):
        train(recipe(**changes), ExactEngine(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    layer, x, _ = layer_and_tensors("mxint")
    layer.engine = ExactEngine()
    with pytest.raises(ValueError, match="fast path"):
        layer(x)


def test_products_of_two_activations_have_no_comparison_method() -> None:
    layer = QMatmul()
    layer.run, layer.precision = Run(quantizer="dorefa"), BITS
    with pytest.raises(ValueError, match="two activations"):
        layer(torch.rand(1, 2, 3), torch.rand(1, 2, 3))


def images_of(side: int, count: int) -> ImageSet:
    """Training images of one colour, half of them in each of two classes, and as many to test."""
    images = np.random.default_rng(0).integers(0, 256, (count, 1, side, side)).astype(np.uint8)
    labels = np.arange(count) % 2
    return ImageSet(images, labels, images, labels, ("a", "b"), 255.0, (0.5,), (0.25,), shift=0, flip=False)


SKIPPING = {"schedule": "dfq", "options": [[0, 0], [3, 6], [4, 8]], "targets": [1.0], "norm": "range"}


@pytest.mark.parametrize(
    ("side", "changes", "fits"),
    [
        (8, {"norm": "range", "train_limit": 100}, False),  # 4 images of 2x2 pixels are left
        (8, {"norm": "range", "train_limit": 104}, True),
        (4, {"train_limit": 33}, False),  # one image of one pixel is left
        (4, {"train_limit": 34}, True),
        (8, {"train_limit": 33}, True),
        (8, {"train_limit": 1}, True),
        (4, {"train_limit": 1}, False),
        # A single image may be left of any batch where the others skip the block.
        (16, {"train_limit": 32, **SKIPPING}, False),
        (16, {"train_limit": 32, **SKIPPING, "mode": "masked-noise"}, True),
        (32, {"train_limit": 32, **SKIPPING}, True),
        (16, {"train_limit": 32, **SKIPPING, "norm": "batch"}, True),
    ],
)
def test_batches_too_small_for_their_normalisation_are_refused_before_training(
    side: int, changes: dict[str, Any], fits: bool, tmp_path: Path
) -> None:
    config, data = recipe(**{"epochs": 1, "batch": 32, **changes}), images_of(side, 104)
    if fits:
        assert train(config, out=tmp_path / "run", data=data).finished
        return
    with pytest.raises(ConfigError, match=f"norm = '{config.norm}'"):
        train(config, out=tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()
