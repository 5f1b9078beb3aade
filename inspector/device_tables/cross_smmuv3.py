"""Stream tables of SMMUv3 against units, domains and devices."""

from __future__ import annotations

import numpy as np

from abi.dma_alloc import dma_alloc_ser, dma_alloc_ser_a
from abi.smmuv3 import SteConfig
from inspector.device_tables.comparison import Checker
from inspector.device_tables.smmuv3 import Stream, StreamTables
from inspector.survey import Survey
from inspector.walk.iommu import Device, Unit


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


def _level_2(checker: Checker, unit: Unit, tables: StreamTables) -> None:
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


def compare_smmuv3(checker: Checker, unit: Unit) -> None:
    tables = stream_tables_of(checker.survey, unit)
    if tables is None or not tables.supported:
        checker.report("KHO-SMM-001", "the stream table cannot be found", unit.path, unit.address)
        return
    _level_2(checker, unit, tables)
    for device in checker.state.devices_of(unit):
        known = checker.survey.left_out
        stream = tables.stream(device.devid)
        cut = checker.survey.left_out > known
        if stream is None or not stream.entry.valid:
            checker.report(
                "KHO-SMM-002",
                f"{device.name}: no valid stream table entry",
                device.path,
                stream.address if stream else device.address,
            )
        else:
            _stream(checker, device, stream, cut)


def _stream(checker: Checker, device: Device, stream: Stream, cut: bool) -> None:
    """``cut`` says that the dump left out a part of what the stream's entry leads to."""
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
            if entry.stage_1 and cut:
                why = "context descriptors of a device were left out of the image"
                checker.undecided["KHO-SMM-003"] = why
                return
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
