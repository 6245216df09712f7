"""What a network is trained to do: classify images, or predict the next word.

A task ties data, network, loss and metric together, so that the training loop knows none of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hw.cost.training_schedule import Trained
from hw.networks import TRANSFORMERS, ConvShape
from hw.nodes import KeptWidths
from sw_model.convert.conversion import convert
from sw_model.convert.references import build_referenced, function_of, is_reference
from sw_model.data.identity import Identity
from sw_model.data.image_folders import FolderSet, open_images
from sw_model.data.images import WHOLE, BatchPart, ImageSet
from sw_model.data.inputs import FileInputs
from sw_model.data.own_data import OwnData, own_data
from sw_model.data.text import TokenSet, load_text
from sw_model.nn.gates import way_of
from sw_model.nn.models import Backbone, build_model, use_fabric_step
from sw_model.nn.parallel import ALONE, Ranks
from sw_model.nn.transformer import build_language_model
from sw_model.quantize.methods import RangeBatchNorm2d
from sw_model.train.accelerator import on
from sw_model.train.metrics import ACCURACY, PERPLEXITY, Metric
from sw_model.train.recipe import ConfigError, TrainConfig


class Samples(Protocol):
    """Training and test batches, each a function of (seed, epoch, batch index)."""

    @property
    def train_count(self) -> int: ...

    def identity(self) -> Identity: ...

    def inputs(self) -> FileInputs | None: ...

    def train_steps(self, batch: int) -> int: ...

    def train_batches(
        self, batch: int, seed: int, epoch: int, start: int = 0, part: BatchPart = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]: ...

    def test_batches(self, batch: int, part: BatchPart = WHOLE) -> Iterator[tuple[Tensor, Tensor]]: ...


class Task(Protocol):
    """What the training loop asks of a task.  ``target`` is the second of a batch's tensors."""

    @property
    def metric(self) -> Metric: ...

    @property
    def data(self) -> Samples: ...

    def example(self) -> Tensor:
        """A batch of one input, to count operations with."""
        ...

    def build(self, config: TrainConfig) -> nn.Module:
        """A freshly initialised network."""
        ...

    def trained(self, config: TrainConfig, layers: tuple[ConvShape, ...] = ()) -> Trained:
        """The run as ``hw.networks`` describes it, or, of a network of others, with its layers."""
        ...

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean over all targets of the batch."""
        ...

    def score(self, output: Tensor, target: Tensor) -> float:
        """What the metric is made of, summed over all targets of the batch."""
        ...


#: Values per channel without which a normalisation has no statistics, by its name in recipes.
LEAST_VALUES = {"batch": 2, "fabric": 2, "range": RangeBatchNorm2d.LEAST}


def smallest_batch(data: Samples, batch: int) -> int:
    """Samples of an epoch's last batch, which has what batches of ``batch`` samples leave."""
    return data.train_count % batch or batch


def _use_fabric_step(model: nn.Module, config: TrainConfig) -> None:
    """Gives a network the fabric's step.

    Raises:
        ConfigError: the network has no such step.
    """
    assert isinstance(model, Backbone)
    try:
        use_fabric_step(model, KeptWidths(config.kept_bits, config.shortcut_bits, config.shortcut_gradient_bits))
    except ValueError as error:
        raise ConfigError(f"norm = 'fabric' does not suit model {config.model!r}: {error}") from error


@dataclass(frozen=True)
class Classification:
    """One label per image."""

    data: ImageSet | FolderSet | OwnData
    metric: Metric = ACCURACY

    def example(self) -> Tensor:
        return torch.zeros(1, *self.data.image_shape)

    def build(self, config: TrainConfig) -> nn.Module:
        if is_reference(config.model):
            return self._referenced(config)
        if len(self.data.image_shape) != 3:
            raise ConfigError(f"model {config.model!r} takes images, not inputs of shape {self.data.image_shape}")
        channels, height, width = self.data.image_shape
        model = build_model(
            config.model,
            len(self.data.classes),
            (channels, height, width),
            width=config.width,
            quantize_stem=config.quantize_stem,
            quantize_head=config.quantize_head,
            norm="range" if config.norm == "range" else "batch",
            seed=config.seed,
        )
        if config.norm == "fabric":
            _use_fabric_step(model, config)
        self._check_smallest_batch(model, config)
        return model

    def _referenced(self, config: TrainConfig) -> nn.Module:
        """A network of others, converted."""
        shape = self.data.image_shape
        model = build_referenced(config.model, len(self.data.classes), shape, config.seed)
        found = convert(model, torch.zeros(2, *shape), keep=config.keep)
        names = found.quantized
        kept = set() if config.quantize_stem else set(names[:1])
        kept |= set() if config.quantize_head else set(names[-1:])
        model.keep_full = set(found.kept) | kept  # type: ignore[assignment]
        self._check_smallest_batch(model, config)
        return model

    def _check_smallest_batch(self, model: nn.Module, config: TrainConfig) -> None:
        """Refuses what would leave a normalisation too few values for its statistics, before training comes upon it."""
        needed, pixels = LEAST_VALUES[config.norm], self._least_pixels(model)
        images = smallest_batch(self.data, config.batch)
        if images * pixels < needed:
            raise ConfigError(
                f"norm = {config.norm!r} needs {needed} values per channel, but an epoch's last batch has "
                f"{images * pixels}, {images} images whose maps shrink to {pixels} pixels; change batch "
                f"({config.batch}) or train_limit ({config.train_limit})"
            )
        # With norm "batch", one image of one pixel that would be left alone goes round the block, see GatedNetwork.
        if config.norm == "range" and (0, 0) in config.options and way_of(config.mode) == "once" and pixels < needed:
            raise ConfigError(
                f"norm = {config.norm!r} needs {needed} values per channel, but gates may let all images of a batch but "
                f"one skip a block, and maps shrink to {pixels} pixels; use norm 'batch', or leave [0, 0] out of options"
            )

    @torch.no_grad()
    def _least_pixels(self, model: nn.Module) -> int:
        """Pixels of an image where the fewest are normalised."""
        counts: list[int] = []

        def note(norm: nn.Module, inputs: tuple[Tensor]) -> None:
            counts.append(inputs[0][0, 0].numel())

        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | RangeBatchNorm2d)]
        hooks = [norm.register_forward_pre_hook(note) for norm in norms]
        model.eval()
        model(self.example())
        model.train()
        for hook in hooks:
            hook.remove()
        return min(counts, default=max(LEAST_VALUES.values()))

    def trained(self, config: TrainConfig, layers: tuple[ConvShape, ...] = ()) -> Trained:
        data = self.data
        classes, count = len(data.classes), data.train_count
        return Trained(config.model, classes, config.width, data.image_shape, count, config.batch, layers)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)

    def score(self, output: Tensor, target: Tensor) -> float:
        return float((output.argmax(1) == target).sum())


