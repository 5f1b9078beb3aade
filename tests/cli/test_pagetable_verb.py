"""``kho pagetable``: domains and any table, whole and by address."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import CORPUS, Run

SMALL = CORPUS / "iommu-vw-small_legacy-handoff.elf.zst"
VTD = CORPUS / "vtd-legacy.elf.zst"
TABLE = ("--root", "0x927000", "--table", "vtdss", "--levels", "4")


def truth(path: Path) -> dict:  # type: ignore[type-arg]
    return json.loads(path.with_name(path.name.replace(".elf.zst", ".truth.json")).read_text())


def test_entries_of_any_table_are_the_truth(kho: Run) -> None:
    result = kho("pagetable", VTD, *TABLE, "--entries")
    assert result.status == 0
    wanted = truth(VTD)["devices"]["0000:00:03.0"]["leaves"]
    assert [line.split() for line in result.text.splitlines()] == wanted


def test_every_live_domain_is_listed(kho: Run) -> None:
    result = kho("pagetable", SMALL)
    assert result.status == 0
    for domain in truth(SMALL)["iommu_flb"]["domains"]:
        assert f"top {domain['top_table_phys']}" in result.text
    lines = [line for line in result.text.splitlines() if not line.startswith("#")]
    assert sum(int(line.split()[2], 16) for line in lines) == (6526 + 1040 + 1280) * 4096


@pytest.mark.parametrize(
    "which", ["1", "/LUO/flbs/iommu-liveupdate/domains/1", "0x221f038", "0000:00:05.0"]
)
def test_one_domain_by_any_name(kho: Run, which: str) -> None:
    result = kho("pagetable", SMALL, which, "--format", "json")
    assert result.status == 0
    [table] = json.loads(result.out)["tables"]
    assert table["path"] == "/LUO/flbs/iommu-liveupdate/domains/1"
    assert table["top_table"] == "0x9be000"
    assert sum(r["size"] for r in table["ranges"]) == table["statistics"]["bytes"] == 1040 * 4096


def test_several_addresses_behind_one_option(kho: Run) -> None:
    result = kho("pagetable", SMALL, "1", "--translate", "0x1004", "4096", "0x10000000")
    assert result.text.splitlines() == [
        "0x1004 0x15b8004 0x1000 rw-",
        "0x1000 0x15b8000 0x1000 rw-",
        "0x10000000 unmapped",
    ]
    result = kho("pagetable", VTD, "--reverse", "0x15ac000", "0x15f1000", "0x1000", *TABLE)
    assert result.text.splitlines() == [
        "0x15ac000 0x10005000 rw-",
        "0x15f1000 0x10000000 rw-",
        "0x15f1000 0x7ffffffff000 rw-",
        "0x1000 unmapped",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        (SMALL, "9"),
        (SMALL, "/nowhere/1"),
        (SMALL, "1", *TABLE),
        (SMALL, "--levels", "4"),
        (VTD, "--root", "0x927000", "--table", "vtdss"),
        (VTD, "--root", "0x927000", "--table", "nothing", "--levels", "4"),
        (VTD, "--root", "0x927000", "--table", "vtdss", "--levels", "9"),
        (SMALL, "1", "--translate", "zero"),
        (CORPUS / "linux-7.3.4-handoff.elf.zst",),
    ],
)
def test_wrong_use_is_one_line(kho: Run, arguments: tuple[object, ...]) -> None:
    result = kho("pagetable", *arguments)
    assert result.status == 2
    assert result.out == b""
    assert result.err.startswith("kho: ")
    assert len(result.err.splitlines()) == 1
