"""Analytic model of BitFusion, the bit-composable accelerator on which the paper costs energy and latency.

The equations are those of the accelerator's published analytic simulator (Sharma et al., "Bit Fusion", ISCA 2018),
restated over arrays: every tiling of a product is an element, every loop order a pass over them.  Energies are
**estimates** from that publication's constants (45 nm synthesis, SRAM model, 15 pJ per DRAM bit); nothing is measured.

Conventions: traffic in bits, time in cycles of ``Machine.clock_hz``, energy in picojoules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
import numpy.typing as npt

from hw.cost.count import layer_mixture
from hw.cost.training_schedule import TrainingSchedule
from hw.networks import PRODUCTS, Bits, ConvShape

_I64 = npt.NDArray[np.int64]

BUFFERS = ("weight", "input", "output")
# Which loops over tiles change the contents of each buffer; the axes are batch, output row, output column, input
# channel and output channel.
_DEPENDS = {"weight": "io", "input": "byxi", "output": "byxo"}


@dataclass(frozen=True)
class Machine:
    """One BitFusion configuration; the defaults are the published one that is compared with Eyeriss.

    Attributes:
        rows: fusion units along the contraction; each multiplies one pair of ``pmax``-bit operands per cycle.
        columns: fusion units along the output channels.
        pmin, pmax: least and greatest operand width that a unit composes, in bits, powers of two.
        clock_hz: clock, in Hz.
        dram_bits: DRAM interface, in bits per cycle.
        weight_bytes, input_bytes, output_bytes: buffers, in bytes; one half of each is filled while the other is used.
        output_bits: width of a partial sum in buffer and DRAM.
        compute_pj: energy of the array in a cycle that is not stalled.
        read_pj, write_pj: energy per bit of the weight, input and output buffer.
        dram_pj: energy per DRAM bit.
    """

    rows: int = 16
    columns: int = 32
    pmin: int = 2
    pmax: int = 8
    clock_hz: float = 500e6
    dram_bits: int = 192
    weight_bytes: int = 65536
    input_bytes: int = 32768
    output_bytes: int = 16384
    output_bits: int = 32
    compute_pj: float = 235.1
    read_pj: tuple[float, float, float] = (0.021, 0.059, 0.033)
    write_pj: tuple[float, float, float] = (0.029, 0.114, 0.073)
    dram_pj: float = 15.0

    def half_bits(self, buffer: str) -> int:
        """Capacity of one half of a buffer, in bits."""
        size = {"weight": self.weight_bytes, "input": self.input_bytes, "output": self.output_bytes}[buffer]
        return size * 4

    def lanes(self, a_bits: int, b_bits: int) -> int:
        """Products that one fusion unit forms per cycle: its operands are split into pieces of 2, 4 or 8 bits."""
        return (self.pmax // max(min(a_bits, self.pmax), self.pmin)) * (
            self.pmax // max(min(b_bits, self.pmax), self.pmin)
        )

    def passes(self, a_bits: int, b_bits: int) -> int:
        """Cycles per product for operands wider than ``pmax``, which are fed in pieces of ``pmax`` bits."""
        return -(-a_bits // self.pmax) * -(-b_bits // self.pmax)


BITFUSION = Machine()


@dataclass(frozen=True)
class ArrayTask:
    """A product as the array runs it: a convolution, or with ``kernel`` and ``out_hw`` of one a matrix product.

    Attributes:
        batch: images, or rows of the streamed operand.
        in_channels, out_channels: contraction length per kernel position, and outputs per pixel.
        out_hw: output height and width, in pixels.
        kernel, stride: the same along both axes.
        a_bits, b_bits: widths of the streamed and of the stationary operand.
        im2col: the host has unrolled the kernel into channels, as it does for the first layer.
    """

    batch: int
    in_channels: int
    out_channels: int
    out_hw: tuple[int, int]
    kernel: int
    stride: int
    a_bits: int
    b_bits: int
    im2col: bool = False


@dataclass(frozen=True)
class Cost:
    """What a task takes under its best tiling and loop order; costs add up.

    Attributes:
        macs: multiply-accumulates issued: with the zeros that spread a strided gradient, without padding to the array.
        cycles: total, of which ``compute_cycles`` have the array busy.
        dram_read_bits, dram_write_bits: traffic to DRAM.
        read_bits, write_bits: traffic of the weight, input and output buffer.
        energy_pj: estimate, see ``Machine``.
        tile: batch, output rows, output columns, input and output channels of a tile; empty for a sum.
        order: loops over tiles from outermost to innermost, one letter each of ``byxio``; empty for a sum.
    """

    macs: int = 0
    cycles: int = 0
    compute_cycles: int = 0
    dram_read_bits: int = 0
    dram_write_bits: int = 0
    read_bits: tuple[int, int, int] = (0, 0, 0)
    write_bits: tuple[int, int, int] = (0, 0, 0)
    energy_pj: float = 0.0
    tile: tuple[int, ...] = ()
    order: str = ""

    def __add__(self, other: Cost) -> Cost:
        r, s = self.read_bits, other.read_bits
        w, x = self.write_bits, other.write_bits
        return Cost(
            self.macs + other.macs,
            self.cycles + other.cycles,
            self.compute_cycles + other.compute_cycles,
            self.dram_read_bits + other.dram_read_bits,
            self.dram_write_bits + other.dram_write_bits,
            (r[0] + s[0], r[1] + s[1], r[2] + s[2]),
            (w[0] + x[0], w[1] + x[1], w[2] + x[2]),
            self.energy_pj + other.energy_pj,
        )

    def times(self, count: int) -> Cost:
        """The cost of running the same task ``count`` times in a row."""
        r, w = self.read_bits, self.write_bits
        return Cost(
            self.macs * count,
            self.cycles * count,
            self.compute_cycles * count,
            self.dram_read_bits * count,
            self.dram_write_bits * count,
            (r[0] * count, r[1] * count, r[2] * count),
            (w[0] * count, w[1] * count, w[2] * count),
            self.energy_pj * count,
            self.tile,
            self.order,
        )


def _up(a: _I64, b: int) -> _I64:
    return -(-a // b)


def _tiles(size: int, unit: int = 1) -> list[int]:
    """Power-of-two multiples of ``unit`` below ``size``, and ``size`` itself."""
    tiles = []
    while unit < size:
        tiles.append(unit)
        unit *= 2
    return [*tiles, size]


@dataclass(frozen=True)
class _Tilings:
    """Every tiling of a task whose tiles fit half of their buffers, as arrays of one length.

    Attributes:
        axes: size of a tile along batch, output rows, output columns, input and output channels.
        tile_bits: of a tile in each buffer.
        counts: tiles along each axis, by its letter.
    """

    axes: tuple[_I64, _I64, _I64, _I64, _I64]
    tile_bits: dict[str, _I64]
    counts: dict[str, _I64]

    @property
    def runs(self) -> _I64:
        """Tiles of the whole task."""
        c = self.counts
        return c["b"] * c["y"] * c["x"] * c["i"] * c["o"]


def _tilings(t: ArrayTask, m: Machine) -> _Tilings:
    """Tiles are powers of two of the batch, of the (square) output, of the input channels and of the array's columns.

    Raises:
        ValueError: not even the smallest tile fits the buffers.
    """
    k2, lanes = t.kernel**2, m.rows * m.lanes(t.a_bits, t.b_bits)
    grid = np.meshgrid(
        _tiles(t.batch),
        _tiles(max(t.out_hw)),
        _tiles(t.in_channels),
        _tiles(t.out_channels, 1 if t.im2col else m.columns),
        indexing="ij",
    )
    b, side, ic, oc = (axis.ravel().astype(np.int64) for axis in grid)
    oh, ow = np.minimum(side, t.out_hw[0]), np.minimum(side, t.out_hw[1])
    if t.im2col:
        input_tile = oh * ow * k2 * ic * b * t.a_bits
    else:
        input_tile = (t.kernel + (oh - 1) * t.stride) * (t.kernel + (ow - 1) * t.stride) * ic * b * t.a_bits
    tile_bits = {
        "weight": _up(k2 * ic, lanes) * lanes * oc * t.b_bits,
        "input": input_tile,
        "output": oh * ow * _up(oc, m.columns) * m.columns * b * m.output_bits,
    }
    fits = np.logical_and.reduce([tile_bits[name] <= m.half_bits(name) for name in BUFFERS])
    if not fits.any():
        least = ", ".join(f"{name} {int(tile_bits[name].min())} of {m.half_bits(name)} bits" for name in BUFFERS)
        raise ValueError(f"no tile of {t} fits half of the buffers ({least}); enlarge the buffers of the machine")
    b, oh, ow, ic, oc = (axis[fits] for axis in (b, oh, ow, ic, oc))
    counts = {
        "b": -(-t.batch // b),
        "y": -(-t.out_hw[0] // oh),
        "x": -(-t.out_hw[1] // ow),
        "i": -(-t.in_channels // ic),
        "o": -(-t.out_channels // oc),
    }
    return _Tilings((b, oh, ow, ic, oc), {name: bits[fits] for name, bits in tile_bits.items()}, counts)


def _inside(t: ArrayTask, m: Machine, tilings: _Tilings) -> tuple[_I64, tuple[_I64, _I64, _I64]]:
    """Cycles of the array, and bits that move between it and the weight, input and output buffer, over all tiles.

    Inside a tile one operand is kept in registers: the cheapest in bits moved decides, by sizes padded to the array.
    """
    b, oh, ow, ic, oc = tilings.axes
    k2, lanes, runs = t.kernel**2, m.rows * m.lanes(t.a_bits, t.b_bits), tilings.runs
    columns = _up(oc, m.columns)
    steps = _up(k2 * ic, lanes) if t.im2col else k2 * _up(ic, lanes)
    compute = runs * b * oh * ow * columns * steps * m.passes(t.a_bits, t.b_bits)

    outputs, contraction, pixels = columns * m.columns, steps * lanes, b * oh * ow
    moved = np.stack(
        [
            contraction * pixels * (t.a_bits + outputs * (t.b_bits + m.output_bits)),
            outputs * pixels * (m.output_bits + contraction * (t.a_bits + t.b_bits)),
            contraction * outputs * (t.b_bits + pixels * (t.a_bits + m.output_bits)),
        ]
    )
    stationary = moved.argmin(axis=0)  # 0: input, 1: output, 2: weight; the first of equals
    macs = k2 * ic * oc * pixels
    inputs = runs * np.where(stationary == 0, k2 * ic * pixels, macs) * t.a_bits
    outs = runs * np.where(stationary == 1, oc * pixels, macs) * m.output_bits
    weights = runs * np.where(stationary == 2, k2 * ic * oc, macs) * t.b_bits
    return compute, (weights, inputs, outs)


def _between(m: Machine, tilings: _Tilings, order: Sequence[str]) -> tuple[dict[str, _I64], dict[str, _I64]]:
    """Bits between DRAM and each buffer under one order of the loops over tiles: in total, and of the first tiles.

    A tile stays in its buffer across inner loops that do not change it, and grows with those that do as long as it fits
    half the buffer.
    """
    total: dict[str, _I64] = {}
    first: dict[str, _I64] = {}
    for name in BUFFERS:
        bits = held = tilings.tile_bits[name]
        grows = np.ones(bits.shape, dtype=bool)
        for axis in reversed(order):
            if axis in _DEPENDS[name]:
                bits = bits * tilings.counts[axis]
                grows = grows & (bits <= m.half_bits(name))
                held = np.where(grows, bits, held)
            else:
                bits = np.where(grows, bits, bits * tilings.counts[axis])
        total[name], first[name] = bits, held
    return total, first


@cache
def best_cost(task: ArrayTask, machine: Machine = BITFUSION) -> Cost:
    """Cost of a task under the tiling and loop order of fewest cycles; energy decides between equals.

    All tilings (:func:`_tilings`) and all orders of the loops over tiles are tried.

    Compute cycles of a tile: ``b * ceil(oc/columns) * oh * ow * K^2 * ceil(ic/(rows*lanes))``, with the kernel inside
    the rounding under im2col.  Total: compute, plus the DRAM time that compute does not hide, plus the time to read the
    first tiles and to write the last ones.

    Raises:
        ValueError: not even the smallest tile fits the buffers.
    """
    t, m = task, machine
    tilings = _tilings(t, m)
    compute, (inner_weight, inner_input, inner_output) = _inside(t, m, tilings)
    # Loops with a single tile for every candidate may stand anywhere, so only the others are permuted.
    moving = [axis for axis, count in tilings.counts.items() if (count > 1).any()]
    idle = "".join(axis for axis in tilings.counts if axis not in moving)
    best: tuple[tuple[int, float], Cost] | None = None
    for order in permutations(moving):
        total, first = _between(m, tilings, order)
        # Output tiles are read, added to and written back, each time the loops come past them.
        reads, writes = total["weight"] + total["input"] + total["output"], total["output"]
        first_reads, last_writes = first["weight"] + first["input"] + first["output"], first["output"]
        middle = _up(reads + writes - first_reads - last_writes, m.dram_bits)
        ends = _up(first_reads, m.dram_bits) + _up(last_writes, m.dram_bits)
        cycles = np.maximum(compute, middle) + ends
        buffer_reads = (inner_weight, inner_input, inner_output + total["output"])
        buffer_writes = (total["weight"], total["input"], inner_output + total["output"])
        energy = compute * m.compute_pj + (reads + writes) * m.dram_pj
        for bits, price in zip((*buffer_reads, *buffer_writes), (*m.read_pj, *m.write_pj), strict=True):
            energy = energy + bits * price
        at = int(np.lexsort((energy, cycles))[0])
        key = (int(cycles[at]), float(energy[at]))
        if best is None or key < best[0]:
            r, w = [int(bits[at]) for bits in buffer_reads], [int(bits[at]) for bits in buffer_writes]
            cost = Cost(
                macs=t.batch * t.out_hw[0] * t.out_hw[1] * t.kernel**2 * t.in_channels * t.out_channels,
                cycles=key[0],
                compute_cycles=int(compute[at]),
                dram_read_bits=int(reads[at]),
                dram_write_bits=int(writes[at]),
                read_bits=(r[0], r[1], r[2]),
                write_bits=(w[0], w[1], w[2]),
                energy_pj=key[1],
                tile=tuple(int(axis[at]) for axis in tilings.axes),
                order="".join(order) + idle,
            )
            best = key, cost
    assert best is not None  # permutations of nothing is one empty order
    return best[1]


def product_tasks(shape: ConvShape, bits: Bits, batch: int = 1) -> dict[str, tuple[int, ArrayTask]]:
    """The three training products of a layer as tasks: product name -> (how often it runs, task).

    Forward is the layer itself.  The input gradient is a convolution of stride 1 with channels swapped, over the
    gradient spread to the size of the input, so a strided layer pays for the zeros in between: the array has no other
    way to run it.  The weight gradient is a matrix product that contracts over all output pixels of the batch, with
    one row per weight of an output channel.  Groups run one after the other, since the array cannot split its columns
    between them.

    Args:
        shape: the layer.
        bits: its bit widths.
        batch: samples per training step.
    """
    widths = shape.operands(bits)
    inputs, outputs = shape.in_channels // shape.groups, shape.out_channels // shape.groups
    runs = shape.groups
    if shape.kind == "attention":  # no operand is shared by the samples
        runs, batch = runs * batch, 1
    out_hw, in_hw, rows = shape.out_hw, shape.in_hw, batch
    if shape.kernel == shape.stride == 1 and shape.padding == 0 and 1 in shape.in_hw:
        # A matrix product: its rows are independent, so they tile like a batch.
        rows, out_hw, in_hw = batch * shape.in_hw[0] * shape.in_hw[1], (1, 1), (1, 1)
    pixels = batch * shape.out_hw[0] * shape.out_hw[1]
    im2col = shape.kind == "stem"
    k, stride = shape.kernel, shape.stride
    return {
        "forward": (runs, ArrayTask(rows, inputs, outputs, out_hw, k, stride, *widths["forward"], im2col)),
        "input_gradient": (runs, ArrayTask(rows, outputs, inputs, in_hw, k, 1, *widths["input_gradient"])),
        "weight_gradient": (runs, ArrayTask(inputs * k * k, pixels, outputs, (1, 1), 1, 1, *widths["weight_gradient"])),
    }


@dataclass(frozen=True)
class ProductCost:
    """Cost of one product of one layer, for a whole batch."""

    layer: str
    product: str
    bits: Bits
    cost: Cost


def training_costs(
    shapes: Sequence[ConvShape],
    bits: Bits | Callable[[ConvShape], Bits],
    batch: int = 1,
    machine: Machine = BITFUSION,
    products: Iterable[str] = PRODUCTS,
) -> list[ProductCost]:
    """Cost of every product of a training step on one batch, run one after the other.

    Args:
        shapes: the network.
        bits: widths for all layers, or a function that gives those of a layer.
        batch: samples per step.
        machine: the configuration.
        products: which products to run, of ``PRODUCTS``; by default all three in every layer, first layer included,
            as the paper counts.

    Raises:
        ValueError: unknown product, non-positive batch, or a layer that fits no tiling.
    """
    wanted = tuple(products)
    for product in wanted:
        if product not in PRODUCTS:
            raise ValueError(f"product {product!r} is unknown; use some of {', '.join(PRODUCTS)}")
    if batch < 1:
        raise ValueError(f"a batch of {batch} samples has no cost; give at least 1")
    rows = []
    for shape in shapes:
        widths = bits(shape) if callable(bits) else bits
        tasks = product_tasks(shape, widths, batch)
        for product in wanted:
            runs, task = tasks[product]
            rows.append(ProductCost(shape.name, product, widths, best_cost(task, machine).times(runs)))
    return rows


def total_cost(rows: Iterable[ProductCost]) -> Cost:
    """Sum of the costs of products that run one after the other."""
    return sum((row.cost for row in rows), Cost())


def scheduled_costs(
    shapes: Sequence[ConvShape],
    schedule: TrainingSchedule,
    batch: int = 1,
    machine: Machine = BITFUSION,
    count: str = "paper",
) -> list[tuple[float, Cost]]:
    """Expected cost of one sample in each stage of a schedule: a list of (epochs, cost), one per stage.

    Where widths vary over samples, every option is costed and weighted by its share, which is exact as long as
    samples of different widths do not share a batch.  Counts of the returned costs are rounded.

    Args:
        shapes: the network.
        schedule: its precisions.
        batch: samples per step, all at the same widths.
        machine: the configuration.
        count: ``paper`` or ``full``, see ``hw.cost.count``.
    """
    stages = []
    for stage in schedule.stages:
        sums = np.zeros(12)
        for shape, mixture in zip(shapes, layer_mixture(shapes, schedule, stage, count), strict=True):
            for share, bits in mixture:
                cost = total_cost(training_costs([shape], bits, batch, machine))
                sums += share / batch * np.array(_numbers(cost))
        n = [round(value) for value in sums[:-1]]
        reads, writes = (n[5], n[6], n[7]), (n[8], n[9], n[10])
        cost = Cost(n[0], n[1], n[2], n[3], n[4], reads, writes, float(sums[-1]))
        stages.append((stage.epochs, cost))
    return stages


def _numbers(cost: Cost) -> tuple[float, ...]:
    head = (cost.macs, cost.cycles, cost.compute_cycles, cost.dram_read_bits, cost.dram_write_bits)
    return (*head, *cost.read_bits, *cost.write_bits, cost.energy_pj)
