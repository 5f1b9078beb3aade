"""Memory files: a page cache of folios, and the handler that preserves them.

A file is sparse until it is preserved: preserving pins all folios and so fills every hole with
zero pages. Pages of zeros are present without being stored.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from abi import memfd as abi_memfd
from abi.errors import UsageError
from abi.registry import Generation
from abi.schema import Struct, resolve
from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine import Machine
from inspector.kernel.machine.frames import U64Array, frames_of
from inspector.kernel.outgoing import folio_array
from inspector.kernel.outgoing.file_handler import FileHandler
from inspector.kernel.outgoing.kho import Kho, VmallocArea, VmallocDescriptor
from inspector.kernel.outgoing.luo import Session
from inspector.kernel.record import pack
from inspector.kernel.room import room
from inspector.text import size_text

SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_WRITE, SEAL_FUTURE_WRITE, SEAL_EXEC = (
    1 << i for i in range(6)
)
#: Seals a file must have to back a preserved mapping.
DMA_SEALS = SEAL_SEAL | SEAL_SHRINK | SEAL_GROW
#: What a folio takes in the simulation, whatever it holds; a huge one is an extent of its own.
_FOLIO, _HUGE_FOLIO = 64, 1024
_SMALL = 64 << 20
_UINT_MAX = (1 << 32) - 1
_MAX_SIZE = (1 << 63) - 1


@dataclass(slots=True)
class Extent:
    """Folios of one order, neighbours in the file: ``frames`` are their first frames."""

    index: int
    frames: U64Array
    order: int

    @property
    def end(self) -> int:
        """First page index behind."""
        return self.index + (len(self.frames) << self.order)


class Memfd:
    """A memory file on a machine.

    ``huge`` makes folios of a PMD's size where they fit into the file (a THP mount).
    """

    def __init__(self, machine: Machine, name: str = "memfd", *, huge: bool = False) -> None:
        self.machine = machine
        self.name = name
        self.huge_order = machine.page_shift - 3 if huge else 0
        self.size = 0
        self.pos = 0
        self.seals = 0
        #: Whether pages were pinned for DMA: the model then keeps all of them.
        self.pinned = False
        #: Held while preserved: no page comes or goes, the size stays.
        self.frozen = False
        self._extents: list[Extent] = []
        self._starts: list[int] = []

    # -- what user space does ---------------------------------------------------------------

    def _check_change(self, seal: int) -> None:
        if self.seals & seal:
            raise KernelErrno("EPERM", f"{self.name}: sealed")
        if self.frozen:
            raise KernelErrno("EPERM", f"{self.name}: frozen while preserved")

    def truncate(self, size: int) -> None:
        """Set the size. Raises EPERM (seals, preserved), EINVAL. Shrinking frees pages."""
        if size > _MAX_SIZE:
            raise KernelErrno("EINVAL", f"{self.name}: {size:#x} bytes are no size of a file")
        if size == self.size:
            return
        self._check_change(SEAL_GROW if size > self.size else SEAL_SHRINK)
        if size < self.size:
            if self.pinned:
                raise UsageError(f"{self.name}: shrinking a file mapped for DMA is not modelled")
            self._drop(-(-size // self.machine.page_size))
            tail = size % self.machine.page_size
            frame = self._frame(size // self.machine.page_size) if tail else None
            if frame is not None:
                at = (frame << self.machine.page_shift) + tail
                self.machine.memory.write(at, bytes(self.machine.page_size - tail))
        self.size = size

    def fallocate(self, offset: int, length: int) -> None:
        """Make pages exist, zero; grows the file. Raises EPERM, ENOMEM."""
        if self.seals & (SEAL_WRITE | SEAL_FUTURE_WRITE):
            raise KernelErrno("EPERM", f"{self.name}: sealed")
        if offset + length > self.size:
            self._check_change(SEAL_GROW)
            self.size = offset + length
        page = self.machine.page_size
        self._fill(offset // page, -(-(offset + length) // page))

    def write(self, offset: int, data: bytes | npt.NDArray[np.generic]) -> None:
        """Write as pwrite does; grows the file. Raises EPERM, ENOMEM."""
        source = np.frombuffer(data, np.uint8)
        if not len(source):
            return
        if self.seals & (SEAL_WRITE | SEAL_FUTURE_WRITE):
            raise KernelErrno("EPERM", f"{self.name}: sealed")
        end = offset + len(source)
        if end > self.size:
            self._check_change(SEAL_GROW)
            self.size = end
        page = self.machine.page_size
        self._fill(offset // page, -(-end // page))
        done = 0
        for pa, length in self.runs(offset, len(source)):
            self.machine.memory.write(pa, source[done : done + length])
            done += length

    def seek(self, position: int) -> None:
        """Set the file position."""
        self.pos = position

    def add_seals(self, seals: int) -> None:
        """Add seals. Raises EPERM once sealed against it."""
        if self.seals & SEAL_SEAL:
            raise KernelErrno("EPERM", f"{self.name}: sealed")
        self.seals |= seals

    def read(self, offset: int, length: int) -> bytes:
        """Bytes; holes read as zeros."""
        length = max(0, min(length, self.size - offset))
        page, out, at, end = self.machine.page_size, [], offset, offset + length
        while at < end:
            stop = min(end, (at // page + 1) * page)
            frame = self._frame(at // page)
            if frame is None:
                out.append(bytes(stop - at))
            else:
                pa = (frame << self.machine.page_shift) + at % page
                out.append(self.machine.memory.read(pa, stop - at))
            at = stop
        return b"".join(out)

    def close(self) -> None:
        """Drop all pages; not while the file is preserved."""
        assert not self.frozen, f"{self.name} is preserved"
        self._drop(0)

    # -- folios -----------------------------------------------------------------------------

    @property
    def pages(self) -> int:
        """Size in pages, rounded up."""
        return -(-self.size // self.machine.page_size)

    @property
    def extents(self) -> list[Extent]:
        """The folios, ascending."""
        return self._extents

    def adopt(self, index: int, frames: U64Array, order: int) -> None:
        """Put folios that exist already into the page cache; extents stay ascending."""
        at = bisect.bisect_left(self._starts, index)
        self._extents.insert(at, Extent(index, frames, order))
        self._starts.insert(at, index)

    def _frame(self, index: int) -> int | None:
        at = bisect.bisect_right(self._starts, index) - 1
        if at < 0 or index >= self._extents[at].end:
            return None
        extent = self._extents[at]
        block, inside = divmod(index - extent.index, 1 << extent.order)
        return int(extent.frames[block]) + inside

    def runs(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Physically contiguous pieces of a populated range: (address, bytes), in file order."""
        shift, page = self.machine.page_shift, self.machine.page_size
        first, last = offset >> shift, -(-(offset + length) >> shift)
        parts: list[U64Array] = []
        at = max(0, bisect.bisect_right(self._starts, first) - 1)
        while at < len(self._extents) and self._extents[at].index < last:
            extent = self._extents[at]
            low, high = max(first, extent.index), min(last, extent.end)
            if low < high:
                heads = extent.frames[
                    (low - extent.index) >> extent.order : -(-(high - extent.index) >> extent.order)
                ]
                frames = frames_of(heads, extent.order)
                skip = (low - extent.index) & ((1 << extent.order) - 1)
                parts.append(frames[skip : skip + high - low])
            at += 1
        frames = np.concatenate(parts) if parts else np.empty(0, np.uint64)
        assert len(frames) == last - first, f"{self.name}: hole in a populated range"
        cut = np.flatnonzero(frames[1:] != frames[:-1] + np.uint64(1)) + 1
        edges = [0, *cut.tolist(), len(frames)]
        out, skip, left = [], offset & (page - 1), length
        for a, b in itertools.pairwise(edges):
            size = min(((b - a) << shift) - skip, left)
            out.append(((int(frames[a]) << shift) + skip, size))
            left, skip = left - size, 0
        return out

    def _holes(self, first: int, last: int) -> list[tuple[int, int]]:
        holes, at = [], first
        start = max(0, bisect.bisect_right(self._starts, first) - 1)
        for extent in self._extents[start:]:
            if extent.index >= last:
                break
            if extent.index > at:
                holes.append((at, extent.index))
            at = max(at, extent.end)
        if at < last:
            holes.append((at, last))
        return holes

    def _fill(self, first: int, last: int) -> None:
        for low, high in self._holes(first, last):
            if self.frozen:
                raise KernelErrno("EPERM", f"{self.name}: frozen while preserved")
            self._check_room(high - low)
            if self.huge_order:
                low, high = self._fill_huge(low, high)
            if low < high:
                self.adopt(low, self.machine.alloc_many(high - low), 0)

    def _check_room(self, pages: int) -> None:
        """Raises UsageError for more folios than there is memory for, here, not in the machine."""
        size = (pages >> self.huge_order) * (_HUGE_FOLIO if self.huge_order else _FOLIO)
        ram = sum(r.size for r in self.machine.spec.ram)
        if size < _SMALL or pages << self.machine.page_shift > ram:
            return
        if size > room():
            more = "" if self.huge_order else ": huge = true makes larger ones"
            raise UsageError(
                f"{self.name}: {pages >> self.huge_order} folios take {size_text(size)} to be kept"
                f" in mind, more than the {size_text(room())} that there is memory for{more}"
            )

    def _fill_huge(self, low: int, high: int) -> tuple[int, int]:
        """Huge folios for a hole where they fit; returns the rest at the end."""
        order, step = self.huge_order, 1 << self.huge_order
        while low < high:
            first = low & -step
            whole = [(first, first + step)]
            if first + step <= self.pages and self._holes(first, first + step) == whole:
                self.adopt(first, self.machine.alloc_many(1, order), order)
                low = first + step
            else:
                stop = min(high, first + step)
                self.adopt(low, self.machine.alloc_many(stop - low), 0)
                low = stop
        return high, high

    def pin(self, offset: int, length: int) -> None:
        """Make the pages of a range exist and keep them, whatever the seals. Raises ENOMEM."""
        page = self.machine.page_size
        self._fill(offset // page, -(-(offset + length) // page))
        self.pinned = True

    def populate(self) -> None:
        """Fill every hole, as pinning all pages does. Raises ENOMEM."""
        frozen, self.frozen = self.frozen, False
        try:
            self._fill(0, self.pages)
        finally:
            self.frozen = frozen

    def _drop(self, first: int) -> None:
        """Free whole folios from page ``first`` on; one that begins before stays."""
        while self._extents and self._extents[-1].end > first:
            extent = self._extents[-1]
            keep = max(0, -(-(first - extent.index) >> extent.order))
            if keep >= len(extent.frames):
                return
            self.machine.free_many(extent.frames[keep:], extent.order)
            if keep:
                self._extents[-1] = Extent(extent.index, extent.frames[:keep], extent.order)
                return
            self._extents.pop()
            self._starts.pop()


@dataclass(slots=True)
class MemfdState:
    """What preserving a file made."""

    ser: int
    area: VmallocArea | None
    descriptor: VmallocDescriptor
    pos: int
    size: int
    seals: int


class MemfdHandler(FileHandler):
    """Preserves memory files, in the form of a generation."""

    def __init__(self, kho: Kho, generation: Generation) -> None:
        self.kho = kho
        self.generation = generation
        self.compatible = generation.strings[0]
        layout = generation.layouts["memfd_luo_ser"]
        self.layout: Struct = resolve(layout, kho.machine.page_size)
        self.keeps_seals = any(f.name == "seals" for f in self.layout.fields)
        self.states: dict[int, MemfdState] = {}

    def can_preserve(self, file: Any) -> bool:
        """Plain memory files only."""
        return type(file) is Memfd

    def preserve(self, file: Memfd, session: Session, token: int) -> int:
        """Pin and preserve all folios. Raises EFBIG, EOPNOTSUPP (seals), ENOMEM, EINVAL."""
        if file.pages > _UINT_MAX:
            raise KernelErrno("EFBIG", f"{file.name} has too many pages")
        if self.keeps_seals and file.seals & ~abi_memfd.MEMFD_LUO_ALL_SEALS:
            raise KernelErrno("EOPNOTSUPP", f"{file.name} has unknown seals {file.seals:#x}")
        file.populate()
        ser = self.kho.alloc_preserve(self.layout.size)
        flags = abi_memfd.MEMFD_LUO_FOLIO_DIRTY | abi_memfd.MEMFD_LUO_FOLIO_UPTODATE
        try:
            area, descriptor = folio_array.preserve(
                self.kho, file.extents, folio_array.entries(file.extents, flags)
            )
        except KernelErrno:
            self.kho.unpreserve_free(ser)
            raise
        file.frozen = True
        state = MemfdState(ser, area, descriptor, file.pos, file.size, file.seals)
        self.states[id(file)] = state
        self._write(state)
        return ser

    def _write(self, state: MemfdState) -> None:
        count = len(state.area.frames) if state.area is not None else 0
        if state.area is not None:
            count = state.area.size // abi_memfd.memfd_luo_folio_ser.size
        values: dict[str, Any] = {
            "pos": state.pos,
            "size": state.size,
            "nr_folios": count,
            "folios": state.descriptor.values,
        }
        names = self.layout.dtype.names or ()
        if "word" in names:
            values["word"] = state.seals
        elif self.keeps_seals:
            values["seals"] = state.seals
        if "features" in names:
            bits = abi_memfd.MEMFD_LUO_FEATURE_SEALS | abi_memfd.MEMFD_LUO_FEATURE_FOLIOS
            values["features"] = {"supp": bits, "req": bits, "active": bits}
        self.kho.machine.memory.write(state.ser, pack(self.layout, values))

    def freeze(self, file: Memfd, data: int) -> int:
        """Record the position as it is now."""
        state = self.states[id(file)]
        state.pos = file.pos
        self._write(state)
        return data

    def unpreserve(self, file: Memfd, data: int) -> None:
        """Undo; the file lives on."""
        state = self.states.pop(id(file))
        folio_array.unpreserve(self.kho, file.extents, state.area, state.descriptor)
        self.kho.unpreserve_free(state.ser)
        file.frozen = False


def pattern(token: int, first_word: int, count: int) -> npt.NDArray[np.uint64]:
    """Words of the test pattern: word i of token t is mix(mix(t) + i), splitmix64's finalizer."""
    with np.errstate(over="ignore"):
        start = _mix(np.array([token], np.uint64))[0]
        words = np.arange(first_word, first_word + count, dtype=np.uint64)
        return _mix(words + start)


def pattern_bytes(token: int, offset: int, size: int) -> bytes:
    """``size`` bytes of the pattern at byte ``offset`` of a file."""
    first = offset // 8
    words = pattern(token, first, -(-(offset + size) // 8) - first).astype("<u8", copy=False)
    start = offset - 8 * first
    return words.tobytes()[start : start + size]


def _mix(value: U64Array) -> U64Array:
    z = value + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
