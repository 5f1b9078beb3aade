"""Faults of PCI state and vfio-pci files."""

from __future__ import annotations

from abi.pci import ArrayForm
from inspector.kernel.faults.base import Inapplicable, Library, Target
from inspector.kernel.outgoing.pci import PciFlb
from inspector.kernel.outgoing.vfio import VfioDevice, VfioHandler

fault = Library()


def _pci(target: Target, count: int = 1) -> PciFlb:
    pci = target.kernel.pci
    if pci is None or not pci.root or len(pci.keys) < count:
        raise Inapplicable(f"needs {count} preserved PCI device(s)")
    return pci


def _member(pci: PciFlb, name: str) -> int:
    if all(f.name != name for f in pci.generation.device.fields):
        raise Inapplicable(f"entries have no {name}")
    return pci.generation.device.field(name).offset


def _vfio(target: Target) -> tuple[VfioHandler, VfioDevice, int]:
    """Handler, file, address of the struct."""
    _, entry = target.of(VfioHandler)[0]
    assert isinstance(entry.handler, VfioHandler)
    return entry.handler, entry.file, entry.data


@fault("pci-duplicate", 12, "two entries for one PCI device")
def _duplicate(target: Target) -> None:
    pci = _pci(target, 2)
    first, second = (pci.entry_address(key) for key in pci.keys[:2])
    target.write(second, target.read(first, pci.generation.device.size))


@fault("pci-refcount-zero", 12, "the entry of a device in use is free")
def _refcount(target: Target) -> None:
    pci = _pci(target)
    at = pci.entry_address(pci.keys[-1]) + _member(pci, "refcount")
    target.write(at, bytes(2))


@fault("pci-count", 12, "nr_devices is one more than the entries in use")
def _count(target: Target) -> None:
    pci = _pci(target)
    field = pci.generation.root.field(pci.generation.count)
    at = pci.root + field.offset
    count = int.from_bytes(target.read(at, field.size), "little") + 1
    target.write(at, count.to_bytes(field.size, "little"))


@fault("pci-version", 12, "an unknown version of the PCI state")
def _version(target: Target) -> None:
    pci = _pci(target)
    if pci.generation.form is not ArrayForm.BLOCKS:
        raise Inapplicable("the format has no version word")
    target.write_u32(pci.root + pci.generation.root.field("version").offset, 77)


@fault("pci-list-cycle", 6, "the block list of PCI devices is a cycle")
def _cycle(target: Target) -> None:
    pci = _pci(target)
    if pci.generation.form is not ArrayForm.BLOCKS:
        raise Inapplicable("the devices are in no block list")
    first = target.u64(pci.root + pci.generation.root.field("devices").offset)
    last = first
    while target.u64(last):
        last = target.u64(last)
    target.write_u64(last, first)


@fault("pci-not-preserved", 2, "page of the PCI state missing in the map")
def _unpreserved(target: Target) -> None:
    root = _pci(target).root
    target.set_block(root // target.page, target.kernel.kho.order_of(root), on=False)


@fault("vfio-not-in-pci", 12, "a VFIO device that the PCI state does not list")
def _not_listed(target: Target) -> None:
    handler, _, ser = _vfio(target)
    _pci(target)
    at = ser + handler.generation.root.field("bdf").offset
    target.write(at, (0xFFF8).to_bytes(2, "little"))


@fault("vfio-iommufd-token", 8, "a VFIO file names an iommufd that is not in its session")
def _token(target: Target) -> None:
    handler, _, ser = _vfio(target)
    if not handler.generation.has_iommufd:
        raise Inapplicable("the format names no iommufd")
    at = ser + handler.generation.root.field("iommufd_ser").offset
    target.write_u32(at, 0xDEADBEEF)


@fault("vfio-config-size", 8, "a configuration space of 4095 bytes")
def _config(target: Target) -> None:
    handler, _, ser = _vfio(target)
    if not handler.generation.saved_state:
        raise Inapplicable("the format carries no configuration space")
    target.write_u32(ser + handler.generation.root.field("cfg_size").offset, 4095)
