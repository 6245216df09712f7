"""The training whose cost is asked for: network, schedule and counts, from a user's request and the record of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hw.contract import MAX_BITS
from hw.cost.training_schedule import (
    CIFAR_OPTIONS,
    IMAGENET_OPTIONS,
    Trained,
    TrainingSchedule,
    load_schedule,
    parse_schedule,
    static_schedule,
)
from hw.layer_tables import layers_of
from hw.networks import Bits, ConvShape, canonical

SINGLE_SAMPLE = ("cc", "bitfusion")  #: machines that are not ours, costed sample by sample
EPOCHS = 64_000 * 128 / 50_000  #: the paper's CIFAR recipe
IMAGENET_EPOCHS = 90
SAMPLES, IMAGENET_SAMPLES = 50_000, 1_281_167


@dataclass(frozen=True)
class CostRequest:
    """What a user asks for; None stands for the default, which a run's record may bring.

    Attributes:
        model: name of the network.
        bits: the same widths throughout; exactly one of ``bits`` and ``schedule`` is given.
        schedule: in the paper's notation, or the folder of a run, or its record.
        epochs: length of the training.
        stages: epochs of each stage of the schedule.
        samples: per epoch.
        batch: samples per step.
        classes: outputs of the classifier.
        count: "paper" or "full", see :mod:`hw.cost.count`.
        machine: name of the machine that trains.
    """

    model: str | None = None
    bits: Bits | None = None
    schedule: str | None = None
    epochs: float | None = None
    stages: Sequence[float] | None = None
    samples: int | None = None
    batch: int | None = None
    classes: int | None = None
    count: str | None = None
    machine: str = "cc"

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.schedule is None):
            raise ValueError("a training has bits or a schedule; give one of the two")
        if self.epochs is not None and self.epochs <= 0:
            raise ValueError(f"a training of {self.epochs} epochs trains nothing; give a positive number")
        for name in ("samples", "batch", "classes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value} has no cost; give at least 1")
        if self.stages and (self.bits or self.epochs):
            raise ValueError("--stages gives every stage of a --schedule its length; leave out --bits and --epochs")

    @property
    def record(self) -> Path | None:
        """The file or folder that the schedule names, if it names one rather than a notation.

        Raises:
            ValueError: it looks like a path, and there is nothing there.
        """
        text = self.schedule or ""
        path = Path(text)
        if text.endswith(".json") or (text and path.is_dir()):
            return path
        if not _notation(text) and ("/" in text or "\\" in text) and "(" not in text:
            raise ValueError(f"schedule {text!r}: there is no such folder; name that of a run, or its schedule.json")
        return None


def _notation(text: str) -> bool:
    """Whether a schedule is meant as notation: an option, widths, or forward and backward widths."""
    key = "".join(text.split()).lower()
    return key.startswith(("cp=", "fw")) or not key.strip("0123456789,/")


@dataclass(frozen=True)
class CostedTraining:
    """A training to be costed, with sensible defaults filled in."""

    model: str
    shapes: Sequence[ConvShape]
    schedule: TrainingSchedule
    samples: int
    batch: int
    count: str

    def notes(self, ours: bool) -> list[str]:
        """What a reader of its cost must know: precisions that do not run as they were asked for.

        Args:
            ours: whether one of our designs trains, whose array multiplies up to 16 bits.
        """
        notes = list(self.schedule.notes)
        wide: Mapping[str, None] = {}
        if ours and not self.schedule.recorded:
            used = {bits for stage in self.schedule.stages for _, bits in stage.mixture}
            wide = dict.fromkeys(str(bits) for bits in sorted(used) if max(bits) > MAX_BITS)
        if wide:
            notes.append(
                f"{', '.join(wide)}: products with an operand beyond {MAX_BITS} bits run on the host in float32, at its speed"
            )
        return notes


def read_training(request: CostRequest) -> CostedTraining:
    """Network, schedule and counts of a request.

    The record of a run brings its own network, samples and batch, and is costed as it ran unless told otherwise.

    Raises:
        ValueError: an unknown model, an impossible schedule, or one of another network; the message says which.
    """
    record = request.record
    if record is not None and (request.epochs or request.stages):
        raise ValueError(f"{record} states its own epochs; leave out --epochs and --stages")
    recorded = load_schedule(record) if record is not None else None
    model, shapes, trained = _network(request, recorded)
    imagenet = any(shape.kind == "stem" and shape.kernel == 7 for shape in shapes)
    if recorded is not None:
        recorded.check(shapes, model)
    schedule = recorded or _schedule(request, imagenet)
    samples = request.samples or (trained.samples if trained else IMAGENET_SAMPLES if imagenet else SAMPLES)
    batch = request.batch
    if batch is None:  # the array fills its lanes with a batch, BitFusion is published for single samples
        batch = 1 if request.machine in SINGLE_SAMPLE else trained.batch if trained else 128
    return CostedTraining(
        model, shapes, schedule, samples, batch, request.count or ("full" if schedule.recorded else "paper")
    )


def _network(
    request: CostRequest, recorded: TrainingSchedule | None
) -> tuple[str, Sequence[ConvShape], Trained | None]:
    """Name and layers of the network, and what a run says of it, as far as it trained the same one."""
    trained = recorded.trained if recorded else None
    model = request.model or (trained.model if trained else None)
    if model is None:
        run = f", since {request.schedule} does not name one" if recorded else ""
        raise ValueError(f"no network to cost; give --model{run}")
    if trained and canonical(model) == canonical(trained.model):
        return model, replace(trained, classes=request.classes or trained.classes).shapes(), trained
    return model, layers_of(model, request.classes), None


def _schedule(request: CostRequest, imagenet: bool) -> TrainingSchedule:
    """The schedule that a request states in words."""
    epochs = sum(request.stages) if request.stages else request.epochs or (IMAGENET_EPOCHS if imagenet else EPOCHS)
    if request.bits:
        return static_schedule(request.bits, epochs)
    options, early = (IMAGENET_OPTIONS, 1 / 3) if imagenet else (CIFAR_OPTIONS, 0.5)
    return parse_schedule(request.schedule or "", epochs, request.stages, options, early)
