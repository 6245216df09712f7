"""The packets of lowered products, as steps that say what they carry: what the driver sends, the cost models count.

- Kernels are cut into *pieces* of up to three by three offsets, each with a *centre*: the fabric computes the piece at
  pixel ``i + centre``, so one tensor in the buffer serves all pieces.
- Images are cut into *regions* with a halo of one pixel where they are wider than the lanes or taller than the buffer, and
  put side by side where they are narrower; channels are cut into blocks that fit buffers and accumulators.
- Buffer halves are used in turn, so that the fabric can load the next tensor while it computes on the last one.

:mod:`hw.plan.tiling` cuts, :mod:`hw.plan.lowering` chooses, here packets are made.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from hw import contract
from hw.contract import ACCUMULATOR_LIMIT, Flag, Opcode, Target
from hw.design import Design
from hw.packet import (
    Packet,
    all_planes,
    flags_of,
    load_entries,
    load_tensor,
    read_entries,
    sums_format,
    tensor_addresses,
)
from hw.plan.arrangement import Arrangement
from hw.plan.conv_packets import ConvPackets
from hw.plan.product import (
    Correlation,
    GradientPass,
    GradientPiece,
    GradientSet,
    Lowered,
    PartialSumsError,
)
from hw.plan.steps import (
    Boundary,
    GroupRange,
    KernelBlock,
    Load,
    Read,
    StackWindow,
    Step,
    Weights,
    Wgrad,
    blocks_of,
    resident_sets,
    side_addresses,
)
from hw.plan.tiling import Region, Stack, extent, kernel_pieces, regions_of, split_range, stacks_of

_PACKET_CYCLES = 64  #: cycles per tile that hide the fixed work of a WGRAD packet


class _Buffer:
    """Halves of a buffer, used in turn, and what lies in each."""

    def __init__(self, depth: int) -> None:
        self.half = depth // 2
        self._turn = 1
        self._holds: dict[int, object] = {}
        self._whole = False  #: one thing fills both halves

    def place(self, key: object, size: int = 0) -> tuple[int, bool]:
        """Base address for ``key``, and whether it lies there already; ``size`` beyond a half takes the whole buffer."""
        for base, held in self._holds.items():
            if held == key:
                return base, True
        if self._whole or size > self.half:
            self._holds = {}
        self._whole = size > self.half
        self._turn = 1 if self._whole else self._turn ^ 1
        base = 0 if self._whole else self._turn * self.half
        self._holds[base] = key
        return base, False

    def forget(self) -> None:
        """What lies there is not known any more; turns go on."""
        self._holds = {}


def steps_of(design: Design, lowered: Sequence[Lowered]) -> Iterator[Step]:
    """Steps of one program of lowered products, without its END.

    Raises:
        LoweringError: a product that the design's buffers cannot hold, however it is cut.
    """
    a, g, w = (_Buffer(depth) for depth in (design.depth_a, design.depth_g, design.depth_w))
    for member, each in enumerate(lowered):
        schedule = _Schedule(design, member, each, a, g, w)
        if each.fused:
            yield from schedule.fused()
        else:
            for correlation in each.correlations:
                yield from schedule.correlation(correlation)
        for one in each.sets[each.fused :]:
            yield from schedule.gradient_set(one)


def fuses(design: Design, lowered: Lowered) -> bool:
    """Whether a correlation and the first set of weight gradients can take turns: see the same pixels of whole images, and
    hold all their channels at once."""
    if len(lowered.correlations) != 1 or not lowered.sets:
        return False
    (task,), first = lowered.correlations, lowered.sets[0]
    region = _whole_region(design, task)
    pieces = kernel_pieces(task.origin, task.kernel.size)
    inputs = -(-task.kernel.inputs // design.channels)
    return (
        region is not None
        and first.regions == (region,)
        and len(first.passes) == 1
        and first.out_groups * design.channels >= first.b.channels
        and len(pieces) == 1
        and inputs <= contract.LIMITS["groups"]
        and len(resident_sets(design, lowered.product, _fused_blocks(design, lowered), True)) == 1
        and _fused_images(design, lowered, region.rows.size) > 0
    )


def _whole_region(design: Design, task: Correlation) -> Region | None:
    """The region of a correlation whose images are neither cut nor other than its result in size."""
    height, width = task.tensor.hw
    if (
        (height, width) != task.out_hw
        or width > design.lanes
        or height * task.tensor.rows_per > contract.LIMITS["rows"]
    ):
        return None
    return regions_of((0, height), (0, width), height, design.lanes)[0]


def _fused_blocks(design: Design, lowered: Lowered) -> list[KernelBlock]:
    (task,) = lowered.correlations
    inputs = 0, -(-task.kernel.inputs // design.channels)
    return blocks_of(design, lowered.product, task.kernel, kernel_pieces(task.origin, task.kernel.size), inputs, True)


def _fused_images(design: Design, lowered: Lowered, rows: int) -> int:
    """Virtual images of so many rows of which A holds two of g and two of x, a quarter each: the fabric may load one pair
    while it uses the other."""
    (task,), first, source = lowered.correlations, lowered.sets[0], lowered.product.source
    quarter, b_bits = design.depth_a // 4, source(first.b.operand).bits
    groups = -(-task.tensor.channels // design.channels)
    g = tensor_addresses(1, rows * task.tensor.rows_per, groups, source(task.tensor.operand).bits)
    x = sum(tensor_addresses(1, rows, n, source(piece.a.operand).bits) for piece, _, n in first.passes[0])
    outputs = -(-task.kernel.outputs // design.channels)
    own = tensor_addresses(1, rows, first.out_groups, b_bits) + side_addresses(lowered.product, rows, outputs)
    return min(quarter // g, quarter // x, design.depth_g // 2 // own)


def _fitting_images(design: Design, rows: int, images: int, a_bits: int, b_bits: int) -> int:
    """As many of ``images`` as one WGRAD may take without a possible overflow."""
    wgrad = Packet(Opcode.WGRAD, rows=rows, images=images, a_bits=a_bits, b_bits=b_bits)
    while wgrad.images > 1 and wgrad.overflows(design):
        wgrad = replace(wgrad, images=wgrad.images // 2)
    return wgrad.images


class _Schedule:
    """Steps of one product, in a program whose buffers it takes over from the product before."""

    def __init__(self, design: Design, member: int, lowered: Lowered, a: _Buffer, g: _Buffer, w: _Buffer) -> None:
        self.design, self.member, self.lowered = design, member, lowered
        self.product = lowered.product
        self._convolution = ConvPackets(design, member, lowered.product)
        self._a, self._g, self._w = a, g, w

    # -- loads ------------------------------------------------------------------------------------------------------

    def load(self, target: Target, window: StackWindow, base: int, base_g: int = 0) -> Load:
        """Load a window at a base of A, and of G if that is written."""
        bits = self.product.source(window.tensor.operand).bits
        packet = load_tensor(
            self.design, target, window.stack.images, window.rows, window.channels[1], bits, base, base_g
        )
        return Load(self.member, (packet,), window)

    def weights(self, blocks: Sequence[KernelBlock]) -> tuple[list[int], list[Step]]:
        """Bases of blocks in W, one after the other, and the steps that load them unless they lie there already."""
        d = self.design
        key = tuple(block.content(self.product.weights) for block in blocks)
        base, there = self._w.place(key, sum(block.words(d) for block in blocks))
        bases, made = [], []
        for block in blocks:
            bases.append(base)
            if not there:
                made.append(Weights(self.member, (load_entries(d, Target.W, block.words(d), base),), block))
            base += block.words(d)
        return bases, list(made)

    # -- CONV -------------------------------------------------------------------------------------------------------

    def _check_whole(self, whole: bool) -> None:
        """Refuses an epilogue behind sums that are not whole."""
        behind = self.product.behind
        if not whole and behind is not None and not behind.plain:
            m = self.product.geometry
            raise PartialSumsError(
                f"design {self.design.name}: the {self.product.kind} of {m.in_channels} -> {m.out_channels} channels under a "
                f"{m.kernel[0]}x{m.kernel[1]} kernel takes several packets for a result, and the epilogue takes whole sums; "
                "raise depth_a and depth_w, or leave the layer to the host"
            )

    def correlation(self, task: Correlation) -> Iterator[Step]:
        """Steps of a correlation and its operand sums."""
        d, a, kernel = self.design, task.tensor, task.kernel
        c, source, weight = d.channels, self.product.source(a.operand), self.product.source("w")
        pieces = kernel_pieces(task.origin, kernel.size)
        spans = [
            extent(a.hw[i], task.out_hw[i], [p.centre[i] for p in pieces], task.origin[i], kernel.size[i])
            for i in (0, 1)
        ]
        groups_total = -(-kernel.inputs // c)
        half_a, half_w = d.depth_a // 2, d.depth_w // 2
        least_blocks = 1 if a.rows_per == 1 else 2  # four rows of the output, so that cuts leave room between halos
        max_groups = max(
            1, min(contract.LIMITS["groups"], half_a // (least_blocks * source.bits), half_w // weight.bits)
        )
        if self.product.behind is not None and groups_total > max_groups:  # better the whole buffers than partial sums
            room = min(d.depth_a // (least_blocks * source.bits), d.depth_w // weight.bits)
            max_groups = groups_total if groups_total <= min(contract.LIMITS["groups"], room) else max_groups
        whole = len(pieces) == 1 and groups_total <= max_groups and len(self.lowered.correlations) == 1
        self._check_whole(whole)
        self._a.forget()
        self._g.forget()
        for first, groups in split_range(groups_total, max_groups):
            max_rows = min(contract.LIMITS["rows"], 8 * max(1, half_a // (groups * source.bits))) // a.rows_per
            if whole and (beside := side_addresses(self.product, contract.ROW_BANKS, 1)):
                max_rows = min(max_rows, contract.ROW_BANKS * max(1, d.depth_g // 2 // beside))
            rows = min(max_rows, spans[0][1] - spans[0][0])
            blocks = blocks_of(d, self.product, kernel, pieces, (first, groups), whole, rows)
            regions = regions_of(spans[0], spans[1], max_rows, d.lanes)

            most = max(block.out_groups(d) for block in blocks)

            def fit(rows: int, groups: int = groups, most: int = most) -> int:
                images = half_a // tensor_addresses(1, rows * a.rows_per, groups, source.bits)
                beside = side_addresses(self.product, rows, most) if whole else 0
                return min(images, d.depth_g // 2 // beside) if beside else images

            stacks = stacks_of(a.images, regions, fit)
            for residents in resident_sets(d, self.product, blocks, whole):
                bases, loads = self.weights(residents)
                entries, more = self._convolution.entries(residents) if whole else ([], [])
                yield from more
                yield from loads
                for stack in stacks:
                    yield Boundary(self.member, ())
                    size = tensor_addresses(stack.images, stack.region.rows.size * a.rows_per, groups, source.bits)
                    base, there = self._a.place((stack, first, groups), size)
                    if not there:
                        yield self.load(Target.A, StackWindow(a, stack, (first * c, groups)), base)
                    for i, block in enumerate(residents):
                        base_g = 0
                        if whole and self.product.behind is not None and self.product.behind.operands:
                            base_g, _ = self._g.place((stack, block.outputs))
                            yield from self._convolution.sides(block, stack, task, base_g)
                        entry = entries[i] if whole else None
                        yield from self._convolution.convs(block, stack, task, (base, bases[i], base_g), entry)

    # -- WGRAD ------------------------------------------------------------------------------------------------------

    def gradient_set(self, task: GradientSet) -> Iterator[Step]:
        """Steps of pieces that share an output gradient."""
        d, c = self.design, self.design.channels
        half_a, half_g = d.depth_a // 2, d.depth_g // 2
        b_bits = self.product.source(task.b.operand).bits
        a_bits = [self.product.source(p.a.operand).bits for one in task.passes for p, _, _ in one]
        least = -(-_PACKET_CYCLES // (min(a_bits) * b_bits))
        self._a.forget()
        self._g.forget()
        for out, each in itertools.product(split_range(-(-task.b.channels // c), task.out_groups), task.passes):
            sums = _accumulators(self, task.b, each, out)
            most = max(groups * self.product.source(p.a.operand).bits for p, _, groups in each)

            def fit(size: int, most: int = most, out_groups: int = out[1]) -> int:
                images = min(
                    half_a // tensor_addresses(1, size, most, 1),
                    half_g // tensor_addresses(1, size, out_groups, b_bits),
                )
                return _fitting_images(d, size, images, max(a_bits), b_bits)

            for stack in stacks_of(task.b.images, list(task.regions), fit, least):
                yield Boundary(self.member, ())
                window = StackWindow(task.b, stack, (out[0] * c, out[1]), task.centre, own_only=True)
                base_g, there = self._g.place(window)
                if not there:
                    yield self.load(Target.G, window, 0, base_g)
                for one in sums:
                    window = StackWindow(one.piece.a, stack, (one.into[0] * c, one.into[1]))
                    base_a, there = self._a.place((one.piece.number, window))
                    if not there:
                        yield self.load(Target.A, window, base_a)
                    yield from one.add(stack, base_a, base_g)
            for one in sums:
                yield one.read()

    def fused(self) -> Iterator[Step]:
        """The correlation and the first set in turn on each stack; a g that both read alike is loaded once."""
        d, c, source = self.design, self.design.channels, self.product.source
        (task,), first = self.lowered.correlations, self.lowered.sets[0]
        blocks, out = _fused_blocks(d, self.lowered), (0, first.out_groups)
        bases, loads = self.weights(blocks)
        entries, more = self._convolution.entries(blocks)
        yield from more
        yield from loads
        self._a.forget()  # its quarters are used here, and what else lay there is gone
        self._g.forget()
        sums = _accumulators(self, first.b, first.passes[0], out)
        a_bits, b_bits = [source(one.piece.a.operand).bits for one in sums], source(first.b.operand).bits

        def fit(size: int) -> int:
            return _fitting_images(d, size, _fused_images(d, self.lowered, size), max(a_bits), b_bits)

        least = -(-_PACKET_CYCLES // (min(a_bits) * b_bits))
        for turn, stack in enumerate(stacks_of(task.tensor.images, list(first.regions), fit, least)):
            yield Boundary(self.member, ())
            base_a, base_g = turn % 2 * (d.depth_a // 2), turn % 2 * (d.depth_g // 2)
            window = StackWindow(task.tensor, stack, blocks[0].inputs)
            own = StackWindow(first.b, stack, out, first.centre)
            shared = window == own
            yield self.load(Target.A | Target.G if shared else Target.A, window, base_a, base_g if shared else 0)
            rows = stack.region.rows.size
            base_side = base_g + tensor_addresses(stack.images, rows, first.out_groups, b_bits)
            for block, base_w, entry in zip(blocks, bases, entries, strict=True):
                yield from self._convolution.sides(block, stack, task, base_side)
                yield from self._convolution.convs(block, stack, task, (base_a, base_w, base_side), entry)
                base_side += stack.images * side_addresses(self.product, rows, block.out_groups(d))
            if not shared:
                yield self.load(Target.G, own, 0, base_g)
            base_a += d.depth_a // 4
            for one, bits in zip(sums, a_bits, strict=True):
                yield self.load(Target.A, StackWindow(one.piece.a, stack, (one.into[0] * c, one.into[1])), base_a)
                yield from one.add(stack, base_a, base_g)
                base_a += tensor_addresses(stack.images, stack.region.rows.size, one.into[1], bits)
        for one in sums:
            yield one.read()


class _Accumulator:
    """WGRAD packets of a piece that add to the same accumulators, and the READs that fetch them in time.

    Args:
        into, out: ranges of channel groups of a and of b.
        base: first accumulator entry.
    """

    def __init__(
        self, schedule: _Schedule, b: Arrangement, piece: GradientPiece, into: GroupRange, out: GroupRange, base: int
    ) -> None:
        self.piece, self.into = piece, into
        self._schedule, self._b, self._out = schedule, b, out
        self._ones = piece.b_sum and into[0] == 0
        sources = schedule.product.source(piece.a.operand), schedule.product.source(b.operand)
        options = {
            Flag.A_SIGNED: sources[0].signed,
            Flag.B_SIGNED: sources[1].signed,
            Flag.ONES: self._ones,
            Flag.SKIP_ZERO: schedule.product.skip_zero,
        }
        #: of every stack; its images, rows, segments, bases and CLEAR are filled in
        self._packet = Packet(
            Opcode.WGRAD,
            groups=into[1],
            out_groups=out[1],
            a_bits=sources[0].bits,
            b_bits=sources[1].bits,
            flags=flags_of(options),
            taps=piece.taps,
            a_planes=all_planes(sources[0].bits),
            b_planes=all_planes(sources[1].bits),
            base_accumulator=base,
        )
        self.entries = self._packet.entries(schedule.design)
        self._batches = schedule.product.batches
        self._held = 0  #: bound on what the accumulators hold

    def add(self, stack: Stack, base_a: int, base_g: int) -> Iterator[Step]:
        """Accumulate what lies in A and G; reads and clears first if the accumulators could overflow."""
        packet = replace(
            self._packet,
            images=stack.images,
            rows=stack.region.rows.size,
            segment_start=stack.region.segment_start,
            base_a=base_a,
            base_b=base_g,
        )
        grows = packet.sum_bound(self._schedule.design)
        if self._held and self._held + grows > ACCUMULATOR_LIMIT - 1:
            yield self.read()
        if not self._held:
            packet = replace(packet, flags=packet.flags | Flag.CLEAR)
        self._held += grows
        yield Wgrad(self._schedule.member, (packet,), self.piece.a, self._b)

    def read(self) -> Read:
        """Fetch the accumulators; the next packet clears them."""
        packet = read_entries(self.entries, self._packet.base_accumulator, sums_format(self._held * self._batches))
        self._held = 0
        return Read(self._schedule.member, (packet,), self.piece, self.into, self._out, self._ones)


def _accumulators(schedule: _Schedule, b: Arrangement, pieces: GradientPass, out: GroupRange) -> list[_Accumulator]:
    """Accumulators of the pieces of a pass, one after the other."""
    made: list[_Accumulator] = []
    base = 0
    for piece, first, groups in pieces:
        made.append(_Accumulator(schedule, b, piece, (first, groups), out, base))
        base += made[-1].entries
    return made
