"""Gates: computing each sample once against computing every option, on both paths; skipping; the cost term."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from host.devices.device import open_device
from host.driver.fabric_engine import FabricEngine
from host.exact_engine import ExactEngine
from host.operands import Engine
from hw.cost.count import computational_cost
from hw.cost.training_schedule import load_schedule
from hw.design import load_design
from sw_model.data.images import ImageSet
from sw_model.nn.cost_meter import CostMeter, layer_macs
from sw_model.nn.gated_convolution import Assignment, dispatch
from sw_model.nn.gates import GATE_DEFECTS, GatedNetwork, gated_loss, way_of
from sw_model.nn.layers import DEPTHWISE, QConv2d, attach, quantized_layers, set_precision
from sw_model.nn.models import Backbone, build_model
from sw_model.nn.precision import FULL, LAYER_DEFECTS, Precision, Run
from sw_model.quantize import affine as Q
from sw_model.train import loop
from sw_model.train.folder import load_checkpoint
from sw_model.train.loop import train
from sw_model.train.recipe import TrainConfig

OPTIONS = [(3, 6), (4, 6), (4, 8), (6, 8), (6, 12)]
RECIPE = Path(__file__).parents[3] / "configs" / "recipes" / "digits-fractrain.toml"


def make_layer(seed: int = 0) -> tuple[QConv2d, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    layer = QConv2d(3, 5, 3, 2, 1)
    x = torch.randn(12, 3, 6, 6)
    hard = F.one_hot(torch.arange(12) % 5, 5).float()
    return layer, x, hard


def precisions(weight: int = 4) -> list[Precision]:
    return [Precision(weight, a, g) for a, g in OPTIONS]


def test_choices_are_asked_for_once_in_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    whole = Assignment.of
    monkeypatch.setattr(Assignment, "of", lambda mask, shard: made.append(mask) or whole(mask, shard))
    base = build_model("resnet-8", 10, (3, 32, 32))
    assert isinstance(base, Backbone)
    network = GatedNetwork(base, OPTIONS, 4)
    network(torch.randn(6, 3, 32, 32))
    assert len(made) == len(base.block_list()) == len(network.masks)


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


def dispatched(engine: Engine | None) -> tuple[Tensor | None, ...]:
    """Output of a dispatched layer, and the gradients of its input, weight and mask."""
    layer, x, hard = make_layer()
    layer.engine = engine
    mask = hard.requires_grad_()
    x.requires_grad_()
    y = dispatch(layer, x, mask, precisions())
    torch.manual_seed(5)
    y.backward(torch.randn(y.shape))  # not randn_like: the paths lay out y differently
    return y.detach(), x.grad, layer.weight.grad, mask.grad


def test_both_paths_agree() -> None:
    for fast, exact in zip(dispatched(None), dispatched(ExactEngine()), strict=True):
        assert fast is not None and exact is not None
        assert (fast - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_a_gated_batch_is_one_program_forward_and_one_backward() -> None:
    fabric = FabricEngine(open_device("reference", load_design("sim-small")))
    results = dispatched(fabric), dispatched(ExactEngine())
    assert fabric.meter.totals["PROGRAMS"] == 2
    for device, software in zip(*results, strict=True):
        assert device is not None and software is not None
        assert torch.equal(device, software)


def test_one_option_for_all_equals_the_plain_layer() -> None:
    layer, x, _ = make_layer()
    mask = F.one_hot(torch.full((12,), 3), 5).float()
    layer.precision = precisions()[3]
    assert torch.allclose(dispatch(layer, x, mask, precisions()), layer(x), atol=1e-6)


def make_network(
    options: list[tuple[int, int]],
    way: str = "once",
    *,
    model: str = "resnet-8",
    image: tuple[int, int, int] = (1, 8, 8),
    weight_bits: int = 4,
    choice: str = "argmax",
) -> GatedNetwork:
    base = build_model(model, 10, image, width=4, quantize_stem=False, seed=1)
    assert isinstance(base, Backbone)
    torch.manual_seed(2)
    network = GatedNetwork(base, options, weight_bits, way=way, choice=choice)  # type: ignore[arg-type]
    attach(network, Run())
    set_precision(network, Precision(8, 8, 8))
    return network


def test_gates_have_the_published_size() -> None:
    base = build_model("resnet-38", 10, (3, 32, 32))
    assert isinstance(base, Backbone)
    network = GatedNetwork(base, OPTIONS, 4)
    gates = sum(p.numel() for n, p in network.named_parameters() if not n.startswith("base."))
    # The published network has one gate more, after the last block, whose choice nobody uses.
    assert gates == 34_917 - (64 * 32 + 32 + 32 * 16 + 16)
    assert [round(float(f), 3) for f in network.factors] == [1.758, 2.083, 2.604, 3.385, 4.688]


@pytest.mark.parametrize(
    ("model", "size", "last", "published"),
    [("resnet-38", 32, 64, 72_176 / 83_280_512), ("mobilenetv2", 32, 320, 0.00313)],
)
def test_gates_cost_what_was_published(model: str, size: int, last: int, published: float) -> None:
    base = build_model(model, 10, (3, size, size))
    assert isinstance(base, Backbone)
    network = GatedNetwork(base, OPTIONS, 4)
    (first, width), hidden = base.gate.projection, base.gate.hidden
    beyond = last * first + first * width + 4 * (width + hidden) * hidden + hidden * len(OPTIONS)
    macs = sum(network.gate_macs()) + beyond  # the published network has a gate after the last block
    assert macs / sum(layer_macs(base, (3, size, size)).values()) == pytest.approx(published, rel=2e-3)


def test_gates_report_their_products() -> None:
    network = make_network(OPTIONS)
    seen: list[tuple[str, str, int, int, int]] = []
    attach(network, Run(on_product=lambda *product: seen.append(product)))
    set_precision(network, Precision(8, 8, 8))

    def gates() -> dict[tuple[str, str], tuple[int, int, int]]:
        found = {(layer, product): rest for layer, product, *rest in seen if layer.startswith("gates.")}
        assert len(found) == sum(layer.startswith("gates.") for layer, *_ in seen)
        seen.clear()
        return found  # type: ignore[return-value]

    network(torch.randn(6, 1, 8, 8)).sum().backward()
    training = gates()
    # A projection from 4 channels, the LSTM's four parts of 16 from 16 + 16, scores of five options.
    assert training["gates.0", "forward"] == [6 * (4 * 32 + 32 * 16 + 64 * 32 + 16 * 5), 32, 32]
    assert len(training) == 9 and training["gates.2", "weight_gradient"] == training["gates.2", "input_gradient"]
    with torch.no_grad():
        network(torch.randn(6, 1, 8, 8))
    assert set(gates()) == {(f"gates.{block}", "forward") for block in range(3)}


def stir(network: GatedNetwork) -> None:
    """Gives the gates weights by which samples differ."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(4)
        for parameter in (*network.projections.parameters(), *network.lstm.parameters()):
            parameter.normal_(0, 0.7, generator=generator)
        network.scores.weight.normal_(0, 5, generator=generator)


