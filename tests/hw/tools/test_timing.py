"""The timing estimate on netlists small enough to add up by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hw.boards import PARTS
from hw.design import load_design
from hw.generate import generate
from hw.tools import yosys
from hw.tools.timing import GRADES, IDEAL, REAL, Cells, Nets, TimingError, worst_paths

CELLS = GRADES["-2"]

#: longest path, ns, that a design's clock leaves beside its own uncertainty: 150 MHz, and 100 MHz
BUDGETS = {"zc706": 6.4, "pynq-z2": 9.5}
#: modules that hold it, largest last; what their boxes hold is timed by itself
PIPELINED = (
    "dot_product_unit", "operand_sum_unit", "control_registers", "command_queue", "sequencer", "loader", "dot_product_array",
    "shadow_lane", "accumulators", "rounding", "moments", "drain", "epilogue", "code_buffer", "operand_network",
    "buffer_a", "buffer_g", "buffer_w", "fabric", "control_bridge", "memory_front_end",
)  # fmt: skip
#: many modules in one, whose paths cross the borders of those
JOINED = ("front_half", "all_but_units")
CASES = [(name, design) for design in BUDGETS for name in (*PIPELINED, *JOINED)]


def cell(kind: str, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], **parameters: str) -> dict[str, Any]:
    directions = {pin: "input" for pin in inputs} | {pin: "output" for pin in outputs}
    return {"type": kind, "port_directions": directions, "connections": inputs | outputs, "parameters": parameters}


def module(cells: list[dict[str, Any]], **names: list[int]) -> dict[str, Any]:
    return {
        "cells": {f"c{i}": each for i, each in enumerate(cells)},
        "ports": {},
        "netnames": {name: {"bits": bits} for name, bits in names.items()},
    }


def register(d: int, q: int) -> dict[str, Any]:
    return cell("FDRE", {"D": [d], "C": [1], "CE": ["1"], "R": ["0"]}, {"Q": [q]})


def worst(netlist: dict[str, Any], nets: Nets = IDEAL, cells: Cells = CELLS) -> Any:
    return worst_paths(netlist, cells=cells, nets=nets, count=1)[0]


def test_two_luts_between_registers() -> None:
    luts = [cell("LUT2", {"I0": [2], "I1": ["0"]}, {"O": [3]}), cell("LUT1", {"I0": [3]}, {"O": [4]})]
    path = worst(module([register(9, 2), *luts, register(4, 5)], begin_q=[2], end_d=[4]))
    assert path.ns == pytest.approx(CELLS.register_out + 2 * (0.4 + CELLS.lut) + CELLS.register_setup, abs=0.006)
    assert (path.start, path.end, path.pin, path.luts, path.net_ns) == ("begin_q", "end_d", "D", 2, 0.8)


def test_slower_grades_scale_cells_and_not_nets() -> None:
    netlist = module([register(9, 2), cell("LUT1", {"I0": [2]}, {"O": [4]}), register(4, 5)])
    twice = worst(netlist, cells=Cells(slower=2.0))
    assert twice.ns == pytest.approx(2 * (worst(netlist).ns - 0.4) + 0.4, abs=0.02)
    assert worst(netlist, cells=GRADES["-1"]).ns > worst(netlist).ns


def test_fan_out_makes_a_net_slow() -> None:
    loads = [cell("LUT1", {"I0": [2]}, {"O": [10 + i]}) for i in range(1024)]
    many = module([register(9, 2), *loads, *(register(10 + i, 2000 + i) for i in range(1024))])
    path = worst(many, REAL)
    assert path.fan_out == 1024
    assert path.net_ns == pytest.approx(0.55 + 6 * 0.09 + 4 * 0.35)
    delays = [REAL.delay(n) for n in (0, 1, 2, 64, 65, 4096)]
    assert delays == sorted(delays) and delays[0] == delays[1]


def test_a_carry_chain_costs_little_a_cell() -> None:
    def chain(length: int) -> float:
        first = cell("CARRY4", {"S": [2, "0", "0", "0"], "DI": ["0"] * 4, "CYINIT": ["0"]}, {"CO": [20, 21, 22, 100]})
        others = [
            cell("CARRY4", {"S": ["0"] * 4, "CI": [99 + i]}, {"CO": [1000 + i, 2000 + i, 3000 + i, 100 + i]})
            for i in range(1, length)
        ]
        return float(worst(module([register(9, 2), first, *others, register(99 + length, 5)])).ns)

    assert chain(9) - chain(1) == pytest.approx(8 * CELLS.carry_chain, abs=0.006)


@pytest.mark.parametrize(("pin", "luts"), [("I5", 1), ("I4", 2)])
def test_the_lower_output_of_a_double_lut_has_five_inputs(pin: str, luts: int) -> None:
    """Whatever its INIT says, for timers do not read it."""
    pins: dict[str, list[Any]] = {f"I{i}": ["1"] for i in range(6)}
    double = cell("LUT6_2", pins | {"I0": [2], pin: [3]}, {"O6": [4], "O5": [5]}, INIT="10" * 32)
    late = [cell("LUT1", {"I0": [6]}, {"O": [3]}), register(9, 6)]
    netlist = module([register(9, 2), *late, double, register(5, 8)])
    assert worst(netlist).luts == luts


@pytest.mark.parametrize(("registers", "setup"), [
    ({"AREG": "1"}, CELLS.dsp_input_setup), ({"MREG": "1"}, CELLS.dsp_product_setup), ({"PREG": "1"}, CELLS.dsp_all_setup),
])  # fmt: skip
def test_registers_of_a_dsp_shorten_the_way_into_it(registers: dict[str, str], setup: float) -> None:
    netlist = module([register(9, 2), cell("DSP48E1", {"A": [2]}, {"P": [3]}, USE_MULT="MULTIPLY", **registers)])
    assert worst(netlist).ns == pytest.approx(CELLS.register_out + 0.4 + setup, abs=0.006)


def test_a_circle_is_refused() -> None:
    circle = [cell("LUT1", {"I0": [2]}, {"O": [3]}), cell("LUT1", {"I0": [3]}, {"O": [2]})]
    with pytest.raises(TimingError, match="2 nets"):
        worst(module(circle))


def test_vectors_count_once() -> None:
    cells = [register(100 + i, i) for i in range(2, 10)]
    luts = [cell("LUT1", {"I0": [i]}, {"O": [200 + i]}) for i in range(2, 10)]
    ends = [register(200 + i, 300 + i) for i in range(2, 10)]
    netlist = module([*cells, *luts, *ends], a=list(range(2, 10)), b=list(range(202, 210)))
    paths = worst_paths(netlist, cells=CELLS, nets=IDEAL, count=10)
    assert [(p.start.split("[")[0], p.end.split("[")[0]) for p in paths].count(("a", "b")) == 1


def test_a_budget_is_held_by_every_piece() -> None:
    """None of those that a design is made of is left out."""
    built = load_design("zc706")
    assert {piece.name for piece in yosys.pieces(built)} == set(PIPELINED)
    assert {piece.name for piece in yosys.joined_pieces(built)} == set(JOINED)


def test_a_path_that_ends_in_a_register_has_the_name_of_what_that_drives() -> None:
    luts = [cell("LUT1", {"I0": [2]}, {"O": [3]})]
    named = module([register(9, 2), *luts, register(3, 5)], begin_q=[2], end_q=[5])
    assert (worst(named).start, worst(named).end) == ("begin_q", "end_q")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "design"), CASES)
def test_a_module_holds_its_budget(name: str, design: str, tmp_path: Path) -> None:
    """By the estimate with real nets; the piece is synthesised once and then taken from the cache."""
    built = load_design(design)
    found = [piece for piece in (*yosys.pieces(built), *yosys.joined_pieces(built)) if piece.name == name]
    if not found:
        pytest.skip(f"{design} has no {name}")
    grade = PARTS[built.part].grade
    worst = yosys.synthesize(found[0], generate(built, tmp_path), grade=grade).timing["real"][0]
    assert worst["ns"] <= BUDGETS[design], (
        f"{name} of {design} takes {worst['ns']} ns, more than {BUDGETS[design]}: {worst}"
    )
