"""The dot product in 7-series primitives against the form for simulation, cycle by cycle."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from host.devices.rtl import verilator_environment
from hw.design import ROOT
from hw.tools.yosys import XC7_PRIMITIVES, primitive_models

RTL = ROOT / "hw" / "rtl"

BENCH = """
`default_nettype none
module bench #(parameter int unsigned BITS = 144, parameter bit ONES = 0, parameter bit DSP = 1) (
    input  wire             clk_i,
    input  wire  [BITS-1:0] a_i, b_i,
    input  wire             count_i, sign_i, negative_i, valid_i, first_i, shift_i,
    output logic [47:0]     expected_o, actual_o
);
  dot_product_reference #(.BITS(BITS), .ACC(48)) i_reference (.*, .acc_o(expected_o));
  dot_product_unit #(.BITS(BITS), .ACC(48), .ONES(ONES), .DSP(DSP)) i_unit (.*, .acc_o(actual_o));
endmodule
`default_nettype wire
"""

# Random planes of every density, thermometer codes and the two extremes; every control random in every cycle, so that
# holding, restarting, doubling and subtracting follow each other in every order and at every distance.
DRIVER = r"""
#include "Vbench.h"
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

int main(int argc, char** argv) {
    const long cycles = std::atol(argv[1]);
    const int bits = std::atoi(argv[2]);
    const bool ones = std::atoi(argv[3]) != 0;
    std::mt19937_64 random(argc > 4 ? std::atol(argv[4]) : 1);
    Vbench bench;
    long compared = 0, negatives = 0, extremes = 0;
    bool started = false;
    auto chance = [&](int percent) { return static_cast<int>(random() % 100) < percent; };
    bench.clk_i = 0;
    for (long cycle = 0; cycle < cycles; cycle++) {
        const int density = static_cast<int>(random() % 5) * 25;
        const int kind = static_cast<int>(random() % 8), level = static_cast<int>(random() % (bits + 1));
        const bool b_ones = chance(70);
        for (int word = 0; word < (bits + 31) / 32; word++) {
            uint32_t a = 0, b = 0;
            for (int k = 0; k < 32 && 32 * word + k < bits; k++) {
                const int position = 32 * word + k;
                const bool a_bit =
                    kind == 0 ? position < level : kind == 1 ? position == level : kind == 2 || chance(density);
                const bool b_bit = ones ? b_ones : kind <= 2 ? true : chance(density);
                a |= static_cast<uint32_t>(a_bit) << k;
                b |= static_cast<uint32_t>(b_bit) << k;
            }
            bench.a_i[word] = a;
            bench.b_i[word] = b;
        }
        extremes += kind == 2;
        const bool steady = cycle % 2000 < 1000;  // half of the time without a pause, as the array runs
        bench.count_i = steady || chance(60);
        bench.sign_i = steady || chance(60);
        bench.negative_i = chance(40);
        bench.valid_i = steady || chance(60) || !started;
        bench.first_i = chance(5) || cycle < 4;
        bench.shift_i = chance(25);
        negatives += bench.negative_i;
        bench.eval();
        bench.clk_i = 1;
        bench.eval();
        bench.clk_i = 0;
        bench.eval();
        if (cycle >= 3) started = true;  // registers hold nothing known before the first result
        if (started) {
            compared++;
            if (bench.expected_o != bench.actual_o) {
                std::printf("cycle %ld: expected %012lx, got %012lx\n", cycle, static_cast<long>(bench.expected_o),
                            static_cast<long>(bench.actual_o));
                return 1;
            }
        }
    }
    std::printf("%ld %ld %ld\n", compared, negatives, extremes);
    return 0;
}
"""


def build(folder: Path, bits: int, ones: bool, dsp: bool, unit: str | None = None) -> Path:
    """Bench that runs both forms side by side; ``unit`` replaces the text of the unit in primitives."""
    reference = (RTL / "dot_product_unit.sv").read_text()
    files = {
        "reference.sv": re.sub(r"\bdot_product_unit\b", "dot_product_reference", reference),
        "unit.sv": unit or (RTL / "xc7" / "dot_product_unit.sv").read_text(),
        **{name: (RTL / "xc7" / name).read_text() for name in ("counter_7_3.sv", "save_adder.sv")},
        "primitives.v": primitive_models(XC7_PRIMITIVES),
        "bench.sv": BENCH,
        "driver.cpp": DRIVER,
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    command = [
        "verilator", "--cc", "--exe", "--build", "-j", "2", "-O3", "--top-module", "bench", "-Wno-fatal", "-Wno-lint",
        "-Wno-SPECIFYIGN", f"-GBITS={bits}", f"-GONES={int(ones)}", f"-GDSP={int(dsp)}",
        "--Mdir", str(folder / "model"), "-CFLAGS", "-std=c++20 -O1", *(str(folder / name) for name in files),
    ]  # fmt: skip
    done = subprocess.run(command, env=verilator_environment(), capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return folder / "model" / "Vbench"


def run(program: Path, cycles: int, bits: int, ones: bool, seed: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), str(cycles), str(bits), str(int(ones)), str(seed)], capture_output=True, text=True
    )


CASES = [
    pytest.param(144, False, True, id="144-dsp"),
    pytest.param(72, True, False, id="72-ones-lut"),
    pytest.param(72, False, False, id="72-lut", marks=pytest.mark.slow),
    pytest.param(144, True, False, id="144-ones-lut", marks=pytest.mark.slow),
    pytest.param(144, True, True, id="144-ones-dsp", marks=pytest.mark.slow),
    pytest.param(72, False, True, id="72-dsp", marks=pytest.mark.slow),
    pytest.param(144, False, False, id="144-lut", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("bits", "ones", "dsp"), CASES)
def test_primitives_equal_behaviour(tmp_path: Path, bits: int, ones: bool, dsp: bool) -> None:
    program = build(tmp_path, bits, ones, dsp)
    for seed in (1, 2):
        done = run(program, 100_000, bits, ones, seed)
        assert done.returncode == 0, done.stdout
        compared, negatives, extremes = map(int, done.stdout.split())
        assert compared > 99_000 and negatives > 30_000 and extremes > 5_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (".CARRYIN(negative_i)", ".CARRYIN(1'b0)"),
        ("assign save[0] = negative_i;", "assign save[0] = 1'b0;"),
        ("shift_i && !first_i", "shift_i"),
        (".CEP(valid_i)", ".CEP(1'b1)"),
        (">= 2 : ^product", ">= 3 : ^product"),
    ],
    ids=["carry", "save", "first", "hold", "count"],
)
def test_a_fault_is_seen(tmp_path: Path, old: str, new: str) -> None:
    text = (RTL / "xc7" / "dot_product_unit.sv").read_text()
    assert old in text
    program = build(tmp_path, 72, False, True, text.replace(old, new))
    assert run(program, 20_000, 72, False).returncode == 1
