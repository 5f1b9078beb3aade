"""Kexec HandOver proper: the root FDT and the nodes of the preserved-memory map.

``kho-v3`` and ``kho-v4`` are the same in all that is declared here: the number was raised
for the block lists and for LUO's move from FDT to struct. ``kho-v1`` names two: bitmaps
of 512 bytes (6.16, 6.17) and of a page (6.18 to 7.0). How keys and bits stand for blocks
is in :mod:`abi.memory_map`.

Values of properties are u64 of the machine's own byte order, not FDT cells.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from abi.registry import Generation, Source
from abi.schema import Layout, Struct, array, per_page, phys, u32, u64

#: Root and subnodes.
COMPATIBLE = b"compatible"
MAP_PROPERTY = b"preserved-memory-map"
#: Blobs whose names are known.
MEMBLOCK_BLOB = b"memblock"
LUO_BLOB = b"LUO"
METADATA_BLOB = b"kexec-metadata"
TEST_BLOB = b"kho_test"

#: "KHOP": in page->private of a preserved block until it is restored (6.18 on, shifted by 32).
KHO_PAGE_MAGIC = 0x4B484F50


class MapKind(enum.StrEnum):
    """The form of the preserved-memory map."""

    BITMAP_512 = "chunk list, 512-byte bitmaps"
    BITMAP_PAGE = "chunk list, page-size bitmaps"
    RADIX = "radix tree"
    RADIX_INTERIM = "radix tree, depth without the order bit"


@dataclass(frozen=True, kw_only=True)
class KhoGeneration(Generation):
    """A form of the root FDT and its map.

    ``map_property`` and ``blob_property`` are the names of FDT properties; the latter is
    in each subnode, next to ``size_property`` where there is one.
    """

    map_kind: MapKind
    map_property: str = "preserved-memory-map"
    blob_property: str = "preserved-data"
    size_property: str | None = None


khoser_mem_bitmap_ptr = Struct(
    "khoser_mem_bitmap_ptr",
    "phys_start" / u64 * "what bit 0 stands for",
    "bitmap" / phys("struct kho_mem_phys_bits"),
    packed=False,
    doc="A bitmap and where it begins.",
)

khoser_mem_chunk_hdr = Struct(
    "khoser_mem_chunk_hdr",
    "next" / phys("struct khoser_mem_chunk"),
    "order" / u32 * "of every block in this chunk",
    "num_elms" / u32 * "bitmaps used",
    packed=False,
    doc="Head of a chunk.",
)


@per_page
def khoser_mem_chunk(page_size: int) -> Struct:
    """One page of bitmap pointers (6.16 to 7.0)."""
    return Struct(
        "khoser_mem_chunk",
        "hdr" / khoser_mem_chunk_hdr,
        "bitmaps" / array(khoser_mem_bitmap_ptr, (page_size - 16) // 16),
        packed=False,
        doc="One page of bitmap pointers, all of one order.",
    )


kho_mem_phys_bits_512 = Struct(
    "kho_mem_phys_bits",
    "preserve" / array(u64, 64) * "a bit for each block",
    packed=False,
    doc="4096 bits (6.16, 6.17), an object of a slab.",
)


@per_page
def kho_mem_phys_bits(page_size: int) -> Struct:
    """A page of bits (6.18 to 7.0)."""
    return Struct(
        "kho_mem_phys_bits",
        "preserve" / array(u64, page_size // 8) * "a bit for each block",
        packed=False,
        doc="A page of bits.",
    )


@per_page
def kho_radix_node(page_size: int) -> Struct:
    """A table of the radix tree (7.1 on)."""
    return Struct(
        "kho_radix_node",
        "table"
        / array(phys("struct kho_radix_node or kho_radix_leaf"), page_size // 8)
        * "0: nothing below",
        packed=False,
        doc="A table: leaves lie below level 1.",
    )


@per_page
def kho_radix_leaf(page_size: int) -> Struct:
    """A leaf of the radix tree (7.1 on)."""
    return Struct(
        "kho_radix_leaf",
        "bitmap" / array(u64, page_size // 8) * "a bit for each key",
        packed=False,
        doc="A page of bits.",
    )


_CHUNKS: Mapping[str, Layout] = {
    "khoser_mem_bitmap_ptr": khoser_mem_bitmap_ptr,
    "khoser_mem_chunk_hdr": khoser_mem_chunk_hdr,
    "khoser_mem_chunk": khoser_mem_chunk,
}
_RADIX: Mapping[str, Layout] = {"kho_radix_node": kho_radix_node, "kho_radix_leaf": kho_radix_leaf}
_CHUNK_CAPACITY = {0x1000: 255, 0x4000: 1023, 0x10000: 4095}
_RADIX_CONSTANTS = {
    "KHO_TABLE_SIZE_LOG2": {0x1000: 9, 0x4000: 11, 0x10000: 13},
    "KHO_BITMAP_SIZE_LOG2": {0x1000: 15, 0x4000: 17, 0x10000: 19},
}
_ORDER_0_LOG2 = {0x1000: 52, 0x4000: 50, 0x10000: 48}
_RADIX_DEPTH = {0x1000: 6, 0x4000: 5, 0x10000: 4}

GENERATIONS: tuple[KhoGeneration, ...] = (
    KhoGeneration(
        layer="kho",
        id="kho-v1-bitmap512",
        strings=("kho-v1",),
        layouts={**_CHUNKS, "kho_mem_phys_bits": kho_mem_phys_bits_512},
        provenance="Linux 6.16, 6.17.8",
        kernels=("6.16", "6.17"),
        date="2025-07",
        notes="Bitmaps are 512 bytes whatever the page size.",
        constants={"PRESERVE_BITS": 4096, "KHOSER_BITMAP_SIZE": _CHUNK_CAPACITY},
        census=("linux-6.16", "linux-6.17"),
        map_kind=MapKind.BITMAP_512,
        blob_property="fdt",
    ),
    KhoGeneration(
        layer="kho",
        id="kho-v1-radix-rfc",
        strings=("kho-v1", "kho-v2"),
        layouts=_RADIX,
        provenance="radix tree postings, RFC v2 (kho-v1) and PATCH v1 (kho-v2) of 2025-10",
        source=Source.READ,
        date="2025-10",
        constants={"KHO_TREE_MAX_DEPTH": _RADIX_DEPTH},
        notes="The depth counts six bits for the order and comes out as in kho-v3. RFC v1 "
        "(2025-09) has instead the property preserved-order-table: a page with the root of "
        "one tree for each order.",
        census=("kho-v1-radix-rfc",),
        map_kind=MapKind.RADIX,
        map_property="preserved-page-radix-tree",
        blob_property="fdt",
    ),
    KhoGeneration(
        layer="kho",
        id="kho-v1-bitmap-page",
        strings=("kho-v1",),
        layouts={**_CHUNKS, "kho_mem_phys_bits": kho_mem_phys_bits},
        provenance="Linux 6.18.15, 6.19.11; 7.0 inferred",
        kernels=("6.18", "6.19", "7.0"),
        date="2025-11",
        constants={
            "PRESERVE_BITS": {0x1000: 32768, 0x4000: 131072, 0x10000: 524288},
            "KHOSER_BITMAP_SIZE": _CHUNK_CAPACITY,
            "KHO_PAGE_MAGIC": KHO_PAGE_MAGIC,
        },
        notes="The bitmaps grew, the string did not change.",
        census=("linux-6.18", "linux-6.19", "linux-7.0"),
        map_kind=MapKind.BITMAP_PAGE,
        blob_property="fdt",
    ),
    KhoGeneration(
        layer="kho",
        id="kho-v2",
        strings=("kho-v2",),
        layouts=_RADIX,
        provenance="mainline between 7.0 and 7.1",
        date="2026-03",
        constants={
            **_RADIX_CONSTANTS,
            "KHO_ORDER_0_LOG2": _ORDER_0_LOG2,
            "KHO_TREE_MAX_DEPTH": {0x1000: 6, 0x4000: 4, 0x10000: 4},
        },
        notes="With 16K pages the tree is a level too short and order 0 loses its marker bit. "
        "A blob has no size: it tells its own.",
        census=("kho-v2-mainline-interim",),
        map_kind=MapKind.RADIX_INTERIM,
    ),
    KhoGeneration(
        layer="kho",
        id="kho-v3",
        strings=("kho-v3",),
        layouts=_RADIX,
        provenance="Linux 7.1.13",
        kernels=("7.1",),
        date="2026-06",
        constants={
            **_RADIX_CONSTANTS,
            "KHO_ORDER_0_LOG2": _ORDER_0_LOG2,
            "KHO_TREE_MAX_DEPTH": _RADIX_DEPTH,
            "KHO_PAGE_MAGIC": KHO_PAGE_MAGIC,
        },
        census=("linux-7.1",),
        map_kind=MapKind.RADIX,
        size_property="blob-size",
    ),
    KhoGeneration(
        layer="kho",
        id="kho-v4",
        strings=("kho-v4",),
        layouts=_RADIX,
        provenance="Linux 7.2.12, 7.3.4",
        kernels=("7.2", "7.3"),
        date="2026-08",
        constants={
            **_RADIX_CONSTANTS,
            "KHO_ORDER_0_LOG2": _ORDER_0_LOG2,
            "KHO_TREE_MAX_DEPTH": _RADIX_DEPTH,
            "KHO_RADIX_KEY_WIDTH": {0x1000: 53, 0x4000: 51, 0x10000: 49},
            "KHO_PAGE_MAGIC": KHO_PAGE_MAGIC,
        },
        census=("linux-7.2", "linux-7.3"),
        map_kind=MapKind.RADIX,
        size_property="blob-size",
    ),
    KhoGeneration(
        layer="kho",
        id="kho-composite",
        strings=("kho-v4;radix-v1;vmalloc-v1", "kho-v4;radix-v1"),
        layouts=_RADIX,
        provenance="live update development tree, RFC of 2026-06-04 and later",
        date="2026-06",
        constants={**_RADIX_CONSTANTS, "KHO_TREE_MAX_DEPTH": _RADIX_DEPTH},
        notes="Layouts of kho-v4; versions of components are appended in alphabetical order.",
        census=("kho-compat-composite",),
        map_kind=MapKind.RADIX,
        size_property="blob-size",
    ),
)
