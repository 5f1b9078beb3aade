"""The in-kernel self test of KHO: a known-good input.

Blob ``kho_test`` is an FDT; ``folios_info`` is the plain array of u64 in 6.16 and 6.17,
a 16-byte kho_vmalloc descriptor of such an array from 6.18 on.
"""

from __future__ import annotations

from abi.registry import Generation

KHO_TEST_NODE_NAME = "kho_test"
KHO_TEST_COMPATIBLE = "kho-test-v1"
KHO_TEST_MAGIC = 0x4B484F21
NODE_DATA = "data"
PROP_MAGIC = "magic"
PROP_NR_FOLIOS = "nr_folios"
PROP_FOLIOS_INFO = "folios_info"
PROP_CSUM = "csum"

GENERATIONS = (
    Generation(
        layer="kho-test",
        id="kho-test-plain",
        strings=(KHO_TEST_COMPATIBLE,),
        layouts={},
        provenance="Linux 6.16, 6.17",
        kernels=("6.16", "6.17"),
        date="2025-07",
        constants={"KHO_TEST_MAGIC": KHO_TEST_MAGIC},
    ),
    Generation(
        layer="kho-test",
        id="kho-test-vmalloc",
        strings=(KHO_TEST_COMPATIBLE,),
        layouts={},
        provenance="Linux 6.18 to 7.3",
        kernels=("6.18", "6.19", "7.0", "7.1", "7.2", "7.3"),
        date="2025-11",
        constants={"KHO_TEST_MAGIC": KHO_TEST_MAGIC},
    ),
)
