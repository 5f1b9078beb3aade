"""How much memory a simulation may take: what it stores lies in the process."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

#: So much is always allowed.
LEAST = 256 << 20
#: Where no machine tells what it has.
_UNKNOWN = 8 << 30
_CGROUP = Path("/sys/fs/cgroup")


def room() -> int:
    """Bytes: three quarters of what the machine, the container or a limit leaves."""
    return max(LEAST, min(_left(), default=_UNKNOWN) // 4 * 3)


def _left() -> Iterator[int]:
    available = _numbers(Path("/proc/meminfo")).get("MemAvailable:")
    if available is not None:
        yield available << 10
    try:
        most = int((_CGROUP / "memory.max").read_text())  # or "max"
        yield max(most - _numbers(_CGROUP / "memory.stat").get("anon", 0), 0)
    except (OSError, ValueError):
        pass
    try:
        sizes = Path("/proc/self/statm").read_text().split()
    except OSError:
        return
    for limit, column in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            yield max(soft - int(sizes[column]) * os.sysconf("SC_PAGE_SIZE"), 0)


def _numbers(path: Path) -> dict[str, int]:
    """The first number of each line, by the word in front of it."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
