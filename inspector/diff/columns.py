"""Preserved blocks, folios and contents of two images, compared as columns."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector.diff.changes import Change, Diff, Kind
from inspector.image import Image
from inspector.walk.folio_file import FolioFile, content
from inspector.walk.preserved import PreservedMap


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
    edges = np.sort(np.concatenate((one.starts, one.ends, other.starts, other.ends)))
    if len(edges) == 0:
        return
    edges = edges[np.concatenate(([True], edges[1:] != edges[:-1]))]
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


def folios(found: Diff, path: str, one: FolioFile, other: FolioFile) -> None:
    """Folios of one file: moved, added, removed; runs of neighbours are one change."""
    a, b = one.folios, other.folios
    if len(a.pfn) == len(b.pfn) and (a.pfn == b.pfn).all() and (a.index == b.index).all():
        if not (a.flags == b.flags).all():
            found.add(Change(Kind.CHANGED, path, "folio flags", None, None))
        return
    left, right = np.argsort(a.index, kind="stable"), np.argsort(b.index, kind="stable")
    i, j = a.index[left], b.index[right]
    at = np.minimum(np.searchsorted(j, i), max(len(j) - 1, 0))
    both = (j[at] == i) if len(j) else np.zeros(len(i), np.bool_)
    moved = both & (a.pfn[left] != b.pfn[right][at] if len(j) else both)
    gone, come = i[~both], j[~np.isin(j, i)]
    if moved.any():
        old, new = a.pfn[left][moved], b.pfn[right][at][moved]
        found.add(
            Change(
                Kind.MOVED,
                path,
                f"{int(moved.sum())} folios",
                hex(int(old[0]) * one.page_size),
                hex(int(new[0]) * other.page_size),
            )
        )
    if len(gone):
        found.add(Change(Kind.REMOVED, path, f"{len(gone)} folios", hex(int(gone[0])), None))
    if len(come):
        found.add(Change(Kind.ADDED, path, f"{len(come)} folios", None, hex(int(come[0]))))


def contents(
    found: Diff, path: str, one: tuple[Image, FolioFile], other: tuple[Image, FolioFile]
) -> None:
    """The first byte at which two files differ."""
    if one[1].size != other[1].size:
        return
    left, right = (content(image.survey, file) for image, file in (one, other))
    buffers = [b"", b""]
    at = 0
    sources = [left, right]
    while at < one[1].size:
        for side in (0, 1):
            if not buffers[side]:
                piece = next(sources[side], None)
                if piece is None or piece.missing is not None:
                    return
                buffers[side] = bytes(piece.data) if piece.data is not None else bytes(piece.size)
        n = min(len(buffers[0]), len(buffers[1]))
        if buffers[0][:n] != buffers[1][:n]:
            a, b = (np.frombuffer(x[:n], np.uint8) for x in buffers)
            where = at + int(np.flatnonzero(a != b)[0])
            found.add(Change(Kind.CHANGED, path, f"content from byte {where:#x} on"))
            return
        buffers = [x[n:] for x in buffers]
        at += n
