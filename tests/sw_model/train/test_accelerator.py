"""Where PyTorch computes: names, refusals, and that nothing in a training step assumes the CPU.

No GPU is needed: PyTorch's "meta" device computes shapes and refuses to mix with tensors of another device.
"""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fractrain
from host.exact_engine import ExactEngine
from host.operands import Grid
from sw_model.convert.observe import run_example
from sw_model.nn.layers import QLinear, attach, set_precision
from sw_model.nn.models import build_model
from sw_model.nn.parallel import processes
from sw_model.nn.precision import Precision, Run
from sw_model.quantize import kernels
from sw_model.quantize.affine import (
    Group,
    affine_grid,
    affine_values,
    dequantize,
    fake_quantize_groups,
    quantize,
    random_units,
)
from sw_model.train.accelerator import choose_accelerator, on
from sw_model.train.engines import accelerator_of
from sw_model.train.folder import DEVICE
from sw_model.train.loop import train
from sw_model.train.recipe import ConfigError, TrainConfig
from sw_model.train.run_device import RunDevice
from tests.support.networks_of_others import NETWORKS

SMALL = TrainConfig.from_mapping(
    {"data": "digits", "model": "resnet-8", "width": 4, "epochs": 1, "batch": 32, "train_limit": 64, "test_limit": 32,
     "schedule": "static", "stages": [[4, 4, 6]]}
)  # fmt: skip


def sees(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch says that it has a device of this kind and no other."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")


@pytest.mark.parametrize("kind", ["cuda", "mps", "cpu"])
def test_auto_takes_a_gpu_that_is_there(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sees(kind, monkeypatch)
    assert choose_accelerator("auto").type == kind


@pytest.mark.parametrize("name", ["cuda", "mps", "tpu"])
def test_what_is_not_there_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sees("cpu", monkeypatch)
    with pytest.raises(ConfigError, match=name):
        choose_accelerator(name)


def test_exact_engines_stay_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    sees("cuda", monkeypatch)
    with pytest.raises(ConfigError, match="cuda"):
        train(SMALL, ExactEngine(), accelerator="cuda")


def test_a_run_knows_where_it_was_trained(tmp_path: Path) -> None:
    device = RunDevice("fast", 2, accelerator="cuda")
    (tmp_path / DEVICE).write_text(json.dumps(device.record()), encoding="utf-8")
    assert accelerator_of(tmp_path) == "cuda" and accelerator_of(None) == "cpu"
    assert RunDevice.from_record(device.record()) == device
    with pytest.warns(UserWarning, match="accelerator"):
        RunDevice("fast", 2).warn_of_rounding(device)


@pytest.mark.parametrize("key", [None, 7])
@pytest.mark.parametrize(("bits", "signed"), [(4, False), (8, True)])
def test_quantizers_stay_where_their_tensor_is(bits: int, signed: bool, key: int | None) -> None:
    grid = Grid(bits, signed, torch.tensor(0.1).numpy(), torch.tensor(0.0).numpy(), key)
    x = torch.empty(2, 3, 4, 4, device="meta")
    assert dequantize(quantize(x, grid), grid).device.type == "meta"
    per_channel = Grid(bits, signed, torch.full((3,), 0.1).numpy(), torch.zeros(3).numpy())
    assert quantize(x, per_channel, 1).device.type == "meta"
    assert random_units(5, 1, device=torch.device("meta")).device.type == "meta"


@pytest.mark.parametrize("name", ["resnet-8", "mobilenetv2", "resnet-18"])
def test_a_step_asks_the_accelerator_for_no_number(name: str) -> None:
    """The "meta" device has none to give: whoever asks it for one fails."""
    model = build_model(name, 10, (3, 32, 32), quantize_head=True).to("meta")
    attach(model, Run())
    set_precision(model, Precision(4, 4, 6, 8))
    x, y = torch.empty(4, 3, 32, 32, device="meta"), torch.empty(4, dtype=torch.int64, device="meta")
    torch.nn.functional.cross_entropy(model(x), y).backward()
    assert {p.grad.device.type for p in model.parameters() if p.grad is not None} == {"meta"}


@pytest.mark.parametrize("gradient", ["affine", "psq"])
def test_a_transformer_s_step_asks_for_no_number_either(gradient: str) -> None:
    model = torch.nn.Sequential(torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True))
    fractrain.convert(model, torch.randn(2, 5, 16), bits="4/4/6", run=Run(gradient=gradient))
    y = model.to("meta")(torch.empty(2, 5, 16, device="meta"))
    y.sum().backward()
    assert y.device.type == "meta"


