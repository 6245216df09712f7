"""What synthesis reads from the kernel's pragmas: registers, initiation intervals and FIFO depths of a design."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from hw import contract
from hw.contract import Opcode, OutputFormat
from hw.design import Design, load_design
from hw.model.kernel_cycles import last_cycles, lines_of_tile, output_cycles
from hw.packet import Packet, product, read_entries
from hw.tools.compile import BASE_FLAGS, BIT_SERIAL, ap_types, compiler, hls_files

DESIGNS = [load_design(name) for name in ("sim-small", "pynq-z2", "zc706")]


@pytest.fixture(params=DESIGNS, ids=lambda d: d.name)
def kernel(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Design, Path]:
    """A design and the folder of its kernel."""
    for name, text in hls_files(request.param).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return request.param, tmp_path


def gxx(folder: Path, *words: str) -> str:
    """Output of the C++ compiler for the code that synthesis sees."""
    command = [*compiler(), *BASE_FLAGS, BIT_SERIAL, "-isystem", str(ap_types()), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_register_is_an_argument_and_a_port_at_its_offset(kernel: tuple[Design, Path]) -> None:
    _, folder = kernel
    text = gxx(folder, "-E", "-P", "fabric.cpp")
    ports = dict(
        re.findall(r"#pragma HLS INTERFACE mode = s_axilite bundle = control port = (\w+) offset = (\w+)", text)
    )
    expected = {r.name.lower(): r.offset for r in contract.REGISTERS if r.access == "r" or r.name == "SOFT_RESET"}
    assert {name: int(offset, 16) for name, offset in ports.items()} == expected
    head = re.search(r"void fabric\(([^)]*)\)\s*{", text)
    assert head is not None
    assert re.findall(r"uint32_t& ?(\w+)", head[1]) == [r.name.lower() for r in contract.REGISTERS if r.access == "r"]


def conv(form: OutputFormat) -> Packet:
    return product(Opcode.CONV, rows=1, groups=1, out_groups=1, a_bits=1, b_bits=1, format=form)


def test_constants_of_pragmas_are_those_of_the_design_and_of_the_cycle_model(kernel: tuple[Design, Path]) -> None:
    design, folder = kernel
    named = re.findall(r"#pragma HLS .*\b(?:II|depth|factor) = ([A-Za-z]\w*)", "".join(hls_files(design).values()))
    lines = lines_of_tile(design, conv(OutputFormat.INT32))
    parts = lines // design.channels

    def cycles(form: OutputFormat) -> int:
        return output_cycles(design, conv(form))

    def entry(form: OutputFormat) -> int:
        return last_cycles(design, read_entries(1, form=form))

    values = {
        "WORDS_INTERVAL": cycles(OutputFormat.INT64) // lines,
        "PAIRS_INTERVAL": cycles(OutputFormat.INT32) // lines,
        "EPILOGUE_INTERVAL": cycles(OutputFormat.MOMENTS) // lines,
        "MOMENTS_INTERVAL": 2 * last_cycles(design, conv(OutputFormat.MOMENTS)) // design.channels,
        "BEAT_INTERVAL": 2 // design.output_streams,
        "WIDE_ENTRY_INTERVAL": entry(OutputFormat.INT64),
        "ENTRY_INTERVAL": entry(OutputFormat.INT32),
        "LINE_SLOTS": 2 * (lines + parts),
    }
    assert set(named) == set(values)
    asserts = "".join(f"static_assert({name} == {value});\n" for name, value in values.items())
    (folder / "constants.cpp").write_text(f'#include "fabric.cpp"\n{asserts}', encoding="utf-8")
    gxx(folder, "-fsyntax-only", "constants.cpp")
