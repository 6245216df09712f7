"""Designs as training machines: against the measured network, by hand on single layers, and through the commands."""

import json
import random
import time
from dataclasses import replace
from typing import Any

import pytest

import hw.cost.fabric
from fractrain import main
from hw.boards import BOARDS
from hw.contract import HEADER_WORDS
from hw.cost.fabric import (
    FabricMachine,
    _counts,
    total,
)
from hw.cost.step_cost import STEPS, training_step
from hw.design import ROOT, Design, load_design
from hw.model.cycles import predict
from hw.networks import PRODUCTS, Bits, ConvShape, network
from hw.packet import Packet
from hw.plan.product import LoweringError
from hw.plan.training_products import layer_products, program
from tests.support.recorded import recorded

MEASUREMENT, OF_THIS_DESIGN = recorded(ROOT / "docs" / "measurements" / "engine-zc706.json")
CONV = ConvShape("conv", 64, 64, 3, 1, 1, (8, 8))
BITS = Bits(4, 3, 6)


@pytest.fixture(scope="module")
def design() -> Design:
    return load_design("zc706")


@pytest.fixture(scope="module")
def machine(design: Design) -> FabricMachine:
    return FabricMachine(design)


def sent(design: Design, shape: ConvShape, kind: str) -> list[Packet]:
    """Packets of a layer's product over a batch of 128 as codes."""
    ((_, product),) = layer_products(shape, BITS, 128, kind)
    return list(program(design, product))


def words(packets: list[Packet]) -> int:
    return sum(HEADER_WORDS + p.payload_words for p in packets)


def command(*words: str) -> int:
    """Exit status of ``fractrain`` with these words."""
    return main([*words])


# -- products -------------------------------------------------------------------------------------------------------


def test_a_layer_that_fits_costs_what_the_cycle_model_says(design: Design, machine: FabricMachine) -> None:
    products = machine.products(CONV, BITS)
    ahead, back = (predict(design, sent(design, CONV, kind)).cycles / 128 for kind in ("forward", "backward"))
    assert products["forward"].cycles == pytest.approx(ahead)
    gradients = products["input_gradient"].cycles + products["weight_gradient"].cycles
    assert gradients == pytest.approx(back)


def test_traffic_is_that_of_the_programs(design: Design, machine: FabricMachine) -> None:
    products = machine.products(CONV, BITS)
    assert products["forward"].read_bytes * 128 == 8 * words(sent(design, CONV, "forward"))
    stored = CONV.outputs * BITS.a / 8
    assert products["forward"].write_bytes == pytest.approx(stored, rel=0.01)
    both = products["input_gradient"].read_bytes + products["weight_gradient"].read_bytes
    assert both * 128 == pytest.approx(8 * words(sent(design, CONV, "backward")))


def test_sums_leave_with_four_bytes_each(machine: FabricMachine) -> None:
    cost = machine.products(CONV, BITS, codes=False)["forward"]
    assert cost.write_bytes == pytest.approx(4 * CONV.outputs, rel=0.01)


def test_sums_that_32_bits_cannot_hold_leave_with_eight(machine: FabricMachine) -> None:
    cost = machine.products(CONV, Bits(16, 16, 16))["forward"]
    assert cost.write_bytes == pytest.approx(8 * CONV.outputs, rel=0.01)


@OF_THIS_DESIGN
def test_whole_network_against_the_measurement(machine: FabricMachine) -> None:
    convolutions = [shape for shape in network(MEASUREMENT["model"]) if shape.kind != "fc"]
    for run in MEASUREMENT["runs"]:
        bits = Bits(*map(int, run["bits"].split("/")))
        predicted = machine.cost(convolutions, bits, run["output"] == "codes").cycles
        assert predicted == pytest.approx(run["cycles_per_image"], rel=0.03)


def test_time_is_the_longer_of_cycles_and_traffic(design: Design) -> None:
    fast = FabricMachine(design, bandwidth=1e12).products(CONV, BITS)["forward"]
    assert fast.seconds == fast.cycles / (design.clock_mhz * 1e6)
    slow = FabricMachine(design, bandwidth=1e7).products(CONV, BITS)["forward"]
    assert slow.seconds == slow.ddr_bytes / 1e7
    assert BOARDS[design.part].memory == 3.2e9


def test_the_first_layer_has_no_input_gradient(machine: FabricMachine) -> None:
    stem = replace(CONV, name="stem", kind="stem")
    assert machine.products(stem, BITS)["input_gradient"].seconds == 0
    assert machine.products(stem, BITS)["weight_gradient"].seconds > 0


def test_operands_beyond_the_fabric_run_on_the_host(machine: FabricMachine) -> None:
    cost = machine.products(CONV, Bits(32, 32, 32))["forward"]
    assert (cost.cycles, cost.seconds) == (0, CONV.macs / machine.host.macs_per_second)


