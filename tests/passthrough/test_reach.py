"""Which device can DMA where: page tables of real captures against what user space mapped."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import kho
from abi.device_table import TableRoot
from inspector import passthrough
from inspector.cli.app import app
from inspector.device_tables import walk_root
from inspector.image import Image
from inspector.passthrough import reach

CORPUS = Path(__file__).parents[2] / "corpus"
CAPTURES = [
    "iommu-vw-small_legacy-handoff",
    "iommu-vw-legacy-handoff",
    "iommu-vw-legacy-incoming",
    "iommu-v3-small_scalable-handoff",
]


def truth_of(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CORPUS / f"{name}.truth.json").read_text())
    return loaded


def expected(truth: dict[str, Any], iommufd: int, ioas: int) -> dict[int, tuple[int, str]]:
    """Page of the IOVA space -> (physical page, rights), as user space mapped it."""
    pages: dict[int, tuple[int, str]] = {}
    for m in truth["mappings"]:
        if (m["iommufd"], m["ioas"]) == (iommufd, ioas):
            first, pa = int(m["iova"], 16) >> 12, int(m["pa"], 16) >> 12
            for i in range(int(m["len"], 16) >> 12):
                pages[first + i] = pa + i, m["flags"]
    for m in truth["unmapped"]:
        if (m["iommufd"], m["ioas"]) == (iommufd, ioas):
            first = int(m["iova"], 16) >> 12
            for i in range(int(m["len"], 16) >> 12):
                pages.pop(first + i, None)
    return pages


def mapped(image: Image, root: TableRoot) -> dict[int, tuple[int, str]]:
    """The same out of a page table."""
    pages: dict[int, tuple[int, str]] = {}
    walk = walk_root(image.memory, root)
    for chunk in walk.ranges():
        for iova, pa, size, rights in chunk:
            text = "".join(c for c, bit in (("r", 1), ("w", 2)) if int(rights) & bit)
            for i in range(size >> 12):
                pages[(iova >> 12) + i] = (pa >> 12) + i, text
    assert walk.findings.items == []
    return pages


@pytest.mark.parametrize("name", CAPTURES)
def test_every_hwpt_decodes_to_what_user_space_mapped(name: str) -> None:
    truth = truth_of(name)
    wanted: dict[tuple[int, int], dict[int, tuple[int, str]]] = {}
    # The truth numbers iommufds as they were opened; the third was closed before the update.
    numbers = {"vm-a": 1, "vm-b": 2, "many": 4}
    checks = Counter((c["session"], c["iommufd_token"]) for c in truth["mapping_check"])
    compared: Counter[tuple[str, str]] = Counter()
    with kho.open(CORPUS / f"{name}.elf.zst") as image:
        state = passthrough.iommu_state(image)
        assert state is not None
        for session, want_session in zip(image.luo.sessions, truth["sessions"], strict=True):
            for file, want_file in zip(session.files, want_session["files"], strict=True):
                for hwpt, want in zip(
                    getattr(file.state, "hwpts", ()), want_file.get("hwpts", ()), strict=True
                ):
                    who = want_session["name"], want_file["token"]
                    key = numbers[who[0]], want["ioas"]
                    if key not in wanted:
                        wanted[key] = expected(truth, *key)
                    domain = state.domains.at(hwpt.domain_data)
                    assert domain is not None
                    assert mapped(image, reach.domain_root(image, domain)) == wanted[key]
                    assert wanted[key]
                    compared[who] += 1
    assert compared == checks


@pytest.mark.parametrize("name", CAPTURES)
def test_reach_of_each_device(name: str) -> None:
    truth = truth_of(name)
    pages = {c["domain"]: c["pages"] for c in truth["mapping_check"]}
    with kho.open(CORPUS / f"{name}.elf.zst") as image:
        found = reach.devices(image)
        assert len(found) == 4
        for one in found:
            assert one.picture.domain is not None
            assert one.reach is not None
            assert one.reach.mapped == pages[hex(one.picture.domain.address)] * 4096
            assert one.reach.elsewhere == 0
            assert sum(one.reach.memory_files.values()) == one.reach.mapped
            session = one.picture.vfio[0][0]
            assert all(p.startswith(session.path + "/") for p in one.reach.memory_files)
            assert one.disagreements == ()
            assert one.reach.anomalies == []


@settings(max_examples=60, deadline=None)
@given(
    files=st.lists(st.lists(st.integers(0, 200), max_size=30), max_size=4),
    ranges=st.lists(st.tuples(st.integers(0, 220), st.integers(1, 40)), max_size=20),
    pieces=st.integers(1, 7),
)
def test_shares_are_what_a_page_by_page_count_gives(
    files: list[list[int]], ranges: list[tuple[int, int]], pieces: int
) -> None:
    class Folios:
        def __init__(self, pfns: list[int]) -> None:
            self.pfn = np.array(pfns, np.uint64)

    class File:
        def __init__(self, pfns: list[int]) -> None:
            self.folios = Folios(pfns)
            self.addresses = self.folios.pfn * np.uint64(4096)
            self.sizes = np.full(len(pfns), 4096, np.uint64)
            self.used = self.folios.pfn != 0

    taken: set[int] = set()
    own: list[list[int]] = []
    for pfns in files:
        mine = sorted(set(pfns) - taken - {0})
        taken |= set(mine)
        own.append(mine)

    class Fake:
        def folio_files(self) -> Any:
            return ((str(i), File(p)) for i, p in enumerate(own))

    index = reach.MemoryFiles(Fake())  # type: ignore[arg-type]
    pa = np.array([r[0] * 4096 for r in ranges], np.uint64)
    size = np.array([r[1] * 4096 for r in ranges], np.uint64)
    saved, reach._MAX_PIECES = reach._MAX_PIECES, pieces
    try:
        shares = index.share(pa, size).tolist()
    finally:
        reach._MAX_PIECES = saved
    assert shares == [
        4096 * sum(p in mine for start, n in ranges for p in range(start, start + n))
        for mine in own
    ]


def test_the_verb() -> None:
    path = str(CORPUS / "iommu-v3-small_scalable-handoff.elf.zst")
    result = CliRunner().invoke(app, ["devices", path])
    assert result.exit_code == 0, result.output
    assert "0000:00:10.0" in result.output
    assert "PASID entry 0x7fb000, DID 5" in result.output
    assert "0xfedcba9876543210 of iommufd 0x1000000100000010, session vm-a" in result.output
    result = CliRunner().invoke(app, ["devices", "--format", "json", path])
    assert result.exit_code == 0
    answer = json.loads(result.output)
    assert answer["schema_version"] == 1
    assert [d["name"] for d in answer["devices"]] == [
        "0000:00:03.0", "0000:00:04.0", "0000:00:05.0", "0000:00:10.0",
    ]  # fmt: skip
    first = answer["devices"][0]
    assert first["hardware"]["did"] == first["attachment_id"] == 3
    assert first["reach"]["bytes"] == 6526 * 4096
    result = CliRunner().invoke(app, ["devices", str(CORPUS / "linux-7.3.4-handoff.elf.zst")])
    assert "no device is handed over" in result.output
