"""Command line of the export: ``fractrain export``."""

from __future__ import annotations

import argparse
from typing import Any

from hw.commands import options
from sw_model.commands.training_commands import recipe


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``export`` to the command line."""
    parser = subparsers.add_parser(
        "export",
        help="write a training run as a job file that the board runs without PyTorch",
        description="Capture the training step of a recipe with its data and initial state; see docs/board.md.",
    )
    parser.add_argument(
        "--recipe", type=recipe, required=True, help="settings: a name in configs/recipes, or a TOML file"
    )
    parser.add_argument("--out", type=options.output_file, default="job.zip", help="job file to write")
    parser.add_argument("--data", help="another data set than the recipe's")
    parser.add_argument("--epochs", type=options.positive, help="another length than the recipe's")
    parser.add_argument("--batch", type=options.positive, help="images per step")
    parser.add_argument("--seed", type=options.whole, help="seed of everything random")
    parser.add_argument("--train-limit", type=options.whole, help="use only this many training images")
    parser.add_argument("--test-limit", type=options.whole, help="use only this many test images")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """``fractrain export``."""
    from sw_model.export.training_job import export_job
    from sw_model.train.recipe import TrainConfig

    names = ("data", "epochs", "batch", "seed", "train_limit", "test_limit")
    overrides = {n: getattr(arguments, n) for n in names if getattr(arguments, n) is not None}
    config = TrainConfig.from_recipe(arguments.recipe, **overrides)
    sizes = export_job(config, arguments.out)
    print(
        f"{arguments.out}: {sizes['bytes'] / 1e6:.2f} MB, {sizes['nodes']} operations, "
        f"{sizes['parameters']} parameters, {sizes['images']} images"
    )
    return 0
