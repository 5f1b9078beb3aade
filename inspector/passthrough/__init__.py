"""Passed-through devices: what IOMMU, iommufd, VFIO and PCI state say together.

An image keeps each layer's objects where its file or FLB is. Here is what reads across the
layers: the objects of one kind, and all that is known of one device. Beside it are the
decoding (:mod:`.decode`) with its detection of generations, the page tables of domains
(:mod:`.domains`) as ranges (:mod:`.mappings`, :mod:`.tables`), and which device can reach
which memory (:mod:`.reach`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inspector.walk.iommu import Device, Domain, IommuState, Unit, device_name
from inspector.walk.iommufd import Hwpt, Iommufd
from inspector.walk.luo import File, Flb, Session
from inspector.walk.pci import PciDevice, PciState
from inspector.walk.vfio_pci import VfioDevice

if TYPE_CHECKING:
    from inspector.image import Image

#: A device: (PCI segment, bus << 8 | devfn).
Key = tuple[int, int]


def iommu_state(image: Image) -> IommuState | None:
    """The IOMMU state of an image."""
    return next((f.state for f in _all_flbs(image) if isinstance(f.state, IommuState)), None)


def pci_state(image: Image) -> PciState | None:
    """The PCI state of an image."""
    return next((f.state for f in _all_flbs(image) if isinstance(f.state, PciState)), None)


def _all_flbs(image: Image) -> list[Flb]:
    return image.luo.flbs if image.luo is not None else []


def iommufds(image: Image) -> Iterator[tuple[Session, File, Iommufd]]:
    """Every decoded iommufd file."""
    if image.luo is not None:
        for session, file in image.luo.files():
            if isinstance(file.state, Iommufd):
                yield session, file, file.state


def vfio_devices(image: Image) -> Iterator[tuple[Session, File, VfioDevice]]:
    """Every decoded VFIO file."""
    if image.luo is not None:
        for session, file in image.luo.files():
            if isinstance(file.state, VfioDevice):
                yield session, file, file.state


def iommu_devices(state: IommuState | None) -> frozenset[Key]:
    """The devices that are live in the IOMMU state."""
    if state is None:
        return frozenset()
    live = ~state.devices.deleted
    segments = state.devices.column("pci_domain_nr")[live].tolist()
    return frozenset(zip(segments, state.devices.column("devid")[live].tolist(), strict=True))


def known_devices(image: Image) -> frozenset[Key]:
    """(segment, BDF) of the devices in the PCI state, or else in the IOMMU state."""
    pci = pci_state(image)
    if pci is not None and pci.keys:
        return frozenset(pci.keys)
    return iommu_devices(iommu_state(image))


# -- the picture ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HwptUse:
    """A HWPT that leads to a domain, and whose it is."""

    session: Session
    file: File
    hwpt: Hwpt


@dataclass(frozen=True, slots=True)
class DevicePicture:
    """All that an image says of one device. Any part may be missing."""

    name: str
    key: Key
    device: Device | None
    unit: Unit | None
    domain: Domain | None
    hwpts: tuple[HwptUse, ...]
    vfio: tuple[tuple[Session, File, VfioDevice], ...]
    pci: PciDevice | None


def hwpts_by_domain(image: Image) -> dict[int, list[HwptUse]]:
    """HWPTs by the address of the domain object they name."""
    found: dict[int, list[HwptUse]] = {}
    for session, file, state in iommufds(image):
        for hwpt in state.hwpts:
            found.setdefault(hwpt.domain_data, []).append(HwptUse(session, file, hwpt))
    return found


def devices(image: Image) -> list[DevicePicture]:
    """One picture for each device that any of the layers names, by PCI address."""
    iommu, pci = iommu_state(image), pci_state(image)
    by_key: dict[Key, Device] = {}
    if iommu is not None:
        by_key = {(d.pci_domain_nr, d.devid): d for d in iommu.devices.live()}
    slots = {(d.domain, d.bdf): d for d in pci.devices} if pci is not None else {}
    files: dict[Key, list[tuple[Session, File, VfioDevice]]] = {}
    for entry in vfio_devices(image):
        state = entry[2]
        files.setdefault((state.domain or 0, state.bdf), []).append(entry)
    hwpts = hwpts_by_domain(image)
    units: dict[int, Unit | None] = {}
    domains: dict[int, Domain | None] = {}
    pictures = []
    for key in sorted(by_key.keys() | slots.keys() | files.keys()):
        device = by_key.get(key)
        unit = domain = None
        if device is not None and iommu is not None:
            if device.iommu_phys not in units:
                units[device.iommu_phys] = iommu.units.at(device.iommu_phys)
            if device.domain_phys not in domains:
                domains[device.domain_phys] = iommu.domains.at(device.domain_phys)
            unit, domain = units[device.iommu_phys], domains[device.domain_phys]
        uses = tuple(hwpts.get(domain.address, ())) if domain is not None else ()
        name = device_name(*key)
        pictures.append(
            DevicePicture(
                name, key, device, unit, domain, uses, tuple(files.get(key, ())), slots.get(key)
            )
        )
    return pictures
