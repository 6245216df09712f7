"""Command line of the cost models: ``cost`` for one network and schedule, ``report`` for the paper's tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hw.cost.count import Schedule
    from hw.cost.fabric import FabricMachine
    from hw.networks import Bits, ConvShape

MACHINES = ("cc", "bitfusion")
EPOCHS = 64_000 * 128 / 50_000  # the paper's CIFAR recipe


@dataclass(frozen=True)
class _Training:
    """What ``cost`` is asked for, with sensible defaults filled in."""

    model: str
    shapes: Sequence[ConvShape]
    schedule: Schedule
    samples: int
    batch: int
    count: str


def read_training(arguments: argparse.Namespace) -> _Training:
    """Network, schedule and counts from the options of ``cost``, ``explore`` or ``report roofline``.

    The record of a run brings its own network, samples and batch, and is costed as it ran unless told otherwise.

    Raises:
        ValueError: an unknown model, an impossible schedule, or one of another network; the message says which.
    """
    from hw.cost.count import CIFAR_OPTIONS, IMAGENET_OPTIONS, load_schedule, parse_schedule, static
    from hw.networks import Bits, network

    text = arguments.schedule or ""
    from_file = text.endswith(".json") or (text != "" and Path(text).is_dir())
    if from_file and (arguments.epochs or arguments.stages):
        raise ValueError(f"{text} states its own epochs; leave out --epochs and --stages")
    recorded = load_schedule(Path(text)) if from_file else None
    trained = recorded.trained if recorded else None
    model = arguments.model or (trained.model if trained else None)
    if model is None:
        raise ValueError("no network to cost; give --model" + (f", since {text} does not name one" if recorded else ""))
    if trained and model.replace("-", "").lower() == trained.model.replace("-", ""):
        shapes = replace(trained, classes=arguments.classes or trained.classes).shapes()
    else:
        trained = None
        shapes = network(model, arguments.classes)
    imagenet = any(shape.kind == "stem" and shape.kernel == 7 for shape in shapes)
    if arguments.epochs is not None and arguments.epochs <= 0:
        raise ValueError(f"a training of {arguments.epochs} epochs trains nothing; give a positive number")
    if arguments.stages and (arguments.bits or arguments.epochs):
        raise ValueError("--stages gives every stage of a --schedule its length; leave out --bits and --epochs")
    epochs = arguments.epochs or (90 if imagenet else EPOCHS)
    lengths = None
    if arguments.stages:
        try:
            lengths = [float(part) for part in arguments.stages.split(",")]
        except ValueError:
            raise ValueError(
                f"stage lengths {arguments.stages!r} are not epochs; write for example 20,20,20,100"
            ) from None
        epochs = sum(lengths)
    if arguments.bits:
        schedule = static(Bits.parse(arguments.bits), epochs)
    elif recorded:
        recorded.check(shapes, model)
        schedule = recorded
    else:
        options = IMAGENET_OPTIONS if imagenet else CIFAR_OPTIONS
        schedule = parse_schedule(text, epochs, lengths, options, 1 / 3 if imagenet else 0.5)
    if arguments.samples is not None and arguments.samples < 1:
        raise ValueError(f"a training set of {arguments.samples} samples trains nothing; give at least 1")
    samples = arguments.samples or (trained.samples if trained else 1_281_167 if imagenet else 50_000)
    batch = arguments.batch
    if batch is None:  # the array fills its lanes with a batch, BitFusion is published for single samples
        batch = 1 if arguments.machine in MACHINES else trained.batch if trained else 128
    if batch < 1:
        raise ValueError(f"a batch of {batch} samples has no cost; give at least 1")
    count = arguments.count or ("full" if schedule.recorded else "paper")
    return _Training(model, shapes, schedule, samples, batch, count)


def _machine(name: str, batch: int, memory: str = "ps") -> FabricMachine | None:
    """One of our designs by name or file, None for the machines that are not ours."""
    from hw.cost.fabric import FabricMachine, bandwidth
    from hw.design import DesignError, load_design

    if name in MACHINES:
        return None
    try:
        design = load_design(name)
    except DesignError as error:
        raise ValueError(f"machine {name!r} is neither {' nor '.join(MACHINES)} nor a design: {error}") from error
    return FabricMachine(design, batch=batch, bandwidth=bandwidth(design.part, memory))


def _fabric_row(fabric: FabricMachine, shape: ConvShape, bits: Bits) -> dict[str, dict[str, float]]:
    """Columns of the three products of a layer on one of our designs, for one sample."""
    return {
        product: {
            "cycles": cost.cycles,
            "compute_cycles": cost.array_cycles,
            "dram_bytes": cost.ddr_bytes,
            "on_chip_bytes": cost.on_chip_bytes,
            "time_us": cost.seconds * 1e6,
            "energy_estimate_uj": cost.energy_j * 1e6,
        }
        for product, cost in fabric.products(shape, bits).items()
    }


def _bitfusion_row(shape: ConvShape, bits: Bits, batch: int) -> dict[str, dict[str, float]]:
    """Columns of the three products of a layer on BitFusion, for one sample."""
    from hw.cost.bitfusion import training_costs

    return {
        row.product: {
            "cycles": row.cost.cycles / batch,
            "compute_cycles": row.cost.compute_cycles / batch,
            "dram_bytes": (row.cost.dram_read_bits + row.cost.dram_write_bits) / 8 / batch,
            "on_chip_bytes": (sum(row.cost.read_bits) + sum(row.cost.write_bits)) / 8 / batch,
            "energy_estimate_uj": row.cost.energy_pj * 1e-6 / batch,
        }
        for row in training_costs([shape], bits, batch)
    }


def cost_table(training: _Training, machine: str, memory: str = "ps") -> dict[str, Any]:
    """Cost per layer and product for one sample averaged over the training, and of the whole training, as plain data.

    Units are in the keys; ``energy`` is an estimate.  The machine ``cc`` has operations only.  On one of our designs the
    products are costed without the rest of a training step, which ``full_step`` adds (see ``hw.cost.fabric``).

    Raises:
        ValueError: unknown machine, or a layer that the machine cannot hold.
    """
    from hw.cost.bitfusion import BITFUSION
    from hw.cost.count import COUNTS, computational_cost, counted_cost, mean_work
    from hw.cost.fabric import PL_SOURCE, STEPS, training_step
    from hw.networks import PRODUCTS

    fabric = _machine(machine, training.batch, memory)
    steps: dict[str, dict[str, float]] = {step: {} for step in STEPS} if fabric else {}

    total_epochs = training.schedule.epochs
    summary = computational_cost(training.shapes, training.schedule, training.samples, training.count)
    rows: dict[tuple[str, str], dict[str, float]] = {
        (shape.name, product): {"macs": shape.macs, "cc": 0.0} for shape in training.shapes for product in PRODUCTS
    }
    if training.count == "full" and training.schedule.gate_macs:
        gates = training.schedule.gate_macs
        rows |= {("gates", product): {"macs": gates, "cc": float(gates)} for product in PRODUCTS}
    columns: dict[str, None] = {}
    for (shape, bits), weight in mean_work(training.shapes, training.schedule, training.count).items():
        for product, cc in counted_cost(training.schedule, shape, bits, training.count).items():
            rows[shape.name, product]["cc"] += weight * cc
        costed: Mapping[str, Mapping[str, float]] = {}
        if fabric:
            costed = _fabric_row(fabric, shape, bits)
        elif machine == "bitfusion":
            costed = _bitfusion_row(shape, bits, training.batch)
        for product, values in costed.items():
            row = rows[shape.name, product]
            for key, value in values.items():
                columns[key] = None
                row[key] = row.get(key, 0.0) + weight * value
        for step, parts in steps.items():
            assert fabric is not None
            cost_of_step = training_step(fabric, [shape], bits, step)
            for part, value in {"fabric": cost_of_step.fabric.seconds, **cost_of_step.host}.items():
                key = f"{part.replace(' ', '_')}_ms"
                parts[key] = parts.get(key, 0.0) + weight * value * 1e3
            energy = weight * cost_of_step.energy_j * 1e6
            parts["energy_estimate_uj"] = parts.get("energy_estimate_uj", 0.0) + energy
    for row in rows.values():  # of gates, which no machine model knows, and of layers that every sample skips
        row.update({key: 0.0 for key in columns if key not in row})
    layers_out = [{"layer": layer, "product": product, **row} for (layer, product), row in rows.items()]
    keys = next(iter(rows.values())).keys()
    sample: dict[str, float] = {key: sum(row[key] for row in rows.values()) for key in keys}
    count = total_epochs * training.samples
    whole: dict[str, float] = {"macs": sample["macs"] * count, "cc": summary.total, "cp_percent": summary.cp}
    if training.schedule.recorded:  # to be compared with the run's own meter
        for kind in COUNTS:
            whole[f"cc_{kind}"] = computational_cost(training.shapes, training.schedule, training.samples, kind).total
    if machine == "bitfusion":
        sample["latency_ms"] = 1e3 * sample["cycles"] / BITFUSION.clock_hz
        whole["latency_min"] = sample["latency_ms"] * count / 60e3
        whole["energy_estimate_kj"] = sample["energy_estimate_uj"] * count * 1e-9
    if fabric:
        sample["latency_ms"] = sample.pop("time_us") / 1e3
        whole["latency_min"] = sample["latency_ms"] * count / 60e3
        whole["energy_estimate_kj"] = sample["energy_estimate_uj"] * count * 1e-9
        for step, parts in steps.items():
            parts["latency_ms"] = sum(value for key, value in parts.items() if key.endswith("_ms"))
            whole[f"full_step_{step}_estimate_min"] = parts["latency_ms"] * count / 60e3
    result: dict[str, Any] = {
        "model": training.model,
        "schedule": training.schedule.name,
        "machine": machine,
        "count": training.count,
        "batch": training.batch,
        "epochs": total_epochs,
        "samples_per_epoch": training.samples,
        "per_sample_layers": layers_out,
        "per_sample": sample,
        "whole_training": whole,
    }
    if steps:
        result["full_step"] = steps
        result["memory"] = memory
        if memory != "ps":
            result["memory_unverified"] = PL_SOURCE
    return result


def _show(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e5 or abs(value) >= 1e9 else f"{value:,.0f}"


def _print_table(result: Mapping[str, Any]) -> None:
    rows = result["per_sample_layers"]
    keys = list(rows[0])
    total: dict[str, Any] = {"layer": "all", "product": ""}
    for key in keys[2:]:
        total[key] = sum(row[key] for row in rows)
    cells = [
        keys,
        *([str(row[k]) if isinstance(row[k], str) else _show(row[k]) for k in keys] for row in (*rows, total)),
    ]
    widths = [max(len(line[at]) for line in cells) for at in range(len(keys))]
    print(
        f"{result['model']}, {result['schedule']}, machine {result['machine']}, count '{result['count']}': per sample, "
        f"mean over {result['epochs']:.4g} epochs of {result['samples_per_epoch']:,} samples"
    )
    for line in cells:
        first = f"{line[0]:<{widths[0]}}  {line[1]:<{widths[1]}}"
        print("  ".join([first, *(f"{cell:>{width}}" for cell, width in zip(line[2:], widths[2:], strict=True))]))
    if "memory_unverified" in result:
        print(f"memory {result['memory']}, unverified: {result['memory_unverified']}")
    if "latency_ms" in result["per_sample"]:
        print(f"per sample: latency {result['per_sample']['latency_ms']:.4g} ms")
    for step, parts in result.get("full_step", {}).items():
        print(f"full step, {step} (host estimated): " + ", ".join(f"{k} {_show(v)}" for k, v in parts.items()))
    print("whole training: " + ", ".join(f"{key} {_show(value)}" for key, value in result["whole_training"].items()))


def run_cost(arguments: argparse.Namespace) -> int:
    """``fractrain cost``: 0 on success, 2 on an unknown model or an impossible schedule."""
    try:
        result = cost_table(read_training(arguments), arguments.machine, arguments.memory)
    except (OSError, ValueError) as error:
        print(f"fractrain cost: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        _print_table(result)
    return 0


def run_report(arguments: argparse.Namespace) -> int:
    """``fractrain report paper``: 0 on success, 2 if the report cannot be written."""
    from hw.cost.fabric import paper_fabric
    from hw.cost.paper import write_report

    try:
        machine = None if arguments.design == "none" else _machine(arguments.design, 128)
        if machine is None and arguments.design != "none":
            raise ValueError(f"{arguments.design} is in the report anyway; name one of our designs, or none")
        fabric = paper_fabric(machine) if machine else None
        files = write_report(arguments.out, fabric, figures=not arguments.no_figures)
    except (OSError, ValueError) as error:
        print(f"fractrain report: {error}", file=sys.stderr)
        return 2
    for file in files:
        print(file)
    return 0


def add_memory(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add the option that ``cost``, ``explore`` and ``report roofline`` share; ``several`` compares memories."""
    text = "DDR of our designs: ps, the processor's, or ps+pl, with that beside the logic, whose 10 GB/s no board has confirmed"
    if several:
        parser.add_argument(
            "--memory", nargs="+", choices=("ps", "ps+pl"), default=["ps"],
            help=text + "; both of them: one search each, and what the second saves (default: ps)",
        )  # fmt: skip
    else:
        parser.add_argument("--memory", choices=("ps", "ps+pl"), default="ps", help=text + " (default: %(default)s)")


