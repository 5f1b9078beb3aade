"""A drgn ``Program`` as an image: whatever drgn can read, physical memory included.

drgn reads but does not list physical memory. Where the program was made from a core dump
that we can read ourselves, its regions come from there; on the running host they come
from /proc/iomem; else from a region map. Without any, reads work, but nothing can be
scanned.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from abi.errors import KhoError, UnreadableError
from inspector.memory import notes, raw
from inspector.memory.base import (
    MemoryFault,
    PageState,
    PhysicalMemory,
    U8Array,
    U64Array,
)
from inspector.memory.regions import Regions
from inspector.memory.segments import Segment, SegmentTable, from_regions, from_segments

if TYPE_CHECKING:
    import drgn

_PAGE = 4096
_PIECE = 1 << 20
IOMEM = Path("/proc/iomem")


class ProgramMemory(PhysicalMemory):
    """Physical memory that drgn reads. The program stays the caller's."""

    kind = "program"

    def __init__(
        self,
        program: drgn.Program,
        *,
        region_map: str | os.PathLike[str] | None = None,
        regions: list[Segment] | None = None,
    ) -> None:
        """Raises UnreadableError if drgn is missing or the object is not a Program."""
        drgn = import_drgn()
        if not isinstance(program, drgn.Program):
            raise UnreadableError(f"cannot open a {type(program).__name__} as an image")
        self._program = program
        self._fault = drgn.FaultError
        self.notes = {}
        self._native: PhysicalMemory | None = None
        if region_map is not None:
            regions = raw.read_region_map(Path(region_map))
        elif regions is None and program.flags & drgn.ProgramFlags.IS_LIVE:
            regions = ram_of_this_host()
        elif regions is None:
            self._native = _native(getattr(program, "core_dump_path", None))
        if self._native is not None:
            self.notes = dict(self._native.notes)
            self._table: SegmentTable = from_regions(self._native.regions)
        else:
            self._table = from_segments(regions or [])
        self._listed = self._native is not None or regions is not None
        vmcoreinfo = _vmcoreinfo(program)
        self.notes |= vmcoreinfo
        self.page_size = notes.page_size_of(self.notes)
        platform = program.platform
        if platform is not None:
            self.machine = {"X86_64": "x86_64", "AARCH64": "aarch64", "RISCV64": "riscv64"}.get(
                platform.arch.name
            )

    @property
    def regions(self) -> Regions:
        """Ascending, disjoint regions in a state other than OUTSIDE, as far as known."""
        return self._table.regions()

    def read(self, pa: int, size: int) -> bytes:
        """``size`` bytes at ``pa``; raises MemoryFault naming the first missing byte."""
        if size <= 0:
            return b""
        if self._listed:
            missing = self._table.first_missing(pa, size)
            if missing is not None:
                raise MemoryFault(*missing)
        elif not 0 <= pa <= pa + size <= 1 << 64:
            raise MemoryFault(pa, PageState.OUTSIDE)
        parts: list[bytes] = []
        at, end = pa, pa + size
        while at < end:  # page by page at first, so that nothing is allocated in vain
            length = min(_PIECE if parts else _PAGE - at % _PAGE, end - at)
            try:
                parts.append(self._program.read(at, length, True))
            except self._fault as error:
                place = getattr(error, "address", at)
                state = PageState.EXCLUDED if self._listed else PageState.OUTSIDE
                raise MemoryFault(place if at <= place < end else at, state) from None
            except (ValueError, OverflowError):
                raise MemoryFault(at, PageState.OUTSIDE) from None
            at += length
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def gather(self, addresses: U64Array, size: int, out: U8Array | None = None) -> U8Array:
        """Read ``size`` bytes at each address into an ``(n, size)`` array."""
        n = len(addresses)
        rows = np.empty((n, size), np.uint8) if out is None else out[:n]
        for row, pa in enumerate(np.asarray(addresses).tolist()):
            try:
                rows[row] = np.frombuffer(self.read(pa, size), np.uint8)
            except MemoryFault:
                rows[row] = 0
        return rows

    def states(self, addresses: U64Array, size: int = 1) -> U8Array:
        """State of ``size`` bytes at each address; by reading, if no regions are known."""
        addresses = np.asarray(addresses, np.uint64)
        if self._listed:
            return self._table.states(addresses, size)
        states = np.zeros(len(addresses), np.uint8)
        for row, pa in enumerate(addresses.tolist()):
            pages = range(pa & -_PAGE, pa + size, _PAGE)
            try:
                for page in pages:
                    self.read(max(page, pa), 1)
            except MemoryFault:
                continue
            states[row] = PageState.PRESENT
        return states

    def extents(self) -> Iterator[tuple[int, memoryview]]:
        """Present memory in pieces of at most 1 MiB; what cannot be read is skipped."""
        for region in self.regions:
            if region.state is not PageState.PRESENT:
                continue
            at = region.start
            while at < region.end:
                length = min(_PIECE, region.end - at)
                try:
                    yield at, memoryview(self.read(at, length))
                except MemoryFault:
                    yield from self._pages(at, length)
                at += length

    def _pages(self, pa: int, size: int) -> Iterator[tuple[int, memoryview]]:
        for at in range(pa, pa + size, _PAGE):
            try:
                yield at, memoryview(self.read(at, min(_PAGE, pa + size - at)))
            except MemoryFault:
                continue

    def close(self) -> None:
        """Close what was opened to learn the regions."""
        if self._native is not None:
            self._native.close()


def import_drgn() -> ModuleType:
    """The drgn module. Raises UnreadableError that names the extra if it is missing."""
    try:
        import drgn
    except ImportError:
        raise UnreadableError(
            "this needs drgn, which is not installed: pip install 'kho-inspector[drgn]'"
        ) from None
    module: ModuleType = drgn
    return module


def ram_of_this_host() -> list[Segment] | None:
    """System RAM of /proc/iomem, or None if the addresses are hidden."""
    try:
        return raw.parse_region_map(IOMEM.read_text(), str(IOMEM))
    except (OSError, KhoError):
        return None


def _native(path: str | None) -> PhysicalMemory | None:
    """The program's core dump read by ourselves, if we can."""
    if not path or path == "/proc/kcore":
        return None
    from inspector.memory.probe import open as open_memory

    try:
        memory = open_memory(path)
    except KhoError:
        return None
    if memory.kind == "raw":
        memory.close()
        return None
    return memory


def _vmcoreinfo(program: drgn.Program) -> dict[str, str]:
    try:
        return notes.parse_pairs(program["VMCOREINFO"].string_())
    except Exception:  # drgn raises many kinds for a program without one
        return {}
