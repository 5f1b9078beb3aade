"""Devices that were handed over get their domains back, with the page tables these had."""

from __future__ import annotations

from functools import cache

import numpy as np

from abi import vtd
from abi.errors import UsageError
from abi.iommu import FIRST_DID, INCOMING
from abi.pagetable import Format, lookup
from abi.pagetable.format import Kind
from abi.schema import Struct
from inspector.findings import Outcome
from inspector.kernel.incoming.device_state import (
    Bug,
    Devices,
    RestoredDomain,
    live_rows,
    set_member,
    take,
    take_many,
)
from inspector.kernel.machine.hardware import PciDevice, UnitType, format_bdf
from inspector.memory.base import U64Array
from inspector.pagetable.plan import LevelPlan, level_plans
from inspector.pagetable.tree import table as describe
from inspector.walk.iommu import Device, IommuState, Unit, flatten

#: Kernel addresses that the model gives to restored domains.
_POINTERS = 0xFFFF_8880_0000_0000
#: Page tables of one domain; more are no sound tree.
_MAX_TABLES = 1 << 22


def attach(found: Devices, state: IommuState) -> None:
    """Give every device that was handed over its domain back, the first object of each."""
    devices, rows = state.devices, live_rows(state)
    columns = [
        devices.column(name)[rows].tolist()
        for name in ("pci_domain_nr", "devid", "iommu_phys", "attachment_id", "domain_phys")
    ]
    tables = devices.columns.get("intel.pasid_table")
    units = {u.address: u for u in state.units.live() if u.address in found.dids}
    limits = {
        at: (unit.domain_ids, unit.type == UnitType.INTEL)
        for at, u in units.items()
        if (unit := found.hardware.unit(u.token)) is not None
    }
    taken: list[int] = []
    for row, segment, devid, unit_at, did, domain_at in zip(rows.tolist(), *columns, strict=True):
        hardware = found.device(segment, devid) if devid < 1 << 16 else None
        if hardware is None:
            _lost(found, devices[row])
            continue
        if hardware.key in found.devices or hardware.key in found.failed:
            continue
        limit = limits.get(unit_at)
        if limit is None:
            known = state.units.at(unit_at) is not None
            why = "its unit is not restored" if known else "it points to no unit"
            _failed(found, devices[row], hardware, why)
            continue
        found.dids[unit_at].add(did)
        if did >= limit[0]:
            _failed(found, devices[row], hardware, f"DID {did} cannot be reserved")
            continue
        if did < FIRST_DID and limit[1]:
            found.boot.notes.append(f"{hardware}: DID {did} is accepted silently")
        domain = found.domains.get(domain_at)
        if domain is None:
            domain = _domain(found, state, devices[row], units[unit_at])
        domain.devices.add(hardware.key)
        found.devices[hardware.key] = domain_at
        if tables is not None and tables[row] and limit[1]:
            _other_mode(found, units[unit_at])
            _pasid(found, devices[row], hardware, units[unit_at])
        taken.append(row)
    _mark(found, devices.kind.objects, devices.addresses[taken])


def _lost(found: Devices, device: Device) -> None:
    found.boot.reasons.add(
        Outcome.STATE_LOST, f"no device {device.name} in this machine: its state is not used",
        path=device.path, address=device.address,
    )  # fmt: skip


def _failed(found: Devices, device: Device, hardware: PciDevice, why: str) -> None:
    found.failed[hardware.key] = why
    found.boot.reasons.add(
        Outcome.FILE_ERROR, f"{device.name} gets no domain: {why}", path=device.path,
        address=device.address, errno="EINVAL",
    )  # fmt: skip


def _mark(found: Devices, struct: Struct, addresses: U64Array) -> None:
    """Set INCOMING in the headers of objects, whose addresses ascend."""
    memory, page = found.boot.view.memory, found.boot.view.page_size
    at = addresses + np.uint64(_flags_offset(struct))
    number = at // np.uint64(page)
    for rows in np.split(np.arange(len(at)), np.flatnonzero(number[1:] != number[:-1]) + 1):
        if len(rows):
            start = int(number[rows[0]]) * page
            data = np.frombuffer(memory.read(start, page), np.uint8).copy()
            data[at[rows] - np.uint64(start)] |= INCOMING
            memory.write(start, data)


@cache
def _flags_offset(struct: Struct) -> int:
    """Where the flags of an object are: behind the reference count of its header."""
    return next(f.offset for f in struct.flat_fields() if f.name.endswith("ref_count")) + 4


def _domain(found: Devices, state: IommuState, device: Device, unit: Unit) -> RestoredDomain:
    boot, at = found.boot, device.domain_phys
    kind = state.domains.kind
    assert boot.preserved is not None
    page = at - at % boot.view.page_size
    if not boot.preserved.covers(np.array([page], np.uint64), boot.view.page_size)[0]:
        raise Bug(
            f"{device.name}: its domain object {at:#x} is not in preserved memory: BUG",
            device.path, device.address,
        )  # fmt: skip
    known = state.domains.at(at)
    if known is not None and known.deleted:
        boot.reasons.add(
            Outcome.CANNOT_TELL, f"{device.name} points to a deleted domain", path=device.path,
            address=device.address,
        )  # fmt: skip
    values = flatten(kind.objects.unpack(boot.view.read(at, kind.objects.size)), "")
    native = state.generation.native
    top, level = values[native("top_table_phys")], values[native("top_level")]
    format_ = _format(found, device, unit)
    path = known.path if known is not None else f"{state.domains.path}@{at:#x}"
    pages = _page_table(found, format_, top, level, values.get("vasz"), path)
    pointer = _POINTERS + 0x1000 * len(found.domains)
    tables = sum(len(frames) for frames, _ in pages)
    domain = RestoredDomain(at, top, level, format_.name, pointer, tables, pages)
    offset = kind.objects.field("restored_domain").offset
    boot.view.memory.write(at + offset, pointer.to_bytes(8, "little"))
    _mark(found, kind.objects, np.array([at], np.uint64))
    found.domains[at] = domain
    return domain


