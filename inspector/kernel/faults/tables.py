"""Faults of domain ids, device tables and page tables."""

from __future__ import annotations

from inspector.kernel.faults.base import Inapplicable, Library, Target
from inspector.kernel.faults.iommu import at_of, devices, domains, flb_of, map_member, write
from inspector.kernel.machine.hardware import PciDevice
from inspector.kernel.outgoing.iommu import Domain
from inspector.kernel.outgoing.smmuv3 import Smmuv3Unit
from inspector.kernel.outgoing.vtd import VtdUnit

fault = Library()


# -- domain ids and VT-d tables -------------------------------------------------------------


def _vtd(target: Target, *, scalable: bool | None = None) -> tuple[VtdUnit, PciDevice, int]:
    """(driver, device, index of its object) of a device behind a VT-d unit."""
    for device, index in devices(target):
        assert target.kernel.drivers is not None
        driver = target.kernel.drivers.of(device.unit)
        if isinstance(driver, VtdUnit) and scalable in (None, driver.unit.scalable):
            return driver, device, index
    raise Inapplicable("needs a preserved device behind a VT-d unit")


def _set_did(target: Target, did: int) -> None:
    flb, (_, _, index) = flb_of(target), _vtd(target)
    write(target, flb.devices, index, map_member(flb, "attachment_id"), did)


@fault("did-zero", 17, "domain id 0: accepted silently")
def _did_zero(target: Target) -> None:
    _set_did(target, 0)


@fault("did-one", 17, "domain id 1, which the driver keeps for pass-through")
def _did_one(target: Target) -> None:
    _set_did(target, 1)


@fault("did-too-large", 17, "domain id 65536")
def _did_large(target: Target) -> None:
    _set_did(target, 1 << 16)


@fault("did-mismatch", 17, "two devices of one domain with different domain ids")
def _did_mismatch(target: Target) -> None:
    flb, seen = flb_of(target), dict[tuple[int, int], int]()
    for device, index in devices(target, 2):
        at, _ = at_of(flb.devices, index, map_member(flb, "domain_phys"))
        if (device.unit, target.u64(at)) in seen:
            write(target, flb.devices, index, map_member(flb, "attachment_id"), 0x4321)
            return
        seen[device.unit, target.u64(at)] = index
    raise Inapplicable("needs two devices on one domain")


@fault("bitmap-missing", 18, "a context table whose bit is clear")
def _bitmap_missing(target: Target) -> None:
    flb, (driver, device, _) = flb_of(target), _vtd(target)
    at, _ = at_of(flb.units, flb.live_units[driver.unit.base], "intel.context_tables_bitmap")
    bit = driver.bit(device)
    byte = at + bit // 8
    target.write(byte, bytes([target.read(byte, 1)[0] & ~(1 << bit % 8)]))