@pytest.mark.parametrize("model", ["resnet-8", "mobilenetv2", "resnet-18"])
def test_computing_once_equals_the_published_way_in_evaluation(model: str) -> None:
    # In training they differ: the published way lets samples that chose another option into batch statistics.
    image = (1, 8, 8) if model == "resnet-8" else (3, 16, 16) if model == "mobilenetv2" else (3, 32, 32)
    x = torch.randn(16, *image, generator=torch.Generator().manual_seed(3))
    once, every = (make_network(OPTIONS, way, model=model, image=image) for way in ("once", "every"))
    for _ in range(3):
        once(x)
    every.load_state_dict(once.state_dict())
    for network in (once, every):
        network.eval()
        stir(network)
    y = once(x).detach()
    assert len(once.choices().unique()) > 2, "samples must differ for the test to mean something"
    assert torch.allclose(y, every(x), atol=2e-4 * float(y.abs().max()))
    assert torch.equal(once.choices(), every.choices())


def test_gates_leave_alone_what_the_published_networks_do() -> None:
    seen: dict[str, set[tuple[int, int]]] = {}
    for model, image in (("mobilenetv2", (3, 16, 16)), ("resnet-18", (3, 32, 32))):
        network = make_network([(3, 6), (4, 8)], model=model, image=image)
        attach(network, Run(on_product=lambda layer, _, m, a, b: seen.setdefault(layer, set()).add((a, b))))
        set_precision(network, Precision(8, 8, 8))
        seen.clear()
        network(torch.randn(4, *image)).sum().backward()
        for name, layer in quantized_layers(network):
            if ("shortcut" in name and model == "resnet-18") or name in ("base.stem", "base.head", "base.last"):
                assert seen[name] == {(32, 32)}, name
            elif isinstance(layer, QConv2d) and layer.groups > 1:
                assert seen[name] == {(8, 8), (16, 8), (8, 16)} and layer.precision == DEPTHWISE
            else:
                assert seen[name] <= {(3, 4), (6, 4), (3, 6), (4, 4), (8, 4), (4, 8)}, name


