"""Device tables against the serialized objects: do they tell the same story?

For each live unit its tables are read as the hardware would, and for each live device
behind it compared with its object and its domain: DID, page table, width, PASID directory,
and the bitmap of context tables. At hand-over the hardware goes on translating with these
tables, so that a difference is DMA to memory that the next kernel believes free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from abi import vtd
from abi.device_table import TableRoot
from abi.dma_alloc import dma_alloc_ser, dma_alloc_ser_a
from abi.smmuv3 import SteConfig
from abi.vtd import ContextEntry, PasidEntry, Pgtt, ScalableContextEntry
from inspector import passthrough
from inspector.device_tables.smmuv3 import Stream, StreamTables
from inspector.device_tables.vtd import Attachment, RootTable
from inspector.findings import Findings, Severity
from inspector.image import Moment
from inspector.survey import Survey
from inspector.walk.iommu import Device, Domain, IommuState, Unit, device_name

if TYPE_CHECKING:
    from inspector.image import Image

#: Code -> (severity, what is wrong where it appears, what the kernel does about it).
CODES: dict[str, tuple[Severity, str, str]] = {
    "KHO-VTD-001": (
        Severity.ERROR,
        "A unit's root table cannot be read.",
        "The restore of the unit fails; every device behind it gets -EINVAL.",
    ),
    "KHO-VTD-002": (
        Severity.ERROR,
        "context_tables_bitmap has a bit whose half of the root entry is not present.",
        "The consumer restores a page at address 0: BUG.",
    ),
    "KHO-VTD-003": (
        Severity.ERROR,
        "A present half of a root entry is not in context_tables_bitmap.",
        "The context table is not restored: its page is reused while the hardware reads it.",
    ),
    "KHO-VTD-004": (
        Severity.ERROR,
        "A live device has no present context entry.",
        "The hardware blocks its DMA from the hand-over on.",
    ),
    "KHO-VTD-005": (
        Severity.ERROR,
        "The DID in the tables is not the device's attachment_id.",
        "The consumer reserves the wrong id and may give the used one to another domain.",
    ),
    "KHO-VTD-006": (
        Severity.ERROR,
        "The page table in the tables is not that of the device's domain.",
        "The hardware translates with a table that the consumer does not know.",
    ),
    "KHO-VTD-007": (
        Severity.ERROR,
        "The address width in the tables does not fit the domain's top_level.",
        "The hardware starts the walk at another level than the table has.",
    ),
    "KHO-VTD-008": (
        Severity.WARNING,
        "Page requests are enabled in a preserved context entry.",
        "The producer clears the bit at shutdown; requests would not be answered.",
    ),
    "KHO-VTD-009": (
        Severity.ERROR,
        "A context entry is present for a device that is not preserved.",
        "The producer clears it at shutdown; the device could go on with DMA.",
    ),
    "KHO-VTD-010": (
        Severity.ERROR,
        "The PASID directory in the tables is not the one of the device's object.",
        "The consumer restores another directory than the hardware uses.",
    ),
    "KHO-VTD-011": (
        Severity.WARNING,
        "Reserved bits are set in a root, context or PASID entry.",
        "The hardware reports a fault and blocks the device.",
    ),
    "KHO-SMM-001": (
        Severity.ERROR,
        "A unit's stream table cannot be found or read.",
        "The restore of the unit fails.",
    ),
    "KHO-SMM-002": (
        Severity.ERROR,
        "The stream table has no valid entry for a live device.",
        "The hardware blocks its DMA from the hand-over on.",
    ),
    "KHO-SMM-003": (
        Severity.ERROR,
        "The stage-2 table of a stream is not that of the device's domain.",
        "The hardware translates with a table that the consumer does not know.",
    ),
    "KHO-SMM-004": (
        Severity.WARNING,
        "The VMID of a stream is not the device's attachment_id.",
        "Not known; the meaning of attachment_id here is inferred.",
    ),
    "KHO-SMM-005": (
        Severity.ERROR,
        "The input size of a stream does not fit the domain's vasz.",
        "The hardware starts the walk at another level than the table has.",
    ),
    "KHO-SMM-006": (
        Severity.ERROR,
        "A level-2 stream table has no handle, or a handle no level-1 entry.",
        "Only what has a handle is restored: the table is reused while the hardware reads it.",
    ),
    "KHO-SMM-007": (
        Severity.WARNING,
        "The granule and start level of a stream do not fit the domain's top_level.",
        "The hardware would walk another number of levels; top_level here is inferred.",
    ),
    "KHO-SMM-008": (
        Severity.WARNING,
        "Reserved bits are set in a stream table entry.",
        "The hardware may refuse the entry and block the device.",
    ),
}

#: What is said of something that is not found; a dump may have left it out.
_NOT_FOUND = frozenset({"KHO-VTD-001", "KHO-VTD-004", "KHO-SMM-001", "KHO-SMM-002", "KHO-SMM-006"})


@dataclass(slots=True)
class _Checker:
    """The parts that every comparison needs; ``survey`` is of one unit's tables."""

    survey: Survey
    findings: Findings
    state: IommuState
    booted: bool
    undecided: dict[str, str]

    def report(self, code: str, message: str, path: str, address: int | None) -> None:
        if code in _NOT_FOUND and any(f.code == "KHO-MEM-001" for f in self.survey.findings.items):
            self.undecided[code] = "tables of a unit were left out of the image"
            return
        self.findings.add(code, CODES[code][0], message, path=path, address=address)


