"""How many clock cycles of a design the Verilated RTL passes through in a second."""

from __future__ import annotations

import time
from dataclasses import dataclass

from host.devices.device import Device, check
from host.measure.engine_bench import layer_programs, passes, random_program
from hw.networks import Bits, ConvShape


@dataclass(frozen=True)
class Speed:
    """Simulation of one layer's three products.

    Attributes:
        design, layer, bits: what ran.
        binary_macs: of the design's array, per cycle.
        cycles: clock cycles from start to done, by the fabric's own counter.
        processor_seconds: that this process took for them, one thread; other load does not count.
        seconds: on the clock.
    """

    design: str
    layer: str
    bits: str
    binary_macs: int
    cycles: int
    processor_seconds: float
    seconds: float

    @property
    def cycles_per_second(self) -> int:
        """Cycles per second of processor time."""
        return round(self.cycles / self.processor_seconds)


def simulation_speed(device: Device, shape: ConvShape, bits: Bits, images: int, seed: int = 0) -> Speed:
    """Run the products of a layer with random codes, the two gradients as one program.

    Args:
        device: RTL, built already.
        shape: the layer.
        bits: its widths.
        images: of the batch.
        seed: of the codes.

    Raises:
        ValueError: the count is not positive.
    """
    if images < 1:
        raise ValueError(f"--images {images}: nothing to simulate; give at least 1")
    design = device.info.design
    programs = [
        random_program(design, packets, seed)
        for kind in passes()
        for packets in layer_programs(design, shape, bits, images, kind)
    ]
    processor, clock = time.process_time(), time.perf_counter()
    cycles = sum(check(device.run(words), shape.name).counters["CYCLES"] for words in programs)
    processor, clock = time.process_time() - processor, time.perf_counter() - clock
    return Speed(design.name, shape.name, str(bits), design.binary_macs, cycles, round(processor, 3), round(clock, 3))
