"""The end of a program, by the accelerator's interrupt; by polling where there is none.

Linux hands an interrupt to a program as a file of its user space I/O.  ``pynq.Interrupt`` waits for the same file, but knows
only lines behind an interrupt controller in the logic, and as a coroutine, for which a call from a notebook, whose event loop
runs already, cannot wait.

Standard library and pynq only.
"""

from __future__ import annotations

import importlib
import logging
import select
import sys
import time
from collections.abc import Callable
from typing import BinaryIO, cast

from host.devices.device import DeviceError
from hw.contract import MemoryInterrupt

_logger = logging.getLogger(__name__)
_UNMASK = (1).to_bytes(4, sys.byteorder)
_COUNT_BYTES = 4
_LONGEST_SLEEP = 1e-3  #: seconds between two looks at the registers
_LONGEST_WAIT = 0.1  #: seconds after which the registers are looked at although no interrupt came
_GRACE = 0.02  #: seconds that the kernel may take for an interrupt


class UioInterrupt:
    """A line from the programmable logic.  The kernel masks it when it comes, until it is armed again.

    Args:
        line: its number, see :attr:`hw.boards.Board.interrupt_line`.

    Raises:
        DeviceError: the kernel does not offer this line.
    """

    def __init__(self, line: int) -> None:
        try:
            path = importlib.import_module("pynq.interrupt").get_uio_irq(line)
            if path is not None:
                self._file = cast(BinaryIO, open(path, "r+b", buffering=0))  # noqa: SIM115
        except Exception as e:
            raise DeviceError(f"interrupt {line} cannot be used ({type(e).__name__}: {e}); run as root") from e
        if path is None:
            raise DeviceError(
                f"the kernel offers no interrupt {line}; boot an image whose device tree has a node for it, as the node fabric "
                "(generic-uio) of PYNQ's images is"
            )
        self.name = f"interrupt {line}, {path}"

    def arm(self) -> None:
        """Let it come, once."""
        self._file.write(_UNMASK)

    def wait(self, seconds: float) -> bool:
        """Whether it came within that time."""
        if not select.select([self._file], [], [], max(0.0, seconds))[0]:
            return False
        self._file.read(_COUNT_BYTES)
        return True

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


class ProgramEnd:
    """Waits for the end of programs.

    Args:
        line: number of the accelerator's interrupt.
        ended: whether the program has ended, by the register STATUS.
        control: writes the register INTERRUPT.

    Attributes:
        way: how, in words: the interrupt's number and file, or that it polls, and why.
    """

    def __init__(self, line: int, ended: Callable[[], bool], control: Callable[[int], None]) -> None:
        self._ended, self._control = ended, control
        self._interrupt: UioInterrupt | None = None
        try:
            self._interrupt = UioInterrupt(line)
            self.way = self._interrupt.name
        except DeviceError as e:
            self._poll(str(e))

    def expect(self) -> None:
        """Before a program is started."""
        if self._interrupt is not None:
            self._control(int(MemoryInterrupt.ENABLE | MemoryInterrupt.PENDING))
            self._interrupt.wait(0.0)  # of a program that had ended before anyone waited
            self._interrupt.arm()

    def wait(self, until: float) -> bool:
        """Until the program has ended, or the time of ``time.monotonic`` has come: whether it has ended."""
        sleep = 0.0
        while not self._ended():
            left = until - time.monotonic()
            if left < 0:
                return False
            if self._interrupt is None:
                time.sleep(sleep)
                sleep = min(_LONGEST_SLEEP, sleep * 2 or 2e-5)
            elif self._interrupt.wait(min(left, _LONGEST_WAIT)):
                # before the next look at the registers: an end behind that look has an interrupt of its own
                self.expect()
            elif self._ended() and not self._interrupt.wait(_GRACE):
                self._poll(f"a program ended without {self._interrupt.name}")
        return True

    def quiet(self) -> None:
        """Nothing is expected: the line is low."""
        self._control(int(MemoryInterrupt.PENDING))

    def _poll(self, reason: str) -> None:
        """Without the interrupt from now on."""
        self.close()
        self.way = f"polling: {reason}"
        _logger.warning("the end of programs is polled: %s", reason)

    def close(self) -> None:
        """Give the kernel's file back."""
        if self._interrupt is not None:
            self._interrupt.close()
            self._interrupt = None
