"""A progress bar on the terminal, for what takes longer than a second."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from inspector.progress import Advance, Watcher

if TYPE_CHECKING:
    from rich.progress import Progress

#: Seconds of a phase before it shows.
PATIENCE: Final = 1.0


def watcher() -> Watcher | None:
    """The watcher of this process: None unless standard error is a terminal."""
    if not sys.stderr.isatty():
        return None
    process = os.getpid()

    @contextmanager
    def watch(what: str, total: int | None) -> Iterator[Advance]:
        bar = _Bar(what, total)
        try:
            # Workers that were forked off must not draw on the same lines.
            yield bar.advance if os.getpid() == process else lambda done: None
        finally:
            bar.stop()

    return watch


class _Bar:
    """One phase; rich is imported when there is something to draw."""

    def __init__(self, what: str, total: int | None) -> None:
        self._what, self._total, self._done = what, total, 0
        self._since = time.monotonic()
        self._drawn: Progress | None = None

    def advance(self, done: int) -> None:
        self._done += done
        if self._drawn is not None:
            self._drawn.update(self._drawn.task_ids[0], completed=self._done)
        elif time.monotonic() - self._since > PATIENCE:
            self._start()

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

        self._drawn = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._drawn.add_task(self._what, total=self._total, completed=self._done)
        self._drawn.start()

    def stop(self) -> None:
        """Take the bar away again."""
        if self._drawn is not None:
            self._drawn.stop()
