"""Ascending, disjoint pieces of an address space, searched in bulk with numpy.

Every container boils down to this: pieces of physical addresses that are stored at an
offset of a file, known to be zero, or left out. Ends are inclusive (``last``), because
memory may reach up to 2^64 - 1.
"""

from __future__ import annotations

import enum
import heapq
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from abi.errors import UnreadableError
from inspector.memory.base import PageState, U8Array, U64Array
from inspector.memory.regions import Regions

I64Array = npt.NDArray[np.int64]

_MAX_OVERLAPPING = 1 << 20


class Kind(enum.IntEnum):
    """What is known of a piece. ``min(kind, 2)`` is its PageState."""

    EXCLUDED = 1
    STORED = 2
    ZERO = 3


class Segment(NamedTuple):
    """One piece, ``[first, last]``; ``offset`` is where a STORED one begins in its file."""

    first: int
    last: int
    kind: Kind
    offset: int = 0


class SegmentTable:
    """Ascending, disjoint, merged pieces as columns.

    ``first``, ``last`` (uint64), ``kind`` (uint8), ``offset`` (int64) have one item a piece.
    """

    __slots__ = (
        "_firsts",
        "_gap_count",
        "_run_first",
        "_run_last",
        "_run_state",
        "first",
        "kind",
        "last",
        "offset",
    )

    def __init__(self, first: U64Array, last: U64Array, kind: U8Array, offset: I64Array) -> None:
        """Take columns that are ascending and disjoint already; merge what touches."""
        if len(first) > 1:
            new = np.ones(len(first), bool)
            touching = first[1:] == last[:-1] + np.uint64(1)
            follows = offset[1:] == offset[:-1] + (first[1:] - first[:-1]).astype(np.int64)
            same = (kind[1:] == kind[:-1]) & (follows | (kind[1:] != Kind.STORED))
            new[1:] = ~(touching & same)
            heads = new.nonzero()[0]
            tails = np.append(heads[1:] - 1, len(first) - 1)
            first, last, kind, offset = first[heads], last[tails], kind[heads], offset[heads]
        self.first = np.ascontiguousarray(first)
        self.last = np.ascontiguousarray(last)
        self.kind = np.ascontiguousarray(kind)
        self.offset = np.ascontiguousarray(offset)
        self._firsts = self.first.data
        # Runs of one state: pieces that differ only in where they are stored are joined.
        state = np.minimum(self.kind, np.uint8(PageState.PRESENT))
        heads = np.arange(len(state))
        if len(state) > 1:
            new = np.ones(len(state), bool)
            new[1:] = (self.first[1:] != self.last[:-1] + np.uint64(1)) | (state[1:] != state[:-1])
            heads = new.nonzero()[0]
        self._run_first = self.first[heads]
        self._run_last = (
            self.last[np.append(heads[1:] - 1, len(state) - 1)] if len(heads) else (self.last[:0])
        )
        self._run_state = state[heads]
        gap = np.zeros(len(heads), np.int64)
        if len(heads) > 1:
            gap[1:] = self._run_first[1:] != self._run_last[:-1] + np.uint64(1)
        self._gap_count = np.cumsum(gap)

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, index: int) -> Segment:
        return Segment(
            int(self.first[index]),
            int(self.last[index]),
            Kind(int(self.kind[index])),
            int(self.offset[index]),
        )

    def find(self, pa: int) -> int:
        """Index of the piece that holds ``pa``, or -1."""
        if not 0 <= pa < 1 << 64:
            return -1
        index = bisect_right(self._firsts, pa) - 1
        return index if index >= 0 and pa <= int(self.last[index]) else -1

    def overlapping(self, start: int, end: int) -> Iterator[Segment]:
        """The parts of pieces that lie inside ``[start, end)``, ascending."""
        index = max(bisect_right(self._firsts, max(start, 0)) - 1, 0)
        while index < len(self.first):
            piece = self[index]
            index += 1
            if piece.first >= end:
                return
            if piece.last < start:
                continue
            lo = max(piece.first, start)
            yield Segment(lo, min(piece.last, end - 1), piece.kind, piece.offset + lo - piece.first)

    def states(self, addresses: U64Array, size: int = 1) -> U8Array:
        """The lowest PageState within ``size`` bytes at each address."""
        states = np.zeros(len(addresses), np.uint8)
        if size <= 0:
            states[:] = PageState.PRESENT
            return states
        if not len(self._run_first) or not len(addresses):
            return states
        ends = addresses + np.uint64(size - 1)
        i = np.searchsorted(self._run_first, addresses, "right") - 1
        inside = (i >= 0) & (addresses <= self._run_last[i]) & (ends >= addresses)
        whole = inside & (ends <= self._run_last[i])
        states[whole] = self._run_state[i[whole]]
        crossing = (inside & ~whole).nonzero()[0]
        if len(crossing):
            # Runs that touch differ in state, so a range over several has an excluded one,
            # unless a gap lies between them or behind the last.
            begin = i[crossing]
            j = np.searchsorted(self._run_first, ends[crossing], "right") - 1
            closed = (self._gap_count[j] == self._gap_count[begin]) & (
                ends[crossing] <= self._run_last[j]
            )
            states[crossing[closed]] = PageState.EXCLUDED
        return states

    def state(self, pa: int, size: int = 1) -> PageState:
        """The scalar form of :meth:`states`."""
        lowest = PageState.PRESENT
        at, end = pa, pa + size
        while at < end:
            index = self.find(at)
            if index < 0:
                return PageState.OUTSIDE
            if self.kind[index] == Kind.EXCLUDED:
                lowest = PageState.EXCLUDED
            at = int(self.last[index]) + 1
        return lowest

    def first_missing(self, pa: int, size: int) -> tuple[int, PageState] | None:
        """First byte of ``[pa, pa + size)`` that is not present, and its state."""
        at, end = pa, pa + size
        while at < end:
            index = self.find(at)
            if index < 0:
                return at, PageState.OUTSIDE
            if self.kind[index] == Kind.EXCLUDED:
                return at, PageState.EXCLUDED
            at = int(self.last[index]) + 1
        return None

    def regions(self) -> Regions:
        """Runs of one state."""
        return Regions(self._run_first, self._run_last, self._run_state)


