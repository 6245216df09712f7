"""Tiles of a product, and the array steps that they take.  Standard library only, so that it runs on the board."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple


@lru_cache(maxsize=1 << 12)
def steps_of_tile(a_planes: int, b_planes: int, a_bits: int, b_bits: int, inner: int, sums: bool) -> int:
    """Array steps of one tile: computed plane pairs times their inner length, one step for an empty diagonal.

    Args:
        sums: operand sums are taken along, so pairs with plane 0 of b are computed even if b's mask lacks it.
    """
    steps = 0
    for diagonal in range(a_bits + b_bits - 1):
        pairs = sum(
            bool(a_planes >> i & 1 and (b_planes >> (diagonal - i) & 1 or (sums and i == diagonal)))
            for i in range(max(0, diagonal - b_bits + 1), min(diagonal, a_bits - 1) + 1)
        )
        steps += pairs * inner or 1
    return steps


class Tiles(NamedTuple):
    """Tiles of a product that take equally long.

    Attributes:
        number: how many.
        steps: array steps of each, planes skipped.
        most: array steps of each if no plane were skipped.
    """

    number: int
    steps: int
    most: int
