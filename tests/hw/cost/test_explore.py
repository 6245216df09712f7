"""Search for a design: what fits, what is on the front, and that a run goes on where it stopped."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

import hw.cost.explore as room
from fractrain import main
from hw.boards import PARTS
from hw.cost.explore import (
    POINTS_FILE,
    DesignPoint,
    ExploreError,
    SearchRequest,
    best,
    candidates,
    evaluate_point,
    explore,
    find_part,
    load_points,
    pareto,
    reachable_clock,
    work_of_layers,
)
from hw.cost.training_schedule import parse_schedule
from hw.design import Design, load_design
from hw.model.frequency import MODULE_PATHS, ModulePath, estimated_clock
from hw.networks import Bits, network
from hw.reports.explore_report import design_toml

PART = "xc7z045ffg900-2"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> SearchRequest:
    """A search of few geometries over a small network at one precision."""
    monkeypatch.setattr(
        room,
        "DEPTHS",
        {"depth_a": (512, 1024), "depth_g": (512,), "depth_w": (512,), "depth_accumulator": (8192,)},
    )
    monkeypatch.setattr(room, "EPILOGUE_SHARES", (1,))
    work = work_of_layers(network("resnet8"), parse_schedule("4,3,6", 10.0))
    return SearchRequest(PART, "resnet8", work, batch=32)


def command(*words: str) -> int:
    """Exit status of ``fractrain`` with these words."""
    return main([*words])


# -- the request ----------------------------------------------------------------------------------------------------


def test_parts_are_found_by_their_beginning() -> None:
    assert find_part("XC7Z045") == PART
    for name in ("xc7z", "", "virtex"):
        with pytest.raises(ExploreError, match="write one of"):
            find_part(name)


def test_work_is_the_mean_over_a_schedule() -> None:
    shapes = network("resnet8")
    work = work_of_layers(shapes, parse_schedule("FW(4,8)/BW(8,8)", 10.0, [2.5, 7.5]))
    assert sum(weight for weight, _, _ in work) == pytest.approx(len(shapes))
    narrow = sum(weight for weight, _, bits in work if bits == Bits(4, 4, 8))
    assert narrow == pytest.approx(len(shapes) / 4)
    with pytest.raises(ExploreError, match="positive length"):
        work_of_layers(shapes, parse_schedule("8,8,8", 0.0))


def test_candidates_fit_the_limits(small: SearchRequest) -> None:
    part = PARTS[PART]
    for design, fabrics in candidates(small):
        point = evaluate_point(design, fabrics, (), small.batch)
        assert point.lut <= 0.8 * part.lut and point.bram36 <= 0.8 * part.bram36 and point.dsp <= part.dsp
    assert "zc706" in {design.name for design, _ in candidates(small)}
    assert {fabrics for _, fabrics in candidates(small)} == {1, 2, 3}


def test_nothing_fits(small: SearchRequest) -> None:
    with pytest.raises(ExploreError, match="raise the limits"):
        explore(replace(small, max_lut=1.0))


def test_a_clock_that_no_design_may_have(small: SearchRequest) -> None:
    with pytest.raises(ExploreError, match="use 10 to 500"):
        candidates(replace(small, clocks=(900.0,)))


def test_designs_run_at_the_clock_that_they_reach(small: SearchRequest) -> None:
    for design, _ in candidates(small):
        assert design.clock_mhz == math.floor(estimated_clock(design) or 0)
    assert {design.clock_mhz for design, _ in candidates(replace(small, clocks=(60.0, 70.0, 400.0)))} == {60, 70}
    with pytest.raises(ExploreError, match=r"at 400 MHz.*lower the clock"):
        explore(replace(small, clocks=(400.0,)))


def test_a_smaller_array_wins_where_it_is_fast_enough(small: SearchRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frequency is the design's own: with a path that grows with the channels that of eight overtakes that of sixteen."""
    request = replace(small, work=small.work[2:3])

    def fastest() -> int:
        estimated_clock.cache_clear()
        found = [
            (design, fabrics)
            for design, fabrics in candidates(request)
            if (fabrics, design.depth_a, design.accumulators, design.rounding) == (1, 512, "dsp", True)
        ]
        return best([evaluate_point(*candidate, request.work, request.batch) for candidate in found]).design.channels

    assert fastest() == 16
    with monkeypatch.context() as patch:
        patch.setitem(MODULE_PATHS, "loader", ModulePath(60.0, 0.1, {"channels": 54.0}))
        assert fastest() == 8
    assert fastest() == 16


