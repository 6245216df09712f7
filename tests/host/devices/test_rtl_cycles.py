"""The cycle model against the RTL's counter, for every kind of product behind every bound: steps, operands, drain, output."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from host.devices.device import check
from host.devices.rtl import RtlDevice
from host.program.builder import ProgramBuilder
from hw.contract import Flag, Opcode, OutputFormat, Target
from hw.design import Design, load_design
from hw.model.cycles import predict
from hw.packet import END, Packet, load_entries, load_tensor, product, read_entries

CODES, MOMENTS = {"format": OutputFormat.CODES}, {"format": OutputFormat.MOMENTS, "valid": 0xFFFF}
SIDES = {"side_bits": 8, "added_bits": 8, "base_added": 128}
RANDOM = {**CODES, "out_bits": 4, "factor": 1}

KINDS: dict[str, dict[str, int]] = {
    "INT32": {},
    "INT64": {"format": OutputFormat.INT64},
    "INT32 and operand sums": {"flags": Flag.A_SUM},
    "few codes": {**CODES, "out_bits": 2},
    "as many codes as the drain takes cycles": {**CODES, "out_bits": 16},
    "most planes": {**CODES, "out_bits": 8, "keep_bits": 8, "wide_bits": 8, "flags": Flag.KEEP_MASK},
    "codes with SIDE": {**CODES, "out_bits": 4, "side_bits": 8},
    "codes with most operands": {**CODES, **SIDES, "out_bits": 4, "flags": Flag.MASKED},
    "codes with RECORDS": {**CODES, "out_bits": 4, "flags": Flag.RECORDS, "valid": 0xFFFF},
    "moments": MOMENTS,
    "moments with most operands": {**MOMENTS, **SIDES, "flags": Flag.MASKED | Flag.CROSS},
    "stochastic, one segment": {**RANDOM, "flags": Flag.STOCHASTIC},
    "stochastic, four segments": {**RANDOM, "flags": Flag.STOCHASTIC, "segment_start": 0x1111},
    "stochastic, a segment for every pixel": {**RANDOM, "flags": Flag.STOCHASTIC, "segment_start": 0xFFFFFFFF},
}


# to build and to run the large RTL takes minutes
@pytest.fixture(scope="module", params=["sim-small", pytest.param("zc706", marks=pytest.mark.slow)])
def rtl(request: pytest.FixtureRequest) -> RtlDevice:
    return RtlDevice(load_design(request.param))


def cycles(rtl: RtlDevice, packets: list[Packet]) -> tuple[int, int]:
    """Cycles of a program with random payloads, and those that the model predicts."""
    rng, design = np.random.default_rng(1), rtl.info.design
    builder = ProgramBuilder(design)
    packets = [packet.sized(design) for packet in packets]
    for packet in packets:
        words = rng.integers(0, 1 << 63, size=packet.payload_words, dtype=np.uint64)
        builder.add(packet, words if words.size else None)
    return check(rtl.run(builder.words())).counters["CYCLES"], predict(design, [*packets, END]).cycles


def loads(design: Design, p: Packet) -> list[Packet]:
    """Of all that a CONV reads."""
    shape = p.images, p.rows, p.out_groups
    packets = [load_tensor(design, Target.A, p.images, p.virtual_rows, p.groups, p.a_bits)]
    packets.append(load_entries(design, Target.W, p.out_groups * p.groups * p.b_bits))
    if p.has_epilogue:
        packets.append(load_entries(design, Target.E, p.out_groups * design.channels))
    if p.side_planes:
        packets.append(load_tensor(design, Target.G, *shape, p.side_planes, base_g=p.base_side))
    if p.has_epilogue and p.added_bits:
        packets.append(load_tensor(design, Target.G, *shape, p.added_bits, base_g=p.base_added))
    return packets


def conv(design: Design, kind: str, rows: int, a_bits: int, b_bits: int, groups: int, out_groups: int) -> Packet:
    shape = {"images": 2, "rows": rows, "groups": groups, "out_groups": out_groups, "a_bits": a_bits, "b_bits": b_bits}
    p = product(Opcode.CONV, **shape, **{name: int(value) for name, value in KINDS[kind].items()})
    return replace(p, segment_start=p.segment_start & (1 << design.lanes) - 1)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 1, 2), (8, 4, 2, 1)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_cycles_of_a_convolution(kind: str, shape: tuple[int, int, int, int], rtl: RtlDevice) -> None:
    p = conv(rtl.info.design, kind, 12, *shape)
    measured, predicted = cycles(rtl, [*loads(rtl.info.design, p), p])
    assert predicted == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", ["INT32", "most planes", "moments", "codes with RECORDS"])
def test_a_product_waits_for_what_the_one_before_leaves_behind(first: str, second: str, rtl: RtlDevice) -> None:
    design = rtl.info.design
    p, q = (conv(design, kind, 8, 2, 2, 1, 2) for kind in (first, second))
    wgrad = product(Opcode.WGRAD, images=2, rows=8, groups=1, out_groups=1, a_bits=2, b_bits=2, flags=Flag.CLEAR)
    needed = {(packet.target, packet.base_b): packet for packet in (*loads(design, p), *loads(design, q))}
    program = [*needed.values(), p, replace(wgrad, taps=0x10), q, p, wgrad, read_entries(40)]
    measured, predicted = cycles(rtl, program)
    assert predicted == pytest.approx(measured, rel=0.03)
