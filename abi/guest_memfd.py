"""guest_memfd: memory that only a virtual machine can see.

Never in a release. The handler string is ``guest_memfd_luo_v1``; ``vm_token`` names the
virtual machine's file in the same session. The folio entries have the form of those of
memfd.
"""

from __future__ import annotations

from abi.registry import Generation
from abi.schema import Struct, bits, flags, u64
from abi.vmalloc import kho_vmalloc

GUEST_MEMFD_LUO_FOLIO_UPTODATE = 1
GUEST_MEMFD_LUO_FLAG_MMAP = 1
GUEST_MEMFD_LUO_FLAG_INIT_SHARED = 2

guest_memfd_luo_folio_ser = Struct(
    "guest_memfd_luo_folio_ser",
    "frame" / bits(u64, pfn=52, flags=12) * "flags: 1 up to date",
    "index" / u64 * "in the file, in base pages",
    doc="A folio of the page cache.",
)

guest_memfd_luo_ser = Struct(
    "guest_memfd_luo_ser",
    "size" / u64 * "file size, bytes",
    "flags"
    / flags(
        u64,
        GUEST_MEMFD_LUO_FLAG_MMAP=GUEST_MEMFD_LUO_FLAG_MMAP,
        GUEST_MEMFD_LUO_FLAG_INIT_SHARED=GUEST_MEMFD_LUO_FLAG_INIT_SHARED,
    ),
    "nr_folios" / u64 * "entries in the array",
    "vm_token" / u64 * "LUO token of the virtual machine's file",
    "folios" / kho_vmalloc * "struct guest_memfd_luo_folio_ser[nr_folios]",
    doc="A guest_memfd file.",
)

GENERATIONS: tuple[Generation, ...] = (
    Generation(
        layer="guest-memfd",
        id="guest-memfd-v1",
        strings=("guest_memfd_luo_v1",),
        layouts={
            "guest_memfd_luo_folio_ser": guest_memfd_luo_folio_ser,
            "guest_memfd_luo_ser": guest_memfd_luo_ser,
        },
        provenance="guest_memfd and KVM live update series, RFC v2 to v3; KVM caretaker tree",
        date="2026-06-05",
        constants={
            "GUEST_MEMFD_LUO_FOLIO_UPTODATE": GUEST_MEMFD_LUO_FOLIO_UPTODATE,
            "GUEST_MEMFD_LUO_FLAG_MMAP": GUEST_MEMFD_LUO_FLAG_MMAP,
            "GUEST_MEMFD_LUO_FLAG_INIT_SHARED": GUEST_MEMFD_LUO_FLAG_INIT_SHARED,
        },
        census=("kvm-guest-memfd-v1", "kvm-caretaker"),
    ),
)
