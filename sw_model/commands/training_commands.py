"""Command line of the software model: ``fractrain train``.

PyTorch is imported inside the commands, so that ``fractrain --help`` and the board's commands start without it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hw.design import Design

STUDIES = ("statquant", "methods", "defects")
DESIGN = "sim-small"
DEVICES = ("fast", "software", "reference", "hls", "rtl")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the software model's commands to the parser of ``fractrain``."""
    train = subparsers.add_parser(
        "train",
        help="train a network at fractional precision, its products in software or on a simulated fabric",
        description="Train a network at fractional precision.  A recipe gives the settings; options override it.",
    )
    train.add_argument("--recipe", type=Path, help="TOML file of settings (see configs/recipes/)")
    train.add_argument(
        "--device",
        choices=DEVICES,
        help="who computes the quantized products: floating point with the same codes (fast), exact integers in "
        "software, or the fabric as NumPy reference, compiled HLS or simulated RTL (default: fast)",
    )
    train.add_argument("--design", help=f"design of the fabric (default: {DESIGN})")
    train.add_argument(
        "--data", help="'digits', or a path: CIFAR-10/100, class folders (or a zip of them), ImageNet, WikiText"
    )
    train.add_argument("--init", help="start from the weights of this run folder or checkpoint")
    train.add_argument(
        "--model", help="resnet-8, resnet-38, resnet-74, ..., resnet-18, resnet-34, mobilenetv2, transformer-base"
    )
    train.add_argument("--width", type=int, help="channels of the first group of a CIFAR ResNet")
    train.add_argument("--epochs", type=int, help="length of training")
    train.add_argument("--batch", type=int, help="images per step")
    train.add_argument("--lr", type=float, help="peak learning rate")
    train.add_argument("--seed", type=int, help="seed of everything random")
    train.add_argument("--mode", choices=("fixed", "paper"), help="details of the published code repaired or kept")
    train.add_argument(
        "--bits",
        metavar="W/A/G",
        help="static precision for the whole run, such as 8/8/8 (0: float32), instead of the recipe's schedule",
    )
    train.add_argument("--train-limit", type=int, help="use only this many training images")
    train.add_argument("--test-limit", type=int, help="use only this many test images")
    train.add_argument("--out", type=Path, help="run folder (default: runs/train)")
    train.add_argument(
        "--resume", type=Path, metavar="RUN", help="continue the run in this folder: its settings, its device"
    )
    train.add_argument(
        "--accelerator",
        choices=("auto", "cpu", "cuda", "mps"),
        default="cpu",
        help="where PyTorch computes on device 'fast' (default: %(default)s; auto: a GPU if there is one)",
    )
    train.add_argument("--threads", type=int, help="CPU threads of PyTorch")
    train.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else, on stdout")
    train.set_defaults(run=run_train)
    compare = subparsers.add_parser(
        "compare", help="finished runs side by side: score and cost, as a table and a figure"
    )
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, the baseline first")
    compare.add_argument("--figure", type=Path, help="draw scores over epochs and over cost (SVG or PNG)")
    compare.add_argument("--json", action="store_true", help="print JSON")
    compare.set_defaults(run=run_compare)