def distinct(table: SegmentTable) -> SegmentTable | None:
    """The stored pieces without what a piece at a lower address has of the file; ascending.

    None if no byte of the file is in two pieces, as in every image that a tool writes.
    """
    stored = table.kind == Kind.STORED
    address, begin = table.first[stored], table.offset[stored].astype(np.uint64)
    end = begin + (table.last[stored] - address)
    order = np.argsort(begin, kind="stable")
    if not (begin[order][1:] <= np.maximum.accumulate(end[order])[:-1]).any():
        return None
    kind = np.full(len(begin), Kind.STORED, np.uint8)
    # The same problem with the roles changed: addresses that claim places in the file.
    places = build(begin, end, kind, address.view(np.int64), np.arange(len(begin)))
    first = places.offset.view(np.uint64)
    order = np.argsort(first, kind="stable")
    first, begin, end = first[order], places.first[order], places.last[order]
    return SegmentTable(first, first + (end - begin), places.kind[order], begin.astype(np.int64))


def build(
    first: U64Array, last: U64Array, kind: U8Array, offset: I64Array, rank: I64Array | None = None
) -> SegmentTable:
    """A table from pieces in any order that may overlap.

    Where several claim an address, the one with the lowest ``rank`` wins; ranks differ,
    and default to the order given. O(n log n), in Python only for those that overlap; more
    than a million of them are refused (UnreadableError).
    """
    order = np.argsort(first, kind="stable")
    first, last, kind, offset = first[order], last[order], kind[order], offset[order]
    # A piece that begins behind all before it begins a cluster; one alone in it is as it is.
    new = np.ones(len(first) + 1, bool)
    new[1:-1] = first[1:] > np.maximum.accumulate(last)[:-1]
    alone = new[:-1] & new[1:]
    if alone.all():
        return SegmentTable(first, last, kind, offset)
    mixed = (~alone).nonzero()[0]
    if len(mixed) > _MAX_OVERLAPPING:
        raise UnreadableError(f"damaged: {len(mixed)} overlapping pieces of memory")
    ranks = (order if rank is None else rank[order])[mixed]
    pieces = _sweep(first[mixed].tolist(), last[mixed].tolist(), ranks.tolist())
    owner = mixed[np.array([p[2] for p in pieces], np.int64)]
    at = np.array([p[0] for p in pieces], np.uint64)
    end = np.array([p[1] for p in pieces], np.uint64)
    begin = offset[owner] + (at - first[owner]).astype(np.int64)
    all_first = np.concatenate((first[alone], at))
    order = np.argsort(all_first, kind="stable")
    return SegmentTable(
        all_first[order],
        np.concatenate((last[alone], end))[order],
        np.concatenate((kind[alone], kind[owner]))[order],
        np.concatenate((offset[alone], begin))[order],
    )


