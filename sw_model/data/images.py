"""Image data sets: scikit-learn's digits, CIFAR-10/100 in every usual packing; batches by :mod:`host.training.batches`."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from host.numerics import ceil_div
from host.training import batches
from hw.files import replaced
from sw_model.data.class_folders import TEST, ClassFolders, class_folders, read_image, roots
from sw_model.data.identity import Identity
from sw_model.data.inputs import ImageInputs
from sw_model.data.sources import DataError, FileSource, open_source

DECODING = 2  #: counts changes of what is made of an image, which a cache must not outlive
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class BatchPart(NamedTuple):
    """One of several parts of every batch.

    Attributes:
        rank: which, from 0; size: of how many.
    """

    rank: int = 0
    size: int = 1

    def rows(self, count: int) -> slice:
        """Samples of a batch of ``count`` that belong to this part: contiguous, sizes that differ by one at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)


WHOLE = BatchPart()
SUBSETS = ("all", "first-classes", "second-classes", "first-samples", "second-samples")


#: Which images of a data set; a slice copies none of them.
Indices = np.ndarray | slice


class Half(NamedTuple):
    """A part of a data set.

    Attributes:
        train, test: of its images, in order.
        classes: numbers of its classes.
    """

    train: Indices
    test: Indices
    classes: range


def half_of(name: str, classes: Sequence[str], train_labels: np.ndarray, test_labels: np.ndarray) -> Half:
    """Half of a data set, as adaptation and fine-tuning use it.

    Args:
        name: "first-classes" or "second-classes" (of both parts, to be numbered anew from 0); or "first-samples" or
            "second-samples": half of every class's training images by a fixed permutation, all test images.
        classes: names.
        train_labels, test_labels: class numbers, (N,).

    Raises:
        DataError: if there are too few classes, or images of one.
    """
    if name not in SUBSETS[1:]:
        raise DataError(f"subset {name!r} is unknown; use one of {', '.join(SUBSETS)}")
    second = name.startswith("second")
    if name.endswith("classes"):
        middle = len(classes) // 2
        low, high = (middle, len(classes)) if second else (0, middle)
        train, test = (np.flatnonzero((low <= labels) & (labels < high)) for labels in (train_labels, test_labels))
        if not len(train) or not len(test):
            raise DataError(f"subset {name!r} of {len(classes)} classes holds no images")
        return Half(train, test, range(low, high))
    order = np.random.default_rng(20201206).permutation(len(train_labels))
    chosen = []
    for label, title in enumerate(classes):
        members = order[train_labels[order] == label]
        middle = len(members) // 2
        if not middle:
            raise DataError(f"subset {name!r} needs two training images of every class; {title} has {len(members)}")
        chosen.append(members[middle:] if second else members[:middle])
    return Half(np.sort(np.concatenate(chosen)), slice(None), range(len(classes)))


def fixed_sample(count: int, limit: int) -> Indices:
    """The first ``limit`` (0: all) of ``count`` images in a fixed shuffle, in order."""
    if not limit or limit >= count:
        return slice(None)
    return np.sort(np.random.default_rng(0).permutation(count)[:limit])


