"""Bits of the nodes of a step: from the widths of a layer, of the options of gates, and of what is kept beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from host.arrays import Array
from host.step.coded import ALL
from host.step.forward import Groups
from hw.networks import Bits
from hw.nodes import KeptWidths

#: of layers that a recipe leaves in float32, which no pass computes
FULL_BITS = Bits(8, 8, 8)

#: of gradients of depthwise convolutions: their packets count the sums of a whole group of channels, which pass 32 bits
#: with 16
DEPTHWISE_GRADIENT = 15


def node_bits(widths: Sequence[int], groups: int = 1) -> Bits:
    """Bits of a node's codes.

    Args:
        widths: of its layer: weight, activation, gradient[, gradient in the weight gradient]; none or 0: float32.
        groups: of its convolution.
    """
    if not any(widths):
        return FULL_BITS
    w, a, g = widths[:3]
    last = widths[3] if len(widths) > 3 else g
    if groups > 1:
        g, last = min(g, DEPTHWISE_GRADIENT), min(last, DEPTHWISE_GRADIENT)
    return Bits(w, a, g, last if last != g else 0)


def kept_widths(own: KeptWidths, bits: Sequence[Bits]) -> KeptWidths:
    """Widths of what a step keeps.

    Args:
        own: that a recipe asks for; 0 leaves one to :meth:`hw.nodes.KeptWidths.beside`.
        bits: of the operands beside it, from :func:`node_bits`.
    """
    some = [each for each in bits if each is not FULL_BITS] or [FULL_BITS]
    default = KeptWidths.beside(Bits(0, max(each.a for each in some), max(each.g for each in some)))
    return KeptWidths(own.kept or default.kept, own.shortcut or default.shortcut, own.gradient or default.gradient)


def chosen_groups(choice: Array, options: Sequence[Bits]) -> Groups:
    """The samples of every option that one has chosen, with its bits.

    Args:
        choice: option of every sample, int (N,).
        options: bits of every option.
    """
    members = [(np.flatnonzero(choice == number), bits) for number, bits in enumerate(options)]
    chosen = [(samples, bits) for samples, bits in members if len(samples)]
    return chosen if len(chosen) > 1 else [(ALL, chosen[0][1])]
