"""Trainings repeated over seeds: what a choice does to the final accuracy and loss, with intervals."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from sw_model.data.images import ImageSet, load_data
from sw_model.nn.gates import GATE_DEFECTS
from sw_model.nn.precision import LAYER_DEFECTS
from sw_model.train.loop import train
from sw_model.train.recipe import ConfigError, TrainConfig
from sw_model.train.recipes import find_recipe


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
    variants = {"fixed": base} | {name: replace(base, mode=name) for name in (*LAYER_DEFECTS, GATE_DEFECTS[0], gates)}
    variants["all"] = replace(base, mode="paper")
    return Study("gated resnet-8 on digits", variants, "fixed")


def fabric() -> Study:
    """The whole step in the fabric's integers beside float32 normalisation, with a width of what it keeps changed at a time."""
    base = TrainConfig.from_recipe(find_recipe("digits-demo"), eval_every=1000)
    step = replace(base, norm="fabric")
    variants = {"float32": base, "fabric": step}
    for bits in (4, 6, 8):
        variants[f"kept {bits}"] = replace(step, kept_bits=bits)
        variants[f"shortcut {bits}"] = replace(step, shortcut_bits=bits)
        variants[f"shortcut's gradient {bits}"] = replace(step, shortcut_gradient_bits=bits)
    variants["all 4"] = replace(step, kept_bits=4, shortcut_bits=4, shortcut_gradient_bits=4)
    return Study("digits-demo", variants, "float32")


def fabric_cifar(data: str, images: int) -> Study:
    """Static and FracTrain training of the short CIFAR-10 recipes in the fabric's integers and with float32 normalisation.

    Args:
        data: path of the images.
        images: to train on; 0: all.
    """
    variants: dict[str, TrainConfig] = {}
    for name, recipe in (("SBM", "cifar10-short-sbm"), ("FracTrain", "cifar10-short-fractrain")):
        base = TrainConfig.from_recipe(find_recipe(recipe), data=data, train_limit=images, eval_every=1000, eval_batch=100)
        variants |= {f"{name} float32": base, f"{name} fabric": replace(base, norm="fabric")}
    return Study("resnet-20 on CIFAR-10, ten epochs", variants, "SBM float32")


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


@dataclass(frozen=True)
class TrainedVariant:
    """What one training ended with: test accuracy in percent, mean training loss of the last epoch."""

    accuracy: float
    loss: float


#: Finished trainings: variant -> seed -> result.
Runs = dict[str, dict[int, TrainedVariant]]


def _train(config: TrainConfig, data: ImageSet) -> TrainedVariant:
    result = train(config, data=data)
    return TrainedVariant(100 * result.test_accuracy, float(result.history[-1]["loss"]))


