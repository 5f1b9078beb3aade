"""Faults of iommufd files, IOMMU state, device tables and page tables."""

from __future__ import annotations

from abi.iommu import Header
from inspector.kernel.faults.base import Inapplicable, Library, Target
from inspector.kernel.machine.hardware import PciDevice, UnitType
from inspector.kernel.outgoing.ioas import Hwpt
from inspector.kernel.outgoing.iommu import Domain, IommuFlb, ObjectArray
from inspector.kernel.outgoing.iommufd import IommufdHandler

fault = Library()


def flb_of(target: Target) -> IommuFlb:
    flb = target.kernel.iommu
    if flb is None or not flb.root:
        raise Inapplicable("the image has no IOMMU state")
    return flb


def at_of(array: ObjectArray, index: int, name: str) -> tuple[int, int]:
    """(address, size) of a member of an object; Inapplicable if the form has none."""
    try:
        field = array.objects.field(name)
    except KeyError:
        raise Inapplicable(f"{array.kind.name} have no {name}") from None
    return array.address(index) + field.offset, field.size


def devices(target: Target, count: int = 1) -> list[tuple[PciDevice, int]]:
    """Live devices with the index of their object."""
    flb, hardware = flb_of(target), target.kernel.machine.spec.hardware
    found = []
    for key, index in flb.live_devices.items():
        device = hardware.device(key >> 16, key & 0xFFFF)
        assert device is not None
        found.append((device, index))
    if len(found) < count:
        raise Inapplicable(f"needs {count} preserved device(s)")
    return found


def domains(target: Target) -> list[tuple[Domain, int]]:
    """Live domains with the address of their object."""
    found = [(d, at) for at, d in flb_of(target).live_domains.items()]
    if not found:
        raise Inapplicable("the image has no preserved domain")
    return found


def map_member(flb: IommuFlb, name: str) -> str:
    return f"domain_iommu_ser.{flb.generation.native(name)}"


def _header(flb: IommuFlb) -> str:
    return "obj" if flb.generation.header is Header.INDEX_BITS else "hdr"


def write(target: Target, array: ObjectArray, index: int, name: str, value: int) -> None:
    at, size = at_of(array, index, name)
    target.write(at, value.to_bytes(size, "little"))


def _flags_at(flb: IommuFlb, array: ObjectArray, index: int) -> int:
    """Address of the byte with the flag bits."""
    name = "flags" if flb.generation.header is Header.FLAGS else "incoming"
    return at_of(array, index, f"{_header(flb)}.{name}")[0]


# -- root and arrays ------------------------------------------------------------------------


@fault("iommu-version", 13, "an unknown version of the IOMMU state: panic")
def _version(target: Target) -> None:
    flb = flb_of(target)
    if flb.generation.version is None:
        raise Inapplicable("the format has no version word")
    target.write_u64(flb.root, 77)


@fault("iommu-array-zero", 13, "pointer to the array of devices is 0: panic")
def _array_zero(target: Target) -> None:
    flb = flb_of(target)
    assert flb.generation.flb is not None
    target.write_u64(flb.root + flb.generation.flb.field(flb.devices.kind.root).offset, 0)


