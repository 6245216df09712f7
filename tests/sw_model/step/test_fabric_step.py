"""Training with norm = "fabric": one arithmetic on every engine, resumable, its state in checkpoints, refusals by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from host.devices.memory import StreamMemory
from host.devices.reference import ReferenceDevice
from host.driver.memory_views import MemoryPlanError
from host.driver.pass_engine import engine_in_memory
from host.exact_engine import ExactEngine
from host.step.passes import PassError
from hw.design import load_design
from hw.networks import BlockLayout, Layout
from hw.nodes import KeptWidths
from sw_model.nn.layers import attach, set_precision
from sw_model.nn.models import Backbone, build_model, use_fabric_step
from sw_model.nn.parallel import ALONE
from sw_model.nn.precision import Precision, Run
from sw_model.train.engines import open_engine
from sw_model.train.folder import CHECKPOINT, RunFolder, read_tensors
from sw_model.train.loop import train
from sw_model.train.pretrained import build_network
from sw_model.train.recipe import ConfigError, TrainConfig
from sw_model.train.record import GATED as GATED_PREFIX
from sw_model.train.run_device import check_accelerator, check_ranks
from sw_model.train.tasks import open_task

TINY = TrainConfig(
    data="digits", model="resnet-8", width=4, norm="fabric", schedule="static", stages=((4, 4, 6),), epochs=1, batch=16,
    train_limit=48, test_limit=32, lr=0.05, eval_every=1,
)  # fmt: skip

DEVICES = ("software", "reference", "hls", "rtl", "reference-memory", "rtl-memory")  #: of the same design


def state(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = read_tensors(folder / CHECKPOINT)["model"]
    return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_backbone_has_the_same_bits_in_numpy_and_compiled() -> None:
    """Weights, statistics and ranges after a few steps; the head's sums are float32 on the fast path."""
    images = torch.rand(8, 1, 8, 8)
    models = []
    for engine in (None, ExactEngine()):
        config = replace(TINY, stages=((4, 3, 6, 8),))
        model = open_task(config).build(config)
        attach(model, Run(engine=engine, seed=3))
        set_precision(model, Precision(4, 3, 6, 8))
        for step in range(2):
            model.stem.run.step = step  # type: ignore[union-attr]
            features = model.step(model, images)  # type: ignore[operator,misc]
            features.backward(torch.linspace(-1, 1, features.numel()).reshape(features.shape))
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(0.1 * parameter.grad)
                        parameter.grad = None
        models.append(model.state_dict())
    assert same(*models)


@pytest.mark.parametrize("schedule", ["pfq", "cyclic"])
def test_a_run_learns_and_goes_on_where_it_stood(schedule: str, tmp_path: Path) -> None:
    config = replace(
        TINY, schedule=schedule, stages=((3, 3, 6), (8, 8, 8)), deadlines=(0,) if schedule == "pfq" else (), epochs=2,
        train_limit=80, cycles=2, checkpoint_every=3,
    )  # fmt: skip
    whole = train(config, out=tmp_path / "whole")
    train(config, out=tmp_path / "cut", stop_after=7)
    rest = train(config, out=tmp_path / "cut", resume=True)
    assert same(state(tmp_path / "whole"), state(tmp_path / "cut"))
    assert [row["loss"] for row in whole.history] == [row["loss"] for row in rest.history]
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]
    tops = state(tmp_path / "whole")["step.tops"]
    assert tops.dtype == torch.float64 and (tops[:10] > 0).all()


def test_costs_are_those_of_the_same_recipe_with_float_normalisation() -> None:
    here, there = train(TINY), train(replace(TINY, norm="batch"))
    assert (here.cc, here.cp, here.cc_full) == (there.cc, there.cp, there.cc_full)


def test_a_stem_that_a_recipe_leaves_in_float32_has_eight_bits() -> None:
    result = train(replace(TINY, quantize_stem=False))
    assert result.test_score is not None


def test_mobilenetv2_has_the_same_gradients_in_software_and_on_a_device() -> None:
    """Depthwise convolutions among them, whose gradients have most bits; blocks with and without a shortcut."""
    blocks = (BlockLayout(4, 6, 1, 2), BlockLayout(6, 6, 1, 2), BlockLayout(6, 8, 2, 2))
    images, found = torch.rand(4, 3, 8, 8), []
    for device in DEVICES:
        torch.manual_seed(1)
        model = use_fabric_step(Backbone(Layout((4, 3, 1), blocks, last=12), 5, 3), KeptWidths(0, 0, 0))
        attach(model, Run(engine=open_engine(device, "sim-small")))
        set_precision(model, Precision(4, 4, 8))
        assert model.step is not None
        model.step(model, images).square().sum().backward()
        found.append([p.grad for name, p in model.named_parameters() if not name.startswith("head")])
    for software, *others in zip(*found, strict=True):
        assert software is not None and software.isfinite().all()
        assert all(torch.equal(software, other) for other in others)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quantizer": "dorefa", "quantize_stem": False}, "quantizer = 'dorefa'"),
        ({"gradient": "psq"}, "gradient = 'psq'"),
        ({"mode": "paper"}, "mode = 'paper'"),
        ({"stages": ((32, 32, 32),)}, "fp32: norm 'fabric' takes"),
        ({"stages": ((1, 8, 8),)}, "1/8/8: norm 'fabric' takes"),
        ({"kept_bits": 9}, "kept_bits = 9 must be 2 to 8"),
        ({"shortcut_bits": 1}, "shortcut_bits = 1 must be 2 to 8"),
    ],
)
def test_what_no_pass_computes_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(TINY, **change)


