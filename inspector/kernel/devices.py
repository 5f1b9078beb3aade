"""IOMMU and PCI state in the kernel that takes over.

At boot the IOMMU core reads its FLB, the drivers take their tables over and reserve domain ids,
and each device that was handed over gets its domain back. Memory that was not preserved is a
BUG there: the hardware may be using it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from abi import vtd
from abi.errors import UsageError
from abi.iommu import FIRST_DID, INCOMING, Header, IommuGeneration
from abi.pagetable import Format, lookup
from abi.pagetable.format import Kind
from abi.pci import PciGeneration
from abi.schema import Struct
from inspector.findings import Findings, Outcome
from inspector.kernel import stream_tables
from inspector.kernel.boot import Booting
from inspector.kernel.hardware import Hardware, PciDevice, UnitType, format_bdf
from inspector.kernel.incoming import FlbEntry, Incoming, read_flbs
from inspector.kernel.inherited import InheritedTables
from inspector.kernel.pages import take_folio, take_folios
from inspector.kernel.view import Absent, PageFault
from inspector.memory.base import U64Array
from inspector.pagetable.plan import LevelPlan, level_plans
from inspector.pagetable.tree import table as describe
from inspector.survey import Survey
from inspector.walk.iommu import Device, IommuState, Unit, flatten, walk_iommu
from inspector.walk.pci import walk_pci

#: Kernel addresses that the model gives to restored domains.
_POINTERS = 0xFFFF_8880_0000_0000
#: Page tables of one domain; more are no sound tree.
_MAX_TABLES = 1 << 22
_TEST_FLB = b"liveupdate-test-flb-"
#: Handler's layer -> layer of the FLB that its files count as users of.
_FLB_OF = {"iommufd": "iommu", "vfio-pci": "pci", "hugetlb": "hugetlb"}


class Bug(Exception):
    """The kernel stops: what, where."""

    def __init__(self, message: str, path: str, address: int | None, dmesg: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.address = address
        self.dmesg = dmesg


@dataclass(slots=True, eq=False)
class RestoredDomain:
    """A domain that is in use again.

    ``tables`` counts the pages of its page table: ``pages`` are (first frames, order) of them.
    """

    address: int
    top_table: int
    top_level: int
    format: str
    pointer: int
    tables: int
    pages: list[tuple[U64Array, int]] = field(default_factory=list, repr=False)
    #: Devices whose DMA it translates, (segment << 16 | bdf).
    devices: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Devices:
    """What a kernel took over of IOMMU and PCI state.

    ``domains`` by the address of their object; ``devices`` by (segment << 16 | bdf), the
    address of the domain object each uses; ``failed`` are devices whose probe failed. ``dids``
    are the reserved domain ids by unit. ``pci`` is None where no PCI state was read.
    """

    boot: Booting
    hardware: Hardware
    #: Whether the machine was given; else it is what the image speaks of.
    hardware_known: bool = True
    flbs: dict[bytes, FlbEntry] = field(default_factory=dict)
    iommu: IommuState | None = None
    domains: dict[int, RestoredDomain] = field(default_factory=dict)
    devices: dict[int, int] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    dids: dict[int, set[int]] = field(default_factory=dict)
    pci: set[int] | None = None
    pci_error: str = ""
    #: Pages that go when the last file of a layer is finished: layer -> addresses.
    held: dict[str, list[int]] = field(default_factory=dict)
    #: What the drivers go on with, by the token of the unit.
    tables: dict[int, InheritedTables] = field(default_factory=dict)

    def drop_domain(self, address: int) -> None:
        """A HWPT that was claimed is destroyed: the page table of its domain is freed."""
        domain = self.domains.get(address)
        if domain is None or domain.devices:
            return
        for frames, order in domain.pages:
            self.boot.freed.add(frames, order)
        domain.pages = []

    def finish_file(self, layer: str) -> None:
        """A file is finished: its FLB loses a user, and goes with the last one."""
        flb = self.flbs.get(_name(self.boot, _FLB_OF[layer]))
        if flb is None or flb.finished:
            return
        flb.count -= 1
        if flb.count <= 0:
            flb.finished = True
            for address in self.held.pop(_FLB_OF[layer], ()):
                self.boot.freed.add_one(address >> self.boot.view.page_shift, 0)

    def device(self, segment: int, bdf: int) -> PciDevice | None:
        """A device of the machine."""
        return self.hardware.device(segment, bdf)


def start(boot: Booting, luo: Incoming, hardware: Hardware | None) -> Devices:
    """What boot does with the FLBs. A BUG or panic becomes a reason.

    ``hardware`` None: the machine is what the image speaks of, as its writer meant it.
    """
    found = Devices(boot, hardware or Hardware(), hardware is not None)
    path: str = "/LUO/flbs"
    try:
        entries = read_flbs(boot, luo)
        _sort_flbs(found, entries)
        if hardware is None and entries:
            from inspector.kernel.device_files import hardware_of

            found.hardware = hardware_of(boot, entries)
        _pci(found)
        iommu = found.flbs.get(_name(boot, "iommu"))
        if iommu is not None and boot.kernel.has("iommu"):
            path = iommu.path
            _iommu(found, iommu)
    except Bug as bug:
        if bug.dmesg and boot.ignores("iommu-mismatch"):
            boot.reasons.add(
                Outcome.STATE_LOST, f"IOMMU state is ignored: {bug}", path=bug.path,
                address=bug.address,
            )  # fmt: skip
            return found
        shown = bug.address is not None and boot.view.present(bug.address, 32)
        boot.reasons.add(
            Outcome.BOOT_FAILS, str(bug), path=bug.path, address=bug.address,
            data=boot.view.read(bug.address or 0, 32) if shown else b"",
            dmesg=bug.dmesg or "kernel BUG at",
        )  # fmt: skip
    except Absent as lack:
        boot.reasons.add(
            Outcome.CANNOT_TELL, "device state is not in the image", path=path,
            address=lack.address,
        )  # fmt: skip
    except PageFault as fault:
        boot.reasons.add(
            Outcome.BOOT_FAILS, f"device state leads to {fault.address:#x}, outside memory",
            path=path, address=fault.address, dmesg="unable to handle page fault",
        )  # fmt: skip
    return found


def _name(boot: Booting, layer: str) -> bytes:
    generation = boot.kernel.get(layer)
    return generation.strings[0].encode() if generation is not None else b""


def _sort_flbs(found: Devices, entries: list[FlbEntry]) -> None:
    boot = found.boot
    ours = {_name(boot, layer) for layer in set(_FLB_OF.values())} - {b""}
    for flb in entries:
        if flb.name in ours and flb.name not in found.flbs:
            found.flbs[flb.name] = flb
        elif not flb.name:
            boot.notes.append(f"{flb.path}: an entry without a name, which nobody has made")
        elif not flb.name.startswith(_TEST_FLB) and flb.name not in ours:
            text = flb.name.decode("utf-8", "backslashreplace")
            what = (
                ": translation is turned off, DMA of its devices faults"
                if b"iommu" in flb.name
                else ""
            )
            boot.reasons.add(
                Outcome.STATE_LOST, f"nobody asks for the FLB {text!r}{what}", path=flb.path,
                address=flb.address,
            )  # fmt: skip


# -- PCI ----------------------------------------------------------------------------------------


def _pci(found: Devices) -> None:
    boot = found.boot
    generation = boot.kernel.get("pci")
    flb = found.flbs.get(_name(boot, "pci"))
    if flb is None or not isinstance(generation, PciGeneration):
        return
    survey = Survey(boot.view.memory, boot.view.page_size, Findings(per_code=8))
    state = walk_pci(survey, generation, flb.data, flb.path)
    _holes(found, survey, flb.path)
    error = ""
    if state is None:
        error = "its root cannot be read"
    else:
        wanted = generation.constants.get("PCI_LUO_FLB_VERSION")
        if wanted is not None and state.version != wanted:
            error = f"version {state.version}, not {wanted}"
        for item in survey.findings.items:
            if item.code in ("KHO-PCI-003", "KHO-LST-001", "KHO-LST-005", "KHO-LST-007"):
                error = error or item.message
    if error:
        found.pci_error = f"the PCI state is refused: {error}"
        boot.reasons.add(
            Outcome.STATE_LOST, f"{found.pci_error}; its devices are set up as new ones",
            path=flb.path, address=flb.data, errno="EINVAL",
        )  # fmt: skip
        return
    assert state is not None
    pages = {flb.data & -boot.view.page_size} | {
        at & -boot.view.page_size for at in state.addresses.tolist()
    }
    orders = {page: take_folio(boot, page >> boot.view.page_shift) for page in sorted(pages)}
    for page, order in orders.items():
        for i in range(1 << order if order >= 0 else 0):
            found.held.setdefault("pci", []).append(page + i * boot.view.page_size)
    keys = state.keys
    found.pci = {segment << 16 | bdf for segment, bdf in keys}
    for segment, bdf in keys:
        if found.device(segment, bdf) is None:
            boot.reasons.add(
                Outcome.STATE_LOST,
                f"no device {format_bdf(segment, bdf)} in this machine",
                path=flb.path, address=flb.data,
            )  # fmt: skip


def _holes(found: Devices, survey: Survey, path: str) -> None:
    for address, _ in survey.holes[:1]:
        if found.boot.view.in_ram(address) is False:
            raise PageFault(address)
        raise Absent(address)


# -- IOMMU core ---------------------------------------------------------------------------------


def _iommu(found: Devices, flb: FlbEntry) -> None:
    boot = found.boot
    generation = boot.kernel["iommu"]
    assert isinstance(generation, IommuGeneration)
    if generation.flb is None:
        boot.notes.append(f"{generation.id}: no layout of this posting is known")
        return
    values = generation.flb.unpack(boot.view.read(flb.data, generation.flb.size))
    version = values.get("version")
    if version is not None and version != generation.version:
        raise Bug(
            f"IOMMU state of version {version}, this kernel knows {generation.version}: panic",
            flb.path, flb.data, "Kernel panic",
        )  # fmt: skip
    for kind in generation.arrays:
        if not values[kind.root]:
            field_at = flb.data + generation.flb.field(kind.root).offset
            raise Bug(f"{kind.root} is 0: panic", flb.path, field_at, "Kernel panic")
    take(found, flb.data, flb.path, "the root of the IOMMU state")
    found.held["iommu"] = [flb.data]
    survey = Survey(boot.view.memory, boot.view.page_size, Findings(per_code=8))
    state = walk_iommu(survey, generation, flb.data, flb.path)
    assert state is not None
    for objects in (state.units, state.domains, state.devices):
        what = f"a page of the array of {objects.kind.name}"
        for page in objects.array.pages.tolist():
            take(found, page, objects.path, what)
            found.held["iommu"].append(page)
    _broken_arrays(found, survey)
    found.iommu = state
    for unit in state.units.live():
        if unit.live:
            _unit(found, state, unit)
    _attach(found, state)
    _unmatched(found, state)


def _broken_arrays(found: Devices, survey: Survey) -> None:
    for item in survey.findings.items:
        if item.code.startswith(("KHO-LST-001", "KHO-LST-002")):
            raise Bug(f"{item.message}: the walk does not end, or a page is restored twice",
                      item.path, item.address)  # fmt: skip
        if item.code.startswith("KHO-MEM-004"):
            raise Bug(item.message, item.path, item.address)
        if item.code == "KHO-LST-005":
            found.boot.reasons.add(
                Outcome.CANNOT_TELL, f"{item.message}: what lies behind the page is read",
                path=item.path, address=item.address,
            )  # fmt: skip
    _holes(found, survey, "/LUO/flbs")


def _live_rows(state: IommuState) -> npt.NDArray[np.int64]:
    """Which device objects the consumer uses."""
    devices = state.devices
    live = ~devices.deleted & (devices.column("ref_count") != 0)
    if state.generation.header is not Header.FLAGS and len(devices):
        # Up to the second posting a device stays unmarked when its domain is deleted.
        at = state.domains.array.find(devices.column("domain_phys").astype(np.uint64))
        gone = np.zeros(len(at), np.bool_)
        gone[at >= 0] = state.domains.deleted[at[at >= 0]]
        live &= ~gone
    return np.flatnonzero(live)


def take(found: Devices, address: int, path: str, what: str) -> int:
    """Restore a page that must have been preserved; its order. Raises Bug."""
    order = take_folio(found.boot, address >> found.boot.view.page_shift)
    if order < 0:
        raise Bug(f"{what} at {address:#x} is not preserved: BUG", path, address)
    return order


def take_many(found: Devices, addresses: U64Array, path: str, what: str) -> None:
    """:func:`take` of many pages. Raises Bug for the first that was not preserved."""
    if len(addresses) == 1:
        take(found, int(addresses[0]), path, what)
        return
    orders = take_folios(found.boot, addresses >> np.uint64(found.boot.view.page_shift))
    if (orders < 0).any():
        at = int(addresses[int((orders < 0).argmax())])
        raise Bug(f"{what} at {at:#x} is not preserved: BUG", path, at)


# -- units ----------------------------------------------------------------------------------------


def _unit(found: Devices, state: IommuState, unit: Unit) -> None:
    boot = found.boot
    hardware = found.hardware.unit(unit.token)
    if hardware is None or int(hardware.type) != unit.type:
        boot.reasons.add(
            Outcome.TAKEN_OVER_WITH_WARNINGS,
            f"no IOMMU of type {unit.type} has the token {unit.token:#x}: its tables are not"
            " restored",
            path=unit.path, address=unit.address,
        )  # fmt: skip
        return
    found.dids[unit.address] = set()
    if unit.type == UnitType.INTEL and unit.root_table:
        _intel_tables(found, unit)
    elif unit.type == UnitType.INTEL and unit.view == "intel":
        raise Bug("the unit has no root table: BUG", unit.path, unit.address)
    elif unit.type == UnitType.ARM_SMMUV3 and unit.view == "smmuv3":
        wanted = hardware.registers.get("STRTAB_BASE_CFG", unit.get("strtab_base_cfg"))
        if unit.get("strtab_base_cfg") != wanted:
            del found.dids[unit.address]
            boot.reasons.add(
                Outcome.TAKEN_OVER_WITH_WARNINGS,
                f"STRTAB_BASE_CFG is {wanted:#x}, not {unit.get('strtab_base_cfg'):#x}: the stream"
                " table is not restored",
                path=unit.path, address=unit.address,
            )  # fmt: skip
            return
        stream_tables.restore(found, unit)
        found.tables[unit.token].ids = found.dids[unit.address]


def _intel_tables(found: Devices, unit: Unit) -> None:
    boot = found.boot
    root = unit.root_table
    take(found, root, unit.path, "the VT-d root table")
    kept = found.tables[unit.token] = InheritedTables(root, ids=found.dids[unit.address])
    words = np.frombuffer(boot.view.read(root, vtd.TABLE_SIZE), "<u8")
    present = np.flatnonzero(words & np.uint64(1)).tolist()
    wanted = unit.context_tables
    halves = sorted(wanted) if wanted is not None else present
    for half in halves:
        kept.contexts[half] = int(words[half]) & ~0xFFF
        take(found, kept.contexts[half], unit.path, f"context table {half}")
    _set(found, unit.generation.units, unit.address, "restored", 1)


def _set(found: Devices, kind: Any, address: int, name: str, value: int) -> None:
    """Write a byte member of the VT-d view of an object, where there is one."""
    offset = _intel_offset(kind.objects, name)
    if offset is not None:
        found.boot.view.memory.write(address + offset, bytes([value]))


@cache
def _intel_offset(struct: Struct, name: str) -> int | None:
    names = (f"u.intel.{name}", f"intel.{name}")
    return next((f.offset for f in struct.flat_fields() if f.name in names), None)


# -- devices and domains --------------------------------------------------------------------------


def _attach(found: Devices, state: IommuState) -> None:
    """Give every device that was handed over its domain back, the first object of each."""
    devices, rows = state.devices, _live_rows(state)
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
    _set(found, device.generation.devices, device.address, "restored", 1)


def _pasids(found: Devices, hardware: PciDevice) -> int:
    """How many PASIDs the driver allocates a directory for."""
    page = found.boot.view.page_size
    order = (max(1, -(-((hardware.max_pasid >> 6) * 8) // page)) - 1).bit_length()
    return (page << order) // 8 << 6


def _unmatched(found: Devices, state: IommuState) -> None:
    """Devices of the PCI state whose IOMMU state this kernel does not find."""
    for key in sorted(found.pci or ()):
        hardware = found.device(key >> 16, key & 0xFFFF)
        if hardware is None or not hardware.unit or hardware.driver != "vfio-pci":
            continue
        if key not in found.devices and key not in found.failed and found.devices:
            found.boot.notes.append(f"{format_bdf(key >> 16, key & 0xFFFF)} has no IOMMU state")
