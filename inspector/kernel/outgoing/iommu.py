"""IOMMU state as file-lifecycle-bound data: units, domains and devices, on the producer's side.

Three chains of array pages under a root. Slots are handed out in order and never reused;
what is unpreserved is marked DELETED and keeps its content. Every generation of the layout
that :mod:`abi.iommu` knows can be written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from abi.errors import UsageError
from abi.iommu import VIEW_OF_TYPE, ArrayKind, Counting, Header, IommuGeneration
from abi.schema import Struct
from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine.hardware import PciDevice, Unit
from inspector.kernel.outgoing.file_handler import Flb
from inspector.kernel.outgoing.iopt import PageTable
from inspector.kernel.outgoing.kho import Kho
from inspector.kernel.record import Packer, flat, has, pack

DELETED = 1
Values = Mapping[str, Any]


class Domain:
    """A paging domain: a page table that can be attached to devices and preserved."""

    def __init__(self, table: PageTable, *, sign_extend: bool = False) -> None:
        self.table = table
        self.sign_extend = sign_extend
        #: Unit base -> [domain id, devices attached].
        self.attached: dict[int, list[int]] = {}
        #: Address of its object while it is preserved.
        self.ser: int | None = None

    @property
    def devices(self) -> int:
        """Devices attached, over all units."""
        return sum(count for _, count in self.attached.values())


class UnitDriver(Protocol):
    """What the core asks of an IOMMU driver."""

    unit: Unit

    def preserve(self) -> dict[str, Any]:
        """Preserve the unit's own tables; members of the hardware object."""

    def unpreserve(self) -> None:
        """Undo it."""

    def preserve_device(self, device: PciDevice) -> dict[str, Any]:
        """Preserve the device's own tables; members of the device object."""

    def unpreserve_device(self, device: PciDevice) -> None:
        """Undo it."""

    def deleted_values(self) -> dict[str, Any]:
        """Members of the hardware object that change when it is deleted."""


class ObjectArray:
    """One chain of array pages. Pages are kept in Python and written by :meth:`sync`."""

    def __init__(self, kho: Kho, generation: IommuGeneration, kind: ArrayKind) -> None:
        self._kho = kho
        self._generation = generation
        self.kind = kind
        self.objects: Struct = kind.objects
        self.capacity = kind.page.capacity(kho.machine.page_size)
        self._global = generation.counting is Counting.GLOBAL
        self._packers: dict[tuple[str, ...], Packer] = {}
        head = kind.objects.field("obj" if self._global else "hdr")
        assert head.struct is not None
        assert head.offset == 0
        self._head = head.struct
        self._head_names = [f"{head.name}.{name}" for name in self._header(0, 0, 0)]
        self.pages: list[int] = []
        self._content: list[bytearray] = []
        self._dirty: set[int] = set()
        self.count = 0
        self._add_page()

    def _add_page(self) -> None:
        page = self._kho.alloc_preserve(self._kho.machine.page_size)
        if self.pages:
            self._content[-1][:8] = page.to_bytes(8, "little")
            self._dirty.add(len(self.pages) - 1)
        self.pages.append(page)
        self._content.append(bytearray(self._kho.machine.page_size))
        self._dirty.add(len(self.pages) - 1)

    @property
    def first(self) -> int:
        """Address of the first page."""
        return self.pages[0]

    def address(self, index: int) -> int:
        """Where an object lies."""
        page, slot = divmod(index, self.capacity)
        return self.pages[page] + self.kind.page.size + slot * self.objects.size

    def _at(self, index: int) -> tuple[bytearray, int]:
        page, slot = divmod(index, self.capacity)
        self._dirty.add(page)
        return self._content[page], self.kind.page.size + slot * self.objects.size

    def add(self, values: Values) -> int:
        """Take the next slot; its index. Raises ENOMEM."""
        index = self.count
        if index // self.capacity >= len(self.pages):
            self._add_page()
        content, at = self._at(index)
        content[at : at + self.objects.size] = self._pack(index, values)
        content[8:16] = (index % self.capacity + 1).to_bytes(8, "little")
        self.count += 1
        return index

    def _pack(self, index: int, values: Values) -> bytes:
        names, given = flat(values)
        packer = self._packers.get(tuple(names))
        if packer is None:
            packer = self._packers[tuple(names)] = self._packer(names)
        return packer.pack([*given, *self._header(index, 1, 0).values()])

    def _packer(self, names: list[str]) -> Packer:
        """What packs objects with these members, in the latest spelling, and a header."""
        spelled = []
        for name in names:
            first, dot, rest = name.partition(".")
            spelled.append(self._generation.native(first) + dot + rest)
        return Packer(self.objects, (*spelled, *self._head_names), lenient=True)

    def _header(self, index: int, ref_count: int, flags: int) -> dict[str, int]:
        header: dict[str, int] = {"ref_count": ref_count}
        if self._generation.header is Header.FLAGS:
            header["flags"] = flags
        else:
            header["state"] = flags
        if self._generation.header is Header.INDEX_BITS:
            header["idx"] = index
        return header

    def set_header(self, index: int, ref_count: int, *, deleted: bool) -> None:
        """Change reference count and the DELETED mark."""
        data = pack(self._head, self._header(index, ref_count, DELETED if deleted else 0))
        content, at = self._at(index)
        content[at : at + len(data)] = data

    def set_bytes(self, index: int, name: str, data: bytes) -> None:
        """Overwrite one member."""
        field = self.objects.field(name)
        content, at = self._at(index)
        content[at + field.offset : at + field.offset + len(data)] = data

    def sync(self) -> None:
        """Write the pages that changed."""
        for number in self._dirty:
            self._kho.machine.memory.write(self.pages[number], bytes(self._content[number]))
        self._dirty.clear()

    def free(self) -> None:
        """Give the pages back; their content stays, stale."""
        self.sync()
        for page in reversed(self.pages):
            self._kho.unpreserve_free(page)


