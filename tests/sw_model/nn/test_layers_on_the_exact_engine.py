"""The exact engine against autograd on real values and plain loops; the layers' two paths against each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from host.exact_engine import ExactEngine
from host.grids import host_codes
from host.operands import ConvGeometry, Engine, Grid, Operand, Sums
from sw_model.nn import layers as L
from sw_model.nn import quantized_product as P
from sw_model.nn.models import build_model
from sw_model.quantize import affine as Q
from tests.support.observed_engine import ObservedEngine

geometries = st.builds(
    ConvGeometry,
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 4),
    st.tuples(st.integers(3, 6), st.integers(3, 6)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 2),
    st.integers(0, 2),
)
grids = st.builds(
    lambda bits, signed, scale, zero: Grid(bits, signed, np.float32(scale), np.float32(zero)),
    st.integers(1, 16),
    st.booleans(),
    st.floats(2.0**-6, 2, width=32),
    st.floats(-3, 3, width=32),
)


def random_operand(grid: Grid, shape: tuple[int, ...], rng: np.random.Generator) -> Operand:
    low, high = grid.limits
    return Operand(grid, codes=rng.integers(low, high + 1, size=shape))


def values(operand: Operand, axis: int | None = None) -> torch.Tensor:
    shape = [1] * len(operand.shape)
    if axis is not None:
        shape[axis] = -1
    scale, zero = operand.grid.scale.astype(float), operand.grid.zero.astype(float)
    return torch.from_numpy(host_codes(operand) * scale.reshape(shape) + zero.reshape(shape))


def close(real: np.ndarray, wanted: torch.Tensor) -> None:
    assert real.dtype == np.float32 and real.shape == tuple(wanted.shape)
    bound = 2e-7 * max(float(wanted.abs().max()), 1.0) + 1e-5 * wanted.abs().numpy()
    assert (np.abs(real - wanted.numpy()) <= bound).all()


@settings(max_examples=80, deadline=None)
@given(geometries, grids, grids, grids, st.integers(0, 2**31))
def test_engine_equals_real_convolution_of_the_values(m: ConvGeometry, xg: Grid, wg: Grid, gg: Grid, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = random_operand(xg, (m.batch, m.in_channels, *m.in_hw), rng)
    g = random_operand(gg, (m.batch, m.out_channels, *m.out_hw), rng)

    def weight(channels: int) -> Operand:
        scale, zero = rng.random(channels) + 0.1, rng.standard_normal(channels)
        grid = Grid(wg.bits, wg.signed, scale.astype(np.float32), zero.astype(np.float32))
        return random_operand(grid, (m.out_channels, m.in_channels, *m.kernel), rng)

    by_output, by_input = weight(m.out_channels), weight(m.in_channels)
    engine = ExactEngine()
    xv, gv = values(x).requires_grad_(), values(g)
    wv = values(by_output, 0).requires_grad_()
    y = F.conv2d(xv, wv, stride=m.stride, padding=m.padding)
    y.backward(gv)
    close(engine.forward(x, by_output, m).real(x.grid, by_output.grid, 1), y.detach())
    assert wv.grad is not None
    close(engine.weight_gradient(x, g, m).real(x.grid, g.grid), wv.grad)
    other = torch.zeros_like(xv, requires_grad=True)
    F.conv2d(other, values(by_input, 1), stride=m.stride, padding=m.padding).backward(gv)
    assert other.grad is not None
    close(engine.input_gradient(g, by_input, m).real(g.grid, by_input.grid, 1), other.grad)


def test_sums_equal_plain_loops() -> None:
    m = ConvGeometry(2, 2, 3, (4, 3), (3, 2), 2, 1)
    rng = np.random.default_rng(0)
    grid = Grid(4, False, np.float32(1), np.float32(0))
    x, w, g = (rng.integers(0, 16, size=s) for s in ((2, 2, 4, 3), (3, 2, 3, 2), (2, 3, *m.out_hw)))
    oh, ow = m.out_hw
    names = ("dot", "a_sum", "b_sum", "count")
    wanted = {
        "f": [np.zeros((2, 3, oh, ow), int) for _ in names],
        "i": [np.zeros((2, 2, 4, 3), int) for _ in names],
        "w": [np.zeros((3, 2, 3, 2), int) for _ in names],
    }
    for n in range(2):
        for o in range(3):
            for c in range(2):
                for oy, ox, ky, kx in np.ndindex(oh, ow, 3, 2):
                    iy, ix = oy * 2 + ky - 1, ox * 2 + kx - 1
                    if not (0 <= iy < 4 and 0 <= ix < 3):
                        continue
                    xv, wv, gv = x[n, c, iy, ix], w[o, c, ky, kx], g[n, o, oy, ox]
                    for kind, at, a, b in (
                        ("f", (n, o, oy, ox), xv, wv),
                        ("i", (n, c, iy, ix), gv, wv),
                        ("w", (o, c, ky, kx), xv, gv),
                    ):
                        for total, term in zip(wanted[kind], (a * b, a, b, 1), strict=True):
                            total[at] += term
    engine = ExactEngine()
    X, W, G = (Operand(grid, codes=v) for v in (x, w, g))
    for kind, sums in (
        ("f", engine.forward(X, W, m)),
        ("i", engine.input_gradient(G, W, m)),
        ("w", engine.weight_gradient(X, G, m)),
    ):
        for name, total in zip(names, wanted[kind], strict=True):
            part = getattr(sums, name)
            assert part.dtype == np.int64
            assert (np.broadcast_to(part, total.shape) == total).all(), (kind, name)


def test_engine_is_exact_where_float32_is_not() -> None:
    m = ConvGeometry(1, 300, 1, (1, 1))
    grid = Grid(16, False, np.float32(1), np.float32(0))
    x = np.full((1, 300, 1, 1), 65535)
    w = np.full((1, 300, 1, 1), 65533)
    assert ExactEngine().forward(Operand(grid, codes=x), Operand(grid, codes=w), m).dot.item() == 300 * 65535 * 65533


def test_engine_refuses_wrong_codes_shapes_and_values() -> None:
    m = ConvGeometry(1, 2, 1, (1, 1))
    grid = Grid(2, False, np.float32(1), np.float32(0))
    w = Operand(grid, codes=np.ones((1, 2, 1, 1), int))
    with pytest.raises(ValueError, match=r"outside 0\.\.3"):
        ExactEngine().forward(Operand(grid, codes=np.full((1, 2, 1, 1), 4)), w, m)
    with pytest.raises(ValueError, match="shape"):
        ExactEngine().forward(Operand(grid, codes=np.ones((1, 3, 1, 1), int)), w, m)
    with pytest.raises(ValueError, match="NaN"):
        ExactEngine().forward(Operand(grid, values=np.full((1, 2, 1, 1), np.nan, np.float32)), w, m)


class Spy(ObservedEngine):
    """An engine that keeps the codes of every operand and answers with the software engine's sums."""

    def __init__(self) -> None:
        super().__init__(ExactEngine())
        self.calls: list[tuple[str, np.ndarray, np.ndarray]] = []
        self.operands: list[tuple[Operand, Operand]] = []

    def observe(self, product: str, a: Operand, b: Operand, sums: Sums) -> None:
        self.calls.append((product, host_codes(a), host_codes(b)))
        self.operands.append((a, b))


