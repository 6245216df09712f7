"""Quantized products of two activations, and the language model built on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from host.exact_engine import ExactEngine
from sw_model.data.images import BatchPart
from sw_model.nn.cost_meter import layer_macs
from sw_model.nn.layers import Dropout, attach, quantized_layers, set_precision
from sw_model.nn.parallel import Ranks, Shard
from sw_model.nn.precision import Precision, Run
from sw_model.nn.transformer import QMatmul, TransformerLM
from sw_model.quantize import affine as Q


def test_matmul_equals_products_of_quantized_factors_on_both_paths() -> None:
    torch.manual_seed(0)
    a, b, out_gradient = torch.randn(3, 5, 4), torch.randn(3, 6, 4), torch.randn(3, 5, 6)
    for engine in (None, ExactEngine()):
        layer = QMatmul()
        attach(layer, Run(engine=engine, seed=2, step=3))
        layer.precision = Precision(8, 4, 5)
        left, right = a.clone().requires_grad_(), b.clone().requires_grad_()
        y = layer(left, right)
        y.backward(out_gradient)
        aq, bq = Q.fake_quantize(a, Q.affine_grid(a, 4)), Q.fake_quantize(b, Q.affine_grid(b, 4))
        gq = Q.fake_quantize(out_gradient, Q.affine_grid(out_gradient, 5, key=layer.gradient_key()))
        assert left.grad is not None and right.grad is not None
        assert torch.allclose(y, torch.einsum("btd,bsd->bts", aq, bq), atol=1e-5)
        assert torch.allclose(left.grad, torch.einsum("bts,bsd->btd", gq, bq), atol=1e-5)
        assert torch.allclose(right.grad, torch.einsum("bts,btd->bsd", gq, aq), atol=1e-5)
        layer.eval()
        assert torch.allclose(layer(a, b), y, atol=1e-5), "the running range of one batch is that batch's range"
    with pytest.raises(ValueError, match="takes"):
        layer(a, b[:2])


def matmul_gradients(precision: Precision, a: Tensor, b: Tensor, g: Tensor, **run: Any) -> tuple[Tensor, Tensor]:
    """Gradients of both factors of a product, for the output gradient ``g``."""
    layer = QMatmul()
    attach(layer, Run(seed=2, **run))
    layer.precision = precision
    left, right = a.clone().requires_grad_(), b.clone().requires_grad_()
    layer(left, right).backward(g)
    assert left.grad is not None and right.grad is not None
    return left.grad, right.grad


def factors() -> tuple[Tensor, Tensor, Tensor]:
    """Two factors (B, T, d), (B, S, d) and an output gradient (B, T, S) with rows of very different size."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 8, 4, generator=generator), torch.randn(3, 6, 4, generator=generator)
    g = torch.randn(3, 8, 6, generator=generator) * torch.exp(2 * torch.randn(3, 8, 1, generator=generator))
    return a, b, g


def test_a_product_of_activations_has_no_gradient_of_weights() -> None:
    seen: dict[str, tuple[int, int]] = {}
    both = [
        matmul_gradients(p, *factors(), on_product=lambda _, product, __, a, b: seen.update({product: (a, b)}))
        for p in (Precision(8, 6, 4), Precision(8, 6, 4, 16))
    ]
    assert all(torch.equal(x, y) for x, y in zip(*both, strict=True))
    assert seen == {"forward": (6, 6), "input_gradient": (4, 6), "weight_gradient": (6, 4)}
    assert not torch.equal(both[0][1], matmul_gradients(Precision(8, 6, 16), *factors())[1])


@pytest.mark.parametrize("name", ["ptq", "psq", "bhq"])
def test_gradients_of_a_product_of_activations_are_quantized_as_asked(name: str) -> None:
    a, b, g = factors()
    aq, bq = (Q.fake_quantize(x, Q.affine_grid(x, 8)) for x in (a, b))
    exact = g @ bq, g.transpose(1, 2) @ aq
    unrounded = matmul_gradients(Precision(8, 8, 0), a, b, g, gradient=name)
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(unrounded, exact, strict=True))
    rounds, bits = 400, 5
    totals, squares = [torch.zeros_like(x) for x in exact], [0.0, 0.0]
    for step in range(rounds):
        for i, x in enumerate(matmul_gradients(Precision(8, 8, bits), a, b, g, gradient=name, step=step)):
            totals[i] += x
            squares[i] += float((x - exact[i]).square().sum())
    for total, square, wanted in zip(totals, squares, exact, strict=True):
        assert square > 0
        # Unbiased: the mean is as far from the exact gradient as its variance lets it be.
        assert 0.5 < float((total / rounds - wanted).square().sum()) * rounds**2 / square < 1.6


