"""The executor of a training step: against float gradients, over parts of a batch, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from host.step.backward import Backward
from host.step.coded import ALL, Ranges
from host.step.forward import Forward, Groups, Parameters
from host.step.passes import PassError
from host.step.software import SoftwareEngine
from hw.networks import Bits, BlockLayout, Layout, cifar_resnet_layout
from hw.nodes import KeptWidths, StepNode, nodes

RESNET = cifar_resnet_layout(8, 4)
MOBILE = Layout((4, 3, 1), (BlockLayout(4, 6, 1, 2), BlockLayout(6, 6, 1, 2), BlockLayout(6, 8, 2, 2)), last=12)
FINE, WIDE = Bits(12, 12, 14), KeptWidths(8, 8, 8)


def parameters(graph: list[StepNode], seed: int = 0) -> dict[str, Parameters]:
    rng = np.random.default_rng(seed)
    made = {}
    for node in graph:
        s = node.shape
        weight = rng.normal(0, 0.4, (s.out_channels, s.in_channels // s.groups, s.kernel, s.kernel))
        gamma, beta = rng.uniform(0.5, 1.5, s.out_channels), rng.normal(0, 0.3, s.out_channels)
        still = np.zeros(s.out_channels), np.ones(s.out_channels)
        arrays = (a.astype(np.float32) for a in (weight, gamma, beta, *still))
        made[node.name] = Parameters(*arrays, eps=1e-5)
    return made


def in_float(
    graph: list[StepNode], own: dict[str, Parameters], images: Tensor, inputs: dict[str, Tensor] | None = None
) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """Pooled features, and the parameters that they depend on; ``inputs`` takes every convolution's input."""
    leaves, outputs = {}, {"": images}
    for node in graph:
        p, s = own[node.name], node.shape
        leaves[node.name] = [
            torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in (p.weight, p.gamma, p.beta)
        ]
        weight, gamma, beta = leaves[node.name]
        x = outputs[node.source] * 1
        if inputs is not None and node.source:
            inputs[node.name] = x
            x.retain_grad()
        y = F.conv2d(x, weight, None, s.stride, s.padding, 1, s.groups)
        z = F.batch_norm(y, None, None, gamma, beta, training=True, eps=p.eps)
        z = z + outputs[node.residual] if node.residual else z
        outputs[node.name] = F.relu(z) if node.relu else z
    return outputs[graph[-1].name].mean((2, 3)), leaves


def cosine(a: Any, b: Any) -> float:
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


class Trial:
    """One step of a small network."""

    def __init__(self, layout: Layout, bits: Bits = FINE, batch: int = 12, **options: Any) -> None:
        rng = np.random.default_rng(5)
        self.graph = nodes(layout, (2, 8, 8))
        self.own = parameters(self.graph)
        self.images = rng.normal(size=(batch, 2, 8, 8)).astype(np.float32)
        self.gradient = rng.normal(size=(batch, layout.features)).astype(np.float32)
        self.ranges, self.engine = options.pop("ranges", Ranges()), SoftwareEngine()
        wide = {node.name: bits for node in self.graph}
        choose = options.pop("choose", None)
        chosen = None if choose is None else lambda node: True
        self.forward = Forward(self.graph, self.own, self.engine, self.ranges, wide, WIDE, chosen=chosen, **options)
        self.tape = self.forward.run(self.images, choose)

    def backward(self) -> Any:
        return Backward(self.forward, 99).run(self.gradient)


@pytest.mark.parametrize("layout", [RESNET, MOBILE], ids=["resnet", "mobilenet"])
def test_many_bits_come_close_to_floating_point(layout: Layout) -> None:
    trial = Trial(layout)
    found = trial.backward()
    features, leaves = in_float(trial.graph, trial.own, torch.tensor(trial.images, dtype=torch.float64))
    features.backward(torch.tensor(trial.gradient, dtype=torch.float64))
    assert trial.tape.features is not None
    assert cosine(trial.tape.features, features.detach()) > 0.999
    for node in trial.graph:
        weight, gamma, beta = (leaf.grad for leaf in leaves[node.name])
        assert cosine(found[node.name].weight, weight) > 0.9, node.name
        assert cosine(found[node.name].gamma, gamma) > 0.8, node.name
        if node.relu:  # behind a linear node the next normalisation takes beta away
            assert cosine(found[node.name].beta, beta) > 0.8, node.name
    assert trial.tape.saturated <= 2


