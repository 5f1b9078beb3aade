"""Huge pages: pools, memory files made of them, and what preserves both (never in a release).

The pools are an FLB, of which files are users. Nothing is known of the files of the first
form, so a kernel with it has no handler for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from abi.errors import UsageError
from abi.hugetlb import HUGETLB_SER_MAX_HSTATES
from abi.registry import Generation
from abi.schema import Struct, resolve
from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine import Machine
from inspector.kernel.outgoing import folio_array
from inspector.kernel.outgoing.file_handler import FileHandler, Flb
from inspector.kernel.outgoing.kho import Kho, VmallocArea, VmallocDescriptor
from inspector.kernel.outgoing.luo import Session
from inspector.kernel.outgoing.memfd import Memfd
from inspector.kernel.record import pack


@dataclass(slots=True)
class Pool:
    """The huge pages of one order; ``used`` of ``pages`` belong to files."""

    order: int
    pages: int
    used: int = 0


class HugeMemfd(Memfd):
    """A memory file of huge pages of one pool, which it takes page by page as it is filled."""

    def __init__(self, machine: Machine, pool: Pool, name: str = "memfd") -> None:
        super().__init__(machine, name)
        self.pool = pool

    @property
    def huge_page(self) -> int:
        """Bytes of one of its pages."""
        return self.machine.page_size << self.pool.order

    def truncate(self, size: int) -> None:
        """Set the size. Raises EINVAL unless it is whole huge pages, EPERM."""
        if size % self.huge_page:
            raise KernelErrno("EINVAL", f"{self.name}: {size:#x} bytes are no whole huge pages")
        if size < self.size:
            raise UsageError(f"{self.name}: shrinking a file of huge pages is not modelled")
        super().truncate(size)

    def _fill(self, first: int, last: int) -> None:
        order = self.pool.order
        step = 1 << order
        first, last = first // step * step, -(-last // step) * step
        for low, high in self._holes(first, last):
            if self.frozen:
                raise KernelErrno("EPERM", f"{self.name}: frozen while preserved")
            count = (high - low) >> order
            if self.pool.used + count > self.pool.pages:
                raise KernelErrno("ENOMEM", f"the pool of order {order} has no page left")
            self.adopt(low, self.machine.alloc_many(count, order), order)
            self.pool.used += count

    def close(self) -> None:
        """Give all pages back to the pool."""
        self.pool.used -= sum(len(extent.frames) for extent in self.extents)
        super().close()


class HugetlbFlb(Flb):
    """The pools, handed over as long as files of huge pages are."""

    def __init__(self, kho: Kho, generation: Generation, pools: Mapping[int, Pool]) -> None:
        super().__init__(generation.strings[0])
        self.kho = kho
        page = kho.machine.page_size
        self.layout: Struct = resolve(generation.layouts["hugetlb_ser"], page)
        self.hstate: Struct = resolve(generation.layouts["hugetlb_hstate_ser"], page)
        self.pools = pools

    def preserve(self) -> int:
        """How many pages of each order there are. Raises ENOSPC, ENOMEM."""
        if len(self.pools) > HUGETLB_SER_MAX_HSTATES:
            raise KernelErrno("ENOSPC", f"{len(self.pools)} pools of huge pages")
        ser = self.kho.alloc_preserve(self.layout.size)
        body = bytearray(pack(self.layout, {"nr_hstates": len(self.pools)}))
        at = self.layout.field("hstates").offset
        for pool in self.pools.values():
            values = {"nr_pages": pool.pages, "order": pool.order}
            body[at : at + self.hstate.size] = pack(self.hstate, values)
            at += self.hstate.size
        self.kho.machine.memory.write(ser, bytes(body))
        return ser

    def unpreserve(self, data: int) -> None:
        """Give the page back."""
        self.kho.unpreserve_free(data)


@dataclass(slots=True)
class HugeMemfdState:
    """What preserving a file made."""

    ser: int
    area: VmallocArea | None
    descriptor: VmallocDescriptor


class HugeMemfdHandler(FileHandler):
    """Preserves memory files of huge pages."""

    def __init__(self, kho: Kho, generation: Generation, flb: HugetlbFlb) -> None:
        self.kho = kho
        self.generation = generation
        self.compatible = generation.file_strings[0]
        self.flbs = (flb,)
        self.layout: Struct = resolve(generation.layouts["hugemfd_ser"], kho.machine.page_size)
        self.states: dict[int, HugeMemfdState] = {}

    def can_preserve(self, file: Any) -> bool:
        """Memory files of huge pages only."""
        return isinstance(file, HugeMemfd)

    def preserve(self, file: HugeMemfd, session: Session, token: int) -> int:
        """Fill the file and preserve its pages. Raises ENOMEM (also: the pool is empty)."""
        file.populate()
        ser = self.kho.alloc_preserve(self.layout.size)
        array = folio_array.entries(file.extents, unit=file.pool.order)
        try:
            area, descriptor = folio_array.preserve(self.kho, file.extents, array)
        except KernelErrno:
            self.kho.unpreserve_free(ser)
            raise
        file.frozen = True
        self.states[id(file)] = HugeMemfdState(ser, area, descriptor)
        self._write(file)
        return ser

    def _write(self, file: HugeMemfd) -> None:
        state = self.states[id(file)]
        values = {
            "size": file.size,
            "pos": file.pos,
            "nr_folios": sum(len(extent.frames) for extent in file.extents),
            "folios": state.descriptor.values,
            "order": file.pool.order,
        }
        self.kho.machine.memory.write(state.ser, pack(self.layout, values))

    def freeze(self, file: HugeMemfd, data: int) -> int:
        """Record the position as it is now."""
        self._write(file)
        return data

    def unpreserve(self, file: HugeMemfd, data: int) -> None:
        """Undo; the file lives on."""
        state = self.states.pop(id(file))
        folio_array.unpreserve(self.kho, file.extents, state.area, state.descriptor)
        self.kho.unpreserve_free(state.ser)
        file.frozen = False
