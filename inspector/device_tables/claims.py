"""Whose the pages of page tables and device tables are.

Decoding an image does not walk page tables: that may take a while, and few verbs need it.
Those that account for memory call :func:`claim_tables` first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from abi.dma_alloc import dma_alloc_ser, dma_alloc_ser_a
from abi.errors import UsageError
from abi.pagetable import lookup
from abi.vtd import ScalableContextEntry
from inspector import passthrough
from inspector.device_tables.cross_smmuv3 import level_2_handles, stream_tables_of
from inspector.device_tables.cross_vtd import root_table_of
from inspector.memory.base import U64Array
from inspector.survey import Survey
from inspector.walk.iommu import IommuState, Unit

if TYPE_CHECKING:
    from abi.device_table import TableRoot
    from inspector.findings import Finding, Findings
    from inspector.image import Image
    from inspector.passthrough.reach import Reach

PAGE_TABLE = "page-table"
DEVICE_TABLE = "device-table"

#: Context descriptors of a device: up to 2^20 of 64 bytes, 1024 in a level-2 table.
_MOST_CD_TABLES = 1 << 10
_MAX_CD_BYTES = 64 << 20


#: Findings of each code that are kept of all page tables of an image.
_MAX_FINDINGS = 1 << 12


@dataclass(frozen=True, slots=True)
class WalkedTable:
    """What one pass over the page table of a domain found, and where it leads.

    What is wrong with a table that several domains have is among the findings of the first.
    """

    findings: list[Finding]
    reach: Reach


def claim_tables(image: Image, walked: dict[int, WalkedTable] | None = None) -> None:
    """Claim the tables of every live domain, unit and device for it; once an image.

    Stream tables are reached through the handles of their memory. What the image lacks is not
    claimed, what the dump left out is counted. ``walked`` is filled by domain address, for those
    who would walk once more.
    """
    state = passthrough.iommu_state(image)
    if state is None or any(c.kind == PAGE_TABLE for c in image.survey.claims):
        return
    _domains(image, state, walked)
    survey = Survey(image.memory, image.page_size)
    for unit in state.units.live():
        if unit.view == "intel" and unit.root_table:
            _vtd(image, survey, state, unit)
        elif unit.view == "smmuv3":
            _smmuv3(image, survey, unit)
            _descriptors(image, survey, state, unit)
    image.survey.left_out += survey.left_out


def _domains(image: Image, state: IommuState, walked: dict[int, WalkedTable] | None) -> None:
    from inspector.passthrough.domains import DomainTables
    from inspector.passthrough.reach import MemoryFiles, reach_of

    files = None if walked is None else MemoryFiles(image)
    tables, kept = DomainTables(image), Counter[str]()
    known: dict[TableRoot, tuple[U64Array, Reach | None]] = {}
    for domain in state.domains.live():
        if not domain.top_table_phys:
            continue
        root = tables.root(domain)
        findings: list[Finding] = []
        try:
            if root not in known:
                walk = tables.walk(root, domain.path, preserved=walked is not None)
                found = None if files is None else reach_of(walk, root, files)
                known[root] = walk.table_pages, found
                findings = _worth_keeping(walk.findings, kept)
        except UsageError:
            continue
        pages, found = known[root]
        if walked is not None and found is not None:
            walked[domain.address] = WalkedTable(findings, found)
        image.survey.claim(PAGE_TABLE, domain.path, pages, lookup(root.format).granule)


def _worth_keeping(findings: Findings, kept: Counter[str]) -> list[Finding]:
    """Those of one walk; not thousands of one code, which ``kept`` counts over all walks."""
    worth = []
    for finding in findings.items:
        kept[finding.code] += 1
        if kept[finding.code] <= _MAX_FINDINGS:
            worth.append(finding)
    return worth


def _vtd(image: Image, survey: Survey, state: IommuState, unit: Unit) -> None:
    root = root_table_of(survey, state, unit)
    if not root.readable:
        return
    bitmap = unit.context_tables
    tables = [a for half, a in root.tables.items() if bitmap is None or half in bitmap]
    _claim(image, unit.path, [root.address, *tables])
    if not root.scalable:
        return  # no device has tables of its own
    for device in state.devices_of(unit):
        found = root.attachment(device.devid) if device.devid < 1 << 16 else None
        if found is None or not isinstance(found.entry, ScalableContextEntry):
            continue
        if not found.present:
            continue
        entry = found.entry
        size = entry.directory_entries * 8
        image.survey.claim(DEVICE_TABLE, device.path, entry.pasid_directory, size)
        _claim(image, device.path, list(root.pasid_tables(entry).values()))


def _smmuv3(image: Image, survey: Survey, unit: Unit) -> None:
    tables = stream_tables_of(survey, unit)
    if tables is None or not tables.supported:
        return
    image.survey.claim(DEVICE_TABLE, unit.path, tables.table.base, tables.table.size)
    handles = [unit.get("l1_strtab_lu_state")]
    for descriptor in tables.l1_descriptors().values():
        image.survey.claim(DEVICE_TABLE, unit.path, descriptor.l2_table, descriptor.entries * 64)
    level_2 = level_2_handles(survey, unit, tables)
    if level_2 is not None:
        first = unit.get("l2_strtab_lu_states_phys")
        image.survey.claim("struct", unit.path, first, 8 * len(level_2))
        handles += level_2
    for handle in handles:
        size = _handle_size(survey, unit, handle) if handle else 0
        if size:
            image.survey.claim("struct", unit.path, handle, size)


def _descriptors(image: Image, survey: Survey, state: IommuState, unit: Unit) -> None:
    """The context descriptor tables of a unit's devices, each with the struct that names it."""
    for device in state.devices_of(unit):
        handles = [device.get("l1_cdtab_lu_state")]
        first, count = device.get("l2_cdtab_lu_states_phys"), device.get("num_l2_cdtables")
        if first and count:
            raw = survey.read(first, 8 * min(count, _MOST_CD_TABLES), device.path)
            if raw is not None:
                image.survey.claim("struct", device.path, first, len(raw))
                handles += np.frombuffer(raw, "<u8").tolist()
        for handle in handles:
            size = _handle_size(survey, unit, handle) if handle else 0
            if not size:
                continue
            image.survey.claim("struct", device.path, handle, size)
            pages, each = _allocated(survey, unit, handle, image.page_size)
            if len(pages):
                image.survey.claim(DEVICE_TABLE, device.path, pages, each)


