"""Physically contiguous memory of a board: a bank for each memory port, and the only place where caches are maintained.

Standard library and NumPy only; PYNQ is what the device hands in.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from host.arrays import U64
from host.devices.device import DeviceError

WORD_BYTES = 8
PAGE_BYTES = 4096  #: banks start at pages, as the accelerator's registers want it
CACHE_LINE_WORDS = 8  #: no cache of the boards has longer lines


@contextmanager
def asked_of_pynq(what: str, remedy: str) -> Iterator[None]:
    """Around every use of PYNQ, which lets through whatever its parser, kernel interface or NumPy raise.

    Raises:
        DeviceError: what could not be done, PYNQ's own words, and the remedy.
    """
    try:
        yield
    except DeviceError:
        raise
    except Exception as e:
        if isinstance(e, AttributeError | TypeError) and int(np.__version__.split(".")[0]) >= 2:
            remedy = f"PYNQ 3 needs NumPy below 2, here is {np.__version__}: pip install 'numpy<2'"
        raise DeviceError(f"{what} ({type(e).__name__}: {e}); {remedy}") from e


class Bank:
    """Memory behind one port.

    Between calls no cache line of it is dirty: what is written is flushed at once, so that the accelerator sees it and
    nothing is ever written back over its results. What is read is invalidated before, as is a line of which a part is
    written. All of it concerns the lines that are touched, not the whole bank.

    Args:
        pynq: the module whose ``allocate`` makes the memory.
        name: for messages.
        words: how many it holds.

    Raises:
        DeviceError: no such memory.
    """

    def __init__(self, pynq: Any, name: str, words: int) -> None:
        self.name, self.words = name, words
        with asked_of_pynq(
            f"{name}: no {words * WORD_BYTES >> 20} MiB of contiguous memory",
            "free other buffers, raise the kernel's cma= argument (docs/board.md), or ask for a smaller memory",
        ):
            self._memory = pynq.allocate(shape=(words,), dtype=np.uint64)
        try:
            self.address = int(self._memory.physical_address)
            if self.address % PAGE_BYTES:
                raise DeviceError(f"{name}: its memory at {self.address:#x} starts at no page, which the ports need")
            self._clean = self._maintenance("flush", "XCL_BO_SYNC_BO_TO_DEVICE")
            self._refresh = self._maintenance("invalidate", "XCL_BO_SYNC_BO_FROM_DEVICE")
            self._asked("flush", self._clean, 0, words)  # whatever was there before
        except BaseException:
            self.free()
            raise

    def _maintenance(self, method: str, direction: str) -> Callable[[int, int], None]:
        """How a range of words is flushed or invalidated.

        A slice of a buffer names its part to PYNQ's device; from PYNQ 3.1 on that maintains the whole allocation whatever it is
        told, and XRT's buffer object, which such a buffer then has, is asked itself.
        """
        sync = getattr(getattr(self._memory, "bo", None), "sync", None)
        if not callable(sync):
            return lambda begin, end: getattr(self._memory[begin:end], method)()
        way = getattr(importlib.import_module("pyxrt").xclBOSyncDirection, direction)
        return lambda begin, end: sync(way, (end - begin) * WORD_BYTES, begin * WORD_BYTES)

    def _asked(self, what: str, how: Callable[[int, int], None], begin: int, end: int) -> None:
        """Maintains the lines that words ``begin`` to ``end`` touch."""
        first = begin // CACHE_LINE_WORDS * CACHE_LINE_WORDS
        last = min(self.words, -(-end // CACHE_LINE_WORDS) * CACHE_LINE_WORDS)
        if first >= last:
            return
        with asked_of_pynq(f"{self.name}: {what} of words {begin} to {end} failed", "load the overlay again"):
            how(first, last)

    def write(self, begin: int, words: U64) -> None:
        """Puts words in and makes the accelerator see them."""
        if words.size:
            end = begin + words.size
            for edge in (begin, end):
                if edge % CACHE_LINE_WORDS:  # a line whose other words the accelerator may have written since
                    self._asked("invalidate", self._refresh, edge, edge + 1)
            self._memory[begin:end] = words
            self._asked("flush", self._clean, begin, end)

    def read(self, begin: int, out: U64) -> None:
        """Takes ``out.size`` words out as the accelerator has left them."""
        if out.size:
            self._asked("invalidate", self._refresh, begin, begin + out.size)
            out[:] = self._memory[begin : begin + out.size]

    def free(self) -> None:
        """Gives the memory back."""
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.freebuffer()
