"""What is generated or recorded is current: man page, rules, sums of the corpus."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "corpus"


def test_generated_pages_are_current() -> None:
    command = [sys.executable, "docs/generate.py", "--check"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_truth_is_what_the_manifest_says() -> None:
    manifest = json.loads((CORPUS / "manifest.json").read_text())
    truths = {e["truth"]: e["truth_sha256"] for e in manifest["images"] if e.get("truth")}
    for name, digest in truths.items():
        assert hashlib.sha256((CORPUS / name).read_bytes()).hexdigest() == digest, name
    assert {p.name for p in CORPUS.glob("*.truth.json")} == set(truths)


def test_the_corpus_has_no_strays() -> None:
    manifest = json.loads((CORPUS / "manifest.json").read_text())
    listed = {e["file"] for e in manifest["images"] + manifest["tables"]}
    kinds = {p.name for p in CORPUS.iterdir() if p.name.endswith((".zst", ".elf", ".raw"))}
    assert kinds <= listed
