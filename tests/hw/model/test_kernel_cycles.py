"""The model of the HLS kernel's cycles against iterations that its C++ really makes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import fractrain
from host.measure.engine_bench import layer_programs, passes, random_program
from host.verify.kernel_check import count_program
from hw.contract import Flag, Opcode, OutputFormat, Target
from hw.design import load_design
from hw.model.kernel_cycles import (
    Overlap,
    kernel_training_cycles,
    lines_of_tile,
    predict_kernel,
    writes_of,
)
from hw.networks import Bits, ConvShape, network
from hw.packet import END, Packet, load_entries, load_tensor, product

SMALL = load_design("sim-small")
SHAPES = {
    "one group": ConvShape("one", 8, 8, 3, 1, 1, (8, 8)),
    "two groups": ConvShape("two", 16, 8, 3, 1, 1, (8, 8)),
    "strided": ConvShape("strided", 8, 16, 3, 2, 1, (16, 16)),
}
BITS = Bits(2, 3, 2)
VIRTUAL = 3


def programs(shape: ConvShape) -> list[list[Packet]]:
    side = SMALL.lanes // shape.out_hw[1]
    return [packets for kind in passes() for packets in layer_programs(SMALL, shape, BITS, VIRTUAL * side, kind)]


@pytest.mark.parametrize("name", SHAPES)
def test_every_loop_of_a_layer_takes_the_cycles_of_the_model(name: str, tmp_path: Path) -> None:
    for packets in programs(SHAPES[name]):
        counts, model = count_program(SMALL, random_program(SMALL, packets), tmp_path)
        assert counts.cycles() | model == counts.cycles()
        assert sum(counts.cycles().values()) == sum(model.values()) > 0


EPILOGUES = {
    "moments": {"format": OutputFormat.MOMENTS, "shift": 4, "valid": 6},
    "codes": {"format": OutputFormat.CODES, "out_bits": 3, "shift": 4},
    "sections": {"format": OutputFormat.CODES, "out_bits": 2, "shift": 4, "keep_bits": 3, "wide_bits": 8},
    "records": {"format": OutputFormat.CODES, "out_bits": 1, "shift": 4, "flags": Flag.RECORDS, "valid": 1},
    "random": {
        "format": OutputFormat.CODES, "out_bits": 2, "shift": 4, "flags": Flag.STOCHASTIC, "factor": 1,
        "segment_start": 0b100100000010001,
    },
}  # fmt: skip
SIDES = {"side_bits": 8, "added_bits": 7, "base_added": 200}


def with_epilogue(name: str, bits: int = 1) -> list[Packet]:
    """A program of one CONV with an epilogue, of two images of three rows and two output groups."""
    shape = {"images": 2, "rows": 3, "out_groups": 2}
    packet = product(Opcode.CONV, **shape, **{"groups": 1, "a_bits": bits, "b_bits": bits, **EPILOGUES[name]}, **SIDES)
    loads = [load_tensor(SMALL, Target.A, 2, 3, 1, bits), load_tensor(SMALL, Target.G, 2, 3, 2, 15)]
    weights, entries = load_entries(SMALL, Target.W, 2 * bits), load_entries(SMALL, Target.E, 2 * SMALL.channels)
    return [*loads, weights, entries, packet, END]


@pytest.mark.parametrize("name", EPILOGUES)
@pytest.mark.parametrize("bits", [1, 3, 4])
def test_every_loop_of_an_epilogue_takes_the_cycles_of_the_model(name: str, bits: int, tmp_path: Path) -> None:
    packets = with_epilogue(name, bits)
    counts, model = count_program(SMALL, random_program(SMALL, packets), tmp_path)
    assert {function: cycles for function, cycles in counts.cycles().items() if cycles} == model
    # a tile waits for the planes of its side operands, 15 of them
    assert ("finish_fetch" in model) == (bits < 4)


def test_every_tile_but_the_last_leaves_without_a_cycle_where_steps_outlast_lines() -> None:
    (packets,) = layer_programs(SMALL, SHAPES["one group"], Bits(8, 8, 8), 1, "forward")
    product = next(p for p in packets if p.opcode == Opcode.CONV)
    number = sum(tiles.number for tiles in product.tiles())
    before, after = (predict_kernel(SMALL, packets, form).cycles for form in (Overlap.LOADS, Overlap.TILES))
    assert before - after == (number - 1) * lines_of_tile(SMALL, product)


def test_loads_are_stored_while_the_product_before_them_runs(tmp_path: Path) -> None:
    packets = programs(SHAPES["one group"])[0]
    loads = [p for p in packets if p.opcode == Opcode.LOAD]
    behind = [p for p in loads if p.target == Target.A][1:]  # all but the first one find a product to overlap with
    assert len(behind) == VIRTUAL - 1
    counts, _ = count_program(SMALL, random_program(SMALL, packets), tmp_path)
    assert counts.cycles()["finish_load"] == sum(writes_of(p) for p in loads) - sum(writes_of(p) for p in behind)


def test_loads_that_must_wait_cost_cycles() -> None:
    packets = programs(SHAPES["one group"])[0]
    onto_itself = [replace(p, base_a=0) for p in packets]
    series = predict_kernel(SMALL, packets, Overlap.NONE).cycles
    assert predict_kernel(SMALL, packets).cycles < predict_kernel(SMALL, onto_itself).cycles <= series


def test_overlap_is_worth_more_than_a_sixth_on_the_measured_network() -> None:
    design, shapes = load_design("zc706"), network("resnet38")
    for bits in (Bits(8, 8, 8), Bits(4, 3, 6)):
        series, ahead, now = (kernel_training_cycles(design, shapes, bits, 128, form) for form in Overlap)
        assert ahead < 5 / 6 * series
        assert now < 0.96 * ahead


def test_command_prints_what_the_model_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert fractrain.main(["bench", "kernel", "--bits", "4/3/6", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row["tiles"] == kernel_training_cycles(load_design("zc706"), network("resnet38"), Bits(4, 3, 6))
    assert row["saved"] == 1 - row["tiles"] / row["none"]


@pytest.mark.parametrize("arguments", [["--batch", "0"], ["--bits", "8/8"], ["--design", "nonsense"]])
def test_command_refuses_bad_input(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert fractrain.main(["bench", "kernel", *arguments]) == 2
    assert arguments[-1] in capsys.readouterr().err
