"""Class folders of images of any size: what the network sees, and that threads, resuming and processes do not change it."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sw_model.data.image_folders import IMAGENET_MEAN, IMAGENET_STD, FolderSet, open_images, random_box
from sw_model.data.images import BatchPart, DataError, ImageSet, load_data
from sw_model.data.inputs import centre
from sw_model.export.aten_graph import ExportError
from sw_model.export.training_job import export_job
from sw_model.train.loop import train
from sw_model.train.recipe import TrainConfig
from sw_model.train.tasks import open_task
from tests.sw_model.train.test_loop import same, state_of

CLASSES = ("n01", "n02", "n03")
RECIPES = Path(__file__).parents[3] / "configs" / "recipes" / "paper"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training and six test images of many sizes, one of them grey."""
    folder = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for title in CLASSES:
            (folder / part / title).mkdir(parents=True)
            for n in range(count):
                h, w = rng.integers(20, 90, 2)
                smooth = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((int(w), int(h)))
                image = smooth.convert("L") if (title, n) == ("n02", 1) else smooth
                image.save(folder / part / title / f"{title}_{n}.JPEG", "JPEG")
    return folder


def opened(root: Path, size: int = 32, workers: int = 2) -> FolderSet:
    data = open_images(str(root))
    assert isinstance(data, FolderSet)
    return replace(data, size=size, workers=workers)


def equal(one: list[tuple[torch.Tensor, ...]], other: list[tuple[torch.Tensor, ...]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)
    )


def test_batches_have_the_shapes_and_labels_of_the_folders(root: Path) -> None:
    data = open_images(str(root))
    assert isinstance(data, FolderSet) and data.image_shape == (3, 224, 224) and data.classes == CLASSES
    batches = list(data.train_batches(5, seed=1, epoch=0))
    assert [tuple(x.shape) for x, _ in batches] == [(5, 3, 224, 224), (5, 3, 224, 224), (2, 3, 224, 224)]
    assert data.train_steps(5) == 3 and data.train_count == 12
    assert all(x.dtype == torch.float32 and y.dtype == torch.int64 for x, y in batches)
    assert torch.cat([y for _, y in batches]).bincount().tolist() == [4, 4, 4]
    tests = list(data.test_batches(4))
    assert torch.cat([y for _, y in tests]).tolist() == [0, 0, 1, 1, 2, 2]


def test_test_images_are_normalised_centres(root: Path) -> None:
    data = opened(root, size=28)
    for place, (x, y) in enumerate(data.test_batches(1)):
        title = CLASSES[int(y)]
        with Image.open(root / "val" / title / f"{title}_{place % 2}.JPEG") as file:
            image = file.convert("RGB")
        w, h = image.size
        short = 32 / min(w, h)
        resized = image.resize((round(w * short), round(h * short)), Image.Resampling.BILINEAR)
        left, top = (resized.width - 28) // 2, (resized.height - 28) // 2
        wanted = np.asarray(resized)[top : top + 28, left : left + 28].transpose(2, 0, 1) / 255
        shown = x[0].numpy() * np.reshape(IMAGENET_STD, (3, 1, 1)) + np.reshape(IMAGENET_MEAN, (3, 1, 1))
        assert np.allclose(shown, wanted, atol=1e-5)
    plain = data.unaugmented()
    shown = sorted(x.sum().item() for x, _ in plain.train_batches(1, 1, 0))
    assert shown == sorted(x.sum().item() for x, _ in plain.train_batches(1, 7, 3))
    assert shown != sorted(x.sum().item() for x, _ in data.train_batches(1, 1, 0))


def test_images_are_a_function_of_seed_epoch_and_place(root: Path) -> None:
    data = opened(root)
    first = list(data.train_batches(5, 3, 2))
    assert equal(first, list(data.train_batches(5, 3, 2)))
    assert not equal(first, list(data.train_batches(5, 3, 1)))
    assert not equal(first, list(data.train_batches(5, 4, 2)))
    for workers in (1, 7):
        assert equal(first, list(replace(data, workers=workers).train_batches(5, 3, 2)))
    assert equal(first[1:], list(data.train_batches(5, 3, 2, start=1)))


@pytest.mark.parametrize("size", [2, 3])
def test_parts_of_batches_make_the_whole(root: Path, size: int) -> None:
    data = opened(root)
    parts = [list(data.train_batches(5, 3, 2, 1, BatchPart(rank, size))) for rank in range(size)]
    joined = [tuple(torch.cat(pieces) for pieces in zip(*batch, strict=True)) for batch in zip(*parts, strict=True)]
    assert equal(list(data.train_batches(5, 3, 2, 1)), joined)
    for rank, part in enumerate(parts):
        assert [len(y) for _, y in part] == [len(range(n)[BatchPart(rank, size).rows(n)]) for n in (5, 2)]
    tests = [batch for rank in range(size) for batch in data.test_batches(2, BatchPart(rank, size))]
    whole = next(data.test_batches(100))
    assert equal([whole], [tuple(torch.cat(pieces) for pieces in zip(*tests, strict=True))])


def test_limits_and_subsets_are_those_of_images_in_memory(root: Path) -> None:
    lazy = opened(root)
    marks = np.arange(18, dtype=np.uint8).reshape(-1, 1, 1, 1)
    memory = ImageSet(
        marks[:12], lazy.train_labels, marks[12:], lazy.test_labels, CLASSES, 255.0, (0.5,), (0.5,), 0, False
    )
    files = np.concatenate([lazy.train_files, lazy.test_files])
    for change in (
        lambda d: d.limited(5, 2), lambda d: d.limited(), *(
            lambda d, name=name: d.subset(name) for name in ("all", "second-classes", "first-samples", "second-samples")
        )
    ):  # fmt: skip
        ours, theirs = change(lazy), change(memory)
        assert (ours.train_files == files[theirs.train_images.ravel()]).all()
        assert (ours.test_files == files[theirs.test_images.ravel()]).all()
        assert (ours.train_labels == theirs.train_labels).all() and (ours.test_labels == theirs.test_labels).all()
        assert ours.classes == theirs.classes


