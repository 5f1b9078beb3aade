"""The VT-d driver: root, context and PASID tables, domain ids, what it preserves of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from abi import vtd
from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine import Machine
from inspector.kernel.machine.hardware import Hardware, PciDevice, Unit
from inspector.kernel.outgoing.inherited import InheritedTables
from inspector.kernel.outgoing.iommu import Domain
from inspector.kernel.outgoing.kho import Kho

#: Bytes of the bitmap of context tables: one bit per half of a root entry.
BITMAP_BYTES = 64
#: Entries of a PASID directory that the driver allocates a whole page for.
_PASIDS_PER_TABLE = vtd.PASIDS_PER_TABLE


class VtdUnit:
    """One VT-d unit and its tables, which may be those of the kernel before."""

    def __init__(
        self,
        machine: Machine,
        kho: Kho,
        unit: Unit,
        hardware: Hardware,
        inherited: InheritedTables | None = None,
    ) -> None:
        self.machine = machine
        self.kho = kho
        self.unit = unit
        self.root = inherited.root if inherited is not None else machine.alloc_page()
        #: Bit of the bitmap -> (address, words of the context table).
        self.contexts: dict[int, tuple[int, np.ndarray[Any, np.dtype[np.uint64]]]] = {}
        #: Device -> (PASID directory, its order, PASID table).
        self._pasid: dict[int, tuple[int, int, int]] = {}
        self._next_did = unit.first_domain_id
        self._free_dids: list[int] = []
        self._reserved_dids: set[int] = set()
        self._preserved: tuple[int, ...] | None = None
        self._preserved_pasids: dict[int, tuple[int, int, int]] = {}
        self.attached: dict[int, Domain] = {}
        self._devices: dict[int, PciDevice] = {}
        if inherited is not None:
            self._inherit(inherited)
        for bit in sorted({self.bit(device) for device in hardware.behind(unit.base)}):
            self._context(bit)

    def _inherit(self, tables: InheritedTables) -> None:
        """Go on with the tables there are: every device has left its old domain."""
        memory, page = self.machine.memory, self.machine.page_size
        memory.mark_zero(self.root, page)
        for bit, pa in tables.contexts.items():
            self.contexts[bit] = (pa, np.zeros(512, np.uint64))
            memory.write(self.root + 8 * bit, (pa | 1).to_bytes(8, "little"))
        for key, (directory, order, table) in tables.pasids.items():
            memory.mark_zero(directory, page << order)
            memory.mark_zero(table, page)
            memory.write(directory, (table | 1).to_bytes(8, "little"))
            self._pasid[key] = (directory, order, table)
        self._reserved_dids = set(tables.ids)

    def settle(self) -> None:
        """The old domains are gone: the ids that they had can be given out again."""
        known = [did for did in self._reserved_dids if did < self._next_did]
        self._free_dids += [did for did in known if did >= self.unit.first_domain_id]
        self._reserved_dids.clear()

    # -- tables ------------------------------------------------------------------------------

    def bit(self, device: PciDevice) -> int:
        """The device's bit of ``context_tables_bitmap``."""
        half = device.bdf >> 7 & 1 if self.unit.scalable else 0
        return device.bdf >> 8 << 1 | half

    def _context(self, bit: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        held = self.contexts.get(bit)
        if held is None:
            pa = self.machine.alloc_page()
            held = self.contexts[bit] = (pa, np.zeros(512, np.uint64))
            self.machine.memory.write(self.root + 8 * bit, (pa | 1).to_bytes(8, "little"))
        return held[1]

    def _entry(self, device: PciDevice) -> np.ndarray[Any, np.dtype[np.uint64]]:
        words = self._context(self.bit(device))
        _, index = vtd.context_index(device.devfn, self.unit.scalable)
        width = 4 if self.unit.scalable else 2
        return words[index * width : (index + 1) * width]

    def pasid_tables(self, device: PciDevice) -> tuple[int, int, int]:
        """(directory, its order, table for the lowest PASIDs) of a device, made if need be."""
        held = self._pasid.get(device.key)
        if held is None:
            size = max(self.machine.page_size, (device.max_pasid >> 6) * 8)
            order = (size // self.machine.page_size - 1).bit_length()
            directory = self.machine.alloc(order) << self.machine.page_shift
            table = self.machine.alloc_page()
            self.machine.memory.write(directory, (table | 1).to_bytes(8, "little"))
            held = self._pasid[device.key] = (directory, order, table)
        return held

    def max_pasid(self, device: PciDevice) -> int:
        """PASIDs that the device's directory covers."""
        _, order, _ = self.pasid_tables(device)
        return (self.machine.page_size << order) // 8 << 6

    # -- attaching ---------------------------------------------------------------------------

    def _take_did(self) -> int:
        if self._free_dids:
            self._free_dids.sort(reverse=True)
            return self._free_dids.pop()
        while self._next_did in self._reserved_dids:
            self._next_did += 1
        if self._next_did >= self.unit.domain_ids:
            raise KernelErrno("ENOSPC", "the unit has no domain id left")
        self._next_did += 1
        return self._next_did - 1

    def attach(self, device: PciDevice, domain: Domain) -> None:
        """Point a device at a domain, in place of what it had. Raises ENOSPC."""
        held = domain.attached.get(self.unit.base)
        if held is None:
            held = domain.attached[self.unit.base] = [self._take_did(), 0]
        held[1] += 1
        if device.key in self.attached:
            self._leave(device)
        self.attached[device.key] = domain
        self._devices[device.key] = device
        self._write_entry(device, domain, held[0])

    def _write_entry(self, device: PciDevice, domain: Domain, did: int) -> None:
        table, entry = domain.table, self._entry(device)
        width = vtd.address_width(table.top_level)
        if not self.unit.scalable:
            entry[0] = table.top | 1
            entry[1] = did << 8 | width
            return
        directory, _, pasids = self.pasid_tables(device)
        entries = (self.max_pasid(device) >> 6).bit_length() - 1
        entry[:] = 0
        entry[0] = directory | max(0, entries - 7) << 9 | 1
        words = np.zeros(8, "<u8")
        if domain.sign_extend:
            words[0] = vtd.Pgtt.FIRST_STAGE << 6 | 1
            words[2] = table.top | (table.top_level - 3) << 2
        else:
            words[0] = table.top | vtd.Pgtt.SECOND_STAGE << 6 | width << 2 | 1
        words[1] = did
        self.machine.memory.write(pasids, words)

    def _leave(self, device: PciDevice) -> None:
        domain = self.attached.pop(device.key)
        held = domain.attached[self.unit.base]
        held[1] -= 1
        if not held[1]:
            self._free_dids.append(held[0])
            del domain.attached[self.unit.base]

    def detach(self, device: PciDevice) -> None:
        """Block the device's DMA."""
        self._leave(device)
        self._entry(device)[:] = 0
        if device.key in self._pasid:
            self.machine.memory.write(self._pasid[device.key][2], bytes(64))

    # -- preserving --------------------------------------------------------------------------

    def preserve(self) -> dict[str, Any]:
        """Preserve root and context tables; members of the hardware object."""
        bits = sorted(self.contexts)
        shift = self.machine.page_shift
        self.kho.preserve_folio(self.root >> shift)
        for bit in bits:
            self.kho.preserve_folio(self.contexts[bit][0] >> shift)
        self._preserved = tuple(bits)
        words = [0] * 8
        for bit in bits:
            words[bit >> 6] |= 1 << (bit & 63)
        return {
            "intel": {
                "phys_addr": self.unit.base,
                "root_table": self.root,
                "context_tables_bitmap": words,
            }
        }

    def deleted_values(self) -> dict[str, Any]:
        """A deleted hardware object has an empty bitmap."""
        return {"intel.context_tables_bitmap": bytes(BITMAP_BYTES)}

    def unpreserve(self) -> None:
        """Let go of the tables."""
        shift = self.machine.page_shift
        assert self._preserved is not None
        for bit in self._preserved:
            self.kho.unpreserve_folio(self.contexts[bit][0] >> shift)
        self.kho.unpreserve_folio(self.root >> shift)
        self._preserved = None

    def preserve_device(self, device: PciDevice) -> dict[str, Any]:
        """Preserve the PASID directory and table in scalable mode; members of the object."""
        if not self.unit.scalable:
            return {}
        directory, order, table = self.pasid_tables(device)
        shift = self.machine.page_shift
        self.kho.preserve_folio(directory >> shift, order)
        self.kho.preserve_folio(table >> shift)
        self._preserved_pasids[device.key] = (directory, order, table)
        return {"intel": {"pasid_table": directory, "max_pasid": self.max_pasid(device)}}

    def unpreserve_device(self, device: PciDevice) -> None:
        """Let go of the PASID tables."""
        held = self._preserved_pasids.pop(device.key, None)
        if held is not None:
            shift = self.machine.page_shift
            self.kho.unpreserve_folio(held[2] >> shift)
            self.kho.unpreserve_folio(held[0] >> shift, held[1])

    # -- the reboot path ---------------------------------------------------------------------

    def shutdown(self, preserved: set[int]) -> None:
        """Clear what does not belong to preserved devices, as the reboot path does."""
        if self._preserved is None:
            return
        for key, device in self._devices.items():
            if key not in preserved and key in self.attached:
                self._entry(device)[:] = 0
        for bit in sorted(self.contexts):
            if bit not in self._preserved:
                self.machine.memory.write(self.root + 8 * bit, bytes(8))

    def sync(self) -> None:
        """Write the context tables."""
        for pa, words in self.contexts.values():
            self.machine.memory.write(pa, words)

    def entry_address(self, device: PciDevice) -> int:
        """Where the context entry of a device lies."""
        _, index = vtd.context_index(device.devfn, self.unit.scalable)
        return self.contexts[self.bit(device)][0] + index * (32 if self.unit.scalable else 16)
