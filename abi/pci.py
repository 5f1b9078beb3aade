"""PCI devices handed over, as File-Lifecycle-Bound data.

The FLB's ``data`` is the physical address of ``struct pci_ser``. Early forms hold a counted
array of devices directly behind it; the last one points to a block list (:mod:`abi.block`).
``pci-v1`` names five layouts and ``pci-v2`` two: with u64 counts bytes 4 to 7 are zero
and the second count is at byte 8, with u32 counts bytes 4 to 7 are that count.

``refcount`` means 0 or 1 in some revisions and the number of preserved endpoints at or
below the function in later ones; a slot whose refcount is 0 is free. Slots behind
``nr_devices`` are unused in the forms with a maximum, and one draft never lowers
``nr_devices``, so free slots may lie within it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from abi.registry import Generation
from abi.schema import Scalar, Struct, chars, phys, u16, u32, u64

__all__ = ["GENERATIONS", "ArrayForm", "PciGeneration"]

#: Version word of the block-list form; 1 is on record too, 0 and 1 refcounts only.
FLB_VERSIONS = (1, 2)


class ArrayForm(enum.StrEnum):
    """How the devices are stored."""

    #: Directly behind the header, ``nr_devices`` of them, nothing else counted.
    COUNTED = "counted"
    #: Directly behind the header, ``max_nr_devices`` slots.
    FIXED = "fixed"
    #: In a block list.
    BLOCKS = "blocks"


@dataclass(frozen=True, kw_only=True)
class PciGeneration(Generation):
    """A generation of the PCI layer.

    ``root`` is the struct at the FLB's ``data``, ``device`` the entry. ``count`` and
    ``maximum`` are the root's members ("" if there is none), ``has_refcount`` whether the
    entry counts its users.
    """

    root: Struct
    device: Struct
    form: ArrayForm
    count: str = "nr_devices"
    maximum: str = ""

    @property
    def has_refcount(self) -> bool:
        """Whether an entry counts the endpoints it is kept for."""
        return any(f.name == "refcount" for f in self.device.fields)

    @property
    def count_bits(self) -> int:
        """Width of the counts."""
        return self.root.field(self.count).size * 8


_bdf = "bdf" / u16 * "bus << 8 | devfn"

pci_dev_ser_rfc = Struct(
    "pci_dev_ser",
    "path" / u32 * "PCI segment and BDF as one number",
    "flags" / u32,
    "driver_data" / u64 * "the driver's own",
    packed=False,
)
pci_dev_ser_drvname = Struct(
    "pci_dev_ser",
    "path" / u32 * "PCI segment and BDF as one number",
    "flags" / u32,
    "driver_name" / chars(63),
    "driver_data" / u64 * "the driver's own",
    packed=False,
)
pci_dev_ser_4 = Struct("pci_dev_ser", "domain" / u16, _bdf)
pci_dev_ser_reserved = Struct("pci_dev_ser", "domain" / u32, _bdf, "reserved" / u16)
pci_dev_ser = Struct(
    "pci_dev_ser",
    "domain" / u32,
    _bdf,
    "refcount" / u16 * "preserved endpoints at or below the function; 0: free slot",
)


def _rfc(device: Struct) -> Struct:
    return Struct("pci_ser", "count" / u32 * "devices", tail=("devs", device), packed=False)


def _fixed(width: Scalar, device: Struct) -> Struct:
    return Struct(
        "pci_ser",
        "max_nr_devices" / width * "slots",
        "nr_devices" / width * "slots in use",
        tail=("devices", device),
    )


pci_ser_rfc = _rfc(pci_dev_ser_rfc)
pci_ser_drvname = _rfc(pci_dev_ser_drvname)
pci_ser_counted = Struct("pci_ser", "nr_devices" / u64, tail=("devices", pci_dev_ser_4))
pci_ser_fixed_4 = _fixed(u64, pci_dev_ser_4)
pci_ser_fixed_reserved = _fixed(u64, pci_dev_ser_reserved)
pci_ser_fixed_u64 = _fixed(u64, pci_dev_ser)
pci_ser_fixed_u32 = _fixed(u32, pci_dev_ser)
pci_ser = Struct(
    "pci_ser",
    "version" / u32 * "2; 1 is on record too",
    "nr_devices" / u32 * "slots in use, not slots in the list",
    "devices" / phys("struct kho_block_header_ser"),
)


def _generation(
    id: str,
    strings: tuple[str, ...],
    root: Struct,
    provenance: str,
    date: str,
    *,
    form: ArrayForm = ArrayForm.FIXED,
    count: str = "nr_devices",
    device: Struct | None = None,
    notes: str = "",
) -> PciGeneration:
    if device is None:
        assert root.tail is not None
        assert isinstance(root.tail[1], Struct)
        device = root.tail[1]
    constants = {} if form is not ArrayForm.BLOCKS else {"PCI_LUO_FLB_VERSION": 2}
    return PciGeneration(
        layer="pci",
        id=id,
        strings=strings,
        layouts={"pci_dev_ser": device, "pci_ser": root},
        provenance=provenance,
        date=date,
        constants=constants,
        census=(id,),
        notes=notes,
        root=root,
        device=device,
        form=form,
        count=count,
        maximum="max_nr_devices" if form is ArrayForm.FIXED else "",
    )


GENERATIONS: tuple[PciGeneration, ...] = (
    _generation(
        "pci-luo-rfc-2025",
        ("pci",),
        pci_ser_rfc,
        '"PCI: liveupdate" series, 2025-07 to 2025-09',
        "2025-09-16",
        form=ArrayForm.COUNTED,
        count="count",
        notes="Not packed; no version. The string is the name of the subsystem.",
    ),
    _generation(
        "pci-luo-rfc-2025-drvname",
        ("pci",),
        pci_ser_drvname,
        "the same series, with the driver's name",
        "2025-09-16",
        form=ArrayForm.COUNTED,
        count="count",
        notes="Not packed; no version. The string is the name of the subsystem.",
    ),
    _generation(
        "pci-v1-a-2025-11",
        ("pci-v1",),
        pci_ser_counted,
        "VFIO/PCI series v1",
        "2025-11-26",
        form=ArrayForm.COUNTED,
        notes="Devices ascend by domain and BDF.",
    ),
    _generation("pci-v1-b-2026-01", ("pci-v1",), pci_ser_fixed_4, "VFIO/PCI series v2", "2026-01"),
    _generation(
        "pci-v1-c-2026-03", ("pci-v1",), pci_ser_fixed_reserved, "VFIO/PCI series v3", "2026-03"
    ),
    _generation(
        "pci-v2-u64-2026-04",
        ("pci-v2", "pci-v1"),
        pci_ser_fixed_u64,
        "PCI series v4",
        "2026-04-23",
        notes="The string is pci-v1 before the tracking patch.",
    ),
    _generation(
        "pci-v2-u32-2026-05",
        ("pci-v2", "pci-v1"),
        pci_ser_fixed_u32,
        "PCI series v5 and v6",
        "2026-05-22",
        notes="One layout for both strings: under pci-v1 refcount is 0 or 1, under pci-v2 it "
        "counts the endpoints below.",
    ),
    _generation(
        "pci-flb-version2-2026",
        ("pci",),
        pci_ser,
        "PCI development tree, after series v6",
        "2026-08 or later",
        form=ArrayForm.BLOCKS,
        device=pci_dev_ser,
        notes="Not in 7.3. A tree with version 1 and the same layout is on record.",
    ),
)