class _Held:
    """A live object: its index and address, and how many use it."""

    __slots__ = ("address", "index", "users")

    def __init__(self, index: int, address: int) -> None:
        self.index = index
        self.address = address
        self.users = 1


class IommuFlb(Flb):
    """The FLB of the IOMMU core."""

    def __init__(self, kho: Kho, generation: IommuGeneration) -> None:
        if not generation.decodable:
            raise UsageError(f"{generation.id}: no layout of this posting is known")
        super().__init__(generation.strings[0])
        self.kho = kho
        self.generation = generation
        self.root = 0
        self.drivers: dict[int, UnitDriver] = {}
        self._arrays: tuple[ObjectArray, ObjectArray, ObjectArray] | None = None
        self._units: dict[int, _Held] = {}
        self._domains: dict[int, int] = {}
        self._devices: dict[int, int] = {}
        self._preserved_domains: dict[int, Domain] = {}
        self._attachment_id = f"domain_iommu_ser.{generation.native('attachment_id')}"

    @property
    def unit_layout(self) -> Struct:
        """The struct of a hardware unit."""
        assert self.generation.units is not None
        return self.generation.units.objects

    def _live(self) -> tuple[ObjectArray, ObjectArray, ObjectArray]:
        if self._arrays is None:
            raise KernelErrno("EINVAL", "no IOMMU state is being preserved")
        return self._arrays

    @property
    def units(self) -> ObjectArray:
        """The array of hardware units."""
        return self._live()[0]

    @property
    def domains(self) -> ObjectArray:
        """The array of domains."""
        return self._live()[1]

    @property
    def devices(self) -> ObjectArray:
        """The array of devices."""
        return self._live()[2]

    def preserve(self) -> int:
        """Allocate the root and the first page of each array."""
        flb, generation = self.generation.flb, self.generation
        assert flb is not None
        assert generation.units is not None
        assert generation.domains is not None
        assert generation.devices is not None
        self.root = self.kho.alloc_preserve(flb.size)
        domains = ObjectArray(self.kho, generation, generation.domains)
        devices = ObjectArray(self.kho, generation, generation.devices)
        units = ObjectArray(self.kho, generation, generation.units)
        self._arrays = (units, domains, devices)
        self.sync()
        return self.root

    def unpreserve(self, data: int) -> None:
        """Free everything; stale copies stay in memory."""
        self.sync()
        for array in self._live():
            array.free()
        self.kho.unpreserve_free(self.root)
        self._arrays = None
        self.root = 0
        self._units.clear()
        self._domains.clear()
        self._devices.clear()
        self._preserved_domains.clear()

    def sync(self) -> None:
        """Write the root and the pages that changed."""
        if self._arrays is None:
            return
        assert self.generation.flb is not None
        for held in self._units.values():
            self.units.set_header(held.index, held.users, deleted=False)
        values: dict[str, int] = {}
        for array in self._arrays:
            values[array.kind.root] = array.first
            if array.kind.total:
                values[array.kind.total] = array.count
        if self.generation.version is not None:
            values["version"] = self.generation.version
        self.kho.machine.memory.write(self.root, pack(self.generation.flb, values))
        for array in self._arrays:
            array.sync()

    # -- domains -----------------------------------------------------------------------------

    def preserve_domain(self, domain: Domain) -> int:
        """Preserve a domain's tables; the address of its object. Raises EBUSY, EINVAL, ENOMEM."""
        if domain.ser is not None:
            raise KernelErrno("EBUSY", "the domain is preserved already")
        table = domain.table
        table.sync()
        array = self.domains
        index = array.add(
            {
                "top_table_phys": table.top,
                "top_level": table.top_level,
                "vasz": table.bits,
                "sign_extend": int(domain.sign_extend),
                "attach_count": domain.devices,
            }
        )
        done: list[tuple[int, int]] = []
        try:
            for pa, order in table.tables():
                self.kho.preserve_folio(pa >> self.kho.machine.page_shift, order)
                done.append((pa, order))
        except KernelErrno:
            for pa, order in reversed(done):
                self.kho.unpreserve_folio(pa >> self.kho.machine.page_shift, order)
            array.set_header(index, 1, deleted=True)
            raise
        domain.ser = array.address(index)
        self._domains[id(domain)] = index
        self._preserved_domains[domain.ser] = domain
        return domain.ser

    def unpreserve_domain(self, domain: Domain) -> None:
        """Mark the object DELETED and let go of the tables."""
        index = self._domains.pop(id(domain))
        self.domains.set_header(index, 1, deleted=True)
        for pa, order in domain.table.tables():
            self.kho.unpreserve_folio(pa >> self.kho.machine.page_shift, order)
        assert domain.ser is not None
        del self._preserved_domains[domain.ser]
        domain.ser = None

    # -- units -------------------------------------------------------------------------------

    def _hold_unit(self, driver: UnitDriver) -> int:
        held = self._units.get(driver.unit.base)
        if held is not None:
            held.users += 1
            return held.address
        index = self.units.add(
            {"token": driver.unit.token, "type": int(driver.unit.type), **driver.preserve()}
        )
        address = self.units.address(index)
        self._units[driver.unit.base] = _Held(index, address)
        return address

    def _drop_unit(self, driver: UnitDriver) -> None:
        held = self._units[driver.unit.base]
        held.users -= 1
        if not held.users:
            self.units.set_header(held.index, 0, deleted=True)
            for name, data in driver.deleted_values().items():
                if has(self.units.objects, name):
                    self.units.set_bytes(held.index, name, data)
            driver.unpreserve()
            del self._units[driver.unit.base]

    # -- devices -----------------------------------------------------------------------------

    def preserve_device(
        self, driver: UnitDriver, device: PciDevice, domain: Domain, token: int
    ) -> int:
        """Preserve a device that is attached to a preserved domain; the address of its object.

        ``token`` is the LUO token of the iommufd that owns its DMA. Raises EBUSY, EINVAL (domain
        not preserved), EOPNOTSUPP (group of several devices).
        """
        late = self.generation.version is not None
        views = self.generation.unit_views
        if views and VIEW_OF_TYPE[driver.unit.type] not in views:
            raise KernelErrno("EOPNOTSUPP", f"{self.generation.id} has no form for this unit")
        if device.group > 1 and late:
            raise KernelErrno("EOPNOTSUPP", f"{device} shares its group with other devices")
        if domain.ser is None:
            raise KernelErrno("EINVAL", f"the domain of {device} is not preserved")
        if device.key in self._devices and late:
            raise KernelErrno("EBUSY", f"{device} is preserved already")
        unit_ser = self._hold_unit(driver)
        try:
            own = driver.preserve_device(device)
        except KernelErrno:
            self._drop_unit(driver)
            raise
        values: dict[str, Any] = {
            "devid": device.bdf,
            "pci_domain_nr": device.segment,
            "dma_owner_token": token,
            "token": token,
            "type": int(driver.unit.type),
            self._attachment_id: domain.attached[driver.unit.base][0],
            "domain_iommu_ser.domain_phys": domain.ser,
            "domain_iommu_ser.iommu_phys": unit_ser,
            **own,
        }
        devices = self.devices
        index = devices.add(values)
        self._devices[device.key] = index
        return devices.address(index)

    def unpreserve_device(self, driver: UnitDriver, device: PciDevice) -> None:
        """Let go of a device. Its object is marked DELETED from the third series on."""
        index = self._devices.pop(device.key)
        if self.generation.header is Header.FLAGS:
            self.devices.set_header(index, 1, deleted=True)
        driver.unpreserve_device(device)
        self._drop_unit(driver)

    @property
    def live_devices(self) -> Mapping[int, int]:
        """(segment << 16 | bdf) -> index of the device object."""
        return self._devices

    @property
    def live_domains(self) -> Mapping[int, Domain]:
        """Address of the domain object -> domain."""
        return self._preserved_domains

    @property
    def live_units(self) -> Mapping[int, int]:
        """Register base -> index of the hardware object."""
        return {base: held.index for base, held in self._units.items()}
