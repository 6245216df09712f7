"""The backward half of a training step: moments and codes of every node's gradient, weight gradients beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from host.arrays import F32, F64, I32, I64, Codes
from host.epilogue import RANDOM_BITS, Entries, Epilogue
from host.numerics import code_limits, derive_key
from host.step.channel_parameters import (
    ChannelMoments,
    Numbers,
    bounded,
    check_bound,
    code_shift,
    code_top,
    entries,
    farthest,
    grid_scale,
    measured,
    or_one,
    value,
    value_unit,
)
from host.step.coded import ALL, Coded, CodedPart, CodedWeights, Gathered, SampleSet, refined
from host.step.forward import Forward, Kept, geometry_of
from host.step.passes import CodeTensor, PassEpilogue, PassResult, ProductPass, identity
from host.step.recorded import value_of
from host.step.result_order import ResultOrder, random_numbers
from hw.contract import VALUE_BITS
from hw.networks import ConvGeometry
from hw.nodes import StepNode

_POOLED, _INPUT, _LAST = 1 << 20, 1 << 21, 1 << 22  #: tell keys of roundings of one node apart

#: tells the keys of a step's random numbers from those of layers
_STEP_SALT = 1 << 33


def step_key(seed: int, step: int) -> int:
    """Key of a training step's random numbers."""
    return derive_key(seed, step, _STEP_SALT)


def range_names(graph: Sequence[StepNode]) -> list[str]:
    """Names under which :class:`host.step.coded.Ranges` may know tensors of a network: its state, in this order."""
    return ["", *(node.name for node in graph), *(f"{node.name}.gradient" for node in graph)]


class NodeGradients(NamedTuple):
    """Gradients of a node's parameters, float32: weight (O, I/groups, kh, kw), gamma and beta (O,)."""

    weight: F32
    gamma: F32
    beta: F32


class _Way(NamedTuple):
    """How a node's gradient comes: codes, the weights that they meet, and the shape of the product.

    Attributes:
        taker: the node above whose input gradient it is; None where the codes pass as they are.
    """

    codes: Coded
    weights: CodedWeights
    taker: StepNode | None


