"""Codes of the greatest magnitude over the longest contractions that a design takes: no sum wraps, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from host.arrays import I64
from host.devices.device import Device, check
from host.devices.hls import HlsDevice
from host.devices.reference import ReferenceDevice
from host.devices.rtl import RtlDevice
from host.driver.fabric_engine import FabricEngine
from host.numerics import fmix32
from host.operands import ConvGeometry, Grid, Operand
from host.program import packing
from host.program.builder import PacketError, ProgramBuilder
from hw.contract import LIMITS, Error, Flag, Opcode, OutputFormat, Target
from hw.design import Design, load_design
from hw.packet import Packet, flags_of, product, read_entries, tensor_addresses

DEVICES: dict[str, Callable[[Design], Device]] = {"reference": ReferenceDevice, "hls": HlsDevice, "rtl": RtlDevice}
DESIGNS = {name: load_design(name) for name in ("sim-small", "zc706")}
ROWS = 3
SIGNS = [(False, False), (True, True), (True, False), (False, True)]


@pytest.fixture(
    params=[
        # to build and to run the large RTL takes minutes
        pytest.param((kind, name), id=f"{kind}-{name}", marks=[pytest.mark.slow] * ((kind, name) == ("rtl", "zc706")))
        for kind in DEVICES
        for name in DESIGNS
    ]
)
def device(request: pytest.FixtureRequest) -> Device:
    kind, name = request.param
    return DEVICES[kind](DESIGNS[name])


def extreme(bits: int, signed: bool) -> int:
    """The code of the greatest magnitude."""
    return -(1 << bits - 1) if signed else (1 << bits) - 1


def longest(design: Design, a_bits: int, b_bits: int, wide: bool) -> int:
    """Most input groups that a CONV takes."""
    room = min(LIMITS["groups"], design.depth_a // a_bits, design.depth_w // b_bits)
    packet = Packet(
        Opcode.CONV, a_bits=a_bits, b_bits=b_bits, format=OutputFormat.INT64 if wide else OutputFormat.INT32
    )
    return max(g for g in range(1, room + 1) if not replace(packet, groups=g).overflows(design))


def conv(
    design: Design, bits: tuple[int, int], signs: tuple[bool, bool], groups: int, form: OutputFormat, **more: int
) -> tuple[ProgramBuilder, I64]:
    """A program that convolves all extreme codes, and its accumulators: int64 (rows, C, L)."""
    d, c = design, design.channels
    a, w = (extreme(b, s) for b, s in zip(bits, signs, strict=True))
    builder = ProgramBuilder(d)
    builder.load_packed(Target.A, np.full((1, ROWS, groups, d.lanes, c), a), bits[0])
    builder.load_weights(np.full((1, groups, c, 9, c), w), bits[1])
    if form == OutputFormat.CODES:
        m, b = more.pop("multiplier"), more.pop("offset")
        builder.load_epilogue(np.full(c, m), np.full(c, b))
    integers = form in (OutputFormat.INT32, OutputFormat.INT64)
    flags = flags_of({Flag.A_SIGNED: signs[0], Flag.B_SIGNED: signs[1], Flag.A_SUM: integers}) | more.pop("flags", 0)
    shape = {"images": 1, "rows": ROWS, "groups": groups, "out_groups": 1, "a_bits": bits[0], "b_bits": bits[1]}
    builder.add(product(Opcode.CONV, **shape, format=form, flags=flags, **more))
    rows = np.full(ROWS, 3) - (np.arange(ROWS) % (ROWS - 1) == 0)
    pixels = np.full(d.lanes, 3) - (np.arange(d.lanes) % (d.lanes - 1) == 0)
    acc = np.multiply.outer(rows, pixels)[:, None] * np.int64(c * groups * a * w)
    return builder, np.broadcast_to(acc, (ROWS, c, d.lanes))


@pytest.mark.parametrize("signs", SIGNS)
def test_longest_convolution_of_sixteen_by_sixteen_bits(signs: tuple[bool, bool], device: Device) -> None:
    d = device.info.design
    groups = longest(d, 16, 16, True)
    builder, acc = conv(d, (16, 16), signs, groups, OutputFormat.INT64)
    words = check(device.run(builder)).words
    got, sums = packing.unpack_conv(words, d, 1, ROWS, 1, True, True)
    assert np.array_equal(got[0], acc)
    assert sums is not None
    assert np.array_equal(sums[0] * extreme(16, signs[1]), acc[:, 0])
    with pytest.raises(PacketError) as caught:
        conv(d, (16, 16), signs, groups, OutputFormat.INT32)
    assert caught.value.error is Error.OVERFLOW


@pytest.mark.parametrize("bits", [(9, 9), (16, 2), (1, 16), (8, 8), (12, 8)])
@pytest.mark.parametrize("signs", SIGNS[:3])
def test_longest_convolution_of_every_32_bit_format(
    signs: tuple[bool, bool], bits: tuple[int, int], device: Device
) -> None:
    d = device.info.design
    groups = longest(d, *bits, False)
    builder, acc = conv(d, bits, signs, groups, OutputFormat.INT32)
    got, _ = packing.unpack_conv(check(device.run(builder)).words, d, 1, ROWS, 1, False, True)
    assert np.array_equal(got[0], acc)

    for multiplier, offset, shift in ((131071, (1 << 47) - 1, 47), (-131072, -(1 << 47), 33), (1, 0, 0)):
        for key in (None, 5):
            more = {"multiplier": multiplier, "offset": offset, "shift": shift, "out_bits": 16}
            more["flags"] = flags_of({Flag.OUT_SIGNED: True, Flag.STOCHASTIC: key is not None})
            builder, acc = conv(d, bits, signs, groups, OutputFormat.CODES, **more, key=key or 0)
            v = acc.astype(object) * multiplier + offset
            if key is None:
                noise: object = 1 << shift >> 1
            else:  # index 0 and no strides: one random word for all
                noise = (fmix32(key) << shift) >> 32
            wanted = np.clip(((v + noise) >> shift), -(1 << 15), (1 << 15) - 1).astype(np.int64)
            codes = packing.unpack_rows(check(device.run(builder)).words, d, 1, ROWS, 1, 16, True)[0, :, 0]
            assert np.array_equal(codes.swapaxes(1, 2), wanted)

    builder, acc = conv(d, bits, signs, groups, OutputFormat.STATISTICS, pixels=d.lanes)
    total, squares, low, high = packing.unpack_statistics(check(device.run(builder)).words)
    each = acc.swapaxes(0, 1).reshape(d.channels, -1)
    assert np.array_equal(total, each.sum(axis=1))
    assert squares == [sum(int(v) ** 2 for v in line) for line in each]
    assert np.array_equal(low, each.min(axis=1))
    assert np.array_equal(high, each.max(axis=1))


@pytest.mark.parametrize("name", DESIGNS)
def test_one_group_more_than_32_bits_hold_is_refused(name: str) -> None:
    d = DESIGNS[name]
    for bits in ((12, 8), (9, 11)):
        groups = longest(d, *bits, False)
        for form in (OutputFormat.INT32, OutputFormat.STATISTICS):
            with pytest.raises(PacketError) as caught:
                conv(d, bits, (False, False), groups + 1, form, **({"pixels": 1} if form != OutputFormat.INT32 else {}))
            assert caught.value.error is Error.OVERFLOW


@pytest.mark.parametrize("signs", SIGNS)
def test_longest_weight_gradient_fills_the_accumulators_and_stops_at_their_end(
    signs: tuple[bool, bool], device: Device
) -> None:
    """All that the buffers hold at 16 bits, added up until 2**47 is in sight; one packet more is refused."""
    d, c = device.info.design, device.info.design.channels
    images, rows = 2, 4 * (min(d.depth_a, d.depth_g) // 16)
    assert tensor_addresses(images, rows, 1, 16) == min(d.depth_a, d.depth_g)
    a, g = (extreme(16, s) for s in signs)
    step = images * rows * d.lanes * a * g
    times = (((1 << 47) - 1) if step > 0 else (1 << 47)) // abs(step)
    assert times >= 1
    for extra in (0, 1):
        builder = ProgramBuilder(d)
        for target, code in ((Target.A, a), (Target.G, g)):
            builder.load_packed(target, np.full((images, rows, 1, d.lanes, c), code), 16)
        for k in range(times + extra):
            options = {Flag.A_SIGNED: signs[0], Flag.B_SIGNED: signs[1], Flag.ONES: True, Flag.CLEAR: k == 0}
            shape = {"images": images, "rows": rows, "groups": 1, "out_groups": 1, "a_bits": 16, "b_bits": 16}
            builder.add(product(Opcode.WGRAD, **shape, flags=flags_of(options), taps=0x10))
        builder.add(read_entries(2 * (c + 1)))
        result = device.run(builder)
        if extra:
            assert result.error is Error.ACCUMULATOR_RANGE
            assert result.position == 2 + times
            continue
        values = packing.unpack_entries(check(result).words, d, 2 * (c + 1), True)
        count = images * rows * d.lanes * times
        assert (values[:c] == step * times).all()
        assert (values[c] == count * a).all()
        assert (values[c + 1 : -1] == count * g).all()
        assert (values[-1] == count).all()


def test_products_of_the_engine_at_sixteen_by_sixteen_bits(device: Device) -> None:
    """A contraction longer than one packet takes: blocks are added on the host."""
    engine = FabricEngine(device)
    grid = Grid(16, False, np.ones((), np.float32), np.zeros((), np.float32))
    for m in (ConvGeometry(1, 600, 2, (3, 3), (3, 3), 1, 1), ConvGeometry(3, 5000, 2, (1, 1))):
        x = np.full((m.batch, m.in_channels, *m.in_hw), 65535)
        w = np.full((m.out_channels, m.in_channels, *m.kernel), 65535)
        sums = engine.forward(Operand(grid, codes=x), Operand(grid, codes=w), m)
        assert int(sums.dot[0, 0, m.in_hw[0] // 2, m.in_hw[1] // 2]) == w[0].size * 65535**2
        assert int(sums.dot.max()) == w[0].size * 65535**2
