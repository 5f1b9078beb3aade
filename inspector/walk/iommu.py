"""IOMMU state: hardware units, domains and devices out of their array pages.

Objects stay rows of a structured array; :class:`Unit`, :class:`Domain` and
:class:`Device` are made when one is asked for. Columns and properties have the names of
the latest revision whatever the generation; ``values`` has the kernel's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from abi.iommu import DELETED, INCOMING, VIEW_OF_TYPE, ArrayKind, Header, IommuGeneration
from abi.schema import resolve
from abi.vtd import bitmap_bits
from inspector.memory.base import U64Array
from inspector.survey import Survey
from inspector.walk.paged_array import PagedArray, walk_paged_array


@dataclass(frozen=True, slots=True)
class IommuObject:
    """One slot of an array. ``values`` are its members by the kernel's names, flattened.

    ``view`` is the union member that was read (``intel``, ``smmuv3``, or "").
    """

    address: int
    index: int
    path: str
    deleted: bool
    incoming: bool
    view: str
    values: dict[str, Any]
    generation: IommuGeneration = field(repr=False)

    def get(self, name: str, default: int = 0) -> int:
        """A member by its latest name; ``default`` where the generation has none."""
        return int(self.values.get(self.generation.native(name), default))

    @property
    def live(self) -> bool:
        """Whether the consumer would use it."""
        return not self.deleted and self.ref_count > 0

    @property
    def ref_count(self) -> int:
        """Users of the object."""
        return self.get("ref_count")


@dataclass(frozen=True, slots=True)
class Unit(IommuObject):
    """A hardware unit (an IOMMU)."""

    @property
    def token(self) -> int:
        """Its register base."""
        return self.get("token")

    @property
    def type(self) -> int:
        """1: Intel VT-d, 2: SMMUv3."""
        return self.get("type")

    @property
    def root_table(self) -> int:
        """VT-d root table, 0 where unknown."""
        return self.get("root_table") if self.view == "intel" else 0

    @property
    def context_tables(self) -> frozenset[int] | None:
        """Set bits of ``context_tables_bitmap`` (bus * 2 + half); None without a bitmap."""
        bitmap = self.values.get("context_tables_bitmap")
        return None if bitmap is None else bitmap_bits(bitmap)


@dataclass(frozen=True, slots=True)
class Domain(IommuObject):
    """A domain: one page table."""

    @property
    def top_table_phys(self) -> int:
        """The top page of its page table."""
        return self.get("top_table_phys")

    @property
    def top_level(self) -> int:
        """Zero-based level of the top table."""
        return self.get("top_level")

    @property
    def levels(self) -> int:
        """Number of levels of the page table."""
        return self.top_level + 1

    @property
    def vasz(self) -> int | None:
        """Bits of the input address; None before 2026-04."""
        return self.values.get("vasz")

    @property
    def sign_extend(self) -> int | None:
        """1: input addresses are canonical, as of a first stage; None before 2026-04."""
        return self.values.get("sign_extend")

    @property
    def restored_domain(self) -> int:
        """Kernel pointer that the consumer wrote, 0 before."""
        return self.get("restored_domain")


@dataclass(frozen=True, slots=True)
class Device(IommuObject):
    """A device: which domain it uses, behind which unit."""

    @property
    def devid(self) -> int:
        """bus << 8 | devfn."""
        return self.get("devid")

    @property
    def pci_domain_nr(self) -> int:
        """PCI segment."""
        return self.get("pci_domain_nr")

    @property
    def name(self) -> str:
        """``0000:00:03.0``."""
        return device_name(self.pci_domain_nr, self.devid)

    @property
    def attachment_id(self) -> int:
        """VT-d: the DID."""
        return self.get("attachment_id")

    @property
    def domain_phys(self) -> int:
        """Address of its domain object."""
        return self.get("domain_phys")

    @property
    def iommu_phys(self) -> int:
        """Address of its unit object."""
        return self.get("iommu_phys")

    @property
    def dma_owner_token(self) -> int | None:
        """LUO token of the iommufd that owns its DMA; None where not kept."""
        return self.values.get("dma_owner_token")

    @property
    def pasid_table(self) -> int:
        """VT-d PASID directory, 0 in legacy mode and where not kept."""
        return self.get("pasid_table") if self.view == "intel" else 0


Obj = TypeVar("Obj", bound=IommuObject)


def device_name(segment: int, devid: int) -> str:
    """A PCI address as people write it: ``0000:00:03.0``."""
    return f"{segment:04x}:{devid >> 8 & 0xFF:02x}:{devid >> 3 & 0x1F:02x}.{devid & 7}"


@dataclass
class Objects(Generic[Obj]):
    """One of the three arrays: a sequence of objects, and columns of the whole.

    ``types`` is the type of unit by which each object's union is read (0: unknown).
    """

    generation: IommuGeneration
    kind: ArrayKind
    path: str
    make: type[Obj]
    array: PagedArray
    types: npt.NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Obj:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        view = self._view(index)
        values = flatten(self.array.values(index, *((view,) if view else ())), view)
        return self.make(
            int(self.array.addresses[index]),
            index,
            f"{self.path}/{index}",
            bool(self.deleted[index]),
            bool(self.incoming[index]),
            view,
            values,
            self.generation,
        )

    def __iter__(self) -> Iterator[Obj]:
        return (self[i] for i in range(len(self)))

    def live(self) -> Iterator[Obj]:
        """Those that are not deleted."""
        return (self[i] for i in np.flatnonzero(~self.deleted).tolist())

    @property
    def views(self) -> tuple[str, ...]:
        """The members that the objects' union has."""
        if self.kind.name == "units":
            return self.generation.unit_views
        return self.generation.device_views if self.kind.name == "devices" else ()

    def _view(self, index: int) -> str:
        if not self.views:
            return ""
        selector = int(self.types[index]) if self.types is not None else 0
        view = VIEW_OF_TYPE.get(selector, "") if selector else self.views[0]
        return view if view in self.views else ""

    @cached_property
    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Members of all objects by the kernel's names; those of unions as ``view.name``."""
        return self.array.struct.columns(self.array.records, *self.views)

    def column(self, name: str) -> npt.NDArray[Any]:
        """A member of all objects, by its latest name. Raises KeyError if there is none."""
        return self.columns[self.generation.native(name)]

    @property
    def addresses(self) -> U64Array:
        """Physical addresses."""
        return self.array.addresses

    @cached_property
    def deleted(self) -> npt.NDArray[np.bool_]:
        """Which slots are marked DELETED."""
        return self._marked("deleted", DELETED)

    @cached_property
    def incoming(self) -> npt.NDArray[np.bool_]:
        """Which objects the consumer has marked as its own."""
        return self._marked("incoming", INCOMING)

    def _marked(self, name: str, mask: int) -> npt.NDArray[np.bool_]:
        if self.generation.header is Header.FLAGS:
            flagged: npt.NDArray[np.bool_] = (self.columns["flags"] & np.uint32(mask)) != 0
            return flagged
        named: npt.NDArray[np.bool_] = self.columns[name] != 0
        return named

    def at(self, address: int) -> Obj | None:
        """The object that starts at an address."""
        index = self.array.index_of(address)
        return self[index] if index >= 0 else None


