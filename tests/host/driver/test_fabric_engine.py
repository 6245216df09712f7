"""The engine's lowering against PyTorch's convolutions in float64, over random geometries, precisions and signs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from host.arrays import I64
from host.devices.device import Result, open_device
from host.driver.fabric_engine import FabricEngine
from host.exact_engine import ExactEngine
from host.grids import host_codes
from host.operands import ConvGeometry, Grid, Operand, Sums
from host.program.builder import read_program
from hw.contract import Flag, Opcode, Target
from hw.design import load_design
from hw.networks import PRODUCTS
from hw.packet import Packet
from sw_model.quantize.affine import affine_grid

SMALL = load_design("sim-small")
BIG = load_design("zc706")
DEVICES = {d.name: open_device("reference", d) for d in (SMALL, BIG)}


def make_grid(bits: int, signed: bool, key: int | None = None) -> Grid:
    zero = 0.0 if signed else -0.37
    return Grid(bits, signed, np.asarray(0.043, np.float32), np.asarray(zero, np.float32), key)


def make_operand(rng: np.random.Generator, shape: tuple[int, ...], grid: Grid, values: bool, extreme: bool) -> Operand:
    low, high = grid.limits
    if values:
        x = (rng.integers(low, high + 1, size=shape) + rng.random(shape)) * float(grid.scale) + float(grid.zero)
        return Operand(grid, values=x.astype(np.float32))
    codes = rng.choice([low, high], size=shape) if extreme else rng.integers(low, high + 1, size=shape)
    return Operand(grid, codes=codes.astype(np.int32))


def truth(product: str, a: I64, b: I64, m: ConvGeometry) -> Sums:
    """The sums by PyTorch, in float64: exact for these sizes."""
    options = {"stride": m.stride, "padding": m.padding}

    def t(x: I64) -> torch.Tensor:
        return torch.from_numpy(x.astype(np.float64))

    weight_shape = (m.out_channels, m.in_channels, *m.kernel)
    input_shape = (m.batch, m.in_channels, *m.in_hw)

    def run(a: I64, b: I64) -> I64:
        if product == "forward":
            out = torch.nn.functional.conv2d(t(a), t(b), **options)
        elif product == "input_gradient":
            out = torch.nn.grad.conv2d_input(input_shape, t(b), t(a), **options)
        else:
            out = torch.nn.grad.conv2d_weight(t(a), weight_shape, t(b), **options)
        return np.rint(out.numpy()).astype(np.int64)

    one_a, one_b = np.ones_like(a), np.ones_like(b)
    return Sums(run(a, b), run(a, one_b), run(one_a, b), run(one_a, one_b))


def shapes(product: str, m: ConvGeometry) -> tuple[tuple[int, ...], tuple[int, ...]]:
    x = (m.batch, m.in_channels, *m.in_hw)
    w = (m.out_channels, m.in_channels, *m.kernel)
    g = (m.batch, m.out_channels, *m.out_hw)
    return {"forward": (x, w), "input_gradient": (g, w), "weight_gradient": (x, g)}[product]


def compare(engine: FabricEngine, product: str, a: Operand, b: Operand, m: ConvGeometry) -> None:
    got = getattr(engine, product)(a, b, m)
    want = truth(product, host_codes(a), host_codes(b), m)
    assert got.dot.shape == want.dot.shape
    for name in ("dot", "a_sum", "b_sum", "count"):
        have = np.broadcast_to(getattr(got, name), want.dot.shape)
        assert np.array_equal(have, getattr(want, name)), f"{product} {name} {m}"


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, str, ConvGeometry, tuple[Grid, Grid], tuple[bool, bool], bool, int]:
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (5, 5), (7, 7), (1, 3), (5, 2), (2, 2), (4, 6)]))
    stride = draw(st.sampled_from([1, 1, 2, 2, 3]))
    padding = draw(st.integers(0, 3))
    least = [max(1, k - 2 * padding) for k in kernel]
    hw = (draw(st.integers(least[0], 12)), draw(st.integers(least[1], draw(st.sampled_from([6, 14, 40])))))
    if draw(st.integers(0, 5)) == 0:
        kernel, stride, padding, hw = (1, 1), 1, 0, (1, 1)
    m = ConvGeometry(
        draw(st.integers(1, 5)), draw(st.integers(1, 20)), draw(st.integers(1, 20)), hw, kernel, stride, padding
    )
    grids = []
    for _ in range(2):
        bits = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 8, 12, 16]))
        key = draw(st.one_of(st.none(), st.integers(0, 2**32 - 1)))
        grids.append(make_grid(bits, draw(st.booleans()), key))
    values = (draw(st.booleans()), draw(st.booleans()))
    design = draw(st.sampled_from(sorted(DEVICES)))
    return (
        draw(st.sampled_from(PRODUCTS)),
        design,
        m,
        (grids[0], grids[1]),
        values,
        draw(st.booleans()),
        draw(st.integers(0, 99)),
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases())
def test_any_geometry_matches_pytorch(
    case: tuple[str, str, ConvGeometry, tuple[Grid, Grid], tuple[bool, bool], bool, int],
) -> None:
    product, design, m, grids, values, extreme, seed = case
    rng = np.random.default_rng(seed)
    a_shape, b_shape = shapes(product, m)
    a = make_operand(rng, a_shape, grids[0], values[0], extreme)
    b = make_operand(rng, b_shape, grids[1], values[1], extreme)
    compare(FabricEngine(DEVICES[design]), product, a, b, m)


LARGE = {
    # name: geometry, bits of a and b; chosen so that a limit of the small design is passed
    "more channels than buffers hold": (ConvGeometry(2, 300, 40, (4, 4), (3, 3), 1, 1), 16, 16),
    "more groups than a packet has": (ConvGeometry(1, 530, 9, (2, 2), (1, 1), 1, 0), 1, 2),
    "more output channels than accumulators": (ConvGeometry(3, 70, 90, (5, 5), (3, 3), 1, 1), 3, 4),
    "images taller than the buffer": (ConvGeometry(1, 20, 3, (530, 3), (3, 3), 1, 1), 8, 3),
    "images taller and wider": (ConvGeometry(2, 9, 9, (150, 50), (3, 3), 1, 1), 16, 2),
    "large kernel, stride 2": (ConvGeometry(2, 3, 10, (37, 45), (7, 7), 2, 3), 8, 8),
    "linear layer with many rows": (ConvGeometry(200, 70, 30, (1, 1)), 8, 8),
    "all output channels in every phase": (ConvGeometry(2, 24, 17, (9, 11), (3, 3), 2, 1), 5, 6),
    "stride 2, taller and wider": (ConvGeometry(2, 9, 20, (250, 70), (3, 3), 2, 1), 16, 16),
    "stride 2, more channels than buffers hold": (ConvGeometry(1, 70, 530, (4, 4), (3, 3), 2, 1), 16, 16),
}


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", LARGE)
def test_products_beyond_every_limit(name: str, product: str) -> None:
    m, a_bits, b_bits = LARGE[name]
    rng = np.random.default_rng(1)
    a_shape, b_shape = shapes(product, m)
    for values, key in ((False, None), (True, None), (True, 99)):
        a = make_operand(rng, a_shape, make_grid(a_bits, False, key), values, False)
        b = make_operand(rng, b_shape, make_grid(b_bits, True), False, False)
        compare(FabricEngine(DEVICES["sim-small"], program_words=20_000), product, a, b, m)


def test_gradients_at_the_end_of_the_accumulators_are_read_and_cleared_in_time() -> None:
    """16 x 16 bits at their largest codes: more than 2**47 in all, so it must be read several times."""
    m = ConvGeometry(600, 1, 1, (16, 16), (1, 1))
    x = np.full((600, 1, 16, 16), 65535)
    grid = make_grid(16, False)
    sums = FabricEngine(DEVICES["sim-small"]).weight_gradient(Operand(grid, codes=x), Operand(grid, codes=x), m)
    assert int(sums.dot[0, 0, 0, 0]) == x.size * 65535**2 > 1 << 47


def test_recorder_replays_and_meter_adds_up() -> None:
    m = ConvGeometry(3, 10, 12, (9, 9), (3, 3), 2, 1)
    rng = np.random.default_rng(0)
    seen: list[tuple[npt.NDArray[np.uint64], Result]] = []
    engine = FabricEngine(
        open_device("reference", SMALL), recorder=lambda words, result: seen.append((words, result)), program_words=3000
    )
    for product in PRODUCTS:
        a_shape, b_shape = shapes(product, m)
        grid = make_grid(4, False)
        a, b = (make_operand(rng, shape, grid, False, False) for shape in (a_shape, b_shape))
        compare(engine, product, a, b, m)
    assert [row["product"] for row in engine.meter.rows] == list(PRODUCTS)
    totals = engine.meter.totals
    assert totals["PROGRAMS"] == len(seen) == sum(int(row["PROGRAMS"]) for row in engine.meter.rows)
    assert totals["PRODUCTS"] == 3
    assert totals["WORDS_IN"] == sum(words.size for words, _ in seen)
    assert totals["WORDS_OUT"] == sum(result.words.size + 2 for _, result in seen)
    replay = open_device("reference", SMALL)
    for words, result in seen:
        again = replay.run(words)
        assert np.array_equal(again.words, result.words)
        assert again.counters == result.counters


def test_values_that_are_not_finite_are_refused_before_anything_is_sent() -> None:
    m = ConvGeometry(1, 1, 1, (3, 3), (3, 3), 1, 1)
    x = np.zeros((1, 1, 3, 3), dtype=np.float32)
    w = Operand(make_grid(2, False), codes=np.ones((1, 1, 3, 3), dtype=np.int64))
    engine, packets = recording("sim-small")
    good = engine.forward(Operand(make_grid(3, False), values=x), w, m)
    count = len(packets)
    bad = x.copy()
    bad[0, 0, 1, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        engine.forward(Operand(make_grid(3, False), values=bad), w, m)
    assert len(packets) == count
    again = engine.forward(Operand(make_grid(3, False), values=x), w, m)
    assert np.array_equal(again.dot, good.dot)
    with pytest.raises(ValueError, match="geometry asks for"):
        engine.forward(Operand(make_grid(3, False), values=x[:, :, :2]), w, m)
    with pytest.raises(ValueError, match=r"outside 0\.\.3 of 2 unsigned bits"):
        engine.forward(Operand(make_grid(3, False), values=x), Operand(w.grid, codes=w.codes + 3), m)  # type: ignore[operator]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from([((1, 1), 0), ((3, 3), 1), ((3, 3), 0), ((5, 5), 2)]),
    st.sampled_from([1, 1, 2, 2, 3]),
    st.sampled_from([(1, 1), (4, 4), (8, 8), (13, 7), (6, 40)]),
    st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(1, 20)),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.booleans()] * 5),
    st.sampled_from(sorted(DEVICES)),
    st.integers(0, 99),
)
def test_fused_backward_equals_its_parts(kernel, stride, hw, sizes, bits, options, design, seed) -> None:  # type: ignore[no-untyped-def]
    m = ConvGeometry(sizes[0], sizes[1], sizes[2], hw, kernel[0], stride, kernel[1])
    if min(hw) + 2 * m.padding < m.kernel[0]:
        return
    rng = np.random.default_rng(seed)
    x_shape, w_shape = shapes("forward", m)
    g_shape, _ = shapes("input_gradient", m)
    x_values, g_values, x_signed, g_signed, stochastic = options
    x = make_operand(rng, x_shape, make_grid(bits[0], x_signed), x_values, False)
    g = make_operand(rng, g_shape, make_grid(bits[1], g_signed, 7 if stochastic else None), g_values, False)
    w = make_operand(rng, w_shape, make_grid(bits[2], True), False, False)
    engine = FabricEngine(DEVICES[design])
    got = engine.backward(x, g, w, m)
    want = (
        truth("input_gradient", host_codes(g), host_codes(w), m),
        truth("weight_gradient", host_codes(x), host_codes(g), m),
    )
    for mine, real in zip(got, want, strict=True):
        for name in ("dot", "a_sum", "b_sum", "count"):
            assert np.array_equal(np.broadcast_to(getattr(mine, name), real.dot.shape), getattr(real, name)), name


# where the input gradient does not take channel groups in pairs, which the weight gradient cannot read
@pytest.mark.parametrize(
    ("kernel", "stride", "design"), [(3, 1, "sim-small"), (3, 2, "zc706"), (1, 2, "sim-small"), (1, 3, "sim-small")]
)
def test_fused_backward_sends_the_gradient_once(kernel: int, stride: int, design: str) -> None:
    m = ConvGeometry(32, 16, 16, (8, 8), (kernel, kernel), stride, kernel // 2)
    rng = np.random.default_rng(3)
    x = make_operand(rng, shapes("forward", m)[0], make_grid(8, False), True, False)
    g = make_operand(rng, shapes("input_gradient", m)[0], make_grid(8, False, 5), True, False)
    w = make_operand(rng, shapes("forward", m)[1], make_grid(8, True), False, False)
    fused, apart = FabricEngine(DEVICES[design]), FabricEngine(DEVICES[design])
    fused.backward(x, g, w, m)
    apart.input_gradient(g, w, m)
    apart.weight_gradient(x, g, m)
    assert [row["product"] for row in fused.meter.rows] == ["backward"]
    assert fused.meter.totals["PROGRAMS"] == 1
    saved = apart.meter.totals["WORDS_IN"] - fused.meter.totals["WORDS_IN"]
    assert saved > 0.9 * g.values.size * 8 / 64  # type: ignore[union-attr]
    assert fused.meter.totals["WORDS_OUT"] < apart.meter.totals["WORDS_OUT"]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("stochastic", [False, True])
def test_same_sums_as_the_software_model(stride: int, stochastic: bool) -> None:
    """Whatever the rounding."""
    m = ConvGeometry(6, 10, 12, (8, 8), (3, 3), stride, 1)
    rng = np.random.default_rng(8)
    grid = affine_grid(torch.from_numpy(rng.normal(size=50).astype(np.float32)), 5, key=77 if stochastic else None)
    w = Operand(make_grid(4, False), codes=rng.integers(0, 16, size=(12, 10, 3, 3)))
    x, g = (
        Operand(grid, values=rng.normal(size=shape).astype(np.float32)) for shape in ((6, 10, 8, 8), (6, 12, *m.out_hw))
    )
    fabric, software = FabricEngine(DEVICES["sim-small"]), ExactEngine()
    for product, a, b in (("forward", x, w), ("input_gradient", g, w), ("weight_gradient", x, g)):
        mine, theirs = getattr(fabric, product)(a, b, m), getattr(software, product)(a, b, m)
        for name in ("dot", "a_sum", "b_sum", "count"):
            assert getattr(mine, name).shape == getattr(theirs, name).shape
            assert np.array_equal(getattr(mine, name), getattr(theirs, name)), (product, name)


# -- how products are lowered ---------------------------------------------------------------------------------------


def sent(words: npt.NDArray[np.uint64]) -> Iterator[Packet]:
    """Packets of a program."""
    return (packet for _, packet in read_program(words))


def recording(design: str, **options: bool) -> tuple[FabricEngine, list[Packet]]:
    """An engine, and the packets it will send."""
    packets: list[Packet] = []
    device = open_device("reference", load_design(design))
    return FabricEngine(device, recorder=lambda words, _: packets.extend(sent(words)), **options), packets


@pytest.mark.parametrize("hw", [(8, 8), (2, 2), (12, 70), (190, 6)])
@pytest.mark.parametrize("kind", ["codes", "values", "stochastic"])
def test_three_by_three_at_stride_two_runs_at_full_rate(hw: tuple[int, int], kind: str) -> None:
    m = ConvGeometry(3, 20, 9, hw, (3, 3), 2, 1)
    rng = np.random.default_rng(4)
    for bits in (3, 16):
        grid = make_grid(bits, bits == 3, 5 if kind == "stochastic" else None)
        x = make_operand(rng, (3, 20, *hw), grid, kind != "codes", False)
        w = make_operand(rng, (9, 20, 3, 3), make_grid(4, True), False, False)
        engine, packets = recording("sim-small")
        compare(engine, "forward", x, w, m)
        convs = [p for p in packets if p.opcode == Opcode.CONV]
        native = [bool(p.flags & Flag.STRIDE_2 and p.flags & Flag.A_SUM) for p in convs]
        assert all(native)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 12), st.one_of(st.integers(1, 14), st.integers(60, 80))),
    st.tuples(st.integers(1, 9), st.integers(1, 20), st.integers(1, 60)),
    st.tuples(st.integers(1, 16), st.integers(1, 16)),
    st.tuples(*[st.booleans()] * 4),
    st.sampled_from(sorted(DEVICES)),
    st.integers(0, 99),
)
def test_strided_input_gradients_match_pytorch(hw, sizes, bits, options, design, seed) -> None:  # type: ignore[no-untyped-def]
    """Even and odd sizes, side by side and cut, whole and broken pairs of channel groups."""
    m = ConvGeometry(*sizes, hw, (3, 3), 2, 1)
    rng = np.random.default_rng(seed)
    values, g_signed, w_signed, extreme = options
    g_shape, w_shape = shapes("input_gradient", m)
    g = make_operand(rng, g_shape, make_grid(bits[0], g_signed), values, extreme)
    w = make_operand(rng, w_shape, make_grid(bits[1], w_signed), False, extreme)
    compare(FabricEngine(DEVICES[design]), "input_gradient", g, w, m)


@pytest.mark.parametrize(("channels", "pairs"), [(8, 0), (9, 1), (16, 1), (17, 2), (40, 3)])
@pytest.mark.parametrize("kind", ["codes", "values", "stochastic"])
def test_strided_input_gradients_contract_two_groups_at_once(channels: int, pairs: int, kind: str) -> None:
    m = ConvGeometry(5, 16, channels, (8, 8), (3, 3), 2, 1)
    rng = np.random.default_rng(4)
    g_shape, w_shape = shapes("input_gradient", m)
    w = make_operand(rng, w_shape, make_grid(8, True), False, False)
    groups = -(-channels // SMALL.channels)
    engine, packets = recording("sim-small")
    g = make_operand(rng, g_shape, make_grid(8, True, 7 if kind == "stochastic" else None), kind != "codes", False)
    compare(engine, "input_gradient", g, w, m)
    convs = [p for p in packets if p.opcode == Opcode.CONV]
    assert all(bool(p.flags & Flag.STRIDE_2) == (pairs > 0) for p in convs)
    # 8 phases' groups of results in 4 rows, for each stack of images side by side
    steps = sum(p.images * p.rows * p.out_groups * p.groups for p in convs)
    assert steps == 2 * 4 * 8 * (pairs or groups)


def test_strided_input_gradients_keep_their_loads_where_the_array_saves_less() -> None:
    m = ConvGeometry(2, 16, 32, (8, 8), (3, 3), 2, 1)
    rng = np.random.default_rng(4)
    g_shape, w_shape = shapes("input_gradient", m)
    native = []
    for bits in (2, 8):
        packets: list[Packet] = []
        engine = FabricEngine(DEVICES["zc706"], recorder=lambda words, _, to=packets: to.extend(sent(words)))  # type: ignore[misc]
        g, w = (make_operand(rng, shape, make_grid(bits, True), False, False) for shape in (g_shape, w_shape))
        compare(engine, "input_gradient", g, w, m)
        native += [bool(p.flags & Flag.STRIDE_2) for p in packets if p.opcode == Opcode.CONV]
    assert native == [False, True]


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (1, 1, 0), (3, 2, 1), (1, 2, 0), (5, 1, 2), (2, 2, 0), (7, 3, 3)]
)
def test_weight_gradients_compute_the_taps_in_use_and_no_others(kernel: int, stride: int, padding: int) -> None:
    m = ConvGeometry(2, 16, 8, (12, 12), (kernel, kernel), stride, padding)
    rng = np.random.default_rng(4)
    x_shape, g_shape = shapes("weight_gradient", m)
    x = make_operand(rng, x_shape, make_grid(2, False), False, False)
    g = make_operand(rng, g_shape, make_grid(3, True), False, False)
    engine, packets = recording("sim-small")
    compare(engine, "weight_gradient", x, g, m)
    # two groups of channels, and the ONES group; a clearing packet opens the sums of each kernel position once
    opening = [p for p in packets if p.opcode == Opcode.WGRAD and p.flags & Flag.CLEAR]
    assert sum(bin(p.taps).count("1") * p.groups for p in opening) == 2 * kernel * kernel
    read = sum(p.rows for p in packets if p.opcode == Opcode.READ)
    assert read == sum(
        bin(p.taps).count("1") * (p.groups + bool(p.flags & Flag.ONES)) * (SMALL.channels + 1) for p in opening
    )


def test_phases_of_a_strided_layer_share_the_loads_of_the_gradient() -> None:
    m = ConvGeometry(2, 16, 8, (12, 12), (3, 3), 2, 1)
    rng = np.random.default_rng(4)
    x_shape, g_shape = shapes("weight_gradient", m)
    x = make_operand(rng, x_shape, make_grid(2, False, 9), True, False)
    g = make_operand(rng, g_shape, make_grid(3, True, 8), True, False)
    engine, packets = recording("sim-small")
    compare(engine, "weight_gradient", x, g, m)
    words = sum(p.payload_words for p in packets if p.opcode == Opcode.LOAD and p.target == Target.G)
    assert words == 6 * 3 * SMALL.row_words  # one virtual row image of both samples


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 300), st.integers(1, 20)),
    st.tuples(st.integers(1, 16), st.integers(1, 16)),
    st.tuples(*[st.booleans()] * 4),
    st.sampled_from(sorted(DEVICES)),
    st.integers(0, 99),
)
def test_matrix_products_either_way(sizes, bits, options, design, seed) -> None:  # type: ignore[no-untyped-def]
    m = ConvGeometry(*sizes, (1, 1))
    rng = np.random.default_rng(seed)
    values, stochastic, a_signed, b_signed = options
    for product in ("forward", "input_gradient"):
        a_shape, b_shape = shapes(product, m)
        a = make_operand(rng, a_shape, make_grid(bits[0], a_signed, 11 if stochastic else None), values, False)
        b = make_operand(rng, b_shape, make_grid(bits[1], b_signed), False, False)
        compare(FabricEngine(DEVICES[design]), product, a, b, m)


@pytest.mark.parametrize(
    ("sizes", "bits", "opcode"), [((20, 512, 8), 4, Opcode.WGRAD), ((128, 64, 64), 2, Opcode.CONV)]
)
def test_long_matrix_products_contract_along_pixels(sizes: tuple[int, int, int], bits: int, opcode: Opcode) -> None:
    m = ConvGeometry(*sizes, (1, 1))
    rng = np.random.default_rng(6)
    engine, packets = recording("sim-small")
    x = make_operand(rng, (*sizes[:2], 1, 1), make_grid(bits, False), True, False)
    w = make_operand(rng, (sizes[2], sizes[1], 1, 1), make_grid(bits, True), False, False)
    compare(engine, "forward", x, w, m)
    assert {p.opcode for p in packets} & {Opcode.CONV, Opcode.WGRAD} == {opcode}


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("stride", [1, 2])
def test_planes_that_are_zero_are_skipped(product: str, stride: int) -> None:
    """By the host's masks, and when the fabric is asked to look."""
    m = ConvGeometry(4, 10, 12, (8, 8), (3, 3), stride, 1)
    rng = np.random.default_rng(2)
    a_shape, b_shape = shapes(product, m)
    grid = make_grid(8, False)
    few = rng.integers(0, 5, size=a_shape)  # three planes of eight
    b = make_operand(rng, b_shape, grid, product == "weight_gradient", False)
    as_values = Operand(grid, values=(few * grid.scale + grid.zero).astype(np.float32))
    skipped = {}
    for name, a, options in (
        ("codes", Operand(grid, codes=few), {}),
        ("values", as_values, {}),
        ("asked", as_values, {"skip_zero": True}),
    ):
        engine, packets = recording("sim-small", **options)
        compare(engine, product, a, b, m)
        skipped[name] = engine.meter.totals["SKIPPED"]
        asked = [bool(p.flags & Flag.SKIP_ZERO) for p in packets if p.opcode in (Opcode.CONV, Opcode.WGRAD)]
        assert all(asked) if options else not any(asked)
    assert skipped["values"] == skipped["codes"] > 0
    assert skipped["asked"] >= skipped["codes"]


