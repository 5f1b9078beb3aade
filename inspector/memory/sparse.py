"""Writable memory in the process: what the simulator and the fuzzer work on.

Pages live in an arena of numpy blocks; a directory of one small array per 512 pages says
where. RAM that nobody wrote costs nothing, so that a machine may have 1 TiB on paper. The
same class serves as a copy-on-write view of any image (:meth:`SparseMemory.over`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Self

import numpy as np
import numpy.typing as npt

from abi.errors import UsageError
from inspector.memory.base import (
    MemoryFault,
    PageState,
    PhysicalMemory,
    Span,
    U8Array,
    U64Array,
)
from inspector.memory.mapped import MappedMemory
from inspector.memory.regions import Regions
from inspector.memory.segments import (
    Kind,
    Segment,
    SegmentTable,
    from_regions,
    from_segments,
    layer,
)

_LEAF = 512
_BASE, _ZERO, _EXCLUDED = -1, -2, -3
_CHUNK_BYTES = 4 << 20
#: Longer ranges are looked up in the table of all memory.
_FEW_PAGES = 64

Leaf = npt.NDArray[np.int32]


class SparseMemory(PhysicalMemory):
    """Physical memory that can be written, page by page.

    ``ram`` are (start, size) ranges in bytes, multiples of ``page_size``. ``unwritten``
    says what a page of RAM is before it is written: EXCLUDED (not in the image, the
    default) or PRESENT (zero).
    """

    kind = "sparse"

    def __init__(
        self,
        ram: Iterable[tuple[int, int]],
        *,
        page_size: int = 4096,
        machine: str | None = None,
        unwritten: PageState = PageState.EXCLUDED,
    ) -> None:
        """Raises UsageError for ranges that are no whole pages, overlap or leave 2^64."""
        kind = Kind.ZERO if unwritten is PageState.PRESENT else Kind.EXCLUDED
        pieces: list[Segment] = []
        for start, size in sorted(ram):
            if start % page_size or size % page_size or size <= 0 or not 0 <= start < 1 << 64:
                raise UsageError(f"not whole pages of {page_size} bytes: {start:#x}+{size:#x}")
            if start + size > 1 << 64 or (pieces and start <= pieces[-1].last):
                raise UsageError(f"RAM at {start:#x} overlaps other RAM or leaves the machine")
            pieces.append(Segment(start, start + size - 1, kind))
        self._setup(MappedMemory(from_segments(pieces), memoryview(b"")), page_size)
        self.machine = machine

    @classmethod
    def over(cls, base: PhysicalMemory, page_size: int = 4096) -> Self:
        """A copy-on-write view of ``base``, which must outlive it and is never changed."""
        self = cls.__new__(cls)
        self._setup(base, page_size)
        self.machine = base.machine
        self.notes = dict(base.notes)
        self.kernel_roots, self.kernel_scratch = base.kernel_roots, base.kernel_scratch
        return self

    def _setup(self, base: PhysicalMemory, page_size: int) -> None:
        if page_size < 4096 or page_size & (page_size - 1):
            raise UsageError(f"impossible page size {page_size}")
        self.notes = {}
        self.page_size = page_size
        self._size = page_size
        self._shift = page_size.bit_length() - 1
        self._base = base
        self._leaves: dict[int, Leaf | int] = {}
        self._chunk_pages = _CHUNK_BYTES // page_size
        self._arena: list[U8Array] = []
        #: The same blocks as bytes.
        self._flat: list[memoryview] = []
        self._used = 0
        self._table: SegmentTable | None = None
        regions = base.regions
        paper = np.full(len(regions), PageState.PRESENT, np.uint8)
        self._ram = from_regions(Regions(regions.first, regions.last, paper))
        self._ram_near = (0, 0)
        # RAM on paper: there is nothing to copy from.
        self._blank = isinstance(base, MappedMemory) and not any(
            piece.kind == Kind.STORED for piece in base.stored()
        )

    # Writing

    def write(
        self, pa: int, data: bytes | bytearray | memoryview | npt.NDArray[np.generic]
    ) -> None:
        """Store bytes at ``pa``; their pages become present.

        The rest of a page that was not present becomes zero. Raises MemoryFault, before
        anything is stored, if part of the range is outside RAM.
        """
        source = memoryview(data) if isinstance(data, bytes) else np.frombuffer(data, np.uint8).data
        size = len(source)
        self._require_ram(pa, size)
        mask = self._size - 1
        done = 0
        while done < size:
            at = pa + done
            offset = at & mask
            length = min(self._size - offset, size - done)
            if length < self._size:
                flat, start = self._place(self._page(at >> self._shift))
                start += offset
                flat[start : start + length] = source[done : done + length]
            else:
                length = self._write_pages(at >> self._shift, source[done:])
            done += length

    def fill(self, pa: int, size: int, content: bytes = b"") -> None:
        """Make whole pages present: ``content``, then zeros, whatever they held before."""
        self._check(pa, size)
        pfn, page = pa >> self._shift, self._size
        for at in range(0, len(content), page):
            piece, slot = content[at : at + page], self._used
            self._allocate(1)
            flat, start = self._place(slot)
            flat[start : start + len(piece)] = piece
            self._leaf(pfn)[pfn % _LEAF] = slot
            pfn += 1
        self._mark(pfn, (pa + size) >> self._shift, _ZERO)

    def _write_pages(self, pfn: int, source: memoryview) -> int:
        """Store whole pages of one leaf and one arena block; returns the bytes taken."""
        leaf, i = self._leaf(pfn), pfn % _LEAF
        count = min(len(source) >> self._shift, _LEAF - i)
        if leaf[i] >= 0:
            slot = int(leaf[i])
            same = leaf[i : i + count] == np.arange(slot, slot + count, dtype=np.int32)
            count = min(count, int(np.argmin(same)) if not same.all() else count)
        else:
            fresh = leaf[i : i + count] < 0
            count = int(np.argmin(fresh)) if not fresh.all() else count
            slot = self._used
            count = min(count, self._chunk_pages - slot % self._chunk_pages)
            self._allocate(count)
            leaf[i : i + count] = np.arange(slot, slot + count, dtype=np.int32)
            self._table = None
        count = min(count, self._chunk_pages - slot % self._chunk_pages)
        flat, start = self._place(slot)
        size = count << self._shift
        flat[start : start + size] = source[:size]
        return size

    def _allocate(self, count: int) -> None:
        """Take ``count`` slots, which fit into the current block or begin the next."""
        if self._used % self._chunk_pages == 0:
            block = np.zeros((self._chunk_pages, self._size), np.uint8)
            self._arena.append(block)
            self._flat.append(block.reshape(-1).data)
        self._used += count

    def _place(self, slot: int) -> tuple[memoryview, int]:
        """The block of a slot as bytes, and where in it the slot's page begins."""
        return self._flat[slot // self._chunk_pages], slot % self._chunk_pages << self._shift

    def _leaf(self, pfn: int) -> Leaf:
        leaf = self._leaves.get(pfn // _LEAF, _BASE)
        if isinstance(leaf, int):
            leaf = np.full(_LEAF, leaf, np.int32)
            self._leaves[pfn // _LEAF] = leaf
        return leaf

    def _page(self, pfn: int) -> int:
        """The slot of a page, made from the base or zeros if need be."""
        leaf, i = self._leaf(pfn), pfn % _LEAF
        held = int(leaf[i])
        if held >= 0:
            return held
        slot = self._used
        self._allocate(1)
        if held == _BASE and not self._blank:
            address = np.array([pfn << self._shift], np.uint64)
            block, row = divmod(slot, self._chunk_pages)
            self._base.gather(address, self._size, self._arena[block][row : row + 1])
        leaf[i] = slot
        self._table = None
        return slot

    def mark_zero(self, pa: int, size: int) -> None:
        """Make whole pages present and zero without storing them."""
        self._check(pa, size)
        self._mark(pa >> self._shift, (pa + size) >> self._shift, _ZERO)

    def exclude(self, pa: int, size: int) -> None:
        """Leave whole pages out of the image; they stay RAM."""
        self._check(pa, size)
        self._mark(pa >> self._shift, (pa + size) >> self._shift, _EXCLUDED)

    def _check(self, pa: int, size: int) -> None:
        if (pa | size) & (self._size - 1):
            raise UsageError(f"not whole pages of {self._size} bytes: {pa:#x}+{size:#x}")
        self._require_ram(pa, size)

    def _mark(self, pfn: int, end: int, value: int) -> None:
        while pfn < end:
            i = pfn % _LEAF
            count = min(_LEAF - i, end - pfn)
            if count == _LEAF:
                self._leaves[pfn // _LEAF] = value
            else:
                self._leaf(pfn)[i : i + count] = value
            pfn += count
        self._table = None

    def _require_ram(self, pa: int, size: int) -> None:
        start, end = self._ram_near
        if start <= pa and pa + size <= end:
            return
        index = self._ram.find(pa)
        if index < 0:
            raise MemoryFault(pa, PageState.OUTSIDE)
        self._ram_near = start, end = self._ram[index].first, self._ram[index].last + 1
        if pa + size > end:
            raise MemoryFault(end, PageState.OUTSIDE)

    # Reading

    def _slots(self, pfns: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        slots = np.full(len(pfns), _BASE, np.int32)
        if not self._leaves or not len(pfns):
            return slots
        numbers, group = np.unique(pfns // _LEAF, return_inverse=True)
        if len(numbers) == 1:
            groups: list[slice | npt.NDArray[np.int64]] = [slice(None)]
        else:
            order = np.argsort(group, kind="stable")
            bounds = np.flatnonzero(np.diff(group[order])) + 1
            groups = list(np.split(order, bounds))
        for number, rows in zip(numbers.tolist(), groups, strict=True):
            leaf = self._leaves.get(number)
            if leaf is None:
                continue
            slots[rows] = leaf if isinstance(leaf, int) else leaf[pfns[rows] % _LEAF]
        return slots

    def gather(self, addresses: U64Array, size: int, out: U8Array | None = None) -> U8Array:
        """Read ``size`` bytes at each address into an ``(n, size)`` array."""
        addresses = np.ascontiguousarray(addresses, np.uint64)
        n = len(addresses)
        rows = np.empty((n, size), np.uint8) if out is None else out[:n]
        if n == 0 or size == 0:
            return rows
        offset = (addresses & np.uint64(self._size - 1)).astype(np.int64)
        slots = self._slots((addresses >> np.uint64(self._shift)).astype(np.int64))
        one_page = offset <= self._size - size
        base = one_page & (slots == _BASE)
        if base.all():
            return self._base.gather(addresses, size, rows)
        stored = one_page & (slots >= 0)
        if not stored.all():
            rows[~stored] = 0
        chunk_of = slots // self._chunk_pages
        for number in np.unique(chunk_of[stored]).tolist():
            chosen = np.flatnonzero(stored & (chunk_of == number))
            flat = self._arena[number].reshape(-1)
            start = (slots[chosen] % self._chunk_pages).astype(np.int64) * self._size
            begin = start + offset[chosen]
            if size == self._size:
                picked = self._arena[number][begin >> self._shift]
            else:
                picked = np.lib.stride_tricks.sliding_window_view(flat, size)[begin]
            if len(chosen) == n:
                rows[:] = picked
            else:
                rows[chosen] = picked
        if base.any():
            rows[base] = self._base.gather(addresses[base], size)
        for row in np.flatnonzero(~one_page).tolist():
            try:
                rows[row] = np.frombuffer(self.read(int(addresses[row]), size), np.uint8)
            except MemoryFault:
                rows[row] = 0
        return rows

    def states(self, addresses: U64Array, size: int = 1) -> U8Array:
        """State of ``size`` bytes at each address, as PageState values."""
        addresses = np.asarray(addresses, np.uint64)
        if len(addresses) <= 4:
            return np.array([self.state(int(a), size) for a in addresses.tolist()], np.uint8)
        offset = addresses & np.uint64(self._size - 1)
        fits = 0 < size <= self._size and not (offset > np.uint64(self._size - size)).any()
        if not fits or len(addresses) > 1 << 16:
            return self._segments().states(addresses, size)
        # Each range lies in one page: no table has to be built, which writes would undo.
        slots = self._slots((addresses >> np.uint64(self._shift)).astype(np.int64))
        states = np.full(len(addresses), PageState.PRESENT, np.uint8)
        states[slots == _EXCLUDED] = PageState.EXCLUDED
        base = slots == _BASE
        if base.any():
            states[base] = self._base.states(addresses[base], size)
        return states

    def state(self, pa: int, size: int = 1) -> PageState:
        """State of ``size`` bytes at ``pa``."""
        missing = self._first_missing(pa, size, worst=True)
        return PageState.PRESENT if missing is None else missing[1]

    def _first_missing(
        self, pa: int, size: int, *, worst: bool = False
    ) -> tuple[int, PageState] | None:
        """The first missing byte, or with ``worst`` one in the lowest state."""
        if size > _FEW_PAGES * self._size:
            table = self._segments()
            if not worst:
                return table.first_missing(pa, size)
            lowest = table.state(pa, size)
            return None if lowest is PageState.PRESENT else (pa, lowest)
        found: tuple[int, PageState] | None = None
        at, end = pa, pa + size
        while at < end:
            page_end = (at | self._size - 1) + 1
            slot = self._slot(at >> self._shift)
            stop = min(page_end, end)
            state = PageState.PRESENT
            if slot == _EXCLUDED:
                state = PageState.EXCLUDED
            elif slot == _BASE:
                state = self._base.state(at, stop - at)
            if state is not PageState.PRESENT and (found is None or state < found[1]):
                found = (at, state)
                if not worst or state is PageState.OUTSIDE:
                    return found
            at = stop
        return found

    def _slot(self, pfn: int) -> int:
        leaf = self._leaves.get(pfn // _LEAF, _BASE)
        return leaf if isinstance(leaf, int) else int(leaf[pfn % _LEAF])

    def read(self, pa: int, size: int) -> bytes:
        """``size`` bytes at ``pa``; raises MemoryFault naming the first missing byte."""
        if size <= 0:
            return b""
        offset = pa & self._size - 1
        if pa >= 0 and offset + size <= self._size:
            return self._read_page(pa, size)
        missing = self._first_missing(pa, size) if pa >= 0 else (pa, PageState.OUTSIDE)
        if missing is not None:
            raise MemoryFault(*missing)
        parts = []
        at, end = pa, pa + size
        while at < end:
            length = min(self._size - (at & self._size - 1), end - at)
            parts.append(self._read_page(at, length))
            at += length
        return b"".join(parts)

    def _read_page(self, pa: int, size: int) -> bytes:
        slot = self._slot(pa >> self._shift)
        if slot >= 0:
            flat, at = self._place(slot)
            at += pa & self._size - 1
            return bytes(flat[at : at + size])
        if slot == _BASE:
            return self._base.read(pa, size)
        if slot == _ZERO:
            return bytes(size)
        raise MemoryFault(pa, PageState.EXCLUDED)

    def span(self, pa: int) -> Span | None:
        """The stored page around ``pa``: a live view, later writes show in it."""
        slot = self._slot(pa >> self._shift) if pa >= 0 else _BASE
        if slot < 0:
            return super().span(pa)
        start = pa & -self._size
        flat, at = self._place(slot)
        data = flat[at : at + self._size].toreadonly()
        return Span(start, start + self._size, data, data.cast("Q"))

    @property
    def regions(self) -> Regions:
        """Ascending, disjoint regions in a state other than OUTSIDE."""
        return self._segments().regions()

    def _own(self) -> tuple[U64Array, U64Array, U8Array, npt.NDArray[np.int64]]:
        """Columns of a table of the pages that do not come from the base.

        Offsets of stored pages are slot * page size.
        """
        uniform = [(n, leaf) for n, leaf in self._leaves.items() if isinstance(leaf, int)]
        columns = np.array(uniform, np.int64).reshape(-1, 2)
        pfns, slots = [columns[:, 0] * _LEAF], [columns[:, 1]]
        for number, leaf in self._leaves.items():
            if not isinstance(leaf, int):
                i = np.flatnonzero(leaf != _BASE)
                pfns.append(i + number * _LEAF)
                slots.append(leaf[i].astype(np.int64))
        pfn, slot = np.concatenate(pfns), np.concatenate(slots)
        count = np.ones(len(pfn), np.int64)
        count[: len(uniform)] = _LEAF
        order = np.argsort(pfn, kind="stable")
        pfn, slot, count = pfn[order], slot[order], count[order]
        first = pfn.astype(np.uint64) << np.uint64(self._shift)
        size = count.astype(np.uint64) << np.uint64(self._shift)
        by_slot = np.array([Kind.EXCLUDED, Kind.ZERO, 0, Kind.STORED], np.uint8)
        kind = by_slot[np.minimum(slot, 0) - _EXCLUDED]
        return first, first + (size - np.uint64(1)), kind, np.maximum(slot, 0) << self._shift

    def _segments(self) -> SegmentTable:
        """All memory as pieces; offsets of stored ones are slot * page size."""
        if self._table is None:
            below = from_regions(self._base.regions)
            self._table = layer(SegmentTable(*self._own()), below)
        return self._table

    def extents(self) -> Iterator[tuple[int, memoryview]]:
        """Stored pages in runs, ascending, and what the base stores of the others."""
        return self._joined(self._base.extents())

    def distinct(self) -> Iterator[tuple[int, memoryview]]:
        """As :meth:`extents`, without what several addresses show of the base's container."""
        return self._joined(self._base.distinct())

    def zeros(self, pa: int, size: int) -> tuple[bool, int]:
        """Whether memory at ``pa`` is known to be zero, and for how many bytes this holds."""
        pfn = pa >> self._shift
        leaf, i = self._leaves.get(pfn // _LEAF, _BASE), pfn % _LEAF
        pages, slot = _LEAF - i, leaf
        if not isinstance(leaf, int):
            slot = int(leaf[i])
            same = leaf[i:] >= 0 if slot >= 0 else leaf[i:] == slot
            pages = pages if same.all() else int(np.argmin(same))
        size = min(size, (pfn + pages << self._shift) - pa)
        return self._base.zeros(pa, size) if slot == _BASE else (slot == _ZERO, size)

    @property
    def aliased(self) -> bool:
        """Whether the base is."""
        return self._base.aliased

    def _joined(self, base: Iterator[tuple[int, memoryview]]) -> Iterator[tuple[int, memoryview]]:
        own = self._own_extents()
        upcoming = next(own, None)
        for start, piece in self._base_extents(base):
            while upcoming is not None and upcoming[0] < start:
                yield upcoming
                upcoming = next(own, None)
            yield start, piece
        if upcoming is not None:
            yield upcoming
        yield from own

    def _own_extents(self) -> Iterator[tuple[int, memoryview]]:
        table = self._segments()
        block = self._chunk_pages * self._size
        for index in np.flatnonzero(table.kind == Kind.STORED).tolist():
            first, last, _, offset = table[index]
            while first <= last:
                chunk, at = divmod(offset, block)
                length = min(block - at, last + 1 - first)
                yield first, self._flat[chunk][at : at + length].toreadonly()
                first, offset = first + length, offset + length

    def _base_extents(
        self, extents: Iterator[tuple[int, memoryview]]
    ) -> Iterator[tuple[int, memoryview]]:
        """Extents of the base without the pages that are ours."""
        ours: SegmentTable | None = None
        for start, piece in extents:
            if ours is None:
                ours = SegmentTable(*self._own())
            end = start + len(piece)
            at = start
            for segment in ours.overlapping(start, end):
                if at < segment.first:
                    yield at, piece[at - start : segment.first - start]
                at = segment.last + 1
            if at < end:
                yield at, piece[at - start :]

    @property
    def blank(self) -> bool:
        """Whether there is nothing below the pages that were written: no image, RAM on paper."""
        return self._blank

    @property
    def written_bytes(self) -> int:
        """Bytes of the pages that were written."""
        return self._used << self._shift

    @property
    def base(self) -> PhysicalMemory:
        """What lies below the pages that were written."""
        return self._base

    def release(self) -> None:
        """Give back what a scan of the base brought in."""
        self._base.release()

    def close(self) -> None:
        """Nothing to release; the base is the caller's."""
