"""PCI, VFIO, iommufd and the IOMMU's objects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from abi.iommu import VIEW_OF_TYPE
from inspector import passthrough
from inspector.check.rule import ERROR, INFO, WARNING, Context, Rule
from inspector.image import Moment
from inspector.passthrough.domains import DomainTables
from inspector.passthrough.reach import MemoryFiles, reach
from inspector.text import size_text
from inspector.walk.iommu import Device, IommuState

#: DIDs are 16 bits; 0 and 1 are never a preserved domain's.
_FIRST_DID = 2
_MAX_DID = 1 << 16


def _state(context: Context) -> IommuState | None:
    return passthrough.iommu_state(context.image)


def _all_devices(context: Context, state: IommuState) -> bool:
    """Whether no device was left out of the image; else the rule cannot be decided."""
    if state.devices.array.cut:
        context.undecidable("devices were left out of the image")
    return not state.devices.array.cut


def _reference_counts(context: Context) -> None:
    state = _state(context)
    if state is None or not _all_devices(context, state):
        return
    for unit in state.units.live():
        users = len(state.users_of(unit))
        if unit.get("ref_count") != users:
            context.report(
                f"ref_count is {unit.get('ref_count')}, {users} live devices refer to it",
                path=unit.path, address=unit.address,
            )  # fmt: skip


def _unused_units(context: Context) -> None:
    state = _state(context)
    for unit in state.units.live() if state is not None else ():
        if unit.get("ref_count") == 0:
            context.report("live with ref_count 0", path=unit.path, address=unit.address)


def _untyped(context: Context) -> None:
    state = _state(context)
    for unit in state.units.live() if state is not None else ():
        if unit.values.get("type") == 0:
            context.report("a live unit has type 0", path=unit.path, address=unit.address)


def _register_bases(context: Context) -> None:
    """A unit's token is its register base, which most layouts have a second time."""
    state = _state(context)
    for unit in state.units.live() if state is not None else ():
        base, token = unit.values.get("phys_addr"), unit.values.get("token")
        if base is not None and token != base:
            context.report(
                f"its token is {token:#x}, its registers are at {base:#x}",
                path=unit.path, address=unit.address,
            )  # fmt: skip


def _strays(context: Context) -> None:
    """What a domain maps belongs to preserved memory files."""
    image, state = context.image, _state(context)
    if state is None:
        return
    if any(not file.folios.complete for _, file in image.folio_files()):
        context.undecidable("folios of a memory file are missing")
        return
    if not context.all_files():
        return
    files: MemoryFiles | None = None
    tables = DomainTables(image)
    for domain in state.domains.live():
        if not domain.top_table_phys:
            continue
        known = context.walked.get(domain.address)
        if known is None:
            files = files or MemoryFiles(image)
            found = reach(tables, tables.root(domain), files)
        else:
            found = known.reach
        if found.elsewhere and found.complete:
            context.report(
                f"{size_text(found.elsewhere)} of {size_text(found.mapped)} mapped belong to no"
                " preserved memory file",
                path=domain.path, address=domain.address,
            )  # fmt: skip


def _orphans(context: Context) -> None:
    state = _state(context)
    if state is None:
        return
    if not _all_devices(context, state) or not context.all_files():
        return
    wanted = {h.domain_data for _, _, s in passthrough.iommufds(context.image) for h in s.hwpts}
    for domain in state.domains.live():
        if domain.address not in wanted and not len(state.users_of(domain)):
            context.report(
                "neither a device nor a HWPT refers to it", path=domain.path,
                address=domain.address,
            )  # fmt: skip


def _idle_hwpts(context: Context) -> None:
    state = _state(context)
    if state is None or not _all_devices(context, state):
        return
    for _, _, iommufd in passthrough.iommufds(context.image):
        for hwpt in iommufd.hwpts:
            domain = state.domains.at(hwpt.domain_data)
            if domain is not None and not domain.deleted and not len(state.users_of(domain)):
                context.report(
                    f"HWPT {hwpt.token:#x} is preserved but no device uses its domain",
                    path=hwpt.path, address=hwpt.address,
                )  # fmt: skip