def e2_train(network: GatedNetwork, x: Tensor, units: list[Tensor], skipped_learn: bool) -> Tensor:
    """Selective layer update as E2-Train states it: x <- m F(x) + (1 - m) x, m drawn by p and straight-through.

    Args:
        units: uniform numbers per block and sample.
        skipped_learn: whether the gate also learns what the block would have done for samples that skipped it.
    """
    x = network.base.entry(x)
    h = c = torch.zeros(len(x), network.lstm.hidden_size)
    for block, projection, u in zip(network.base.block_list(), network.projections, units, strict=True):
        h, c = network.lstm(projection(x.mean((2, 3))), (h, c))
        p = network.scores(h).softmax(1)[:, 1]
        run = (u >= 1 - p).float()
        m = (run + p - p.detach())[:, None, None, None]
        around = block.join(None, block.skip_connection(x))
        through = block(x)
        y = m * through + (1 - m) * around
        x = y if skipped_learn else torch.where((run == 1)[:, None, None, None], y, around)
    return network.base.exit(x)


@pytest.mark.parametrize("way", ["once", "every"])
def test_selective_layer_update_is_that_of_e2_train(way: str) -> None:
    x = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    network = make_network([(0, 0), (32, 32)], way, weight_bits=32, choice="sample")
    stir(network)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # so that who is in a batch does not matter
    network.base.stem.run.seed, network.base.stem.run.step = 7, 3
    units = [Q.random_units(12, Q.derive_key(7, 3, block, 1 << 16)) for block in range(3)]
    results = []
    for run in (network, lambda x: e2_train(network, x, units, way == "every")):
        network.zero_grad()
        logits = run(x)
        logits.square().sum().backward()
        # A block that nobody ran has no gradient in one and zero in the other.
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in network.parameters()]
        results.append((logits.detach(), gradients))
    choices = network.choices()
    assert 0 < int(choices.sum()) < choices.numel()
    assert torch.allclose(results[0][0], results[1][0], atol=1e-5)
    assert sum(bool(g.any()) for g in results[0][1]) > 20
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        assert (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max()
    assert float(network.cp().detach()) == pytest.approx(100 * float(choices.float().mean()))


def test_gates_learn_in_nearly_the_direction_of_the_published_way() -> None:
    """The angle between the gates' gradients of both ways, which mix options at different places; noise averaged out.

    Measured: cosine 0.81, 1.19 times the length.
    """
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(3))

    def gradient(way: str, seeds: range) -> Tensor:
        network = make_network(OPTIONS, way)
        stir(network)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()  # so that samples that chose another option are in no statistics
        gates = [p for name, p in network.named_parameters() if not name.startswith("base.")]
        for seed in seeds:  # gradients add up
            network.base.stem.run.seed = seed
            F.cross_entropy(network(x), torch.arange(16) % 10).backward()
        assert len(network.choices().unique()) > 2
        return torch.cat([p.grad.flatten() for p in gates if p.grad is not None]) / len(seeds)

    every = gradient("every, statistics once", range(12))
    again = gradient("every, statistics once", range(12, 24))
    once = gradient("once", range(12))
    assert F.cosine_similarity(every, again, dim=0) > 0.98, "the rest is not noise"
    assert 0.7 < F.cosine_similarity(every, once, dim=0) < 0.95
    assert 1.0 < float(once.norm() / every.norm()) < 1.4