def cross_check(image: Image, undecided: dict[str, str] | None = None) -> Findings:
    """Findings (of :data:`CODES`) where tables and objects disagree.

    ``undecided`` is filled with codes that cannot be decided of every unit, and why.
    """
    findings = Findings()
    undecided = {} if undecided is None else undecided
    state = passthrough.iommu_state(image)
    if state is None:
        return findings
    booted = image.moment is Moment.INCOMING
    for unit in state.units.live():
        # A survey of its own: what it reads is not part of what decoding the image claims.
        survey = Survey(image.memory, image.page_size)
        checker = _Checker(survey, findings, state, booted, undecided)
        if unit.view == "intel" and unit.root_table:
            _vtd(checker, unit)
        elif unit.view == "smmuv3":
            _smmuv3(checker, unit)
    return findings


def root_table_of(survey: Survey, state: IommuState, unit: Unit) -> RootTable:
    """A unit's root table, its mode taken from its devices where they tell."""
    devices = state.devices
    scalable = None
    if "intel.pasid_table" in devices.columns:
        mine = (devices.column("iommu_phys") == unit.address) & ~devices.deleted
        scalable = bool(devices.columns["intel.pasid_table"][mine].any()) or None
    return RootTable(survey, unit.root_table, path=unit.path, scalable=scalable)


# -- VT-d -----------------------------------------------------------------------------------------


def _vtd(checker: _Checker, unit: Unit) -> None:
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


def _bitmap(checker: _Checker, unit: Unit, root: RootTable) -> None:
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


def _attachment(
    checker: _Checker, device: Device, domain: Domain | None, found: Attachment
) -> None:
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


def _page_table(checker: _Checker, device: Device, domain: Domain, found: Attachment) -> None:
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


# -- SMMUv3 ---------------------------------------------------------------------------------------


def stream_tables_of(survey: Survey, unit: Unit) -> StreamTables | None:
    """A unit's stream table, found by the handle of its memory; None if that is not to be had."""
    base = handle_address(survey, unit, unit.get("l1_strtab_lu_state"))
    if base is None:
        return None
    return StreamTables(survey, base, unit.get("strtab_base_cfg"), path=unit.path)


def handle_address(survey: Survey, unit: Unit, handle: int) -> int | None:
    """The first page of a DMA allocation whose ``struct dma_alloc_ser`` is at ``handle``."""
    if not handle:
        return None
    if "strtab_base" in unit.values:
        raw = survey.read(handle, dma_alloc_ser_a.size, unit.path)
        return dma_alloc_ser_a.unpack(raw)["page_phys"] if raw is not None else None
    raw = survey.read(handle, dma_alloc_ser.size + 8, unit.path)
    if raw is None:
        return None
    return int.from_bytes(raw[dma_alloc_ser.size :], "little") or None