@dataclass
class Backward:
    """The backward pass behind a forward pass in training.

    Args:
        forward: what has run.
        key: of this step's random numbers.
        options: bits of activations that a chooser may choose from; none if there is none.

    Attributes:
        option_gradients: by block, gradient by the share of every option in a mixture of them: float64 (N, options).  A
            convolution is linear in its input, so it is the product of the gradient by the input and the input at the
            option's bits.
    """

    forward: Forward
    key: int
    options: Sequence[int] = ()
    option_gradients: dict[str, F64] = field(default_factory=dict)
    gradients: dict[str, NodeGradients] = field(default_factory=dict)
    _codes: dict[str, Coded] = field(default_factory=dict)
    _last_codes: dict[str, Coded] = field(default_factory=dict)
    _carried: dict[str, Coded] = field(default_factory=dict)
    _weights: dict[str, F64] = field(default_factory=dict)
    _affine: dict[str, tuple[Numbers, Numbers]] = field(default_factory=dict)

    def run(self, features: F32) -> Mapping[str, NodeGradients]:
        """Gradients of all nodes.

        Args:
            features: gradient by the pooled features, float32 (N, C).
        """
        graph, recorder = self.forward.graph, self.forward.recorder
        if self.forward.schedule is not None:
            self.gradients = self.forward.schedule.backward(self.forward, features, self.key)
            return self.gradients
        last = graph[-1]
        self._carried[last.name] = self._pooled(features, last)
        for node in reversed(graph):
            self._node(node)
        stem = graph[0]
        self._last_weights(stem)
        for node in graph:
            gamma, beta = (value_of(each).astype(np.float32) for each in self._affine[node.name])
            self.gradients[node.name] = NodeGradients(self._weights[node.name].astype(np.float32), gamma, beta)
        self.forward.settle_ranges()
        if recorder is not None:
            recorder.finish(self._affine, self.forward.tops.tops)
        return self.gradients

    # -- what comes from above ----------------------------------------------------------------------------------------

    def _key(self, node: StepNode, *more: int) -> Any:
        counters = self.forward.numbers[node.name], *more
        return self.forward.number(("key", *counters), derive_key(self.key, *counters))

    def _pooled(self, features: F32, last: StepNode) -> Coded:
        """Codes of the last node's gradient: that of a mean over its pixels, rounded at random, a scale per channel."""
        forward, bits = self.forward, self.forward.widths.gradient
        counters = forward.numbers[last.name], _POOLED
        codes, scale = pooled_codes(features, last.shape.out_hw, bits, derive_key(self.key, *counters))
        if forward.recorder is not None:
            forward.recorder.host("features", codes, counters)
        return Coded(codes, (CodedPart(ALL, bits, True, forward.number(("features",), scale)),))

    def _way(self, node: StepNode) -> _Way:
        forward = self.forward
        straight = [taker for taker in forward.takers[node.name] if not taker.on_shortcut]
        if not straight:
            source = node.name
            if node.on_shortcut:
                source = next(join.name for join in forward.graph if join.residual == node.name)
            channels = np.ones(node.shape.out_channels)
            ones = CodedWeights(identity(len(channels)), channels, 0, (channels, channels))
            return _Way(self._carried[source], ones, None)
        return _Way(self._codes[straight[0].name], self._back_weights(straight[0]), straight[0])

    def _back_weights(self, taker: StepNode) -> CodedWeights:
        return self.forward.coded_weights(taker, back=True)

    def _added(self, node: StepNode) -> Coded | None:
        """Codes of a shortcut's gradient that is added to the node's."""
        forward = self.forward
        for join in forward.graph:
            if join.residual == node.name and not node.on_shortcut:
                return self._carried[join.name]
        for taker in forward.takers[node.name]:
            if taker.on_shortcut:
                codes = self._input_codes(taker, self._with_weights(taker))
                if taker.name in self._last_codes:
                    self._last_weights(taker)
                self._note_options(taker, codes)
                return codes
        return None

    def _note_options(self, taker: StepNode, gradient: Coded) -> None:
        """Takes in what a node's input would have changed at other bits, sample by sample.

        Args:
            gradient: codes of the gradient by its input.
        """
        forward = self.forward
        if not forward.chosen(taker) or not self.options:
            return
        tape, block = forward.tape, ".".join(taker.name.split(".")[:2])
        found = self.option_gradients.setdefault(block, np.zeros((tape.batch, len(self.options))))
        top, scale = tape.tops[taker.source], gradient.whole.scale
        for part in tape.wide[taker.source].parts:
            wide = tape.wide[taker.source].codes(part)
            slopes = _slopes_by_code(wide, gradient.values[part.samples])
            for number, bits in enumerate(self.options):
                step, most = grid_scale(top, bits, wide.signed), code_top(bits, wide.signed)
                levels = np.rint(_all_codes(wide) * (float(part.scale) / step))
                found[part.samples, number] += (slopes @ np.clip(levels, -most, most)) * (scale * step)

    # -- passes -------------------------------------------------------------------------------------------------------

    def _pass(
        self,
        node: StepNode,
        purpose: str,
        way: _Way,
        part: CodedPart,
        samples: SampleSet,
        behind: PassEpilogue,
        x: Coded | None = None,
    ) -> PassResult:
        """Runs a pass; with ``x`` the taker's weight gradient, too."""
        codes = way.codes.codes(part, samples)
        n = len(codes.values)
        if way.taker is None:
            c = node.shape.out_channels
            geometry = ConvGeometry(n, c, c, node.shape.out_hw)
            wanted = ProductPass(node.name, purpose, "forward", geometry, c, codes, way.weights.codes, None, behind)
        else:
            shape = way.taker.shape
            geometry = geometry_of(way.taker, n)
            kind, taken = "input_gradient", None
            if x is not None:
                kind, taken = "backward", _codes_at(x, samples)
            wanted = ProductPass(
                node.name, purpose, kind, geometry, shape.groups, taken, way.weights.codes, codes, behind
            )
        done = self.forward.engine.run(wanted)
        self.forward.tape.saturated += done.saturated
        if x is not None and way.taker is not None:
            assert done.weight_gradient is not None
            self._note_weights(way.taker, done.weight_gradient, _scale(x, samples) * part.scale)
        return done

    def _note_weights(self, node: StepNode, sums: I64, scale: Numbers) -> None:
        gradient: F64 = sums.astype(np.float64) * value_of(scale)
        if self.forward.recorder is not None:
            self.forward.recorder.gradient(node.name, scale)
        before = self._weights.get(node.name)
        self._weights[node.name] = gradient if before is None else before + gradient

    def _with_weights(self, taker: StepNode | None) -> Coded | None:
        """Codes for a weight gradient beside an input gradient, if both take the same codes of the output gradient."""
        if taker is None or taker.name in self._last_codes:
            return None
        return self.forward.tape.kept[taker.name].x

    def _last_weights(self, node: StepNode) -> None:
        """A weight gradient on its own."""
        x = self.forward.tape.kept[node.name].x
        g = self._last_codes.get(node.name, self._codes[node.name])
        for part, _, samples in refined(g.parts, [each.samples for each in x.parts]):
            codes = g.codes(part, samples)
            geometry = geometry_of(node, len(codes.values))
            wanted = ProductPass(
                node.name, "weights", "weight_gradient", geometry, node.shape.groups, _codes_at(x, samples), None, codes
            )
            done = self.forward.engine.run(wanted)
            assert done.weight_gradient is not None
            self._note_weights(node, done.weight_gradient, _scale(x, samples) * part.scale)

    def _node(self, node: StepNode) -> None:
        forward = self.forward
        way, added, kept = self._way(node), self._added(node), forward.tape.kept[node.name]
        moments = self._moments(node, way, added, kept)
        self._affine[node.name] = moments.products, moments.total
        groups = [(samples, bits.g, bits.weight_g or bits.g) for samples, bits in kept.groups]
        keep = forward.widths.gradient if node.residual else 0
        self._codes[node.name] = self._gradient(node, way, added, moments, [(s, g) for s, g, _ in groups], keep, 0)
        if any(g != last for _, g, last in groups):
            last_groups = [(s, last) for s, _, last in groups]
            self._last_codes[node.name] = self._gradient(node, way, added, moments, last_groups, 0, _LAST)
        if way.taker is not None:
            if way.taker.name in self._last_codes:
                self._last_weights(way.taker)
            if forward.chosen(way.taker) and self.options:
                self._note_options(way.taker, self._input_codes(way.taker, None))

    def _behind(
        self, node: StepNode, added: Coded | None, samples: SampleSet, entries: Entries, settings: Epilogue, **more: Any
    ) -> PassEpilogue:
        """The epilogue of a node's gradient for some samples, with its operands."""
        kept = self.forward.tape.kept[node.name]
        xhat = CodeTensor(kept.xhat.values[samples], kept.xhat.bits, True)
        mask = None if kept.mask is None else kept.mask[samples]
        extra = None if added is None else added.codes(added.whole, samples)
        return PassEpilogue(entries, settings, side=xhat, mask=mask, added=extra, **more)

    def _moments(self, node: StepNode, way: _Way, added: Coded | None, kept: Kept) -> ChannelMoments:
        """Moments of the gradient behind the mask, with the normalised values: those of gamma and beta."""
        parts, x = [], self._with_weights(way.taker)
        for part in way.codes.parts:
            bound = way.weights.bound(part)
            check_bound(node.name, bound)
            sums = part.scale * way.weights.scale
            unit = None if added is None else added.whole.scale
            top = 0 if added is None else 1 << added.whole.bits - 1
            inner = bounded(sums, bound, added=unit, added_top=top)
            behind = self._behind(
                node, added, part.samples, entries(inner), Epilogue(shift=inner.shift), moments=True, cross=True
            )
            done = self._pass(node, "moments", way, part, part.samples, behind, x)
            assert done.moments is not None
            parts.append((done.moments, inner.unit, inner.unit * kept.unit))
        return ChannelMoments.of(parts)

    def _gradient(  
        self, node: StepNode, way: _Way, added: Coded | None, moments: ChannelMoments,
        groups: list[tuple[SampleSet, int]], keep: int, salt: int,
    ) -> Coded:  # fmt: skip
        """Codes of the gradient by the convolution's output; with ``keep`` those of the gradient that a shortcut carries."""
        forward, kept = self.forward, self.forward.tape.kept[node.name]
        gamma = forward.affine(node)[0] * kept.inverse
        to_beta, to_gamma = moments.total / kept.values, moments.products / kept.values
        peak = np.maximum(np.abs(moments.greatest), np.abs(moments.least))
        most = np.maximum(np.abs(moments.greatest - to_beta), np.abs(moments.least - to_beta))
        top = or_one((np.abs(gamma) * (most + np.abs(to_gamma) * kept.peak)).max())
        keep_bits = keep or 8
        keep_shift = VALUE_BITS - keep_bits
        a, k = Gathered(forward.tape.batch), Gathered(forward.tape.batch)
        pairs = list(refined(way.codes.parts, [samples for samples, _ in groups]))
        unit: Numbers = None
        for place, (part, number, samples) in enumerate(pairs):
            bits = groups[number][1]
            step = value_unit(top, bits, True)
            extra = None if added is None else added.whole.scale
            inner = measured(
                part.scale * way.weights.scale, peak, keep_shift, code_top(keep_bits, True), added=extra,
                free=len(way.codes.parts) == 1,
            )  # fmt: skip
            unit = inner.unit
            w = value(gamma * unit, step, offset=-gamma * to_beta, side=-gamma * to_gamma * kept.unit)
            settings = Epilogue(
                shift=inner.shift, value_shift=w.shift, out_bits=bits, out_signed=True,
                out_shift=code_shift(bits, True), keep_bits=keep, keep_shift=keep_shift if keep else 0, stochastic=True,
            )  # fmt: skip
            key = self._key(node, salt, place)
            behind = self._behind(node, added, samples, entries(inner, w), settings, key=key)
            done = self._pass(node, "gradients", way, part, samples, behind)
            a.put(samples, done.a)
            k.put(samples, done.k)
        if keep:
            self._carried[node.name] = Coded(k.values, (CodedPart(ALL, keep, True, unit * float(1 << keep_shift)),))
        return Coded(a.values, tuple(CodedPart(s, b, True, grid_scale(top, b, True)) for s, b in groups))

    def _input_codes(self, taker: StepNode, x: Coded | None) -> Coded:
        """Input gradient of a convolution as codes, on the range that earlier steps saw.

        Args:
            x: its input, for the weight gradient beside it; None leaves that out.
        """
        forward = self.forward
        source = forward.graph[forward.numbers[taker.source]]
        way = _Way(self._codes[taker.name], self._back_weights(taker), taker)
        name, bits = f"{taker.name}.gradient", forward.widths.gradient
        if name not in forward.tops.tops:
            forward.tops.note(name, self._extent(source, way))
        top = forward.tops.known(name)
        step, seen = value_unit(top, bits, True), 0.0
        gathered = Gathered(forward.tape.batch)
        for place, part in enumerate(way.codes.parts):
            inner = bounded(part.scale * way.weights.scale, way.weights.bound(part))
            w = value(inner.unit, step)
            settings = Epilogue(
                shift=inner.shift, value_shift=w.shift, out_bits=bits, out_signed=True,
                out_shift=code_shift(bits, True), stochastic=True,
            )  # fmt: skip
            behind = PassEpilogue(entries(inner, w), settings, records=True, key=self._key(taker, _INPUT, place))
            done = self._pass(source, "shortcut", way, part, part.samples, behind, x)
            gathered.put(part.samples, done.a)
            assert done.moments is not None
            seen = np.maximum(seen, step * farthest(done.moments))
        forward.tops.note(name, seen)
        return Coded(gathered.values, (CodedPart(ALL, bits, True, grid_scale(top, bits, True)),))

    def _extent(self, source: StepNode, way: _Way) -> Numbers:
        """Greatest magnitude of an input gradient, by a pass of its own."""
        seen: Numbers = 0.0
        for part in way.codes.parts:
            inner = bounded(part.scale * way.weights.scale, way.weights.bound(part))
            behind = PassEpilogue(entries(inner), Epilogue(shift=inner.shift), moments=True)
            moments = self._pass(source, "extent", way, part, part.samples, behind).moments
            assert moments is not None
            magnitude = np.maximum(np.abs(moments.greatest), np.abs(moments.least))
            seen = np.maximum(seen, (magnitude * inner.unit).max())
        return or_one(seen)


