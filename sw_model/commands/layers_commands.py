"""Command line of networks of others: ``fractrain layers``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hw.commands import options


def _shape(text: str) -> tuple[int, ...]:
    """The shape of a sample: an argparse type."""
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; write for example 3,224,224")
    return shape


def _table_file(text: str) -> Path:
    """A file for a table of layers: an argparse type."""
    path = Path(text)
    if path.suffix != ".json":
        raise argparse.ArgumentTypeError(f"{text} does not end with .json, by which cost and explore know a table")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"folder {path.parent} does not exist; make it or choose another path")
    return path


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the command to the parser of ``fractrain``."""
    parser = subparsers.add_parser(
        "layers",
        help="the layers of a network of others, as a table for cost, explore and bench",
        description="Build a network, run it once on an example of zeros, and write the layers that would be quantized.",
    )
    parser.add_argument("model", help="timm:NAME, torchvision:NAME or FILE.py:FUNCTION")
    parser.add_argument(
        "--input", type=_shape, default=(3, 224, 224), metavar="C,H,W", help="shape of a sample (default: 3,224,224)"
    )
    parser.add_argument("--classes", type=options.positive, default=1000, help="outputs (default: 1000)")
    parser.add_argument("--keep", nargs="*", default=[], metavar="MODULE", help="modules that stay in float32")
    parser.add_argument("--out", type=_table_file, required=True, metavar="FILE.json", help="table to write")
    parser.set_defaults(run=run_layers)


def run_layers(arguments: argparse.Namespace) -> int:
    """``fractrain layers``."""
    import torch

    from sw_model.convert.conversion import convert
    from sw_model.convert.references import build_referenced, is_reference

    if not is_reference(arguments.model):
        raise ValueError(
            f"model {arguments.model!r} is no network of others; write timm:NAME, torchvision:NAME or FILE.py:FUNCTION"
        )
    model = build_referenced(arguments.model, arguments.classes, arguments.input)
    found = convert(model, torch.zeros(2, *arguments.input), keep=arguments.keep)
    found.save_layers(arguments.out, arguments.model)
    macs = sum(found.traced.macs.values())
    print(f"{arguments.out}: {len(found.traced.shapes)} layers, {macs:,} multiply-accumulates per sample and product")
    for path, why in found.unsupported.items():
        print(f"{path}: in no table, float32 on the host: {'; '.join(why)}")
    return 0