@pytest.mark.parametrize(("kernel", "stride", "hw"), [(3, 1, (8, 8)), (3, 2, (8, 8)), (1, 2, (7, 5)), (1, 1, (1, 1))])
@pytest.mark.parametrize("design", sorted(DEVICES))
def test_mixed_batch_is_one_program_with_the_sums_of_separate_calls(
    kernel: int, stride: int, hw: tuple[int, int], design: str
) -> None:
    """As a gated batch runs: each sample once, at the bits of its own option; the weights are loaded once."""
    rng = np.random.default_rng(12)
    w = make_operand(rng, (18, 20, kernel, kernel), make_grid(4, True), False, False)
    members = []
    for batch, a_bits, g_bits, key in ((3, 2, 6, 1), (1, 4, 8, None), (6, 3, 3, 3)):
        m = ConvGeometry(batch, 20, 18, hw, (kernel, kernel), stride, kernel // 2)
        x = make_operand(rng, (batch, 20, *hw), make_grid(a_bits, False), True, False)
        g = make_operand(rng, (batch, 18, *m.out_hw), make_grid(g_bits, False, key), True, False)
        members.append((x, g, m))
    engine, packets = recording(design)
    apart = FabricEngine(DEVICES[design])
    forward = engine.several("forward", [(x, w, m) for x, _, m in members])
    assert engine.meter.totals["PROGRAMS"] == 1
    assert sum(p.opcode == Opcode.LOAD and p.target == Target.W and p.rows > 1 for p in packets) <= 2
    both = engine.backward_mixed(members, w)
    assert engine.meter.totals["PROGRAMS"] == 2
    assert [row["product"] for row in engine.meter.rows] == ["forward", "backward"]
    assert engine.meter.totals["PRODUCTS"] == 6
    for (x, g, m), out, (dx, dw) in zip(members, forward, both, strict=True):
        for got, want in (
            (out, apart.forward(x, w, m)),
            (dx, apart.input_gradient(g, w, m)),
            (dw, apart.weight_gradient(x, g, m)),
        ):
            for name in ("dot", "a_sum", "b_sum", "count"):
                assert np.array_equal(getattr(got, name), getattr(want, name)), name
