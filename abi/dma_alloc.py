"""Coherent DMA memory handed over: SMMUv3 keeps its tables in such allocations.

Never in a release, in two layouts without a version; a handle in another struct is the
physical address of ``struct dma_alloc_ser``. The first layout names one run of pages, the
second lists the pages.
"""

from __future__ import annotations

from abi.registry import Generation
from abi.schema import Struct, array, boolean, phys, u8, u64

dma_alloc_ser_a = Struct(
    "dma_alloc_ser",
    "page_phys" / phys("first page"),
    "size" / u64 * "bytes",
    "attrs" / u64 * "DMA_ATTR_*",
    "force_decrypted" / u8,
    "padding" / array(u8, 7),
    doc="One physically contiguous allocation.",
)

dma_alloc_ser = Struct(
    "dma_alloc_ser",
    "iova" / u64 * "DMA address",
    "nr_pages" / u64,
    "is_folio" / boolean * "the pages are one folio",
    "is_contiguous" / boolean * "the pages follow each other: one address is listed",
    tail=("page_phys", phys("page")),
    doc="An allocation and its pages.",
)

GENERATIONS: tuple[Generation, ...] = (
    Generation(
        layer="dma-alloc",
        id="dma-alloc-a",
        strings=(),
        layouts={"dma_alloc_ser": dma_alloc_ser_a},
        provenance="coherent DMA allocation preservation, first layout",
        date="2026",
        census=("dma-alloc-a", "iommu-smmuv3-2026a"),
    ),
    Generation(
        layer="dma-alloc",
        id="dma-alloc-b",
        strings=(),
        layouts={"dma_alloc_ser": dma_alloc_ser},
        provenance="coherent DMA allocation preservation, second layout",
        date="2026",
        census=("dma-alloc-b", "iommu-v4-version-field"),
    ),
)
