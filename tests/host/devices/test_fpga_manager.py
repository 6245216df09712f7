"""The loader of bitstreams without a hardware description, on folders that stand for the kernel's."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.devices.device import DeviceError
from host.devices.pynq_device import PynqDevice
from host.devices.reference import ReferenceDevice
from host.devices.zynq import fpga_manager
from host.devices.zynq.fpga_manager import ManagedOverlay, raw_configuration
from hw.contract import VERSION
from hw.design import load_design
from tests.support.malformed import good_program
from tests.support.substitute_pynq import Board, install

DESIGN = load_design("sim-small")
PRELUDE = bytes.fromhex("ffffffff" * 8 + "000000bb" + "11220044" + "ffffffff" * 2)
SYNC = bytes.fromhex("aa995566")


@given(
    st.binary(max_size=40).filter(lambda header: SYNC not in header), st.lists(st.integers(0, 2**32 - 1), max_size=20)
)
def test_the_header_goes_and_words_are_turned(header: bytes, words: list[int]) -> None:
    header += b"e"  # what comes before the dummy words is none of them
    body = struct.pack(f">{len(words)}I", *words)
    raw = raw_configuration(header + PRELUDE + SYNC + body)
    turned = struct.unpack(f">{len(raw) // 4}I", raw)
    expected = [int.from_bytes((PRELUDE + SYNC)[i : i + 4], "little") for i in range(0, len(PRELUDE + SYNC), 4)]
    assert list(turned) == expected + [int.from_bytes(w.to_bytes(4, "big"), "little") for w in words]


def test_what_is_no_bitstream_is_refused() -> None:
    with pytest.raises(DeviceError, match="no sync word"):
        raw_configuration(b"\xff" * 100)


class Kernel:
    """Folders of the FPGA manager and of firmware, and PYNQ's clocks."""

    def __init__(self, folder: Path, state: str = "operating") -> None:
        self.manager, self.firmware = folder / "fpga0", folder / "firmware"
        for each in (self.manager, self.firmware):
            each.mkdir()
        for name, text in {"firmware": "", "flags": "1", "state": state}.items():
            (self.manager / name).write_text(text + "\n")
        self.clocks = SimpleNamespace(fclk0_mhz=50.0)
        self.bit = folder / "small.bit"
        self.bit.write_bytes(b"header" + PRELUDE + SYNC + bytes(8))

    def load(self) -> ManagedOverlay:
        return ManagedOverlay(self.bit, self.clocks, self.manager, self.firmware)


def test_a_bitstream_is_handed_to_the_kernel(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    overlay = kernel.load()
    assert (kernel.manager / "firmware").read_text() == "small.bin"
    assert (kernel.manager / "flags").read_text() == "0"
    assert [p.name for p in kernel.firmware.iterdir()] == ["small.bin"]
    assert kernel.clocks.fclk0_mhz == 100.0
    assert overlay.ip_dict["fabric"]["phys_addr"] == 0x4000_0000


def test_what_the_kernel_does_not_take_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    kernel = Kernel(tmp_path / "a", state="write error")
    with pytest.raises(DeviceError, match="in state 'write error'"):
        kernel.load()
    (kernel.manager / "firmware").unlink()
    with pytest.raises(DeviceError, match="no attribute firmware"):
        kernel.load()
    (tmp_path / "b").mkdir()
    kernel = Kernel(tmp_path / "b")

    class Fixed:
        """A clock that cannot be changed."""

        @property
        def fclk0_mhz(self) -> float:
            return 50.0

        @fclk0_mhz.setter
        def fclk0_mhz(self, value: float) -> None:
            """Has no effect."""

    kernel.clocks = Fixed()  # type: ignore[assignment]
    with pytest.raises(DeviceError, match=r"runs at 50\.0 MHz"):
        kernel.load()
    kernel.firmware.rename(tmp_path / "gone")
    kernel.firmware.write_text("")  # no folder
    with pytest.raises(DeviceError, match="run as root"):
        kernel.load()


def test_the_driver_loads_what_its_manifest_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(tmp_path)
    board = Board(ReferenceDevice(DESIGN), DESIGN)
    install(board, monkeypatch)
    monkeypatch.setattr(__import__("pynq"), "Clocks", kernel.clocks, raising=False)
    monkeypatch.setattr(fpga_manager.ManagedOverlay.__init__, "__defaults__", (kernel.manager, kernel.firmware))
    manifest = {"design_hash": f"{DESIGN.hash64:016x}", "contract_version": VERSION, "flow": "open"}
    kernel.bit.with_suffix(".json").write_text(json.dumps(manifest))
    device = PynqDevice(DESIGN, kernel.bit, beats=1 << 14)
    good = good_program(DESIGN)
    assert np.array_equal(device.run(good).words, ReferenceDevice(DESIGN).run(good).words)
    assert (kernel.manager / "firmware").read_text() == "small.bin"
