"""What all commands' options share: the parser, and one function per kind of value.

A function here is an argparse ``type``: it takes the text of an option and gives its value, or raises
``argparse.ArgumentTypeError`` with cause and remedy.  So a bad value is a usage error before anything starts.
Standard library only, since the board has these commands too.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from hw.networks import Bits

LARGEST = (1 << 31) - 1  #: of any count: nothing here counts further, and larger ones are slips


class UsageError(Exception):
    """The command line is wrong; the message names the command, the option and what helps."""


class _Formatter(argparse.HelpFormatter):
    """Adds every option's default to its help, unless the text says something about it already."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        shown = action.default not in (None, False, [], argparse.SUPPRESS)
        if not shown or not action.option_strings or "%(default)" in text or "default:" in text:
            return text
        if isinstance(action.default, list | tuple):
            default = " ".join(map(str, action.default)).replace("%", "%%")
            return f"{text} (default: {default})".lstrip()
        return f"{text} (default: %(default)s)".lstrip()


class Parser(argparse.ArgumentParser):
    """A parser that shows defaults, raises :class:`UsageError`, and takes ``--verbose`` in every command."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options.setdefault("formatter_class", _Formatter)
        super().__init__(*arguments, **options)
        self.add_argument(
            "--verbose",
            action="store_true",
            default=argparse.SUPPRESS,
            help="log details; failures with their traceback",
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message} (see {self.prog} --help)")


def _integer(text: str, least: int, most: int, remedy: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not possible; {remedy}")
    return value


def positive(text: str) -> int:
    """A count of at least 1."""
    return _integer(text, 1, LARGEST, f"give a whole number of at least 1, at most {LARGEST}")


def whole(text: str) -> int:
    """A count or a seed: 0 or more."""
    return _integer(text, 0, LARGEST, f"give a whole number of at least 0, at most {LARGEST}")


def at_least_two(text: str) -> int:
    """A count of at least 2: an interval needs two values."""
    return _integer(
        text, 2, LARGEST, f"give a whole number of at least 2, at most {LARGEST}, since one value has no interval"
    )


def width(text: str) -> int:
    """A bit width that the fabric has."""
    return _integer(text, 1, 16, "give 1 to 16 bits")


def port(text: str) -> int:
    """A TCP port to listen on; 0 lets the system choose."""
    return _integer(text, 0, 65535, "give a port from 1 to 65535, or 0 for a free one")


def threads(text: str) -> int:
    """CPU threads: no more than a thread pool can start."""
    most = max(64, 4 * (os.cpu_count() or 1))
    return _integer(text, 1, most, f"this machine has {os.cpu_count()} processors; give 1 to {most} threads")


def process_count(text: str) -> int:
    """Processes: a positive count, or -1 for all cores."""
    return -1 if text.strip() == "-1" else _integer(text, 1, 1024, "give 1 to 1024 processes, or -1 for all cores")


def number(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not possible; give a finite number above 0")
    return value


def percentage(text: str) -> float:
    """A share in percent, above 0 and at most 100."""
    if (value := number(text)) > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is more than the whole; give a percentage above 0, up to 100")
    return value


def numbers(text: str) -> list[float]:
    """Finite numbers above 0, with commas between them."""
    return [number(part) for part in text.split(",")]


def bits(text: str) -> Bits:
    """Widths of weights, activations and gradients; float32 operands are possible, see :meth:`hw.networks.Bits.parse`."""
    try:
        return Bits.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def fabric_bits(text: str) -> Bits:
    """Three widths, all of them ones that the fabric has."""
    widths = bits(text)
    if max(widths) > 16 or widths.weight_g:
        raise argparse.ArgumentTypeError(
            f"{text!r} has widths that the fabric does not have; give three of 1 to 16 bits, such as 8/8/8"
        )
    return widths


# -- paths ----------------------------------------------------------------------------------------------------------


def output_refusal(path: Path, folder: bool) -> str | None:
    """Why ``path`` cannot become a file, or a ``folder`` of files: cause and remedy; None if it can."""
    wanted = "folder" if folder else "file"
    if path.exists() and path.is_dir() is not folder:
        return f"{path} exists and is no {wanted}; choose another name"
    place = path if folder and path.is_dir() else next(p for p in path.absolute().parents if p.exists())
    if not place.is_dir():
        return f"{place} is no folder, so no {wanted} can be made below it; choose another place"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{place} may not be written; choose another place, or change its permissions"
    if not folder and path.exists() and not os.access(path, os.W_OK):
        return f"{path} may not be written; choose another name, or change its permissions"
    return None


def usable_folder(path: Path, option: str = "--out") -> Path:
    """A default folder, if it can be written, before work starts.

    Raises:
        ValueError: it cannot; the message says why.
    """
    if why := output_refusal(path, folder=True):
        raise ValueError(f"{why} with {option}")
    return path


def _writable(text: str, folder: bool) -> Path:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path; name a {'folder' if folder else 'file'}")
    path = Path(text)
    try:
        why = output_refusal(path, folder)
    except OSError as error:
        why = f"{path} cannot be used ({error.strerror}); choose another name"
    if why:
        raise argparse.ArgumentTypeError(why)
    return path


def output_folder(text: str) -> Path:
    """A folder to write: there already, or one that can be made."""
    return _writable(text, folder=True)


def output_file(text: str) -> Path:
    """A file to write: a new one, or one that can be replaced."""
    return _writable(text, folder=False)


def picture_file(text: str) -> Path:
    """A picture to write, in a format that its suffix names."""
    if Path(text).suffix.lower() not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"{text} names no format; end it in .svg or .png")
    return output_file(text)


def input_file(text: str) -> Path:
    """A file that is there and can be read."""
    return _existing(text, Path.is_file, "file", "check the path")


def run_folder(text: str) -> Path:
    """A folder that is there: a run's."""
    return _existing(text, Path.is_dir, "folder", "name the folder that a training has written (its --out)")


def _existing(text: str, fits: Callable[[Path], bool], kind: str, remedy: str) -> Path:
    path = Path(text)
    try:
        there, fitting = path.exists(), fits(path)
    except (OSError, ValueError):
        there = fitting = False
    if not fitting:
        why = f"is not a {kind}" if there else "does not exist"
        raise argparse.ArgumentTypeError(f"{text!r} {why}; {remedy}")
    if not os.access(path, os.R_OK):
        raise argparse.ArgumentTypeError(f"{text!r} may not be read; change its permissions")
    return path
