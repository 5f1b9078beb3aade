"""Counted arrays that lie behind their header in one block of pages."""

from __future__ import annotations

import numpy as np

from abi.schema import Struct
from inspector.budget import Cost
from inspector.memory.base import PageState, U8Array, U64Array
from inspector.survey import PHYSICAL_BITS, Survey
from inspector.walk.preserved import PreservedMap

#: No more pages than this are looked at behind one header: they are one block of the page
#: allocator, whose largest has 2^10 pages (of 4 KiB: 4 MiB, which holds 170,000 HWPTs).
MAX_PAGES = 1 << 10


def counted_rows(
    survey: Survey, start: int, count: int, entry: Struct, path: str
) -> tuple[U8Array, U64Array]:
    """The bytes of ``count`` entries from ``start`` on, and their addresses.

    Fewer if the image lacks a page (recorded as a hole) or the count is absurd: the array
    ends at the first missing page, at MAX_PAGES, and where the budget does.
    """
    page = survey.page_size
    room = MAX_PAGES * page - start % page
    size = min(count * entry.size, room)
    first = start - start % page
    pages = first + np.arange(-(-(start + size - first) // page), dtype=np.uint64) * np.uint64(page)
    states = survey.memory.states(pages, page)
    gap = (states != PageState.PRESENT).nonzero()[0]
    if len(gap):
        at = int(gap[0])
        survey.hole(int(pages[at]), path, PageState(int(states[at])))
        size = max(min(size, int(pages[at]) - start), 0)
    size = size - size % entry.size
    held = survey.room(Cost.ENTRIES, size, path, start) // entry.size
    survey.budget.spend(Cost.ENTRIES, held * entry.size)
    addresses = np.uint64(start) + np.arange(held, dtype=np.uint64) * np.uint64(entry.size)
    rows = survey.memory.gather(addresses, entry.size)
    if held:
        survey.place(entry, addresses, path)
    return rows, addresses


def may_reach(survey: Survey, preserved: PreservedMap | None, start: int, end: int) -> bool:
    """Whether what lies at ``start`` may go on to ``end``: all of it is preserved.

    For what the dump left out; a map that is lost, or has gaps itself, does not deny it.
    """
    if end >> PHYSICAL_BITS:
        return False
    if preserved is None or preserved.missing:
        return True
    page = survey.page_size
    first = start - start % page
    size = np.array([-(-end // page) * page - first], np.uint64)
    return bool(preserved.covers(np.array([first], np.uint64), size)[0])
