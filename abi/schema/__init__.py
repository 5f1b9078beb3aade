"""The declaration vocabulary: one construct declaration per serialized struct.

A struct is declared once, field by field, in the order and with the types of the C
declaration::

    iommu_hdr_ser = Struct(
        "iommu_hdr_ser",
        "ref_count" / u32 * "users of the object",
        "flags" / flags(u32, DELETED=1, INCOMING=2) * "what became of it",
    )

From that one declaration come

* the construct parser and builder (``parse``, ``build``, ``sizeof``; exact and lossless),
* the numpy structured ``dtype`` for bulk reads, and ``columns`` on top of it,
* ``unpack``: one object as a flat dict, quickly,
* the table of ``fields`` (name, offset, size, bits, meaning, pointer target),
* the C text (``c()``).

Rebuilding is lossless: padding, reserved bytes and unknown flag bits are ordinary
fields. A union is one raw area plus named views of it, a group of bit-fields one raw
integer plus named views; ``build`` starts from the raw area and lays over it every view
that says something else. Members left out of a ``build`` are zero. Integers stay
integers: a ``bool`` that holds 2 survives.

Everything is little endian: KHO exists on little-endian machines only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from abi.schema.struct import Struct
from abi.schema.types import (
    Bits,
    Chars,
    Field,
    Items,
    Scalar,
    Union,
    array,
    bits,
    boolean,
    chars,
    enum,
    flags,
    kernel_pointer,
    phys,
    s32,
    u8,
    u16,
    u32,
    u64,
    union,
)

__all__ = [
    "PAGE_SIZES",
    "Bits",
    "Chars",
    "Field",
    "Items",
    "Layout",
    "PerPage",
    "Scalar",
    "Struct",
    "Union",
    "array",
    "bits",
    "boolean",
    "chars",
    "enum",
    "flags",
    "kernel_pointer",
    "per_page",
    "phys",
    "resolve",
    "s32",
    "u8",
    "u16",
    "u32",
    "u64",
    "union",
]

#: Page sizes of the machines that have KHO.
PAGE_SIZES = (0x1000, 0x4000, 0x10000)

#: A declaration whose size depends on the page size: call it with one of PAGE_SIZES.
PerPage = Callable[[int], Struct]
Layout = Struct | PerPage


def per_page(declare: Callable[[int], Struct]) -> PerPage:
    """Make a declaration out of a function of the page size; each size is declared once."""

    @cache
    def declared(page_size: int) -> Struct:
        if page_size not in PAGE_SIZES:
            raise ValueError(f"no machine with KHO has pages of {page_size} bytes")
        return declare(page_size)

    declared.__doc__ = declare.__doc__
    return declared


def resolve(layout: Layout, page_size: int) -> Struct:
    """The struct of a layout for one page size."""
    return layout if isinstance(layout, Struct) else layout(page_size)
