"""Command line of the switching activity: ``saif``."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from hw.commands import options


def run(arguments: argparse.Namespace) -> int:
    """``fractrain saif``."""
    from host.measure.saif import fitting_layer, record
    from hw.console import Progress
    from hw.design import load_design
    from hw.layer_tables import layers_of

    design, bits = load_design(arguments.design), arguments.bits
    shape = fitting_layer(design, layers_of(arguments.model), bits, arguments.layer)
    with Progress(f"switching activity of {shape.name} on {design.name}"):
        done = record(design, shape, bits, arguments.out, arguments.images, arguments.seed)
    if arguments.json:
        print(json.dumps(asdict(done) | {"bits": str(bits), "file": str(arguments.out)}, indent=2))
    else:
        print(
            f"{arguments.out}: {done.layer} at {bits} on {design.name}, {done.cycles} cycles of {done.period_ps} ps, "
            f"{done.busy} of them in programs"
        )
        print(f"for Vivado (not tried yet): read_saif -strip_path TOP/fabric -out_file unmatched.txt {arguments.out}")
    return 0


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``saif`` to the command line."""
    parser = subparsers.add_parser(
        "saif",
        help="switching activity of the RTL for Vivado's power report",
        description="Simulates the training products of one layer, with random codes, and writes how often every bit "
        "toggles, as SAIF. The first build of a design takes minutes.",
    )
    parser.add_argument("--design", default="sim-small", help="name in configs/designs, or a TOML file")
    parser.add_argument("--out", type=options.output_file, required=True, metavar="FILE", help="SAIF file to write")
    parser.add_argument("--model", default="resnet38", help="network of the layer")
    parser.add_argument("--layer", help="its name (default: the first of stride 1 whose rows the array takes whole)")
    parser.add_argument("--bits", type=options.fabric_bits, default="8/8/8", metavar="W/A/G", help="widths")
    parser.add_argument("--images", type=options.positive, default=2, help="images to run")
    parser.add_argument("--seed", type=options.whole, default=0, help="of the codes")
    parser.add_argument("--json", action="store_true", help="machine-readable summary")
    parser.set_defaults(run=run)
