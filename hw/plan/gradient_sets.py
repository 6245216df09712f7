"""Weight gradients by kernel piece: which pieces share loads, and which share the accumulators."""

from __future__ import annotations

from dataclasses import replace

from hw import contract
from hw.design import Design
from hw.plan.arrangement import Arrangement
from hw.plan.product import Gradient, GradientPass, GradientPiece, GradientSet, LoweringError, Product
from hw.plan.tiling import extent, kernel_pieces, regions_of

_View = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # centre; span of rows and columns


def gradient_sets(
    design: Design, product: Product, gradients: tuple[Gradient, ...]
) -> tuple[tuple[GradientSet, ...], frozenset[str]]:
    """Sets of pieces in order, and what sums are left to the host.

    Pieces that look at the output gradient alike share its loads.  Where the fabric's own sums would count positions
    that are not real, the host, which has the codes, adds them up itself.
    """
    b = gradients[0].b
    out_hw = b.hw
    missing: set[str] = set()
    views: dict[_View, list[GradientPiece]] = {}
    for number, each in enumerate(gradients):
        a, size = each.a, each.size
        for piece in kernel_pieces(each.origin, size):
            rows, columns = (extent(a.hw[i], out_hw[i], [piece.centre[i]], each.origin[i], size[i]) for i in (0, 1))
            real = all(span == (0, k) for span, k in zip((rows, columns), a.hw, strict=True))
            full = all(span == (k, k + o) for span, k, o in zip((rows, columns), piece.centre, out_hw, strict=True))
            view = piece.centre, rows, columns
            pieces = views.setdefault(view, [])
            pieces.append(GradientPiece(number, a, piece, a_sum=full and each.a_sum, b_sum=real and each.b_sum))
            if each.a_sum and not full:
                missing.add("a_sum")
            if each.b_sum and not real:
                missing.add("b_sum")
    sets = []
    for view, pieces in views.items():
        found = _set_of_view(design, product, pieces, b, view)
        if len(found.regions) > 1 and any(piece.a_sum for piece in pieces):  # the fabric's would count halos twice
            found = _without_a_sums(found)
            missing.add("a_sum")
        sets.append(found)
    return tuple(sets), frozenset(missing)


def _without_a_sums(found: GradientSet) -> GradientSet:
    def left(one: GradientPass) -> GradientPass:
        return tuple((replace(piece, a_sum=False), first, groups) for piece, first, groups in one)

    return replace(found, passes=tuple(left(one) for one in found.passes))


def _set_of_view(
    design: Design, product: Product, pieces: list[GradientPiece], b: Arrangement, view: _View
) -> GradientSet:
    """The set of pieces that see the output gradient in the same place."""
    centre, rows, columns = view
    b_bits = product.source(b.operand).bits
    out_groups, passes = _gradient_passes(design, product, pieces, -(-b.channels // design.channels), b_bits)
    widest = max(groups * product.source(p.a.operand).bits for each in passes for p, _, groups in each)
    half_a, half_g = design.depth_a // 2, design.depth_g // 2
    max_rows = min(contract.LIMITS["rows"], 8 * min(half_a // widest, half_g // (out_groups * b_bits)))
    regions = regions_of(rows, columns, max_rows, design.lanes)
    return GradientSet(b, centre, tuple(regions), out_groups, tuple(passes))


def _gradient_passes(
    design: Design, product: Product, pieces: list[GradientPiece], out_groups: int, b_bits: int
) -> tuple[int, list[GradientPass]]:
    """What the accumulators hold at a time, with the least traffic: output groups per pass, and the passes."""
    room = min(design.depth_accumulator, contract.MAX_ENTRIES) // (design.channels + 1)
    bits = {p: product.source(p.a.operand).bits for p in pieces}

    def pack(out: int) -> list[list[tuple[GradientPiece, int, int]]] | None:
        passes: list[list[tuple[GradientPiece, int, int]]] = [[]]
        left = room
        for piece in pieces:
            first, total = 0, -(-piece.a.channels // design.channels)
            most = min(contract.LIMITS["groups"], design.depth_a // 2 // bits[piece])
            tile = len(piece.piece.taps) * out
            while first < total:
                ones = piece.b_sum and first == 0
                groups = min(total - first, most, left // tile - ones)
                if groups < 1:
                    if left == room:
                        return None
                    passes.append([])
                    left = room
                    continue
                passes[-1].append((piece, first, groups))
                left -= (groups + ones) * tile
                first += groups
        return passes

    best: tuple[int, int, list[list[tuple[GradientPiece, int, int]]]] | None = None
    for out in range(min(out_groups, contract.LIMITS["out_groups"], design.depth_g // 2 // b_bits), 0, -1):
        if passes := pack(out):
            loads = sum(groups * bits[piece] for each in passes for piece, _, groups in each)
            traffic = -(-out_groups // out) * (loads + len(passes) * out * b_bits)
            if best is None or traffic < best[0]:
                best = (traffic, out, passes)
    if best is None:
        least = max((1 + piece.b_sum) * len(piece.piece.taps) for piece in pieces) * (design.channels + 1)
        raise LoweringError(
            f"design {design.name}: {design.depth_accumulator} accumulator entries hold no weight gradient with its sums "
            f"({least} entries); raise depth_accumulator"
        )
    return best[1], [tuple(each) for each in best[2]]
