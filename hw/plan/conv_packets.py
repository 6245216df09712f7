"""The CONV packets of a product: sums that leave as integers, or go through the epilogue with what that reads beside them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from hw import contract
from hw.contract import Flag, Opcode, OutputFormat, Target
from hw.design import Design
from hw.packet import Packet, flags_of, load_entries, load_tensor, product, tensor_addresses
from hw.plan.arrangement import Arrangement
from hw.plan.product import Correlation, EpilogueForm, Product
from hw.plan.steps import Conv, KernelBlock, Load, LoadEpilogue, StackWindow, Step
from hw.plan.tiling import Piece, Stack


@lru_cache(maxsize=1 << 12)
def power_of_two(exponent: int) -> int:
    """``2 ** exponent`` in GF(2^16), whose powers of two have the period 2^16 - 1."""
    power = 1
    for _ in range(exponent % ((1 << 16) - 1)):
        power <<= 1
        power ^= (power >> 16) * contract.GF_POLYNOMIAL
    return power


class ConvPackets:
    """CONV packets of one product of a program."""

    def __init__(self, design: Design, member: int, product: Product) -> None:
        self.design, self.member, self.product = design, member, product

    def convs(
        self, block: KernelBlock, stack: Stack, task: Correlation, bases: tuple[int, int, int], entry: int | None
    ) -> Iterator[Conv]:
        """CONV packets of a block on a stack: one, or where moments or random numbers ask for it, several.

        Args:
            bases: in A, in W, and in G of what the epilogue reads.
            entry: first one in E, if results go through the epilogue; else they are integers.
        """
        packet = self._conv(block, stack, task.tensor, bases)
        behind = self.product.behind if entry is not None and not packet.overflows(self.design) else None
        if behind is None:
            wide = OutputFormat.INT64 if packet.overflows(self.design) else OutputFormat.INT32
            yield Conv(self.member, (replace(packet, format=wide),), block, stack, task)
            return
        assert entry is not None
        for first, part in _parts(stack, behind):
            packet = self._conv(block, part, task.tensor, bases)
            packet = self._behind(replace(packet, base_epilogue=entry), block, part, task, bases[2], stack.images)
            own = _own(part, block.piece, task)
            if behind.moments and own is not None:
                packet = replace(packet, valid=own.valid, first_row=own.rows[0], last_row=own.rows[1])
            if own is not None:
                yield Conv(self.member, (self._moved(packet, task.tensor, first),), block, part, task)

    def _conv(self, block: KernelBlock, stack: Stack, tensor: Arrangement, bases: tuple[int, int, int]) -> Packet:
        """What a packet of integers and one of codes have in common."""
        source = self.product.source(tensor.operand)
        options = {
            Flag.A_SIGNED: source.signed,
            Flag.B_SIGNED: block.signed,
            Flag.STRIDE_2: tensor.rows_per > 1,
            Flag.A_SUM: block.with_a_sum,
            Flag.SKIP_ZERO: self.product.skip_zero,
        }
        return product(
            Opcode.CONV,
            images=stack.images,
            rows=stack.region.rows.size,
            groups=block.inputs[1],
            out_groups=block.out_groups(self.design),
            a_bits=source.bits,
            b_bits=block.bits,
            flags=flags_of(options),
            segment_start=stack.region.segment_start,
            base_a=bases[0],
            base_b=bases[1],
        )

    def _behind(
        self, packet: Packet, block: KernelBlock, stack: Stack, task: Correlation, base: int, images: int
    ) -> Packet:
        """A packet whose results go through the epilogue, with what that reads and makes; shifts and key are left open."""
        behind = self.product.behind
        assert behind is not None
        options = {
            Flag.SIDE_SIGNED: behind.side_signed and behind.side > 0,
            Flag.MASKED: behind.masked,
            Flag.CROSS: behind.cross,
        }
        fields = {"side_bits": behind.side, "added_bits": behind.added}
        fields["base_side"] = base if behind.side_planes else 0
        of_side = tensor_addresses(images, packet.rows, packet.out_groups, behind.side_planes)
        fields["base_added"] = base + of_side if behind.added else 0
        if behind.form == OutputFormat.CODES:
            options |= {
                Flag.RELU: behind.relu,
                Flag.OUT_SIGNED: behind.out_signed,
                Flag.STOCHASTIC: behind.stochastic,
                Flag.KEEP_MASK: behind.keep_mask,
                Flag.RECORDS: behind.records,
            }
            fields |= {"out_bits": behind.out, "keep_bits": behind.keep, "wide_bits": behind.wide}
        if behind.stochastic:
            fields |= _random_fields(block, stack, task)
        return replace(packet, format=behind.form, flags=packet.flags | flags_of(options), **fields)

    def _moved(self, packet: Packet, tensor: Arrangement, image: int) -> Packet:
        """A packet of virtual images from ``image`` of a stack on."""
        addresses = tensor_addresses(image, packet.rows * tensor.rows_per, packet.groups, packet.a_bits)
        fields = {"base_a": packet.base_a + addresses}
        for name, planes in (("base_side", packet.side_planes), ("base_added", packet.added_bits)):
            if planes:
                moved = tensor_addresses(image, packet.rows, packet.out_groups, planes)
                fields[name] = getattr(packet, name) + moved
        return replace(packet, **fields)

    def sides(self, block: KernelBlock, stack: Stack, task: Correlation, base: int) -> Iterator[Load]:
        """Loads into G of what the epilogue reads beside a block's results on a stack, one after the other from ``base``."""
        behind = self.product.behind
        groups = block.out_groups(self.design)
        for operand in behind.operands if behind is not None else ():
            tensor = replace(task.result, operand=operand)
            window = StackWindow(tensor, stack, (block.outputs[0], groups), block.piece.centre)
            bits = self.product.source(operand).bits
            packet = load_tensor(self.design, Target.G, stack.images, window.rows, groups, bits, 0, base)
            yield Load(self.member, (packet,), window)
            base += tensor_addresses(stack.images, window.rows, groups, bits)

    def entries(self, blocks: Sequence[KernelBlock]) -> tuple[list[int], list[Step]]:
        """First entries of blocks in E, and the step that loads them if results go through the epilogue."""
        starts = list(itertools.accumulate((b.outputs[1] - b.outputs[0] for b in blocks), initial=0))
        if self.product.behind is None:
            return starts[:-1], []
        packet = load_entries(self.design, Target.E, starts[-1])
        return starts[:-1], [LoadEpilogue(self.member, (packet,), tuple(blocks))]