def _consumer_state(context: Context) -> None:
    image, state = context.image, _state(context)
    if image.moment is Moment.INCOMING:
        context.undecidable("the image is of the consumer, which writes this state")
        return
    if state is None:
        return
    for objects in (state.units, state.domains, state.devices):
        for i in np.flatnonzero(objects.incoming & ~objects.deleted)[:64].tolist():
            context.report("INCOMING is set", path=objects[i].path, address=objects[i].address)
    for domain in state.domains.live():
        if domain.restored_domain:
            context.report(
                f"restored_domain is {domain.restored_domain:#x}", path=domain.path,
                address=domain.address,
            )  # fmt: skip
    for one in (*state.units.live(), *_maybe_restored(state)):
        if one.values.get("restored"):
            context.report("restored is set", path=one.path, address=one.address)
    for _, _, iommufd in passthrough.iommufds(image):
        for hwpt in iommufd.hwpts:
            if hwpt.reclaimed:
                context.report(
                    f"HWPT {hwpt.token:#x} is reclaimed", path=hwpt.path, address=hwpt.address
                )


def _maybe_restored(state: IommuState) -> Iterator[Device]:
    """Live devices whose union says "restored" in one of its views."""
    devices = state.devices
    marked = np.zeros(len(devices), np.bool_)
    for name, column in devices.columns.items():
        if name.rpartition(".")[2] == "restored":
            marked |= column != 0
    return (devices[i] for i in np.flatnonzero(marked & ~devices.deleted).tolist())


def _behind_vtd(state: IommuState) -> npt.NDArray[np.intp]:
    """Indices of the live devices that are behind a VT-d unit."""
    devices, units = state.devices, state.units
    at = units.array.find(devices.column("iommu_phys").astype(np.uint64))
    wanted = ~devices.deleted & (at >= 0)
    # Not by the view: the second series has a type and nothing that goes with it.
    vtd = np.array([VIEW_OF_TYPE.get(u.values.get("type", 0)) == "intel" for u in units], np.bool_)
    wanted[wanted] = vtd[at[wanted]]
    return np.flatnonzero(wanted)


