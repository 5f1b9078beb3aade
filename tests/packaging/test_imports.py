"""``kho --help`` and completion are fast because nothing heavy is imported for them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("numpy", "construct", "rich", "drgn", "zstandard", "jinja2", "kaitaistruct", "hypothesis")

CODE = """
import json, sys
sys.argv = ["kho", *sys.argv[1:]]
from inspector.cli.app import main
try:
    main()
except SystemExit as leaving:
    assert not leaving.code, leaving.code
sys.stderr.write(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["dump", "--help"], ["cpr", "-h"]], ids=" ".join
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=True
    )
    assert "kho" in done.stdout
    loaded = set(json.loads(done.stderr))
    assert "typer" in loaded
    assert not loaded & set(HEAVY)
