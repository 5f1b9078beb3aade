"""Memory that a fuzzer changes and restores thousands of times a second.

The pages of a small image lie in one buffer. Edits are written into it and undone; nothing is
copied for a case, and reads of single structs do not go through numpy.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

import numpy as np

from inspector.fuzz.edit import Edit
from inspector.memory.base import (
    MemoryFault,
    PageState,
    PhysicalMemory,
    Region,
    Span,
    U8Array,
    U64Array,
)
from inspector.memory.regions import Regions

PAGE = 4096
_OUTSIDE, _EXCLUDED, _PRESENT = PageState.OUTSIDE, PageState.EXCLUDED, PageState.PRESENT
#: So many rows are read one by one; more are worth numpy's calls.
_FEW = 12


class PatchedMemory(PhysicalMemory):
    """4K pages by physical address, with edits on top.

    ``pages`` maps addresses to bytes; ``ram`` are (start, size) ranges that exist in the
    machine beside them. ``page_size`` is what the container of the original recorded.
    ``spares`` are pages that become present (zero around what is written) with an edit.
    """

    kind = "fuzz"

    def __init__(
        self,
        pages: dict[int, bytes],
        *,
        ram: Iterable[tuple[int, int]] = (),
        machine: str | None = None,
        page_size: int | None = None,
        notes: dict[str, str] | None = None,
        spares: Iterable[int] = (),
    ) -> None:
        self.machine, self.page_size, self.notes = machine, page_size, dict(notes or {})
        self._hidden = frozenset(spares) - set(pages)
        self._all = sorted({*pages, *self._hidden})
        self._data = bytearray(b"".join(pages.get(pa, bytes(PAGE)) for pa in self._all))
        self._view = memoryview(self._data).toreadonly()
        self._bytes = np.frombuffer(self._data, np.uint8)
        self._place = {pa: i * PAGE for i, pa in enumerate(self._all)}
        self._ram = _merged([*((pa, PAGE) for pa in self._all), *ram])
        self._ram_starts = [start for start, _ in self._ram]
        self._undo: list[tuple[int, bytes]] = []
        self._dropped: set[int] = set(self._hidden)
        self._layout()

    # -- editing -------------------------------------------------------------------------

    def apply(self, edits: Iterable[Edit]) -> None:
        """Make the edits; what lies outside the present pages is ignored."""
        data, place = self._data, self._place
        changed = False
        for edit in edits:
            if edit.data is None:
                pa = edit.address & -PAGE
                if pa in place and pa not in self._dropped:
                    self._dropped.add(pa)
                    changed = True
                continue
            at, done = edit.address, 0
            while done < len(edit.data):
                offset = at & PAGE - 1
                length = min(PAGE - offset, len(edit.data) - done)
                base = place.get(at & -PAGE)
                if base is not None:
                    if at & -PAGE in self._hidden and at & -PAGE in self._dropped:
                        self._dropped.discard(at & -PAGE)
                        changed = True
                    low = base + offset
                    self._undo.append((low, bytes(data[low : low + length])))
                    data[low : low + length] = edit.data[done : done + length]
                done += length
                at += length
        if changed:
            self._layout()

    def reset(self) -> None:
        """Undo all edits."""
        for low, old in reversed(self._undo):
            self._data[low : low + len(old)] = old
        self._undo.clear()
        if self._dropped != self._hidden:
            self._dropped = set(self._hidden)
            self._layout()

    @property
    def ram(self) -> tuple[tuple[int, int], ...]:
        """(start, size) of what exists in the machine."""
        return tuple(self._ram)

    def copy(self) -> PatchedMemory:
        """A second memory with the pages as they are now."""
        return self.like(self.pages(), self._hidden)

    def like(self, pages: dict[int, bytes], spares: Iterable[int] = ()) -> PatchedMemory:
        """A memory of the same machine with other pages."""
        return PatchedMemory(
            pages, ram=self._ram, machine=self.machine,
            page_size=self.page_size, notes=self.notes, spares=spares,
        )  # fmt: skip

    def peek(self, pa: int, size: int) -> bytes:
        """``size`` bytes at ``pa``, zero where nothing is held; for the mutator."""
        at = self._find(pa, size)
        if at >= 0:
            return bytes(self._view[at : at + size])
        out = bytearray(size)
        done = 0
        while done < size:
            offset = pa + done & PAGE - 1
            length = min(PAGE - offset, size - done)
            at = self._find(pa + done, length)
            if at >= 0:
                out[done : done + length] = self._view[at : at + length]
            done += length
        return bytes(out)

    def pages(self) -> dict[int, bytes]:
        """The pages as they are now."""
        place = self._place
        return {
            pa: bytes(self._view[place[pa] : place[pa] + PAGE])
            for pa in self._all
            if pa not in self._dropped
        }

    def _layout(self) -> None:
        """The runs of neighbouring pages: (start, end, offset in the buffer)."""
        runs: list[list[int]] = []
        for pa in self._all:
            if pa in self._dropped:
                continue
            at = self._place[pa]
            if runs and runs[-1][1] == pa and runs[-1][2] + pa - runs[-1][0] == at:
                runs[-1][1] = pa + PAGE
            else:
                runs.append([pa, pa + PAGE, at])
        self._starts = [r[0] for r in runs]
        self._ends = [r[1] for r in runs]
        self._offsets = [r[2] for r in runs]
        self._columns: tuple[U64Array, U64Array, U64Array] | None = None
        self._spans: dict[int, Span] = {}
        self._regions: Regions | None = None

    # -- reading -------------------------------------------------------------------------

    def _find(self, pa: int, size: int) -> int:
        """Offset of wholly present bytes in the buffer, or -1."""
        i = bisect_right(self._starts, pa) - 1
        if i < 0 or pa + size > self._ends[i]:
            return -1
        return self._offsets[i] + pa - self._starts[i]

    def read(self, pa: int, size: int) -> bytes:
        """``size`` bytes at ``pa``; raises MemoryFault naming the first missing byte."""
        if size <= 0:
            return b""
        at = self._find(pa, size)
        if at < 0:
            i = bisect_right(self._starts, pa) - 1
            missing = self._ends[i] if i >= 0 and pa < self._ends[i] else pa
            raise MemoryFault(missing, self._one(missing))
        return bytes(self._view[at : at + size])

    def _one(self, pa: int) -> PageState:
        """The state of one byte."""
        if self._find(pa, 1) >= 0:
            return _PRESENT
        i = bisect_right(self._ram_starts, pa) - 1
        return _EXCLUDED if i >= 0 and pa < sum(self._ram[i]) else _OUTSIDE

    def state(self, pa: int, size: int = 1) -> PageState:
        """State of ``size`` bytes at ``pa``."""
        if pa < 0 or pa + size > 1 << 64:
            return _OUTSIDE
        if self._find(pa, size) >= 0:
            return _PRESENT
        i = bisect_right(self._ram_starts, pa) - 1
        return _EXCLUDED if i >= 0 and pa + size <= sum(self._ram[i]) else _OUTSIDE

    def states(self, addresses: U64Array, size: int = 1) -> U8Array:
        """State of ``size`` bytes at each address, as PageState values."""
        addresses = np.asarray(addresses, np.uint64)
        if len(addresses) > _FEW and self._rows(addresses, size)[0].all():
            return np.full(len(addresses), _PRESENT, np.uint8)
        return np.array([self.state(pa, size) for pa in addresses.tolist()], np.uint8)

    def _rows(self, addresses: U64Array, size: int) -> tuple[U8Array, U64Array]:
        """(whether each row is wholly present, its offset in the buffer)."""
        if self._columns is None:
            self._columns = (
                np.array(self._starts, np.uint64),
                np.array(self._ends, np.uint64),
                np.array(self._offsets, np.uint64),
            )
        starts, ends, offsets = self._columns
        if not len(starts):
            return np.zeros(len(addresses), np.uint8), np.zeros(len(addresses), np.uint64)
        i = np.searchsorted(starts, addresses, side="right") - 1
        j = np.maximum(i, 0)
        stop = addresses + np.uint64(size)
        fits = (i >= 0) & (stop <= ends[j]) & (stop >= addresses)
        return fits.view(np.uint8), np.where(fits, offsets[j] + addresses - starts[j], 0)

    def gather(self, addresses: U64Array, size: int, out: U8Array | None = None) -> U8Array:
        """Read ``size`` bytes at each address into an ``(n, size)`` array."""
        n = len(addresses)
        if n == 1 and out is None and size:
            at = self._find(int(addresses[0]), size)
            if at >= 0:
                return self._bytes[at : at + size].copy().reshape(1, size)
        rows = np.empty((n, size), np.uint8) if out is None else out[:n]
        if n == 0 or size == 0:
            return rows
        if n <= _FEW:
            for row, pa in zip(rows, addresses.tolist(), strict=True):
                at = self._find(pa, size)
                row[:] = self._bytes[at : at + size] if at >= 0 else 0
            return rows
        fits, offsets = self._rows(np.asarray(addresses, np.uint64), size)
        if size > len(self._bytes):
            rows[:] = 0
            return rows
        rows[:] = np.lib.stride_tricks.sliding_window_view(self._bytes, size)[
            offsets.astype(np.int64)
        ]
        rows[fits == 0] = 0
        return rows

    def span(self, pa: int) -> Span | None:
        """The run of pages around ``pa``."""
        i = bisect_right(self._starts, pa) - 1
        if i < 0 or pa >= self._ends[i]:
            return None
        span = self._spans.get(i)
        if span is None:
            start, end, at = self._starts[i], self._ends[i], self._offsets[i]
            data = self._view[at : at + end - start]
            span = self._spans[i] = Span(start, end, data, data.cast("Q"))
        return span

    @property
    def regions(self) -> Regions:
        """Ascending, disjoint regions in a state other than OUTSIDE."""
        if self._regions is not None:
            return self._regions
        found: list[Region] = []
        runs = list(zip(self._starts, self._ends, strict=True))
        for start, size in self._ram:
            at, end = start, start + size
            for low, high in runs:
                if start <= low < end:
                    if at < low:
                        found.append(Region(at, low - at, _EXCLUDED))
                    found.append(Region(low, high - low, _PRESENT))
                    at = high
            if at < end:
                found.append(Region(at, end - at, _EXCLUDED))
        self._regions = Regions.of(found)
        return self._regions

    def extents(self) -> Iterator[tuple[int, memoryview]]:
        """Present pages in runs, ascending."""
        for start, end, at in zip(self._starts, self._ends, self._offsets, strict=True):
            yield start, self._view[at : at + end - start]


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(start, size) ranges, ascending, joined where they touch or overlap."""
    merged: list[list[int]] = []
    for start, size in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], start + size)
        else:
            merged.append([start, start + size])
    return [(start, end - start) for start, end in merged]
