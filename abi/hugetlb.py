"""HugeTLB: the pools as file-lifecycle-bound data, and memory files made of huge pages.

Never in a release: 7.3 answers -ENOENT for a hugetlb memfd. The FLB ``hugetlb-v1`` hands
over how many huge pages of each size there were, the file handler ``huge-memfd-v1`` the
folios of one file. A first development layout, not packed and without a version, kept the
folios of each pool in the FLB.
"""

from __future__ import annotations

from abi.registry import Generation
from abi.schema import Scalar, Struct, array, bits, u8, u16, u32, u64
from abi.vmalloc import kho_vmalloc

#: The FLB and the file handler.
FLB_STRING = "hugetlb-v1"
FILE_STRING = "huge-memfd-v1"
#: Page sizes (hstates) that fit in the FLB.
HUGETLB_SER_MAX_HSTATES = 4

_unsigned_long = Scalar("Q", "unsigned long")
_folio_index = "index" / u64 * "in the file, in huge pages"

hugetlb_folio_ser = Struct(
    "hugetlb_folio_ser",
    "frame" / bits(u64, pfn=52, free=1, reserved=11) * "free: in the pool, unused",
    packed=False,
    doc="A huge page of a pool.",
)

hugetlb_hstate_ser_early = Struct(
    "hugetlb_hstate_ser",
    "nr_pages" / _unsigned_long,
    "order" / u32 * "of each page",
    "__reserved" / u32,
    "folios" / kho_vmalloc * "struct hugetlb_folio_ser[nr_pages]",
    packed=False,
    doc="A pool with its pages.",
)

hugetlb_ser_early = Struct(
    "hugetlb_ser",
    "nr_hstates" / u16 * "pools in use",
    "hstates" / array(hugetlb_hstate_ser_early, HUGETLB_SER_MAX_HSTATES),
    packed=False,
    doc="Root of the FLB.",
)

huge_memfd_folio_ser = Struct(
    "huge_memfd_folio_ser",
    "frame" / bits(u64, pfn=52, reserved=12),
    _folio_index,
    packed=False,
    doc="A huge page of a file.",
)

hugetlb_hstate_ser = Struct(
    "hugetlb_hstate_ser",
    "nr_pages" / u64,
    "order" / u8 * "of each page",
    doc="A pool.",
)

hugetlb_ser = Struct(
    "hugetlb_ser",
    "hstates" / array(hugetlb_hstate_ser, HUGETLB_SER_MAX_HSTATES),
    "nr_hstates" / u8 * "pools in use",
    doc="Root of the FLB.",
)

hugemfd_folio_ser = Struct(
    "hugemfd_folio_ser",
    "frame" / bits(u64, pfn=52, reserved=12),
    _folio_index,
    doc="A huge page of a file.",
)

hugemfd_ser = Struct(
    "hugemfd_ser",
    "size" / u64 * "file size, bytes",
    "pos" / u64 * "file position, bytes",
    "nr_folios" / u64 * "entries in the array",
    "folios" / kho_vmalloc * "struct hugemfd_folio_ser[nr_folios]",
    "order" / u8 * "of every folio of the file",
    doc="A memory file of huge pages.",
)

GENERATIONS: tuple[Generation, ...] = (
    Generation(
        layer="hugetlb",
        id="hugetlb-early",
        strings=("hugetlb",),
        handlers=(),
        layouts={
            "hugetlb_folio_ser": hugetlb_folio_ser,
            "hugetlb_hstate_ser": hugetlb_hstate_ser_early,
            "hugetlb_ser": hugetlb_ser_early,
            "huge_memfd_folio_ser": huge_memfd_folio_ser,
        },
        provenance="HugeTLB live update, first development layout",
        date="2025-11",
        constants={"HUGETLB_SER_MAX_HSTATES": HUGETLB_SER_MAX_HSTATES},
        census=("hugetlb-early",),
        notes="Not packed, no version. How files looked is not known, but for their folio entries.",
    ),
    Generation(
        layer="hugetlb",
        id="hugetlb-v1",
        strings=(FLB_STRING, FILE_STRING),
        handlers=(FILE_STRING,),
        layouts={
            "hugetlb_hstate_ser": hugetlb_hstate_ser,
            "hugetlb_ser": hugetlb_ser,
            "hugemfd_folio_ser": hugemfd_folio_ser,
            "hugemfd_ser": hugemfd_ser,
        },
        provenance="HugeTLB live update RFC, 2025-12 to 2026",
        date="2026-01",
        constants={"HUGETLB_SER_MAX_HSTATES": HUGETLB_SER_MAX_HSTATES},
        census=("hugetlb-v1",),
        notes="hugetlb-v1 is the FLB, huge-memfd-v1 the file handler.",
    ),
)
