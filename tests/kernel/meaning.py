"""What a scenario asked for, and what a kernel that takes over finds, in the same words.

The first is told by the objects of the producer, which no image went through; the second by what
the consumer restored and by page tables as they lie in memory.
"""

from __future__ import annotations

from typing import Any

from inspector import pagetable
from inspector.kernel.incoming.consumer import Result
from inspector.kernel.incoming.device_files import RestoredIommufd, RestoredVfio
from inspector.kernel.incoming.guest_files import (
    RestoredGuestMemfd,
    RestoredHugeMemfd,
    RestoredMount,
    RestoredVcpu,
    RestoredVm,
)
from inspector.kernel.incoming.memory_file import RestoredFolios, RestoredMemfd
from inspector.kernel.outgoing.hugetlb import HugeMemfd
from inspector.kernel.outgoing.iommufd import Iommufd
from inspector.kernel.outgoing.kernel import Kernel
from inspector.kernel.outgoing.kvm import GuestMemfd, KvmVcpu, KvmVm
from inspector.kernel.outgoing.memfd import Memfd
from inspector.kernel.outgoing.tmpfs import TmpfsMount
from inspector.kernel.outgoing.vfio import VfioDevice

# -- what a scenario asked for, out of the objects of the first kernel ----------------------------


def meant_by(kernel: Kernel) -> dict[tuple[str, int], Any]:
    found = {}
    for session in kernel.luo.sessions:
        tokens = {id(entry.file): token for token, entry in session.files.items()}
        for token, entry in session.files.items():
            found[session.name, token] = meant(kernel, entry.file, tokens)
    return found


def meant(kernel: Kernel, file: Any, tokens: dict[int, int]) -> Any:
    read = kernel.machine.memory.read
    page, shift = kernel.machine.page_size, kernel.machine.page_shift
    if isinstance(file, GuestMemfd):
        pages = [i for e in file.extents for i in range(e.index, e.end, 1 << e.order)]
        stale = sorted([*pages[len(pages) - file.stale :], *file.outdated])
        content = file.read(0, file.size)
        return ("guest", file.size, file.flags, content, pages, stale, tokens[id(file.vm)])
    if isinstance(file, HugeMemfd):
        return ("huge", file.size, file.pos, file.pool.order, file.read(0, file.size))
    if isinstance(file, Memfd):
        known = any(
            f.name in ("seals", "word")
            for f in kernel.profile["memfd"].layouts["memfd_luo_ser"].fields
        )
        return ("memfd", file.size, file.pos, file.seals if known else 1, file.read(0, file.size))
    if isinstance(file, KvmVm):
        layout = {f.name for f in kernel.profile["kvm"].layouts["kvm_luo_ser"].fields}
        rows = [
            (gfn, each.attributes)
            for each in file.attributes
            for gfn in range(each.gfn, each.gfn + each.frames)
        ]
        folios = [read(frame << shift, page << order) for frame, order in file.folios]
        return (
            "vm", file.type, rows if "mem_attrs" in layout else [],
            folios if "kho_folios" in layout else [],
        )  # fmt: skip
    if isinstance(file, KvmVcpu):
        control = file.control and {"pcpu_id": 0xFFFFFFFF, "reserved": 0, **file.control}
        told = file.telemetry and {k: v for k, v in file.telemetry.items() if v}
        return ("vcpu", file.vcpu_id, file.state.rstrip(b"\0"), control, told, tokens[id(file.vm)])
    if isinstance(file, TmpfsMount):
        return ("mount", file.max_blocks, file.mode, file.flags)
    if isinstance(file, Iommufd):
        tables = {}
        for hwpt in file.hwpts:
            # Marked when the iommufd was preserved; later marks come too late.
            if hwpt.domain.ser is not None and hwpt.ioas is not None:
                rows = {}
                for area in hwpt.ioas.areas:
                    for i in range(area.count):
                        for at in range(0, area.size, page):
                            offset = area.offset + i * area.size + at
                            where = (tokens[id(area.file)], offset, int(area.permissions))
                            rows[area.iova + i * area.stride + at] = where
                tables[hwpt.token] = (hwpt.domain.sign_extend, rows)
        return ("iommufd", tables if file.preserves_devices else {})
    assert isinstance(file, VfioDevice)
    hwpt = file.iommufd.devices[file.device.key] if file.iommufd and file.domain else None
    while hwpt is not None and hwpt.parent is not None:
        hwpt = hwpt.parent
    saved = None
    if kernel.profile["vfio-pci"].id == "vfio-pci-rfc-v1":
        saved = (
            file.config.ljust(4096, b"\0"), tuple(file.bars),
            [(c.cap_nr, c.cap_extended, c.data) for c in file.capabilities],
        )  # fmt: skip
    token = tokens.get(id(file.iommufd))
    return ("vfio", str(file.device), token, hwpt.token if hwpt is not None else None, saved)


