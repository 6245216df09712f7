"""Pages of the site that are made from the code, so that they cannot differ from it; a hook of MkDocs.

The start page is the README.  Commands come from the parser, recipe keys from the comments of their class, the interface
from its docstrings, packets and registers from the templates that a design's own pages are rendered from.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import re
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import fractrain
from hw.design import ROOT, load_design
from hw.generate import render
from sw_model.train.recipe import TrainConfig

DESIGN = "zc706"  #: whose packets and registers are shown


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages; MkDocs calls this."""
    design = render(load_design(DESIGN))
    pages = {
        "index.md": start(),
        "reference/commands.md": commands(),
        "reference/recipes.md": recipe_keys(),
        "reference/interface.md": interface(),
        "reference/packets.md": design["docs/packets.md"],
        "reference/registers.md": design["docs/registers.md"],
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def start() -> str:
    """The README, its links led from the folder above to this one."""
    return (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")


def commands() -> str:
    """Every command with its options."""
    os.environ["COLUMNS"] = "100"  # argparse wraps to the terminal's width
    parts = ["# Commands\n"]
    for parser in _parsers(fractrain.build_parser()):
        parts.append(f"## {parser.prog}\n\n```text\n{parser.format_help().rstrip()}\n```\n")
    return "\n".join(parts)


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield parser
    for action in below:
        for each in action.choices.values():
            yield from _parsers(each)


def recipe_keys() -> str:
    """Every key of a recipe with its default, and what the comment above it says."""
    source = inspect.getsource(TrainConfig)
    lines = source.splitlines()
    parts = [
        "# Recipes\n",
        "A recipe is a TOML file; `fractrain train --recipe` takes its name or its path. A key that is left out has its "
        "default.\n",
    ]
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name) or node.value is None:
            continue
        comment: list[str] = []
        above = node.lineno - 2
        while lines[above].strip().startswith("#:"):
            comment.insert(0, lines[above].strip()[2:].strip())
            above -= 1
        while not lines[above].strip() and above:
            above -= 1
        if title := re.match(r" *# -- (.*)", lines[above]):
            heading = title[1][0].upper() + title[1][1:]
            parts.append(f"\n## {heading}\n\n| key | default | meaning |\n|---|---|---|\n")
        meaning = re.sub(r":\w+:`[~.]?([^`]*)`", r"`\1`", " ".join(comment)).replace("``", "`").replace("|", "\\|")
        default = ast.get_source_segment(source, node.value)
        parts.append(f"| `{node.target.id}` | `{default}` | {meaning} |\n")
    return "".join(parts)


def interface() -> str:
    """The names of ``import fractrain``, from their docstrings."""
    entries = "\n\n".join(f"::: {module}.{name}" for name, module in fractrain.INTERFACE.items())
    return f"# Interface for programs\n\n`import fractrain` has these names; they load PyTorch when they are first used.\n\n{entries}\n"
