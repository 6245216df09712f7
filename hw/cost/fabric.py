"""Our designs as machines that train: cycles, memory traffic, time and energy per layer and product.

Cycles are those of ``hw.model.cycles``, which RTL counters confirm, on the packets that the driver sends
(``hw.plan.schedule``), with operands as codes and without operand sums.  Results leave as codes, or as integers where
they are partial sums.  Beside that:

- operands beyond 16 bits do not exist on the fabric: such products run on the host, in float32;
- a gradient of two widths is sent as two tensors, and the two products that use it are programs of their own.

All samples of a batch have the same widths; where gates choose them per sample, batches are taken to be sorted.
Memory is a bandwidth: a product takes the longer of its cycles and of its traffic.  The first layer has no input
gradient.  **Energies are estimates** from the constants of ``Energy``, which no board has confirmed, and so is all
host work (``Host``); nothing of the host overlaps the fabric, since a batch's statistics are needed before its codes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

from hw.boards import BOARDS
from hw.contract import HEADER_WORDS, MAX_BITS, Flag, Opcode, OutputFormat
from hw.cost.bitfusion import BITFUSION
from hw.design import Design
from hw.model.cycles import predict
from hw.model.resources import resources
from hw.networks import PRODUCTS, Bits, ConvShape
from hw.packet import Packet
from hw.plan.product import LoweringError, Product
from hw.plan.training_products import CODES, INTEGERS, Form, layer_products, program

BATCH = 128  #: samples per step unless said otherwise, the paper's CIFAR batch
STREAMS = ("input", "output")  #: of a fabric: two that are read in lockstep, one or two that are written
COUNTED = 2048  #: samples of a program that are counted packet by packet, see ``_repeated``

#: where a board's ``logic_memory`` comes from, to be printed with everything that uses it
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
        channel_bytes: per channel and step where the fabric normalises: moments of both directions read, factors of four
            passes made and written as entries, each with some ten operations on eight bytes.
    """

    bytes_per_second: float = 1.6e9
    elements_per_second: float = 4e8
    macs_per_second: float = 1e9
    update_bytes: float = 21.0
    channel_bytes: float = 400.0

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
        part: a key of :data:`hw.boards.BOARDS`.
        memory: one of ``MEMORIES``: the processor's DDR alone, or with that of the logic, tensors divided between the two
            so that both take equally long (the sum of both bandwidths; the second is unverified, see ``PL_SOURCE``).

    Raises:
        ValueError: unknown memory, or a part whose board has no second one.
    """
    if memory not in MEMORIES:
        raise ValueError(f"memory {memory!r} is unknown; use one of {', '.join(MEMORIES)}")
    if memory == "ps":
        return BOARDS[part].memory
    if not BOARDS[part].logic_memory:
        others = ", ".join(name for name, board in BOARDS.items() if board.logic_memory)
        raise ValueError(f"the board of {part} has no DDR beside the logic; use memory ps, or {others}")
    return BOARDS[part].memory + BOARDS[part].logic_memory


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


# -- counting -------------------------------------------------------------------------------------------------------


def _at_once(packet: Packet, free: Collection[str]) -> Packet:
    """The same work for the array, words of the ``free`` streams taking no time."""
    if "input" in free and packet.opcode == Opcode.LOAD:
        return replace(packet, payload_words=0)
    if "output" in free and packet.opcode == Opcode.CONV:
        flags = packet.flags & ~(Flag.KEEP_MASK | Flag.RECORDS)
        return replace(packet, format=OutputFormat.CODES, out_bits=0, keep_bits=0, wide_bits=0, flags=flags)
    if "output" in free and packet.opcode == Opcode.READ:
        return replace(packet, rows=0)
    return packet


def _program(design: Design, product: Product, count: int, free: Collection[str]) -> _Work:
    """Counts of a program of ``count`` like products; beyond two, each more is taken to cost what the second one does."""
    if count > 2:
        one, two = (_program(design, product, n, free) for n in (1, 2))
        return one + (two + one.times(-1)).times(count - 1)
    listed = list(program(design, product, count))
    prediction = predict(design, listed)
    cycles = predict(design, [_at_once(p, free) for p in listed]).cycles if free else prediction.cycles
    words = sum(HEADER_WORDS + p.payload_words for p in listed)
    return _Work(cycles, prediction.compute, 8 * words, 8 * design.output_streams * prediction.store + 16)


def _repeated(batch: int, work: Callable[[int], _Work]) -> _Work:
    """Counts of programs over ``batch`` samples.

    A program repeats itself sample by sample but for its begin and end, so beyond ``2 * COUNTED`` samples its counts
    follow the line through those of two shorter ones; counting every packet would take time that grows with the batch.
    """
    if batch <= 2 * COUNTED:
        return work(batch)
    short, long = work(COUNTED), work(2 * COUNTED)
    more = (batch - COUNTED) / COUNTED
    return short.times(1 - more) + long.times(more)


def _layer(
    design: Design, shape: ConvShape, bits: Bits, batch: int, kind: str, form: Form, free: Collection[str] = ()
) -> _Work:
    """Counts of a product of a layer over a whole batch.

    Raises:
        LoweringError: by the layer's name.
    """

    def work(samples: int) -> _Work:
        counts = _Work()
        for count, product in layer_products(shape, bits, samples, kind, form):
            counts += _program(design, replace(product, batches=-(-batch // samples)), count, free)
        return counts

    try:
        return _repeated(batch, work)
    except LoweringError as error:
        raise LoweringError(f"layer {shape.name}, {kind} at {bits}: {error}") from None


@lru_cache(maxsize=1 << 16)
def _counts(
    design: Design, shape: ConvShape, bits: Bits, batch: int, codes: bool, free: tuple[str, ...]
) -> Mapping[str, _Work]:
    """Counts of the products for a whole batch."""
    form = CODES if codes else INTEGERS
    kinds = [p for p in PRODUCTS if p != "input_gradient" or shape.kind != "stem"]
    counts = {p: _Work() for p in PRODUCTS} | {p: _layer(design, shape, bits, batch, p, form, free) for p in kinds}
    if len(kinds) < len(PRODUCTS) or bits.weight_g or shape.groups > 1 or shape.kind == "attention":
        return counts
    # One program for both gradients may share the load of the output gradient; what it saves of the cycles without work,
    # and of the traffic, is spread over both.
    both = _layer(design, shape, bits, batch, "backward", form, free)
    apart = counts["input_gradient"] + counts["weight_gradient"]
    idle = (both.cycles - both.array) / (apart.cycles - apart.array)
    for p in ("input_gradient", "weight_gradient"):
        one = counts[p]
        counts[p] = _Work(
            one.array + (one.cycles - one.array) * idle,
            one.array,
            one.read * both.read / apart.read,
            one.write * both.write / apart.write,
        )
    return counts


@lru_cache(maxsize=1 << 14)
def _planned_counts(design: Design, products: tuple[tuple[int, Product], ...], free: tuple[str, ...]) -> _Work:
    """Counts of a program of products."""
    counts = _Work()
    for count, product in products:
        counts += _program(design, product, count, free)
    return counts


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
        bandwidth: of the memory, bytes/s; None for what the part's board has.
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
        return self.bandwidth or BOARDS[self.design.part].memory

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

    def planned(
        self, products: tuple[tuple[int, Product], ...], macs: float = 0.0, free: tuple[str, ...] = ()
    ) -> FabricCost:
        """Cost, for one sample of a batch, of a program of products over a fabric's share of the batch.

        Args:
            products: how often, and which, each with its epilogue.
            macs: that they stand for.
            free: as for :meth:`products`.

        Raises:
            LoweringError: a product that the buffers cannot hold, or whose sums are no single packet's.
        """
        samples = products[0][1].geometry.batch
        work = _planned_counts(_geometry(self.design), products, free)
        kind = "weight_gradient" if products[0][1].kind == "weight_gradient" else "forward"
        return self._cost(work.times(1 / samples), macs, kind)

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
            LoweringError: not even one group of channels fits the buffers.
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


@lru_cache(maxsize=4096)
def _lut(design: Design) -> int:
    return resources(design).lut