def test_parts_without_delays_take_their_committed_target() -> None:
    design = load_design("zcu104")
    assert reachable_clock(replace(design, clock_mhz=100, depth_a=1024)) == design.clock_mhz


# -- the search -----------------------------------------------------------------------------------------------------


def test_at_least_as_good_as_the_committed_design() -> None:
    """At the schedule of the paper, over the wide array's geometries and the narrow one's deepest."""
    work = work_of_layers(network("resnet38"), parse_schedule("cp=1.5/2/2.5/3", 163.84))
    request = SearchRequest(PART, "resnet38", work)
    design = load_design("zc706")
    design = replace(design, clock_mhz=reachable_clock(design))
    reference = evaluate_point(design, 1, work, request.batch)
    deepest = max(room.DEPTHS["depth_a"])
    searched = [
        (design, fabrics)
        for design, fabrics in candidates(request)
        if design.epilogue_lanes == 2 * design.channels
        and (design.channels == 16 or design.depth_a == design.depth_g == design.depth_w == deepest)
        and design.depth_accumulator == 8192
        and design.depth_g == design.depth_a
        and design.accumulators == "dsp"
        and design.rounding
    ]
    assert {design.channels for design, _ in searched} == {8, 16}
    found = best([evaluate_point(design, fabrics, work, request.batch) for design, fabrics in searched])
    assert found.seconds <= reference.seconds
    assert found.percent("lut") <= 75 and found.percent("bram36") <= 80


@pytest.mark.slow
def test_no_design_trains_faster_than_the_committed_one() -> None:
    """Whole steps of ResNet-38 at the estimate's clocks: of each array, epilogue and number of fabrics the least and the
    deepest memories.  The model's error of the longest path is 0.5 ns, 7 % of its clock."""
    work = work_of_layers(network("resnet38"), parse_schedule("4,3,6", 1.0))
    request = SearchRequest(PART, "resnet38", work, minimised="step")
    found: dict[tuple[object, ...], list[tuple[Design, int]]] = {}
    for design, fabrics in candidates(request):
        kind = design.channels, design.epilogue_lanes, design.rounding, design.accumulators, fabrics
        found.setdefault(kind, []).append((design, fabrics))
    ends = [every[at] for every in found.values() for at in (0, -1)]
    points = [evaluate_point(*each, work, request.batch, minimised="step") for each in ends]
    design = load_design("zc706")
    reference = evaluate_point(
        replace(design, clock_mhz=reachable_clock(design)), 1, work, request.batch, minimised="step"
    )
    assert {point.fabrics for point in points} == {1, 2, 3, 4}
    assert reference.seconds <= 1.001 * best(points).seconds


def test_front_holds_what_nothing_beats(small: SearchRequest) -> None:
    points = explore(small)
    front = pareto(points)
    assert best(points).seconds == front[0].seconds == points[0].seconds
    assert len({p.values() for p in front}) == len(front) < len(points)
    for p in points:
        beaten = [q for q in front if all(a <= b for a, b in zip(q.values(), p.values(), strict=True))]
        assert beaten, f"{p.design.name} is neither on the front nor beaten"


def test_no_point_is_no_choice() -> None:
    with pytest.raises(ExploreError, match="explore first"):
        best([])


