"""Memories, the roofline and where the time goes: against the cost model, by hand on single layers, and as a command."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from fractrain import main
from hw.boards import BOARDS
from hw.cost.count import mean_work as layer_work
from hw.cost.explore import SearchRequest, evaluate_point, explore, work_of_layers
from hw.cost.fabric import STREAMS, FabricMachine, bandwidth
from hw.cost.roofline import CAUSES, mean_points, mean_shares, points, roofs, shares, spans
from hw.cost.step_cost import STEPS, NetworkStep
from hw.cost.training_schedule import load_schedule, static_schedule
from hw.design import load_design
from hw.networks import Bits, ConvShape, network

DESIGN = load_design("zc706")
BITS = Bits(4, 3, 6)


def command(*words: str) -> int:
    """Exit status of ``fractrain`` with these words."""
    return main([*words])


# -- memories -------------------------------------------------------------------------------------------------------


def test_both_memories_together_have_the_sum_of_their_bandwidths() -> None:
    part = DESIGN.part
    assert bandwidth(part) == BOARDS[part].memory == FabricMachine(DESIGN).memory
    assert bandwidth(part, "ps+pl") == BOARDS[part].memory + BOARDS[part].logic_memory


@pytest.mark.parametrize(
    ("part", "memory", "message"),
    [(DESIGN.part, "hbm", "use one of ps, ps.pl"), (load_design("pynq-z2").part, "ps+pl", "has no DDR beside")],
)
def test_memories_that_do_not_exist_are_refused(part: str, memory: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bandwidth(part, memory)


def test_a_second_memory_helps_fabrics_that_wait_for_the_first() -> None:
    """Two fabrics' six streams ask for more than the processor's DDR gives; one fabric's three hardly do."""
    work = tuple((1.0, shape, BITS) for shape in network("resnet8"))
    slow, fast = (evaluate_point(DESIGN, 2, work, 128, memory) for memory in ("ps", "ps+pl"))
    assert fast.cycles == slow.cycles
    assert fast.seconds < slow.seconds
    assert fast.seconds == pytest.approx(fast.cycles / DESIGN.clock_mhz / 1e6)  # nothing waits any more


def test_points_of_one_memory_do_not_count_for_another() -> None:
    request = SearchRequest(DESIGN.part, "resnet8", ())
    assert request.key() != replace(request, memory="ps+pl").key()
    elsewhere = SearchRequest(load_design("pynq-z2").part, "resnet8", work_of_layers(network("resnet8"), static_schedule(BITS, 1)))
    with pytest.raises(ValueError, match="has no DDR beside"):
        explore(replace(elsewhere, memory="ps+pl"))


def test_the_search_costs_with_the_memory_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hw.cost.explore.candidates", lambda request: [(DESIGN, 2)])
    work = work_of_layers(network("resnet8"), static_schedule(BITS, 1))
    for memory in ("ps", "ps+pl"):
        (found,) = explore(SearchRequest(DESIGN.part, "resnet8", work, memory=memory))
        assert found == evaluate_point(DESIGN, 2, work, 128, memory)


def test_the_command_says_that_the_second_memory_is_unverified(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("cost", "--model", "resnet8", "--bits", "4,3,6", "--machine", "zc706", "--memory", "ps+pl")
    assert command(*options) == 0
    assert "unverified" in capsys.readouterr().out
    assert command(*options, "--json") == 0
    assert json.loads(capsys.readouterr().out)["memory"] == "ps+pl"


# -- roofline -------------------------------------------------------------------------------------------------------


NETWORK = network("resnet8")
MACHINE = FabricMachine(DESIGN)
ONE_OUTPUT = FabricMachine(replace(DESIGN, output_streams=1))


def test_peaks_are_those_of_the_design() -> None:
    peak = roofs(MACHINE)
    assert peak.array == 73_728 * 150e6
    assert (peak.inputs, peak.outputs, peak.streams) == (2.4e9, 2.4e9, 4.8e9)
    assert roofs(ONE_OUTPUT).outputs == 1.2e9
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
    forward = points(ONE_OUTPUT, [shape], Bits(8, 8, 8))[0]
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
    """At 4/3/6 the 16-channel layers of the network wait for an output stream that is alone, at 8/8/8 they do not."""
    wide, narrow = (shares(ONE_OUTPUT, NETWORK[1:2], bits)[0].seconds for bits in (Bits(8, 8, 8), BITS))
    assert narrow["output stream"] > 0.2 * sum(narrow.values())
    assert wide["output stream"] < 0.01 * sum(wide.values())
    starved = shares(replace(ONE_OUTPUT, bandwidth=1e8), NETWORK[1:2], BITS)[0].seconds
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
        (("--bits", "4,3"), "not w/a/g"),
        (("--bits", "4,3,6", "--design", "cc"), "name one of our designs"),
        (("--bits", "4,3,6", "--design", "pynq-z2", "--memory", "ps+pl"), "has no DDR beside"),
    ],
)
def test_impossible_reports(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("report", "roofline", "--model", "resnet8", "--out", str(tmp_path), *options) == 2
    assert message in capsys.readouterr().err


# -- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Folder with the record of two stages: the first skips a block at times, stem and classifier are in float32."""
    whole, exact = [[1.0, [4, 3, 6]]], {name: [[1.0, [32, 32, 32]]] for name in ("stem", "head")}
    skipping = {f"blocks.0.conv{n}": [[0.5, [0, 0, 0]], [0.5, [4, 4, 8]]] for n in (1, 2)}
    stages = [
        {"epochs": 1.0, "options": whole, "layers": skipping, "ran": exact},
        {"epochs": 3.0, "options": [[1.0, [8, 8, 8, 16]]], "layers": {}, "ran": exact},
    ]
    trained = {"model": "resnet-8", "classes": 10, "width": 16, "image": [3, 32, 32], "samples": 50, "batch": 128}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "schedule.json").write_text(json.dumps({"stages": stages, "trained": trained, "fixed": {}}))
    return folder


