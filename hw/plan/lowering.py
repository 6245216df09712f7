"""What a product of training becomes on the array: correlations of up to 3x3 taps, and weight gradients by kernel piece.

A *correlation* is the common form of output and input gradient: ``y[n,o,i,j] = sum a[n,c,i+dy,j+dx] k[o,c,dy,dx]`` over
any range of offsets.  The common 3x3 kernel with stride 2 runs as it is.  Other strides of a forward product turn the
phases of the input into extra input channels, in an input gradient the phases of the result into extra output channels,
which the common kernel contracts over two groups of channels at once.  A matrix product may contract along pixels, as a
weight gradient does, where that is quicker.

Shapes and widths decide everything, so a product is lowered without its data; :mod:`hw.plan.schedule` makes packets.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from hw.design import Design
from hw.model.cycles import predict
from hw.networks import ConvGeometry
from hw.packet import END
from hw.plan.arrangement import Along, Arrangement, Kernel
from hw.plan.gradient_sets import gradient_sets
from hw.plan.product import Correlation, Gradient, GradientPass, GradientSet, Lowered, LoweringError, Product
from hw.plan.schedule import fuses, steps_of
from hw.plan.tiling import axis_phases, axis_phases_back


def pairs_channel_groups(design: Design, results: int, groups: int, w_bits: int, g_bits: int) -> bool:
    """Whether the input gradient of a 3x3 kernel at stride 2 takes the channel groups of the output gradient in pairs.

    One row of two groups then is four rows of one, and eight of nine taps have work where four had
    (``host/driver/layout.py:_paired``).  That is worth it if the array saves more steps than the loads get beats.

    Args:
        results: channel groups of the result, the four phases of each pixel being channels.
        groups: channel groups of the output gradient.
        w_bits, g_bits: of weights and output gradient.
    """
    pairs = -(-groups // 2)
    saved = results * (groups - pairs) * w_bits * g_bits  # steps per row
    added = 4 * pairs * g_bits * design.row_words // 2  # beats, next to those of the weight gradient's copy
    return saved > added


def _halves(m: ConvGeometry) -> bool:
    """Whether the fabric's own stride of two is that of the product."""
    return m.kernel == (3, 3) and m.stride == 2 and m.padding == 1 and m.in_hw[0] % 2 == m.in_hw[1] % 2 == 0


def _span(axis: Iterable[tuple[int, int, list[int]]]) -> tuple[int, int]:
    """First offset of an axis' phases, and number of offsets."""
    first = min(offset for _, offset, _ in axis)
    return first, max(offset + len(indices) for _, offset, indices in axis) - first


def _cycles(design: Design, lowered: Lowered) -> int:
    """What the cycle model says of a program of a product."""
    packets = [packet for step in steps_of(design, [lowered]) for packet in step.packets]
    return predict(design, [*packets, END]).cycles


def _is_quicker_along_pixels(design: Design, product: Product) -> bool:
    """Whether the cycle model says that a matrix product takes less as a weight gradient than as a correlation."""
    if not product.geometry.is_linear or not (product.behind is None or product.behind.plain):
        return False

    forward = product.kind == "forward"
    across = (_correlated_forward if forward else _correlated_back)(design, product)
    along = (_forward_along_pixels if forward else _input_gradient_along_pixels)(design, product)
    return _cycles(design, along) < _cycles(design, across)


@lru_cache(maxsize=1 << 12)
def lower(design: Design, product: Product) -> Lowered:
    """How a product runs on the array of ``design``.

    Raises:
        LoweringError: buffers or accumulators that do not hold one group of channels.
        ValueError: an unknown kind of product.
    """
    _check_buffers(design, product)
    if product.kind == "forward":
        return _forward(design, product)
    if product.kind == "input_gradient":
        return _input_gradient(design, product)
    if product.kind == "weight_gradient":
        return _weight_gradient(design, product)
    if product.kind == "backward":
        return _backward(design, product)
    raise ValueError(f"no product {product.kind!r}; use one of forward, input_gradient, weight_gradient, backward")


