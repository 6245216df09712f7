"""Whole steps of designs: against what the benchmark of the step counts, by hand, and in the report on the paper."""

from dataclasses import replace

import pytest

from fractrain import main
from host.measure.step_bench import bench_step
from hw.cost.fabric import FabricMachine, Host
from hw.cost.paper import Line, recompute
from hw.cost.step_cost import NetworkStep, paper_fabric, training_step
from hw.design import Design, load_design
from hw.networks import Bits, ConvShape, image_layout, network
from hw.nodes import KeptWidths, nodes, nodes_of
from hw.reports.paper_report import to_csv

CONV = ConvShape("conv", 64, 64, 3, 1, 1, (8, 8))
BITS = Bits(4, 3, 6)


@pytest.fixture(scope="module")
def design() -> Design:
    return load_design("zc706")


@pytest.fixture(scope="module")
def machine(design: Design) -> FabricMachine:
    return FabricMachine(design)


@pytest.mark.parametrize("model", ["resnet8", "mobilenetv2"])
def test_passes_are_those_of_the_benchmark(design: Design, model: str) -> None:
    """Two ways to add up the same passes: by layer here, by kind there."""
    shapes, batch = network(model), 8
    machine = FabricMachine(design, batch=batch)
    step = NetworkStep(machine, shapes)
    cycles = sum(step.layer(shape, BITS, "fabric").fabric.cycles for shape in shapes if shape.kind != "fc")
    counted = bench_step(None, design, nodes(*image_layout(model)), BITS, KeptWidths.beside(BITS), batch)
    assert cycles == pytest.approx(counted["predicted_per_image"], rel=0.01)  # there each pass is cut into programs


def test_a_step_is_more_than_its_products(machine: FabricMachine) -> None:
    shapes = network("resnet8")
    products = machine.cost(shapes, BITS)
    plain, fabric = (training_step(machine, shapes, BITS, kind) for kind in ("plain", "fabric"))
    assert plain.seconds > fabric.seconds > products.seconds
    assert fabric.fabric.cycles > products.cycles  # every convolution runs twice
    assert fabric.host["update"] == plain.host["update"]
    elements = sum(shape.outputs for shape in shapes if shape.kind != "fc")
    assert plain.host["statistics"] == pytest.approx(elements * 4 / machine.host.bytes_per_second)
    head = sum(shape.outputs for shape in shapes if shape.kind == "fc")
    only_head = fabric.host["normalise and quantize"] / plain.host["normalise and quantize"]
    assert only_head == pytest.approx(head / (elements + head), rel=0.01)


def test_causes_add_up_to_the_layer(machine: FabricMachine) -> None:
    shapes = network("resnet8")
    step = NetworkStep(machine, shapes)
    for shape in shapes:
        for kind in ("plain", "fabric"):
            causes = step.causes(shape, BITS, kind)
            assert sum(causes.values()) == pytest.approx(step.layer(shape, BITS, kind).seconds)
            assert min(causes.values()) >= 0


def test_layers_without_a_pass_are_left_to_the_host(design: Design, machine: FabricMachine) -> None:
    resnet18 = network("resnet18")
    with pytest.raises(ValueError, match="max pooling"):
        nodes_of(resnet18)
    assert training_step(machine, [CONV], BITS, "fabric") == training_step(machine, [CONV], BITS, "plain")
    shapes = network("resnet8")
    step = NetworkStep(machine, shapes)
    wide = Bits(32, 32, 32)
    assert step.layer(shapes[1], wide, "fabric") == step.layer(shapes[1], wide, "plain")
    never_random = FabricMachine(replace(design, rounding=False))
    assert training_step(never_random, shapes, BITS, "fabric") == training_step(never_random, shapes, BITS, "plain")


def test_an_infinitely_fast_host_leaves_the_fabric(design: Design) -> None:
    host = Host(bytes_per_second=1e30, elements_per_second=1e30)
    for kind in ("plain", "fabric"):
        step = training_step(FabricMachine(design, host=host), network("resnet8"), BITS, kind)
        assert step.seconds == pytest.approx(step.fabric.seconds)


def test_unknown_kind(machine: FabricMachine) -> None:
    with pytest.raises(ValueError, match="use one of plain, fabric"):
        training_step(machine, [CONV], BITS, "fused")


# -- the report -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lines(machine: FabricMachine) -> list[Line]:
    return recompute(fabric=paper_fabric(machine))


def test_the_paper_report_has_the_fabric_beside_the_board_measurement(
    machine: FabricMachine, lines: list[Line]
) -> None:
    ours = {(line.group, line.quantity): line.fabric for line in lines if line.table == "ZC706"}
    for group, published in (("ResNet-38 CIFAR-100", 34.9), ("ResNet-74 CIFAR-100", 36.6)):
        saved = ours[group, "latency saving, per sample"]
        assert saved is not None and saved > published
        sums = ours[group, "latency saving, per sample: results as 32-bit sums"]
        assert sums is not None and sums < published  # what codes save in the array is lost in traffic
        plain = ours[group, "latency saving, per sample: full step, the host normalises"]
        fabric = ours[group, "latency saving, per sample: full step, the fabric normalises"]
        assert plain is not None and fabric is not None and plain < published < fabric < saved
    assert "fabric zc706" in to_csv(lines, paper_fabric(machine)).splitlines()[0]


def test_the_report_explains_every_fabric_line(lines: list[Line]) -> None:
    assert all(line.explanation for line in lines if line.fabric is not None)


@pytest.mark.parametrize("model", ["resnet18", "mobilenetv2"])
def test_whole_steps_of_networks_with_large_kernels_are_costed(model: str) -> None:
    """Statistics of sums in several packets are the host's."""
    assert main(["cost", "--model", model, "--bits", "4/4/8", "--machine", "zc706", "--batch", "2"]) == 0
