"""The cycle model against RTL counters that were measured and committed."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from host.measure.engine_bench import FORMS, layer_programs
from hw.contract import Flag, Opcode, OutputFormat
from hw.design import ROOT, Design, load_design
from hw.model.cycles import predict
from hw.networks import Bits, ConvGeometry, ConvShape, network
from hw.packet import END, product
from hw.plan.lowering import lower
from hw.plan.product import Product, Source
from hw.plan.training_products import layer_products, program
from tests.support.recorded import recorded

MEASUREMENT, OF_THIS_DESIGN = recorded(ROOT / "docs" / "measurements" / "engine-zc706.json")
TOLERANCE = 0.03


def rows() -> Iterator[Any]:
    for run in MEASUREMENT["runs"]:
        for row in run["rows"]:
            name = f"{row['layer']}-{row['product']}-{row['bits']}-{row['output']}"
            yield pytest.param(row, id=name.replace("/", "."))


@pytest.fixture(scope="module")
def design() -> Design:
    return load_design(MEASUREMENT["design"])


@pytest.fixture(scope="module")
def layers() -> dict[str, ConvShape]:
    return {shape.name: shape for shape in network(MEASUREMENT["model"])}


@OF_THIS_DESIGN
@pytest.mark.parametrize("row", list(rows()))
def test_total_of_a_measured_program(row: dict[str, Any], design: Design, layers: dict[str, ConvShape]) -> None:
    """The model of today, on the packets of today, against the RTL when it was measured."""
    bits, shape = Bits(*map(int, row["bits"].split("/"))), layers[row["layer"]]
    programs = layer_programs(design, shape, bits, MEASUREMENT["batch"], row["product"], FORMS[row["output"]])
    predicted = sum(predict(design, packets).cycles for packets in programs)
    assert predicted == pytest.approx(row["measured_total"], rel=TOLERANCE)


def test_the_measurement_covers_the_network(layers: dict[str, ConvShape]) -> None:
    for run in MEASUREMENT["runs"]:
        counted = sum(row["count"] for row in run["rows"] if row["product"] == "forward")
        assert counted == sum(shape.kind != "fc" for shape in layers.values())


def test_cycles_fall_with_the_product_of_the_widths(design: Design, layers: dict[str, ConvShape]) -> None:
    shape = layers["blocks.6.conv2"]
    wide, narrow = (
        sum(
            predict(design, program(design, product)).cycles
            for kind in ("forward", "backward")
            for _, product in layer_products(shape, Bits(n, n, n), 128, kind)
        )
        for n in (8, 4)
    )
    assert narrow / wide == pytest.approx(0.25, abs=0.05)


def conv(design: Design, rows: int, form: OutputFormat, **more: int) -> int:
    """Predicted cycles of one small CONV that is bound by its drain, loads left out."""
    shape = {"images": 1, "rows": rows, "groups": 1, "out_groups": 1, "a_bits": 1, "b_bits": 1}
    return predict(design, [product(Opcode.CONV, **shape, format=form, **more), END]).cycles


def test_a_channel_of_moments_takes_as_many_cycles_as_the_epilogue_has_slices_of_a_row(design: Design) -> None:
    for lanes in (4, 8, 32):
        narrow = replace(design, epilogue_lanes=lanes)
        tall, short = (
            conv(narrow, rows, OutputFormat.MOMENTS, valid=1, first_row=0, last_row=rows) for rows in (40, 8)
        )
        assert tall - short == pytest.approx(32 * design.lanes // lanes * design.channels, rel=0.3)


def test_stochastic_codes_wait_for_their_first_hash_and_for_the_seeds_of_narrow_segments(design: Design) -> None:
    def per_tile(flags: Flag, segments: int) -> float:
        starts = sum(1 << design.lanes // segments * i for i in range(segments))
        kind = {"out_bits": 1, "factor": 1, "flags": int(flags), "segment_start": starts}
        return (conv(design, 40, OutputFormat.CODES, **kind) - conv(design, 8, OutputFormat.CODES, **kind)) / 32

    assert per_tile(Flag.STOCHASTIC, 1) == pytest.approx(per_tile(Flag(0), 1), abs=1)
    assert per_tile(Flag.STOCHASTIC, 4) == pytest.approx(4 * design.channels, abs=1)
    assert per_tile(Flag(0), 4) == per_tile(Flag(0), 1)


def test_weight_gradients_pay_for_the_taps_in_use(design: Design) -> None:
    def cycles(taps: int) -> int:
        shape = {"images": 8, "rows": 32, "groups": 1, "out_groups": 1, "a_bits": 4, "b_bits": 4}
        return predict(design, [product(Opcode.WGRAD, **shape, taps=taps), END]).compute

    assert cycles(0x1FF) == 9 * cycles(0x10) == 9 * 8 * 4 * 16


def test_long_matrix_products_contract_along_pixels_and_short_ones_along_channels(design: Design) -> None:
    def along_pixels(rows: int, inner: int, columns: int, bits: int) -> bool:
        x, w = Source(bits), Source(bits)
        return lower(design, Product("forward", ConvGeometry(rows, inner, columns, (1, 1)), x, w)).along_pixels

    assert along_pixels(20, 1024, 64, 4)
    assert not along_pixels(256, 64, 64, 8)
