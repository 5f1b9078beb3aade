"""Runs: what goes wrong in a target is caught, counted, kept and made small."""

from __future__ import annotations

import os
import random
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from abi.errors import UnreadableError, UsageError
from inspector.decode import decode
from inspector.fuzz import cases, run, shrink, targets
from inspector.fuzz.base import TINY, Base, tiny
from inspector.fuzz.coverage import Bytes
from inspector.fuzz.edit import Edit
from inspector.fuzz.external import Command, ExternalTarget
from inspector.fuzz.guard import Guard, Kind
from inspector.fuzz.mutate import rng_of
from inspector.fuzz.targets import ImageTarget

BASE = tiny("linux-7.3")


def target(consume: Callable[[Base], None]) -> ImageTarget:
    return ImageTarget("test", [BASE], consume)


def buggy(base: Base) -> None:
    """A decoder that believes a count."""
    image = decode(base.memory)
    for session in image.luo.sessions if image.luo else ():
        if session.count > 1 << 16:
            raise ValueError(f"count {session.count}")


def first_failure(consume: Callable[[Base], None]) -> tuple[run.Report, run.Found]:
    report = run.run(target(consume), run.Plan(seed=1, count=600, jobs=1))
    assert report.found
    return report, report.found[0]


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    report = run.run(targets.make("decode", [BASE]), run.Plan(seed=3, count=300, jobs=2))
    assert report.cases == 300
    assert report.findings == 0
    assert report.counts["ok"] > 200
    assert report.counts["ok"] + report.counts["refused"] == 300
    assert 0 < report.slowest < 1
    assert report.cpu > 0


def test_the_number_of_jobs_changes_nothing() -> None:
    one = run.run(target(buggy), run.Plan(seed=1, count=300, jobs=1))
    three = run.run(target(buggy), run.Plan(seed=1, count=300, jobs=3))
    assert one.counts == three.counts
    assert one.keys == three.keys


def test_a_bug_is_found_and_made_small(tmp_path: Path) -> None:
    report, found = first_failure(buggy)
    assert found.outcome.kind is Kind.EXCEPTION
    assert found.outcome.key.startswith("ValueError")
    assert report.keys[f"exception {found.outcome.key}"] >= len(report.found)
    assert len(report.found) <= run.KEEP
    bug = target(buggy)
    base, edits = bug.pick(rng_of(1, found.number))
    less, memory = shrink.shrink(bug, base, edits, found.outcome)
    assert len(less) == 1
    assert less[0].data is not None
    assert len(less[0].data) <= 8
    assert memory is not None
    assert len(memory.pages()) < len(base.memory.pages())
    case = shrink.case_of(bug, 1, found.number, base, less, found.outcome, memory)
    cases.save(case, tmp_path / "case.json")
    again = cases.read(tmp_path / "case.json")
    assert again == case
    with Guard() as guard:
        subject = cases.subject(again)
        assert guard.run(lambda: buggy(subject)).key == found.outcome.key
        # Without the image that it carries, from the scenario it was made of.
        rebuilt = cases.subject(replace(again, pages=None))
        assert guard.run(lambda: buggy(rebuilt)).key == found.outcome.key


def test_a_case_of_another_base_is_refused(tmp_path: Path) -> None:
    case = cases.Case("decode", dict(BASE.origin), "0" * 64, (Edit(0x1000, b"x"),))
    with pytest.raises(UsageError, match="has changed"):
        cases.subject(case)
    broken = tmp_path / "broken.json"
    for text in ("", "[]", "{}", '{"target": 1}'):
        broken.write_text(text)
        with pytest.raises(UnreadableError):
            cases.read(broken)
    with pytest.raises(UnreadableError):
        cases.read(tmp_path / "none.json")


