"""Calls of PyTorch that are several products at once: multi-head attention, recurrent layers and their cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sw_model.convert.sites import AttentionSite, LinearSite


class Heads(NamedTuple):
    """Arguments of :func:`torch.nn.functional.multi_head_attention_forward` that products depend on.

    Attributes:
        heads: how many.
        inputs: query, key and value, (L, N, E) or (L, E).
        weights, biases: of the three projections.
        output: weight and bias of the last one.
        padding: (N, S), True or -inf where a key is left out.
        mask: (L, S) or (N heads, L, S), True or -inf where a key is left out.
        causal: whether the mask is that of causality, which may then be left out.
        dropout: of the weights.
    """

    heads: int
    inputs: tuple[Tensor, Tensor, Tensor]
    weights: tuple[Tensor, Tensor, Tensor]
    biases: tuple[Tensor | None, Tensor | None, Tensor | None]
    output: tuple[Tensor, Tensor | None]
    padding: Tensor | None
    mask: Tensor | None
    causal: bool
    dropout: float


def _left_out(mask: Tensor, like: Tensor) -> Tensor:
    """A mask whose True leaves out, as what is added to scores."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(mask, -math.inf)


class MultiheadSite(nn.Module):
    """Multi-head attention: three projections, two products of activations, a projection."""

    def __init__(self, called: str) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(LinearSite(f"{called}.{name}") for name in ("query", "key", "value"))
        self.attention = AttentionSite(called)
        self.output = LinearSite(f"{called}.output")

    def forward(self, a: Heads, *, wanted: bool, averaged: bool) -> tuple[Tensor, Tensor | None]:
        """Result, like the query, and the weights (N, L, S), or (N, heads, L, S) where they are not averaged."""
        single = a.inputs[0].ndim == 2
        inputs = [x[:, None] if single else x for x in a.inputs]
        q, k, v = (
            site(x, weight, bias).unflatten(-1, (a.heads, -1)).permute(1, 2, 0, 3)
            for site, x, weight, bias in zip(self.inputs, inputs, a.weights, a.biases, strict=True)
        )
        mask = None if a.mask is None else _left_out(a.mask, q)
        if mask is not None and mask.ndim == 3:
            mask = mask.unflatten(0, (-1, a.heads))
        if a.padding is not None:
            padding = _left_out(a.padding[None] if single else a.padding, q)[:, None, None]
            causal = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
            mask = mask if mask is not None else _left_out(causal, q) if a.causal else None
            mask = padding if mask is None else mask + padding
        y, weights = self.attention.weighed(q, k, v, mask, a.dropout, a.causal and mask is None, None)
        y = self.output(y.permute(2, 0, 1, 3).flatten(2), *a.output)
        y = y[:, 0] if single else y
        if not wanted:
            return y, None
        weights = weights.mean(1) if averaged else weights
        return y, weights[0] if single else weights


State = tuple[Tensor, ...]
#: from the products of input and state, and the state, to the next state
RecurrentCell = Callable[[Tensor, Tensor, State], State]


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    i, f, g, o = (x + h).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), h.chunk(3, -1)
    z, n = (xz + hz).sigmoid(), (xn + (xr + hr).sigmoid() * hn).tanh()
    return ((1 - z) * n + z * state[0],)


CELLS: dict[str, RecurrentCell] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": lambda x, h, _: ((x + h).tanh(),),
    "rnn_relu": lambda x, h, _: ((x + h).relu(),),
}


class CellSite(nn.Module):
    """A step of a recurrent layer: a product of the input, and one of the state."""

    def __init__(self, called: str) -> None:
        super().__init__()
        self.input, self.state = LinearSite(f"{called}.input"), LinearSite(f"{called}.state")

    def forward(self, cell: str, x: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
        """The next state.

        Args:
            cell: a key of :data:`CELLS`.
            x: (..., I); state: (..., H) each.
            weights: of input and state, and their biases, if there are.
        """
        w, u, b, c = weights
        return CELLS[cell](self.input(x, w, b), self.state(state[0], u, c), state)


class RecurrentSite(nn.Module):
    """A recurrent layer of several levels and directions, step by step; the input's product takes all steps at once.

    Args:
        called: its name.
        levels, directions: of the layer.
    """

    def __init__(self, called: str, levels: int, directions: int) -> None:
        super().__init__()
        self.levels, self.directions = levels, directions
        names = [f"{called}.{level}{'r' * back}" for level in range(levels) for back in range(directions)]
        self.cells = nn.ModuleList(CellSite(name) for name in names)

    def forward(
        self, cell: str, x: Tensor, state: State, weights: Sequence[Sequence[Tensor | None]], dropout: float
    ) -> tuple[Tensor, ...]:
        """Outputs of the last level, (T, N, directions H), and the last states, (levels directions, N, H) each.

        Args:
            cell: a key of :data:`CELLS`.
            x: (T, N, I).
            state: (levels directions, N, H) each.
            weights: as :class:`CellSite` takes them, of each level and direction.
            dropout: of what one level gives to the next.
        """
        last: list[State] = []
        for level in range(self.levels):
            outputs = []
            for back in range(self.directions):
                number = level * self.directions + back
                site, own = self.cells[number], weights[number]
                projected = site.input(x, own[0], own[2])  # type: ignore[operator,union-attr]
                now, steps = tuple(part[number] for part in state), []
                for t in reversed(range(len(x))) if back else range(len(x)):
                    now = CELLS[cell](projected[t], site.state(now[0], own[1], own[3]), now)  # type: ignore[operator,union-attr]
                    steps.append(now[0])
                outputs.append(torch.stack(steps[::-1] if back else steps))
                last.append(now)
            x = torch.cat(outputs, -1)
            if dropout and level + 1 < self.levels:
                x = F.dropout(x, dropout)
        return x, *(torch.stack([each[part] for each in last]) for part in range(len(state)))
