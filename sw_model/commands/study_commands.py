"""Command line of the software model's measurements: ``fractrain bench train``, ``codes``, ``quantizers``, ``gradients``,
``accuracy``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hw.commands import options
from hw.networks import Bits
from sw_model.quantize.limits import ACCELERATORS

STUDIES = ("statquant", "methods", "defects", "fabric", "fabric-cifar")


def register_bench(kinds: argparse._SubParsersAction[Any]) -> None:
    """Adds the software model's measurements to ``fractrain bench``."""
    speed = kinds.add_parser("train", help="time and memory of static and gated training against float32")
    speed.add_argument(
        "--depth", type=options.positive, nargs="+", default=[38], help="of ResNets: 6n+2 for small images, 18 or 34"
    )
    speed.add_argument("--batch", type=options.positive, nargs="+", default=[32], help="images per step")
    speed.add_argument("--pixels", type=options.whole, default=0, help="side of the images; 0: the network's own")
    speed.add_argument("--threads", type=options.threads, default=2, help="CPU threads")
    speed.add_argument("--rounds", type=options.positive, default=8, help="alternations")
    _add_accelerator(speed)
    _add_report(speed)
    speed.set_defaults(run=run_bench_train)
    codes = kinds.add_parser("codes", help="compiled kernels against PyTorch's operations: every quantizer and width")
    codes.add_argument("--values", type=options.positive, default=10_000_000, help="of every quantizer")
    codes.add_argument("--seed", type=options.whole, default=0, help="of values and random numbers")
    _add_accelerator(codes)
    _add_report(codes)
    codes.set_defaults(run=run_bench_codes)
    noise = kinds.add_parser("quantizers", help="bias and variance of PTQ, PSQ and BHQ on real gradients")
    noise.add_argument("--data", default="digits", help="'digits' or a path")
    noise.add_argument("--rounds", type=options.at_least_two, default=50, help="roundings per gradient")
    noise.add_argument("--steps", type=options.whole, default=60, help="training steps before measuring")
    noise.add_argument("--bits", type=options.width, nargs="+", default=[4, 5, 6, 8], help="of the gradients")
    noise.add_argument(
        "--batches",
        type=options.whole,
        default=0,
        help="decompose the variance of the weight gradients on so many batches",
    )
    noise.add_argument("--draws", type=options.at_least_two, default=8, help="roundings of each of them")
    _add_report(noise)
    noise.set_defaults(run=run_bench_quantizers)
    _register_gradients(kinds)
    _register_accuracy(kinds)


def _register_gradients(kinds: argparse._SubParsersAction[Any]) -> None:
    step = kinds.add_parser(
        "gradients",
        help="bias and variance of a step's gradients: the fabric's, by widths, and float32 normalisation's",
    )
    step.add_argument("--data", default="digits", help="'digits' or a path")
    step.add_argument(
        "--bits", type=options.fabric_bits, nargs="+", metavar="W/A/G", default=[Bits(8, 8, 8)], help="widths"
    )
    step.add_argument("--widths", type=options.width, nargs="*", default=[4, 6], help="of what the fabric's step keeps")
    step.add_argument("--depth", type=options.positive, default=20, help="of the ResNet, 6n+2")
    step.add_argument("--width", type=options.positive, default=16, help="channels of its first group")
    step.add_argument("--batch", type=options.positive, default=128, help="images per step")
    step.add_argument("--steps", type=options.whole, default=100, help="training steps before measuring")
    step.add_argument("--batches", type=options.at_least_two, default=4, help="to measure on")
    step.add_argument("--rounds", type=options.at_least_two, default=4, help="roundings of each of them")
    _add_report(step)
    step.set_defaults(run=run_bench_gradients)


def _register_accuracy(kinds: argparse._SubParsersAction[Any]) -> None:
    accuracy = kinds.add_parser(
        "accuracy", help="what a choice does to accuracy and loss: trainings over several seeds"
    )
    accuracy.add_argument(
        "study",
        choices=STUDIES,
        help="statquant: gradient quantizers PTQ, PSQ, BHQ; methods: DoReFa, WAGEUBN, MXINT and Range BN beside SBM; "
        "defects: details of the published code that mode 'fixed' repairs; fabric: the fabric's integers, by widths; "
        "fabric-cifar: the same on CIFAR-10",
    )
    accuracy.add_argument("--seeds", type=options.at_least_two, default=8, help="trainings of each variant")
    accuracy.add_argument("--bits", type=options.width, default=5, help="statquant: of the gradients")
    accuracy.add_argument("--data", default="data/cifar-10", help="fabric-cifar: path of CIFAR-10")
    accuracy.add_argument("--images", type=options.whole, default=0, help="fabric-cifar: to train on; 0: all")
    accuracy.add_argument("--only", nargs="+", metavar="VARIANT", default=[], help="train these variants only")
    accuracy.add_argument(
        "--save",
        type=options.output_file,
        help="also write the JSON to this file, after every training; trainings that it holds are not repeated",
    )
    accuracy.add_argument("--again", action="store_true", help="repeat trainings that the file of --save holds")
    accuracy.add_argument("--jobs", type=options.positive, default=1, help="trainings at a time")
    accuracy.add_argument("--threads", type=options.threads, default=1, help="CPU threads of each")
    accuracy.add_argument("--json", action="store_true", help="print JSON")
    accuracy.set_defaults(run=run_bench_accuracy, after_interrupt=_after_interrupt)


