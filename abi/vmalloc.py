"""kho_vmalloc: how a virtually contiguous area is handed over (6.18 on).

A descriptor leads to a list of pages of block addresses. ``number of addresses * 2^order``
must be ``total_pages``. A list of a page ends at its first zero entry; a full page always has
a successor, which may hold nothing. Unversioned until the development string
``vmalloc-v1``.
"""

from __future__ import annotations

from abi.registry import Generation
from abi.schema import Struct, array, flags, per_page, phys, u16, u32

#: Allocated pages (VM_ALLOC).
KHO_VMALLOC_ALLOC = 1
#: Huge mappings allowed.
KHO_VMALLOC_HUGE_VMAP = 2
KHO_VMALLOC_FLAGS = KHO_VMALLOC_ALLOC | KHO_VMALLOC_HUGE_VMAP

kho_vmalloc_hdr = Struct(
    "kho_vmalloc_hdr",
    "next" / phys("struct kho_vmalloc_chunk"),
    packed=False,
    doc="Head of a chunk.",
)


@per_page
def kho_vmalloc_chunk(page_size: int) -> Struct:
    """One page of block addresses; the first zero ends it."""
    return Struct(
        "kho_vmalloc_chunk",
        "hdr" / kho_vmalloc_hdr,
        "phys" / array(phys("block of 2^order pages"), (page_size - 8) // 8),
        packed=False,
        doc="One page of block addresses; the first zero ends it.",
    )


kho_vmalloc = Struct(
    "kho_vmalloc",
    "first" / phys("struct kho_vmalloc_chunk"),
    "total_pages" / u32 * "base pages in all blocks",
    "flags"
    / flags(u16, KHO_VMALLOC_ALLOC=KHO_VMALLOC_ALLOC, KHO_VMALLOC_HUGE_VMAP=KHO_VMALLOC_HUGE_VMAP),
    "order" / u16 * "of each block",
    packed=False,
    doc="Descriptor of a preserved area.",
)

GENERATIONS: tuple[Generation, ...] = (
    Generation(
        layer="vmalloc",
        id="vmalloc-v1",
        strings=("vmalloc-v1",),
        layouts={
            "kho_vmalloc": kho_vmalloc,
            "kho_vmalloc_hdr": kho_vmalloc_hdr,
            "kho_vmalloc_chunk": kho_vmalloc_chunk,
        },
        provenance="Linux 6.18 to 7.3",
        kernels=("6.18", "6.19", "7.0", "7.1", "7.2", "7.3"),
        date="2025-11",
        constants={
            "KHO_VMALLOC_ALLOC": KHO_VMALLOC_ALLOC,
            "KHO_VMALLOC_HUGE_VMAP": KHO_VMALLOC_HUGE_VMAP,
            "KHO_VMALLOC_SIZE": {0x1000: 511, 0x4000: 2047, 0x10000: 8191},
        },
        notes="The string exists in development trees only, as part of the root's.",
        census=(
            "linux-6.18", "linux-6.19", "linux-7.0", "kho-v2-mainline-interim", "linux-7.1",
            "linux-7.2", "linux-7.3", "luo-features-dev", "memfd-v2-early",
            "kvm-guest-memfd-v1", "kvm-caretaker", "hugetlb-v1", "hugetlb-early",
        ),
    ),
)  # fmt: skip