@pytest.mark.parametrize(
    "arguments", [{"fabrics": 0}, {"batch": 0}, {"bandwidth": -1.0}], ids=["fabrics", "batch", "bandwidth"]
)
def test_impossible_machines_are_refused(design: Design, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give a positive number"):
        FabricMachine(design, **arguments)


# -- layers that are cut --------------------------------------------------------------------------------------------


def test_shallow_buffers_cost_more_and_one_group_is_the_least(design: Design) -> None:
    large = ConvShape("large", 256, 256, 3, 1, 1, (32, 32))
    deep = total(FabricMachine(replace(design, depth_w=2048)).products(large, BITS).values())
    shallow = total(FabricMachine(replace(design, depth_w=256)).products(large, BITS).values())
    assert shallow.cycles > deep.cycles
    assert shallow.array_cycles == deep.array_cycles  # the same work, with more loads
    with pytest.raises(LoweringError, match=r"3x3 256->256, .* 16 accumulator entries"):
        FabricMachine(replace(design, depth_accumulator=16)).products(large, BITS)


@pytest.mark.parametrize("model", ["resnet18", "mobilenetv2"])
@pytest.mark.parametrize("name", ["zc706", "pynq-z2"])
def test_networks_beyond_cifar_resnets_are_costed(name: str, model: str) -> None:
    design = load_design(name)
    shapes = network(model)[:12]
    cost = FabricMachine(design, batch=16).cost(shapes, BITS)
    ideal = sum(s.macs * a * b for s in shapes for a, b in s.operands(BITS).values()) / design.binary_macs
    assert cost.array_cycles > 0.6 * ideal  # phases of strided layers hold one real tap in four at most
    assert cost.cycles > cost.array_cycles


def test_no_layer_is_cheaper_than_its_arithmetic(design: Design) -> None:
    """Random layers on shallow and deep buffers, whatever they are cut into."""
    rng = random.Random(6)
    for _ in range(300):
        depths = {f"depth_{name}": rng.choice((128, 512)) for name in "agw"}
        groups, kernel = rng.choice((1, 1, 2, 8)), rng.choice((1, 3, 5, 7))
        into, out = (groups * rng.choice((1, 3, 16, 40)) for _ in range(2))
        height = rng.choice((7, 8, 14, 32, 56))
        width = rng.choice((height, 1)) if kernel == 1 else height
        shape = ConvShape(
            "any", into, out, kernel, rng.choice((1, 2, 3)), kernel // 2, (height, width), groups
        )  # fmt: skip
        bits = Bits(rng.choice((2, 4, 8)), rng.choice((2, 3, 8)), rng.choice((4, 6, 16)))
        machine = FabricMachine(replace(design, **depths), batch=rng.choice((1, 5, 32)))  # type: ignore[arg-type]
        for product, cost in machine.products(shape, bits).items():
            a, b = shape.operands(bits)[product]
            assert cost.array_cycles >= 0.999 * shape.macs * a * b / design.binary_macs, (shape, product)
            assert cost.cycles >= 0.999 * cost.array_cycles, (shape, product)


def test_fabrics_share_a_batch_and_the_memory(design: Design) -> None:
    one, two = (FabricMachine(design, n, batch=256).products(CONV, Bits(8, 8, 8))["forward"] for n in (1, 2))
    assert two.cycles == pytest.approx(one.cycles / 2, rel=0.02)
    assert two.ddr_bytes >= one.ddr_bytes


def test_a_large_batch_costs_what_counting_every_packet_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [network("resnet8")[i] for i in (0, 1, 4, 5, -1)]
    design, batch = load_design("zc706"), 12_000

    def costs() -> list[float]:
        _counts.cache_clear()
        machine = FabricMachine(design, batch=batch)
        all_of_them = total(cost for shape in shapes for cost in machine.products(shape, BITS).values())
        return [all_of_them.cycles, all_of_them.array_cycles, all_of_them.read_bytes, all_of_them.write_bytes]

    extrapolated = costs()
    monkeypatch.setattr(hw.cost.fabric, "COUNTED", batch)
    assert extrapolated == pytest.approx(costs(), rel=1e-3)
    _counts.cache_clear()
    monkeypatch.undo()
    started = time.monotonic()
    assert FabricMachine(design, batch=10**9).cost(shapes, BITS).cycles > 0
    assert time.monotonic() - started < 60  # counted one by one, it would take weeks


# -- commands -------------------------------------------------------------------------------------------------------


def test_cost_of_a_design(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("cost", "--model", "resnet8", "--bits", "4,3,6", "--machine", "zc706", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["batch"] == 128
    assert {row["product"] for row in result["per_sample_layers"]} == set(PRODUCTS)
    machine = FabricMachine(load_design("zc706"))
    expected = machine.cost(network("resnet8"), BITS)
    assert result["per_sample"]["cycles"] == pytest.approx(expected.cycles)
    assert result["per_sample"]["latency_ms"] == pytest.approx(expected.seconds * 1e3)
    for kind in STEPS:
        step = training_step(machine, network("resnet8"), BITS, kind)
        assert result["full_step"][kind]["latency_ms"] == pytest.approx(step.seconds * 1e3)
    assert command("cost", "--model", "resnet8", "--bits", "4,3,6", "--machine", "zc706") == 0
    assert "full step, fabric" in capsys.readouterr().out


def test_cost_names_the_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("cost", "--model", "resnet8", "--bits", "4,3,6", "--machine", "zc707") == 2
    assert "neither cc nor bitfusion nor a design" in capsys.readouterr().err
