"""``kho --help`` and completion are fast because nothing heavy is imported for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from inspector.kernel import scenario
from inspector.memory.elfcore import write_core

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
WHOLE_NAMES = CODE.replace('name.partition(".")[0]', "name")


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


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("linux-7.3", set()),
        ("guest-memfd", {"handlers"}),
        ("vfio-rfc-v1", {"passthrough"}),
    ],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_dump_imports_what_the_image_has(
    name: str, wanted: set[str], form: str, tmp_path: Path
) -> None:
    """The test FLBs of linux-7.3, and plain memory files, need neither package."""
    image = scenario.load(name).run()
    write_core(tmp_path / "image.elf", image.memory, "x86_64")
    done = subprocess.run(
        [sys.executable, "-c", WHOLE_NAMES, "dump", str(tmp_path / "image.elf"), "-f", form],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = json.loads(done.stderr.splitlines()[-1])
    packages = {"handlers", "passthrough"}
    assert {n.split(".")[1] for n in loaded if n.startswith("inspector.")} & packages == wanted
