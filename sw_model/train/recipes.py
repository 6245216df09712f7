"""Where named recipes are; no PyTorch, so that the command line can look them up before anything starts."""

from __future__ import annotations

from pathlib import Path

from hw.design import PACKAGE_DATA

RECIPES = PACKAGE_DATA / "configs" / "recipes"


def find_recipe(name_or_path: str) -> Path:
    """The TOML file of a recipe, from its path, or its name below ``configs/recipes`` as in ``paper/NAME``.

    Raises:
        ValueError: there is no such recipe.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    named = RECIPES / f"{name_or_path.removesuffix('.toml')}.toml"
    if name_or_path and not path.is_absolute() and ".." not in path.parts and named.is_file():
        return named
    if path.suffix == ".toml" or path.exists():
        why = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"recipe {name_or_path} {why}; name a TOML file, or one of those in configs/recipes")
    known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
    folders = ", ".join(sorted(f"{p.name}/NAME" for p in RECIPES.iterdir() if p.is_dir())) if RECIPES.is_dir() else ""
    raise ValueError(f"no recipe {name_or_path!r}; name one of {known}, {folders}, or a TOML file")
