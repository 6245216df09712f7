"""The forward half of a training step: two passes for every node, moments and codes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from host.arrays import F32, F64, Codes
from host.epilogue import Bools, Epilogue
from host.step.channel_parameters import (
    ChannelMoments,
    Inner,
    Numbers,
    bounded,
    check_bound,
    code_shift,
    code_top,
    entries,
    farthest,
    grid_scale,
    measured,
    value,
    value_unit,
)
from host.step.coded import (
    ALL,
    Coded,
    CodedPart,
    CodedWeights,
    Gathered,
    Ranges,
    SampleSet,
    count,
    image_codes,
    image_top,
    refined,
)
from host.step.passes import CodeTensor, PassEngine, PassEpilogue, PassError, ProductPass, identity
from host.step.recorded import require, value_of
from hw.contract import VALUE_BITS
from hw.networks import Bits, ConvGeometry
from hw.nodes import KeptWidths, StepNode

#: bits of the last node's codes, which the host pools
FEATURE_BITS = 8

#: least range of a node's results, and least share of the range before ReLU: a finer grid would show rounding only
SMALLEST_TOP, FINEST = 2.0**-64, 2.0**-10

#: samples with bits of their own, which together are the batch
Groups = Sequence[tuple[SampleSet, Bits]]


@dataclass(frozen=True)
class Parameters:
    """Parameters of a node: convolution and batch normalisation.

    Attributes:
        weight: float32 (O, I/groups, kh, kw).
        gamma, beta: float32 (O,).
        mean, variance: running statistics, float32 (O,).
        eps: added to the variance.
    """

    weight: F32
    gamma: F32
    beta: F32
    mean: F32
    variance: F32
    eps: float


@dataclass(frozen=True)
class Statistics:
    """Batch statistics of a node, float64 (O,): mean, biased variance, and the number of values in them."""

    mean: F64
    variance: F64
    values: int

    @property
    def unbiased(self) -> F64:
        """Variance as running statistics take it."""
        return self.variance * (self.values / max(self.values - 1, 1))

    def mixed(self, mean: F32, variance: F32, momentum: float) -> tuple[F32, F32]:
        """Running mean and variance, float32 (O,), that have taken in these ones.

        Args:
            mean, variance: the running ones before.
            momentum: share of the new ones.
        """
        before, new = (mean, variance), (self.mean, self.unbiased)
        mixed = [(1 - momentum) * b.astype(np.float64) + momentum * n for b, n in zip(before, new, strict=True)]
        return mixed[0].astype(np.float32), mixed[1].astype(np.float32)


@dataclass(frozen=True)
class Kept:
    """What the backward pass needs of a node.

    Attributes:
        x: the codes it convolved.
        groups: bits of its samples.
        xhat, unit: codes K and their unit per channel.
        peak: greatest magnitude of the normalised values, per channel.
        mask: where its result was positive; None without ReLU.
        values: of the batch, in each channel.
        inverse: 1 / deviation.
    """

    x: Coded
    groups: Groups
    xhat: CodeTensor
    unit: Numbers
    peak: Numbers
    mask: Bools | None
    values: int
    inverse: Numbers


@dataclass
class Tape:
    """A forward pass.

    Attributes:
        batch: images.
        seed: of the random numbers of the backward pass.
        widths: of what is kept.
        kept: by node, in training; of a step that is computed again (:mod:`host.replay.step_schedule`) none of this and of the
            codes is there.
        statistics: of the batch, by node, in training.
        wide: codes S by node, where a shortcut or the pooling takes them.
        codes: codes A by node.
        tops: what the greatest code A stands for, by node.
        features: pooled, float32 (N, channels).
        saturated: elements that saturated so far.
    """

    batch: int
    widths: KeptWidths
    kept: dict[str, Kept] = field(default_factory=dict)
    statistics: dict[str, Statistics] = field(default_factory=dict)
    wide: dict[str, Coded] = field(default_factory=dict)
    codes: dict[str, Coded] = field(default_factory=dict)
    tops: dict[str, Numbers] = field(default_factory=dict)
    features: F32 | None = None
    saturated: int = 0


def geometry_of(node: StepNode, batch: int) -> ConvGeometry:
    """Of a node's convolution over a batch."""
    s = node.shape
    kernel = s.kernel, s.kernel
    return ConvGeometry(batch, s.in_channels, s.out_channels, s.in_hw, kernel, s.stride, s.padding)


