"""Passes of a training step on a device: products whose sums go through the epilogue, *planned, then filled*.

Implements :class:`host.step.passes.PassEngine` as :mod:`host.driver.fabric_engine` implements the engine of sums.
Convolutions with groups become dense ones of a few groups each, which run in one program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from host.arrays import I32, I64, U64, Array
from host.driver.assembly import weight_gradient
from host.driver.fabric_engine import FabricEngine
from host.driver.layout import Tensor
from host.driver.session import Member, Results, Session
from host.epilogue import Entries, Moments
from host.numerics import check_codes
from host.operands import ConvGeometry, Grid, Operand
from host.program import packing
from host.step.passes import CodeTensor, PassEpilogue, PassError, PassMeter, PassResult, ProductPass
from host.step.result_order import ResultOrder, ResultShape, natural
from host.step.software import finish, random_of
from hw.contract import OutputFormat
from hw.design import Design
from hw.packet import Packet, all_planes
from hw.plan.lowering import lower
from hw.plan.product import Correlation, EpilogueForm, Lowered, LoweringError, PartialSumsError, Product, Source
from hw.plan.steps import Conv, LoadEpilogue, Read
from hw.plan.training_products import GROUPED_CHANNELS

_SECTIONS = ("a", "k", "s", "mask")


def form_of(behind: PassEpilogue) -> EpilogueForm:
    """An epilogue without its parameters."""
    settings, side = behind.settings, behind.side
    form = EpilogueForm(
        OutputFormat.MOMENTS if behind.moments else OutputFormat.CODES,
        side=side.bits if side is not None else 0,
        side_signed=side is not None and side.signed,
        masked=behind.mask is not None,
        added=behind.added.bits if behind.added is not None else 0,
    )
    if behind.moments:
        return replace(form, cross=behind.cross)
    return replace(
        form, records=behind.records, out=settings.out_bits, out_signed=settings.out_signed, relu=settings.relu,
        keep=settings.keep_bits, keep_mask=settings.keep_mask, wide=settings.wide_bits, stochastic=settings.stochastic,
    )  # fmt: skip


def order_of(task: Correlation) -> ResultOrder:
    """Where a result's elements lie while they are computed, groups aside.

    Raises:
        PassError: not all phases of the result are computed, and those that are do not come first.
    """
    order = ResultOrder()
    for name, arguments in task.result.moves:
        if name == "mirrored":
            order = order._replace(mirrored=True)
        elif name == "merged":
            at, stride = arguments
            if any(y * stride + x != place for place, (y, x) in enumerate(at)):
                raise PassError(
                    f"phases {at} of a stride of {stride} are no first ones of all; leave the layer to the host"
                )
            order = order._replace(phases=stride, reached=len(at))
        else:
            raise PassError(f"a result that is {name.replace('_', ' ')} has no epilogue; leave the layer to the host")
    return order


@dataclass
class PassMember(Member):
    """One dense product of a pass.

    Attributes:
        behind: its epilogue, for the product's channels; None for a weight gradient.
        first: index of its first random number.
    """

    behind: PassEpilogue | None = None
    first: int = 0

    def results(self, lowered: Lowered) -> Results:
        """Where the results go."""
        return PassResults(lowered)

    def filled(self, packet: Packet) -> Packet:
        """A CONV with its shifts, its key and the random indices of its group of channels."""
        assert self.behind is not None
        check_format(packet)
        packet = replace(packet, **self.behind.header)
        if packet.format == OutputFormat.MOMENTS or not self.behind.settings.stochastic:
            return packet
        return replace(packet, index=(packet.index + self.first) % (1 << 32))

    def entries(self, step: LoadEpilogue, design: Design) -> U64:
        """Parameters of every output channel; phases of a pixel have those of the pixel's channel."""
        assert self.behind is not None
        words = self.behind.entries.words()
        table = []
        for block in step.blocks:
            channels = np.arange(*block.outputs)
            part = words[channels % len(words)]
            part[channels >= block.kernel.outputs] = 0
            table.append(part)
        return np.concatenate(table).reshape(-1)