def test_memory_does_not_grow_with_the_number_of_images(root: Path) -> None:
    data = opened(root, size=64)
    peaks = []
    for repeats in (4, 40):
        many = replace(
            data, train_files=np.tile(data.train_files, repeats), train_labels=np.tile(data.train_labels, repeats)
        )
        tracemalloc.start()
        for _ in many.train_batches(8, 1, 0):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] < 36 * 12 * 3 * 64 * 64


@pytest.mark.parametrize("damage", ["truncated", "no image", "missing"])
def test_unreadable_files_are_named(root: Path, tmp_path: Path, damage: str) -> None:
    for part in ("train", "val"):
        for title in CLASSES:
            (tmp_path / part / title).mkdir(parents=True)
            for file in (root / part / title).iterdir():
                (tmp_path / part / title / file.name).write_bytes(file.read_bytes())
    data = opened(tmp_path)
    for name, batches in (("train/n03/n03_2.JPEG", data.train_batches(4, 1, 0)), ("val/n01/n01_1.JPEG", None)):
        file = tmp_path / name
        if damage == "missing":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2] if damage == "truncated" else b"text")
        with pytest.raises(DataError, match=name):
            list(batches or data.test_batches(4))


def test_folders_of_another_form_are_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "val" / "n09").mkdir(parents=True)
    image = (root / "train" / "n01" / "n01_0.JPEG").read_bytes()
    (tmp_path / "val" / "n09" / "0.jpg").write_bytes(image)
    with pytest.raises(DataError, match="no images under train/CLASS/"):
        open_images(str(tmp_path))
    (tmp_path / "train" / "n01").mkdir(parents=True)
    with pytest.raises(DataError, match="no images under train/CLASS/"):
        open_images(str(tmp_path))
    (tmp_path / "train" / "n01" / "0.jpg").write_bytes(image)
    with pytest.raises(DataError, match="does not train: n09"):
        open_images(str(tmp_path))
    (tmp_path / "train" / "n09").mkdir()
    with pytest.raises(DataError, match="train/n09 holds no images"):
        open_images(str(tmp_path))
    assert isinstance(open_images("digits"), ImageSet)
    with pytest.raises(DataError, match="test/CLASS"):
        load_data(str(root))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 1000))
def test_crops_lie_inside_images_of_any_shape(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = random_box(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    if min(width, height) > 100:
        ratio = (right - left) / (bottom - top)
        assert 0.72 < ratio < 1.39
        if 0.75 < width / height < 4 / 3:  # else the fallback's area may be smaller
            assert 0.079 < (right - left) * (bottom - top) / (width * height) <= 1


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40))
def test_centres_have_their_size(width: int, height: int, size: int) -> None:
    assert centre(Image.new("RGB", (width, height)), size).size == (size, size)


def test_crops_use_the_whole_range_and_half_are_mirrored(root: Path) -> None:
    rng = np.random.default_rng(0)
    areas = [(r - l) * (b - t) / 40_000 for l, t, r, b in (random_box(200, 200, rng) for _ in range(400))]  # noqa: E741
    assert min(areas) < 0.15 and max(areas) > 0.85 and 0.45 < np.mean(areas) < 0.6
    data = opened(root, size=8)
    sides = Image.new("RGB", (60, 60))
    sides.paste((255, 255, 255), (30, 0, 60, 60))
    file = root / "sides.png"
    sides.save(file)
    brighter = []
    for seed in range(60):
        pixels = data._pixels(b"sides.png", np.random.default_rng(seed))
        brighter.append(float(pixels[..., 4:].sum()) - float(pixels[..., :4].sum()))
    file.unlink()
    assert sum(b > 0 for b in brighter) > 10 and sum(b < 0 for b in brighter) > 10


SHORT = TrainConfig(
    model="resnet-8", width=4, epochs=2, batch=5, lr=0.05, schedule="static", stages=((8, 8, 8),), eval_batch=4
)


def test_a_run_resumed_in_mid_epoch_is_the_same_to_the_bit(root: Path, tmp_path: Path) -> None:
    data = opened(root, size=16)
    train(SHORT, out=tmp_path / "whole", data=data)
    train(SHORT, out=tmp_path / "part", data=replace(data, workers=1), stop_after=2)
    train(SHORT, out=tmp_path / "part", data=replace(data, workers=3), resume=True)
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "part"))


@pytest.mark.parametrize("name", [path.stem for path in sorted(RECIPES.glob("*imagenet*"))])
def test_recipes_of_imagenet_read_class_folders(root: Path, name: str) -> None:
    config = TrainConfig.from_recipe(RECIPES / f"{name}.toml", data=str(root), train_limit=8)
    task = open_task(config)
    assert isinstance(task.data, FolderSet) and task.data.train_count == 8 and task.data.augment
    assert next(task.data.train_batches(2, 1, 0))[0].shape[1:] == task.example().shape[1:] == (3, 224, 224)


def test_jobs_do_not_hold_such_images(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="decoded as training goes"):
        export_job(SHORT, tmp_path / "job.zip", opened(root))  # type: ignore[arg-type]