def test_a_run_goes_on_where_it_stopped(small: SearchRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = explore(small, tmp_path)
    file = tmp_path / POINTS_FILE
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == len(whole) == len(candidates(small))
    kept = lines[:-2]
    file.write_text("".join(kept) + lines[-2][:40])  # killed in the middle of a line
    costed: list[str] = []

    def counting(design, fabrics, work, batch):  # type: ignore[no-untyped-def]
        costed.append(design.name)
        return evaluate_point(design, fabrics, work, batch)

    monkeypatch.setattr(room, "evaluate_point", counting)
    calls: list[tuple[int, int]] = []
    again = explore(small, tmp_path, progress=lambda done, number: calls.append((done, number)))
    assert again == whole
    assert len(costed) == 2
    assert (calls[0], calls[-1]) == ((len(kept), len(whole)), (len(whole), len(whole)))
    assert len(load_points(file, small.key())) == len(whole)
    costed.clear()
    explore(replace(small, batch=16), tmp_path)
    assert len(costed) == len(whole)  # other costs: nothing is taken over


def test_a_damaged_file_is_named(small: SearchRequest, tmp_path: Path) -> None:
    (tmp_path / POINTS_FILE).write_text("no result\n{}\n")
    with pytest.raises(ExploreError, match="line 1 is no result"):
        explore(small, tmp_path)


def test_processes_give_the_same(small: SearchRequest) -> None:
    pytest.importorskip("joblib")
    from joblib import parallel_config

    with parallel_config(backend="threading"):  # the same path, without starting processes
        assert explore(small, jobs=2) == explore(small)


def test_the_written_design_is_the_one_found(small: SearchRequest, tmp_path: Path) -> None:
    chosen: DesignPoint = best(explore(small))
    file = tmp_path / "found.toml"
    file.write_text(design_toml(chosen, "found", "a test"))
    assert load_design(file) == replace(chosen.design, name="found")
    assert "2 of these on the chip" in design_toml(replace(chosen, fabrics=2), "found")


# -- the command ----------------------------------------------------------------------------------------------------


def test_command(small: SearchRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["explore", "--part", "xc7z045", "--model", "resnet8", "--bits", "4,3,6", "--batch", "32", "--jobs", "1"]
    assert command(*words, "--out", str(tmp_path), "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    found = load_design(tmp_path / "best.toml")
    assert found.part == PART
    assert summary["seconds_per_sample"] <= summary["committed"]["zc706"]
    assert (tmp_path / "explore.svg").stat().st_size > 1000
    assert len(json.loads((tmp_path / "front.json").read_text())) == summary["front"]
    assert command(*words, "--show", "3") == 0
    assert "clocks and energies are estimates" in capsys.readouterr().out
    assert command(*words, "--max-bram", "0.5") == 2
    assert "no design fits" in capsys.readouterr().err
    assert command(*words[:-1], "0") == 2


def test_two_memories_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two fabrics wait for the processor's DDR, and no longer with the second one."""
    monkeypatch.setattr("hw.cost.explore.candidates", lambda request: [(load_design("zc706"), 2)])
    words = ["explore", "--part", "xc7z045", "--model", "resnet8", "--bits", "4,3,6", "--jobs", "1", "--memory"]
    assert command(*words, "ps", "ps+pl", "--json", "--out", str(tmp_path)) == 0
    printed = capsys.readouterr()
    one, two = json.loads(printed.out)
    assert one["seconds_per_sample"] > two["seconds_per_sample"]
    assert "unverified" in two["title"] and "unverified" not in one["title"]
    assert "no board" in printed.err
    assert (tmp_path / "ps" / "best.toml").exists() and (tmp_path / "ps+pl" / "best.toml").exists()
    assert command(*words, "ps", "ps+pl") == 0
    saved = 100 * (1 - two["seconds_per_sample"] / one["seconds_per_sample"])
    assert f"takes {saved:.1f} % less time" in capsys.readouterr().out
    assert command(*words, "ps", "ps") == 2
    assert command("explore", "--part", "xc7z020", *words[3:], "ps", "ps+pl") == 2
    assert "has no DDR beside" in capsys.readouterr().err


def test_a_run_can_be_explored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hw.cost.explore.candidates", lambda request: [(load_design("zc706"), 1)])
    trained = {"model": "resnet-8", "classes": 10, "width": 16, "image": [3, 32, 32], "samples": 50, "batch": 64}
    stage = {"epochs": 1, "options": [[0.5, [0, 0, 0]], [0.5, [4, 3, 6]]], "ran": {}}
    (tmp_path / "schedule.json").write_text(json.dumps({"stages": [stage], "trained": trained}))
    words = ["--part", "xc7z045", "--jobs", "1", "--json"]
    assert command("explore", "--schedule", str(tmp_path), *words) == 0
    half = json.loads(capsys.readouterr().out)["seconds_per_sample"]
    assert command("explore", "--model", "resnet8", "--bits", "4,3,6", "--batch", "64", *words) == 0
    assert half == pytest.approx(json.loads(capsys.readouterr().out)["seconds_per_sample"] / 2)
