"""Data sets as people have them: whatever a function of theirs returns, torchvision's data sets among it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from host.numerics import ceil_div
from host.training import batches
from sw_model.data.class_folders import read_image
from sw_model.data.identity import Identity
from sw_model.data.images import WHOLE, BatchPart, Indices, fixed_sample
from sw_model.data.sources import DataError
from sw_model.quantize.affine import derive_key


@dataclass(frozen=True)
class OwnData:
    """Training and test samples from data sets with ``len()`` and ``[index]``, whose items are (input, target).

    An input is a float tensor, or an image or array of bytes, which becomes float32 (C, H, W) from 0 to 1.  Augmentation
    and normalisation are the data sets' own; random numbers that they draw from PyTorch follow seed, epoch and batch.

    Attributes:
        train, test: the data sets.
        classes: names.
        source: text that stands for the data sets in checkpoints.
        train_part, test_part: which of their samples.
    """

    train: Any
    test: Any
    classes: tuple[str, ...]
    source: str
    train_part: Indices = field(default_factory=lambda: slice(None))
    test_part: Indices = field(default_factory=lambda: slice(None))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of an input."""
        return tuple(_input(self.train[int(self._numbers(self.train, self.train_part)[0])][0]).shape)

    @staticmethod
    def _numbers(data: Any, part: Indices) -> np.ndarray:
        return np.arange(len(data))[part]

    def limited(self, train: int = 0, test: int = 0) -> OwnData:
        """The first ``train`` and ``test`` samples (0: all) of a fixed shuffle, the same for every run."""
        parts = fixed_sample(len(self.train), train), fixed_sample(len(self.test), test)
        return replace(self, train_part=parts[0], test_part=parts[1])

    @property
    def train_count(self) -> int:
        """Training samples."""
        return len(self._numbers(self.train, self.train_part))

    def identity(self) -> Identity:
        """What the samples are, as far as their source and the first of them tell."""
        test = self._numbers(self.test, self.test_part)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first = _input(self.test[int(test[0])][0]).numpy()
        return Identity.of(self.train_count, len(test), self.classes, (self.source, first))

    def inputs(self) -> OwnInputs | None:
        """How an image file becomes an input: by the test set's ``transform``; None: only the data set knows."""
        transform = _found(self.test, "transform")
        return OwnInputs(self.classes, self.image_shape, transform) if callable(transform) else None

    def train_steps(self, batch: int) -> int:
        """Batches per epoch; the last one may be smaller."""
        return ceil_div(self.train_count, batch)

    def train_batches(
        self, batch: int, seed: int, epoch: int, start: int = 0, part: BatchPart = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """A part of the shuffled batches of an epoch from batch ``start``."""
        numbers = self._numbers(self.train, self.train_part)
        for index, chosen in batches.epoch_batches(self.train_count, batch, seed, epoch, start):
            rows = part.rows(len(chosen))
            yield _batch(self.train, numbers[chosen[rows]], derive_key(seed, epoch, index, part.rank))

    def test_batches(self, batch: int, part: BatchPart = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """A part of the test samples in order."""
        numbers = self._numbers(self.test, self.test_part)
        own = part.rows(len(numbers))
        for first in range(own.start, own.stop, batch):
            yield _batch(self.test, numbers[first : min(first + batch, own.stop)], first)


@dataclass(frozen=True)
class OwnInputs:
    """How an image file becomes the input of a network that was trained on data of its user's.

    Attributes:
        classes: names, in the order of the outputs.
        shape: of an input; of one channel, images are grey.
        transform: from a PIL image to an input, that of the test set, as torchvision's data sets have one.
    """

    classes: tuple[str, ...]
    shape: tuple[int, ...]
    transform: Callable[[Any], Any]

    def pixels(self, path: Path) -> Any:
        """An image file as the transform gives it.

        Raises:
            DataError: if it cannot be read, or becomes something else than an input.
        """
        image = read_image(path, str(path))
        found = _input(self.transform(image.convert("L") if self.shape[0] == 1 else image))
        if tuple(found.shape) != self.shape:
            raise DataError(f"{path}: the test set's transform makes {tuple(found.shape)} of it, not {self.shape}")
        return found

    def tensor(self, images: Sequence[Tensor]) -> Tensor:
        """Inputs as :meth:`pixels` gives them: float32 (N, ...)."""
        return torch.stack(list(images))

    def record(self) -> None:
        """Nothing that a checkpoint could keep: a run asks the data set again."""


def _input(x: Any) -> Tensor:
    """An input as a tensor."""
    if isinstance(x, Tensor):
        return x.float() / 255 if x.dtype == torch.uint8 else x
    array = np.asarray(x)
    if array.dtype != np.uint8:
        return torch.from_numpy(np.ascontiguousarray(array)).to(torch.float32)
    image = array[:, :, None] if array.ndim == 2 else array
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255


def _batch(data: Any, numbers: Sequence[int] | np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
    """Items as tensors, drawn with random numbers of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        items = [data[int(number)] for number in numbers]
    inputs = [_input(item[0]) for item in items]
    if len({x.shape for x in inputs}) > 1:
        raise DataError(f"inputs of a batch have shapes {sorted({tuple(x.shape) for x in inputs})}; make them equal")
    return torch.stack(inputs), torch.stack([torch.as_tensor(np.asarray(item[1])).long() for item in items])


def own_data(function: Callable[..., Any], source: str) -> OwnData:
    """The data that a function without arguments returns: training and test set.

    Raises:
        DataError: it returns something else, empty sets, or sets that do not say their classes.
    """
    found = function()
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise DataError(
            f"data = {source!r} returned {type(found).__name__}; return a training and a test set, as a pair"
        )
    for name, data in zip(("training", "test"), found, strict=True):
        if not hasattr(data, "__len__") or not hasattr(data, "__getitem__") or not len(data):
            raise DataError(
                f"data = {source!r}: the {name} set has no samples by number; return sets with len() and [index]"
            )
        item = data[0]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(
                f"data = {source!r}: an item of the {name} set is {type(item).__name__}, not (input, target)"
            )
    classes = _classes(found[0])
    if classes is None:
        raise DataError(
            f"data = {source!r}: the training set does not say its classes; give it an attribute classes, a list of names"
        )
    text = inspect.getsource(inspect.getmodule(function) or function)
    return OwnData(found[0], found[1], classes, f"{Path(source).name}\n{text}")


def _classes(data: Any) -> tuple[str, ...] | None:
    """Names of the classes of a data set, of those that it is a part of, or as many as its labels have."""
    if (classes := _found(data, "classes", "categories")) is not None:
        return tuple(map(str, classes))
    labels = _found(data, "targets", "labels")
    return None if labels is None else tuple(str(n) for n in range(int(max(labels)) + 1))


def _found(data: Any, *names: str) -> Any:
    """The first of these attributes that a data set, or one that it is a part of, has; None: none has any."""
    while data is not None:
        for name in names:
            if (value := getattr(data, name, None)) is not None:
                return value
        data = getattr(data, "dataset", None)
    return None
