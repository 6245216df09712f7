"""What a placement is asked for, on netlists small enough to count by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.boards import PARTS, PartColumns
from hw.tools.area import Area
from hw.tools.placement import Demand, against, columns_hold, demand_of

LAYOUT = PartColumns(slices=1000, memory_slices=200, column=50, dsp_columns=(20, 20, 10), bram_columns=(10, 10))


def cell(kind: str, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], **parameters: str) -> dict[str, Any]:
    directions = {pin: "input" for pin in inputs} | {pin: "output" for pin in outputs}
    return {"type": kind, "port_directions": directions, "connections": inputs | outputs, "parameters": parameters}


def demand(*cells: dict[str, Any]) -> Demand:
    return demand_of({"cells": {f"c{i}": each for i, each in enumerate(cells)}, "ports": {}, "netnames": {}})


def register(kind: str = "FDRE", clock: Any = 1, enable: Any = "1", reset: Any = "0", **more: str) -> dict[str, Any]:
    pins = {"C": [clock], "CE": [enable], "D": [2], "S" if kind == "FDSE" else "R": [reset]}
    return cell(kind, pins, {"Q": [3]}, **more)


def verdicts(area: Area, asked: Demand, layout: PartColumns = LAYOUT) -> dict[str, str]:
    return {item.kind: item.verdict for item in against(layout, area, asked)}


# -- flip-flops -----------------------------------------------------------------------------------------------------


def test_a_control_set_fills_slices_of_its_own() -> None:
    nine = [register(enable=10) for _ in range(9)]
    one = [register(enable=11)]
    plain = [register() for _ in range(17)]
    found = demand(*nine, *one, *plain)
    assert (found.control_sets, found.set_flip_flops, found.set_slices, found.plain_flip_flops) == (2, 10, 3, 17)
    assert found.flip_flop_slices == 3 + 3
    assert found.times(2).flip_flop_slices == 6 + 5  # those of a clock alone share slices


@pytest.mark.parametrize(("other", "sets"), [
    (register(clock=9, enable=10, reset=20), 2), (register(enable=12, reset=20), 2), (register(enable=10, reset=21), 2),
    (register(enable=10), 2), (register(reset=20), 2), (register(enable=10, reset=20, IS_C_INVERTED="1"), 2),
    (register(enable=10, reset=20), 1), (register("FDSE", enable=10, reset=20), 1),
])  # fmt: skip
def test_what_makes_a_control_set(other: dict[str, Any], sets: int) -> None:
    """Clock and its edge, enable, reset; whether a register is set or reset is its own matter."""
    assert demand(register(enable=10, reset=20), other).control_sets == sets


# -- carry chains ---------------------------------------------------------------------------------------------------


def chain(length: int, base: int, select: Any = "1") -> list[dict[str, Any]]:
    """CARRY4 above each other; nets from ``base`` on."""
    return [
        cell(
            "CARRY4", {"CI": [base + i - 1 if i else "0"], "S": [select, "0", "0", "0"]}, {"CO": ["x", "x", "x", base + i]}
        )
        for i in range(length)
    ]  # fmt: skip


def test_chains_are_as_long_as_they_are() -> None:
    found = demand(*chain(3, 100), *chain(1, 200), *chain(3, 300))
    assert (list(found.carry_chains), found.carry4) == ([(1, 1), (3, 2)], 7)
    assert found.times(3).carry4 == (found + found + found).carry4 == 21


def test_a_chain_needs_slices_one_above_the_other() -> None:
    assert verdicts(Area(), Demand(carry_chains=[(50, 10)]))["carry"] == "fits"
    assert verdicts(Area(), Demand(carry_chains=[(51, 1)]))["carry"] == "does not fit"
    assert verdicts(Area(), Demand(carry_chains=[(1, 501)]))["carry"] == "tight"
    assert verdicts(Area(), Demand(carry_chains=[(1, 1001)]))["slices"] == "does not fit"


def test_a_net_reaches_a_chain_through_a_lut() -> None:
    lut = cell("LUT2", {"I0": [5], "I1": [6]}, {"O": [7]})
    assert demand(lut, *chain(1, 100, select=7)).routed_through == 0
    assert demand(lut, *chain(1, 100, select=7), *chain(1, 200, select=7)).routed_through == 1
    assert demand(register(), *chain(1, 100, select=3)).routed_through == 1
    assert demand(*chain(1, 100, select="1")).routed_through == 0


# -- columns --------------------------------------------------------------------------------------------------------


def test_a_cascade_stays_in_its_column() -> None:
    dsps = [cell("DSP48E1", {"PCIN": [100 + i]}, {"PCOUT": [101 + i]}) for i in range(3)]
    alone = cell("DSP48E1", {"PCIN": ["0"]}, {"PCOUT": [900]})
    assert list(demand(*dsps, alone).dsp_cascades) == [(3, 1)]
    assert columns_hold((20, 20, 10), [(20, 2), (10, 1)], 50)
    assert not columns_hold((20, 20, 10), [(20, 2), (11, 1)], 50)
    assert not columns_hold((20, 20, 10), [], 51)
    assert verdicts(Area(dsp=30), Demand(dsp_cascades=[(21, 1)]))["dsp"] == "does not fit"
    assert verdicts(Area(dsp=30), Demand(dsp_cascades=[(15, 2)]))["dsp"] == "fits"
    assert verdicts(Area(dsp=46), Demand())["dsp"] == "tight"
    assert verdicts(Area(bram36=20.5), Demand())["bram36"] == "does not fit"


def test_block_rams_cascade_too() -> None:
    lower = cell("RAMB36E1", {"CASCADEINA": ["x"]}, {"CASCADEOUTA": [50]})
    upper = cell("RAMB36E1", {"CASCADEINA": [50]}, {"CASCADEOUTA": [51]})
    assert list(demand(lower, upper, lower | {"connections": {"CASCADEOUTA": [60]}}).bram_cascades) == [(2, 1)]


@given(st.lists(st.integers(1, 20), max_size=12))
def test_cascades_that_are_placed_are_no_more_than_the_columns(lengths: list[int]) -> None:
    if columns_hold((20, 20, 10), [(n, 1) for n in lengths], sum(lengths)):
        assert sum(lengths) <= 50
    elif sum(lengths) <= 10:
        raise AssertionError("what fits the least column was refused")


# -- slices ---------------------------------------------------------------------------------------------------------


def test_what_fills_most_slices_decides() -> None:
    def slices(area: Area, asked: Demand) -> int:
        return next(item.needed for item in against(LAYOUT, area, asked) if item.kind == "slices")

    assert slices(Area(lut=401), Demand()) == 101
    assert slices(Area(lut=400), Demand(routed_through=1)) == 101
    assert slices(Area(lut=401), Demand(carry_chains=[(2, 60)])) == 120
    assert slices(Area(lut=401, ff=200), Demand(control_sets=130, set_flip_flops=200, set_slices=130)) == 130
    assert verdicts(Area(lut=3204), Demand())["slices"] == "tight"
    assert verdicts(Area(), Demand(lut_memory=401))["lut_memory"] == "tight"
    assert verdicts(Area(), Demand(control_sets=151))["control_sets"] == "tight"


@pytest.mark.parametrize("name", [name for name, part in PARTS.items() if part.columns])
def test_columns_are_all_that_a_part_has(name: str) -> None:
    part = PARTS[name]
    assert part.columns
    assert (sum(part.columns.dsp_columns), sum(part.columns.bram_columns)) == (part.dsp, part.bram36)
    assert (4 * part.columns.slices, 8 * part.columns.slices) == (part.lut, part.ff)
