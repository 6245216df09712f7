"""``fractrain bench simulation``: how many clock cycles of a design the Verilated RTL passes through in a second."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from hw.commands import options
from hw.files import write_atomically


def run(arguments: argparse.Namespace) -> int:
    """``fractrain bench simulation``: prints the speed."""
    from host.devices.rtl import RtlDevice
    from host.measure.saif import fitting_layer
    from host.measure.simulation_speed import simulation_speed
    from hw.console import Progress
    from hw.design import load_design
    from hw.layer_tables import layers_of

    design, bits = load_design(arguments.design), arguments.bits
    shape = fitting_layer(design, layers_of(arguments.model), bits, arguments.layer)
    with Progress(f"bench simulation of {design.name}") as progress:
        progress.doing("building the simulator")
        device = RtlDevice(design)
        progress.doing(f"simulating {shape.name}, {arguments.images} images")
        speed = simulation_speed(device, shape, bits, arguments.images)
    text = json.dumps(asdict(speed) | {"cycles_per_second": speed.cycles_per_second}, indent=1)
    if arguments.save:
        write_atomically(arguments.save, text + "\n")
    if arguments.json:
        print(text)
    else:
        print(
            f"{speed.design}, {speed.layer} at {speed.bits}: {speed.cycles:,} cycles in {speed.processor_seconds:.1f} s of "
            f"one core ({speed.seconds:.1f} s on the clock), {speed.cycles_per_second:,} cycles/s"
        )
    return 0


def register_bench(kinds: argparse._SubParsersAction[Any]) -> None:
    """Adds ``simulation`` to ``fractrain bench``."""
    parser = kinds.add_parser("simulation", help="clock cycles that the simulated RTL passes through in a second")
    parser.add_argument("--design", default="zc706", help="name in configs/designs, or a TOML file")
    parser.add_argument("--model", default="resnet38", help="network of the layer")
    parser.add_argument("--layer", help="its name (default: the first of stride 1 whose rows the array takes whole)")
    parser.add_argument("--bits", type=options.fabric_bits, default="8/8/8", metavar="W/A/G", help="widths")
    parser.add_argument("--images", type=options.positive, default=128, help="images to run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--save", type=options.output_file, help="also write the JSON to this file")
    parser.set_defaults(run=run)
