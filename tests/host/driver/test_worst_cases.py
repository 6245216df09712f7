"""Codes of the greatest magnitude over the longest contractions that a design takes: no sum wraps, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from host.arrays import I64, Array
from host.devices.device import Device, check
from host.devices.hls import HlsDevice
from host.devices.reference import ReferenceDevice
from host.devices.rtl import RtlDevice
from host.driver.fabric_engine import FabricEngine
from host.epilogue import Entries, random_rows, reverse_bits
from host.operands import ConvGeometry, Grid, Operand
from host.program import packing
from host.program.builder import PacketError, ProgramBuilder, read_program
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
    design: Design,
    bits: tuple[int, int],
    signs: tuple[bool, bool],
    groups: int,
    form: OutputFormat,
    entries: dict[str, int] | None = None,
    operands: tuple[int, int] = (0, 0),
    **more: int,
) -> tuple[ProgramBuilder, I64]:
    """A program that convolves all extreme codes, and its accumulators: int64 (rows, C, L).

    Args:
        entries: of the epilogue, all channels alike.
        operands: elements of SIDE, its mask left out, and of ADDED.
        more: fields of the packet.
    """
    d, c = design, design.channels
    a, w = (extreme(b, s) for b, s in zip(bits, signs, strict=True))
    builder = ProgramBuilder(d)
    builder.load_packed(Target.A, np.full((1, ROWS, groups, d.lanes, c), a), bits[0])
    builder.load_weights(np.full((1, groups, c, 9, c), w), bits[1])
    packet = product(Opcode.CONV, rows=ROWS, images=1, groups=groups, out_groups=1, a_bits=bits[0], b_bits=bits[1])
    packet = replace(packet, format=form, **more)
    if packet.has_epilogue:
        builder.load_epilogue(Entries.of(c, **(entries or {})))
        side, added = operands
        if packet.side_planes:  # and all of the mask set
            k = np.full((1, ROWS, 1, d.lanes, c), side + (packet.has(Flag.MASKED) << packet.side_bits))
            builder.load_packed(Target.G, k, packet.side_planes)
        if packet.added_bits:
            q = np.full((1, ROWS, 1, d.lanes, c), added)
            builder.load_packed(Target.G, q, packet.added_bits, packet.base_added)
    integers = form in (OutputFormat.INT32, OutputFormat.INT64)
    flags = flags_of({Flag.A_SIGNED: signs[0], Flag.B_SIGNED: signs[1], Flag.A_SUM: integers})
    builder.add(replace(packet, flags=packet.flags | flags))
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


def rounded(values: Array, shift: int, noise: Array | None = None) -> Array:
    """Python integers divided by ``2**shift``: rounded to nearest, halves up, or by noise."""
    return values + ((1 << shift >> 1) if noise is None else noise) >> shift


def saturated(values: Array, bits: int = 18) -> Array:
    return np.clip(values, -(1 << bits - 1), (1 << bits - 1) - 1)


def moments_of(values: Array, factors: Array) -> list[list[int]]:
    """Sum, sum of products, least and greatest of Python integers (rows, C, L), of each channel."""
    v, f = (x.swapaxes(0, 1).reshape(x.shape[1], -1) for x in (values, factors))
    return [[int(n) for n in numbers] for numbers in (v.sum(1), (v * f).sum(1), v.min(1), v.max(1))]


@pytest.mark.parametrize("bits", [(9, 9), (16, 2), (8, 8)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("shift", "value_shift"), [(47, 18), (33, 47), (0, 0), (31, 17)])
def test_greatest_entries_and_operands_of_an_epilogue(
    bits: tuple[int, int], sign: int, shift: int, value_shift: int, device: Device
) -> None:
    """Every multiplier, offset and operand at its limit behind the longest sums: no product and no sum wraps."""
    d = device.info.design

    def limit(width: int) -> int:
        return (1 << width - 1) - 1 if sign > 0 else -(1 << width - 1)

    entries = {**dict.fromkeys("monl", limit(18)), "b": limit(48), "c": limit(40)}
    k, q = 255, -128
    fields = {"shift": shift, "side_bits": 8, "added_bits": 8, "base_added": 64, "last_row": ROWS}
    fields["valid"] = (1 << d.lanes) - 1
    widths = {"value_shift": value_shift, "out_bits": 8, "out_shift": 3, "keep_bits": 7, "keep_shift": 9}
    widths |= {"wide_bits": 8, "wide_shift": 16}
    common = (d, bits, (True, False), longest(d, *bits, False))
    _, acc = conv(*common, OutputFormat.INT32)
    p = acc.astype(object) * entries["m"] + entries["b"] + 512 * q * entries["o"]
    x = saturated(rounded(p, shift))
    w = saturated(rounded(x * entries["n"] + entries["c"] + 512 * k * entries["l"], value_shift))
    for factor in (0, 3) if d.rounding else (0,):
        flags = flags_of(
            {
                Flag.OUT_SIGNED: True,
                Flag.MASKED: True,
                Flag.RECORDS: True,
                Flag.STOCHASTIC: factor > 0,
                Flag.KEEP_MASK: True,
            }
        )
        more = {**fields, **widths, "flags": flags, "key": 5 * factor, "factor": factor}
        builder, _ = conv(*common, OutputFormat.CODES, entries, (k, q), **more)
        (packet,) = (found for _, found in read_program(builder.words()) if found.opcode == Opcode.CONV)
        got = packing.unpack_sections(check(device.run(builder)).words, d, packet)
        e = [None, None]
        if factor:  # index 0 and no strides: one hash for all rows and channels
            random = random_rows(np.zeros(1, np.uint32), 5 * factor, d.lanes, factor)[0]
            e = [(r >> 16 - n).astype(object) for r, n in ((random, 3), (reverse_bits(random), 9))]
        for codes, wanted in (
            (got.out, saturated(rounded(w, 3, e[0]), 8)),
            (got.keep, saturated(rounded(x, 9, e[1]), 7)),
            (got.wide, saturated(rounded(w, 16), 8)),
            (got.mask, w > 0),
        ):
            assert codes is not None
            assert np.array_equal(codes[0, :, 0].swapaxes(1, 2), wanted)
        assert got.moments is not None
        assert [numbers.tolist() for numbers in got.moments] == moments_of(w, w)

    for flags, factors in ((Flag(0), x), (Flag.CROSS, np.full_like(x, k))):
        builder, _ = conv(*common, OutputFormat.MOMENTS, entries, (k, q), **fields, flags=int(flags))
        moments = packing.unpack_moments(check(device.run(builder)).words)
        assert [numbers.tolist() for numbers in moments] == moments_of(x, factors)


@pytest.mark.parametrize("name", DESIGNS)
def test_one_group_more_than_32_bits_hold_is_refused(name: str) -> None:
    d = DESIGNS[name]
    for bits in ((12, 8), (9, 11)):
        groups = longest(d, *bits, False)
        for form, more in ((OutputFormat.INT32, {}), (OutputFormat.MOMENTS, {"valid": 1, "last_row": 1})):
            with pytest.raises(PacketError) as caught:
                conv(d, bits, (False, False), groups + 1, form, **more)
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
