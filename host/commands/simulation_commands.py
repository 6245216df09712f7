"""``fractrain bench simulation``: how many clock cycles of a design the Verilated RTL passes through in a second."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hw.networks import Bits, ConvShape

if TYPE_CHECKING:
    from host.devices.device import Device


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
        shape: the layer, which the design takes in one piece.
        bits: its widths.
        images: virtual images, each as wide as the array.
        seed: of the codes.

    Raises:
        ValueError: the count is not positive.
    """
    from host.devices.device import check
    from host.measure.engine_bench import program
    from hw.model.workload import backward, forward

    if images < 1:
        raise ValueError(f"--images {images}: nothing to simulate; give at least 1")
    design = device.info.design
    programs = [
        program(design, packets, seed)
        for packets in (forward(design, shape, bits, images), backward(design, shape, bits, images))
    ]
    processor, clock = time.process_time(), time.perf_counter()
    cycles = sum(check(device.run(words), shape.name).counters["CYCLES"] for words in programs)
    processor, clock = time.process_time() - processor, time.perf_counter() - clock
    return Speed(design.name, shape.name, str(bits), design.binary_macs, cycles, round(processor, 3), round(clock, 3))


def run(arguments: argparse.Namespace) -> int:
    """``fractrain bench simulation``: prints the speed."""
    from host.devices.rtl import RtlDevice
    from host.measure.saif import fitting_layer
    from hw.design import load_design
    from hw.networks import network

    design, bits = load_design(arguments.design), Bits.parse(arguments.bits)
    shape = fitting_layer(design, network(arguments.model), bits, arguments.layer)
    speed = simulation_speed(RtlDevice(design), shape, bits, arguments.images)
    text = json.dumps(asdict(speed) | {"cycles_per_second": speed.cycles_per_second}, indent=1)
    if arguments.save:
        arguments.save.write_text(text + "\n", encoding="utf-8")
    if arguments.json:
        print(text)
    else:
        print(
            f"{speed.design}, {speed.layer} at {speed.bits}: {speed.cycles:,} cycles in {speed.processor_seconds:.1f} s of "
            f"one core ({speed.seconds:.1f} s on the clock), {speed.cycles_per_second:,} cycles/s"
        )
    return 0


def register_bench(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``simulation`` to ``fractrain bench``."""
    parser = kinds.add_parser("simulation", help="clock cycles that the simulated RTL passes through in a second")
    parser.add_argument("--design", default="zc706", help="name in configs/designs, or a TOML file")
    parser.add_argument("--model", default="resnet38", help="network of the layer (default: %(default)s)")
    parser.add_argument("--layer", help="its name (default: the first of stride 1 that the design takes in one piece)")
    parser.add_argument("--bits", default="8,8,8", metavar="W,A,G", help="(default: %(default)s)")
    parser.add_argument("--images", type=int, default=128, help="virtual images to run (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--save", type=Path, help="also write the JSON to this file")
    parser.set_defaults(run=run)
