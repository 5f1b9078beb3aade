"""What the documentation says of the command line: every verb, and examples that run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import Run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cli.md").read_text()
EXAMPLES = [line.strip() for line in PAGE.splitlines() if line.startswith("    kho ")]


def verbs() -> set[str]:
    import typer

    from inspector.cli.app import app

    return set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_every_verb_has_an_example() -> None:
    assert verbs() == {example.split()[1] for example in EXAMPLES}


def test_every_verb_is_in_the_readme() -> None:
    rows = [r for r in (ROOT / "README.md").read_text().splitlines() if r.startswith("| `kho ")]
    assert verbs() == {row.split()[2].strip("`") for row in rows}


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_examples(kho: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page: some use what others wrote."""
    for name in ("corpus", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    for example in EXAMPLES:
        words = shlex.split(example)[1:]
        if words[:2] == ["abi", "verify"] and not Path(words[2]).exists():
            continue
        if ">" in words:
            words = words[: words.index(">")]
        result = kho(*words)
        # Not wrong usage, not unreadable; what the images contain decides the rest.
        assert not result.status & 10, f"{example}: {result.err}"
        assert "Traceback" not in result.err
        if "-o" in words:
            assert (tmp_path / words[words.index("-o") + 1]).stat().st_size
        else:
            assert result.out, example


def test_exit_statuses(kho: Run, handoff: Path, incoming: Path, tmp_path: Path) -> None:
    assert kho("info", handoff).status == 0
    assert kho("diff", handoff, incoming).status == 1
    assert kho("dump", handoff, "/nowhere").status == 2
    assert kho("compat", handoff, "--to", "linux-6.19").status & 4
    assert kho("dump", tmp_path / "absent").status == 8
    region = "/reserve_mem/labtrace"
    assert kho("cat", handoff, region).status & 16