def test_draws_follow_the_probabilities() -> None:
    network = make_network(OPTIONS, choice="sample")
    soft = torch.tensor([[0.1, 0.2, 0.0, 0.3, 0.4]]).expand(20_000, 5)
    shares = network._choose(soft, 0).bincount(minlength=5) / 20_000
    assert torch.allclose(shares, soft[0], atol=0.015) and shares[2] == 0
    assert not torch.equal(network._choose(soft, 0), network._choose(soft, 1))
    network.eval()
    assert (network._choose(soft, 0) == 4).all()


def test_skipping_is_weighed_against_the_option_that_was_chosen() -> None:
    # With two options, the gate's gradient of skipping must be that of the outputs' difference, on either path to it.
    x = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(3)).relu()
    for options, column in (([(0, 0), (4, 8)], 1), ([(0, 0), (4, 8), (6, 8)], 1)):
        network = make_network(options)
        block = network.base.block_list()[0]
        block(x)
        block.eval()
        mask = F.one_hot(torch.full((6,), column), len(options)).float().requires_grad_()
        upstream = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(5))
        y = network._once(block, x, mask)
        y.backward(upstream)
        assert mask.grad is not None
        gap = mask.grad[:, 0] - mask.grad[:, column]
        assert torch.allclose(gap, (upstream * (x - y.detach())).sum((1, 2, 3)), rtol=1e-3, atol=1e-3)


def test_skipping_samples_leave_the_block_alone() -> None:
    network = make_network([(0, 0), (4, 8)])
    x = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    network(x)
    network.eval()
    block = network.base.block_list()[0]
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
    for each in network.base.block_list():
        inputs = torch.randn(10, each.conv1.in_channels, 4, 4)
        assert network._once(each, inputs, nobody).shape[0] == 10


@pytest.mark.parametrize("options", [[(0, 0), (4, 8)], [(0, 0), (4, 8), (6, 8)]])
def test_blocks_that_training_always_skipped_are_skipped_in_evaluation(options: list[tuple[int, int]]) -> None:
    network = make_network(options)
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))

    def prefer(option: int) -> None:
        with torch.no_grad():
            network.scores.bias.copy_(100.0 * F.one_hot(torch.tensor(option), len(options)))

    prefer(0)
    network(x)
    skipped = network.eval()(x)
    prefer(1)
    assert torch.equal(network(x), skipped) and not network.choices().any()
    assert torch.equal(network(x[:2]), skipped[:2]), "a sample's result does not depend on its batch"
    network.train()(x)
    assert network.choices().all()
    assert not torch.equal(network.eval()(x), skipped) and network.choices().all()


def test_cp_and_cost_follow_the_choices() -> None:
    network = make_network([(0, 0), (4, 8), (6, 8)])
    meter = CostMeter({f"base.{n}": m for n, m in layer_macs(network.base, (1, 8, 8)).items()})
    network.masks = [F.one_hot(torch.tensor([0, 1, 2, 1]), 3).float() for _ in range(3)]
    assert float(network.cp()) == pytest.approx((0 + 2 * 2.604 + 3.385) / 4, abs=1e-3)
    meter.step_gated(network.shares(network.choices()), FULL)
    blocks = sum(m for n, m in meter.macs.items() if ".blocks." in n)
    assert meter.paper == pytest.approx(blocks * 3 * (2 * 2.6042 + 3.3854) / 100, rel=1e-4)
    with pytest.raises(ValueError, match="no layer"):
        meter.step_gated({"nowhere": torch.ones(3)}, FULL)


def test_cost_term_flips_its_sign_at_the_target() -> None:
    task = torch.tensor(2.0)
    for cp, gradient in ((3.0, 0.1), (1.0, -0.1)):
        cost = torch.tensor(cp, requires_grad=True)
        gated_loss(task, cost, 2.0, 0.1).backward()
        assert float(cost.grad) == pytest.approx(gradient)  # type: ignore[arg-type]
    cost = torch.tensor(2.1, requires_grad=True)
    assert gated_loss(task, cost, 2.0, 0.1, band=0.2) is task
    assert float(gated_loss(task, cost, 2.0, 10.0, cap=0.1).detach()) == pytest.approx(2.2)


