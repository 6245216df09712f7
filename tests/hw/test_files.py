"""Writing files in one step, reading text, and folders with one writer."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hw.files import LOCK, FolderInUseError, cache_folder, locked, read_text, remove_scratch, replaced, write_atomically


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_mode_follows_the_umask(tmp_path: Path, umask: int) -> None:
    for _ in range(2):  # a new file, then one that is replaced
        write_atomically(tmp_path / "file", b"data")
        assert mode(tmp_path / "file") == 0o666 & ~umask


@pytest.mark.parametrize("content", [b"\0bytes", "tëxt", memoryview(b"view")])
def test_content_replaces_the_file_and_leaves_nothing_else(tmp_path: Path, content: bytes | memoryview | str) -> None:
    (tmp_path / "file").write_text("old")
    write_atomically(tmp_path / "file", content)
    wanted = content.encode() if isinstance(content, str) else bytes(content)
    assert (tmp_path / "file").read_bytes() == wanted and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [RuntimeError("half"), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
def test_failure_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(type(error)), replaced(tmp_path / "file") as scratch:
        scratch.write_text("half")
        raise error
    assert (tmp_path / "file").read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_names_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("x" * 255), b"data")
    assert os.listdir(tmp_path) == ["x" * 255]


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "file", tmp_path / "folder"):
        with pytest.raises(OSError) as caught, replaced(path) as scratch:
            scratch.write_text("data")
        assert caught.value.filename == str(path)


def test_folders_are_made_for_content(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b", "text")
    assert (tmp_path / "a" / "b").read_text() == "text"


def test_full_disk_keeps_the_old_file_and_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # files may not grow beyond
    try:
        with pytest.raises(OSError) as caught:
            write_atomically(tmp_path / "file", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    scratches = []
    with replaced(tmp_path / "file") as scratch:
        scratches.append(scratch.name)
    (tmp_path / scratches[0]).write_text("half")
    (tmp_path / "mine.part").write_text("keep")
    remove_scratch(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["file", "mine.part"]


def test_text_is_read_with_and_without_a_mark(tmp_path: Path) -> None:
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "text").write_bytes(mark + "tëxt".encode())
        assert read_text(tmp_path / "text") == "tëxt"


def hold(folder: Path, ready: object, end: object) -> None:
    with locked(folder):
        ready.set()  # type: ignore[attr-defined]
        end.wait(60)  # type: ignore[attr-defined]


@pytest.mark.parametrize("killed", [False, True])
def test_folder_of_another_process_is_refused_until_it_ends(tmp_path: Path, killed: bool) -> None:
    context = multiprocessing.get_context("spawn")
    ready, end = context.Event(), context.Event()
    child = context.Process(target=hold, args=(tmp_path, ready, end))
    child.start()
    try:
        assert ready.wait(60)
        with pytest.raises(FolderInUseError, match=rf"{tmp_path} .* {child.pid}\b"), locked(tmp_path):
            pass
    finally:
        if killed:
            child.kill()
        else:
            end.set()
        child.join(60)
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()


def test_folder_is_free_after_use_in_one_process(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path), pytest.raises(FolderInUseError), locked(tmp_path):
            pass
        with pytest.raises(ZeroDivisionError), locked(tmp_path):
            _ = 1 / (sys.maxsize - sys.maxsize)


def test_the_cache_is_where_the_user_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    assert cache_folder() == tmp_path / "there" / "fractrain" and cache_folder().is_dir()
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_folder() == tmp_path / ".cache" / "fractrain" and cache_folder().is_dir()


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"set XDG_CACHE_HOME to a folder.*file/fractrain"):
        cache_folder()
