"""The products of a layer's training step as programs, from its shape and widths: what the cost models count.

Layers with groups become dense products of a few groups each, matrix products of every row of a batch one product, and
the products of attention one for each sample and head, as ``host/driver/grouped.py`` and PyTorch's layers send them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hw.contract import OutputFormat
from hw.design import Design
from hw.networks import Bits, ConvGeometry, ConvShape
from hw.packet import END, Packet
from hw.plan.plan import packets, programs, steps
from hw.plan.product import EpilogueForm, Product, Source

GROUPED_CHANNELS = 16  #: channels of a layer with groups that share a dense product

#: operands of each product
OPERANDS = {"forward": "xw", "input_gradient": "gw", "weight_gradient": "xg", "backward": "xwg"}


@dataclass(frozen=True)
class Form:
    """How a step's operands and results cross the memory.

    Attributes:
        sums: operand sums are wanted, as affine grids need them.
        output: of forward product and input gradient: integers, or codes as wide as the first operand's.
    """

    sums: bool = False
    output: OutputFormat = OutputFormat.INT32


CODES = Form(output=OutputFormat.CODES)  #: codes in, codes out
INTEGERS = Form()  #: codes in, integers out
TRAINING = Form(sums=True)  #: as PyTorch's layers use the driver


def geometries(shape: ConvShape, batch: int) -> list[tuple[int, ConvGeometry]]:
    """Dense products of a layer over a batch: how often, and the geometry."""
    into, out = shape.in_channels // shape.groups, shape.out_channels // shape.groups
    if shape.kernel == 1 and shape.stride == 1 and not shape.padding and 1 in shape.in_hw:
        pixels = shape.in_hw[0] * shape.in_hw[1]
        if shape.kind == "attention":  # every sample and head has its own second operand
            return [(batch * shape.groups, ConvGeometry(pixels, into, out, (1, 1)))]
        batch, in_hw = batch * pixels, (1, 1)
    else:
        in_hw = shape.in_hw
    together = min(shape.groups, max(1, GROUPED_CHANNELS // max(into, out)))
    whole, left = divmod(shape.groups, together)
    kernel = shape.kernel, shape.kernel
    return [
        (count, ConvGeometry(batch, groups * into, groups * out, in_hw, kernel, shape.stride, shape.padding))
        for count, groups in ((whole, together), (1, left))
        if count and groups
    ]


def layer_products(
    shape: ConvShape, bits: Bits, batch: int, kind: str, form: Form = CODES
) -> list[tuple[int, Product]]:
    """Products of a layer over a batch: how often, and which.

    Args:
        bits: of weights, activations and gradients, each at most 16.
        batch: real images.
        kind: "forward", "input_gradient", "weight_gradient" or "backward", both gradients in one program.
    """
    g_bits = bits.weight_g if bits.weight_g and kind == "weight_gradient" else bits.g
    sources = {
        "x": Source(bits.a),
        "w": Source(bits.a if shape.kind == "attention" else bits.w, not form.sums),
        "g": Source(g_bits, not form.sums),
    }
    x, w, g = (sources[name] if name in OPERANDS[kind] else None for name in "xwg")
    first = {"forward": x, "weight_gradient": None}.get(kind, g)
    behind = None
    if form.output != OutputFormat.INT32 and first is not None:
        behind = EpilogueForm(form.output)
        if form.output == OutputFormat.CODES:
            behind = replace(behind, out=first.bits, out_signed=first.signed, relu=not first.signed)
    return [
        (count, Product(kind, geometry, x, w, g, form.sums, behind)) for count, geometry in geometries(shape, batch)
    ]


def program(design: Design, product: Product, count: int = 1) -> Iterator[Packet]:
    """Packets of a program of like products, each with weights of its own; END included."""
    return packets(design, _like(product, count))


def driver_programs(design: Design, product: Product, count: int = 1) -> Iterator[list[Packet]]:
    """The same packets in programs as long as the driver's, each with its END."""
    for cut in programs(design, steps(design, _like(product, count))):
        yield [*(packet for step in cut for packet in step.packets), END]


def _like(product: Product, count: int) -> Sequence[Product]:
    return [replace(product, weights=number) for number in range(count)]
