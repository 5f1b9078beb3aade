"""Memory files (memfd): size, position, seals and the folios that hold the content.

The ``data`` of a LUO file entry with one of these handler strings is the physical address
of ``struct memfd_luo_ser``. Its vmalloc area holds ``nr_folios`` entries of 16 bytes; an
empty file has none and a zero descriptor. The order of a folio is that of its block in
the preserved-memory map. ``index`` counts base pages, for huge folios too. An entry whose
pfn is 0 is a hole, which no producer makes: folios are populated, up to date and dirty.

In ``memfd-v2`` seals and flags are two u32; an early posting had ``seals : 8`` and 56
reserved bits in the same word: the same bytes for the seals in use.
"""

from __future__ import annotations

from abi.luo import luo_feature_hdr
from abi.registry import Generation
from abi.schema import Struct, bits, flags, u32, u64
from abi.vmalloc import kho_vmalloc

#: Flags of a folio; present producers set both.
MEMFD_LUO_FOLIO_DIRTY = 1
MEMFD_LUO_FOLIO_UPTODATE = 2

#: The seals of fcntl(2) that can be handed over.
SEALS = {
    "F_SEAL_SEAL": 0x1,
    "F_SEAL_SHRINK": 0x2,
    "F_SEAL_GROW": 0x4,
    "F_SEAL_WRITE": 0x8,
    "F_SEAL_FUTURE_WRITE": 0x10,
    "F_SEAL_EXEC": 0x20,
}
#: The same for people.
SEAL_NAMES = {k.removeprefix("F_SEAL_").lower().replace("_", "-"): v for k, v in SEALS.items()}
#: Other bits make the producer and the consumer answer -EOPNOTSUPP.
MEMFD_LUO_ALL_SEALS = 0x3F

#: Bits of the feature words.
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
    "seals" / flags(u32, **SEALS),
    "flags" / u32 * "0; else -EOPNOTSUPP on retrieve",
)
_FOLIOS = (
    "nr_folios" / u64 * "entries in the array",
    "folios" / kho_vmalloc * "struct memfd_luo_folio_ser[nr_folios]",
)

memfd_luo_ser_v1 = Struct("memfd_luo_ser", *_HEAD, *_FOLIOS, doc="A memory file without seals.")
memfd_luo_ser_early = Struct(
    "memfd_luo_ser",
    *_HEAD,
    "word" / bits(u64, seals=8, __reserved=56) * "the seals of memfd-v2, narrower",
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

GENERATIONS: tuple[Generation, ...] = (
    Generation(
        layer="memfd",
        id="memfd-v1",
        strings=("memfd-v1",),
        layouts={"memfd_luo_ser": memfd_luo_ser_v1, "memfd_luo_folio_ser": memfd_luo_folio_ser},
        provenance="Linux 6.19.11; for 7.0 assumed",
        kernels=("6.19", "7.0"),
        date="2026-02-08",
        constants=_FOLIO_CONSTANTS,
        notes="Carries no seals: they are lost. Whether 7.0 writes this or memfd-v2 is not "
        "established.",
        census=("linux-6.19",),
    ),
    Generation(
        layer="memfd",
        id="memfd-v2-early",
        strings=("memfd-v2",),
        layouts={"memfd_luo_ser": memfd_luo_ser_early, "memfd_luo_folio_ser": memfd_luo_folio_ser},
        provenance="development tree of 2026-02",
        date="2026-02",
        notes="The same bytes as memfd-v2 for seals below 256 and flags 0.",
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
        constants={**_FOLIO_CONSTANTS, **SEALS, "MEMFD_LUO_ALL_SEALS": MEMFD_LUO_ALL_SEALS},
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
