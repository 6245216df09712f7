"""Packets of a layer: what does not fit is refused by name, before any packet is made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hw.design import load_design
from hw.layers import Bits, ConvShape
from hw.workload import WorkloadError, backward

LAYER = ConvShape("deep", 64, 64, 3, 1, 1, (32, 32))


@pytest.mark.parametrize(
    "depth, buffer", [("depth_a", "A"), ("depth_g", "G"), ("depth_w", "W"), ("depth_accumulator", "accumulator")]
)
def test_buffer_that_is_too_small_is_named(depth: str, buffer: str) -> None:
    design = replace(load_design("zc706"), **{depth: 64})
    with pytest.raises(WorkloadError, match=f"buffer {buffer} "):
        list(backward(design, LAYER, Bits(8, 8, 8), 8))


def test_every_image_is_in_exactly_one_chunk() -> None:
    packets = list(backward(load_design("zc706"), LAYER, Bits(3, 2, 4), 7))
    assert sum(p["images"] for p in packets if p["opcode"] == 3) == 7
