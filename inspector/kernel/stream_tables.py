"""SMMUv3 stream tables in the kernel that takes over: coherent DMA memory behind handles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from abi.dma_alloc import dma_alloc_ser, dma_alloc_ser_a
from abi.smmuv3 import parse_strtab
from inspector.walk.iommu import Unit

if TYPE_CHECKING:
    from inspector.kernel.devices import Devices

_MAX_HANDLES = 1 << 16
_MAX_PAGES = 1 << 20


def restore(found: Devices, unit: Unit) -> None:
    """Restore the level-1 (or linear) table and the level-2 tables of a unit.

    Raises Bug for memory that was not preserved, Absent, PageFault.
    """
    from inspector.kernel.devices import take

    view = found.boot.view
    dense = "strtab_base" in unit.values
    _memory(found, unit, unit.get("l1_strtab_lu_state"), dense)
    array = unit.get("l2_strtab_lu_states_phys")
    if not array:
        return
    table = parse_strtab(unit.get("strtab_base"), unit.get("strtab_base_cfg"))
    count = unit.get("num_l2_tables") if dense else table.l1_entries
    count = min(count, _MAX_HANDLES)
    handles = np.frombuffer(view.read(array, 8 * count), "<u8")
    for handle in handles[handles != 0].tolist():
        _memory(found, unit, handle, dense)
    take(found, array, unit.path, "the array of handles of stream tables")


def _memory(found: Devices, unit: Unit, handle: int, dense: bool) -> None:
    """Restore DMA memory and its handle."""
    from inspector.kernel.devices import Bug, take, take_many

    view = found.boot.view
    if not handle:
        raise Bug("a stream table has no handle: BUG", unit.path, unit.address)
    if dense:
        take(found, dma_alloc_ser_a.unpack(view.read(handle, dma_alloc_ser_a.size))["page_phys"],
             unit.path, "a stream table")  # fmt: skip
    else:
        values = dma_alloc_ser.unpack(view.read(handle, dma_alloc_ser.size))
        folio = values["is_folio"] or values["is_contiguous"]
        pages = 1 if folio else min(values["nr_pages"], _MAX_PAGES)
        data = view.read(handle + dma_alloc_ser.size, 8 * pages)
        addresses = np.frombuffer(data, "<u8").astype(np.uint64, copy=False)
        take_many(found, addresses, unit.path, "a stream table")
    take(found, handle, unit.path, "the handle of a stream table")
