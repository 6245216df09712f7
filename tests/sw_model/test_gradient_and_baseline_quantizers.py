"""StatQuant's quantizers against their theory, the comparison methods against their formulas on single numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sw_model import baselines as B
from sw_model import statquant as S
from sw_model.quantizers import derive_key, random_units


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


def test_variances_obey_bounds_and_published_order() -> None:
    ratios = {}
    for kind in ("log-normal", "one large", "uniform"):
        x = gradients(kind)
        v = {name: moments(name, x, 4, 40)[1] for name in S.QUANTIZERS}
        assert v["ptq"] <= S.ptq_variance_bound(x, 4) and v["psq"] <= S.psq_variance_bound(x, 4) * 1.01
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


def test_block_reflection_is_the_householder_matrix() -> None:
    # With very many bits the quantizer must give its input back: the transform and its inverse cancel.
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
