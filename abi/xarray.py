"""xarray over KHO: a tree of pages that keeps u64 values by a 54-bit key.

A library of a development tree; no client of it is known and no string names it. The
nodes look like those of the preserved-memory map, but a leaf holds values instead of bits.
"""

from __future__ import annotations

from abi.registry import Generation
from abi.schema import Struct, array, per_page, phys, u64

#: Bits of a key.
KHO_XARRAY_KEY_WIDTH = 54


@per_page
def kho_xarray_node(page_size: int) -> Struct:
    """A table page."""
    return Struct(
        "kho_xarray_node",
        "table" / array(phys("struct kho_xarray_node or kho_xarray_leaf"), page_size // 8),
        packed=False,
        doc="A table: 0 means nothing below.",
    )


@per_page
def kho_xarray_leaf(page_size: int) -> Struct:
    """A page of values."""
    return Struct(
        "kho_xarray_leaf",
        "values" / array(u64, page_size // 8),
        packed=False,
        doc="A page of values.",
    )


kho_xarray = Struct(
    "kho_xarray",
    "root" / phys("struct kho_xarray_node"),
    packed=False,
    doc="Root of a tree.",
)

GENERATIONS: tuple[Generation, ...] = (
    Generation(
        layer="xarray",
        id="kho-xarray",
        strings=(),
        layouts={
            "kho_xarray": kho_xarray,
            "kho_xarray_node": kho_xarray_node,
            "kho_xarray_leaf": kho_xarray_leaf,
        },
        provenance="KHO xarray development tree",
        date="2026",
        constants={"KHO_XARRAY_KEY_WIDTH": KHO_XARRAY_KEY_WIDTH},
        census=("kho-xarray",),
    ),
)
