"""Memory whose bytes lie in one buffer, usually a file mapping: zero copy throughout."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
from numpy.lib.stride_tricks import as_strided

from inspector.memory.base import (
    MemoryFault,
    PageState,
    PhysicalMemory,
    Span,
    U8Array,
    U64Array,
)
from inspector.memory.regions import Regions
from inspector.memory.segments import I64Array, Kind, Segment, SegmentTable, distinct

_ZEROS = memoryview(bytes(1 << 20))
_WORD = struct.Struct("<Q")
_WORDS_AT_ONCE = 1 << 16

#: ``data_ranges(offset, end)``: the parts of a file range that are not holes.
DataRanges = Callable[[int, int], Iterator[tuple[int, int]]]


def _no_holes(offset: int, end: int) -> Iterator[tuple[int, int]]:
    yield offset, end


class MappedMemory(PhysicalMemory):
    """Physical memory as a table of pieces of one read-only buffer."""

    kind = "mapped"

    def __init__(
        self, table: SegmentTable, data: memoryview, data_ranges: DataRanges = _no_holes
    ) -> None:
        """``data`` is a read-only view of bytes; offsets of ``table`` are inside it."""
        self.notes = {}
        self._table = table
        self._data = data
        self._bytes: U8Array = np.frombuffer(data, np.uint8)
        self._words: U64Array = np.frombuffer(data[: len(data) & ~7], "<u8")
        self._data_ranges = data_ranges
        self._regions: Regions | None = None
        # By piece, with one in front for addresses below all: the end of stored memory
        # (0 where nothing is stored), and what makes an offset of an address.
        stored = table.kind == Kind.STORED
        self._ends = np.zeros(len(table) + 1, np.uint64)
        self._ends[1:] = np.where(stored, table.last + np.uint64(1), np.uint64(0))
        self._deltas = np.zeros(len(table) + 1, np.uint64)
        self._deltas[1:] = table.offset.view(np.uint64) - table.first
        self._spans: dict[int, Span] = {}
        self._views: dict[tuple[int, int, int], U8Array] = {}
        # The stored piece that was read last: [base, base + room) at offset delta + address.
        # One tuple, so that threads see all of it or nothing.
        self._current = (0, 0, 0)

    @property
    def regions(self) -> Regions:
        """Ascending, disjoint regions in a state other than OUTSIDE."""
        if self._regions is None:
            self._regions = self._table.regions()
        return self._regions

    def _seek(self, pa: int) -> tuple[int, int, int]:
        """Make the stored piece that holds ``pa`` the current one; no room if there is none."""
        index = self._table.find(pa)
        if index < 0 or self._table.kind[index] != Kind.STORED:
            return pa, -1, 0
        piece = self._table[index]
        self._current = (piece.first, piece.last + 1 - piece.first, piece.offset - piece.first)
        return self._current

    def read(self, pa: int, size: int) -> bytes:
        """``size`` bytes at ``pa``; raises MemoryFault naming the first missing byte."""
        base, room, delta = self._current
        if not 0 <= pa - base <= room - size:
            base, room, delta = self._seek(pa)
            if pa - base > room - size:
                return self._read_pieces(pa, size)
        at = delta + pa
        return bytes(self._data[at : at + size])

    def _read_pieces(self, pa: int, size: int) -> bytes:
        if size <= 0:
            return b""
        missing = self._table.first_missing(pa, size)
        if missing is not None:
            raise MemoryFault(*missing)
        parts = []
        for first, last, kind, offset in self._table.overlapping(pa, pa + size):
            length = last + 1 - first
            parts.append(
                self._data[offset : offset + length] if kind == Kind.STORED else bytes(length)
            )
        return b"".join(parts)

    def u64(self, pa: int) -> int:
        """The little-endian 64-bit word at ``pa``. Raises MemoryFault."""
        base, room, delta = self._current
        if 0 <= pa - base <= room - 8:
            word: int = _WORD.unpack_from(self._data, delta + pa)[0]
            return word
        return int.from_bytes(self.read(pa, 8), "little")

    def span(self, pa: int) -> Span | None:
        """The whole piece around ``pa``; of a piece of zeros, up to 1 MiB of it."""
        index = self._table.find(pa)
        if index < 0 or self._table.kind[index] == Kind.EXCLUDED:
            return None
        known = self._spans.get(index)
        if known is not None:
            return known if known.start <= pa < known.end else None
        first, last, kind, offset = self._table[index]
        start, end = (first + 7) & ~7, (last + 1) & ~7
        if kind == Kind.ZERO:
            start = max(start, pa & ~(len(_ZEROS) - 1))
            end = min(end, start + len(_ZEROS))
        if not start <= pa < end:
            return None
        if kind == Kind.ZERO:
            data = _ZEROS[: end - start]
            return Span(start, end, data, data.cast("Q"))
        data = self._data[offset + start - first : offset + end - first]
        span = Span(start, end, data, data.cast("Q"))
        if len(self._spans) < 4096:
            self._spans[index] = span
        return span

    def states(self, addresses: U64Array, size: int = 1) -> U8Array:
        """State of ``size`` bytes at each address, as PageState values."""
        addresses = np.asarray(addresses, np.uint64)
        base, room, _ = self._current
        if len(addresses) > 1 and size > 0:
            low, high = int(addresses.min()), int(addresses.max())
            if low >= base and high - base <= room - size:
                return np.full(len(addresses), PageState.PRESENT, np.uint8)
        return self._table.states(addresses, size)

    def gather(self, addresses: U64Array, size: int, out: U8Array | None = None) -> U8Array:
        """Read ``size`` bytes at each address into an ``(n, size)`` array."""
        addresses = np.ascontiguousarray(addresses, np.uint64)
        n = len(addresses)
        if n == 0 or size == 0:
            return np.empty((n, size), np.uint8) if out is None else out[:n]
        # Most often all addresses lie in one stored piece: five numpy calls then.
        base, room, delta = self._current
        inside = addresses - np.uint64(base)  # wraps for what lies below
        high = int(inside.max())
        if high > room - size:
            base, room, delta = self._seek(int(addresses.min()))
            inside = addresses - np.uint64(base)
            high = int(inside.max())
        if high <= room - size:
            return self._pick(inside, base + delta, room, size, out)
        # Else all may lie in stored pieces, if not in one.
        table = self._table
        piece = np.searchsorted(table.first, addresses, "right")
        if int(addresses.max()) < (1 << 64) - size and bool(
            (addresses + np.uint64(size) <= self._ends[piece]).all()
        ):
            places = addresses + self._deltas[piece]
            return self._pick(places, 0, len(self._bytes), size, out)
        rows = np.empty((n, size), np.uint8) if out is None else out[:n]
        if not len(table):
            rows[:] = 0
            return rows
        index = piece - 1
        inside = addresses - table.first[index]  # wraps if there is no such piece
        reach = table.last[index] - table.first[index]
        whole = (index >= 0) & (inside <= reach) & (reach - inside >= np.uint64(size - 1))
        stored = whole & (table.kind[index] == Kind.STORED)
        if stored.any():
            offsets = np.where(stored, table.offset[index] + inside.view(np.int64), -1)
            # A row that is not stored reads some stored one, and is cleared afterwards.
            offsets[~stored] = offsets[int(np.argmax(stored))]
            self._take(offsets, size, rows)
        if not stored.all():
            rows[~stored] = 0
            split = ~whole & (index >= 0) & (inside <= reach)
            for row in np.flatnonzero(split).tolist():
                pa = int(addresses[row])
                if pa + size <= 1 << 64 and table.first_missing(pa, size) is None:
                    rows[row] = np.frombuffer(self._read_pieces(pa, size), np.uint8)
        return rows

    def batches(self, addresses: U64Array, size: int, at_once: int) -> Iterator[U8Array]:
        """:meth:`gather`, ``at_once`` addresses at a time; the buffer is used again and again."""
        if size <= 0 or size & (size - 1) or not len(addresses):
            yield from super().batches(addresses, size, at_once)
            return
        base, room, delta = self._seek(int(addresses.min()))
        inside = addresses - np.uint64(base)
        if int(inside.max()) > room - size or int(np.bitwise_or.reduce(inside)) & (size - 1):
            yield from super().batches(addresses, size, at_once)
            return
        # All lie in one piece: what gather would find out each time is found out once.
        number = (inside >> np.uint64(size.bit_length() - 1)).view(np.int64)
        view = self._rows(base + delta, room // size, size)
        buffer = np.empty((min(at_once, len(number)), size), np.uint8)
        for at in range(0, len(number), at_once):
            part = number[at : at + at_once]
            yield view.take(part, 0, buffer[: len(part)], "clip")

    def _pick(
        self, inside: U64Array, begin: int, room: int, size: int, out: U8Array | None
    ) -> U8Array:
        """``size`` bytes at offsets that are all inside ``[begin, begin + room)``."""
        if out is None:
            parts = self._page_parts(inside.view(np.int64) + begin, size)
            if parts is not None:
                return parts
        rows = np.empty((len(inside), size), np.uint8) if out is None else out[: len(inside)]
        if size & (size - 1) or int(np.bitwise_or.reduce(inside)) & (size - 1):
            self._take(inside.view(np.int64) + begin, size, rows)
        else:
            number = inside >> np.uint64(size.bit_length() - 1)
            view = self._rows(begin, room // size, size)
            # mode: "raise" would buffer the whole output; the indices are in range.
            np.take(view, number.view(np.int64), axis=0, out=rows, mode="clip")
        return rows

    def _rows(self, begin: int, count: int, size: int) -> U8Array:
        """A piece of the buffer as rows; the views of the last pieces are kept."""
        view = self._views.get((begin, count, size))
        if view is None:
            view = self._bytes[begin : begin + count * size].reshape(count, size)
            if len(self._views) >= 256:
                self._views.clear()
            self._views[begin, count, size] = view
        return view

    def _page_parts(self, offsets: I64Array, size: int) -> U8Array | None:
        """The same part of many pages: one strided view, indexed by page; else None."""
        lead = int(offsets[0]) & 4095
        if size & 4095 == 0 or ((offsets - lead) & 4095).any():
            return None
        count = (len(self._bytes) - lead - size) // 4096 + 1
        # One item a page, not a row of bytes: numpy then copies each in one step.
        part = self._bytes[lead : lead + size].view(f"V{size}")
        view = as_strided(part, (count,), (4096,), writeable=False)
        parts: U8Array = view[(offsets - lead) >> 12].view(np.uint8).reshape(-1, size)
        return parts

    def _take(self, offsets: I64Array, size: int, rows: U8Array) -> None:
        """Copy ``size`` bytes at each offset of the buffer, all inside it, to the rows."""
        lead = int(offsets[0]) % size
        if size & (size - 1):
            number, rest = np.divmod(offsets - lead, size)
        else:
            moved = offsets - lead
            number, rest = moved >> (size.bit_length() - 1), moved & (size - 1)
        count = (len(self._bytes) - lead) // size
        if not rest.any() and int(number.max()) < count:
            view = self._bytes[lead : lead + count * size].reshape(count, size)
            # mode: "raise" would buffer the whole output; the indices are checked above.
            np.take(view, number.astype(np.intp, copy=False), axis=0, out=rows, mode="clip")
            return
        by_word = size % 8 == 0 and not (offsets & 7).any() and rows.flags.c_contiguous
        unit = 8 if by_word else 1
        source = self._words if by_word else self._bytes
        target = rows.view(np.uint64) if by_word else rows
        starts = offsets // unit
        column = np.arange(size // unit, dtype=np.int64)
        step = max(_WORDS_AT_ONCE // len(column), 1)
        for i in range(0, len(starts), step):
            wanted = starts[i : i + step, None] + column
            np.take(source, wanted, out=target[i : i + step], mode="clip")

    def extents(self) -> Iterator[tuple[int, memoryview]]:
        """Stored memory, zero copy; pieces of zeros and holes of the file are skipped."""
        return self._extents_of(self._table)

    def distinct(self) -> Iterator[tuple[int, memoryview]]:
        """As :meth:`extents`; what several addresses show of the file, at the lowest only."""
        return self._extents_of(self._table if self._searched is None else self._searched)

    @property
    def aliased(self) -> bool:
        """Whether bytes of the file are seen at several addresses."""
        return self._searched is not None

    @cached_property
    def _searched(self) -> SegmentTable | None:
        return distinct(self._table)

    def _extents_of(self, table: SegmentTable) -> Iterator[tuple[int, memoryview]]:
        for index in np.flatnonzero(table.kind == Kind.STORED).tolist():
            first, last, _, offset = table[index]
            for start, end in self._data_ranges(offset, offset + last + 1 - first):
                yield first + start - offset, self._data[start:end]

    def zeros(self, pa: int, size: int) -> tuple[bool, int]:
        """Whether memory at ``pa`` is known to be zero, and for how many bytes this holds."""
        index = self._table.find(pa)
        if index < 0:
            return False, size
        first, last, kind, offset = self._table[index]
        length = min(last + 1 - pa, size)
        if kind != Kind.STORED:
            return kind == Kind.ZERO, length
        begin = offset + pa - first
        for start, end in self._data_ranges(begin, begin + length):
            return (True, start - begin) if start > begin else (False, end - begin)
        return True, length

    def release(self) -> None:
        """Unmap the file's pages; those that are read again come from the page cache."""
        owner = self._data.obj
        if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            owner.madvise(mmap.MADV_DONTNEED)

    def stored(self) -> Iterator[Segment]:
        """The pieces of the table, for writers and for those who show a container."""
        for index in range(len(self._table)):
            yield self._table[index]

    def state(self, pa: int, size: int = 1) -> PageState:
        """State of ``size`` bytes at ``pa``; the scalar form of :meth:`states`."""
        base, room, _ = self._current
        if size > 0 and 0 <= pa - base <= room - size:
            return PageState.PRESENT
        return self._table.state(pa, size)
