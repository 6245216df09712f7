"""Grids whose numbers stay on an accelerator, so that no quantizer makes the host wait for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from host.grids import LARGEST_SCALE, check_width
from host.operands import Grid


@dataclass(frozen=True)
class TensorGrid(Grid):
    """A grid of the fast path, whose ``scale`` and ``zero`` are float32 tensors on an accelerator, () or (C,).

    Of a range that is not finite, or too large, both are NaN, and so is every value on the grid: what the CPU refuses at
    once shows in the loss, or in the weights after the step, which training looks at once a step.
    """

    scale: Tensor  # type: ignore[assignment]
    zero: Tensor  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Nothing to convert; widths are checked where grids are made."""

    @property
    def reciprocal(self) -> Tensor:  # type: ignore[override]
        return self.scale.reciprocal()


def grid_where_range_is(low: Tensor, span: Tensor, bits: int, key: int | None, smallest_scale: np.float32) -> Grid:
    """The grid of :func:`host.grids.grid_from_range`, number by number, without leaving the accelerator.

    Raises:
        ValueError: if ``bits`` is out of 1..16.
    """
    check_width(bits)
    steps = torch.full_like(span, (1 << bits) - 1)  # a GPU would multiply by the reciprocal of a number of the host's
    scale = (span / steps).clamp_min(float(smallest_scale))
    good = scale <= float(LARGEST_SCALE)  # neither is NaN
    nothing = torch.full_like(scale, torch.nan)
    return TensorGrid(bits, False, torch.where(good, scale, nothing), torch.where(good, low, nothing), key)
