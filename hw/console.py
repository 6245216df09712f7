"""What commands show people: one console for all, and the progress of long work on terminals and in pipes."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

WIDTH = 120  #: columns of a file or a pipe, which has none of its own
INTERVAL = 10.0  #: seconds to the first line of progress where no bar can be drawn; each wait is twice the one before
LONGEST = 300.0  #: seconds between lines, at most


def console(stderr: bool = False) -> Console:
    """A console whose text is not broken to a terminal's width where there is no terminal."""
    from rich.console import Console

    made = Console(stderr=stderr)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = WIDTH
    return made


class Progress:
    """Progress of one long piece of work: a bar on a terminal, elsewhere a line now and then.

    The lines come from a thread, so that work which calls back seldom or never is seen to be alive too.  Used as a
    context manager around the work.

    Args:
        what: the work, for people.
        total: how many of its steps there are; None if nobody knows.
        active: whether to show anything at all.
        stderr: where to show it.
        interval: seconds to the first line.

    Attributes:
        done: steps done so far.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        *,
        active: bool = True,
        stderr: bool = True,
        interval: float = INTERVAL,
    ) -> None:
        self._what, self._total, self.done, self._note = what, total, 0, ""
        self._console = console(stderr) if active else None
        self._interval = interval
        self._bar: Bar | None = None
        self._over = threading.Event()
        self._reporter: threading.Thread | None = None
        if self._console is not None and self._console.is_terminal:
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            counted = (MofNCompleteColumn(), TimeRemainingColumn()) if total is not None else (TimeElapsedColumn(),)
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                *counted,
                TextColumn("{task.fields[note]}"),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(what, total=total, note="")

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        elif self._console is not None:
            self._reporter = threading.Thread(target=self._report, daemon=True)
            self._reporter.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._bar is not None:
            self._bar.stop()
        if self._reporter is not None:
            self._reporter.join()

    def at(self, done: int, note: str = "", total: int | None = None) -> None:
        """Says how many steps are done, and what is done now."""
        self.done, self._note = done, note
        self._total = self._total if total is None else total
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note, total=self._total)

    def doing(self, note: str) -> None:
        """Says what is done now, the steps as they are."""
        self.at(self.done, note)

    def line(self, text: str) -> None:
        """Prints a line that stays, never broken in two."""
        if self._console is not None:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _report(self) -> None:
        while not self._over.wait(self._interval):
            self._interval = min(2 * self._interval, LONGEST)
            steps = f" {self.done}/{self._total}" if self._total is not None else f" {self.done}" if self.done else ""
            note = f", {self._note}" if self._note else ""
            self.line(f"{self._what}{steps}{note}, {time.monotonic() - self._started:.0f} s")
            sys.stdout.flush()
