"""I/O address spaces and hardware page tables: what maps where, and the leaves that it takes."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from abi.pagetable import READ_WRITE, Permission
from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine.frames import U64Array
from inspector.kernel.machine.hardware import Unit
from inspector.kernel.outgoing.iommu import Domain
from inspector.kernel.outgoing.iopt import PageTable
from inspector.kernel.outgoing.memfd import Memfd

if TYPE_CHECKING:
    from inspector.kernel.outgoing.iommufd import Iommufd

#: Runs of at least this many pages are mapped as ranges, shorter ones page by page.
_LONG_RUN = 64


@dataclass(slots=True)
class Area:
    """Mapped input addresses: ``count`` pieces of ``size`` bytes, ``stride`` apart."""

    iova: int
    size: int
    file: Memfd | None
    offset: int
    permissions: Permission
    count: int = 1
    stride: int = 0
    pa: int = 0

    @property
    def end(self) -> int:
        """First address behind the last piece."""
        return self.iova + (self.count - 1) * self.stride + self.size

    def split(self, index: int) -> list[Area]:
        """The area without one of its pieces."""
        parts = []
        for first, count in ((0, index), (index + 1, self.count - index - 1)):
            if count:
                moved = first * self.size
                parts.append(
                    Area(
                        self.iova + first * self.stride, self.size, self.file,
                        self.offset + moved, self.permissions, count, self.stride,
                        self.pa + moved if self.pa else 0,
                    )
                )  # fmt: skip
        return parts


@dataclass(slots=True, eq=False)
class Ioas:
    """An I/O address space."""

    iommufd: Iommufd = field(repr=False)
    areas: list[Area] = field(default_factory=list)
    hwpts: list[Hwpt] = field(default_factory=list, repr=False)
    #: While preserved, nothing may be mapped or unmapped.
    immutable: bool = False
    _starts: list[int] = field(default_factory=list)

    def _overlaps(self, new: Area) -> bool:
        at = bisect.bisect_left(self._starts, new.end)
        for area in reversed(self.areas[:at]):
            if area.end <= new.iova:
                if area.count == 1 and new.count == 1:
                    break
                continue
            for i in range(area.count):
                start = area.iova + i * area.stride
                for j in range(new.count) if new.count < 64 else [None]:
                    if j is None:
                        first = (start - new.iova) // new.stride if new.stride else 0
                        near = [k for k in (first, first + 1) if 0 <= k < new.count]
                    else:
                        near = [j]
                    for k in near:
                        other = new.iova + k * new.stride
                        if start < other + new.size and other < start + area.size:
                            return True
        return False

    def map_file(
        self,
        file: Memfd,
        offset: int,
        iova: int,
        size: int,
        permissions: Permission = READ_WRITE,
        *,
        count: int = 1,
        stride: int = 0,
    ) -> None:
        """Map part of a memory file, ``count`` times at ``stride``, the file going on.

        Raises EBUSY (preserved), EINVAL, ERANGE, EEXIST.
        """
        self._map(Area(iova, size, file, offset, permissions, count, stride or size))

    def map_user(self, pa: int, iova: int, size: int, permissions: Permission = READ_WRITE) -> None:
        """Map memory that no file backs; such an IOAS cannot be preserved."""
        self._map(Area(iova, size, None, 0, permissions, 1, size, pa))

    def _map(self, area: Area) -> None:
        if self.immutable:
            raise KernelErrno("EBUSY", "the address space is preserved")
        if area.file is not None:
            total = area.size * area.count
            if area.offset + total > area.file.size:
                raise KernelErrno("EINVAL", f"the mapping at {area.iova:#x} leaves the file")
            area.file.pin(area.offset, total)
        if self._overlaps(area):
            raise KernelErrno("EEXIST", f"{area.iova:#x} is mapped already")
        done: list[Hwpt] = []
        try:
            for hwpt in self.hwpts:
                hwpt.map(area)
                done.append(hwpt)
        except KernelErrno:
            for hwpt in done:
                hwpt.unmap(area)
            raise
        at = bisect.bisect_left(self._starts, area.iova)
        self.areas.insert(at, area)
        self._starts.insert(at, area.iova)

    def unmap(self, iova: int, size: int) -> None:
        """Unmap whole areas within a range. Raises EBUSY (preserved), ENOENT (cuts an area)."""
        if self.immutable:
            raise KernelErrno("EBUSY", "the address space is preserved")
        found: list[tuple[Area, int]] = []
        for area in self.areas:
            for i in range(area.count):
                start = area.iova + i * area.stride
                if start < iova + size and iova < start + area.size:
                    if start < iova or start + area.size > iova + size:
                        raise KernelErrno("ENOENT", f"{iova:#x}+{size:#x} cuts an area")
                    found.append((area, i))
        if not found:
            raise KernelErrno("ENOENT", f"nothing is mapped in {iova:#x}+{size:#x}")
        for area, i in reversed(found):
            for hwpt in self.hwpts:
                hwpt.domain.table.unmap(area.iova + i * area.stride, area.size)
            at = self.areas.index(area)
            self.areas[at : at + 1] = area.split(i)
        self._starts = [a.iova for a in self.areas]


@dataclass(slots=True, eq=False)
class Hwpt:
    """A hardware page table. ``parent`` makes it a nested one, which has no IOAS of its own."""

    iommufd: Iommufd = field(repr=False)
    domain: Domain
    unit: Unit
    ioas: Ioas | None = None
    parent: Hwpt | None = None
    token: int | None = None
    devices: set[int] = field(default_factory=set)

    @property
    def nested(self) -> bool:
        """Whether it sits on a parent."""
        return self.parent is not None

    def map(self, area: Area) -> None:
        """Map an area."""
        table = self.domain.table
        table.check(area.end - area.size, area.size)
        page = table.machine.page_size
        try:
            if area.file is None:
                table.map(area.iova, area.pa, area.size, area.permissions)
                return
            frames = file_frames(area.file, area.offset, area.size * area.count)
            if area.count == 1 or area.stride == area.size:
                map_frames(table, area.iova, frames, area.permissions)
            elif area.size == page:
                iovas = np.uint64(area.iova) + np.arange(area.count, dtype=np.uint64) * np.uint64(
                    area.stride
                )
                pas = frames << np.uint64(table.machine.page_shift)
                table.map_scattered(iovas, pas, area.permissions)
            else:
                each = area.size // page
                for i in range(area.count):
                    part = frames[i * each : (i + 1) * each]
                    map_frames(table, area.iova + i * area.stride, part, area.permissions)
        except KernelErrno:
            self.unmap(area)
            raise

    def unmap(self, area: Area) -> None:
        """Unmap an area."""
        for i in range(area.count):
            self.domain.table.unmap(area.iova + i * area.stride, area.size)


def file_frames(file: Memfd, offset: int, size: int) -> U64Array:
    """The frames behind a populated range of a file, page by page."""
    shift = file.machine.page_shift
    parts = [
        np.arange(pa >> shift, -(-(pa + length) >> shift), dtype=np.uint64)
        for pa, length in file.runs(offset, size)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def map_frames(table: PageTable, iova: int, frames: U64Array, permissions: Permission) -> None:
    """Map frames one after another: long runs with large leaves, the rest page by page."""
    shift = table.machine.page_shift
    cut = np.flatnonzero(frames[1:] != frames[:-1] + np.uint64(1)) + 1
    edges = [0, *cut.tolist(), len(frames)]
    at = 0
    while at < len(edges) - 1:
        first, last = edges[at], edges[at + 1]
        if last - first >= _LONG_RUN:
            start = iova + (first << shift)
            table.map(start, int(frames[first]) << shift, (last - first) << shift, permissions)
            at += 1
            continue
        upto = at + 1
        while upto < len(edges) - 1 and edges[upto + 1] - edges[upto] < _LONG_RUN:
            upto += 1
        part = frames[first : edges[upto]]
        iovas = np.uint64(iova) + (
            np.arange(first, edges[upto], dtype=np.uint64) << np.uint64(shift)
        )
        table.map_scattered(iovas, part << np.uint64(shift), permissions)
        at = upto