def _all_codes(like: CodeTensor) -> F64:
    """Every code that a tensor may hold, rising."""
    least, most = code_limits(like.bits, like.signed)
    return np.arange(least, most + 1.0)


def _slopes_by_code(codes: CodeTensor, slope: Codes) -> F64:
    """Sums of ``slope`` by sample and code of the same element, exact: (N, number of codes)."""
    values, (least, most) = np.asarray(codes.values), code_limits(codes.bits, codes.signed)
    batch, kinds = len(values), most - least + 1
    first = np.arange(batch)[:, None] * kinds - least
    places = (values.reshape(batch, -1) + first).astype(np.int64, copy=False)
    return np.bincount(places.ravel(), np.ravel(slope), batch * kinds).astype(np.float64).reshape(batch, kinds)


def pooled_codes(features: F32, pixels: tuple[int, int], bits: int, key: int) -> tuple[I32, F64]:
    """Codes of a gradient by means over pixels, rounded at random, and their scale per channel.

    Args:
        features: gradient by the means (N, C).
        pixels: rows and columns that each is the mean of.
        key: of the random numbers.
    """
    real = features.astype(np.float64) / (pixels[0] * pixels[1])
    most = np.abs(real).max(0)
    scale = np.where(most > 0, most, 1.0) / code_top(bits, True)
    drawn = random_numbers((*real.shape, 1, 1), key, ResultOrder())[:, :, 0, 0]
    codes = np.floor(real / scale + drawn / float(1 << RANDOM_BITS)).astype(np.int32)
    codes = np.clip(codes, -code_top(bits, True), code_top(bits, True))
    return np.broadcast_to(codes[:, :, None, None], (*real.shape, *pixels)), scale


def _codes_at(x: Coded, samples: SampleSet) -> CodeTensor:
    """Codes of samples that lie in one part."""
    part = _part_of(x, samples)
    return x.codes(part, samples)


def _scale(x: Coded, samples: SampleSet) -> Numbers:
    return _part_of(x, samples).scale


def _part_of(x: Coded, samples: SampleSet) -> CodedPart:
    for part in x.parts:
        if isinstance(part.samples, slice) or (not isinstance(samples, slice) and np.isin(samples, part.samples).all()):
            return part
    raise AssertionError("samples of one gradient lie in several parts of the activations")