# -- what a kernel finds --------------------------------------------------------------------------


def found_by(result: Result) -> dict[tuple[str, int], Any]:
    luo = result.consumer.luo
    assert luo is not None
    return {
        (s.name.decode(), f.token): seen(result, f.file, s.files)
        for s in luo.sessions
        for f in s.files
    }


def seen(result: Result, file: Any, session: list[Any]) -> Any:
    view = result.consumer.state.view
    if isinstance(file, RestoredGuestMemfd):
        pages = sorted(file.index.tolist())
        stale = sorted(file.stale.tolist())
        return ("guest", file.size, file.flags, file.read(), pages, stale, file.vm_token)
    if isinstance(file, RestoredHugeMemfd):
        return ("huge", file.size, file.pos, file.order, file.read())
    if isinstance(file, RestoredMemfd):
        return ("memfd", file.size, file.pos, file.seals_now, file.read())
    if isinstance(file, RestoredVm):
        rows = [] if file.attributes is None else [tuple(r) for r in file.attributes.tolist()]
        folios = [
            view.read(frame << view.page_shift, view.page_size << order)
            for frame, order in zip(file.frames.tolist(), file.orders.tolist(), strict=True)
        ]
        return ("vm", file.type, rows, folios)
    if isinstance(file, RestoredVcpu):
        told = file.telemetry and {k: v for k, v in file.telemetry.items() if v}
        state = file.state.rstrip(b"\0")
        return ("vcpu", file.vcpu_id, state, file.control, told, file.vm_token)
    if isinstance(file, RestoredMount):
        return ("mount", file.max_blocks, file.mode, file.flags)
    if isinstance(file, RestoredIommufd):
        return ("iommufd", {t: table(result, h.domain, session) for t, h in file.hwpts.items()})
    assert isinstance(file, RestoredVfio)
    owner = [
        (f.token, t)
        for f in session
        if isinstance(f.file, RestoredIommufd)
        for t, h in f.file.hwpts.items()
        if file.domain is not None and h.domain == file.domain
    ]
    saved = None
    if "vconfig" in file.values:
        saved = (
            bytes(file.values["vconfig"]), tuple(file.values["rbar"]),
            [(c.cap_nr, c.cap_extended, c.data) for c in file.capabilities],
        )  # fmt: skip
    token, hwpt = owner[0] if owner else (None, None)
    return ("vfio", str(file.device), token, hwpt, saved)


def table(result: Result, address: int, session: list[Any]) -> Any:
    """(first stage?, iova -> (token, offset, permissions)) of a domain."""
    devices = result.consumer.devices
    assert devices is not None
    assert devices.iommu is not None
    domain = devices.iommu.domains.at(address)
    assert domain is not None
    used = devices.domains.get(address)
    view = result.consumer.state.view
    if used is not None:
        kind = used.format
    elif view.memory.machine == "aarch64":
        kind = f"lpae-s2-{view.page_size >> 10}k"
    else:
        kind = "x86-64" if domain.get("sign_extend") else "vtdss"
    where = {}
    for entry in session:
        if isinstance(entry.file, RestoredFolios):
            file = entry.file
            for frame, order, index in zip(file.frames, file.orders, file.index, strict=True):
                for i in range(1 << int(order)):
                    where[int(frame) + i] = (entry.token, (int(index) + i) * view.page_size)
    walk = pagetable.walk(view.memory, kind, domain.top_table_phys, domain.levels, vasz=domain.vasz)
    rows = {}
    for chunk in walk.ranges():
        for iova, pa, size, rights in chunk:
            for at in range(0, size, view.page_size):
                token, offset = where[pa + at >> view.page_shift]
                rows[iova + at] = (token, offset, int(rights))
    assert not walk.findings.items
    return (kind == "x86-64", rows)
