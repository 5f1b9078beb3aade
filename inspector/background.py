"""Calls that another thread makes, in order, while the caller goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

_T = TypeVar("_T")
#: Calls that wait for the one that is being made: what they are given stays in memory.
_WAITING = 2


class Background:
    """A context; its end waits for the calls. After one that raised, no other is made."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._waiting: deque[Future[None]] = deque()
        self._error: BaseException | None = None

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._thread.shutdown(cancel_futures=True)

    def call(self, what: Callable[[_T], object], argument: _T) -> None:
        """Have a call made, once there is room for it. Raises what an earlier one raised."""
        while len(self._waiting) > _WAITING:
            self._next()
        self._waiting.append(self._thread.submit(self._make, what, argument))

    def wait(self) -> None:
        """Return once all calls are made. Raises what one of them raised."""
        while self._waiting:
            self._next()

    def _next(self) -> None:
        self._waiting.popleft().result()
        if self._error is not None:
            raise self._error

    def _make(self, what: Callable[[_T], object], argument: _T) -> None:
        if self._error is None:
            try:
                what(argument)
            except BaseException as error:
                self._error = error
