"""Every preserved byte of the IOMMU captures has exactly one owner."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kho
from inspector import passthrough
from inspector.check.ownership import account
from inspector.device_tables.claims import WalkedTable, _Budget, claim_tables
from inspector.findings import Findings
from inspector.memory.sparse import SparseMemory
from inspector.pagetable import Limits

CORPUS = Path(__file__).parents[2] / "corpus"


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


def test_many_hostile_tables_share_a_budget() -> None:
    """A thousand domains, each with a table that points to one and the same: minutes, else."""
    budget = _Budget()
    assert budget.limits == Limits()
    for _ in range(40):
        findings = Findings()
        for _ in range(256):
            findings.error("KHO-PT-005", "again")
        findings.suppress("KHO-PT-005", 1 << 20)
        budget.spend(findings)
    assert budget.limits.repeats == 1
    assert budget.spend(findings) == []
