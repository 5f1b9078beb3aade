"""Preserved blocks and folios of two images, compared as columns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from inspector.diff.changes import Change, Diff, Kind
from inspector.image import Image
from inspector.walk.folio_file import FolioFile
from inspector.walk.preserved import PreservedMap

#: Runs of blocks of each side that are compared at a time.
_WINDOW = 1 << 18


def blocks(found: Diff, before: Image, after: Image) -> None:
    """Preserved blocks added, removed or of another order, as ranges."""
    one, other = before.preserved, after.preserved
    if one is None or other is None:
        return
    for kind, start, size, old, new in changed_blocks(one, other):
        found.add(
            Change(
                kind,
                "/preserved",
                f"{start:#x}",
                None if old is None else {"size": size, "order": old},
                None if new is None else {"size": size, "order": new},
            )
        )


def changed_blocks(
    one: PreservedMap, other: PreservedMap
) -> Iterator[tuple[Kind, int, int, int | None, int | None]]:
    """(kind, start, size, old order, new order) of each range of blocks that differs."""
    held: tuple[Kind, int, int, int | None, int | None] | None = None
    for low, high in _windows(one, other):
        for kind, start, size, old, new in _changed(one, other, low, high):
            if held is not None:
                if (held[0], *held[3:]) == (kind, old, new) and held[1] + held[2] == start:
                    held = (kind, held[1], held[2] + size, old, new)
                    continue
                yield held
            held = (kind, start, size, old, new)
    if held is not None:
        yield held


def _windows(one: PreservedMap, other: PreservedMap) -> Iterator[tuple[int, int]]:
    """Ranges [low, high) of addresses with a bounded number of runs, all that is preserved."""
    sides = [side for side in (one, other) if len(side.starts)]
    if not sides:
        return
    cuts = {int(start) for side in sides for start in side.starts[::_WINDOW]}
    cuts.add(max(int(side.ends.max()) for side in sides))
    yield from itertools.pairwise(sorted(cuts))


def _changed(
    one: PreservedMap, other: PreservedMap, low: int, high: int
) -> Iterator[tuple[Kind, int, int, int | None, int | None]]:
    """What :func:`changed_blocks` tells, of the addresses in [low, high)."""
    cuts = [np.array([low, high], np.uint64)]
    for side in (one, other):
        for column in (side.starts, side.ends):
            if side.disjoint:
                rows = slice(*np.searchsorted(column, cuts[0]).tolist())
                cuts.append(column[rows])
            else:
                cuts.append(column[(column >= cuts[0][0]) & (column < cuts[0][1])])
    edges = np.sort(np.concatenate(cuts))
    edges = edges[np.append(True, edges[1:] != edges[:-1])]
    left, right = edges[:-1], edges[1:]
    old, had = one.orders_at(left)
    new, has = other.orders_at(left)
    differs = (had != has) | (had & has & (old != new))
    left, right = left[differs], right[differs]
    old, had, new, has = old[differs], had[differs], new[differs], has[differs]
    if len(left) == 0:
        return
    fresh = np.concatenate(
        ([True], (left[1:] != right[:-1]) | (old[1:] != old[:-1]) | (new[1:] != new[:-1])
         | (had[1:] != had[:-1]) | (has[1:] != has[:-1]))
    )  # fmt: skip
    first = np.flatnonzero(fresh)
    last = np.append(first[1:] - 1, len(left) - 1)
    for i, j in zip(first.tolist(), last.tolist(), strict=True):
        kind = Kind.CHANGED if had[i] and has[i] else Kind.REMOVED if had[i] else Kind.ADDED
        yield (
            kind,
            int(left[i]),
            int(right[j] - left[i]),
            int(old[i]) if had[i] else None,
            int(new[i]) if has[i] else None,
        )


def folios(found: Diff, path: str, one: FolioFile, other: FolioFile, addresses: bool) -> None:
    """Folios of one file: moved, added, removed; runs of neighbours are one change."""
    a, b = one.folios, other.folios
    if all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("pfn", "index", "flags")):
        return
    left, right = np.argsort(a.index, kind="stable"), np.argsort(b.index, kind="stable")
    i, j = a.index[left], b.index[right]
    if len(i) == len(j) and (i == j).all():
        same = np.arange(len(i))
        both = np.ones(len(i), np.bool_)
    else:
        same = np.minimum(np.searchsorted(j, i), max(len(j) - 1, 0))
        both = (j[same] == i) if len(j) else np.zeros(len(i), np.bool_)
    old, new = left[both], right[same[both]]
    moved = a.pfn[old] != b.pfn[new]
    if addresses and moved.any():
        first = int(np.argmax(moved))
        found.add(
            Change(
                Kind.MOVED,
                path,
                f"{int(moved.sum())} folios",
                hex(int(a.pfn[old[first]]) * one.page_size),
                hex(int(b.pfn[new[first]]) * other.page_size),
            )
        )
    flags = a.flags[old] != b.flags[new]
    if flags.any():
        first = int(np.argmax(flags))
        found.add(
            Change(
                Kind.CHANGED,
                path,
                f"flags of {int(flags.sum())} folios",
                hex(int(a.flags[old[first]])),
                hex(int(b.flags[new[first]])),
            )
        )
    gone, come = i[~both], j[~np.isin(j, i)]
    if len(gone):
        found.add(Change(Kind.REMOVED, path, f"{len(gone)} folios", hex(int(gone[0])), None))
    if len(come):
        found.add(Change(Kind.ADDED, path, f"{len(come)} folios", None, hex(int(come[0]))))


def descriptors(found: Diff, path: str, one: FolioFile, other: FolioFile) -> None:
    """The vmalloc descriptor of the list of folios, but for where it leads."""
    for name in ("total_pages", "flags", "order"):
        old, new = getattr(one.vmalloc, name), getattr(other.vmalloc, name)
        if old != new:
            found.add(Change(Kind.CHANGED, path, f"vmalloc {name}", old, new))