def run_trainings(
    study: Study,
    seeds: Sequence[int],
    *,
    only: Sequence[str] = (),
    finished: Runs | None = None,
    data: ImageSet | None = None,
    jobs: int = 1,
    threads: int = 1,
) -> Iterator[tuple[str, int, TrainedVariant]]:
    """Trains variants with every seed, seeds in the outer loop; gives variant, seed and result of each, as they end.

    Args:
        study: what to train.
        seeds: different ones.
        only: variants to train; empty for all of them.
        finished: trainings that need not be repeated.
        data: data set, if not the one that the recipes name.
        jobs: processes that train at a time.
        threads: CPU threads of each process, if there are several.

    Raises:
        ConfigError: ``only`` or the reference names no variant.
    """
    for name in (study.reference, *only):
        if name not in study.variants:
            raise ConfigError(f"{name!r} is none of the variants {', '.join(study.variants)}")
    done = finished or {}
    waiting = [
        (n, s) for s in seeds for n in study.variants if n in (only or study.variants) and s not in done.get(n, {})
    ]
    data = data or load_data(study.variants[study.reference].data)
    configs = {(name, seed): replace(study.variants[name], seed=seed) for name, seed in waiting}
    if jobs == 1:
        for (name, seed), config in configs.items():
            yield name, seed, _train(config, data)
        return
    context = multiprocessing.get_context("spawn")  # a fork may inherit locks of PyTorch's threads
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        places = {pool.submit(_train, config, data): place for place, config in configs.items()}
        try:
            for future in as_completed(places):
                yield *places[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def compare(study: Study, runs: Runs, seeds: Sequence[int]) -> dict[str, Outcome]:
    """Every variant that all seeds have trained, against the reference, if they have trained that.

    Raises:
        ConfigError: fewer than two seeds, or some twice.
    """
    if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"intervals need at least two seeds, all different, not {list(seeds)}")
    whole = {name: [runs[name][s] for s in seeds] for name in study.variants if set(seeds) <= set(runs.get(name, {}))}
    reference = whole.get(study.reference)

    def gain(name: str, quantity: Callable[[TrainedVariant], float]) -> Estimate | None:
        if name == study.reference or reference is None:
            return None
        return Estimate.of([quantity(a) - quantity(b) for a, b in zip(whole[name], reference, strict=True)])

    return {
        name: Outcome(
            Estimate.of([each.accuracy for each in results]),
            Estimate.of([each.loss for each in results]),
            gain(name, lambda each: each.accuracy),
            gain(name, lambda each: each.loss),
        )
        for name, results in whole.items()
    }


def _changes(config: TrainConfig) -> dict[str, Any]:
    """Keys of a recipe that differ from the default's, apart from the seed; as JSON has them."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(replace(config, seed=TrainConfig.seed))))
    default = json.loads(json.dumps(asdict(TrainConfig())))
    return {key: value for key, value in plain.items() if value != default[key]}


def study_report(study: Study, runs: Runs, seeds: Sequence[int]) -> dict[str, Any]:
    """Recipes, outcomes and every single training, for a JSON file; see :func:`read_study`."""
    return {
        "title": study.title,
        "reference": study.reference,
        "seeds": list(seeds),
        "variants": {name: asdict(outcome) for name, outcome in compare(study, runs, seeds).items()},
        "recipes": {name: _changes(study.variants[name]) for name in runs},
        "runs": {name: {str(s): asdict(each) for s, each in sorted(by_seed.items())} for name, by_seed in runs.items()},
    }


def read_study(path: Path, study: Study) -> Runs:
    """The trainings of a report of this study, none if there is no file.

    Raises:
        ConfigError: the file is no such report, or of other recipes.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        recipes = {name: dict(keys) for name, keys in found["recipes"].items()}
        runs = {
            name: {int(seed): TrainedVariant(float(r["accuracy"]), float(r["loss"])) for seed, r in by_seed.items()}
            for name, by_seed in found["runs"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no report of single trainings ({error!r}); name another file") from error
    for name in runs:
        if name not in study.variants or recipes.get(name) != _changes(study.variants[name]):
            raise ConfigError(
                f"{path} has trainings of {name!r} with another recipe than this study's; name another file"
            )
    return runs


def show(study: Study, runs: Runs, seeds: Sequence[int], as_json: bool) -> None:
    """Prints the outcomes as JSON or as a table."""
    if as_json:
        print(json.dumps(study_report(study, runs, seeds)))
        return
    from rich.table import Table

    from hw.console import console

    def text(value: Estimate | None, digits: int, sign: str = "") -> str:
        return "" if value is None else f"{value.mean:{sign}.{digits}f} ± {value.half:.{digits}f}"

    title = f"{study.title}: mean and 95 % interval of {len(seeds)} seeds"
    table = Table("variant", "test accuracy %", "training loss", f"accuracy - {study.reference}", "loss", title=title)
    for name, o in compare(study, runs, seeds).items():
        table.add_row(
            name, text(o.accuracy, 2), text(o.loss, 4), text(o.accuracy_gain, 2, "+"), text(o.loss_gain, 4, "+")
        )
    console().print(table)
