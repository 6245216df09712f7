"""The recomputed tables: what is reproduced stays reproduced, what is not stays flagged."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from fractrain import main
from hw.cost.paper import (
    ASSUMED,
    CC_TOLERANCE,
    CONSISTENT,
    DIFFERS,
    IMPOSSIBLE,
    INFERRED,
    MACHINE_TOLERANCE,
    REPRODUCED,
    RESTATED,
    STATUSES,
    Fabric,
    Line,
    load_tables,
    recompute,
)
from hw.networks import Bits, ConvShape
from hw.reports.paper_report import to_csv, to_markdown, write_report


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return recompute()


def pick(lines: Sequence[Line], table: str, group: str, method: str, quantity: str) -> Line:
    (line,) = [
        line
        for line in lines
        if (line.table, line.group, line.method, line.quantity) == (table, group, method, quantity)
    ]
    return line


def ideal(shapes: Sequence[ConvShape], bits: Bits) -> float:
    """A machine whose time is proportional to the bit operations."""
    return sum(s.macs * sum(a * b for a, b in s.operands(bits).values()) for s in shapes) / 65536


def test_every_published_cost_has_a_line(lines: list[Line]) -> None:
    data = load_tables()
    published = sum(len({"cc", "energy_kj", "latency_min", "saving_percent"} & row.keys()) for row in data["row"])
    published += sum(len(saving["published_percent"]) for saving in data["saving"])
    printed = [line for line in lines if "implied" not in line.quantity and "relative" not in line.quantity]
    assert len([line for line in printed if line.table != "ZC706"]) == published
    assert {line.table for line in lines} == {"1", "2", "3", "4", "5", "ZC706"}
    assert all(line.status in STATUSES for line in lines)
    assert all(line.explanation for line in lines)


def test_cc_that_needs_no_inference_is_within_tolerance(lines: list[Line]) -> None:
    reproduced = [line for line in lines if line.unit == "MAC" and line.status == REPRODUCED]
    assert all(abs(line.deviation or 0) <= CC_TOLERANCE for line in reproduced)
    assert {line.group for line in reproduced} == {"MobileNetV2 CIFAR-10", "ResNet-74 CIFAR-10"}


def test_counted_epochs_are_inferred(lines: list[Line]) -> None:
    line = pick(lines, "3", "ResNet-38 CIFAR-10", "SBM", "CC")
    assert (line.status, line.recomputed) == (INFERRED, pytest.approx(1.279e14, rel=1e-3))
    assert line.implied_epochs == pytest.approx(151, abs=0.5)
    assert pick(lines, "3", "ResNet-74 CIFAR-10", "DFQ", "CC").implied_epochs == pytest.approx(97, abs=0.5)


def test_imagenet_and_transformer_are_not_reproducible(lines: list[Line]) -> None:
    line = pick(lines, "4", "ResNet-18 ImageNet", "SBM", "CC")
    assert line.status == IMPOSSIBLE
    assert (line.recomputed or 0) / line.published == pytest.approx(19.4, abs=0.1)
    assert pick(lines, "2", "Transformer-base WikiText-103", "PFQ", "CC").status == IMPOSSIBLE


def test_savings_are_checked_against_their_own_table(lines: list[Line]) -> None:
    assert pick(lines, "2", "ResNet-18 ImageNet", "PFQ", "CC saving").status == CONSISTENT
    line = pick(lines, "5", "ResNet-38 CIFAR-100 fine-tuning", "FracTrain", "CC saving")
    assert line.status == DIFFERS
    assert "that of DFQ" in line.explanation


def test_latency_differs_by_one_factor_but_ratios_hold(lines: list[Line]) -> None:
    group = "ResNet-38 CIFAR-10"
    for method in ("WAGEUBN", "DoReFa", "SBM"):
        line = pick(lines, "3", group, method, "latency")
        assert line.status == DIFFERS
        assert line.deviation == pytest.approx(-20.4, abs=0.5)
    for method in ("WAGEUBN", "DoReFa", "DFQ", "FracTrain"):
        for quantity in ("latency", "energy (estimate)"):
            ratio = pick(lines, "3", group, method, f"{quantity} relative to SBM, whole training")
            assert ratio.status == (
                CONSISTENT if method in ("WAGEUBN", "DoReFa") else ASSUMED if method == "FracTrain" else INFERRED
            )


def test_no_figure_counts_twice(lines: list[Line]) -> None:
    whole = {(line.group, line.method, line.quantity.split(",")[0]): line for line in lines if "whole" in line.quantity}
    per_sample = [line for line in lines if line.table == "3" and "per sample" in line.quantity]
    for line in per_sample:
        twin = whole[line.group, line.method, line.quantity.split(",")[0]]
        assert line.deviation == pytest.approx(twin.deviation) and line.status == RESTATED
    assert len(per_sample) == 32
    # A published saving and the baseline's cost that it implies are one figure.
    implied = [line for line in lines if "implied" in line.quantity]
    table1 = [line for line in lines if line.table == "1" and line.quantity == "CC saving"]
    assert len(implied) == len(table1) > 0
    assert all(line.status in (RESTATED, DIFFERS) for line in table1)
    # What is formed from printed figures alone says nothing about our accounting.
    assert all(line.status != REPRODUCED or line.unit == "MAC" for line in lines)


def test_a_row_within_the_tolerance_by_accident_does_not_hold(lines: list[Line]) -> None:
    group = "ResNet-38 CIFAR-100"
    sbm, dorefa = (pick(lines, "3", group, method, "latency") for method in ("SBM", "DoReFa"))
    assert abs(dorefa.deviation or 0) < MACHINE_TOLERANCE < abs(sbm.deviation or 0)
    assert dorefa.status == DIFFERS and "accident" in dorefa.explanation


def test_tables_are_rectangular(lines: list[Line]) -> None:
    rows = list(csv.reader(io.StringIO(to_csv(lines))))
    assert {len(row) for row in rows} == {13}
    for section in to_markdown(lines).split("\n## ")[1:]:
        assert len({line.count("|") for line in section.splitlines() if line.startswith("|")}) == 1


def test_deviation_is_in_points_for_savings() -> None:
    line = Line("2", "g", "m", "p", "CC saving", "%", 20.0, 25.0, DIFFERS)
    assert line.deviation == 5.0
    assert Line("2", "g", "m", "p", "CC", "MAC", 20.0, 25.0, DIFFERS).deviation == pytest.approx(25)
    assert Line("2", "g", "m", "p", "CC", "MAC", 20.0, None, IMPOSSIBLE).deviation is None


def test_fabric_columns_come_with_a_fabric_only(lines: list[Line]) -> None:
    assert "fabric" not in to_csv(lines) + to_markdown(lines)
    fabric = Fabric("ideal", 150e6, ideal)
    with_fabric = recompute(fabric=fabric)
    rows = list(csv.DictReader(io.StringIO(to_csv(with_fabric, fabric))))
    assert len(rows) == len(lines)
    assert "fabric ideal" in to_markdown(with_fabric, fabric)
    sbm = pick(with_fabric, "3", "ResNet-38 CIFAR-10", "SBM", "latency")
    macs = 83_280_512 * 3 * 64 / 65536
    assert sbm.fabric == pytest.approx(macs * (sbm.epochs or 0) * 50_000 / 150e6 / 60)
    # on a machine proportional to bit operations, latency follows CC
    saved = pick(with_fabric, "ZC706", "ResNet-38 CIFAR-100", "FracTrain", "latency saving, whole training")
    assert saved.fabric == pytest.approx(100 * (1 - 2.66e13 / 6.88e13), abs=0.01)
    assert pick(with_fabric, "3", "ResNet-38 CIFAR-10", "SBM", "CC").fabric is None


def test_report_files(tmp_path: Path) -> None:
    files = write_report(tmp_path / "report")
    assert [file.name for file in files[:2]] == ["paper.md", "paper.csv"]
    assert len(files) == 6
    text = files[0].read_text()
    assert all(file.name in text for file in files[2:])
    assert "## Table 5" in text
    assert "## ZC706" in text
    assert all(file.read_text().lstrip().startswith("<?xml") for file in files[2:])


def test_broken_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tables.toml"
    path.write_text("row = [")
    with pytest.raises(ValueError, match="not valid TOML"):
        load_tables(path)
    path.write_text("row = []")
    with pytest.raises(ValueError, match="no section 'datasets'"):
        load_tables(path)


def command(*words: str) -> int:
    """Exit status of ``fractrain`` with these words."""
    return main([*words])


def test_cost_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        command("cost", "--model", "resnet38", "--bits", "8,8,8", "--machine", "bitfusion", "--epochs", "151", "--json")
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["whole_training"]["latency_min"] == pytest.approx(240, rel=0.1)
    assert result["whole_training"]["energy_estimate_kj"] == pytest.approx(22.7, rel=0.1)
    assert result["whole_training"]["cc"] == pytest.approx(1.179e14, rel=1e-3)
    assert len(result["per_sample_layers"]) == 40 * 3
    assert command("cost", "--model", "resnet8", "--schedule", "cp=1.5/2", "--stages", "10,20", "--count", "full") == 0
    assert "30 epochs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "vgg", "--bits", "8,8,8"), "model 'vgg' is unknown"),
        (("--model", "resnet8", "--bits", "8,8"), "w/a/g"),
        (("--model", "resnet8", "--schedule", "missing.json"), "missing.json"),
        (("--model", "resnet8", "--bits", "8,8,8", "--batch", "0"), "--batch"),
        (("--model", "resnet8", "--schedule", "cp=1/2", "--stages", "1,x"), "--stages"),
        (("--model", "resnet8", "--schedule", "run.json", "--epochs", "3"), "states its own epochs"),
        (("--model", "resnet8", "--bits", "8,8,8", "--stages", "1,2"), "leave out --bits"),
        (("--model", "resnet8", "--bits", "8,8,8", "--epochs", "0"), "--epochs"),
        (("--model", "resnet8", "--bits", "8,8,8", "--samples", "0"), "--samples"),
    ],
)
def test_cost_command_names_the_error(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("cost", *words) == 2
    assert message in capsys.readouterr().err


def test_report_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("report", "paper", "--out", str(tmp_path), "--no-figures") == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "paper.md"), str(tmp_path / "paper.csv")]
    (tmp_path / "file").write_text("")
    assert command("report", "paper", "--out", str(tmp_path / "file"), "--no-figures") == 2


def test_registering_the_commands_imports_no_array_library() -> None:
    modules = "hw.cost.training, hw.commands.cost_commands, hw.networks, hw.cost.count"
    code = f"import sys, {modules}; print({{'numpy', 'matplotlib', 'torch'}} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