def check_format(packet: Packet) -> None:
    """Refuses a CONV whose sums no epilogue takes.

    Raises:
        PassError: it is one.
    """
    if packet.format not in (OutputFormat.CODES, OutputFormat.MOMENTS):
        raise PassError(
            f"a sum of {packet.a_bits} by {packet.b_bits} bits may pass 32 bits, more than an epilogue takes; give its "
            "operands fewer bits"
        )


class PassResults(Results):
    """What a product with an epilogue leaves, as it is computed.

    Attributes:
        sections: codes "a", "k", "s" and the "mask", int32 (N, outputs, OH, OW).
        moments: int64 (outputs, 4): sum, sum of products, least, greatest; None until the first ones come.
    """

    def __init__(self, lowered: Lowered) -> None:
        super().__init__(lowered)
        self.lowered = lowered
        self.sections: dict[str, I32] = {}
        self.moments: I64 | None = None
        self._shape = self.dot.shape if self.dot is not None else None
        self.dot = self.a_sum = None  # nothing leaves as sums

    def add(self, design: Design, step: Conv | Read, words: U64) -> None:
        """Add the result words of a step."""
        if isinstance(step, Read):
            super().add(design, step, words)
            return
        (packet,), channel = step.packets, step.block.outputs[0]
        if packet.format == OutputFormat.MOMENTS:
            self._add_moments(packing.unpack_moments(words), channel)
            return
        found = packing.unpack_sections(words, design, packet)
        for name, part in zip(_SECTIONS, (found.out, found.keep, found.wide, found.mask), strict=True):
            if part is None:
                continue
            assert self._shape is not None
            target = self.sections.setdefault(name, np.zeros(self._shape, np.int32))
            images, rows, groups, lanes, c = part.shape
            results = part.transpose(0, 1, 2, 4, 3).reshape(images, rows, groups * c, lanes)
            self._add_results(target, results[:, :, : target.shape[1] - channel], channel, step)
        if found.moments is not None:
            self._add_moments(found.moments, channel)

    def _add_moments(self, found: Moments, channel: int) -> None:
        assert self._shape is not None
        if self.moments is None:
            self.moments = np.zeros((self._shape[1], 4), np.int64)
            self.moments[:, 2], self.moments[:, 3] = np.iinfo(np.int64).max, np.iinfo(np.int64).min
        part = self.moments[channel : channel + len(found.total)]
        count = len(part)
        part[:, 0] += found.total[:count]
        part[:, 1] += found.products[:count]
        np.minimum(part[:, 2], found.least[:count], out=part[:, 2])
        np.maximum(part[:, 3], found.greatest[:count], out=part[:, 3])


class FabricPasses:
    """Runs passes on the device of an engine of sums, with its recorder and meter: counters over all and by purpose.

    Args:
        engine: whose device, limits and meter count.
    """

    def __init__(self, engine: FabricEngine) -> None:
        self.engine, self.design = engine, engine.design
        self.meter, self.schedules = PassMeter(engine.meter.totals), None

    def run(self, wanted: ProductPass) -> PassResult:
        """Runs a pass.  Where the design computes partial sums, the host adds them up and does what stands behind them.

        Raises:
            PassError: the design cannot hold it, or its result has no epilogue.
            ProgramError: the device refused a program.
        """
        try:
            members = list(_members(self.design, wanted))
            session = self.engine.session(wanted.purpose)
            found = session.run(members)
        except PartialSumsError as error:
            if wanted.groups > 1 or wanted.behind is None:
                raise PassError(f"{wanted.node}, {wanted.purpose}: {error}") from None
            return self._finished_by_host(wanted, wanted.behind)
        except (LoweringError, PassError) as error:
            raise PassError(f"{wanted.node}, {wanted.purpose}: {error}") from None
        return self._result(wanted, members, session, found)

    def _finished_by_host(self, wanted: ProductPass, behind: PassEpilogue) -> PassResult:
        """A pass whose sums leave as integers; the epilogue is the one of software, to the bit."""
        x, w, g = (None if codes is None else _operand(codes) for codes in (wanted.x, wanted.w, wanted.g))
        assert w is not None
        before, m, gradient = dict(self.engine.meter.totals), wanted.geometry, None
        if wanted.kind == "forward":
            assert x is not None
            sums = self.engine.forward(x, w, m)
        elif wanted.kind == "input_gradient":
            assert g is not None
            sums = self.engine.input_gradient(g, w, m)
        else:
            assert x is not None and g is not None
            sums, weights = self.engine.backward(x, g, w, m)
            gradient = weights.dot
        for name, value in list(self.engine.meter.totals.items()):
            self.meter.add(f"{wanted.purpose}.{name}", value - before.get(name, 0))
        self.meter.add("PASSES", 1)
        self.meter.add("HOST_EPILOGUES", 1)
        result = finish(sums.dot, behind, random_of(wanted, computed_order(self.design)(wanted)))
        return replace(result, weight_gradient=gradient)

    def _result(
        self, wanted: ProductPass, members: list[PassMember], session: Session, found: list[Results]
    ) -> PassResult:
        """Natural results of a pass that has run; the meter takes note."""
        orders = [_order(self.design, member.product) for member in members]
        for name, value in session.counters.items():
            self.meter.add(name, value)
            self.meter.add(f"{wanted.purpose}.{name}", value)
        self.meter.add("PASSES", 1)
        if self.engine.keep_rows:
            other = wanted.w if wanted.w is not None else wanted.x
            assert other is not None
            widths = wanted.operand.bits, other.bits
            m = wanted.geometry
            self.engine.meter.add_row(wanted.purpose, widths, m.batch, m, session.counters)
        results = [each for each in found if isinstance(each, PassResults)]
        return _joined(wanted, members, results, orders, session.counters.get("SATURATED", 0))