@dataclass(frozen=True, slots=True)
class Users:
    """Indices of live devices by one of their pointers: ``pointers`` ascend."""

    pointers: U64Array
    devices: npt.NDArray[np.intp]

    def of(self, address: int) -> npt.NDArray[np.intp]:
        """The devices that have this pointer, ascending."""
        wanted = np.array([address], np.uint64)
        low = int(np.searchsorted(self.pointers, wanted, "left")[0])
        return self.devices[low : int(np.searchsorted(self.pointers, wanted, "right")[0])]


@dataclass(slots=True)
class IommuState:
    """The FLB's root and the three arrays.

    ``version`` is the root's version word, None where it has none; ``values`` all of its
    members. ``complete`` if every array could be read to its end.
    """

    path: str
    generation: IommuGeneration
    address: int
    version: int | None
    values: dict[str, Any]
    units: Objects[Unit]
    domains: Objects[Domain]
    devices: Objects[Device]
    _users: dict[str, Users] = field(default_factory=dict, repr=False, compare=False)

    @property
    def complete(self) -> bool:
        """Whether all objects are here."""
        return all(o.array.complete for o in (self.units, self.domains, self.devices))

    def users_of(self, used: IommuObject) -> npt.NDArray[np.intp]:
        """Indices of the live devices that use a domain, or that are behind a unit; ascending."""
        name = "domain_phys" if isinstance(used, Domain) else "iommu_phys"
        if name not in self._users:  # sorted once: to search for each domain would be quadratic
            live = np.flatnonzero(~self.devices.deleted)
            pointers = self.devices.column(name)[live].astype(np.uint64)
            order = np.argsort(pointers, kind="stable")
            self._users[name] = Users(pointers[order], live[order])
        return self._users[name].of(used.address)

    def devices_of(self, used: IommuObject) -> list[Device]:
        """The live devices that use a domain, or that are behind a unit."""
        return [self.devices[i] for i in self.users_of(used).tolist()]

    def units_of(self, domain: Domain) -> list[Unit]:
        """The units, deleted ones too, that live devices of a domain are behind."""
        pointers = self.devices.column("iommu_phys")[self.users_of(domain)]
        found = (self.units.at(int(p)) for p in np.unique(pointers))
        return [unit for unit in found if unit is not None]


