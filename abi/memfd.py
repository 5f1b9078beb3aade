"""Preserved memory files.

The folio array is a kho_vmalloc area of 16-byte entries. In ``memfd-v2`` seals and flags
are two u32; an early posting had ``seals : 8`` and 56 reserved bits in the same word: the
same bytes for the seals in use.
"""

from __future__ import annotations

from abi.luo import luo_feature_hdr
from abi.registry import Generation
from abi.schema import Struct, bits, flags, u32, u64
from abi.vmalloc import kho_vmalloc

MEMFD_LUO_FOLIO_DIRTY = 1
MEMFD_LUO_FOLIO_UPTODATE = 2

SEAL_NAMES = {
    "seal": 1,
    "shrink": 2,
    "grow": 4,
    "write": 8,
    "future-write": 16,
    "exec": 32,
}
MEMFD_LUO_ALL_SEALS = 0x3F
MEMFD_LUO_FEATURE_SEALS = 1
MEMFD_LUO_FEATURE_FOLIOS = 2

memfd_luo_folio_ser = Struct(
    "memfd_luo_folio_ser",
    "frame" / bits(u64, pfn=52, flags=12) * "pfn 0 is a hole; flags: 1 dirty, 2 up to date",
    "index" / u64 * "in the file, in base pages",
    doc="A folio of the page cache.",
)

_HEAD = (
    "pos" / u64 * "file position, bytes",
    "size" / u64 * "file size, bytes",
)
_SEALS = (
    "seals"
    / flags(
        u32,
        F_SEAL_SEAL=1,
        F_SEAL_SHRINK=2,
        F_SEAL_GROW=4,
        F_SEAL_WRITE=8,
        F_SEAL_FUTURE_WRITE=16,
        F_SEAL_EXEC=32,
    ),
    "flags" / u32 * "must be 0",
)
_FOLIOS = (
    "nr_folios" / u64 * "entries in the array",
    "folios" / kho_vmalloc * "struct memfd_luo_folio_ser[nr_folios]",
)

memfd_luo_ser_v1 = Struct("memfd_luo_ser", *_HEAD, *_FOLIOS, doc="A memory file without seals.")
memfd_luo_ser_early = Struct(
    "memfd_luo_ser",
    *_HEAD,
    "word" / bits(u64, seals=8, __reserved=56),
    *_FOLIOS,
    doc="A memory file, seals in a bit-field.",
)
memfd_luo_ser = Struct("memfd_luo_ser", *_HEAD, *_SEALS, *_FOLIOS, doc="A memory file.")
memfd_luo_ser_features = Struct(
    "memfd_luo_ser",
    "features" / luo_feature_hdr,
    *_HEAD,
    *_SEALS,
    *_FOLIOS,
    doc="A memory file behind a feature header.",
)

_FOLIO_CONSTANTS = {
    "MEMFD_LUO_FOLIO_DIRTY": MEMFD_LUO_FOLIO_DIRTY,
    "MEMFD_LUO_FOLIO_UPTODATE": MEMFD_LUO_FOLIO_UPTODATE,
}

GENERATIONS = (
    Generation(
        layer="memfd",
        id="memfd-v1",
        strings=("memfd-v1",),
        layouts={"memfd_luo_ser": memfd_luo_ser_v1, "memfd_luo_folio_ser": memfd_luo_folio_ser},
        provenance="Linux 6.19.11; 7.0 carries this or memfd-v2, which is not established",
        kernels=("6.19", "7.0"),
        date="2026-02",
        constants=_FOLIO_CONSTANTS,
        notes="has no field for seals: they are lost",
        census=("linux-6.19", "linux-7.0"),
    ),
    Generation(
        layer="memfd",
        id="memfd-v2-early",
        strings=("memfd-v2",),
        layouts={"memfd_luo_ser": memfd_luo_ser_early, "memfd_luo_folio_ser": memfd_luo_folio_ser},
        provenance="development tree of 2026-02",
        date="2026-02",
        notes="the same bytes as memfd-v2 for seals below 256 and flags 0",
        census=("memfd-v2-early",),
    ),
    Generation(
        layer="memfd",
        id="memfd-v2",
        strings=("memfd-v2",),
        layouts={"memfd_luo_ser": memfd_luo_ser, "memfd_luo_folio_ser": memfd_luo_folio_ser},
        provenance="Linux 7.1.13, 7.2.12, 7.3.4",
        kernels=("7.1", "7.2", "7.3"),
        date="2026-06",
        constants={
            **_FOLIO_CONSTANTS,
            "F_SEAL_SEAL": 1,
            "F_SEAL_SHRINK": 2,
            "F_SEAL_GROW": 4,
            "F_SEAL_WRITE": 8,
            "F_SEAL_FUTURE_WRITE": 16,
            "F_SEAL_EXEC": 32,
            "MEMFD_LUO_ALL_SEALS": MEMFD_LUO_ALL_SEALS,
        },
        census=("linux-7.1", "linux-7.2", "linux-7.3"),
    ),
    Generation(
        layer="memfd",
        id="memfd-features",
        strings=("memfd",),
        layouts={
            "memfd_luo_ser": memfd_luo_ser_features,
            "memfd_luo_folio_ser": memfd_luo_folio_ser,
        },
        provenance="live update development tree after 7.2",
        date="2026-07",
        constants={
            "MEMFD_LUO_FEATURE_SEALS": MEMFD_LUO_FEATURE_SEALS,
            "MEMFD_LUO_FEATURE_FOLIOS": MEMFD_LUO_FEATURE_FOLIOS,
        },
        census=("luo-features-dev",),
    ),
)
