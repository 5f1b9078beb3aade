"""docs/json.md against documents: every key is there, and every key is what it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inspector import image
from inspector.cli.common import SCHEMA_VERSION
from inspector.document import document

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "json.md"
IMAGES = [
    "linux-6.17.8-handoff",
    "linux-7.3.4-outgoing",
    "linux-7.3.4-handoff",
    "linux-7.3.4-incoming",
    "iommu-vw-small_legacy-handoff",
    "iommu-v3-small_scalable-handoff",
]
SCENARIOS = ["iommu-rfc-v2", "smmuv3", "vfio-rfc-v1", "guest-memfd", "kvm-caretaker"]

TYPES = {
    "object": lambda v: isinstance(v, dict),
    "list": lambda v: isinstance(v, list),
    "bool": lambda v: isinstance(v, bool),
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    "string": lambda v: isinstance(v, str),
    "name": lambda v: isinstance(v, str),
    "hex": lambda v: isinstance(v, str) and re.fullmatch("0x(0|[1-9a-f][0-9a-f]*)", v),
    "bytes": lambda v: isinstance(v, str) and re.fullmatch("([0-9a-f]{2})*", v),
    "null": lambda v: v is None,
    "any": lambda v: isinstance(v, (int, str)),
}


def documented(page: Path = PAGE) -> dict[str, list[str]]:
    """Key -> types, out of the tables of the page."""
    keys: dict[str, list[str]] = {}
    prefix = ""
    for line in page.read_text().splitlines():
        if head := re.match(r"\| key of `(.+)` \|", line):
            prefix = head[1] + "."
        elif re.match(r"\| key \|", line):
            prefix = ""
        elif row := re.match(r"\| `([^`]+)` \| ([a-z ]+) \| .*\|$", line):
            assert prefix + row[1] not in keys, f"{row[1]} is listed twice"
            keys[prefix + row[1]] = row[2].split(" or ")
    return keys


KEYS = documented()


def entries(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of everything inside."""
    if isinstance(value, dict):
        for key, inner in value.items():
            name = f"{path}.{key}" if path else key
            yield name, inner
            yield from entries(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from entries(inner, path + "[]")


def entry_for(key: str, keys: dict[str, list[str]] = KEYS) -> str | None:
    """The documented key that covers ``key``."""
    if key in keys:
        return key
    parts = key.split(".")
    for pattern in keys:
        wanted = pattern.split(".")
        if len(wanted) == len(parts) and all(
            w in ("*", p) or (w == "*[]" and p.endswith("[]"))
            for w, p in zip(wanted, parts, strict=True)
        ):
            return pattern
    return None


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "inspector.cli.app", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    place = tmp_path_factory.mktemp("images")
    paths = [ROOT / "corpus" / f"{name}.elf.zst" for name in IMAGES]
    for name in SCENARIOS:
        made = run("simulate", name, "-o", place / f"{name}.elf")
        assert made.returncode == 0, made.stderr
        paths.append(place / f"{name}.elf")
    whole = run("dump", paths[0], "--format", "json")
    found = [json.loads(whole.stdout)]
    for path in paths[1:]:
        with image.open(path) as opened:
            text = json.dumps({"schema_version": SCHEMA_VERSION, **document(opened)})
            found.append(json.loads(text))
    return found


def test_every_key_is_documented(documents: list[dict[str, Any]]) -> None:
    unknown = {key for doc in documents for key, _ in entries(doc) if entry_for(key) is None}
    assert not sorted(unknown)


def test_every_documented_key_exists(documents: list[dict[str, Any]]) -> None:
    seen = {entry_for(key) for doc in documents for key, _ in entries(doc)}
    assert not sorted(KEYS.keys() - seen)


def test_every_value_is_of_its_type(documents: list[dict[str, Any]]) -> None:
    wrong = {
        f"{key}: {value!r} is not {' or '.join(KEYS[entry])}"
        for doc in documents
        for key, value in entries(doc)
        if (entry := entry_for(key)) and not any(TYPES[t](value) for t in KEYS[entry])
    }
    assert not sorted(wrong)


def test_fixed_keys_are_never_missing(documents: list[dict[str, Any]]) -> None:
    """Null, not absent: keys at the top and of every object that is there."""
    fixed = [
        k for k in KEYS if "*" not in k and not re.search(r"vfio_pci\.(cfg|rbar|pci_|vcon)", k)
    ]
    for doc in documents:
        for key in fixed:
            parent, _, name = key.rpartition(".")
            owners = [doc] if not parent else [
                value for path, value in entries(doc)
                if path == parent.removesuffix("[]") and value
            ]  # fmt: skip
            for owner in owners:
                for one in owner if isinstance(owner, list) else [owner]:
                    assert name in one, key
