"""What file handlers and FLBs stored, read with the Kaitai parsers.

Bodies are small dataclasses around the parsed structs (``ser``), with what hangs off them
by physical address.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import GuestMemfdLuo, HugetlbLuo, IommufdLuo, KvmLuo, MemfdLuo, PciLuo, TmpfsLuo, VfioPciLuo
from .follow import Follower
from .iommu import IommuState, read_iommu

if TYPE_CHECKING:
    from .reader import Layouts

__all__ = ["FolioFile", "IommuState", "Iommufd", "Pci", "Plain", "read_file", "read_flb"]


@dataclass(frozen=True, slots=True)
class FolioFile:
    """A file of folios: memfd, hugetlb memfd, guest_memfd.

    ``folios`` are (frame number, flags, index) in the order of the image.
    """

    pa: int
    ser: Any
    folios: list[tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Plain:
    """A struct that leads nowhere: vfio-pci, tmpfs, KVM, HugeTLB."""

    pa: int
    ser: Any


@dataclass(frozen=True, slots=True)
class Iommufd:
    """An iommufd; ``hwpts`` as (physical address, struct)."""

    pa: int
    ser: Any
    hwpts: list[tuple[int, Any]]


@dataclass(frozen=True, slots=True)
class Pci:
    """Devices of the PCI core as (physical address, struct)."""

    pa: int
    ser: Any
    devices: list[tuple[int, Any]] = field(default_factory=list)


#: iommufd generation -> (parser, bytes before the array, attribute, bytes of an entry)
_IOMMUFD: dict[str, tuple[Any, int, str, int]] = {
    "iommu-rfc-v1-2025-09": (IommufdLuo.Placeholder, 8, "", 0),
    "iommu-rfc-v2-2025-12": (IommufdLuo.IommufdV1, 4, "hwpts", 13),
    "iommu-v1-2026-02": (IommufdLuo.IommufdV1, 4, "hwpts", 13),
    "iommu-v3-2026-06": (IommufdLuo.Iommufd, 8, "hwpt_array", 24),
}

#: PCI generation -> (parser, width of the first count, offset of the array, entry size)
_PCI: dict[str, tuple[Any, int, int, int]] = {
    "pci-luo-rfc-2025": (PciLuo.SerRfc, 4, 8, 16),
    "pci-luo-rfc-2025-drvname": (PciLuo.SerRfcDrvname, 4, 8, 80),
    "pci-v1-a-2025-11": (PciLuo.SerV1A, 8, 8, 4),
    "pci-v1-b-2026-01": (PciLuo.SerV1B, 8, 16, 4),
    "pci-v1-c-2026-03": (PciLuo.SerV1C, 8, 16, 8),
    "pci-v2-u64-2026-04": (PciLuo.SerU64, 8, 16, 8),
    "pci-v2-u32-2026-05": (PciLuo.SerU32, 4, 8, 8),
}

#: vfio-pci generation -> (parser, size)
_VFIO: dict[str, tuple[Any, int]] = {
    "vfio-pci-rfc-v1-2025-10-patch7": (VfioPciLuo.CoreDeviceRfcV1First, 2),
    "vfio-pci-rfc-v1": (VfioPciLuo.CoreDeviceRfcV1, 8235),
    "vfio-pci-v1-2025-11": (VfioPciLuo.CoreDeviceV1, 4),
    "vfio-pci-v1-reset": (VfioPciLuo.CoreDeviceV1Reset, 5),
    "vfio-pci-v1-iommufd": (VfioPciLuo.CoreDeviceV1Iommufd, 9),
    "vfio-pci-v1-dom32": (VfioPciLuo.CoreDeviceV1Dom32, 6),
    "vfio-pci-v2": (VfioPciLuo.CoreDeviceV2, 7),
    "vfio-pci-v2-iommufd": (VfioPciLuo.CoreDeviceV2Iommufd, 11),
}

_KVM: dict[str, tuple[Any, int]] = {
    "kvm-guest-memfd-v1": (KvmLuo.Vm, 32),
    "kvm-vm-v1-minimal": (KvmLuo.VmMinimal, 8),
    "kvm-caretaker": (KvmLuo.VmCaretaker, 16),
}


#: String -> the last layout known for it.
_LAST = {
    b"vfio-v1": "vfio-pci-rfc-v1",
    b"vfio-pci-v1": "vfio-pci-v1-dom32",
    b"vfio-pci-v2": "vfio-pci-v2",
    b"iommu-v1": "iommu-v1-2026-02",
    b"iommu-liveupdate-v1": "iommu-v3-2026-06",
    b"iommu-liveupdate": "iommu-v4-version-field",
    b"pci-v1": "pci-v2-u32-2026-05",
    b"pci-v2": "pci-v2-u32-2026-05",
    b"pci": "pci-flb-version2-2026",
}


def read_file(follower: Follower, handler: bytes, data: int, layouts: Layouts) -> Any:
    """Body of a file whose handler string is ``handler``; None if unknown or unreadable."""
    early = layouts.memfd == "memfd-v2-early"
    folio_files: dict[bytes, tuple[Any, int]] = {
        b"memfd-v1": (MemfdLuo.SerV1, 40),
        b"memfd-v2": (MemfdLuo.SerV2Early if early else MemfdLuo.SerV2, 48),
        b"memfd": (MemfdLuo.SerFeatures, 176),
        b"huge-memfd-v1": (HugetlbLuo.File, 41),
        b"guest_memfd_luo_v1": (GuestMemfdLuo, 48),
    }
    if handler in folio_files:
        return _folio_file(follower, data, *folio_files[handler])
    if handler == b"iommufd-v1":
        return _iommufd(follower, data, layouts.iommufd or "iommu-v3-2026-06")
    if handler in (b"vfio-v1", b"vfio-pci-v1", b"vfio-pci-v2"):
        return _plain(follower, "vfio-pci", data, _VFIO.get(layouts.vfio or _LAST[handler]))
    if handler == b"tmpfs-mnt-v1":
        return _plain(follower, "tmpfs", data, (TmpfsLuo, 16))
    if handler == b"kvm_vm_luo_v1":
        return _plain(follower, "kvm", data, _KVM.get(layouts.kvm or "kvm-guest-memfd-v1"))
    if handler == b"kvm_vcpu_luo_v1":
        return _plain(follower, "kvm", data, (KvmLuo.Vcpu, 32))
    return None


def read_flb(follower: Follower, name: bytes, data: int, layouts: Layouts) -> Any:
    """Body of an FLB; None if unknown or unreadable."""
    if name in (b"iommu-v1", b"iommu-liveupdate-v1", b"iommu-liveupdate"):
        return read_iommu(follower, data, layouts.iommu or _LAST[name])
    if name in (b"pci", b"pci-v1", b"pci-v2"):
        return _pci(follower, data, layouts.pci or _LAST[name])
    if name == b"hugetlb-v1":
        return _plain(follower, "hugetlb", data, (HugetlbLuo.Ser, 37))
    if name == b"hugetlb":
        return _plain(follower, "hugetlb", data, (HugetlbLuo.SerEarly, 136))
    return None


def _plain(follower: Follower, where: str, pa: int, form: tuple[Any, int] | None) -> Plain | None:
    if form is None:
        follower.problem("inconsistent", where, pa, "unknown layout asked for")
        return None
    parser, size = form
    ser = follower.struct(where, pa, size, parser)
    return None if ser is None else Plain(pa, ser)


def _folio_file(follower: Follower, pa: int, parser: Any, size: int) -> FolioFile | None:
    ser = follower.struct("memfd", pa, size, parser)
    if ser is None:
        return None
    number = ser.nr_folios
    content = follower.vmalloc_bytes(ser.folios, number * 16)
    if content is None:
        return FolioFile(pa, ser, [])
    listed = follower.parse("folios", ser.folios.first, content, MemfdLuo.FolioList, number)
    folios = [(f.pfn, f.flags, f.index) for f in listed.folios] if listed else []
    return FolioFile(pa, ser, folios)


def _counted(
    follower: Follower,
    where: str,
    pa: int,
    parser: Any,
    width: int,
    header: int,
    entry: int,
) -> Any:
    """A struct that begins with a count and ends with an array; no more than that is read."""
    head = follower.read(where, pa, header)
    if head is None:
        return None
    count = int.from_bytes(head[:width], "little")
    size = header + count * entry
    if size > follower.limits.area_bytes:
        follower.problem("budget", where, pa, f"array of {count} entries")
        return None
    return follower.struct(where, pa, size, parser)


def _iommufd(follower: Follower, pa: int, generation: str) -> Iommufd | None:
    form = _IOMMUFD.get(generation)
    if form is None:
        follower.problem("inconsistent", "iommufd", pa, "unknown layout asked for")
        return None
    parser, header, attribute, entry = form
    width = header if attribute else 0
    ser = _counted(follower, "iommufd", pa, parser, width, header, entry)
    if ser is None:
        return None
    array = getattr(ser, attribute) if attribute else []
    return Iommufd(pa, ser, [(pa + header + i * entry, h) for i, h in enumerate(array)])


def _pci(follower: Follower, pa: int, generation: str) -> Pci | None:
    if generation == "pci-flb-version2-2026":
        ser = follower.struct("pci", pa, 16, PciLuo.Ser)
        if ser is None:
            return None
        following: Callable[[Any], int] = lambda block: int(block.hdr.next)  # noqa: E731
        pages = follower.pages("pci", ser.devices, PciLuo.DeviceBlock, following)
        return Pci(pa, ser, list(follower.entries("pci", pages, "devices", 16, 8)))
    form = _PCI.get(generation)
    if form is None:
        follower.problem("inconsistent", "pci", pa, "unknown layout asked for")
        return None
    parser, width, header, entry = form
    ser = _counted(follower, "pci", pa, parser, width, header, entry)
    if ser is None:
        return None
    devices = ser.devs if hasattr(ser, "devs") else ser.devices
    return Pci(pa, ser, [(pa + header + i * entry, d) for i, d in enumerate(devices)])
