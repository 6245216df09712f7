"""Command line of the software model: ``fractrain train`` and ``fractrain compare``.

PyTorch is imported inside the commands, so that ``fractrain --help`` and the board's commands start without it.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hw.commands import options
from sw_model.quantize.limits import ACCELERATORS
from sw_model.train.engines import DESIGN, DEVICES, accelerator_of, engine_to_resume, open_engine
from sw_model.train.recipes import find_recipe

if TYPE_CHECKING:
    from sw_model.train.recipe import TrainConfig

#: options that are settings of the recipe
RECIPE_SETTINGS = (
    "data",
    "init",
    "model",
    "width",
    "epochs",
    "batch",
    "lr",
    "seed",
    "mode",
    "train_limit",
    "test_limit",
)


def recipe(text: str) -> Path:
    """A recipe by name or file: an argparse type."""
    try:
        return find_recipe(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the software model's commands to the parser of ``fractrain``."""
    _register_train(subparsers)
    compare = subparsers.add_parser(
        "compare", help="finished runs side by side: score and cost, as a table and a figure"
    )
    compare.add_argument(
        "runs", nargs="+", type=options.run_folder, metavar="RUN", help="run folders, the baseline first"
    )
    compare.add_argument(
        "--figure", type=options.picture_file, help="draw scores over epochs and over cost (SVG or PNG)"
    )
    compare.add_argument("--json", action="store_true", help="print JSON")
    compare.set_defaults(run=run_compare)


def register_report(kinds: argparse._SubParsersAction[Any]) -> None:
    """Adds ``report run`` to the command line."""
    report = kinds.add_parser(
        "run",
        help="a run, or several side by side, as one HTML page",
        description="Curves, the precision of every layer over time, cost and cycles, on one page without other files.",
    )
    report.add_argument(
        "runs", nargs="+", type=options.run_folder, metavar="RUN", help="run folders, the baseline first"
    )
    report.add_argument("--out", type=options.output_file, help="page to write (default: RUN/report.html of the first)")
    report.set_defaults(run=run_page)


def _register_train(subparsers: argparse._SubParsersAction[Any]) -> None:
    train = subparsers.add_parser(
        "train",
        help="train a network at fractional precision, its products in software or on a simulated fabric",
        description="Train a network at fractional precision.  A recipe gives the settings; options override it.",
    )
    train.add_argument("--recipe", type=recipe, help="settings: a name in configs/recipes, or a TOML file")
    train.add_argument(
        "--device",
        choices=DEVICES,
        help="who computes the quantized products: floating point with the same codes (fast), exact integers in "
        "software, or the fabric as NumPy reference, compiled HLS or simulated RTL, with a memory of its own or on streams "
        "(default: fast)",
    )
    train.add_argument("--design", help=f"design of the fabric (default: {DESIGN})")
    train.add_argument(
        "--data",
        help="'digits', a path (CIFAR-10/100, class folders or a zip of them, ImageNet, WikiText), or FILE.py:FUNCTION",
    )
    train.add_argument("--init", help="start from the weights of this run folder or checkpoint")
    train.add_argument(
        "--model",
        help="resnet-8, resnet-38, resnet-74, ..., resnet-18, resnet-34, mobilenetv2, transformer-base; timm:NAME, "
        "torchvision:NAME, FILE.py:FUNCTION",
    )
    train.add_argument("--width", type=options.positive, help="channels of the first group of a CIFAR ResNet")
    train.add_argument("--epochs", type=options.positive, help="length of training")
    train.add_argument("--batch", type=options.positive, help="images per step")
    train.add_argument("--lr", type=options.number, help="peak learning rate")
    train.add_argument("--seed", type=options.whole, help="seed of everything random")
    train.add_argument("--mode", choices=("fixed", "paper"), help="details of the published code repaired or kept")
    train.add_argument(
        "--bits",
        type=options.bits,
        metavar="W/A/G",
        help="static precision for the whole run, such as 8/8/8 (0: float32), instead of the recipe's schedule",
    )
    train.add_argument("--train-limit", type=options.whole, help="use only this many training images (0: all)")
    train.add_argument("--test-limit", type=options.whole, help="use only this many test images (0: all)")
    train.add_argument("--out", type=options.output_folder, help="run folder (default: runs/train)")
    train.add_argument(
        "--resume",
        type=options.run_folder,
        metavar="RUN",
        help="continue the run in this folder: its settings, its device; with --epochs, for longer than it was to be",
    )
    train.add_argument(
        "--accelerator",
        choices=ACCELERATORS,
        help="where PyTorch computes on device 'fast' (default: the CPU, or where the resumed run did); auto: a GPU if "
        "there is one",
    )
    train.add_argument("--threads", type=options.threads, help="CPU threads of PyTorch")
    train.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else, on stdout")
    train.set_defaults(run=run_train, after_interrupt=_after_interrupt)


def _folder(arguments: argparse.Namespace) -> Path:
    out: Path = arguments.resume or arguments.out or Path("runs/train")
    return out


