"""Precision schedules as data, and CC, the paper's computational cost of training under them.

CC (FracTrain, section 4.1) is the number of multiply-accumulates, each weighted by ``bits_a / 32 * bits_b / 32`` of its
two operands: one unit is a multiply-accumulate at full precision.  Training runs three products per layer.

Two counts are offered, since published figures do not say which they use:

- ``paper``: every layer at the scheduled widths, whatever the training code leaves at full precision;
- ``full``: layers that the training code does not quantize count with 32 bits.

Neither contains normalisation, the gating networks (below 0.1 % of a ResNet, 0.3 % of MobileNetV2) or the update.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from hw.layers import PRODUCTS, Bits, ConvShape

COUNTS = ("paper", "full")
FULL_PRECISION = Bits(32, 32, 32)
# The paper keeps depthwise convolutions at FW-8/BW-16 under every schedule.
DEPTHWISE = Bits(8, 8, 16)
# (activation, gradient) widths that a gate chooses from, by dataset, with the width of the weights.
CIFAR_OPTIONS = tuple(Bits(4, a, g) for a, g in ((3, 6), (4, 6), (4, 8), (6, 8), (6, 12)))
IMAGENET_OPTIONS = tuple(Bits(6, a, g) for a, g in ((3, 6), (4, 8), (6, 12), (8, 16)))

Mixture = tuple[tuple[float, Bits], ...]


def product_cost(shape: ConvShape, bits: Bits) -> dict[str, float]:
    """CC of the three products of a layer for one sample: MACs * bits_a * bits_b / 1024 each."""
    return {product: shape.macs * a * b / 1024 for product, (a, b) in shape.operands(bits).items()}


def cp_percent(bits: Bits) -> float:
    """``cp``: CC of an option as a share of full precision, mean over the three products, in percent."""
    return 100 * (bits.a * bits.w + bits.g * bits.w + bits.a * bits.g) / 1024 / 3


def mixture_for(target: float, options: Sequence[Bits]) -> Mixture:
    """Shares of samples and layers per option such that the mean ``cp`` meets a target.

    Gates settle near their target; which options they use is not published, so the two that enclose it are mixed.  A
    target outside the range of the options gives the nearest option, as it does in training.

    Args:
        target: in percent.
        options: at least one, in any order.

    Raises:
        ValueError: no options, or a target that is not positive.
    """
    if not options or target <= 0:
        raise ValueError(f"a cp target of {target} % over {len(options)} options has no mixture; give both")
    ordered = sorted(options, key=cp_percent)
    for low, high in pairwise(ordered):
        a, b = cp_percent(low), cp_percent(high)
        if a <= target <= b and a < b:
            share = (target - a) / (b - a)
            return tuple((s, bits) for s, bits in ((1 - share, low), (share, high)) if s > 0)
    return ((1.0, ordered[0] if target < cp_percent(ordered[0]) else ordered[-1]),)


@dataclass(frozen=True)
class Stage:
    """A span of training under one distribution of precisions.

    Attributes:
        epochs: length; need not be whole.
        mixture: (share, widths) over samples, for all layers that ``layers`` does not name; shares sum to one.
        layers: layer name -> its own mixture, for instance what gates chose in a run.

    Raises:
        ValueError: negative length, or shares that are negative or do not sum to one.
    """

    epochs: float
    mixture: Mixture
    layers: Mapping[str, Mixture] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"a stage of {self.epochs} epochs cannot be trained; give 0 or more")
        for where, mixture in (("all layers", self.mixture), *self.layers.items()):
            shares = [share for share, _ in mixture]
            if min(shares, default=-1) < 0 or abs(sum(shares) - 1) > 1e-6:
                raise ValueError(f"shares {shares} of {where} do not sum to one; normalise the counts")


@dataclass(frozen=True)
class Schedule:
    """Precision over a whole training.

    Attributes:
        name: for reports.
        stages: in order.
        fixed: layer kind -> widths that no stage changes.
        gated: precision is chosen by gates; decides which layers the ``full`` count takes as unquantized.
    """

    name: str
    stages: tuple[Stage, ...]
    fixed: Mapping[str, Bits] = field(default_factory=lambda: {"depthwise": DEPTHWISE})
    gated: bool = False

    @property
    def epochs(self) -> float:
        """Length of the training."""
        return sum(stage.epochs for stage in self.stages)

    def mixture(self, stage: Stage, shape: ConvShape) -> Mixture:
        """Shares of widths with which a stage trains a layer."""
        if shape.name in stage.layers:
            return stage.layers[shape.name]
        if shape.kind in self.fixed:
            return ((1.0, self.fixed[shape.kind]),)
        return stage.mixture

    def truncated(self, epochs: float) -> Schedule:
        """The first ``epochs`` of the schedule; where it is shorter than that, its last stage goes on.

        Raises:
            ValueError: the schedule has no stages, or the length is negative.
        """
        if not self.stages or epochs < 0:
            raise ValueError(
                f"schedule {self.name} of {len(self.stages)} stages cannot last {epochs} epochs; give it one or more"
            )
        stages, left = [], epochs
        for stage in self.stages:
            span = left if stage is self.stages[-1] else min(stage.epochs, left)
            stages.append(Stage(span, stage.mixture, stage.layers))
            left -= span
        return Schedule(self.name, tuple(stages), self.fixed, self.gated)


def stage_epochs(stages: int, epochs: float, early: float = 0.5) -> list[float]:
    """Assumed stage lengths where none are known: all but the last stage share the early part equally.

    The paper places its stages before the first drop of the learning rate: half of training on CIFAR, a third on
    ImageNet.

    Args:
        stages: how many.
        epochs: whole training.
        early: share of training before the last stage.
    """
    if stages == 1:
        return [epochs]
    return [epochs * early / (stages - 1)] * (stages - 1) + [epochs * (1 - early)]


def static(bits: Bits, epochs: float) -> Schedule:
    """The same widths throughout."""
    return Schedule(str(bits), (Stage(epochs, ((1.0, bits),)),))


def parse_schedule(
    text: str,
    epochs: float,
    lengths: Sequence[float] | None = None,
    options: Sequence[Bits] = CIFAR_OPTIONS,
    early: float = 0.5,
) -> Schedule:
    """A schedule in the paper's notation.

    ``FW-8/BW-16`` and ``w,a,g`` are static, ``FW(3,4,6,8)/BW(6,6,8,8)`` is PFQ with one stage per pair, and
    ``cp=1.5/2/2.5/3`` gives gates one target after the other (a single target is DFQ).

    Args:
        text: the notation; case and blanks do not matter.
        epochs: length of the training.
        lengths: epochs per stage; by default as ``stage_epochs`` assumes.
        options: what gates choose from.
        early: share of training before the last stage, where ``lengths`` are not given.

    Raises:
        ValueError: text in no known form, or as many lengths as there are not stages.
    """
    key = re.sub(r"\s", "", text).lower()
    mixtures: list[Mixture]
    if match := re.fullmatch(r"fw[-(]?([\d,]+)\)?/bw[-(]?([\d,]+)\)?", key):
        forward, backward = ([int(n) for n in part.split(",")] for part in match.groups())
        if len(forward) != len(backward):
            raise ValueError(f"schedule {text!r} has {len(forward)} forward and {len(backward)} backward stages")
        mixtures = [((1.0, Bits(fw, fw, bw)),) for fw, bw in zip(forward, backward, strict=True)]
    elif match := re.fullmatch(r"cp=([\d./]+)", key):
        mixtures = [mixture_for(float(target), options) for target in match[1].split("/")]
    elif re.fullmatch(r"\d+,\d+,\d+", key):
        mixtures = [((1.0, Bits.parse(key)),)]
    else:
        raise ValueError(f"schedule {text!r} is unknown; write FW-8/BW-8, FW(3,4,6,8)/BW(6,6,8,8), cp=1.5/2/3 or w,a,g")
    spans = list(lengths) if lengths is not None else stage_epochs(len(mixtures), epochs, early)
    if len(spans) != len(mixtures):
        raise ValueError(f"schedule {text!r} has {len(mixtures)} stages, but {len(spans)} lengths are given")
    stages = tuple(Stage(span, mixture) for span, mixture in zip(spans, mixtures, strict=True))
    return Schedule(text, stages, gated=key.startswith("cp"))


def load_schedule(path: Path) -> Schedule:
    """Read what a run really used.

    The file is JSON: ``{"name", "gated", "stages": [{"epochs", "options": [[share, [w, a, g]], ...],
    "layers": {name: options}}], "fixed": {kind: [w, a, g]}}``; only the stages with epochs and options are required.

    Raises:
        ValueError: the file does not have that form.
    """

    def mixture(rows: list[list]) -> Mixture:
        return tuple((float(share), Bits(*map(int, bits))) for share, bits in rows)

    try:
        data = json.loads(path.read_text())
        stages = tuple(
            Stage(
                float(row["epochs"]),
                mixture(row["options"]),
                {name: mixture(rows) for name, rows in row.get("layers", {}).items()},
            )
            for row in data["stages"]
        )
        fixed = {kind: Bits(*bits) for kind, bits in data.get("fixed", {"depthwise": DEPTHWISE}).items()}
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not a schedule ({type(error).__name__}: {error}); expected JSON with a list 'stages' of "
            "objects with 'epochs' and 'options'"
        ) from error
    return Schedule(data.get("name", path.stem), stages, fixed, bool(data.get("gated", False)))


def unquantized_layers(shapes: Sequence[ConvShape], gated: bool) -> frozenset[str]:
    """Names of the layers that the paper's training code leaves at full precision.

    The classifier always; in gated networks also the first layer, the last 1x1 convolution of MobileNetV2, and the
    shortcuts of ImageNet networks (those with a 7x7 stem).
    """
    imagenet = any(shape.kind == "stem" and shape.kernel == 7 for shape in shapes)
    names = {shape.name for shape in shapes if shape.kind == "fc"}
    if gated:
        names |= {shape.name for shape in shapes if shape.kind == "stem" or shape.name == "head"}
        names |= {shape.name for shape in shapes if shape.kind == "shortcut" and imagenet}
    return frozenset(names)


def layer_mixture(shapes: Sequence[ConvShape], schedule: Schedule, stage: Stage, count: str) -> list[Mixture]:
    """Shares of widths per layer under either count, in the order of ``shapes``.

    Raises:
        ValueError: unknown count.
    """
    if count not in COUNTS:
        raise ValueError(f"count {count!r} is unknown; use one of {', '.join(COUNTS)}")
    exact = unquantized_layers(shapes, schedule.gated) if count == "full" else frozenset()
    whole: Mixture = ((1.0, FULL_PRECISION),)
    return [whole if shape.name in exact else schedule.mixture(stage, shape) for shape in shapes]


@dataclass(frozen=True)
class ComputationalCost:
    """CC of a training.

    Attributes:
        per_sample: CC of one sample in each stage, layers and products summed.
        epochs: length of each stage.
        samples_per_epoch: training set size.
        products: product name -> CC of the whole training.
        cp: CC as a share of the same training at full precision, in percent.
    """

    per_sample: tuple[float, ...]
    epochs: tuple[float, ...]
    samples_per_epoch: int
    products: Mapping[str, float]
    cp: float

    @property
    def total(self) -> float:
        """CC of the whole training."""
        return sum(self.products.values())

    @property
    def mean_per_sample(self) -> float:
        """CC of a sample, averaged over the training."""
        return self.total / (sum(self.epochs) * self.samples_per_epoch)


def computational_cost(
    shapes: Sequence[ConvShape], schedule: Schedule, samples_per_epoch: int, count: str = "paper"
) -> ComputationalCost:
    """CC of training a network under a schedule.

    Args:
        shapes: the network.
        schedule: its precisions; a schedule of length zero is refused, since its mean is undefined.
        samples_per_epoch: training set size.
        count: ``paper`` or ``full``, see the module.

    Raises:
        ValueError: unknown count, or nothing to train.
    """
    if schedule.epochs <= 0 or samples_per_epoch < 1:
        raise ValueError(
            f"{schedule.epochs} epochs of {samples_per_epoch} samples train nothing; give positive numbers of both"
        )
    per_sample = []
    products = dict.fromkeys(PRODUCTS, 0.0)
    for stage in schedule.stages:
        stage_total = 0.0
        for shape, mixture in zip(shapes, layer_mixture(shapes, schedule, stage, count), strict=True):
            for share, bits in mixture:
                for product, cost in product_cost(shape, bits).items():
                    stage_total += share * cost
                    products[product] += share * cost * stage.epochs * samples_per_epoch
        per_sample.append(stage_total)
    full = 3 * sum(shape.macs for shape in shapes) * schedule.epochs * samples_per_epoch
    cp = 100 * sum(products.values()) / full
    return ComputationalCost(
        tuple(per_sample), tuple(s.epochs for s in schedule.stages), samples_per_epoch, products, cp
    )
