"""Every page that a consumer holds has an owner, and none was given back twice."""

from __future__ import annotations

import numpy as np

from inspector.kernel.incoming.consumer import Consumer
from inspector.kernel.incoming.guest_files import RestoredVm
from inspector.kernel.incoming.memory_file import RestoredFolios
from inspector.kernel.machine.frames import frames_of
from inspector.kernel.outgoing.kernel import Kernel
from inspector.kernel.outgoing.vtd import VtdUnit


def check_pages(before: Kernel, consumer: Consumer) -> None:
    """After finish nothing was freed twice, and all that is held has an owner."""
    state = consumer.state
    freed = [frames_of(blocks, order) for order, blocks in state.freed.blocks()]
    every = np.concatenate(freed) if freed else np.empty(0, np.uint64)
    assert len(np.unique(every)) == len(every)
    owned: list[int] = []
    shift, page = state.view.page_shift, state.view.page_size
    assert consumer.luo is not None
    for _, entry in consumer.luo.files():
        if isinstance(entry.file, (RestoredFolios, RestoredVm)):
            for frame, order in zip(entry.file.frames, entry.file.orders, strict=True):
                owned += range(int(frame), int(frame) + (1 << int(order)))
    devices = consumer.devices
    for tables in devices.tables.values() if devices is not None else ():
        arm = 8 << 8 if not tables.pasids and before.machine.spec.architecture == "aarch64" else 0
        owned += range(tables.root >> shift, (tables.root >> shift) + max(1, arm >> shift))
        each = (64 << 8) // page if arm else 1
        for address in tables.contexts.values():
            owned += range(address >> shift, (address >> shift) + max(each, 1))
        for directory, order, low in tables.pasids.values():
            owned += [*range(directory >> shift, (directory >> shift) + (1 << order)), low >> shift]
    iommu = before.iommu if before.iommu is not None and before.iommu.root else None
    if iommu is not None and before.drivers is not None:
        owned += lost_tables(before)
    test = before.kho_test
    if test is not None and test.area is not None and test.descriptor is not None:
        # The self test frees its folios, and keeps the list of them.
        owned += test.area.frames.tolist()
        owned += [chunk >> shift for chunk in test.descriptor.chunks]
    for region in before.reserve_mem:
        owned += range(region.start >> shift, -(-(region.start + region.size) >> shift))
    assert len(set(owned)) == len(owned)
    held = set(consumer.retained.frames().tolist())
    assert set(owned) <= held, [hex(f) for f in set(owned) - held]
    # The root, blobs and what hangs off LUO's are kept as long as the kernel runs.
    assert held - set(owned) <= forever(before), [hex(f) for f in held - set(owned)]


def lost_tables(kernel: Kernel) -> list[int]:
    """Frames of tables that the next kernel has no way to know of, or never touches.

    Domains that no device uses stay as they are in a real kernel too. A posting's first half has
    no members for the tables of VT-d units, or for PASID tables.
    """
    assert kernel.iommu is not None
    assert kernel.drivers is not None
    shift, found = kernel.machine.page_shift, []
    units = [kernel.drivers.of(base) for base in kernel.iommu.live_units]
    used = {id(unit.attached[key]) for unit in units for key in kernel.iommu.live_devices
            if key in unit.attached}  # fmt: skip
    for domain in kernel.iommu.live_domains.values():
        if id(domain) not in used:
            for pa, order in domain.table.tables():
                found += range(pa >> shift, (pa >> shift) + (1 << order))
    if not kernel.iommu.generation.unit_views:
        for unit in units:
            if isinstance(unit, VtdUnit):
                found += [unit.root >> shift, *(pa >> shift for pa, _ in unit.contexts.values())]
    if not kernel.iommu.generation.device_views:
        for unit in units:
            for key in kernel.iommu.live_devices if isinstance(unit, VtdUnit) else ():
                device = kernel.machine.spec.hardware.device(key >> 16, key & 0xFFFF)
                if device is not None and device.unit == unit.unit.base and unit.unit.scalable:
                    directory, order, low = unit.pasid_tables(device)
                    found += range(directory >> shift, (directory >> shift) + (1 << order))
                    found.append(low >> shift)
    return found


def forever(kernel: Kernel) -> set[int]:
    shift = kernel.machine.page_shift
    luo = kernel.luo
    found = {kernel.kho.root >> shift, luo.address >> shift, luo.flb_page >> shift}
    found.add(luo._struct_at >> shift)
    found |= {blob.address >> shift for blob in kernel.kho.blobs.values()}
    if luo.generation.sessions != "blocks":
        for address in luo.session_blocks:
            found |= {(address >> shift) + i for i in range(16)}
        for session in luo.sessions:
            for address in session.blocks:
                found |= {(address >> shift) + i for i in range(2)}
    return found
