"""Resources of a design from its parameters, in microseconds.

What the sources spell out in primitives or memories is counted exactly: the bit heap of a dot product, the block RAM of
a memory.  What Yosys maps is a constant, a share per lane and a share per lane and channel; the coefficients were fitted to
``fractrain synth`` on pynq-z2 (C = 8) and zc706 (C = 16), the only two values of C that a design may have.
"""

from __future__ import annotations

from functools import lru_cache

from hw import contract
from hw.boards import PARTS
from hw.design import BEAT_BITS, Design, memory_blocks
from hw.tools.yosys import SYSTEM_RESET, Area


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
    "operand_network": {"lut": (0, 3.9, 47.98), "ff": (0, 0, 17.5), "dsp": (0, 0, 0)},
    "loader": {"lut": (1589, 0, 0), "ff": (1007, 0, 0), "dsp": (10, 0, 0)},
    "drain": {"lut": (881, 349, 41.5), "ff": (485, 258, 80.1), "dsp": (0, 2, 0)},
    "sequencer": {"lut": (1372, 0, 0), "ff": (930, 1.69, 0), "dsp": (2, 0, 0)},
    "command_queue": {"lut": (797, 0, 0), "ff": (282, 0, 0), "dsp": (0, 0, 0)},
    "control_registers": {"lut": (252, 0, 0), "ff": (40, 0, 0), "dsp": (0, 0, 0)},
    "control_bridge": {"lut": (84, 0, 0), "ff": (149, 0, 0), "dsp": (0, 0, 0)},
    "memory_front_end": {"lut": (3960, 0, 0), "ff": (2820, 0, 0), "dsp": (0, 0, 0)},
    "fabric": {"lut": (310, 1, 0), "ff": (428, 1, 0), "dsp": (0, 0, 0)},
}
#: payload queues of the two memory ports
MEMORY_PORTS_BRAM36 = 2.0
#: LUT of the bits that tell zero row words, per address of a tensor buffer
FLAG_LUT = 0.43


def optional_units(design: Design) -> Area:
    """What the drain takes for epilogue, moments and stochastic rounding; fitted to the units alone."""
    wide = design.epilogue_lanes
    area = Area(round(1250 + 145 * wide), round(520 + 92 * wide), 0.0, 7 * wide)
    if design.rounding:
        area += Area(490, 150 + 47 * design.lanes, 0.0, 6)
    return area


def resources_by_module(design: Design) -> dict[str, Area]:
    """Area of every piece of ``hw.tools.yosys.pieces``, all its instances together."""
    lanes, channels = design.lanes, design.channels
    tensor_slices = contract.ROW_BANKS * lanes * channels // BEAT_BITS
    weight_bits = channels * design.dot_bits
    areas = {
        "dot_product_unit": dot_product(design.dot_bits, False, design.accumulators == "dsp").times(design.units),
        "operand_sum_unit": dot_product(design.dot_bits, True, False).times(lanes),
        "dot_product_array": Area(0, 8),
        "buffer_a": Area(
            tensor_slices + 2 + round(FLAG_LUT * design.depth_a),
            0,
            tensor_slices * memory_blocks(BEAT_BITS, design.depth_a),
        ),
        "buffer_g": Area(
            tensor_slices + 2 + round(FLAG_LUT * design.depth_g),
            0,
            tensor_slices * memory_blocks(BEAT_BITS, design.depth_g),
        ),
        "buffer_w": Area(-(-weight_bits // BEAT_BITS) + 5),
    }
    areas["buffer_w"] += Area(
        bram36=design.bram36
        - areas["buffer_a"].bram36
        - areas["buffer_g"].bram36
        - channels * memory_blocks(contract.ACCUMULATOR_BITS, design.depth_accumulator)
        - design.moments_bram36
    )
    for name, kinds in MAPPED.items():
        one = {kind: round(a + b * lanes + c * lanes * channels) for kind, (a, b, c) in kinds.items()}
        areas[name] = Area(one["lut"], one["ff"], 0.0, one["dsp"])
    accumulators = channels * memory_blocks(contract.ACCUMULATOR_BITS, design.depth_accumulator)
    areas["drain"] += optional_units(design) + Area(bram36=accumulators + design.moments_bram36)
    areas["memory_front_end"] += Area(bram36=MEMORY_PORTS_BRAM36)
    return areas


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
