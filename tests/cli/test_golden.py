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


@pytest.mark.parametrize("path", IMAGES, ids=lambda p: p.name)
def test_text(path: Path) -> None:
    name = path.name.removesuffix(".elf.zst")
    assert golden.text(path) == golden.stored(f"{name}.txt"), "run python corpus/golden.py"


@pytest.mark.parametrize("path", IMAGES, ids=lambda p: p.name)
def test_json(path: Path) -> None:
    name = path.name.removesuffix(".elf.zst")
    assert golden.document(path) == golden.stored(f"{name}.json"), "run python corpus/golden.py"


@pytest.mark.parametrize("name", golden.SIMULATED)
def test_simulated(name: str) -> None:
    memory = golden.simulated(name)
    wanted = golden.stored(f"simulated-{name}.txt"), golden.stored(f"simulated-{name}.json")
    assert (golden.text(memory), golden.document(memory)) == wanted, "run python corpus/golden.py"