def register_bench(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the software model's measurements to ``fractrain bench``."""
    speed = kinds.add_parser("train", help="time and memory of static and gated training against float32")
    speed.add_argument("--depth", type=int, default=38, help="of the CIFAR ResNet (default: %(default)s)")
    speed.add_argument("--batch", type=int, default=32, help="images per step (default: %(default)s)")
    speed.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    speed.add_argument("--rounds", type=int, default=8, help="alternations (default: %(default)s)")
    speed.add_argument("--json", action="store_true", help="print JSON")
    speed.add_argument("--save", type=Path, help="also write the JSON to this file")
    speed.set_defaults(run=run_bench_train)
    noise = kinds.add_parser("quantizers", help="bias and variance of PTQ, PSQ and BHQ on real gradients")
    noise.add_argument("--data", default="digits", help="'digits' or a path (default: %(default)s)")
    noise.add_argument("--rounds", type=int, default=50, help="roundings per gradient (default: %(default)s)")
    noise.add_argument("--steps", type=int, default=60, help="training steps before measuring (default: %(default)s)")
    noise.add_argument("--bits", type=int, nargs="+", default=[4, 5, 6, 8], help="of the gradients (default: 4 5 6 8)")
    noise.add_argument(
        "--batches", type=int, default=0, help="decompose the variance of the weight gradients on so many batches"
    )
    noise.add_argument("--draws", type=int, default=8, help="roundings of each of them (default: %(default)s)")
    noise.add_argument("--json", action="store_true", help="print JSON")
    noise.add_argument("--save", type=Path, help="also write the JSON to this file")
    noise.set_defaults(run=run_bench_quantizers)
    accuracy = kinds.add_parser(
        "accuracy", help="what a choice does to accuracy and loss: trainings over several seeds"
    )
    accuracy.add_argument(
        "study",
        choices=STUDIES,
        help="statquant: gradient quantizers PTQ, PSQ, BHQ; methods: DoReFa, WAGEUBN, MXINT and Range BN beside SBM; "
        "defects: details of the published code that mode 'fixed' repairs",
    )
    accuracy.add_argument("--seeds", type=int, default=8, help="trainings of each variant (default: %(default)s)")
    accuracy.add_argument("--bits", type=int, default=5, help="statquant: of the gradients (default: %(default)s)")
    accuracy.add_argument("--only", nargs="+", metavar="VARIANT", default=[], help="train these variants only")
    accuracy.add_argument(
        "--save",
        type=Path,
        help="also write the JSON to this file, after every training; trainings that it holds are not repeated",
    )
    accuracy.add_argument("--again", action="store_true", help="repeat trainings that the file of --save holds")
    accuracy.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: %(default)s)")
    accuracy.add_argument("--threads", type=int, default=1, help="CPU threads of each (default: %(default)s)")
    accuracy.add_argument("--json", action="store_true", help="print JSON")
    accuracy.set_defaults(run=run_bench_accuracy)


def _parse_bits(text: str) -> list[int]:
    try:
        bits = [int(part) for part in text.split("/")]
    except ValueError:
        bits = []
    if len(bits) not in (3, 4):
        raise ValueError(f"--bits {text!r} must be three or four widths such as 8/8/8")
    return bits


def open_engine(device: str, design: str | Design) -> Any:
    """The engine of a device on a design (or the name of one in configs/designs, or a TOML file); None: fast path."""
    if device == "fast":
        return None
    if device == "software":
        from sw_model.nn.exact_engine import SoftwareEngine

        return SoftwareEngine()
    from host.devices.device import open_device
    from host.driver.fabric_engine import FabricEngine
    from hw.design import load_design

    design = load_design(design) if isinstance(design, str) else design
    return FabricEngine(open_device(device, design), keep_rows=False)


def _engine_to_resume(arguments: argparse.Namespace) -> tuple[str, Any]:
    """Kind and engine of the device that a run was trained on, which arguments may name again but not change."""
    import torch

    from hw.design import load_design
    from sw_model.train.folder import RunFolder
    from sw_model.train.recipe import ConfigError

    run, kind = arguments.resume, arguments.device
    before = RunFolder(run).device()
    if before is None:
        if kind is None:
            raise ConfigError(
                f"{run} does not say on which device it was trained: an old version wrote it; name it with --device"
            )
        return kind, open_engine(kind, arguments.design or DESIGN)
    if kind not in (None, before.kind):
        raise ConfigError(f"--device {kind}: {run} was trained on device {before}; leave out --device to resume there")
    if arguments.design is not None and load_design(arguments.design).hash64 != before.design_hash:
        raise ConfigError(
            f"--design {arguments.design}: {run} was trained on device {before}; leave out --design to resume there"
        )
    if before.kind not in DEVICES:
        raise ConfigError(f"{run} was trained on device {before}, which only the program that began it can resume")
    if not arguments.threads:
        torch.set_num_threads(before.threads)
    return before.kind, open_engine(before.kind, before.design or DESIGN)


