"""Faults of iommufd files, IOMMU state, device tables and page tables."""

from __future__ import annotations

from abi.iommu import Header
from inspector.kernel.fault import Inapplicable, Library, Target
from inspector.kernel.hardware import PciDevice
from inspector.kernel.iommu import Domain, IommuFlb, ObjectArray
from inspector.kernel.iommufd import Hwpt, IommufdHandler
from inspector.kernel.smmuv3 import Smmuv3Unit
from inspector.kernel.vtd import VtdUnit

fault = Library()


def _flb(target: Target) -> IommuFlb:
    flb = target.kernel.iommu
    if flb is None or not flb.root:
        raise Inapplicable("the image has no IOMMU state")
    return flb


def _at(array: ObjectArray, index: int, name: str) -> tuple[int, int]:
    """(address, size) of a member of an object; Inapplicable if the form has none."""
    try:
        field = array.objects.field(name)
    except KeyError:
        raise Inapplicable(f"{array.kind.name} have no {name}") from None
    return array.address(index) + field.offset, field.size


def _devices(target: Target, count: int = 1) -> list[tuple[PciDevice, int]]:
    """Live devices with the index of their object."""
    flb, hardware = _flb(target), target.kernel.machine.spec.hardware
    found = []
    for key, index in flb.live_devices.items():
        device = hardware.device(key >> 16, key & 0xFFFF)
        assert device is not None
        found.append((device, index))
    if len(found) < count:
        raise Inapplicable(f"needs {count} preserved device(s)")
    return found


def _domains(target: Target) -> list[tuple[Domain, int]]:
    """Live domains with the address of their object."""
    found = [(d, at) for at, d in _flb(target).live_domains.items()]
    if not found:
        raise Inapplicable("the image has no preserved domain")
    return found


def _map_member(flb: IommuFlb, name: str) -> str:
    return f"domain_iommu_ser.{flb.generation.native(name)}"


def _header(flb: IommuFlb) -> str:
    return "obj" if flb.generation.header is Header.INDEX_BITS else "hdr"


def _write(target: Target, array: ObjectArray, index: int, name: str, value: int) -> None:
    at, size = _at(array, index, name)
    target.write(at, value.to_bytes(size, "little"))


def _flags_at(flb: IommuFlb, array: ObjectArray, index: int) -> int:
    """Address of the byte with the flag bits."""
    name = "flags" if flb.generation.header is Header.FLAGS else "incoming"
    return _at(array, index, f"{_header(flb)}.{name}")[0]


# -- root and arrays ------------------------------------------------------------------------


@fault("iommu-version", 13, "an unknown version of the IOMMU state: panic")
def _version(target: Target) -> None:
    flb = _flb(target)
    if flb.generation.version is None:
        raise Inapplicable("the format has no version word")
    target.write_u64(flb.root, 77)


@fault("iommu-array-zero", 13, "pointer to the array of devices is 0: panic")
def _array_zero(target: Target) -> None:
    flb = _flb(target)
    assert flb.generation.flb is not None
    target.write_u64(flb.root + flb.generation.flb.field(flb.devices.kind.root).offset, 0)


