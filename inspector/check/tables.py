"""Page tables of domains, and the hardware's tables against the objects."""

from __future__ import annotations

from collections.abc import Callable

from abi.errors import UsageError
from inspector import passthrough
from inspector.check.rule import Context, Rule
from inspector.device_tables import cross
from inspector.findings import Finding
from inspector.pagetable import anomalies


def _walks(context: Context) -> list[Finding]:
    """What is wrong with the page table of each live domain; each is walked once."""
    if "page tables" in context.shared:
        return context.shared["page tables"]
    from inspector.passthrough.domains import DomainTables

    image = context.image
    state = passthrough.iommu_state(image)
    found: list[Finding] = context.shared.setdefault("page tables", [])
    tables = DomainTables(image)
    for domain in state.domains.live() if state is not None else ():
        if not domain.top_table_phys:
            continue
        known = context.walked.get(domain.address)
        if known is not None:
            found += known.findings
            continue
        try:
            walk = tables.walk(tables.root(domain), domain.path, preserved=True)
            found += walk.findings.items
        except UsageError as error:
            found.append(anomalies.impossible(error, domain.path, domain.address))
    return found


def hardware(context: Context) -> list[Finding]:
    """Where hardware tables and objects disagree; the memo has what could not be decided."""
    if "hardware" not in context.shared:
        undecided = context.memo.setdefault("hardware undecided", {})
        context.shared["hardware"] = cross.cross_check(context.image, undecided).items
    return context.shared["hardware"]


def _of_tables(code: str) -> Callable[[Context], None]:
    def test(context: Context) -> None:
        if code == anomalies.UNPRESERVED and context.whole_map() is None:
            return
        for finding in _walks(context):
            if finding.code == code:
                context.report(
                    finding.message, path=finding.path, address=finding.address, data=finding.data
                )

    return test


def _of_hardware(code: str) -> Callable[[Context], None]:
    def test(context: Context) -> None:
        state = passthrough.iommu_state(context.image)
        if state is not None and not state.generation.unit_views and len(state.units):
            context.undecidable(f"{state.path} does not say where the units' tables lie")
            return
        for finding in hardware(context):
            if finding.code == code:
                context.report(finding.message, path=finding.path, address=finding.address)
        if code in context.memo["hardware undecided"]:
            context.undecidable(context.memo["hardware undecided"][code])

    return test


_KERNEL = {
    anomalies.UNPRESERVED: "BUG when the domain is restored: the page cannot be taken over.",
    anomalies.SHARED: "The second restore of the page fails.",
    anomalies.OUTSIDE: "BUG when the domain is restored.",
    anomalies.EXCLUDED: "Nothing: the dump lacks it, not the machine.",
    anomalies.BUDGET: "Nothing: the walk gave up, not the kernel.",
}

RULES = (
    *(
        Rule(
            code,
            severity,
            f"In an entry of a page table, {text}.",
            _KERNEL.get(code, "The hardware faults or translates wrongly on such an address."),
            "kho pagetable IMAGE DOMAIN --entries",
            _of_tables(code),
        )
        for code, (severity, text) in anomalies.CODES.items()
    ),
    *(
        Rule(code, severity, statement, kernel, "kho devices IMAGE", _of_hardware(code))
        for code, (severity, statement, kernel) in cross.CODES.items()
    ),
)
