"""A bitstream without a hardware description: loaded by the kernel's FPGA manager, its one block where the processor's port is.

For bitstreams of ``fractrain bitstream --flow open``, which come from no tool that writes a ``.hwh``.  Standard library only.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from host.devices.device import DeviceError
from hw.boards import PROCESSOR_CLOCK_MHZ
from hw.files import write_atomically

CONTROL_ADDRESS, CONTROL_RANGE = (
    0x4000_0000,
    0x1000,
)  #: of the registers: M_AXI_GP0 of the Zynq-7000 and nothing behind it
_SYNC = bytes.fromhex("aa995566")  #: begins the configuration, behind dummy words
#: words before it: dummies, and those from which a configuration port finds its width
_PRELUDE = (b"\xff" * 4, bytes.fromhex("000000bb"), bytes.fromhex("11220044"))


def raw_configuration(data: bytes) -> bytes:
    """What the manager takes: the configuration from its dummy words on, each word with its lowest byte first.

    Raises:
        DeviceError: no configuration.
    """
    sync = data.find(_SYNC)
    if sync < 0:
        raise DeviceError("the bitstream holds no sync word AA995566: it is cut off, or something else")
    begin = sync
    while begin >= 4 and data[begin - 4 : begin] in _PRELUDE:
        begin -= 4
    words = (len(data) - begin) // 4
    return struct.pack(f"<{words}I", *struct.unpack(f">{words}I", data[begin : begin + 4 * words]))


class ManagedOverlay:
    """A bitstream in the programmable logic.  Has what the driver asks of PYNQ's ``Overlay``.

    Args:
        bit: the bitstream, of one design and of the present board.
        manager: the kernel's FPGA manager, with the attributes ``firmware``, ``flags`` and ``state``, which AMD's kernels have.
        firmware: folder from which the kernel takes it.
        clocks: PYNQ's ``Clocks``: its ``fclk0_mhz`` is set to :data:`PROCESSOR_CLOCK_MHZ`.

    Raises:
        DeviceError: no such manager, it does not take the bitstream, or another clock.
    """

    def __init__(
        self,
        bit: Path,
        clocks: Any,
        manager: Path = Path("/sys/class/fpga_manager/fpga0"),
        firmware: Path = Path("/lib/firmware"),
    ) -> None:
        self.bitfile_name = str(bit)
        self.ip_dict = {"fabric": {"phys_addr": CONTROL_ADDRESS, "addr_range": CONTROL_RANGE, "parameters": {}}}
        configuration = raw_configuration(bit.read_bytes())
        if not (manager / "firmware").exists():
            raise DeviceError(f"{manager} has no attribute firmware: boot an image with AMD's kernel, as PYNQ's are")
        name = f"{bit.stem}.bin"
        try:
            clocks.fclk0_mhz = PROCESSOR_CLOCK_MHZ
            write_atomically(firmware / name, configuration)
            for attribute, text in (("flags", "0"), ("firmware", name)):  # the kernel takes each write as a command
                with (manager / attribute).open("w", encoding="utf-8") as stream:
                    stream.write(text)
            state = (manager / "state").read_text(encoding="utf-8").strip()
        except OSError as e:
            raise DeviceError(f"{bit} cannot be loaded ({e}); run as root, and look into dmesg") from e
        if state != "operating":
            raise DeviceError(f"the FPGA manager is in state {state!r} after {bit}, not operating; look into dmesg")
        if abs(float(clocks.fclk0_mhz) - PROCESSOR_CLOCK_MHZ) > PROCESSOR_CLOCK_MHZ / 100:
            raise DeviceError(f"FCLK_CLK0 runs at {clocks.fclk0_mhz} MHz, the design needs {PROCESSOR_CLOCK_MHZ:g}")
