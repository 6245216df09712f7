"""Data sets: the shipped digits, CIFAR in every packing (built here from known pixels), and broken files."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sw_model.data.images import DataError, ImageSet, load_data
from sw_model.nn.models import build_model

NAMES = ["cat", "dog"]


def make_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), np.arange(count) % 2


def write_python(folder: Path, broken: str = "") -> None:
    folder.mkdir()
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        images, labels = make_images(4, i)
        batch = {b"data": images.reshape(4, -1), b"labels": labels.tolist()}
        (folder / name).write_bytes(b"rubbish" if name == broken else pickle.dumps(batch, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [n.encode() for n in NAMES]}, protocol=2))


def write_binary(folder: Path) -> None:
    folder.mkdir()
    for i, name in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
        images, labels = make_images(4, i)
        records = np.concatenate([labels[:, None].astype(np.uint8), images.reshape(4, -1)], axis=1)
        (folder / name).write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")


def write_zip(path: Path, broken: bool = False) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for seed, part in enumerate(("train", "test")):
            images, labels = make_images(4, seed)
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                stream = io.BytesIO()
                Image.fromarray(image.transpose(1, 2, 0)).save(stream, "PNG")
                data = stream.getvalue()[: 60 if broken and i == 2 else None]
                archive.writestr(f"{part}/{NAMES[label]}/{i:04d}.png", data)


def expect_cifar(data: ImageSet) -> None:
    wanted = [make_images(4, i) for i in range(6)]
    assert (data.train_images == np.concatenate([w[0] for w in wanted[:5]])).all()
    assert (data.train_labels == np.concatenate([w[1] for w in wanted[:5]])).all()
    assert (data.test_images == wanted[5][0]).all() and data.classes == ("cat", "dog")


def test_python_and_binary_versions_hold_the_same(tmp_path: Path) -> None:
    write_python(tmp_path / "cifar-10-batches-py")
    write_binary(tmp_path / "bin")
    expect_cifar(load_data(str(tmp_path / "cifar-10-batches-py")))
    expect_cifar(load_data(str(tmp_path / "bin")))
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    expect_cifar(load_data(str(tmp_path / "c.tar.gz")))


def test_hundred_classes_use_the_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    images, labels = make_images(4, 0)
    coarse = np.full((4, 1), 9, np.uint8)
    records = np.concatenate([coarse, labels[:, None].astype(np.uint8), images.reshape(4, -1)], axis=1).tobytes()
    for name in ("train.bin", "test.bin"):
        (folder / name).write_bytes(records)
    (folder / "fine_label_names.txt").write_text("\n".join(NAMES))
    data = load_data(str(tmp_path))
    assert (data.train_labels == labels).all() and (data.train_images == images).all()


def test_class_folders_and_zip_hold_the_same_and_are_cached(tmp_path: Path) -> None:
    write_zip(tmp_path / "images.zip")
    with zipfile.ZipFile(tmp_path / "images.zip") as archive:
        archive.extractall(tmp_path / "folder")
    cache = tmp_path / "cache"
    zipped = load_data(str(tmp_path / "images.zip"), cache)
    folder = load_data(str(tmp_path / "folder"))
    (stored,) = cache.iterdir()
    again = load_data(str(tmp_path / "images.zip"), cache)
    stored.write_bytes(b"half")
    repaired = load_data(str(tmp_path / "images.zip"), cache)
    for other in (folder, again, repaired):
        assert (zipped.train_images == other.train_images).all() and (zipped.test_labels == other.test_labels).all()
    images, labels = make_images(4, 0)
    order = np.argsort(labels, kind="stable")
    assert (zipped.train_images == images[order]).all()


def test_cache_of_class_folders_follows_every_file_below(tmp_path: Path) -> None:
    write_zip(tmp_path / "images.zip")
    folder, cache = tmp_path / "folder", tmp_path / "cache"
    with zipfile.ZipFile(tmp_path / "images.zip") as archive:
        archive.extractall(folder)
    cats = folder / "train" / "cat"
    load_data(str(folder), cache)
    (stored,) = cache.iterdir()

    def add() -> None:
        (cats / "new.png").write_bytes((cats / "0000.png").read_bytes())

    def replace() -> None:
        (cats / "new.png").write_bytes((folder / "train" / "dog" / "0001.png").read_bytes())

    def retouch() -> None:
        pixels = np.zeros((32, 32, 3), np.uint8)
        before = (cats / "new.png").stat()
        Image.fromarray(pixels).save(cats / "new.png", "PNG")
        with (cats / "new.png").open("ab") as file:
            file.truncate(before.st_size)  # padded behind its end: only the time tells
        os.utime(cats / "new.png", ns=(before.st_atime_ns, before.st_mtime_ns + 1))

    def move() -> None:
        (cats / "new.png").rename(folder / "train" / "dog" / "new.png")

    def remove() -> None:
        (folder / "train" / "dog" / "new.png").unlink()

    for change in (add, replace, retouch, move, remove):
        change()
        for _ in range(2):  # decoded, then from the cache
            cached, true = load_data(str(folder), cache), load_data(str(folder))
            assert np.array_equal(cached.train_images, true.train_images), change.__name__
            assert np.array_equal(cached.train_labels, true.train_labels), change.__name__
        assert list(cache.iterdir()) == [stored], "a stale cache is replaced"


def test_cache_is_read_while_the_source_is_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zip(tmp_path / "images.zip")
    with zipfile.ZipFile(tmp_path / "images.zip") as archive:
        archive.extractall(tmp_path / "folder")
    sources = [str(tmp_path / "folder"), str(tmp_path / "images.zip")]
    loaded = [load_data(source, tmp_path / "cache") for source in sources]
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded again"))
    for source, first in zip(sources, loaded, strict=True):
        assert np.array_equal(load_data(source, tmp_path / "cache").train_images, first.train_images)


def test_cache_without_a_state_is_made_anew(tmp_path: Path) -> None:
    write_zip(tmp_path / "images.zip")
    cache = tmp_path / "cache"
    true = load_data(str(tmp_path / "images.zip"), cache)
    (stored,) = cache.iterdir()
    with np.load(stored) as arrays:
        old = {name: arrays[name] for name in arrays.files if name != "state"}
    np.savez(stored, **{**old, "train_images": old["train_images"] + 1})  # as before caches had one
    for content in (stored.read_bytes(), b""):
        stored.write_bytes(content)
        assert np.array_equal(load_data(str(tmp_path / "images.zip"), cache).train_images, true.train_images)


def test_broken_sources_are_named(tmp_path: Path) -> None:
    write_zip(tmp_path / "broken.zip", broken=True)
    with pytest.raises(DataError, match=r"train/cat/0002.png is broken"):
        load_data(str(tmp_path / "broken.zip"))
    write_python(tmp_path / "py", broken="data_batch_3")
    with pytest.raises(DataError, match="data_batch_3"):
        load_data(str(tmp_path / "py"))
    write_binary(tmp_path / "bin")
    (tmp_path / "bin" / "data_batch_2.bin").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="multiple"):
        load_data(str(tmp_path / "bin"))
    (tmp_path / "bin" / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match="missing"):
        load_data(str(tmp_path / "bin"))
    with pytest.raises(DataError, match="existing path"):
        load_data(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        load_data(str(tmp_path / "empty"))
    (tmp_path / "half.zip").write_bytes((tmp_path / "broken.zip").read_bytes()[:500])
    with pytest.raises(DataError, match="neither a zip"):
        load_data(str(tmp_path / "half.zip"))


def write_archives(folder: Path) -> None:
    """Every kind of source, ready to be damaged: archives as files, folders as the file of them that will suffer."""
    write_python(folder / "py")
    for suffix in ("gz", "bz2", "xz"):
        with tarfile.open(folder / f"cifar.tar.{suffix}", f"w:{suffix}") as archive:
            archive.add(folder / "py", "cifar-10-batches-py")
    write_zip(folder / "stored.zip")
    with zipfile.ZipFile(folder / "stored.zip") as archive:
        archive.extractall(folder / "images")
        with zipfile.ZipFile(folder / "deflated.zip", "w", zipfile.ZIP_DEFLATED) as packed:
            for name in archive.namelist():
                packed.writestr(name, archive.read(name))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_archives(folder)
    return folder


def damaged(source: Path, file: Path, place: float, mask: int) -> ImageSet | None:
    """What is loaded of a source, one of whose files has other bits in one byte; None if it is refused."""
    whole = file.read_bytes()
    at = int(place * len(whole))
    file.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
    try:
        return load_data(str(source))
    except DataError:
        return None
    finally:
        file.write_bytes(whole)


PLACES = st.floats(0, 1, exclude_max=True)
MASKS = st.integers(1, 255)


@pytest.mark.parametrize("name", ["cifar.tar.gz", "cifar.tar.bz2", "cifar.tar.xz", "stored.zip", "deflated.zip"])
@settings(deadline=None, max_examples=60)
@given(place=PLACES, mask=MASKS)
def test_damaged_archive_is_refused_or_holds_the_same(sources: Path, name: str, place: float, mask: int) -> None:
    got, true = damaged(sources / name, sources / name, place, mask), load_data(str(sources / name))
    if got is not None:
        for part in ("train_images", "train_labels", "test_images", "test_labels", "classes"):
            assert np.array_equal(getattr(got, part), getattr(true, part)), part


@pytest.mark.parametrize("field", ["name", "comment length"])
def test_zip_whose_directory_hides_an_image_is_refused(sources: Path, tmp_path: Path, field: str) -> None:
    whole = bytearray((sources / "stored.zip").read_bytes())
    name = whole.rindex(b"train/cat/", 0, whole.rindex(b"train/cat/"))  # in the directory, where one more cat follows
    if field == "name":
        whole[name] ^= 1
    else:
        whole[name - 14] = 46 + len("train/cat/0000.png")  # the next entry becomes a comment of this one
    (tmp_path / "images.zip").write_bytes(whole)
    with pytest.raises(DataError, match=r"images\.zip"):
        load_data(str(tmp_path / "images.zip"))


@pytest.mark.parametrize(("source", "file"), [("py", "data_batch_3"), ("py", "batches.meta"), ("images", None)])
@settings(deadline=None, max_examples=100)
@given(place=st.one_of(PLACES, st.floats(0, 0.02)), mask=MASKS)
def test_damaged_file_never_ends_in_another_error(
    sources: Path, source: str, file: str | None, place: float, mask: int
) -> None:
    path = sources / source / (file or "train/cat/0000.png")
    damaged(sources / source, path, place, mask)


@pytest.mark.parametrize(
    "batch",
    [
        3,
        [b"data", b"labels"],
        {b"data": None, b"labels": [0]},
        {b"data": np.zeros((1, 3072)), b"labels": [0]},
        {b"data": np.zeros((0, 3072), np.uint8), b"labels": []},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": 0},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [0.5]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [[0]]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [-1]},
    ],
    ids=str,
)
def test_batches_of_another_form_are_refused(tmp_path: Path, batch: object) -> None:
    write_python(tmp_path / "py")
    (tmp_path / "py" / "data_batch_2").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataError, match="data_batch_2"):
        load_data(str(tmp_path / "py"))


def test_hostile_pickles_are_refused(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("executed",)

    write_python(tmp_path / "py")
    (tmp_path / "py" / "data_batch_1").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(DataError, match="refuses"):
        load_data(str(tmp_path / "py"))


def test_digits_split_is_stratified_and_fixed() -> None:
    data, again = load_data("digits"), load_data("digits")
    assert (data.train_images == again.train_images).all()
    assert data.train_images.shape == (1438, 1, 8, 8) and data.test_images.shape == (359, 1, 8, 8)
    train, test = np.bincount(data.train_labels), np.bincount(data.test_labels)
    assert (abs(test / (train + test) - 0.2) < 0.005).all()
    x = torch.cat([b for b, _ in load_data("digits").limited(test=0).test_batches(100)])
    assert abs(float(x.mean())) < 0.05 and abs(float(x.std()) - 1) < 0.05


def test_order_depends_on_seed_and_epoch_and_can_start_anywhere() -> None:
    data = load_data("digits")
    whole = list(data.train_batches(64, 3, 2))
    tail = list(data.train_batches(64, 3, 2, start=20))
    assert len(whole) == 23 and sum(len(y) for _, y in whole) == 1438
    for (x, y), (x2, y2) in zip(whole[20:], tail, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    assert not torch.equal(next(data.train_batches(64, 3, 1))[1], whole[0][1])
    assert not torch.equal(next(data.train_batches(64, 4, 2))[1], whole[0][1])


def test_limits_are_fixed_subsets() -> None:
    data = load_data("digits").limited(100, 50)
    assert len(data.train_labels) == 100 and len(data.test_labels) == 50
    assert (data.train_images == load_data("digits").limited(100, 50).train_images).all()
    assert len(np.unique(data.train_labels)) == 10


@pytest.mark.parametrize("depth", [50, 152])
def test_names_of_bottleneck_networks_build_no_other_network(depth: int) -> None:
    with pytest.raises(ValueError, match="bottleneck"):
        build_model(f"resnet-{depth}", 10, (3, 32, 32))
