"""Passes: what the executor of a training step asks of an engine, and what it gets.

A pass is one product of codes with an epilogue behind it.  Arrays have their natural shapes, (N, C, H, W) and
(O, I, kh, kw); an engine may run a pass in any way that gives the same integers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from host.arrays import I64, Codes
from host.epilogue import Bools, Entries, Epilogue, Moments
from host.numerics import code_limits
from hw.networks import ConvGeometry

#: kind -> operands; "backward" is input and weight gradient, which share the output gradient
KINDS = {"forward": "xw", "input_gradient": "gw", "weight_gradient": "xg", "backward": "xwg"}


#: fields of a packet's header that are values of an epilogue, and change from step to step
HEADER_VALUES = ("shift", "value_shift", "out_shift", "keep_shift", "wide_shift", "key")


class PassError(ValueError):
    """A pass that no engine can run; the message names the node and the value."""


@dataclass(frozen=True)
class CodeTensor:
    """A tensor of codes.

    Attributes:
        values: integers, activations or gradients (N, C, H, W) or weights (O, I/groups, kh, kw).
        bits, signed: of a code.
    """

    values: Codes
    bits: int
    signed: bool

    @property
    def greatest(self) -> int:
        """Greatest magnitude that its codes may have."""
        low, high = code_limits(self.bits, self.signed)
        return max(-low, high)


@dataclass(frozen=True)
class PassEpilogue:
    """What stands behind the sums of an output or input gradient: an epilogue with its operands.

    Attributes:
        entries: of the result's channels.
        settings: of the epilogue; of moments, its ``shift`` alone counts.
        moments: moments of x leave, and no codes.
        side: k, shaped as the result; None if there is none.
        mask: of the result's shape, where the sums pass; None: everywhere.
        added: q, signed, shaped as the result; None if there is none.
        cross: moments of x times k, not of x squared.
        records: moments of w leave beside the codes.
        key: of the stochastic rounding.
    """

    entries: Entries
    settings: Epilogue
    moments: bool = False
    side: CodeTensor | None = None
    mask: Bools | None = None
    added: CodeTensor | None = None
    cross: bool = False
    records: bool = False
    key: int = 0

    @property
    def header(self) -> dict[str, Any]:
        """Fields of a packet's header that are values of the epilogue; those that its form leaves out are 0."""
        s = self.settings
        if self.moments:
            return dict.fromkeys(HEADER_VALUES, 0) | {"shift": s.shift}
        kept, wide = s.keep_shift if s.keep_bits else 0, s.wide_shift if s.wide_bits else 0
        values = s.shift, s.value_shift, s.out_shift, kept, wide, self.key if s.stochastic else 0
        return dict(zip(HEADER_VALUES, values, strict=True))


@dataclass(frozen=True)
class ProductPass:
    """One product of a training step.

    Attributes:
        node: its name, for errors and reports.
        purpose: "statistics", "codes", "moments", "gradients", "shortcut" or "weights"; for reports.
        kind: of :data:`KINDS`.
        geometry: of the node's convolution, its channels over all groups.
        groups: of channels that do not see each other.
        x, w, g: activations, weights, output gradient, as far as the kind takes them.
        behind: of an output or input gradient.

    Raises:
        PassError: operands that the kind does not take, or shapes that do not fit.
    """

    node: str
    purpose: str
    kind: str
    geometry: ConvGeometry
    groups: int = 1
    x: CodeTensor | None = None
    w: CodeTensor | None = None
    g: CodeTensor | None = None
    behind: PassEpilogue | None = None

    def __post_init__(self) -> None:
        given = {name for name in "xwg" if getattr(self, name) is not None}
        if self.kind not in KINDS or given != set(KINDS[self.kind]):
            raise PassError(f"{self.node}: a pass {self.kind!r} takes {KINDS.get(self.kind)}, not {sorted(given)}")
        if (self.behind is None) != (self.kind == "weight_gradient"):
            raise PassError(f"{self.node}: an epilogue belongs to a pass that has a product behind it, {self.kind!r}")
        m = self.geometry
        shapes = {
            "x": (m.batch, m.in_channels, *m.in_hw),
            "g": (m.batch, m.out_channels, *m.out_hw),
            "w": (m.out_channels, m.in_channels // self.groups, *m.kernel),
        }
        for name in given:
            if getattr(self, name).values.shape != shapes[name]:
                raise PassError(f"{self.node}: {name} is {getattr(self, name).values.shape}, not {shapes[name]}")
        if self.behind is None:
            return
        for label, tensor in (("side", self.behind.side), ("added", self.behind.added)):
            if tensor is not None and tensor.values.shape != self.result_shape:
                raise PassError(f"{self.node}: {label} is {tensor.values.shape}, the result {self.result_shape}")
        if self.behind.mask is not None and self.behind.mask.shape != self.result_shape:
            raise PassError(f"{self.node}: the mask is {self.behind.mask.shape}, the result {self.result_shape}")

    @property
    def result_shape(self) -> tuple[int, int, int, int]:
        """Of the output or of the input gradient."""
        m = self.geometry
        if self.kind == "forward":
            return m.batch, m.out_channels, *m.out_hw
        return m.batch, m.in_channels, *m.in_hw

    @property
    def operand(self) -> CodeTensor:
        """The codes that meet the weights."""
        operand = self.x if self.kind == "forward" else self.g
        assert operand is not None
        return operand

    @property
    def terms(self) -> int:
        """Products in a sum of the output or the input gradient."""
        m = self.geometry
        channels = m.in_channels if self.kind == "forward" else m.out_channels
        return channels // self.groups * m.kernel[0] * m.kernel[1]


@dataclass(frozen=True)
class PassResult:
    """What a pass leaves; what it was not asked for is None.

    Attributes:
        a, k, s: codes of :class:`host.epilogue.Outputs`, integers of any type.
        mask: where w is positive.
        moments: of x, or with records of w; one for each channel of the result.
        weight_gradient: exact sums, int64 (O, I/groups, kh, kw).
        saturated: as the fabric counts it.
    """

    a: Codes | None = None
    k: Codes | None = None
    s: Codes | None = None
    mask: Bools | None = None
    moments: Moments | None = None
    weight_gradient: I64 | None = None
    saturated: int = 0


@dataclass
class PassMeter:
    """What an engine has spent: passes and multiply-accumulates by purpose; with a device, its counters too."""

    totals: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, amount: int) -> None:
        self.totals[name] = self.totals.get(name, 0) + amount


class PassEngine(Protocol):
    """What computes passes: software, or a fabric's device.

    Attributes:
        schedules: steps that it runs again without Python (:mod:`host.replay.step_schedule`); None: it runs pass after pass.
    """

    meter: PassMeter
    schedules: Any

    def run(self, wanted: ProductPass) -> PassResult:
        """Runs a pass to the bit as :mod:`host.epilogue` says.

        Raises:
            PassError: it cannot be run here.
        """
        ...


def identity(channels: int) -> CodeTensor:
    """Weights of a 1x1 convolution with a group for every channel that passes codes on: 1-bit ones."""
    return CodeTensor(np.ones((channels, 1, 1, 1), np.int8), 1, False)
