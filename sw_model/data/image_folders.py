"""Class folders of images of any size, ImageNet's form, decoded as training goes: only a few batches are in memory.

Augmentation is the usual one: in training a crop of random area and shape, resized (Szegedy et al. 2015, "Going deeper
with convolutions"), and a flip; in testing the centre of the resized image.  What happens to an image is a function of
(seed, epoch, place in the epoch), so neither the number of threads nor where a run resumes changes a pixel.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from host.numerics import ceil_div
from host.training.batches import epoch_order
from sw_model.data.class_folders import STREAMED, class_folders, holds_streamed, read_image
from sw_model.data.identity import Identity
from sw_model.data.images import (
    WHOLE,
    BatchPart,
    ImageSet,
    Indices,
    data_set,
    fixed_sample,
    half_of,
    load_data,
    load_from,
    normalised_tensor,
    path_of,
)
from sw_model.data.inputs import ImageInputs, centre
from sw_model.data.sources import DataError, open_source

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AREA = (0.08, 1.0)  #: of the random crop, as a share of the image
RATIO = (3 / 4, 4 / 3)  #: width to height of the random crop
AHEAD = 2  #: batches that are decoded while another is trained on


@dataclass(frozen=True)
class FolderSet:
    """Images in files, and their labels.

    Attributes:
        root: folder of the data set.
        train_files, test_files: paths below the root, encoded as the file system does, bytes (N,).
        train_labels, test_labels: int64 (N,), 0 .. classes-1.
        classes: names.
        size: height and width of the network's images, in pixels.
        augment: whether training images are cropped and flipped at random, or treated as test images.
        workers: threads that decode; 0 means one for every processor (divided among the processes of a training).
    """

    root: Path
    train_files: np.ndarray
    train_labels: np.ndarray
    test_files: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    size: int = 224
    augment: bool = True
    workers: int = 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return 3, self.size, self.size

    @property
    def train_count(self) -> int:
        """Training images."""
        return len(self.train_labels)

    def limited(self, train: int = 0, test: int = 0) -> FolderSet:
        """The first ``train`` and ``test`` images (0: all) of a fixed shuffle, the same for every run."""
        return self._only(fixed_sample(len(self.train_labels), train), fixed_sample(len(self.test_labels), test))

    def subset(self, name: str) -> FolderSet:
        """Half of the data set, as adaptation and fine-tuning use it; see :func:`sw_model.data.images.half_of`; "all" is the whole."""
        if name == "all":
            return self
        half = half_of(name, self.classes, self.train_labels, self.test_labels)
        return self._only(half.train, half.test, half.classes)

    def _only(self, train: Indices, test: Indices, classes: range | None = None) -> FolderSet:
        """The images at these indices, and of the classes these, numbered anew."""
        kept = range(len(self.classes)) if classes is None else classes
        return replace(
            self,
            train_files=self.train_files[train],
            train_labels=self.train_labels[train] - kept.start,
            test_files=self.test_files[test],
            test_labels=self.test_labels[test] - kept.start,
            classes=self.classes[kept.start : kept.stop],
        )

    def unaugmented(self) -> FolderSet:
        """The same images, every one shown as in testing."""
        return replace(self, augment=False)

    def identity(self) -> Identity:
        """What these images are, by the names and sizes of their files, which takes one look at each.

        Raises:
            DataError: if a file is missing.
        """
        files = np.concatenate([self.train_files, self.test_files])
        try:
            sizes = np.array([(self.root / os.fsdecode(name)).stat().st_size for name in files], np.int64)
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read ({error.strerror}); restore it") from error
        names = (os.fsdecode(name) for name in files)
        labels = self.train_labels, self.test_labels
        return Identity.of(len(self.train_labels), len(self.test_labels), self.classes, (*names, sizes, *labels))

    def inputs(self) -> ImageInputs:
        """What a network for these images takes."""
        return ImageInputs(self.image_shape, self.classes, IMAGENET_MEAN, IMAGENET_STD, cropped=True)

    def train_steps(self, batch: int) -> int:
        """Batches per epoch; the last one may be smaller."""
        return ceil_div(self.train_count, batch)

    def train_batches(
        self, batch: int, seed: int, epoch: int, start: int = 0, part: BatchPart = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """A part of shuffled, augmented batches of an epoch from batch ``start``: float32 (n, 3, size, size), int64 (n,).

        Raises:
            DataError: when an image cannot be read; the message names its file.
        """
        order = epoch_order(self.train_count, seed, epoch)

        def places() -> Iterator[range]:
            for index in range(start, self.train_steps(batch)):
                first, last = index * batch, min((index + 1) * batch, self.train_count)
                yield range(first, last)[part.rows(last - first)]

        def pixels(place: int) -> np.ndarray:
            # One more than the place: NumPy takes (seed, epoch, 0) for (seed, epoch), which has drawn the order.
            rng = np.random.default_rng((seed, epoch, place + 1)) if self.augment else None
            return self._pixels(self.train_files[order[place]], rng)

        for rows, images in self._decoded(places(), pixels, part):
            yield images, torch.from_numpy(self.train_labels[order[rows.start : rows.stop]])

    def test_batches(self, batch: int, part: BatchPart = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """A part of the test images, class by class and by name.

        Raises:
            DataError: when an image cannot be read; the message names its file.
        """
        own = range(len(self.test_labels))[part.rows(len(self.test_labels))]
        batches = (own[first : first + batch] for first in range(0, len(own), batch))
        for rows, images in self._decoded(batches, lambda place: self._pixels(self.test_files[place], None), part):
            yield images, torch.from_numpy(self.test_labels[rows.start : rows.stop])

    def _decoded(
        self, batches: Iterator[range], pixels: Callable[[int], np.ndarray], part: BatchPart
    ) -> Iterator[tuple[range, Tensor]]:
        """Batches of places and their normalised images, in order; threads work on those that come next."""
        workers = self.workers or max(1, (os.cpu_count() or 1) // part.size)
        pool = ThreadPoolExecutor(workers, "decode")
        ahead: deque[tuple[range, list[Future[np.ndarray]]]] = deque()

        def first() -> tuple[range, Tensor]:
            rows, futures = ahead.popleft()
            images = np.empty((len(rows), *self.image_shape), dtype=np.uint8)
            for image, future in zip(images, futures, strict=True):
                image[...] = future.result()
            return rows, normalised_tensor(images, 255.0, IMAGENET_MEAN, IMAGENET_STD)

        try:
            for rows in batches:
                ahead.append((rows, [pool.submit(pixels, place) for place in rows]))
                if len(ahead) > AHEAD:
                    yield first()
            while ahead:
                yield first()
        finally:
            pool.shutdown(cancel_futures=True)

    def _pixels(self, name: bytes, rng: np.random.Generator | None) -> np.ndarray:
        """An image as the network sees it, at random if there is a generator: uint8 (3, size, size)."""
        path = self.root / os.fsdecode(name)
        image = read_image(path, str(path))
        if rng is None:
            array = np.asarray(centre(image, self.size))
        else:
            box = random_box(image.width, image.height, rng)
            array = np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR, box))
            array = array[:, ::-1] if rng.random() < 0.5 else array
        return array.transpose(2, 0, 1)


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A crop of random area, shape and place: left, top, right, bottom, in pixels.

    The area is uniform over ``AREA``, the ratio of the sides log-uniform over ``RATIO``.  After ten draws that do not fit
    the image it is the largest central one whose ratio is nearest to the image's.
    """
    for _ in range(10):
        area = rng.uniform(*AREA) * width * height
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * RATIO[1])))
    h = min(height, max(1, round(width / RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def open_images(source: str, cache: Path | None = None) -> ImageSet | FolderSet:
    """The images that ``source`` names: a folder that holds ``val`` as a :class:`FolderSet`, all else in memory.

    Args:
        source: as for :func:`sw_model.data.images.load_data`, or a folder with ``train/CLASS/`` and ``val/CLASS/`` of
            images of any size.
        cache: see :func:`sw_model.data.images.load_data`.

    Raises:
        DataError: if the source is missing, incomplete or broken.  Of a :class:`FolderSet`, files are listed, not read.
    """
    if source == "digits":
        return load_data(source, cache)
    with open_source(path_of(source)) as opened:
        form, root = data_set(opened)
        if form is not None or not holds_streamed(opened, root):
            return load_from(opened, cache)
        if not opened.path.is_dir():
            raise DataError(f"{opened.path}: images under {STREAMED}/ are decoded as training goes; unpack the archive")
        found = class_folders(opened, root, STREAMED)
    train, test = (np.array([os.fsencode(name) for name in names]) for names in (found.train_files, found.test_files))
    return FolderSet(opened.path, train, found.train_labels, test, found.test_labels, found.classes)
