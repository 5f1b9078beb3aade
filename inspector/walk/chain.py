"""Singly linked pages: block lists, vmalloc chunks, object arrays, bitmap chunks.

All of them start with the physical address of the next page. The walk checks bounds,
alignment, cycles and sharing, and stops at a limit, whatever memory contains.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import numpy.typing as npt

from abi.block import KHO_MAX_BLOCKS, kho_block_header_ser
from abi.schema import Struct
from inspector.memory.base import MemoryFault, Span, U8Array, U64Array
from inspector.survey import Survey

_EMPTY = np.empty(0, np.uint64)
#: Pointers followed before they are checked: at first, and at most.
_SHORT, _STRIDE = 64, 4096


@dataclass(slots=True, eq=False)
class Chain:
    """The pages of a chain in order.

    ``complete`` if its end was reached, ``cut`` if it goes on in a page that the image lacks.
    """

    pages: U64Array
    complete: bool
    cut: bool = False


def follow(survey: Survey, first: int, path: str, what: str, *, limit: int = 0) -> Chain:
    """Follow next pointers (u64 at offset 0 of each page) from ``first`` to 0.

    ``limit`` bounds the number of pages (default: the survey's budget). Anomalies become
    findings ``KHO-LST-*`` and ``KHO-MEM-*``; the pages before them are returned.
    """
    pages = array("Q")
    limit = limit or survey.max_nodes
    read, at = survey.memory.read, first
    while at:
        at = _stride(survey, at, path, pages, limit)
        if not at:
            break
        if not survey.pointer(at, path, what) or not survey.enter(at, path, what):
            return Chain(_column(pages), False)
        if len(pages) >= limit:
            survey.findings.error(
                "KHO-LST-004", f"{what} list is longer than {limit}", path=path, address=at
            )
            return Chain(_column(pages), False)
        try:
            raw = read(at, 8)
        except MemoryFault as fault:
            survey.hole(fault.address, path, fault.state)
            return Chain(_column(pages), False, cut=True)
        pages.append(at)
        at = int.from_bytes(raw, "little")
    return Chain(_column(pages), True)


def _column(pages: array[int]) -> U64Array:
    return np.frombuffer(pages, np.uint64) if pages else _EMPTY


def _stride(survey: Survey, at: int, path: str, pages: array[int], limit: int) -> int:
    """Follow pointers inside the piece of memory around ``at`` as long as nothing is odd.

    Appends to ``pages``; returns the pointer where it stopped: 0, one that leads out of the
    piece, or one that the careful loop has to look at.
    """
    span = survey.memory.span(at)
    if span is None:
        return at
    nodes, mask = survey.nodes, survey.page_size - 1
    # Short at first: what is read behind an odd pointer is never more than what was sound.
    stride = _SHORT
    while at:
        room = min(stride, limit - len(pages), survey.max_nodes - len(nodes))
        fresh, behind = _hops(span, at, room)
        column = array("Q", fresh)
        sound = _sound(column, span, mask)
        if sound < len(fresh):
            behind = fresh[sound]
            del fresh[sound:], column[sound:]
        if not fresh:
            break
        met = dict.fromkeys(fresh, path)
        if len(met) < len(fresh) or not nodes.keys().isdisjoint(met.keys()):
            break
        # The smaller into the larger: most often there is nothing to copy.
        if len(met) > len(nodes):
            met, nodes = nodes, met
            survey.nodes = nodes
        nodes.update(met)
        pages.extend(column)
        at, stride = behind, _STRIDE
    return at


def _hops(span: Span, at: int, room: int) -> tuple[list[int], int]:
    """Up to ``room`` pointers from ``at`` on, and the one behind them; checked by nobody yet.

    A pointer below the piece reads a word counted from its end, as lists do in Python: it is
    among those returned, and what follows it is junk.
    """
    words, start = span.words, span.start
    hops: list[int] = []
    append = hops.append
    try:
        for _ in repeat(None, room):
            append(at)
            at = words[at - start >> 3]
            if not at:
                break
    except IndexError:
        hops.pop()
    return hops, at


def _sound(hops: array[int], span: Span, mask: int) -> int:
    """How many pointers, up to the first odd one, are to pages inside the piece."""
    start, end = span.start, span.end
    if len(hops) <= _SHORT:
        for i, at in enumerate(hops):
            if at & mask or not start <= at < end:
                return i
        return len(hops)
    column = np.frombuffer(hops, np.uint64)
    inside = column - np.uint64(start)  # wraps for what lies below
    odd = (column & np.uint64(mask) != 0) | (inside >= np.uint64(end - start))
    return int(np.argmax(odd)) if odd.any() else len(hops)


@dataclass(slots=True, eq=False)
class Entries:
    """Entries of a chain of counted pages, in order.

    ``data`` holds one row of the entry's bytes each, ``addresses`` their physical
    addresses; ``pages`` and ``counts`` describe the pages they came from.
    """

    data: U8Array
    addresses: U64Array
    pages: U64Array
    counts: U64Array
    complete: bool


def counted_entries(
    survey: Survey, chain: Chain, header: Struct, entry: Struct, path: str, what: str
) -> Entries:
    """Entries behind a {next, count} header on each page of a chain.

    A count above the page's capacity is a finding (``KHO-LST-005``) and is cut; a page
    before the last that is not full is one too (``KHO-LST-006``, informational: readers
    accept it although no kernel writes it).
    """
    capacity = (survey.page_size - header.size) // entry.size
    heads, pages = survey.rows(chain.pages, header.size, path)
    counts = heads[:, 8:16].copy().view(np.uint64)[:, 0] if len(pages) else _EMPTY
    for i in (counts > capacity).nonzero()[0]:
        survey.findings.error(
            "KHO-LST-005",
            f"{what} at {int(pages[i]):#x} counts {int(counts[i])} entries, capacity {capacity}",
            path=path,
            address=int(pages[i]) + 8,
        )
    for i in (counts[:-1] < capacity).nonzero()[0] if len(counts) > 1 else ():
        survey.findings.info(
            "KHO-LST-006",
            f"{what} at {int(pages[i]):#x} is not the last but holds {int(counts[i])}"
            f" of {capacity} entries",
            path=path,
            address=int(pages[i]) + 8,
        )
    if len(pages):
        survey.place(header, pages, path)
    if len(pages) == 1:
        step = np.arange(min(int(counts[0]), capacity), dtype=np.uint64) * np.uint64(entry.size)
        addresses = step + (pages[0] + np.uint64(header.size))
    else:
        row, slot = slots(np.minimum(counts, np.uint64(capacity)).astype(np.int64))
        step = slot.astype(np.uint64) * np.uint64(entry.size)
        addresses = pages[row] + np.uint64(header.size) + step
    data, present = survey.rows(addresses, entry.size, path)
    if len(present):
        survey.place(entry, present, path)
    complete = chain.complete and len(pages) == len(chain.pages) and len(present) == len(addresses)
    return Entries(data, present, pages, counts, complete)


def slots(used: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """(page row, slot) of each entry when page i holds ``used[i]`` entries."""
    total = int(used.sum())
    row = np.repeat(np.arange(len(used)), used)
    slot = np.arange(total) - np.repeat(np.cumsum(used) - used, used)
    return row, slot


def block_entries(survey: Survey, first: int, entry: Struct, path: str, what: str) -> Entries:
    """Entries of a block list (7.2 on); a block with count 0 is a finding (``KHO-LST-007``)."""
    chain = follow(survey, first, path, what, limit=KHO_MAX_BLOCKS)
    if not len(chain.pages):  # as of each of many sessions that share a block
        data = np.empty((0, entry.size), np.uint8)
        return Entries(data, _EMPTY, _EMPTY, _EMPTY, chain.complete)
    entries = counted_entries(survey, chain, kho_block_header_ser, entry, path, what)
    for i in (entries.counts == 0).nonzero()[0]:
        survey.findings.error(
            "KHO-LST-007",
            f"{what} at {int(entries.pages[i]):#x} counts no entries: the kernel refuses it",
            path=path,
            address=int(entries.pages[i]) + 8,
        )
    return entries
