"""iommufd and vfio-pci files in the kernel that takes over, and the machine an image is of.

User space retrieves the iommufd, restores each HWPT by its token, retrieves and opens each
device, and moves it to a HWPT of its own (hotswap); only then can the files be finished.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from abi.iommufd import IommufdGeneration
from abi.vfio_pci import VfioPciGeneration
from inspector.findings import Findings
from inspector.kernel.boot import Booting
from inspector.kernel.devices import Devices
from inspector.kernel.errno import KernelErrno
from inspector.kernel.hardware import VFIO_PCI, Hardware, PciDevice, Unit, UnitType, format_bdf
from inspector.kernel.incoming import FileEntry, SessionEntry, protected
from inspector.kernel.pages import release, take_folio
from inspector.survey import Survey
from inspector.walk.contiguous import MAX_PAGES
from inspector.walk.vfio_pci import walk_vfio_pci

_DEFAULT_UNIT = 0xFED90000


@dataclass(slots=True, eq=False)
class RestoredHwpt:
    """A HWPT of the old kernel: its token, and the address of its domain object."""

    token: int
    domain: int
    #: Address of the byte that says it is claimed.
    reclaimed_at: int
    claimed: bool = False


@dataclass(slots=True, eq=False)
class RestoredIommufd:
    """An iommufd file after retrieve. Its HWPTs wait to be claimed by token."""

    path: str
    token: int
    devices: Devices = field(repr=False)
    hwpts: dict[int, RestoredHwpt] = field(default_factory=dict)

    def restore_hwpt(self, token: int) -> RestoredHwpt:
        """Claim a HWPT. Raises ENOTTY (no IOMMU state), ENOENT (token), EEXIST (claimed)."""
        if self.devices.iommu is None:
            raise KernelErrno("ENOTTY", "no IOMMU state was handed over")
        hwpt = self.hwpts.get(token)
        if hwpt is None:
            raise KernelErrno("ENOENT", f"no HWPT has the token {token:#x}")
        if hwpt.claimed:
            raise KernelErrno("EEXIST", f"HWPT {token:#x} is claimed already")
        domain = self.devices.iommu.domains.at(hwpt.domain)
        if domain is None or domain.deleted:
            what = "no domain" if domain is None else "a deleted domain"
            raise KernelErrno("EINVAL", f"HWPT {token:#x} leads to {what} at {hwpt.domain:#x}")
        hwpt.claimed = True
        self.devices.boot.view.memory.write(hwpt.reclaimed_at, b"\x01")
        return hwpt

    def can_finish(self) -> bool:
        """Whether every HWPT is claimed and no device uses a restored domain any more."""
        domains = {h.domain for h in self.hwpts.values()}
        return all(h.claimed for h in self.hwpts.values()) and not any(
            domain in domains for domain in self.devices.devices.values()
        )

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "hwpts": [
                {"token": f"{h.token:#x}", "domain": f"{h.domain:#x}", "claimed": h.claimed}
                for h in self.hwpts.values()
            ]
        }

    def __str__(self) -> str:
        claimed = sum(h.claimed for h in self.hwpts.values())
        return f"iommufd with {len(self.hwpts)} HWPTs, {claimed} claimed"


@dataclass(slots=True, eq=False)
class RestoredVfio:
    """A vfio-pci file after retrieve. ``opened`` once its state is consumed."""

    path: str
    token: int
    device: PciDevice
    devices: Devices = field(repr=False)
    reset_works: int | None = None
    opened: bool = False

    def open(self) -> None:
        """Open the device: what was handed over of it is consumed."""
        self.opened = True

    def replace(self) -> None:
        """Move the device to a HWPT of the new kernel. Raises EINVAL, with the probe's error."""
        if self.device.key in self.devices.failed:
            raise KernelErrno("EINVAL", self.devices.failed[self.device.key])
        domain = self.devices.devices.pop(self.device.key, None)
        if domain is not None:
            self.devices.domains[domain].devices.discard(self.device.key)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {"device": str(self.device), "opened": self.opened, "reset_works": self.reset_works}

    def __str__(self) -> str:
        return f"vfio-pci device {self.device}{', opened' if self.opened else ''}"


# -- retrieve -----------------------------------------------------------------------------------


