"""VFIO PCI device files: one preserved device each.

The ``data`` of a LUO file entry with one of the handlers ``vfio-v1``, ``vfio-pci-v1`` and
``vfio-pci-v2`` is the physical address of ``struct vfio_pci_core_device_ser``. It names the
device and, in the later forms, whether a function reset works and the token of the
iommufd file (same session) that the device was bound to. That token is a 32-bit copy of
a 64-bit one.

``vfio-v1`` names two sizes and ``vfio-pci-v1`` four (two of which differ in the order of
domain and BDF), ``vfio-pci-v2`` two. The request for comments of 2025-10 kept the
configuration space as user space saw it, the BARs, and the PCI core's saved state: a
list of variable-length records behind a fixed part.
"""

from __future__ import annotations

from dataclasses import dataclass

from abi.errors import CodecError
from abi.registry import Generation
from abi.schema import Scalar, Struct, array, boolean, phys, u8, u16, u32

#: Bytes of extended PCI configuration space.
PCI_CFG_SPACE_EXP_SIZE = 4096


@dataclass(frozen=True, kw_only=True)
class VfioPciGeneration(Generation):
    """A generation of the vfio-pci layer: ``root`` is the struct at the file's ``data``.

    ``saved_state`` tells whether it points to a list of saved capabilities.
    """

    root: Struct
    saved_state: bool = False

    @property
    def has_domain(self) -> bool:
        """Whether the PCI domain is stored; the first posting matched by BDF alone."""
        return any(f.name == "domain" for f in self.root.fields)

    @property
    def has_iommufd(self) -> bool:
        """Whether the device names the iommufd file it was bound to."""
        return any(f.name == "iommufd_ser" for f in self.root.fields)


_NAME = "vfio_pci_core_device_ser"
_bdf = "bdf" / u16 * "bus << 8 | devfn"
_reset_works = "reset_works" / u8 * "1: the function can be reset"

pci_cap_saved_data_ser = Struct(
    "pci_cap_saved_data_ser",
    "cap_nr" / u16 * "PCI capability id",
    "cap_extended" / boolean * "1: an extended capability",
    "size" / Scalar("L", "unsigned int") * "bytes of data that follow; 0 ends the list",
    tail=("data", u32),
)

pci_saved_state_ser = Struct(
    "pci_saved_state_ser",
    "config_space" / array(u32, 16) * "the header, type 0 or 1",
    tail=("cap", pci_cap_saved_data_ser),
)

vfio_pci_core_device_ser_bdf = Struct(_NAME, _bdf)

vfio_pci_core_device_ser_rfc = Struct(
    _NAME,
    _bdf,
    "cfg_size" / u32 * "256 or 4096",
    "pci_config_map" / array(u8, PCI_CFG_SPACE_EXP_SIZE) * "capability at each byte",
    "vconfig" / array(u8, PCI_CFG_SPACE_EXP_SIZE) * "configuration space as user space sees it",
    "rbar" / array(u32, 7) * "BARs and the ROM's, as restored after a reset",
    _reset_works,
    "pci_saved_state_phys" / phys("struct pci_saved_state_ser"),
)

_bdf_first = (_bdf, "domain" / u16)
_domain_first = ("domain" / u32, _bdf)

vfio_iommufd_ser = Struct(
    "vfio_iommufd_ser", "token" / u32 * "low half of the LUO token of the iommufd file"
)

vfio_pci_core_device_ser_4 = Struct(_NAME, *_bdf_first)
vfio_pci_core_device_ser_5 = Struct(_NAME, *_bdf_first, _reset_works)
vfio_pci_core_device_ser_9 = Struct(
    _NAME, *_bdf_first, _reset_works, "iommufd_ser" / vfio_iommufd_ser
)
vfio_pci_core_device_ser_6 = Struct(_NAME, *_domain_first)
vfio_pci_core_device_ser_7 = Struct(_NAME, *_domain_first, _reset_works)
vfio_pci_core_device_ser_11 = Struct(
    _NAME, *_domain_first, _reset_works, "iommufd_ser" / vfio_iommufd_ser
)


