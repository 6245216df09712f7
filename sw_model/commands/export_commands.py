"""Command line of what leaves a training: ``fractrain export`` and ``fractrain predict``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hw.commands import options
from sw_model.commands.training_commands import recipe
from sw_model.train.engines import DESIGN, DEVICES, open_engine

#: options that change settings of the recipe
JOB_SETTINGS = ("data", "epochs", "batch", "seed", "train_limit", "test_limit")
NETWORK_FILES = (".safetensors", ".onnx")


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``export`` and ``predict`` to the command line."""
    _register_export(subparsers)
    parser = subparsers.add_parser(
        "predict",
        help="what a trained network takes images for",
        description="Classify images of any size with the network of a run, at the precision that it was tested with.",
    )
    parser.add_argument("trained", type=options.run_folder, metavar="RUN", help="folder of the run")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--top", type=options.positive, default=1, help="how many of the likeliest classes to name")
    parser.add_argument("--batch", type=options.positive, default=64, help="images per pass")
    parser.add_argument(
        "--device", choices=DEVICES, default="fast", help="who computes the quantized products, as in training"
    )
    parser.add_argument("--design", default=DESIGN, help="design of the fabric")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_predict)


def _register_export(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "export",
        help="write a training as a job file for the board, or a trained network for other programs",
        description="With --recipe: capture the training step of a recipe with its data and initial state, as a job file "
        "that the board runs without PyTorch (docs/board.md). With --run: write the network that a run has trained, its "
        "weights as codes with their grids (.safetensors), or as an ONNX model with quantizer nodes (.onnx).",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--recipe", type=recipe, help="settings: a name in configs/recipes, or a TOML file")
    source.add_argument(
        "--run", dest="trained", type=options.run_folder, metavar="RUN", help="folder of a run, for its network"
    )
    parser.add_argument(
        "--out", type=options.output_file, default=Path("job.zip"),
        help="file to write; with --run its name ends in .safetensors or .onnx",
    )  # fmt: skip
    parser.add_argument("--data", help="another data set than the recipe's")
    parser.add_argument("--epochs", type=options.positive, help="another length than the recipe's")
    parser.add_argument("--batch", type=options.positive, help="images per step")
    parser.add_argument("--seed", type=options.whole, help="seed of everything random")
    parser.add_argument("--train-limit", type=options.whole, help="use only this many training images")
    parser.add_argument("--test-limit", type=options.whole, help="use only this many test images")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """``fractrain export``."""
    overrides = {n: getattr(arguments, n) for n in JOB_SETTINGS if getattr(arguments, n) is not None}
    if arguments.trained is not None:
        return _export_network(arguments.trained, arguments.out, overrides)
    from sw_model.export.training_job import export_job
    from sw_model.train.recipe import TrainConfig

    config = TrainConfig.from_recipe(arguments.recipe, **overrides)
    sizes = export_job(config, arguments.out)
    print(
        f"{arguments.out}: {sizes['bytes'] / 1e6:.2f} MB, {sizes['nodes']} operations, "
        f"{sizes['parameters']} parameters, {sizes['images']} images"
    )
    return 0


def _export_network(trained: Path, out: Path, overrides: dict[str, Any]) -> int:
    if overrides:
        raise ValueError(f"--run takes the run's settings; leave out {', '.join(sorted(overrides))}")
    if out.suffix not in NETWORK_FILES:
        raise ValueError(f"--out {out} names no format of networks; end it in {' or '.join(NETWORK_FILES)}")
    from sw_model.trained.onnx_file import write_onnx
    from sw_model.trained.tensor_file import write_tensors
    from sw_model.trained.trained_network import open_trained

    network = open_trained(trained)
    size = (write_onnx if out.suffix == ".onnx" else write_tensors)(network, out)
    bits = "bits chosen by gates" if network.gated else f"{network.precision} bits"
    print(f"{out}: {network.config.model}, {bits}, {size / 1e6:.2f} MB")
    return 0


def run_predict(arguments: argparse.Namespace) -> int:
    """``fractrain predict``."""
    from sw_model.trained.prediction import image_files, predict_images
    from sw_model.trained.trained_network import open_trained

    files = image_files(arguments.images)
    network = open_trained(arguments.trained)
    engine = open_engine(arguments.device, arguments.design)
    found = predict_images(network, files, top=arguments.top, batch=arguments.batch, engine=engine)
    if arguments.json:
        rows = [{"file": str(p.file), "classes": [{"name": n, "probability": v} for n, v in p.classes]} for p in found]
        print(json.dumps(rows))
        return 0
    for prediction in found:
        print(f"{prediction.file}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in prediction.classes))
    return 0
