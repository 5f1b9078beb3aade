"""The machine a simulated kernel runs on: RAM, scratch, firmware's areas, page allocators.

What memblock does at early boot is done here: regions of ``reserve_mem=`` and the scratch
areas are cut off the top of memory, the rest goes to one page allocator per NUMA node.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from abi.errors import UsageError
from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine.allocator import PageAllocator
from inspector.kernel.machine.frames import FrameSet, U64Array, runs
from inspector.kernel.machine.hardware import Hardware
from inspector.memory.sparse import SparseMemory

MiB = 1 << 20
GiB = 1 << 30

#: Order of the largest block of the page allocator, by page size.
MAX_ORDERS = {0x1000: 10, 0x4000: 11, 0x10000: 13}
#: Alignment of areas for the contiguous memory allocator, by page size.
CMA_ALIGNMENT = {0x1000: 2 * MiB, 0x4000: 32 * MiB, 0x10000: 512 * MiB}
#: Physical addresses that 32-bit devices reach: where "low" memory ends.
LOW_END = 1 << 32
ARCHITECTURES = ("x86_64", "aarch64")


@dataclass(frozen=True, slots=True)
class Ram:
    """Memory ``[start, start + size)`` of one NUMA node, in bytes."""

    start: int
    size: int
    node: int = 0

    @property
    def end(self) -> int:
        """First byte behind."""
        return self.start + self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """What a machine is made of.

    ``scratch`` are sizes in bytes, ``low, global, per-node`` as of ``kho_scratch=``; None
    chooses them by the size of memory. ``scratch_areas`` (address, size) replaces the whole
    array. ``firmware`` are areas nobody allocates from. ``seed``, ``fragmentation`` and
    ``shuffle`` are those of :class:`~inspector.kernel.machine.allocator.PageAllocator`.
    ``huge_pages`` are the pools of huge pages, (order, pages).
    """

    ram: tuple[Ram, ...]
    architecture: str = "x86_64"
    page_size: int = 4096
    scratch: tuple[int, int, int] | None = None
    scratch_areas: tuple[tuple[int, int], ...] = ()
    firmware: tuple[tuple[int, int], ...] = ((0, MiB),)
    seed: int = 0
    fragmentation: float = 0.0
    shuffle: bool = False
    hardware: Hardware = field(default_factory=Hardware)
    huge_pages: tuple[tuple[int, int], ...] = ()

    def check(self) -> None:
        """Raises UsageError for a machine that cannot be."""
        if self.architecture not in ARCHITECTURES:
            raise UsageError(f"no architecture {self.architecture!r}: {', '.join(ARCHITECTURES)}")
        if self.page_size not in MAX_ORDERS:
            raise UsageError(f"pages of {self.page_size} bytes: no machine with KHO has them")
        if self.architecture == "x86_64" and self.page_size != 4096:
            raise UsageError("x86_64 has pages of 4096 bytes")
        if not self.ram:
            raise UsageError("a machine needs memory")
        if not 0 <= self.fragmentation < 1:
            raise UsageError("fragmentation is at least 0 and below 1")
        end = 0
        for area in sorted(self.ram, key=lambda r: r.start):
            if area.start % self.page_size or area.size % self.page_size or area.size <= 0:
                raise UsageError(f"RAM at {area.start:#x}: not whole pages")
            if area.start < end:
                raise UsageError(f"RAM at {area.start:#x} overlaps other RAM")
            end = area.end
        if end > 1 << 52:
            raise UsageError("RAM ends above 2^52")
        orders = [order for order, _ in self.huge_pages]
        if len(set(orders)) < len(orders):
            raise UsageError("two pools of huge pages have the same size")
        if any(not 0 < order < 32 for order in orders):
            raise UsageError("huge pages are larger than a page")
        self.hardware.check()


def small_machine(
    size: int = 512 * MiB, *, architecture: str = "x86_64", page_size: int = 4096, **more: object
) -> MachineSpec:
    """One node; memory starts at 0 on x86-64 and at 1 GiB on arm64, as in the lab."""
    start = GiB if architecture == "aarch64" else 0
    firmware = ((start, MiB),)
    return MachineSpec(
        ram=(Ram(start, size),),
        architecture=architecture,
        page_size=page_size,
        **({"firmware": firmware} | more),  # type: ignore[arg-type]
    )


class NoRoom(UsageError):
    """Memory has no room for a region of ``size`` bytes that is to be reserved."""

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


class EarlyMemory:
    """The boot-time allocator: free ranges, served from the top."""

    def __init__(self, ram: Iterable[Ram], taken: Iterable[tuple[int, int]]) -> None:
        self.free = [(r.start, r.end, r.node) for r in sorted(ram, key=lambda r: r.start)]
        for start, size in taken:
            self.take(start, start + size)

    def take(self, start: int, end: int) -> None:
        """Remove ``[start, end)`` from what is free."""
        rest = []
        for low, high, node in self.free:
            if end <= low or start >= high:
                rest.append((low, high, node))
                continue
            if low < start:
                rest.append((low, start, node))
            if end < high:
                rest.append((end, high, node))
        self.free = rest

    def alloc(
        self, size: int, align: int, *, limit: int = 1 << 64, node: int | None = None
    ) -> int | None:
        """The highest free range, or None."""
        for low, high, where in reversed(self.free):
            if node is not None and where != node:
                continue
            start = (min(high, limit) - size) // align * align
            if start >= low:
                self.take(start, start + size)
                return start
        return None


class Machine:
    """A machine with a kernel on it: memory, scratch, the allocators of the nodes.

    ``reserve`` are sizes and alignments to cut off before scratch is laid out; their
    addresses are in :attr:`reserved`, in the same order. ``memory`` and ``held`` make a machine
    that goes on: what is in memory, and the frames that are in use already.
    """

    def __init__(
        self,
        spec: MachineSpec,
        *,
        scratch_align: int,
        nodes_online: bool = False,
        reserve: Sequence[tuple[int, int]] = (),
        memory: SparseMemory | None = None,
        held: FrameSet | None = None,
    ) -> None:
        spec.check()
        self.spec = spec
        self.page_size = spec.page_size
        self.page_shift = spec.page_size.bit_length() - 1
        self.max_order = MAX_ORDERS[spec.page_size]
        self.memory = memory or SparseMemory(
            [(r.start, r.size) for r in _joined(spec.ram)],
            page_size=spec.page_size,
            machine=spec.architecture,
        )
        self.nodes = tuple(sorted({r.node for r in spec.ram}))
        early = EarlyMemory(spec.ram, spec.firmware)
        for base, size in spec.scratch_areas:
            early.take(base, base + size)
        self.reserved = tuple(self._reserve(early, size, align) for size, align in reserve)
        self.scratch = spec.scratch_areas or self._lay_out_scratch(early, scratch_align)
        self._node_starts = np.array([r.start >> self.page_shift for r in _sorted(spec.ram)])
        self._node_numbers = np.array([r.node for r in _sorted(spec.ram)])
        shift = self.page_shift
        busy = np.empty(0, np.uint64) if held is None else held.frames()
        self.allocators = {
            node: PageAllocator(
                [
                    gap
                    for low, high, where in early.free
                    if where == node
                    for gap in _gaps(-(-low >> shift), high >> shift, busy)
                ],
                seed=spec.seed + 7919 * node,
                fragmentation=spec.fragmentation,
                shuffle=spec.shuffle,
                max_order=self.max_order,
            )
            for node in self.nodes
        }
        for first, length in zip(*runs(busy), strict=True):
            self._claim(int(first), int(length))

    def _claim(self, first: int, count: int) -> None:
        """Count frames that are in use already as allocated, by node."""
        while count:
            node = self.node_of(first)
            at = int(np.searchsorted(self._node_starts, first, "right"))
            border = int(self._node_starts[at]) if at < len(self._node_starts) else first + count
            here = min(count, border - first)
            self.allocators[node].claim([(first, here)])
            first, count = first + here, count - here

    def _reserve(self, early: EarlyMemory, size: int, align: int) -> int:
        start = early.alloc(size, max(align, self.page_size))
        if start is None:
            raise NoRoom(f"no room for a reserved region of {size:#x} bytes", size)
        return start

    def _lay_out_scratch(self, early: EarlyMemory, align: int) -> tuple[tuple[int, int], ...]:
        low, anywhere, per_node = self.spec.scratch or self._default_scratch(align)
        areas = []
        wanted: list[tuple[int, int, int | None]] = [
            (low, LOW_END, None),
            (anywhere, 1 << 64, None),
        ]
        wanted += [(per_node, 1 << 64, node) for node in self.nodes]
        for size, limit, node in wanted:
            size = -(-size // align) * align
            start = early.alloc(size, align, limit=limit, node=node)
            if start is None:
                raise UsageError(f"no room for a scratch area of {size:#x} bytes")
            areas.append((start, size))
        return tuple(areas)

    def _default_scratch(self, align: int) -> tuple[int, int, int]:
        total = sum(r.size for r in self.spec.ram) // len(self.nodes)
        each = max(align, min(64 * MiB, total // 8))
        return each, 0, each

    # -- pages -------------------------------------------------------------------------

    def node_of(self, frame: int) -> int:
        """The NUMA node of a page frame."""
        at = int(np.searchsorted(self._node_starts, frame, "right")) - 1
        return int(self._node_numbers[at])

    def alloc(self, order: int = 0, content: bytes = b"", *, node: int | None = None) -> int:
        """The first frame of a block that holds ``content`` and zeros. Raises ENOMEM."""
        for where in self.nodes if node is None else (node,):
            try:
                frame = self.allocators[where].alloc(order)
            except KernelErrno:
                continue
            self.memory.fill(frame << self.page_shift, self.page_size << order, content)
            return frame
        raise KernelErrno("ENOMEM", f"no free block of order {order}")

    def alloc_page(self) -> int:
        """The physical address of a zeroed page. Raises ENOMEM."""
        return self.alloc() << self.page_shift

    def alloc_many(
        self, count: int, order: int = 0, *, node: int | None = None, zero: bool = True
    ) -> U64Array:
        """First frames of blocks. Raises ENOMEM, taking nothing."""
        for where in self.nodes if node is None else (node,):
            try:
                frames = self.allocators[where].alloc_many(count, order)
            except KernelErrno:
                continue
            if zero:
                self.zero_frames(frames, order)
            return frames
        raise KernelErrno("ENOMEM", f"no {count} free blocks of order {order}")

    def zero_frames(self, frames: U64Array, order: int = 0) -> None:
        """Make blocks present and zero."""
        if not len(frames):
            return
        step = np.uint64(1 << order)
        count = len(frames)
        if count == 1 or (
            int(frames[-1]) - int(frames[0]) == (count - 1) << order
            and (frames[1:] > frames[:-1]).all()
        ):
            self.memory.mark_zero(
                int(frames[0]) << self.page_shift, count << (order + self.page_shift)
            )
            return
        cut = np.flatnonzero(frames[1:] != frames[:-1] + step) + 1
        edges = [0, *cut.tolist(), len(frames)]
        for a, b in itertools.pairwise(edges):
            self.memory.mark_zero(
                int(frames[a]) << self.page_shift, (b - a) << (order + self.page_shift)
            )

    def free(self, frame: int, order: int = 0) -> None:
        """Give a block back; its content stays until somebody writes there."""
        self.allocators[self.node_of(frame)].free(frame, order)

    def free_page(self, pa: int) -> None:
        """Give a page back."""
        self.free(pa >> self.page_shift)

    def free_many(self, frames: U64Array, order: int = 0) -> None:
        """Give blocks back."""
        for frame in frames.tolist():
            self.free(frame, order)

    @property
    def pages_out(self) -> int:
        """How many pages are allocated."""
        return sum(len(a.allocated) for a in self.allocators.values())

    def in_scratch(self, start: int, end: int) -> bool:
        """Whether bytes ``[start, end)`` touch a scratch area."""
        return any(start < base + size and base < end for base, size in self.scratch)


def _gaps(first: int, end: int, busy: U64Array) -> list[tuple[int, int]]:
    """The parts of frames ``[first, end)`` that are not among ``busy``, which ascend."""
    low, high = np.searchsorted(busy, np.array([first, end], np.uint64)).tolist()
    starts, lengths = runs(busy[low:high])
    gaps = []
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        if start > first:
            gaps.append((first, start))
        first = start + length
    if first < end:
        gaps.append((first, end))
    return gaps


def _sorted(ram: Iterable[Ram]) -> list[Ram]:
    return sorted(ram, key=lambda r: r.start)


def _joined(ram: Iterable[Ram]) -> list[Ram]:
    """Ranges that touch, joined, whatever their node."""
    out: list[Ram] = []
    for area in _sorted(ram):
        if out and out[-1].end == area.start:
            out[-1] = Ram(out[-1].start, out[-1].size + area.size, out[-1].node)
        else:
            out.append(area)
    return out
