"""Where PyTorch computes: names, refusals, and that nothing in a training step assumes the CPU.

No GPU is needed: PyTorch's "meta" device computes shapes and refuses to mix with tensors of another device.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from host.exact_engine import ExactEngine
from host.operands import Grid
from sw_model.quantize import kernels
from sw_model.quantize.affine import dequantize, quantize, random_units
from sw_model.train.accelerator import choose_accelerator, on
from sw_model.train.engines import accelerator_of
from sw_model.train.folder import DEVICE
from sw_model.train.loop import train
from sw_model.train.recipe import ConfigError, TrainConfig
from sw_model.train.run_device import RunDevice

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


def test_tensors_are_moved_together() -> None:
    moved = on(torch.device("meta"), torch.zeros(2), torch.zeros(3, dtype=torch.int64))
    assert [x.device.type for x in moved] == ["meta", "meta"]
