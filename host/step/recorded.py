"""Numbers of a step that are recorded while they are computed, so that later steps compute them without Python.

The arithmetic between passes is written once, for arrays of float64.  On :class:`Recorded` numbers it gives the same values
and leaves a list of operations behind, which :mod:`host.replay.step_schedule` runs again on other values: in C, or in NumPy to the
same bits.  A number that is recorded cannot decide what Python does next: decisions are ``np.where``, refusals
:func:`require`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from host.arrays import F64, Array
from host.epilogue import Entries


def _ldexp(values: Array, shift: Array) -> Array:
    return np.ldexp(values, np.asarray(shift).astype(np.int64))


def _exponent(values: Array) -> Array:
    return np.frexp(values)[1].astype(np.float64)


#: by name what NumPy computes; an operation's place is its number in ``native.c``
NUMBER_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide, "maximum": np.maximum,
    "minimum": np.minimum, "greater": np.greater, "less": np.less, "where": np.where, "absolute": np.absolute,
    "negative": np.negative, "sqrt": np.sqrt, "floor": np.floor, "rint": np.rint, "isfinite": np.isfinite,
    "ldexp": _ldexp, "exponent": _exponent, "least": np.min, "greatest": np.max,
}  # fmt: skip
OPERATION_CODES = {name: code for code, name in enumerate(NUMBER_OPERATIONS)}
#: of several numbers one
REDUCTIONS = ("least", "greatest")
_NAMES = {function: name for name, function in NUMBER_OPERATIONS.items()}


class Recorded(NDArrayOperatorsMixin):
    """A number, or one for each channel, on a tape.

    Attributes:
        tape: where it is recorded.
        at, size: its place among the tape's numbers, and how many it has.
        value: now, float64, of no axis or one.
        source: the operation that gives it; None: an input or a constant.
    """

    def __init__(self, tape: NumberTape, at: int, value: F64, source: Any = None) -> None:
        self.tape, self.at, self.value, self.source = tape, at, value, source
        self.size = value.size

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or options or ufunc not in _NAMES:
            return NotImplemented
        return apply(_NAMES[ufunc], *inputs)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        return NotImplemented if function is not np.where or options else apply("where", *args)

    def __array__(self, *_: Any, **__: Any) -> Array:
        raise TypeError("a recorded number is no constant: use value_of where only its value now is meant")

    def __bool__(self) -> bool:
        raise TypeError("a recorded number decides nothing: use np.where or require")

    def __len__(self) -> int:
        return len(self.value)

    def min(self) -> Any:
        """The least."""
        return apply("least", self)

    def max(self) -> Any:
        """The greatest."""
        return apply("greatest", self)


@dataclass(eq=False)
class NumberOperation:
    """An operation of :data:`NUMBER_OPERATIONS`: its name, what it takes, its number in the order of time, and what it gives."""

    name: str
    args: tuple[Recorded, ...]
    number: int
    result: Recorded = field(init=False)


@dataclass(eq=False)
class Requirement:
    """What must be true; ``error`` makes the exception from ``about`` if it is not."""

    true: Recorded
    about: Recorded
    error: Callable[[Any], Exception]


class NumberTape:
    """What has been recorded.

    Attributes:
        size: numbers on it.
        inputs: by name; their values change from step to step.
        constants: those that never change.
        requirements: in order.
    """

    def __init__(self) -> None:
        self.size = self._events = 0
        self.inputs: dict[tuple[Any, ...], Recorded] = {}
        self.constants: dict[bytes, Recorded] = {}
        self.requirements: list[Requirement] = []
        self._made: list[Recorded] = []

    def release(self) -> None:
        """Drops the operations; places and inputs stay."""
        for made in self._made:
            made.source = None
        self._made, self.requirements = [], []

    def next(self) -> int:
        """A number in the order of time."""
        self._events += 1
        return self._events

    def place(self, value: Any, source: Any = None) -> Recorded:
        """A place for numbers like these."""
        made = Recorded(self, self.size, np.asarray(value, np.float64), source)
        self.size += made.size
        return made

    def input(self, name: tuple[Any, ...], value: Any) -> Recorded:
        """The input of this name."""
        if name not in self.inputs:
            self.inputs[name] = self.place(value)
        return self.inputs[name]

    def number(self, value: Any) -> Recorded:
        """A number as it is, or a constant."""
        if isinstance(value, Recorded):
            return value
        constant = np.asarray(value, np.float64)
        key = constant.tobytes()
        if key not in self.constants:
            self.constants[key] = self.place(constant)
        return self.constants[key]

    def operate(self, name: str, args: Sequence[Any]) -> Recorded:
        """The result of an operation."""
        made = NumberOperation(name, tuple(self.number(each) for each in args), self.next())
        made.result = self.place(NUMBER_OPERATIONS[name](*(each.value for each in made.args)), made)
        self._made.append(made.result)
        return made.result


def apply(name: str, *args: Any) -> Any:
    """An operation of :data:`NUMBER_OPERATIONS`, recorded if one of its operands is."""
    tape = next((each.tape for each in args if isinstance(each, Recorded)), None)
    return NUMBER_OPERATIONS[name](*args) if tape is None else tape.operate(name, args)


def ldexp(values: Any, shift: Any) -> Any:
    """``values * 2**shift``; the shift is one number."""
    return apply("ldexp", values, shift)


def exponent(values: Any) -> Any:
    """The least e with ``abs(values) < 2**e``."""
    return apply("exponent", values)


def require(true: Any, error: Callable[[Any], Exception], about: Any) -> None:
    """Raises what ``error`` makes of a number unless something is true, now and whenever it is computed again."""
    if not value_of(true):
        raise error(value_of(about))
    if isinstance(true, Recorded):
        true.tape.requirements.append(Requirement(true, true.tape.number(about), error))


def value_of(number: Any) -> Any:
    """What a number is now."""
    return number.value if isinstance(number, Recorded) else number


def as_integer(number: Any) -> Any:
    """An integer, or the recorded number that it is."""
    return number if isinstance(number, Recorded) else int(number)


@dataclass(frozen=True)
class RecordedEntries(Entries):
    """Entries with the recorded numbers that they come from, in the order of their fields."""

    numbers: tuple[Any, ...] = ()
