"""Tab completion: commands and options from the parser, designs and recipes by name, by argcomplete.

A shell asks for it after ``eval "$(register-python-argcomplete fractrain)"``: it starts the command with variables that
argcomplete reads, and takes what is printed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hw.design import DESIGNS, PACKAGE_DATA

_RECIPES = PACKAGE_DATA / "configs" / "recipes"


def _names(folder: Path) -> list[str]:
    """Names of the TOML files in and below a folder."""
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.toml"))


def designs(prefix: str, **_: Any) -> list[str]:
    """Designs whose names begin like ``prefix``."""
    return [name for name in _names(DESIGNS) if name.startswith(prefix)]


def recipes(prefix: str, **_: Any) -> list[str]:
    """Recipes whose names begin like ``prefix``."""
    return [name for name in _names(_RECIPES) if name.startswith(prefix)]


_BY_OPTION = {"--design": designs, "--recipe": recipes}


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in set(action.choices.values()):
                yield from _actions(below)


def complete(parser: argparse.ArgumentParser) -> None:
    """Answers a shell that asks for completions, and ends the process; does nothing if no shell asks."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    try:
        import argcomplete
    except ModuleNotFoundError:  # on the board
        return
    for action in _actions(parser):
        for option in _BY_OPTION.keys() & set(action.option_strings):
            action.completer = _BY_OPTION[option]  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)
