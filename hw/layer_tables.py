"""Layers of a network as a table in a file: what tracing a network of others leaves for the cost models.

The file is JSON: ``{"model": name, "layers": [{"name": ..., "in_channels": ..., ...}, ...]}``, a row per layer with the
fields of :class:`hw.networks.ConvShape`; those with a default may be left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from operator import index
from pathlib import Path
from typing import Any

from hw.files import read_text, write_atomically
from hw.networks import ConvShape, network

CALL = "#"  #: before the number of a layer's second, third, ... call in a forward pass

_DEFAULTS = {f.name: f.default for f in fields(ConvShape) if f.default is not MISSING}


def row_of(shape: ConvShape) -> dict[str, Any]:
    """A layer as plain values, defaults left out."""
    return {name: value for name, value in asdict(shape).items() if _DEFAULTS.get(name) != value}


def shape_of(row: Mapping[str, Any]) -> ConvShape:
    """A layer from plain values.

    Raises:
        ValueError: unknown or missing fields, or values that are no layer.
    """
    known = {f.name for f in fields(ConvShape)}
    if set(row) - known or known - _DEFAULTS.keys() - set(row):
        wrong = sorted(set(row) - known) or sorted(known - _DEFAULTS.keys() - set(row))
        raise ValueError(f"layer {row.get('name', row)!r}: {', '.join(wrong)}; a layer has {', '.join(sorted(known))}")
    try:
        height, width = (index(n) for n in row["in_hw"])
        texts = ("name", "kind", "in_hw")
        values: dict[str, Any] = {name: str(row[name]) for name in texts[:2] if name in row}
        values |= {name: index(row[name]) for name in row if name not in texts}
    except (TypeError, ValueError) as error:
        raise ValueError(f"layer {row['name']!r} has values that are no whole numbers ({error})") from error
    return ConvShape(**values, in_hw=(height, width))


def save_table(path: Path, model: str, shapes: Iterable[ConvShape]) -> None:
    """Write a network's layers."""
    rows = ",\n  ".join(json.dumps(row_of(shape)) for shape in shapes)
    write_atomically(path, f'{{"model": {json.dumps(model)},\n "layers": [\n  {rows}\n]}}\n')


def load_table(path: Path) -> list[ConvShape]:
    """Read a network's layers.

    Raises:
        ValueError: the file is missing, or holds no such table.
    """
    try:
        data = json.loads(read_text(path))
        rows = data["layers"]
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise TypeError("layers is no list of objects")
    except FileNotFoundError as error:
        raise ValueError(f"there is no table of layers {path}; fractrain layers writes one") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no table of layers ({error}); fractrain layers writes one") from error
    shapes = [shape_of(row) for row in rows]
    if len({shape.name for shape in shapes}) < len(shapes):
        raise ValueError(f"{path} names a layer twice; give each a name of its own")
    return shapes


def layers_of(model: str, classes: int | None = None) -> Sequence[ConvShape]:
    """Layers of a network: by name, see :func:`hw.networks.network`, or of a table (``.json``).

    Raises:
        ValueError: an unknown name, or a file that is no table.
    """
    if not model.endswith(".json"):
        return network(model, classes)
    if classes is not None:
        raise ValueError(f"{model} states its own layers; leave out --classes")
    return load_table(Path(model))