def retrieve_iommufd(devices: Devices, entry: FileEntry) -> RestoredIommufd:
    """Build an iommufd again. Raises EFAULT (page not preserved), EOPNOTSUPP, Absent."""
    boot = devices.boot
    generation = boot.kernel["iommufd"]
    assert isinstance(generation, IommufdGeneration)
    if generation.entry is None:
        raise KernelErrno("EOPNOTSUPP", f"{generation.id} restores nothing")
    if take_folio(boot, entry.data >> boot.view.page_shift) < 0:
        raise KernelErrno("EFAULT", f"{entry.data:#x} is not preserved")
    root, layout = generation.root, generation.entry
    count = root.unpack(boot.view.read(entry.data, root.size))["nr_hwpts"]
    found = RestoredIommufd(entry.path, entry.token, devices)
    size = count * layout.size
    if size > MAX_PAGES * boot.view.page_size:
        raise KernelErrno("EFAULT", f"{count} HWPTs are counted")
    if size:
        protected(boot, entry.path, "the list of HWPTs", entry.data, root.size + size)
    start = entry.data + root.size
    rows = np.frombuffer(boot.view.read(start, size), layout.dtype)
    claimed = layout.field("reclaimed").offset
    for i, row in enumerate(rows):
        token = int(row["token"])
        hwpt = RestoredHwpt(token, int(row["domain_data"]), start + i * layout.size + claimed)
        found.hwpts.setdefault(token, hwpt)
    return found


def retrieve_vfio(devices: Devices, session: SessionEntry, entry: FileEntry) -> RestoredVfio:
    """Build a vfio-pci file again. Raises ENOENT (no such device, iommufd), ENODEV, EINVAL."""
    boot = devices.boot
    generation = boot.kernel["vfio-pci"]
    assert isinstance(generation, VfioPciGeneration)
    survey = Survey(boot.view.memory, boot.view.page_size, Findings(per_code=4))
    boot.view.read(entry.data, generation.root.size)
    protected(boot, entry.path, generation.root.cname, entry.data, generation.root.size)
    state = walk_vfio_pci(survey, generation, entry.data, entry.path)
    if state is None:
        raise KernelErrno("EINVAL", f"nothing can be read at {entry.data:#x}")
    if devices.pci_error:
        raise KernelErrno("EINVAL", devices.pci_error)
    segment = state.domain or 0
    device = devices.device(segment, state.bdf)
    if device is None:
        raise KernelErrno("ENOENT", f"no device {format_bdf(segment, state.bdf)} in this machine")
    if device.driver != VFIO_PCI:
        raise KernelErrno("ENODEV", f"{device} is not bound to {VFIO_PCI}")
    if devices.pci is not None and device.key not in devices.pci:
        raise KernelErrno("ENOENT", f"{device} is not in the PCI state")
    if generation.saved_state:
        if state.values["cfg_size"] != device.cfg_size:
            raise KernelErrno("EINVAL", f"configuration space of {state.values['cfg_size']} bytes")
        if any(item.code == "KHO-VFI-002" for item in survey.findings.items):
            raise KernelErrno("EINVAL", "the list of saved capabilities does not end")
    if state.iommufd_token is not None:
        owner = session.find(state.iommufd_token)
        if owner is None or owner.layer != "iommufd":
            raise KernelErrno("ENOENT", f"no iommufd {state.iommufd_token:#x} in the session")
    release(boot, entry.data)
    return RestoredVfio(entry.path, entry.token, device, devices, state.reset_works)


# -- the machine of an image --------------------------------------------------------------------


def hardware_of(boot: Booting) -> Hardware:
    """Units and devices that an image speaks of, as the kernel that wrote it meant them.

    A VT-d unit is known by its registers, which the driver's part of the object repeats; the
    PASIDs of devices are not in the image.
    """
    from inspector import image as images
    from inspector import passthrough

    try:
        decoded = images.open(boot.view.memory, root=boot.root, page_size=boot.view.page_size)
    except images.NoRootError:
        return Hardware()
    state = passthrough.iommu_state(decoded)
    units: dict[int, Unit] = {}
    places: dict[int, int] = {}
    if state is not None:
        for unit in state.units.live():
            base = unit.get("phys_addr") or unit.token
            type_ = UnitType.ARM_SMMUV3 if unit.type == UnitType.ARM_SMMUV3 else UnitType.INTEL
            units.setdefault(base, Unit(base=base, type=type_))
        for device in state.devices.live():
            behind = state.units.at(device.iommu_phys)
            base = (behind.get("phys_addr") or behind.token) if behind is not None else 0
            key = device.pci_domain_nr << 16 | device.devid & 0xFFFF
            places.setdefault(key, base if base in units else 0)
    pci = passthrough.pci_state(decoded)
    for slot in pci.devices if pci is not None else ():
        places.setdefault(slot.domain << 16 | slot.bdf, 0)
    for _, _, vfio in passthrough.vfio_devices(decoded):
        places.setdefault((vfio.domain or 0) << 16 | vfio.bdf, 0)
    found = tuple(
        PciDevice(bdf=key & 0xFFFF, segment=key >> 16, unit=unit) for key, unit in places.items()
    )
    return Hardware(tuple(units.values()), found)
