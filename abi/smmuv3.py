"""Arm SMMUv3 tables: stream table, stream table entries, context descriptors.

``STRTAB_BASE`` and ``STRTAB_BASE_CFG`` say where the stream table is and whether it is
linear or has two levels. An entry (STE) of 64 bytes per stream points to a stage-2 table,
to context descriptors (CD), or to both; a CD points to a stage-1 table.

Source: Arm System Memory Management Unit architecture version 3; what Linux writes of it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from abi.device_table import ARM_GRANULES, TableRoot, address, reserved, word
from abi.schema import Struct

STE_SIZE = 64
CD_SIZE = 64
#: Split of a two-level stream table as Linux sets it up.
LINUX_SPLIT = 8
#: Descriptors of a leaf table of a two-level context descriptor table.
CDS_PER_LEAF = 1024
#: Output address bits of the PS and IPS fields.
OUTPUT_BITS = {0: 32, 1: 36, 2: 40, 3: 42, 4: 44, 5: 48, 6: 52}

strtab_base = Struct("STRTAB_BASE", word("value", table=(51, 6), read_allocate=62))
strtab_base_cfg = Struct(
    "STRTAB_BASE_CFG", word("value", log2size=(5, 0), split=(10, 6), fmt=(17, 16))
)
l1_stream_descriptor = Struct("l1_std", word("value", span=(4, 0), l2_table=(51, 6)))

stream_table_entry = Struct(
    "ste",
    word("w0", valid=0, config=(3, 1), s1fmt=(5, 4), s1_context=(51, 6), s1cdmax=(63, 59)),
    word(
        "w1",
        s1dss=(1, 0),
        s1cir=(3, 2),
        s1cor=(5, 4),
        s1csh=(7, 6),
        mev=19,
        s2fwb=25,
        s1stalld=27,
        eats=(29, 28),
        strw=(31, 30),
        shcfg=(45, 44),
    ),
    word(
        "w2",
        s2vmid=(15, 0),
        s2t0sz=(37, 32),
        s2sl0=(39, 38),
        s2ir0=(41, 40),
        s2or0=(43, 42),
        s2sh0=(45, 44),
        s2tg=(47, 46),
        s2ps=(50, 48),
        s2aa64=51,
        s2endi=52,
        s2ptw=54,
        s2s=57,
        s2r=58,
    ),
    word("w3", s2ttb=(51, 4)),
    word("w4"),
    word("w5"),
    word("w6"),
    word("w7"),
)

context_descriptor = Struct(
    "cd",
    word(
        "w0",
        t0sz=(5, 0),
        tg0=(7, 6),
        ir0=(9, 8),
        or0=(11, 10),
        sh0=(13, 12),
        epd0=14,
        endi=15,
        epd1=30,
        valid=31,
        ips=(34, 32),
        tbi0=38,
        aa64=41,
        hd=42,
        ha=43,
        s=44,
        r=45,
        a=46,
        aset=47,
        asid=(63, 48),
    ),
    word("w1", haft=3, ttb0=(51, 4)),
    word("w2", w2_unused=(63, 0)),
    word("w3", mair=(63, 0)),
    word("w4", w4_unused=(63, 0)),
    word("w5", w5_unused=(63, 0)),
    word("w6", w6_unused=(63, 0)),
    word("w7", w7_unused=(63, 0)),
)

cd_l1_descriptor = Struct("cd_l1_desc", word("value", valid=0, l2_table=(51, 12)))


class StreamTableFormat(enum.IntEnum):
    """FMT of STRTAB_BASE_CFG."""

    LINEAR = 0
    TWO_LEVEL = 1


class SteConfig(enum.IntEnum):
    """Config of a stream table entry. Values 1 to 3 are reserved."""

    ABORT = 0
    BYPASS = 4
    STAGE_1 = 5
    STAGE_2 = 6
    NESTED = 7


class S1Format(enum.IntEnum):
    """S1Fmt: the shape of the context descriptor table."""

    LINEAR = 0
    TWO_LEVEL_4K = 1
    TWO_LEVEL_64K = 2


@dataclass(frozen=True, slots=True)
class StreamTable:
    """Geometry of a stream table; ``base`` is 0 where only the configuration is known.

    A table has 2^``log2size`` streams; level-1 descriptors cover 2^``split`` each.
    """

    base: int
    log2size: int
    split: int
    format: int

    @property
    def two_level(self) -> bool:
        """Whether there is a level-1 table."""
        return self.format == StreamTableFormat.TWO_LEVEL

    @property
    def l1_entries(self) -> int:
        """Number of level-1 descriptors, or of entries of a linear table."""
        if not self.two_level:
            return 1 << self.log2size
        return 1 << max(self.log2size - self.split, 0)

    @property
    def size(self) -> int:
        """Bytes of the first table."""
        return self.l1_entries * (8 if self.two_level else STE_SIZE)

    def locate(self, sid: int) -> tuple[int, int]:
        """(level-1 index, index in the level-2 table) of a stream; (sid, 0) if linear."""
        return (sid >> self.split, sid & (1 << self.split) - 1) if self.two_level else (sid, 0)


@dataclass(frozen=True, slots=True)
class L1Descriptor:
    """A level-1 stream descriptor: ``entries`` is 0 if it is not valid."""

    raw: int
    span: int
    entries: int
    l2_table: int
    reserved: dict[str, int]


def _granule_name(tg: int) -> str:
    return {0x1000: "4k", 0x4000: "16k", 0x10000: "64k"}.get(ARM_GRANULES.get(tg, 0), "?")


def _granule_bits(tg: int) -> int:
    return ARM_GRANULES[tg].bit_length() - 1


@dataclass(frozen=True, slots=True)
class StreamTableEntry:
    """A stream table entry; pointers are addresses, ``s2vtcr`` the raw 19-bit field."""

    raw: tuple[int, ...]
    valid: bool
    config: int
    s1fmt: int
    s1_context: int
    s1cdmax: int
    s2vmid: int
    s2vtcr: int
    s2t0sz: int
    s2sl0: int
    s2tg: int
    s2ps: int
    s2aa64: bool
    s2ptw: bool
    s2s: bool
    s2r: bool
    s2ttb: int
    fields: dict[str, int]
    reserved: dict[str, int]

    @property
    def stage_1(self) -> bool:
        """Whether a context descriptor is in effect."""
        return self.valid and self.config in (SteConfig.STAGE_1, SteConfig.NESTED)

    @property
    def stage_2(self) -> bool:
        """Whether a stage-2 table is in effect."""
        return self.valid and self.config in (SteConfig.STAGE_2, SteConfig.NESTED)

    @property
    def granule(self) -> int:
        """Stage-2 granule in bytes, 0 if the field is reserved."""
        return ARM_GRANULES.get(self.s2tg, 0)

    @property
    def start_level(self) -> int:
        """Level (0 to 3, the architecture's count) of the stage-2 start table."""
        return (2 if self.s2tg == 0 else 3) - self.s2sl0

    @property
    def root(self) -> TableRoot | None:
        """The stage-2 table in effect."""
        if not self.stage_2 or self.s2tg not in ARM_GRANULES:
            return None
        return TableRoot(
            f"lpae-s2-{_granule_name(self.s2tg)}",
            self.s2ttb,
            4 - self.start_level,
            64 - self.s2t0sz,
        )


@dataclass(frozen=True, slots=True)
class ContextDescriptor:
    """A context descriptor; ``ttb0`` is an address."""

    raw: tuple[int, ...]
    valid: bool
    asid: int
    t0sz: int
    tg0: int
    ips: int
    ttb0: int
    mair: int
    fields: dict[str, int]
    reserved: dict[str, int]

    @property
    def granule(self) -> int:
        """Stage-1 granule in bytes, 0 if the field is reserved."""
        return ARM_GRANULES.get(self.tg0, 0)

    @property
    def start_level(self) -> int:
        """Level (0 to 3) of the start table, as the input size implies it."""
        bits = _granule_bits(self.tg0)
        return 4 - max(1, -(-(64 - self.t0sz - bits) // (bits - 3)))

    @property
    def root(self) -> TableRoot | None:
        """The stage-1 table in effect."""
        if not self.valid or self.fields["epd0"] or self.tg0 not in ARM_GRANULES:
            return None
        return TableRoot(
            f"lpae-s1-{_granule_name(self.tg0)}", self.ttb0, 4 - self.start_level, 64 - self.t0sz
        )


def parse_strtab(base: int, cfg: int) -> StreamTable:
    """The geometry that STRTAB_BASE and STRTAB_BASE_CFG describe."""
    v = strtab_base_cfg.unpack(cfg.to_bytes(8, "little"))
    return StreamTable(base & (1 << 52) - 64, v["log2size"], v["split"], v["fmt"])


def parse_l1_descriptor(data: bytes, offset: int = 0) -> L1Descriptor:
    """Decode 8 bytes. Raises CodecError if there are fewer."""
    v = l1_stream_descriptor.unpack(data, offset)
    entries = 1 << v["span"] - 1 if v["span"] else 0
    odd = reserved(l1_stream_descriptor, v)
    return L1Descriptor(v["value"], v["span"], entries, address(v["l2_table"], 6), odd)


def parse_ste(data: bytes, offset: int = 0) -> StreamTableEntry:
    """Decode 64 bytes. Raises CodecError if there are fewer."""
    v = stream_table_entry.unpack(data, offset)
    return StreamTableEntry(
        raw=tuple(v[f"w{i}"] for i in range(8)),
        valid=bool(v["valid"]),
        config=v["config"],
        s1fmt=v["s1fmt"],
        s1_context=address(v["s1_context"], 6),
        s1cdmax=v["s1cdmax"],
        s2vmid=v["s2vmid"],
        s2vtcr=v["w2"] >> 32 & (1 << 19) - 1,
        s2t0sz=v["s2t0sz"],
        s2sl0=v["s2sl0"],
        s2tg=v["s2tg"],
        s2ps=v["s2ps"],
        s2aa64=bool(v["s2aa64"]),
        s2ptw=bool(v["s2ptw"]),
        s2s=bool(v["s2s"]),
        s2r=bool(v["s2r"]),
        s2ttb=address(v["s2ttb"], 4),
        fields=v,
        reserved=reserved(stream_table_entry, v),
    )


def parse_cd(data: bytes, offset: int = 0) -> ContextDescriptor:
    """Decode 64 bytes. Raises CodecError if there are fewer."""
    v = context_descriptor.unpack(data, offset)
    return ContextDescriptor(
        raw=tuple(v[f"w{i}"] for i in range(8)),
        valid=bool(v["valid"]),
        asid=v["asid"],
        t0sz=v["t0sz"],
        tg0=v["tg0"],
        ips=v["ips"],
        ttb0=address(v["ttb0"], 4),
        mair=v["mair"],
        fields=v,
        reserved=reserved(context_descriptor, v),
    )


def parse_cd_l1(data: bytes, offset: int = 0) -> int:
    """The address of a leaf table of descriptors, 0 if not valid."""
    v = cd_l1_descriptor.unpack(data, offset)
    return address(v["l2_table"], 12) if v["valid"] else 0
