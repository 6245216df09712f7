"""Roofline of a network's training products on one of our designs, and where the time of every layer goes.

Work is counted in binary multiply-accumulates: those of the layer, times the bits of both operands.  What the array
computes beyond them (taps of strided layers that hit nothing, padded channels) lowers a point's height.  All figures are
those of ``hw.cost.fabric``: cycles by the model that RTL counters confirm, DDR as a bandwidth.

Time is attributed by leaving out its causes, one after the other: what the cycle model saves without the output stream
is the output stream's, what it saves further without the input streams is theirs; of the rest, cycles in which the
array computes are the array's, and what remains is fixed (headers, setups, pipelines that fill and drain).

Of a schedule (``hw.reports.roofline_figures.write_run``), every layer and product stands where it is on the mean over the training's samples, each
at the widths that it had, and the time is drawn over the epochs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from hw.contract import MAX_BITS
from hw.cost.count import counted_cost, layer_mixture
from hw.cost.fabric import STREAMS, FabricMachine, total
from hw.cost.step_cost import STEPS, NetworkStep, by_cause
from hw.cost.training_schedule import TrainingSchedule
from hw.design import INPUT_STREAMS, STREAM_BITS
from hw.networks import Bits, ConvShape

WorkShares = Mapping[tuple[ConvShape, Bits], float]
CAUSES = ("array", "output stream", "input streams", "fixed", "memory", "host")


class RooflineError(ValueError):
    """A layer that has no place in the picture; the message names it and the remedy."""


@dataclass(frozen=True)
class Roofs:
    """What a machine can do at most.

    Attributes:
        array: binary MAC/s, the whole array busy in every cycle.
        memory: bytes/s of DDR.
        inputs, outputs: bytes/s of the streams, one word each in every cycle.
    """

    array: float
    memory: float
    inputs: float
    outputs: float

    @property
    def streams(self) -> float:
        """Bytes/s of all streams, if none waits for another."""
        return self.inputs + self.outputs


@dataclass(frozen=True)
class RooflinePoint:
    """One product of one layer, for one sample.

    Both gradients of a layer run as one program, whose time beyond the array's is divided between the two.  A stream of
    the one may be busy while the array computes the other, so that ``bound_seconds`` of the one may exceed ``seconds``.

    Attributes:
        label: widths of the layer, or what stands for a mixture.
        layer, product: which.
        binary_macs: MAC times the bits of both operands.
        read_bytes, write_bytes: DDR traffic.
        seconds: predicted.
        alone: seconds that each resource takes by itself: array, memory, input streams, output stream.
        macs: MAC, for the mean number of bit pairs.
    """

    label: str
    layer: str
    product: str
    binary_macs: float
    read_bytes: float
    write_bytes: float
    seconds: float
    alone: Mapping[str, float]
    macs: float

    @property
    def bound(self) -> str:
        """The resource that takes longest by itself."""
        return max(self.alone, key=lambda name: self.alone[name])

    @property
    def bound_seconds(self) -> float:
        """How long that one takes."""
        return self.alone[self.bound]

    @property
    def pairs(self) -> float:
        """Bits of one operand times those of the other, on the mean: binary MAC per MAC."""
        return self.binary_macs / self.macs

    @property
    def intensity(self) -> float:
        """Binary MAC per byte of DDR traffic."""
        return self.binary_macs / (self.read_bytes + self.write_bytes)

    @property
    def rate(self) -> float:
        """Binary MAC/s."""
        return self.binary_macs / self.seconds


@dataclass(frozen=True)
class Share:
    """Time of one layer, all products, for one sample.

    Attributes:
        label: widths of the layer, or what stands for a mixture.
        layer: its name.
        shape: the layer without its name, the same for layers that take the same time.
        seconds: by cause, in the order of ``CAUSES``; ``host`` are products in float32.
    """

    label: str
    layer: str
    shape: ConvShape
    seconds: dict[str, float]


def roofs(machine: FabricMachine) -> Roofs:
    """Peak rates of a machine, all fabrics together."""
    words = machine.clock_hz * machine.fabrics * STREAM_BITS / 8
    array = machine.design.binary_macs * machine.clock_hz * machine.fabrics
    return Roofs(array, machine.memory, INPUT_STREAMS * words, machine.design.output_streams * words)


def points(machine: FabricMachine, shapes: Iterable[ConvShape], bits: Bits) -> list[RooflinePoint]:
    """Every layer and product at one set of widths; a first layer has no input gradient.

    Raises:
        RooflineError: widths that the fabric does not have.
        LoweringError: a layer that the buffers cannot hold.
    """
    peak = roofs(machine)
    out = []
    for shape in shapes:
        operands = shape.operands(bits)
        for product, cost in machine.products(shape, bits).items():
            if not cost.macs:
                continue
            if not cost.cycles:
                raise RooflineError(
                    f"layer {shape.name}, {product} at {bits}: beyond the fabric's widths, so the host computes it; "
                    "give at most 16 bits"
                )
            a, b = operands[product]
            work = cost.macs * a * b
            alone = {
                "array": work / peak.array,
                "memory": cost.ddr_bytes / peak.memory,
                "input streams": cost.read_bytes / peak.inputs,
                "output stream": cost.write_bytes / peak.outputs,
            }
            out.append(
                RooflinePoint(
                    str(bits), shape.name, product, work, cost.read_bytes, cost.write_bytes, cost.seconds, alone,
                    cost.macs,
                )
            )  # fmt: skip
    return out


def shares(machine: FabricMachine, shapes: Iterable[ConvShape], bits: Bits, codes: bool = True) -> list[Share]:
    """Where the time of every layer goes; causes sum to the layer's time.

    Args:
        machine: what computes.
        shapes: the network.
        bits: widths of all layers; products beyond the fabric's widths are the host's.
        codes: results leave as packed codes, else as integer sums.

    Raises:
        LoweringError: a layer that the buffers cannot hold.
    """
    out = []
    for shape in shapes:
        products = machine.products(shape, bits, codes).values()
        whole = total(cost for cost in products if cost.cycles)
        no_output = total(machine.products(shape, bits, codes, free=("output",)).values()).cycles
        neither = total(machine.products(shape, bits, codes, free=STREAMS).values()).cycles
        host = total(cost for cost in products if not cost.cycles).seconds
        seconds = by_cause(machine, whole, no_output, neither, host)
        out.append(Share(str(bits), shape.name, replace(shape, name="layer"), seconds))
    return out


# -- schedules ------------------------------------------------------------------------------------------------------


def _on_fabric(shape: ConvShape, bits: Bits) -> bool:
    return all(max(pair) <= MAX_BITS for pair in shape.operands(bits).values())


_ADDED = ("binary_macs", "read_bytes", "write_bytes", "seconds", "macs")


def mean_points(machine: FabricMachine, work: WorkShares, label: str) -> list[RooflinePoint]:
    """Every layer and product at the mean of its widths; what the host computes in float32 has no place.

    Args:
        machine: what computes.
        work: layer and widths -> how often, per sample.
        label: of the points.

    Raises:
        LoweringError: a layer that the buffers cannot hold.
    """
    sums: dict[tuple[str, str], RooflinePoint] = {}
    for (shape, bits), weight in work.items():
        for p in points(machine, [shape], bits) if _on_fabric(shape, bits) else ():
            old = sums.get((p.layer, p.product))
            alone = {name: weight * value + (old.alone[name] if old else 0.0) for name, value in p.alone.items()}
            counts = {name: weight * getattr(p, name) + (getattr(old, name) if old else 0.0) for name in _ADDED}
            sums[p.layer, p.product] = replace(p, label=label, alone=alone, **counts)
    return list(sums.values())


def mean_shares(machine: FabricMachine, work: WorkShares, label: str) -> list[Share]:
    """Where the time of every layer goes at the mean of its widths; arguments and errors as for ``mean_points``."""
    sums: dict[str, Share] = {}
    for (shape, bits), weight in work.items():
        (one,) = shares(machine, [shape], bits)
        old = sums.get(shape.name)
        seconds = {cause: weight * value + (old.seconds[cause] if old else 0.0) for cause, value in one.seconds.items()}
        sums[shape.name] = Share(label, shape.name, one.shape, seconds)
    return list(sums.values())


@dataclass(frozen=True)
class Span:
    """Time of a stage of a schedule, for one sample, each as seconds by cause.

    Attributes:
        epochs: length of the stage.
        cp: CC as a share of float32, percent.
        products: the three products of all layers, results as codes.
        plain, fabric: a whole training step by who normalises, see ``hw.cost.step_cost``; everything that the host does
            is its cause ``host``, an estimate.
    """

    epochs: float
    cp: float
    products: Mapping[str, float]
    plain: Mapping[str, float]
    fabric: Mapping[str, float]


def spans(
    machine: FabricMachine, shapes: Sequence[ConvShape], schedule: TrainingSchedule, count: str = "full"
) -> list[Span]:
    """Where the time goes, stage by stage.

    Args:
        machine: what computes.
        shapes: the network.
        schedule: its precisions.
        count: which widths layers have, see ``hw.cost.count``.

    Raises:
        ValueError: unknown count.
        LoweringError: a layer that the buffers cannot hold.
    """
    kinds = ("products", *STEPS)
    network = NetworkStep(machine, shapes)
    known: dict[tuple[ConvShape, Bits], dict[str, dict[str, float]]] = {}

    def costs(shape: ConvShape, bits: Bits) -> dict[str, dict[str, float]]:
        key = shape, bits
        if key not in known:
            known[key] = {"products": shares(machine, [shape], bits)[0].seconds}
            known[key] |= {kind: network.causes(shape, bits, kind) for kind in STEPS}
        return known[key]

    out = []
    whole = 3 * sum(shape.macs for shape in shapes)
    for stage in schedule.stages:
        sums = {kind: dict.fromkeys(CAUSES, 0.0) for kind in kinds}
        cc = 0.0
        for shape, mixture in zip(shapes, layer_mixture(shapes, schedule, stage, count), strict=True):
            for share, bits in mixture:
                cc += share * sum(counted_cost(schedule, shape, bits, count).values())
                for kind, parts in costs(shape, bits).items():
                    for cause, seconds in parts.items():
                        sums[kind][cause] += share * seconds
        out.append(Span(stage.epochs, 100 * cc / whole, *(sums[kind] for kind in kinds)))
    return out
