"""CC against independently derived figures, and schedules as they are read."""

import json
from pathlib import Path
from typing import Any

import pytest

from hw.cost.bitfusion import best_cost, product_tasks, scheduled_costs, total_cost, training_costs
from hw.cost.count import computational_cost, product_cost, unquantized_layers
from hw.cost.training_schedule import (
    CIFAR_OPTIONS,
    IMAGENET_OPTIONS,
    Stage,
    TrainingSchedule,
    cp_percent,
    load_schedule,
    mixture_for,
    parse_schedule,
    stage_epochs,
    static_schedule,
)
from hw.networks import Bits, ConvShape, network, transformer_lm

CIFAR_EPOCHS = 64_000 * 128 / 50_000


@pytest.mark.parametrize(
    ("w", "a", "g", "cp"),
    [
        (4, 3, 6, 1.758),
        (4, 4, 6, 2.083),
        (4, 4, 8, 2.604),
        (4, 6, 8, 3.385),
        (4, 6, 12, 4.688),
        (6, 3, 6, 2.344),
        (6, 4, 8, 3.385),
        (6, 6, 12, 5.859),
        (6, 8, 16, 8.854),
        (8, 8, 8, 6.25),
        (8, 8, 16, 10.417),
    ],
)
def test_cost_of_an_option(w: int, a: int, g: int, cp: float) -> None:
    assert cp_percent(Bits(w, a, g)) == pytest.approx(cp, abs=5e-4)


@pytest.mark.parametrize(("model", "cost"), [("resnet38", 1.279e14), ("resnet74", 2.584e14)])
def test_static_training(model: str, cost: float) -> None:
    result = computational_cost(network(model), static_schedule(Bits(8, 8, 8), CIFAR_EPOCHS), 50_000)
    assert result.total == pytest.approx(cost, rel=1e-3)
    assert result.cp == pytest.approx(6.25)
    assert result.mean_per_sample == pytest.approx(result.per_sample[0])
    assert sum(result.products.values()) == pytest.approx(result.total)


@pytest.mark.parametrize(
    ("model", "cp"), [("resnet38", 3.5), ("mobilenetv2", 10.9), ("resnet18", 10.4), ("resnet34", 6.7)]
)
def test_layers_left_at_full_precision_dominate_cp(model: str, cp: float) -> None:
    """A nominal cp of 3 % is this once the unquantized layers count."""
    options = IMAGENET_OPTIONS if model in ("resnet18", "resnet34") else CIFAR_OPTIONS
    schedule = TrainingSchedule("cp=3", parse_schedule("cp=3", 1, options=options).stages, fixed={}, gated=True)
    assert computational_cost(network(model), schedule, 1, "paper").cp == pytest.approx(3)
    assert computational_cost(network(model), schedule, 1, "full").cp == pytest.approx(cp, abs=0.06)


def test_product_cost_uses_each_products_operands() -> None:
    shape = ConvShape("a", 1, 1, 1, 1, 0, (32, 32))
    cost = product_cost(shape, Bits(w=2, a=3, g=5))
    assert cost == {"forward": 6, "input_gradient": 10, "weight_gradient": 15}


def test_attention_multiplies_activations() -> None:
    scores = next(s for s in transformer_lm() if s.kind == "attention")
    assert scores.operands(Bits(w=2, a=3, g=5))["forward"] == (3, 3)
    assert scores.operands(Bits(w=2, a=3, g=5))["input_gradient"] == (5, 3)


def test_pfq_is_the_weighted_sum_of_its_stages() -> None:
    shapes = network("resnet20")
    lengths = [10.0, 20.0, 30.0, 40.0]
    schedule = parse_schedule("FW(3,4,6,8) / BW(6,8,12,16)", 100, lengths)
    parts = [
        computational_cost(shapes, static_schedule(Bits(f, f, b), n), 50_000).total
        for f, b, n in zip((3, 4, 6, 8), (6, 8, 12, 16), lengths, strict=True)
    ]
    assert computational_cost(shapes, schedule, 50_000).total == pytest.approx(sum(parts))


def test_mixture_meets_its_target_where_options_reach() -> None:
    for target in (1.758, 2.0, 2.5, 3.0, 4.5):
        mixture = mixture_for(target, CIFAR_OPTIONS)
        assert sum(share * cp_percent(bits) for share, bits in mixture) == pytest.approx(target, abs=1e-3)
    assert mixture_for(1.5, CIFAR_OPTIONS) == ((1.0, Bits(4, 3, 6)),)
    assert mixture_for(9.0, CIFAR_OPTIONS) == ((1.0, Bits(4, 6, 12)),)


