"""The cycle model against the RTL's counter, for every kind of product behind every bound: steps, operands, drain, output."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from host.devices.device import check
from host.devices.rtl import RtlDevice
from host.program.builder import ProgramBuilder
from hw.contract import Flag, Opcode, OutputFormat, Target
from hw.design import load_design
from hw.model.cycles import predict
from hw.packet import END, Packet, load_entries, load_tensor, product, read_entries

DESIGN = load_design("sim-small")
LANES = DESIGN.lanes
ALL = (1 << LANES) - 1
FOURS = sum(1 << p for p in range(0, LANES, 4))
CODES, MOMENTS = {"format": OutputFormat.CODES}, {"format": OutputFormat.MOMENTS, "valid": ALL}
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
    "codes with RECORDS": {**CODES, "out_bits": 4, "flags": Flag.RECORDS, "valid": ALL},
    "moments": MOMENTS,
    "moments with most operands": {**MOMENTS, **SIDES, "flags": Flag.MASKED | Flag.CROSS},
    "stochastic, one segment": {**RANDOM, "flags": Flag.STOCHASTIC},
    "stochastic, four segments": {**RANDOM, "flags": Flag.STOCHASTIC, "segment_start": FOURS},
    "stochastic, a segment for every pixel": {**RANDOM, "flags": Flag.STOCHASTIC, "segment_start": ALL},
}


@pytest.fixture(scope="module")
def rtl() -> RtlDevice:
    return RtlDevice(DESIGN)


def cycles(rtl: RtlDevice, packets: list[Packet]) -> tuple[int, int]:
    """Cycles of a program with random payloads, and those that the model predicts."""
    rng = np.random.default_rng(1)
    builder = ProgramBuilder(DESIGN)
    packets = [packet.sized(DESIGN) for packet in packets]
    for packet in packets:
        words = rng.integers(0, 1 << 63, size=packet.payload_words, dtype=np.uint64)
        builder.add(packet, words if words.size else None)
    return check(rtl.run(builder.words())).counters["CYCLES"], predict(DESIGN, [*packets, END]).cycles


def loads(p: Packet) -> list[Packet]:
    """Of all that a CONV reads."""
    shape = p.images, p.rows, p.out_groups
    packets = [load_tensor(DESIGN, Target.A, p.images, p.virtual_rows, p.groups, p.a_bits)]
    packets.append(load_entries(DESIGN, Target.W, p.out_groups * p.groups * p.b_bits))
    if p.has_epilogue:
        packets.append(load_entries(DESIGN, Target.E, p.out_groups * DESIGN.channels))
    if p.side_planes:
        packets.append(load_tensor(DESIGN, Target.G, *shape, p.side_planes, base_g=p.base_side))
    if p.has_epilogue and p.added_bits:
        packets.append(load_tensor(DESIGN, Target.G, *shape, p.added_bits, base_g=p.base_added))
    return packets


def conv(kind: str, rows: int, a_bits: int, b_bits: int, groups: int, out_groups: int) -> Packet:
    shape = {"images": 2, "rows": rows, "groups": groups, "out_groups": out_groups, "a_bits": a_bits, "b_bits": b_bits}
    return product(Opcode.CONV, **shape, **{name: int(value) for name, value in KINDS[kind].items()})


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 1, 2), (8, 4, 2, 1)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_cycles_of_a_convolution(kind: str, shape: tuple[int, int, int, int], rtl: RtlDevice) -> None:
    p = conv(kind, 12, *shape)
    measured, predicted = cycles(rtl, [*loads(p), p])
    assert predicted == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", ["INT32", "most planes", "moments", "codes with RECORDS"])
def test_a_product_waits_for_what_the_one_before_leaves_behind(first: str, second: str, rtl: RtlDevice) -> None:
    p, q = (conv(kind, 8, 2, 2, 1, 2) for kind in (first, second))
    wgrad = product(Opcode.WGRAD, images=2, rows=8, groups=1, out_groups=1, a_bits=2, b_bits=2, flags=Flag.CLEAR)
    needed = {(packet.target, packet.base_b): packet for packet in (*loads(p), *loads(q))}
    program = [*needed.values(), p, replace(wgrad, taps=0x10), q, p, wgrad, read_entries(40)]
    measured, predicted = cycles(rtl, program)
    assert predicted == pytest.approx(measured, rel=0.03)
