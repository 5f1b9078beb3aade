"""The runner: it compares results, takes enough rounds, and reports what is over."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402


def test_contestants_that_disagree_are_no_result() -> None:
    with pytest.raises(AssertionError, match="disagree"):
        common.compare("x", lambda: 1, lambda: 2)


def test_rounds_alternate_and_are_at_least_seven() -> None:
    order: list[str] = []

    def run(name: str) -> int:
        order.append(name)
        return 0

    result = common.compare("x", lambda: run("a"), lambda: run("b"), rounds=1, limit=1e9)
    assert "".join(order[2:10]) in ("baabbaab", "abbaabba")
    assert order.count("a") == order.count("b") == 1 + common.MIN_ROUNDS
    assert result.passed


def test_report(capsys: pytest.CaptureFixture[str]) -> None:
    good = common.Result("good", 1.0, 1.0, 1.3)
    bad = common.Result("bad", 2.0, 1.0, 1.3)
    assert common.report([good])
    assert not common.report([good, bad])
    assert "OVER" in capsys.readouterr().out
    common.report([bad], as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema_version"] == 1
    assert (answer["results"][0]["ratio"], answer["results"][0]["passed"]) == (2.0, False)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_c_is_compiled_once() -> None:
    library = common.compile_c("int twice(int x) { return 2 * x; }")
    assert library.twice(21) == 42
    with pytest.raises(common.NotMeasurableError, match="compiler failed"):
        common.compile_c("int broken(")


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler-here")
    with pytest.raises(common.NotMeasurableError, match="no C compiler"):
        common.compile_c("int unseen(int x) { return x; }")


def test_unknown_names_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nothing"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no such bench: nothing" in done.stderr


def test_every_bench_is_in_the_readme() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    for path in (ROOT / "benchmarks").glob("bench_*.py"):
        assert f"`{path.stem.removeprefix('bench_')}`" in text, path.name
