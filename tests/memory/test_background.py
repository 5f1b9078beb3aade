"""Calls that another thread makes: in order, not too many waiting, none after one that failed."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from inspector.background import Background


def test_calls_are_made_in_order() -> None:
    made: list[int] = []
    with Background("test") as thread:
        for i in range(1000):
            thread.call(made.append, i)
        thread.wait()
        assert made == list(range(1000))
        thread.call(made.append, 1000)
    assert made[-1] == 1000


def test_few_calls_wait() -> None:
    """Whoever hands on faster than the calls are made waits, so that memory stays bounded."""
    go = threading.Event()
    handed_on: list[int] = []

    def hand_on(thread: Background) -> None:
        for i in range(50):
            thread.call(lambda _: go.wait(10), i)
            handed_on.append(i)

    with Background("test") as thread:
        caller = threading.Thread(target=hand_on, args=(thread,))
        caller.start()
        caller.join(0.2)
        assert caller.is_alive()
        assert len(handed_on) < 5
        go.set()
        caller.join()
    assert len(handed_on) == 50


@pytest.mark.parametrize("look", ["call", "wait", "end"])
def test_an_error_comes_out_and_ends_it(look: str) -> None:
    made: list[int] = []

    def fails(i: int) -> None:
        made.append(i)
        if i == 3:
            raise OSError(5, "no")

    def run() -> None:
        with Background("test") as thread:
            for i in range(6 if look != "call" else 1000):
                thread.call(fails, i)
            if look == "wait":
                thread.wait()

    with pytest.raises(OSError, match="no"):
        run()
    assert made == [0, 1, 2, 3]


def test_an_error_of_the_caller_goes_first() -> None:
    def fails(_: int) -> None:
        raise OSError

    def run(then: Callable[[], None]) -> None:
        with Background("test") as thread:
            thread.call(fails, 0)
            then()

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupted)
