"""kdump-compressed files: makedumpfile, diskdump, QEMU's dump-guest-memory.

A main header, a sub header, two page bitmaps (RAM; dumped pages), one descriptor for each
dumped page, and the pages. Headers, bitmaps and framing are read here, because only they
tell an excluded page from one outside RAM; decompression is the libraries'. Split dumps
are several files, each with the descriptors of its own range of page frames.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from abi.errors import UnreadableError
from inspector.memory.base import (
    MemoryFault,
    PageState,
    PhysicalMemory,
    U8Array,
    U64Array,
)
from inspector.memory.bitmap import PageBitmap, edge_positions
from inspector.memory.flattened import PlainFile
from inspector.memory.kdump_pages import KdumpPages
from inspector.memory.kdump_part import DumpPart
from inspector.memory.regions import Regions
from inspector.memory.segments import I64Array

#: Reads that end this early in a page do not decode all of it.
HEAD = 1024

_RUN_BYTES = 1 << 20
# Runs of pages that are looked after: RAM has a few, what a filtered dump of 1 TiB holds of
# it some millions.
_MAX_RAM_RUNS, _MAX_RUNS = 1 << 20, 1 << 23
#: After so many portions of descriptors, up to 6 MiB each, the files' pages are given back.
_RELEASE = 64
#: Places of several pages that are remembered.
_MAX_SHARED = 1 << 12


class KdumpMemory(PhysicalMemory):
    """A kdump, plain, flattened or split."""

    kind = "kdump"
    scan_heads = HEAD

    def __init__(self, files: Sequence[PlainFile]) -> None:
        """Raises UnreadableError if a header is damaged or the files do not belong together."""
        self._files = tuple(dump.file for dump in files)
        self._parts = sorted((DumpPart(file) for file in files), key=lambda part: part.start)
        first = self._parts[0]
        for before, part in itertools.pairwise(self._parts):
            same = part.block == first.block and part.frames == first.frames
            if not same or part.identity != first.identity:
                raise UnreadableError(f"{part.name}: not a part of the same dump as {first.name}")
            if part.start < before.end:
                raise UnreadableError(f"{part.name}: holds the same pages as {before.name}")
        self.notes = dict(first.notes)
        for part in self._parts[1:]:
            self.notes = part.notes | self.notes
        if self.notes.get("release"):
            self.notes.setdefault("OSRELEASE", self.notes["release"])
        self.page_size = self._size = first.block
        self._shift = first.block.bit_length() - 1
        self.machine = self.notes.get("machine") or None
        self._ram = first.ram
        self._check_runs()
        self._frames = first.frames
        self._zero = bytes(self._size)
        self._regions: tuple[int, Regions] | None = None
        self._aliased = False
        self._pages = KdumpPages(self._parts, self._shift)

    @property
    def damaged(self) -> dict[int, str]:
        """Page frames found to be undecodable so far, with the reason.

        They are EXCLUDED from then on.
        """
        return self._pages.damaged

    def _check_runs(self) -> None:
        """Refuse bitmaps that no machine and no filter leaves: each run costs memory."""
        bitmaps = [(part.dumped, "dumped pages", _MAX_RUNS) for part in self._parts]
        if self._parts[0].ram is not self._parts[0].dumped:
            bitmaps.append((self._ram, "RAM", _MAX_RAM_RUNS))
        for bitmap, what, limit in bitmaps:
            runs = bitmap.runs()
            if runs > limit:
                raise UnreadableError(
                    f"{self._parts[0].name}: damaged kdump: {runs} runs of {what}, "
                    f"more than {limit}"
                )

    # Which pages there are

    def _locate(self, pfns: U64Array) -> tuple[npt.NDArray[np.int64], I64Array]:
        """Part and descriptor index of each page frame, -1 for what is not dumped."""
        part_of = np.full(len(pfns), -1, np.int64)
        ranks = np.full(len(pfns), -1, np.int64)
        for number, part in enumerate(self._parts):
            found = part.ranks(pfns)
            mine = found >= 0
            part_of[mine] = number
            ranks[mine] = found[mine]
        return part_of, ranks

    def _page_states(self, pfns: U64Array) -> U8Array:
        states = self._ram.test(pfns).astype(np.uint8)
        for part in self._parts:
            inside = (pfns >= np.uint64(part.start)) & (pfns < np.uint64(part.end))
            dumped = part.dumped.test(pfns)
            states[dumped] = np.maximum(states[dumped], np.uint8(PageState.EXCLUDED))
            if part.valid < part.count:
                inside &= part.ranks(pfns) >= 0
            states[inside & dumped] = PageState.PRESENT
        if self.damaged:
            bad = np.isin(pfns, np.fromiter(self.damaged, np.uint64, len(self.damaged)))
            states[bad] = PageState.EXCLUDED
        return states

    def states(self, addresses: U64Array, size: int = 1) -> U8Array:
        """State of ``size`` bytes at each address, as PageState values."""
        addresses = np.ascontiguousarray(addresses, np.uint64)
        if size <= 0:
            return np.full(len(addresses), PageState.PRESENT, np.uint8)
        shift = np.uint64(self._shift)
        ends = addresses + np.uint64(size - 1)
        first, last = addresses >> shift, ends >> shift
        states = self._page_states(first)
        states[ends < addresses] = PageState.OUTSIDE
        several = np.flatnonzero((last > first) & (states > 0))
        if len(several):
            lowest = self._page_states(last[several])
            inner = np.arange(int((last[several] - first[several]).max()), dtype=np.uint64)
            if len(inner) <= 16:
                for step in inner[1:]:
                    pfn = np.minimum(first[several] + step, last[several])
                    np.minimum(lowest, self._page_states(pfn), out=lowest)
            else:
                spans = zip(first[several].tolist(), last[several].tolist(), strict=True)
                for i, (start, end) in enumerate(spans):
                    lowest[i] = min(int(lowest[i]), self._lowest(start, end))
            states[several] = np.minimum(states[several], lowest)
        return states

    def _lowest(self, first: int, last: int) -> int:
        """The lowest state among page frames ``[first, last]``."""
        lowest = int(PageState.PRESENT)
        for at in range(first, last + 1, 1 << 16):
            if at >= self._frames:
                return PageState.OUTSIDE
            pfns = np.arange(at, min(at + (1 << 16), last + 1), dtype=np.uint64)
            lowest = min(lowest, int(self._page_states(pfns).min()))
            if lowest == PageState.OUTSIDE:
                break
        return lowest

    @property
    def regions(self) -> Regions:
        """Ascending, disjoint regions in a state other than OUTSIDE."""
        known = len(self.damaged)
        if self._regions is None or self._regions[0] != known:
            self._regions = known, self._runs()
        return self._regions[1]

    def _runs(self) -> Regions:
        """Runs of one state, from the bitmaps in bounded pieces."""
        limits = {edge for p in self._parts for edge in (p.start, p.end, *_cut(p))}
        limits |= self.damaged.keys() | {pfn + 1 for pfn in self.damaged}
        extra = np.array(sorted(limits), np.int64)
        bitmaps = [self._ram, *(part.dumped for part in self._parts)]
        carry = [0] * len(bitmaps)
        behind = state = 0
        starts, found = [np.zeros(0, np.int64)], [np.zeros(0, np.uint8)]
        for at, end in _pieces(bitmaps):
            if at != behind:  # a hole of the file before: no bit is set there
                carry = [0] * len(bitmaps)
            behind = end
            low, high = np.searchsorted(extra, (at * 64, end * 64))
            edges = [extra[low:high], np.array([end * 64])]
            for i, bitmap in enumerate(bitmaps):
                words = bitmap.words(at, end)
                edges.append(edge_positions(words, carry[i]) + at * 64)
                carry[i] = int(words[-1]) >> 63
            places = np.sort(np.concatenate(edges))  # np.unique may hash, which is slow here
            places = places[(np.diff(places, prepend=-1) > 0) & (places < self._frames)]
            if not len(places):
                continue
            states = self._page_states(places.astype(np.uint64))
            new = np.diff(states, prepend=np.uint8(state)) != 0
            state = int(states[-1])
            starts.append(places[new])
            found.append(states[new])
        edge = np.concatenate([*starts, [self._frames]]).astype(np.uint64)
        edge <<= np.uint64(self._shift)
        kind = np.concatenate(found)
        inside = kind != PageState.OUTSIDE
        return Regions(edge[:-1][inside], edge[1:][inside] - np.uint64(1), kind[inside])

    # What is in them

    def read(self, pa: int, size: int) -> bytes:
        """``size`` bytes at ``pa``; raises MemoryFault naming the first missing byte."""
        if size <= 0:
            return b""
        if not 0 <= pa < 1 << 64:
            raise MemoryFault(pa, PageState.OUTSIDE)
        parts = []
        at, end = pa, pa + size
        while at < end:
            pfn = at >> self._shift
            page = self._pages.recent.get(pfn) or self._find_page(pfn, at)
            offset = at & self._size - 1
            length = min(self._size - offset, end - at)
            parts.append(page[offset : offset + length])
            at += length
        return b"".join(parts)

    def _find_page(self, pfn: int, pa: int) -> bytes:
        pfns = np.array([pfn], np.uint64)
        part, rank = self._locate(pfns)
        if rank[0] < 0 or pfn in self.damaged:
            raise MemoryFault(pa, PageState(int(self._page_states(pfns)[0])))
        number = int(part[0])
        try:
            return self._pages.page(pfn, number, self._parts[number].pick(rank)[0])
        except MemoryFault:
            raise MemoryFault(pa, PageState.EXCLUDED) from None

    def gather(self, addresses: U64Array, size: int, out: U8Array | None = None) -> U8Array:
        """Read ``size`` bytes at each address into an ``(n, size)`` array."""
        addresses = np.ascontiguousarray(addresses, np.uint64)
        n = len(addresses)
        rows = np.empty((n, size), np.uint8) if out is None else out[:n]
        if n == 0 or size == 0:
            return rows
        rows[:] = 0
        pfns = addresses >> np.uint64(self._shift)
        parts, ranks = self._locate(pfns)
        offsets = (addresses & np.uint64(self._size - 1)).astype(np.int64)
        inside = offsets <= self._size - size
        for number in range(len(self._parts)):
            wanted = np.flatnonzero(inside & (parts == number))
            if len(wanted):
                self._gather_part(number, pfns, ranks, offsets, wanted, rows)
        for row in np.flatnonzero(~inside).tolist():
            try:
                rows[row] = np.frombuffer(self.read(int(addresses[row]), size), np.uint8)
            except MemoryFault:
                continue
        return rows

    def _gather_part(
        self,
        number: int,
        pfns: U64Array,
        ranks: I64Array,
        offsets: I64Array,
        wanted: I64Array,
        rows: U8Array,
    ) -> None:
        """Fill the wanted rows, each inside one page of one part, page by page."""
        size = rows.shape[1]
        wanted = wanted[np.argsort(ranks[wanted], kind="stable")]
        heads = np.flatnonzero(np.diff(ranks[wanted], prepend=-1))  # first row of each page
        ends = np.maximum.reduceat(offsets[wanted], heads) + size
        descriptors = self._parts[number].pick(ranks[wanted[heads]])
        frames = pfns[wanted[heads]].tolist()
        fetched: list[bytes] = []
        for pfn, descriptor, end in zip(frames, descriptors, ends.tolist(), strict=True):
            try:
                if end <= HEAD:
                    page = self._pages.head(pfn, number, descriptor, end)
                else:
                    page = self._pages.page(pfn, number, descriptor)
            except MemoryFault:
                page = self._zero
            fetched.append(page)
        if len(heads) == len(wanted):  # one row a page
            parts = [
                page[end - size : end] for page, end in zip(fetched, ends.tolist(), strict=True)
            ]
            rows[wanted] = np.frombuffer(b"".join(parts), np.uint8).reshape(-1, size)
            return
        for page, group in zip(fetched, np.split(wanted, heads[1:]), strict=True):
            windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(page, np.uint8), size)
            rows[group] = windows[offsets[group]]

    def extents(self) -> Iterator[tuple[int, memoryview]]:
        """Decoded pages, joined up to 1 MiB; pages of zeros are skipped."""
        for number, pfns, ranks in self._dumped():
            yield from self._join(number, pfns.tolist(), ranks)

    def distinct(self) -> Iterator[tuple[int, memoryview]]:
        """As :meth:`extents`; what several descriptors lead to is decoded about once."""
        for number, pfns, ranks in self._once():
            yield from self._join(number, pfns.tolist(), ranks)

    def heads(self) -> Iterator[U64Array]:
        """Addresses of the pages of :meth:`distinct`."""
        for _, pfns, _ in self._once():
            yield pfns.astype(np.uint64) << np.uint64(self._shift)

    @property
    def aliased(self) -> bool:
        """Whether a search has left out what is not zeros."""
        return self._aliased

    def _dumped(self) -> Iterator[tuple[int, I64Array, I64Array]]:
        """Parts, page frames and indices of descriptors of all pages, some at a time."""
        for number, part in enumerate(self._parts):
            rank = -part.skipped
            for pfns in part.dumped.set_bits():
                ranks = rank + np.arange(len(pfns))
                rank += len(pfns)
                mine = (pfns >= part.start) & (pfns < part.end) & (ranks < part.valid)
                if mine.any():
                    yield number, pfns[mine], ranks[mine]

    def _once(self) -> Iterator[tuple[int, I64Array, I64Array]]:
        """As :meth:`_dumped`, without descriptors that lead where others do.

        Writers store a page of zeros once, and everything else once for each page. Places that
        occur twice among some pages are remembered, not all places that there are.
        """
        shared: dict[int, I64Array] = {}
        for turn, (number, pfns, ranks) in enumerate(self._dumped(), 1):
            if turn % _RELEASE == 0:
                self.release()
            part = self._parts[number]
            places = part.descriptors(int(ranks[0]), int(ranks[-1]) + 1)["offset"].astype(np.int64)
            known = shared.get(number, np.zeros(0, np.int64))
            fresh = np.flatnonzero(~np.isin(places, known)) if len(known) else np.arange(len(pfns))
            found, first, count = np.unique(places[fresh], return_index=True, return_counts=True)
            twice = count > 1
            if twice.any():
                self._look_at(number, pfns[fresh], ranks[fresh], first[twice])
                shared[number] = np.concatenate((known, found[twice]))[:_MAX_SHARED]
            keep = np.sort(fresh[first])
            if len(keep):
                yield number, pfns[keep], ranks[keep]

    def _look_at(self, number: int, pfns: I64Array, ranks: I64Array, rows: I64Array) -> None:
        """See whether what several descriptors lead to is something else than zeros."""
        for row in np.sort(rows).tolist():
            if self._aliased:
                return
            descriptor = self._parts[number].pick(ranks[row : row + 1])[0]
            try:
                self._aliased = self._pages.page(int(pfns[row]), number, descriptor) != self._zero
            except MemoryFault:
                continue

    def _join(
        self, part: int, pfns: list[int], ranks: I64Array
    ) -> Iterator[tuple[int, memoryview]]:
        run: list[bytes] = []
        start = 0
        descriptors = self._parts[part].pick(ranks)
        for pfn, descriptor in zip(pfns, descriptors, strict=True):
            try:
                page = self._pages.page(pfn, part, descriptor)
            except MemoryFault:
                page = self._zero
            known = page != self._zero
            if run and (
                not known or pfn != start + len(run) or len(run) << self._shift >= _RUN_BYTES
            ):
                yield start << self._shift, memoryview(b"".join(run))
                run = []
            if known:
                if not run:
                    start = pfn
                run.append(page)
        if run:
            yield start << self._shift, memoryview(b"".join(run))

    def release(self) -> None:
        """Unmap what was read of the files."""
        for file in self._files:
            file.release()

    def close(self) -> None:
        """Release the files."""
        for file in self._files:
            file.close()


def _pieces(bitmaps: Sequence[PageBitmap]) -> Iterator[tuple[int, int]]:
    """Ranges of at most 4096 words in which some bitmap has data, ascending, disjoint."""
    done = 0
    for first, last in heapq.merge(*(bitmap.chunks() for bitmap in bitmaps)):
        for at in range(max(first, done), last, 1 << 12):
            done = min(at + (1 << 12), last)
            yield at, done


def _cut(part: DumpPart) -> tuple[int, ...]:
    """The page frame at which an incomplete part ends."""
    if part.valid == part.count:
        return ()
    left = part.valid + part.skipped
    for pfns in part.dumped.set_bits():
        if left < len(pfns):
            return (int(pfns[left]),)
        left -= len(pfns)
    return ()
