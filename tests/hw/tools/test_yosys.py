"""Synthesis: sources, accounting, failures, and the published figures of the committed measurements."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from fractrain import main
from hw.commands.synthesis_commands import GROUPS
from hw.design import ROOT, load_design
from hw.generate import generate
from hw.tools import placement, timing
from hw.tools.area import SYSTEM_RESET, Area, SynthesisError
from hw.tools.area_report import ARRAY, report
from hw.tools.yosys import (
    Synthesis,
    SynthesisPiece,
    cache_key,
    pieces,
    primitive_headers,
    synthesize,
    whole_design,
)

MEASUREMENTS = ROOT / "docs" / "measurements"
SMALL = load_design("sim-small")


def test_yosys_files_are_found_without_loading_it() -> None:
    """Loading it makes all extension modules after it share their symbols, by which Matplotlib's fonts broke."""
    code = (
        "import sys; before = sys.getdlopenflags(); from hw.tools.yosys import primitive_headers; primitive_headers();"
        "print(sys.getdlopenflags() == before, 'pyosys' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(SMALL, tmp_path_factory.mktemp("small"))


def piece(name: str) -> SynthesisPiece:
    return next(p for p in pieces(SMALL) if p.name == name)


def test_area_counts_primitives_and_refuses_others() -> None:
    area = Area.of(
        {"LUT6": 3, "LUT6_2": 2, "RAM32M": 1, "FDRE": 5, "RAMB18E1": 1, "RAMB36E1": 2, "DSP48E1": 4, "CARRY4": 9}
    )
    assert area == Area(lut=9, ff=5, bram36=2.5, dsp=4)
    with pytest.raises(SynthesisError, match=r"\$_AND_"):
        Area.of({"$_AND_": 1})


def test_headers_declare_ports_and_parameters_only() -> None:
    text = primitive_headers(("LUT6", "DSP48E1"))
    assert text.count("endmodule") == 2 and "parameter [63:0] INIT" in text and "always" not in text


def test_unit_in_primitives_meets_its_area(folder: Path) -> None:
    area = synthesize(piece("dot_product_unit"), folder, keep=False).area()
    assert area.dsp == 1 and area.lut / SMALL.dot_bits <= 1.30


def test_boxes_are_left_out_and_counted(folder: Path) -> None:
    from dataclasses import replace

    array = piece("dot_product_array")
    assert synthesize(array, folder).area().lut < 10
    with pytest.raises(SynthesisError, match="instances"):
        synthesize(replace(array, boxes=(("dot_product_unit", 1),)), folder, keep=False)


def test_a_broken_source_and_a_deadline_are_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SynthesisError, match="did not end within"):
        synthesize(piece("sequencer"), folder, seconds=0.2, keep=False)
    broken = generate(SMALL, tmp_path)
    source = broken / "rtl" / "control_registers.sv"
    source.write_text(source.read_text().replace("always_ff", "always_fff", 1))
    with pytest.raises(SynthesisError, match="control_registers"):
        synthesize(piece("control_registers"), broken, keep=False)


@pytest.mark.parametrize(
    ("name", "source", "changes"),
    [
        # modules inside modules inside: all that Yosys synthesises
        *(("drain", s, True) for s in ("drain", "drain_jobs", "sum_words", "result_port")),
        *(("epilogue", s, True) for s in ("epilogue", "saturating_shift", "code_rounding", "nearest_code")),
        *((s, s, True) for s in ("shadow_lane", "accumulators", "code_buffer", "moments")),
        ("rounding", "row_hash", True),
        *(("loader", s, True) for s in ("header_check", "packed_place")),
        ("dot_product_unit", "xc7/counter_7_3", True),
        ("drain", "engine_pkg", True),
        ("sim-small flattened", "packed_place", True),
        ("drain", "loader", False),
        ("dot_product_array", "xc7/counter_7_3", False),
        # the inside of a box, and the form for simulation
        ("fabric", "drain", False),
        *(
            ("drain", s, False)
            for s in ("shadow_lane", "accumulators", "epilogue", "code_buffer", "moments", "rounding")
        ),
        ("dot_product_unit", "dot_product_unit", False),
    ],
)
def test_the_cache_knows_results_by_all_sources_that_they_come_from(
    name: str, source: str, changes: bool, tmp_path: Path
) -> None:
    design = generate(SMALL, tmp_path)
    wanted = next(p for p in (*pieces(SMALL), whole_design(SMALL)) if p.name == name)
    before = cache_key(wanted, design, "-2")
    path = design / "rtl" / f"{source}.sv"
    end = "endpackage" if source.endswith("_pkg") else "endmodule"
    path.write_text(path.read_text().replace(end, f"localparam int MORE = 1;\n{end}"))
    assert (cache_key(wanted, design, "-2") != before) == changes