def run_train(arguments: argparse.Namespace) -> int:
    """``fractrain train``: returns the exit status."""
    import torch

    from sw_model.data.images import DataError
    from sw_model.nn.parallel import processes
    from sw_model.train.loop import train
    from sw_model.train.recipe import ConfigError, TrainConfig

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    names = ("data", "init", "model", "width", "epochs", "batch", "lr", "seed", "mode", "train_limit", "test_limit")
    overrides: dict[str, Any] = {n: getattr(arguments, n) for n in names if getattr(arguments, n) is not None}
    out: Path = arguments.resume or arguments.out or Path("runs/train")
    try:
        if arguments.bits is not None:
            stages = [_parse_bits(arguments.bits)]
            overrides |= {"schedule": "static", "stages": stages, "options": [], "targets": []}
        if arguments.resume is not None:
            if overrides or arguments.recipe or arguments.out:
                raise ValueError("--resume takes the settings of the run; leave out every other setting")
            config = TrainConfig.from_recipe(arguments.resume / "config.toml")
            device, engine = _engine_to_resume(arguments)
        else:
            if arguments.recipe is not None:
                config = TrainConfig.from_recipe(arguments.recipe, **overrides)
            else:
                config = TrainConfig.from_mapping({**DIGITS_DEFAULTS, **overrides})
            device = arguments.device or "fast"
            engine = open_engine(device, arguments.design or DESIGN)
        resume, progress = arguments.resume is not None, not arguments.json
        with processes() as ranks:
            result = train(
                config, engine, out=out, resume=resume, progress=progress, ranks=ranks, accelerator=arguments.accelerator
            )
    except (ConfigError, DataError, ValueError) as error:
        print(f"fractrain train: {error}", file=sys.stderr)
        return 2
    if not ranks.main:
        return 0
    if arguments.json:
        from dataclasses import asdict

        print(json.dumps(asdict(result)))
        return 0
    _print_result(result, device, out)
    return 0


def run_compare(arguments: argparse.Namespace) -> int:
    """``fractrain compare``: returns the exit status."""
    from sw_model.studies.compare import ComparisonError, draw, read_runs, table

    try:
        runs = read_runs(arguments.runs)
    except ComparisonError as error:
        print(f"fractrain compare: {error}", file=sys.stderr)
        return 2
    if arguments.figure is not None:
        arguments.figure.parent.mkdir(parents=True, exist_ok=True)
        draw(runs, arguments.figure)
    rows = table(runs)
    if arguments.json:
        print(json.dumps(rows))
        return 0
    from rich.console import Console
    from rich.table import Table

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
    Console().print(shown)
    return 0


def run_bench_train(arguments: argparse.Namespace) -> int:
    """``fractrain bench train``: returns the exit status."""
    from sw_model.studies.speed import bench_training, print_training

    report = bench_training(arguments.depth, arguments.batch, arguments.threads, arguments.rounds)
    print_training(report, arguments.json)
    _save(report, arguments.save)
    return 0


def _save(report: dict[str, Any], path: Path | None) -> None:
    from sw_model.train.folder import write_atomically

    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=1) + "\n"
        write_atomically(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def run_bench_quantizers(arguments: argparse.Namespace) -> int:
    """``fractrain bench quantizers``: returns the exit status."""
    from sw_model.data.images import load_data
    from sw_model.studies.speed import bench_quantizers, print_quantizers

    try:
        report = bench_quantizers(
            load_data(arguments.data),
            rounds=arguments.rounds,
            warmup_steps=arguments.steps,
            bits=arguments.bits,
            batches=arguments.batches,
            draws=arguments.draws,
        )
    except ValueError as error:
        print(f"fractrain bench quantizers: {error}", file=sys.stderr)
        return 2
    print_quantizers(report, arguments.json)
    _save(report, arguments.save)
    return 0


def run_bench_accuracy(arguments: argparse.Namespace) -> int:
    """``fractrain bench accuracy``: returns the exit status; progress goes to stderr."""
    import torch
    from rich.console import Console

    from sw_model.studies import accuracy

    torch.set_num_threads(arguments.threads)
    progress = Console(stderr=True)
    seeds = list(range(1, arguments.seeds + 1))
    try:
        known = {
            "statquant": lambda: accuracy.statquant(arguments.bits),
            "methods": accuracy.methods,
            "defects": accuracy.defects,
        }
        study = known[arguments.study]()
        runs = accuracy.read_report(arguments.save, study) if arguments.save else {}
        accuracy.compare(study, {}, seeds)  # refuses too few seeds before anything is trained
        trainings = accuracy.run(
            study, seeds, only=arguments.only, finished={} if arguments.again else runs, jobs=arguments.jobs,
            threads=arguments.threads,
        )  # fmt: skip
        for name, seed, trained in trainings:
            line = f"seed {seed}  {name}: accuracy {trained.accuracy:.2f} %, loss {trained.loss:.4f}"
            progress.print(line, highlight=False)
            runs.setdefault(name, {})[seed] = trained
            _save(accuracy.report(study, runs, seeds), arguments.save)
    except ValueError as error:
        print(f"fractrain bench accuracy: {error}", file=sys.stderr)
        return 2
    accuracy.show(study, runs, seeds, arguments.json)
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
    from rich.console import Console
    from rich.table import Table

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
    Console().print(table)
