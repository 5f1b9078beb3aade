"""SMMUv3: stream tables and context descriptors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from abi import smmuv3
from abi.device_table import TableRoot
from abi.smmuv3 import ContextDescriptor, L1Descriptor, S1Format, StreamTableEntry
from inspector.survey import Survey

#: Streams of a table that are looked at: bits of the stream id.
_MAX_LOG2SIZE = 20


@dataclass(frozen=True, slots=True)
class Stream:
    """What the tables say of a stream: its entry, and the descriptor for substream 0."""

    sid: int
    address: int
    entry: StreamTableEntry
    descriptor: ContextDescriptor | None = None
    descriptor_address: int = 0

    @property
    def roots(self) -> tuple[TableRoot, ...]:
        """The page tables in effect, stage 2 first."""
        second = self.entry.root
        first = self.descriptor.root if self.descriptor is not None else None
        return tuple(r for r in (second, first) if r is not None)


class StreamTables:
    """A stream table out of the two registers that describe it."""

    def __init__(self, survey: Survey, base: int, cfg: int, *, path: str = "") -> None:
        """``base`` is STRTAB_BASE, or the address in it; ``cfg`` is STRTAB_BASE_CFG."""
        self.survey = survey
        self.path = path
        self.table = smmuv3.parse_strtab(base, cfg)

    @property
    def supported(self) -> bool:
        """Whether the configuration makes sense."""
        table = self.table
        return (
            table.format in (0, 1)
            and table.log2size <= 32
            and (not table.two_level or table.split in (6, 8, 10))
        )

    def l1_descriptors(self) -> dict[int, L1Descriptor]:
        """Valid level-1 descriptors by index; empty for a linear table."""
        table = self.table
        if not table.two_level or not self.supported or table.log2size > _MAX_LOG2SIZE + 8:
            return {}
        raw = self.survey.read(table.base, table.size, self.path)
        if raw is None:
            return {}
        self.survey.claim("device-table", self.path, table.base, table.size)
        words = np.frombuffer(raw, "<u8")
        used = np.flatnonzero(words & np.uint64(0x1F))
        return {int(i): smmuv3.parse_l1_descriptor(raw, int(i) * 8) for i in used}

    def address_of(self, sid: int) -> int | None:
        """Where the entry of a stream lies; None if the table has none."""
        table = self.table
        if not self.supported or not 0 <= sid < 1 << table.log2size:
            return None
        if not table.two_level:
            return table.base + sid * smmuv3.STE_SIZE
        index, within = table.locate(sid)
        raw = self.survey.read(table.base + 8 * index, 8, self.path)
        if raw is None:
            return None
        descriptor = smmuv3.parse_l1_descriptor(raw)
        if within >= descriptor.entries:
            return None
        return descriptor.l2_table + within * smmuv3.STE_SIZE

    def stream(self, sid: int) -> Stream | None:
        """What the tables say of a stream id; None if nothing."""
        address = self.address_of(sid)
        if address is None:
            return None
        raw = self.survey.read(address, smmuv3.STE_SIZE, self.path)
        return None if raw is None else self._stream(sid, address, raw)

    def _stream(self, sid: int, address: int, raw: bytes) -> Stream:
        entry = smmuv3.parse_ste(raw)
        if not entry.stage_1:
            return Stream(sid, address, entry)
        at = self._descriptor_address(entry, 0)
        data = self.survey.read(at, smmuv3.CD_SIZE, self.path) if at else None
        if data is None:
            return Stream(sid, address, entry)
        return Stream(sid, address, entry, smmuv3.parse_cd(data), at)

    def _descriptor_address(self, entry: StreamTableEntry, substream: int) -> int:
        if substream >> min(entry.s1cdmax, 20):
            return 0
        if entry.s1fmt == S1Format.LINEAR:
            return entry.s1_context + substream * smmuv3.CD_SIZE
        per_leaf = 64 if entry.s1fmt == S1Format.TWO_LEVEL_4K else smmuv3.CDS_PER_LEAF
        at = entry.s1_context + 8 * (substream // per_leaf)
        raw = self.survey.read(at, 8, self.path)
        leaf = smmuv3.parse_cd_l1(raw) if raw is not None else 0
        return leaf + substream % per_leaf * smmuv3.CD_SIZE if leaf else 0

    def streams(self) -> Iterator[Stream]:
        """Every valid entry, by stream id."""
        table = self.table
        if not self.supported:
            return
        runs = (
            {0: (table.base, 1 << min(table.log2size, _MAX_LOG2SIZE))}
            if not table.two_level
            else {
                i << table.split: (d.l2_table, min(d.entries, 1 << table.split))
                for i, d in self.l1_descriptors().items()
            }
        )
        for first, (address, count) in runs.items():
            raw = self.survey.read(address, count * smmuv3.STE_SIZE, self.path)
            if raw is None:
                continue
            self.survey.claim("device-table", self.path, address, len(raw))
            words = np.frombuffer(raw, "<u8").reshape(count, 8)
            for i in np.flatnonzero(words[:, 0] & np.uint64(1)).tolist():
                at = address + i * smmuv3.STE_SIZE
                yield self._stream(first + i, at, raw[i * 64 : i * 64 + 64])
