"""A report for people and programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from inspector import sarif
from inspector.check import catalogue
from inspector.check.rule import Report
from inspector.document import finding
from inspector.findings import Severity
from inspector.text import display, plural, size_text

_COLOURS = {Severity.ERROR: "\x1b[31m", Severity.WARNING: "\x1b[33m", Severity.INFO: "\x1b[2m"}

#: Findings of one code that text shows: all if so many, else the first so many.
_FEW, _SHOWN = 10, 5


def _by_reason(undecided: dict[str, str]) -> dict[str, list[str]]:
    """Codes of rules that could not be decided, by the reason."""
    reasons: dict[str, list[str]] = {}
    for code, why in undecided.items():
        reasons.setdefault(why, []).append(code)
    return reasons


def lines(report: Report, *, colour: bool = False, every: bool = False) -> Iterator[str]:
    """Findings, worst first; what could not be decided; the account of preserved bytes.

    Of many findings with one code the first are shown, and how many more there are; ``every``
    shows all that were kept.
    """
    total = Counter(f.code for f in report.findings)
    seen: Counter[str] = Counter()
    for f in report.findings:
        level = f.severity.name.lower()
        shown = f"{_COLOURS[f.severity]}{level}\x1b[0m" if colour else level
        where = f"{display(f.path)}: " if f.path else ""
        seen[f.code] += 1
        if every or total[f.code] <= _FEW or seen[f.code] <= _SHOWN:
            yield f"{shown}: {where}{display(f.message)} [{f.code}]"
        elif seen[f.code] == total[f.code]:
            more = total[f.code] - _SHOWN
            yield f"{shown}: ... and {more:,} more like this; --all shows them [{f.code}]"
    for code, count in report.suppressed.items():
        yield f"... and {count:,} more of {code} that were only counted"
    for why, codes in _by_reason(report.undecided).items():
        yield f"cannot tell: {', '.join(codes)}: {display(why)}"
    owned = report.ownership
    if owned.known:
        used = ", ".join(f"{size_text(n)} {kind}" for kind, n in sorted(owned.by_kind.items()))
        yield f"preserved: {size_text(owned.preserved)}: {used}"
        rest = f"{size_text(owned.slack)} slack in blocks"
        yield f"           {size_text(owned.leaked)} claimed by nobody, {rest}"
    counts = Counter(f.severity for f in report.findings)
    if not report.findings:
        yield "clean" + (f", {len(report.undecided)} rules undecided" if report.undecided else "")
    else:
        yield ", ".join(
            plural(counts[s], s.name.lower() if s is not Severity.INFO else "note")
            for s in sorted(counts, reverse=True)
        )
    if report.worst is not None and report.worst > Severity.INFO:
        yield "'kho explain CODE' says what a kernel does about it"


def document(report: Report) -> dict[str, Any]:
    """The report as JSON."""
    owned = report.ownership
    return {
        "findings": [finding(f) for f in report.findings],
        "suppressed": report.suppressed,
        "undecided": report.undecided,
        "ownership": {
            "known": owned.known,
            "preserved": owned.preserved,
            "by_kind": owned.by_kind,
            "unclaimed": owned.leaked,
            "slack": owned.slack,
            "conflicts": len(owned.conflicts),
            "not_preserved": len(owned.unpreserved),
        },
    }


def sarif_log(report: Report, source: str) -> dict[str, Any]:
    """The findings as a SARIF log; ``source`` is the image's name."""
    rules = catalogue()
    return sarif.document(
        (
            sarif.Result(f.code, f.severity, f.message, f.path, source, f.address)
            for f in report.findings
        ),
        {code: sarif.Meaning(r.statement, r.kernel, r.look) for code, r in rules.items()},
    )


def status(report: Report, *, incomplete: bool) -> int:
    """1 for warnings, 4 for errors, 16 if something was not in the image."""
    worst = report.worst
    bits = 16 if incomplete else 0
    if worst is Severity.ERROR:
        return bits | 4
    return bits | (1 if worst is Severity.WARNING else 0)
