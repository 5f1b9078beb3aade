"""What walks over the tables of a whole image may cost together.

One walk is bounded by its limits. An image can have a million domains, though, each with a
table of its own that leads to one and the same maze: what is shared between trees costs as
often as there are trees.
"""

from __future__ import annotations

from dataclasses import dataclass

from inspector.pagetable.walker import Limits, Pass

#: A pass costs at least the work of so many tables.
_LEAST = 64
#: So many anomalies cost as much as a table.
_ANOMALIES = 8


@dataclass(slots=True)
class Budget:
    """A budget that walks share; every pass of theirs takes from it.

    ``tables``: tables in all (the default maps 16 TiB by 4 KiB pages); what lies beyond is
    reported by the walk that would have needed it (``KHO-PT-012``). ``anomalies``: once they
    are spent, no walk visits a table again. ``findings``: anomalies put into words; once they
    are spent, it is one of each code and walk.
    """

    tables: int = 1 << 23
    anomalies: int = 1 << 22
    findings: int = 1 << 13

    def limits(self, own: Limits) -> Limits:
        """Those of the next pass of a walk with limits of its own."""
        if self.tables >= own.tables and self.anomalies > 0 and self.findings > 0:
            return own
        return Limits(
            tables=max(0, min(own.tables, self.tables)),
            repeats=own.repeats if self.anomalies > 0 else min(own.repeats, 1),
            skips=own.skips,
            findings=own.findings if self.findings > 0 else min(own.findings, 1),
        )

    def spend(self, done: Pass) -> None:
        """Take what a pass has cost, whole or not."""
        described = len(done.findings.items)
        odd = described + sum(done.findings.suppressed.values())
        self.findings -= described
        self.anomalies -= odd
        self.tables -= max(sum(done.stats.tables.values()) + odd // _ANOMALIES, _LEAST)