def test_a_case_is_not_larger_than_what_is_written(tmp_path: Path) -> None:
    pages = {i * 4096: bytes(4096) for i in range(cases.EMBED // 4096)}
    case = cases.Case("decode", {}, "", (), pages=pages)
    cases.save(case, tmp_path / "case.json")
    assert cases.read(tmp_path / "case.json").pages == pages
    cases.save(replace(case, pages={**pages, 1 << 40: bytes(4096)}), tmp_path / "case.json")
    with pytest.raises(UnreadableError, match="more than 256 KiB"):
        cases.read(tmp_path / "case.json")
    with (tmp_path / "case.json").open("wb") as stream:
        stream.truncate(cases.MAX_FILE + 1)
    with pytest.raises(UnreadableError, match="more than 4 MiB"):
        cases.read(tmp_path / "case.json")


def test_a_base_is_made_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(case: cases.Case) -> Base:
        raise AssertionError(f"there is room for {len(bytes(1 << 30))} bytes")

    limits = resource.getrlimit(resource.RLIMIT_DATA)
    monkeypatch.setattr(cases, "BASE_ROOM", 64 << 20)
    text = TINY.format(kernel="linux-7.3").replace('"64M"', '"2G"').replace('"4K"', '"512M"')
    with pytest.raises(UsageError, match="512 MiB of content in all, and there is memory for"):
        cases.replay(cases.Case("decode", {"scenario": text}, "", ()))
    monkeypatch.setattr(cases, "subject", greedy)
    with pytest.raises(UsageError, match="cannot be made: memory"):
        cases.replay(cases.Case("decode", {}, "", ()))
    assert resource.getrlimit(resource.RLIMIT_DATA) == limits


def test_a_base_is_made_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(case: cases.Case) -> Base:
        while True:
            pass

    monkeypatch.setattr(cases, "BASE_PATIENCE", 0.01)
    monkeypatch.setattr(cases, "subject", endless)
    with pytest.raises(UsageError, match="cannot be made: hang"):
        cases.replay(cases.Case("decode", {}, "", ()))


def test_a_hang_is_stopped() -> None:
    def hang(_: Base) -> None:
        while True:
            pass

    with Guard(patience=0.05) as guard:
        outcome = run.attempt(target(hang), BASE, (), guard)
    assert outcome.kind is Kind.HANG
    assert outcome.seconds < 2


def test_slow_but_not_for_ever_is_a_hang_too() -> None:
    def slow(_: Base) -> None:
        import time

        end = time.process_time() + 0.08
        while time.process_time() < end:
            pass

    with Guard(patience=0.05) as guard:
        assert run.attempt(target(slow), BASE, (), guard).kind is Kind.HANG


def test_memory_beyond_the_budget() -> None:
    def greedy(_: Base) -> None:
        np.ones(400 << 20, np.uint8)

    report = run.run(target(greedy), run.Plan(count=1, patience=30.0))
    assert report.counts == {"memory": 1}

    def unbounded(_: Base) -> None:
        bytearray(1 << 40)

    report = run.run(target(unbounded), run.Plan(count=2))
    assert report.counts == {"memory": 2}


def test_a_process_that_dies_names_its_case_and_the_run_goes_on() -> None:
    def dies(base: Base) -> None:
        image = decode(base.memory)
        if image.luo is not None and len(image.luo.sessions) > 1:
            os.kill(os.getpid(), signal.SIGKILL)

    report = run.run(target(dies), run.Plan(seed=1, count=200, jobs=2))
    assert report.counts["crash"] > 0
    assert report.cases >= 200 - 64 * 2 * report.counts["crash"]
    crash = next(f for f in report.found if f.outcome.kind is Kind.CRASH)
    assert crash.outcome.key == "signal 9"
    base, edits = target(dies).pick(rng_of(1, crash.number))
    base.memory.apply(edits)
    luo = decode(base.memory).luo
    base.memory.reset()
    assert luo is not None
    assert len(luo.sessions) > 1


@pytest.mark.parametrize(
    ("line", "options", "kind", "key"),
    [
        ("test -s @@", {}, None, ""),
        ("sh -c 'exit 3' @@", {}, None, ""),
        ("sh -c 'exit 3' @@", {"accept": frozenset({0})}, Kind.STATUS, "exit status 3"),
        ("sh -c 'kill -SEGV $$' @@", {}, Kind.CRASH, "signal 11"),
        ("sh -c 'exit 139' @@", {}, Kind.CRASH, "signal 11"),
        ("sh -c 'sleep 60' @@", {"timeout": 0.2}, Kind.TIMEOUT, "timeout"),
        ("echo Kernel panic - not syncing @@", {"pattern": "Kernel panic"}, Kind.CRASH,
         "output Kernel panic"),
    ],
)  # fmt: skip
def test_external_commands(
    line: str, options: dict[str, object], kind: Kind | None, key: str
) -> None:
    external = ExternalTarget([BASE], Command(line, **options))  # type: ignore[arg-type]
    with Guard(patience=60) as guard:
        outcome = run.attempt(external, BASE, (), guard)
    assert outcome.kind is (kind or Kind.OK)
    assert outcome.key == key


def test_external_commands_get_the_mutated_image() -> None:
    script = "import sys, kho; i = kho.open(sys.argv[1]); sys.exit(len(i.luo.sessions[0].name))"
    command = Command(f'python3 -c "{script}" @@', accept=frozenset({5}), timeout=60)
    import sys

    command = replace(command, line=command.line.replace("python3", sys.executable))
    place = BASE.by_type["luo_session_ser"][0]
    external = ExternalTarget([BASE], command)
    with Guard(patience=60) as guard:
        outcome = run.attempt(external, BASE, (Edit(place.address, b"five5\0"),), guard)
    assert outcome.kind is Kind.OK, outcome


@pytest.mark.parametrize("line", ["", "true", "sh -c 'unterminated @@"])
def test_commands_that_make_no_sense(line: str) -> None:
    with pytest.raises(UsageError):
        ExternalTarget([BASE], Command(line))


def test_bytes_steer_the_mutator() -> None:
    mutator = targets.make("decode", [BASE])
    rng = random.Random(1)
    seen = set()
    for _ in range(100):
        data = rng.randbytes(200)
        base, edits = mutator.pick(Bytes(data))
        assert edits == mutator.pick(Bytes(data))[1]
        seen.add(edits)
        base.memory.apply(edits)
        base.memory.reset()
    assert len(seen) > 60
    mutator.pick(Bytes(b""))
