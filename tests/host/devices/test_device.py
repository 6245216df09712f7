"""Opening devices, and answers that are not answers."""

from __future__ import annotations

import numpy as np
import pytest

from host.devices.device import ERROR_MEANING, DeviceError, ProgramError, check, open_device, parse_output
from hw.contract import TRAILER_MAGIC, Error
from hw.design import load_design


def test_open_device_by_kind() -> None:
    design = load_design("sim-small")
    info = open_device("reference", design).info
    assert (info.kind, info.design, info.hash64) == ("reference", design, design.hash64)
    with pytest.raises(ValueError, match="no device kind 'fpga'; use one of reference, hls, rtl, pynq"):
        open_device("fpga", design)


def test_every_error_has_a_meaning_and_a_remedy() -> None:
    assert set(ERROR_MEANING) == set(Error)
    text = str(ProgramError(Error.OVERFLOW, 7, "weight gradient of layer 3"))
    assert text.startswith("OVERFLOW (9) at packet 7 of weight gradient of layer 3: ")


def test_trailers_are_parsed_or_refused() -> None:
    trailer = [TRAILER_MAGIC << 32 | Error.OVERFLOW, 5 << 32 | 4]
    result = parse_output(np.array([11, 12, *trailer], dtype=np.uint64), {})
    assert result.words.tolist() == [11, 12]
    assert (result.error, result.position) == (Error.OVERFLOW, 4)
    with pytest.raises(ProgramError, match="packet 4"):
        check(result)
    with pytest.raises(DeviceError, match="not with a trailer"):
        parse_output(np.array([1, 2], dtype=np.uint64), {})
    with pytest.raises(DeviceError, match="not with a trailer"):
        parse_output(np.zeros(0, dtype=np.uint64), {})
    with pytest.raises(DeviceError, match="error code 77"):
        parse_output(np.array([TRAILER_MAGIC << 32 | 77, 0], dtype=np.uint64), {})
