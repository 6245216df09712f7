"""Our designs as machines that train: cycles, memory traffic, time and energy per layer and product, and whole steps.

Cycles are those of ``hw.model.cycles``, which RTL counters confirm, on the packets of ``hw.model.workload``.  Layers that those
packets do not hold are cut as the driver cuts them:

- groups share dense products of ``C`` channels as far as they fit, one product after the other;
- kernels beyond 3x3 run as pieces of 3x3, strides beyond what a piece takes as extra input channels;
- images wider than the lanes run in tiles of ``L - 2`` columns and a halo of one on either side, images too tall for
  a buffer in tiles of rows;
- rows of a matrix product (also a fully connected layer's batch) lie side by side like pixels, eight rows of L;
- channels are halved until buffers hold them; partial sums over input channels leave as integers;
- operands beyond 16 bits do not exist on the fabric: such products run on the host, in float32;
- a gradient of two widths is sent as two tensors, and the two products that use it are programs of their own.

All samples of a batch have the same widths; where gates choose them per sample, batches are taken to be sorted.
Memory is a bandwidth: a product takes the longer of its cycles and of its traffic.  The first layer has no input
gradient.  **Energies are estimates** from the constants of ``Energy``, which no board has confirmed, and so is all
host work (``Host``); nothing of the host overlaps the fabric, since a batch's statistics are needed before its codes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial

from hw.contract import MAX_BITS, Flag, Opcode, OutputFormat
from hw.cost.bitfusion import BITFUSION
from hw.cost.paper import Fabric
from hw.design import Design
from hw.model.cycles import predict
from hw.model.resources import resources
from hw.model.workload import WorkloadError, backward, forward, lower, words
from hw.networks import PRODUCTS, Bits, ConvShape
from hw.packet import Packet

BATCH = 128  #: samples per step unless said otherwise, the paper's CIFAR batch
STREAMS = ("input", "output")  #: of a fabric: two that are read in lockstep, one that is written
STEPS = ("plain", "recompute")  #: how batch normalisation gets its statistics, see ``training_step``
COUNTED = 256  #: virtual images of a program that are counted packet by packet, see ``_repeated``
_HALO = 2  #: columns or rows of a tile that its neighbours keep

#: usable bandwidth of the processor's DDR in bytes/s, 75 % of the raw rate (3.2 of 4.26 GB/s on the ZC706): XC7Z045
#: DDR3-1066 x32, XC7Z020 as on the PYNQ-Z2 DDR3-1050 x16, XCZU7EV as on the ZCU104 DDR4-2400 x64
MEMORY = {"xc7z045ffg900-2": 3.2e9, "xc7z020clg400-1": 1.575e9, "xczu7ev-ffvc1156-2-e": 14.4e9}
#: usable bandwidth of the DDR beside the programmable logic in bytes/s, where a part's board has one: **unverified**
PL_MEMORY = {"xc7z045ffg900-2": 1e10}
#: where that figure comes from, to be printed with everything that uses it
PL_SOURCE = (
    "10 GB/s for the DDR beside the logic is an assumption, 78 % of the raw 12.8 GB/s of a DDR3-1600 x64 module as on the "
    "ZC706; no board and no simulation of its controller has confirmed it, and the controller's area is not counted"
)
MEMORIES = ("ps", "ps+pl")  #: which memories hold the tensors, see ``bandwidth``


@dataclass(frozen=True)
class Energy:
    """Constants of the energy estimate; assumptions, good for comparing designs and precisions, not watts of a board.

    Attributes:
        mac_pj: per binary multiply-accumulate of a step of the array, adders and accumulator included: 1.7 W for
            73,728 of them at 150 MHz.
        sram_pj: per bit read from block RAM, about 7 pJ for a 72-bit access.
        dram_pj: per bit of DDR traffic, the constant of the BitFusion model so that the two can be compared.
        lut_pj: clock tree and registers, per used LUT and cycle: 0.5 W for 140,000 LUT at 150 MHz.
        static_w: leakage and the processors, as long as the training takes.
    """

    mac_pj: float = 0.15
    sram_pj: float = 0.1
    dram_pj: float = BITFUSION.dram_pj
    lut_pj: float = 0.025
    static_w: float = 1.8


@dataclass(frozen=True)
class Host:
    """Constants of the host's work: two Cortex-A9 at 667 MHz with NEON; assumptions.

    Attributes:
        bytes_per_second: streaming through memory, about half of what the DDR gives the fabric.
        elements_per_second: elementwise passes that are not bound by memory, 0.3 elements per cycle and core.
        macs_per_second: float32 multiply-accumulates of products that the fabric cannot take.
        update_bytes: per weight and step: gradient, weight and momentum read, weight and momentum written, and its code.
    """

    bytes_per_second: float = 1.6e9
    elements_per_second: float = 4e8
    macs_per_second: float = 1e9
    update_bytes: float = 21.0

    def passes(self, elements: float, *bytes_each: float) -> float:
        """Seconds of one elementwise pass for every entry of ``bytes_each``, its bytes per element."""
        return sum(elements * max(each / self.bytes_per_second, 1 / self.elements_per_second) for each in bytes_each)


ENERGY, HOST = Energy(), Host()


@dataclass(frozen=True)
class FabricCost:
    """What a product takes; costs of products that run one after the other add up.

    Attributes:
        macs: multiply-accumulates of the layer.
        cycles: fabric clock cycles from start to done, streams never pausing.
        array_cycles: those in which the array computes.
        read_bytes, write_bytes: traffic from and to DDR.
        on_chip_bytes: read from block RAM.
        seconds: the longer of cycles and traffic, plus the host's time where it computes the product.
        energy_j: estimate, see ``Energy``.
    """

    macs: float = 0.0
    cycles: float = 0.0
    array_cycles: float = 0.0
    read_bytes: float = 0.0
    write_bytes: float = 0.0
    on_chip_bytes: float = 0.0
    seconds: float = 0.0
    energy_j: float = 0.0

    @property
    def ddr_bytes(self) -> float:
        """Traffic in both directions."""
        return self.read_bytes + self.write_bytes

    def __add__(self, other: FabricCost) -> FabricCost:
        return FabricCost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def times(self, factor: float) -> FabricCost:
        """The cost of ``factor`` such products."""
        return FabricCost(*(getattr(self, f.name) * factor for f in fields(self)))


def bandwidth(part: str, memory: str = "ps") -> float:
    """Bytes/s that a part's fabrics share.

    Args:
        part: a key of ``MEMORY``.
        memory: one of ``MEMORIES``: the processor's DDR alone, or with that of the logic, tensors divided between the two
            so that both take equally long (the sum of both bandwidths; the second is unverified, see ``PL_MEMORY``).

    Raises:
        ValueError: unknown memory, or a part whose board has no second one.
    """
    if memory not in MEMORIES:
        raise ValueError(f"memory {memory!r} is unknown; use one of {', '.join(MEMORIES)}")
    if memory == "ps":
        return MEMORY[part]
    if part not in PL_MEMORY:
        raise ValueError(f"the board of {part} has no DDR beside the logic; use memory ps, or {', '.join(PL_MEMORY)}")
    return MEMORY[part] + PL_MEMORY[part]


def total(costs: Iterable[FabricCost]) -> FabricCost:
    """Sum of costs."""
    return sum(costs, FabricCost())


@dataclass(frozen=True)
class _Work:
    """Counts of programs, without time."""

    cycles: float = 0.0
    array: float = 0.0
    read: float = 0.0
    write: float = 0.0

    def __add__(self, other: _Work) -> _Work:
        return _Work(
            self.cycles + other.cycles, self.array + other.array, self.read + other.read, self.write + other.write
        )

    def times(self, n: float) -> _Work:
        return _Work(self.cycles * n, self.array * n, self.read * n, self.write * n)


# -- lowering -------------------------------------------------------------------------------------------------------


def _tiles(size: int, limit: int) -> dict[int, int]:
    """Tile size -> number of tiles that cover ``size`` with a halo of one at every cut."""
    counts: dict[int, int] = {}
    own = 0
    while own < size:
        start = own - 1 if own else 0
        stop = min(start + limit, size)
        counts[stop - start] = counts.get(stop - start, 0) + 1
        own = size if stop == size else stop - 1
    return counts


def lowered_pieces(design: Design, shape: ConvShape, batch: int) -> list[tuple[int, ConvShape, int]]:
    """Dense convolutions that the array takes, buffers aside: (how often, shape, images of each).

    Args:
        design: decides lanes and channels.
        shape: any layer.
        batch: samples per step.
    """
    into, out = shape.in_channels // shape.groups, shape.out_channels // shape.groups
    together = min(shape.groups, max(1, design.channels // max(into, out)))
    runs = -(-shape.groups // together)
    dense = replace(shape, in_channels=into * together, out_channels=out * together, groups=1)
    if shape.kernel == 1 and shape.stride == 1 and not shape.padding and 1 in shape.in_hw:
        pixels = shape.in_hw[0] * shape.in_hw[1]
        if shape.kind == "attention":  # every sample has its own second operand
            runs *= batch
        else:
            pixels *= batch
        rows = -(-pixels // design.lanes)
        height = min(rows, 8)
        return [(runs, replace(dense, in_hw=(height, min(pixels, design.lanes))), -(-rows // height))]
    height, width = shape.out_hw
    if shape.kernel > 3 or shape.stride > 2:
        taps = -(-shape.kernel // shape.stride)
        runs *= (-(-taps // 3)) ** 2
        channels = dense.in_channels * min(shape.stride, shape.kernel) ** 2
        dense = replace(dense, in_channels=channels, kernel=3, stride=1, padding=1, in_hw=(height, width))
    if width <= design.lanes:
        return [(runs, dense, batch)]
    return [(runs * count, _sized(dense, height, size), batch) for size, count in _tiles(width, design.lanes).items()]


def _sized(shape: ConvShape, height: int, width: int) -> ConvShape:
    """The same convolution for another size of its output."""
    return replace(shape, in_hw=(height * shape.stride, width * shape.stride), padding=shape.kernel // 2)


def _overfull(design: Design, shape: ConvShape, bits: Bits, product: str, codes: bool) -> str:
    """The buffer that cannot hold a product, two halves each; empty if all can.  The rules of ``hw.model.workload``."""
    m = lower(design, shape)
    blocks = -(-m.rows // 8)
    over = m.forward if product == "forward" else m.backward(design, bits)
    a, g = 2 * len(m.taps) * m.phase_addresses(bits.a), 2 * blocks * m.out_groups * bits.g
    contracted = 2 * over.addresses(bits.a if product == "forward" else bits.g)
    need_a = contracted + a if product == "both" else a if product == "weight_gradient" else contracted
    if need_a > design.depth_a:
        return "A"
    with_weight = product in ("weight_gradient", "both")
    if with_weight and g > design.depth_g:
        return "G"
    if with_weight and m.gradient_tiles * (design.channels + 1) > design.depth_accumulator:
        return "accumulator"
    if product == "weight_gradient":
        return ""
    results = m.out_groups if product == "forward" else m.phase_groups
    if over.groups * results * bits.w > design.depth_w:
        return "W"
    return "epilogue" if codes and results * design.channels > design.depth_epilogue else ""


def _depth(design: Design, buffer: str) -> int:
    return int(getattr(design, f"depth_{buffer.lower()}"))


def _parts(
    design: Design, shape: ConvShape, bits: Bits, product: str, codes: bool
) -> list[tuple[int, ConvShape, bool]]:
    """A dense piece cut until buffers hold it: (how often, shape, results leave as codes).

    Raises:
        WorkloadError: one group of channels and eight rows do not fit either.
    """
    full = _overfull(design, shape, bits, product, codes)
    if not full:
        return [(1, shape, codes)]
    height, width = shape.out_hw
    if full in "AG" and height > 8:
        limit = max(8, -(-height // 16) * 8)  # halves, in whole blocks of eight rows
        sizes = _tiles(height, limit)
        out = []
        for size, count in sizes.items():
            out += [(count * n, s, c) for n, s, c in _parts(design, _sized(shape, size, width), bits, product, codes)]
        return out
    m = lower(design, shape)
    contracted = {"forward": "in_channels", "input_gradient": "out_channels"}.get(product, "")
    if full in "AG":
        axis = "in_channels" if (full == "A") == (product != "input_gradient") else "out_channels"
    elif full == "epilogue":
        axis = "in_channels" if contracted == "out_channels" else "out_channels"
    else:  # halve what is not contracted first, so that results stay whole
        axis = "in_channels" if m.phase_groups > m.out_groups or contracted == "out_channels" else "out_channels"
    if -(-getattr(shape, axis) // design.channels) < 2:
        axis = "in_channels" if axis == "out_channels" else "out_channels"
    size = getattr(shape, axis)
    if -(-size // design.channels) < 2:
        raise WorkloadError(
            f"layer {shape.name}, {product} at {bits}: buffer {full} of {_depth(design, full)} addresses does not hold one "
            "group of channels; choose a deeper design"
        )
    half = design.channels * -(-size // (2 * design.channels))
    whole = codes and axis != contracted
    out = []
    for part, count in ((half, 2),) if 2 * half == size else ((half, 1), (size - half, 1)):
        smaller = replace(shape, in_channels=part) if axis == "in_channels" else replace(shape, out_channels=part)
        out += [(count * n, s, c) for n, s, c in _parts(design, smaller, bits, product, whole)]
    return out


# -- counting -------------------------------------------------------------------------------------------------------


def _at_once(packet: Packet, free: Collection[str]) -> Packet:
    """The same work for the array, words of the ``free`` streams taking no time."""
    if "input" in free and packet.opcode == Opcode.LOAD:
        return replace(packet, payload_words=0)
    if "output" in free and packet.opcode == Opcode.CONV:
        return replace(packet, format=OutputFormat.CODES, out_bits=0)
    if "output" in free and packet.opcode == Opcode.READ:
        return replace(packet, rows=0)
    return packet


def _widened(design: Design, packet: Packet) -> Packet:
    """A CONV as 64-bit integers if its own format could overflow, which the fabric refuses; else the same packet."""
    if packet.opcode != Opcode.CONV or not packet.overflows(design):
        return packet
    flags = packet.flags & ~(Flag.OUT_SIGNED | Flag.RELU)
    return replace(packet, format=OutputFormat.INT64, out_bits=0, shift=0, flags=flags)


def _program(design: Design, packets: Iterable[Packet], free: Collection[str] = ()) -> _Work:
    """Counts of a program; integer results are as wide as the array's rules demand, which may be 64 bits."""
    listed = [_widened(design, p) for p in packets]
    prediction = predict(design, listed)
    cycles = predict(design, [_at_once(p, free) for p in listed]).cycles if free else prediction.cycles
    return _Work(cycles, prediction.compute, 8 * words(listed), 8 * prediction.store + 16)


