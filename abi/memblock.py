"""memblock's sub FDT: the regions of ``reserve_mem=`` (6.16 on).

Node ``memblock``; a subnode for each region, named as on the command line, with ``start``
and ``size`` as native u64.
"""

from __future__ import annotations

from abi.registry import Generation

MEMBLOCK_NODE_NAME = "memblock"
MEMBLOCK_COMPATIBLE = "memblock-v1"
RESERVE_MEM_COMPATIBLE = "reserve-mem-v1"
PROP_START = "start"
PROP_SIZE = "size"

GENERATIONS = (
    Generation(
        layer="memblock",
        id="memblock-v1",
        strings=(MEMBLOCK_COMPATIBLE, RESERVE_MEM_COMPATIBLE),
        layouts={},
        provenance="Linux 6.16 to 7.3",
        kernels=("6.16", "6.17", "6.18", "6.19", "7.0", "7.1", "7.2", "7.3"),
        date="2025-07",
    ),
)
