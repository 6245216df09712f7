"""The operations of :mod:`host.board.job_step`: a job's backbone in passes of the fabric, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Mapping, Sequence

import numpy as np

from host.arrays import Array
from host.board.gate_decisions import Gates
from host.board.job_step import JobStep
from host.board.operations import JobError
from host.step.backward import Backward, range_names, step_key
from host.step.coded import Ranges
from host.step.compiled import MemoryPasses
from host.step.forward import Forward, Groups, Parameters
from host.step.memory_need import PlannedTraining, precision_key
from host.step.node_precision import chosen_groups, kept_widths, node_bits
from host.step.passes import PassEngine
from hw.networks import Bits

_FIELDS = 5  #: operands of a node: weight, gamma, beta, running mean and variance


class BackbonePasses:
    """A backbone during one step.

    Args:
        step: of the job.
        engine: runs the passes.
        widths: of a layer at this time, by its number.
        seed: of the job.
        momentum: of the ranges.
        gates: of the job.

    Attributes:
        needs: beats of memory that the steps of every precision take, from :func:`host.step.memory_need.check_memory`.
        tops: greatest magnitudes of tensors by ``names``, float64, 0: unknown.  They are state.
    """

    def __init__(
        self, step: JobStep, engine: PassEngine, widths: Callable[[int], tuple[int, ...]], seed: int, momentum: float,
        gates: Gates | None,
    ) -> None:  # fmt: skip
        self.step, self.engine, self._widths = step, engine, widths
        self._seed, self._momentum = seed, momentum
        self._options = [] if gates is None else [node_bits((gates.weight_bits, *option)) for option in gates.options]
        self.names = range_names(step.graph)
        self.tops = np.zeros(len(self.names))
        self.needs: Mapping[Hashable, int] = {}
        self.begin(0, False)

    def begin(self, number: int, training: bool) -> None:
        """Start a step: its number (part of the keys), and whether it goes back."""
        if isinstance(self.engine, MemoryPasses) and (kind := precision_key(self.bits())) in self.needs:
            self.engine.make_room(kind, self.needs[kind], grows=bool(self.step.gated))
        self._number, self._training = number, training
        self._forward: Forward | None = None
        self._passes: Generator[tuple[int, Array], Groups, None] | None = None
        self._block = 0
        self._own: list[tuple[Array, ...]] = []

    def bits(self) -> dict[str, Bits]:
        """Of every node, at the widths of this time."""
        pairs = zip(self.step.graph, self.step.layers, strict=True)
        return {node.name: node_bits(self._widths(layer), node.shape.groups) for node, layer in pairs}

    def planned(self, precisions: Sequence[Mapping[str, Bits]], batches: Sequence[int], tests: Sequence[int]) -> PlannedTraining:
        """Steps at all these bits (see :meth:`bits`), with so many images."""
        step = self.step
        return PlannedTraining(step.graph, precisions, step.widths, batches, tests, step.gated, self._options)

    def passes(self, x: Array, *own: Array) -> Array:
        """Runs forward as far as the first gate, or to the features: float32 (N, C)."""
        graph, bits = self.step.graph, self.bits()
        self._own = [own[i : i + _FIELDS] for i in range(0, len(own), _FIELDS)]
        rows = zip(graph, self._own, self.step.constants, strict=True)
        parameters = {node.name: Parameters(w, g, b, mean, var, eps) for node, (w, g, b, mean, var), (eps, _) in rows}
        dense = [bits[node.name] for node in graph if node.shape.groups == 1]
        known = {name: top for name, top in zip(self.names, self.tops.tolist(), strict=True) if top}
        gated = self.step.gated
        self._forward = Forward(
            graph, parameters, self.engine, Ranges(self._momentum, known), bits,
            kept_widths(self.step.widths, self._options or dense), training=self._training,
            chosen=(lambda node: node.name in gated) if gated else None,
        )  # fmt: skip
        self._passes = self._forward.passes(x)
        return self._next(lambda passes: next(passes))

    def passes_chosen(self, choice: Array, *, block: int) -> Array:
        """Goes on with the choice (N, P) of a block's samples, to the next gate or to the features."""
        if self._passes is None or block != self._block:
            raise JobError(f"a choice for block {block}, which is not the one to be chosen for now")
        groups = chosen_groups(choice.argmax(1), self._options)
        self._block += 1
        return self._next(lambda passes: passes.send(groups))

    def _next(self, go_on: Callable[[Generator[tuple[int, Array], Groups, None]], tuple[int, Array]]) -> Array:
        forward = self._run
        assert self._passes is not None
        try:
            return go_on(self._passes)[1]
        except StopIteration:
            self._passes = None
            self._note_ranges(forward)
            assert forward.tape.features is not None
            return forward.tape.features

    @property
    def _run(self) -> Forward:
        if self._forward is None:
            raise JobError("the backbone has not run in this step")
        return self._forward

    def _note_ranges(self, forward: Forward) -> None:
        """Takes the ranges that a pass has seen into the state."""
        if self._training:
            self.tops = np.array([forward.ranges.tops.get(name, 0.0) for name in self.names])

    def passes_statistics(self, features: Array) -> tuple[Array, ...]:
        """Running mean and variance of every node, which have taken in those of the batch."""
        statistics = self._run.tape.statistics
        mixed: list[Array] = []
        for node, own, (_, momentum) in zip(self.step.graph, self._own, self.step.constants, strict=True):
            mixed += statistics[node.name].mixed(own[3], own[4], momentum)
        return tuple(mixed)

    def passes_gradient(self, grad: Array) -> tuple[Array, ...]:
        """Gradients by the choices of every block, and by every node's weight, gamma and beta; all float32."""
        forward = self._run
        backward = Backward(forward, step_key(self._seed, self._number), [bits.a for bits in self._options])
        found = backward.run(grad)
        self._note_ranges(forward)
        choices = [backward.option_gradients[f"blocks.{block}"] for block in range(self.step.blocks)]
        nodes = [array for node in self.step.graph for array in found[node.name]]
        return *(mask.astype(np.float32) for mask in choices), *nodes
