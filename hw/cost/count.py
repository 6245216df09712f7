"""CC, the paper's computational cost of training, under precision schedules (:mod:`hw.cost.training_schedule`).

CC (FracTrain, section 4.1) is the number of multiply-accumulates, each weighted by ``bits_a / 32 * bits_b / 32`` of its
two operands: one unit is a multiply-accumulate at full precision.  Training runs three products per layer.

Two counts are offered, since published figures do not say which they use:

- ``paper``: every layer at the scheduled widths, whatever the training code leaves at full precision;
- ``full``: layers that the training code does not quantize count with 32 bits.

Of a training that has been run, its record says more (see ``load_schedule``): ``paper`` leaves out the layers that the
run's own published count leaves out, and ``full`` takes every product as it ran, so that the first layer has no input
gradient, and the gates' in float32.  Those are below 0.1 % of a ResNet's multiply-accumulates and 0.3 % of MobileNetV2's,
but 3 % and more of a cost that quantization has cut to a thirtieth.

Neither contains normalisation or the update, nor times and energies the gates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hw.cost.training_schedule import SKIP, Mixture, Stage, TrainingSchedule
from hw.networks import PRODUCTS, Bits, ConvShape

COUNTS = ("paper", "full")
FULL_PRECISION = Bits(32, 32, 32)


def product_cost(shape: ConvShape, bits: Bits) -> dict[str, float]:
    """CC of the three products of a layer for one sample: MACs * bits_a * bits_b / 1024 each."""
    return {product: shape.macs * a * b / 1024 for product, (a, b) in shape.operands(bits).items()}


def unquantized_layers(shapes: Sequence[ConvShape], gated: bool) -> frozenset[str]:
    """Names of the layers that the paper's training code leaves at full precision.

    The classifier always; in gated networks also the first layer, the last 1x1 convolution of MobileNetV2, and the
    shortcuts of ImageNet networks (those with a 7x7 stem).
    """
    imagenet = any(shape.kind == "stem" and shape.kernel == 7 for shape in shapes)
    names = {shape.name for shape in shapes if shape.kind == "fc"}
    if gated:
        names |= {shape.name for shape in shapes if shape.kind == "stem" or shape.name == "last"}
        names |= {shape.name for shape in shapes if shape.kind == "shortcut" and imagenet}
    return frozenset(names)


def layer_mixture(shapes: Sequence[ConvShape], schedule: TrainingSchedule, stage: Stage, count: str) -> list[Mixture]:
    """Shares of widths per layer under either count, in the order of ``shapes``.

    Samples that skip a layer are left out, so that the shares of a layer may sum to less than one; those of a layer that
    ran several times for a sample sum to more.

    Raises:
        ValueError: unknown count.
    """
    if count not in COUNTS:
        raise ValueError(f"count {count!r} is unknown; use one of {', '.join(COUNTS)}")
    ran: Mapping[str, Mixture] = {}
    if count == "full":
        whole: Mixture = ((1.0, FULL_PRECISION),)
        exact = unquantized_layers(shapes, schedule.gated)
        ran = dict.fromkeys(exact, whole) if stage.ran is None else stage.ran
    mixtures = [ran.get(shape.name) or schedule.mixture(stage, shape) for shape in shapes]
    return [tuple((share, bits) for share, bits in mixture if bits != SKIP) for mixture in mixtures]


def mean_work(
    shapes: Sequence[ConvShape], schedule: TrainingSchedule, count: str
) -> dict[tuple[ConvShape, Bits], float]:
    """How often each layer runs at which widths for one sample, on the mean over a schedule; never is left out.

    Raises:
        ValueError: unknown count, or a schedule without length.
    """
    if schedule.epochs <= 0:
        raise ValueError(f"schedule {schedule.name} lasts {schedule.epochs} epochs; give it a positive length")
    work: dict[tuple[ConvShape, Bits], float] = {}
    for stage in schedule.stages:
        for shape, mixture in zip(shapes, layer_mixture(shapes, schedule, stage, count), strict=True):
            for share, bits in mixture:
                if weight := share * stage.epochs / schedule.epochs:
                    work[shape, bits] = work.get((shape, bits), 0.0) + weight
    return work


def counted_cost(schedule: TrainingSchedule, shape: ConvShape, bits: Bits, count: str) -> dict[str, float]:
    """``product_cost`` of a layer as far as a count takes it: zero where it does not."""
    cost = product_cost(shape, bits)
    if count == "paper" and shape.name in schedule.uncounted:
        return dict.fromkeys(PRODUCTS, 0.0)
    if count == "full" and schedule.recorded and shape.kind == "stem":
        cost["input_gradient"] = 0.0
    return cost


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
    shapes: Sequence[ConvShape], schedule: TrainingSchedule, samples_per_epoch: int, count: str = "paper"
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
                for product, cost in counted_cost(schedule, shape, bits, count).items():
                    stage_total += share * cost
                    products[product] += share * cost * stage.epochs * samples_per_epoch
        if count == "full":
            for product in PRODUCTS:
                stage_total += schedule.gate_macs
                products[product] += schedule.gate_macs * stage.epochs * samples_per_epoch
        per_sample.append(stage_total)
    full = 3 * sum(shape.macs for shape in shapes) * schedule.epochs * samples_per_epoch
    cp = 100 * sum(products.values()) / full
    return ComputationalCost(
        tuple(per_sample), tuple(s.epochs for s in schedule.stages), samples_per_epoch, products, cp
    )
