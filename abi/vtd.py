"""Intel VT-d device tables: root, context and PASID entries.

From the root table (one entry per bus) to a context table (legacy mode: one entry per
devfn; scalable mode: one table per half of the bus) to the second-stage page table, or, in
scalable mode, to a PASID directory, a PASID table and the page tables. The mode is bit 10
of the root address register; no table says it.

Source: Intel Virtualization Technology for Directed I/O, architecture specification.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from abi.device_table import TableRoot, address, reserved, word
from abi.schema import Struct

#: Bit of the root address register that selects scalable mode.
RTADDR_SMT = 1 << 10
TABLE_SIZE = 0x1000
BUSES = 256
#: Entries of a PASID table.
PASIDS_PER_TABLE = 64

root_entry = Struct(
    "root_entry",
    word("lo", lo_present=0, lo_table=(63, 12)),
    word("hi", hi_present=0, hi_table=(63, 12)),
    doc="lo: the bus's context table, in scalable mode for devfn < 0x80; hi: devfn >= 0x80",
)

context_entry = Struct(
    "context_entry",
    word("lo", present=0, fault_disable=1, translation_type=(3, 2), second_stage=(63, 12)),
    word("hi", address_width=(2, 0), available=(6, 3), did=(23, 8)),
    doc="legacy mode, 256 to a table",
)

scalable_context_entry = Struct(
    "context_entry",
    word(
        "q0",
        present=0,
        fault_disable=1,
        device_tlb=2,
        pasid_enable=3,
        page_request=4,
        directory_size=(11, 9),
        pasid_directory=(63, 12),
    ),
    word("q1", rid_pasid=(19, 0), rid_privileged=20),
    word("q2"),
    word("q3"),
    doc="scalable mode, 128 to a table",
)

pasid_directory_entry = Struct(
    "pasid_dir_entry", word("val", present=0, fault_disable=1, pasid_table=(63, 12))
)

pasid_entry = Struct(
    "pasid_entry",
    word(
        "w0",
        present=0,
        fault_disable=1,
        address_width=(4, 2),
        execute=5,
        pgtt=(8, 6),
        second_stage_dirty=9,
        second_stage=(63, 12),
    ),
    word("w1", did=(15, 0), page_walk_snoop=23, page_snoop=24),
    word(
        "w2",
        supervisor=0,
        first_stage_mode=(3, 2),
        write_protect=4,
        extended_access=7,
        first_stage=(63, 12),
    ),
    word("w3", w3_features=(63, 0)),
    word("w4", w4_features=(63, 0)),
    word("w5", w5_features=(63, 0)),
    word("w6", w6_features=(63, 0)),
    word("w7", w7_features=(63, 0)),
)

#: Bits of a PASID entry that are reserved without optional features.
_FEATURE_WORDS = ("w1_rsvd16", "w1_rsvd25", "w2_rsvd1", "w2_rsvd5", "w2_rsvd8")


class TranslationType(enum.IntEnum):
    """TT of a legacy context entry."""

    UNTRANSLATED = 0
    DEVICE_TLB = 1
    PASS_THROUGH = 2
    RESERVED = 3


class Pgtt(enum.IntEnum):
    """PASID granular translation type."""

    FIRST_STAGE = 1
    SECOND_STAGE = 2
    NESTED = 3
    PASS_THROUGH = 4


def address_width(top_level: int) -> int:
    """The AW field for a second-stage table with zero-based top level ``top_level``."""
    return top_level - 1


def second_stage_root(pointer: int, width: int) -> TableRoot:
    """The second-stage table for a pointer and an AW field."""
    return TableRoot("vtdss", pointer, width + 2, {1: 39, 2: 48, 3: 57}.get(width, 0))


@dataclass(frozen=True, slots=True)
class RootEntry:
    """A root entry: physical addresses of the two context tables, 0 if not present."""

    raw: tuple[int, int]
    lower: int
    upper: int
    reserved: dict[str, int]


@dataclass(frozen=True, slots=True)
class ContextEntry:
    """A legacy context entry; ``second_stage`` is an address."""

    raw: tuple[int, int]
    present: bool
    fault_disable: bool
    translation_type: TranslationType
    second_stage: int
    address_width: int
    available: int
    did: int
    reserved: dict[str, int]

    @property
    def root(self) -> TableRoot | None:
        """The page table in effect; None for pass-through and empty entries."""
        if not self.present or self.translation_type > TranslationType.DEVICE_TLB:
            return None
        return second_stage_root(self.second_stage, self.address_width)


@dataclass(frozen=True, slots=True)
class ScalableContextEntry:
    """A scalable-mode context entry; ``directory_entries`` is 2^(PDTS + 7)."""

    raw: tuple[int, int, int, int]
    present: bool
    fault_disable: bool
    device_tlb: bool
    pasid_enable: bool
    page_request: bool
    directory_entries: int
    pasid_directory: int
    rid_pasid: int
    rid_privileged: bool
    reserved: dict[str, int]


@dataclass(frozen=True, slots=True)
class PasidEntry:
    """A PASID table entry; the stage pointers are addresses."""

    raw: tuple[int, ...]
    present: bool
    fault_disable: bool
    address_width: int
    pgtt: int
    second_stage: int
    second_stage_dirty: bool
    did: int
    page_walk_snoop: bool
    page_snoop: bool
    supervisor: bool
    first_stage_mode: int
    first_stage: int
    write_protect: bool
    reserved: dict[str, int]

    @property
    def roots(self) -> tuple[TableRoot, ...]:
        """The page tables in effect, the second stage first."""
        if not self.present:
            return ()
        second = second_stage_root(self.second_stage, self.address_width)
        levels = 4 + (self.first_stage_mode & 1)
        first = TableRoot("x86-64", self.first_stage, levels, 48 if levels == 4 else 57)
        by_type: dict[int, tuple[TableRoot, ...]] = {
            Pgtt.FIRST_STAGE: (first,),
            Pgtt.SECOND_STAGE: (second,),
            Pgtt.NESTED: (second, first),
        }
        return by_type.get(self.pgtt, ())


def context_index(devfn: int, scalable: bool) -> tuple[int, int]:
    """(half of the root entry, index in the context table) of a devfn."""
    return (devfn >> 7, devfn & 0x7F) if scalable else (0, devfn)


def directory_entries(max_pasid: int) -> int:
    """Entries of a PASID directory for so many PASIDs, as a context entry can say it (PDTS)."""
    return 1 << max(7, (max_pasid >> 6).bit_length() - 1)


def bitmap_bits(bitmap: Sequence[int]) -> frozenset[int]:
    """The set bits of ``context_tables_bitmap``: bus * 2 + half of the root entry."""
    return frozenset(64 * i + b for i, w in enumerate(bitmap) for b in range(64) if w >> b & 1)


def parse_root_entry(data: bytes, offset: int = 0) -> RootEntry:
    """Decode 16 bytes. Raises CodecError if there are fewer."""
    v = root_entry.unpack(data, offset)
    return RootEntry(
        (v["lo"], v["hi"]),
        address(v["lo_table"], 12) if v["lo_present"] else 0,
        address(v["hi_table"], 12) if v["hi_present"] else 0,
        reserved(root_entry, v),
    )


def parse_context_entry(data: bytes, offset: int = 0) -> ContextEntry:
    """Decode 16 bytes of legacy mode. Raises CodecError if there are fewer."""
    v = context_entry.unpack(data, offset)
    return ContextEntry(
        (v["lo"], v["hi"]),
        bool(v["present"]),
        bool(v["fault_disable"]),
        TranslationType(v["translation_type"]),
        address(v["second_stage"], 12),
        v["address_width"],
        v["available"],
        v["did"],
        reserved(context_entry, v),
    )


def parse_scalable_context_entry(data: bytes, offset: int = 0) -> ScalableContextEntry:
    """Decode 32 bytes of scalable mode. Raises CodecError if there are fewer."""
    v = scalable_context_entry.unpack(data, offset)
    return ScalableContextEntry(
        (v["q0"], v["q1"], v["q2"], v["q3"]),
        bool(v["present"]),
        bool(v["fault_disable"]),
        bool(v["device_tlb"]),
        bool(v["pasid_enable"]),
        bool(v["page_request"]),
        1 << v["directory_size"] + 7,
        address(v["pasid_directory"], 12),
        v["rid_pasid"],
        bool(v["rid_privileged"]),
        reserved(scalable_context_entry, v),
    )


def parse_pasid_directory_entry(data: bytes, offset: int = 0) -> int:
    """The address of the PASID table, 0 if not present. Raises CodecError below 8 bytes."""
    v = pasid_directory_entry.unpack(data, offset)
    return address(v["pasid_table"], 12) if v["present"] else 0


def parse_pasid_entry(data: bytes, offset: int = 0) -> PasidEntry:
    """Decode 64 bytes. Raises CodecError if there are fewer."""
    v = pasid_entry.unpack(data, offset)
    odd = reserved(pasid_entry, v)
    return PasidEntry(
        tuple(v[f"w{i}"] for i in range(8)),
        bool(v["present"]),
        bool(v["fault_disable"]),
        v["address_width"],
        v["pgtt"],
        address(v["second_stage"], 12),
        bool(v["second_stage_dirty"]),
        v["did"],
        bool(v["page_walk_snoop"]),
        bool(v["page_snoop"]),
        bool(v["supervisor"]),
        v["first_stage_mode"],
        address(v["first_stage"], 12),
        bool(v["write_protect"]),
        {k: n for k, n in odd.items() if k not in _FEATURE_WORDS},
    )
