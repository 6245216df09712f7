"""Changes to the text of the HLS kernel, whichever of its files the code lies in."""

from __future__ import annotations


def replaced(files: dict[str, str], old: str, new: str) -> dict[str, str]:
    """``files`` with the one place that reads ``old`` reading ``new`` instead."""
    places = [name for name, text in files.items() if old in text]
    assert sum(files[name].count(old) for name in places) == 1, f"one place should read {old!r}; {places} do"
    return files | {name: files[name].replace(old, new) for name in places}
