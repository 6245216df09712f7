"""The generator: same bytes for the same design, every number from the contract, and clear refusals."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import hw.generate as generator
from fractrain import main
from hw import contract, pipeline
from hw.design import ROOT, Design, DesignError, load_design
from hw.generate import GenerateError, context, generate, generated, render

DESIGNS = [load_design(name) for name in ("sim-small", "pynq-z2", "zc706", "zcu104")]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def command(*words: str) -> int:
    """Exit status of ``fractrain`` with these words."""
    return main(["generate", *words])


@pytest.mark.parametrize("design", DESIGNS, ids=lambda d: d.name)
def test_same_design_gives_same_bytes_and_leaves_files_alone(design: Design, tmp_path: Path) -> None:
    first = contents(generate(design, tmp_path / "one"))
    assert contents(generate(design, tmp_path / "two")) == first
    dates = {p: p.stat().st_mtime_ns for p in (tmp_path / "one").rglob("*") if p.is_file()}
    generate(design, tmp_path / "one")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "one").rglob("*") if p.is_file()} == dates
    assert {"hls/fabric.cpp", "hls/testbench.cpp", "hls/hls_config.cfg", "rtl/fabric_pkg.sv", "docs/packets.md",
            "docs/registers.md", "manifest.json"} <= set(first)  # fmt: skip


def test_manifest_tells_the_design_and_the_hash_of_every_file(tmp_path: Path) -> None:
    design = load_design("zc706")
    files = contents(generate(design, tmp_path))
    manifest = json.loads(files.pop("manifest.json"))
    assert manifest["files"] == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert manifest["design_hash"] == f"{design.hash64:016x}"
    assert manifest["design"]["channels"] == 16 and manifest["derived"]["lanes"] == 32
    assert manifest["contract_version"] == contract.VERSION
    assert manifest["ports"]["in0"]["tdata"] == manifest["ports"]["out1"]["tdata"] == 64
    assert manifest["registers"]["ERROR"] == 0x30


def test_designs_differ_in_hash_and_content(tmp_path: Path) -> None:
    manifests = [json.loads((generate(d, tmp_path / d.name) / "manifest.json").read_text()) for d in DESIGNS]
    assert len({m["content_hash"] for m in manifests}) == len(DESIGNS)
    assert len({m["design_hash"] for m in manifests}) == len(DESIGNS)


def test_header_struct_covers_every_bit_once() -> None:
    members = context(DESIGNS[0])["header_members"]
    top = 64 * contract.HEADER_WORDS
    for member in members:
        top -= member["width"]
        assert member["bit"] == top, member["name"]
    assert top == 0
    names = [m["name"] for m in members if not m["name"].startswith("pad_")]
    assert sorted(names) == sorted(f.name for f in contract.FIELDS)


def test_fields_of_a_record_do_not_overlap_and_leave_the_header_alone() -> None:
    bits = sum(f.width if f.name != "record_flags" else len(contract.RecordFlag) for f in contract.RECORD_FIELDS)
    assert bits == sum(mask.bit_count() for mask in contract.RECORD_BITS)
    assert not any(contract.RECORD_BITS[: contract.RECORD_HEADER_WORDS])
    assert all(f.half < 2 * contract.RECORD_WORDS and f.lsb + f.width <= 32 for f in contract.RECORD_FIELDS)


def test_offsets_of_registers_are_their_own() -> None:
    offsets = [r.offset for r in (*contract.REGISTERS, *contract.MEMORY_REGISTERS)]
    assert len(set(offsets)) == len(offsets) and all(offset % 4 == 0 for offset in offsets)
    assert max(r.offset for r in contract.REGISTERS) < 0x100 <= min(r.offset for r in contract.MEMORY_REGISTERS)


def test_overlapping_fields_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "FIELDS", (*contract.FIELDS, contract.Field("again", 3, 8, 16, "overlaps")))
    with pytest.raises(GenerateError, match="overlaps another"):
        render(DESIGNS[0])


@pytest.mark.parametrize("design", DESIGNS, ids=lambda d: d.name)
def test_numbers_reach_every_language(design: Design) -> None:
    files = render(design)
    for register_ in contract.REGISTERS:
        assert f"REG_{register_.name} = 8'h{register_.offset:02X};" in files["rtl/fabric_pkg.sv"]
        assert f"| 0x{register_.offset:02X} | {register_.name} |" in files["docs/registers.md"]
    for register_ in contract.REGISTERS:
        if register_.access == "r":
            assert f"    X({register_.name.lower()}, 0x{register_.offset:02X}, " in files["hls/contract.h"]
    for memory_register in contract.MEMORY_REGISTERS:
        name, offset = memory_register.name, memory_register.offset
        assert f"MEMORY_{name} = 9'h{offset:03X};" in files["rtl/memory/memory_pkg.sv"]
        assert f"| 0x{offset:03X} | {name} |" in files["docs/registers.md"]
    for fault in contract.Fault:
        assert f"FAULT_{fault.name} = 4'd{int(fault)};" in files["rtl/memory/memory_pkg.sv"]
        assert f"| {int(fault)} | {fault.name} |" in files["docs/registers.md"]
    for error in contract.Error:
        assert f"ERR_{error.name} = 8'd{int(error)};" in files["rtl/fabric_pkg.sv"]
        assert f"constexpr uint32_t ERR_{error.name} = {int(error)};" in files["hls/contract.h"]
        assert f"| {int(error)} | {error.name} |" in files["docs/packets.md"]
    for name, value in (("LANES", design.lanes), ("DEPTH_ACCUMULATOR", design.depth_accumulator)):
        assert f"localparam int unsigned {name} = {value};" in files["rtl/fabric_pkg.sv"]
        assert f"constexpr unsigned {name} = {value};" in files["hls/contract.h"]
    assert f"DESIGN_HASH = 64'h{design.hash64:016X};" in files["rtl/fabric_pkg.sv"]
    assert f"part={design.part}" in files["hls/hls_config.cfg"]


def test_nothing_is_left_unrendered_and_the_kernel_has_its_pragmas() -> None:
    files = render(DESIGNS[0])
    for name in [n for n in files if not n.startswith("rtl/")] + ["rtl/fabric_pkg.sv"]:
        assert not re.search(r"\{\{|\{%|%\}", files[name]), name
    kernel = "".join(text for name, text in files.items() if name.startswith("hls/"))
    assert kernel.count("#pragma HLS PIPELINE II = ") >= 10
    assert kernel.count("#pragma HLS DATAFLOW") == 1
    assert all(line == line.lstrip() for line in kernel.splitlines() if "#pragma HLS" in line)


def test_only_the_contract_and_the_tool_s_settings_differ_between_kernels() -> None:
    kernels = [{name: text for name, text in render(d).items() if name.startswith("hls/")} for d in DESIGNS]
    differ = {name for name in kernels[0] if len({kernel[name] for kernel in kernels}) > 1}
    assert differ == {"hls/contract.h", "hls/csim.tcl", "hls/hls_config.cfg"}


def test_files_that_a_design_no_longer_has_are_removed_and_others_kept(tmp_path: Path) -> None:
    out = generate(DESIGNS[0], tmp_path)
    stale, own = out / "rtl" / "old.sv", out / "rtl" / "mine.sv"
    for path in (stale, own):
        path.write_text("module m; endmodule\n")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"]["rtl/old.sv"] = "0"
    manifest["files"]["../escape"] = "0"
    (out / "manifest.json").write_text(json.dumps(manifest))
    generate(DESIGNS[0], tmp_path)
    assert own.exists() and not stale.exists()


def test_designs_of_one_name_have_folders_of_their_own_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, other = generated(DESIGNS[0]), generated(replace(DESIGNS[0], depth_epilogue=DESIGNS[0].depth_epilogue // 2))
    assert first != other and generated(DESIGNS[0]) == first
    for name, text in render(DESIGNS[0]).items():
        assert (first / name).read_text(encoding="utf-8") == text


def test_an_unknown_name_in_a_template_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.txt.j2").write_text("{{ design.nonsense }}")
    monkeypatch.setattr(generator, "HLS_TEMPLATES", tmp_path)
    with pytest.raises(GenerateError, match=r"bad\.txt\.j2.*nonsense"):
        render(DESIGNS[0])


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--design", "pynq-z2", "--out", str(tmp_path / "out")) == 0
    assert "9216 binary MAC per cycle" in capsys.readouterr().out
    assert command("--design", "nonsense", "--out", str(tmp_path)) == 2
    assert "name one of" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert command("--out", str(tmp_path / "file")) == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ("channels = 12", "use 8 or 16"),
        ("depth_a = 500", "power of two"),
        ("channels = 16", "larger part"),
        ("depth_a = 65536", "halve a depth"),
        ('part = "unknown"', "known parts"),
        ("clock_mhz = 5000", "use 10 to 500"),
    ],
)
def test_impossible_designs_are_refused_with_a_remedy(change: str, remedy: str, tmp_path: Path) -> None:
    text = (generator.ROOT / "configs" / "designs" / "sim-small.toml").read_text()
    key = change.split(" =")[0]
    path = tmp_path / "broken.toml"
    path.write_text(re.sub(rf"^{key} = .*$", change, text, flags=re.MULTILINE))
    with pytest.raises(DesignError, match=re.escape(remedy)):
        load_design(path)


GOOD_NAMES = ("a", "my-board_v2.1", "9", "_x", "A" * 64)
BAD_NAMES = (
    "",
    "my board (v2)",
    "../../evil",
    "a/b",
    ".hidden",
    "-force",
    "a..b",
    "x$y",
    "x;exit",
    "[exit]",
    "x{",
    'q"',
    "é",
    "a\n",
    "A" * 65,
)


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_names_that_need_no_quotes(name: str) -> None:
    assert replace(DESIGNS[0], name=name).name == name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_other_names_are_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(DesignError, match="use up to 64 of the characters"):
        replace(DESIGNS[0], name=name)
    text = (generator.ROOT / "configs" / "designs" / "sim-small.toml").read_text(encoding="utf-8")
    path = tmp_path / "design.toml"
    path.write_text(f"name = {json.dumps(name)}\n{text}", encoding="utf-8")
    assert command("--design", str(path), "--out", str(tmp_path / "out")) == 2
    assert not (tmp_path / "out").exists()


def test_a_design_is_read_as_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    text = (generator.ROOT / "configs" / "designs" / "sim-small.toml").read_text(encoding="utf-8")
    path = tmp_path / "latin.toml"
    path.write_bytes(f"# größer\n{text}".encode("latin-1"))
    with pytest.raises(DesignError, match=r"latin\.toml is not TOML in UTF-8"):
        load_design(path)
    path.write_text(f"# größer\n{text}", encoding="utf-8")
    code = f"from hw.design import load_design; print(load_design({str(path)!r}).name)"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=generator.ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "latin\n", done.stderr


@pytest.mark.parametrize("room", ["HLS_TEMPLATES", "RTL_SOURCES", "DOC_TEMPLATES"])
def test_an_empty_render_is_an_error(
    room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generator, room, tmp_path / "none")
    assert command("--out", str(tmp_path / "out")) == 1
    assert "there are no templates in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_exceeds_the_part_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = tmp_path / "wide.toml"
    text = (generator.ROOT / "configs" / "designs" / "sim-small.toml").read_text(encoding="utf-8")
    wide.write_text(text.replace("epilogue_lanes = 8", "epilogue_lanes = 16"), encoding="utf-8")
    assert command("--design", str(wide), "--out", str(tmp_path / "small")) == 0
    assert re.search(r"takes .*1\d\d % of the DSP of xc7z020", capsys.readouterr().err)
    assert command("--design", "zc706", "--out", str(tmp_path / "large")) == 0
    assert capsys.readouterr().err == ""


def test_the_table_of_packets_in_the_documentation_is_that_of_the_contract() -> None:
    page = render(load_design("zc706"))["docs/packets.md"]  # a design that rounds stochastically
    start = page.index("| packet | opcode |")
    assert page[start : page.index("\n\n", start)] in (ROOT / "docs" / "programs.md").read_text(encoding="utf-8")


def test_the_rtl_has_the_lengths_that_the_cycle_model_counts_with() -> None:
    package = render(load_design("sim-small"))["rtl/fabric_pkg.sv"]
    for name in pipeline.LENGTHS:
        assert f"localparam int unsigned {name} = {getattr(pipeline, name)};" in package
        users = [path.name for path in (ROOT / "hw" / "rtl").glob("*.sv") if name in path.read_text(encoding="utf-8")]
        assert users, f"{name} is rendered and not used"
