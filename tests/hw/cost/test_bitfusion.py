"""The BitFusion model against layers worked by hand, a scalar restatement and the published totals."""

import itertools
import math
import random
import time

import pytest

from hw.cost.bitfusion import (
    BITFUSION,
    BUFFERS,
    ArrayTask,
    Machine,
    best_cost,
    product_tasks,
    total_cost,
    training_costs,
)
from hw.networks import PRODUCTS, Bits, ConvShape, network, transformer_lm

# Stage 1 of a CIFAR ResNet, forward, 8/8 bits.  Worked by hand:
#   compute  32*32 pixels * 9 positions * ceil(16/32) * ceil(16/16)                              =  9,216 cycles
#   tile     8x8 outputs: 64 * 32 columns * 32 bit = 65,536 = half the output buffer; 16 tiles
#   DRAM     weights 144*16*8 = 18,432; inputs 16 tiles of 10*10*16*8 = 204,800; outputs 1,048,576 read and written
#   first    18,432 + one row of input tiles 51,200 + one output tile 65,536 = 135,168           ->    704 cycles
#   last     65,536                                                                              ->    342 cycles
#   between  18,432 + 204,800 + 2,097,152 - 135,168 - 65,536 = 2,119,680 bits                    -> 11,040 cycles
STAGE1 = ArrayTask(1, 16, 16, (32, 32), 3, 1, 8, 8)
# Classifier, forward, 8/8 bits: 4 compute cycles; 5,120 + 512 + 1,024 bits in, 1,024 out; one tile, output stationary.
CLASSIFIER = ArrayTask(1, 64, 10, (1, 1), 1, 1, 8, 8)


def test_stage1_by_hand() -> None:
    cost = best_cost(STAGE1)
    assert cost.compute_cycles == 9_216
    assert cost.cycles == 11_040 + 704 + 342
    assert cost.dram_read_bits == 18_432 + 204_800 + 1_048_576
    assert cost.dram_write_bits == 1_048_576
    assert cost.tile == (1, 8, 8, 16, 16)


def test_classifier_by_hand() -> None:
    cost = best_cost(CLASSIFIER)
    assert (cost.compute_cycles, cost.cycles) == (4, 4 + 35 + 6)
    assert cost.read_bits == (5_120, 5_120, 320 + 1_024)
    assert cost.write_bits == (5_120, 512, 320 + 1_024)
    buffers = 5_120 * (0.021 + 0.059 + 0.029) + 512 * 0.114 + 1_344 * (0.033 + 0.073)
    assert cost.energy_pj == pytest.approx(4 * 235.1 + 7_680 * 15 + buffers)


def test_first_layer_unrolls_its_kernel() -> None:
    # ceil(27/16) = 2 passes of the contraction per pixel instead of 9 kernel positions
    stem = ConvShape("stem", 3, 16, 3, 1, 1, (32, 32), kind="stem")
    assert best_cost(product_tasks(stem, Bits(8, 8, 8))["forward"][1]).compute_cycles == 32 * 32 * 2


@pytest.mark.parametrize(
    ("a", "b", "lanes", "passes"),
    [(8, 8, 1, 1), (4, 8, 2, 1), (4, 4, 4, 1), (2, 2, 16, 1), (1, 2, 16, 1), (3, 4, 4, 1), (6, 6, 1, 1), (16, 8, 1, 2)],
)
def test_operands_round_up_to_whole_pieces(a: int, b: int, lanes: int, passes: int) -> None:
    assert BITFUSION.lanes(a, b) == lanes
    assert BITFUSION.passes(a, b) == passes