@dataclass(frozen=True)
class _Own:
    """Results of a stack that count: a mask of pixels, and a range of rows of a virtual image."""

    valid: int
    rows: tuple[int, int]


def _own(stack: Stack, piece: Piece, task: Correlation) -> _Own | None:
    """Results that are neither a halo's nor beyond the layer's; None if there are none."""
    region, spans = stack.region, []
    for cut, centre, size in zip((region.rows, region.columns), piece.centre, task.out_hw, strict=True):
        spans.append((max(cut.own_start, centre) - cut.start, min(cut.own_stop, centre + size) - cut.start))
    rows, columns = spans
    if rows[0] >= rows[1] or columns[0] >= columns[1]:
        return None
    segment = (1 << columns[1]) - (1 << columns[0])
    beside = min(region.side, stack.count)
    return _Own(sum(segment << k * region.columns.size for k in range(beside)), rows)


def _parts(stack: Stack, behind: EpilogueForm) -> Iterator[tuple[int, Stack]]:
    """Virtual images of a stack that one packet takes: first image, and the part as a stack.

    Random indices step evenly along one virtual image alone, and moments are taken of the same pixels of all images, of
    which the last one may hold fewer.
    """
    side = stack.region.side
    whole = stack.count // side
    sizes = [1] * whole if behind.stochastic else [whole] if behind.moments and stack.count % side else []
    if not sizes:
        yield 0, stack
        return
    first = 0
    for images in (*(n for n in sizes if n), *([1] if stack.count % side else [])):
        count = min(images * side, stack.count - first * side)
        yield first, replace(stack, first=stack.first + first * side, count=count, images=images)
        first += images


def _random_fields(block: KernelBlock, stack: Stack, task: Correlation) -> dict[str, int]:
    """Random index of a packet's first result, (n, c, y) of the whole result counted in C order, and its steps."""
    height = task.result.hw[0]
    channels = task.kernel.outputs
    region, (cy, cx) = stack.region, block.piece.centre
    index = (stack.first * channels + block.outputs[0]) * height + region.rows.start - cy
    return {
        "index": index % (1 << 32),
        "channel_stride": height,
        "image_stride": channels * height,
        "row_stride": 1,
        "factor": power_of_two(region.columns.start - cx),
    }
