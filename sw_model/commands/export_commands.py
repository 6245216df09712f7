"""Command line of the export: ``fractrain export``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``export`` to the command line."""
    parser = subparsers.add_parser(
        "export",
        help="write a training run as a job file that the board runs without PyTorch",
        description="Capture the training step of a recipe with its data and initial state; see docs/board.md.",
    )
    parser.add_argument("--recipe", type=Path, required=True, help="TOML file of settings (see configs/recipes/)")
    parser.add_argument("--out", type=Path, default=Path("job.zip"), help="job file to write (default: %(default)s)")
    parser.add_argument("--data", help="another data set than the recipe's")
    parser.add_argument("--epochs", type=int, help="another length than the recipe's")
    parser.add_argument("--batch", type=int, help="images per step")
    parser.add_argument("--seed", type=int, help="seed of everything random")
    parser.add_argument("--train-limit", type=int, help="use only this many training images")
    parser.add_argument("--test-limit", type=int, help="use only this many test images")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """``fractrain export``: 0 on success, 2 on a recipe that cannot be exported."""
    from sw_model.export import export_job
    from sw_model.train.recipe import TrainConfig

    names = ("data", "epochs", "batch", "seed", "train_limit", "test_limit")
    overrides = {n: getattr(arguments, n) for n in names if getattr(arguments, n) is not None}
    try:
        config = TrainConfig.from_recipe(arguments.recipe, **overrides)
        sizes = export_job(config, arguments.out)
    except (ValueError, OSError) as e:
        print(f"fractrain export: {e}", file=sys.stderr)
        return 2
    print(
        f"{arguments.out}: {sizes['bytes'] / 1e6:.2f} MB, {sizes['nodes']} operations, "
        f"{sizes['parameters']} parameters, {sizes['images']} images"
    )
    return 0
