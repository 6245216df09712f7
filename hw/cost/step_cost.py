"""Whole training steps of our designs, by who normalises: the host, or the fabric.

- ``plain``: the three products of a layer leave as integer sums.  The host reads them for the statistics, then to normalise
  and write codes; backward it reads gradient and sums for the two channel sums, then once more to write the gradient's
  codes.  Quantization steps use the ranges of earlier steps, so there is no pass for ranges; residual sums are not costed.
- ``fabric``: the passes of :mod:`hw.plan.training_step`, in which all of that happens behind the array.  The host turns
  moments into parameters, a few numbers per channel.  Layers that no pass is known for are as in ``plain``: the
  classifier, those beyond the fabric's widths, networks other than ResNets and MobileNetV2 for small images, and all
  layers on a design that does not round at random.

Host times are estimates, see :class:`hw.cost.fabric.Host`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from hw.contract import MAX_BITS
from hw.cost.fabric import STREAMS, FabricCost, FabricMachine, total
from hw.cost.paper import CycleFunction, Fabric
from hw.networks import Bits, ConvShape
from hw.nodes import KeptWidths, StepNode, nodes_of
from hw.plan.product import LoweringError
from hw.plan.training_step import StepPass, StepPasses

STEPS = ("plain", "fabric")  #: who normalises


@dataclass(frozen=True)
class StepCost:
    """A training step, for one sample.

    Attributes:
        fabric: products or passes.
        host: what -> seconds (estimates): statistics, normalisation with quantization, both backward, parameters of channels,
            weight update.
        energy_j: estimate; the host counts with the static power that it is part of.
    """

    fabric: FabricCost
    host: Mapping[str, float] = field(default_factory=dict)
    energy_j: float = 0.0

    @property
    def seconds(self) -> float:
        """Fabric and host one after the other."""
        return self.fabric.seconds + sum(self.host.values())


    def __add__(self, other: StepCost) -> StepCost:
        host = {name: self.host.get(name, 0.0) + other.host.get(name, 0.0) for name in {**self.host, **other.host}}
        return StepCost(self.fabric + other.fabric, host, self.energy_j + other.energy_j)


class NetworkStep:
    """Training steps of a network on a machine, layer by layer.

    Args:
        machine: design, memory, host.
        shapes: all layers of the network; a layer's passes depend on those around it.
    """

    def __init__(self, machine: FabricMachine, shapes: Sequence[ConvShape]) -> None:
        self.machine = machine
        self._graph: list[StepNode] = []
        if machine.design.rounding:
            with suppress(ValueError):  # another network, whose host normalises
                self._graph = nodes_of(shapes)
        self._names = {node.name for node in self._graph}
        self._passes: dict[Bits, dict[str, list[StepPass]]] = {}

    def layer(self, shape: ConvShape, bits: Bits, kind: str, free: tuple[str, ...] = ()) -> StepCost:
        """Cost of a layer for one sample.

        Args:
            shape: one of the network's.
            bits: its widths; with ``fabric`` those of its neighbours, too, and both gradients have the narrower one's.
            kind: one of ``STEPS``.
            free: streams that take no time, see :meth:`hw.cost.fabric.FabricMachine.products`.

        Raises:
            ValueError: unknown kind.
        """
        if kind not in STEPS:
            raise ValueError(f"a step of kind {kind!r} is unknown; use one of {', '.join(STEPS)}")
        if kind == "plain" or shape.name not in self._names or max(bits) > MAX_BITS:
            fabric, host = self._plain(shape, bits, free)
        else:
            fabric, host = self._on_fabric(shape, bits, free)
        if shape.kind != "attention":
            each = self.machine.host.update_bytes + 4 * (self.machine.fabrics - 1)  # every fabric brings a gradient
            host["update"] = self.machine.host.passes(shape.weights, each) / self.machine.batch
        return StepCost(fabric, host, fabric.energy_j + sum(host.values()) * self.machine.energy.static_w)

    def _plain(self, shape: ConvShape, bits: Bits, free: tuple[str, ...]) -> tuple[FabricCost, dict[str, float]]:
        fabric = total(self.machine.products(shape, bits, codes=False, free=free).values())
        passes, n = self.machine.host.passes, shape.outputs
        codes, gradient = bits.a / 8, (bits.g + bits.weight_g) / 8
        normalised = shape.kind not in ("fc", "attention")
        host = {"normalise and quantize": passes(n, 4 + codes)}
        host["statistics"] = passes(n, 4) if normalised else 0.0
        host["backward sums"] = passes(n, 8) if normalised else 0.0
        host["backward and quantize"] = passes(n, (8 if normalised else 4) + gradient)
        return fabric, host

    def _on_fabric(self, shape: ConvShape, bits: Bits, free: tuple[str, ...]) -> tuple[FabricCost, dict[str, float]]:
        fabric, host = FabricCost(), {"sums": 0.0}
        for each in self._passes_of(bits).get(shape.name, ()):
            try:
                fabric += self.machine.planned(each.products, free=free)
            except LoweringError:  # a sum takes several packets: the host adds them up, and does what is behind
                sums = tuple((count, replace(product, behind=None)) for count, product in each.products)
                fabric += self.machine.planned(sums, free=free)
                host["sums"] += self.machine.host.passes(shape.outputs, 4 + bits.a / 8)
        macs = shape.macs * (2 if shape.kind == "stem" else 3)
        per_step = self.machine.host.passes(shape.out_channels, self.machine.host.channel_bytes)
        host["channel parameters"] = per_step / self.machine.batch
        return replace(fabric, macs=macs), host

    def _passes_of(self, bits: Bits) -> dict[str, list[StepPass]]:
        """Passes by the layer whose weights they take."""
        if bits not in self._passes:
            samples = max(1, -(-self.machine.batch // self.machine.fabrics))
            widths = Bits(bits.w, bits.a, min(bits.g, bits.weight_g or bits.g))
            found: dict[str, list[StepPass]] = {}
            for each in StepPasses(self._graph, samples, widths, KeptWidths.beside(widths)).passes():
                found.setdefault(each.layer, []).append(each)
            self._passes[bits] = found
        return self._passes[bits]

    def causes(self, shape: ConvShape, bits: Bits, kind: str) -> dict[str, float]:
        """Seconds of a layer by cause, see :mod:`hw.cost.roofline`."""
        step = self.layer(shape, bits, kind)
        no_output, neither = (self.layer(shape, bits, kind, free).fabric.cycles for free in (("output",), STREAMS))
        return by_cause(self.machine, step.fabric, no_output, neither, sum(step.host.values()))


def by_cause(machine: FabricMachine, whole: FabricCost, no_output: float, neither: float, host: float) -> dict[str, float]:
    """Seconds by cause, which sum to those of a cost and the host; see :mod:`hw.cost.roofline`.

    Args:
        whole: of what runs on the fabric.
        no_output, neither: its cycles if the output, or all streams, took no time.
        host: seconds.
    """
    cycles = {
        "array": whole.array_cycles,
        "output stream": whole.cycles - no_output,
        "input streams": no_output - neither,
        "fixed": neither - whole.array_cycles,
    }
    seconds = {cause: value / machine.clock_hz for cause, value in cycles.items()}
    waited = whole.seconds - whole.cycles / machine.clock_hz
    seconds["memory"] = waited if waited > 1e-9 * whole.seconds else 0.0  # else the rounding of a sum
    return seconds | {"host": host}


def training_step(machine: FabricMachine, shapes: Sequence[ConvShape], bits: Bits, kind: str = "plain") -> StepCost:
    """A whole training step of a network for one sample, all layers at the same widths.

    Raises:
        ValueError: unknown kind.
    """
    network = NetworkStep(machine, shapes)
    return sum((network.layer(shape, bits, kind) for shape in shapes), StepCost(FabricCost()))


def paper_fabric(machine: FabricMachine) -> Fabric:
    """A machine as the report on the paper's tables needs it: products alone, and variants with more of a step."""

    def step(kind: str) -> CycleFunction:
        return lambda shapes, bits: training_step(machine, shapes, bits, kind).seconds * machine.clock_hz

    return Fabric(
        machine.design.name,
        machine.clock_hz,
        machine.cycles,
        {
            "results as 32-bit sums": lambda s, b: machine.cost(s, b, codes=False).seconds * machine.clock_hz,
            "full step, the host normalises": step("plain"),
            "full step, the fabric normalises": step("fabric"),
        },
    )
