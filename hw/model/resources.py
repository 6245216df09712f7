"""Resources of a design from its parameters, in microseconds.

What the sources spell out in primitives or memories is counted exactly: the bit heap of a dot product, the block RAM of
a memory.  What Yosys maps is a constant, a share per lane and a share per lane and channel; the coefficients were fitted to
``fractrain synth`` on sim-small and pynq-z2 (C = 8) and zc706 (C = 16), the only two values of C that a design may have.
"""

from __future__ import annotations

from functools import lru_cache

from hw import contract
from hw.boards import PARTS
from hw.design import BEAT_BITS, Design, memory_blocks
from hw.tools.area import SYSTEM_RESET, Area


@lru_cache(maxsize=64)
def dot_product(bits: int, ones: bool, dsp: bool, accumulator: int = contract.ACCUMULATOR_BITS) -> Area:
    """One dot product in primitives: the plan of ``hw/rtl/xc7/dot_product_unit.sv``, step for step.

    Args:
        bits: length.
        ones: form for a second operand whose bits are all equal.
        dsp: accumulator in a DSP slice.
        accumulator: its width in bits.
    """
    columns = bits.bit_length()
    heap = [0] * columns
    heap[0] = bits if ones else -(-bits // 3)
    if not ones:
        heap[1] = heap[0]
    lut = 0 if ones else 2 * heap[0]
    ff = 0
    stage = 0
    register = 2 if ones else 1  # stages before the register
    while True:
        plan = _finish(heap) if stage else None
        counters = [(n + 2) // 7 for n in heap] if plan is None else [int(p == 2) for p in plan]
        adders = [0] * columns if plan is None else [int(p == 1) for p in plan]
        # outputs that leave a slice unregistered need a third LUT
        stage += 1
        lut += sum(counters) * (2 if stage == register else 3) + sum(adders)
        after = [0] * (columns + 2)
        for c, n in enumerate(heap):
            used = 3 if adders[c] else min(7 * counters[c], n)
            after[c] += n - used + counters[c] + adders[c]
            after[c + 1] += counters[c] + adders[c]
            after[c + 2] += counters[c]
        heap = after[:columns]
        if stage == register:
            ff = sum(heap)
        if plan is not None:
            break
    lut += columns
    if dsp:
        lut += 2  # modes of the DSP slice
    else:
        lut += 4 * -(-accumulator // 4)
        ff += columns + 1 + accumulator
    if ones:
        lut += 1  # gate of the second operand
    return Area(lut, ff, 0.0, int(dsp))


def _finish(heap: list[int]) -> list[int] | None:
    """Full adder (1) or counter (2) per column so that none is higher than three; None if one stage cannot."""
    carries = [0] * (len(heap) + 2)
    plan = [0] * len(heap)
    for c, n in enumerate(heap):
        if n + carries[c] <= 3:
            continue
        carries[c + 1] += 1
        if n >= 3 and n + carries[c] <= 5:
            plan[c] = 1
            continue
        if n < 5 or n + carries[c] - min(n, 7) > 2:
            return None
        plan[c] = 2
        carries[c + 2] += 1
    return plan


#: LUT, FF and DSP of what Yosys maps: constant, per lane, and per lane and channel
MAPPED: dict[str, dict[str, tuple[float, float, float]]] = {
    "operand_network": {"lut": (-21, 0, 49.753), "ff": (405, 0, 19.583), "dsp": (0, 0, 0)},
    "loader": {"lut": (1607, 0, 0), "ff": (1589, 0, 0), "dsp": (12, 0, 0)},
    "drain": {"lut": (859, 26.8, 0), "ff": (1374, 5.0, 0), "dsp": (0, 0, 0)},
    "sequencer": {"lut": (1750, 0, 0), "ff": (1628, 4.94, 0), "dsp": (2, 0, 0)},
    "command_queue": {"lut": (1098, 0, 0), "ff": (1422, 0, 0), "dsp": (0, 0, 0)},
    "control_registers": {"lut": (259, 0, 0), "ff": (55, 0, 0), "dsp": (0, 0, 0)},
    "control_bridge": {"lut": (84, 0, 0), "ff": (149, 0, 0), "dsp": (0, 0, 0)},
    "memory_front_end": {"lut": (3907, 0, 0), "ff": (2859, 0, 0), "dsp": (0, 0, 0)},
    "fabric": {"lut": (594, 0, 3.044), "ff": (1008, 0, 20.042), "dsp": (0, 0, 0)},
}
#: LUT of the drain for each lane of an epilogue that takes a tile's pixels in portions: which of them it gets
PORTION_LUT = 49
#: payload queues of the two memory ports
MEMORY_PORTS_BRAM36 = 2.0
#: LUT of the bits that tell zero row words: of a tensor buffer, and per address
FLAG_LUT = 65, 1.227


def drain_units(design: Design) -> dict[str, Area]:
    """Units that the drain hands a tile's values to, all instances of each; shadow lanes exactly, the others fitted."""
    lanes, channels, wide = design.lanes, design.channels, design.epilogue_lanes
    sums, quads = contract.ACCUMULATOR_BITS, channels // 4
    value = sums + 2 * contract.MAX_SIDE_BITS + 1  # of a pixel and channel, with both operands and the mask
    # a bit of four channels is a LUT, and so is what joins them; registers: shadow, channel taken, what loads them
    lane = Area(value * (quads + 1), value * (channels + quads) + 2 * sums + quads + 5)
    beats = lanes * channels // BEAT_BITS
    planes = contract.MAX_BITS + 2 * contract.MAX_SIDE_BITS + 1
    units = {
        "shadow_lane": lane.times(lanes),
        "accumulators": Area(
            round(48 + 97.5 * channels),
            round(38 + 97.4 * channels),
            channels * memory_blocks(sums, design.depth_accumulator),
        ),
        "epilogue": Area(round(682 + 475.67 * wide), round(305 + 556.08 * wide), 0.0, 7 * wide),
        "code_buffer": Area(
            1337 + 4231 * (beats > 1), 2 * planes * lanes * channels + (planes + 1) * BEAT_BITS + 141 + 44 * (beats > 1)
        ),
        "moments": Area(round(383 + 83.71 * wide), round(194 + 178.25 * wide), design.moments_bram36, wide),
    }
    if design.rounding:
        units["rounding"] = Area(round(670 + 45.56 * lanes), round(634 + 23 * lanes), 0.0, 6)
    return units


def _tensor_buffer(design: Design, depth: int) -> Area:
    slices = contract.ROW_BANKS * design.lanes * design.channels // BEAT_BITS
    flags = round(FLAG_LUT[0] + FLAG_LUT[1] * depth)
    return Area(slices + 2 + flags, 11 + depth.bit_length() - 1, slices * memory_blocks(BEAT_BITS, depth))


def resources_by_module(design: Design) -> dict[str, Area]:
    """Area of every piece of ``hw.tools.yosys.pieces``, all its instances together."""
    lanes, channels = design.lanes, design.channels
    weight_bits = channels * design.dot_bits
    areas = {
        "dot_product_unit": dot_product(design.dot_bits, False, design.accumulators == "dsp").times(design.units),
        "operand_sum_unit": dot_product(design.dot_bits, True, False).times(lanes),
        "dot_product_array": Area(0, 37 * lanes - 256),
        "buffer_a": _tensor_buffer(design, design.depth_a),
        "buffer_g": _tensor_buffer(design, design.depth_g),
        "buffer_w": Area(-(-weight_bits // BEAT_BITS) + 5),
    }
    areas["buffer_w"] += Area(
        bram36=design.bram36
        - areas["buffer_a"].bram36
        - areas["buffer_g"].bram36
        - channels * memory_blocks(contract.ACCUMULATOR_BITS, design.depth_accumulator)
        - design.moments_bram36
        - design.epilogue_bram36
    )
    for name, kinds in MAPPED.items():
        one = {kind: round(a + b * lanes + c * lanes * channels) for kind, (a, b, c) in kinds.items()}
        areas[name] = Area(one["lut"], one["ff"], 0.0, one["dsp"])
    portions = PORTION_LUT * design.epilogue_lanes * (design.epilogue_lanes < lanes)
    areas["drain"] += Area(portions, bram36=design.epilogue_bram36)
    areas["memory_front_end"] += Area(bram36=MEMORY_PORTS_BRAM36)
    return areas | drain_units(design)


def resources(design: Design) -> Area:
    """Area of a bitstream: a whole design with its platform, modules apart as in the synthesis by pieces."""
    return sum(resources_by_module(design).values(), SYSTEM_RESET)


def beyond_part(design: Design) -> str:
    """What of its part a design with its platform exceeds, such as "110 % of the DSP"; empty if nothing."""
    part, area = PARTS[design.part], resources(design).as_dict()
    return " and ".join(
        f"{100 * value / getattr(part, name):.0f} % of the {name.upper()}"
        for name, value in area.items()
        if value > part.limit(name)
    )
