"""Measurements that are committed, and whether they are of the design as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hw.design import load_design


def recorded(path: Path) -> tuple[dict[str, Any], pytest.MarkDecorator]:
    """A measurement, and the mark of tests that hold something against it.

    Under the mark they are expected to fail as long as the measurement is of other parameters or another contract.
    """
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    outdated = data["hash"] != f"{load_design(data['design']).hash64:016x}"
    reason = f"measured on another design or contract; record again: {data['command']}"
    return data, pytest.mark.xfail(outdated, reason=reason)
