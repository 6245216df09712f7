"""Tensors of a step as codes: parts of a batch with bits of their own, weights, ranges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from host.arrays import F32, F64, I32, Array, Codes
from host.native import magnitude, round_images, round_weights
from host.step.channel_parameters import Numbers, code_top, grid_scale
from host.step.passes import CodeTensor, PassError

#: samples: all of a batch, or those with these numbers, rising
SampleSet = Any
ALL: SampleSet = slice(None)


@dataclass(frozen=True)
class CodedPart:
    """Samples whose codes have the same bits and scale.

    Attributes:
        samples: which.
        bits, signed: of their codes.
        scale: real value of a code's 1, one or one per channel.
    """

    samples: SampleSet
    bits: int
    signed: bool
    scale: Numbers


@dataclass(frozen=True)
class Coded:
    """A batch of codes (N, C, H, W) in parts that cover it."""

    values: Codes
    parts: tuple[CodedPart, ...]
    _some: dict[bytes, Codes] = field(default_factory=dict, repr=False, compare=False)

    def codes(self, part: CodedPart, samples: SampleSet = ALL) -> CodeTensor:
        """Codes of those of ``samples`` that lie in a part; the same array whenever they are asked for."""
        wanted = common(part.samples, samples)
        if isinstance(wanted, slice):
            return CodeTensor(self.values, part.bits, part.signed)
        key = wanted.tobytes()
        if key not in self._some:
            self._some[key] = self.values[wanted]
        return CodeTensor(self._some[key], part.bits, part.signed)

    @property
    def whole(self) -> CodedPart:
        """The only part."""
        (part,) = self.parts
        return part

    def real(self, samples: SampleSet = ALL) -> F64:
        """Real values, float64, of all samples or some."""
        out = np.empty(self.values.shape, np.float64)
        for part in self.parts:
            scale = np.asarray(part.scale).reshape(-1, 1, 1)
            out[part.samples] = self.values[part.samples] * scale
        return np.asarray(out[samples])


def common(a: SampleSet, b: SampleSet) -> SampleSet:
    """Samples that are in both."""
    if isinstance(a, slice):
        return b
    return a if isinstance(b, slice) else np.intersect1d(a, b, assume_unique=True)


def count(samples: SampleSet, batch: int) -> int:
    """Number of samples."""
    return batch if isinstance(samples, slice) else len(samples)


def refined(parts: Sequence[CodedPart], samples: Sequence[SampleSet]) -> Iterator[tuple[CodedPart, int, SampleSet]]:
    """Every part with every one of ``samples`` that it meets: part, number, samples in both."""
    for part in parts:
        for number, wanted in enumerate(samples):
            both = common(part.samples, wanted)
            if isinstance(both, slice) or len(both):
                yield part, number, both


class Gathered:
    """Codes of a batch that come sample by sample."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self._values: Array | None = None

    def put(self, samples: SampleSet, codes: Array | None) -> None:
        """Takes the codes of some samples; None is nothing."""
        if codes is None:
            return
        if isinstance(samples, slice) or len(samples) == self.batch:
            self._values = codes
            return
        if self._values is None:
            self._values = np.empty((self.batch, *codes.shape[1:]), codes.dtype)
        self._values[samples] = codes

    @property
    def values(self) -> Any:
        """The whole batch."""
        assert self._values is not None
        return self._values


def image_top(images: F32) -> float:
    """Greatest magnitude of images, 1 if they are black.

    Raises:
        PassError: values that are not finite.
    """
    top = magnitude(images)
    if not np.isfinite(top):
        raise PassError("the input holds NaN or infinity; check the data")
    return top or 1.0


def image_codes(images: F32, top: float, bits: int) -> I32:
    """Codes of images, signed, rounded to nearest even."""
    scale, most = grid_scale(top, bits, True), code_top(bits, True)
    return round_images(images, scale, most)


@dataclass(frozen=True)
class CodedWeights:
    """Weights as symmetric codes with a scale for each channel of the *result*.

    Attributes:
        codes: (O, I/groups, kh, kw), signed.
        scale: one per channel of the result.
        axis: of the codes, along which these lie.
        sums: of the codes' magnitudes, and of the codes, per channel of the result.
    """

    codes: CodeTensor
    scale: Numbers
    axis: int
    sums: tuple[Numbers, Numbers]

    @classmethod
    def of(cls, weight: F32, bits: int, *, back: bool, groups: int, node: str) -> CodedWeights:
        """Rounds to nearest even.

        Args:
            weight: (O, I/groups, kh, kw).
            back: for an input gradient, whose channels are the inputs; those of a depthwise convolution are its outputs.

        Raises:
            PassError: one bit, of which a symmetric code has only zero; weights that are not finite.
        """
        if bits < 2:
            raise PassError(f"{node}: symmetric weights take at least 2 bits, not {bits}")
        axis = channel_axis(back, groups)
        found = round_weights(weight, axis, code_top(bits, True))
        if not np.isfinite(found.scale).all():
            raise not_finite(node)
        sums = found.magnitudes.astype(np.float64), found.totals.astype(np.float64)
        return cls(CodeTensor(found.codes, bits, True), found.scale, axis, sums)

    def bound(self, operand: CodeTensor | CodedPart) -> Numbers:
        """Greatest magnitude of a sum, per channel of the result."""
        magnitudes, totals = self.sums
        if operand.signed:
            return magnitudes * float(1 << operand.bits - 1)
        # half of each: the sums of the positive codes, and of the negative ones
        return np.floor((magnitudes + np.abs(totals)) * 0.5) * float((1 << operand.bits) - 1)


def channel_axis(back: bool, groups: int) -> int:
    """The axis of weights (O, I/groups, kh, kw) along which a product's channels lie; see :meth:`CodedWeights.of`."""
    return 1 if back and groups == 1 else 0


def not_finite(node: str) -> PassError:
    """Of weights that are not."""
    return PassError(f"{node}: weights hold NaN or infinity; training has diverged: lower the learning rate")


@dataclass
class Ranges:
    """Greatest real magnitudes of tensors, as earlier steps have seen them.

    Attributes:
        tops: by name; names that are missing have not been seen.
        share: of the old value in a new one; the first one seen is taken whole.
    """

    share: float = 0.1
    tops: dict[str, Numbers] = field(default_factory=dict)

    def note(self, name: str, seen: Numbers) -> None:
        """Takes in what a step has seen."""
        before = self.tops.get(name)
        self.tops[name] = seen if before is None else self.share * before + (1 - self.share) * seen

    def known(self, name: str) -> Numbers:
        """The greatest magnitude to reckon with.

        Raises:
            PassError: nothing has been seen.
        """
        if name not in self.tops:
            raise PassError(
                f"the range of {name or 'the input'} is unknown, as it has not been in a training step; train first, or "
                "load a checkpoint"
            )
        return self.tops[name]
