"""What a trained network takes: the shape of its images and how a file becomes one, kept with the run's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from host.training import batches
from sw_model.data.class_folders import read_image
from sw_model.data.sources import DataError

TEST_SCALE = 256 / 224  #: shorter side of a test image, before its centre is cropped, to the side of the crop


class FileInputs(Protocol):
    """How image files become a network's inputs."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the outputs."""
        ...

    def pixels(self, path: Path) -> Any:
        """What :meth:`tensor` takes of a file."""
        ...

    def tensor(self, images: Sequence[Any]) -> Tensor:
        """A batch: float32 (N, ...)."""
        ...

    def record(self) -> dict[str, Any] | None:
        """What a checkpoint keeps of it, see :meth:`ImageInputs.from_record`; None: the data set is asked again."""
        ...


@dataclass(frozen=True)
class ImageInputs:
    """How an image becomes a network's input, and what its outputs mean.

    Attributes:
        shape: channels (1: grey, 3: red, green, blue), height and width in pixels.
        classes: names, in the order of the outputs.
        mean, std: per channel, of pixels scaled to 0..1.
        cropped: an image of another size is resized and its centre taken, as in the evaluation on ImageNet; otherwise
            it is resized to the shape.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    cropped: bool = False

    def pixels(self, path: Path) -> np.ndarray:
        """An image file as uint8 (C, H, W).

        Raises:
            DataError: if it cannot be read.
        """
        image, (channels, height, width) = read_image(path, str(path)), self.shape
        if self.cropped:
            image = centre(image, height)
        elif image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        array = np.asarray(image.convert("L") if channels == 1 else image)
        return array[None] if channels == 1 else array.transpose(2, 0, 1)

    def tensor(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images as :meth:`pixels` gives them, normalised as in training: float32 (N, C, H, W)."""
        return torch.from_numpy(batches.normalised(np.stack(images), 255.0, self.mean, self.std))

    def record(self) -> dict[str, Any]:
        """Plain values, for :meth:`from_record`."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ImageInputs:
        """What :meth:`record` gave.

        Raises:
            DataError: it is not of that form.
        """
        try:
            channels, height, width = map(int, record["shape"])
            mean, std = (tuple(map(float, record[name])) for name in ("mean", "std"))
            classes, cropped = tuple(map(str, record["classes"])), bool(record["cropped"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the record of what the network takes is damaged ({error}); train again") from error
        return cls((channels, height, width), classes, mean, std, cropped)


def centre(image: Image.Image, size: int) -> Image.Image:
    """The central ``size`` x ``size`` pixels of an image whose shorter side is resized to ``TEST_SCALE`` times that."""
    scale = round(size * TEST_SCALE) / min(image.size)
    w, h = (max(size, round(n * scale)) for n in image.size)
    left, top = (w - size) // 2, (h - size) // 2
    resized = image.resize((w, h), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))
