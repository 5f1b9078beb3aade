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
from inspector.device_tables import walk_root
from inspector.findings import Severity
from inspector.pagetable import TranslationState, Walk, format_leaves, format_ranges
from inspector.pagetable.columns import RangeColumns
from inspector.passthrough.reach import domain_root
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


@dataclass(frozen=True, slots=True)
class Shown:
    """One page table to show: ``path`` of its domain, or "" for one that was named by address."""

    path: str
    root: TableRoot
    walk: Walk


def chosen(image: Image, which: str | None) -> list[Shown]:
    """The page tables of all live domains, or of one: index, path, address, or PCI address.

    Raises UsageError if there is no such domain.
    """
    state = passthrough.iommu_state(image)
    if state is None:
        raise UsageError(
            "no IOMMU state in this image; --root PA --table FORMAT --levels N shows any table"
        )
    domains = list(state.domains.live()) if which is None else [_find(image, state, which)]
    out = []
    for domain in domains:
        root = domain_root(image, domain)
        out.append(
            Shown(domain.path, root, walk_root(image.memory, root, image=image, path=domain.path))
        )
    return out


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
    return (format_ranges(chunk) for chunk in shown.walk.ranges())


def entry_lines(shown: Shown) -> Iterator[bytes]:
    """``0x<iova> 0x<pa> 0x<size> 0x<entry>`` lines of leaves, in IOVA order."""
    return (format_leaves(chunk) for chunk in shown.walk.leaves())


def statistics_text(walk: Walk) -> Iterator[str]:
    """Counts of the last pass, and what it found wrong, as comments."""
    stats = walk.stats
    tables = ", ".join(f"{n} of level {level}" for level, n in sorted(stats.tables.items()))
    leaves = ", ".join(f"{n:,} of {size_text(s)}" for s, n in stats.leaves_by_size.items())
    mapped = f"{size_text(stats.mapped)} mapped"
    ranges = f" in {plural(stats.ranges, 'range')}" if stats.ranges else ""
    yield f"# {mapped}{ranges}; leaves: {leaves or 'none'}; tables: {tables}"
    if not stats.complete:
        yield "# not all could be read"
    for found in walk.findings.items[:64]:
        yield f"# {found.severity.name.lower()}: {found.message} [{found.code}]"
    more = len(walk.findings.items) - 64 + sum(walk.findings.suppressed.values())
    if more > 0:
        yield f"# and {plural(more, 'more finding')}"


def translation_lines(walk: Walk, iovas: list[int]) -> Iterator[str]:
    """One line an address: where it leads, or why nowhere."""
    found = walk.translate(np.array(iovas, np.uint64))
    for i, iova in enumerate(iovas):
        state = TranslationState(int(found.state[i]))
        if state is TranslationState.MAPPED:
            rights = _RIGHTS[int(found.permissions[i]) & 7]
            yield f"{iova:#x} {int(found.pa[i]):#x} {int(found.size[i]):#x} {rights}"
        else:
            yield f"{iova:#x} {_STATES[state]}"


def reverse_lines(walk: Walk, pas: list[int]) -> Iterator[str]:
    """``0x<pa> 0x<iova> rwx`` lines: every address that leads to each physical address."""
    found = walk.reverse(np.array(pas, np.uint64))
    hit = set(found.pa.tolist())
    rows = sorted(
        zip(found.pa.tolist(), found.iova.tolist(), found.permissions.tolist(), strict=True)
    )
    for pa, iova, rights in rows:
        yield f"{pa:#x} {iova:#x} {_RIGHTS[rights & 7]}"
    for pa in dict.fromkeys(pas):
        if pa not in hit:
            yield f"{pa:#x} unmapped"
    if not found.complete:
        yield "# there are more"


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
    for chunk in shown.walk.leaves() if entries else shown.walk.ranges():
        rows = _rows(chunk)
        if rows:
            yield comma + ", ".join(map(json.dumps, rows))
            comma = ", "
    yield "], " + json.dumps(statistics(shown.walk))[1:]


def _rows(chunk: Any) -> list[dict[str, Any]]:
    if isinstance(chunk, RangeColumns):
        return [
            {"iova": hex(i), "pa": hex(p), "size": s, "permissions": _RIGHTS[int(r) & 7]}
            for i, p, s, r in chunk
        ]
    return [{"iova": hex(i), "pa": hex(p), "size": s, "entry": hex(e)} for i, p, s, e in chunk]


def statistics(walk: Walk) -> dict[str, Any]:
    """Counts and findings of the last pass."""
    from inspector.document import finding

    stats = walk.stats
    return {
        "statistics": {
            "tables": {str(level): n for level, n in sorted(stats.tables.items())},
            "leaves": {hex(size): n for size, n in stats.leaves_by_size.items()},
            "ranges": stats.ranges or None,
            "bytes": stats.mapped,
            "complete": stats.complete,
        },
        "findings": [finding(f) for f in walk.findings.items],
    }


def translations(walk: Walk, iovas: list[int]) -> list[dict[str, Any]]:
    """Where each address leads."""
    found = walk.translate(np.array(iovas, np.uint64))
    out = []
    for i, iova in enumerate(iovas):
        state = TranslationState(int(found.state[i]))
        mapped = state is TranslationState.MAPPED
        out.append(
            {
                "iova": hex(iova),
                "state": state.name.lower(),
                "pa": hex(int(found.pa[i])) if mapped else None,
                "size": int(found.size[i]) if mapped else None,
                "permissions": _RIGHTS[int(found.permissions[i]) & 7] if mapped else None,
            }
        )
    return out


def reversals(walk: Walk, pas: list[int]) -> list[dict[str, Any]]:
    """Every address that leads to each physical address."""
    found = walk.reverse(np.array(pas, np.uint64))
    rows = zip(found.pa.tolist(), found.iova.tolist(), found.permissions.tolist(), strict=True)
    hits: dict[int, list[dict[str, Any]]] = {pa: [] for pa in pas}
    for pa, iova, rights in sorted(rows):
        hits[pa].append({"iova": hex(iova), "permissions": _RIGHTS[rights & 7]})
    return [{"pa": hex(pa), "iovas": hits[pa]} for pa in hits]


def status(walks: list[Walk]) -> int:
    """Exit status: 1 warnings, 4 errors, 16 incomplete."""
    out = 0
    for walk in walks:
        if not walk.stats.complete:
            out |= 16
        for found in walk.findings.items:
            out |= {Severity.ERROR: 4, Severity.WARNING: 1}.get(found.severity, 0)
    return out
