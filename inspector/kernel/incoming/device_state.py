"""What a kernel took over of IOMMU and PCI state, and how it takes pages of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from abi.iommu import Header
from abi.schema import Struct
from inspector.kernel.incoming.boot import Booting
from inspector.kernel.incoming.luo import FlbEntry
from inspector.kernel.incoming.pages import take_folio, take_folios
from inspector.kernel.incoming.view import Absent, PageFault
from inspector.kernel.machine.hardware import Hardware, PciDevice
from inspector.kernel.outgoing.inherited import InheritedTables
from inspector.memory.base import U64Array
from inspector.survey import Survey
from inspector.walk.iommu import IommuState

#: Handler's layer -> layer of the FLB that its files count as users of.
FLB_OF = {"iommufd": "iommu", "vfio-pci": "pci", "hugetlb": "hugetlb"}


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
    held: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
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
        flb = self.flbs.get(flb_name(self.boot, FLB_OF[layer]))
        if flb is None or flb.finished:
            return
        flb.count -= 1
        if flb.count <= 0:
            flb.finished = True
            for address, order in self.held.pop(FLB_OF[layer], ()):
                self.boot.freed.add_one(address >> self.boot.view.page_shift, order)

    def device(self, segment: int, bdf: int) -> PciDevice | None:
        """A device of the machine."""
        return self.hardware.device(segment, bdf)


def flb_name(boot: Booting, layer: str) -> bytes:
    """The name of a layer's FLB in this kernel, empty if it has none."""
    generation = boot.kernel.get(layer)
    return generation.strings[0].encode() if generation is not None else b""


def check_holes(found: Devices, survey: Survey, path: str) -> None:
    """Raises Absent or PageFault for the first page that a walk lacked, or did not read."""
    for address, _ in survey.holes[:1]:
        if found.boot.view.in_ram(address) is False:
            raise PageFault(address)
        raise Absent(address)
    check_budget(survey)


def check_budget(survey: Survey) -> None:
    """Raises Absent if the budget did not allow a walk to read everything."""
    for item in survey.findings.items if survey.given_up else ():
        if item.code == "KHO-LST-010":
            raise Absent(item.address or 0, item.message)


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


def set_member(found: Devices, kind: Any, address: int, name: str, value: int) -> None:
    """Write a byte member of the VT-d view of an object, where there is one."""
    offset = _intel_offset(kind.objects, name)
    if offset is not None:
        found.boot.view.memory.write(address + offset, bytes([value]))


@cache
def _intel_offset(struct: Struct, name: str) -> int | None:
    names = (f"u.intel.{name}", f"intel.{name}")
    return next((f.offset for f in struct.flat_fields() if f.name in names), None)


def live_rows(state: IommuState) -> npt.NDArray[np.int64]:
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
