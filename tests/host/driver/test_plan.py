"""What the driver sends is the plan that the cost models count: packet by packet, but for what only data can say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from host.devices.reference import ReferenceDevice
from host.driver.fabric_engine import FabricEngine
from host.operands import ConvGeometry, Grid, Operand
from host.program.builder import read_program
from hw.contract import Flag, Opcode, OutputFormat, Target
from hw.design import load_design
from hw.packet import END, Packet
from hw.plan.plan import PROGRAM_WORDS, packets, programs, steps
from hw.plan.product import EpilogueForm, LoweringError, Product, Source

DEVICES = {name: ReferenceDevice(load_design(name)) for name in ("sim-small", "zc706")}
KINDS = ("forward", "input_gradient", "weight_gradient", "backward")


def without_data(packet: Packet) -> Packet:
    return replace(packet, a_planes=0, b_planes=0)


def operand(rng: np.random.Generator, shape: tuple[int, ...], source: Source, form: str = "codes") -> Operand:
    zero = 0.0 if source.signed else 0.5
    key = 9 if form == "stochastic" else None
    grid = Grid(source.bits, source.signed, np.asarray(0.5, np.float32), np.asarray(zero, np.float32), key)
    if form != "codes":
        return Operand(grid, values=rng.normal(size=shape).astype(np.float32))
    low, high = grid.limits
    return Operand(grid, codes=rng.integers(low, high + 1, size=shape))


sources = st.builds(Source, st.integers(1, 16), st.booleans())
forms = st.sampled_from(["codes", "values", "stochastic"])
geometries = st.builds(
    lambda batch, into, out, hw, kernel, stride: ConvGeometry(
        batch, into, out, hw, (kernel, kernel), stride, kernel // 2
    ),
    st.integers(1, 9), st.integers(1, 40), st.integers(1, 40),
    st.sampled_from([(1, 1), (4, 4), (8, 8), (7, 5), (6, 40)]), st.sampled_from([1, 3, 5]), st.integers(1, 3),
)  # fmt: skip


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(KINDS), geometries, st.tuples(sources, sources, st.integers(1, 16)), st.tuples(forms, forms),
    st.sampled_from(sorted(DEVICES)), st.booleans(), st.sampled_from([100, 1000, PROGRAM_WORDS]),
)  # fmt: skip
def test_the_driver_sends_the_plan(kind, m, widths, as_what, name, skip_zero, limit) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(5)
    x, g, w = widths[0], widths[1], Source(widths[2], True)
    sent: list[list[Packet]] = []
    engine = FabricEngine(
        DEVICES[name],
        recorder=lambda words, _: sent.append([packet for _, packet in read_program(words)]),
        skip_zero=skip_zero,
        program_words=limit,
    )
    data = {
        "x": operand(rng, (m.batch, m.in_channels, *m.in_hw), x, as_what[0]),
        "g": operand(rng, (m.batch, m.out_channels, *m.out_hw), g, as_what[1]),
        "w": operand(rng, (m.out_channels, m.in_channels, *m.kernel), w),
    }
    taken = {"forward": "xw", "input_gradient": "gw", "weight_gradient": "xg", "backward": "xgw"}[kind]
    getattr(engine, kind)(*(data[each] for each in taken), m)
    product = Product(kind, m, *(s if each in taken else None for each, s in zip("xwg", (x, w, g), strict=True)))
    cut = programs(engine.design, steps(engine.design, [replace(product, skip_zero=skip_zero)]), limit)
    planned = [[*(packet for step in one for packet in step.packets), END] for one in cut]
    assert [[without_data(p) for p in one] for one in sent] == [[without_data(p) for p in one] for one in planned]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from(KINDS[:2] + KINDS[3:]), geometries, st.tuples(*[st.integers(1, 8)] * 3),
    st.sampled_from([None, EpilogueForm(OutputFormat.CODES, out=4), EpilogueForm(OutputFormat.MOMENTS)]), st.sampled_from(sorted(DEVICES)),
)  # fmt: skip
def test_every_planned_packet_is_one_that_the_fabric_takes(kind, m, bits, behind, name) -> None:  # type: ignore[no-untyped-def]
    """Whatever leaves; and results of one piece over all input channels leave in the format that was asked for."""
    design = DEVICES[name].info.design
    product = Product(kind, m, *(Source(n) for n in bits), sums=False, behind=behind)
    try:
        planned = list(packets(design, [product]))
    except LoweringError:  # the epilogue takes whole sums, unless codes may leave as integers
        assert behind is not None and not behind.plain
        return
    for packet in planned:
        error, reason = packet.check(design)
        assert not error, reason
    convs = [p for p in planned if p.opcode == Opcode.CONV]
    if m.kernel == (3, 3) and m.stride == 1 and bits[0] + bits[2] < 12:
        assert {p.format for p in convs} == {OutputFormat.INT32 if behind is None else behind.form}
    assert not any(p.has(Flag.A_SUM) for p in convs)
    loaded = sum(p.rows for p in planned if p.loads(Target.E))
    assert (loaded > 0) == any(p.has_epilogue for p in convs)
