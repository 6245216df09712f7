"""Training products of a layer as packets without payload: what the cycle model counts and the engine bench runs.

Tensors cross the memory as packed codes, are loaded into alternating halves of the buffers, and leave as packed codes
or as 32-bit sums.  Both gradients of a layer share one load of the output gradient, unless the input gradient takes its
channel groups in pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hw.contract import HEADER_WORDS, Flag, Opcode, OutputFormat, Target
from hw.design import Design
from hw.model.lowering import pairs_channel_groups
from hw.networks import Bits, ConvShape
from hw.packet import (
    END,
    Packet,
    blocks,
    load_entries,
    load_tensor,
    product,
    read_entries,
    sums_format,
    tensor_addresses,
)


class WorkloadError(ValueError):
    """A layer that this schedule of packets cannot hold; the message names the buffer and the remedy."""


@dataclass(frozen=True)
class Contracted:
    """What a CONV contracts over: its virtual images in buffer A.

    Attributes:
        groups: channel groups.
        rows: virtual rows of an image.
        stride_2: the fabric's own stride of two, four virtual rows for each row of the output.
    """

    groups: int
    rows: int
    stride_2: bool

    def addresses(self, bits: int) -> int:
        """Addresses of a virtual image."""
        return tensor_addresses(1, self.rows, self.groups, bits)


@dataclass(frozen=True)
class ArrayShape:
    """A convolution as the array sees it: 3x3 taps at the resolution of its output.

    A stride of two splits the input into phases, four for a 3x3 kernel:

    - The weight gradient takes the phases one by one, each with the kernel positions that it meets.
    - The input gradient makes the phases of its result as channels, and takes the channel groups of the output gradient
      in pairs where that is quicker.
    - The forward product of a 3x3 kernel reads even and odd columns; that of other kernels takes the phases as channels.

    Attributes:
        groups, out_groups: channel groups of input (one phase) and output.
        phase_groups: channel groups of all phases of the input side by side.
        taps: kernel positions that each phase meets, as masks.
        stride_2: the fabric's own stride of two is that of the layer.
        rows: of a virtual image of the output.
        side: real images side by side in a virtual row.
        segment_start: mask of their first pixels.
        ideal_macs: multiply-accumulates of one product for one real image.
    """

    groups: int
    out_groups: int
    phase_groups: int
    taps: tuple[int, ...]
    stride_2: bool
    rows: int
    side: int
    segment_start: int
    ideal_macs: int

    def _contracted(self, groups: int, stride_2: bool) -> Contracted:
        return Contracted(groups, 4 * self.rows if stride_2 else self.rows, stride_2)

    @property
    def forward(self) -> Contracted:
        """The forward product's input."""
        return self._contracted(self.groups if self.stride_2 else self.phase_groups, self.stride_2)

    def backward(self, design: Design, bits: Bits) -> Contracted:
        """The input gradient's output gradient."""
        paired = self.stride_2 and pairs_channel_groups(
            design, self.phase_groups, self.out_groups, bits.w, bits.g, bits.g
        )
        return self._contracted(-(-self.out_groups // 2) if paired else self.out_groups, paired)

    def phase_addresses(self, bits: int) -> int:
        """Addresses of a virtual image of one phase of the weight gradient's input."""
        return tensor_addresses(1, self.rows, self.groups, bits)

    @property
    def gradient_tiles(self) -> int:
        """Tiles of C x C weights that a weight gradient accumulates."""
        return self.groups * self.out_groups * sum(taps.bit_count() for taps in self.taps)


def _axis_taps(shape: ConvShape) -> list[int]:
    """Of each phase along an axis: mask of the taps 0..2 that it meets."""
    out = []
    for phase in range(shape.stride):
        offsets = [(k - shape.padding - phase) // shape.stride for k in range(shape.kernel)
                   if (k - shape.padding) % shape.stride == phase]  # fmt: skip
        centre = 0 if not offsets or (offsets[0] >= -1 and offsets[-1] <= 1) else offsets[0] + 1
        if offsets:
            out.append(sum(1 << (offset - centre + 1) for offset in offsets))
    return out


def array_shape(design: Design, shape: ConvShape) -> ArrayShape:
    """How ``shape`` maps onto the array of ``design``.

    Raises:
        WorkloadError: rows wider than the array, depthwise layers, or kernels beyond 3x3 (the driver splits those).
    """
    rows, width = shape.out_hw
    if width > design.lanes or shape.kernel > 3 or shape.groups != 1 or shape.stride > 2:
        raise WorkloadError(
            f"layer {shape.name}: {width} pixels wide, kernel {shape.kernel}, groups {shape.groups}, stride {shape.stride}; "
            f"this schedule takes up to {design.lanes} pixels, 3x3 kernels, one group and stride 2"
        )
    axis = _axis_taps(shape)
    taps = tuple(
        sum(1 << (3 * y + x) for y in range(3) for x in range(3) if rows_of >> y & columns_of >> x & 1)
        for rows_of in axis
        for columns_of in axis
    )
    even = all(n % 2 == 0 for n in shape.in_hw)
    side = design.lanes // width
    start = sum(1 << (s * width) for s in range(side))
    if side * width < design.lanes:
        start |= 1 << (side * width)
    return ArrayShape(
        groups=-(-shape.in_channels // design.channels),
        out_groups=-(-shape.out_channels // design.channels),
        phase_groups=-(-len(taps) * shape.in_channels // design.channels),
        taps=taps,
        stride_2=(shape.kernel, shape.stride, shape.padding) == (3, 2, 1) and even,
        rows=rows,
        side=side,
        segment_start=start,
        ideal_macs=shape.macs,
    )


def _conv(m: ArrayShape, over: Contracted, out_groups: int, a_bits: int, b_bits: int, signed: bool, images: int, base_a: int,  # noqa: PLR0913 - goes with this module
          base_w: int, out_bits: int) -> Packet:  # fmt: skip
    conv = product(
        Opcode.CONV,
        rows=m.rows,
        groups=over.groups,
        out_groups=out_groups,
        images=images,
        a_bits=a_bits,
        b_bits=b_bits,
        flags=(Flag.A_SIGNED if signed else 0) | Flag.B_SIGNED | (Flag.STRIDE_2 if over.stride_2 else 0),
        segment_start=m.segment_start,
        base_a=base_a,
        base_b=base_w,
    )
    if not out_bits:
        return conv
    flags = conv.flags | (Flag.OUT_SIGNED if signed else Flag.RELU)
    return replace(conv, format=OutputFormat.CODES, out_bits=out_bits, shift=8, flags=flags)


def _fits(name: str, need: int, depth: int, buffer: str) -> None:
    if need > depth:
        raise WorkloadError(f"layer {name}: buffer {buffer} needs {need} of {depth} addresses; choose a deeper design")


def forward(
    design: Design, shape: ConvShape, bits: Bits, images: int, codes: bool = True, statistics: bool = False
) -> Iterator[Packet]:
    """Packets of the output of ``images`` virtual images, END included, or of its channels' statistics alone."""
    m = array_shape(design, shape)
    over = m.forward
    size = over.addresses(bits.a)
    _fits(shape.name, size * 2, design.depth_a, "A")
    weights = over.groups * m.out_groups * bits.w
    _fits(shape.name, weights, design.depth_w, "W")
    codes = codes and not statistics
    if codes:
        yield load_entries(design, Target.E, m.out_groups * design.channels)
    yield load_entries(design, Target.W, weights)
    for v in range(images):
        base = v % 2 * size
        yield load_tensor(design, Target.A, 1, over.rows, over.groups, bits.a, base)
        conv = _conv(m, over, m.out_groups, bits.a, bits.w, False, 1, base, 0, bits.a if codes else 0)
        if statistics:
            conv = replace(conv, format=OutputFormat.STATISTICS, pixels=m.side * shape.out_hw[1])
        yield conv
    yield END


def backward(
    design: Design, shape: ConvShape, bits: Bits, images: int, codes: bool = True, read: bool = True,
    products: tuple[str, ...] = ("input_gradient", "weight_gradient"), summed: int | None = None,
) -> Iterator[Packet]:  # fmt: skip
    """Packets of the gradients of ``images`` virtual images, END included; ``products`` may leave one out.

    The weight gradient accumulates on chip over all images and is sent once, if ``read``, in 64 bits where 32 could be
    too few.

    Args:
        summed: virtual images that decide about 64 bits, where ``images`` stand for a longer batch.
    """
    m = array_shape(design, shape)
    over = m.backward(design, bits)
    phase_size, over_size = m.phase_addresses(bits.a), over.addresses(bits.g)
    g_size = tensor_addresses(1, m.rows, m.out_groups, bits.g)
    a_size = len(m.taps) * phase_size
    with_input, with_weight = "input_gradient" in products, "weight_gradient" in products
    a_need = (over_size if with_input else 0) + (a_size if with_weight else 0)
    # Small chunks overlap loading best; a weight gradient's tile must only last longer than the one before it drains.
    steps = bits.a * bits.g * blocks(m.rows)
    enough = -(-2 * (design.channels + 1) // steps) if with_weight else 1
    chunk = min(images, design.depth_a // (2 * a_need), enough, 64)
    if with_weight:
        chunk = min(chunk, design.depth_g // (2 * g_size))
    _fits(shape.name, 2 * a_need, design.depth_a, "A")
    if with_weight:
        _fits(shape.name, 2 * g_size, design.depth_g, "G")
    weights = m.phase_groups * over.groups * bits.w
    if with_input:
        _fits(shape.name, weights, design.depth_w, "W")
        if codes:
            yield load_entries(design, Target.E, m.phase_groups * design.channels)
        yield load_entries(design, Target.W, weights)
    entries = m.gradient_tiles * (design.channels + 1)
    shared = with_input and with_weight and not over.stride_2

    def load_contracted(v: int) -> Packet:
        n, start = min(chunk, images - v), v // chunk % 2 * chunk
        target = Target.A | Target.G if shared else Target.A
        return load_tensor(design, target, n, over.rows, over.groups, bits.g, start * a_need, start * g_size)

    # The four weight gradients of a stride of two fill the queue until the CONV before them is done.  What the next CONV
    # needs is loaded before they are sent.
    ahead = chunk if with_input and with_weight and len(m.taps) > 1 else 0
    first = True
    for v in range(0, images, chunk):
        n = min(chunk, images - v)
        half = v // chunk % 2
        g_in_a = half * chunk * a_need
        a_in_a = g_in_a + (chunk * over_size if with_input else 0)
        g_in_g = half * chunk * g_size
        if with_input:
            if v == 0 or not ahead:
                yield load_contracted(v)
            yield _conv(m, over, m.phase_groups, bits.g, bits.w, True, n, g_in_a, 0, bits.g if codes else 0)
            if ahead and v + ahead < images:
                yield load_contracted(v + ahead)
        if with_weight:
            if not shared:
                yield load_tensor(design, Target.G, n, m.rows, m.out_groups, bits.g, 0, g_in_g)
            _fits(shape.name, entries, design.depth_accumulator, "accumulator")
            base = 0
            for phase, taps in enumerate(m.taps):
                base_a = a_in_a + phase * n * phase_size
                yield load_tensor(design, Target.A, n, m.rows, m.groups, bits.a, base_a)
                wgrad = product(
                    Opcode.WGRAD,
                    rows=m.rows,
                    groups=m.groups,
                    out_groups=m.out_groups,
                    images=n,
                    a_bits=bits.a,
                    b_bits=bits.g,
                    flags=Flag.B_SIGNED | (Flag.CLEAR if first else 0),
                    segment_start=m.segment_start,
                    base_a=base_a,
                    base_b=g_in_g,
                    taps=taps,
                    base_accumulator=base,
                )
                yield wgrad
                base += wgrad.entries(design)
            first = False
    if with_weight and read:
        bound = replace(wgrad, images=summed or images).sum_bound(design)  # as the driver reckons
        yield read_entries(entries, form=sums_format(bound))
    yield END


def words(packets: list[Packet]) -> int:
    """64-bit words of a program made of ``packets``."""
    return sum(HEADER_WORDS + p.payload_words for p in packets)