def make(kind: str) -> tuple[L.QLayer, torch.Tensor]:
    torch.manual_seed(0)
    if kind == "linear":
        return L.QLinear(7, 5), torch.randn(3, 4, 7)
    if kind == "depthwise":
        return L.QConv2d(4, 4, 3, 2, 1, groups=4), torch.randn(3, 4, 6, 6)
    return L.QConv2d(3, 5, 3, 2 if kind == "strided" else 1, 1), torch.randn(2, 3, 6, 6)


def both_paths(
    kind: str, engine: Engine | None, precision: L.Precision
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    layer, x = make(kind)
    L.attach(layer, L.Run(engine=engine, seed=4, step=9))
    layer.precision = precision
    x.requires_grad_()
    y = layer(x)
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape))  # not randn_like: the paths lay out y differently
    assert x.grad is not None and layer.weight.grad is not None
    return y.detach(), x.grad, layer.weight.grad


@pytest.mark.parametrize("kind", ["plain", "strided", "linear", "depthwise"])
@pytest.mark.parametrize("bits", [(3, 3, 4, None), (8, 8, 8, None), (4, 6, 12, None), (6, 4, 5, 16), (1, 2, 1, None)])
def test_fast_and_exact_paths_agree(kind: str, bits: Any) -> None:
    precision = L.Precision(*bits)
    spy = Spy()
    for fast, exact in zip(both_paths(kind, None, precision), both_paths(kind, spy, precision), strict=True):
        assert (fast - exact).abs().max() <= 3e-6 * exact.abs().max()
    assert {c[0] for c in spy.calls} == {"forward", "input_gradient", "weight_gradient"}


