"""A bar on the terminal for what takes long; nothing anywhere else."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inspector import image, memory, progress
from inspector.cli import bar
from inspector.progress import Advance
from tests.cli.conftest import Run


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make standard error one: inside the test, since pytest sets it before each."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    return stream


def test_phases_of_opening(handoff: Path) -> None:
    seen: dict[str, list[int]] = {}

    @contextmanager
    def phase(what: str, total: int | None) -> Iterator[Advance]:
        assert total
        seen[what] = [total]
        yield seen[what].append
        seen[what].append(-1)

    with progress.watch(phase), image.open(handoff) as opened:
        present = sum(r.size for r in opened.memory.regions if r.state is memory.PageState.PRESENT)
    assert next(iter(seen)) == "decompressing"
    assert {"looking for roots", "looking for boot parameters"} <= set(seen)
    for _, *steps, end in seen.values():
        assert end == -1, "a phase that never ended"
        assert sum(steps) > 0
        assert all(step >= 0 for step in steps)
    total, *steps, _ = seen["looking for roots"]
    assert total == present
    assert sum(steps) <= present
    total, *steps, _ = seen["decompressing"]
    assert total == handoff.stat().st_size == sum(steps)


def test_nobody_watches_by_default(handoff: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with image.open(handoff):
        pass
    assert capfd.readouterr() == ("", "")


def test_watch_ends() -> None:
    calls: list[str] = []

    @contextmanager
    def watcher(what: str, total: int | None) -> Iterator[Advance]:
        calls.append(what)
        yield lambda done: None

    def fail() -> None:
        with progress.watch(watcher), progress.phase("seen") as advance:
            advance(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with progress.phase("unseen") as advance:
        advance(1)
    assert calls == ["seen"]


def test_no_terminal_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert bar.watcher() is None


def test_a_short_phase_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    watcher = bar.watcher()
    assert watcher is not None
    with progress.watch(watcher), progress.phase("short", 10) as advance:
        advance(10)
    assert screen.getvalue() == ""


def test_a_long_phase_draws_and_clears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bar, "PATIENCE", -1.0)
    screen = terminal(monkeypatch)

    def fail() -> None:
        with (
            progress.watch(bar.watcher()),
            progress.phase("looking around", 4 << 20) as advance,
        ):
            advance(1 << 20)
            advance(1 << 20)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    drawn = screen.getvalue()
    assert "looking around" in drawn
    assert "2.0/4.0 MiB" in drawn
    assert drawn.endswith("\x1b[1A\x1b[2K"), "the bar is left on the screen"


def test_standard_output_is_the_same(
    kho: Run, monkeypatch: pytest.MonkeyPatch, handoff: Path
) -> None:
    monkeypatch.setattr(bar, "PATIENCE", -1.0)
    screen = terminal(monkeypatch)
    with_bar = kho("preserved", handoff)
    assert "decompressing" in screen.getvalue()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert kho("preserved", handoff).out == with_bar.out


def test_forked_workers_do_not_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bar, "PATIENCE", -1.0)
    screen = terminal(monkeypatch)
    watcher = bar.watcher()
    monkeypatch.setattr("os.getpid", lambda: -1)
    with progress.watch(watcher), progress.phase("quiet", 1) as advance:
        advance(1)
    assert screen.getvalue() == ""