def note_memory(memory: str) -> None:
    """Say on standard error where an unverified bandwidth comes from, if one was used."""
    from hw.cost.fabric import PL_SOURCE

    if memory != "ps":
        print(f"memory {memory}, unverified: {PL_SOURCE}", file=sys.stderr)


def run_roofline(arguments: argparse.Namespace) -> int:
    """``fractrain report roofline``: 0 on success, 2 if a layer has no place under the roofs."""
    from hw.cost.roofline import write_roofline, write_run
    from hw.networks import Bits, network

    try:
        if arguments.machine in MACHINES:
            raise ValueError(f"{arguments.machine} has no streams and no DDR to draw; name one of our designs")
        if arguments.bits:
            if arguments.model is None:
                raise ValueError("no network to draw; give --model")
            machine = _machine(arguments.machine, arguments.batch or 128, arguments.memory)
            assert machine is not None
            shapes = network(arguments.model, arguments.classes)
            widths = [Bits.parse(text) for text in arguments.bits]
            files = write_roofline(machine, arguments.model, shapes, widths, arguments.out, arguments.memory)
        else:
            training = read_training(arguments)
            machine = _machine(arguments.machine, training.batch, arguments.memory)
            assert machine is not None
            files = write_run(
                machine, training.model, training.shapes, training.schedule, training.samples, arguments.out,
                arguments.memory, training.count,
            )  # fmt: skip
    except (OSError, ValueError) as error:
        print(f"fractrain report: {error}", file=sys.stderr)
        return 2
    note_memory(arguments.memory)
    for file in files:
        print(file)
    return 0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``cost`` and ``report`` to the command line."""
    from hw.networks import MODELS

    parser = subparsers.add_parser(
        "cost",
        help="operations, cycles, traffic, energy and latency of a training",
        description="Cost of the three products of training per layer, sample and training. Energies are estimates.",
    )
    parser.add_argument("--model", help=f"one of {', '.join(MODELS)} (default: the one that a run has trained)")
    widths = parser.add_mutually_exclusive_group(required=True)
    widths.add_argument(
        "--bits", metavar="W,A,G", help="the same widths of weights, activations and gradients throughout"
    )
    widths.add_argument(
        "--schedule",
        help="FW-8/BW-8, FW(3,4,6,8)/BW(6,6,8,8), cp=3, cp=1.5/2/2.5/3, or the folder of a run (or its schedule.json)",
    )
    parser.add_argument(
        "--machine",
        default="cc",
        metavar="cc|bitfusion|DESIGN",
        help="cc: operations only; a design's name or TOML file: our fabric (default: %(default)s)",
    )
    parser.add_argument(
        "--count",
        choices=("paper", "full"),
        help="paper: all layers as scheduled; full: unquantized layers with 32 bits, of a run every product as it ran "
        "(default: paper, of a run full)",
    )
    parser.add_argument("--epochs", type=float, help="length of the training (default: the paper's)")
    parser.add_argument(
        "--stages", metavar="E,E,...", help="epochs per stage (default: early stages share the first part)"
    )
    parser.add_argument(
        "--samples",
        type=int,
        help="samples per epoch (default: the run's, else 50,000, ImageNet networks 1,281,167)",
    )
    parser.add_argument(
        "--batch", type=int, help="samples that the machine takes at once (default: 1, on a design the run's or 128)"
    )
    add_memory(parser)
    parser.add_argument("--classes", type=int, help="outputs of the classifier")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run_cost)

    report = subparsers.add_parser("report", help="recomputed tables of the paper")
    kinds = report.add_subparsers(dest="kind", required=True)
    paper = kinds.add_parser(
        "paper", help="every published cost beside its recomputation, as CSV, Markdown and figures"
    )
    paper.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    paper.add_argument("--no-figures", action="store_true", help="tables only")
    paper.add_argument(
        "--design", default="zc706", help="our fabric's column: a design's name or file, or none (default: %(default)s)"
    )
    paper.set_defaults(run=run_report)
    roofline = kinds.add_parser(
        "roofline",
        help="roofline of a network's training products on one of our designs, and where their time goes",
        description="Every layer and product between the roofs of array, DDR and streams, and the time of every layer "
        "by what it waits for, from the cycle model. Pictures, and CSV with the same figures.",
    )
    roofline.add_argument(
        "--design", dest="machine", default="zc706", help="a design's name or file (default: %(default)s)"
    )
    roofline.add_argument("--model", help=f"one of {', '.join(MODELS)} (default: the one that a run has trained)")
    drawn = roofline.add_mutually_exclusive_group(required=True)
    drawn.add_argument("--bits", nargs="+", metavar="W,A,G", help="widths of weights, activations, gradients")
    drawn.add_argument(
        "--schedule",
        "--run",
        metavar="RUN",
        help="as for fractrain cost: what a run really used on the mean, and its time over the epochs",
    )
    roofline.add_argument("--batch", type=int, help="samples per step (default: the run's, else 128)")
    roofline.add_argument("--classes", type=int, help="outputs of the classifier")
    roofline.add_argument("--count", choices=("paper", "full"), help="as for fractrain cost")
    add_memory(roofline)
    roofline.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    roofline.set_defaults(run=run_roofline, epochs=None, stages=None, samples=None)
