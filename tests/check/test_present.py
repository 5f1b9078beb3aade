"""Reports as people read them: many findings of one code do not bury the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import kho
from inspector.check import check
from inspector.check.ownership import Extents, Ownership
from inspector.check.present import lines
from inspector.check.rule import Report
from inspector.findings import Finding, Severity

CORPUS = Path(__file__).parents[2] / "corpus"
EMPTY = np.empty(0, np.uint64)
UNKNOWN = Ownership(
    claims=(),
    known=False,
    conflicts=(),
    unpreserved=Extents(EMPTY, EMPTY, EMPTY.astype(np.int64)),
    leak_starts=EMPTY,
    leak_ends=EMPTY,
    by_kind={},
    preserved=0,
    leaked=0,
    slack=0,
)


def report(counts: dict[str, int], suppressed: dict[str, int] | None = None) -> Report:
    findings = tuple(
        Finding(code, Severity.WARNING, f"number {i}")
        for code, count in counts.items()
        for i in range(count)
    )
    return Report(findings, {}, suppressed or {}, UNKNOWN)


def shown(report: Report, code: str, **how: bool) -> list[str]:
    return [line for line in lines(report, **how) if code in line]


def test_a_few_findings_are_all_shown() -> None:
    few = report({"KHO-A-001": 10, "KHO-B-001": 1})
    assert len(shown(few, "KHO-A-001")) == 10
    assert shown(few, "KHO-B-001") == ["warning: number 0 [KHO-B-001]"]


def test_many_findings_are_counted() -> None:
    many = report({"KHO-A-001": 11, "KHO-B-001": 1})
    found = shown(many, "KHO-A-001")
    assert found[:5] == [f"warning: number {i} [KHO-A-001]" for i in range(5)]
    assert found[5:] == ["warning: ... and 6 more like this; --all shows them [KHO-A-001]"]
    assert shown(many, "KHO-B-001") == ["warning: number 0 [KHO-B-001]"]
    assert list(lines(many))[-2] == "12 warnings"


def test_what_was_not_kept_is_counted_too() -> None:
    hostile = report({"KHO-A-001": 256}, {"KHO-A-001": 744})
    assert "251 more like this" in shown(hostile, "KHO-A-001")[5]
    counted = "... and 744 more of KHO-A-001 that were only counted"
    assert shown(hostile, "KHO-A-001")[6:] == [counted]
    every = shown(hostile, "KHO-A-001", every=True)
    assert len(every) == 257
    assert every[-1] == counted


def test_rules_that_were_not_asked_for_are_not_counted() -> None:
    with kho.open(CORPUS / "iommu-vw-legacy-handoff.elf.zst") as image:
        image.survey.findings.suppress("KHO-MEM-001", 7)
        assert check(image, rules=["KHO-IFD"]).suppressed == {}
        assert check(image, rules=["KHO-MEM"]).suppressed == {"KHO-MEM-001": 7}
        assert check(image).suppressed == {"KHO-MEM-001": 7}
