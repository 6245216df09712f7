"""``fractrain bench simulation``: the cycles are the fabric's, and the record says what ran."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fractrain import main
from host.devices.rtl import RtlDevice
from host.measure.engine_bench import layer_programs, passes
from host.measure.saif import fitting_layer
from host.measure.simulation_speed import simulation_speed
from hw.design import ROOT, load_design
from hw.model.cycles import predict
from hw.networks import Bits, network

SMALL = ["bench", "simulation", "--design", "sim-small", "--model", "resnet8", "--bits", "2,2,2", "--images", "1"]


def test_cycles_are_those_of_the_three_products() -> None:
    design, bits = load_design("sim-small"), Bits(2, 2, 2)
    shape = fitting_layer(design, network("resnet8"), bits)
    device = RtlDevice(design)
    speeds = [simulation_speed(device, shape, bits, images) for images in (1, 2)]
    for images, speed in enumerate(speeds, 1):
        programs = (p for kind in passes() for p in layer_programs(design, shape, bits, images, kind))
        predicted = sum(predict(design, packets).cycles for packets in programs)
        assert speed.cycles == pytest.approx(predicted, rel=0.1)
    with pytest.raises(ValueError, match="--images 0"):
        simulation_speed(device, shape, bits, 0)


def test_command_prints_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "speed.json"
    assert main([*SMALL, "--json", "--save", str(path)]) == 0
    data = json.loads(path.read_text())
    assert data == json.loads(capsys.readouterr().out)
    assert data["design"] == "sim-small" and data["cycles_per_second"] > 0
    assert main([*SMALL, "--layer", "nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_the_committed_speed_meets_the_target() -> None:
    data = json.loads((ROOT / "docs" / "measurements" / "simulation-zc706.json").read_text())
    assert data["design"] == "zc706" and data["binary_macs"] == load_design("zc706").binary_macs
    assert data["cycles_per_second"] == pytest.approx(data["cycles"] / data["processor_seconds"], rel=1e-3)
    assert data["cycles_per_second"] >= 20_000