def test_depthwise_keeps_its_widths() -> None:
    shapes = network("mobilenetv2")
    depthwise = next(s for s in shapes if s.kind == "depthwise")
    schedule = parse_schedule("FW-4/BW-6", 1)
    assert schedule.mixture(schedule.stages[0], depthwise) == ((1.0, Bits(8, 8, 16)),)


def test_unquantized_layers() -> None:
    assert unquantized_layers(network("resnet38"), gated=False) == {"head"}
    assert unquantized_layers(network("mobilenetv2"), gated=True) == {"stem", "last", "head"}
    assert len(unquantized_layers(network("resnet18"), gated=True)) == 5


def test_stage_lengths() -> None:
    assert stage_epochs(1, 90) == [90]
    assert stage_epochs(4, 120) == [20, 20, 20, 60]
    schedule = parse_schedule("cp=1.5/2/2.5/3", 120)
    assert [stage.epochs for stage in schedule.truncated(50).stages] == [20, 20, 10, 0]
    assert [stage.epochs for stage in schedule.truncated(150).stages] == [20, 20, 20, 90]
    assert schedule.gated


def test_a_runs_own_choices_are_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    mixture = [[0.25, [4, 3, 6]], [0.75, [4, 6, 8]]]
    path.write_text(
        json.dumps({"gated": True, "stages": [{"epochs": 2, "options": mixture, "layers": {"head": [[1, [8, 8, 8]]]}}]})
    )
    schedule = load_schedule(path)
    shapes = network("resnet8")
    assert schedule.mixture(schedule.stages[0], shapes[-1]) == ((1.0, Bits(8, 8, 8)),)
    expected = (
        0.25 * sum(product_cost(shapes[0], Bits(4, 3, 6)).values())
        + 0.75 * sum(product_cost(shapes[0], Bits(4, 6, 8)).values())
    ) * 20
    assert computational_cost(shapes[:1], schedule, 10).total == pytest.approx(expected)
    path.write_text('{"stages": [{"epochs": 1}]}')
    with pytest.raises(ValueError, match="is not a schedule"):
        load_schedule(path)


def record(tmp_path: Path, **changes: Any) -> Path:
    """The record of a small run: blocks of stage 1 skipped by half of the samples, stem and classifier in float32."""
    data = {
        "gated": True,
        "trained": {"model": "resnet-8", "classes": 10, "width": 4, "image": [1, 8, 8], "samples": 100, "batch": 20},
        "fixed": {},
        "uncounted": ["stem", "head"],
        "stages": [
            {
                "epochs": 2,
                "options": [[1, [8, 8, 8, 16]]],
                "layers": {f"blocks.0.conv{n}": [[0.5, [0, 0, 0]], [0.5, [4, 3, 6]]] for n in (1, 2)},
                "ran": {name: [[1, [32, 32, 32]]] for name in ("stem", "head")},
            }
        ],
    }
    (tmp_path / "schedule.json").write_text(json.dumps(data | changes))
    return tmp_path


