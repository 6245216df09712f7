"""A product of training without its data, and what it becomes on the array: :mod:`hw.plan.lowering` makes one of the other."""

from __future__ import annotations

from dataclasses import dataclass

from hw.contract import OutputFormat
from hw.networks import ConvGeometry
from hw.plan.arrangement import Along, Arrangement, Kernel
from hw.plan.tiling import Piece, Region


class LoweringError(ValueError):
    """A product that a design cannot hold, however it is cut; the message names the buffer and the remedy."""


class PartialSumsError(LoweringError):
    """A product that a design computes in partial sums, behind which no epilogue can stand."""


@dataclass(frozen=True)
class Source:
    """The codes as which an operand reaches the fabric: their bits, and whether they are signed."""

    bits: int
    signed: bool = False


@dataclass(frozen=True)
class EpilogueForm:
    """What the epilogue makes of a product's sums, without its parameters; terms as in docs/programs.md, CONV.

    Attributes:
        form: CODES or MOMENTS.
        side, side_signed: bits of the elements of SIDE, 0: none.
        masked: SIDE has a mask plane on top, which the sums pass.
        added: bits of the elements of ADDED, 0: none.
        cross: moments with the elements of SIDE instead of squares.
        records: moments of the results follow their codes.
        out, out_signed, relu: of the codes A.
        keep, keep_mask: of the codes K, and whether the mask comes on top.
        wide: bits of the codes S, 0: none.
        stochastic: A and K are rounded at random.
    """

    form: OutputFormat
    side: int = 0
    side_signed: bool = False
    masked: bool = False
    added: int = 0
    cross: bool = False
    records: bool = False
    out: int = 0
    out_signed: bool = False
    relu: bool = False
    keep: int = 0
    keep_mask: bool = False
    wide: int = 0
    stochastic: bool = False

    @property
    def moments(self) -> bool:
        """Whether moments per channel leave."""
        return self.form == OutputFormat.MOMENTS or self.records

    @property
    def plain(self) -> bool:
        """Whether each result is a code A of its own sum alone, so that it may leave as an integer where sums are partial."""
        return self == EpilogueForm(OutputFormat.CODES, out=self.out, out_signed=self.out_signed, relu=self.relu)

    @property
    def side_planes(self) -> int:
        """Planes of SIDE, mask plane included."""
        return self.side + self.masked

    @property
    def operands(self) -> dict[str, int]:
        """Planes of the tensors that the epilogue reads, by operand."""
        return {name: n for name, n in (("side", self.side_planes), ("added", self.added)) if n}


@dataclass(frozen=True)
class Product:
    """One product of training, without its data.

    Attributes:
        kind: "forward" of x and w, "input_gradient" of g and w, "weight_gradient" of x and g, or "backward": both.
        geometry: of the convolution.
        x, w, g: activations, weights and output gradient, as far as the product takes them.
        sums: operand sums are wanted too, as affine grids need them.
        behind: what the epilogue makes of the sums of an output or input gradient; None: they leave as integers, as weight
            gradients and partial sums do in any case.
        skip_zero: the fabric looks for zero planes itself.
        batches: of this size, whose weight gradient is summed before it is read, which decides how many bits it takes.
        weights: products of one program with the same number and the same grid have the same weights.

    Raises:
        ValueError: operand sums beside results that are not integers.
    """

    kind: str
    geometry: ConvGeometry
    x: Source | None = None
    w: Source | None = None
    g: Source | None = None
    sums: bool = True
    behind: EpilogueForm | None = None
    skip_zero: bool = False
    batches: int = 1
    weights: int = 0

    def __post_init__(self) -> None:
        if self.sums and self.behind is not None:
            raise ValueError(
                f"results leave as {self.behind.form.name}, beside which no operand sums leave; set sums=False"
            )

    def source(self, operand: str) -> Source:
        """How an operand of an arrangement travels."""
        if self.behind is not None and operand in self.behind.operands:
            return Source(self.behind.operands[operand])
        source = {"x": self.x, "w": self.w, "g": self.g}[operand]
        assert source is not None, f"{self.kind} has no operand {operand}"
        return source


@dataclass(frozen=True)
class Correlation:
    """A product that CONV packets compute.

    Attributes:
        tensor: what lies in buffer A.
        kernel: what it is correlated with.
        origin: offset of kernel element [0, 0].
        result: the layer's result as it is computed, (N, outputs, OH, OW).
    """

    tensor: Arrangement
    kernel: Kernel
    origin: tuple[int, int]
    result: Arrangement

    @property
    def out_hw(self) -> tuple[int, int]:
        """Height and width of the result."""
        return self.result.hw


@dataclass(frozen=True)
class Gradient:
    """A weight gradient that WGRAD packets compute: of ``a`` (N, Ca, H, W) and ``b`` (N, O, OH, OW).

    Attributes:
        origin: offset of kernel element [0, 0].
        size: of the kernel.
        phases: of the layer's kernel that lie in it, side by side in the channels of a: rows and columns of each, with
            their first offsets.
        a_sum, b_sum: whether sums of a and of b under the kernel are wanted.
    """

    a: Arrangement
    b: Arrangement
    origin: tuple[int, int]
    size: tuple[int, int]
    phases: tuple[tuple[Along, Along], ...]
    a_sum: bool
    b_sum: bool


@dataclass(frozen=True)
class GradientPiece:
    """Up to 3x3 kernel positions of a weight gradient.

    Attributes:
        number: of the gradient.
        a: the operand in buffer A.
        piece: the kernel positions.
        a_sum, b_sum: whether the fabric's own sums count; ``b_sum`` takes the ONES group.
    """

    number: int
    a: Arrangement
    piece: Piece
    a_sum: bool = False
    b_sum: bool = False

    @property
    def taps(self) -> int:
        """Mask of the taps in use."""
        return sum(1 << tap for tap, _, _ in self.piece.taps)


#: pieces that the accumulators hold at a time: each with its first channel group and number of groups
GradientPass = tuple[tuple[GradientPiece, int, int], ...]


@dataclass(frozen=True)
class GradientSet:
    """Pieces that look at an output gradient in the same place, so that they share its loads.

    Attributes:
        b: the output gradient.
        centre: where its pixel [0, 0] lies in a virtual image.
        regions: of the images.
        out_groups: output groups per pass.
        passes: what is accumulated together.
    """

    b: Arrangement
    centre: tuple[int, int]
    regions: tuple[Region, ...]
    out_groups: int
    passes: tuple[GradientPass, ...]


@dataclass(frozen=True)
class Lowered:
    """A product as the array computes it.

    Attributes:
        product: what was lowered.
        correlations: of the output or the input gradient, which add to the same result.
        gradients: of the weights, phase by phase; of an output or input gradient that contracts along pixels, one.
        sets: the gradients' pieces in the order in which they run.
        fused: the correlation and the first of the sets take turns, stack by stack; an output gradient that both read alike
            is loaded once.
        host_sums: "a_sum" or "b_sum" of the weight gradient, if they are left to the host.
    """

    product: Product
    correlations: tuple[Correlation, ...] = ()
    gradients: tuple[Gradient, ...] = ()
    sets: tuple[GradientSet, ...] = ()
    fused: bool = False
    host_sums: frozenset[str] = frozenset()

    @property
    def along_pixels(self) -> bool:
        """Whether an output or input gradient is computed as a weight gradient is."""
        return not self.correlations and self.product.kind != "weight_gradient"