def scalar_best(t: ArrayTask, m: Machine) -> tuple[int, float]:
    """Cycles and energy of the best mapping, one tiling and one loop order at a time, without any pruning."""

    def sizes(n: int, unit: int = 1) -> list[int]:
        return [unit << k for k in range(20) if unit << k < n] + [n]

    depends = {"weight": "io", "input": "byxi", "output": "byxo"}
    found = []
    lanes = m.rows * m.lanes(t.a_bits, t.b_bits)
    for b, o, ic, oc in itertools.product(
        sizes(t.batch), sizes(t.out_hw[0]), sizes(t.in_channels), sizes(t.out_channels, 1 if t.im2col else m.columns)
    ):
        wide, deep = math.ceil(oc / m.columns) * m.columns, math.ceil(t.kernel**2 * ic / lanes) * lanes
        side = t.kernel + (o - 1) * t.stride
        tile = {
            "weight": deep * oc * t.b_bits,
            "input": (o * o * t.kernel**2 if t.im2col else side * side) * ic * b * t.a_bits,
            "output": o * o * wide * b * m.output_bits,
        }
        if any(tile[name] > m.half_bits(name) for name in BUFFERS):
            continue
        count = dict(
            zip(
                "byxio",
                [math.ceil(n / k) for n, k in ((t.batch, b), (t.out_hw[0], o), (t.out_hw[0], o))]
                + [math.ceil(t.in_channels / ic), math.ceil(t.out_channels / oc)],
                strict=True,
            )
        )
        runs = math.prod(count.values())
        steps = math.ceil(t.kernel**2 * ic / lanes) if t.im2col else t.kernel**2 * math.ceil(ic / lanes)
        compute = runs * b * o * o * (wide // m.columns) * steps * m.passes(t.a_bits, t.b_bits)
        pixels, long = b * o * o, steps * lanes
        moved = (
            long * pixels * (t.a_bits + wide * (t.b_bits + m.output_bits)),
            wide * pixels * (m.output_bits + long * (t.a_bits + t.b_bits)),
            long * wide * (t.b_bits + pixels * (t.a_bits + m.output_bits)),
        )
        kept = moved.index(min(moved))
        k_ic, macs = t.kernel**2 * ic, t.kernel**2 * ic * oc * pixels
        inner = {
            "weight": runs * (k_ic * oc if kept == 2 else macs) * t.b_bits,
            "input": runs * (k_ic * pixels if kept == 0 else macs) * t.a_bits,
            "output": runs * (oc * pixels if kept == 1 else macs) * m.output_bits,
        }
        for order in itertools.permutations("byxio"):
            traffic, held = {}, {}
            for name in BUFFERS:
                bits = held[name] = tile[name]
                fits = True
                for axis in reversed(order):
                    if not fits or axis in depends[name]:
                        bits *= count[axis]
                        fits = fits and bits <= m.half_bits(name)
                        if fits:
                            held[name] = bits
                traffic[name] = bits
            dram = sum(traffic.values()) + traffic["output"]
            middle = math.ceil((dram - sum(held.values()) - held["output"]) / m.dram_bits)
            ends = math.ceil(sum(held.values()) / m.dram_bits) + math.ceil(held["output"] / m.dram_bits)
            energy = compute * m.compute_pj + dram * m.dram_pj
            for i, name in enumerate(BUFFERS):
                again = inner[name] if name == "output" else 0
                loaded = traffic[name] if name == "output" else 0
                energy += (inner[name] + loaded) * m.read_pj[i] + (traffic[name] + again) * m.write_pj[i]
            found.append((max(compute, middle) + ends, energy))
    return min(found)


def test_vector_search_equals_scalar_search() -> None:
    draw = random.Random(6)
    small = Machine(weight_bytes=4096, input_bytes=2048, output_bytes=8192)
    for case in range(12):
        task = ArrayTask(
            batch=draw.choice([1, 3]),
            in_channels=draw.choice([3, 16, 40]),
            out_channels=draw.choice([10, 64, 100]),
            out_hw=(side := draw.choice([1, 5, 16]), side),
            kernel=draw.choice([1, 3]),
            stride=draw.choice([1, 2]),
            a_bits=draw.choice([3, 6, 8, 12]),
            b_bits=draw.choice([2, 4, 8]),
            im2col=case % 4 == 0,
        )
        cost = best_cost(task, small)
        cycles, energy = scalar_best(task, small)
        assert (cost.cycles, cost.energy_pj) == (cycles, pytest.approx(energy)), task


def test_resnet38_reaches_the_published_simulators_figures() -> None:
    """A re-run of the published simulator gave 240 min and 22.7 kJ over the 151 epochs that Table 3 counts."""
    start = time.perf_counter()
    shapes = network("resnet38")
    samples = 151 * 50_000
    cost = total_cost(training_costs(shapes, Bits(8, 8, 8)))
    minutes = cost.cycles * samples / BITFUSION.clock_hz / 60
    assert minutes == pytest.approx(240, rel=0.10)
    assert cost.energy_pj * samples * 1e-15 == pytest.approx(22.7, rel=0.10)
    low = total_cost(training_costs(shapes, Bits(w=4, a=4, g=8)))
    middle = total_cost(training_costs(shapes, Bits(w=4, a=6, g=8)))
    assert low.cycles / cost.cycles == pytest.approx(0.79, abs=0.04)
    assert middle.cycles / cost.cycles == pytest.approx(0.88, abs=0.04)
    assert time.perf_counter() - start < 10


def test_every_network_maps() -> None:
    for shapes in (network("mobilenetv2"), network("resnet18"), transformer_lm(layers=1)):
        rows = training_costs(shapes, Bits(8, 8, 8), batch=2)
        assert len(rows) == 3 * len(shapes)
        forward = [row.cost for row in rows if row.product == "forward"]
        assert sum(cost.macs for cost in forward) == 2 * sum(shape.macs for shape in shapes)
        assert all(row.cost.cycles >= row.cost.compute_cycles > 0 for row in rows)


def test_fewer_bits_never_cost_more_compute() -> None:
    shapes = network("resnet20")
    compute = [total_cost(training_costs(shapes, Bits(b, b, b))).compute_cycles for b in (2, 4, 8, 16)]
    assert compute == sorted(compute)


def test_widths_may_differ_by_layer() -> None:
    shapes = network("mobilenetv2")
    rows = training_costs(
        shapes, lambda s: Bits(8, 8, 16) if s.kind == "depthwise" else Bits(4, 4, 6), products=PRODUCTS[:1]
    )
    assert {row.bits for row in rows} == {Bits(8, 8, 16), Bits(4, 4, 6)}
    assert {row.product for row in rows} == {"forward"}


def test_errors_name_the_cause() -> None:
    with pytest.raises(ValueError, match="no tile of"):
        best_cost(STAGE1, Machine(output_bytes=64))
    with pytest.raises(ValueError, match="product 'backward' is unknown"):
        training_costs(network("resnet8"), Bits(8, 8, 8), products=["backward"])
    with pytest.raises(ValueError, match="batch of 0"):
        training_costs(network("resnet8"), Bits(8, 8, 8), batch=0)
    with pytest.raises(ValueError, match="w/a/g"):
        Bits.parse("8,8")
