"""Bias and variance of a step's gradients."""

from __future__ import annotations

from typing import Any

import pytest

from sw_model.data.images import load_data
from sw_model.nn.precision import Precision
from sw_model.studies.step_noise import bench_gradients

COARSE, FINE = Precision(4, 4, 4), Precision(8, 8, 8)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """A small network's, at two precisions."""
    sizes = {"depth": 8, "width": 4, "batch": 16, "steps": 4, "batches": 2, "rounds": 2}
    return bench_gradients(load_data("digits"), [COARSE, FINE], (2,), **sizes)


def test_fewer_bits_distort_gradients_more(report: dict[str, Any]) -> None:
    """In what their mean misses and in how far single ones are from it, whoever normalises."""
    coarse, fine = (report["precisions"][str(precision)] for precision in (COARSE, FINE))
    for name in ("float32 normalisation", "fabric"):
        for error in ("variance", "bias"):
            assert coarse[name][error]["mean"] > 4 * abs(fine[name][error]["mean"]), (name, error)


def test_two_bits_in_the_shortcuts_gradient_show_in_the_variance(report: dict[str, Any]) -> None:
    rows = report["precisions"][str(FINE)]
    assert rows["shortcut's gradient 2"]["variance"]["mean"] > 4 * rows["fabric"]["variance"]["mean"]


def test_intervals_need_two_batches_and_enough_images() -> None:
    digits = load_data("digits")
    with pytest.raises(ValueError, match="give two or more"):
        bench_gradients(digits, [FINE], batches=1)
    with pytest.raises(ValueError, match="more than the images"):
        bench_gradients(digits.limited(40, 0), [FINE], depth=8, width=4, batch=16, steps=0)
