"""The host's part of a training step on a device that answers at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fractrain import main
from host.measure.host_bench import HostStep, InstantMemory, bench
from host.step.compiled import MemoryPasses
from hw.design import ROOT, load_design
from hw.networks import Bits, image_layout
from hw.nodes import KeptWidths, nodes
from tests.support.recorded import recorded

DESIGN = load_design("sim-small")
GRAPH = nodes(*image_layout("resnet8"))


def test_steps_build_nothing_new_and_patch_few_words() -> None:
    found = bench(DESIGN, GRAPH, Bits(4, 3, 6), KeptWidths(6, 6, 6), 2, 2, 1 << 20)
    assert 0 < found["programs"] < found["passes"]
    assert 0 < found["milliseconds"] < 1e3 * found["building_seconds"]
    assert 0 < 8 * found["words_patched"] < found["bytes_written"] < found["memory_bytes"]
    assert set(found["parts"]) == {"forward", "backward", "update"}


def test_drawn_results_are_such_as_training_has() -> None:
    """No range, factor or weight of some steps is beyond a number."""
    engine = MemoryPasses(InstantMemory(DESIGN, 1 << 20))
    host = HostStep(GRAPH, engine, Bits(4, 3, 6), KeptWidths(6, 6, 6), 2, np.random.default_rng(0))
    for number in range(4):
        host.run(number)
    assert all(0 < top < 1e9 for top in host.ranges.tops.values())


RECORD, WHILE_CURRENT = recorded(ROOT / "docs" / "measurements" / "host.json")


@WHILE_CURRENT
def test_the_committed_record_is_of_steps_as_they_are() -> None:
    record = next(run for run in RECORD["runs"] if run["bits"] == "4/3/6")
    graph, widths = nodes(*image_layout(RECORD["model"])), KeptWidths.beside(Bits(4, 3, 6))
    found = bench(load_design(RECORD["design"]), graph, Bits(4, 3, 6), widths, RECORD["batch"], 1, 1 << 24)
    for name in ("passes", "programs", "bytes_read", "memory_bytes"):
        assert found[name] == record[name], name
    assert found["bytes_written"] == pytest.approx(record["bytes_written"], rel=0.01)  # equal entries are not written again


def test_the_command_writes_its_record(tmp_path: Path) -> None:
    options = ["--design", "sim-small", "--model", "resnet8", "--bits", "4/3/6", "--batch", "2", "--steps", "1"]
    assert main(["bench", "host", *options, "--memory", "64", "--save", str(tmp_path / "host.json")]) == 0
    record = json.loads((tmp_path / "host.json").read_text())
    assert record["runs"][0]["bits"] == "4/3/6"
    assert record["command"].startswith(
        "fractrain bench host --design sim-small --model resnet8 --bits 4/3/6 --batch 2"
    )


def test_a_step_that_does_not_fit_is_refused_before_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--design", "sim-small", "--model", "resnet8", "--bits", "4/3/6", "--batch", "64", "--memory", "1"]
    assert main(["bench", "host", *options]) == 2
    assert "more than the 1 MB of the device's memory" in capsys.readouterr().err