def layer(top: SegmentTable, below: SegmentTable) -> SegmentTable:
    """What is seen with ``top`` laid over ``below``."""
    if not len(top) or not len(below):
        return below if not len(top) else top
    one = np.uint64(1)
    edges = [top.first, top.last + one, below.first, below.last + one]  # 2^64 wraps to 0
    points = np.unique(np.concatenate(edges))
    ends = np.append(points[1:] - one, np.uint64((1 << 64) - 1))
    columns: list[tuple[U64Array, U64Array, U8Array, I64Array]] = []
    covered = np.zeros(len(points), bool)
    for table in (top, below):
        owner = np.searchsorted(table.first, points, "right") - 1
        mine = ~covered & (owner >= 0) & (points <= table.last[owner])
        covered |= mine
        owner, first = owner[mine], points[mine]
        moved = (first - table.first[owner]).astype(np.int64)
        columns.append((first, ends[mine], table.kind[owner], table.offset[owner] + moved))
    first, last, kind, offset = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.argsort(first, kind="stable")
    return SegmentTable(first[order], last[order], kind[order], offset[order])


def from_segments(pieces: list[Segment]) -> SegmentTable:
    """A table from a few pieces in order of precedence; the first one wins."""
    return build(
        np.array([p.first for p in pieces], np.uint64),
        np.array([p.last for p in pieces], np.uint64),
        np.array([p.kind for p in pieces], np.uint8),
        np.array([p.offset for p in pieces], np.int64),
    )


def from_regions(regions: Regions, present: Kind = Kind.ZERO) -> SegmentTable:
    """A table of what regions tell: pieces of kind ``present``, and others left out."""
    held = regions.state == PageState.PRESENT
    kind = np.where(held, np.uint8(present), np.uint8(Kind.EXCLUDED))
    return SegmentTable(regions.first, regions.last, kind, np.zeros(len(regions), np.int64))


def _sweep(first: list[int], last: list[int], rank: list[int]) -> list[tuple[int, int, int]]:
    """Cut overlapping pieces, ascending by ``first``.

    Returns ``(first, last, index of the owner)``, at most 2n of them.
    """
    out: list[tuple[int, int, int]] = []
    active: list[tuple[int, int, int]] = []  # (rank, index, last), best on top
    following = 0
    position = 0
    while following < len(first) or active:
        while active and active[0][2] < position:
            heapq.heappop(active)
        if not active:
            if following == len(first):
                break
            position = max(position, first[following])
        while following < len(first) and first[following] <= position:
            heapq.heappush(active, (rank[following], following, last[following]))
            following += 1
        _, owner, end = active[0]
        if end < position:
            continue
        if following < len(first):
            end = min(end, first[following] - 1)
        out.append((position, end, owner))
        position = end + 1
    return out