def test_a_network_with_a_pooled_stem_is_refused() -> None:
    model = build_model("resnet-18", 10, (3, 64, 64))
    assert isinstance(model, Backbone)
    with pytest.raises(ValueError, match="max pooling"):
        use_fabric_step(model, KeptWidths(0, 0, 0))


def test_a_device_without_passes_is_refused() -> None:
    class Products:
        pass

    config = TINY
    model = open_task(config).build(config)
    with pytest.raises(ValueError, match="Products computes single products"):
        model.step.engine(Products())  # type: ignore[union-attr,operator]


def test_a_run_has_the_same_bits_in_software_and_on_a_device(tmp_path: Path) -> None:
    """Both devices of one design, with everything that a run has; the fast path rounds its head's sums otherwise."""
    config = replace(TINY, train_limit=16, test_limit=16, stages=((4, 3, 6),))
    for device in DEVICES:
        train(config, open_engine(device, "sim-small"), out=tmp_path / device)
    assert all(same(state(tmp_path / "software"), state(tmp_path / device)) for device in DEVICES)
    kinds = [found.kind for device in DEVICES if (found := RunFolder(tmp_path / device).device()) is not None]
    assert kinds == list(DEVICES)


@pytest.mark.parametrize("gates", [False, True], ids=["static", "gates"])
def test_a_run_that_the_memory_does_not_hold_is_refused_before_anything_is_written(tmp_path: Path, gates: bool) -> None:
    design = load_design("sim-small")
    memory = StreamMemory(ReferenceDevice(design), 1 << 15)
    with pytest.raises(MemoryPlanError, match=r"steps take [\d.]+ MB of memory at batches of 16, .* has 0\.5 MB"):
        train(GATED if gates else TINY, engine_in_memory(memory), out=tmp_path / "run")
    assert not (tmp_path / "run").exists() and not memory.read(0, 1 << 15).any()


GATED = replace(
    TINY, schedule="dfq", stages=((8, 8, 8),), options=((3, 6), (4, 8), (8, 8)), weight_bits=4, targets=(3.0,), beta=0.1,
    train_limit=32, test_limit=16, quantize_stem=False,
)  # fmt: skip


def test_gated_samples_have_bits_of_their_own(tmp_path: Path) -> None:
    """A run of gates has the same bits in software and on a device, and gates learn."""
    for device in DEVICES:
        train(GATED, open_engine(device, "sim-small"), out=tmp_path / device)
    found = state(tmp_path / "software")
    assert all(same(found, state(tmp_path / device)) for device in DEVICES)
    fresh = open_task(GATED)
    before = build_network(GATED, fresh)[0].state_dict()
    moved = [name for name in before if not torch.equal(before[name], found[GATED_PREFIX + name])]
    assert len(moved) > 0.9 * len([name for name in before if "running" not in name and "batches" not in name])


def test_gates_get_gradients_and_costs_from_every_block() -> None:
    task = open_task(GATED)
    base, gated = build_network(GATED, task)
    assert gated is not None
    reported = Counter[tuple[str, int]]()
    attach(gated, Run(on_product=lambda layer, product, macs, a, b: reported.update({(layer, a): macs})))
    set_precision(gated, Precision(8, 8, 8))
    with torch.no_grad():
        gated.scores.weight.mul_(20)  # choices that differ
    gated.train()
    logits = gated(torch.rand(16, 1, 8, 8))
    for mask in gated.masks:
        mask.retain_grad()
    torch.nn.functional.cross_entropy(logits, torch.arange(16) % 10).backward()
    assert [mask.grad is not None and bool(mask.grad.any()) for mask in gated.masks] == [True] * 3
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gated.parameters())
    choices = gated.choices()
    for block, name in enumerate(("blocks.0.conv2", "blocks.1.conv2", "blocks.2.conv2")):
        layer = dict(base.named_modules())[name]
        per_image = layer.weight.numel() * (64 >> 2 * block)
        for option, (bits, grad) in enumerate(GATED.options):
            samples = int((choices[block] == option).sum())
            products = reported[f"base.{name}", bits] + (reported[f"base.{name}", grad] if grad != bits else 0)
            # forward and weight gradient stream activations, the input gradient streams gradients
            if bits not in (6, 8):
                assert products >= 2 * samples * per_image


def test_other_accelerators_and_several_processes_are_refused() -> None:
    with pytest.raises(ConfigError, match="norm 'fabric' computes on the CPU"):
        check_accelerator(TINY, "cuda")
    with pytest.raises(ConfigError, match="norm = 'fabric' takes the whole batch"):
        check_ranks(TINY, open_task(TINY), False, ALONE)


def test_a_run_starts_from_weights_that_were_trained_with_float_normalisation(tmp_path: Path) -> None:
    train(replace(TINY, norm="batch"), out=tmp_path / "float")
    train(replace(TINY, init=str(tmp_path / "float")), out=tmp_path / "fabric")
    train(replace(TINY, norm="batch", init=str(tmp_path / "fabric")))


def test_sums_that_a_design_does_not_take_are_refused_by_their_bits() -> None:
    model = open_task(TINY).build(TINY)
    attach(model, Run(engine=open_engine("reference", "sim-small")))
    set_precision(model, Precision(8, 8, 16))
    assert isinstance(model, Backbone) and model.step is not None
    features = model.step(model, torch.rand(4, 1, 8, 8))
    with pytest.raises(PassError, match=r"blocks\..*sum of 16 by 8 bits may pass 32 bits"):
        features.sum().backward()