def test_time_of_a_run_is_that_of_its_stages(run: Path) -> None:
    schedule = load_schedule(run)
    first, second = spans(MACHINE, NETWORK, schedule)
    exact = [s for s in NETWORK if s.name in ("stem", "head")]
    quantized = [s for s in NETWORK if s not in exact]
    in_float = sum(c.seconds for s in exact for c in MACHINE.products(s, Bits(32, 32, 32)).values())
    skipped = [s for s in quantized if s.name.startswith("blocks.0")]
    always = [s for s in quantized if s not in skipped]
    expected = in_float + MACHINE.cost(always, BITS).seconds + MACHINE.cost(skipped, Bits(4, 4, 8)).seconds / 2
    assert sum(first.products.values()) == pytest.approx(expected)
    assert first.products["host"] == pytest.approx(in_float)
    assert sum(second.products.values()) == pytest.approx(in_float + MACHINE.cost(quantized, Bits(8, 8, 8, 16)).seconds)
    for kind in STEPS:
        network = NetworkStep(MACHINE, NETWORK)
        step = sum(network.layer(shape, Bits(8, 8, 8, 16), kind).seconds for shape in quantized)
        step += sum(network.layer(shape, Bits(32, 32, 32), kind).seconds for shape in exact)
        assert sum(getattr(second, kind).values()) == pytest.approx(step)


def test_points_of_a_run_are_means(run: Path) -> None:
    schedule = load_schedule(run)
    work = layer_work(NETWORK, schedule, "full")
    found = {(p.layer, p.product): p for p in mean_points(MACHINE, work, "run")}
    assert {layer for layer, _ in found} == {s.name for s in NETWORK} - {"stem", "head"}  # those are the host's
    point = found["blocks.0.conv1", "forward"]
    shape = next(s for s in NETWORK if s.name == "blocks.0.conv1")
    assert point.macs == pytest.approx(shape.macs * (0.25 * 0.5 + 0.75))
    assert point.binary_macs == pytest.approx(shape.macs * (0.25 * 0.5 * 16 + 0.75 * 64))
    assert point.pairs == pytest.approx(point.binary_macs / point.macs)
    ends = [MACHINE.products(shape, bits)["forward"].seconds for bits in (Bits(4, 4, 8), Bits(8, 8, 8, 16))]
    assert point.seconds == pytest.approx(0.25 * 0.5 * ends[0] + 0.75 * ends[1])
    times = {s.layer: sum(s.seconds.values()) for s in mean_shares(MACHINE, work, "run")}
    assert times["blocks.0.conv1"] == pytest.approx(sum(p.seconds for p in found.values() if p.layer == shape.name))
    assert times["head"] > 0


def test_the_report_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report"
    options = ("report", "roofline", "--run", str(run), "--memory", "ps+pl", "--out", str(out))
    assert command(*options) == 0
    printed = capsys.readouterr()
    files = [Path(line) for line in printed.out.split()]
    assert [f.name for f in files] == [
        f"{kind}-zc706.{end}" for kind in ("roofline", "time", "epochs") for end in ("svg", "csv")
    ]  # fmt: skip
    assert "unverified" in printed.err
    before = [f.read_bytes() for f in files]
    with files[5].open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [(float(r["first_epoch"]), float(r["epochs"])) for r in rows] == [(0, 1), (1, 3)]
    assert float(rows[0]["products_host_us"]) > 0
    assert command(*options) == 0
    assert before == [f.read_bytes() for f in files]


def test_a_run_brings_its_network_samples_and_batch(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("cost", "--schedule", str(run), "--machine", "zc706", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["model"], result["samples_per_epoch"], result["batch"], result["count"]) == (
        "resnet-8", 50, 128, "full"
    )  # fmt: skip
    whole = result["whole_training"]
    assert whole["cc"] == whole["cc_full"] != whole["cc_paper"]
    (first, second), samples = spans(MACHINE, NETWORK, load_schedule(run)), 50
    seconds = samples * (sum(first.products.values()) + 3 * sum(second.products.values()))
    assert whole["latency_min"] == pytest.approx(seconds / 60)
    assert command("cost", "--schedule", str(run / "schedule.json"), "--machine", "bitfusion", "--batch", "4") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "mobilenetv2"), "mobilenetv2 does not have"),
        (("--model", "resnet-20", "--epochs", "3"), "states its own epochs"),
        (("--batch", "0"), "--batch"),
    ],
)
def test_impossible_costs_of_a_run(
    options: tuple[str, ...], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("cost", "--schedule", str(run), *options) == 2
    assert message in capsys.readouterr().err


def test_a_network_must_be_named_somewhere(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads((run / "schedule.json").read_text())
    del data["trained"]
    (run / "schedule.json").write_text(json.dumps(data))
    for words in (("cost", "--bits", "8,8,8"), ("cost", "--schedule", str(run))):
        assert command(*words) == 2
        assert "--model" in capsys.readouterr().err


def test_layers_that_every_sample_skips_cost_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads((run / "schedule.json").read_text())
    data["stages"] = [data["stages"][0] | {"layers": {"blocks.0.conv1": [[1, [0, 0, 0]]]}}]
    (run / "schedule.json").write_text(json.dumps(data))
    assert command("cost", "--schedule", str(run), "--machine", "zc706", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["per_sample_layers"]
    skipped = [r for r in rows if r["layer"] == "blocks.0.conv1"]
    assert len(skipped) == 3 and all(r["cc"] == r["time_us"] == r["dram_bytes"] == 0 for r in skipped)
