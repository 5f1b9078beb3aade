"""What users see of every real capture and of some simulated images, in text and JSON."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

CORPUS = Path(__file__).parents[2] / "corpus"
_spec = importlib.util.spec_from_file_location("corpus_golden", CORPUS / "golden.py")
assert _spec is not None
assert _spec.loader is not None
golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)
IMAGES = list(golden.images())


COMMANDS = dict(golden.commands())


@pytest.mark.parametrize("path", IMAGES, ids=lambda p: p.name)
def test_text(path: Path) -> None:
    expected = golden.stored(f"{golden.short(path)}.txt")
    assert golden.text(path) == expected, "run python corpus/golden.py"


@pytest.mark.parametrize("path", IMAGES, ids=lambda p: p.name)
def test_json(path: Path) -> None:
    expected = golden.stored(f"{golden.short(path)}.json")
    assert golden.document(path) == expected, "run python corpus/golden.py"


@pytest.mark.parametrize("name", COMMANDS)
def test_other_verbs(name: str) -> None:
    assert golden.printed(*COMMANDS[name]) == golden.stored(name), "run python corpus/golden.py"


def test_nothing_is_kept_that_nobody_compares() -> None:
    dumps = [golden.short(path) for path in IMAGES]
    dumps += [f"simulated-{name}" for name in golden.SIMULATED]
    expected = {f"{name}.{kind}" for name in dumps for kind in ("txt", "json.zst")}
    assert {path.name for path in golden.GOLDEN.iterdir()} == expected | set(COMMANDS)


@pytest.mark.parametrize("name", golden.SIMULATED)
def test_simulated(name: str) -> None:
    memory = golden.simulated(name)
    wanted = golden.stored(f"simulated-{name}.txt"), golden.stored(f"simulated-{name}.json")
    assert (golden.text(memory), golden.document(memory)) == wanted, "run python corpus/golden.py"
