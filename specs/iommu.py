"""IOMMU state and the hardware tables it points to, read with the Kaitai parsers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import IommuLuo, IommuLuoRfc, VtdTables
from .follow import Follower


@dataclass(frozen=True, slots=True)
class IommuState:
    """The three arrays, each as (physical address, struct), deleted objects included."""

    pa: int
    generation: str
    flb: Any
    hw: list[tuple[int, Any]]
    domains: list[tuple[int, Any]]
    devices: list[tuple[int, Any]]


@dataclass(frozen=True, slots=True)
class _Form:
    """Parsers and object sizes of one posting, in the order hw, domains, devices."""

    flb: Any
    flb_size: int
    arrays: tuple[tuple[Any, int], tuple[Any, int], tuple[Any, int]]


_FORMS: dict[str, _Form] = {
    "iommu-rfc-v2-2025-12": _Form(
        IommuLuoRfc.Flb,
        48,
        (
            (IommuLuoRfc.IommusPageRfcV2, 48),
            (IommuLuoRfc.DomainsPageRfcV2, 41),
            (IommuLuoRfc.DevicesPageRfcV2, 53),
        ),
    ),
    "iommu-v1-2026-02-partial": _Form(
        IommuLuoRfc.Flb,
        48,
        (
            (IommuLuoRfc.IommusPageV1, 37),
            (IommuLuoRfc.DomainsPageV1, 33),
            (IommuLuoRfc.DevicesPageV1Partial, 49),
        ),
    ),
    "iommu-v1-2026-02": _Form(
        IommuLuoRfc.Flb,
        48,
        (
            (IommuLuoRfc.IommusPageV1, 37),
            (IommuLuoRfc.DomainsPageV1, 33),
            (IommuLuoRfc.DevicesPageV1, 65),
        ),
    ),
    "iommu-v2-2026-04-base": _Form(
        IommuLuo.Flb,
        24,
        (
            (IommuLuo.HwArrayV2, 21),
            (IommuLuo.DomainArrayV2, 34),
            (IommuLuo.DeviceArrayV2, 37),
        ),
    ),
    "iommu-v3-2026-06-base": _Form(
        IommuLuo.Flb,
        24,
        (
            (IommuLuo.HwArrayBase, 24),
            (IommuLuo.DomainArrayV3, 37),
            (IommuLuo.DeviceArrayBase, 40),
        ),
    ),
    "iommu-v3-2026-06": _Form(
        IommuLuo.Flb,
        24,
        (
            (IommuLuo.HwArrayV3, 112),
            (IommuLuo.DomainArrayV3, 37),
            (IommuLuo.DeviceArrayV3, 56),
        ),
    ),
    "iommu-smmuv3-2026a": _Form(
        IommuLuo.Flb,
        24,
        (
            (IommuLuo.HwArraySmmuv3A, 112),
            (IommuLuo.DomainArrayV3, 37),
            (IommuLuo.DeviceArraySmmuv3A, 64),
        ),
    ),
    "iommu-v4-version-field-base": _Form(
        IommuLuo.FlbVersioned,
        32,
        (
            (IommuLuo.HwArrayBase, 24),
            (IommuLuo.DomainArrayV3, 37),
            (IommuLuo.DeviceArrayBase, 40),
        ),
    ),
    "iommu-v4-version-field": _Form(
        IommuLuo.FlbVersioned,
        32,
        (
            (IommuLuo.HwArrayV4, 112),
            (IommuLuo.DomainArrayV4, 40),
            (IommuLuo.DeviceArrayV4, 72),
        ),
    ),
}

#: Generations whose counts are in the root, not in the pages.
_GLOBAL_COUNTS = ("iommu-rfc-v2-2025-12", "iommu-v1-2026-02-partial", "iommu-v1-2026-02")


def iommu_generations() -> tuple[str, ...]:
    """Generation ids that :func:`read_iommu` accepts."""
    return tuple(_FORMS)


def read_iommu(follower: Follower, pa: int, generation: str) -> IommuState | None:
    """State of the IOMMU FLB at ``pa``, in the layouts of ``generation``."""
    form = _FORMS.get(generation)
    if form is None:
        follower.problem("inconsistent", "iommu", pa, "unknown layout asked for")
        return None
    flb = follower.struct("iommu_flb", pa, form.flb_size, form.flb)
    if flb is None:
        return None
    if generation in _GLOBAL_COUNTS:
        firsts = (flb.iommus_phys, flb.iommu_domains_phys, flb.devices_phys)
        counts = (flb.nr_iommus, flb.nr_domains, flb.nr_devices)
        names = ("iommus", "iommu_domains", "devices")
        lists = [
            list(_counted_chain(follower, first, parser, name, size, count))
            for first, (parser, size), name, count in zip(
                firsts, form.arrays, names, counts, strict=True
            )
        ]
    else:
        firsts = (flb.iommu_array_phys, flb.iommu_domain_array_phys, flb.device_array_phys)
        lists = [
            list(iommu_array(follower, first, parser, size))
            for first, (parser, size) in zip(firsts, form.arrays, strict=True)
        ]
    return IommuState(pa, generation, flb, *lists)


def iommu_array(
    follower: Follower, first: int, parser: Any, size: int
) -> Iterator[tuple[int, Any]]:
    """Objects of a chain of array pages as (physical address, struct)."""
    pages = follower.pages("iommu array", first, parser, lambda a: a.hdr.next_array_phys)
    return follower.entries("iommu array", pages, "objects", 16, size)


def _counted_chain(
    follower: Follower, first: int, parser: Any, name: str, size: int, count: int
) -> Iterator[tuple[int, Any]]:
    """As :func:`iommu_array` for the postings whose root has the number of objects."""
    capacity = (follower.page_size - 16) // size
    pa, left, seen = first, count, set[int]()
    while left and pa:
        if pa in seen:
            follower.problem("cycle", "iommu array", pa, "the list returns to a page")
            return
        seen.add(pa)
        here = min(left, capacity)
        page = follower.struct(
            "iommu array", pa, follower.page_size, parser, follower.page_size, here
        )
        if page is None:
            return
        for i, entry in enumerate(getattr(page, name)):
            if not follower.spend("iommu array", pa):
                return
            yield pa + 16 + i * size, entry
        left -= here
        pa = page.objs.next_objs
    if left:
        follower.problem("inconsistent", "iommu array", first, f"{left} objects are missing")


def vtd_context(follower: Follower, root_table: int, devid: int, *, scalable: bool) -> Any:
    """Context entry of device ``devid`` = (bus << 8) | devfn, as (physical address, struct).

    None where the root table has no context table for it. ``scalable`` is bit 10 of the
    unit's root address register.
    """
    bus, devfn = devid >> 8 & 0xFF, devid & 0xFF
    parser = VtdTables.RootTableScalable if scalable else VtdTables.RootTableLegacy
    root = follower.struct("root table", root_table, 4096, parser)
    if root is None:
        return None
    entry = root.entries[bus]
    if scalable:
        entry = entry.upper if devfn & 0x80 else entry.lower
    if not entry.present:
        return None
    parser = VtdTables.ContextTableScalable if scalable else VtdTables.ContextTableLegacy
    table = follower.struct("context table", entry.context_table, 4096, parser)
    if table is None:
        return None
    index, size = (devfn & 0x7F, 32) if scalable else (devfn, 16)
    return entry.context_table + index * size, table.entries[index]


def vtd_pasid(follower: Follower, directory: int, pasid: int, max_pasid: int) -> Any:
    """PASID entry as (physical address, struct); None where there is none.

    ``max_pasid`` gives the size of the directory, ``max_pasid >> 6`` entries.
    """
    number = min(max_pasid >> 6, 1 << 14)
    if pasid >> 6 >= number:
        return None
    table = follower.struct("PASID directory", directory, number * 8, VtdTables.PasidDir, number)
    if table is None or not table.entries[pasid >> 6].present:
        return None
    at = table.entries[pasid >> 6].pasid_table
    entries = follower.struct("PASID table", at, 4096, VtdTables.PasidTable)
    if entries is None:
        return None
    return at + (pasid & 63) * 64, entries.entries[pasid & 63]
