"""vfio-pci device files and the handler that preserves them, in every posted form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from abi.registry import Generation
from abi.vfio_pci import (
    SavedCapability,
    VfioPciGeneration,
    build_saved_capabilities,
    pci_saved_state_ser,
)
from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine.hardware import VFIO_PCI, PciDevice
from inspector.kernel.outgoing.file_handler import FileHandler
from inspector.kernel.outgoing.iommu import Domain
from inspector.kernel.outgoing.iommufd import Iommufd
from inspector.kernel.outgoing.kho import Kho
from inspector.kernel.outgoing.luo import Session
from inspector.kernel.outgoing.pci import PciFlb
from inspector.kernel.record import pack


@dataclass(slots=True, eq=False)
class VfioDevice:
    """An open vfio-pci character device, bound to an iommufd or not.

    ``config`` is the configuration space as user space sees it, ``capabilities`` what the PCI
    core has saved; both travel in the first posting only. ``irqs`` says that interrupts are
    enabled, ``cdev`` that it was opened as a character device.
    """

    device: PciDevice
    iommufd: Iommufd | None = None
    config: bytes = b""
    capabilities: list[SavedCapability] = field(default_factory=list)
    bars: tuple[int, ...] = (0,) * 7
    irqs: bool = False
    cdev: bool = True

    @property
    def domain(self) -> Domain | None:
        """What the device is attached to."""
        if self.iommufd is None:
            return None
        return self.iommufd.domain_of(self.device)


@dataclass(slots=True)
class _State:
    ser: int
    saved: int
    attached: bool


class VfioHandler(FileHandler):
    """Preserves vfio-pci files."""

    def __init__(self, kho: Kho, generation: Generation, pci: PciFlb | None) -> None:
        assert isinstance(generation, VfioPciGeneration)
        self.kho = kho
        self.generation = generation
        self.compatible = generation.strings[0]
        self.pci = pci
        self.flbs = () if pci is None else (pci,)
        self.states: dict[int, _State] = {}
        # Looked up once: there may be a hundred thousand devices.
        self._members = frozenset(f.name for f in generation.root.fields)
        self._has_iommufd = generation.has_iommufd
        self._narrow = "domain" in self._members and generation.root.field("domain").size == 2

    def can_preserve(self, file: Any) -> bool:
        """vfio-pci character devices only."""
        return isinstance(file, VfioDevice) and file.cdev

    def preserve(self, file: VfioDevice, session: Session, token: int) -> int:
        """Preserve the device, with its IOMMU state if it is attached through an iommufd.

        Raises EINVAL (display device, not bound to the driver, iommufd or domain not preserved)
        and what the PCI and IOMMU layers raise.
        """
        device = file.device
        if device.display or device.driver != VFIO_PCI:
            raise KernelErrno("EINVAL", f"{device} cannot be preserved")
        if self.pci is not None:
            self.pci.add(device)
        try:
            attached = self._preserve_dma(file, session)
        except KernelErrno:
            if self.pci is not None:
                self.pci.remove(device)
            raise
        try:
            ser, saved = self._write(file)
        except KernelErrno:
            if attached and file.iommufd is not None:
                file.iommufd.unpreserve_device(device)
            if self.pci is not None:
                self.pci.remove(device)
            raise
        self.states[id(file)] = _State(ser, saved, attached)
        return ser

    def _preserve_dma(self, file: VfioDevice, session: Session) -> bool:
        """Preserve the IOMMU state, if any is kept. A form that names the iommufd needs one."""
        iommufd = file.iommufd
        if iommufd is None:
            if self._has_iommufd:
                raise KernelErrno("EINVAL", f"{file.device} is bound to no iommufd")
            return False
        if not iommufd.preserves_devices and not self._has_iommufd:
            return False
        entry = session.luo.preserved.get(id(iommufd))
        if entry is None or session.files.get(entry.token) is not entry:
            raise KernelErrno("EINVAL", f"the iommufd of {file.device} is not preserved")
        if self._has_iommufd and entry.token >> 32:
            raise KernelErrno("EINVAL", f"token {entry.token:#x} does not fit in 32 bits")
        if iommufd.preserves_devices:
            iommufd.preserve_device(file.device, entry.token)
        return iommufd.preserves_devices

    def _write(self, file: VfioDevice) -> tuple[int, int]:
        root, device = self.generation.root, file.device
        values: dict[str, Any] = {"bdf": device.bdf}
        saved = 0
        if "domain" in self._members:
            values["domain"] = device.segment & 0xFFFF if self._narrow else device.segment
        if "reset_works" in self._members:
            values["reset_works"] = int(device.reset_works)
        if self.generation.saved_state:
            saved = self._save_state(file)
            config = file.config.ljust(device.cfg_size, b"\0")[:4096]
            values |= {
                "cfg_size": device.cfg_size,
                "pci_config_map": _config_map(config),
                "vconfig": config.ljust(4096, b"\0"),
                "rbar": list(file.bars),
                "pci_saved_state_phys": saved,
            }
        if self._has_iommufd and file.iommufd is not None:
            values["iommufd_ser"] = {"token": (file.iommufd.token or 0) & 0xFFFFFFFF}
        return self.kho.alloc_preserve(root.size, pack(root, values)), saved

    def _save_state(self, file: VfioDevice) -> int:
        if not file.capabilities:
            return 0
        header = list(memoryview(file.config.ljust(64, b"\0")[:64]).cast("I"))
        data = pack(pci_saved_state_ser, {"config_space": header})
        data += build_saved_capabilities(file.capabilities)
        saved = self.kho.alloc_preserve(len(data))
        self.kho.machine.memory.write(saved, data)
        return saved

    def freeze(self, file: VfioDevice, data: int) -> int:
        """Reset the device. Raises EINVAL while its interrupts are enabled."""
        if file.irqs:
            raise KernelErrno("EINVAL", f"interrupts of {file.device} are enabled")
        return data

    def unpreserve(self, file: VfioDevice, data: int) -> None:
        """Undo."""
        state = self.states.pop(id(file))
        if state.saved:
            self.kho.unpreserve_free(state.saved)
        self.kho.unpreserve_free(state.ser)
        if state.attached and file.iommufd is not None:
            file.iommufd.unpreserve_device(file.device)
        if self.pci is not None:
            self.pci.remove(file.device)


def _config_map(config: bytes) -> bytes:
    """Which capability each byte of configuration space belongs to: 0xff none, 0 the header."""
    out = bytearray(b"\xff" * 4096)
    out[:64] = bytes(64)
    return bytes(out)