def level_2_handles(survey: Survey, unit: Unit, tables: StreamTables) -> list[int] | None:
    """The handles of level-2 stream tables; None if the image lacks them or there is no array.

    Dense with a count in the first layout, one for each level-1 entry in the second.
    """
    first = unit.get("l2_strtab_lu_states_phys")
    if not first or not tables.table.two_level:
        return None
    count = unit.values.get("num_l2_tables", tables.table.l1_entries)
    raw = survey.read(first, 8 * min(count, 1 << 16), unit.path)
    return None if raw is None else np.frombuffer(raw, "<u8").tolist()


def _level_2(checker: _Checker, unit: Unit, tables: StreamTables) -> None:
    """What level-1 entries lead to is what there are handles of."""
    if checker.booted:
        return  # the consumer has tables of its own by then
    handles = level_2_handles(checker.survey, unit, tables)
    if handles is None:
        return
    kept = {
        address: handle
        for handle in handles
        if (address := handle_address(checker.survey, unit, handle)) is not None
    }
    led_to = {d.l2_table: i for i, d in tables.l1_descriptors().items()}
    for address, index in led_to.items():
        if address not in kept:
            checker.report(
                "KHO-SMM-006",
                f"level-1 entry {index:#x} leads to {address:#x}, which has no handle",
                unit.path,
                tables.table.base + 8 * index,
            )
    for address, handle in kept.items():
        if address not in led_to:
            checker.report(
                "KHO-SMM-006",
                f"no level-1 entry leads to {address:#x}, which has a handle",
                unit.path,
                handle,
            )


def _smmuv3(checker: _Checker, unit: Unit) -> None:
    tables = stream_tables_of(checker.survey, unit)
    if tables is None or not tables.supported:
        checker.report("KHO-SMM-001", "the stream table cannot be found", unit.path, unit.address)
        return
    _level_2(checker, unit, tables)
    for device in checker.state.devices_of(unit):
        stream = tables.stream(device.devid)
        if stream is None or not stream.entry.valid:
            checker.report(
                "KHO-SMM-002",
                f"{device.name}: no valid stream table entry",
                device.path,
                stream.address if stream else device.address,
            )
        else:
            _stream(checker, device, stream)


def _stream(checker: _Checker, device: Device, stream: Stream) -> None:
    entry, at = stream.entry, stream.address
    domain = checker.state.domains.at(device.domain_phys)
    if entry.reserved:
        names = ", ".join(entry.reserved)
        checker.report("KHO-SMM-008", f"{device.name}: reserved bits set: {names}", device.path, at)
    if not entry.stage_1 and not entry.stage_2 and entry.config != SteConfig.BYPASS:
        checker.report(
            "KHO-SMM-002",
            f"{device.name}: its stream table entry says abort (Config {entry.config})",
            device.path,
            at,
        )
        return
    if domain is None:
        return
    if not entry.stage_2:
        if domain.top_table_phys not in {root.address for root in stream.roots}:
            kind = "stage 1 only" if entry.stage_1 else "bypass"
            checker.report(
                "KHO-SMM-003",
                f"{device.name}: the tables say {kind}, the domain has table"
                f" {domain.top_table_phys:#x}",
                device.path,
                at,
            )
        return
    if entry.s2ttb != domain.top_table_phys:
        checker.report(
            "KHO-SMM-003",
            f"{device.name}: the hardware walks {entry.s2ttb:#x}, the domain has"
            f" {domain.top_table_phys:#x}",
            device.path,
            at,
        )
    if entry.s2vmid != device.attachment_id:
        checker.report(
            "KHO-SMM-004",
            f"{device.name}: VMID {entry.s2vmid}, attachment_id {device.attachment_id}",
            device.path,
            at,
        )
    if domain.vasz is not None and 64 - entry.s2t0sz != domain.vasz:
        checker.report(
            "KHO-SMM-005",
            f"{device.name}: input addresses of {64 - entry.s2t0sz} bits, the domain has"
            f" {domain.vasz}",
            device.path,
            at,
        )
    root = entry.root
    if root is None or root.levels != domain.levels:
        walked = f"{root.levels} levels" if root is not None else "a granule that there is not"
        checker.report(
            "KHO-SMM-007",
            f"{device.name}: the hardware walks {walked}, the domain has {domain.levels} levels",
            device.path,
            at,
        )