@dataclass(frozen=True)
class LanguageModelling:
    """The next word at every place of a sequence."""

    data: TokenSet
    metric: Metric = PERPLEXITY

    def example(self) -> Tensor:
        return torch.zeros(1, self.data.context, dtype=torch.int64)

    def build(self, config: TrainConfig) -> nn.Module:
        if config.norm != "batch":
            raise ConfigError(f"norm = {config.norm!r} replaces batch normalisation, which {config.model} has none of")
        words = len(self.data.vocabulary)
        return build_language_model(
            config.model,
            words,
            self.data.context,
            dropout=config.dropout,
            quantize_head=config.quantize_head,
            seed=config.seed,
        )

    def trained(self, config: TrainConfig, layers: tuple[ConvShape, ...] = ()) -> Trained:
        data, width = self.data, TRANSFORMERS[config.model].width
        words = len(data.vocabulary)
        return Trained(config.model, words, width, (data.context,), data.train_count, config.batch)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), target.flatten())

    def score(self, output: Tensor, target: Tensor) -> float:
        return float(self.loss(output, target)) * target.numel()


def open_task(
    config: TrainConfig, data: ImageSet | FolderSet | TokenSet | OwnData | None = None, cache: Path | None = None
) -> Task:
    """The task of a recipe on its data (or on ``data``), limited and augmented as it says.

    Raises:
        ConfigError, DataError: if the model does not suit the data, or the data is unusable.
    """

    text = config.model.startswith("transformer") and not is_reference(config.model)
    if data is None and is_reference(config.data):
        data = own_data(function_of(config.data), config.data)
    if data is None:
        data = load_text(config.data, config.context, config.vocabulary) if text else open_images(config.data, cache)
    if isinstance(data, TokenSet):
        if config.subset != "all":
            raise ConfigError(f"subset = {config.subset!r} divides the classes of images; text has none")
        if not text:
            raise ConfigError(f"model {config.model!r} takes images, not text; use transformer-small or -base")
    elif text:
        raise ConfigError(f"model {config.model!r} takes text, not images")
    elif isinstance(data, OwnData):
        for name, only in (("subset", "all"), ("augment", True)):
            if getattr(config, name) != only:
                raise ConfigError(f"{name} = {getattr(config, name)!r}: data sets of your own divide and augment themselves")
    else:
        data = data.subset(config.subset)
    data = data.limited(config.train_limit, config.test_limit)
    if data.train_count < config.batch:
        warnings.warn(
            f"batch = {config.batch} is larger than the {data.train_count} training inputs: every epoch is one step",
            stacklevel=2,
        )
    if not isinstance(data, TokenSet) and len(data.classes) < 2:
        warnings.warn(
            "the data has one class only: there is nothing to tell apart, accuracy means nothing", stacklevel=2
        )
    if not config.augment and not isinstance(data, OwnData):
        data = data.unaugmented()
    return LanguageModelling(data) if isinstance(data, TokenSet) else Classification(data)


@torch.no_grad()
def evaluate_network(model: nn.Module, task: Task, batch: int, ranks: Ranks = ALONE) -> float:
    """The metric of the test data, in evaluation mode; the mode is restored."""
    was_training, place = model.training, next(model.parameters()).device
    model.eval()
    total, count = 0.0, 0
    try:
        for x, y in task.data.test_batches(batch, ranks.part):
            x, y = on(place, x, y)
            total += task.score(model(x), y)
            count += y.numel()
    finally:
        model.train(was_training)
    sums = ranks.sum(torch.tensor([total, count], dtype=torch.float64))
    return task.metric.value(float(sums[0]), int(sums[1]))
