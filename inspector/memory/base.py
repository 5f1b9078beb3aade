"""Physical memory as an image holds it: the contract of every backend.

A page is *present*, *excluded* (RAM, but left out of the dump) or *outside* RAM. The
three are never confused with zeros, and never with each other.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from abi.errors import IncompleteError

if TYPE_CHECKING:
    from inspector.memory.regions import Regions

U8Array = npt.NDArray[np.uint8]
U64Array = npt.NDArray[np.uint64]


class PageState(enum.IntEnum):
    """What an image knows of a physical address."""

    OUTSIDE = 0
    EXCLUDED = 1
    PRESENT = 2


class MemoryFault(IncompleteError):
    """A read met an address that the image does not hold.

    ``address`` is the first byte that is missing, ``state`` why.
    """

    def __init__(self, address: int, state: PageState) -> None:
        why = "left out of the image" if state is PageState.EXCLUDED else "outside memory"
        super().__init__(f"physical address {address:#x} is {why}")
        self.address = address
        self.state = state


class Region(NamedTuple):
    """A range of physical memory, ``[start, start + size)`` bytes, in one state."""

    start: int
    size: int
    state: PageState = PageState.PRESENT

    @property
    def end(self) -> int:
        """First byte behind the region."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class Span:
    """Present memory ``[start, end)`` around an address, for loops that follow pointers.

    ``data[i]`` is the byte at ``start + i``, ``words[i]`` the little-endian 64-bit word at
    ``start + 8 * i``; ``start`` and ``end`` are multiples of 8. Both views are read only.
    """

    start: int
    end: int
    data: memoryview
    words: memoryview


class PhysicalMemory(ABC):
    """Read access to the physical memory of one machine at one moment."""

    #: What the container calls itself: ``raw``, ``elf``, ``kdump``, ``sparse``, ...
    kind: str = "?"
    #: Page size of the machine if the container records it, else None.
    page_size: int | None = None
    #: Machine, if the container records it: ``x86_64``, ``aarch64``, ``riscv64``.
    machine: str | None = None
    #: Kernel release and other notes of the container (VMCOREINFO pairs, utsname).
    notes: dict[str, str]
    #: Root FDTs that a running kernel itself names, or did: address -> its side of a hand-over,
    #: ``in`` or ``out``.
    kernel_roots: Mapping[int, str] = {}
    #: Why a running kernel has no root FDT, where it tells.
    why_no_root: str = ""
    #: (address, size) of the scratch areas, where a running kernel lists them, or did.
    kernel_scratch: tuple[tuple[int, int], ...] = ()
    #: Where decoding costs: reading this many bytes at the start of a page is cheap.
    scan_heads: int = 0

    @property
    @abstractmethod
    def regions(self) -> Regions:
        """Ascending, disjoint regions in a state other than OUTSIDE."""

    @abstractmethod
    def read(self, pa: int, size: int) -> bytes:
        """``size`` bytes at physical address ``pa``.

        Raises :class:`MemoryFault` naming the first missing byte. Never allocates
        ``size`` bytes before it knows that they are present.
        """

    @abstractmethod
    def gather(self, addresses: U64Array, size: int, out: U8Array | None = None) -> U8Array:
        """Read ``size`` bytes at each address into an ``(n, size)`` array.

        Rows that are not wholly present are zero; ask :meth:`states` which. ``out``, if
        given, is an ``(>= n, size)`` C-contiguous buffer; its first n rows are returned.
        """

    def batches(self, addresses: U64Array, size: int, at_once: int) -> Iterator[U8Array]:
        """:meth:`gather`, ``at_once`` addresses at a time; the buffer is used again and again."""
        buffer = np.empty((min(at_once, len(addresses)), size), np.uint8)
        for at in range(0, len(addresses), at_once):
            yield self.gather(addresses[at : at + at_once], size, buffer)

    @abstractmethod
    def states(self, addresses: U64Array, size: int = 1) -> U8Array:
        """State of ``size`` bytes (less than 2^32) at each address, as PageState values.

        The lowest state found in the range counts: PRESENT means wholly present.
        """

    @abstractmethod
    def extents(self) -> Iterator[tuple[int, memoryview]]:
        """Present memory as (physical address, bytes) pieces, ascending.

        Pieces are read-only, zero copy where the container allows it, start at a multiple
        of 4096 where the container's pages do, and skip holes of sparse files, so that a
        scan costs what the image really holds. Present memory that no piece covers is zero.
        A piece is valid until the next one is taken, unless the caller holds it.
        """

    def distinct(self) -> Iterator[tuple[int, memoryview]]:
        """As :meth:`extents`, for searches: what lies in the container once comes once.

        Where several addresses show the same bytes of the container (no tool writes such an
        image), only the lowest does here. An image is never searched for longer than its
        container is large this way.
        """
        return self.extents()

    def heads(self) -> Iterator[U64Array]:
        """Where ``scan_heads``: addresses of the pages of :meth:`distinct`, not decoded yet."""
        return iter(())

    @property
    def aliased(self) -> bool:
        """Whether a search leaves out, or has left out, what is not zeros."""
        return False

    def zeros(self, pa: int, size: int) -> tuple[bool, int]:
        """Whether memory at ``pa`` is zero, known without a look at it, and for how many of
        ``size`` bytes this answer holds, at least. What is missing is not known to be zero.
        """
        return False, size

    def release(self) -> None:
        """Give back what a scan brought in, if it can be had again; no view is harmed."""

    def state(self, pa: int, size: int = 1) -> PageState:
        """State of ``size`` bytes at ``pa``; the scalar form of :meth:`states`."""
        if pa < 0 or pa + size > 1 << 64:
            return PageState.OUTSIDE
        return PageState(int(self.states(np.array([pa], np.uint64), size)[0]))

    def array(self, pa: int, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
        """``count`` items of a numpy dtype at ``pa``, read only. Raises MemoryFault."""
        return np.frombuffer(self.read(pa, dtype.itemsize * count), dtype, count)

    def span(self, pa: int) -> Span | None:
        """Present memory around ``pa``, as much as costs nothing, or None if there is none.

        For pointer chases: fetch a span, stay in it as long as the pointer does.
        """
        page = pa & ~4095
        try:
            data = memoryview(self.read(page, 4096))
        except MemoryFault:
            return None
        return Span(page, page + 4096, data, data.cast("Q"))

    def u64(self, pa: int) -> int:
        """The little-endian 64-bit word at ``pa``. Raises MemoryFault."""
        return int.from_bytes(self.read(pa, 8), "little")

    def close(self) -> None:
        """Release the file. Views handed out stay valid as long as they are held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()
