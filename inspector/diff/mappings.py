"""What the domains of two images map, compared in windows.

Domains of two images are the same if user space calls them the same: see
:func:`inspector.passthrough.mappings.named_domains`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from abi.errors import UsageError
from inspector.diff.changes import Change, Diff, Kind
from inspector.image import Image
from inspector.memory.base import U64Array
from inspector.passthrough.domains import DomainTables
from inspector.passthrough.mappings import COLUMNS, Mappings, Side, chunks, named_domains
from inspector.text import size_text

#: Ranges of each side that are compared at a time.
WINDOW = 1 << 18
#: After so many ranges, the pages of mapped images are given back.
_RELEASE = 1 << 21


def compare(found: Diff, before: Image, after: Image, addresses: bool) -> None:
    """Record how the mappings of domains of the same name differ.

    One domain after the other, in windows: memory does not grow with what is mapped.
    """
    one, other = named_domains(before), named_domains(after)
    tables = DomainTables(before), DomainTables(after)
    rows = 0
    for name in sorted(one.keys() & other.keys()):
        changes = _Changes(name)
        try:
            sides = chunks(tables[0], one[name]), chunks(tables[1], other[name])
            for left, right in _windows(*sides):
                changes.add(left, right)
                rows += len(left) + len(right)
        except UsageError:
            continue
        for change in changes.all():
            if addresses or change.kind is not Kind.MOVED:
                found.add(change)
        if rows >= _RELEASE:
            before.memory.release()
            after.memory.release()
            rows = 0


def _windows(
    one: Iterator[Mappings], other: Iterator[Mappings]
) -> Iterator[tuple[Mappings, Mappings]]:
    """Two streams of ranges, cut at the same addresses into pieces of bounded length."""
    sides = [Side(one), Side(other)]
    while True:
        ends = [end for side in sides if (end := side.fill(WINDOW)) is not None]
        if not ends:
            left, right = (side.held for side in sides)
            if len(left) or len(right):
                yield left, right
            return
        last = min(ends)
        left, right = (side.take(last) for side in sides)
        yield left, right


@dataclass(slots=True)
class _Difference:
    """Neighbouring addresses of one kind of change; ``old`` and ``new`` are (pa, rights)."""

    start: int
    end: int
    old: tuple[int, int] | None
    new: tuple[int, int] | None

    def goes_on(self, other: _Difference, kind: Kind) -> bool:
        """Whether ``other`` is more of the same."""
        if self.end != other.start:
            return False
        if kind is not Kind.CHANGED or not (self.old and other.old and self.new and other.new):
            return True
        return self.old[1] == other.old[1] and self.new[1] == other.new[1]


class _Changes:
    """The differences of one domain, by kind; those that go on where the last ended are one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._found: dict[Kind, list[_Difference]] = {
            kind: [] for kind in (Kind.REMOVED, Kind.ADDED, Kind.CHANGED, Kind.MOVED)
        }

    def add(self, one: Mappings, other: Mappings) -> None:
        """Compare a window of both sides."""
        for kind, difference in _differences(one, other):
            known = self._found[kind]
            if known and known[-1].goes_on(difference, kind):
                known[-1].end = difference.end
            else:
                known.append(difference)

    def all(self) -> Iterator[Change]:
        """Everything that was found."""
        for kind, known in self._found.items():
            for d in known:
                what = f"iova {d.start:#x}, {size_text(d.end - d.start)}"
                yield Change(kind, self._name, what, _target(d.old), _target(d.new))


def _differences(one: Mappings, other: Mappings) -> Iterator[tuple[Kind, _Difference]]:
    one, other = _without_common_ends(one, other)
    if not len(one) and not len(other):
        return
    edges = np.sort(
        np.concatenate((one.iova, one.iova + one.size, other.iova, other.iova + other.size))
    )
    edges = edges[np.append(True, edges[1:] != edges[:-1])]
    left, size = edges[:-1], edges[1:] - edges[:-1]
    old, had, old_rights = _at(one, left)
    new, has, new_rights = _at(other, left)
    lost, won = had & ~has, has & ~had
    rights = had & has & (old_rights != new_rights)
    moved = had & has & ~rights & (old != new)
    for kind, which in (
        (Kind.REMOVED, lost), (Kind.ADDED, won), (Kind.CHANGED, rights), (Kind.MOVED, moved),
    ):  # fmt: skip
        rows = np.flatnonzero(which)
        if len(rows) == 0:
            continue
        # Neighbours that go on where the last ended are one change.
        ends = left[rows] + size[rows]
        follows = np.zeros(len(rows), np.bool_)
        follows[1:] = left[rows[1:]] == ends[:-1]
        if kind is Kind.CHANGED:
            follows[1:] &= (old_rights[rows[1:]] == old_rights[rows[:-1]]) & (
                new_rights[rows[1:]] == new_rights[rows[:-1]]
            )
        first = np.flatnonzero(~follows)
        last = np.append(first[1:] - 1, len(rows) - 1)
        for i, j in zip(rows[first].tolist(), rows[last].tolist(), strict=True):
            yield (
                kind,
                _Difference(
                    int(left[i]),
                    int(left[j] + size[j]),
                    (int(old[i]), int(old_rights[i])) if had[i] else None,
                    (int(new[i]), int(new_rights[i])) if has[i] else None,
                ),
            )


def _without_common_ends(one: Mappings, other: Mappings) -> tuple[Mappings, Mappings]:
    """Both without the ranges that they begin and end with in common."""
    count = min(len(one), len(other))
    first = _same(one, other, slice(0, count), slice(0, count), ascending=True)
    rest = count - first
    tail = [slice(len(side) - rest, len(side)) for side in (one, other)]
    last = _same(one, other, *tail, ascending=False)
    return tuple(  # type: ignore[return-value]
        Mappings(*(getattr(side, c)[first : len(side) - last] for c in COLUMNS))
        for side in (one, other)
    )


def _same(one: Mappings, other: Mappings, mine: slice, its: slice, *, ascending: bool) -> int:
    """How many ranges two slices of one length begin (or end) with in common."""
    length: int = mine.stop - mine.start
    differs: npt.NDArray[np.bool_] = np.zeros(length, np.bool_)
    for column in COLUMNS:
        differs |= getattr(one, column)[mine] != getattr(other, column)[its]
    if not differs.any():
        return length
    order = slice(None) if ascending else slice(None, None, -1)
    return int(np.flatnonzero(differs[order])[0])


def _target(mapped: tuple[int, int] | None) -> str | None:
    if mapped is None:
        return None
    pa, rights = mapped
    flags = "".join(c if rights & bit else "-" for c, bit in (("r", 1), ("w", 2), ("x", 4)))
    return f"{pa:#x} {flags}"


def _at(
    maps: Mappings, iova: U64Array
) -> tuple[U64Array, npt.NDArray[np.bool_], npt.NDArray[np.uint8]]:
    """(physical address, whether mapped, rights) of each address."""
    if len(maps) == 0:
        none = np.zeros(len(iova), np.bool_)
        return np.zeros(len(iova), np.uint64), none, np.zeros(len(iova), np.uint8)
    i = np.searchsorted(maps.iova, iova, side="right") - 1
    j = np.maximum(i, 0)
    mapped = (i >= 0) & (iova - maps.iova[j] < maps.size[j])
    return (
        np.where(mapped, maps.pa[j] + (iova - maps.iova[j]), np.uint64(0)),
        mapped,
        np.where(mapped, maps.rights[j], 0).astype(np.uint8),
    )
