"""Root, context and PASID tables of VT-d against units, domains and devices."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from abi import vtd
from abi.device_table import TableRoot
from abi.vtd import ContextEntry, PasidEntry, Pgtt, ScalableContextEntry
from inspector.device_tables.comparison import Checker
from inspector.device_tables.vtd import Attachment, RootTable
from inspector.survey import Survey
from inspector.walk.iommu import Device, Domain, IommuState, Unit, device_name


def root_table_of(survey: Survey, state: IommuState, unit: Unit) -> RootTable:
    """A unit's root table, its mode taken from its devices where they tell."""
    devices = state.devices
    scalable = None
    if "intel.pasid_table" in devices.columns:
        mine = (devices.column("iommu_phys") == unit.address) & ~devices.deleted
        scalable = bool(devices.columns["intel.pasid_table"][mine].any()) or None
    return RootTable(survey, unit.root_table, path=unit.path, scalable=scalable)


def compare_vtd(checker: Checker, unit: Unit) -> None:
    root = root_table_of(checker.survey, checker.state, unit)
    if not root.readable:
        checker.report(
            "KHO-VTD-001",
            f"root table {unit.root_table:#x} cannot be read",
            unit.path,
            unit.root_table,
        )
        return
    _bitmap(checker, unit, root)
    for half, bits in root.reserved.items():
        checker.report(
            "KHO-VTD-011",
            f"reserved bits {bits:#x} in the root entry of bus {half >> 1:#x}",
            unit.path,
            root.address + 8 * half,
        )
    users = checker.state.users_of(unit)
    preserved = set(checker.state.devices.column("devid")[users].tolist())
    domains: dict[int, Domain | None] = {}
    for index in users[~_sound(checker.state, root, users)].tolist():
        device = checker.state.devices[index]
        where = device.domain_phys
        if where not in domains:
            domains[where] = checker.state.domains.at(where)
        domain = domains[where]
        attachment = root.attachment(device.devid) if device.devid >> 16 == 0 else None
        if attachment is None or not attachment.present:
            checker.report(
                "KHO-VTD-004",
                f"{device.name}: no present context entry",
                device.path,
                attachment.address if attachment else device.address,
            )
            continue
        _attachment(checker, device, domain, attachment)
    if checker.booted:
        return  # the next kernel adds entries of its own devices
    if not checker.state.devices.array.complete:
        checker.undecided["KHO-VTD-009"] = "device objects are missing"
        return
    for devid in root.present_devices():
        if devid not in preserved:
            found = root.attachment(devid)
            checker.report(
                "KHO-VTD-009",
                f"context entry of {device_name(0, devid)}, which is not preserved",
                unit.path,
                found.address if found else None,
            )


def _sound(
    state: IommuState, root: RootTable, users: npt.NDArray[np.intp]
) -> npt.NDArray[np.bool_]:
    """Which devices there is nothing to say about: they are not looked at one by one."""
    devices, domains = state.devices, state.domains
    at = domains.array.find(devices.column("domain_phys")[users].astype(np.uint64))
    known = np.flatnonzero(at >= 0)
    sound = np.zeros(len(users), np.bool_)
    sound[known] = root.sound(
        devices.column("devid")[users[known]].astype(np.uint64),
        devices.column("attachment_id")[users[known]].astype(np.uint64),
        domains.column("top_table_phys")[at[known]].astype(np.uint64),
        domains.column("top_level")[at[known]].astype(np.uint64) + np.uint64(1),
    )
    if "sign_extend" in domains.columns:  # in legacy mode there is no first stage
        sound[known] &= domains.column("sign_extend")[at[known]] == 0
    return sound


def _bitmap(checker: Checker, unit: Unit, root: RootTable) -> None:
    bitmap = unit.context_tables
    if bitmap is None:
        return
    for code, halves, text in (
        ("KHO-VTD-002", bitmap - root.present, "is in the bitmap but not present"),
        ("KHO-VTD-003", root.present - bitmap, "is present but not in the bitmap"),
    ):
        if code == "KHO-VTD-003" and checker.booted:
            continue
        for half in sorted(halves):
            which = "upper" if half & 1 else "lower"
            checker.report(
                code,
                f"{which} half of the root entry of bus {half >> 1:#x} {text}",
                unit.path,
                root.address + 8 * half,
            )


def _attachment(checker: Checker, device: Device, domain: Domain | None, found: Attachment) -> None:
    entry = found.entry
    wrong = dict(entry.reserved)
    if isinstance(entry, ScalableContextEntry):
        if device.pasid_table and entry.pasid_directory != device.pasid_table:
            checker.report(
                "KHO-VTD-010",
                f"{device.name}: the hardware's PASID directory is {entry.pasid_directory:#x},"
                f" the object's {device.pasid_table:#x}",
                device.path,
                found.address,
            )
        covered = vtd.directory_entries(device.get("max_pasid"))
        if device.pasid_table and entry.directory_entries != covered:
            checker.report(
                "KHO-VTD-010",
                f"{device.name}: the hardware's PASID directory has {entry.directory_entries}"
                f" entries, for the object's max_pasid it has {covered}",
                device.path,
                found.address,
            )
        if entry.page_request:
            checker.report("KHO-VTD-008", f"{device.name}: PRE is set", device.path, found.address)
        if found.pasid is None or not found.pasid.present:
            checker.report(
                "KHO-VTD-004",
                f"{device.name}: no PASID entry for requests without PASID",
                device.path,
                found.pasid_address or found.address,
            )
            return
        wrong |= found.pasid.reserved
    if wrong:
        checker.report(
            "KHO-VTD-011",
            f"{device.name}: reserved bits set: {', '.join(wrong)}",
            device.path,
            found.address,
        )
    if found.did != device.attachment_id:
        checker.report(
            "KHO-VTD-005",
            f"{device.name}: the hardware's DID is {found.did}, the object's"
            f" {device.attachment_id}",
            device.path,
            found.pasid_address or found.address,
        )
    if domain is not None:
        _page_table(checker, device, domain, found)


def _page_table(checker: Checker, device: Device, domain: Domain, found: Attachment) -> None:
    pasid: PasidEntry | None = found.pasid
    nested = pasid is not None and pasid.pgtt == Pgtt.NESTED
    root: TableRoot | None = found.roots[0] if found.roots else None
    at = found.pasid_address or found.address
    if root is None:
        kind = "pass-through" if isinstance(found.entry, ContextEntry) or pasid else "nothing"
        checker.report(
            "KHO-VTD-006",
            f"{device.name}: the tables say {kind}, the domain has table"
            f" {domain.top_table_phys:#x}",
            device.path,
            at,
        )
        return
    if root.address != domain.top_table_phys:
        parent = " of its nesting parent" if nested else ""
        checker.report(
            "KHO-VTD-006",
            f"{device.name}: the hardware walks {root.address:#x}, the domain{parent} has"
            f" {domain.top_table_phys:#x}",
            device.path,
            at,
        )
    first_stage = root.format == "x86-64"
    if domain.sign_extend is not None and first_stage != bool(domain.sign_extend):
        stages = ("second", "first")
        checker.report(
            "KHO-VTD-006",
            f"{device.name}: the hardware walks a {stages[first_stage]}-stage table, the domain"
            f" has a {stages[not first_stage]}-stage one (sign_extend {domain.sign_extend})",
            device.path,
            at,
        )
    if root.levels != domain.levels:
        checker.report(
            "KHO-VTD-007",
            f"{device.name}: the hardware walks {root.levels} levels, the domain has"
            f" {domain.levels}",
            device.path,
            at,
        )