def test_rows_and_matrices_share_no_more_than_their_quantizer_says() -> None:
    a, b, g = factors()
    louder = g.clone()
    louder[2, 5] *= 1000
    changed = {}
    for name in ("ptq", "psq", "bhq"):
        one, other = (matmul_gradients(Precision(8, 8, 4), a, b, each, gradient=name)[0] for each in (g, louder))
        changed[name] = [(i, t) for i in range(3) for t in range(8) if not torch.equal(one[i, t], other[i, t])]
    assert changed["psq"] == [(2, 5)]
    assert {i for i, _ in changed["bhq"]} == {2}, "a block of rows that meet different factors leaves no sum"
    assert len(changed["ptq"]) > 12


def test_engines_refuse_what_they_cannot_multiply() -> None:
    a, b, g = factors()
    for precision, run in (
        (Precision(8, 8, 0), {}),
        (Precision(8, 8, 4), {"gradient": "psq"}),
        (Precision(8, 8, 4), {"mode": "paper"}),
    ):
        with pytest.raises(ValueError):
            matmul_gradients(precision, a, b, g, engine=ExactEngine(), **run)


def make(seed: int = 0) -> TransformerLM:
    torch.manual_seed(seed)
    model = TransformerLM(11, width=16, layers=2, heads=2, hidden=32, context=12)
    attach(model, Run(seed=1))
    return model


def test_unquantized_model_equals_pytorchs_attention_and_sees_no_future() -> None:
    model = make()
    tokens = torch.randint(0, 11, (2, 12), generator=torch.Generator().manual_seed(1))
    y = model(tokens)
    changed = tokens.clone()
    changed[:, 8] = (changed[:, 8] + 1) % 11
    assert torch.equal(model(changed)[:, :8], y[:, :8]) and not torch.equal(model(changed)[:, 8:], y[:, 8:])
    attention = model.blocks[0].attention
    x = torch.randn(2, 12, 16)
    parts = (m(x).reshape(2, 12, 2, 8).transpose(1, 2) for m in (attention.query, attention.key, attention.value))
    wanted = F.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).reshape(2, 12, 16)
    assert torch.allclose(attention(x), attention.output(wanted), atol=1e-5)


def test_quantized_model_agrees_on_both_paths_and_learns() -> None:
    tokens = torch.arange(13).remainder(5).repeat(8, 1)
    losses = []
    for engine in (None, ExactEngine()):
        model = make()
        run = attach(model, Run(engine=engine, seed=1))
        set_precision(model, Precision(8, 8, 8))
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    run.engine = None
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(40):
        run.step = step
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3
    assert sum(1 for _ in quantized_layers(model)) > 12


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    x = torch.ones(50, 40, 10, requires_grad=True)
    dropout = Dropout(0.3)
    y = dropout(x)
    y.sum().backward()
    dropped = y == 0
    assert float(dropped.float().mean()) == pytest.approx(0.3, abs=0.02)
    assert torch.equal(y[~dropped], torch.full_like(y[~dropped], 1 / 0.7))
    assert x.grad is not None and torch.equal(x.grad, y)
    assert torch.equal(dropout(x), y), "a function of counters"
    dropout.eval()
    assert dropout(x) is x and Dropout(0.0)(x) is x


def test_dropout_depends_on_seed_step_and_module_only() -> None:
    model = make_with_dropout()
    modules = [m for m in model.modules() if isinstance(m, Dropout)]
    assert len(modules) == 5 and len({m.index for m in modules}) == 5
    x = torch.ones(4, 12, 16)
    seen = {}
    for seed in (1, 2):
        for step in (0, 1):
            attach(model, Run(seed=seed, step=step))
            layer_macs(model, torch.zeros(1, 12, dtype=torch.int64))  # leaves the run as it is
            for m in modules:
                seen[seed, step, m.index] = (m(x) == 0).numpy().tobytes()
    assert len(set(seen.values())) == len(seen) == 20
    torch.manual_seed(5)
    attach(model, Run(seed=2, step=1))
    assert (modules[4](x) == 0).numpy().tobytes() == seen[2, 1, 4]


def test_parts_of_a_batch_drop_what_the_whole_drops() -> None:
    x = torch.randn(5, 6, 4)
    whole, pieces = Dropout(0.4), []
    for rank in range(2):
        part = Dropout(0.4)
        ranks = Ranks(BatchPart(rank, 2))
        part.run = Run(shard=Shard.of_batch(ranks, 5))
        pieces.append(part(x[ranks.part.rows(5)]))
    assert torch.equal(torch.cat(pieces), whole(x))


def test_a_model_with_dropout_differs_in_training_only() -> None:
    tokens = torch.arange(12).remainder(11).repeat(3, 1)
    plain, dropping = make(), make_with_dropout()
    assert not torch.equal(plain(tokens), dropping(tokens))
    assert torch.equal(plain.eval()(tokens), dropping.eval()(tokens))


def make_with_dropout() -> TransformerLM:
    torch.manual_seed(0)
    model = TransformerLM(11, width=16, layers=2, heads=2, hidden=32, context=12, dropout=0.2)
    attach(model, Run(seed=1))
    return model


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        TransformerLM(5, width=10, heads=4)
    with pytest.raises(ValueError, match="at most 12"):
        make()(torch.zeros(1, 13, dtype=torch.int64))
