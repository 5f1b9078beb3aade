"""SMMUv3 stream tables in the kernel that takes over: coherent DMA memory behind handles."""

from __future__ import annotations

import numpy as np

from abi.dma_alloc import dma_alloc_ser, dma_alloc_ser_a
from abi.smmuv3 import parse_strtab
from inspector.kernel.incoming.device_state import Bug, Devices, take, take_many
from inspector.kernel.outgoing.inherited import InheritedTables
from inspector.walk.iommu import Unit

_MAX_HANDLES = 1 << 16
#: SPAN and L2Ptr of a level-1 stream table descriptor.
_SPAN_MASK = 0x1F
_L2_POINTER = ((1 << 52) - 1) & ~0x3F
_MAX_PAGES = 1 << 20


def restore(found: Devices, unit: Unit) -> None:
    """Restore the level-1 (or linear) table and the level-2 tables of a unit.

    Raises Bug for memory that was not preserved, Absent, PageFault.
    """
    view = found.boot.view
    dense = "strtab_base" in unit.values
    kept = found.tables[unit.token] = InheritedTables()
    kept.root = _memory(found, unit, unit.get("l1_strtab_lu_state"), dense)
    array = unit.get("l2_strtab_lu_states_phys")
    if not array:
        return
    table = parse_strtab(unit.get("strtab_base"), unit.get("strtab_base_cfg"))
    count = unit.get("num_l2_tables") if dense else table.l1_entries
    count = min(count, _MAX_HANDLES)
    handles = np.frombuffer(view.read(array, 8 * count), "<u8")
    for handle in handles[handles != 0].tolist():
        _memory(found, unit, handle, dense)
    order = take(found, array, unit.path, "the array of handles of stream tables")
    found.boot.freed.add_one(array >> view.page_shift, order)
    kept.contexts = _level_2(found, kept.root, table.l1_entries)


def _level_2(found: Devices, table: int, entries: int) -> dict[int, int]:
    """Level-2 tables by the index of the level-1 entry that points to each."""
    if not found.boot.view.present(table, 8 * entries):
        return {}
    words = np.frombuffer(found.boot.view.read(table, 8 * entries), "<u8")
    used = np.flatnonzero(words & np.uint64(_SPAN_MASK)).tolist()
    return {index: int(words[index]) & _L2_POINTER for index in used}


def _memory(found: Devices, unit: Unit, handle: int, dense: bool) -> int:
    """Restore DMA memory; its address. The handle is of no use any more and freed."""
    view = found.boot.view
    if not handle:
        raise Bug("a stream table has no handle: BUG", unit.path, unit.address)
    if dense:
        address = dma_alloc_ser_a.unpack(view.read(handle, dma_alloc_ser_a.size))["page_phys"]
        take(found, address, unit.path, "a stream table")
    else:
        values = dma_alloc_ser.unpack(view.read(handle, dma_alloc_ser.size))
        folio = values["is_folio"] or values["is_contiguous"]
        pages = 1 if folio else min(values["nr_pages"], _MAX_PAGES)
        data = view.read(handle + dma_alloc_ser.size, 8 * pages)
        addresses = np.frombuffer(data, "<u8").astype(np.uint64, copy=False)
        take_many(found, addresses, unit.path, "a stream table")
        address = int(addresses[0]) if len(addresses) else 0
    order = take(found, handle, unit.path, "the handle of a stream table")
    found.boot.freed.add_one(handle >> view.page_shift, order)
    return int(address)
