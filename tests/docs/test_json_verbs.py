"""docs/json-verbs.md against what the verbs print."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.docs.test_json import ROOT, TYPES, documented, entries, entry_for, run

KEYS = documented(ROOT / "docs" / "json-verbs.md")
HANDOFF = "corpus/linux-7.3.4-handoff.elf.zst"
DEVICES = "corpus/iommu-vw-small_legacy-handoff.elf.zst"

#: Table of the page -> commands whose output it describes. BROKEN is an image with a fault.
COMMANDS = {
    "kho info": [["info", HANDOFF], ["info", "corpus/linux-7.3.4-incoming.elf.zst"]],
    "kho preserved": [["preserved", HANDOFF], ["preserved", HANDOFF, "--ranges"]],
    "kho check": [["check", HANDOFF], ["check", "BROKEN"], ["check", "SMALL"]],
    "kho explain": [["explain", "KHO-MAP-005"], ["explain", "KHO-ABI-101"], ["explain"]],
    "kho diff": [
        ["diff", HANDOFF, "corpus/linux-7.3.4-incoming.elf.zst"],
        ["diff", DEVICES, "--consumed-by", "linux-7.3+iommu-vw", "--limit", "3"],
    ],
    "kho compat": [
        ["compat", HANDOFF, "--to", "linux-6.19"],
        ["compat", "BROKEN", "--to", "linux-7.3"],
        ["compat", "UNKNOWN", "--to", "linux-7.3"],
        ["compat", "--from", "linux-7.2", "--to", "linux-7.3"],
    ],
    "kho consume": [
        ["consume", HANDOFF, "--as", "linux-7.3"],
        ["consume", DEVICES, "--as", "linux-7.3+iommu-vw", "--finish"],
    ],
    "kho devices": [["devices", DEVICES], ["devices", HANDOFF]],
    "kho pagetable": [["pagetable", DEVICES, "1"], ["pagetable", DEVICES, "1", "--entries"]],
    "kho pagetable --translate": [
        ["pagetable", DEVICES, "--translate", "0x10000000", "--reverse", "0x15f0000"]
    ],
    "kho abi list": [["abi", "list"]],
    "kho abi show": [["abi", "show", "memfd=memfd-v2"], ["abi", "show", "luo"]],
    "kho abi diff": [["abi", "diff", "7.1", "7.3"]],
    "kho abi lint": [["abi", "lint", "7.3"]],
}
#: Described elsewhere: lists that are as in another document.
ELSEWHERE = ("kho info.generations.", "kho consume.reasons[].", "kho consume.findings[].")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("images")
    made = {name: str(place / f"{name}.elf") for name in ("BROKEN", "UNKNOWN", "SMALL")}
    for name, fault in (("BROKEN", "map-cycle"), ("UNKNOWN", "file-handler-unknown")):
        done = run("simulate", "linux-7.3", "--fault", fault, "-o", made[name])
        assert done.returncode == 0, done.stderr
    done = run("extract", HANDOFF, "--no-content", "-o", made["SMALL"])
    assert done.returncode == 0, done.stderr
    return made


def printed(command: list[str], images: dict[str, str]) -> Any:
    done = run(*(images.get(word, word) for word in command), "--format", "json")
    assert not done.returncode & 10, done.stderr
    return json.loads(done.stdout)


def right(entry: str, value: Any) -> bool:
    types = KEYS[entry]
    return types == ["any"] or any(TYPES[t](value) for t in types)


def test_every_table_is_compared() -> None:
    assert {key for verb in COMMANDS for key in KEYS if key.startswith(f"{verb}.")} == set(KEYS)


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_page_and_the_verb_agree(verb: str, images: dict[str, str]) -> None:
    seen, wrong = set(), []
    for command in COMMANDS[verb]:
        document = printed(command, images)
        assert document.pop("schema_version") == 1
        for key, value in entries(document, verb):
            if key.startswith(ELSEWHERE):
                continue
            entry = entry_for(key, KEYS)
            if entry is None and any(
                KEYS[e] == ["any"] for e in (entry_for(k, KEYS) for k in _above(key)) if e
            ):
                continue
            if entry is None or not right(entry, value):
                wrong.append(f"{key}: {value!r:.80}")
            seen.add(entry)
    assert not sorted(set(wrong))
    mine = {key for key in KEYS if key.startswith(f"{verb}.")}
    optional = {key for key in mine if key.endswith((".errno", ".*", ".flexible"))}
    assert not sorted(mine - seen - optional)


def _above(key: str) -> list[str]:
    """``a.b[].c`` -> ``a.b``, ``a``: what the key lies in."""
    parts = key.split(".")
    return [".".join(parts[:n]).removesuffix("[]") for n in range(len(parts) - 1, 0, -1)]