def test_fast_and_exact_paths_have_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    convolve, differentiate = P.convolve, P.gradients

    def spying_convolution(x: torch.Tensor, w: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.extend((x.clone(), w.clone()))
        return convolve(x, w, *rest)

    def spying_gradients(x: torch.Tensor, w: torch.Tensor, g: torch.Tensor, *rest: Any, **named: Any) -> Any:
        seen.extend((g.clone(), w.clone(), x.clone(), g.clone()))
        return differentiate(x, w, g, *rest, **named)

    precision = L.Precision(5, 4, 6)
    monkeypatch.setattr(P, "convolve", spying_convolution)
    monkeypatch.setattr(P, "gradients", spying_gradients)
    both_paths("plain", None, precision)
    monkeypatch.undo()
    spy = Spy()
    both_paths("plain", spy, precision)
    (_, x, _), (_, g, _), (_, x_again, g_again) = spy.calls
    assert (x == x_again).all() and (g == g_again).all(), "one rounding serves both gradient products"
    operands = [operand for call in spy.operands for operand in call]
    for values_seen, operand, axis in zip(seen, operands, (None, 0, None, 1, None, None), strict=True):
        codes = torch.from_numpy(host_codes(operand))
        assert torch.equal(values_seen, Q.dequantize(codes, operand.grid, axis))


def test_gradient_key_follows_seed_step_layer_and_call() -> None:
    layer, _ = make("plain")
    keys = set()
    for seed, step, index, call in np.ndindex(2, 3, 2, 2):
        layer.run = L.Run(seed=seed, step=step)
        layer.index, layer.call_index = index, call
        keys.add(layer.gradient_key())
    assert len(keys) == 24


@pytest.mark.parametrize(
    "mode", ["fixed", "paper", "scale-floor", "zero-start", "range-momentum", "weight-grid", "scale-floor+weight-grid"]
)
def test_published_details_are_kept_by_name(mode: str) -> None:
    layer, x = make("plain")
    L.attach(layer, L.Run(mode=mode))
    layer.precision = L.Precision(2, 8, 16)
    x.requires_grad_()
    y = layer(x)
    _, span = Q.extremes(x.detach())
    kept = 0.9 if mode in ("paper", "range-momentum") else 0.1
    first = float(span) * (1 - kept if mode in ("paper", "zero-start") else 1)
    assert float(layer.running_span) == pytest.approx(first)
    with torch.no_grad():
        layer(3 * x)
    assert float(layer.running_span) == pytest.approx(kept * first + (1 - kept) * 3 * float(span))

    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)) * 1e-6  # 16 bits of this need 1e-10
    y.backward(upstream)
    axis = 0 if mode in ("paper", "weight-grid", "scale-floor+weight-grid") else 1
    wq = Q.fake_quantize(layer.weight.detach(), Q.affine_grid(layer.weight.detach(), 2, axis=axis), axis)
    again = x.detach().clone().requires_grad_()
    F.conv2d(again, wq, None, 1, 1).backward(upstream)
    assert x.grad is not None and again.grad is not None
    error = float((x.grad - again.grad).norm() / again.grad.norm())
    assert (error > 1e-3) == (mode == "paper" or mode.startswith("scale-floor"))
    assert error < 0.2


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_weights_per_input_channel_cost_the_input_gradient_little(bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    w, g = torch.randn(16, 16, 3, 3, generator=generator), torch.randn(8, 16, 8, 8, generator=generator)
    exact = conv2d_input((8, 16, 8, 8), w, g, 1, 1)
    by_output, by_input = (
        (
            conv2d_input((8, 16, 8, 8), Q.fake_quantize(w, Q.affine_grid(w, bits, axis=axis), axis), g, 1, 1) - exact
        ).norm()
        for axis in (0, 1)
    )
    assert by_input < 1.1 * by_output


def test_zero_and_32_bits_are_plain_float32() -> None:
    for bits in (0, 32):
        y, dx, dw = both_paths("plain", None, L.Precision(bits, bits, bits))
        layer, x = make("plain")
        x.requires_grad_()
        wanted = F.conv2d(x, layer.weight, None, 1, 1)
        torch.manual_seed(1)
        wanted.backward(torch.randn_like(wanted))
        assert torch.equal(y, wanted.detach()) and torch.equal(dx, x.grad) and torch.equal(dw, layer.weight.grad)


def test_evaluation_uses_the_running_range() -> None:
    layer, x = make("plain")
    L.attach(layer, L.Run(range_momentum=0.25))
    layer.precision = L.Precision(8, 3, 8)
    layer.eval()
    with pytest.raises(RuntimeError, match="training batch"):
        layer(x)
    layer.train()
    low = span = None
    for scale in (1.0, 2.0, 0.5):
        batch = x * scale
        layer(batch)
        lo, sp = float(batch.min()), float(batch.max() - batch.min())
        low = lo if low is None else 0.25 * low + 0.75 * lo
        span = sp if span is None else 0.25 * span + 0.75 * sp
    assert float(layer.running_low) == pytest.approx(low) and float(layer.running_span) == pytest.approx(span)
    layer.eval()
    grid = Q.grid_from_range(layer.running_low, layer.running_span, 3)
    w = layer.weight.detach()
    wanted = F.conv2d(Q.fake_quantize(9 * x, grid), Q.fake_quantize(w, Q.affine_grid(w, 8, axis=0), 0), None, 1, 1)
    assert torch.allclose(layer(9 * x), wanted, atol=1e-5)
    layer.engine = ExactEngine()
    assert torch.allclose(layer(9 * x), wanted, atol=1e-5)


def test_refusals_name_the_cause() -> None:
    for bad in (-1, 17, 31, True, 3.0):
        with pytest.raises(ValueError, match="weight bits"):
            L.Precision(bad, 8, 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="groups"):
        L.QConv2d(4, 8, 3, groups=2)
    layer, x = make("plain")
    with pytest.raises(ValueError, match="takes"):
        layer(x[:, :2])
    layer.precision = L.Precision(8, 0, 8)
    layer.engine = ExactEngine()
    with pytest.raises(ValueError, match="unquantized"):
        layer(x)
    layer.precision = L.Precision(8, 8, 8)
    with pytest.raises(ValueError, match="NaN"):
        layer(x * float("nan"))


def test_whole_network_agrees_on_both_paths() -> None:
    results = []
    for engine in (None, ExactEngine()):
        model = build_model("resnet-8", 10, (1, 8, 8), width=4, quantize_head=True, seed=3)
        L.attach(model, L.Run(engine=engine))
        L.set_precision(model, L.Precision(8, 8, 8))
        x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(2))
        loss = model(x).square().mean()
        loss.backward()
        results.append((loss.item(), model.head.weight.grad.clone()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-3)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "image", "parameters"),
    [("resnet-38", (3, 32, 32), 565_274 - 1_152), ("resnet-74", (3, 32, 32), 1_149_914 - 2_496),
     ("mobilenetv2", (3, 32, 32), 2_296_922)],
)  # fmt: skip
def test_networks_have_the_published_sizes(name: str, image: tuple[int, int, int], parameters: int) -> None:
    # The published CIFAR ResNets carry an unused batch normalisation per block without shortcut; ours do not.
    model = build_model(name, 10, image)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_depthwise_layers_keep_their_precision() -> None:
    model = build_model("mobilenetv2", 10, (3, 32, 32))
    L.set_precision(model, L.Precision(3, 3, 6))
    kinds = {layer.precision for _, layer in L.quantized_layers(model) if getattr(layer, "groups", 1) > 1}
    assert kinds == {L.DEPTHWISE}
    L.set_precision(model, L.FULL)
    assert not any(layer.precision.quantized for _, layer in L.quantized_layers(model))


