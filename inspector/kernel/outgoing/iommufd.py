"""iommufd: address spaces, hardware page tables, and the handler that preserves them.

An IOAS holds areas of memory files; paging HWPTs map all areas of their IOAS; a nested HWPT
sits on a parent. User space marks the paging HWPTs that are to survive with tokens, preserves
the memory files, and then the iommufd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from abi.iommufd import HANDLER, IommufdGeneration
from abi.registry import Generation
from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine.hardware import PciDevice, Unit, UnitType
from inspector.kernel.outgoing.file_handler import FileHandler
from inspector.kernel.outgoing.ioas import Hwpt, Ioas
from inspector.kernel.outgoing.iommu import Domain, IommuFlb
from inspector.kernel.outgoing.iommu_drivers import IommuDrivers
from inspector.kernel.outgoing.kho import Kho
from inspector.kernel.outgoing.luo import Session
from inspector.kernel.outgoing.memfd import DMA_SEALS
from inspector.kernel.record import pack, pack_many


class Iommufd:
    """An open iommufd."""

    def __init__(self, drivers: IommuDrivers, core: IommuFlb | None) -> None:
        self.drivers = drivers
        self.core = core
        self.ioas: list[Ioas] = []
        self.hwpts: list[Hwpt] = []
        self.token: int | None = None
        self.devices: dict[int, Hwpt] = {}

    @property
    def preserves_devices(self) -> bool:
        """Whether this kernel keeps IOMMU state at all."""
        return self.core is not None

    # -- what user space does -------------------------------------------------------------------

    def ioas_alloc(self) -> Ioas:
        """A new address space."""
        space = Ioas(self)
        self.ioas.append(space)
        return space

    def hwpt_alloc(
        self,
        unit: Unit,
        ioas: Ioas | None = None,
        *,
        parent: Hwpt | None = None,
        first_stage: bool = False,
    ) -> Hwpt:
        """A paging HWPT on an IOAS, or a nested one on a parent. Raises EINVAL, ENOMEM."""
        if (ioas is None) == (parent is None):
            raise KernelErrno("EINVAL", "a HWPT is on an IOAS or on a parent")
        if parent is not None:
            if parent.nested or (unit.type is UnitType.INTEL and not unit.scalable):
                raise KernelErrno("EINVAL", "this HWPT cannot be a parent")
            hwpt = Hwpt(self, parent.domain, unit, None, parent)
        else:
            assert ioas is not None
            domain = self.drivers.new_domain(unit, first_stage=first_stage)
            hwpt = Hwpt(self, domain, unit, ioas)
            try:
                for area in ioas.areas:
                    hwpt.map(area)
            except KernelErrno:
                domain.table.free()
                raise
            ioas.hwpts.append(hwpt)
        self.hwpts.append(hwpt)
        return hwpt

    def attach(self, device: PciDevice, hwpt: Hwpt) -> None:
        """Attach a device, or replace what it is attached to. Raises EINVAL, ENODEV, ENOSPC."""
        if device.unit != hwpt.unit.base and not self._same_kind(device, hwpt):
            raise KernelErrno("EINVAL", f"{device} cannot use this page table")
        driver, before = self.drivers.of(device.unit), self.devices.get(device.key)
        if before is None and device.key in driver.attached:
            raise KernelErrno("EBUSY", f"{device} belongs to another iommufd")
        if self.core is not None and device.key in self.core.live_devices:
            raise KernelErrno("EBUSY", f"{device} is preserved")
        driver.attach(device, hwpt.domain)
        if before is not None:
            before.devices.discard(device.key)
        hwpt.devices.add(device.key)
        self.devices[device.key] = hwpt

    def _same_kind(self, device: PciDevice, hwpt: Hwpt) -> bool:
        other = self.drivers.hardware.unit(device.unit)
        return (
            other is not None
            and other.type == hwpt.unit.type
            and other.levels == hwpt.unit.levels
            and other.input_bits == hwpt.unit.input_bits
            and (other.scalable == hwpt.unit.scalable or not hwpt.nested)
        )

    def detach(self, device: PciDevice) -> None:
        """Detach a device. Raises EINVAL (not attached), EBUSY (preserved)."""
        if device.key not in self.devices:
            raise KernelErrno("EINVAL", f"{device} is not attached")
        if self.core is not None and device.key in self.core.live_devices:
            raise KernelErrno("EBUSY", f"{device} is preserved")
        self.drivers.of(device.unit).detach(device)
        self.devices.pop(device.key).devices.discard(device.key)

    def destroy(self, hwpt: Hwpt) -> None:
        """Destroy a HWPT. Raises EBUSY while it is in use or preserved."""
        if hwpt.devices or any(h.parent is hwpt for h in self.hwpts):
            raise KernelErrno("EBUSY", "the HWPT is in use")
        if not hwpt.nested and hwpt.domain.ser is not None:
            raise KernelErrno("EBUSY", "the HWPT is preserved")
        self.hwpts.remove(hwpt)
        if hwpt.ioas is not None:
            hwpt.ioas.hwpts.remove(hwpt)
            hwpt.domain.table.free()

    def destroy_ioas(self, ioas: Ioas) -> None:
        """Destroy an address space. Raises EBUSY while a HWPT is on it."""
        if ioas.hwpts:
            raise KernelErrno("EBUSY", "the address space is in use")
        self.ioas.remove(ioas)

    def mark(self, hwpt: Hwpt, token: int, *, bits: int = 64) -> None:
        """Mark a HWPT to be preserved, or change its token.

        Raises EINVAL (nested), EBUSY (preserved), EADDRINUSE (token).
        """
        if hwpt.nested:
            raise KernelErrno("EINVAL", "a nested HWPT cannot be preserved")
        if hwpt.domain.ser is not None:
            raise KernelErrno("EBUSY", "the HWPT is preserved")
        if not 0 <= token < 1 << bits:
            raise KernelErrno("EINVAL", f"the token has {bits} bits")
        if any(h.token == token for h in self.hwpts):
            raise KernelErrno("EADDRINUSE", f"token {token:#x} is in use")
        hwpt.token = token

    def unmark(self, hwpt: Hwpt) -> None:
        """Take the mark away again; only the second request for comments had that."""
        hwpt.token = None

    def domain_of(self, device: PciDevice) -> Domain | None:
        """The domain a device is attached to."""
        hwpt = self.devices.get(device.key)
        return hwpt.domain if hwpt is not None else None

    # -- preserving ---------------------------------------------------------------------------

    def preserve_device(self, device: PciDevice, token: int) -> None:
        """Preserve the IOMMU state of an attached device.

        Raises EINVAL if it is not attached here, or to something that is not preserved.
        """
        hwpt = self.devices.get(device.key)
        if hwpt is None or self.core is None:
            raise KernelErrno("EINVAL", f"DMA of {device} is not owned by this iommufd")
        if hwpt.nested and hwpt.unit.type is UnitType.INTEL:
            raise KernelErrno("EINVAL", f"{device} is attached to a nested page table")
        driver = self.drivers.of(device.unit)
        self.core.preserve_device(driver, device, hwpt.domain, token)

    def unpreserve_device(self, device: PciDevice) -> None:
        """Undo it."""
        assert self.core is not None
        self.core.unpreserve_device(self.drivers.of(device.unit), device)


@dataclass(slots=True)
class _State:
    ser: int
    hwpts: list[Hwpt]
    spaces: list[Ioas]


class IommufdHandler(FileHandler):
    """Preserves iommufds."""

    compatible = HANDLER

    def __init__(self, kho: Kho, generation: Generation, core: IommuFlb | None) -> None:
        assert isinstance(generation, IommufdGeneration)
        self.kho = kho
        self.generation = generation
        self.core = core
        self.flbs = () if core is None else (core,)
        self.states: dict[int, _State] = {}

    @property
    def token_bits(self) -> int:
        """Width of HWPT tokens."""
        entry = self.generation.entry
        return 64 if entry is None else entry.field("token").size * 8

    def can_preserve(self, file: Any) -> bool:
        """iommufds only."""
        return isinstance(file, Iommufd)

    def preserve(self, file: Iommufd, session: Session, token: int) -> int:
        """Preserve every marked HWPT with its domain; their address spaces become immutable.

        Raises EINVAL (a mapping without a file, or whose file lacks seals or is not preserved in
        this session), EBUSY, ENOMEM.
        """
        marked = [h for h in file.hwpts if h.token is not None]
        entry = self.generation.entry
        if entry is None:
            ser = self.kho.alloc_preserve(self.generation.root.size)
            self.states[id(file)] = _State(ser, [], [])
            file.token = token
            return ser
        spaces: list[Ioas] = []
        for hwpt in marked:
            assert hwpt.ioas is not None
            self._check(hwpt.ioas, session)
            if hwpt.ioas not in spaces:
                spaces.append(hwpt.ioas)
        size = self.generation.root.size + len(marked) * entry.size
        ser = self.kho.alloc_preserve(size)
        done: list[Hwpt] = []
        try:
            for hwpt in marked:
                if self.core is None:
                    raise KernelErrno("EOPNOTSUPP", "this kernel preserves no domains")
                self.core.preserve_domain(hwpt.domain)
                done.append(hwpt)
        except KernelErrno:
            for hwpt in reversed(done):
                assert self.core is not None
                self.core.unpreserve_domain(hwpt.domain)
            self.kho.unpreserve_free(ser)
            raise
        columns = {
            "domain_data": [h.domain.ser for h in marked],
            "token": [h.token for h in marked],
        }
        records = pack_many(entry, len(marked), columns if marked else {})
        head = pack(self.generation.root, {"nr_hwpts": len(marked)})
        self.kho.machine.memory.write(ser, head + records.tobytes())
        for space in spaces:
            space.immutable = True
        self.states[id(file)] = _State(ser, marked, spaces)
        file.token = token
        return ser

    def _check(self, space: Ioas, session: Session) -> None:
        for area in space.areas:
            if area.file is None:
                raise KernelErrno("EINVAL", f"no file backs the mapping at {area.iova:#x}")
            if area.file.seals & DMA_SEALS != DMA_SEALS:
                raise KernelErrno("EINVAL", f"{area.file.name} lacks seals")
            entry = session.luo.preserved.get(id(area.file))
            if entry is None or session.files.get(entry.token) is not entry:
                raise KernelErrno("EINVAL", f"{area.file.name} is not preserved in this session")

    def unpreserve(self, file: Iommufd, data: int) -> None:
        """Undo; the address spaces can change again."""
        state = self.states.pop(id(file))
        for hwpt in reversed(state.hwpts):
            assert self.core is not None
            self.core.unpreserve_domain(hwpt.domain)
        self.kho.unpreserve_free(state.ser)
        for space in state.spaces:
            space.immutable = False
        file.token = None

    def hwpts(self, file: Iommufd) -> list[Hwpt]:
        """The HWPTs that are preserved with a file, in the order of its entries."""
        return self.states[id(file)].hwpts