def _add_accelerator(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--accelerator", choices=ACCELERATORS, default="cpu", help="where PyTorch computes")


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--save", type=options.output_file, help="also write the JSON to this file")


def run_bench_train(arguments: argparse.Namespace) -> int:
    """``fractrain bench train``."""
    from hw.console import Progress
    from sw_model.studies.speed import bench_training, print_training
    from sw_model.train.accelerator import choose_accelerator

    accelerator = choose_accelerator(arguments.accelerator)
    with Progress("bench train") as progress:
        report = bench_training(
            arguments.depth,
            arguments.batch,
            arguments.threads,
            arguments.rounds,
            accelerator=accelerator,
            pixels=arguments.pixels,
            doing=progress.doing,
        )
    print_training(report, arguments.json)
    _save(report, arguments.save)
    return 0


def run_bench_codes(arguments: argparse.Namespace) -> int:
    """``fractrain bench codes``: status 1 if codes differ that should be equal."""
    from hw.console import Progress
    from sw_model.studies.code_equality import compare_codes, print_codes
    from sw_model.train.accelerator import choose_accelerator

    accelerator = choose_accelerator(arguments.accelerator)
    with Progress("bench codes") as progress:
        report = compare_codes(arguments.values, accelerator, arguments.seed, progress.doing)
    print_codes(report, arguments.json)
    _save(report, arguments.save)
    return 1 if report["failed"] else 0


def _save(report: dict[str, Any], path: Path | None) -> None:
    from hw.files import write_atomically

    if path is not None:
        write_atomically(path, json.dumps(report, indent=1) + "\n")


def run_bench_quantizers(arguments: argparse.Namespace) -> int:
    """``fractrain bench quantizers``."""
    from hw.console import Progress
    from sw_model.data.images import load_data
    from sw_model.studies.noise import bench_quantizers, print_quantizers

    with Progress("bench quantizers") as progress:
        report = bench_quantizers(
            load_data(arguments.data),
            rounds=arguments.rounds,
            warmup_steps=arguments.steps,
            bits=arguments.bits,
            batches=arguments.batches,
            draws=arguments.draws,
            doing=progress.doing,
        )
    print_quantizers(report, arguments.json)
    _save(report, arguments.save)
    return 0


def run_bench_gradients(arguments: argparse.Namespace) -> int:
    """``fractrain bench gradients``."""
    from hw.console import Progress
    from sw_model.data.images import load_data
    from sw_model.nn.precision import Precision
    from sw_model.studies.step_noise import bench_gradients, print_gradients

    names = ("widths", "depth", "width", "batch", "steps", "batches", "rounds")
    with Progress("bench gradients") as progress:
        report = bench_gradients(
            load_data(arguments.data),
            [Precision(bits.w, bits.a, bits.g) for bits in arguments.bits],
            **{name: getattr(arguments, name) for name in names},
            doing=progress.doing,
        )
    print_gradients(report, arguments.json)
    _save(report, arguments.save)
    return 0


def run_bench_accuracy(arguments: argparse.Namespace) -> int:
    """``fractrain bench accuracy``: progress goes to stderr."""
    import torch

    from hw.console import Progress
    from sw_model.studies import accuracy

    torch.set_num_threads(arguments.threads)
    seeds = list(range(1, arguments.seeds + 1))
    known = {
        "statquant": lambda: accuracy.statquant(arguments.bits),
        "methods": accuracy.methods,
        "defects": accuracy.defects,
        "fabric": accuracy.fabric,
        "fabric-cifar": lambda: accuracy.fabric_cifar(arguments.data, arguments.images),
    }
    study = known[arguments.study]()
    runs = accuracy.read_study(arguments.save, study) if arguments.save else {}
    accuracy.compare(study, {}, seeds)  # refuses too few seeds before anything is trained
    trainings = accuracy.run_trainings(
        study, seeds, only=arguments.only, finished={} if arguments.again else runs, jobs=arguments.jobs,
        threads=arguments.threads,
    )  # fmt: skip
    with Progress(f"bench accuracy {arguments.study}: trainings") as progress:
        for name, seed, trained in trainings:
            progress.at(progress.done + 1)
            progress.line(f"seed {seed}  {name}: accuracy {trained.accuracy:.2f} %, loss {trained.loss:.4f}")
            runs.setdefault(name, {})[seed] = trained
            _save(accuracy.study_report(study, runs, seeds), arguments.save)
    # also where nothing was left to train: the outcomes are those of the seeds asked for
    _save(accuracy.study_report(study, runs, seeds), arguments.save)
    accuracy.show(study, runs, seeds, arguments.json)
    return 0


def _after_interrupt(arguments: argparse.Namespace) -> str:
    if arguments.save is None:
        return "nothing is kept without --save"
    return f"the same command goes on after the trainings that {arguments.save} holds"