@dataclass(frozen=True, slots=True)
class SavedCapability:
    """A record of the saved-state list: ``offset`` is its place behind the fixed part."""

    offset: int
    cap_nr: int
    cap_extended: int
    data: bytes


def parse_saved_capabilities(data: bytes) -> tuple[list[SavedCapability], int]:
    """Split the records behind ``struct pci_saved_state_ser``.

    Returns them and the number of bytes up to and with the record of size 0 that ends the
    list. Raises CodecError if the list runs out of ``data``.
    """
    found: list[SavedCapability] = []
    at = 0
    while True:
        head = pci_cap_saved_data_ser.unpack(data, at)
        start = at + pci_cap_saved_data_ser.size
        end = start + head["size"]
        if end > len(data):
            raise CodecError(
                f"saved capability {head['cap_nr']:#x}: {head['size']} bytes run out of the list",
                at,
            )
        if head["size"] == 0:
            return found, end
        found.append(SavedCapability(at, head["cap_nr"], head["cap_extended"], data[start:end]))
        at = end


def build_saved_capabilities(records: list[SavedCapability]) -> bytes:
    """The bytes of a list: the records, whatever their ``offset``, and the end record."""
    out = bytearray()
    for record in records:
        out += pci_cap_saved_data_ser.build(
            {
                "cap_nr": record.cap_nr,
                "cap_extended": record.cap_extended,
                "size": len(record.data),
            }
        )
        out += record.data
    return bytes(out) + bytes(pci_cap_saved_data_ser.size)


def _generation(
    id: str,
    string: str,
    root: Struct,
    provenance: str,
    date: str,
    *nested: Struct,
    saved_state: bool = False,
    notes: str = "",
) -> VfioPciGeneration:
    return VfioPciGeneration(
        layer="vfio-pci",
        id=id,
        strings=(string,),
        layouts={s.cname: s for s in (*nested, root)},
        provenance=provenance,
        date=date,
        constants={"PCI_CFG_SPACE_EXP_SIZE": PCI_CFG_SPACE_EXP_SIZE} if saved_state else {},
        census=(id,),
        notes=notes,
        root=root,
        saved_state=saved_state,
    )


GENERATIONS: tuple[VfioPciGeneration, ...] = (
    _generation(
        "vfio-pci-rfc-v1-2025-10-patch7",
        "vfio-v1",
        vfio_pci_core_device_ser_bdf,
        "VFIO RFC v1, patch 07/21 alone",
        "2025-10-17",
        notes="The struct grew inside the same series.",
    ),
    _generation(
        "vfio-pci-rfc-v1",
        "vfio-v1",
        vfio_pci_core_device_ser_rfc,
        "VFIO RFC v1, whole series",
        "2025-10-17",
        pci_cap_saved_data_ser,
        pci_saved_state_ser,
        saved_state=True,
    ),
    _generation(
        "vfio-pci-v1-2025-11",
        "vfio-pci-v1",
        vfio_pci_core_device_ser_4,
        "base support for VFIO device files, v1, before reset_works",
        "2025-11-26",
    ),
    _generation(
        "vfio-pci-v1-reset",
        "vfio-pci-v1",
        vfio_pci_core_device_ser_5,
        "the same series with reset_works",
        "2026-01",
    ),
    _generation(
        "vfio-pci-v1-iommufd",
        "vfio-pci-v1",
        vfio_pci_core_device_ser_9,
        'IOMMU PATCH v1, "vfio/pci: Preserve the iommufd state of the vfio cdev"',
        "2026-02-03",
        vfio_iommufd_ser,
    ),
    _generation(
        "vfio-pci-v1-dom32",
        "vfio-pci-v1",
        vfio_pci_core_device_ser_6,
        "VFIO series v3 and later, first ABI patch",
        "2026-03",
        notes="Domain widened and put first.",
    ),
    _generation(
        "vfio-pci-v2",
        "vfio-pci-v2",
        vfio_pci_core_device_ser_7,
        "VFIO series v3 and later, reset_works patch",
        "2026-03",
    ),
    _generation(
        "vfio-pci-v2-iommufd",
        "vfio-pci-v2",
        vfio_pci_core_device_ser_11,
        "distribution backport of the VFIO and IOMMU series",
        "2026-05",
        vfio_iommufd_ser,
    ),
)
