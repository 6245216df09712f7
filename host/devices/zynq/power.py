"""Power of a board from its regulators, and the energy of the programs that run meanwhile; standard library only."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from host.devices.device import DeviceError


class PowerSensor:
    """Board power from the kernel's hardware monitors (PMBus regulators on the ZC706 and ZCU104).

    Args:
        folder: where the monitors are; tests give their own.
    """

    def __init__(self, folder: Path = Path("/sys/class/hwmon")) -> None:
        self._power: list[Path] = []
        self._pairs: list[tuple[Path, Path]] = []
        for monitor in sorted(folder.glob("hwmon*")):
            power = sorted(monitor.glob("power*_input"))
            self._power += power
            if not power:  # regulators without a power reading: volts times amperes of the same rail
                volts = {self._label(p): p for p in monitor.glob("in*_input")}
                for amperes in sorted(monitor.glob("curr*_input")):
                    if (rail := self._label(amperes).replace("iout", "vout")) in volts:
                        self._pairs.append((volts[rail], amperes))

    @staticmethod
    def _label(path: Path) -> str:
        label = path.with_name(path.name.replace("_input", "_label"))
        return label.read_text(encoding="utf-8").strip() if label.is_file() else path.name.replace("curr", "in")

    @property
    def present(self) -> bool:
        """Whether any rail can be read."""
        return bool(self._power or self._pairs)

    def watts(self) -> float | None:
        """Sum over all rails now, or None without a readable sensor."""
        try:
            total = sum(int(p.read_text(encoding="utf-8")) * 1e-6 for p in self._power)
            total += sum(
                int(v.read_text(encoding="utf-8")) * int(a.read_text(encoding="utf-8")) * 1e-6 for v, a in self._pairs
            )
        except (OSError, ValueError):
            return None
        return total if self.present else None


class PowerMeter:
    """Energy of the board while programs run, from a sensor that a thread of its own reads.

    A reading takes milliseconds on the regulators' bus, so no program waits for one: a program's energy is its duration
    times the mean of the readings begun and ended while it ran, or, where it was too short for one, of all readings
    that were begun while a program ran.

    Args:
        sensor: what is read.
        period: seconds between the ends and beginnings of readings.

    Raises:
        DeviceError: the sensor cannot be read.
    """

    def __init__(self, sensor: PowerSensor, period: float = 0.02) -> None:
        if sensor.watts() is None:
            raise DeviceError(
                "no power monitor can be read on this board; measure without energy, or load the kernel's drivers of "
                "its regulators (they appear below /sys/class/hwmon)"
            )
        self._sensor, self._period = sensor, period
        self._lock = threading.Lock()
        self._running, self._closed = threading.Event(), threading.Event()
        self._here: list[float] = []  # readings, in watts, of the present program,
        self._sum, self._count = 0.0, 0  # and of all
        self._begun = 0.0
        self._program = 0
        self._thread = threading.Thread(target=self._read, name="power", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._closed.is_set():
            if not self._running.wait(timeout=0.5):
                continue
            program = self._program
            watts = self._sensor.watts()
            with self._lock:
                if watts is not None:
                    self._sum, self._count = self._sum + watts, self._count + 1
                    if self._running.is_set() and program == self._program:
                        self._here.append(watts)
            self._closed.wait(self._period)

    def start(self) -> None:
        """A program begins."""
        with self._lock:
            self._program += 1
            self._here = []
            self._begun = time.monotonic()
        self._running.set()

    def stop(self) -> float | None:
        """The program is over: its joules, or None while nothing has been read yet."""
        seconds = time.monotonic() - self._begun
        with self._lock:
            self._running.clear()
            if self._here:
                return seconds * sum(self._here) / len(self._here)
            return seconds * self._sum / self._count if self._count else None

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join(timeout=1.0)