def moved(example: Any) -> Any:
    """An example on the "meta" device."""
    return tuple(map(moved, example)) if isinstance(example, tuple) else example.to("meta")


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "U-Net", "two inputs", "LSTM classifier", "tied weights"])
def test_a_network_that_is_there_is_converted_there(name: str) -> None:
    make, example = NETWORKS[name]
    model, batch = make().to("meta"), moved(example())
    fractrain.convert(model, batch, bits="4/4/6")
    run_example(model, batch).sum().backward()
    assert {x.device.type for x in (*model.parameters(), *model.buffers())} == {"meta"}
    assert all(p.grad is not None and p.grad.device.type == "meta" for p in model.parameters())


def test_gates_of_a_network_that_is_there_are_there() -> None:
    make, example = NETWORKS["resnet18"]
    model = make().to("meta")
    fractrain.convert(model, example().to("meta"))
    fractrain.PrecisionScheduler(model, fractrain.dfq(["layer1.0"], [(3, 6), (6, 8)], targets=[2.0]))
    assert {x.device.type for x in (*model.parameters(), *model.buffers())} == {"meta"}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("key", [None, 3])
def test_what_has_no_grid_becomes_nan_where_nobody_waits(bad: float, key: int | None) -> None:
    x = torch.linspace(-3e38 if bad == 3e38 else -1, 1, 24).reshape(4, 6)
    x[1, 2] = bad
    with kernels.portable():
        assert affine_values(x, 5, key=key).isnan().all()
        rows = affine_values(x, 5, axis=0, key=key)
        group = Group(torch.arange(4), affine_grid(x, 3, key=key))
        assert fake_quantize_groups(x, [group]).isnan().all()
    if bad != 3e38:
        assert rows[1].isnan().all() and rows[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("bits", [(4, 4, 6), (0, 0, 0)])
def test_diverged_training_ends_with_an_error_there(bits: tuple[int, ...]) -> None:
    with kernels.portable(), pytest.raises(RuntimeError, match=r"lower lr"):
        train(replace(SMALL, lr=1e30, train_limit=320, stages=(bits,)))


def test_ranges_run_on_as_on_the_cpu() -> None:
    """Running ranges, evaluation with them, and codes of one layer, to the bit."""
    found = []
    for there in (nullcontext(), kernels.portable()):
        layer = QLinear(6, 3, bias=False)
        torch.manual_seed(5)
        layer.weight.data.normal_()
        layer.precision = Precision(5, 4, 6)
        with there:
            outputs = [layer(torch.randn(7, 6) * scale) for scale in (1, 3, 0.5)]
            layer.eval()
            outputs.append(layer(torch.randn(7, 6)))
            found.append([*outputs, layer.running_low, layer.running_span, layer.batches])
            x = torch.randn(7, 6)
            x[0, 0] = math.inf
            if kernels.behind(x.device):
                assert layer(x).isnan().all()
            else:
                with pytest.raises(ValueError, match="infinity"):
                    layer(x)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_portable_forms_train_as_the_compiled_ones() -> None:
    """What a GPU computes, on the CPU: PyTorch's operations in place of the kernels, with the same codes."""

    def losses() -> list[float]:
        found: list[float] = []
        train(SMALL, on_step=lambda step: found.append(step.loss or 0.0))
        return found

    compiled = losses()
    with kernels.portable():
        portable = losses()
    assert portable[0] == pytest.approx(compiled[0], rel=1e-5)
    assert portable == pytest.approx(compiled, rel=0.1)


@pytest.mark.parametrize("gpus", [0, 2])
def test_processes_share_sums_where_they_are(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``torchrun`` with GPUs: nccl between them, gloo for what is counted on the CPU, and a GPU for each process."""
    done: list[object] = []
    for name, value in (("WORLD_SIZE", "4"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    group = {"init_process_group": done.append, "destroy_process_group": lambda: None, "get_rank": lambda: 3,
             "get_world_size": lambda: 4, "is_nccl_available": lambda: True}  # fmt: skip
    for name, function in group.items():
        monkeypatch.setattr(torch.distributed, name, function)
    with processes() as ranks:
        assert ranks.part.rank == 3 and ranks.several
    assert done == ([1, "cpu:gloo,cuda:nccl"] if gpus else ["gloo"])


def test_tensors_are_moved_together() -> None:
    moved = on(torch.device("meta"), torch.zeros(2), torch.zeros(3, dtype=torch.int64))
    assert [x.device.type for x in moved] == ["meta", "meta"]
