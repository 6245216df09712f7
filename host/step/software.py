"""Passes on the processor in NumPy, exact to the integer: the yardstick for every other engine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from host import epilogue
from host.arrays import I64, U32, Array
from host.exact_engine import correlate, correlate_back, correlate_weight
from host.step.passes import PassEpilogue, PassMeter, PassResult, ProductPass
from host.step.result_order import ResultOrder, random_numbers
from hw.networks import ConvGeometry
from hw.plan.tiling import axis_phases_back


def natural_order(wanted: ProductPass) -> ResultOrder:
    """Phases of a strided input gradient as channels, as every design computes them."""
    m = wanted.geometry
    if wanted.kind == "forward" or m.stride == 1:
        return ResultOrder()
    rows, columns = (len(axis_phases_back(k, m.stride, m.padding)) for k in m.kernel)
    return ResultOrder(m.stride, reached=rows * columns)


class SoftwareEngine:
    """Implements :class:`host.step.passes.PassEngine`.

    Args:
        order: where the elements of a pass' result lie while a design computes it.
    """

    def __init__(self, order: Callable[[ProductPass], ResultOrder] = natural_order) -> None:
        self.meter, self.schedules = PassMeter(), None
        self.order = order

    def run(self, wanted: ProductPass) -> PassResult:
        """Runs a pass."""
        self.meter.add(wanted.purpose, 1)
        gradient = _weight_gradient(wanted) if wanted.kind in ("weight_gradient", "backward") else None
        if wanted.behind is None:
            return PassResult(weight_gradient=gradient)
        result = finish(self.sums(wanted), wanted.behind, random_of(wanted, self.order(wanted)))
        return PassResult(result.a, result.k, result.s, result.mask, result.moments, gradient, result.saturated)

    def sums(self, wanted: ProductPass) -> I64:
        """Exact sums of an output or input gradient."""
        assert wanted.w is not None
        product = correlate if wanted.kind == "forward" else correlate_back
        bound = wanted.operand.greatest * wanted.w.greatest * wanted.terms
        return _by_groups(product, wanted.operand.values, wanted.w.values, wanted.geometry, wanted.groups, bound)


def random_of(wanted: ProductPass, order: ResultOrder) -> U32 | None:
    """Random numbers of a pass that rounds with them."""
    assert wanted.behind is not None
    if not wanted.behind.settings.stochastic:
        return None
    return random_numbers(wanted.result_shape, wanted.behind.key, order)


def finish(sums: I64, behind: PassEpilogue, random: U32 | None) -> PassResult:
    """What an epilogue makes of a pass' sums."""
    entries, settings = behind.entries.along(1, 4), behind.settings
    side = None if behind.side is None else behind.side.values
    added = None if behind.added is None else behind.added.values
    if behind.moments:
        x, saturated = epilogue.inner(sums, entries, settings.shift, added=added, mask=behind.mask)
        return PassResult(moments=epilogue.moments(x, side if behind.cross else None), saturated=saturated)
    out = epilogue.finish(sums, entries, settings, side=side, mask=behind.mask, added=added, random=random)
    moments = epilogue.moments(out.w) if behind.records else None
    return PassResult(out.a, out.k, out.s, out.mask, moments, saturated=out.saturated)


def _carried(values: Array, bound: int) -> Array:
    """Codes in the floating-point type that holds all sums exactly."""
    return values.astype(np.float32 if bound < 1 << 24 else np.float64)


def _by_groups(
    product: Callable[[Array, Array, ConvGeometry], Array],
    operand: Array, weights: Array, m: ConvGeometry, groups: int, bound: int,
) -> I64:  # fmt: skip
    """A product group by group; those of one channel that meet one weight are multiplied at once."""
    a, w = _carried(operand, bound), _carried(weights, bound)
    if groups == 1:
        return np.asarray(product(a, w, m)).astype(np.int64)
    if m.kernel == (1, 1) and m.stride == 1 and groups == m.in_channels == m.out_channels:
        return np.asarray(a * w.reshape(1, groups, 1, 1)).astype(np.int64)
    one = _group_geometry(m, groups)
    parts = [product(x, y, one) for x, y in zip(np.split(a, groups, 1), np.split(w, groups, 0), strict=True)]
    return np.concatenate(parts, 1).astype(np.int64)


def _group_geometry(m: ConvGeometry, groups: int) -> ConvGeometry:
    return ConvGeometry(
        m.batch, m.in_channels // groups, m.out_channels // groups, m.in_hw, m.kernel, m.stride, m.padding
    )


def _weight_gradient(wanted: ProductPass) -> I64:
    """Exact sums of a weight gradient, (O, I/groups, kh, kw)."""
    assert wanted.x is not None and wanted.g is not None
    m, groups = wanted.geometry, wanted.groups
    bound = wanted.x.greatest * wanted.g.greatest * m.batch * m.out_hw[0] * m.out_hw[1]
    x, g = _carried(wanted.x.values, bound), _carried(wanted.g.values, bound)
    one = _group_geometry(m, groups)
    parts = [correlate_weight(a, b, one) for a, b in zip(np.split(x, groups, 1), np.split(g, groups, 1), strict=True)]
    return np.concatenate(parts, 0).astype(np.int64)
