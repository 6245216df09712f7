"""Gates: computing each sample once against computing every option, on both paths; skipping; the cost term."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sw_model import quantizers as Q
from sw_model.cost import CostMeter, layer_macs
from sw_model.engine import SoftwareEngine
from sw_model.gates import GatedResNet, dispatch, gated_loss
from sw_model.layers import Precision, QConv2d, Run, attach, set_precision
from sw_model.models import CifarResNet, build_model
from sw_model.recipe import TrainConfig
from sw_model.run_folder import load_checkpoint
from sw_model.training import train

OPTIONS = [(3, 6), (4, 6), (4, 8), (6, 8), (6, 12)]
RECIPE = Path(__file__).parents[2] / "configs" / "recipes" / "digits-fractrain.toml"


def make_layer(seed: int = 0) -> tuple[QConv2d, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    layer = QConv2d(3, 5, 3, 2, 1)
    x = torch.randn(12, 3, 6, 6)
    hard = F.one_hot(torch.arange(12) % 5, 5).float()
    return layer, x, hard


def precisions(weight: int = 4) -> list[Precision]:
    return [Precision(weight, a, g) for a, g in OPTIONS]


def test_mixture_equals_every_option_computed_and_summed() -> None:
    layer, x, hard = make_layer()
    mask, x_one = hard.clone().requires_grad_(), x.clone().requires_grad_()
    out_gradient = torch.randn(12, 5, 3, 3)
    y = dispatch(layer, x_one, mask, precisions())
    y.backward(out_gradient)

    # Every option convolved in full and summed under the mask; the output gradient as rounded option by option.
    low, span = Q.extremes(x)
    w = layer.weight.detach()
    forward_w, backward_w = (Q.fake_quantize(w, Q.affine_grid(w, 4, axis=a), a) for a in (0, 1))
    outputs = []
    for a, _ in OPTIONS:
        outputs.append(F.conv2d(Q.fake_quantize(x, Q.grid_from_range(low, span, a)), forward_w, None, 2, 1))
    wanted = torch.einsum("np,pnohw->nohw", hard, torch.stack(outputs))
    assert torch.allclose(y, wanted, atol=1e-5)

    g_low, g_span = Q.extremes(out_gradient)
    rounded = torch.empty_like(out_gradient)
    for k, (_, g) in enumerate(OPTIONS):
        mine = hard[:, k] == 1
        key = Q.derive_key(layer.gradient_key(), k)
        rounded[mine] = Q.fake_quantize(out_gradient[mine], Q.grid_from_range(g_low, g_span, g, key=key))
    for k, (a, _) in enumerate(OPTIONS):
        option_output = F.conv2d(Q.fake_quantize(x, Q.grid_from_range(low, span, a)), backward_w, None, 2, 1)
        assert mask.grad is not None
        assert torch.allclose(mask.grad[:, k], (rounded * option_output).sum((1, 2, 3)), rtol=1e-4, atol=1e-3)
    probe = x.clone().requires_grad_()
    F.conv2d(probe, backward_w, None, 2, 1).backward(rounded)
    assert x_one.grad is not None and probe.grad is not None
    assert torch.allclose(x_one.grad, probe.grad, atol=1e-5)


def test_both_paths_agree() -> None:
    results = []
    for engine in (None, SoftwareEngine()):
        layer, x, hard = make_layer()
        layer.engine = engine
        mask = hard.requires_grad_()
        x.requires_grad_()
        y = dispatch(layer, x, mask, precisions())
        torch.manual_seed(5)
        y.backward(torch.randn(y.shape))  # not randn_like: the paths lay out y differently
        results.append((y.detach(), x.grad, layer.weight.grad, mask.grad))
    for fast, exact in zip(*results, strict=True):
        assert fast is not None and exact is not None
        assert (fast - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_one_option_for_all_equals_the_plain_layer() -> None:
    layer, x, _ = make_layer()
    mask = F.one_hot(torch.full((12,), 3), 5).float()
    layer.precision = precisions()[3]
    assert torch.allclose(dispatch(layer, x, mask, precisions()), layer(x), atol=1e-6)


def make_network(options: list[tuple[int, int]], way: str = "once") -> GatedResNet:
    base = build_model("resnet-8", 10, (1, 8, 8), width=4, quantize_stem=False, seed=1)
    assert isinstance(base, CifarResNet)
    torch.manual_seed(2)
    network = GatedResNet(base, options, 4, way=way)  # type: ignore[arg-type]
    attach(network, Run())
    set_precision(network, Precision(8, 8, 8))
    return network


def test_gates_have_the_published_size() -> None:
    base = build_model("resnet-38", 10, (3, 32, 32))
    assert isinstance(base, CifarResNet)
    network = GatedResNet(base, OPTIONS, 4)
    gates = sum(p.numel() for n, p in network.named_parameters() if not n.startswith("base."))
    # The published network has one gate more, after the last block, whose choice nobody uses.
    assert gates == 34_917 - (64 * 32 + 32 + 32 * 16 + 16)
    assert [round(float(f), 3) for f in network.factors] == [1.758, 2.083, 2.604, 3.385, 4.688]


def test_computing_once_equals_the_published_way_in_evaluation() -> None:
    # In training they differ: the published way lets samples that chose another option into batch statistics.
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    once, every = make_network(OPTIONS), make_network(OPTIONS, "every")
    for _ in range(3):
        once(x)
    every.load_state_dict(once.state_dict())
    for network in (once, every):
        network.eval()
        with torch.no_grad():
            generator = torch.Generator().manual_seed(4)
            for parameter in (*network.projections.parameters(), *network.lstm.parameters()):
                parameter.normal_(0, 0.7, generator=generator)
            network.scores.weight.normal_(0, 5, generator=generator)
    y = once(x)
    assert len(once.choices().unique()) > 2, "samples must differ for the test to mean something"
    assert torch.allclose(y, every(x), atol=1e-4)
    assert torch.equal(once.choices(), every.choices())


def test_skipping_samples_leave_the_block_alone() -> None:
    network = make_network([(0, 0), (4, 8)])
    x = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    network(x)
    network.eval()
    block = network._blocks()[0]
    h = torch.randn(10, 4, 8, 8).relu()
    choice = torch.tensor([0, 1] * 5)
    mask = F.one_hot(choice, 2).float().requires_grad_()
    y = network._once(block, h, mask)
    assert torch.equal(y[::2], h[::2])
    full = network._once(block, h[1::2], F.one_hot(torch.ones(5, dtype=torch.int64), 2).float())
    assert torch.allclose(y[1::2], full, atol=1e-5)
    y.sum().backward()
    assert mask.grad is not None and mask.grad[1::2, 0].abs().sum() > 0
    nobody = F.one_hot(torch.zeros(10, dtype=torch.int64), 2).float()
    for each in network._blocks():
        inputs = torch.randn(10, each.conv1.in_channels, 4, 4)
        assert network._once(each, inputs, nobody).shape[0] == 10


def test_cp_and_cost_follow_the_choices() -> None:
    network = make_network([(0, 0), (4, 8), (6, 8)])
    assert isinstance(network.base, CifarResNet)
    meter = CostMeter({f"base.{n}": m for n, m in layer_macs(network.base, (1, 8, 8)).items()})
    network.masks = [F.one_hot(torch.tensor([0, 1, 2, 1]), 3).float() for _ in range(3)]
    assert float(network.cp()) == pytest.approx((0 + 2 * 2.604 + 3.385) / 4, abs=1e-3)
    meter.step_gated(network.shares())
    blocks = sum(m for n, m in meter.macs.items() if ".blocks." in n)
    assert meter.paper == pytest.approx(blocks * 3 * (2 * 2.6042 + 3.3854) / 100, rel=1e-4)
    with pytest.raises(ValueError, match="no layer"):
        meter.step_gated({"nowhere": torch.ones(3)})


def test_cost_term_flips_its_sign_at_the_target() -> None:
    task = torch.tensor(2.0)
    for cp, gradient in ((3.0, 0.1), (1.0, -0.1)):
        cost = torch.tensor(cp, requires_grad=True)
        gated_loss(task, cost, 2.0, 0.1).backward()
        assert float(cost.grad) == pytest.approx(gradient)  # type: ignore[arg-type]
    cost = torch.tensor(2.1, requires_grad=True)
    assert gated_loss(task, cost, 2.0, 0.1, band=0.2) is task
    assert float(gated_loss(task, cost, 2.0, 10.0, cap=0.1).detach()) == pytest.approx(2.2)


def test_gated_training_follows_its_targets_and_resumes(tmp_path: Path) -> None:
    config = TrainConfig.from_recipe(RECIPE, epochs=3, train_limit=320, test_limit=40, deadlines=[0, 1, 2])
    result = train(config, out=tmp_path / "whole")
    train(config, out=tmp_path / "parts", stop_after=14)
    train(config, out=tmp_path / "parts", resume=True)
    a, b = (load_checkpoint(tmp_path / n / "checkpoint.pt") for n in ("whole", "parts"))
    assert all(torch.equal(v, b["model"][k]) for k, v in a["model"].items())
    assert a["cost"] == b["cost"]
    assert result.cc_full > result.cc > 0
    assert 1.75 <= result.history[-1]["cp"] <= 4.7


def test_unusable_gates_are_refused() -> None:
    layer, x, hard = make_layer()
    with pytest.raises(ValueError, match="share"):
        dispatch(layer, x, hard, [Precision(b, 4, 4) for b in (2, 3, 4, 5, 6)])
    with pytest.raises(ValueError, match="skips"):
        dispatch(layer, x, hard, [Precision(4, 0, 0), *precisions()[1:]])
    with pytest.raises(ValueError, match="at least two"):
        make_network([(4, 4)])
    with pytest.raises(ValueError, match="skipping"):
        make_network([(4, 4), (0, 3)])