def test_gradients_are_unbiased() -> None:
    """The mean over many roundings is far closer to the float gradient than one is."""
    trial = Trial(RESNET, Bits(12, 12, 4), batch=6)
    features, leaves = in_float(trial.graph, trial.own, torch.tensor(trial.images, dtype=torch.float64))
    features.backward(torch.tensor(trial.gradient, dtype=torch.float64))
    drawn = [Backward(trial.forward, key).run(trial.gradient)["stem"].weight for key in range(24)]
    true = leaves["stem"][0].grad
    assert true is not None
    single = np.mean([np.linalg.norm(d - true.numpy()) for d in drawn])
    assert np.linalg.norm(np.mean(drawn, 0) - true.numpy()) < 0.45 * single


def test_a_step_is_a_function_of_its_key() -> None:
    one, two = Trial(RESNET), Trial(RESNET)
    first, second = one.backward(), two.backward()
    other = Backward(two.forward, 100).run(two.gradient)
    assert all((a == b).all() for name in first for a, b in zip(first[name], second[name], strict=True))
    assert not (first["stem"].weight == other["stem"].weight).all()


def test_statistics_are_those_of_the_whole_batch_however_it_is_divided() -> None:
    """Samples with bits of their own share one normalisation; with the same bits for all the step is the same."""
    rng = np.random.default_rng(2)
    parts = [np.sort(part) for part in np.split(rng.permutation(12), [5])]

    def choose(groups: Groups) -> Any:
        return lambda block, pooled: groups

    whole = Trial(RESNET, choose=choose([(ALL, FINE)]))
    split = Trial(RESNET, choose=choose([(part, FINE) for part in parts]))
    mixed = Trial(RESNET, choose=choose([(parts[0], Bits(12, 4, 6)), (parts[1], Bits(12, 8, 12))]))
    for name, true_ones in whole.tape.statistics.items():
        for trial, close in ((split, 0.02), (mixed, 0.5)):
            other = trial.tape.statistics[name]
            assert np.allclose(other.mean, true_ones.mean, atol=close * np.sqrt(true_ones.variance).max())
            assert np.allclose(other.variance, true_ones.variance, rtol=close)
    true = whole.backward()
    for trial, least in ((split, 0.97), (mixed, 0.75)):
        assert cosine(trial.backward()["blocks.1.conv1"].weight, true["blocks.1.conv1"].weight) > least


def test_gradients_of_options_are_those_of_a_mixture_of_them() -> None:
    """For every sample the product of a block's convolutions' input gradients and their inputs at an option's bits."""
    trial = Trial(RESNET, choose=lambda block, pooled: [(ALL, FINE)])
    options = (1, 2, 3)
    backward = Backward(trial.forward, 7, options)
    backward.run(trial.gradient)
    inputs: dict[str, Tensor] = {}
    features, _ = in_float(trial.graph, trial.own, torch.tensor(trial.images, dtype=torch.float64), inputs)
    features.backward(torch.tensor(trial.gradient, dtype=torch.float64))
    for block, found in sorted(backward.option_gradients.items()):
        true = np.zeros_like(found)
        for name, x in inputs.items():
            if not name.startswith(block + "."):
                continue
            assert x.grad is not None
            for number, bits in enumerate(options):
                step = x.detach().max() / (2**bits - 1)
                true[:, number] += ((x.detach() / step).round() * step * x.grad).sum((1, 2, 3)).numpy()
        # only what tells options apart matters to the gates
        differences = [each - each.mean(1, keepdims=True) for each in (found, true)]
        assert cosine(*differences) > 0.7, block


