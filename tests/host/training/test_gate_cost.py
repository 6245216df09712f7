"""The cost term's factors at, around and beyond the target."""

from __future__ import annotations

import pytest

from host.training.gate_cost import cost_factors


@pytest.mark.parametrize(
    ("cost", "band", "cap", "wanted"),
    [(3.0, 0.0, 0.0, (0.5, 1.0)), (1.0, 0.0, 0.0, (0.5, -1.0)), (2.0, 0.0, 0.0, ()), (2.5, 0.5, 0.0, ()),
     (1.5, 0.5, 0.0, ()), (2.75, 0.5, 0.0, (0.5, 1.0)), (4.0, 0.0, 0.25, (0.5, 0.5, 1.0)), (1.0, 0.0, 0.25, (0.5, -1.0))],
)  # fmt: skip
def test_cost_is_punished_above_the_target_and_rewarded_below(
    cost: float, band: float, cap: float, wanted: tuple[float, ...]
) -> None:
    assert cost_factors(cost, 4.0, 2.0, 0.5, band=band, cap=cap) == wanted
