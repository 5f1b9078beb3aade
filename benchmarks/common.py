"""Measure Python against C, side by side, on the machine at hand.

A bench compiles its C baseline with ``cc -O2 -march=native``, runs both contestants in
turn for several rounds, compares what they computed, and reports the ratio of the
medians: times differ between machines and hours, ratios hardly do.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: Rounds of each contestant; the medians of them are compared.
ROUNDS = 9
MIN_ROUNDS = 7


class NotMeasurableError(Exception):
    """A bench cannot run here (no compiler, no space); str() is the reason."""


@dataclass(frozen=True, slots=True)
class Result:
    """One comparison. Times are medians in seconds; ``limit`` is the ratio to stay below.

    ``baseline`` names what the contestant is compared with (C, or a number of seconds).
    """

    name: str
    seconds: float
    baseline_seconds: float
    limit: float | None = None
    baseline: str = "C"
    note: str = ""

    @property
    def ratio(self) -> float:
        """How many times as long as the baseline."""
        return self.seconds / self.baseline_seconds if self.baseline_seconds else float("inf")

    @property
    def passed(self) -> bool:
        """Whether the ratio is within the limit."""
        return self.limit is None or self.ratio <= self.limit


_cache: tempfile.TemporaryDirectory[str] | None = None


def work_directory() -> Path:
    """A temporary directory that lives as long as the process."""
    global _cache
    if _cache is None:
        _cache = tempfile.TemporaryDirectory(prefix="kho-bench-")
    return Path(_cache.name)


def compile_c(source: str) -> ctypes.CDLL:
    """Compile C with the machine's compiler and load it. Raises NotMeasurableError."""
    compiler = os.environ.get("CC", "cc")
    stem = work_directory() / hashlib.sha256(source.encode()).hexdigest()[:16]
    library = stem.with_suffix(".so")
    if not library.exists():
        stem.with_suffix(".c").write_text(source)
        command = [
            *compiler.split(),
            "-O2",
            "-march=native",
            "-shared",
            "-fPIC",
            "-o",
            str(library),
            str(stem.with_suffix(".c")),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise NotMeasurableError(f"no C compiler ({compiler})") from None
        except subprocess.CalledProcessError as error:
            raise NotMeasurableError(f"the C compiler failed: {error.stderr[:400]}") from None
    return ctypes.CDLL(str(library))


@dataclass(frozen=True, slots=True)
class MappedFile:
    """A file in memory for C: ``address`` and ``size``; ``mapping`` keeps it there."""

    address: int
    size: int
    mapping: mmap.mmap


def map_file(path: Path) -> MappedFile:
    """Map a file the way the inspector does, so that C sees the same kind of memory."""
    with path.open("r+b") as stream:
        mapping = mmap.mmap(stream.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    return MappedFile(address, len(mapping), mapping)


def compare(
    name: str,
    contestant: Callable[[], object],
    baseline: Callable[[], object],
    *,
    equal: Callable[[object, object], bool] | None = None,
    limit: float | None = None,
    rounds: int = ROUNDS,
    cpu: bool = True,
    note: str = "",
    between: Callable[[], object] = lambda: None,
) -> Result:
    """Run both in turn and compare the medians; ``between`` runs before each, not timed.

    The first run of each is a warm-up, whose results are compared with ``equal`` (default
    ``==``); AssertionError if they differ. CPU time is measured, so that what else the
    machine does matters less; without ``cpu``, wall-clock time (for contestants that
    start threads or processes).
    """
    first = contestant()
    between()
    second = baseline()
    same = equal(first, second) if equal else first == second
    if not same:
        raise AssertionError(f"{name}: the contestants disagree")
    del first, second
    clock = time.process_time if cpu else time.perf_counter
    times: tuple[list[float], list[float]] = ([], [])
    enabled = gc.isenabled()
    for i in range(max(rounds, MIN_ROUNDS)):
        # Alternate who goes first, so that neither always finds the caches warm.
        order = (0, 1) if i % 2 else (1, 0)
        for which in order:
            between()
            gc.collect()
            gc.disable()
            start = clock()
            (contestant, baseline)[which]()
            times[which].append(clock() - start)
            if enabled:
                gc.enable()
    return Result(name, statistics.median(times[0]), statistics.median(times[1]), limit, note=note)


def within(
    name: str,
    contestant: Callable[[], object],
    seconds: float,
    *,
    rounds: int = ROUNDS,
    cpu: bool = False,
    note: str = "",
) -> Result:
    """The median time of a contestant against a fixed number of seconds."""
    contestant()
    clock = time.process_time if cpu else time.perf_counter
    times = []
    for _ in range(max(rounds, MIN_ROUNDS)):
        start = clock()
        contestant()
        times.append(clock() - start)
    return Result(name, statistics.median(times), seconds, 1.0, f"{seconds} s", note)


def report(results: list[Result], *, as_json: bool = False) -> bool:
    """Print the results; returns whether all are within their limits."""
    if as_json:
        rows = [
            {
                "name": r.name,
                "seconds": r.seconds,
                "baseline": r.baseline,
                "baseline_seconds": r.baseline_seconds,
                "ratio": r.ratio,
                "limit": r.limit,
                "passed": r.passed,
                "note": r.note,
            }
            for r in results
        ]
        print(json.dumps({"schema_version": 1, "results": rows}, indent=1))
    else:
        print(f"{'bench':<34} {'kho':>10} {'baseline':>10} {'ratio':>7} {'limit':>6}")
        for r in results:
            limit = f"{r.limit:.2f}" if r.limit is not None else "-"
            verdict = "" if r.passed else "  OVER"
            note = f"  {r.note}" if r.note else ""
            print(
                f"{r.name:<34} {_time(r.seconds):>10} {_time(r.baseline_seconds):>10} "
                f"{r.ratio:>7.2f} {limit:>6}{verdict}{note}"
            )
    sys.stdout.flush()
    return all(r.passed for r in results)


def _time(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.2f} {unit}"
    return f"{seconds * 1e9:.0f} ns"
