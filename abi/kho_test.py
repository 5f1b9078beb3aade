"""The in-kernel self test of KHO: a known-good input.

The blob ``kho_test`` is a flattened device tree: root ``compatible`` and ``magic``; node
``data`` with ``nr_folios``, ``csum`` and ``folios_info``, all u32 of the machine's own
byte order. ``folios_info`` is the plain array of u64 in 6.16 and 6.17 (the blob may then be
larger than a page) and a 16-byte kho_vmalloc descriptor of such an array from 6.18 on.
An item of the array is a physical address with the folio's order in the bits of the
page offset.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from abi.registry import Generation


class FoliosInfo(enum.StrEnum):
    """What the property ``folios_info`` holds."""

    ARRAY = "array"
    VMALLOC = "vmalloc"


@dataclass(frozen=True, kw_only=True)
class KhoTestGeneration(Generation):
    """A form of the self test's blob."""

    folios_info: FoliosInfo


def encode_folio(pa: int, order: int) -> int:
    """The array item of a folio."""
    return pa | order


def decode_folio(item: int, page_size: int) -> tuple[int, int]:
    """(physical address, order) of an array item."""
    return item & -page_size, item & (page_size - 1)


def partial_sum(data: bytes, csum: int = 0) -> int:
    """The Internet checksum (RFC 1071) of ``data`` on top of ``csum``, folded to 16 bits.

    The kernel stores an unfolded 32-bit sum, which depends on the machine: compare
    ``partial_sum(b"", stored)`` with the sum over the folios. ``data`` has whole words.
    """
    total = csum + sum(memoryview(data).cast("H"))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


KHO_TEST_NODE_NAME = "kho_test"
KHO_TEST_COMPATIBLE = "kho-test-v1"
KHO_TEST_MAGIC = 0x4B484F21
NODE_DATA = "data"
PROP_MAGIC = "magic"
PROP_NR_FOLIOS = "nr_folios"
PROP_FOLIOS_INFO = "folios_info"
PROP_CSUM = "csum"

GENERATIONS: tuple[KhoTestGeneration, ...] = (
    KhoTestGeneration(
        layer="kho-test",
        id="kho-test-plain",
        strings=(KHO_TEST_COMPATIBLE,),
        layouts={},
        provenance="Linux 6.16, 6.17",
        kernels=("6.16", "6.17"),
        date="2025-07-27",
        constants={"KHO_TEST_MAGIC": KHO_TEST_MAGIC},
        folios_info=FoliosInfo.ARRAY,
    ),
    KhoTestGeneration(
        layer="kho-test",
        id="kho-test-vmalloc",
        strings=(KHO_TEST_COMPATIBLE,),
        layouts={},
        provenance="Linux 6.18 to 7.3",
        kernels=("6.18", "6.19", "7.0", "7.1", "7.2", "7.3"),
        date="2025-11-30",
        constants={"KHO_TEST_MAGIC": KHO_TEST_MAGIC},
        folios_info=FoliosInfo.VMALLOC,
    ),
)
