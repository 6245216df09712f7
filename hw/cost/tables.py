"""Cost of a training on a machine as plain data: per layer and product, per sample, and as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hw.cost.bitfusion import BITFUSION, training_costs
from hw.cost.count import COUNTS, computational_cost, counted_cost, mean_work
from hw.cost.fabric import PL_SOURCE, FabricMachine, bandwidth
from hw.cost.step_cost import STEPS, NetworkStep
from hw.cost.training import SINGLE_SAMPLE, CostedTraining
from hw.design import DesignError, load_design
from hw.networks import PRODUCTS, Bits, ConvShape

Columns = Mapping[str, Mapping[str, float]]  #: product -> column -> value, for one sample


def our_machine(name: str, batch: int, memory: str = "ps") -> FabricMachine | None:
    """One of our designs by name or file, None for the machines that are not ours.

    Raises:
        ValueError: an unknown or impossible design, or a memory that its board does not have.
    """
    if name in SINGLE_SAMPLE:
        return None
    try:
        design = load_design(name)
    except DesignError as error:
        raise ValueError(f"machine {name!r} is neither {' nor '.join(SINGLE_SAMPLE)} nor a design: {error}") from error
    return FabricMachine(design, batch=batch, bandwidth=bandwidth(design.part, memory))


def _fabric_columns(fabric: FabricMachine, shape: ConvShape, bits: Bits) -> Columns:
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


def _bitfusion_columns(batch: int, shape: ConvShape, bits: Bits) -> Columns:
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


def _columns_of(fabric: FabricMachine | None, machine: str, batch: int) -> Callable[[ConvShape, Bits], Columns] | None:
    """What a machine has to say about a layer; None: operations only."""
    if fabric is not None:
        return partial(_fabric_columns, fabric)
    return partial(_bitfusion_columns, batch) if machine == "bitfusion" else None


@dataclass
class _Rows:
    """Columns by layer and product, each the mean over the training's samples."""

    rows: dict[tuple[str, str], dict[str, float]]
    columns: dict[str, None] = field(default_factory=dict)

    @classmethod
    def of(cls, training: CostedTraining) -> _Rows:
        rows = {
            (shape.name, product): {"macs": float(shape.macs), "cc": 0.0}
            for shape in training.shapes
            for product in PRODUCTS
        }
        if training.count == "full" and training.schedule.gate_macs:
            gates = float(training.schedule.gate_macs)
            rows |= {("gates", product): {"macs": gates, "cc": gates} for product in PRODUCTS}
        return cls(rows)

    def add(self, layer: str, values: Columns, weight: float) -> None:
        """Adds ``weight`` times the columns of a layer's products."""
        for product, columns in values.items():
            row = self.rows[layer, product]
            for key, value in columns.items():
                self.columns[key] = None
                row[key] = row.get(key, 0.0) + weight * value

    def finished(self) -> list[dict[str, Any]]:
        """All rows, with every column: no machine model knows gates, nor layers that every sample skips."""
        return [
            {"layer": layer, "product": product, **row, **{key: 0.0 for key in self.columns if key not in row}}
            for (layer, product), row in self.rows.items()
        ]


def _full_step(fabric: FabricMachine, training: CostedTraining) -> dict[str, dict[str, float]]:
    """Milliseconds and energy of a whole training step for one sample, by who normalises and by part."""
    steps: dict[str, dict[str, float]] = {step: {} for step in STEPS}
    network = NetworkStep(fabric, training.shapes)
    for (shape, bits), weight in mean_work(training.shapes, training.schedule, training.count).items():
        for step, parts in steps.items():
            cost = network.layer(shape, bits, step)
            values = {
                f"{part.replace(' ', '_')}_ms": s * 1e3
                for part, s in {"fabric": cost.fabric.seconds, **cost.host}.items()
            }
            values["energy_estimate_uj"] = cost.energy_j * 1e6
            for key, value in values.items():
                parts[key] = parts.get(key, 0.0) + weight * value
    for parts in steps.values():
        parts["latency_ms"] = sum(value for key, value in parts.items() if key.endswith("_ms"))
    return steps


def cost_table(
    training: CostedTraining, machine: str, memory: str = "ps", progress: Callable[[int, int], None] = lambda *_: None
) -> dict[str, Any]:
    """Cost per layer and product for one sample averaged over the training, and of the whole training, as plain data.

    Units are in the keys; ``energy`` is an estimate.  The machine ``cc`` has operations only.  On one of our designs the
    products are costed without the rest of a training step, which ``full_step`` adds (see ``hw.cost.step_cost``).

    Args:
        training: what is costed.
        machine: "cc", "bitfusion", or a design by name or file.
        memory: of our designs, see ``hw.cost.fabric.bandwidth``.
        progress: called with the layers done and their number, widths counted apart.

    Raises:
        ValueError: unknown machine, or a layer that the machine cannot hold.
    """
    fabric = our_machine(machine, training.batch, memory)
    costed = _columns_of(fabric, machine, training.batch)
    rows = _Rows.of(training)
    work = mean_work(training.shapes, training.schedule, training.count)
    for done, ((shape, bits), weight) in enumerate(work.items()):
        progress(done, len(work))
        for product, cc in counted_cost(training.schedule, shape, bits, training.count).items():
            rows.rows[shape.name, product]["cc"] += weight * cc
        if costed is not None:
            rows.add(shape.name, costed(shape, bits), weight)
    layers = rows.finished()
    sample: dict[str, float] = {
        key: sum(row[key] for row in layers) for key in layers[0] if key not in ("layer", "product")
    }
    steps = _full_step(fabric, training) if fabric else {}
    whole = _whole(training, sample, steps)
    result: dict[str, Any] = {
        "model": training.model,
        "schedule": training.schedule.name,
        "machine": machine,
        "count": training.count,
        "batch": training.batch,
        "epochs": training.schedule.epochs,
        "samples_per_epoch": training.samples,
        "per_sample_layers": layers,
        "per_sample": sample,
        "whole_training": whole,
    }
    if notes := training.notes(fabric is not None):
        result["notes"] = notes
    if fabric:
        result |= {"full_step": steps, "memory": memory}
        if memory != "ps":
            result["memory_unverified"] = PL_SOURCE
    return result


def _whole(
    training: CostedTraining, sample: dict[str, float], steps: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Cost of the whole training; the sample gets its latency in milliseconds."""
    schedule, count = training.schedule, training.schedule.epochs * training.samples
    summary = computational_cost(training.shapes, schedule, training.samples, training.count)
    whole: dict[str, float] = {"macs": sample["macs"] * count, "cc": summary.total, "cp_percent": summary.cp}
    if schedule.recorded:  # to be compared with the run's own meter
        for kind in COUNTS:
            whole[f"cc_{kind}"] = computational_cost(training.shapes, schedule, training.samples, kind).total
    if "cycles" not in sample:
        return whole
    microseconds = sample.pop("time_us", None)
    sample["latency_ms"] = 1e3 * sample["cycles"] / BITFUSION.clock_hz if microseconds is None else microseconds / 1e3
    whole["latency_min"] = sample["latency_ms"] * count / 60e3
    whole["energy_estimate_kj"] = sample["energy_estimate_uj"] * count * 1e-9
    for step, parts in steps.items():
        whole[f"full_step_{step}_estimate_min"] = parts["latency_ms"] * count / 60e3
    return whole
