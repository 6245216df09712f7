"""Memories, the roofline and where the time goes: against the cost model, by hand on single layers, and as a command."""

import argparse
import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from hw.computational_cost import static
from hw.cost_commands import register
from hw.design import load_design
from hw.explore import Request, evaluate, explore, mean_work
from hw.fabric_cost import MEMORY, PL_MEMORY, STREAMS, FabricMachine, bandwidth
from hw.layers import Bits, ConvShape, resnet_cifar
from hw.roofline import CAUSES, points, roofs, shares

DESIGN = load_design("zc706")
BITS = Bits(4, 3, 6)


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    arguments = parser.parse_args(words)
    return int(arguments.run(arguments))


# -- memories -------------------------------------------------------------------------------------------------------


def test_both_memories_together_have_the_sum_of_their_bandwidths() -> None:
    part = DESIGN.part
    assert bandwidth(part) == MEMORY[part] == FabricMachine(DESIGN).memory
    assert bandwidth(part, "ps+pl") == MEMORY[part] + PL_MEMORY[part]


@pytest.mark.parametrize(
    ("part", "memory", "message"),
    [(DESIGN.part, "hbm", "use one of ps, ps.pl"), (load_design("pynq-z2").part, "ps+pl", "has no DDR beside")],
)
def test_memories_that_do_not_exist_are_refused(part: str, memory: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bandwidth(part, memory)


def test_a_second_memory_helps_fabrics_that_wait_for_the_first() -> None:
    """Two fabrics' six streams ask for more than the processor's DDR gives; one fabric's three hardly do."""
    work = tuple((1.0, shape, BITS) for shape in resnet_cifar(8))
    slow, fast = (evaluate(DESIGN, 2, work, 128, memory) for memory in ("ps", "ps+pl"))
    assert fast.cycles == slow.cycles
    assert fast.seconds < slow.seconds
    assert fast.seconds == pytest.approx(fast.cycles / DESIGN.clock_mhz / 1e6)  # nothing waits any more


def test_points_of_one_memory_do_not_count_for_another() -> None:
    request = Request(DESIGN.part, "resnet8", ())
    assert request.key() != replace(request, memory="ps+pl").key()
    elsewhere = Request(load_design("pynq-z2").part, "resnet8", mean_work(resnet_cifar(8), static(BITS, 1)))
    with pytest.raises(ValueError, match="has no DDR beside"):
        explore(replace(elsewhere, memory="ps+pl"))


def test_the_search_costs_with_the_memory_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hw.explore.candidates", lambda request: [(DESIGN, 2)])
    work = mean_work(resnet_cifar(8), static(BITS, 1))
    for memory in ("ps", "ps+pl"):
        (found,) = explore(Request(DESIGN.part, "resnet8", work, memory=memory))
        assert found == evaluate(DESIGN, 2, work, 128, memory)


def test_the_command_says_that_the_second_memory_is_unverified(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("cost", "--model", "resnet8", "--bits", "4,3,6", "--machine", "zc706", "--memory", "ps+pl")
    assert command(*options) == 0
    assert "unverified" in capsys.readouterr().out
    assert command(*options, "--json") == 0
    assert json.loads(capsys.readouterr().out)["memory"] == "ps+pl"


# -- roofline -------------------------------------------------------------------------------------------------------


NETWORK = resnet_cifar(8)
MACHINE = FabricMachine(DESIGN)


def test_peaks_are_those_of_the_design() -> None:
    peak = roofs(MACHINE)
    assert peak.array == 73_728 * 150e6
    assert (peak.inputs, peak.outputs, peak.streams) == (2.4e9, 1.2e9, 3.6e9)
    assert roofs(replace(MACHINE, fabrics=2)).array == 2 * peak.array


@pytest.mark.parametrize("bits", [Bits(8, 8, 8), BITS])
@pytest.mark.parametrize("fabrics", [1, 3])
def test_no_point_is_above_array_or_memory(fabrics: int, bits: Bits) -> None:
    machine = FabricMachine(DESIGN, fabrics)
    peak = roofs(machine)
    found = points(machine, NETWORK, bits)
    assert len(found) == 3 * len(NETWORK) - 1  # the first layer has no input gradient
    for p in found:
        assert p.rate <= 1.001 * peak.array, p
        assert p.rate <= 1.001 * p.intensity * peak.memory, p


def test_a_point_by_hand() -> None:
    shape = ConvShape("conv", 16, 16, 3, 1, 1, (32, 32))
    forward = points(MACHINE, [shape], Bits(8, 8, 8))[0]
    assert forward.binary_macs == 16 * 16 * 9 * 1024 * 64
    assert forward.bound == "output stream"
    assert forward.bound_seconds == pytest.approx(16 * 1024 / 1.2e9, rel=1e-4)  # codes of eight bits
    assert forward.intensity == pytest.approx(forward.binary_macs / (2 * 16 * 1024), rel=0.01)
    assert forward.seconds == pytest.approx(forward.bound_seconds, rel=0.01)


@pytest.mark.parametrize("bits", [Bits(8, 8, 8), BITS, Bits(2, 2, 4)])
@pytest.mark.parametrize("name", ["zc706", "pynq-z2"])
def test_causes_sum_to_the_time(name: str, bits: Bits) -> None:
    machine = FabricMachine(load_design(name), 2 if name == "zc706" else 1)
    for share, shape in zip(shares(machine, NETWORK, bits), NETWORK, strict=True):
        assert set(share.seconds) == set(CAUSES)
        assert min(share.seconds.values()) >= -1e-12, share
        assert sum(share.seconds.values()) == pytest.approx(machine.cost([shape], bits).seconds)


def test_fewer_bits_wait_for_the_output_and_a_slow_memory_for_itself() -> None:
    """At 4/3/6 the 16-channel layers of the measured network wait for the output stream, at 8/8/8 they do not."""
    wide, narrow = (shares(MACHINE, NETWORK[1:2], bits)[0].seconds for bits in (Bits(8, 8, 8), BITS))
    assert narrow["output stream"] > 0.2 * sum(narrow.values())
    assert wide["output stream"] < 0.01 * sum(wide.values())
    starved = shares(replace(MACHINE, bandwidth=1e8), NETWORK[1:2], BITS)[0].seconds
    assert narrow["memory"] == 0 < starved["memory"]
    assert starved["array"] == narrow["array"]


def test_streams_without_time_cost_the_same_traffic() -> None:
    plain, free = (MACHINE.products(NETWORK[1], BITS, free=f)["forward"] for f in ((), STREAMS))
    assert (free.ddr_bytes, free.array_cycles) == (plain.ddr_bytes, plain.array_cycles)
    assert free.array_cycles < free.cycles < plain.cycles


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("report", "roofline", "--model", "resnet8", "--bits", "8,8,8", "4,3,6", "--out", str(tmp_path))
    assert command(*options) == 0
    files = [Path(line) for line in capsys.readouterr().out.split()]
    assert [f.name for f in files] == [
        "roofline-zc706.svg", "roofline-zc706.csv", "time-zc706.svg", "time-zc706.csv"
    ]  # fmt: skip
    before = [f.read_bytes() for f in files]
    with files[1].open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * (3 * len(NETWORK) - 1)
    with files[3].open(encoding="utf-8") as stream:
        times = list(csv.DictReader(stream))
    for bits in (Bits(8, 8, 8), BITS):
        expected = MACHINE.cost(NETWORK, bits).seconds * 1e6
        for table in (rows, times):
            assert sum(float(r["us"]) for r in table if r["bits"] == str(bits)) == pytest.approx(expected, rel=1e-4)
    assert command(*options) == 0
    assert before == [f.read_bytes() for f in files]  # the same figures, the same bytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bits", "4,3,32"), "at most 16 bits"),
        (("--bits", "4,3,6", "4,3,6"), "once"),
        (("--bits", "4,3"), "not w,a,g"),
        (("--bits", "4,3,6", "--design", "cc"), "name one of our designs"),
        (("--bits", "4,3,6", "--design", "pynq-z2", "--memory", "ps+pl"), "has no DDR beside"),
    ],
)
def test_impossible_reports(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("report", "roofline", "--model", "resnet8", "--out", str(tmp_path), *options) == 2
    assert message in capsys.readouterr().err