def normalised_tensor(images: np.ndarray, full_scale: float, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """As :func:`host.training.batches.normalised`, a tensor."""
    return torch.from_numpy(batches.normalised(images, full_scale, mean, std))


@dataclass(frozen=True)
class ImageSet:
    """Images and labels of a training and a test part.

    Attributes:
        train_images, test_images: uint8 (N, C, H, W).
        train_labels, test_labels: int64 (N,), 0 .. classes-1.
        classes: names.
        full_scale: pixel value that means 1.0 (255, or 16 for digits).
        mean, std: per channel, of pixels scaled to 0..1.
        shift: training images move by up to this many pixels along both axes, zeros moving in.
        flip: whether training images are mirrored at random.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    full_scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shift: int
    flip: bool

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, c, h, w = self.train_images.shape
        return c, h, w

    def limited(self, train: int = 0, test: int = 0) -> ImageSet:
        """The first ``train`` and ``test`` images (0: all) of a fixed shuffle, the same for every run."""
        return self._only(fixed_sample(len(self.train_labels), train), fixed_sample(len(self.test_labels), test))

    def subset(self, name: str) -> ImageSet:
        """Half of the data set, as adaptation and fine-tuning use it; see :func:`half_of`; "all" is the whole."""
        if name == "all":
            return self
        half = half_of(name, self.classes, self.train_labels, self.test_labels)
        return self._only(half.train, half.test, half.classes)

    def _only(self, train: Indices, test: Indices, classes: range | None = None) -> ImageSet:
        """The images at these indices, and of the classes these, numbered anew."""
        kept = range(len(self.classes)) if classes is None else classes
        return replace(
            self,
            train_images=self.train_images[train],
            train_labels=self.train_labels[train] - kept.start,
            test_images=self.test_images[test],
            test_labels=self.test_labels[test] - kept.start,
            classes=self.classes[kept.start : kept.stop],
        )

    def unaugmented(self) -> ImageSet:
        """The same images, shown as they are."""
        return replace(self, shift=0, flip=False)

    def identity(self) -> Identity:
        """What these images are."""
        arrays = self.train_images, self.train_labels, self.test_images, self.test_labels
        return Identity.of(len(self.train_labels), len(self.test_labels), self.classes, arrays)

    def inputs(self) -> ImageInputs:
        """What a network for these images takes."""
        return ImageInputs(self.image_shape, self.classes, self.mean, self.std)

    def _normalise(self, images: np.ndarray) -> Tensor:
        return normalised_tensor(images, self.full_scale, self.mean, self.std)

    @property
    def train_count(self) -> int:
        """Training images."""
        return len(self.train_labels)

    def train_steps(self, batch: int) -> int:
        """Batches per epoch; the last one may be smaller."""
        return ceil_div(self.train_count, batch)

    def train_batches(
        self, batch: int, seed: int, epoch: int, start: int = 0, part: BatchPart = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """A part of shuffled, augmented batches of an epoch from batch ``start``: float32 (n, C, H, W), int64 (n,)."""
        for index, chosen in batches.epoch_batches(self.train_count, batch, seed, epoch, start):
            images = batches.augmented(self.train_images[chosen], seed, epoch, index, shift=self.shift, flip=self.flip)
            rows = part.rows(len(chosen))
            yield self._normalise(images[rows]), torch.from_numpy(self.train_labels[chosen[rows]])

    def test_batches(self, batch: int, part: BatchPart = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """A part of the test images in file order."""
        own = part.rows(len(self.test_labels))
        for first in range(own.start, own.stop, batch):
            rows = slice(first, min(first + batch, own.stop))
            yield self._normalise(self.test_images[rows]), torch.from_numpy(self.test_labels[rows])


def load_digits_set(test_share: float = 0.2) -> ImageSet:
    """Handwritten digits (1797 scans of 8x8 pixels, 17 grey levels) that ship with scikit-learn.

    Of every class the same share, drawn once by a fixed permutation, is the test part: 1438 training and 359 test
    images by default.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    # A fixed permutation, then every class contributes its first part to the test set.
    order = np.random.default_rng(20201206).permutation(len(labels))
    test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        members = order[labels[order] == digit]
        test[members[: round(len(members) * test_share)]] = True
    pixels = images[~test] / 16.0
    return ImageSet(
        images[~test],
        labels[~test],
        images[test],
        labels[test],
        tuple(str(d) for d in range(10)),
        16.0,
        (float(pixels.mean()),),
        (float(pixels.std()),),
        shift=1,
        flip=False,
    )


def load_data(source: str, cache: Path | None = None) -> ImageSet:
    """The data set that ``source`` names, held in memory.

    Args:
        source: ``digits``, or a folder, zip or tar archive that holds one data set, at its top or in a folder below:
            CIFAR-10/100 as published (python or binary version), or images of one size in class folders
            ``train/CLASS/`` and ``test/CLASS/``, see :mod:`sw_model.data.class_folders`.
        cache: folder where decoded class folders are kept as one file for the next run, until a file of the source is
            added, removed or replaced (by name, size and time of change); None decodes every time.

    Raises:
        DataError: if the source is missing, incomplete or broken, or holds several data sets.
    """
    if source == "digits":
        return load_digits_set()
    with open_source(path_of(source)) as opened:
        return load_from(opened, cache)


def load_from(source: FileSource, cache: Path | None = None) -> ImageSet:
    """The data set of an opened source, see :func:`load_data`."""
    form, root = data_set(source)
    if form is None:
        return _load_class_folders(source, root, cache)
    names = {name[len(root) :] for name in source.files if name.startswith(root)}

    def read(name: str) -> bytes:
        if name not in names:
            raise DataError(f"{source.path}: {root}{name} is missing; download the data set again")
        return source.read(f"{root}{name}")

    return form(names, read)


def path_of(source: str) -> Path:
    """The path that ``source`` names.

    Raises:
        DataError: if there is nothing.
    """
    path = Path(source).expanduser()
    if not source.strip() or not path.exists():
        raise DataError(f"data set {source!r} is neither 'digits' nor an existing path; give a folder or an archive")
    return path


def data_set(source: FileSource) -> tuple[Callable[..., ImageSet] | None, str]:
    """How to read the one data set of a source (None: class folders), and where it lies, "/" at the end.

    Raises:
        DataError: if there are several.
    """
    found: list[tuple[Callable[..., ImageSet] | None, str]] = [(None, root) for root in roots(source)]
    by_folder: dict[str, set[str]] = {}
    for name in source.files:
        folder, _, file = name.rpartition("/")
        by_folder.setdefault(f"{folder}/" if folder else "", set()).add(file)
    for folder, names in by_folder.items():
        if {"data_batch_1", "test_batch"} & names or {"train", "test", "meta"} <= names:
            found.append((_load_python, folder))
        if {"data_batch_1.bin", "test_batch.bin", "train.bin"} & names:
            found.append((_load_binary, folder))
    if len(found) > 1:
        places = ", ".join(str(source.path / root) for _, root in found[:5])
        raise DataError(f"{source.path} holds several data sets: {places}; name one of them, or move the others away")
    return found[0] if found else (None, "")


class _PlainUnpickler(pickle.Unpickler):
    """Reads the pickles of CIFAR's python version, which hold plain containers and numpy arrays, and nothing else."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"refuses to load {module}.{name}")
        return super().find_class(module, name)


def _load_python(names: set[str], read: Callable[[str], bytes]) -> ImageSet:
    def entries(name: str, *keys: bytes) -> list[Any]:
        stream = io.BytesIO(read(name))
        try:
            loaded = _PlainUnpickler(stream, encoding="bytes").load()
        except Exception as error:  # a damaged pickle may raise anything: it calls what it names with what it holds
            raise DataError(f"{name} is not a CIFAR batch ({error}); download the data set again") from error
        if not isinstance(loaded, dict) or not set(keys) <= set(loaded):
            wanted = " or ".join(repr(key.decode()) for key in keys)
            raise DataError(f"{name} lacks {wanted}; download the data set again")
        return [loaded[key] for key in keys]

    def part(files: list[str], label_key: bytes) -> tuple[np.ndarray, np.ndarray]:
        images, labels = [], []
        for name in files:
            data, numbers = entries(name, b"data", label_key)
            if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
                raise DataError(f"{name} holds no bytes of shape (N, 3072); download the data set again")
            if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 256 for n in numbers):
                raise DataError(f"{name} holds labels that are no list of class numbers; download the data set again")
            if not len(data) == len(numbers) > 0:
                raise DataError(f"{name} holds {len(data)} images with {len(numbers)} labels; download it again")
            images.append(data.reshape(-1, 3, 32, 32))
            labels.append(np.array(numbers, dtype=np.int64))
        return np.concatenate(images), np.concatenate(labels)

    if "train" in names:
        key, train, test, meta, meta_key = b"fine_labels", ["train"], ["test"], "meta", b"fine_label_names"
    else:
        train = [f"data_batch_{i}" for i in range(1, 6)]
        key, test, meta, meta_key = b"labels", ["test_batch"], "batches.meta", b"label_names"
    try:
        classes = tuple(name.decode() for name in entries(meta, meta_key)[0])
    except (AttributeError, TypeError, UnicodeDecodeError) as error:
        raise DataError(f"{meta} holds no names of classes ({error}); download the data set again") from error
    return _cifar(*part(train, key), *part(test, key), classes)


def _load_binary(names: set[str], read: Callable[[str], bytes]) -> ImageSet:
    hundred = "train.bin" in names
    label_bytes = 2 if hundred else 1

    def part(files: list[str]) -> tuple[np.ndarray, np.ndarray]:
        images, labels = [], []
        for name in files:
            raw = np.frombuffer(read(name), dtype=np.uint8)
            if not len(raw) or len(raw) % (label_bytes + 3072):
                raise DataError(
                    f"{name} has {len(raw)} bytes, not a multiple of {label_bytes + 3072}; download it again"
                )
            records = raw.reshape(-1, label_bytes + 3072)
            labels.append(records[:, label_bytes - 1].astype(np.int64))
            images.append(records[:, label_bytes:].reshape(-1, 3, 32, 32))
        return np.concatenate(images), np.concatenate(labels)

    meta = "fine_label_names.txt" if hundred else "batches.meta.txt"
    try:
        classes = tuple(line.strip() for line in read(meta).decode("utf-8-sig").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise DataError(f"{meta} holds no names of classes ({error}); download the data set again") from error
    if hundred:
        return _cifar(*part(["train.bin"]), *part(["test.bin"]), classes)
    return _cifar(*part([f"data_batch_{i}.bin" for i in range(1, 6)]), *part(["test_batch.bin"]), classes)


def _cifar(
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    classes: tuple[str, ...],
) -> ImageSet:
    for name, labels in (("training", train_labels), ("test", test_labels)):
        if labels.min() < 0 or labels.max() >= len(classes):
            raise DataError(f"{name} labels span {labels.min()}..{labels.max()} with {len(classes)} class names")
    return ImageSet(
        train_images, train_labels, test_images, test_labels, classes, 255.0, CIFAR_MEAN, CIFAR_STD, shift=4, flip=True
    )


def _load_class_folders(source: FileSource, root: str, cache: Path | None) -> ImageSet:
    # One cache file per source, which knows the state that it was made from: a stale one is replaced, not kept beside.
    path = source.path
    tag = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    stored = None if cache is None else cache / f"{path.stem}-{tag}.npz"
    found = class_folders(source, root, TEST)
    state = f"{DECODING} {source.state()}"
    kept = None if stored is None else _cached(stored, state)
    if kept is not None:
        return kept
    loaded = _decode(source, found)
    if stored is not None:
        stored.parent.mkdir(parents=True, exist_ok=True)
        with replaced(stored) as scratch, scratch.open("wb") as file:
            np.savez(
                file,
                state=np.array(state),
                train_images=loaded.train_images,
                train_labels=loaded.train_labels,
                test_images=loaded.test_images,
                test_labels=loaded.test_labels,
                classes=np.array(loaded.classes),
            )
    return loaded


def _cached(stored: Path, state: str) -> ImageSet | None:
    """What ``stored`` holds of a source in this state; None if it is missing, broken or stale and has to be made anew."""
    try:
        with np.load(stored, allow_pickle=False) as arrays:
            if str(arrays["state"]) != state:
                return None
            return _cifar(
                arrays["train_images"],
                arrays["train_labels"],
                arrays["test_images"],
                arrays["test_labels"],
                tuple(str(c) for c in arrays["classes"]),
            )
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _decode(source: FileSource, found: ClassFolders) -> ImageSet:
    shape: tuple[int, ...] | None = None

    def pixels(name: str) -> np.ndarray:
        nonlocal shape
        image = np.asarray(read_image(io.BytesIO(source.read(name)), f"{source.path}: {name}"))
        shape = shape or image.shape
        if image.shape != shape:
            raise DataError(f"{source.path}: image {name} is {image.shape}, the others {shape}; resize it")
        return image.transpose(2, 0, 1)

    train, test = (np.stack([pixels(name) for name in names]) for names in (found.train_files, found.test_files))
    return _cifar(train, found.train_labels, test, found.test_labels, found.classes)
