"""IOMMU state, iommufd and VFIO files, PCI state; device tables and page tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from abi.iommu import FIRST_DID
from abi.vtd import Pgtt
from inspector import passthrough
from inspector.check.rule import ERROR, INFO, WARNING, Context, Rule
from inspector.device_tables.cross import CODES, cross_check
from inspector.device_tables.vtd import Attachment
from inspector.image import Moment
from inspector.pagetable import CODES as PAGE_TABLE_CODES
from inspector.reach import Hardware, MemoryFiles
from inspector.walk.iommu import IommuState

_BOOTED = "the next kernel has booted and may have written this"


def _state(context: Context) -> IommuState | None:
    return passthrough.iommu_state(context.image)


def _users(context: Context) -> None:
    """A unit counts the live devices that refer to it."""
    state = _state(context)
    for unit in state.units.live() if state is not None else ():
        users = len(state.devices_of(unit)) if state is not None else 0
        if unit.ref_count != users:
            context.report(
                f"counts {unit.ref_count} users, {users} live devices refer to it",
                path=unit.path,
                address=unit.address,
            )


def _unused_domains(context: Context) -> None:
    state = _state(context)
    if state is None:
        return
    named = passthrough.hwpts_by_domain(context.image)
    used = state.devices.column("domain_phys")[~state.devices.deleted]
    idle = ~state.domains.deleted & ~np.isin(state.domains.addresses, used)
    for index in np.flatnonzero(idle).tolist():
        domain = state.domains[index]
        if domain.address not in named:
            context.report(
                "no device and no HWPT refers to it", path=domain.path, address=domain.address
            )


def _unused_hwpts(context: Context) -> None:
    state = _state(context)
    if state is None:
        return
    used = set(state.devices.column("domain_phys")[~state.devices.deleted].tolist())
    for address, uses in passthrough.hwpts_by_domain(context.image).items():
        if address in used:
            continue
        for use in uses:
            context.report(
                f"HWPT {use.hwpt.token:#x} is preserved, no device uses it",
                path=use.hwpt.path,
                address=use.hwpt.address,
            )


def _consumer_marks(context: Context) -> None:
    """What only a consumer writes is clear before one has run."""
    state = _state(context)
    if state is None:
        return
    if context.image.moment is Moment.INCOMING:
        context.undecidable(_BOOTED)
        return
    for objects in (state.units, state.domains, state.devices):
        marked = objects.incoming.copy()
        for name in ("restored_domain", "intel.restored"):
            if name in objects.columns:
                marked |= objects.columns[name] != 0
        for index in np.flatnonzero(marked & ~objects.deleted)[:64].tolist():
            one = objects[index]
            context.report("has marks of a consumer", path=one.path, address=one.address)
    for _, _, iommufd in passthrough.iommufds(context.image):
        for hwpt in iommufd.hwpts:
            if hwpt.reclaimed:
                context.report("is marked reclaimed", path=hwpt.path, address=hwpt.address)


def _dids(context: Context) -> None:
    state = _state(context)
    for unit in state.units.live() if state is not None else ():
        if unit.view != "intel" or state is None:
            continue
        for device in state.devices_of(unit):
            if not FIRST_DID <= device.attachment_id < 1 << 16:
                context.report(
                    f"{device.name} has DID {device.attachment_id}",
                    path=device.path,
                    address=device.address,
                )


def _one_did_a_domain(context: Context) -> None:
    state = _state(context)
    for unit in state.units.live() if state is not None else ():
        assert state is not None
        domains: dict[int, int] = {}
        dids: dict[int, int] = {}
        for device in state.devices_of(unit):
            did, domain = device.attachment_id, device.domain_phys
            if domains.setdefault(did, domain) != domain:
                text = f"{device.name}: DID {did} is that of another domain too"
            elif dids.setdefault(domain, did) != did:
                text = f"{device.name}: its domain has DID {dids[domain]} as well as {did}"
            else:
                continue
            context.report(text, path=device.path, address=device.address)


def _objects_twice(context: Context) -> None:
    """No two live units with one token, no device twice."""
    state = _state(context)
    if state is None:
        return
    tokens = Counter(u.token for u in state.units.live())
    for unit in state.units.live():
        if tokens[unit.token] > 1:
            context.report(
                f"two live units at {unit.token:#x}", path=unit.path, address=unit.address
            )
    names = Counter(d.name for d in state.devices.live())
    for device in state.devices.live():
        if names[device.name] > 1:
            context.report(
                f"{device.name} is there twice", path=device.path, address=device.address
            )


def _mapped_elsewhere(context: Context) -> None:
    """Page tables of iommufds lead to memory files of their session."""
    from inspector.reach import domain_root, reach

    state = _state(context)
    if state is None:
        return
    files = MemoryFiles(context.image)
    for address, uses in passthrough.hwpts_by_domain(context.image).items():
        domain = state.domains.at(address)
        if domain is None or domain.deleted:
            continue
        found = reach(context.image, domain_root(context.image, domain), files)
        if found.elsewhere > 0:
            context.report(
                f"maps {found.elsewhere:#x} bytes that belong to no preserved memory file",
                path=domain.path,
                address=domain.address,
            )
        sessions = {use.session.path for use in uses}
        for path in found.memory_files:
            if not any(path.startswith(f"{session}/") for session in sessions):
                context.report(
                    f"maps {path}, a file of another session",
                    path=domain.path,
                    address=domain.address,
                )


def _nested(context: Context) -> None:
    state = _state(context)
    if state is None:
        return
    hardware = Hardware(context.image)
    for unit in state.units.live():
        for device in state.devices_of(unit):
            found = hardware.of(device, unit)
            if isinstance(found, Attachment):
                nested = found.pasid is not None and found.pasid.pgtt == Pgtt.NESTED
            else:
                nested = found is not None and found.entry.stage_1 and found.entry.stage_2
            if nested:
                context.report(
                    f"{device.name} translates in two stages; the first is not handed over",
                    path=device.path,
                    address=found.address if found is not None else None,
                )


def _vfio_owner(context: Context) -> None:
    """A device's DMA owner and a VFIO file's iommufd are files of its session."""
    image, state = context.image, _state(context)
    tokens = {f.token: s for s, f, _ in passthrough.iommufds(image)}
    if state is not None:
        for device in state.devices.live():
            owner = device.dma_owner_token
            if owner is not None and owner not in tokens:
                context.report(
                    f"{device.name}: its DMA owner, token {owner:#x}, is no iommufd file",
                    path=device.path,
                    address=device.address,
                )
    for session, file, vfio in passthrough.vfio_devices(image):
        low = vfio.iommufd_token
        mine = [t & 0xFFFFFFFF for t, s in tokens.items() if s is session]
        if low is not None and low not in mine:
            context.report(
                f"{vfio.name}: its iommufd, token {low:#x}, is not in the session",
                path=file.path,
                address=vfio.address,
            )


def _vfio_without_iommu(context: Context) -> None:
    state = _state(context)
    if state is None:
        return
    known = {(d.pci_domain_nr, d.devid) for d in state.devices.live()}
    bdfs = {bdf for _, bdf in known}
    for _, file, vfio in passthrough.vfio_devices(context.image):
        here = vfio.bdf in bdfs if vfio.domain is None else (vfio.domain, vfio.bdf) in known
        if not here:
            context.report(
                f"{vfio.name} is not in the IOMMU state", path=file.path, address=vfio.address
            )


def _cross(code: str) -> Callable[[Context], None]:
    def test(context: Context) -> None:
        if "cross" not in context.memo:
            context.memo["cross"] = cross_check(context.image).items
        for found in context.memo["cross"]:
            if found.code == code:
                context.report(found.message, path=found.path, address=found.address)

    return test


def _tables() -> Iterator[Rule]:
    look = "kho devices IMAGE"
    for code, (severity, statement, kernel) in CODES.items():
        yield Rule(code, severity, statement, kernel, look, _cross(code))
    for code, (severity, text) in PAGE_TABLE_CODES.items():
        yield Rule(
            code,
            severity,
            f"A page table entry: {text}.",
            _PAGE_TABLE_KERNEL.get(code, "Nothing at hand-over; the hardware decides."),
            "kho pagetable IMAGE DOMAIN",
        )


_PAGE_TABLE_KERNEL = {
    "KHO-PT-003": "BUG when the next kernel restores the table page.",
    "KHO-PT-005": "BUG: a page is restored once.",
    "KHO-PT-006": "BUG when the next kernel restores the table page.",
}

RULES = (
    Rule(
        "KHO-ABI-001", INFO, "Several known layouts fit the bytes of a layer equally well.",
        "Each kernel reads its own layout; none looks at another.", "kho info IMAGE",
    ),
    Rule(
        "KHO-ABI-002", WARNING, "No known layout fits the bytes of a layer.",
        "The kernel reads them as its own layout all the same.", "kho info IMAGE",
    ),
    Rule("KHO-LST-008", ERROR, "An array has fewer pages than its count needs.", "BUG."),
    Rule(
        "KHO-LST-009", INFO, "An array has more pages than its count needs.",
        "The pages are leaked.",
    ),
    Rule(
        "KHO-IOM-001", ERROR, "The IOMMU state has an unknown version.",
        "7.3.4 with the version-word series: panic.",
    ),
    Rule(
        "KHO-IOM-002", ERROR, "An array pointer of the IOMMU state is 0.",
        "7.3.4 with the version-word series: panic.",
    ),
    Rule(
        "KHO-IOM-003", ERROR, "An object does not know its own index.",
        "Not known; only the postings of 2025-12 and 2026-02 have it.",
    ),
    Rule("KHO-IOM-004", ERROR, "A unit has an unknown type.", "No driver takes it over."),
    Rule(
        "KHO-IOM-005", ERROR, "A domain's levels are impossible for its page table.",
        "The restore of the domain fails: -EINVAL for its devices.",
    ),
    Rule(
        "KHO-IOM-010", ERROR, "A device refers to a domain or unit that is none, or is deleted.",
        "BUG, or -EINVAL for the device.",
    ),
    Rule(
        "KHO-IOM-011", ERROR, "A unit's reference count is not its number of live devices.",
        "Its state is finished too early, or never.", test=_users,
    ),
    Rule(
        "KHO-IOM-012", INFO, "Nothing refers to a live domain.",
        "7.3.4 with the version-word series never touches it: its pages are leaked.",
        test=_unused_domains,
    ),
    Rule(
        "KHO-IOM-013", WARNING, "The image was not taken over yet but has marks of a consumer.",
        "The consumer believes that the object was restored already.", test=_consumer_marks,
    ),
    Rule(
        "KHO-IOM-014", ERROR, "A DID is one that the driver never gives to a preserved domain.",
        "7.3.4 with the version-word series accepts DID 0 silently: the hardware uses 0 and 1"
        " for itself.", test=_dids,
    ),
    Rule(
        "KHO-IOM-015", ERROR, "Behind one unit a DID has two domains, or a domain two DIDs.",
        "The hardware caches translations by DID: one device may use those of another.",
        test=_one_did_a_domain,
    ),
    Rule(
        "KHO-IOM-016", ERROR, "Two live objects stand for one unit or one device.",
        "The first is used.", test=_objects_twice,
    ),
    Rule(
        "KHO-IOM-017", ERROR, "A page table leads to memory outside the session's memory files.",
        "The memory is free for the next kernel while the device writes to it.",
        "kho devices IMAGE", _mapped_elsewhere,
    ),
    Rule(
        "KHO-IOM-018", INFO, "A device translates in two stages; nested HWPTs are not handed over.",
        "User space has to build the first stage again.", "kho devices IMAGE", _nested,
    ),
    Rule(
        "KHO-IFD-001", ERROR, "An iommufd counts more HWPTs than can be read.",
        "The next kernel reads beyond the block.",
    ),
    Rule(
        "KHO-IFD-002", ERROR, "Two HWPTs of an iommufd have one token.",
        "The first is restored twice.",
    ),
    Rule("KHO-IFD-003", WARNING, "reclaimed is neither 0 nor 1.", "Taken for 1."),
    Rule(
        "KHO-IFD-010", ERROR, "A HWPT names a domain that is none, or is deleted.",
        "BUG when the page is restored, or another domain's page table for this HWPT.",
    ),
    Rule(
        "KHO-IFD-011", INFO, "A HWPT is preserved that no device uses.",
        "It can be claimed; a mark cannot be taken back in the first posting.",
        test=_unused_hwpts,
    ),
    Rule(
        "KHO-VFI-001", ERROR, "A configuration space has neither 256 nor 4096 bytes.", "-EINVAL.",
    ),
    Rule("KHO-VFI-002", ERROR, "A list of saved capabilities does not end.", "Not known."),
    Rule(
        "KHO-VFI-010", ERROR, "A VFIO file names a device that the PCI state does not have.",
        "-ENOENT when the file is retrieved, or the device is reset at boot.",
    ),
    Rule(
        "KHO-VFI-011", ERROR, "A device's iommufd is no iommufd file of its session.",
        "The device cannot be bound to it again.", test=_vfio_owner,
    ),
    Rule(
        "KHO-VFI-012", WARNING, "A VFIO file names a device that the IOMMU state does not have.",
        "Its DMA is blocked, or was never set up.", "kho devices IMAGE", _vfio_without_iommu,
    ),
    Rule("KHO-PCI-001", ERROR, "The PCI state has an unknown version.", "-EINVAL."),
    Rule("KHO-PCI-002", ERROR, "The PCI state counts more devices than it has slots.", "-EINVAL."),
    Rule("KHO-PCI-003", ERROR, "A device is in the PCI state twice.", "Its retrieve fails."),
    Rule(
        "KHO-PCI-004", WARNING, "The PCI state counts other than the slots in use.",
        "One draft never lowers the count: later preserves fail with -ENOSPC.",
    ),
    Rule("KHO-PCI-005", ERROR, "The PCI state has more slots than there are functions.", "-EINVAL."),
    *_tables(),
)  # fmt: skip