@fault("bitmap-extra", 18, "a bit for a context table that does not exist")
def _bitmap_extra(target: Target) -> None:
    flb, (driver, _, _) = flb_of(target), _vtd(target)
    at, _ = at_of(flb.units, flb.live_units[driver.unit.base], "intel.context_tables_bitmap")
    bit = next(b for b in range(511, 0, -1) if b not in driver.contexts)
    target.write(at + bit // 8, bytes([target.read(at + bit // 8, 1)[0] | 1 << bit % 8]))


@fault("root-table-not-preserved", 2, "page of a VT-d root table missing in the map")
def _root_table(target: Target) -> None:
    target.set_block(_vtd(target)[0].root // target.page, 0, on=False)


@fault("context-not-preserved", 2, "page of a VT-d context table missing in the map")
def _context_table(target: Target) -> None:
    driver, device, _ = _vtd(target)
    target.set_block(driver.contexts[driver.bit(device)][0] // target.page, 0, on=False)


@fault("context-did", 18, "context entry with another domain id than the device object")
def _context_did(target: Target) -> None:
    driver, device, _ = _vtd(target, scalable=False)
    at = driver.entry_address(device) + 8
    target.write_u64(at, target.u64(at) ^ 0x5500 << 8)


@fault("context-pointer", 18, "context entry that points to another page table")
def _context_pointer(target: Target) -> None:
    driver, device, _ = _vtd(target)
    at = driver.entry_address(device)
    target.write_u64(at, target.free_page() | target.u64(at) & 0xFFF)


@fault("context-width", 18, "address width of a context entry does not fit the page table")
def _context_width(target: Target) -> None:
    driver, device, _ = _vtd(target, scalable=False)
    at = driver.entry_address(device) + 8
    target.write_u64(at, target.u64(at) ^ 1)


@fault("context-absent", 18, "context entry of a preserved device not present")
def _context_absent(target: Target) -> None:
    driver, device, _ = _vtd(target)
    at = driver.entry_address(device)
    target.write_u64(at, target.u64(at) & ~1)


@fault("context-stale", 18, "context entry of a device that is not preserved")
def _context_stale(target: Target) -> None:
    driver, device, _ = _vtd(target)
    width = 32 if driver.unit.scalable else 16
    table = driver.contexts[driver.bit(device)][0]
    live = {driver.entry_address(d) for d, _ in devices(target) if d.unit == driver.unit.base}
    for at in range(table + target.page - width, table, -width):
        if at not in live and not any(target.read(at, width)):
            target.write(at, target.read(driver.entry_address(device), width))
            return
    raise Inapplicable("the context table is full")


@fault("pasid-pointer", 18, "PASID entry that points to another page table")
def _pasid(target: Target) -> None:
    driver, device, _ = _vtd(target, scalable=True)
    table = driver.pasid_tables(device)[2]
    target.write_u64(table, target.free_page() | target.u64(table) & 0xFFF)


@fault("pasid-not-preserved", 2, "page of a PASID table missing in the map")
def _pasid_unpreserved(target: Target) -> None:
    driver, device, _ = _vtd(target, scalable=True)
    target.set_block(driver.pasid_tables(device)[2] // target.page, 0, on=False)


@fault("max-pasid", 18, "max_pasid of a device is not what the consumer has: BUG")
def _max_pasid(target: Target) -> None:
    flb, (_, _, index) = flb_of(target), _vtd(target, scalable=True)
    at, _ = at_of(flb.devices, index, "intel.max_pasid")
    target.write_u64(at, target.u64(at) * 2)


# -- page tables ----------------------------------------------------------------------------


def _tables(target: Target, count: int = 2) -> Domain:
    """A live domain with tables below its top."""
    for domain, _ in domains(target):
        if domain.table.table_count >= count:
            return domain
    raise Inapplicable(f"needs a domain with {count} tables")


def _slot(target: Target, domain: Domain, *, leaf: bool) -> int:
    """Address of an entry: a table pointer of the top, or a leaf of level 0."""
    level = 0 if leaf else domain.table.top_level
    at = domain.table.last_entry(level)
    if at is None:
        raise Inapplicable("the domain has no such entry")
    return at


@fault("top-table-not-preserved", 19, "top page table of a domain missing in the map: BUG")
def _top_unpreserved(target: Target) -> None:
    table = domains(target)[0][0].table
    top, order = next(table.tables())
    target.set_block(top // target.page, order, on=False)


@fault("table-not-preserved", 19, "a lower page table missing in the map: BUG")
def _table_unpreserved(target: Target) -> None:
    pa, order = list(_tables(target).table.tables())[-1]
    target.set_block(pa // target.page, order, on=False)


@fault("table-shared", 19, "a page table that is reached twice")
def _table_shared(target: Target) -> None:
    domain = _tables(target)
    at = _slot(target, domain, leaf=False)
    page = at // target.page * target.page
    for other in range(page, page + min(domain.table.top_entries * 8, target.page), 8):
        if not target.u64(other):
            target.write_u64(other, target.u64(at))
            return
    raise Inapplicable("the top table is full")


@fault("table-loop", 19, "a page table entry that points back to the top")
def _table_loop(target: Target) -> None:
    domain = _tables(target)
    at = _slot(target, domain, leaf=False)
    low = target.u64(at) & 0xFFF
    target.write_u64(at, domain.table.top | low)


@fault("table-outside-memory", 19, "a page table entry that points beyond the end of memory")
def _table_outside(target: Target) -> None:
    at = _slot(target, _tables(target), leaf=False)
    end = max(r.end for r in target.kernel.machine.spec.ram)
    target.write_u64(at, (end + (1 << 30)) | target.u64(at) & 0xFFF)


@fault("leaf-unaligned", 19, "a large leaf whose address is not a multiple of its size")
def _unaligned(target: Target) -> None:
    for domain, _ in domains(target):
        at = domain.table.large_leaf()
        if at is not None:
            target.write_u64(at, target.u64(at) | domain.table.machine.page_size)
            return
    raise Inapplicable("no domain has a large leaf")


@fault("table-no-permission", 19, "a non-zero entry that allows nothing")
def _no_permission(target: Target) -> None:
    domain = _tables(target)
    if domain.table.format.name != "vtdss":
        raise Inapplicable("only VT-d second-stage tables have such entries")
    at = _slot(target, domain, leaf=True)
    target.write_u64(at, target.u64(at) & ~7)


@fault("leaf-outside-file", 19, "a leaf that maps memory of no preserved file")
def _leaf_outside(target: Target) -> None:
    domain = _tables(target)
    at = _slot(target, domain, leaf=True)
    low = target.u64(at) & 0xFFF
    target.write_u64(at, target.free_page() | low)


@fault("domain-level", 19, "top_level of a domain one too low")
def _level(target: Target) -> None:
    flb, (_, address) = flb_of(target), domains(target)[0]
    at = address + flb.domains.objects.field("top_level").offset
    target.write_u64(at, target.u64(at) - 1)


# -- SMMUv3 ---------------------------------------------------------------------------------


def _smmu(target: Target) -> tuple[Smmuv3Unit, int]:
    for device, _ in devices(target):
        assert target.kernel.drivers is not None
        driver = target.kernel.drivers.of(device.unit)
        if isinstance(driver, Smmuv3Unit):
            return driver, flb_of(target).live_units[driver.unit.base]
    raise Inapplicable("needs a preserved device behind an SMMUv3")


@fault("stream-table-small", 20, "a stream table too small for the device's stream")
def _stream_small(target: Target) -> None:
    driver, index = _smmu(target)
    at, _ = at_of(flb_of(target).units, index, "smmuv3.strtab_base_cfg")
    target.write_u64(at, driver.strtab_base_cfg & ~0x3F | 4)


@fault("stream-l2-missing", 20, "a level-2 stream table without its handle")
def _l2_missing(target: Target) -> None:
    driver, _ = _smmu(target)
    if not driver.handle_arrays:
        raise Inapplicable("no array of handles")
    table = driver.handle_arrays[0]
    index = min(driver.l2) if driver.listed else 0
    target.write_u64(table + 8 * index, 0)
