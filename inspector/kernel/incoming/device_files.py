"""iommufd and vfio-pci files in the kernel that takes over, and the machine an image is of.

User space retrieves the iommufd, restores each HWPT by its token, retrieves and opens each
device, and moves it to a HWPT of its own (hotswap); only then can the files be finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from abi import registry
from abi.iommu import IommuGeneration
from abi.iommufd import IommufdGeneration
from abi.pci import PciGeneration
from abi.vfio_pci import SavedCapability, VfioPciGeneration
from inspector.budget import Cost
from inspector.evidence import Plausibility
from inspector.findings import Findings
from inspector.kernel.errno import KernelErrno
from inspector.kernel.incoming.boot import Booting
from inspector.kernel.incoming.device_state import Devices, check_budget
from inspector.kernel.incoming.in_use import protected
from inspector.kernel.incoming.luo import FileEntry, FlbEntry, SessionEntry
from inspector.kernel.incoming.pages import release, take_folio
from inspector.kernel.machine.hardware import (
    VFIO_PCI,
    Hardware,
    PciDevice,
    Unit,
    UnitType,
    format_bdf,
)
from inspector.passthrough.detect_iommu import Anchors, detect_iommu
from inspector.passthrough.detect_pci import detect_pci
from inspector.survey import Survey
from inspector.walk.contiguous import MAX_PAGES
from inspector.walk.iommu import walk_iommu
from inspector.walk.pci import walk_pci
from inspector.walk.vfio_pci import walk_vfio_pci


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
    #: Order of the folio that lists the HWPTs.
    order: int = 0
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
    #: Members of its struct, and what the PCI core had saved (first posting).
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)
    capabilities: list[SavedCapability] = field(default_factory=list, repr=False)
    #: Address of the domain object that it used before it was moved.
    domain: int | None = None

    def open(self) -> None:
        """Open the device: what was handed over of it is consumed."""
        self.opened = True

    def replace(self) -> None:
        """Move the device to a HWPT of the new kernel. Raises EINVAL, with the probe's error."""
        if self.device.key in self.devices.failed:
            raise KernelErrno("EINVAL", self.devices.failed[self.device.key])
        domain = self.devices.devices.pop(self.device.key, None)
        if domain is not None:
            self.domain = domain
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
    order = take_folio(boot, entry.data >> boot.view.page_shift)
    if order < 0:
        raise KernelErrno("EFAULT", f"{entry.data:#x} is not preserved")
    root, layout = generation.root, generation.entry
    count = root.unpack(boot.view.read(entry.data, root.size))["nr_hwpts"]
    found = RestoredIommufd(entry.path, entry.token, devices, order)
    size = count * layout.size
    if size > MAX_PAGES * boot.view.page_size:
        raise KernelErrno("EFAULT", f"{count} HWPTs are counted")
    if size:
        boot.spend(Cost.ENTRIES, size, entry.data)
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
    values = generation.root.unpack(boot.view.read(entry.data, generation.root.size))
    if devices.pci_error:
        raise KernelErrno("EINVAL", devices.pci_error)
    segment, bdf = values.get("domain", 0), values["bdf"]
    device = devices.device(segment, bdf)
    if device is None and not devices.hardware_known and devices.pci is None:
        device = PciDevice(bdf=bdf, segment=segment)  # nothing tells what the machine has
    if device is None:
        raise KernelErrno("ENOENT", f"no device {format_bdf(segment, bdf)} in this machine")
    if device.driver != VFIO_PCI:
        raise KernelErrno("ENODEV", f"{device} is not bound to {VFIO_PCI}")
    if devices.pci is not None and device.key not in devices.pci:
        raise KernelErrno("ENOENT", f"{device} is not in the PCI state")
    capabilities: list[SavedCapability] = []
    if generation.saved_state:
        capabilities = _saved_state(boot, generation, entry, values, device)
    token = values.get("token")
    if token is not None:
        owner = session.find(token)
        if owner is None or owner.layer != "iommufd":
            raise KernelErrno("ENOENT", f"no iommufd {token:#x} in the session")
    if not release(boot, entry.data):
        protected(boot, entry.path, generation.root.cname, entry.data, generation.root.size)
    return RestoredVfio(
        entry.path, entry.token, device, devices, values.get("reset_works"), values=values,
        capabilities=capabilities,
    )  # fmt: skip