def _after_interrupt(arguments: argparse.Namespace) -> str:
    from sw_model.train.folder import CHECKPOINT

    out = _folder(arguments)
    if not (out / CHECKPOINT).exists():
        return "nothing has been saved yet: checkpoints are written after every epoch"
    return f"go on from the last checkpoint with: fractrain train --resume {out}"


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings that the options change."""
    overrides = {name: getattr(arguments, name) for name in RECIPE_SETTINGS if getattr(arguments, name) is not None}
    if arguments.bits is not None:
        stage = [width for width in arguments.bits if width]
        overrides |= {"schedule": "static", "stages": [stage], "options": [], "targets": []}
    return overrides


def _config(arguments: argparse.Namespace) -> TrainConfig:
    """The settings of the run that the options ask for, or of the one to resume.

    Raises:
        ConfigError: wrong settings, no run to resume, or a resumed run with other settings.
    """
    from sw_model.train.folder import CONFIG
    from sw_model.train.recipe import ConfigError, TrainConfig

    overrides, run = _overrides(arguments), arguments.resume
    if run is None:
        if arguments.recipe is not None:
            return TrainConfig.from_recipe(arguments.recipe, **overrides)
        return TrainConfig.from_mapping({**DIGITS_DEFAULTS, **overrides})
    longer = overrides.pop("epochs", None)
    if overrides or arguments.recipe or arguments.out:
        raise ConfigError("--resume takes the settings of the run; leave out every other setting but --epochs")
    if not (run / CONFIG).is_file():
        raise ConfigError(f"{run} holds no run to resume: it has no {CONFIG}; name the --out of a training")
    config = TrainConfig.from_recipe(run / CONFIG)
    if longer is not None and longer < config.epochs:
        raise ConfigError(f"--epochs {longer}: {run} has {config.epochs}; a run can be made longer, not shorter")
    return config if longer is None else replace(config, epochs=longer)


def run_train(arguments: argparse.Namespace) -> int:
    """``fractrain train``."""
    import torch

    from sw_model.nn.parallel import processes
    from sw_model.train.loop import train

    out = options.usable_folder(_folder(arguments))
    config, resume = _config(arguments), arguments.resume is not None
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if resume:
        device, engine = engine_to_resume(arguments.resume, arguments.device, arguments.design, arguments.threads)
    else:
        device = arguments.device or "fast"
        engine = open_engine(device, arguments.design or DESIGN)
    with processes() as ranks:
        result = train(
            config, engine, out=out, resume=resume, progress=not arguments.json, ranks=ranks,
            accelerator=arguments.accelerator or accelerator_of(arguments.resume),
        )  # fmt: skip
    if not ranks.main:
        return 0
    if arguments.json:
        from dataclasses import asdict

        print(json.dumps(asdict(result)))
        return 0
    _print_result(result, device, out)
    return 0


def run_compare(arguments: argparse.Namespace) -> int:
    """``fractrain compare``."""
    from sw_model.studies.compare import draw_runs, read_runs, score_rows, why_not_comparable

    runs = read_runs(arguments.runs)
    for difference in why_not_comparable(runs):
        print(f"warning: {difference}", file=sys.stderr)
    if arguments.figure is not None:
        arguments.figure.parent.mkdir(parents=True, exist_ok=True)
        draw_runs(runs, arguments.figure)
    rows = score_rows(runs)
    if arguments.json:
        print(json.dumps(rows))
        return 0
    from rich.table import Table

    from hw.console import console

    metric = runs[0].metric.name
    shown = Table(title="Finished runs; cost in float32 MAC")
    for heading in ("run", f"test {metric}", "difference", "CC as published", "saved", "CC of every product", "saved"):
        shown.add_column(heading, justify="left" if heading == "run" else "right")
    for row in rows:
        shown.add_row(
            str(row["run"]),
            f"{row[metric]:.2f}",
            f"{row['difference']:+.2f}",
            f"{row['cc']:.4g}",
            f"{row['cc_saved']:.1f} %",
            f"{row['cc_full']:.4g}",
            f"{row['cc_full_saved']:.1f} %",
        )
    console().print(shown)
    return 0


def run_page(arguments: argparse.Namespace) -> int:
    """``fractrain report run``."""
    from sw_model.studies.run_report import write_page

    out = arguments.out or arguments.runs[0] / "report.html"
    write_page(arguments.runs, out)
    print(out)
    return 0


#: Schedule of the digits recipe, for training without a recipe file (an installed package has none).
DIGITS_DEFAULTS: dict[str, Any] = {
    "quantize_head": True,
    "stages": [[3, 3, 6], [4, 4, 6], [6, 6, 8], [8, 8, 8]],
    "window": 2,
    "eps": 0.25,
    "alpha": 0.5,
    "deadlines": [4, 5, 6],
    "epochs": 8,
    "batch": 32,
    "weight_decay": 5e-4,
    "warmup": 0.1,
}


def _print_result(result: Any, device: str, out: Path) -> None:
    from rich.table import Table

    from hw.console import console
    from sw_model.train.metrics import METRICS

    table = Table(show_header=False, title="Training result")
    if result.test_score is not None:
        text = METRICS[result.metric].text
        table.add_row(f"test {result.metric}", f"{text(result.test_score)} (best {text(result.best_score)})")
    table.add_row("device", device)
    table.add_row("inputs, steps", f"{result.images}, {result.steps}")
    table.add_row("cost CC", f"{result.cc:.4g} float32 MAC ({result.cp:.2f} % of float32)")
    if result.cc_static:
        table.add_row("against static 8/8/8", f"{100 * (1 - result.cc / result.cc_static):.1f} % saved")
    for name, value in result.counters.items():
        table.add_row(name, f"{value}")
    table.add_row("time", f"{result.seconds:.1f} s")
    table.add_row("run folder", str(out))
    console().print(table)
