"""Every preserved byte of the IOMMU captures has exactly one owner."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import kho
from inspector import passthrough
from inspector.check.ownership import account
from inspector.device_tables.claims import WalkedTable, _worth_keeping, claim_tables
from inspector.findings import Findings
from inspector.memory.sparse import SparseMemory
from inspector.pagetable import Budget, Limits
from inspector.passthrough import domains, tables

CORPUS = Path(__file__).parents[2] / "corpus"
#: Tables that point to each other from every entry.
MAZE = 64


@pytest.mark.parametrize(
    "name",
    [
        "iommu-vw-small_legacy-handoff",
        "iommu-vw-legacy-handoff",
        "iommu-v3-small_scalable-handoff",
    ],
)
def test_every_preserved_byte_has_one_owner(name: str) -> None:
    truth = json.loads((CORPUS / f"{name}.truth.json").read_text())
    with kho.open(CORPUS / f"{name}.elf.zst") as image:
        found = account(image)
        assert found.preserved == truth["preserved_pages"] * 4096
        assert found.leaked == 0
        assert found.conflicts == ()
        assert len(found.unpreserved) == 0
        state = passthrough.iommu_state(image)
        assert state is not None
        claims = [c for c in image.survey.claims if c.kind == "page-table"]
        live = list(state.domains.live())
        assert [c.owner for c in claims] == [d.path for d in live]
        # The truth walked the tables of live domains only.
        wanted = {d["pa"]: d.get("table_pages") for d in truth["iommu_flb"]["domains"]}
        for claim, domain in zip(claims, live, strict=True):
            assert sorted(claim.starts.tolist()) == sorted(
                int(p, 16) for p in wanted[hex(domain.address)]
            )
        before = len(image.survey.claims)
        claim_tables(image)
        assert len(image.survey.claims) == before


def test_a_table_of_two_domains_is_walked_once() -> None:
    with kho.open(CORPUS / "iommu-vw-small_legacy-handoff.elf.zst") as image:
        state = passthrough.iommu_state(image)
        assert state is not None
        memory = SparseMemory.over(image.memory)
        first, second, _ = state.domains
    memory.write(second.address + 8, first.top_table_phys.to_bytes(8, "little"))
    entry = memory.u64(first.top_table_phys) | 1 << 7  # of no type that there is at this level
    memory.write(first.top_table_phys, entry.to_bytes(8, "little"))
    with kho.open(memory) as image:
        walked: dict[int, WalkedTable] = {}
        claim_tables(image, walked)
        assert [f.code for f in walked[first.address].findings] == ["KHO-PT-008"]
        assert walked[second.address].findings == []
        assert walked[second.address].reach == walked[first.address].reach
        one, other, *_ = (c for c in image.survey.claims if c.kind == "page-table")
        assert (one.owner, other.owner) == (first.path, second.path)
        assert one.starts.tolist() == other.starts.tolist()


def hostile(domains: int) -> SparseMemory:
    """A capture with so many domains more, each with a root of its own to one maze of tables.

    Roots need no alignment to be walked: 512 of them lie in one page.
    """
    with kho.open(CORPUS / "iommu-vw-small_legacy-handoff.elf.zst") as image:
        state = passthrough.iommu_state(image)
        assert state is not None
        array = state.domains.array
        template = image.memory.read(int(array.addresses[0]), array.struct.size)
        pieces = [(at, bytes(data)) for at, data in image.memory.extents()]
        notes = dict(image.memory.notes)
    end = max(at + len(data) for at, data in pieces) + 4095 & ~4095
    pages = -(-domains // array.capacity)
    memory = SparseMemory([(0, end + (pages + MAZE << 12))])
    memory.notes.update(notes)
    for at, data in pieces:
        memory.write(at, data)
    maze = [end + (pages + i << 12) for i in range(MAZE)]
    for i, table in enumerate(maze):
        entries = [maze[(7 * i + j) % MAZE] | 3 for j in range(512)]
        memory.write(table, np.array(entries, "<u8").tobytes())
    for number in range(pages):
        used = min(array.capacity, domains - number * array.capacity)
        page = end + (number << 12)
        head = [page + 4096 if number + 1 < pages else 0, used]
        memory.write(page, np.array(head, "<u8").tobytes() + template * used)
        for slot in range(used):
            root = maze[0] + 8 * (number * array.capacity + slot)
            at = page + 16 + slot * array.struct.size + array.struct.field("top_table_phys").offset
            memory.write(at, root.to_bytes(8, "little"))
    memory.write(int(array.pages[-1]), end.to_bytes(8, "little"))
    return memory


def test_hostile_tables_share_a_budget() -> None:
    """Each of the trees costs 40 ms for itself: a million domains would take half a day."""
    count = 150
    memory = hostile(count)
    with kho.open(memory) as image:
        shown = list(tables.chosen(image, None))
        assert len(shown) == count + 3
        for one in shown:
            for _ in tables.range_lines(one):
                pass
        walked = [sum(one.walk.stats.tables.values()) for one in shown if one.walk is not None]
        # The first visit tables again and again, until what walks may cost together is spent.
        assert walked[3] > Limits().repeats
        assert max(walked[20:]) <= MAZE + 2
        assert all(one.findings for one in shown[3:])


def test_a_spent_budget_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The domains behind it are neither walked nor believed to map nothing."""
    monkeypatch.setattr(domains, "Budget", lambda: Budget(tables=64))
    with kho.open(CORPUS / "iommu-vw-small_legacy-handoff.elf.zst") as image:
        walked: dict[int, WalkedTable] = {}
        claim_tables(image, walked)
        first, *others = walked.values()
        assert first.reach.complete
        assert first.findings == []
        for other in others:
            assert not other.reach.complete
            assert {f.code for f in other.findings} == {"KHO-PT-012"}


def test_findings_of_all_tables_are_limited() -> None:
    findings, kept = Findings(), Counter[str]()
    for _ in range(256):
        findings.error("KHO-PT-005", "again")
    total = sum(len(_worth_keeping(findings, kept)) for _ in range(40))
    assert total == 4096
    findings.error("KHO-PT-001", "another")
    assert [f.code for f in _worth_keeping(findings, kept)] == ["KHO-PT-001"]