def _check_buffers(design: Design, product: Product) -> None:
    """One group of channels and eight rows must fit half of A, and of G; one group of weights must fit W."""
    first = "g" if product.kind == "input_gradient" else "x"
    needs = [("A", product.source(first).bits, design.depth_a // 2)]
    if product.kind in ("weight_gradient", "backward"):
        needs.append(("G", product.source("g").bits, design.depth_g // 2))
    if product.kind == "backward":
        needs.append(("A", product.source("g").bits, design.depth_a // 2))
    if product.kind != "weight_gradient":
        needs.append(("W", product.source("w").bits, design.depth_w))
    for buffer, bits, room in needs:
        if bits > room:
            raise LoweringError(
                f"design {design.name}: buffer {buffer} of {getattr(design, f'depth_{buffer.lower()}')} addresses does not "
                f"hold one group of channels of {bits} bits; raise depth_{buffer.lower()}"
            )


def _forward(design: Design, product: Product) -> Lowered:
    if _is_quicker_along_pixels(design, product):
        return _forward_along_pixels(design, product)
    return _correlated_forward(design, product)


def _forward_along_pixels(design: Design, product: Product) -> Lowered:
    m = product.geometry
    x = Arrangement.whole("x", (m.batch, m.in_channels, 1, 1))
    return _matrix_gradient(design, product, x, Arrangement.whole("w", (m.out_channels, m.in_channels, 1, 1)))


def _correlated_forward(design: Design, product: Product) -> Lowered:
    m = product.geometry
    tensor = Arrangement.whole("x", (m.batch, m.in_channels, *m.in_hw))
    result = Arrangement.whole("result", (m.batch, m.out_channels, *m.out_hw))
    if m.is_linear:
        tensor, result = tensor.row_of_pixels(design.lanes), result.row_of_pixels(design.lanes)
    channels = m.out_channels, m.in_channels
    ys, xs = (axis_phases(k, m.stride, m.padding) for k in m.kernel)
    if _halves(m):
        whole = (0, (0, 1, 2))
        kernel = Kernel(channels, False, ((whole, whole),), (3, 3))
        return Lowered(product, (Correlation(tensor.interleaved(), kernel, (-1, -1), result),))
    if m.stride > 1:
        (y0, ny), (x0, nx) = _span(ys), _span(xs)
        phases = tuple(
            ((dy - y0, tuple(iy)), (dx - x0, tuple(ix))) for (_, dy, iy), (_, dx, ix) in itertools.product(ys, xs)
        )
        at = tuple((py, px) for (py, _, _), (px, _, _) in itertools.product(ys, xs))
        kernel = Kernel(channels, False, phases, (ny, nx))
        return Lowered(product, (Correlation(tensor.merged(at, m.stride), kernel, (y0, x0), result),))
    ((_, dy, iy),), ((_, dx, ix),) = ys, xs
    kernel = Kernel(channels, False, (((0, tuple(iy)), (0, tuple(ix))),), (len(iy), len(ix)))
    return Lowered(product, (Correlation(tensor, kernel, (dy, dx), result),))


def _input_gradient(design: Design, product: Product) -> Lowered:
    if _is_quicker_along_pixels(design, product):
        return _input_gradient_along_pixels(design, product)
    return _correlated_back(design, product)


def _input_gradient_along_pixels(design: Design, product: Product) -> Lowered:
    m = product.geometry
    weights = Arrangement.whole("w", (m.out_channels, m.in_channels, 1, 1)).transposed()
    return _matrix_gradient(design, product, Arrangement.whole("g", (m.batch, m.out_channels, 1, 1)), weights)


def _correlated_back(design: Design, product: Product) -> Lowered:
    m, g, w = product.geometry, product.source("g"), product.source("w")
    tensor = Arrangement.whole("g", (m.batch, m.out_channels, *m.out_hw))
    result = Arrangement.whole("result", (m.batch, m.in_channels, *m.in_hw))
    if m.is_linear:
        tensor, result = tensor.row_of_pixels(design.lanes), result.row_of_pixels(design.lanes)
    c, s = design.channels, m.stride
    results, groups = -(-s * s * m.in_channels // c), -(-m.out_channels // c)
    paired = _halves(m) and pairs_channel_groups(design, results, groups, w.bits, g.bits)
    if paired:  # seen from the far corner, windows end with their pixel, as those of the fabric's stride do
        tensor, result = tensor.mirrored().paired(), result.mirrored()
    # mirrored, the weight's indices are those of a layer without padding, counted from the other end
    ys, xs = (axis_phases_back(k, s, 0 if paired else m.padding) for k in m.kernel)
    if paired:
        ys, xs = ([(p, d, [k - 1 - i for i in indices]) for p, d, indices in axis]
                  for axis, k in zip((ys, xs), m.kernel, strict=True))  # fmt: skip
    (y0, ny), (x0, nx) = _span(ys), _span(xs)
    phases = tuple(
        ((dy - y0, tuple(iy)), (dx - x0, tuple(ix))) for (_, dy, iy), (_, dx, ix) in itertools.product(ys, xs)
    )
    if s > 1:
        result = result.merged(tuple((py, px) for (py, _, _), (px, _, _) in itertools.product(ys, xs)), s)
    kernel = Kernel((m.out_channels, m.in_channels), True, phases, (3, 3) if paired else (ny, nx), paired)
    return Lowered(product, (Correlation(tensor, kernel, (-1, -1) if paired else (y0, x0), result),))


def _matrix_gradient(design: Design, product: Product, a: Arrangement, b: Arrangement) -> Lowered:
    """Matrix product of a (N, K, 1, 1) and b (O, K, 1, 1), contracted along pixels as weight gradients are."""
    element: Along = (0, (0,))
    gradient = Gradient(
        a.contracted(design.lanes),
        b.contracted(design.lanes),
        (0, 0),
        (1, 1),
        ((element, element),),
        product.sums,
        False,
    )
    sets, missing = gradient_sets(design, product, (gradient,))
    assert not missing
    return Lowered(product, gradients=(gradient,), sets=sets)


def _gradients(design: Design, product: Product) -> tuple[Gradient, ...]:
    """The weight gradients that a layer's is made of."""
    m = product.geometry
    a = Arrangement.whole("x", (m.batch, m.in_channels, *m.in_hw))
    b = Arrangement.whole("g", (m.batch, m.out_channels, *m.out_hw))
    if m.is_linear:
        a, b = a.row_of_pixels(design.lanes), b.row_of_pixels(design.lanes)
    s, c = m.stride, design.channels
    ys, xs = (axis_phases(k, s, m.padding) for k in m.kernel)
    phases = list(itertools.product(ys, xs))
    # phases side by side in a group of channels save tiles if there are few channels, though all take all taps then
    (_, ny), (_, nx) = _span(ys), _span(xs)
    together = -(-len(phases) * m.in_channels // c) * ny * nx
    apart = -(-m.in_channels // c) * m.kernel[0] * m.kernel[1]
    even = all(n % s == 0 for n in a.shape[2:])
    tasks = [(a.phase(y[0], x[0], s) if s > 1 else a, [(y, x)]) for y, x in phases]
    if s > 1 and even and together < apart:
        tasks = [(a.merged(tuple((y[0], x[0]) for y, x in phases), s), phases)]
    out = []
    for tensor, mine in tasks:
        (y0, ny), (x0, nx) = _span([y for y, _ in mine]), _span([x for _, x in mine])
        parts = tuple(((y[1] - y0, tuple(y[2])), (x[1] - x0, tuple(x[2]))) for y, x in mine)
        out.append(Gradient(tensor, b, (y0, x0), (ny, nx), parts, product.sums, product.sums))
    return tuple(out)


def _weight_gradient(design: Design, product: Product) -> Lowered:
    gradients = _gradients(design, product)
    sets, missing = gradient_sets(design, product, gradients)
    return Lowered(product, gradients=gradients, sets=sets, host_sums=missing)


def _backward(design: Design, product: Product) -> Lowered:
    to_input, to_weight = _input_gradient(design, product), _weight_gradient(design, product)
    # a matrix product along pixels makes gradients of its own; they come first
    apart = Lowered(
        product,
        to_input.correlations,
        (*to_input.gradients, *to_weight.gradients),
        (*to_input.sets, *_renumbered(to_weight.sets, len(to_input.gradients))),
        host_sums=to_weight.host_sums,
    )
    if not fuses(design, apart):
        return apart
    fused = replace(apart, fused=True)
    # at stride 1 it nearly always pays, and searches lower many products: the question would take longer than the answer
    return fused if product.geometry.stride == 1 or _cycles(design, fused) <= _cycles(design, apart) else apart


def _renumbered(sets: tuple[GradientSet, ...], by: int) -> tuple[GradientSet, ...]:
    def moved(one: GradientPass) -> GradientPass:
        return tuple((replace(piece, number=piece.number + by), first, groups) for piece, first, groups in one)

    return tuple(replace(each, passes=tuple(moved(one) for one in each.passes)) for each in sets) if by else sets
