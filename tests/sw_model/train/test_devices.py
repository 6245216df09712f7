"""One training, four ways to compute its products: every step's codes, sums and weights are the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from host.devices.device import open_device
from host.driver.fabric_engine import FabricEngine
from host.exact_engine import ExactEngine
from host.grids import host_codes
from host.operands import Engine, Operand, Sums
from hw.design import load_design
from sw_model.train.folder import load_checkpoint
from sw_model.train.loop import train
from sw_model.train.recipe import TrainConfig
from tests.support.observed_engine import ObservedEngine

CONFIG = TrainConfig(
    model="resnet-8",
    width=8,
    schedule="manual",
    stages=((3, 3, 6), (8, 8, 8)),
    starts=(0, 1),
    quantize_stem=True,
    quantize_head=True,
    epochs=2,
    batch=16,
    train_limit=32,
    test_limit=16,
    seed=3,
)


class Recorder(ObservedEngine):
    """An engine that notes the codes that go in and the sums that come out of another."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.calls: list[Any] = []

    def observe(self, product: str, a: Operand, b: Operand, sums: Sums) -> None:
        self.calls.append((product, host_codes(a), host_codes(b), sums.dot.copy()))


def trained(engine: Engine, out: Path) -> tuple[list[Any], dict[str, torch.Tensor]]:
    recorder = Recorder(engine)
    train(replace(CONFIG), recorder, out=out)
    return recorder.calls, load_checkpoint(out / "checkpoint.pt")["model"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], dict[str, torch.Tensor]]:
    return trained(ExactEngine(), tmp_path_factory.mktemp("software") / "run")


@pytest.mark.parametrize("kind", ["reference", "hls", "rtl"])
def test_training_is_the_same_bits_on_every_device(
    kind: str, expected: tuple[list[Any], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    calls, weights = trained(FabricEngine(open_device(kind, load_design("sim-small"))), tmp_path / "run")
    assert len(calls) == len(expected[0]) > 50
    for (product, a, b, dot), (product_e, a_e, b_e, dot_e) in zip(calls, expected[0], strict=True):
        assert product == product_e
        np.testing.assert_array_equal(a, a_e)
        np.testing.assert_array_equal(b, b_e)
        np.testing.assert_array_equal(dot, dot_e)
    for name, tensor in expected[1].items():
        assert torch.equal(weights[name], tensor), name