def _repeated(images: int, work: Callable[[int], _Work]) -> _Work:
    """Counts of a program over ``images`` virtual images.

    A program repeats itself image by image but for its begin and end, so beyond ``2 * COUNTED`` images its counts follow
    the line through those of two shorter ones; counting every packet would take time that grows with the batch.
    """
    if images <= 2 * COUNTED:
        return work(images)
    short, long = work(COUNTED), work(2 * COUNTED)
    more = (images - COUNTED) / COUNTED
    return short.times(1 - more) + long.times(more)


def _virtual(design: Design, shape: ConvShape, images: int) -> int:
    return -(-images // lower(design, shape).side)


def _alone(
    design: Design, shape: ConvShape, images: int, bits: Bits, product: str, codes: bool, free: Collection[str]
) -> _Work:
    """One product as programs of its own; "statistics" is the output's statistics without the output."""
    work = _Work()
    statistics = product == "statistics"
    for count, part, whole in _parts(design, shape, bits, "forward" if statistics else product, codes):
        n = _virtual(design, part, images)
        if product == "forward" or statistics:  # partial sums leave as integers: they have no statistics yet
            packets = partial(forward, design, part, bits, codes=whole, statistics=statistics and whole)
        else:
            packets = partial(backward, design, part, bits, codes=whole, products=(product,), summed=n)
        work += _repeated(n, lambda images: _program(design, packets(images=images), free)).times(count)  # noqa: B023
    return work


@lru_cache(maxsize=1 << 16)
def _counts(
    design: Design, shape: ConvShape, bits: Bits, batch: int, codes: bool, free: tuple[str, ...]
) -> Mapping[str, _Work]:
    """Counts of the products for a whole batch."""
    first = shape.kind == "stem"
    counts = {product: _Work() for product in PRODUCTS}
    own = {
        p: Bits(bits.w, bits.a, bits.weight_g if bits.weight_g and p == "weight_gradient" else bits.g) for p in PRODUCTS
    }
    for runs, piece, images in lowered_pieces(design, shape, batch):
        work = {
            p: _alone(design, piece, images, own[p], p, codes, free)
            for p in PRODUCTS
            if p != "input_gradient" or not first
        }
        if not first and not bits.weight_g and not _overfull(design, piece, bits, "both", codes):
            # One program for both gradients shares the load of the output gradient; what it saves of the
            # cycles without work, and of the traffic, is spread over both.
            n = _virtual(design, piece, images)
            packets = partial(backward, design, piece, bits, codes=codes, summed=n)
            both = _repeated(n, lambda images: _program(design, packets(images=images), free))  # noqa: B023
            apart = work["input_gradient"] + work["weight_gradient"]
            idle = (both.cycles - both.array) / (apart.cycles - apart.array)
            for p in ("input_gradient", "weight_gradient"):
                one = work[p]
                work[p] = _Work(
                    one.array + (one.cycles - one.array) * idle,
                    one.array,
                    one.read * both.read / apart.read,
                    one.write * both.write / apart.write,
                )
        for p, one in work.items():
            counts[p] += one.times(runs)
    return counts


@lru_cache(maxsize=1 << 14)
def _statistics_counts(design: Design, shape: ConvShape, bits: Bits, batch: int) -> _Work:
    """Counts of a pass over a whole batch that leaves nothing but the statistics of the output."""
    work = _Work()
    for runs, piece, images in lowered_pieces(design, shape, batch):
        work += _alone(design, piece, images, bits, "statistics", True, ()).times(runs)
    return work


@lru_cache(maxsize=4096)
def _geometry(design: Design) -> Design:
    """What cycles depend on; name, clock and accumulators do not matter to them."""
    return replace(design, name="geometry", clock_mhz=100.0, accumulators="lut")


@dataclass(frozen=True)
class FabricMachine:
    """A design in front of a memory, beside a host.

    Attributes:
        design: the fabric.
        fabrics: how many of them share the chip and its memory; each takes its share of a batch.
        batch: samples per step, over which fixed costs are spread.
        bandwidth: of the memory, bytes/s; None for what ``MEMORY`` says about the part.
        energy, host: constants.

    Raises:
        ValueError: a count or a bandwidth that is not positive.
    """

    design: Design
    fabrics: int = 1
    batch: int = BATCH
    bandwidth: float | None = None
    energy: Energy = ENERGY
    host: Host = HOST

    def __post_init__(self) -> None:
        for key, value in (("fabrics", self.fabrics), ("batch", self.batch), ("bandwidth", self.bandwidth)):
            if value is not None and value <= 0:
                raise ValueError(f"{key} is {value}; give a positive number")

    @property
    def clock_hz(self) -> float:
        """Clock of the design."""
        return self.design.clock_mhz * 1e6

    @property
    def memory(self) -> float:
        """Bytes/s that the fabrics share."""
        return self.bandwidth or MEMORY[self.design.part]

    def _cost(self, work: _Work, macs: float, product: str) -> FabricCost:
        d, e = self.design, self.energy
        row = d.lanes * d.channels / 8  # bytes
        step = 18 * row if product == "weight_gradient" else 3 * row + d.channels * d.dot_bits / 8
        per_second = self.clock_hz * self.fabrics
        traffic = work.read + work.write
        seconds = max(work.cycles / per_second, traffic / self.memory)
        picojoules = (
            work.array * d.binary_macs * e.mac_pj
            + 8 * work.array * step * e.sram_pj
            + 8 * traffic * e.dram_pj
            + seconds * per_second * _lut(d) * e.lut_pj
        )
        energy = picojoules * 1e-12 + seconds * e.static_w
        return FabricCost(
            macs, work.cycles / self.fabrics, work.array / self.fabrics, work.read, work.write, work.array * step,
            seconds, energy,
        )  # fmt: skip

    def statistics(self, shape: ConvShape, bits: Bits) -> FabricCost:
        """Cost, for one sample of a batch, of the channel sums of a layer's output and of its squares, output dropped.

        Args:
            shape, bits: the layer and its widths, which the fabric has.

        Raises:
            WorkloadError: not even one group of channels fits the buffers.
        """
        per_fabric = max(1, -(-self.batch // self.fabrics))
        plain = replace(shape, name="statistics")
        work = _statistics_counts(_geometry(self.design), plain, bits, per_fabric)
        return self._cost(work.times(1 / per_fabric), 0.0, "forward")

    def products(
        self, shape: ConvShape, bits: Bits, codes: bool = True, free: tuple[str, ...] = ()
    ) -> dict[str, FabricCost]:
        """Cost of the three products of a layer for one sample of a batch.

        Args:
            shape: the layer; a stem has no input gradient, whose cost is zero.
            bits: its widths.
            codes: results leave as packed codes, else as integer sums (four or eight bytes each).
            free: which of ``STREAMS`` take no time, to see what they cost; traffic is counted all the same.

        Raises:
            WorkloadError: not even one group of channels fits the buffers.
        """
        out: dict[str, FabricCost] = {}
        wide = {p: max(pair) > MAX_BITS for p, pair in shape.operands(bits).items()}
        if shape.kind == "stem":
            wide["input_gradient"] = False
        if not all(wide.values()):
            # Widths that a product on the host has do not matter to the others, but must be some that the fabric has.
            w = bits.a if shape.kind == "attention" else bits.w
            legal = Bits(*(min(n, MAX_BITS) for n in (w, bits.a, bits.g, bits.weight_g)))
            per_fabric = max(1, -(-self.batch // self.fabrics))
            plain = replace(shape, name=f"{shape.kernel}x{shape.kernel} {shape.in_channels}->{shape.out_channels}")
            counts = _counts(_geometry(self.design), plain, legal, per_fabric, codes, free)
        for product in PRODUCTS:
            if wide[product]:
                seconds = shape.macs / self.host.macs_per_second
                out[product] = FabricCost(macs=shape.macs, seconds=seconds, energy_j=seconds * self.energy.static_w)
                continue
            macs = 0 if product == "input_gradient" and shape.kind == "stem" else shape.macs
            out[product] = self._cost(counts[product].times(1 / per_fabric), macs, product)
        return out

    def cost(self, shapes: Sequence[ConvShape], bits: Bits, codes: bool = True) -> FabricCost:
        """Products of all layers for one sample, without anything else of a training step."""
        return total(cost for shape in shapes for cost in self.products(shape, bits, codes).values())

    def cycles(self, shapes: Sequence[ConvShape], bits: Bits) -> float:
        """Time of ``cost`` in clock cycles, waiting for memory included: what ``hw.cost.paper.Fabric`` asks for."""
        return self.cost(shapes, bits).seconds * self.clock_hz

    def step_cycles(self, shapes: Sequence[ConvShape], bits: Bits, normalisation: str = "plain") -> float:
        """Time of a whole training step per sample in clock cycles, see ``training_step``."""
        return training_step(self, shapes, bits, normalisation).seconds * self.clock_hz


@lru_cache(maxsize=4096)
def _lut(design: Design) -> int:
    return resources(design).lut


def paper_fabric(machine: FabricMachine) -> Fabric:
    """A machine as the report on the paper's tables needs it: products alone, and variants with more of a step."""
    return Fabric(
        machine.design.name,
        machine.clock_hz,
        machine.cycles,
        {
            "results as 32-bit sums": lambda s, b: machine.cost(s, b, codes=False).seconds * machine.clock_hz,
            "full step, stored sums": lambda s, b: machine.step_cycles(s, b, "plain"),
            "full step, recomputed sums": lambda s, b: machine.step_cycles(s, b, "recompute"),
        },
    )


# -- whole steps ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepCost:
    """A training step, for one sample.

    Attributes:
        fabric: products, statistics passes included.
        host: what -> seconds (estimates): statistics, normalisation with quantization, both backward, weight update.
        energy_j: estimate; the host counts with the static power that it is part of.
    """

    fabric: FabricCost
    host: Mapping[str, float] = field(default_factory=dict)
    energy_j: float = 0.0

    @property
    def seconds(self) -> float:
        """Fabric and host one after the other."""
        return self.fabric.seconds + sum(self.host.values())


def training_step(
    machine: FabricMachine, shapes: Sequence[ConvShape], bits: Bits, normalisation: str = "plain"
) -> StepCost:
    """Products, batch normalisation, quantization and weight update of one sample.

    Quantization steps use the ranges of earlier steps, so there is no pass for ranges.  Residual sums are not costed.

    - ``plain``: sums leave as integers.  The host reads them for the statistics, then to normalise and write codes;
      backward it reads gradient and sums for the two channel sums, then once more to write the gradient's codes.
    - ``recompute``: the convolution runs twice, first for the channel sums of y and y^2, then with scale and shift
      applied on the way out, as codes.  Backward reads codes in both passes.  The RTL has both passes; no driver puts
      them together yet.

    Layers without normalisation (fully connected, attention) are only quantized, once in each direction.

    Args:
        machine: design, memory, host.
        shapes: the network.
        bits: widths of all layers.
        normalisation: one of ``STEPS``.

    Raises:
        ValueError: unknown normalisation.
    """
    if normalisation not in STEPS:
        raise ValueError(f"normalisation {normalisation!r} is unknown; use one of {', '.join(STEPS)}")
    plain = normalisation == "plain"
    host = dict.fromkeys(
        ("statistics", "normalise and quantize", "backward sums", "backward and quantize", "update"), 0.0
    )
    fabric = FabricCost()
    passes = machine.host.passes
    for shape in shapes:
        products = machine.products(shape, bits, codes=not plain)
        fabric += total(products.values())
        n = shape.outputs
        normalised = shape.kind not in ("fc", "attention")
        codes, gradient = bits.a / 8, (bits.g + bits.weight_g) / 8
        if plain:
            host["normalise and quantize"] += passes(n, 4 + codes)
            if normalised:
                host["statistics"] += passes(n, 4)
                host["backward sums"] += passes(n, 8)
            host["backward and quantize"] += passes(n, (8 if normalised else 4) + gradient)
        elif normalised:
            if max(bits.a, bits.w) <= MAX_BITS:
                fabric += machine.statistics(shape, bits)
            else:  # the host computes the product, and adds up as it goes
                fabric += replace(products["forward"], macs=0.0)
            host["backward sums"] += passes(n, codes + gradient)
            host["backward and quantize"] += passes(n, codes + 2 * gradient)
        if shape.kind != "attention":
            each = machine.host.update_bytes + 4 * (machine.fabrics - 1)  # every fabric brings a gradient
            host["update"] += passes(shape.weights, each) / machine.batch
    energy = fabric.energy_j + sum(host.values()) * machine.energy.static_w
    return StepCost(fabric, host, energy)