def test_a_gradient_of_two_widths_is_rounded_twice() -> None:
    trial = Trial(RESNET, Bits(12, 12, 4, 14))
    fine = Trial(RESNET, Bits(12, 12, 14))
    found, true = trial.backward(), fine.backward()
    last = trial.graph[-1].name
    assert cosine(found[last].weight, true[last].weight) > 0.995
    assert trial.engine.meter.totals["gradients"] == 2 * fine.engine.meter.totals["gradients"]


def test_ranges_behind_sums_follow_what_was_seen() -> None:
    trial = Trial(RESNET)
    trial.backward()
    seen = dict(trial.ranges.tops)
    join = "blocks.0.conv2"
    codes = trial.tape.codes[join]
    assert seen[join] == pytest.approx(codes.real().max(), rel=0.05)
    again = Trial(RESNET, ranges=trial.ranges)
    assert again.tape.codes[join].values.max() > 0.9 * 4095  # the first step had a bound only, which no value reaches
    assert {f"{n.name}.gradient" for n in trial.graph if n.on_shortcut} < set(seen)


def test_evaluation_takes_running_statistics_and_ranges() -> None:
    trial = Trial(RESNET)
    with pytest.raises(PassError, match=r"range of .* unknown"):
        Trial(RESNET, training=False)
    for name, found in trial.tape.statistics.items():
        own = trial.own[name]
        own.mean[:], own.variance[:] = found.mean, found.variance
    rng = {node.name: FINE for node in trial.graph}
    tested = Forward(trial.graph, trial.own, trial.engine, trial.ranges, rng, WIDE, training=False).run(trial.images)
    assert cosine(tested.features, trial.tape.features) > 0.999
    alone = Forward(trial.graph, trial.own, trial.engine, trial.ranges, rng, WIDE, training=False).run(trial.images[:1])
    assert tested.features is not None and alone.features is not None
    assert (alone.features == tested.features[:1]).all()


def test_dead_channels_do_no_harm() -> None:
    trial = Trial(RESNET)
    for name in ("blocks.0.conv1", "blocks.2.conv2"):
        trial.own[name].weight[:2] = 0
        trial.own[name].gamma[2:] = 0
    trial.own["blocks.1.conv1"].gamma[:] = 0
    trial.own["blocks.1.conv1"].beta[:] = -1
    bits = {node.name: Bits(4, 3, 6) for node in trial.graph}
    forward = Forward(trial.graph, trial.own, trial.engine, Ranges(), bits, KeptWidths())
    forward.run(trial.images)
    for found in Backward(forward, 1).run(np.zeros_like(trial.gradient)).values():
        assert all((part == 0).all() for part in found)
    for found in Backward(forward, 1).run(trial.gradient).values():
        assert all(np.isfinite(part).all() for part in found)


@pytest.mark.parametrize(("bits", "words"), [(Bits(1, 8, 8), "at least 2 bits"), (Bits(16, 16, 8), "beyond 32 bits")])
def test_bits_that_no_pass_takes_are_refused(bits: Bits, words: str) -> None:
    with pytest.raises(PassError, match=words):
        Trial(RESNET, bits)


def test_values_that_are_not_finite_are_refused() -> None:
    trial = Trial(RESNET)
    trial.images[0, 0, 0, 0] = np.nan
    with pytest.raises(PassError, match="input holds NaN"):
        trial.forward.run(trial.images)
    trial.images[0, 0, 0, 0] = 0
    trial.own["blocks.1.conv1"].weight[0, 0, 0, 0] = np.inf
    with pytest.raises(PassError, match=r"blocks\.1\.conv1: weights hold NaN"):
        trial.forward.run(trial.images)


def test_a_pooled_stem_is_refused() -> None:
    with pytest.raises(ValueError, match="max pooling"):
        nodes(Layout((8, 7, 2), RESNET.blocks, pooled=True), (3, 64, 64))
