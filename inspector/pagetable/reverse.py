"""From physical addresses back to the IOVAs that lead there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from abi.pagetable.format import U64
from inspector.pagetable.columns import RangeColumns

#: Up to so many addresses are compared one by one with each range.
_FEW: Final = 8


@dataclass(frozen=True, slots=True)
class Reverse:
    """Pairs of ``pa`` (as asked) and ``iova``, ascending by IOVA within a chunk of ranges.

    ``permissions``: of each mapping. ``complete``: false if there may be more, because the
    limit was reached or the walk was not complete.
    """

    pa: U64
    iova: U64
    permissions: npt.NDArray[np.uint8]
    complete: bool


def look_back(ranges: Iterable[RangeColumns], pas: U64, limit: int) -> Reverse:
    """Find addresses in ranges. Duplicates in ``pas`` count once."""
    wanted = np.unique(pas)
    found: list[tuple[U64, U64, npt.NDArray[np.uint8]]] = []
    total = 0
    for chunk in ranges:
        if total >= limit:
            continue  # the pass must end for its statistics
        rows, query = _hits(chunk, wanted, limit - total)
        if len(rows):
            pa = wanted[query]
            iova = chunk.iova[rows] + (pa - chunk.pa[rows])
            found.append((pa, iova, chunk.permissions[rows]))
            total += len(rows)
    if not found:
        none = np.zeros(0, np.uint64)
        return Reverse(none, none, np.zeros(0, np.uint8), total < limit)
    pa, iova, rights = (np.concatenate(column) for column in zip(*found, strict=True))
    return Reverse(pa, iova, rights, total < limit)


def _hits(
    chunk: RangeColumns, wanted: U64, limit: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows of a chunk and the positions of the addresses that they hold."""
    if len(wanted) <= _FEW:
        rows, query = [], []
        for number, pa in enumerate(wanted):
            hit = np.flatnonzero(pa - chunk.pa < chunk.size)[:limit]
            rows.append(hit)
            query.append(np.full(len(hit), number))
        row, which = np.concatenate(rows), np.concatenate(query)
        order = np.argsort(row, kind="stable")[:limit]
        return row[order], which[order]
    first = np.searchsorted(wanted, chunk.pa)
    last = np.searchsorted(wanted, chunk.pa + chunk.size)
    counts = last - first
    row = np.flatnonzero(counts)
    counts = counts[row]
    before = np.cumsum(counts) - counts
    fits = before < limit
    row, counts, before = row[fits], counts[fits], before[fits]
    which = np.repeat(first[row] - before, counts) + np.arange(int(counts.sum()))
    row = np.repeat(row, counts)
    return row[:limit], which[:limit]
