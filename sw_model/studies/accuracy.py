"""Trainings repeated over seeds: what a choice does to the final accuracy and loss, with intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from sw_model.data.images import ImageSet, load_data
from sw_model.nn.gates import DEFECTS as GATE_DEFECTS
from sw_model.nn.layers import DEFECTS
from sw_model.train.loop import train
from sw_model.train.recipe import ConfigError, TrainConfig

#: Told of every finished training: variant, seed, test accuracy in percent, training loss of the last epoch.
OnRun = Callable[[str, int, float, float], None]


@dataclass(frozen=True)
class Study:
    """Recipes that differ in one choice.

    Attributes:
        title: for the table.
        variants: name -> recipe; seeds are replaced.
        reference: variant that the others are compared with.
    """

    title: str
    variants: Mapping[str, TrainConfig]
    reference: str


#: Long enough for most images to be learnt: the few that are not then have nearly all of the gradient, which is where
#: ranges per tensor, per sample and per block part ways.  After fewer epochs the seeds differ by more than the quantizers.
_LEARNT = TrainConfig(
    data="digits", model="resnet-20", width=8, schedule="static", stages=((8, 8, 32),), epochs=16, batch=32, lr=0.1,
    weight_decay=5e-4, warmup=0.1, eval_every=1000,
)  # fmt: skip


def statquant(bits: int) -> Study:
    """Gradients of ``bits`` bits by StatQuant's quantizers beside training with float32 gradients (QAT)."""
    quantized = replace(_LEARNT, stages=((8, 8, bits),))
    variants = {"float32 gradients": _LEARNT}
    variants |= {name.upper(): replace(quantized, gradient=name) for name in ("ptq", "psq", "bhq")}
    return Study(f"{_LEARNT.model} on digits, gradients of {bits} bits", variants, "PTQ")


def methods() -> Study:
    """The methods that FracTrain is compared with, at eight bits, and Range BN."""
    base = TrainConfig(
        data="digits", model="resnet-8", width=8, quantize_stem=False, schedule="static", stages=((8, 8, 8),),
        epochs=8, batch=32, lr=0.1, weight_decay=5e-4, warmup=0.1, eval_every=1000,
    )  # fmt: skip
    variants = {"float32": replace(base, stages=((32, 32, 32),)), "SBM": base}
    variants |= {name: replace(base, quantizer=key) for name, key in COMPARISON.items()}
    variants["SBM, Range BN"] = replace(base, norm="range")
    return Study("resnet-8 on digits, FW8/BW8", variants, "SBM")


def defects() -> Study:
    """Gated training with details of the published code kept one by one, and all together."""
    base = TrainConfig(
        data="digits", model="resnet-8", width=8, quantize_stem=False, schedule="dfq", stages=((8, 8, 8),),
        options=((3, 6), (4, 6), (4, 8), (6, 8), (6, 12)), weight_bits=4, targets=(3.0,), beta=0.1,
        epochs=4, batch=32, lr=0.1, weight_decay=5e-4, warmup=0.1, eval_every=1000,
    )  # fmt: skip
    gates = "+".join(GATE_DEFECTS)
    variants = {"fixed": base} | {name: replace(base, mode=name) for name in (*DEFECTS, GATE_DEFECTS[0], gates)}
    variants["all"] = replace(base, mode="paper")
    return Study("gated resnet-8 on digits", variants, "fixed")


COMPARISON = {"DoReFa": "dorefa", "WAGEUBN": "wageubn", "MXINT": "mxint"}


@dataclass(frozen=True)
class Estimate:
    """Mean of a quantity over seeds, with the half width of its 95 % interval (Student's t)."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """From at least two independent values."""
        spread = float(np.std(values, ddof=1)) / len(values) ** 0.5
        return cls(float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1)) * spread)


@dataclass(frozen=True)
class Outcome:
    """One variant over all seeds.

    Attributes:
        accuracy: test accuracy at the end, percent.
        loss: mean training loss of the last epoch.
        accuracy_gain, loss_gain: the same minus the reference's, paired by seed; None for the reference itself.
    """

    accuracy: Estimate
    loss: Estimate
    accuracy_gain: Estimate | None
    loss_gain: Estimate | None


def compare(
    study: Study, seeds: Sequence[int], *, data: ImageSet | None = None, on_run: OnRun | None = None
) -> dict[str, Outcome]:
    """Trains every variant with every seed, seeds in the outer loop.

    Args:
        study: what to train.
        seeds: at least two different ones.
        data: data set, if not the one that the recipes name.

    Raises:
        ConfigError: fewer than two seeds, or an unknown reference.
    """
    if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"intervals need at least two seeds, all different, not {list(seeds)}")
    if study.reference not in study.variants:
        raise ConfigError(f"reference {study.reference!r} is none of the variants {', '.join(study.variants)}")
    data = data or load_data(study.variants[study.reference].data)
    accuracy: dict[str, list[float]] = {name: [] for name in study.variants}
    loss: dict[str, list[float]] = {name: [] for name in study.variants}
    for seed in seeds:
        for name, config in study.variants.items():
            result = train(replace(config, seed=seed), data=data)
            accuracy[name].append(100 * result.test_accuracy)
            loss[name].append(float(result.history[-1]["loss"]))
            if on_run is not None:
                on_run(name, seed, accuracy[name][-1], loss[name][-1])

    def gain(values: dict[str, list[float]], name: str) -> Estimate | None:
        if name == study.reference:
            return None
        return Estimate.of([a - b for a, b in zip(values[name], values[study.reference], strict=True)])

    return {
        name: Outcome(Estimate.of(accuracy[name]), Estimate.of(loss[name]), gain(accuracy, name), gain(loss, name))
        for name in study.variants
    }


def show(study: Study, outcomes: Mapping[str, Outcome], seeds: Sequence[int], as_json: bool) -> None:
    """Prints the outcomes as JSON or as a table."""
    if as_json:
        rows: dict[str, Any] = {name: asdict(outcome) for name, outcome in outcomes.items()}
        print(json.dumps({"title": study.title, "reference": study.reference, "seeds": list(seeds), "variants": rows}))
        return
    from rich.console import Console
    from rich.table import Table

    def text(value: Estimate | None, digits: int, sign: str = "") -> str:
        return "" if value is None else f"{value.mean:{sign}.{digits}f} ± {value.half:.{digits}f}"

    title = f"{study.title}: mean and 95 % interval of {len(seeds)} seeds"
    table = Table("variant", "test accuracy %", "training loss", f"accuracy - {study.reference}", "loss", title=title)
    for name, o in outcomes.items():
        table.add_row(
            name, text(o.accuracy, 2), text(o.loss, 4), text(o.accuracy_gain, 2, "+"), text(o.loss_gain, 4, "+")
        )
    Console().print(table)
