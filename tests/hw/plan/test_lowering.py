"""What a layer's products become on the array: choices against their alternative, and work against a count by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.contract import Error, Flag, Opcode, OutputFormat
from hw.design import load_design
from hw.model.cycles import predict
from hw.networks import Bits, ConvGeometry, ConvShape, network
from hw.packet import END, Packet
from hw.plan.lowering import lower
from hw.plan.product import EpilogueForm, Lowered, LoweringError, Product, Source
from hw.plan.schedule import steps_of
from hw.plan.training_products import CODES, INTEGERS, Form, layer_products, program

DESIGN = load_design("zc706")
LAYER = ConvShape("deep", 64, 64, 3, 1, 1, (32, 32))
STAGES = [shape for shape in network("resnet38") if shape.stride == 2 and shape.kernel == 3]


def packets(shape: ConvShape, bits: Bits, kind: str, form: Form = CODES, batch: int = 128) -> list[Packet]:
    ((_, product),) = layer_products(shape, bits, batch, kind, form)
    return list(program(DESIGN, product))


@pytest.fixture
def unpaired(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Once it refuses pairs, nothing that was lowered before is taken for it, nor the other way round."""
    lower.cache_clear()
    yield monkeypatch
    lower.cache_clear()


def refuse_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    lower.cache_clear()
    monkeypatch.setattr("hw.plan.lowering.pairs_channel_groups", lambda *_: False)


@pytest.mark.parametrize("depth, kind", [("depth_a", "forward"), ("depth_g", "backward")])
def test_a_buffer_that_is_too_small_is_named(depth: str, kind: str) -> None:
    ((_, product),) = layer_products(LAYER, Bits(16, 16, 16), 8, kind)
    with pytest.raises(LoweringError, match=f"buffer {depth[-1].upper()} of 16.*raise {depth}"):
        lower(replace(DESIGN, **{depth: 16}), product)


@pytest.mark.parametrize("kind", ["weight_gradient", "backward"])
@pytest.mark.parametrize("batch", [7, 128])
def test_every_image_is_in_exactly_one_stack(kind: str, batch: int) -> None:
    sent = packets(LAYER, Bits(3, 2, 4), kind, batch=batch)
    assert sum(p.images for p in sent if p.opcode == Opcode.WGRAD) == batch


@pytest.mark.parametrize("shape", STAGES, ids=lambda s: s.name)
@pytest.mark.parametrize(
    "bits", [Bits(8, 8, 8), Bits(6, 6, 8), Bits(4, 4, 6), Bits(4, 3, 6), Bits(3, 3, 6), Bits(2, 2, 4)], ids=str
)
@pytest.mark.parametrize("form", [CODES, INTEGERS], ids=lambda form: form.output.name)
def test_groups_in_pairs_are_never_slower(
    shape: ConvShape, bits: Bits, form: Form, unpaired: pytest.MonkeyPatch
) -> None:
    chosen = predict(DESIGN, packets(shape, bits, "input_gradient", form)).cycles
    refuse_pairs(unpaired)
    assert chosen <= 1.002 * predict(DESIGN, packets(shape, bits, "input_gradient", form)).cycles


@pytest.mark.parametrize("shape", STAGES, ids=lambda s: s.name)
def test_groups_in_pairs_halve_the_work_of_the_array(shape: ConvShape, unpaired: pytest.MonkeyPatch) -> None:
    chosen = predict(DESIGN, packets(shape, Bits(8, 8, 8), "input_gradient", batch=4)).compute
    refuse_pairs(unpaired)
    assert 2 * chosen == predict(DESIGN, packets(shape, Bits(8, 8, 8), "input_gradient", batch=4)).compute


@pytest.mark.parametrize("shape", STAGES, ids=lambda s: s.name)
def test_gradients_of_a_strided_layer_take_turns(shape: ConvShape) -> None:
    """Paired groups read the output gradient in a form of their own, and yet loads of one product hide behind the other."""
    both = packets(shape, Bits(8, 8, 8), "backward")
    kinds = [p.opcode for p in both if p.opcode in (Opcode.CONV, Opcode.WGRAD)]
    assert any(p.has(Flag.STRIDE_2) for p in both)
    assert sum(a != b for a, b in itertools.pairwise(kinds)) > 4
    alone = [
        predict(DESIGN, packets(shape, Bits(8, 8, 8), kind)).cycles for kind in ("input_gradient", "weight_gradient")
    ]
    assert predict(DESIGN, both).cycles < sum(alone)


@pytest.mark.parametrize("name", ["zc706", "sim-small", "pynq-z2"])
@pytest.mark.parametrize("side", [14, 32])
@pytest.mark.parametrize("form", [OutputFormat.MOMENTS, OutputFormat.CODES], ids=lambda form: form.name)
def test_what_the_epilogue_reads_beside_many_channels_of_tall_images_fits(
    form: OutputFormat, side: int, name: str
) -> None:
    """As of the wide layers of MobileNetV2: 384 channels of results, with a mask and codes beside each."""
    design, geometry = load_design(name), ConvGeometry(8, 384, 64, (side, side), (1, 1), 1, 0)
    behind = EpilogueForm(form, side=8, side_signed=True, masked=True, added=8, cross=form == OutputFormat.MOMENTS, out=8)
    product = Product("input_gradient", geometry, w=Source(8, True), g=Source(8, True), sums=False, behind=behind)
    half = design.depth_g // 2
    sent = list(program(design, product))
    for packet in sent:
        assert packet.check(design)[0] != Error.OUT_OF_BUFFER, packet.check(design)
    loads = [p.ranges(design)["G"] for p in sent if p.opcode == Opcode.LOAD and "G" in p.ranges(design)]
    assert loads
    for ((base, end),) in loads:
        assert base // half == (end - 1) // half, "what lies in a half is read while the other one is loaded"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from([(1, 2, 0), (3, 2, 1), (3, 3, 1), (1, 3, 0)]), st.sampled_from([(8, 8), (16, 16), (13, 7)]),
    st.tuples(st.integers(1, 128), st.integers(1, 64), st.integers(1, 64)), st.tuples(*[st.integers(1, 8)] * 3),
    st.booleans(), st.sampled_from(["sim-small", "zc706"]),
)  # fmt: skip
def test_strided_gradients_take_turns_where_that_is_no_slower(kernel, hw, sizes, bits, sums, name) -> None:  # type: ignore[no-untyped-def]
    design, (k, stride, padding) = load_design(name), kernel
    x, w, g = (Source(n) for n in bits)
    lowered = lower(design, Product("backward", ConvGeometry(*sizes, hw, (k, k), stride, padding), x, w, g, sums=sums))

    def cycles(one: Lowered) -> int:
        return predict(design, [*(p for step in steps_of(design, [one]) for p in step.packets), END]).cycles

    assert cycles(lowered) <= cycles(replace(lowered, fused=False))
