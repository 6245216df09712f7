"""``torch.einsum`` of two operands as one matrix product, between permutations of axes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Contraction:
    """Axes of a product of two operands, by their letters.

    Attributes:
        left, right: axes of the operands.
        output: axes of the result.
        batch: in both operands and the result.
        summed: in both operands only.
        rows, columns: in the result and one operand only.
    """

    left: str
    right: str
    output: str
    batch: str
    summed: str
    rows: str
    columns: str

    @classmethod
    def of(cls, equation: str) -> Contraction | None:
        """The contraction of an equation; None: it is no single matrix product."""
        inputs, arrow, output = equation.replace(" ", "").partition("->")
        left, comma, right = inputs.partition(",")
        if not arrow:  # as PyTorch has it: what occurs once, in alphabetical order
            output = "".join(sorted(axis for axis, count in Counter(left + right).items() if count == 1))
        if not comma or not all(part.isalpha() and len(set(part)) == len(part) for part in (left, right, output)):
            return None
        batch = "".join(axis for axis in output if axis in left and axis in right)
        summed = "".join(axis for axis in left if axis in right and axis not in output)
        rows, columns = ("".join(axis for axis in a if axis not in b) for a, b in ((left, right), (right, left)))
        if not summed or set(rows + columns + batch) != set(output):
            return None
        return cls(left, right, output, batch, summed, rows, columns)

    @property
    def swapped(self) -> Contraction:
        """The same with its operands in the other order."""
        return Contraction(
            self.right, self.left, self.output, self.batch, self.summed, self.columns, self.rows
        )  # fmt: skip

    def sizes(self, a: Tensor, b: Tensor) -> dict[str, int] | None:
        """Size of every axis; None where those of the operands differ."""
        if (a.ndim, b.ndim) != (len(self.left), len(self.right)):
            return None
        found = dict(zip(self.left, a.shape, strict=True))
        others = dict(zip(self.right, b.shape, strict=True))
        return None if any(found.get(axis, size) != size for axis, size in others.items()) else {**found, **others}

    def factors(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The operands as (batch..., M, K) and (batch..., N, K)."""
        each = ((a, self.left, self.rows), (b, self.right, self.columns))
        first, second = (
            x.permute([axes.index(axis) for axis in self.batch + own + self.summed]).reshape(
                *(x.shape[axes.index(axis)] for axis in self.batch), *self._flat(x, axes, own), -1
            )
            for x, axes, own in each
        )
        return first, second

    @staticmethod
    def _flat(x: Tensor, axes: str, own: str) -> tuple[int]:
        size = 1
        for axis in own:
            size *= x.shape[axes.index(axis)]
        return (size,)

    def result(self, product: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """A product (batch..., M, N) with the axes of the result."""
        sizes = self.sizes(a, b)
        assert sizes is not None
        made = self.batch + self.rows + self.columns
        whole = product.reshape(*(sizes[axis] for axis in made))
        return whole.permute([made.index(axis) for axis in self.output])
