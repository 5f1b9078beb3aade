"""The SMMUv3 driver: a two-level stream table with stage-2 entries, and what is preserved of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from abi.dma_alloc import dma_alloc_ser, dma_alloc_ser_a
from abi.smmuv3 import LINUX_SPLIT, STE_SIZE, SteConfig, stream_table_entry
from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine import Machine
from inspector.kernel.machine.hardware import PciDevice, Unit
from inspector.kernel.outgoing.inherited import InheritedTables
from inspector.kernel.outgoing.iommu import Domain
from inspector.kernel.outgoing.kho import Kho
from inspector.kernel.record import pack

#: TG field of S2VTCR by page size, and start level field offset.
_TG = {0x1000: 0, 0x4000: 2, 0x10000: 1}
_SPAN = LINUX_SPLIT + 1
#: OAS code 4: 44 bits of output address.
_PS_44_BITS = 4


class Smmuv3Unit:
    """One SMMUv3 and its stream table, which may be that of the kernel before.

    ``listed`` selects the page-list form of DMA handles.
    """

    def __init__(
        self,
        machine: Machine,
        kho: Kho,
        unit: Unit,
        *,
        listed: bool,
        inherited: InheritedTables | None = None,
    ) -> None:
        self.machine = machine
        self.kho = kho
        self.unit = unit
        self.listed = listed
        l1_entries = 1 << max(unit.stream_bits - LINUX_SPLIT, 0)
        self.l1_size = max(l1_entries * 8, machine.page_size)
        self.l1 = inherited.root if inherited is not None else self._alloc(self.l1_size)
        self.l1_entries = l1_entries
        self.l2: dict[int, int] = {}
        self.l2_size = max(STE_SIZE << LINUX_SPLIT, machine.page_size)
        self._next_vmid = max(1, unit.first_domain_id)
        self._free_vmids: list[int] = []
        self._reserved_vmids: set[int] = set()
        self.attached: dict[int, Domain] = {}
        self._devices: dict[int, PciDevice] = {}
        self._handles: list[tuple[int, int, int]] = []
        #: Addresses of the arrays of handles of level-2 tables.
        self.handle_arrays: list[int] = []
        if inherited is not None:
            self._inherit(inherited)

    def _inherit(self, tables: InheritedTables) -> None:
        """Go on with the tables there are: every stream has left its old domain."""
        memory = self.machine.memory
        memory.mark_zero(self.l1, self.l1_size)
        for index, table in tables.contexts.items():
            memory.mark_zero(table, self.l2_size)
            memory.write(self.l1 + 8 * index, (table | _SPAN).to_bytes(8, "little"))
            self.l2[index] = table
        self._reserved_vmids = set(tables.ids)

    def settle(self) -> None:
        """The old domains are gone: the VMIDs that they had can be given out again."""
        self._free_vmids += [v for v in self._reserved_vmids if 0 < v < self._next_vmid]
        self._reserved_vmids.clear()

    def _alloc(self, size: int) -> int:
        order = (size // self.machine.page_size - 1).bit_length()
        return self.machine.alloc(order) << self.machine.page_shift

    @property
    def strtab_base_cfg(self) -> int:
        """STRTAB_BASE_CFG: two levels, split 8."""
        return 1 << 16 | LINUX_SPLIT << 6 | self.unit.stream_bits

    @property
    def strtab_base(self) -> int:
        """STRTAB_BASE: the table, read allocate."""
        return self.l1 | 1 << 62

    def entry_address(self, device: PciDevice) -> int:
        """Where the stream table entry of a device lies. Raises ERANGE."""
        index, slot = device.bdf >> LINUX_SPLIT, device.bdf & ((1 << LINUX_SPLIT) - 1)
        if index >= self.l1_entries:
            raise KernelErrno("ERANGE", f"stream {device.bdf:#x} is beyond the stream table")
        table = self.l2.get(index)
        if table is None:
            table = self.l2[index] = self._alloc(self.l2_size)
            self.machine.memory.write(self.l1 + 8 * index, (table | _SPAN).to_bytes(8, "little"))
        return table + slot * STE_SIZE

    def probe(self, device: PciDevice) -> None:
        """What the driver does when it meets a device: its level-2 table comes to be."""
        if device.bdf >> LINUX_SPLIT < self.l1_entries:
            self.entry_address(device)

    # -- attaching ---------------------------------------------------------------------------

    def attach(self, device: PciDevice, domain: Domain) -> None:
        """Point a stream at a domain's stage-2 table. Raises ENOSPC, ERANGE."""
        at = self.entry_address(device)
        held = domain.attached.get(self.unit.base)
        if held is None:
            held = domain.attached[self.unit.base] = [self._take_vmid(), 0]
        held[1] += 1
        if device.key in self.attached:
            self._leave(device)
        self.attached[device.key] = domain
        self._devices[device.key] = device
        table = domain.table
        start = 3 - table.top_level
        tg = _TG[self.machine.page_size]
        values = {
            "w0": 1 | SteConfig.STAGE_2 << 1,
            "w2": held[0]
            | (64 - table.bits) << 32
            | ((2 if tg == 0 else 3) - start & 3) << 38
            | 1 << 40
            | 1 << 42
            | 3 << 44
            | tg << 46
            | _PS_44_BITS << 48
            | 1 << 51
            | 1 << 54
            | 1 << 58,
            "w3": table.top,
        }
        self.machine.memory.write(at, pack(stream_table_entry, values))

    def _take_vmid(self) -> int:
        if self._free_vmids:
            self._free_vmids.sort(reverse=True)
            return self._free_vmids.pop()
        while self._next_vmid in self._reserved_vmids:
            self._next_vmid += 1
        if self._next_vmid >= self.unit.domain_ids:
            raise KernelErrno("ENOSPC", "the unit has no VMID left")
        self._next_vmid += 1
        return self._next_vmid - 1

    def _leave(self, device: PciDevice) -> None:
        domain = self.attached.pop(device.key)
        held = domain.attached[self.unit.base]
        held[1] -= 1
        if not held[1]:
            self._free_vmids.append(held[0])
            del domain.attached[self.unit.base]

    def detach(self, device: PciDevice) -> None:
        """Make the stream abort."""
        self._leave(device)
        self.machine.memory.write(self.entry_address(device), pack(stream_table_entry, {"w0": 1}))

    # -- preserving --------------------------------------------------------------------------

    def _preserve_alloc(self, pa: int, size: int) -> int:
        """Preserve a DMA allocation; the address of its handle."""
        page, shift = self.machine.page_size, self.machine.page_shift
        pages = -(-size // page)
        order = (pages - 1).bit_length()
        self.kho.preserve_folio(pa >> shift, order)
        if self.listed:
            values = {"iova": pa, "nr_pages": pages, "is_folio": 1, "is_contiguous": 1}
            data = pack(dma_alloc_ser, values) + pa.to_bytes(8, "little")
        else:
            data = pack(dma_alloc_ser_a, {"page_phys": pa, "size": size})
        handle = self.kho.alloc_preserve(len(data))
        self.machine.memory.write(handle, data)
        self._handles.append((handle, pa >> shift, order))
        return handle

    def preserve(self) -> dict[str, Any]:
        """Preserve the stream table; members of the hardware object."""
        l1 = self._preserve_alloc(self.l1, self.l1_size)
        handles = {i: self._preserve_alloc(pa, self.l2_size) for i, pa in sorted(self.l2.items())}
        if self.listed:
            words = np.zeros(self.l1_entries, "<u8")
            for index, handle in handles.items():
                words[index] = handle
        else:
            words = np.array(list(handles.values()), "<u8")
        array = 0
        if len(words):
            array = self.kho.alloc_preserve(words.nbytes)
            self.machine.memory.write(array, words)
            self.handle_arrays.append(array)
        values = {
            "phys_addr": self.unit.base,
            "strtab_base_cfg": self.strtab_base_cfg,
            "l1_strtab_lu_state": l1,
            "l2_strtab_lu_states_phys": array,
        }
        if not self.listed:
            values |= {"strtab_base": self.strtab_base, "num_l2_tables": len(handles)}
        return {"smmuv3": values}

    def unpreserve(self) -> None:
        """Let go of the tables."""
        for array in self.handle_arrays:
            self.kho.unpreserve_free(array)
        for handle, frame, order in reversed(self._handles):
            self.kho.unpreserve_free(handle)
            self.kho.unpreserve_folio(frame, order)
        self.handle_arrays, self._handles = [], []

    def deleted_values(self) -> dict[str, Any]:
        """Nothing in a deleted object changes."""
        return {}

    def preserve_device(self, device: PciDevice) -> dict[str, Any]:
        """Stage 2 has no tables of its own; members of the device object."""
        return {"smmuv3": {}}

    def unpreserve_device(self, device: PciDevice) -> None:
        """Nothing to undo."""

    def shutdown(self, preserved: set[int]) -> None:
        """Streams of devices that are not preserved abort."""
        if not self._handles:
            return
        for key, device in self._devices.items():
            if key not in preserved and key in self.attached:
                self.machine.memory.write(
                    self.entry_address(device), pack(stream_table_entry, {"w0": 1})
                )

    def sync(self) -> None:
        """Everything is in memory already."""
