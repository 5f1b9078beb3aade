"""iommufd files: which preserved HWPT (hardware page table) has which token.

The ``data`` of a LUO file entry with the handler ``iommufd-v1`` is the physical address of
a header with the number of HWPTs, followed directly by that many entries; it grows by
pages. An entry ties the token that user space gave when it marked the HWPT to a domain
object of the IOMMU layer. ``reclaimed`` is written by the consumer, into the preserved
page, when user space has claimed the HWPT.

One string names three layouts: a placeholder, 13-byte entries, 24-byte entries. The
arguments of the marking ioctl belong here too, although no image holds them: tokens were
32 bits wide at first, 64 later.
"""

from __future__ import annotations

from dataclasses import dataclass

from abi.registry import Generation
from abi.schema import Scalar, Struct, array, boolean, kernel_pointer, phys, u8, u32, u64

#: The handler string of the file.
HANDLER = "iommufd-v1"


@dataclass(frozen=True, kw_only=True)
class IommufdGeneration(Generation):
    """A generation of the iommufd layer: ``root`` with ``nr_hwpts``, ``entry`` behind it.

    The placeholder has no entries: ``entry`` is None.
    """

    root: Struct
    entry: Struct | None = None


unsigned_int = Scalar("L", "unsigned int")
_domain = phys("struct iommu_domain_ser")

iommufd_lu_placeholder = Struct(
    "iommufd_lu",
    "folio_lu" / kernel_pointer("struct folio") * "written while restoring; says nothing",
    packed=False,
)

iommufd_hwpt_lu = Struct(
    "iommufd_hwpt_lu",
    "token" / u32 * "given by user space when it marked the HWPT",
    "domain_data" / _domain,
    "reclaimed" / boolean * "set by the consumer when user space claimed the HWPT",
)

iommufd_lu = Struct(
    "iommufd_lu",
    "nr_hwpts" / unsigned_int,
    tail=("hwpts", iommufd_hwpt_lu),
    packed=False,
)

iommufd_hwpt_ser = Struct(
    "iommufd_hwpt_ser",
    "domain_data" / _domain,
    "token" / u64 * "given by user space when it marked the HWPT",
    "reclaimed" / u8 * "set by the consumer when user space claimed the HWPT",
    "padding" / array(u8, 7),
)

iommufd_ser = Struct("iommufd_ser", "nr_hwpts" / u64, tail=("hwpt_array", iommufd_hwpt_ser))

#: Argument of ioctl 0x95 (IOMMUFD_CMD_HWPT_LU_SET_PRESERVE) of 2026-02.
iommu_hwpt_lu_set_preserve = Struct(
    "iommu_hwpt_lu_set_preserve",
    "size" / u32 * "of this struct",
    "hwpt_id" / u32,
    "hwpt_token" / u32,
    packed=False,
)

#: Argument of the later marking ioctl.
iommu_liveupdate_mark_preserve = Struct(
    "iommu_liveupdate_mark_preserve",
    "size" / u32 * "of this struct",
    "hwpt_id" / u32,
    "hwpt_token" / u64,
    packed=False,
)

GENERATIONS: tuple[IommufdGeneration, ...] = (
    IommufdGeneration(
        layer="iommufd",
        id="iommufd-rfc-v1",
        strings=(HANDLER,),
        layouts={"iommufd_lu": iommufd_lu_placeholder},
        provenance='RFC v1 "Add live update state preservation"',
        date="2025-09-28",
        census=("iommu-rfc-v1-2025-09",),
        notes="A placeholder: nothing in it tells the next kernel anything.",
        root=iommufd_lu_placeholder,
    ),
    IommufdGeneration(
        layer="iommufd",
        id="iommufd-13",
        strings=(HANDLER,),
        layouts={
            "iommufd_hwpt_lu": iommufd_hwpt_lu,
            "iommufd_lu": iommufd_lu,
            "iommu_hwpt_lu_set_preserve": iommu_hwpt_lu_set_preserve,
        },
        provenance="RFC v2 and PATCH v1 of the IOMMU series",
        date="2025-12-02",
        constants={"IOMMUFD_CMD_HWPT_LU_SET_PRESERVE": 0x95},
        census=("iommu-v1-2026-02", "iommu-rfc-v2-2025-12"),
        notes="The marking ioctl's argument is that of PATCH v1; that of RFC v2 had a boolean "
        "besides and was not measured.",
        root=iommufd_lu,
        entry=iommufd_hwpt_lu,
    ),
    IommufdGeneration(
        layer="iommufd",
        id="iommufd-24",
        strings=(HANDLER,),
        layouts={
            "iommufd_hwpt_ser": iommufd_hwpt_ser,
            "iommufd_ser": iommufd_ser,
            "iommu_liveupdate_mark_preserve": iommu_liveupdate_mark_preserve,
        },
        provenance="PATCH v2 and later of the IOMMU series",
        date="2026-04-27",
        census=("iommu-v3-2026-06", "iommufd-mark-preserve-u64"),
        notes="The marking ioctl's argument is known from a published summary only.",
        root=iommufd_ser,
        entry=iommufd_hwpt_ser,
    ),
)
