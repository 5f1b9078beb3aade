"""IOMMU state handed over as File-Lifecycle-Bound data: units, domains and devices.

The FLB's ``data`` is the physical address of a root struct with three pointers. Each is
the first page of a chain of array pages: {next, count}, then objects without gaps. The
three arrays hold the hardware units (``hw``), the domains (one page table each) and the
devices (which domain, behind which unit). Deleted objects keep their slot.

Three compatible strings name ten layouts. ``iommu-v1``: the second request for comments
(2025-12, 41-byte domains) and the first patch series (2026-02, 33 bytes), the latter
with and without the members for VT-d. ``iommu-liveupdate-v1``: the second series
(2026-04, bit-field header), the third (2026-06, flag word) with and without VT-d, and
the first SMMUv3 work. ``iommu-liveupdate``: later revisions, with a version word in the
root.

Sizes come from the compiler's C rules and hold surprises: a bit-field group that ends a
packed struct takes only the bytes its bits need, and the 2025-12 posting has unpacked
structs inside packed ones. Every layout here was taken from a compiled declaration.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from abi import iommu_structs as ser
from abi.iommu_structs import (
    DELETED,
    FIRST_DID,
    FLB_VERSION,
    INCOMING,
    IOMMU_TYPES,
    VIEW_OF_TYPE,
)
from abi.registry import Generation, Source
from abi.schema import PAGE_SIZES, Layout, Struct


class Counting(enum.StrEnum):
    """Where the number of objects of an array chain is kept."""

    #: In the root: object i is in page i / capacity, slot i % capacity, and says so itself.
    GLOBAL = "global"
    #: In each array page.
    PER_PAGE = "per-page"


class Header(enum.StrEnum):
    """Forms of the header that starts every object."""

    #: 9 bytes: u32 idx, u32 ref_count, two flag bits.
    INDEX_BITS = "index-bits"
    #: 5 bytes: u32 ref_count, two flag bits.
    BITS = "bits"
    #: 8 bytes: u32 ref_count, u32 flags.
    FLAGS = "flags"


@dataclass(frozen=True, kw_only=True)
class ArrayKind:
    """One of the three chains of array pages.

    ``objects`` is the struct in the slots, ``page`` the array page with its header,
    ``root`` the root's member that points to the first page, ``total`` the root's member
    with the global count ("" if there is none), ``next`` and ``count`` the members of the
    array header.
    """

    name: str
    objects: Struct
    page: Struct
    root: str
    total: str
    next: str
    count: str


@dataclass(frozen=True, kw_only=True)
class IommuGeneration(Generation):
    """A generation of the IOMMU layer with the traits a walker goes by.

    ``canonical`` maps names of the latest revision to the ones this generation uses
    (``attachment_id`` -> ``did``); names that are not in it are the same.
    """

    flb: Struct | None = None
    units: ArrayKind | None = None
    domains: ArrayKind | None = None
    devices: ArrayKind | None = None
    counting: Counting = Counting.PER_PAGE
    header: Header = Header.FLAGS
    version: int | None = None
    unit_views: tuple[str, ...] = ()
    device_views: tuple[str, ...] = ()
    canonical: Mapping[str, str] = field(default_factory=dict)

    @property
    def decodable(self) -> bool:
        """Whether the layouts are known."""
        return self.flb is not None

    @property
    def arrays(self) -> tuple[ArrayKind, ...]:
        """Units, domains, devices; empty if the layouts are not known."""
        kinds = (self.units, self.domains, self.devices)
        return tuple(k for k in kinds if k is not None)

    def native(self, name: str) -> str:
        """This generation's spelling of a member's latest name."""
        return self.canonical.get(name, name)


def _global_arrays(
    header: Struct, unit: Struct, domain: Struct, device: Struct
) -> tuple[ArrayKind, ArrayKind, ArrayKind]:
    def kind(name: str, page: str, tail: str, objects: Struct, total: str) -> ArrayKind:
        return ArrayKind(
            name=name,
            objects=objects,
            page=Struct(page, "objs" / header, tail=(tail, objects)),
            root=f"{tail}_phys",
            total=total,
            next="next_objs",
            count="nr_objs",
        )

    return (
        kind("units", "iommus_ser", "iommus", unit, "nr_iommus"),
        kind("domains", "iommu_domains_ser", "iommu_domains", domain, "nr_domains"),
        kind("devices", "devices_ser", "devices", device, "nr_devices"),
    )


def _page_arrays(
    unit: Struct, domain: Struct, device: Struct
) -> tuple[ArrayKind, ArrayKind, ArrayKind]:
    def kind(name: str, page: str, objects: Struct, root: str) -> ArrayKind:
        return ArrayKind(
            name=name,
            objects=objects,
            page=Struct(page, "hdr" / ser.iommu_array_hdr_ser, tail=("objects", objects)),
            root=root,
            total="",
            next="next_array_phys",
            count="nr_objects",
        )

    return (
        kind("units", "iommu_hw_array_ser", unit, "iommu_array_phys"),
        kind("domains", "iommu_domain_array_ser", domain, "iommu_domain_array_phys"),
        kind("devices", "iommu_device_array_ser", device, "device_array_phys"),
    )


def _layouts(flb: Struct, kinds: tuple[ArrayKind, ...], *more: Struct) -> dict[str, Layout]:
    """All structs of a generation by C name: nested ones first."""
    found: dict[str, Layout] = {}

    def add(struct: Struct) -> None:
        for member in struct.fields:
            if member.struct is not None and not member.flexible:
                add(member.struct)
        found.setdefault(struct.cname, struct)

    for kind in kinds:
        add(kind.objects)
    for kind in kinds:
        add(kind.page)
    for struct in (flb, *more):
        add(struct)
    return found


def _maxima(
    kinds: tuple[ArrayKind, ...], names: tuple[str, str, str]
) -> dict[str, int | Mapping[int, int]]:
    return {
        name: {size: kind.page.capacity(size) for size in PAGE_SIZES}
        for name, kind in zip(names, kinds, strict=True)
    }


_V1_NAMES = {
    "top_table_phys": "top_table",
    "attachment_id": "did",
    "pci_domain_nr": "pci_domain",
    "next_array_phys": "next_objs",
    "nr_objects": "nr_objs",
    "iommu_array_phys": "iommus_phys",
    "iommu_domain_array_phys": "iommu_domains_phys",
    "device_array_phys": "devices_phys",
}
_V1_MAXIMA = ("MAX_IOMMU_SERS", "MAX_IOMMU_DOMAIN_SERS", "MAX_DEVICE_SERS")
_MAXIMA = ("MAX_HW_OBJECTS", "MAX_DOMAIN_OBJECTS", "MAX_DEVICE_OBJECTS")
_FLAGS = {"IOMMU_SER_FLAG_DELETED": DELETED, "IOMMU_SER_FLAG_INCOMING": INCOMING}


def _global(
    id: str,
    kinds: tuple[ArrayKind, ArrayKind, ArrayKind],
    provenance: str,
    date: str,
    notes: str = "",
) -> IommuGeneration:
    device_views = () if kinds[2].objects.size < ser.device_ser.size else ("intel",)
    return IommuGeneration(
        layer="iommu",
        id=id,
        strings=("iommu-v1",),
        layouts=_layouts(ser.iommu_lu_flb_ser, kinds),
        provenance=provenance,
        date=date,
        constants=_maxima(kinds, _V1_MAXIMA),
        census=(id,),
        flb=ser.iommu_lu_flb_ser,
        units=kinds[0],
        domains=kinds[1],
        devices=kinds[2],
        counting=Counting.GLOBAL,
        header=Header.INDEX_BITS,
        unit_views=("intel",),
        device_views=device_views,
        canonical=_V1_NAMES,
        notes=notes,
    )


def _per_page(
    id: str,
    kinds: tuple[ArrayKind, ArrayKind, ArrayKind],
    provenance: str,
    date: str,
    *,
    string: str = "iommu-liveupdate-v1",
    header: Header = Header.FLAGS,
    version: int | None = None,
    views: tuple[str, ...] = (),
    more: tuple[Struct, ...] = (),
    notes: str = "",
) -> IommuGeneration:
    flb = ser.iommu_flb_ser if version is None else ser.iommu_flb_ser_version
    constants = _maxima(kinds, _MAXIMA)
    if header is Header.FLAGS:
        constants |= _FLAGS
    if version is not None:
        constants["IOMMU_LUO_FLB_VERSION"] = version
    return IommuGeneration(
        layer="iommu",
        id=id,
        strings=(string,),
        layouts=_layouts(flb, kinds, *more),
        provenance=provenance,
        date=date,
        constants=constants,
        census=(id,),
        notes=notes,
        flb=flb,
        units=kinds[0],
        domains=kinds[1],
        devices=kinds[2],
        header=header,
        version=version,
        unit_views=views,
        device_views=views,
    )


__all__ = [
    "DELETED",
    "FIRST_DID",
    "FLB_VERSION",
    "GENERATIONS",
    "INCOMING",
    "IOMMU_TYPES",
    "VIEW_OF_TYPE",
    "ArrayKind",
    "Counting",
    "Header",
    "IommuGeneration",
]

GENERATIONS: tuple[IommuGeneration, ...] = (
    IommuGeneration(
        layer="iommu",
        id="iommu-rfc-v1-2025-09",
        strings=(),
        layouts={},
        provenance='RFC v1 "Add live update state preservation"',
        source=Source.INFERRED,
        date="2025-09-28",
        census=("iommu-rfc-v1-2025-09",),
        notes="No layout of the IOMMU state of this posting is known.",
    ),
    _global(
        "iommu-rfc-v2-2025-12",
        _global_arrays(
            ser.iommu_objs_ser_rfc_v2,
            ser.iommu_ser_rfc_v2,
            ser.iommu_domain_ser_rfc_v2,
            ser.device_ser_rfc_v2,
        ),
        "RFC v2 of the series",
        "2025-12-02",
        notes="Unpacked structs inside packed ones; domains carry attach_count.",
    ),
    _global(
        "iommu-v1-2026-02-partial",
        _global_arrays(
            ser.iommu_objs_ser, ser.iommu_ser, ser.iommu_domain_ser_v1, ser.device_ser_v1_partial
        ),
        "PATCH v1, before the PASID table patch",
        "2026-02-03",
        notes="Devices are 16 bytes shorter than those of the whole series.",
    ),
    _global(
        "iommu-v1-2026-02",
        _global_arrays(ser.iommu_objs_ser, ser.iommu_ser, ser.iommu_domain_ser_v1, ser.device_ser),
        "PATCH v1, whole series",
        "2026-02-03",
    ),
    _per_page(
        "iommu-v2-2026-04-base",
        _page_arrays(ser.iommu_hw_ser_v2, ser.iommu_domain_ser_v2, ser.iommu_device_ser_v2),
        "PATCH v2, header as first added",
        "2026-04-27",
        header=Header.BITS,
        notes="Object header of 5 bytes.",
    ),
    _per_page(
        "iommu-v3-2026-06-base",
        _page_arrays(ser.iommu_hw_ser_base, ser.iommu_domain_ser_v3, ser.iommu_device_ser_base),
        "PATCH v3, header before the VT-d patches",
        "2026-06-14",
    ),
    _per_page(
        "iommu-v3-2026-06",
        _page_arrays(ser.iommu_hw_ser_v3, ser.iommu_domain_ser_v3, ser.iommu_device_ser_v3),
        "PATCH v3 with the VT-d patches",
        "2026-06-14",
        views=("intel",),
    ),
    _per_page(
        "iommu-smmuv3-2026a",
        _page_arrays(
            ser.iommu_hw_ser_smmuv3_a, ser.iommu_domain_ser_v3, ser.iommu_device_ser_smmuv3
        ),
        "SMMUv3 live update work on top of v3, first layout",
        "2026-07",
        views=("intel", "smmuv3"),
    ),
    _per_page(
        "iommu-v4-version-field-base",
        _page_arrays(ser.iommu_hw_ser_base, ser.iommu_domain_ser_v3, ser.iommu_device_ser_base),
        "later revision: version word in the root; header before the VT-d patches",
        "2026-07 or later",
        string="iommu-liveupdate",
        version=FLB_VERSION,
    ),
    _per_page(
        "iommu-v4-version-field",
        _page_arrays(ser.iommu_hw_ser_smmuv3_b, ser.iommu_domain_ser, ser.iommu_device_ser),
        "later revision: version word, DMA owner token, explicit padding",
        "2026-08 or later",
        string="iommu-liveupdate",
        version=FLB_VERSION,
        views=("intel", "smmuv3"),
        notes="Also what a kernel with the VT-d part alone writes: seen on a real machine.",
    ),
)
