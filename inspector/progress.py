"""How far a long operation is: told to whoever asked, by default nobody.

The library wraps what can take seconds in :func:`phase`; a program that wants to know sets a
watcher around its calls::

    with progress.watch(my_watcher):
        image.open("vmcore.zst")

Nothing here prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Final, TypeAlias

#: Called with the number of bytes done since the last call.
Advance: TypeAlias = Callable[[int], None]
#: Called at the beginning of a phase with what is done and how many bytes that is, at most
#: (None: unknown). The phase lasts as long as the context.
Watcher: TypeAlias = Callable[[str, int | None], AbstractContextManager[Advance]]

_watcher: Final[ContextVar[Watcher | None]] = ContextVar("kho_progress", default=None)


@contextmanager
def watch(watcher: Watcher | None) -> Iterator[None]:
    """Let ``watcher`` see the phases of what is called inside; None for nobody."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def phase(what: str, total: int | None = None) -> AbstractContextManager[Advance]:
    """A part of an operation, of ``total`` bytes; the context gives the function to call."""
    watcher = _watcher.get()
    return nullcontext(_ignore) if watcher is None else watcher(what, total)


def _ignore(done: int) -> None:
    pass