def _mean_scale(wide: Coded) -> Numbers:
    """Times which a sum of codes over the pixels is their real mean."""
    return wide.whole.scale / int(np.prod(wide.values.shape[2:]))


#: called before each block with its number and its pooled input, float32 (N, C); returns the bits of the block's samples
Choose = Callable[[int, F32], Groups]


class Forward:
    """The forward pass of a network's nodes over one batch.

    Args:
        graph: of :func:`hw.nodes.nodes`.
        parameters: by node.
        engine: runs the passes.
        ranges: in training updated.
        bits: of every node; a block whose bits ``choose`` decides has its own.
        widths: of what is kept.
        training: batch statistics, and everything for a backward pass; else running statistics and ranges.
        chosen: whether the bits of a node in a block are chosen sample by sample; None: of no node.
    """

    def __init__(
        self, graph: Sequence[StepNode], parameters: Mapping[str, Parameters], engine: PassEngine, ranges: Ranges,
        bits: Mapping[str, Bits], widths: KeptWidths, *, training: bool = True,
        chosen: Callable[[StepNode], bool] | None = None,
    ) -> None:  # fmt: skip
        self.graph, self.parameters, self.engine, self.ranges = graph, parameters, engine, ranges
        self.bits, self.widths, self.training = bits, widths, training
        self._chosen = chosen
        self.takers: dict[str, list[StepNode]] = {node.name: [] for node in graph}
        for node in graph:
            if node.source:
                self.takers[node.source].append(node)
        self.numbers = {node.name: number for number, node in enumerate(graph)}
        self.carried = {node.residual for node in graph if node.residual}
        self.groups: dict[str, Groups] = {}
        self.tops = ranges  #: while the step is recorded, its numbers
        self.recorder: Any = None  #: host.replay.recorder.StepRecorder, while the step is recorded
        self.schedule: Any = None  #: host.replay.step_schedule.Schedule, if the step runs again
        self._weights: dict[tuple[str, bool], CodedWeights] = {}

    def run(self, images: F32, choose: Choose | None = None) -> Tape:
        """Forward over images, float32 (N, C, H, W).

        Args:
            choose: where nodes are chosen: the bits of every block.

        Raises:
            PassError: values that are not finite, sums that are too large, ranges that are unknown.
        """
        passes = self.passes(images)
        try:
            asked = next(passes)
            while True:
                assert choose is not None
                asked = passes.send(choose(*asked))
        except StopIteration:
            return self.tape

    def passes(self, images: F32) -> Generator[tuple[int, F32], Groups, None]:
        """The same, as far as the next block whose bits are to be chosen: gives its number and its pooled input, float32
        (N, C), and takes the bits of its samples.
        """
        self.tape = Tape(len(images), self.widths)
        self.groups = {name: [(ALL, bits)] for name, bits in self.bits.items()}
        self._weights.clear()
        schedules = self.engine.schedules if self.training and self._chosen is None else None
        if schedules is not None:
            self.schedule, self.recorder = schedules.begin(self, images.shape)
        if self.schedule is not None:
            self.schedule.forward(self, images)
            return
        if self.recorder is not None:
            known = {name: self.number(("range", name), top) for name, top in self.ranges.tops.items()}
            self.tops = Ranges(self.ranges.share, known)
        self.tape.codes[""] = self._images(images)
        blocks: set[str] = set()
        for node in self.graph:
            block = node.name.rsplit(".", 1)[0].removesuffix(".shortcut")
            if self._chosen is not None and node.name.startswith("blocks.") and block not in blocks:
                blocks.add(block)
                groups = yield int(block.split(".")[1]), self._pooled(self.tape.wide[node.source])
                self._choose(block, node.source, groups)
            self._node(node)
        last = self.tape.wide[self.graph[-1].name]
        self.tape.features = self._pooled(last)
        if self.recorder is not None:
            self.recorder.pooled(last.values, _mean_scale(last), self.tops.tops)
        self.settle_ranges()

    # -- numbers ------------------------------------------------------------------------------------------------------

    def number(self, name: tuple[Any, ...], value: Any) -> Any:
        """A number that changes from step to step, recorded by its name if the step is recorded."""
        return value if self.recorder is None else self.recorder.tape.input(name, value)

    def settle_ranges(self) -> None:
        """Leaves the ranges that have been seen to the caller, as plain numbers."""
        self.ranges.tops.update([(name, float(value_of(top))) for name, top in self.tops.tops.items()])

    def affine(self, node: StepNode) -> tuple[Numbers, Numbers]:
        """gamma and beta of a node."""
        own, name = self.parameters[node.name], node.name
        return tuple(self.number((what, name), getattr(own, what).astype(np.float64)) for what in ("gamma", "beta"))

    def coded_weights(self, node: StepNode, back: bool = False) -> CodedWeights:
        """Weights of a node, rounded; see :meth:`host.step.coded.CodedWeights.of`."""
        key = node.name, back
        if key not in self._weights:
            (bits,) = {bits.w for _, bits in self.groups[node.name]}
            weight = self.parameters[node.name].weight
            made = CodedWeights.of(weight, bits, back=back, groups=node.shape.groups, node=node.name)
            if self.recorder is not None:
                made = self.recorder.weights(made, node, back)
            self._weights[key] = made
        return self._weights[key]

    # -- between nodes ----------------------------------------------------------------------------------------------

    def _images(self, images: F32) -> Coded:
        """Codes of the input, rounded to nearest even."""
        top = self.number(("images",), image_top(images))
        if self.training:
            self.tops.note("", top)
        else:
            top = self.tops.known("")
        ((_, bits),) = self.groups[self.graph[0].name]
        values = image_codes(images, value_of(top), bits.a)
        if self.recorder is not None:
            self.recorder.host("images", values)
        return Coded(values, (CodedPart(ALL, bits.a, True, grid_scale(top, bits.a, True)),))

    @staticmethod
    def _pooled(wide: Coded) -> F32:
        """Means over the pixels, float32 (N, C)."""
        sums = wide.values.sum((2, 3), dtype=np.int64)
        return np.asarray(sums * value_of(_mean_scale(wide)), np.float32)

    def _choose(self, block: str, source: str, groups: Groups) -> None:
        """Takes the bits of a block's samples, and rounds its input to them."""
        for node in self.graph:
            if node.name.startswith(block + ".") and self.chosen(node):
                self.groups[node.name] = groups
        first = next(node for node in self.takers[source] if not node.on_shortcut)
        self.tape.codes[source] = self._recoded(source, self.groups[first.name])

    def _recoded(self, source: str, groups: Groups) -> Coded:
        """Wide codes of a node rounded to activations of a block: an identity, with an epilogue behind it."""
        wide = self.tape.wide[source]
        whole = wide.whole
        n, c, h, w = wide.values.shape
        top = self.tape.tops[source] = whole.scale * code_top(whole.bits, whole.signed)
        gathered, parts = Gathered(n), []
        for samples, bits in groups:
            out = bits.a
            unit = value_unit(top, out, whole.signed)
            x = bounded(np.full(c, float(whole.scale)), np.full(c, float(1 << whole.bits)))
            form = Epilogue(
                shift=x.shift, out_bits=out, out_shift=code_shift(out, whole.signed), out_signed=whole.signed
            )
            w_ = value(x.unit, unit)
            geometry = ConvGeometry(count(samples, n), c, c, (h, w))
            codes = wide.codes(whole, samples)
            behind = PassEpilogue(entries(x, w_), replace(form, value_shift=w_.shift))
            done = self.engine.run(
                ProductPass(source, "recode", "forward", geometry, c, codes, identity(c), None, behind)
            )
            gathered.put(samples, done.a)
            parts.append(CodedPart(samples, out, whole.signed, grid_scale(top, out, whole.signed)))
        return Coded(gathered.values, tuple(parts))

    # -- a node -----------------------------------------------------------------------------------------------------

    def _node(self, node: StepNode) -> None:
        own, weights = self.parameters[node.name], self.coded_weights(node)
        x = self.tape.codes[node.source]
        if self.training:
            self._train(node, x, weights, own)
        else:
            self._evaluate(node, x, weights, own)

    def _pass(
        self, node: StepNode, purpose: str, x: CodeTensor, weights: CodedWeights, behind: PassEpilogue
    ) -> ProductPass:
        geometry = geometry_of(node, len(x.values))
        return ProductPass(node.name, purpose, "forward", geometry, node.shape.groups, x, weights.codes, None, behind)

    def _inner(self, node: StepNode, part: CodedPart, weights: CodedWeights) -> Inner:
        """The sums, as far as they fit into x."""
        bound = weights.bound(part)
        check_bound(node.name, bound)
        return bounded(part.scale * weights.scale, bound)

    def _moments(self, node: StepNode, x: Coded, weights: CodedWeights) -> ChannelMoments:
        parts = []
        for part in x.parts:
            inner = self._inner(node, part, weights)
            behind = PassEpilogue(entries(inner), Epilogue(shift=inner.shift), moments=True)
            done = self.engine.run(self._pass(node, "statistics", x.codes(part), weights, behind))
            assert done.moments is not None
            self.tape.saturated += done.saturated
            parts.append((done.moments, inner.unit, inner.unit * inner.unit))
        return ChannelMoments.of(parts)

    def _train(self, node: StepNode, x: Coded, weights: CodedWeights, own: Parameters) -> None:
        moments = self._moments(node, x, weights)
        values = self.tape.batch * node.shape.out_hw[0] * node.shape.out_hw[1]
        mean = moments.total / values
        variance = np.maximum(moments.products / values - mean * mean, 0.0)
        self.tape.statistics[node.name] = Statistics(value_of(mean), value_of(variance), values)
        if self.recorder is not None:
            self.recorder.statistics(node.name, mean, variance, values)
        inverse = 1.0 / np.sqrt(variance + own.eps)
        low, high = (moments.least - mean) * inverse, (moments.greatest - mean) * inverse
        peak = np.maximum(np.abs(low), np.abs(high))
        gamma, beta = self.affine(node)
        one, other = gamma * low + beta, gamma * high + beta
        top = self._top(node, np.minimum(one, other).min(), np.maximum(one, other).max())
        keep_shift, keep_top = VALUE_BITS - self.widths.kept, code_top(self.widths.kept, True)
        free = len(x.parts) == 1

        def inner(part: CodedPart) -> Inner:
            sums = part.scale * weights.scale * inverse
            return measured(sums, peak, keep_shift, keep_top, -mean * inverse, free=free)

        form = Epilogue(keep_bits=self.widths.kept, keep_shift=keep_shift, keep_mask=node.relu)
        codes, mask, unit = self._codes(node, x, weights, inner, (gamma, beta), top, form)
        xhat = CodeTensor(codes, self.widths.kept, True)
        unit = unit * float(1 << keep_shift)
        self.tape.kept[node.name] = Kept(x, self.groups[node.name], xhat, unit, peak, mask, values, inverse)

    def _evaluate(self, node: StepNode, x: Coded, weights: CodedWeights, own: Parameters) -> None:
        inverse = 1.0 / np.sqrt(own.variance.astype(np.float64) + own.eps)
        gamma = own.gamma.astype(np.float64) * inverse
        beta = own.beta.astype(np.float64) - own.mean.astype(np.float64) * gamma
        top = self.tops.known(node.name)
        self._codes(node, x, weights, lambda part: self._inner(node, part, weights), (gamma, beta), top, Epilogue())

    def _top(self, node: StepNode, least: Numbers, greatest: Numbers) -> Numbers:
        """Greatest magnitude of a node's result: exact, or behind a sum what earlier steps saw, if that is less."""
        if node.residual:
            side = self.tape.wide[node.residual].whole
            most = side.scale * code_top(side.bits, side.signed)
            least, greatest = least - most * side.signed, greatest + most
        largest = np.maximum(greatest, -least)
        top = greatest if node.relu else largest

        def error(most: float) -> PassError:
            return PassError(f"{node.name}: results up to {most}; training has diverged: lower the learning rate")

        require(np.isfinite(top), error, top)
        least_top = np.maximum(largest, SMALLEST_TOP) * FINEST
        if not node.residual:
            self.tops.note(node.name, np.maximum(top, least_top))
        elif node.name in self.tops.tops:
            top = np.minimum(top, self.tops.known(node.name))
        return np.maximum(top, least_top)

    def _sections(self, node: StepNode) -> tuple[Groups, int]:
        """Bits of the codes A by samples, and bits of S beside them, 0 if A serves as S."""
        everyone = [(ALL, Bits(0, bits, 0)) for bits in (FEATURE_BITS, self.widths.shortcut)]
        if node is self.graph[-1]:
            return everyone[:1], 0
        if node.on_shortcut:
            return everyone[1:], 0
        straight = [taker for taker in self.takers[node.name] if not taker.on_shortcut]
        groups = self.groups[straight[0].name]
        if self._chosen is not None and straight[0].name.startswith("blocks.") and self._begins(straight[0], node):
            return everyone[1:], 0  # the block's bits are chosen by what comes now
        wanted = node.name in self.carried or self.chosen(straight[0])
        same = len(groups) == 1 and groups[0][1].a == self.widths.shortcut
        return groups, self.widths.shortcut if wanted and not same else 0

    def chosen(self, node: StepNode) -> bool:
        """Whether the bits of a node's samples are chosen one by one."""
        return self._chosen is not None and node.name.startswith("blocks.") and self._chosen(node)

    @staticmethod
    def _begins(taker: StepNode, node: StepNode) -> bool:
        """Whether a block begins between two nodes."""
        return taker.name.split(".")[:2] != node.name.split(".")[:2]

    def _codes(  
        self, node: StepNode, x: Coded, weights: CodedWeights, inner: Callable[[CodedPart], Inner],
        affine: tuple[Numbers, Numbers], top: Numbers, form: Epilogue,
    ) -> tuple[Codes, Bools | None, Numbers]:  # fmt: skip
        """The second pass; returns codes K, mask and the unit of x."""
        tape = self.tape
        groups, wide_bits = self._sections(node)
        side = tape.wide[node.residual] if node.residual else None
        a, k, s, mask = (Gathered(tape.batch) for _ in range(4))
        signed, unit = not node.relu, None
        seen: Numbers = 0.0
        for part, number, samples in refined(x.parts, [samples for samples, _ in groups]):
            bits = groups[number][1].a
            step = value_unit(top, bits, signed)
            found = inner(part)
            unit = found.unit
            w = value(affine[0] * unit, step, offset=affine[1], side=None if side is None else side.whole.scale)
            settings = replace(
                form, shift=found.shift, value_shift=w.shift, relu=node.relu, out_bits=bits, out_signed=signed,
                out_shift=code_shift(bits, signed), wide_bits=wide_bits, wide_shift=code_shift(wide_bits, signed) if wide_bits else 0,
            )  # fmt: skip
            behind = PassEpilogue(
                entries(found, w), settings, side=None if side is None else side.codes(side.whole, samples),
                records=bool(node.residual) and self.training,
            )  # fmt: skip
            done = self.engine.run(self._pass(node, "codes", x.codes(part, samples), weights, behind))
            tape.saturated += done.saturated
            for gathered, codes in ((a, done.a), (k, done.k), (s, done.s), (mask, done.mask)):
                gathered.put(samples, codes)
            if done.moments is not None:
                seen = np.maximum(seen, step * farthest(done.moments))
        if node.residual and self.training:
            self.tops.note(node.name, seen)
        made = tuple(CodedPart(sm, b.a, signed, grid_scale(top, b.a, signed)) for sm, b in groups)
        tape.codes[node.name] = tape.wide[node.name] = Coded(a.values, made)
        tape.tops[node.name] = top
        if wide_bits:
            steps = float(1 << code_shift(wide_bits, signed))
            scales = [value_unit(top, b.a, signed) * steps for _, b in groups]
            made = tuple(CodedPart(sm, wide_bits, signed, scale) for (sm, _), scale in zip(groups, scales, strict=True))
            tape.wide[node.name] = Coded(s.values, made)
        if not form.keep_bits:
            return a.values, None, unit
        return k.values, mask.values if form.keep_mask else None, unit
