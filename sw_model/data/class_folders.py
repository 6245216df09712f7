"""Images in class folders, ``train/CLASS/FILE`` and ``test/CLASS/FILE`` or ``val/CLASS/FILE``: which there are, and their pixels."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from sw_model.data.sources import UNREADABLE, DataError, FileSource

TRAIN, TEST, STREAMED = "train", "test", "val"  #: ``val`` holds images of any size, which are decoded as training goes
SPLITS = (TRAIN, TEST, STREAMED)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class ClassFolders:
    """Images of a training and a test part.

    Attributes:
        train_files, test_files: names in the source, class by class.
        train_labels, test_labels: class numbers.
        classes: names.
    """

    train_files: list[str]
    train_labels: np.ndarray
    test_files: list[str]
    test_labels: np.ndarray
    classes: tuple[str, ...]


def is_image(name: str) -> bool:
    """Whether a file is an image, by its suffix."""
    return name.lower().endswith(SUFFIXES)


def roots(source: FileSource) -> list[str]:
    """Folders, each with "/" at its end ("" is the source itself), that hold parts with images in class folders."""
    found = set()
    for name in filter(is_image, source.files):
        pieces = name.split("/")
        if len(pieces) >= 3 and pieces[-3] in SPLITS:
            found.add("".join(f"{piece}/" for piece in pieces[:-3]))
    return sorted(found)


def holds_streamed(source: FileSource, root: str) -> bool:
    """Whether the test part below a root is ``val``."""
    return f"{root}{STREAMED}" in source.folders


def class_folders(source: FileSource, root: str, test: str) -> ClassFolders:
    """The images below ``root``, see :func:`roots`, whose test part is called ``test``.

    Raises:
        DataError: if a part or a class has no images, an image lies elsewhere than in a class folder, or the test part
            has a class that the training part has not.
    """
    parts = {part: _classes(source, f"{root}{part}/") for part in (TRAIN, test)}
    classes = tuple(parts[TRAIN])
    if unknown := sorted(set(parts[test]) - set(classes)):
        raise DataError(f"{source.path} tests classes that it does not train: {', '.join(unknown[:5])}")
    if test == STREAMED and any(name.startswith(f"{root}{TEST}/") and is_image(name) for name in source.files):
        warnings.warn(f"{source.path}: {root}{TEST} is left out; {root}{STREAMED} is tested", stacklevel=2)
    files = {part: [name for names in by_class.values() for name in names] for part, by_class in parts.items()}
    labels = {
        part: np.repeat(
            np.array([classes.index(title) for title in by_class], np.int64),
            [len(names) for names in by_class.values()],
        )
        for part, by_class in parts.items()
    }
    return ClassFolders(files[TRAIN], labels[TRAIN], files[test], labels[test], classes)


def _classes(source: FileSource, part: str) -> dict[str, list[str]]:
    """Images of a part by class."""
    found: dict[str, list[str]] = {}
    others: dict[str, str] = {}
    for folder in source.folders:
        if folder.startswith(part) and "/" not in folder[len(part) :]:
            found[folder[len(part) :]] = []
    for name in source.files:
        if not name.startswith(part):
            continue
        title, _, file = name[len(part) :].partition("/")
        if not is_image(name):
            others.setdefault(title, name)
        elif not file or "/" in file:
            raise DataError(f"{source.path}: image {name} does not lie in a class folder {part}CLASS/; move it there")
        else:
            found[title].append(name)
    if not any(found.values()):
        raise DataError(
            f"{source.path} holds no images under {part}CLASS/; expected {TRAIN}/CLASS/*.jpg and {TEST}/CLASS/*.jpg "
            f"(or {STREAMED}/CLASS/*.jpg, of any size), with suffixes {', '.join(SUFFIXES)}"
        )
    for title, names in found.items():
        if not names:
            has = f" but {others[title]}" if title in others else ""
            raise DataError(
                f"{source.path}: {part}{title} holds no images{has}; suffixes may be {', '.join(SUFFIXES)}: convert its "
                "files, or remove the folder"
            )
    if left := [name for title, name in others.items() if title in found]:
        warnings.warn(
            f"{source.path}: files that are no images by their suffix are left out, such as {left[0]}", stacklevel=3
        )
    return found


def read_image(file: Path | BinaryIO, name: str) -> Image.Image:
    """An image as a viewer shows it: 8 bits of red, green and blue.

    Raises:
        DataError: if it is broken or of a kind whose values have no known range; ``name`` says which.
    """
    try:
        with Image.open(file) as image:
            return rgb(image)
    except UnidentifiedImageError as error:
        raise DataError(f"image {name} is broken (no kind of image that Pillow knows); replace it") from error
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise DataError(f"image {name} is broken ({error}); replace it") from error


def rgb(image: Image.Image) -> Image.Image:
    """8 bits of red, green and blue: grey of 16 bits scaled by 1/257, transparent pixels on white.

    Raises:
        ValueError: if the values of its mode have no known range.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range; save it with 8 or 16 bits per value")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")
    return image.convert("RGB")
