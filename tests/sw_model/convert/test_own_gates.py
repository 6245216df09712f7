"""Gates over blocks of networks of others: each sample's bits, their cost and record, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fractrain
from host.exact_engine import ExactEngine
from hw.cost.count import computational_cost
from hw.cost.training_schedule import load_schedule
from sw_model.nn.cost_meter import step_factor
from sw_model.nn.precision import Precision

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
OPTIONS = [(3, 4), (6, 8)]


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.wise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.wise(self.conv(x)).relu()
        return y


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = nn.Conv2d(3, 4, 3), Residual(4), Residual(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.two(self.one(self.stem(x))).mean((2, 3)))
        return y


def gated(option: int | None = None, engine: Any = None, **changes: Any) -> tuple[Network, Any]:
    """A gated network; all its samples choose ``option``, if one is given."""
    torch.manual_seed(0)
    model = Network()
    fractrain.convert(model, IMAGES)
    settings: dict[str, Any] = {"targets": [3.0], "weight_bits": 4, "bits": (8, 8, 8)} | changes
    training = fractrain.PrecisionScheduler(model, fractrain.dfq(["one", "two"], OPTIONS, **settings), engine=engine)
    if option is not None:
        with torch.no_grad():
            model.gates.scores.weight.zero_()
            model.gates.scores.bias.copy_(torch.eye(2)[option] * 9)
    return model, training


def step(model: nn.Module, training: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = model(IMAGES).square().mean()
    training.with_cost(loss).backward()
    optimizer.step()
    training.step(loss)


@pytest.mark.parametrize("engine", [None, ExactEngine()])
@pytest.mark.parametrize("option", [0, 1])
def test_a_choice_gives_the_block_its_bits(option: int, engine: Any) -> None:
    model, _ = gated(option, engine)
    torch.manual_seed(0)
    static = Network()
    fractrain.convert(static, IMAGES)
    fractrain.PrecisionScheduler(static, fractrain.static("8/8/8"), engine=engine)
    for block in (static.one, static.two):
        block.conv.products[0].precision = Precision(4, *OPTIONS[option])
    assert torch.allclose(model(IMAGES), static(IMAGES), atol=1e-6)


@pytest.mark.parametrize("engine", [None, ExactEngine()])
def test_meter_and_record_have_what_was_chosen(engine: Any, tmp_path: Path) -> None:
    model, training = gated(1, engine)
    step(model, training)
    training.end_epoch()
    assert training.cost.cp == pytest.approx(100 * step_factor(Precision(4, *OPTIONS[1])) / 3)
    training.save_record(tmp_path)
    record = load_schedule(tmp_path)
    assert record.gated and record.trained is not None and record.gate_macs > 0
    shapes = record.trained.shapes()
    for count, counted in (("paper", training.cost.paper), ("full", training.cost.full_total)):
        if count == "paper":  # the layers in blocks that no gate governs keep out of it
            assert "head" in record.uncounted and "one.wise" in record.uncounted
        assert computational_cost(shapes, record, 4, count).total == pytest.approx(counted, rel=1e-6)


def test_gates_learn_and_are_trained_with_the_network() -> None:
    model, training = gated(None, targets=[1.0])
    before = {name: p.detach().clone() for name, p in model.gates.named_parameters()}
    for _ in range(2):
        step(model, training)
    assert all(not torch.equal(p, before[name]) for name, p in model.gates.named_parameters())
    model.eval()
    assert torch.isfinite(model(IMAGES)).all() and training.cost.images == 8


def test_targets_advance_as_the_loss_settles() -> None:
    model, training = gated(0, targets=[2.0, 3.0], window=2, deadlines=[0])
    step(model, training)
    assert training.end_epoch() and training.schedule.stage == 1


def test_what_gates_cannot_govern_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be skipped"):
        fractrain.dfq(["one"], [(0, 0), (4, 6)], [3.0])
    with pytest.raises(ValueError, match="rising"):
        fractrain.dfq(["one"], OPTIONS, [3.0, 2.0])
    for blocks, named in (
        (["head"], "no dense convolution"),
        (["three"], "no module"),
        (["one", "one.conv"], "one another"),
    ):
        model = Network()
        fractrain.convert(model, IMAGES)
        with pytest.raises(ValueError, match=named):
            fractrain.PrecisionScheduler(model, fractrain.dfq(blocks, OPTIONS, [3.0]))
        assert not hasattr(model, "gates")
