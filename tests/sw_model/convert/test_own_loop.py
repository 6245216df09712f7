"""A training loop of one's own: precision by step, cost, record, and going on after a stop."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fractrain
from host.exact_engine import ExactEngine
from hw.cost.count import computational_cost
from hw.cost.training_schedule import load_schedule
from hw.design import load_design
from hw.layer_tables import load_table
from sw_model.convert.conversion import as_precision
from sw_model.convert.shapes import check_fits
from sw_model.nn.layers import quantized_layers
from sw_model.quantize import kernels
from tests.support.networks_of_others import NETWORKS, UNet

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def converted(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    model = UNet(4)
    fractrain.convert(model, IMAGES[:2], **options)
    return model


def epoch(model: nn.Module, training: Any, optimizer: torch.optim.Optimizer | None = None) -> list[str]:
    """An epoch of three steps of two images; the precision of each."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    used = []
    for x in IMAGES.split(2):
        used.append(str(training.bits))
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        training.step(loss)
    training.end_epoch()
    return used


def test_pfq_raises_the_precision_of_all_layers_but_those_kept() -> None:
    model = converted(keep=["out"])
    training = fractrain.PrecisionScheduler(model, fractrain.pfq("3/3/4", "8/8/8", window=2, deadlines=[0]))
    assert epoch(model, training) == ["3/3/4"] * 3 and epoch(model, training) == ["8/8/8"] * 3
    assert {name: str(layer.precision) for name, layer in quantized_layers(model)}["out"] == "fp32"
    assert training.cost.images == 12 and training.epoch == 2


def test_cyclic_and_manual_schedules_go_by_step_and_epoch() -> None:
    model = converted()
    training = fractrain.PrecisionScheduler(model, fractrain.cyclic(3, 8, 8, cycles=1), steps=3)
    assert epoch(model, training)[0] == "3/3/8" and str(training.cost.images) == "6"
    model = converted()
    training = fractrain.PrecisionScheduler(model, fractrain.manual({0: "4/4/4", 1: "6/6/6"}))
    assert epoch(model, training) + epoch(model, training) == ["4/4/4"] * 3 + ["6/6/6"] * 3
    with pytest.raises(ValueError, match="number of steps"):
        fractrain.PrecisionScheduler(converted(), fractrain.cyclic())


def test_cost_is_that_of_what_ran() -> None:
    model = converted(keep=["out"])
    macs = fractrain.conversion_of(model).traced.macs
    training = fractrain.PrecisionScheduler(model, fractrain.static("4/4/8"))
    epoch(model, training)
    model.eval()(IMAGES)
    with torch.no_grad():
        model.train()(IMAGES)
    assert training.cost.cp == pytest.approx(100 * (16 + 32 + 32) / 3 / 1024)
    own, first = macs["out"], macs["down.0"]
    full = 6 * (3 * own + (sum(macs.values()) - own) * 80 / 1024 - first * 32 / 1024)  # no input gradient at the start
    assert training.cost.full_total == pytest.approx(full)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_record_costs_what_the_meter_counted(name: str, tmp_path: Path) -> None:
    make, example = NETWORKS[name]
    model, batch = make(), example()
    fractrain.convert(model, batch)
    training = fractrain.PrecisionScheduler(model, fractrain.static("4/4/8"))
    (model(*batch) if isinstance(batch, tuple) else model(batch)).square().mean().backward()
    training.step(1.0)
    training.end_epoch()
    training.save_record(tmp_path)
    record = load_schedule(tmp_path)
    assert record.trained is not None
    shapes = record.trained.shapes()
    record.check(shapes, name)
    for count, counted in (("paper", training.cost.paper), ("full", training.cost.full_total)):
        cost = computational_cost(shapes, record, record.trained.samples, count)
        if count == "full" and name in ("two inputs", "tied weights", "LSTM classifier", "Transformer layer"):
            continue  # more layers than the first have inputs without gradients, or the first has one
        assert cost.total == pytest.approx(counted, rel=1e-9)
    assert fractrain.main(["cost", "--schedule", str(tmp_path), "--machine", "zc706"]) == 0


def test_a_table_of_layers_is_costed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = fractrain.conversion_of(converted())
    found.save_layers(tmp_path / "net.json")
    assert load_table(tmp_path / "net.json") == list(found.traced.shapes)
    assert fractrain.main(["cost", "--model", str(tmp_path / "net.json"), "--bits", "4/3/6"]) == 0
    assert "bottom.2" in capsys.readouterr().out
    (tmp_path / "net.json").write_text('{"layers": [{"name": "a"}]}')
    assert fractrain.main(["cost", "--model", str(tmp_path / "net.json"), "--bits", "4/3/6"]) == 2


@pytest.mark.parametrize("engine", [None, ExactEngine()])
def test_a_loop_goes_on_after_a_stop_bit_for_bit(engine: Any) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = converted()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        schedule = fractrain.pfq("3/3/4", "6/6/6", window=2, deadlines=[0])
        return model, optimizer, fractrain.PrecisionScheduler(model, schedule, engine=engine)

    model, optimizer, training = start()
    epoch(model, training, optimizer)
    states = [part.state_dict() for part in (model, optimizer, training)]
    other = start()
    for part, state in zip(other, copy.deepcopy(states), strict=True):
        part.load_state_dict(state)
    epoch(model, training, optimizer)
    epoch(other[0], other[2], other[1])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other[0].parameters(), strict=True))
    assert training.record.to_json() == other[2].record.to_json() and training.cost.paper == other[2].cost.paper


def test_wrong_uses_are_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"fractrain\.convert"):
        fractrain.PrecisionScheduler(UNet(), fractrain.static("8/8/8"))
    with pytest.raises(ValueError, match="engines do not multiply"):
        fractrain.PrecisionScheduler(converted(), fractrain.static("8/0/8"), engine=ExactEngine())
    training = fractrain.PrecisionScheduler(converted(), fractrain.pfq("3/3/4", "8/8/8"))
    with pytest.raises(RuntimeError, match="no batch"):
        training.step()
    with pytest.raises(ValueError, match="follows the training loss"):
        training.end_epoch()


def test_a_diverged_network_ends_the_loop_where_quantizers_raise_nothing() -> None:
    model = converted(bits="4/4/6")
    training = fractrain.PrecisionScheduler(model, fractrain.static("4/4/6"))
    with torch.no_grad():
        model.out.weight[0, 0] = float("inf")
    with kernels.portable(), pytest.raises(RuntimeError, match="loss is nan at step 0"):
        epoch(model, training)
    assert training.global_step == 0 and training.seen == 0
    with pytest.raises(ValueError, match="infinity"):  # on the CPU
        model(IMAGES)


def test_a_layer_that_a_design_cannot_hold_is_refused_by_name() -> None:
    small = replace(load_design("sim-small"), depth_a=16)
    traced = fractrain.conversion_of(converted()).traced
    with pytest.raises(ValueError, match=r"layer down\.0, forward.* raise depth_a; or name the layer in keep"):
        check_fits(small, traced.shapes, [as_precision("16/16/16")], set())
    check_fits(small, traced.shapes, [as_precision("2/2/2")], set())
    check_fits(small, traced.shapes, [as_precision("16/16/16")], {shape.name for shape in traced.shapes})


def test_the_interface_needs_no_pytorch_until_it_is_used() -> None:
    import subprocess
    import sys

    told = "import sys, fractrain; print('torch' in sys.modules, 'convert' in dir(fractrain)); fractrain.nothing"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"] and "AttributeError" in done.stderr
