"""StatQuant's quantizers against their theory, the comparison methods against their formulas on single numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sw_model.quantize import methods as B
from sw_model.quantize import statquant as S
from sw_model.quantize.affine import affine_values, derive_key, random_units


def gradients(kind: str, n: int = 64, d: int = 128) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator)
    if kind == "log-normal":
        return x * torch.exp(2 * torch.randn(n, 1, generator=generator))
    if kind == "one large":
        return x * torch.where(torch.arange(n)[:, None] == 5, 1.0, 1e-3)
    return x


def moments(name: str, x: Tensor, bits: int, rounds: int) -> tuple[Tensor, float]:
    """Mean of Q(x) and its total variance about x, over ``rounds`` keys."""
    total, squares = torch.zeros_like(x, dtype=torch.float64), 0.0
    for i in range(rounds):
        q = S.QUANTIZERS[name](x, bits, derive_key(i, 11)).double()
        total += q
        squares += float(((q - x) ** 2).sum())
    return total / rounds, squares / rounds


@pytest.mark.parametrize("kind", ["log-normal", "one large", "uniform"])
@pytest.mark.parametrize("name", ["ptq", "psq", "bhq"])
def test_gradient_quantizers_are_unbiased(name: str, kind: str) -> None:
    x = gradients(kind, 32, 64)
    rounds = 100
    mean, variance = moments(name, x, 4, rounds)
    # If unbiased, the squared distance of the mean from x is variance / rounds in expectation, with a relative spread
    # of about sqrt(2 / number of elements) = 0.03 or, where one row dominates, sqrt(2 / 64) = 0.18.
    ratio = float(((mean - x) ** 2).sum()) / (variance / rounds)
    assert 0.4 < ratio < 1.6


#: Quantizers of gradients that promise E[Q(x)] = x: (matrix, bits, key) -> matrix.
UNBIASED: dict[str, Callable[[Tensor, int, int], Tensor]] = S.QUANTIZERS | {
    "affine": lambda x, bits, key: affine_values(x, bits, key=key),
    "DoReFa": B.dorefa_gradient,
    "MXINT": lambda x, bits, key: B.mxint(x, bits, key=key),
}


@st.composite
def skewed_rows(draw: st.DrawFn) -> Tensor:
    """Matrices whose rows are 32 long; most of their range lies on one side of zero, or their values are far apart."""
    value = st.one_of(st.floats(-1, 1), st.floats(-0.01, 0.01), st.sampled_from([0.0, -1.0])).map(lambda v: round(v, 9))
    rows = draw(st.lists(st.lists(value, min_size=2, max_size=6), min_size=1, max_size=4))
    scale = 2.0 ** draw(st.integers(-20, 10)) * draw(st.sampled_from([-1, 1]))
    return torch.stack([torch.tensor((row * 16)[:32]) for row in rows]) * scale


@pytest.mark.parametrize("name", UNBIASED)
@settings(deadline=None, max_examples=60, derandomize=True)
@given(skewed_rows(), st.integers(1, 8))
@example(torch.tensor([[-1, 0.003, -0.5, 0] * 8]), 8)
@example(torch.tensor([[-1, 1, -0.5, 0.5] * 8]), 1)
@example(torch.tensor([[-1, 0.00785, -0.5, -0.25] * 8]), 8)
@example(torch.nn.functional.pad(torch.full((4, 31), 0.001), (1, 0), value=-0.999), 2)
def test_gradients_of_any_skew_keep_their_mean(name: str, x: Tensor, bits: int) -> None:
    if name == "MXINT" and bits == 1:
        return
    # Copies beside each other share the grid of their row, or of their block of 32.
    copies = 2048
    q = UNBIASED[name](x.repeat(1, copies), bits, 5).double().reshape(len(x), copies, -1)
    step = float(x.max().clamp_min(0) - x.min().clamp_max(0)) / max(2**bits - 2, 1)
    # The second term allows for values that lie so near a code that no copy need have been rounded away from it.
    allowed = 6 * q.std(1) / copies**0.5 + 20 / copies * step
    assert ((q.mean(1) - x).abs() <= allowed).all()
    if name == "ptq":
        assert float(((q - x[:, None]) ** 2).sum()) / copies <= S.ptq_variance_bound(x, bits) * (1 + 1e-5)


@given(st.floats(1e-6, 1), st.floats(1e-6, 1), st.integers(2, 10))
def test_grid_with_zero_has_the_least_step_of_all_that_cover_the_range(below: float, top: float, bits: int) -> None:
    steps = 2**bits - 1
    scale, offset = S.grid_with_zero(-below, top, steps)
    assert 1 <= offset <= steps - 1
    assert scale == min(max(below / o, top / (steps - o)) for o in range(1, steps))
    assert scale <= (below + top) / (steps - 1) * (1 + 1e-12)
    assert S.grid_with_zero(-below, 0, steps) == (below / steps, steps)
    assert S.grid_with_zero(0, top, steps) == (top / steps, 0)


def test_variances_obey_bounds_and_published_order() -> None:
    ratios = {}
    for kind in ("log-normal", "one large", "uniform"):
        x = gradients(kind)
        v = {name: moments(name, x, 4, 40)[1] for name in S.QUANTIZERS}
        assert v["ptq"] <= S.ptq_variance_bound(x, 4) and v["psq"] <= S.psq_variance_bound(x, 4)
        ratios[kind] = v["psq"] / v["ptq"], v["bhq"] / v["psq"]
    # Measured with N=128, D=256: PSQ/PTQ 0.03 (log-normal); BHQ/PSQ 0.24 (log-normal), 0.04 (one large), 1.02 (uniform)
    assert ratios["log-normal"][0] < 0.15 and ratios["log-normal"][1] < 0.5
    assert ratios["one large"][1] < 0.15
    assert 0.7 < ratios["uniform"][1] < 1.2


@given(st.lists(st.floats(0, 100), min_size=1, max_size=40))
def test_blocks_partition_the_rows_under_one_head_each(magnitude: list[float]) -> None:
    m = torch.tensor(magnitude)
    block, head = S.bhq_blocks(m)
    assert sorted(block[head].tolist()) == list(range(int(block.max()) + 1))
    if (~head).any():
        assert m[~head].max() <= m[head].min()
    large = sorted(m[head].tolist(), reverse=True)
    small = int((~head).sum())
    if len(large) > 1:
        assert small * large[-1] > sum(large) * (1 - 1e-6)
    for b, value in zip(block[head].tolist(), m[head].tolist(), strict=True):
        share = small * value / (sum(large) or 1.0)
        assert abs(int((block[~head] == b).sum()) - share) <= 1.01 or sum(large) == 0


def dense_bhq(x: Tensor, bits: int, key: int) -> Tensor:
    """BHQ with T = Q diag(s) written out for every block, in float64, the random numbers being those of ``key``."""
    rows, span = x.double().numpy(), (x.amax(1) - x.amin(1)).double().numpy()
    units = random_units(x.numel(), key).reshape(x.shape).double().numpy()
    block, head = (each.numpy() for each in S.bhq_blocks(x.amax(1) - x.amin(1)))
    result = np.empty_like(rows)
    for b in range(block.max() + 1):
        members = np.concatenate([np.flatnonzero((block == b) & head), np.flatnonzero((block == b) & ~head)])
        k = len(members)
        reflection, s = np.eye(k), np.ones(k)
        if k > 1:
            v = np.eye(k)[0] - 1 / math.sqrt(k)
            reflection -= 2 * np.outer(v, v) / (v @ v)
            assert np.allclose(reflection[:, 0], 1 / math.sqrt(k))  # e1 goes to 1/sqrt(k) everywhere
            w1 = span[members[0]] / math.sqrt(k)
            w2 = span[members[1:]].max() * np.abs(reflection).max()
            s = np.array([w1 ** (-1 / 3)] + [(w2 / (k - 1)) ** (-1 / 3)] * (k - 1))
        t = reflection @ np.diag(s)
        y = t @ rows[members]
        low, high = y.min(1, keepdims=True), y.max(1, keepdims=True)
        step = (high - low) / (2**bits - 1)
        codes = np.clip(np.floor((y - low) / step + units[members]), 0, 2**bits - 1)
        result[members] = np.linalg.inv(t) @ (codes * step + low)
    return torch.from_numpy(result)


@pytest.mark.parametrize("large", [1, 2, 3, 5, 11])
@pytest.mark.parametrize("rows", [2, 3, 4, 8, 12, 33])
def test_blocks_are_transformed_by_a_scaled_householder_matrix(rows: int, large: int) -> None:
    if large > rows:
        return
    generator = torch.Generator().manual_seed(rows + large)
    x = torch.randn(rows, 16, generator=generator)
    x[large:] *= 0.01 * torch.rand(rows - large, 1, generator=generator) + 0.001
    for bits in (3, 5, 8):
        ours, dense = S.bhq(x, bits, 7).double(), dense_bhq(x, bits, 7)
        step = (x.amax() - x.amin()) / (2**bits - 1)
        # A value at the edge of two codes may fall to either side in float32; that is rare.
        assert (ours - dense).abs().median() <= 1e-4 * step
        assert ((ours - dense).abs() > 1e-2 * step).float().mean() < 0.07


def test_transform_and_inverse_cancel() -> None:
    # With very many bits the quantizer must give its input back.
    x = gradients("log-normal")
    for name in S.QUANTIZERS:
        q = S.QUANTIZERS[name](x, 16, 3)
        assert (q - x).abs().max() <= 2e-4 * x.abs().max()


def test_tensor_quantizer_keeps_zero_exact() -> None:
    x = gradients("uniform", 8, 8)
    x[3] = 0
    for key in range(20):
        assert not S.ptq(x, 3, key)[3].any()


def test_degenerate_matrices_survive() -> None:
    for x in (torch.zeros(4, 5), torch.full((3, 2), 2.5), torch.randn(1, 6), torch.tensor([[1.0], [1e-30]])):
        for name in S.QUANTIZERS:
            assert torch.isfinite(S.QUANTIZERS[name](x, 4, 1)).all()
    with pytest.raises(ValueError, match="matrix"):
        S.psq(torch.zeros(3), 4, 1)
    with pytest.raises(ValueError, match="17 bits"):
        S.bhq(torch.zeros(3, 3), 17, 1)


def test_dorefa_by_hand() -> None:
    w = torch.tensor([-2.0, -0.3, 0.0, 0.4, 1.0])
    for bits in (2, 4, 8):
        n = 2**bits - 1
        m = max(abs(math.tanh(v)) for v in w.tolist())
        wanted = [2 * round((math.tanh(v) / (2 * m) + 0.5) * n) / n - 1 for v in w.tolist()]
        assert B.dorefa_weight(w, bits).tolist() == pytest.approx(wanted, abs=1e-6)
    assert B.dorefa_weight(w, 1).abs().tolist() == pytest.approx([3.7 / 5] * 5)
    assert B.dorefa_activation(torch.tensor([-1.0, 0.3, 5.0]), 2).tolist() == pytest.approx([0, 1 / 3, 1])
    g = torch.tensor([[0.5, -2.0], [0.01, 0.004]])
    u = random_units(4, 9).reshape(2, 2)
    q = B.dorefa_gradient(g, 3, 9)
    for i, j in np.ndindex(2, 2):
        m = float(g[i].abs().max())
        t = min(max(float(g[i, j]) / (2 * m) + 0.5 + (float(u[i, j]) - 0.5) / 7, 0), 1)
        assert float(q[i, j]) == pytest.approx(2 * m * (round(t * 7) / 7 - 0.5), abs=1e-6)


def test_wageubn_by_hand() -> None:
    assert B.wageubn_weight(torch.tensor([0.5039, -3.0, 1.0])).tolist() == [0.5, -127 / 128, 127 / 128]
    assert B.wageubn_activation(torch.tensor([2.004])).tolist() == [2.0078125]
    e = torch.tensor([0.7, -0.1, 0.003])  # R = 2**round(log2 0.7) = 1/2
    r = [0.5 * min(max(round(v / 0.5 * 128) / 128, -1), 1) for v in (0.7, -0.1, 0.003)]
    assert B.wageubn_error(e).tolist() == pytest.approx(r)
    sc = 0.5 / 128
    wanted = [sc * min(round(0.7 / sc), 127), sc * round(-0.1 / sc), sc * round(0.003 / sc * 128) / 128]
    assert B.wageubn_error_flagged(e).tolist() == pytest.approx(wanted)
    g = B.wageubn_gradient(e, 128, 4)
    assert (g == g.round()).all() and g.tolist()[0] == 127
    with pytest.raises(ValueError, match="power of two"):
        B.wageubn_gradient(e, 100, 4)


@settings(deadline=None)
@given(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=70), st.integers(2, 8), st.integers(1, 33))
def test_mxint_scales_are_the_least_that_fit(values: list[float], bits: int, block: int) -> None:
    x = torch.tensor(values)
    q = B.mxint(x, bits, block)
    end = 2 ** (bits - 1) - 1
    for first in range(0, len(values), block):
        part, got = x[first : first + block].double(), q[first : first + block].double()
        largest = float(part.abs().max())
        scale = 2.0**-126
        while largest > end * scale:
            scale *= 2
        assert torch.equal(got, (torch.round(part / scale) * scale).float().double())


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 9), st.integers(1, 3), st.integers(4, 7), st.integers(4, 6), st.integers(0, 99))
def test_range_batch_norm_is_its_formula(n: int, channels: int, height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(n, channels, height, width, generator=generator) + 1
    layer = B.RangeBatchNorm2d(channels, momentum=0.2, eps=1e-4)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(channels, generator=generator))
        layer.bias.copy_(torch.randn(channels, generator=generator))
        y = layer(x).double().numpy()
    values = x.double().numpy()
    for c in range(channels):
        column = values[:, c].ravel()
        size = len(column) // 16
        ranges = [np.ptp(column[i * size : (i + 1) * size]) for i in range(16)]
        constant = 0.175 * (1 + np.sqrt(np.pi * np.log(4))) / np.sqrt(2 * np.log(size))
        deviation = constant * np.mean(ranges)
        weight, bias = float(layer.weight[c].detach()), float(layer.bias[c].detach())
        wanted = (values[:, c] - column.mean()) / (deviation + 1e-4) * weight + bias
        assert np.allclose(y[:, c], wanted, rtol=1e-4, atol=1e-4)
        assert float(layer.running_mean[c]) == pytest.approx(0.2 * column.mean(), rel=1e-4, abs=1e-5)
        assert float(layer.running_deviation[c]) == pytest.approx(0.8 + 0.2 * deviation, rel=1e-4)


def test_range_batch_norm_estimates_the_deviation_of_normal_data() -> None:
    layer = B.RangeBatchNorm2d(3)
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 5 + 2
    y = layer(x)
    y = y.detach()
    assert y.mean().abs() < 1e-5 and 0.6 < float(y.std()) < 1.7
    for _ in range(200):
        layer(x)
    layer.eval()
    assert torch.allclose(layer(x), y, atol=1e-3)
    with pytest.raises(ValueError, match="larger batches"):
        layer.train()(torch.randn(2, 3, 2, 2))
