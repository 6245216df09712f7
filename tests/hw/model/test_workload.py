"""Packets of a layer: what does not fit is refused by name, before any packet is made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from host.devices.device import check
from host.devices.reference import ReferenceDevice
from host.driver.fabric_engine import FabricEngine
from host.measure.engine_bench import program
from host.operands import ConvGeometry, Grid, Operand
from host.program.builder import read_program
from hw.contract import Flag, Opcode
from hw.design import load_design
from hw.model.cycles import predict
from hw.model.workload import WorkloadError, array_shape, backward, forward
from hw.networks import Bits, ConvShape, network
from hw.packet import Packet

LAYER = ConvShape("deep", 64, 64, 3, 1, 1, (32, 32))


@pytest.mark.parametrize(
    "depth, buffer", [("depth_a", "A"), ("depth_g", "G"), ("depth_w", "W"), ("depth_accumulator", "accumulator")]
)
def test_buffer_that_is_too_small_is_named(depth: str, buffer: str) -> None:
    design = replace(load_design("zc706"), **{depth: 64})
    with pytest.raises(WorkloadError, match=f"buffer {buffer} "):
        list(backward(design, LAYER, Bits(8, 8, 8), 8))


def test_every_image_is_in_exactly_one_chunk() -> None:
    packets = list(backward(load_design("zc706"), LAYER, Bits(3, 2, 4), 7))
    assert sum(p.images for p in packets if p.opcode == 3) == 7


STRIDED = [
    ConvShape("stage", 16, 32, 3, 2, 1, (32, 32)),
    ConvShape("pairs", 20, 40, 3, 2, 1, (16, 16)),
    ConvShape("shortcut", 16, 32, 1, 2, 0, (32, 32)),
    ConvShape("odd", 16, 32, 3, 2, 1, (15, 15)),
    ConvShape("projection", 32, 16, 1, 1, 0, (8, 8)),
    ConvShape("plain", 16, 16, 3, 1, 1, (8, 8)),
]


@pytest.mark.parametrize("shape", STRIDED, ids=lambda s: s.name)
@pytest.mark.parametrize("codes", [True, False])
def test_packets_are_valid_and_run(shape: ConvShape, codes: bool) -> None:
    design = load_design("zc706")
    bits = Bits(3, 2, 4)
    for packets in (forward(design, shape, bits, 2, codes), backward(design, shape, bits, 2, codes)):
        check(ReferenceDevice(design).run(program(design, list(packets))))


@pytest.mark.parametrize("shape", STRIDED, ids=lambda s: s.name)
def test_packets_do_the_work_of_the_driver(shape: ConvShape) -> None:
    """Array cycles of a product and results of the weight gradient: the driver's packets against the cost model's."""
    design, bits, batch = load_design("zc706"), Bits(3, 2, 4), 8
    rng = np.random.default_rng(0)
    m = ConvGeometry(
        batch, shape.in_channels, shape.out_channels, shape.in_hw, (shape.kernel,) * 2, shape.stride, shape.padding
    )

    def operand(size: tuple[int, ...], width: int, signed: bool) -> Operand:
        grid = Grid(width, signed, np.ones((), np.float32), np.zeros((), np.float32))
        low, high = grid.limits
        return Operand(grid, codes=rng.integers(low, high + 1, size=size))

    x = operand((batch, m.in_channels, *m.in_hw), bits.a, False)
    w = operand((m.out_channels, m.in_channels, *m.kernel), bits.w, True)
    g = operand((batch, m.out_channels, *m.out_hw), bits.g, True)
    images = -(-batch // array_shape(design, shape).side)
    modelled = {
        "forward": forward(design, shape, bits, images, False),
        "input_gradient": backward(design, shape, bits, images, False, products=("input_gradient",)),
        "weight_gradient": backward(design, shape, bits, images, False, products=("weight_gradient",)),
    }
    for product, operands in {"forward": (x, w), "input_gradient": (g, w), "weight_gradient": (x, g)}.items():
        sent: list[Packet] = []
        engine = FabricEngine(
            ReferenceDevice(design), recorder=lambda words, _, to=sent: to.extend(p for _, p in read_program(words))
        )
        getattr(engine, product)(*operands, m)
        work = []
        for packets in (sent, list(modelled[product])):
            # sums that the driver takes along, and the planes that they need, are no part of the model
            plain = [replace(p, flags=p.flags & ~(Flag.A_SUM | Flag.ONES)) for p in packets]
            work.append(predict(design, plain).compute)
        assert work[0] == work[1], product
        if product == "weight_gradient":
            tiles = {(p.base_accumulator, p.taps, p.groups) for p in sent if p.opcode == Opcode.WGRAD}
            computed = sum(bin(taps).count("1") * groups for _, taps, groups in tiles)
            assert computed * array_shape(design, shape).out_groups == array_shape(design, shape).gradient_tiles


@pytest.mark.parametrize("bits", [Bits(4, 3, 6), Bits(8, 8, 8), Bits(2, 16, 2)], ids=str)
@pytest.mark.parametrize("batch", [4, 32, 128])
def test_weight_gradients_leave_with_as_many_bits_as_the_driver_takes(bits: Bits, batch: int) -> None:
    design, shape = load_design("sim-small"), ConvShape("layer", 8, 8, 3, 1, 1, (16, 16))
    m = ConvGeometry(batch, 8, 8, shape.in_hw, (3, 3), 1, 1)
    sent: list[Packet] = []
    engine = FabricEngine(
        ReferenceDevice(design), recorder=lambda words, _: sent.extend(p for _, p in read_program(words))
    )

    def zeros(channels: int, width: int) -> Operand:
        grid = Grid(width, False, np.ones((), np.float32), np.zeros((), np.float32))
        return Operand(grid, codes=np.zeros((batch, channels, *shape.in_hw), np.int32))

    engine.weight_gradient(zeros(8, bits.a), zeros(8, bits.g), m)
    driver = {p.format for p in sent if p.opcode == Opcode.READ}

    def formats(images: int, summed: int | None = None) -> set[int]:
        packets = backward(design, shape, bits, images, products=("weight_gradient",), summed=summed)
        return {p.format for p in packets if p.opcode == Opcode.READ}

    assert formats(batch) == formats(2, summed=batch) == driver


STAGES = [shape for shape in network("resnet38") if shape.stride == 2 and shape.kernel == 3]


@pytest.mark.parametrize("shape", STAGES, ids=lambda s: s.name)
@pytest.mark.parametrize(
    "bits", [Bits(8, 8, 8), Bits(6, 6, 8), Bits(4, 4, 6), Bits(4, 3, 6), Bits(3, 3, 6), Bits(2, 2, 4)], ids=str
)
@pytest.mark.parametrize("codes", [True, False])
@pytest.mark.parametrize("products", [("input_gradient", "weight_gradient"), ("input_gradient",)], ids=len)
def test_groups_in_pairs_are_never_slower(
    shape: ConvShape, bits: Bits, codes: bool, products: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    design = load_design("zc706")

    def cycles() -> int:
        images = 128 // array_shape(design, shape).side
        return predict(design, backward(design, shape, bits, images, codes, products=products)).cycles

    chosen = cycles()
    monkeypatch.setattr("hw.model.workload.pairs_channel_groups", lambda *_: False)
    assert chosen <= 1.001 * cycles()


@pytest.mark.parametrize("shape", STAGES, ids=lambda s: s.name)
def test_groups_in_pairs_halve_the_work_of_the_array(shape: ConvShape, monkeypatch: pytest.MonkeyPatch) -> None:
    design = load_design("zc706")

    def work() -> int:
        return predict(design, backward(design, shape, Bits(8, 8, 8), 4, products=("input_gradient",))).compute

    chosen = work()
    monkeypatch.setattr("hw.model.workload.pairs_channel_groups", lambda *_: False)
    assert 2 * chosen == work()
