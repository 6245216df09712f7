"""Steps of a program: packets, and what they carry.

A step holds no data.  Header fields that depend on data are left open: zero, reciprocal and key of a quantizer are 0, and
masks name all planes.
"""

from __future__ import annotations

from dataclasses import dataclass

from hw.design import Design
from hw.model.arrangement import Arrangement, Kernel
from hw.model.product import GradientPiece
from hw.model.tiling import Piece, Stack
from hw.packet import Packet

Range = tuple[int, int]  #: first, and how many


@dataclass(frozen=True)
class KernelBlock:
    """Weights that lie together: a piece of the kernel, a block of input groups and a run of output groups.

    Attributes:
        inputs: first group of input channels, and number of groups.
        outputs: output channels (start, stop), whole groups.
        ones: the "weights" are ones that add up the operand, one output channel for each of the kernel's sums.
        with_a_sum: the fabric sends operand sums along.
    """

    kernel: Kernel
    piece: Piece
    inputs: Range
    outputs: tuple[int, int]
    bits: int
    signed: bool
    ones: bool = False
    with_a_sum: bool = False

    def out_groups(self, design: Design) -> int:
        """Groups of output channels."""
        return (self.outputs[1] - self.outputs[0]) // design.channels

    def words(self, design: Design) -> int:
        """Words of the weight buffer."""
        return self.out_groups(design) * self.inputs[1] * self.bits

    def content(self, weights: int) -> object:
        """What decides its words; ``weights`` is the number of the product's weights."""
        which = None if self.ones else weights
        return which, self.kernel, self.piece.taps, self.inputs, self.outputs, self.bits


@dataclass(frozen=True)
class Window:
    """A stack's part of a tensor.

    Attributes:
        channels: first channel, and number of groups.
        shift: pixel [0, 0] of the tensor goes to virtual pixel ``shift``.
        own_only: pixels of the halo become code 0, so that no product counts twice.
    """

    tensor: Arrangement
    stack: Stack
    channels: Range
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
    """A window into A or G: one packet of codes, or one of float32 for each virtual image."""

    window: Window


@dataclass(frozen=True)
class Weights(Step):
    """A block into W."""

    block: KernelBlock


@dataclass(frozen=True)
class Epilogue(Step):
    """Multipliers and offsets of codes into E."""


@dataclass(frozen=True)
class Conv(Step):
    """Results of a block on a stack, or the operand's sums."""

    block: KernelBlock
    stack: Stack
    tensor: Arrangement


@dataclass(frozen=True)
class Wgrad(Step):
    """A stack's share of a weight gradient; ``a`` and ``b`` lie in A and G."""

    a: Arrangement
    b: Arrangement


@dataclass(frozen=True)
class Read(Step):
    """Accumulated results: ``into`` and ``out`` are ranges of channel groups of a and b."""

    piece: GradientPiece
    into: Range
    out: Range
    ones: bool


@dataclass(frozen=True)
class Boundary(Step):
    """A place where the program may be cut."""
