"""``kho pagetable``: domains and any table, whole and by address."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
import zstandard

import kho as kho_library
from inspector.passthrough import tables
from tests.cli.conftest import CORPUS, Run

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


def two_tables(path: Path, hole: int) -> Path:
    """A raw image of a table at 0x1000 that maps 0x5000, and of a pointer to ``hole``."""
    memory = bytearray(0x6000)
    for address, word in (
        (0x1000, 0x2003),
        (0x2000, 0x3003),
        (0x3000, 0x4003),
        (0x3008, hole | 3),
        (0x4000 + 8 * 5, 0x123003),
    ):
        memory[address : address + 8] = word.to_bytes(8, "little")
    path.write_bytes(memory)
    return path


def test_what_a_missing_table_hides_is_not_called_unmapped(kho: Run, tmp_path: Path) -> None:
    table = ("--root", "0x1000", "--table", "vtdss", "--levels", "4")
    holed = two_tables(tmp_path / "holed", 0x100000)
    result = kho("pagetable", holed, *table, "--translate", "0x5010", "0x205010", "0x6000")
    assert result.status == 16
    assert result.text.splitlines() == [
        "0x5010 0x123010 0x1000 rw-",
        "0x205010 a table on the way is missing",
        "0x6000 unmapped",
    ]
    result = kho("pagetable", holed, *table, "--reverse", "0x123001", "0x124000")
    assert result.status == 16
    assert result.text.splitlines() == [
        "0x123001 0x5001 rw-",
        "0x124000 not found",
        "# not all could be read",
    ]
    result = kho("pagetable", holed, *table, "--reverse", "0x124000", "--format", "json")
    assert result.status == 16
    assert json.loads(result.out)["tables"][0]["complete"] is False
    whole = two_tables(tmp_path / "whole", 0x5000)
    result = kho("pagetable", whole, *table, "--reverse", "0x124000", "--translate", "0x205000")
    assert (result.status, result.text) == (0, "0x205000 unmapped\n0x124000 unmapped\n")


def test_a_start_table_that_is_not_in_the_image_hides_everything(kho: Run, tmp_path: Path) -> None:
    image = two_tables(tmp_path / "image", 0x5000)
    table = ("--root", "0x40000000", "--table", "vtdss", "--levels", "4")
    result = kho("pagetable", image, *table, "--translate", "0x5000", "0x205000")
    assert result.status == 16
    assert result.text == (
        "0x5000 a table on the way is missing\n0x205000 a table on the way is missing\n"
    )


def test_an_invalid_entry_on_the_way_is_an_error(kho: Run, tmp_path: Path) -> None:
    image = two_tables(tmp_path / "image", 0x5000)
    words = bytearray(image.read_bytes())
    words[0x2000] |= 0x80  # a leaf of 1 TiB, which there is not
    words[0x1000] |= 0x80
    image.write_bytes(words)
    table = ("--root", "0x1000", "--table", "vtdss", "--levels", "4")
    result = kho("pagetable", image, *table, "--translate", "0x5000")
    assert (result.status, result.text) == (4, "0x5000 an entry on the way is invalid\n")


def domain_changed(path: Path, offset: int, value: int) -> Path:
    """The small capture with a word changed, ``offset`` from its second domain object."""
    with SMALL.open("rb") as file:
        core = bytearray(zstandard.ZstdDecompressor().stream_reader(file).read())
    first, count = int.from_bytes(core[32:40], "little"), int.from_bytes(core[56:58], "little")
    wanted = 0x221F038 + offset
    for header in range(first, first + 56 * count, 56):
        at, pa, size = (int.from_bytes(core[header + n :][:8], "little") for n in (8, 24, 32))
        if pa <= wanted < pa + size:
            core[at + wanted - pa : at + wanted - pa + 8] = value.to_bytes(8, "little")
    path.write_bytes(core)
    return path


@pytest.mark.parametrize(("offset", "value"), [(16, 9), (16, (1 << 64) - 1), (8, 0x9BE003)])
def test_a_domain_that_cannot_be_walked_hides_no_other(
    kho: Run, tmp_path: Path, offset: int, value: int
) -> None:
    image = domain_changed(tmp_path / "image.elf", offset, value)
    result = kho("pagetable", image)
    assert result.status == 4
    assert "domains/0: vtdss" in result.text
    assert "domains/2: vtdss" in result.text
    assert [line for line in result.text.splitlines() if "KHO-PT-008" in line]
    result = kho("pagetable", image, "1", "--entries", "--format", "json")
    assert result.status == 4
    [table] = json.loads(result.out)["tables"]
    assert table["entries"] == []
    assert table["statistics"] is None
    assert [f["code"] for f in table["findings"]] == ["KHO-PT-008"]
    result = kho("pagetable", image, "1", "--translate", "0x1000", "--reverse", "0x15b8000")
    assert result.status == 4
    assert result.text.startswith("# error: ")


def test_no_more_than_one_table_is_kept() -> None:
    """A pass has large buffers, and an image may have any number of domains."""
    with kho_library.open(CORPUS / "iommu-vw-legacy-handoff.elf.zst") as image:
        walks: list[weakref.ref[object]] = []
        for shown in tables.chosen(image, None):
            assert shown.walk is not None
            assert tables.status(shown) == 0
            walks.append(weakref.ref(shown.walk))
            assert sum(walk() is not None for walk in walks) <= 2
        assert len(walks) == 183


def test_devices_whose_page_table_is_wrong_are_not_clean(kho: Run, tmp_path: Path) -> None:
    result = kho("devices", domain_changed(tmp_path / "image.elf", 16, 9))
    assert result.status == 5  # and no known layout has such a level
    assert "reaches   unknown: vtdss has tables of 3, 4, 5 levels" in result.text
    result = kho("devices", domain_changed(tmp_path / "image.elf", 0x9BE000 - 0x221F038, 0x1003))
    assert result.status == 20
    assert "KHO-PT-003" in result.text


def test_what_is_only_a_warning_is_one_for_devices_too(kho: Run, tmp_path: Path) -> None:
    lo = 0x9BE001 | 1 << 4  # a reserved bit in the context entry of 0000:00:05.0
    result = kho("devices", domain_changed(tmp_path / "image.elf", 0x65E280 - 0x221F038, lo))
    assert "KHO-VTD-011" in result.text
    assert result.status == 1


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
