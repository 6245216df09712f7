"""Files that matter: written whole or not at all, read as UTF-8, folders that one process at a time writes to, the cache."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCRATCH = ".part"  #: ends the names of files that are being written
LOCK = ".lock"  #: file of a folder that says who writes to it


class FolderInUseError(ValueError):
    """Another process writes to a folder; the message names both."""


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A scratch file beside ``path``, to be filled, which then takes its place: readers see the old file or the new.

    What is written is on disk before it is visible.  The new file's mode follows the umask, as that of any other file.

    Args:
        path: the file to make or to replace; its folder must exist.

    Raises:
        OSError: the file cannot be written, ``path`` is named; it is then unchanged.
    """
    scratch = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}{SCRATCH}")
    try:
        try:
            os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield scratch
            with scratch.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(scratch, path)
        except OSError as error:
            if error.errno is None or error.filename not in (None, str(scratch), scratch):
                raise
            raise type(error)(error.errno, error.strerror, str(path)) from error
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes | memoryview | str) -> None:
    """Puts ``content`` (text as UTF-8) at ``path`` in one step, see :func:`replaced`; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


def save_picture(figure: Any, path: Path, **options: Any) -> None:
    """Puts a Matplotlib figure at ``path`` in one step, in the format of its ending; the same figure gives the same bytes.

    Args:
        options: further ones of ``savefig``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix[1:].lower()
    with replaced(path) as scratch:
        figure.savefig(scratch, format=kind, metadata={"Date": None} if kind == "svg" else None, **options)


def cache_folder() -> Path:
    """The user's folder for what is built once and found again by its contents; made if it is missing.

    It is ``fractrain`` in ``$XDG_CACHE_HOME``, which is ``~/.cache`` by default (XDG Base Directory Specification 0.8,
    which also says that a relative path there is to be ignored).  Whatever is put there takes its place in one step.

    Raises:
        OSError: it cannot be made or written.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    folder = (base if base.is_absolute() else Path.home() / ".cache") / "fractrain"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        why = f"{error.strerror}; compiled code is kept here, set XDG_CACHE_HOME to a folder that can be written"
        raise type(error)(error.errno, why, str(folder)) from error
    return folder


def remove_scratch(folder: Path) -> None:
    """Removes what killed processes left half written in ``folder``."""
    for scratch in folder.glob(f".*{SCRATCH}"):
        scratch.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        OSError, UnicodeDecodeError: if it cannot be read.
    """
    return path.read_text(encoding="utf-8-sig")


TomlError = tomllib.TOMLDecodeError


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML document.

    Raises:
        TomlError: if it is none; the message says where.
    """
    return tomllib.loads(text)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds ``folder``, which must exist, against every other process and thread that asks for it.

    The lock ends with the process, however that ends, so none is ever left behind.

    Raises:
        FolderInUseError: if another one holds it.
    """
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise FolderInUseError(
                f"{folder} is being written to by {file.read().strip() or 'another process'}; wait for its end, or "
                "choose another folder"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield
        file.truncate(0)