def flatten(values: dict[str, Any], view: str) -> dict[str, Any]:
    """A flat dict with the members of one union view in place, and no raw union area."""
    prefix = f"{view}." if view else "\0"
    return {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name not in ("u", "state", "sign_extend_bits") and not name.startswith("_pad")
    }


def walk_iommu(
    survey: Survey, generation: IommuGeneration, address: int, path: str
) -> IommuState | None:
    """The IOMMU state whose root lies at ``address``; None if the root cannot be read.

    Findings, besides those of the chains: ``KHO-IOM-001`` unknown version, ``-002`` an
    array pointer is 0 (both make the consumer panic), ``-003`` an object does not know its
    own index, ``-004`` unknown type of unit.
    """
    flb = generation.flb
    if flb is None or not survey.pointer(address, path, flb.cname):
        return None
    values = survey.unpack(flb, address, path)
    if values is None:
        return None
    survey.claim("struct", path, address, survey.page_size)
    version = values.get("version")
    if version is not None and version != generation.version:
        survey.findings.error(
            "KHO-IOM-001",
            f"IOMMU state has version {version}, only {generation.version} is known:"
            " the next kernel panics",
            path=path,
            address=address,
        )
    arrays = [_array(survey, generation, kind, values, path, address) for kind in generation.arrays]
    units: Objects[Unit] = Objects(
        generation, generation.arrays[0], f"{path}/units", Unit, arrays[0]
    )
    domains: Objects[Domain] = Objects(
        generation, generation.arrays[1], f"{path}/domains", Domain, arrays[1]
    )
    devices: Objects[Device] = Objects(
        generation, generation.arrays[2], f"{path}/devices", Device, arrays[2]
    )
    state = IommuState(path, generation, address, version, values, units, domains, devices)
    _link_views(state)
    _check_objects(survey, state)
    return state


def _member(generation: IommuGeneration, name: str, page_size: int) -> int:
    assert generation.flb is not None
    return resolve(generation.flb, page_size).field(name).offset


def _array(
    survey: Survey,
    generation: IommuGeneration,
    kind: ArrayKind,
    root: dict[str, Any],
    path: str,
    address: int,
) -> PagedArray:
    own = f"{path}/{kind.name}"
    first = root[kind.root]
    if not first:
        survey.findings.error(
            "KHO-IOM-002",
            f"{kind.root} is 0: the next kernel panics",
            path=own,
            address=address + _member(generation, kind.root, survey.page_size),
        )
    total = root[kind.total] if kind.total else None
    return walk_paged_array(survey, first, kind.page, own, f"array of {kind.name}", total)


def _link_views(state: IommuState) -> None:
    """Unions are read as the type of the unit says; RFC devices say it themselves."""
    units, devices = state.units, state.devices
    units.types = units.column("type")
    if "type" in devices.columns:
        devices.types = devices.columns["type"]
    else:
        at = units.array.find(devices.column("iommu_phys").astype(np.uint64))
        known = units.types if len(units) else np.zeros(1, np.uint64)
        devices.types = np.where(at >= 0, known[np.maximum(at, 0)], 0)


def _check_objects(survey: Survey, state: IommuState) -> None:
    generation = state.generation
    for objects in (state.units, state.domains, state.devices):
        if generation.header is Header.INDEX_BITS and len(objects):
            wrong = np.flatnonzero(objects.column("idx") != np.arange(len(objects)))
            for i in wrong[:16].tolist():
                survey.findings.error(
                    "KHO-IOM-003",
                    f"object {i} says it has index {int(objects.column('idx')[i])}",
                    path=f"{objects.path}/{i}",
                    address=int(objects.addresses[i]),
                )
    for unit in state.units.live() if len(state.units) < 4096 else ():
        if unit.type not in (0, *VIEW_OF_TYPE):
            survey.findings.error(
                "KHO-IOM-004",
                f"unit of unknown type {unit.type}",
                path=unit.path,
                address=unit.address,
            )
