"""Block lists (7.2 on): pages of {next, count} and entries.

Not versioned by itself: ``kho-v4`` covers it, and a development tree adds ``block-v1`` to
LUO's string.
"""

from __future__ import annotations

from abi.registry import Generation
from abi.schema import Struct, phys, u64

#: A list with more blocks is refused by the consumer.
KHO_MAX_BLOCKS = 10000

kho_block_header_ser = Struct(
    "kho_block_header_ser",
    "next" / phys("struct kho_block_header_ser"),
    "count" / u64 * "entries in this block; 0 is refused",
    doc="Head of a block; entries follow up to the end of the page.",
)

GENERATIONS: tuple[Generation, ...] = (
    Generation(
        layer="block",
        id="block-v1",
        strings=("block-v1", "kho-block-v1"),
        layouts={"kho_block_header_ser": kho_block_header_ser},
        provenance="Linux 7.2.12, 7.3.4",
        kernels=("7.2", "7.3"),
        date="2026-08",
        constants={
            "KHO_MAX_BLOCKS": KHO_MAX_BLOCKS,
            "KHO_BLOCK_SIZE": {0x1000: 0x1000, 0x4000: 0x4000, 0x10000: 0x10000},
        },
        notes="The string exists in development trees only: block-v1 behind luo-v5;, and "
        "kho-block-v1 behind luo-v3- and luo-v4-.",
        census=("linux-7.2", "linux-7.3", "luo-features-dev", "pci-flb-version2-2026"),
    ),
)
