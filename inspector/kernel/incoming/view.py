"""Memory as a booting kernel meets it: readable, unknown to us, or not there at all.

A kernel that follows a pointer out of RAM dies; one that follows a pointer to a page which the
image merely lacks does something that cannot be told. :class:`View` keeps the two apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from inspector.memory.base import MemoryFault, PageState, Region, U8Array, U64Array
from inspector.memory.sparse import SparseMemory

#: Memory comes and goes in sections of this size: their struct pages exist as a whole.
SECTION = {0x1000: 128 << 20, 0x4000: 128 << 20, 0x10000: 512 << 20}
_ADDRESS_BITS = 52


class Absent(Exception):
    """The image lacks a page that the kernel would read.

    ``why`` says why it is not read although it is there; empty if it is not.
    """

    def __init__(self, address: int, why: str = "") -> None:
        super().__init__(why or f"page {address:#x} is not in the image")
        self.address = address
        self.why = why


class PageFault(Exception):
    """The kernel follows a pointer out of memory."""

    def __init__(self, address: int) -> None:
        super().__init__(f"{address:#x} is outside memory")
        self.address = address


class View:
    """A kernel's view of the overlaid image.

    ``ram`` is the memory map the hand-over tells, None if nothing does: then what the image
    lacks counts as absent, never as outside.
    """

    def __init__(self, memory: SparseMemory, page_size: int, ram: Sequence[Region] | None) -> None:
        self.memory = memory
        self.page_size = page_size
        self.page_shift = page_size.bit_length() - 1
        self.ram = tuple(ram) if ram is not None else None
        self._lows, self._highs = _intervals(self.ram or ())

    def read(self, pa: int, size: int) -> bytes:
        """Bytes at ``pa``. Raises Absent, PageFault."""
        try:
            return self.memory.read(pa, size)
        except MemoryFault as fault:
            raise self._refusal(fault.address) from None

    def _refusal(self, pa: int) -> Absent | PageFault:
        return Absent(pa) if self.in_ram(pa) is not False else PageFault(pa)

    def in_ram(self, pa: int) -> bool | None:
        """Whether ``pa`` is memory; None if nothing tells."""
        if pa >> _ADDRESS_BITS:
            return False
        if self.memory.state(pa) is not PageState.OUTSIDE:
            return True
        if self.ram is None:
            return None
        return bool(self.inside(np.array([pa], np.uint64))[0])

    def inside(self, addresses: U64Array, sizes: U64Array | int = 1) -> npt.NDArray[np.bool_]:
        """Whether each range lies in RAM as the memory map tells it; all do if none tells."""
        sizes = np.asarray(sizes, np.uint64)
        end = addresses + sizes
        sane = (end >> np.uint64(_ADDRESS_BITS) == 0) & (end >= addresses)
        if self.ram is None or not len(self._lows):
            return np.asarray(sane)
        i = np.searchsorted(self._lows, addresses, side="right") - 1
        return np.asarray(sane & (i >= 0) & (end <= self._highs[np.maximum(i, 0)]))

    def near_ram(self, pa: int) -> bool:
        """Whether ``pa`` lies in a section of memory that is partly RAM."""
        unit = SECTION[self.page_size]
        start, end = pa // unit * unit, (pa // unit + 1) * unit
        return bool(((self._lows < end) & (self._highs > start)).any())

    def gather(self, addresses: U64Array, size: int) -> U8Array:
        """``size`` bytes at each address. Raises Absent, PageFault for the first that fails."""
        if len(addresses) == 1:
            return np.frombuffer(self.read(int(addresses[0]), size), np.uint8)[None]
        states = self.memory.states(addresses, size)
        bad = np.flatnonzero(states != PageState.PRESENT)
        if len(bad):
            self.read(int(addresses[bad[0]]), size)
        return self.memory.gather(addresses, size)

    def present(self, pa: int, size: int) -> bool:
        """Whether the image holds all of a range."""
        return self.memory.state(pa, size) is PageState.PRESENT


def _intervals(regions: Sequence[Region]) -> tuple[U64Array, U64Array]:
    lows: list[int] = []
    highs: list[int] = []
    for region in sorted(regions, key=lambda r: r.start):
        if highs and region.start <= highs[-1]:
            highs[-1] = max(highs[-1], region.end)
        else:
            lows.append(region.start)
            highs.append(region.end)
    return np.array(lows, np.uint64), np.array([min(h, (1 << 64) - 1) for h in highs], np.uint64)
