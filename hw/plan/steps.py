"""Steps of a program: packets, and what they carry.

A step holds no data.  Header fields that depend on data are left open: masks name all planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hw import contract
from hw.design import Design
from hw.packet import Packet, tensor_addresses
from hw.plan.arrangement import Arrangement, Kernel
from hw.plan.product import Correlation, GradientPiece, Product
from hw.plan.tiling import Piece, Stack

GroupRange = tuple[int, int]  #: first, and how many


@dataclass(frozen=True)
class KernelBlock:
    """Weights that lie together: a piece of the kernel, a block of input groups and a run of output groups.

    Attributes:
        inputs: first group of input channels, and number of groups.
        outputs: output channels (start, stop), whole groups.
        with_a_sum: the fabric sends operand sums along.
    """

    kernel: Kernel
    piece: Piece
    inputs: GroupRange
    outputs: tuple[int, int]
    bits: int
    signed: bool
    with_a_sum: bool = False

    def out_groups(self, design: Design) -> int:
        """Groups of output channels."""
        return (self.outputs[1] - self.outputs[0]) // design.channels

    def words(self, design: Design) -> int:
        """Words of the weight buffer."""
        return self.out_groups(design) * self.inputs[1] * self.bits

    def content(self, weights: int) -> object:
        """What decides its words; ``weights`` is the number of the product's weights."""
        return weights, self.kernel, self.piece.taps, self.inputs, self.outputs, self.bits


def side_addresses(product: Product, rows: int, groups: int) -> int:
    """Addresses in G of what the epilogue reads beside one virtual image of results."""
    planes = product.behind.operands.values() if product.behind is not None else ()
    return sum(tensor_addresses(1, rows, groups, n) for n in planes)


def blocks_of(
    design: Design, product: Product, kernel: Kernel, pieces: Sequence[Piece], inputs: GroupRange, whole: bool,
    rows: int = contract.ROW_BANKS,
) -> list[KernelBlock]:  # fmt: skip
    """Blocks of a correlation's weights over a range of input groups.

    Args:
        whole: results leave in the format that the product asks for.
        rows: of results in a virtual image, of which half of G holds what the epilogue reads beside a block's.
    """
    c, weight = design.channels, product.source("w")
    per_block = max(1, min(contract.LIMITS["out_groups"], design.depth_w // 2 // (inputs[1] * weight.bits)))
    if whole and product.behind is not None:
        per_block = max(1, min(per_block, design.depth_epilogue // c))
        if beside := side_addresses(product, rows, 1):
            per_block = max(1, min(per_block, design.depth_g // 2 // beside))
    out = []
    for piece in pieces:
        kept = kernel.kept_groups(piece, c)
        group = 0
        while group < len(kept):
            if not kept[group]:
                group += 1
                continue
            stop = group
            while stop < len(kept) and kept[stop] and stop - group < per_block:
                stop += 1
            with_sums = product.sums and kernel.full and group == 0
            outputs = group * c, stop * c
            out.append(KernelBlock(kernel, piece, inputs, outputs, weight.bits, weight.signed, with_sums))
            group = stop
    return out


def resident_sets(
    design: Design, product: Product, blocks: Sequence[KernelBlock], whole: bool
) -> list[list[KernelBlock]]:
    """Blocks that lie in the weight buffer together: all of them if they fit, else sets that fit half of it."""
    entries = design.depth_epilogue if whole and product.behind is not None else 1 << 30
    outputs = [block.outputs[1] - block.outputs[0] for block in blocks]
    if sum(block.words(design) for block in blocks) <= design.depth_w and sum(outputs) <= entries:
        return [list(blocks)]
    out: list[list[KernelBlock]] = []
    room = left = 0
    for block, channels in zip(blocks, outputs, strict=True):
        words = block.words(design)
        if not out or words > room or channels > left:
            out.append([])
            room, left = design.depth_w // 2, entries
        out[-1].append(block)
        room -= words
        left -= channels
    return out


@dataclass(frozen=True)
class StackWindow:
    """A stack's part of a tensor.

    Attributes:
        channels: first channel, and number of groups.
        shift: pixel [0, 0] of the tensor goes to virtual pixel ``shift``.
        own_only: pixels of the halo become code 0, so that no product counts twice.
    """

    tensor: Arrangement
    stack: Stack
    channels: GroupRange
    shift: tuple[int, int] = (0, 0)
    own_only: bool = False

    @property
    def rows(self) -> int:
        """Rows of a virtual image."""
        return self.stack.region.rows.size * self.tensor.rows_per


@dataclass(frozen=True)
class Step:
    """Packets that belong together.

    Attributes:
        member: number of the product in its program.
        packets: headers; fields that depend on data are open.
    """

    member: int
    packets: tuple[Packet, ...]


@dataclass(frozen=True)
class Load(Step):
    """A window into A, G or both."""

    window: StackWindow


@dataclass(frozen=True)
class Weights(Step):
    """A block into W."""

    block: KernelBlock


@dataclass(frozen=True)
class LoadEpilogue(Step):
    """Parameters of the output channels of blocks into E, block by block."""

    blocks: tuple[KernelBlock, ...]


@dataclass(frozen=True)
class Conv(Step):
    """Results of a block on a stack."""

    block: KernelBlock
    stack: Stack
    task: Correlation


@dataclass(frozen=True)
class Wgrad(Step):
    """A stack's share of a weight gradient; ``a`` and ``b`` lie in A and G."""

    a: Arrangement
    b: Arrangement


@dataclass(frozen=True)
class Read(Step):
    """Accumulated results: ``into`` and ``out`` are ranges of channel groups of a and b."""

    piece: GradientPiece
    into: GroupRange
    out: GroupRange
    ones: bool


@dataclass(frozen=True)
class Boundary(Step):
    """A place where the program may be cut."""
