"""Grouped and depthwise convolutions and batched matrix products against PyTorch in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from host.devices.device import open_device
from host.driver.fabric_engine import FabricEngine
from host.driver.grouped import batched_matmul, grouped
from host.grids import host_codes
from host.operands import ConvGeometry, Grid, Operand
from hw.design import load_design
from hw.networks import PRODUCTS


def engine() -> FabricEngine:
    return FabricEngine(open_device("reference", load_design("sim-small")))


def operand(rng: np.random.Generator, shape: tuple[int, ...], bits: int, signed: bool, values: bool) -> Operand:
    grid = Grid(
        bits, signed, np.float32(0.5) * np.ones((), np.float32), np.zeros((), np.float32), 3 if values else None
    )
    low, high = grid.limits
    codes = rng.integers(low, high + 1, size=shape)
    return Operand(grid, values=(codes * 0.5 + 0.2).astype(np.float32)) if values else Operand(grid, codes=codes)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(
    ("into", "out", "groups", "stride", "kernel"),
    [(20, 20, 20, 1, 3), (20, 20, 20, 2, 3), (12, 18, 3, 1, 3), (8, 24, 2, 2, 5), (40, 40, 2, 1, 1)],
)
def test_grouped_products(product: str, into: int, out: int, groups: int, stride: int, kernel: int) -> None:
    m = ConvGeometry(2, into, out, (6, 9), (kernel, kernel), stride, kernel // 2)
    rng = np.random.default_rng(into + out)
    x, w, g = (2, into, 6, 9), (out, into // groups, kernel, kernel), (2, out, *m.out_hw)
    a_shape, b_shape = {"forward": (x, w), "input_gradient": (g, w), "weight_gradient": (x, g)}[product]
    options = {"stride": stride, "padding": m.padding, "groups": groups}

    def run(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        ta, tb = (torch.from_numpy(t.astype(np.float64)) for t in (a, b))
        if product == "forward":
            y = torch.nn.functional.conv2d(ta, tb, **options)
        elif product == "input_gradient":
            y = torch.nn.grad.conv2d_input(x, tb, ta, **options)
        else:
            y = torch.nn.grad.conv2d_weight(ta, w, tb, **options)
        return np.rint(y.numpy()).astype(np.int64)

    for values in (False, True):
        a = operand(rng, a_shape, 4, False, values)
        b = operand(rng, b_shape, 3, True, values and product == "weight_gradient")
        fabric = engine()
        got = grouped(fabric, product, a, b, m, groups, pack=8)
        assert fabric.meter.totals["PROGRAMS"] == 1
        ca, cb = host_codes(a), host_codes(b)
        want = {
            "dot": run(ca, cb),
            "a_sum": run(ca, np.ones_like(cb)),
            "b_sum": run(np.ones_like(ca), cb),
            "count": run(np.ones_like(ca), np.ones_like(cb)),
        }
        for name, expected in want.items():
            assert np.array_equal(np.broadcast_to(getattr(got, name), expected.shape), expected), name


def test_batched_matrix_product() -> None:
    rng = np.random.default_rng(0)
    a, b = operand(rng, (3, 40, 21), 5, False, True), operand(rng, (3, 21, 17), 4, True, False)
    fabric = engine()
    got = batched_matmul(fabric, a, b)
    assert (fabric.meter.totals["PROGRAMS"], fabric.meter.totals["PRODUCTS"]) == (1, 3)
    ca, cb = host_codes(a), host_codes(b)
    assert np.array_equal(got.dot, ca @ cb)
    assert np.array_equal(got.a_sum, ca.sum(axis=2, keepdims=True))
    assert np.array_equal(got.b_sum, cb.sum(axis=1, keepdims=True))
    assert got.count.item() == 21
    with pytest.raises(ValueError, match="are not"):
        batched_matmul(engine(), a, a)


def test_channels_must_divide() -> None:
    rng = np.random.default_rng(0)
    m = ConvGeometry(1, 4, 6, (2, 2), (1, 1))
    a, b = operand(rng, (1, 4, 2, 2), 2, False, False), operand(rng, (6, 1, 1, 1), 2, False, False)
    with pytest.raises(ValueError, match="do not divide"):
        grouped(engine(), "forward", a, b, m, 4)