def test_a_record_says_what_ran_and_what_counts(tmp_path: Path) -> None:
    schedule = load_schedule(record(tmp_path))
    assert schedule.trained is not None and schedule.recorded
    shapes = schedule.trained.shapes()
    schedule.check(shapes, "resnet-8")
    stem, fc, skipped = shapes[0].macs, shapes[-1].macs, 2 * shapes[1].macs
    rest = sum(s.macs for s in shapes) - stem - fc - skipped
    per_mac, option = (64 + 64 + 128) / 1024, (12 + 24 + 18) / 1024  # a gradient of 8 bits, and of 16
    paper = computational_cost(shapes, schedule, 100, "paper").per_sample
    assert paper == pytest.approx([rest * per_mac + skipped * option / 2])
    full = computational_cost(shapes, schedule, 100, "full").per_sample
    assert full == pytest.approx([paper[0] + 2 * stem + 3 * fc])  # the first layer has no input gradient


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": [{"epochs": 1, "options": [[1, [4, 0, 6]]]}]}, r"\[4, 0, 6, 0\] of all layers do not exist"),
        ({"stages": [{"epochs": 1, "options": [[1, [8, 8, 33]]]}]}, "do not exist"),
        ({"stages": [{"epochs": 1, "options": [[1, [8, 8, 8]]], "ran": {"head": []}}]}, "of what head ran"),
        ({"stages": [{"epochs": 1, "options": [[1, [8, 8, 8]]], "ran": {"head": [[0.5, [8, 8, 8]]]}}]},
         "of what head ran"),
        ({"stages": [{"epochs": 1, "options": [[1, [8, 8, 8]]],
                      "ran": {"head": [[2, [8, 8, 8]], [-0.5, [0, 0, 0]]]}}]}, "of what head ran"),
        ({"stages": [{"epochs": 1, "options": [[1, [8, 8, 8]]], "runs": {}}]}, "unknown keys runs"),
        ({"stages": [{"epochs": 1, "options": [[1, [8, 8.5, 8]]]}]}, "is not a schedule"),
        ({"stages": [{"epochs": 1, "options": [[1, [8, 8]]]}]}, "is not a schedule"),
        ({"stages": [{"epochs": 1, "options": [["x", [8, 8, 8]]]}]}, "could not convert"),
        ({"stages": [{"epochs": float("nan"), "options": [[1, [8, 8, 8]]]}]}, "nan epochs"),
        ({"stages": [{"epochs": 1, "options": [[1, [8, 8, 8]]], "ran": r} if r == {} else
                     {"epochs": 1, "options": [[1, [8, 8, 8]]]} for r in ({}, None)]}, "give it to all or none"),
        ({"trained": {"model": "resnet-8"}}, "is not a schedule"),
        ({"trained": {"model": "resnet-8", "classes": 0, "width": 4, "image": [1, 8, 8], "samples": 1, "batch": 1}},
         "classes of a run is 0"),
        ({"trained": {"model": "resnet-8", "classes": 2, "width": 4, "image": [8, 8], "samples": 1, "batch": 1}},
         "image of a run"),
        ({"extra": 1}, "unknown keys extra"),
    ],
)  # fmt: skip
def test_damaged_records_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_schedule(record(tmp_path, **changes))


def test_folders_without_a_record_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path.name} has no schedule.json"):
        load_schedule(tmp_path)


def test_layers_of_another_network_are_named(tmp_path: Path) -> None:
    schedule = load_schedule(record(tmp_path))
    with pytest.raises(ValueError, match=r"mobilenetv2 does not have: blocks\.0\.conv1"):
        schedule.check(network("mobilenetv2"), "mobilenetv2")


@pytest.mark.parametrize("old", ["stage1.0.conv1", "fc", "layer0.query", "logits"])
def test_records_of_old_versions_are_refused(old: str, tmp_path: Path) -> None:
    stages = [{"epochs": 1, "options": [[1, [8, 8, 8]]], "ran": {old: [[1, [32, 32, 32]]]}}]
    schedule = load_schedule(record(tmp_path, stages=stages, uncounted=[]))
    for model in ("resnet8", "transformer"):
        with pytest.raises(ValueError, match=f"does not have: {old}; .*records of old versions"):
            schedule.check(network(model), model)


def test_bitfusion_follows_the_schedule() -> None:
    shapes = network("resnet8")
    mixed = TrainingSchedule("mix", (Stage(1, ((0.5, Bits(8, 8, 8)), (0.5, Bits(4, 4, 8)))),))
    (_, cost), *_ = scheduled_costs(shapes, mixed)
    ends = [total_cost(training_costs(shapes, bits)).cycles for bits in (Bits(8, 8, 8), Bits(4, 4, 8))]
    assert cost.cycles == pytest.approx(sum(ends) / 2, abs=1)
    (_, full), *_ = scheduled_costs(shapes, static_schedule(Bits(4, 4, 8), 1), count="full")
    exact = product_tasks(shapes[-1], Bits(32, 32, 32))["forward"][1]
    assert best_cost(exact).compute_cycles == 4 * 16
    assert full.cycles > ends[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [("FW(3,4)/BW(6)", "2 forward and 1 backward"), ("8bit", "is unknown"), ("cp=0", "cp target of 0")],
)
def test_bad_schedules_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_schedule(text, 10)


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to one"):
        Stage(1, ((0.5, Bits(8, 8, 8)),))
    with pytest.raises(ValueError, match="4 stages, but 2 lengths"):
        parse_schedule("cp=1/2/3/4", 10, [5, 5])
    with pytest.raises(ValueError, match="train nothing"):
        computational_cost(network("resnet8"), static_schedule(Bits(8, 8, 8), 0), 10)
    with pytest.raises(ValueError, match="count 'half'"):
        computational_cost(network("resnet8"), static_schedule(Bits(8, 8, 8), 1), 10, "half")
