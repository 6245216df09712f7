"""Command line of the cost models: ``cost`` for one network and schedule, ``report`` for the paper's tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hw.computational_cost import Schedule
    from hw.fabric_cost import FabricMachine
    from hw.layers import Bits, ConvShape

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
    """Network, schedule and counts from the options of ``cost`` or ``explore``.

    Raises:
        ValueError: an unknown model or an impossible schedule; the message says which.
    """
    from hw.computational_cost import CIFAR_OPTIONS, IMAGENET_OPTIONS, load_schedule, parse_schedule, static
    from hw.layers import Bits, network

    shapes = network(arguments.model, arguments.classes)
    imagenet = any(shape.kind == "stem" and shape.kernel == 7 for shape in shapes)
    if arguments.epochs is not None and arguments.epochs <= 0:
        raise ValueError(f"a training of {arguments.epochs} epochs trains nothing; give a positive number")
    from_file = (arguments.schedule or "").endswith(".json")
    if from_file and (arguments.epochs or arguments.stages):
        raise ValueError(f"{arguments.schedule} states its own epochs; leave out --epochs and --stages")
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
    elif from_file:
        schedule = load_schedule(Path(arguments.schedule))
    else:
        options = IMAGENET_OPTIONS if imagenet else CIFAR_OPTIONS
        schedule = parse_schedule(arguments.schedule, epochs, lengths, options, 1 / 3 if imagenet else 0.5)
    if arguments.samples is not None and arguments.samples < 1:
        raise ValueError(f"a training set of {arguments.samples} samples trains nothing; give at least 1")
    samples = arguments.samples or (1_281_167 if imagenet else 50_000)
    batch = arguments.batch
    if batch is None:  # the array fills its lanes with a batch, BitFusion is published for single samples
        batch = 1 if arguments.machine in MACHINES else 128
    return _Training(arguments.model, shapes, schedule, samples, batch, arguments.count)


def _stage_rows(training: _Training) -> Iterable[tuple[float, list[tuple[str, Any]]]]:
    """Per stage: its length and the mixture of widths per layer."""
    from hw.computational_cost import layer_mixture

    for stage in training.schedule.stages:
        mixtures = layer_mixture(training.shapes, training.schedule, stage, training.count)
        yield stage.epochs, [(shape.name, mixture) for shape, mixture in zip(training.shapes, mixtures, strict=True)]


def _machine(name: str, batch: int, memory: str = "ps") -> FabricMachine | None:
    """One of our designs by name or file, None for the machines that are not ours."""
    from hw.design import DesignError, load_design
    from hw.fabric_cost import FabricMachine, bandwidth

    if name in MACHINES:
        return None
    try:
        design = load_design(name)
    except DesignError as error:
        raise ValueError(f"machine {name!r} is neither {' nor '.join(MACHINES)} nor a design: {error}") from error
    return FabricMachine(design, batch=batch, bandwidth=bandwidth(design.part, memory))


def _fabric_row(fabric: FabricMachine, shape: ConvShape, bits: Bits) -> dict[str, dict[str, float]]:
    """Columns of the three products of a layer on one of our designs."""
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


def cost_table(training: _Training, machine: str, memory: str = "ps") -> dict[str, Any]:
    """Cost per layer and product for one sample averaged over the training, and of the whole training, as plain data.

    Units are in the keys; ``energy`` is an estimate.  The machine ``cc`` has operations only.  On one of our designs the
    products are costed without the rest of a training step, which ``full_step`` adds (see ``hw.fabric_cost``).

    Raises:
        ValueError: unknown machine, or a layer that the machine cannot hold.
    """
    from hw.bitfusion import BITFUSION, training_costs
    from hw.computational_cost import computational_cost, product_cost
    from hw.fabric_cost import STEPS, training_step

    fabric = _machine(machine, training.batch, memory)
    steps: dict[str, dict[str, float]] = {step: {} for step in STEPS} if fabric else {}

    total_epochs = training.schedule.epochs
    summary = computational_cost(training.shapes, training.schedule, training.samples, training.count)
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for epochs, layers in _stage_rows(training):
        for shape, (_, mixture) in zip(training.shapes, layers, strict=True):
            for share, bits in mixture:
                weight = share * epochs / total_epochs
                for product, cc in product_cost(shape, bits).items():
                    row = rows.setdefault((shape.name, product), {"macs": shape.macs, "cc": 0.0})
                    row["cc"] += weight * cc
                if fabric and weight:
                    for product, values in _fabric_row(fabric, shape, bits).items():
                        row = rows[shape.name, product]
                        for key, value in values.items():
                            row[key] = row.get(key, 0.0) + weight * value
                    for step, parts in steps.items():
                        cost_of_step = training_step(fabric, [shape], bits, step)
                        seconds = {"fabric": cost_of_step.fabric.seconds, **cost_of_step.host}
                        for part, value in seconds.items():
                            key = f"{part.replace(' ', '_')}_ms"
                            parts[key] = parts.get(key, 0.0) + weight * value * 1e3
                        parts["energy_estimate_uj"] = (
                            parts.get("energy_estimate_uj", 0.0) + weight * cost_of_step.energy_j * 1e6
                        )
                if machine == "bitfusion" and weight:
                    for product_row in training_costs([shape], bits, training.batch):
                        row, cost = rows[shape.name, product_row.product], product_row.cost
                        for key, value in (
                            ("cycles", cost.cycles),
                            ("compute_cycles", cost.compute_cycles),
                            ("dram_bytes", (cost.dram_read_bits + cost.dram_write_bits) / 8),
                            ("on_chip_bytes", (sum(cost.read_bits) + sum(cost.write_bits)) / 8),
                            ("energy_estimate_uj", cost.energy_pj * 1e-6),
                        ):
                            row[key] = row.get(key, 0.0) + weight * value / training.batch
    layers_out = [{"layer": layer, "product": product, **row} for (layer, product), row in rows.items()]
    keys = next(iter(rows.values())).keys()
    sample: dict[str, float] = {key: sum(row[key] for row in rows.values()) for key in keys}
    count = total_epochs * training.samples
    whole: dict[str, float] = {"macs": sample["macs"] * count, "cc": summary.total, "cp_percent": summary.cp}
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
    if result.get("memory") == "ps+pl":
        print("memory ps+pl: the bandwidth of the DDR beside the logic is an unverified figure")
    if "latency_ms" in result["per_sample"]:
        print(f"per sample: latency {result['per_sample']['latency_ms']:.4g} ms")
    for step, parts in result.get("full_step", {}).items():
        note = ", sums in the epilogue that the RTL does not have yet" if step == "recompute" else ""
        print(f"full step, {step} (host estimated{note}): " + ", ".join(f"{k} {_show(v)}" for k, v in parts.items()))
    print("whole training: " + ", ".join(f"{key} {_show(value)}" for key, value in result["whole_training"].items()))


def run_cost(arguments: argparse.Namespace) -> int:
    """``fractrain cost``: 0 on success, 2 on an unknown model or an impossible schedule."""
    try:
        if arguments.batch is not None and arguments.batch < 1:
            raise ValueError(f"a batch of {arguments.batch} samples has no cost; give at least 1")
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
    from hw.fabric_cost import paper_fabric
    from hw.paper import write_report

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


def add_memory(parser: argparse.ArgumentParser) -> None:
    """Add the option that ``cost``, ``explore`` and ``report roofline`` share."""
    parser.add_argument(
        "--memory",
        choices=("ps", "ps+pl"),
        default="ps",
        help="DDR of our designs: the processor's, or with that beside the logic, whose 10 GB/s nobody has verified "
        "(default: %(default)s)",
    )


def run_roofline(arguments: argparse.Namespace) -> int:
    """``fractrain report roofline``: 0 on success, 2 if a layer has no place under the roofs."""
    from hw.layers import Bits, network
    from hw.roofline import write_roofline

    try:
        machine = _machine(arguments.design, arguments.batch, arguments.memory)
        if machine is None:
            raise ValueError(f"{arguments.design} has no streams and no DDR to draw; name one of our designs")
        shapes = network(arguments.model, arguments.classes)
        widths = [Bits.parse(text) for text in arguments.bits]
        files = write_roofline(machine, arguments.model, shapes, widths, arguments.out, arguments.memory)
    except (OSError, ValueError) as error:
        print(f"fractrain report: {error}", file=sys.stderr)
        return 2
    for file in files:
        print(file)
    return 0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``cost`` and ``report`` to the command line."""
    from hw.layers import MODELS

    parser = subparsers.add_parser(
        "cost",
        help="operations, cycles, traffic, energy and latency of a training",
        description="Cost of the three products of training per layer, sample and training. Energies are estimates.",
    )
    parser.add_argument("--model", required=True, help=f"one of {', '.join(MODELS)}")
    widths = parser.add_mutually_exclusive_group(required=True)
    widths.add_argument(
        "--bits", metavar="W,A,G", help="the same widths of weights, activations and gradients throughout"
    )
    widths.add_argument(
        "--schedule",
        help="FW-8/BW-8, FW(3,4,6,8)/BW(6,6,8,8), cp=3, cp=1.5/2/2.5/3, or a .json file of what a run used",
    )
    parser.add_argument(
        "--machine",
        default="cc",
        metavar="cc|bitfusion|DESIGN",
        help="cc: operations only; a design's name or TOML file: our fabric (default: %(default)s)",
    )
    parser.add_argument(
        "--count", choices=("paper", "full"), default="paper", help="full: unquantized layers count with 32 bits"
    )
    parser.add_argument("--epochs", type=float, help="length of the training (default: the paper's)")
    parser.add_argument(
        "--stages", metavar="E,E,...", help="epochs per stage (default: early stages share the first part)"
    )
    parser.add_argument("--samples", type=int, help="samples per epoch (default: 50,000, ImageNet networks 1,281,167)")
    parser.add_argument(
        "--batch", type=int, help="samples that the machine takes at once (default: 1, on a design 128)"
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
    roofline.add_argument("--design", default="zc706", help="a design's name or file (default: %(default)s)")
    roofline.add_argument("--model", required=True, help=f"one of {', '.join(MODELS)}")
    roofline.add_argument(
        "--bits", nargs="+", required=True, metavar="W,A,G", help="widths of weights, activations, gradients"
    )
    roofline.add_argument("--batch", type=int, default=128, help="samples per step (default: %(default)s)")
    roofline.add_argument("--classes", type=int, help="outputs of the classifier")
    add_memory(roofline)
    roofline.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    roofline.set_defaults(run=run_roofline)