@pytest.mark.parametrize("reader", [placement, timing])
def test_the_cache_knows_what_reads_the_netlists(
    reader: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result holds paths and demands, which other delays or other counts would change."""
    before = cache_key(piece("loader"), folder, "-2")
    changed = tmp_path / "changed.py"
    changed.write_text(Path(str(reader.__file__)).read_text() + "\nMORE = 1\n")
    monkeypatch.setattr(reader, "__file__", str(changed))
    assert cache_key(piece("loader"), folder, "-2") != before


def test_report_adds_up() -> None:
    results = [
        Synthesis(p.name, p.instances, 1.0, 1, {"LUT6": 2, "FDRE": 1, "RAMB36E1": 1, "DSP48E1": 0}, {})
        for p in pieces(SMALL)
    ]
    data = report(SMALL, results)
    instances = sum(p.instances for p in pieces(SMALL))
    lut = 2 * instances + SYSTEM_RESET.lut
    assert data["total"] == {"lut": lut, "ff": instances + SYSTEM_RESET.ff, "bram36": instances, "dsp": 0}
    assert data["percent_of_part"]["lut"] == pytest.approx(100 * lut / 53_200, abs=0.01)
    assert data["lut_per_binary_mac"]["array"] == round(2 * (SMALL.units + SMALL.lanes + 1) / SMALL.binary_macs, 3)
    assert not data["fits"]  # more block RAM than the part has


def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "design")]
    assert main(["synth", "--design", "sim-small", "--module", "no_such", *out]) == 2
    assert "dot_product_unit" in capsys.readouterr().err
    assert main(["synth", "--design", "sim-small", "--module", "operand_sum_unit", "--json", *out]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [row["module"] for row in data["modules"]] == ["operand_sum_unit"] and "total" not in data
    unit = ["--module", "dot_product_unit", "--accumulators", "lut"]
    assert main(["synth", "--design", "sim-small", *unit, "--json", *out]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["accumulators"] == "lut" and data["modules"][0]["one"]["dsp"] == 0


@pytest.mark.parametrize("name", ["zc706", "pynq-z2"])
def test_committed_measurement_meets_the_targets(name: str) -> None:
    data = json.loads((MEASUREMENTS / f"synth-{name}.json").read_text())
    assert {row["module"] for row in data["modules"]} == {p.name for p in pieces(load_design(name))}
    assert data["fits"] and all(v <= 100 for v in data["percent_of_part"].values())
    # short dot products share fewer bits with the column of operand sums
    assert data["lut_per_binary_mac"]["array"] <= (1.30 if name == "zc706" else 1.50)
    if name == "zc706":
        assert data["percent_of_part"]["lut"] <= 75 and data["percent_of_part"]["bram36"] <= 80
    units = {row["module"]: row for row in data["modules"] if row["module"] in ARRAY}
    assert data["lut_per_binary_mac"]["array"] == pytest.approx(
        sum(row["all"]["lut"] for row in units.values()) / data["binary_macs"], abs=0.001
    )


def test_every_module_is_in_the_picture_once() -> None:
    shown = [name for names in GROUPS.values() for name in names]
    assert sorted(shown) == sorted(p.name for p in pieces(SMALL))


@pytest.mark.parametrize(("lut", "fits"), [(45_200, True), (45_240, False)])
def test_a_design_that_cannot_be_routed_does_not_fit(lut: int, fits: bool, capsys: pytest.CaptureFixture[str]) -> None:
    one = Synthesis("fabric", 1, 1.0, 1, {"LUT6": lut - SYSTEM_RESET.lut}, {})
    data = report(replace(SMALL, part="xc7z020clg400-1"), [one])
    assert (data["total"]["lut"], data["fits"]) == (lut, fits)  # 85 % of 53,200 are 45,220


@pytest.mark.parametrize(("chain", "verdict"), [(100, "fits"), (151, "does not fit")])
def test_a_design_that_cannot_be_placed_does_not_fit(chain: int, verdict: str) -> None:
    """Columns of the XC7Z020 have 150 slices; one chain in each of two instances."""
    one = Synthesis("loader", 2, 1.0, 1, {"LUT6": 50, "CARRY4": chain}, {}, {"carry_chains": [[chain, 1]]})
    data = report(SMALL, [one])
    carry = next(row for row in data["placement"] if row["kind"] == "carry")
    assert (carry["needed"], carry["verdict"], data["fits"]) == (2 * chain, verdict, verdict == "fits")
    assert f"{chain}" in carry["words"] and "150" in carry["words"]


def test_joined_pieces_are_timed_and_are_no_area() -> None:
    one = Synthesis("loader", 1, 1.0, 1, {"LUT6": 50}, {"real": []})
    many = Synthesis("front_half", 1, 2.0, 1, {"LUT6": 500}, {"real": [{"ns": 6.0}]}, sources="0123")
    alone, both = report(SMALL, [one]), report(SMALL, [one], joined=[many])
    (row,) = both.pop("joined")
    assert (row["module"], row["timing"], row["sources"]) == ("front_half", many.timing, "0123")
    assert both == alone and "one" not in row


@pytest.mark.slow
def test_the_whole_small_design_flattened_is_no_larger(folder: Path) -> None:
    flat = synthesize(whole_design(SMALL), folder).area()
    apart = sum((r.area().times(r.instances) for r in (synthesize(p, folder) for p in pieces(SMALL))), Area())
    assert flat.lut <= 1.05 * apart.lut and flat.bram36 == apart.bram36