def computed_order(design: Design) -> Callable[[ProductPass], ResultOrder]:
    """Where the elements of a pass' result lie while a design computes it, for engines in software."""

    def order(wanted: ProductPass) -> ResultOrder:
        parts = parts_of(design, wanted)
        if len(parts) == 1:
            return parts[0].order
        m = parts[0].product.geometry
        return parts[0].order._replace(channels=m.out_channels if wanted.kind == "forward" else m.in_channels)

    return order


# -- parts of a pass ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PassPart:
    """One dense product of a pass, without its data.

    Attributes:
        product: what is computed.
        groups: of the pass that it holds, first and behind the last.
        into, out: channels of the pass' input and output (start, stop).
        first: index of its first random number.
        order: where its result lies while it is computed.
    """

    product: Product
    groups: tuple[int, int]
    into: tuple[int, int]
    out: tuple[int, int]
    first: int
    order: ResultOrder

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of the pass' result (start, stop)."""
        return self.out if self.product.kind == "forward" else self.into


def _blocks(wanted: ProductPass) -> Iterator[tuple[int, int]]:
    """Ranges of groups that share a dense product."""
    m, groups = wanted.geometry, wanted.groups
    together = max(1, GROUPED_CHANNELS // max(m.in_channels // groups, m.out_channels // groups))
    for first in range(0, groups, together):
        yield first, min(first + together, groups)


def _channels(values: Array, first: int, stop: int) -> Array:
    return values[:, first:stop]


def parts_of(design: Design, wanted: ProductPass) -> list[PassPart]:
    """Dense products of a pass, one for each block of groups.

    Raises:
        PassError, LoweringError: the design cannot hold it, or its result has no epilogue.
    """
    m, groups = wanted.geometry, wanted.groups
    into, out = m.in_channels // groups, m.out_channels // groups
    if m.is_linear:
        raise PassError(f"{wanted.node}: a matrix product has no epilogue; leave the layer to the host")
    form = form_of(wanted.behind) if wanted.behind is not None else None
    x, w, g = (_source(codes) for codes in (wanted.x, wanted.w, wanted.g))
    made: list[PassPart] = []
    index = 0
    for number, (first, stop) in enumerate(_blocks(wanted)):
        block = replace(m, in_channels=(stop - first) * into, out_channels=(stop - first) * out)
        product = Product(wanted.kind, block, x, w, g, sums=False, behind=form, weights=number)
        order = _order(design, product)
        made.append(
            PassPart(product, (first, stop), (first * into, stop * into), (first * out, stop * out), index, order)
        )
        height = block.out_hw[0] if wanted.kind == "forward" else block.in_hw[0]
        channels = block.out_channels if wanted.kind == "forward" else block.in_channels
        index += block.batch * channels * order.parts * -(-height // order.phases)
    if form is not None and form.stochastic and len({part.order for part in made}) > 1:
        raise PassError(
            f"{wanted.node}: {groups} groups do not divide into products that are computed alike, so that their random "
            f"numbers have no common order; choose channels that are a multiple of {GROUPED_CHANNELS}"
        )
    return made


def _order(design: Design, product: Product) -> ResultOrder:
    correlations = lower(design, product).correlations
    return order_of(correlations[0]) if correlations else ResultOrder()


def _members(design: Design, wanted: ProductPass) -> Iterator[PassMember]:
    """Dense products of a pass with their data."""
    for part in parts_of(design, wanted):
        tensors: dict[str, Tensor] = {}
        if wanted.x is not None:
            tensors["x"] = _tensor(wanted.x, part.into, "activations")
        if wanted.g is not None:
            tensors["g"] = _tensor(wanted.g, part.out, "output gradients")
        behind = None
        if wanted.behind is not None:
            behind = _part(wanted.behind, *part.channels)
            tensors |= _operands(behind)
            check_phases(wanted, design, part)
        weight = None
        if wanted.w is not None:
            check_codes(wanted.w.values, wanted.w.bits, wanted.w.signed, "weights")
            weight = dense_weights(wanted.w.values, part)
        yield PassMember(part.product, weight, tensors, behind=behind, first=part.first)


def check_phases(wanted: ProductPass, design: Design, part: PassPart) -> None:
    """Refuses a result whose phases the kernel does not all reach, unless the epilogue leaves zero there.

    Raises:
        PassError: it does not.
    """
    behind, (task,) = wanted.behind, lower(design, part.product).correlations
    assert behind is not None
    if task.kernel.outputs == part.order.phases**2 * task.kernel.channels[1] or not task.kernel.back:
        return
    offsets = (column[slice(*part.channels)].any() for column in (behind.entries.b, behind.entries.c))
    if behind.side is not None or behind.added is not None or any(offsets):
        raise PassError(
            f"{wanted.node}: a kernel that does not reach all pixels of the {wanted.kind} takes an epilogue that keeps zero "
            "alone, without operands and offsets; add its codes in another pass"
        )


def _source(codes: CodeTensor | None) -> Source | None:
    return None if codes is None else Source(codes.bits, codes.signed)


def _tensor(codes: CodeTensor, channels: tuple[int, int], what: str) -> Tensor:
    """Channels of codes as LOAD packets carry them.

    Raises:
        ValueError: codes outside their bits.
    """
    values = _channels(codes.values, *channels)
    check_codes(values, codes.bits, codes.signed, what)
    return _planes(values.astype(np.int64), codes.bits)


def _operand(codes: CodeTensor) -> Operand:
    """Codes for an engine of sums, whose grids do not matter to integers."""
    grid = Grid(codes.bits, codes.signed, np.ones((), np.float32), np.zeros((), np.float32))
    return Operand(grid, codes=codes.values)


def _planes(values: I64, bits: int) -> Tensor:
    masked = (values & all_planes(bits)).astype(np.uint16)
    grid = Grid(bits, False, np.ones((), np.float32), np.zeros((), np.float32))
    return Tensor(masked, grid, int(np.bitwise_or.reduce(masked, axis=None)))


def _operands(behind: PassEpilogue) -> dict[str, Tensor]:
    """What the epilogue reads: side codes with the mask on top, added codes."""
    tensors: dict[str, Tensor] = {}
    bits = behind.side.bits if behind.side is not None else 0
    side = np.zeros((), np.int64)
    if behind.side is not None:
        check_codes(behind.side.values, bits, behind.side.signed, "side codes")
        side = behind.side.values.astype(np.int64) & all_planes(bits)
    if behind.mask is not None:
        side = side | behind.mask.astype(np.int64) << bits
    if behind.side is not None or behind.mask is not None:
        tensors["side"] = _planes(np.asarray(side), bits + (behind.mask is not None))
    if behind.added is not None:
        check_codes(behind.added.values, behind.added.bits, True, "added codes")
        tensors["added"] = _planes(behind.added.values.astype(np.int64), behind.added.bits)
    return tensors


def _part(behind: PassEpilogue, first: int, stop: int) -> PassEpilogue:
    """An epilogue for some channels of the result."""
    entries = Entries(*(getattr(behind.entries, name)[first:stop] for name in ("m", "o", "n", "l", "b", "c")))

    def cut(codes: CodeTensor | None) -> CodeTensor | None:
        return None if codes is None else replace(codes, values=_channels(codes.values, first, stop))

    mask = None if behind.mask is None else _channels(behind.mask, first, stop)
    return replace(behind, entries=entries, side=cut(behind.side), added=cut(behind.added), mask=mask)


def dense_weights(weight: Array, part: PassPart) -> I64:
    """Weights (O, I/groups, kh, kw) of a part as those of a dense convolution, zero between groups: (O, I, kh, kw)."""
    (first, stop), m = part.groups, part.product.geometry
    count = stop - first
    into, out = m.in_channels // count, m.out_channels // count
    dense = np.zeros((m.out_channels, m.in_channels, *m.kernel), np.int64)
    for k in range(count):
        rows = slice((first + k) * out, (first + k + 1) * out)
        dense[k * out : (k + 1) * out, k * into : (k + 1) * into] = weight[rows]
    return dense


def _joined(
    wanted: ProductPass, members: list[PassMember], found: list[PassResults], orders: list[ResultOrder], saturated: int
) -> PassResult:
    """Natural results of all members, side by side in their channels."""
    parts: dict[str, list[Array]] = {}
    moments: list[I64] = []
    gradients: list[I64] = []
    for member, results, order in zip(members, found, orders, strict=True):
        shape = _result_shape(wanted, member.product.geometry)
        for name, section in results.sections.items():
            parts.setdefault(name, []).append(natural(_all_phases(section, shape, order), shape, order))
        if results.moments is not None:
            folded = results.moments[: results.moments.shape[0] // shape[1] * shape[1]].reshape(-1, shape[1], 4)
            least, greatest = folded[..., 2].min(axis=0), folded[..., 3].max(axis=0)
            if len(folded) < order.phases**2:  # the others are zero
                least, greatest = np.minimum(least, 0), np.maximum(greatest, 0)
            moments.append(np.stack([folded[..., 0].sum(0), folded[..., 1].sum(0), least, greatest], axis=1))
        if results.gradients:
            gradients.append(diagonal(wanted, results.lowered, results))
    sections = {name: np.concatenate(each, axis=1) for name, each in parts.items()}
    table = np.concatenate(moments) if moments else None
    return PassResult(
        a=sections.get("a"),
        k=sections.get("k"),
        s=sections.get("s"),
        mask=sections["mask"].astype(bool) if "mask" in sections else None,
        moments=None if table is None else Moments(*(np.ascontiguousarray(column) for column in table.T)),
        weight_gradient=np.concatenate(gradients) if gradients else None,
        saturated=saturated,
    )


def _result_shape(wanted: ProductPass, m: ConvGeometry) -> ResultShape:
    if wanted.kind == "forward":
        return m.batch, m.out_channels, *m.out_hw
    return m.batch, m.in_channels, *m.in_hw


def _all_phases(section: I32, shape: ResultShape, order: ResultOrder) -> I32:
    """A result with zeros for the phases that no kernel element reaches."""
    missing = order.phases**2 * shape[1] - section.shape[1]
    return section if not missing else np.pad(section, ((0, 0), (0, missing), (0, 0), (0, 0)))


def diagonal(wanted: ProductPass, lowered: Lowered, results: PassResults) -> I64:
    """Weight gradient of a member, (O, I/groups, kh, kw): of a dense product the blocks on the diagonal."""
    m, groups = wanted.geometry, wanted.groups
    into, out = m.in_channels // groups, m.out_channels // groups
    dense = weight_gradient(lowered, results)
    count = dense.shape[0] // out
    blocks = [dense[k * out : (k + 1) * out, k * into : (k + 1) * into] for k in range(count)]
    return np.concatenate(blocks)