def test_keep_full_exempts_stem_and_head() -> None:
    model = build_model("resnet-8", 10, (1, 8, 8), width=8, quantize_stem=False, quantize_head=False)
    L.set_precision(model, L.Precision(4, 4, 4))
    full = {name for name, layer in L.quantized_layers(model) if not layer.precision.quantized}
    assert full == {"stem", "head"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"stride": 0}, "stride = 0"),
        ({"padding": "same"}, "padding = 'same'"),
        ({"padding": -1}, "padding = -1"),
        ({"kernel_size": (3, 3)}, r"kernel_size = \(3, 3\)"),
        ({"kernel_size": 0}, "kernel_size = 0"),
        ({"groups": 0}, "groups = 0"),
        ({"in_channels": 0}, "in_channels = 0"),
        ({"out_channels": 2.0}, "out_channels = 2.0"),
        ({"stride": True}, "stride = True"),
    ],
)
def test_arguments_that_are_no_counts_are_refused_by_name(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        L.QConv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **arguments})
    with pytest.raises(ValueError, match="in_features = 0"):
        L.QLinear(0, 3)


class Fused(ExactEngine):
    """An engine that computes both gradients in one go, and only so."""

    asked = 0

    def backward_mixed(self, members: Any, w: Operand) -> list[tuple[Sums, Sums]]:
        self.asked += 1
        plain = ExactEngine()
        return [(plain.input_gradient(g, w, m), plain.weight_gradient(x, g, m)) for x, g, m in members]

    def input_gradient(self, g: Operand, w: Operand, geometry: ConvGeometry) -> Sums:
        raise AssertionError("the gradients are asked for apart")

    weight_gradient = input_gradient


@pytest.mark.parametrize("kind", ["plain", "strided", "linear"])
def test_both_gradients_are_asked_for_at_once(kind: str) -> None:
    """So that a device gets the output gradient once, as its measurements assume."""
    fused = Fused()
    together = both_paths(kind, fused, L.Precision(5, 4, 6))
    apart = both_paths(kind, ExactEngine(), L.Precision(5, 4, 6))
    assert fused.asked == 1
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))