def _handle_size(survey: Survey, unit: Unit, handle: int) -> int:
    if "strtab_base" in unit.values:
        return dma_alloc_ser_a.size
    head = survey.unpack(dma_alloc_ser, handle, unit.path)
    if head is None:
        return 0
    return dma_alloc_ser.size + 8 * min(1 if head["is_contiguous"] else head["nr_pages"], 1 << 16)


def _allocated(survey: Survey, unit: Unit, handle: int, page: int) -> tuple[U64Array, int]:
    """Where the memory of a DMA allocation lies, and the bytes there are at each address."""
    nothing = np.empty(0, np.uint64), page
    raw = survey.read(handle, _handle_size(survey, unit, handle), unit.path)
    if raw is None:
        return nothing
    if "strtab_base" in unit.values:
        head = dma_alloc_ser_a.unpack(raw[: dma_alloc_ser_a.size])
        count, starts = -(-head["size"] // page), [head["page_phys"]]
    else:
        head = dma_alloc_ser.unpack(raw[: dma_alloc_ser.size])
        count, starts = head["nr_pages"], np.frombuffer(raw[dma_alloc_ser.size :], "<u8").tolist()
        if not head["is_contiguous"]:
            return np.array(starts, np.uint64), page
    # No table of descriptors is larger than this: what says so is not believed.
    return nothing if count * page > _MAX_CD_BYTES else (np.array(starts, np.uint64), count * page)


def _claim(image: Image, owner: str, pages: list[int]) -> None:
    column: U64Array = np.array(pages, np.uint64)
    if len(column):
        image.survey.claim(DEVICE_TABLE, owner, column, 0x1000)
