"""Random passes of a training step that all engines must answer alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from host.epilogue import Entries, Epilogue
from host.step.passes import KINDS, CodeTensor, PassEpilogue, ProductPass
from hw.networks import ConvGeometry

Rng = np.random.Generator


def codes(rng: Rng, shape: tuple[int, ...], bits: int, signed: bool) -> CodeTensor:
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    return CodeTensor(rng.integers(low, high, shape), bits, signed)


def random_entries(rng: Rng, channels: int) -> Entries:
    def field(bits: int) -> Any:
        return rng.integers(-(1 << bits - 1), 1 << bits - 1, channels) >> rng.integers(0, bits, channels)

    return Entries(field(18), field(18), field(18), field(18), field(48), field(40))


def random_behind(rng: Rng, shape: tuple[int, int, int, int]) -> PassEpilogue:
    coin = rng.integers(0, 2, 10).astype(bool)
    shifts, values = (rng.integers(0, high, 5) for high in (20, 9))
    settings = Epilogue(
        int(shifts[0]), int(shifts[1]), bool(coin[0]), int(rng.integers(1, 17)), int(rng.integers(0, 17)), bool(coin[1]),
        int(values[0]), int(rng.integers(0, 17)), bool(coin[2]), int(values[1]), int(rng.integers(0, 17)), bool(coin[3]),
    )  # fmt: skip
    side = codes(rng, shape, int(rng.integers(1, 9)), bool(coin[4])) if coin[5] else None
    return PassEpilogue(
        random_entries(rng, shape[1]), settings, moments=bool(coin[6]), side=side,
        mask=rng.integers(0, 2, shape).astype(bool) if coin[7] else None,
        added=codes(rng, shape, 8, True) if coin[8] else None, cross=bool(coin[9]) and side is not None,
        records=bool(rng.integers(2)), key=int(rng.integers(1 << 32)),
    )  # fmt: skip


def random_pass(rng: Rng) -> ProductPass:
    """Of any kind, dense or depthwise, of any precision, on few small images."""
    stride, kernel, depthwise = int(rng.integers(1, 3)), int(rng.choice([1, 3])), bool(rng.integers(3) == 0)
    into, out = (int(n) for n in rng.integers(1, 7, 2))
    out, groups = (into, into) if depthwise else (out, 1)
    n, h, w = (int(v) for v in rng.integers((1, 3, 3), (9, 11, 11)))
    m = ConvGeometry(n, into, out, (h, w), (kernel, kernel), stride, kernel // 2)
    kind = str(rng.choice(list(KINDS)))
    bits = [int(b) for b in rng.integers(1, 9, 3)] if rng.integers(4) else [16, 8, 12]
    operands = {
        "x": codes(rng, (n, into, h, w), bits[0], bool(rng.integers(2))),
        "w": codes(rng, (out, into // groups, kernel, kernel), bits[1], True),
        "g": codes(rng, (n, out, *m.out_hw), bits[2], True),
    }
    shape = (n, out, *m.out_hw) if kind == "forward" else (n, into, h, w)
    behind = None if kind == "weight_gradient" else random_behind(rng, shape)
    return ProductPass("node", "codes", kind, m, groups, **{k: operands[k] for k in KINDS[kind]}, behind=behind)  # type: ignore[arg-type]