def _saved_state(
    boot: Booting,
    generation: VfioPciGeneration,
    entry: FileEntry,
    values: dict[str, Any],
    device: PciDevice,
) -> list[SavedCapability]:
    """The saved state of a device, as the first posting checks it. Raises EINVAL."""
    if values["cfg_size"] != device.cfg_size:
        raise KernelErrno("EINVAL", f"configuration space of {values['cfg_size']} bytes")
    survey = boot.survey(per_code=4)
    found = walk_vfio_pci(survey, generation, entry.data, entry.path)
    check_budget(survey)
    if any(item.code == "KHO-VFI-002" for item in survey.findings.items):
        raise KernelErrno("EINVAL", "the list of saved capabilities does not end")
    if found is None or found.saved_state is None:
        return []
    release(boot, found.saved_state.address)
    return found.saved_state.capabilities


# -- the machine of an image --------------------------------------------------------------------


def hardware_of(boot: Booting, flbs: Iterable[FlbEntry]) -> Hardware:
    """Units and devices that an image speaks of, as the kernel that wrote it meant them.

    A VT-d unit is known by its registers, which the driver's part of the object repeats; the
    PASIDs of devices are not in the image.
    """
    survey = Survey(boot.view.memory, boot.view.page_size, Findings(per_code=4))
    likely = Plausibility(boot.view.memory, boot.view.page_size, boot.preserved)
    units: dict[int, Unit] = {}
    places: dict[int, int] = {}
    named = [(f.name.decode("utf-8", "replace"), f) for f in flbs]
    for name, flb in named:
        if registry.named("iommu", name):
            _of_iommu(survey, likely, name, flb, units, places)
    expected = frozenset((key >> 16, key & 0xFFFF) for key in places)
    for name, flb in named:
        if registry.named("pci", name):
            verdict = detect_pci(survey, likely, name, flb.data, expected)
            if isinstance(verdict.generation, PciGeneration):
                state = walk_pci(survey, verdict.generation, flb.data, flb.path)
                for segment, bdf in state.keys if state is not None else ():
                    places.setdefault(segment << 16 | bdf, 0)
    devices = tuple(
        PciDevice(bdf=key & 0xFFFF, segment=key >> 16, unit=unit) for key, unit in places.items()
    )
    return Hardware(tuple(units.values()), devices)


def _of_iommu(
    survey: Survey,
    likely: Plausibility,
    name: str,
    flb: FlbEntry,
    units: dict[int, Unit],
    places: dict[int, int],
) -> None:
    verdict = detect_iommu(survey, likely, name, flb.data, Anchors())
    if not isinstance(verdict.generation, IommuGeneration):
        return
    state = walk_iommu(survey, verdict.generation, flb.data, flb.path)
    if state is None:
        return
    bases: dict[int, int] = {}
    for unit in state.units.live():
        base = unit.get("phys_addr") or unit.token
        type_ = UnitType.ARM_SMMUV3 if unit.type == UnitType.ARM_SMMUV3 else UnitType.INTEL
        units.setdefault(base, Unit(base=base, type=type_))
        bases[unit.address] = base
    devices = state.devices
    rows = np.flatnonzero(~devices.deleted)
    columns = (
        devices.column(column)[rows].tolist() for column in ("pci_domain_nr", "devid", "iommu_phys")
    )
    for segment, devid, unit_at in zip(*columns, strict=True):
        places.setdefault(segment << 16 | devid & 0xFFFF, bases.get(unit_at, 0))
