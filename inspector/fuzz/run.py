"""A run: many cases, in processes that may die, until a count or a time is reached.

Case ``n`` of a seed is the same however many jobs there are: job j of J takes the numbers
that are j modulo J. The parent knows which number each job is at, so that a process that
dies names its case, and the job goes on behind it in a new process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from inspector.fuzz.base import Base
from inspector.fuzz.edit import Edit
from inspector.fuzz.guard import GROWTH, PATIENCE, Guard, Kind, Outcome
from inspector.fuzz.mutate import rng_of
from inspector.fuzz.target import Target

#: Findings of one key that are kept; the others are counted.
KEEP = 3
#: Cases between looks at the clock and reports to the parent.
_BATCH = 64
#: Address space a job may use beyond what it has when it starts.
_ROOM = 2 << 30


@dataclass(frozen=True, slots=True)
class Found:
    """A case that failed."""

    number: int
    outcome: Outcome


@dataclass(slots=True)
class Report:
    """What a run saw. Times in seconds, memory in bytes; ``cpu`` is that of all jobs."""

    target: str
    seed: int
    cases: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    found: list[Found] = field(default_factory=list)
    slowest: float = 0.0
    slowest_case: int = -1
    peak: int = 0
    grown: int = 0
    elapsed: float = 0.0
    cpu: float = 0.0

    @property
    def findings(self) -> int:
        """How many cases failed."""
        return sum(self.keys.values())

    def add(self, number: int, outcome: Outcome) -> bool:
        """Count one case; whether it is a finding worth keeping."""
        self.cases += 1
        self.counts[str(outcome.kind)] += 1
        if outcome.seconds > self.slowest:
            self.slowest, self.slowest_case = outcome.seconds, number
        if outcome.kind is Kind.REFUSED:
            self.refused[outcome.key] += 1
        if outcome.fine:
            return False
        key = f"{outcome.kind} {outcome.key}"
        self.keys[key] += 1
        if self.keys[key] > KEEP:
            return False
        self.found.append(Found(number, outcome))
        return True

    def merge(self, other: Report) -> None:
        """Add what another job saw."""
        self.cases += other.cases
        for name in ("counts", "refused", "keys"):
            getattr(self, name).update(getattr(other, name))
        self.found += other.found
        if other.slowest > self.slowest:
            self.slowest, self.slowest_case = other.slowest, other.slowest_case
        self.peak = max(self.peak, other.peak)
        self.grown = max(self.grown, other.grown)
        self.cpu += other.cpu


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: until ``count`` cases (0: no limit) or ``seconds`` (0: no limit)."""

    seed: int = 1
    count: int = 0
    seconds: float = 0.0
    jobs: int = 1
    patience: float = PATIENCE
    growth: int = GROWTH


def one(target: Target, seed: int, number: int, guard: Guard) -> Outcome:
    """Make case ``number``, run it, and put its base back."""
    base, edits = target.pick(rng_of(seed, number))
    return attempt(target, base, edits, guard)


def attempt(target: Target, base: Base, edits: tuple[Edit, ...], guard: Guard) -> Outcome:
    """Run a target on edits of a base, which is as before afterwards."""
    base.memory.apply(edits)
    try:
        return guard.run(lambda: target.run(base))
    finally:
        base.memory.reset()


def run(target: Target, plan: Plan, progress: Callable[[Report], None] | None = None) -> Report:
    """Run a plan. ``progress`` is called about twice a second with what is known so far."""
    total = Report(target.name, plan.seed)
    begin = time.monotonic()
    jobs = [_Job(target, plan, i) for i in range(max(plan.jobs, 1))]
    running = {job.start(): job for job in jobs}
    try:
        while running:
            for pipe in wait(list(running), timeout=0.5):
                assert isinstance(pipe, Connection)
                job = running[pipe]
                if job.take(pipe):
                    continue
                del running[pipe]
                if job.goes_on():
                    running[job.start()] = job
            if progress is not None:
                progress(_sum(total, jobs, begin))
    finally:
        for job in jobs:
            job.stop()
    return _sum(total, jobs, begin)


def _sum(empty: Report, jobs: list[_Job], begin: float) -> Report:
    total = Report(empty.target, empty.seed)
    for job in jobs:
        for part in (*job.ended, *([job.report] if job.report else [])):
            total.merge(part)
    total.found.sort(key=lambda f: f.number)
    total.elapsed = time.monotonic() - begin
    return total


class _Job:
    """One of the processes of a run, and the ones that replace it."""

    def __init__(self, target: Target, plan: Plan, index: int) -> None:
        self.target, self.plan, self.index = target, plan, index
        self.next = index
        self.done = False
        self.report: Report | None = None
        self.ended: list[Report] = []
        self.deadline = time.monotonic() + plan.seconds if plan.seconds else 0.0
        context = multiprocessing.get_context("fork")
        self.current = context.Value("q", -1, lock=False)
        self._context = context
        self._process: Any = None

    def start(self) -> Connection:
        """Start a process; the connection on which it reports."""
        ours, theirs = self._context.Pipe(duplex=False)
        arguments = (self.target, self.plan, self.next, self.deadline, self.current, theirs)
        self._process = self._context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        return ours

    def take(self, pipe: Connection) -> bool:
        """Take a report; False at the end."""
        try:
            self.report, self.done = pipe.recv()
        except (EOFError, OSError):
            return False
        return not self.done

    def goes_on(self) -> bool:
        """Whether a new process must go on: the last one died in the middle of a case."""
        self._process.join()
        code = self._process.exitcode
        if self.report is not None:
            self.ended.append(self.report)
            self.report = None
        if self.done:
            return False
        dead = Report(self.target.name, self.plan.seed)
        number = int(self.current.value)
        why = f"signal {-code}" if code < 0 else f"exit status {code}"
        dead.add(number, Outcome(Kind.CRASH, why, f"the process ended with {why}"))
        self.ended.append(dead)
        self.next = number + max(self.plan.jobs, 1)
        return number >= 0 and not (self.plan.count and self.next >= self.plan.count)

    def stop(self) -> None:
        """End the process if it still runs."""
        if self._process is not None and self._process.is_alive():
            self._process.terminate()
            self._process.join()


def _work(
    target: Target, plan: Plan, first: int, deadline: float, current: Any, pipe: Connection
) -> None:
    """The loop of one process."""
    report = Report(target.name, plan.seed)
    _limit_memory()
    begin = time.process_time()
    number = first
    told = time.monotonic()
    settled = 0
    with contextlib.suppress(KeyboardInterrupt), Guard(plan.patience, plan.growth) as guard:
        while not plan.count or number < plan.count:
            current.value = number
            report.add(number, one(target, plan.seed, number, guard))
            number += plan.jobs
            if report.cases % _BATCH and not target.slow:
                continue
            now = time.monotonic()
            if now - told > 0.5:
                told = now
                report.cpu = time.process_time() - begin
                report.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
                settled = settled or report.peak
                report.grown = report.peak - settled
                pipe.send((report, False))
            if deadline and now > deadline:
                break
    report.cpu = time.process_time() - begin
    report.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    report.grown = report.peak - (settled or report.peak)
    pipe.send((report, True))
    pipe.close()


def _limit_memory() -> None:
    """Let a case that allocates without bound fail instead of the machine."""
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = now + _ROOM
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