def test_gated_training_follows_its_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    aimed_at: list[float] = []

    def spy(task: Tensor, cp: Tensor, target: float, *rest: Any, **options: Any) -> Tensor:
        aimed_at.append(target)
        return gated_loss(task, cp, target, *rest, **options)

    monkeypatch.setattr(loop, "gated_loss", spy)
    changes = {"targets": [2.0, 4.2], "deadlines": [2], "eps": 1e-9, "beta": 1.0, "warmup": 0.0}
    rate = {"lr_schedule": "steps", "milestones": []}
    few = {"epochs": 6, "train_limit": 320, "test_limit": 16, "eval_every": 6}
    rows = train(TrainConfig.from_recipe(RECIPE, **few, **rate, **changes)).history
    assert [row["target"] for row in rows] == [2.0] * 3 + [4.2] * 3
    assert aimed_at == [2.0] * 30 + [4.2] * 30
    cp = [row["cp"] for row in rows]
    # From above to the first target, from below to the second; both lie within the options' 1.8 to 4.7 %.
    assert cp[0] > cp[2] and cp[2] == pytest.approx(2.0, abs=0.2)
    assert cp[3] < cp[4] < cp[5] and cp[5] == pytest.approx(4.2, abs=0.4)


def test_gated_training_resumes(tmp_path: Path) -> None:
    config = TrainConfig.from_recipe(RECIPE, epochs=3, train_limit=320, test_limit=40, deadlines=[0, 1, 2])
    result = train(config, out=tmp_path / "whole")
    train(config, out=tmp_path / "parts", stop_after=14)
    train(config, out=tmp_path / "parts", resume=True)
    a, b = (load_checkpoint(tmp_path / n / "checkpoint.pt") for n in ("whole", "parts"))
    assert all(torch.equal(v, b["model"][k]) for k, v in a["model"].items())
    assert a["cost"] == b["cost"]
    assert result.cc_full > result.cc > 0


def test_cost_of_a_gated_run_is_relative_to_the_layers_that_it_counts() -> None:
    changes = {"options": [[8, 8], [8, 8]], "weight_bits": 8, "targets": [6.0], "deadlines": []}
    result = train(TrainConfig.from_recipe(RECIPE, epochs=1, train_limit=64, test_limit=8, **changes))
    assert result.cp == pytest.approx(6.25) and result.history[0]["cp"] == pytest.approx(6.25)
    assert result.cc == pytest.approx(result.cc_static), "all gates choose 8/8/8"


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
    with pytest.raises(ValueError, match="float32 stands"):
        make_network([(0, 0), (4, 4), (32, 32)], weight_bits=32)
    with pytest.raises(ValueError, match="float32 stands"):
        make_network([(0, 0), (32, 32)], weight_bits=4)
    with pytest.raises(ValueError, match="no skip connection"):
        make_network([(0, 0), (4, 4)], model="mobilenetv2", image=(3, 16, 16))


@pytest.mark.parametrize(
    "changes",
    [
        {"options": ((0, 0), (32, 32)), "weight_bits": 32, "gate": "sample", "targets": (50.0,), "deadlines": ()},
        {"model": "mobilenetv2", "train_limit": 24, "batch": 8, "test_limit": 8, "deadlines": (0, 1, 2)},
    ],
    ids=["slu", "mobilenetv2"],
)
def test_other_gated_trainings_keep_to_their_cost(changes: dict[str, Any], tmp_path: Path) -> None:
    data = None
    if "model" in changes:
        images = np.random.default_rng(0).integers(0, 256, (32, 3, 16, 16)).astype(np.uint8)
        labels = np.arange(32) % 4
        names = tuple("abcd")
        data = ImageSet(images, labels, images, labels, names, 255.0, (0.5,) * 3, (0.25,) * 3, shift=0, flip=False)
    config = TrainConfig.from_recipe(RECIPE, **{"epochs": 2, "train_limit": 320, "test_limit": 40, **changes})
    result = train(config, out=tmp_path / "run", data=data)
    schedule = load_schedule(tmp_path / "run")
    assert schedule.trained is not None
    for count, cost in (("paper", result.cc), ("full", result.cc_full)):
        found = computational_cost(schedule.trained.shapes(), schedule, schedule.trained.samples, count).total
        assert found == pytest.approx(cost, rel=1e-6)
    if config.gate == "sample":
        assert 20 < result.history[-1]["cp"] < 80


