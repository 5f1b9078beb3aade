"""What ``kho pagetable`` shows: the page tables of an image, chosen and described."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from abi.device_table import TableRoot
from abi.errors import UsageError
from inspector import passthrough
from inspector.findings import Finding, exit_status
from inspector.pagetable import (
    Reverse,
    Translation,
    TranslationState,
    Walk,
    format_leaves,
    format_ranges,
)
from inspector.pagetable.anomalies import impossible
from inspector.pagetable.columns import RangeColumns
from inspector.passthrough.domains import DomainTables
from inspector.text import parse_integer, plural, size_text
from inspector.walk.iommu import Domain, IommuState

if TYPE_CHECKING:
    from inspector.image import Image

_RIGHTS = tuple("".join(c if n >> i & 1 else "-" for i, c in enumerate("rwx")) for n in range(8))
_STATES = {
    TranslationState.UNMAPPED: "unmapped",
    TranslationState.MISSING: "a table on the way is missing",
    TranslationState.INVALID: "an entry on the way is invalid",
    TranslationState.BEYOND: "beyond the address space",
}
_INCOMPLETE = "# not all could be read"


@dataclass(frozen=True, slots=True)
class Shown:
    """One page table to show: ``path`` of its domain, or "" for one that was named by address.

    ``walk`` is None where a domain names a table that there cannot be, for which ``wrong``
    says why.
    """

    path: str
    root: TableRoot
    walk: Walk | None
    wrong: Finding | None = None

    @property
    def findings(self) -> list[Finding]:
        """What the last pass, or the attempt to make one, found."""
        if self.walk is not None:
            return self.walk.findings.items
        return [] if self.wrong is None else [self.wrong]


def chosen(image: Image, which: str | None) -> Iterator[Shown]:
    """The page tables of all live domains, or of one: index, path, address, or PCI address.

    They come one after the other, so that not all that passes over them leave is kept.
    Raises UsageError if there is no such domain. What a domain says of its table does not
    raise: the tables of the others are shown all the same.
    """
    state = passthrough.iommu_state(image)
    if state is None:
        raise UsageError(
            "no IOMMU state in this image; --root PA --table FORMAT --levels N shows any table"
        )
    domains = list(state.domains.live()) if which is None else [_find(image, state, which)]
    tables = DomainTables(image)
    return (_shown(tables, domain) for domain in domains)


def _shown(tables: DomainTables, domain: Domain) -> Shown:
    root = tables.root(domain)
    try:
        walk = tables.walk(root, domain.path, preserved=True)
    except UsageError as error:
        return Shown(domain.path, root, None, impossible(error, domain.path, domain.address))
    return Shown(domain.path, root, walk)


def _find(image: Image, state: IommuState, which: str) -> Domain:
    for picture in passthrough.devices(image) if which.count(":") else ():
        if picture.name == which and picture.domain is not None:
            return picture.domain
    number = parse_integer(which.rpartition("/")[2])
    if which.startswith("/") and which.rpartition("/")[0] != state.domains.path:
        number = None
    if number is not None:
        found = state.domains[number] if 0 <= number < len(state.domains) else None
        found = found or state.domains.at(number)
        if found is not None:
            return found
    raise UsageError(
        f"no domain {which!r}: an index below {len(state.domains)}, a path such as"
        f" {state.domains.path}/0, the address of an object, or a device such as 0000:00:03.0"
    )


# -- text -----------------------------------------------------------------------------------------


def head(shown: Shown) -> str:
    """A line that says which table follows; a comment, for those who read on with a program."""
    root = shown.root
    what = shown.path or "table"
    return f"# {what}: {root.format}, {plural(root.levels, 'level')}, top {root.address:#x}\n"


def range_lines(shown: Shown) -> Iterator[bytes]:
    """``0x<iova> 0x<pa> 0x<size> rwx`` lines of merged ranges, in IOVA order."""
    if shown.walk is not None:
        yield from map(format_ranges, shown.walk.ranges())


def entry_lines(shown: Shown) -> Iterator[bytes]:
    """``0x<iova> 0x<pa> 0x<size> 0x<entry>`` lines of leaves, in IOVA order."""
    if shown.walk is not None:
        yield from map(format_leaves, shown.walk.leaves())


def statistics_text(shown: Shown) -> Iterator[str]:
    """Counts of the last pass, and what it found wrong, as comments."""
    suppressed = 0
    if shown.walk is not None:
        stats = shown.walk.stats
        tables = ", ".join(f"{n} of level {level}" for level, n in sorted(stats.tables.items()))
        leaves = ", ".join(f"{n:,} of {size_text(s)}" for s, n in stats.leaves_by_size.items())
        mapped = f"{size_text(stats.mapped)} mapped"
        ranges = f" in {plural(stats.ranges, 'range')}" if stats.ranges else ""
        yield f"# {mapped}{ranges}; leaves: {leaves or 'none'}; tables: {tables}"
        if not stats.complete:
            yield _INCOMPLETE
        suppressed = sum(shown.walk.findings.suppressed.values())
    for found in shown.findings[:64]:
        yield f"# {found.severity.name.lower()}: {found.message} [{found.code}]"
    more = max(len(shown.findings) - 64, 0) + suppressed
    if more > 0:
        yield f"# and {plural(more, 'more finding')}"


# -- JSON -----------------------------------------------------------------------------------------


def json_pieces(shown: Shown, *, entries: bool) -> Iterator[str]:
    """One table as JSON text in pieces, however many ranges it has."""
    root = shown.root
    first = {
        "path": shown.path or None,
        "format": root.format,
        "levels": root.levels,
        "top_table": hex(root.address),
    }
    key = "entries" if entries else "ranges"
    yield json.dumps(first)[:-1] + f', "{key}": ['
    comma = ""
    if shown.walk is not None:
        for chunk in shown.walk.leaves() if entries else shown.walk.ranges():
            rows = _rows(chunk)
            if rows:
                yield comma + ", ".join(map(json.dumps, rows))
                comma = ", "
    yield "], " + json.dumps(statistics(shown))[1:]


def _rows(chunk: Any) -> list[dict[str, Any]]:
    if isinstance(chunk, RangeColumns):
        return [
            {"iova": hex(i), "pa": hex(p), "size": s, "permissions": _RIGHTS[int(r) & 7]}
            for i, p, s, r in chunk
        ]
    return [{"iova": hex(i), "pa": hex(p), "size": s, "entry": hex(e)} for i, p, s, e in chunk]


def statistics(shown: Shown) -> dict[str, Any]:
    """Counts and findings of the last pass."""
    return {"statistics": _counts(shown.walk), "findings": _findings(shown)}


def _counts(walk: Walk | None) -> dict[str, Any] | None:
    if walk is None:
        return None
    stats = walk.stats
    return {
        "tables": {str(level): n for level, n in sorted(stats.tables.items())},
        "leaves": {hex(size): n for size, n in stats.leaves_by_size.items()},
        "ranges": stats.ranges or None,
        "bytes": stats.mapped,
        "complete": stats.complete,
    }


def _findings(shown: Shown) -> list[dict[str, Any]]:
    from inspector.document import finding

    return [finding(f) for f in shown.findings]


# -- single addresses -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lookup:
    """Where input addresses lead in one table, and what leads to physical addresses.

    ``translation`` and ``reverse`` are None if nothing was asked, or there is no table.
    """

    shown: Shown
    pas: list[int]
    translation: Translation | None
    reverse: Reverse | None

    @property
    def states(self) -> set[TranslationState]:
        """What became of the input addresses."""
        if self.translation is None:
            return set()
        return {TranslationState(state) for state in np.unique(self.translation.state).tolist()}

    @property
    def complete(self) -> bool:
        """Whether every table that could have had an answer was read."""
        missing = TranslationState.MISSING in self.states
        return not missing and (self.reverse is None or self.reverse.complete)


def look_up(shown: Shown, iovas: list[int], pas: list[int]) -> Lookup:
    """Translate ``iovas``, and find what leads to ``pas``."""
    walk = shown.walk
    if walk is None:
        return Lookup(shown, pas, None, None)
    return Lookup(
        shown,
        pas,
        walk.translate(np.array(iovas, np.uint64)) if iovas else None,
        walk.reverse(np.array(pas, np.uint64)) if pas else None,
    )


def lookup_lines(found: Lookup) -> Iterator[str]:
    """``0x<iova> 0x<pa> 0x<size> rwx``, or why nowhere; then ``0x<pa> 0x<iova> rwx``."""
    if found.shown.walk is None:
        yield from statistics_text(found.shown)
    for row in _translations(found):
        if row["pa"] is not None:
            yield f"{row['iova']} {row['pa']} {row['size']:#x} {row['permissions']}"
        else:
            yield f"{row['iova']} {_STATES[TranslationState[row['state'].upper()]]}"
    if found.reverse is None or found.shown.walk is None:
        return
    hits = _hits(found.reverse, found.pas)
    for pa in sorted(hits):
        for row in hits[pa]:
            yield f"{pa:#x} {row['iova']} {row['permissions']}"
    whole = found.shown.walk.stats.complete
    for pa, rows in hits.items():
        if not rows:
            yield f"{pa:#x} {'unmapped' if whole else 'not found'}"
    if not whole:
        yield _INCOMPLETE
    elif not found.reverse.complete:
        yield "# there are more"


def lookup_document(found: Lookup) -> dict[str, Any]:
    """The same for programs."""
    hits = {} if found.reverse is None else _hits(found.reverse, found.pas)
    return {
        "path": found.shown.path or None,
        "translations": list(_translations(found)),
        "reverse": [{"pa": hex(pa), "iovas": rows} for pa, rows in hits.items()],
        "complete": found.complete,
        "findings": _findings(found.shown) if found.shown.walk is None else [],
    }


def _translations(lookup: Lookup) -> Iterator[dict[str, Any]]:
    found = lookup.translation
    for i, iova in enumerate([] if found is None else found.iova.tolist()):
        assert found is not None
        state = TranslationState(int(found.state[i]))
        mapped = state is TranslationState.MAPPED
        yield {
            "iova": hex(iova),
            "state": state.name.lower(),
            "pa": hex(int(found.pa[i])) if mapped else None,
            "size": int(found.size[i]) if mapped else None,
            "permissions": _RIGHTS[int(found.permissions[i]) & 7] if mapped else None,
        }


def _hits(found: Reverse, pas: list[int]) -> dict[int, list[dict[str, Any]]]:
    """Every IOVA that leads to each address, by the address."""
    rows = zip(found.pa.tolist(), found.iova.tolist(), found.permissions.tolist(), strict=True)
    hits: dict[int, list[dict[str, Any]]] = {pa: [] for pa in pas}
    for pa, iova, rights in sorted(rows):
        hits[pa].append({"iova": hex(iova), "permissions": _RIGHTS[rights & 7]})
    return hits


# -- exit status ----------------------------------------------------------------------------------


def status(shown: Shown) -> int:
    """Exit status of a whole table: 1 warnings, 4 errors, 16 incomplete."""
    complete = shown.walk is None or shown.walk.stats.complete
    return exit_status(shown.findings, complete=complete)


def lookup_status(found: Lookup) -> int:
    """Exit status of lookups: 4 if an entry on the way is invalid, 16 if tables are missing."""
    invalid = found.shown.walk is None or TranslationState.INVALID in found.states
    return (4 if invalid else 0) | (0 if found.complete else 16)
