"""The model of the HLS kernel's cycles against iterations that its C++ really makes."""

import json
from dataclasses import replace

import pytest

import fractrain
from host.devices.device import check
from host.devices.hls import HlsDevice
from host.measure.engine_bench import layer_programs, passes, random_program
from hw.contract import MOMENT_WORDS, Flag, Opcode, OutputFormat, Target
from hw.design import load_design
from hw.model.kernel_cycles import (
    Overlap,
    kernel_training_cycles,
    last_cycles,
    lines_of_tile,
    output_cycles,
    predict_kernel,
    tile_cycles,
)
from hw.networks import Bits, ConvShape, network
from hw.packet import END, Packet, load_entries, load_tensor, product
from hw.tools.compile import BIT_SERIAL, ap_types, hls_files
from tests.support.kernel import replaced

SMALL = load_design("sim-small")
SHAPES = {
    "one group": ConvShape("one", 8, 8, 3, 1, 1, (8, 8)),
    "two groups": ConvShape("two", 16, 8, 3, 1, 1, (8, 8)),
    "strided": ConvShape("strided", 8, 16, 3, 2, 1, (16, 16)),
}
BITS = Bits(2, 3, 2)
VIRTUAL = 3


def counting(before: str, statement: str) -> HlsDevice:
    """The kernel as synthesis sees it, its SKIPPED register counting how often a statement behind ``before`` runs."""
    kernel = hls_files(SMALL)
    places = [name for name, text in kernel.items() if before + statement in text]
    assert places, "the code to count is no longer there"
    for name in places:
        kernel[name] = kernel[name].replace(before + statement, f"{before}++counted_here, {statement}")
    begin = "EngineStatus counted = {};"
    kernel = replaced(kernel, begin, f"{begin} counted_here = 0;")
    kernel = replaced(kernel, "status.skipped = engine.skipped;", "status.skipped = counted_here;")
    kernel["contract.h"] += "inline uint32_t counted_here;\n"
    return HlsDevice(SMALL, kernel, ["-O1", BIT_SERIAL, "-isystem", str(ap_types())])


def programs(shape: ConvShape) -> list[list[Packet]]:
    side = SMALL.lanes // shape.out_hw[1]
    return [packets for kind in passes() for packets in layer_programs(SMALL, shape, BITS, VIRTUAL * side, kind)]


@pytest.mark.parametrize("name", SHAPES)
def test_array_steps_are_those_of_the_kernel(name: str) -> None:
    device = counting("for (Walk walk = begin_walk(planes); !walk.done; ", "advance(walk, planes,")
    for packets in programs(SHAPES[name]):
        counted = check(device.run(random_program(SMALL, packets)), name).counters["SKIPPED"]
        assert predict_kernel(SMALL, packets).compute == counted


@pytest.mark.parametrize("name", SHAPES)
def test_the_array_rests_for_lines_that_outlast_the_next_tile_and_for_the_last_ones(name: str) -> None:
    device = counting("while (shadow.occupied) {\n#pragma HLS PIPELINE II = 1\n        ", "hand_over(shadow,")
    for packets in programs(SHAPES[name]):
        rests = 0
        for p in packets:
            if p.is_product:
                assert not p.has(Flag.A_SUM), "these have more lines"
                lines = lines_of_tile(SMALL, p)
                steps = [tiles.steps for tiles in p.tiles() for _ in range(tiles.number)]
                rests += sum(max(0, lines - s) for s in steps[1:]) + lines
        assert check(device.run(random_program(SMALL, packets)), name).counters["SKIPPED"] == rests


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
def test_the_output_process_takes_what_the_model_counts(name: str) -> None:
    def count(before: str, statement: str) -> int:
        result = check(counting(before, statement).run(random_program(SMALL, packets)), name)
        return result.counters["SKIPPED"]

    packets = with_epilogue(name)
    (packet,) = (p for p in packets if p.is_product)
    hashes = count("rest = starts & (starts - 1);\n        ", "spread(")
    lines = count("Finished done;\n        ", "finish_sums(settings")
    beats = count("PIPELINE II = BEAT_INTERVAL\n            ", "send(out, sent, planes")
    assert lines == 12 * lines_of_tile(SMALL, packet)
    taken = hashes + lines * max(SMALL.channels, SMALL.epilogue_lanes) // SMALL.epilogue_lanes
    assert taken + beats * 2 // SMALL.output_streams == 12 * output_cycles(SMALL, packet)
    pairs = count(
        "const Moments even = buffers.moments[channel], odd = buffers.moments[channel + 1];\n        ", "send("
    )
    assert pairs * MOMENT_WORDS * 2 // SMALL.output_streams == last_cycles(SMALL, packet)


@pytest.mark.parametrize("bits", [1, 3, 4])
def test_a_tile_waits_for_the_planes_of_its_side_operands(bits: int) -> None:
    packets = with_epilogue("codes", bits)
    (packet,) = (p for p in packets if p.is_product)
    (tiles,) = packet.tiles()
    device = counting(
        "type = intra dependent = false\n        ", "fetch_plane(buffers, fetch, side);\n        hand_over"
    )
    counted = check(device.run(random_program(SMALL, packets)), "planes").counters["SKIPPED"]
    assert counted == tiles.number * (tile_cycles(packet, tiles.steps) - tiles.steps)
    assert (counted == 0) == (bits == 4)


def test_every_tile_but_the_last_leaves_without_a_cycle_where_steps_outlast_lines() -> None:
    (packets,) = layer_programs(SMALL, SHAPES["one group"], Bits(8, 8, 8), 1, "forward")
    product = next(p for p in packets if p.opcode == Opcode.CONV)
    number = sum(tiles.number for tiles in product.tiles())
    before, after = (predict_kernel(SMALL, packets, form).cycles for form in (Overlap.LOADS, Overlap.TILES))
    assert before - after == (number - 1) * lines_of_tile(SMALL, product)


def test_loads_are_stored_while_the_product_before_them_runs() -> None:
    device = counting("intake.held.after <= intake.products) ", "store(buffers, intake);")
    packets = programs(SHAPES["one group"])[0]
    loads = [p for p in packets if p.opcode == Opcode.LOAD and p.target == Target.A]
    assert len(loads) == VIRTUAL
    # all but the first one find a product to overlap with; the end of a load is a write too
    writes = sum(p.rows * p.groups * p.a_bits + 1 for p in loads[1:])
    assert check(device.run(random_program(SMALL, packets)), "loads").counters["SKIPPED"] == writes


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
