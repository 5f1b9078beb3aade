"""Run one case under guard and say what came of it."""

from __future__ import annotations

import contextlib
import enum
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from abi.errors import KhoError
from inspector.fuzz.target import Mismatch

#: Seconds of processor time that one case may take. A busy machine is no finding.
PATIENCE = 1.0
#: Bytes by which one case may raise the peak memory of the process.
GROWTH = 64 << 20
#: Beyond the budget by this factor a case is stopped.
_STOP = 4


class Kind(enum.StrEnum):
    """What became of a case."""

    OK = "ok"
    REFUSED = "refused"
    EXCEPTION = "exception"
    MISMATCH = "mismatch"
    HANG = "hang"
    MEMORY = "memory"
    #: The process died (found by the parent), or the external command crashed.
    CRASH = "crash"
    TIMEOUT = "timeout"
    STATUS = "status"


#: Kinds that are no findings.
FINE = frozenset({Kind.OK, Kind.REFUSED})


@dataclass(frozen=True, slots=True)
class Outcome:
    """``key`` is the same for cases that fail alike; ``seconds`` of processor time."""

    kind: Kind
    key: str = ""
    detail: str = ""
    seconds: float = 0.0

    @property
    def fine(self) -> bool:
        """Whether this is no finding."""
        return self.kind in FINE


class Failure(Exception):
    """A target's own verdict: an external command failed. Carries kind and key."""

    def __init__(self, kind: Kind, key: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.key = kind, key


class _Stopped(BaseException):
    """The case used up its time."""


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise _Stopped


@dataclass(slots=True)
class Guard:
    """Budgets: ``patience`` seconds of processor time, ``growth`` bytes of memory."""

    patience: float = PATIENCE
    growth: int = GROWTH

    def __enter__(self) -> Guard:
        signal.signal(signal.SIGPROF, _stop)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)

    def run(self, consume: Callable[[], Any]) -> Outcome:
        """Call ``consume`` and classify what happens. Needs the main thread."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin = time.process_time()
        kind, key, detail = Kind.OK, "", ""
        try:
            signal.setitimer(signal.ITIMER_PROF, self.patience * _STOP)
            try:
                consume()
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except KhoError as error:
            kind, key = Kind.REFUSED, type(error).__name__
        except Failure as failure:
            kind, key, detail = failure.kind, failure.key, str(failure)
        except Mismatch as error:
            kind, key, detail = Kind.MISMATCH, str(error).partition(":")[0], str(error)
        except _Stopped as error:
            kind, key, detail = Kind.HANG, _where(error), "stopped"
        except MemoryError as error:
            kind, key, detail = Kind.MEMORY, _where(error), "MemoryError"
        except Exception as error:
            kind, key = Kind.EXCEPTION, f"{type(error).__name__} in {_where(error)}"
            detail = _traceback(error)
        seconds = time.process_time() - begin
        if kind in FINE and seconds > self.patience:
            kind, key, detail = Kind.HANG, "slow", f"took {seconds:.1f} s of processor time"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        if kind in FINE and grown > self.growth:
            kind, key, detail = Kind.MEMORY, "growth", f"peak memory grew by {grown >> 20} MiB"
        return Outcome(kind, key, detail, seconds)


@contextlib.contextmanager
def bounded_memory(room: int) -> Iterator[None]:
    """Let the process have ``room`` more bytes of its own, files it maps not counted.

    More is a MemoryError, while Guard's growth is seen only afterwards.
    """
    with open("/proc/self/statm") as statm:
        limit = int(statm.read().split()[5]) * os.sysconf("SC_PAGE_SIZE") + room
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if resource.RLIM_INFINITY != soft <= limit or resource.RLIM_INFINITY != hard <= limit:
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _room(path: str) -> str:
    """A file of this project from its room on, else its name alone."""
    for room in ("/inspector/", "/abi/", "/specs/"):
        if room in path:
            return f"{room[1:]}{path.rpartition(room)[2]}"
    return path.rpartition("/")[2]


def _where(error: BaseException) -> str:
    """The innermost frame in this project: file and function."""
    found = "?"
    for frame in traceback.extract_tb(error.__traceback__):
        file = _room(frame.filename)
        if "/" in file and "/fuzz/" not in file:
            found = f"{file}:{frame.name}"
    return found


def _traceback(error: BaseException) -> str:
    """The innermost frames and the error, with no paths of this machine."""
    lines = [
        f"{_room(frame.filename)}:{frame.lineno} {frame.name}: {frame.line}"
        for frame in traceback.extract_tb(error.__traceback__)[-5:]
    ]
    return "\n".join([*lines, f"{type(error).__name__}: {error}"])
