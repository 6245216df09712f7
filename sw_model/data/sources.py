"""Where data sets lie: a folder, a zip or a tar archive, and one set of rules for what in it counts.

Links are followed in folders; those that lead nowhere, into a circle or out of an archive are refused by name.  Hidden
entries, which file managers, editors and archivers leave behind, are no part of any data set.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: What archives and images may raise that were cut or changed; both name compressions and flags that do not exist.
UNREADABLE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    RuntimeError,
    struct.error,
    lzma.LZMAError,
    zlib.error,
    tarfile.TarError,
    zipfile.BadZipFile,
)
#: Names, in lower case, that systems leave among files, beside those that begin with a point.
CLUTTER = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"})


class DataError(ValueError):
    """A data set is missing, broken or of the wrong form; the message says which file and what to do."""


def hidden(name: str) -> bool:
    """Whether a path, or a folder that it leads through, is no part of a data set."""
    return any(piece.startswith(".") or piece.lower() in CLUTTER for piece in name.split("/"))


@dataclass(frozen=True)
class FileSource:
    """The files of a data set.

    Attributes:
        path: the folder or archive.
        files, folders: names below it, pieces joined by "/", ordered piece by piece; none is hidden.
        read: the content of a file.
        state: digest of what tells that a file has changed: names, sizes and times.
    """

    path: Path
    files: list[str]
    folders: list[str]
    read: Callable[[str], bytes]
    state: Callable[[], str]


def _ordered(names: set[str]) -> list[str]:
    return sorted(names, key=lambda name: name.split("/"))


@contextmanager
def open_source(path: Path) -> Iterator[FileSource]:
    """Lists a folder or archive, and reads of it as long as the context lasts.

    Raises:
        DataError: if it cannot be read, or holds what no rule allows.
    """
    if not path.is_dir() and not (zipfile.is_zipfile(path) or tarfile.is_tarfile(path)):
        raise DataError(f"{path} is neither a zip nor a tar archive; download it again (it may be truncated)")
    try:
        if path.is_dir():
            yield _open_folder(path)
        elif tarfile.is_tarfile(path):
            yield _open_tar(path)
        else:
            with zipfile.ZipFile(path) as archive:
                yield _open_zip(path, archive)
    except DataError:
        raise
    except UNREADABLE as error:
        remedy = "check its files and their permissions" if path.is_dir() else "download it again"
        raise DataError(f"{path} cannot be read ({error}); {remedy}") from error


def _open_folder(path: Path) -> FileSource:
    files: set[str] = set()
    folders: set[str] = set()

    def enter(place: str, prefix: str, above: tuple[tuple[int, int], ...]) -> None:
        with os.scandir(place) as entries:
            for entry in entries:
                if hidden(entry.name):
                    continue
                name = prefix + entry.name
                if entry.is_dir():
                    status = entry.stat()
                    identity = status.st_dev, status.st_ino
                    if identity in above:
                        raise DataError(f"{entry.path} is a link to a folder that holds it; remove it")
                    folders.add(name)
                    enter(entry.path, f"{name}/", (*above, identity))
                elif entry.is_file():
                    files.add(name)
                elif entry.is_symlink():
                    target = os.readlink(entry.path)
                    raise DataError(f"{entry.path} is a link to {target}, which does not exist; restore or remove it")
                else:
                    raise DataError(f"{entry.path} is neither a file nor a folder; remove it")

    top = path.stat()
    enter(str(path), "", ((top.st_dev, top.st_ino),))
    return FileSource(
        path,
        _ordered(files),
        _ordered(folders),
        lambda name: (path / name).read_bytes(),
        lambda: _state({name: path / name for name in files}),
    )


def _state(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        status = file.stat()
        digest.update(json.dumps([name, status.st_size, status.st_mtime_ns]).encode())
    return digest.hexdigest()


def _refuse_link(path: Path, name: str) -> None:
    raise DataError(f"{path}: {name} is a link or no plain file; unpack the archive and give the folder")


def _with_parents(path: Path, files: set[str], folders: set[str], read: Callable[[str], bytes]) -> FileSource:
    for name in files:
        pieces = name.split("/")
        folders |= {"/".join(pieces[:n]) for n in range(1, len(pieces))}
    return FileSource(path, _ordered(files), _ordered(folders), read, lambda: _state({"": path}))


def _open_tar(path: Path) -> FileSource:
    # In one pass: in a compressed stream, going back means unpacking it again from its start.
    contents: dict[str, bytes] = {}
    folders: set[str] = set()
    with tarfile.open(path) as archive:
        for member in archive:
            name = posixpath.normpath(member.name).lstrip("/")
            if name == "." or hidden(name):
                continue
            if member.isdir():
                folders.add(name)
            elif member.islnk() and (first := posixpath.normpath(member.linkname).lstrip("/")) in contents:
                contents[name] = contents[first]
            elif member.isfile() and (stream := archive.extractfile(member)) is not None:
                contents[name] = stream.read()
            else:
                _refuse_link(path, name)
        # The sum of a compressed stream is checked at its end, which lies behind the last member.
        assert archive.fileobj is not None
        while archive.fileobj.read(1 << 20):
            pass
    return _with_parents(path, set(contents), folders, lambda name: contents[name])


def _open_zip(path: Path, archive: zipfile.ZipFile) -> FileSource:
    members: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    for entry in archive.infolist():
        archive.open(entry).close()  # compares its name with the one before the file's data
        if b"PK\1\2" in entry.comment:  # of a length that takes in the next entry
            # zipfile would take the files that a damaged directory hides for files that are not there
            raise zipfile.BadZipFile(f"the comment of {entry.filename} holds other files' directory entries")
        name = posixpath.normpath(entry.filename).lstrip("/")
        if name == "." or hidden(name):
            continue
        if stat.S_ISLNK(entry.external_attr >> 16):
            _refuse_link(path, name)
        if entry.is_dir():
            folders.add(name)
        else:
            members[name] = entry
    return _with_parents(path, set(members), folders, lambda name: archive.read(members[name]))
