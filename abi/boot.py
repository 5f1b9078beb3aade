"""How the next kernel is told where the root is: setup_data on x86, ``/chosen`` elsewhere.

On x86 a node of type 10 in the list that starts at ``boot_params.hdr.setup_data``; on
device-tree machines two properties of ``/chosen``. Unchanged from 6.16 to 7.3.

Source: Linux 6.16 to 7.3; the x86 boot protocol for the offsets in boot_params.
"""

from __future__ import annotations

from abi.registry import Generation
from abi.schema import Struct, enum, phys, u32, u64

#: Type of the setup_data node.
SETUP_KEXEC_KHO = 10

setup_data_hdr = Struct(
    "setup_data_hdr",
    "next" / phys("struct setup_data"),
    "type" / enum(u32, SETUP_RNG_SEED=9, SETUP_KEXEC_KHO=SETUP_KEXEC_KHO),
    "len" / u32 * "bytes that follow",
    packed=False,
    doc="A node of the list that starts at boot_params.hdr.setup_data.",
)

kho_data = Struct(
    "kho_data",
    "fdt_addr" / phys("KHO root FDT"),
    "fdt_size" / u64 * "one page; 0 disables KHO",
    "scratch_addr" / phys("struct kho_scratch[]"),
    "scratch_size" / u64 * "bytes, 16 for each area",
    doc="Payload of the setup_data node of type SETUP_KEXEC_KHO.",
)

kho_scratch = Struct(
    "kho_scratch",
    "addr" / phys("scratch area"),
    "size" / u64 * "bytes; 0 is normal for the global area",
    packed=False,
    doc="Entry 0 is low memory, entry 1 global, then one for each NUMA node.",
)

#: Low memory, global, and one for each node of the largest configuration (NODES_SHIFT 10).
KHO_SCRATCH_MOST = 2 + 1024
#: Areas of an array that are looked at, whatever its size says; kernels look at all.
KHO_SCRATCH_READ = 1 << 16

#: Pages of 4 KiB that x86 can map at a time while it looks for the root.
EARLY_MAP_PAGES = 64


def early_pages(address: int, size: int) -> int:
    """How many pages early_memremap of x86 counts, in 32 bits, for a range of bytes."""
    return (address % 4096 + size + 4095 >> 12) & 0xFFFF_FFFF


#: x86 boot_params, one page: offsets of what is used, in the order of the page.
E820_COUNT_OFFSET = 0x1E8
#: The setup header starts here, with setup_sects; it ends at 0x202 + the byte at 0x201.
SETUP_HEADER_OFFSET = 0x1F1
SETUP_SECTS_OFFSET = 0x1F1
HEADER_END_OFFSET = 0x201
HDRS_OFFSET = 0x202
HDRS_MAGIC = b"HdrS"
TYPE_OF_LOADER_OFFSET = 0x210
CODE32_START_OFFSET = 0x214
RAMDISK_IMAGE_OFFSET = 0x218
RAMDISK_SIZE_OFFSET = 0x21C
CMD_LINE_PTR_OFFSET = 0x228
SETUP_DATA_OFFSET = 0x250
INIT_SIZE_OFFSET = 0x260
#: Entries of 20 bytes {u64 address, u64 size, u32 type}.
E820_TABLE_OFFSET = 0x2D0
E820_MAX = 128
E820_TYPE_RAM = 1

#: Properties of /chosen: {address, size}, in the root's cells, big endian.
CHOSEN_KHO_FDT = b"linux,kho-fdt"
CHOSEN_KHO_SCRATCH = b"linux,kho-scratch"

GENERATIONS: tuple[Generation, ...] = (
    Generation(
        layer="boot",
        id="boot",
        strings=(),
        layouts={
            "setup_data_hdr": setup_data_hdr,
            "kho_data": kho_data,
            "kho_scratch": kho_scratch,
        },
        provenance="Linux 6.16 to 7.3",
        kernels=("6.16", "6.17", "6.18", "6.19", "7.0", "7.1", "7.2", "7.3"),
        date="2025-07-27",
        constants={"SETUP_KEXEC_KHO": SETUP_KEXEC_KHO},
        census=(
            "linux-6.16", "linux-6.17", "linux-6.18", "linux-6.19", "linux-7.0", "linux-7.1",
            "linux-7.2", "linux-7.3",
        ),
    ),
)  # fmt: skip