@fault("iommu-array-not-preserved", 2, "an array page missing in the map: BUG")
def _array_unpreserved(target: Target) -> None:
    target.set_block(_flb(target).domains.first // target.page, 0, on=False)


@fault("iommu-array-cycle", 6, "the pages of an array are a cycle")
def _array_cycle(target: Target) -> None:
    array = _flb(target).domains
    target.write_u64(array.pages[-1], array.first)


@fault("iommu-array-count-over", 6, "an array page counts more objects than fit")
def _array_over(target: Target) -> None:
    target.write_u64(_flb(target).devices.pages[-1] + 8, 100_000)


@fault("iommu-array-partial", 6, "an array page that is not the last is not full")
def _array_partial(target: Target) -> None:
    flb = _flb(target)
    for array in (flb.domains, flb.devices, flb.units):
        if len(array.pages) > 1:
            target.write_u64(array.first + 8, array.capacity - 1)
            return
    raise Inapplicable("needs an array of two pages")


# -- cross references -----------------------------------------------------------------------


@fault("device-domain-dangling", 13, "a device points to a domain that does not exist")
def _domain_dangling(target: Target) -> None:
    flb, (_, index) = _flb(target), _devices(target)[-1]
    array = flb.domains
    behind = array.pages[-1] + array.kind.page.size + (array.capacity - 1) * array.objects.size
    if array.count % array.capacity == 0:
        raise Inapplicable("the last array page is full")
    _write(target, flb.devices, index, _map_member(flb, "domain_phys"), behind)


@fault("device-domain-unaligned", 13, "a device points into the middle of a domain object")
def _domain_unaligned(target: Target) -> None:
    flb, (_, index) = _flb(target), _devices(target)[-1]
    at, _ = _at(flb.devices, index, _map_member(flb, "domain_phys"))
    target.write_u64(at, target.u64(at) + 4)


@fault("device-domain-unpreserved", 13, "a device's domain_phys is not in preserved memory: BUG")
def _domain_outside(target: Target) -> None:
    flb, (_, index) = _flb(target), _devices(target)[-1]
    at, _ = _at(flb.devices, index, _map_member(flb, "domain_phys"))
    target.write_u64(at, target.free_page() + 16)


@fault("device-unit-dangling", 13, "a device points to a unit that does not exist")
def _unit_dangling(target: Target) -> None:
    flb, (_, index) = _flb(target), _devices(target)[-1]
    array = flb.units
    behind = array.pages[-1] + array.kind.page.size + (array.capacity - 1) * array.objects.size
    _write(target, flb.devices, index, _map_member(flb, "iommu_phys"), behind)


@fault("device-domain-deleted", 13, "a live device points to a deleted domain")
def _domain_deleted(target: Target) -> None:
    flb, (_, index) = _flb(target), _devices(target)[-1]
    at, _ = _at(flb.devices, index, _map_member(flb, "domain_phys"))
    address = target.u64(at)
    number = next(i for i in range(flb.domains.count) if flb.domains.address(i) == address)
    flags = _flags_at(flb, flb.domains, number)
    target.write(flags, bytes([target.read(flags, 1)[0] | 1]))


@fault("unit-token-unknown", 13, "a unit with registers that the machine does not have")
def _unit_token(target: Target) -> None:
    flb = _flb(target)
    _devices(target)
    index = next(iter(flb.live_units.values()))
    _write(target, flb.units, index, "token", 0xDEAD0000)


@fault("unit-type-invalid", 13, "a unit of type 0")
def _unit_type(target: Target) -> None:
    flb = _flb(target)
    _devices(target)
    _write(target, flb.units, next(iter(flb.live_units.values())), "type", 0)


@fault("unit-ref-count", 14, "a unit counts one device too many")
def _ref_count(target: Target) -> None:
    flb = _flb(target)
    _devices(target)
    index = next(iter(flb.live_units.values()))
    at, _ = _at(flb.units, index, f"{_header(flb)}.ref_count")
    target.write_u32(at, int.from_bytes(target.read(at, 4), "little") + 1)


@fault("unit-ref-count-zero", 14, "a live unit without users")
def _ref_zero(target: Target) -> None:
    flb = _flb(target)
    _devices(target)
    index = next(iter(flb.live_units.values()))
    target.write_u32(_at(flb.units, index, f"{_header(flb)}.ref_count")[0], 0)


@fault("device-duplicate", 13, "two live objects for one device")
def _device_twice(target: Target) -> None:
    flb, found = _flb(target), _devices(target, 2)
    (first, _), (_, second) = found[:2]
    _write(target, flb.devices, second, "devid", first.bdf)


# -- HWPTs ----------------------------------------------------------------------------------


def _hwpts(target: Target, count: int = 1) -> tuple[int, IommufdHandler, list[Hwpt]]:
    """(address of the first entry, handler, HWPTs) of an iommufd file."""
    for _, entry in target.of(IommufdHandler):
        handler = entry.handler
        assert isinstance(handler, IommufdHandler)
        if handler.generation.entry is not None and len(handler.hwpts(entry.file)) >= count:
            return (
                entry.data + handler.generation.root.size,
                handler,
                handler.hwpts(entry.file),
            )
    raise Inapplicable(f"needs an iommufd with {count} preserved HWPT(s)")


def _hwpt_member(handler: IommufdHandler, name: str) -> int:
    assert handler.generation.entry is not None
    return handler.generation.entry.field(name).offset


@fault("hwpt-domain-dangling", 15, "a HWPT points to a domain that does not exist")
def _hwpt_dangling(target: Target) -> None:
    at, handler, _ = _hwpts(target)
    target.write_u64(at + _hwpt_member(handler, "domain_data"), _flb(target).devices.first + 16)


@fault("hwpt-token-duplicate", 15, "two HWPTs with one token")
def _hwpt_twice(target: Target) -> None:
    at, handler, _ = _hwpts(target, 2)
    entry = handler.generation.entry
    assert entry is not None
    field = entry.field("token")
    token = target.read(at + field.offset, field.size)
    target.write(at + entry.size + field.offset, token)


@fault("hwpt-count-over", 15, "an iommufd counts more HWPTs than its memory holds")
def _hwpt_over(target: Target) -> None:
    at, handler, _ = _hwpts(target)
    field = handler.generation.root.field("nr_hwpts")
    base = at - handler.generation.root.size + field.offset
    target.write(base, (1 << 20).to_bytes(field.size, "little"))


@fault("hwpt-reclaimed", 16, "a HWPT that is reclaimed before the consumer has seen it")
def _reclaimed(target: Target) -> None:
    at, handler, _ = _hwpts(target)
    target.write(at + _hwpt_member(handler, "reclaimed"), b"\1")


@fault("domain-orphan", 15, "a live domain that neither a device nor a HWPT refers to")
def _orphan(target: Target) -> None:
    at, handler, hwpts = _hwpts(target, 2)
    flb = _flb(target)
    used = {
        id(flb.live_domains[target.u64(_at(flb.devices, i, _map_member(flb, "domain_phys"))[0])])
        for i in flb.live_devices.values()
    }
    entry = handler.generation.entry
    assert entry is not None
    for i, hwpt in enumerate(hwpts):
        if id(hwpt.domain) not in used:
            offset = entry.field("domain_data").offset
            other = target.u64(at + (i - 1) % len(hwpts) * entry.size + offset)
            target.write_u64(at + i * entry.size + offset, other)
            return
    raise Inapplicable("needs a HWPT without devices beside another")


# -- consumer's marks -----------------------------------------------------------------------


@fault("device-incoming", 16, "a device marked INCOMING before the consumer has seen it")
def _device_incoming(target: Target) -> None:
    flb, (_, index) = _flb(target), _devices(target)[0]
    at = _flags_at(flb, flb.devices, index)
    target.write(at, bytes([target.read(at, 1)[0] | 2]))


@fault("domain-restored", 16, "a kernel pointer in restored_domain")
def _restored(target: Target) -> None:
    flb = _flb(target)
    address = _domains(target)[0][1]
    at = address + flb.domains.objects.field("restored_domain").offset
    target.write_u64(at, 0xFFFF888012345678)


@fault("unit-restored", 16, "a unit whose tables are restored before the consumer has seen them")
def _unit_restored(target: Target) -> None:
    flb, _ = _flb(target), _vtd(target)
    at, _ = _at(flb.units, next(iter(flb.live_units.values())), "intel.restored")
    target.write(at, b"\1")


# -- domain ids and VT-d tables -------------------------------------------------------------


def _vtd(target: Target, *, scalable: bool | None = None) -> tuple[VtdUnit, PciDevice, int]:
    """(driver, device, index of its object) of a device behind a VT-d unit."""
    for device, index in _devices(target):
        assert target.kernel.drivers is not None
        driver = target.kernel.drivers.of(device.unit)
        if isinstance(driver, VtdUnit) and scalable in (None, driver.unit.scalable):
            return driver, device, index
    raise Inapplicable("needs a preserved device behind a VT-d unit")


def _set_did(target: Target, did: int) -> None:
    flb, (_, _, index) = _flb(target), _vtd(target)
    _write(target, flb.devices, index, _map_member(flb, "attachment_id"), did)


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
    flb, seen = _flb(target), dict[tuple[int, int], int]()
    for device, index in _devices(target, 2):
        at, _ = _at(flb.devices, index, _map_member(flb, "domain_phys"))
        if (device.unit, target.u64(at)) in seen:
            _write(target, flb.devices, index, _map_member(flb, "attachment_id"), 0x4321)
            return
        seen[device.unit, target.u64(at)] = index
    raise Inapplicable("needs two devices on one domain")


@fault("bitmap-missing", 18, "a context table whose bit is clear")
def _bitmap_missing(target: Target) -> None:
    flb, (driver, device, _) = _flb(target), _vtd(target)
    at, _ = _at(flb.units, flb.live_units[driver.unit.base], "intel.context_tables_bitmap")
    bit = driver.bit(device)
    byte = at + bit // 8
    target.write(byte, bytes([target.read(byte, 1)[0] & ~(1 << bit % 8)]))


@fault("bitmap-extra", 18, "a bit for a context table that does not exist")
def _bitmap_extra(target: Target) -> None:
    flb, (driver, _, _) = _flb(target), _vtd(target)
    at, _ = _at(flb.units, flb.live_units[driver.unit.base], "intel.context_tables_bitmap")
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
    live = {driver.entry_address(d) for d, _ in _devices(target) if d.unit == driver.unit.base}
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
    flb, (_, _, index) = _flb(target), _vtd(target, scalable=True)
    at, _ = _at(flb.devices, index, "intel.max_pasid")
    target.write_u64(at, target.u64(at) * 2)


# -- page tables ----------------------------------------------------------------------------


def _tables(target: Target, count: int = 2) -> Domain:
    """A live domain with tables below its top."""
    for domain, _ in _domains(target):
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
    table = _domains(target)[0][0].table
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
    for domain, _ in _domains(target):
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
    flb, (_, address) = _flb(target), _domains(target)[0]
    at = address + flb.domains.objects.field("top_level").offset
    target.write_u64(at, target.u64(at) - 1)


# -- SMMUv3 ---------------------------------------------------------------------------------


def _smmu(target: Target) -> tuple[Smmuv3Unit, int]:
    for device, _ in _devices(target):
        assert target.kernel.drivers is not None
        driver = target.kernel.drivers.of(device.unit)
        if isinstance(driver, Smmuv3Unit):
            return driver, _flb(target).live_units[driver.unit.base]
    raise Inapplicable("needs a preserved device behind an SMMUv3")


@fault("stream-table-small", 20, "a stream table too small for the device's stream")
def _stream_small(target: Target) -> None:
    driver, index = _smmu(target)
    at, _ = _at(_flb(target).units, index, "smmuv3.strtab_base_cfg")
    target.write_u64(at, driver.strtab_base_cfg & ~0x3F | 4)


@fault("stream-l2-missing", 20, "a level-2 stream table without its handle")
def _l2_missing(target: Target) -> None:
    driver, _ = _smmu(target)
    if not driver.handle_arrays:
        raise Inapplicable("no array of handles")
    table = driver.handle_arrays[0]
    index = min(driver.l2) if driver.listed else 0
    target.write_u64(table + 8 * index, 0)