def test_published_details_of_gates_are_switched_one_by_one() -> None:
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    mean = {}
    for mode in ("fixed", "masked-noise", "masked-noise+norm-per-option"):
        network = make_network(OPTIONS, way_of(mode))
        network(x)
        norm = network.base.get_submodule("blocks.0.bn1")
        assert isinstance(norm, torch.nn.BatchNorm2d) and norm.momentum == 0.1
        mean[mode] = norm.running_mean
    batch = mean["masked-noise"]
    # Five updates at 0.1 of nearly the same batch statistics (their bits differ) against one.
    assert torch.allclose(mean["masked-noise+norm-per-option"], batch / 0.1 * (1 - 0.9**5), rtol=0.3, atol=0.02)
    assert (mean["masked-noise+norm-per-option"].norm() / batch.norm()) > 3
    assert 0.5 < mean["fixed"].norm() / batch.norm() < 2


def test_paper_mode_of_gated_training_has_every_published_detail(tmp_path: Path) -> None:
    few = TrainConfig.from_recipe(RECIPE, epochs=1, train_limit=64, test_limit=16, targets=[3.0], deadlines=[])
    names = (*LAYER_DEFECTS, *GATE_DEFECTS)
    full, states = {}, {}
    for mode in ("fixed", "paper", "+".join(names), "+".join(names[:-1])):
        out = tmp_path / mode
        full[mode] = train(replace(few, mode=mode), out=out).cc_full
        states[mode] = load_checkpoint(out / "checkpoint.pt")["model"]

    def same(one: str, other: str) -> bool:
        return all(torch.equal(value, states[other][name]) for name, value in states[one].items())

    assert same("paper", "+".join(names))
    assert not same("paper", "+".join(names[:-1])) and not same("paper", "fixed")
    assert full["paper"] > 1.2 * full["fixed"], "every option runs"


@pytest.mark.parametrize("options", [OPTIONS, [(0, 0), (3, 6), (4, 8)]])
def test_statistics_once_are_those_of_computing_once(options: list[tuple[int, int]]) -> None:
    """Where all samples take the option whose statistics count; and where they differ, of the layers before any choice."""
    first, batches = options.index((3, 6)), torch.randn(3, 16, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    networks = {way: make_network(options, way) for way in ("once", "every, statistics once")}
    for stirred in (False, True):
        for network in networks.values():
            network.train()
            with torch.no_grad():
                network.scores.bias.copy_(100.0 * (not stirred) * F.one_hot(torch.tensor(first), len(options)))
            if stirred:
                stir(network)
            for x in batches:
                network(x)
        assert (len(networks["once"].choices().unique()) > 1) == stirred
        once, every = (network.state_dict() for network in networks.values())
        before = ("base.stem", "base.bn.", "base.blocks.0.conv1")
        # PyTorch counts the calls of a normalisation, which has no effect.
        held = [n for n in once if (not stirred or n.startswith(before)) and not n.endswith("num_batches_tracked")]
        assert any(name.endswith("running_span") for name in held)
        for name in held:
            assert torch.allclose(once[name], every[name], rtol=1e-5, atol=1e-6), name
        if not stirred:
            x = batches[0] + 1
            assert torch.allclose(*(n.eval()(x) for n in networks.values()), rtol=1e-3, atol=1e-3)


def test_masked_samples_become_noise_in_the_published_way() -> None:
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    network = make_network([(4, 3), (4, 8)], "every, statistics once")
    network(x)
    block = network.base.block_list()[0].eval()  # batch statistics would mix samples too
    inputs: list[Tensor] = []
    block.get_submodule("conv2").register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    h = network.base.entry(x).detach().requires_grad_()
    y = network._every(block, h, F.one_hot(torch.tensor([0] * 8 + [1] * 8), 2).float())
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
    of_first, of_second = torch.autograd.grad(y, inputs, upstream)
    # The first option's gradients of the samples that chose the second are zero times something, yet not zero.
    assert of_first[8:].any() and of_second[:8].any()
