"""The model of a design's clock against the static estimate of synthesised modules."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from hw.boards import BOARDS, PARTS
from hw.design import ROOT, Design, load_design
from hw.generate import generate
from hw.model.frequency import MODULE_PATHS, REFERENCE, UNCERTAINTY, ModulePath, estimated_clock, paths, size
from hw.tools.timing import GRADES
from hw.tools.yosys import pieces, sources_digest

MEASUREMENTS = ROOT / "docs" / "measurements"
#: records of whole designs as they are
DESIGNS = ("zc706", "sim-small", "pynq-z2")


def measured() -> list[dict[str, Any]]:
    """Module, grade, ns, share of nets and design of every longest path on record."""
    rows: list[dict[str, Any]] = json.loads((MEASUREMENTS / "timing-variants.json").read_text())["paths"]
    for name in DESIGNS:
        design = load_design(name)
        for row in json.loads((MEASUREMENTS / f"synth-{name}.json").read_text())["modules"]:
            if row["timing"]["real"]:
                worst = {key: row["timing"]["real"][0][key] for key in ("ns", "net_ns")}
                record = {"module": row["module"], "design": asdict(design), "sources": row.get("sources")}
                rows.append({**record, **worst, "grade": PARTS[design.part].grade})
    return rows


DATA = measured()
#: what the model may be off by, ns: docs/measurements.md states it
ERROR = 0.5


@pytest.fixture(scope="module")
def current(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Rows of the RTL as it is."""
    kept = []
    for design in dict.fromkeys(Design(**row["design"]) for row in DATA):
        folder = generate(design, tmp_path_factory.mktemp(design.name))
        digests = {piece.name: sources_digest(piece, folder) for piece in pieces(design)}
        kept += [r for r in DATA if Design(**r["design"]) == design and r.get("sources") == digests[r["module"]]]
    return kept


def fitted(name: str, data: list[dict[str, Any]]) -> ModulePath | None:
    """The row of a module by least squares, with the parameters that the model has it depend on; None if the data do not
    tell them apart."""
    if name == "buffer_g":  # the same module, whose depths the variants change in buffer A alone
        like = fitted("buffer_a", data)
        return like and replace(
            like, doubling={what.replace("depth_a", "depth_g"): n for what, n in like.doubling.items()}
        )
    rows, depends = [row for row in data if row["module"] == name], list(MODULE_PATHS[name].doubling)
    reference = load_design(REFERENCE)
    factors, targets, shares = [], [], []
    for row in rows:
        design = Design(**row["design"])
        cells = (row["ns"] - row["net_ns"]) / GRADES[row["grade"]].slower
        factors.append([1.0, *(math.log2(size(design, what) / size(reference, what)) for what in depends)])
        targets.append(cells + row["net_ns"])
        shares.append(cells / targets[-1])
    if not rows or np.linalg.matrix_rank(np.array(factors)) <= len(depends):
        return None
    solution = np.linalg.lstsq(np.array(factors), np.array(targets), rcond=None)[0]
    doubling = {what: round(float(n), 2) for what, n in zip(depends, solution[1:], strict=True)}
    return ModulePath(round(float(solution[0]), 2), round(float(np.mean(shares)), 2), doubling)


def test_the_table_is_what_the_data_say(current: list[dict[str, Any]]) -> None:
    """As far as records made again may differ from those it was fitted to; where it fails it tells the table of now."""
    old = {row["module"] for row in DATA if row not in current}
    found = {name: path for name in MODULE_PATHS if name not in old and (path := fitted(name, current))}
    table = "\n".join(f'    "{n}": ModulePath({p.ns}, {p.cells}, {json.dumps(p.doubling)}),' for n, p in found.items())
    for name, path in found.items():
        assert MODULE_PATHS[name].ns == pytest.approx(path.ns, abs=ERROR), table
        assert MODULE_PATHS[name].cells == pytest.approx(path.cells, abs=0.2), table
        assert MODULE_PATHS[name].doubling == pytest.approx(path.doubling, abs=ERROR), table
    if old:
        pytest.xfail(
            f"of other RTL: {', '.join(sorted(old))}; fractrain synth --design NAME --save ..., and --variants"
        )


def test_every_module_has_a_path() -> None:
    timed = {row["module"] for row in DATA}
    assert set(MODULE_PATHS) == timed <= {piece.name for piece in pieces(load_design(REFERENCE))}


@pytest.mark.parametrize("row", DATA, ids=lambda row: f"{row['module']}-{row['design']['name']}")
def test_no_module_is_far_off(row: dict[str, Any], current: list[dict[str, Any]]) -> None:
    if row not in current:
        pytest.xfail("of other RTL; record again: fractrain synth --design NAME --save ..., and --variants")
    assert paths(Design(**row["design"]))[row["module"]] == pytest.approx(row["ns"], abs=ERROR)


@pytest.mark.parametrize("name", DESIGNS)
def test_the_clock_is_that_of_the_longest_path(name: str, current: list[dict[str, Any]]) -> None:
    design = load_design(name)
    own = [row for row in DATA if Design(**row["design"]) == design]
    if any(row not in current for row in own):
        pytest.xfail(f"of other RTL; record again: fractrain synth --design {name} --save ...")
    assert {row["module"] for row in own} == {n for n in MODULE_PATHS if n != "rounding" or design.rounding}
    period = max(row["ns"] for row in own) + UNCERTAINTY
    assert estimated_clock(design) == pytest.approx(1000 / period, rel=ERROR / period)


def test_a_slower_grade_is_slower_by_its_cells() -> None:
    """sim-small fits both parts."""
    slow = load_design("sim-small")
    fast = replace(slow, part="xc7z045ffg900-2")
    for name, ns in paths(fast).items():
        assert ns < paths(slow)[name] < ns * GRADES["-1"].slower
    assert (estimated_clock(fast) or 0) > (estimated_clock(slow) or 0)


def test_the_platform_caps_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hw.model.frequency.MODULE_PATHS", {"loader": ModulePath(1.0, 0.5, {})})
    design = replace(load_design("zc706"), name="capped")
    assert estimated_clock(design) == BOARDS[design.part].port_mhz == 250


def test_parts_of_another_family_have_no_estimate() -> None:
    design = load_design("zcu104")
    assert PARTS[design.part].columns is None and estimated_clock(design) is None
    with pytest.raises(ValueError, match="7 series"):
        paths(design)
