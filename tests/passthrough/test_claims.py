"""Every preserved byte of the IOMMU captures has exactly one owner."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kho
from inspector import passthrough
from inspector.check.ownership import account
from inspector.device_tables.claims import claim_tables

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