def _first_alike(*keys: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """For each row the first row that has the same keys."""
    order = np.lexsort(keys)
    fresh = np.ones(len(order), np.bool_)
    if len(order):
        fresh[1:] = False
    for key in keys:
        fresh[1:] |= key[order[1:]] != key[order[:-1]]
    first = np.empty(len(order), np.intp)
    first[order] = order[fresh][np.cumsum(fresh) - 1]
    return first


def _ids(context: Context) -> None:
    """VT-d domain ids: in range."""
    state = _state(context)
    if state is None:
        return
    rows = _behind_vtd(state)
    ids = state.devices.column("attachment_id")[rows].astype(np.uint64)
    for i in rows[(ids < _FIRST_DID) | (ids >= _MAX_DID)].tolist():
        device = state.devices[i]
        context.report(
            f"{device.name}: domain id {device.attachment_id} is not one of a domain",
            path=device.path, address=device.address,
        )  # fmt: skip


def _ids_unique(context: Context) -> None:
    """Behind one unit a domain id means one domain, and a domain has one id."""
    state = _state(context)
    if state is None:
        return
    rows = _behind_vtd(state)
    unit, domain, did = (
        state.devices.column(name)[rows] for name in ("iommu_phys", "domain_phys", "attachment_id")
    )
    by_id, by_domain = _first_alike(unit, did), _first_alike(unit, domain)
    shared, double = domain != domain[by_id], did != did[by_domain]
    for i in np.flatnonzero(shared | double).tolist():
        device = state.devices[int(rows[i])]
        if shared[i]:
            context.report(
                f"{device.name}: domain id {device.attachment_id} is another domain's too",
                path=device.path, address=device.address,
            )  # fmt: skip
        if double[i]:
            context.report(
                f"{device.name}: its domain also has id {int(did[by_domain[i]])}",
                path=device.path, address=device.address,
            )  # fmt: skip


def _devices_unique(context: Context) -> None:
    state = _state(context)
    if state is None:
        return
    live = np.flatnonzero(~state.devices.deleted)
    names = (state.devices.column(name)[live] for name in ("pci_domain_nr", "devid"))
    for i in live[_first_alike(*names) != np.arange(len(live))].tolist():
        device = state.devices[i]
        context.report(f"{device.name} is live twice", path=device.path, address=device.address)


def _owner_tokens(context: Context) -> None:
    """The iommufd that owns a device's DMA is a file of some session."""
    state = _state(context)
    if state is None or "dma_owner_token" not in state.devices.columns or not context.all_files():
        return
    devices = state.devices
    tokens = [file.token for _, file, _ in passthrough.iommufds(context.image)]
    known = np.isin(devices.columns["dma_owner_token"], np.array(tokens, np.uint64))
    for i in np.flatnonzero(~known & ~devices.deleted).tolist():
        device = devices[i]
        context.report(
            f"{device.name}: no iommufd has its owner's token {device.dma_owner_token:#x}",
            path=device.path, address=device.address,
        )  # fmt: skip


def _vfio_links(context: Context) -> None:
    """A VFIO device names the iommufd of its own session by a 32-bit token."""
    tokens: dict[str, tuple[frozenset[int], frozenset[int]]] = {}
    for session, file, device in passthrough.vfio_devices(context.image):
        token = getattr(device, "iommufd_token", None)
        if token is None:
            continue
        if session.path not in tokens:
            some = [f.token for f in session.files if f.compatible.startswith(b"iommufd")]
            tokens[session.path] = frozenset(some), frozenset(t & 0xFFFF_FFFF for t in some)
        full, cut = tokens[session.path]
        if token not in cut and not session.complete:
            context.undecidable("files of a session are missing")
        elif token not in cut:
            context.report(
                f"{device.name}: its session has no iommufd with token {token:#x}",
                path=file.path, address=device.address,
            )  # fmt: skip
        elif token not in full:
            context.report(
                f"{device.name}: token {token:#x} is a cut copy of a 64-bit one",
                path=file.path, address=device.address,
            )  # fmt: skip


RULES = (
    Rule(
        "KHO-IOM-001", ERROR, "The IOMMU state has an unknown version.",
        "A version other than 1 panics at boot (version-word revision).",
        "kho dump IMAGE /LUO/flbs",
    ),
    Rule("KHO-IOM-002", ERROR, "An array pointer of the IOMMU state is 0.", "Panic at boot."),
    Rule(
        "KHO-IOM-003", ERROR, "An object does not know its own index.",
        "It is found by another's index (RFC v2, v1).",
    ),
    Rule(
        "KHO-IOM-004", ERROR, "A unit has an unknown type.",
        "No driver takes it: its devices get -EINVAL.",
    ),
    Rule(
        "KHO-IOM-010", ERROR, "A device points to a domain or unit that is none, or is deleted.",
        "BUG when the device is probed.", "kho devices IMAGE",
    ),
    Rule(
        "KHO-IOM-011", ERROR, "A unit's ref_count is not the number of its live devices.",
        "Its tables are freed too early, or never.", "kho devices IMAGE", _reference_counts,
    ),
    Rule(
        "KHO-IOM-012", ERROR, "A live unit has ref_count 0.", "Its tables may be freed already.",
        "kho devices IMAGE", _unused_units,
    ),
    Rule(
        "KHO-IOM-013", INFO, "Nothing refers to a live domain.",
        "The consumer never touches it: its memory is lost.", "kho devices IMAGE", _orphans,
    ),
    Rule(
        "KHO-IOM-014", ERROR, "State that only a consumer writes is set in a producer's image.",
        "The consumer takes the object for restored and does not restore it.",
        test=_consumer_state,
    ),
    Rule(
        "KHO-IOM-015", ERROR, "A domain id cannot be that of a preserved domain.",
        "DID 0 is accepted silently by 7.3 with the series; ids from the top of the range fail.",
        "kho devices IMAGE", _ids,
    ),
    Rule(
        "KHO-IOM-016", ERROR, "Behind one unit, domain ids and domains are not one to one.",
        "The hardware's caches mix two domains up.", "kho devices IMAGE", _ids_unique,
    ),
    Rule(
        "KHO-IOM-017", ERROR, "A device is live twice.", "The first is used, the second leaks.",
        "kho devices IMAGE", _devices_unique,
    ),
    Rule(
        "KHO-IOM-018", ERROR, "The iommufd that owns a device's DMA is not preserved.",
        "The device cannot be attached again.", "kho devices IMAGE", _owner_tokens,
    ),
    Rule(
        "KHO-IOM-019", ERROR, "A live unit has type 0.", "No driver takes it.", test=_untyped,
    ),
    Rule(
        "KHO-IOM-020", WARNING, "A domain maps memory that no preserved file holds.",
        "Devices go on with DMA to memory that the next kernel uses for something else.",
        "kho pagetable IMAGE DOMAIN", _strays,
    ),
    Rule(
        "KHO-IOM-021", ERROR, "A unit's token is not the address of its registers.",
        "No unit of the machine has it: a warning, and -EINVAL for each of its devices (7.3 with"
        " the version-word revision).",
        test=_register_bases,
    ),
    Rule(
        "KHO-IFD-001", ERROR, "An iommufd counts more HWPTs than can be read.",
        "-EFAULT on retrieve.",
    ),
    Rule(
        "KHO-IFD-002", ERROR, "Two HWPTs of an iommufd have one token.",
        "Only the first can be restored.",
    ),
    Rule("KHO-IFD-003", WARNING, "reclaimed is neither 0 nor 1.", "It counts as set."),
    Rule(
        "KHO-IFD-010", ERROR, "A HWPT names no live domain.",
        "Restoring the HWPT reads what is not a domain: BUG.", "kho devices IMAGE",
    ),
    Rule(
        "KHO-IFD-011", INFO, "A HWPT is preserved that no device uses.",
        "Nothing; a mark on it that was not meant to stay cannot be undone.",
        "kho devices IMAGE", _idle_hwpts,
    ),
    Rule("KHO-PCI-001", ERROR, "The PCI state has an unknown version.", "-EINVAL on retrieve."),
    Rule(
        "KHO-PCI-002", ERROR, "The PCI state counts more devices than it has slots.",
        "The consumer reads beyond the array.",
    ),
    Rule("KHO-PCI-003", ERROR, "A PCI device is listed twice.", "Retrieve of the list fails."),
    Rule(
        "KHO-PCI-004", WARNING, "The number of PCI devices is not that of the slots in use.",
        "One stored draft never lowers the count; later preserves fail with -ENOSPC.",
    ),
    Rule("KHO-PCI-005", ERROR, "The PCI state has more slots than any machine.", "-EINVAL."),
    Rule(
        "KHO-VFI-001", ERROR, "A VFIO device has a configuration space of impossible size.",
        "-EINVAL on retrieve (RFC v1).",
    ),
    Rule(
        "KHO-VFI-002", ERROR, "A VFIO device's list of saved capabilities does not end.",
        "The consumer reads beyond it (RFC v1).",
    ),
    Rule(
        "KHO-VFI-010", ERROR, "A VFIO device is not among the preserved PCI devices.",
        "It is reset and probed as new: its file cannot be retrieved.", "kho devices IMAGE",
    ),
    Rule(
        "KHO-VFI-011", WARNING, "A VFIO device's iommufd token does not name one of its session.",
        "The device cannot be bound to its iommufd again.", "kho devices IMAGE", _vfio_links,
    ),
    Rule(
        "KHO-LST-008", ERROR, "A list of pages is shorter than its counts need.",
        "The walk follows a null pointer.",
    ),
    Rule("KHO-LST-009", INFO, "A list of pages is longer than its counts need.", "Nothing."),
)  # fmt: skip