def _format(found: Devices, device: Device, unit: Unit) -> Format:
    """The format of a device's page table, as its driver knows it."""
    view = found.boot.view
    if unit.type == UnitType.ARM_SMMUV3:
        return lookup(f"lpae-s2-{view.page_size >> 10}k")
    if device.pasid_table:
        table = vtd.parse_pasid_directory_entry(view.read(device.pasid_table & ~0xFFF, 8))
        entry = vtd.parse_pasid_entry(view.read(table & ~0xFFF, 64))
        if entry.pgtt == vtd.Pgtt.FIRST_STAGE:
            return lookup("x86-64")
    return lookup("vtdss")


def _page_table(
    found: Devices, format_: Format, top: int, level: int, vasz: int | None, path: str
) -> list[tuple[U64Array, int]]:
    """Restore every table of a domain from the top down: (first frames, order). Raises Bug."""
    boot = found.boot
    if not top:
        raise Bug("the domain has no top table: BUG", path, None)
    if level >= len(format_.levels):
        raise Bug(f"top_level {level} is impossible", path, top)
    try:
        start = describe(format_, top, level + 1, vasz=_sane(format_, level, vasz)).start_entries
    except UsageError as error:
        raise Bug(f"{error}: BUG", path, top) from None
    shift = np.uint64(boot.view.page_shift)
    order = take(found, top, path, "the top table")
    plans = _plans(format_.name)
    tables = np.array([top], np.uint64)
    pages = [(tables >> shift, order)]
    count = 1
    for depth in range(level, 0, -1):
        size = start * 8 if depth == level else 8 * format_.entries
        words = boot.view.gather(tables, size).reshape(-1).view("<u8")
        words = words[words != 0].astype(np.uint64, copy=False)
        tables = format_.table_pa(words[plans[depth].kind_of(words) == Kind.TABLE])
        if not len(tables):
            break
        count += len(tables)
        if count > _MAX_TABLES:
            raise Bug("the page table has no end", path, top)
        take_many(found, tables, path, "a page table")
        pages.append((tables >> shift, 0))
    return pages


@cache
def _plans(name: str) -> tuple[LevelPlan, ...]:
    return level_plans(lookup(name), None)


def _sane(format_: Format, level: int, vasz: int | None) -> int | None:
    """Bits of input address that a start table of the format can have, else None."""
    if not format_.name.startswith("lpae") or vasz is None:
        return None
    shift = format_.levels[level].shift
    extra = (format_.entries * format_.max_start_tables).bit_length() - 1
    return vasz if shift <= vasz <= shift + extra else None


def _other_mode(found: Devices, unit: Unit) -> None:
    """Tables of scalable mode, and a unit that does not run in it."""
    hardware = found.hardware.unit(unit.token)
    if found.hardware_known and hardware is not None and not hardware.scalable:
        found.boot.reasons.add(
            Outcome.CANNOT_TELL,
            f"the IOMMU {unit.token:#x} runs in legacy mode here, its tables are of scalable mode:"
            " that was never observed",
            path=unit.path, address=unit.address,
        )  # fmt: skip


def _pasid(found: Devices, device: Device, hardware: PciDevice, unit: Unit) -> None:
    """Take a device's PASID directory and tables over."""
    directory = device.pasid_table & ~0xFFF
    if not directory:
        return
    covered = device.get("max_pasid")
    if found.hardware_known and covered != _pasids(found, hardware):
        raise Bug(
            f"{device.name}: max_pasid {covered:#x} is not this kernel's: BUG", device.path,
            device.address,
        )  # fmt: skip
    order = take(found, directory, device.path, "the PASID directory")
    size = max(1, covered >> 6)
    words = np.frombuffer(found.boot.view.read(directory, 8 * min(size, 1 << 14)), "<u8")
    used = words[words & np.uint64(1) != 0].astype(np.uint64) & np.uint64(~0xFFF & (1 << 64) - 1)
    take_many(found, used, device.path, "a PASID table")
    if len(used) and unit.token in found.tables:
        found.tables[unit.token].pasids[hardware.key] = (directory, order, int(used[0]))
    set_member(found, device.generation.devices, device.address, "restored", 1)


def _pasids(found: Devices, hardware: PciDevice) -> int:
    """How many PASIDs the driver allocates a directory for."""
    page = found.boot.view.page_size
    order = (max(1, -(-((hardware.max_pasid >> 6) * 8) // page)) - 1).bit_length()
    return (page << order) // 8 << 6


def unmatched(found: Devices, state: IommuState) -> None:
    """Devices of the PCI state whose IOMMU state this kernel does not find."""
    for key in sorted(found.pci or ()):
        hardware = found.device(key >> 16, key & 0xFFFF)
        if hardware is None or not hardware.unit or hardware.driver != "vfio-pci":
            continue
        if key not in found.devices and key not in found.failed and found.devices:
            found.boot.notes.append(f"{format_bdf(key >> 16, key & 0xFFFF)} has no IOMMU state")