@fault("iommu-array-not-preserved", 2, "an array page missing in the map: BUG")
def _array_unpreserved(target: Target) -> None:
    target.set_block(flb_of(target).domains.first // target.page, 0, on=False)


@fault("iommu-array-cycle", 6, "the pages of an array are a cycle")
def _array_cycle(target: Target) -> None:
    array = flb_of(target).domains
    target.write_u64(array.pages[-1], array.first)


@fault("iommu-array-count-over", 6, "an array page counts more objects than fit")
def _array_over(target: Target) -> None:
    target.write_u64(flb_of(target).devices.pages[-1] + 8, 100_000)


@fault("iommu-array-partial", 6, "an array page that is not the last is not full")
def _array_partial(target: Target) -> None:
    flb = flb_of(target)
    for array in (flb.domains, flb.devices, flb.units):
        if len(array.pages) > 1:
            target.write_u64(array.first + 8, array.capacity - 1)
            return
    raise Inapplicable("needs an array of two pages")


# -- cross references -----------------------------------------------------------------------


@fault("device-domain-dangling", 13, "a device points to a domain that does not exist")
def _domain_dangling(target: Target) -> None:
    flb, (_, index) = flb_of(target), devices(target)[-1]
    array = flb.domains
    behind = array.pages[-1] + array.kind.page.size + (array.capacity - 1) * array.objects.size
    if array.count % array.capacity == 0:
        raise Inapplicable("the last array page is full")
    write(target, flb.devices, index, map_member(flb, "domain_phys"), behind)


@fault("device-domain-unaligned", 13, "a device points into the middle of a domain object")
def _domain_unaligned(target: Target) -> None:
    flb, (_, index) = flb_of(target), devices(target)[-1]
    at, _ = at_of(flb.devices, index, map_member(flb, "domain_phys"))
    target.write_u64(at, target.u64(at) + 4)


@fault("device-domain-unpreserved", 13, "a device's domain_phys is not in preserved memory: BUG")
def _domain_outside(target: Target) -> None:
    flb, (_, index) = flb_of(target), devices(target)[-1]
    at, _ = at_of(flb.devices, index, map_member(flb, "domain_phys"))
    target.write_u64(at, target.free_page() + 16)


@fault("device-unit-dangling", 13, "a device points to a unit that does not exist")
def _unit_dangling(target: Target) -> None:
    flb, (_, index) = flb_of(target), devices(target)[-1]
    array = flb.units
    behind = array.pages[-1] + array.kind.page.size + (array.capacity - 1) * array.objects.size
    write(target, flb.devices, index, map_member(flb, "iommu_phys"), behind)


@fault("device-domain-deleted", 13, "a live device points to a deleted domain")
def _domain_deleted(target: Target) -> None:
    flb, (_, index) = flb_of(target), devices(target)[-1]
    at, _ = at_of(flb.devices, index, map_member(flb, "domain_phys"))
    address = target.u64(at)
    number = next(i for i in range(flb.domains.count) if flb.domains.address(i) == address)
    flags = _flags_at(flb, flb.domains, number)
    target.write(flags, bytes([target.read(flags, 1)[0] | 1]))


@fault("unit-token-unknown", 13, "a unit with registers that the machine does not have")
def _unit_token(target: Target) -> None:
    flb = flb_of(target)
    devices(target)
    index = next(iter(flb.live_units.values()))
    write(target, flb.units, index, "token", 0xDEAD0000)


@fault("unit-type-invalid", 13, "a unit of type 0")
def _unit_type(target: Target) -> None:
    flb = flb_of(target)
    devices(target)
    write(target, flb.units, next(iter(flb.live_units.values())), "type", 0)


@fault("unit-ref-count", 14, "a unit counts one device too many")
def _ref_count(target: Target) -> None:
    flb = flb_of(target)
    devices(target)
    index = next(iter(flb.live_units.values()))
    at, _ = at_of(flb.units, index, f"{_header(flb)}.ref_count")
    target.write_u32(at, int.from_bytes(target.read(at, 4), "little") + 1)


@fault("unit-ref-count-zero", 14, "a live unit without users")
def _ref_zero(target: Target) -> None:
    flb = flb_of(target)
    devices(target)
    index = next(iter(flb.live_units.values()))
    target.write_u32(at_of(flb.units, index, f"{_header(flb)}.ref_count")[0], 0)


@fault("device-duplicate", 13, "two live objects for one device")
def _device_twice(target: Target) -> None:
    flb, found = flb_of(target), devices(target, 2)
    (first, _), (_, second) = found[:2]
    write(target, flb.devices, second, "devid", first.bdf)


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
    target.write_u64(at + _hwpt_member(handler, "domain_data"), flb_of(target).devices.first + 16)


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
    flb = flb_of(target)
    used = {
        id(flb.live_domains[target.u64(at_of(flb.devices, i, map_member(flb, "domain_phys"))[0])])
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
    flb, (_, index) = flb_of(target), devices(target)[0]
    at = _flags_at(flb, flb.devices, index)
    target.write(at, bytes([target.read(at, 1)[0] | 2]))


@fault("domain-restored", 16, "a kernel pointer in restored_domain")
def _restored(target: Target) -> None:
    flb = flb_of(target)
    address = domains(target)[0][1]
    at = address + flb.domains.objects.field("restored_domain").offset
    target.write_u64(at, 0xFFFF888012345678)


@fault("unit-restored", 16, "a unit whose tables are restored before the consumer has seen them")
def _unit_restored(target: Target) -> None:
    flb, hardware = flb_of(target), target.kernel.machine.spec.hardware
    for base, index in flb.live_units.items():
        unit = hardware.unit(base)
        if unit is not None and unit.type is UnitType.INTEL:
            at, _ = at_of(flb.units, index, "intel.restored")
            break
    else:
        raise Inapplicable("needs a VT-d unit")
    target.write(at, b"\1")
