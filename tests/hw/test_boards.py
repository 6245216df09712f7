"""Boards: one record each, which chips, memories, clocks and Vivado's scripts go by."""

from __future__ import annotations

import pytest

from hw.boards import BOARDS, PARTS
from hw.cost.explore import ExploreError, committed, reachable_clock
from hw.cost.fabric import bandwidth
from hw.design import load_design
from hw.tools.vivado import BitstreamError, find_vivado


@pytest.mark.parametrize("part", BOARDS)
def test_a_board_is_all_that_its_part_needs(part: str) -> None:
    board, designs = BOARDS[part], committed(part)
    assert PARTS[part] is board.part
    assert board.part.name == part
    assert part.removesuffix("-e").endswith(board.part.grade)
    assert bandwidth(part) == board.memory > 0
    assert all(0 < reachable_clock(design) <= board.port_mhz for design in designs)


def test_the_memory_beside_the_logic_is_asked_of_the_board() -> None:
    for part, board in BOARDS.items():
        if board.logic_memory:
            assert bandwidth(part, "ps+pl") == board.memory + board.logic_memory
        else:
            with pytest.raises(ValueError, match=f"{part} has no DDR beside the logic"):
                bandwidth(part, "ps+pl")


@pytest.mark.parametrize("part", BOARDS)
def test_a_licence_is_named_where_the_part_needs_one(part: str) -> None:
    with pytest.raises(BitstreamError) as error:
        find_vivado(committed(part)[0], lambda name: None)
    assert ("needs a licence" in str(error.value)) is not BOARDS[part].free_edition


def test_a_part_without_delays_and_without_a_design_has_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    design = load_design("zcu104")
    monkeypatch.setattr("hw.cost.explore.committed", lambda part: [])
    with pytest.raises(ExploreError, match="xczu7ev"):
        reachable_clock(design)
