"""reserve_mem regions (6.16 on): the blob ``memblock``, a flattened device tree.

The root is compatible with ``memblock-v1``; one subnode per region, named as on the kernel
command line, compatible with ``reserve-mem-v1``, has ``start`` and ``size``: u64 of the
machine's own byte order (comments in the kernel show cells, which is not what is written).

A region is revived only if ``size`` equals what the new command line asks for and ``start``
has the alignment asked for; otherwise a fresh region is made and the old one is lost.
"""

from __future__ import annotations

from abi.errors import CodecError
from abi.registry import Generation

MEMBLOCK_NODE_NAME = "memblock"
MEMBLOCK_COMPATIBLE = "memblock-v1"
RESERVE_MEM_COMPATIBLE = "reserve-mem-v1"
PROP_START = "start"
PROP_SIZE = "size"


def encode(value: int) -> bytes:
    """The value of a ``start`` or ``size`` property. Raises OverflowError beyond 64 bits."""
    return value.to_bytes(8, "little")


def decode(value: bytes) -> int:
    """What a ``start`` or ``size`` property says. Raises CodecError unless it has 8 bytes."""
    if len(value) != 8:
        raise CodecError(f"a reserve_mem property has {len(value)} bytes, not 8")
    return int.from_bytes(value, "little")


GENERATIONS: tuple[Generation, ...] = (
    Generation(
        layer="memblock",
        id="memblock-v1",
        strings=(MEMBLOCK_COMPATIBLE, RESERVE_MEM_COMPATIBLE),
        layouts={},
        provenance="Linux 6.16 to 7.3",
        kernels=("6.16", "6.17", "6.18", "6.19", "7.0", "7.1", "7.2", "7.3"),
        date="2025-07-27",
        census=(
            "linux-6.16", "linux-6.17", "linux-6.18", "linux-6.19", "linux-7.0", "linux-7.1",
            "linux-7.2", "linux-7.3",
        ),
        notes="Properties of a device tree only: no struct.",
    ),
)  # fmt: skip
