"""The fast engine answers every pass as the one in NumPy does, to the bit."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from host.step.passes import ProductPass
from host.step.software import SoftwareEngine
from sw_model.quantize import kernels
from sw_model.step.fast_engine import FastEngine
from tests.support.random_passes import random_pass

FIELDS = ("a", "k", "s", "mask", "weight_gradient")


def check(wanted: ProductPass, fast: FastEngine) -> None:
    expected, found = SoftwareEngine().run(wanted), fast.run(wanted)
    for name in FIELDS:
        a, b = getattr(expected, name), getattr(found, name)
        assert (a is None) == (b is None), name
        assert a is None or (np.asarray(a) == np.asarray(b)).all(), name
    assert expected.saturated == found.saturated
    assert (expected.moments is None) == (found.moments is None)
    if expected.moments is not None and found.moments is not None:
        assert all((a == b).all() for a, b in zip(expected.moments, found.moments, strict=True))


def test_random_passes_have_the_same_bits() -> None:
    rng, fast, seen = np.random.default_rng(8), FastEngine(), Counter[str]()
    for _ in range(300):
        wanted = random_pass(rng)
        check(wanted, fast)
        seen[wanted.kind] += 1
        if wanted.behind is not None:
            form = wanted.behind.settings
            for name in ("stochastic", "keep_bits", "wide_bits", "keep_mask", "relu"):
                seen[name] += bool(getattr(form, name))
            seen["strided stochastic"] += form.stochastic and wanted.geometry.stride > 1
    assert min(seen.values()) > 20 and len(seen) == 10


def test_without_a_compiler_numpy_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    monkeypatch.setattr(kernels, "library", lambda: None)
    for _ in range(20):
        check(random_pass(rng), FastEngine())
