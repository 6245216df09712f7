"""What a trained network says of image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from host.operands import Engine
from sw_model.data.class_folders import SUFFIXES, is_image
from sw_model.data.sources import DataError
from sw_model.train.recipe import ConfigError
from sw_model.trained.trained_network import TrainedNetwork


@dataclass(frozen=True)
class ImagePrediction:
    """What the network takes an image for.

    Attributes:
        file: of the image.
        classes: (name, probability) of the likeliest classes, the likeliest first.
    """

    file: Path
    classes: tuple[tuple[str, float], ...]


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files among ``paths``, and the images in and below the folders among them, by name.

    Raises:
        DataError: a path that is not there, or a folder without images.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(
                p for p in path.rglob("*") if p.is_file() and is_image(p.name) and not p.name.startswith(".")
            )
            if not found:
                raise DataError(f"{path} holds no images; their suffixes may be {', '.join(SUFFIXES)}")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"image {path} does not exist; check the path")
    return files


def predict_images(
    network: TrainedNetwork, files: Sequence[Path], *, top: int = 1, batch: int = 64, engine: Engine | None = None
) -> Iterator[ImagePrediction]:
    """Predictions for image files, in order.

    Args:
        network: of a classifier.
        files: images of any size, see :class:`sw_model.data.inputs.ImageInputs`.
        top: how many classes to name; more than there are names all.
        batch: images per pass.
        engine: computes the quantized products exactly; None takes the fast path.

    Raises:
        ConfigError: the network is a language model.
        DataError: an image that cannot be read, or that a data set's own transform makes something else of.
    """
    inputs = network.inputs
    if inputs is None:
        raise ConfigError(
            f"{network.config.model} takes no image files: it takes text, or what a data set of your own prepares. Give the "
            "test set of that an attribute transform, from a PIL image to an input, as torchvision's data sets have one"
        )
    for first in range(0, len(files), batch):
        chosen = files[first : first + batch]
        logits = network.logits(inputs.tensor([inputs.pixels(file) for file in chosen]), engine)
        likely = logits.double().softmax(1).topk(min(top, logits.shape[1]), 1)
        for file, shares, classes in zip(chosen, likely.values.tolist(), likely.indices.tolist(), strict=True):
            named = zip((inputs.classes[c] for c in classes), shares, strict=True)
            yield ImagePrediction(file, tuple(named))
