"""One set of rules for folders and archives: links, hidden names, suffixes, one data set, kinds of pixels."""

from __future__ import annotations

import io
import os
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sw_model.data.class_folders import SUFFIXES, read_image
from sw_model.data.image_folders import FolderSet, open_images
from sw_model.data.images import ImageSet
from sw_model.data.sources import DataError

Pack = Callable[[Path], Path]
KINDS = ("folder", "zip", "tar.gz")


def image(path: Path, shade: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(path)


def packed(folder: Path, kind: str) -> Path:
    if kind == "folder":
        return folder
    path = folder.with_name(f"{folder.name}.{kind}")
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*")):
                archive.write(file, file.relative_to(folder).as_posix())
    else:
        with tarfile.open(path, "w:gz") as archive:
            archive.add(folder, ".")
    return path


@pytest.fixture(params=["test", "val"])
def part(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def root(tmp_path: Path, part: str) -> Path:
    folder = tmp_path / "set"
    for n, title in enumerate(("cat", "dog")):
        image(folder / "train" / title / "0.png", 10 + n)
        image(folder / part / title / "0.png", 20 + n)
    return folder


def sizes(data: ImageSet | FolderSet) -> tuple[int, int, tuple[str, ...]]:
    return len(data.train_labels), len(data.test_labels), data.classes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    ["train/.ipynb_checkpoints/x.png", "train/cat/._0.png", "__MACOSX/train/cat/0.png", "train/cat/.hidden/x.png",
     "train/@eaDir/x.png"],
)  # fmt: skip
def test_hidden_entries_are_no_data(root: Path, part: str, kind: str, name: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"no image")
    (root / "train" / "cat" / "Thumbs.db").write_bytes(b"")
    if part == "val" and kind != "folder":
        with pytest.raises(DataError, match="unpack"):
            open_images(str(packed(root, kind)))
        return
    assert sizes(open_images(str(packed(root, kind)))) == (2, 2, ("cat", "dog"))


def test_links_are_followed(root: Path, tmp_path: Path) -> None:
    image(tmp_path / "elsewhere" / "1.png")
    (root / "train" / "eel").symlink_to(tmp_path / "elsewhere")
    (root / "train" / "cat" / "1.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    assert sizes(open_images(str(root))) == (4, 2, ("cat", "dog", "eel"))


@pytest.mark.parametrize("name", ["train/eel", "train/cat/9.png"])
def test_links_that_lead_nowhere_or_in_a_circle_are_named(root: Path, name: str) -> None:
    for target, message in (("/nowhere/at/all", "does not exist"), (str(root), "holds it")):
        (root / name).symlink_to(target)
        with pytest.raises(DataError, match=rf"{name}.* {message}"):
            open_images(str(root))
        (root / name).unlink()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_links_in_archives_are_named(root: Path, kind: str) -> None:
    path = packed(root, kind)
    if kind == "zip":
        with zipfile.ZipFile(path, "a") as archive:
            entry = zipfile.ZipInfo("train/eel")
            entry.external_attr = 0o120777 << 16
            archive.writestr(entry, "cat")
    else:
        (root / "train" / "eel").symlink_to("cat")
        path = packed(root, kind)
    with pytest.raises(DataError, match="train/eel is a link"):
        open_images(str(path))


def test_hard_links_in_archives_are_files(root: Path, part: str) -> None:
    os.link(root / "train" / "cat" / "0.png", root / "train" / "cat" / "1.png")
    path = packed(root, "tar.gz")
    if part == "test":
        assert sizes(open_images(str(path)))[0] == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["x.tga", "x.txt", None])
def test_class_without_an_image_is_named(root: Path, part: str, kind: str, file: str | None) -> None:
    folder = root / "train" / "eel"
    folder.mkdir()
    if file:
        (folder / file).write_bytes(b"x")
    if part == "test" or kind == "folder":
        with pytest.raises(DataError, match=rf"train/eel holds no images.*{file or ''}"):
            open_images(str(packed(root, kind)))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_read(root: Path, suffix: str) -> None:
    image(root / "train" / "cat" / f"1{suffix}")
    data = open_images(str(root))
    assert sizes(data)[0] == 3
    if isinstance(data, FolderSet):
        assert sum(len(y) for _, y in data.train_batches(2, 1, 0)) == 3


def test_other_files_are_left_out_with_a_word(root: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_images(str(root))
    (root / "train" / "cat" / "labels.txt").write_text("x")
    with pytest.warns(UserWarning, match="labels.txt"):
        open_images(str(root))


def test_several_data_sets_below_one_folder_are_named(root: Path, part: str) -> None:
    image(root / "old" / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match=rf"several data sets.*{root}.*{root}/old"):
        open_images(str(root))


def test_image_that_lies_too_deep_or_too_high_is_named(root: Path, part: str) -> None:
    for name in ("train/cat/more/0.png", "train/0.png", "train/test/cat/z.png"):
        image(root / name)
        with pytest.raises(DataError, match=r"train/cat/more/0.png|train/0.png|several data sets"):
            open_images(str(root))
        (root / name).unlink()
        if name.count("/") > 1:
            (root / name).parent.rmdir()
            if name.count("/") > 2 and "test" in name:
                (root / name).parents[1].rmdir()


def test_classes_may_be_called_like_parts(root: Path, part: str) -> None:
    image(root / "train" / "train" / "0.png")
    image(root / part / "train" / "0.png")
    image(root / "train" / "meta" / "0.png")
    assert sizes(open_images(str(root)))[2] == ("cat", "dog", "meta", "train")


def test_a_data_set_may_lie_one_folder_below(root: Path, part: str, tmp_path: Path) -> None:
    data = open_images(str(tmp_path))
    assert sizes(data) == (2, 2, ("cat", "dog"))
    if isinstance(data, FolderSet):
        assert len(list(data.test_batches(2))) == 1


def test_folder_called_meta_does_not_make_class_folders_cifar(root: Path) -> None:
    (root / "meta").mkdir()
    assert sizes(open_images(str(root))) == (2, 2, ("cat", "dog"))


@pytest.mark.parametrize("name", ["", "  "])
def test_empty_name_is_not_the_current_folder(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(DataError, match="neither 'digits' nor an existing path"):
        open_images(name)


def shown(image: Image.Image, format: str) -> np.ndarray:
    stream = io.BytesIO()
    image.save(stream, format)
    stream.seek(0)
    return np.asarray(read_image(stream, "x"))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_grey_of_sixteen_bits_is_scaled(format: str) -> None:
    values = np.array([[0, 128, 257, 1000, 32768, 65535]], np.uint16)
    pixels = shown(Image.fromarray(values), format)
    assert (pixels == np.rint(values / 257)[..., None]).all()


def test_transparent_pixels_are_white_whatever_lies_under_them() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 50, 60, 70])
    palette.putpixel((1, 0), 1)
    palette.info["transparency"] = 0
    colours = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    colours.putpixel((1, 0), (50, 60, 70, 255))
    for image in (palette, colours):
        assert shown(image, "PNG").tolist() == [[[255, 255, 255], [50, 60, 70]]]
    grey = Image.new("LA", (1, 1), (9, 255))
    assert shown(grey, "PNG").tolist() == [[[9, 9, 9]]]


def test_other_modes_are_colours() -> None:
    assert shown(Image.new("1", (1, 1), 1), "PNG").tolist() == [[[255, 255, 255]]]
    cmyk = shown(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")[0, 0]
    assert cmyk[0] > 240 and cmyk[1] < 15 and cmyk[2] < 15


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_without_a_range_are_refused(dtype: type) -> None:
    with pytest.raises(DataError, match="no known range"):
        shown(Image.fromarray(np.ones((2, 2), dtype)), "TIFF")


def test_what_is_no_image_is_named_and_no_object() -> None:
    with pytest.raises(DataError, match=r"image cat\.png is broken") as caught:
        read_image(io.BytesIO(b"text"), "cat.png")
    assert "0x" not in str(caught.value)
