"""Every target takes mutated input; stored cases stay fixed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from inspector.cli.app import app
from inspector.fuzz import buffers, cases, run, targets
from inspector.fuzz.base import tiny

STORED = sorted((Path(__file__).parents[2] / "corpus" / "fuzz").glob("*.json"))
COUNTS = {"extract": 6, "compat": 12, "report": 4, "devices": 60, "check": 60, "diff": 60}


@pytest.mark.parametrize("name", targets.names())
def test_a_short_run_finds_nothing(name: str) -> None:
    bases = [tiny(kernel) for kernel in ("linux-7.3", "linux-6.19", "linux-6.17")]
    plan = run.Plan(seed=42, count=COUNTS.get(name, 250), jobs=1)
    report = run.run(targets.make(name, bases), plan)
    assert report.cases == plan.count
    assert report.found == []


@pytest.mark.parametrize("name", buffers.BUFFER_TARGETS)
def test_what_is_built_is_accepted_unmutated_and_rebuilt_alike(name: str) -> None:
    target = buffers.BUFFER_TARGETS[name]([])
    assert isinstance(target, buffers.BufferTarget)
    for kind in target.kinds:
        base = buffers.built(kind)
        assert base.digest == buffers.built(kind).digest
        target.run(base)


def test_there_are_stored_cases() -> None:
    assert STORED


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_cases_stay_fixed(path: Path) -> None:
    case = cases.read(path)
    assert case.pages is not None, "a stored case carries its image"
    outcome = cases.replay(case)
    assert outcome.fine, outcome


def cli(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["fuzz", *arguments])
    return result.exit_code, result.output


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, text = cli("tiny-linux-7.3", "--count", "60", "--seed", "9")
    assert status == 0
    assert text.startswith("decode: 60 cases of seed 9")
    status, text = cli("--only", "5", "--seed", "9")
    assert status == 0
    assert "case 5 of seed 9" in text
    status, text = cli("--replay", str(STORED[0]))
    assert status == 0
    assert text.endswith("ok\n")

    def broken(_: object) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setitem(targets.IMAGE_TARGETS, "decode", broken)
    status, text = cli("tiny-linux-7.3", "-n", "4", "--out", str(tmp_path), "--format", "json")
    assert status == 4
    assert '"exception ZeroDivisionError in ?": 4' in text
    written = sorted(tmp_path.glob("*.json"))
    assert len(written) == run.KEEP
    assert cli("--replay", str(written[0]))[0] == 4


def test_wrong_calls() -> None:
    assert cli("no-such-image")[0] != 0
    assert cli("--target", "nonsense")[0] == 2
    assert cli("--exec", "true", "--count", "1")[0] != 0
    assert cli("--exec", "true @@", "--accept", "x")[0] != 0
