"""VT-d: root, context and PASID tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from abi import vtd
from abi.device_table import TableRoot
from abi.vtd import ContextEntry, PasidEntry, ScalableContextEntry
from inspector.memory.base import PageState, U64Array
from inspector.survey import Survey

_PAGE = vtd.TABLE_SIZE
#: PASID directories have at most 2^14 entries of 8 bytes.
_MAX_DIRECTORY = 1 << 14


@dataclass(frozen=True, slots=True)
class Attachment:
    """What the tables say of one device.

    ``entry`` is its context entry at ``address``; in scalable mode ``pasid`` is the PASID
    entry for requests without a PASID, at ``pasid_address``.
    """

    devid: int
    address: int
    entry: ContextEntry | ScalableContextEntry
    pasid: PasidEntry | None = None
    pasid_address: int = 0

    @property
    def present(self) -> bool:
        """Whether the context entry is."""
        return self.entry.present

    @property
    def did(self) -> int | None:
        """The domain id in effect."""
        if isinstance(self.entry, ContextEntry):
            return self.entry.did
        return self.pasid.did if self.pasid is not None else None

    @property
    def roots(self) -> tuple[TableRoot, ...]:
        """The page tables in effect, the second stage first."""
        if isinstance(self.entry, ContextEntry):
            return (self.entry.root,) if self.entry.root else ()
        return self.pasid.roots if self.pasid is not None else ()

    @property
    def second_stage(self) -> TableRoot | None:
        """The second-stage table in effect."""
        return next((r for r in self.roots if r.format == "vtdss"), None)


class RootTable:
    """A unit's root table and what hangs on it.

    ``scalable`` is the mode, given or deduced; ``mode_certain`` tells whether the tables
    leave no doubt. ``present`` are the halves that have a context table: bus * 2 + half.
    """

    def __init__(
        self, survey: Survey, address: int, *, path: str = "", scalable: bool | None = None
    ) -> None:
        """Read the root table at ``address``. Missing pages become holes of ``survey``."""
        self.survey = survey
        self.address = address
        self.path = path
        self.readable = False
        words = np.zeros((vtd.BUSES, 2), np.uint64)
        raw = (
            survey.read(address, _PAGE, path)
            if survey.pointer(address, path, "root table", _PAGE)
            else None
        )
        if raw is not None:
            self.readable = True
            words = np.frombuffer(raw, "<u8").reshape(vtd.BUSES, 2)
            survey.claim("device-table", path, address, _PAGE)
        self._words = words
        self.mode_certain = scalable is not None
        self.scalable = self._guess() if scalable is None else scalable

    @cached_property
    def present(self) -> frozenset[int]:
        """Halves of root entries that are present: bus * 2 + half."""
        halves = np.flatnonzero(self._words.reshape(-1) & np.uint64(1))
        return frozenset(halves.tolist())

    @cached_property
    def tables(self) -> dict[int, int]:
        """Context table addresses by half: bus * 2 + half."""
        flat = self._words.reshape(-1)
        return {h: int(flat[h]) & ~0xFFF for h in sorted(self.present)}

    @property
    def reserved(self) -> dict[int, int]:
        """Root entry halves (bus * 2 + half) with reserved bits 11:1 set, and those bits."""
        flat = self._words.reshape(-1) & np.uint64(0xFFE)
        return {int(h): int(flat[h]) for h in np.flatnonzero(flat)}

    def _guess(self) -> bool:
        """The mode as the tables tell: legacy entries carry an address width, scalable do not."""
        if any(half & 1 for half in self.present):
            self.mode_certain = True
            return True
        for address in list(self.tables.values())[:64]:
            words = self._table(address)
            if words is None:
                continue
            used = words[:, 0] & np.uint64(1) != 0
            if not used.any():
                continue
            self.mode_certain = True
            # A scalable entry is two rows long, and its second row is reserved.
            legacy = used[1::2].any() or (words[used, 1] & np.uint64(7) != 0).any()
            return not legacy
        return False

    def _table(self, address: int) -> npt.NDArray[np.uint64] | None:
        if self.survey.memory.state(address, _PAGE) is not PageState.PRESENT:
            return None
        return np.frombuffer(self.survey.memory.read(address, _PAGE), "<u8").reshape(-1, 2)

    def attachment(self, devid: int) -> Attachment | None:
        """What the tables say of a device (bus << 8 | devfn); None if nothing."""
        half, index = vtd.context_index(devid & 0xFF, self.scalable)
        table = self.tables.get((devid >> 8) * 2 + half)
        if table is None:
            return None
        size = 32 if self.scalable else 16
        address = table + index * size
        raw = self.survey.read(address, size, self.path)
        return None if raw is None else self._attachment(devid, address, raw)

    def _attachment(self, devid: int, address: int, raw: bytes) -> Attachment:
        if not self.scalable:
            return Attachment(devid, address, vtd.parse_context_entry(raw))
        entry = vtd.parse_scalable_context_entry(raw)
        if not entry.present:
            return Attachment(devid, address, entry)
        found = self.pasid_entry(entry, entry.rid_pasid)
        pasid, at = found if found is not None else (None, 0)
        return Attachment(devid, address, entry, pasid, at)

    def sound(
        self, devids: U64Array, dids: U64Array, tables: U64Array, levels: U64Array
    ) -> npt.NDArray[np.bool_]:
        """Which devices the hardware surely translates with these DIDs, tables and levels.

        For whom there is more to say, if only that a reserved bit is set, the answer is no;
        in scalable mode it always is.
        """
        good = np.zeros(len(devids), np.bool_)
        if self.scalable or not len(devids):
            return good
        bases = np.zeros(vtd.BUSES, np.uint64)
        for half, table in self.tables.items():
            if half & 1 == 0 and self._table(table) is not None:
                bases[half >> 1] = table
        rows = np.flatnonzero(devids < 1 << 16)
        base = bases[(devids[rows] >> np.uint64(8)).astype(np.intp)]
        rows, base = rows[base != 0], base[base != 0]
        raw = self.survey.memory.gather(
            base + (devids[rows] & np.uint64(0xFF)) * np.uint64(vtd.context_entry.size),
            vtd.context_entry.size,
        )
        found = vtd.context_entry.columns(raw.reshape(-1).view(vtd.context_entry.dtype))
        fine = (found["present"] == 1) & (found["translation_type"] <= 1)
        for name, column in found.items():
            if "_rsvd" in name:
                fine &= column == 0
        fine &= found["did"] == dids[rows]
        fine &= (found["second_stage"] << np.uint64(12)) == tables[rows]
        fine &= found["address_width"] + np.uint64(2) == levels[rows]
        good[rows] = fine
        return good

    def attachments(self) -> Iterator[Attachment]:
        """Every present context entry, by device."""
        for devid in self.present_devices():
            found = self.attachment(devid)
            if found is not None:
                yield found

    def present_devices(self) -> list[int]:
        """The devices that have a present context entry, ascending."""
        size = 32 if self.scalable else 16
        found: list[int] = []
        for half, table in self.tables.items():
            raw = self.survey.read(table, _PAGE, self.path)
            if raw is None or (not self.scalable and half & 1):
                continue
            first = (half >> 1) * 256 + (half & 1) * 128
            words = np.frombuffer(raw, "<u8").reshape(-1, size // 8)
            found += (np.flatnonzero(words[:, 0] & np.uint64(1)) + first).tolist()
        return found

    def pasid_entry(self, entry: ScalableContextEntry, pasid: int) -> tuple[PasidEntry, int] | None:
        """The entry for a PASID and its address; None if there is none."""
        index = pasid >> 6
        if index >= entry.directory_entries:
            return None
        raw = self.survey.read(entry.pasid_directory + 8 * index, 8, self.path)
        table = vtd.parse_pasid_directory_entry(raw) if raw is not None else 0
        if not table:
            return None
        address = table + (pasid & 63) * 64
        raw = self.survey.read(address, 64, self.path)
        return None if raw is None else (vtd.parse_pasid_entry(raw), address)

    def pasids(self, entry: ScalableContextEntry) -> Iterator[tuple[int, PasidEntry]]:
        """Every present PASID of a device."""
        tables = self.pasid_tables(entry)
        for index, table in tables.items():
            raw = self.survey.read(table, _PAGE, self.path)
            if raw is None:
                continue
            words = np.frombuffer(raw, "<u8").reshape(vtd.PASIDS_PER_TABLE, 8)
            for i in np.flatnonzero(words[:, 0] & np.uint64(1)).tolist():
                yield index * 64 + i, vtd.parse_pasid_entry(raw, i * 64)

    def pasid_tables(self, entry: ScalableContextEntry) -> dict[int, int]:
        """PASID table addresses by directory index."""
        count = min(entry.directory_entries, _MAX_DIRECTORY)
        found: dict[int, int] = {}
        for at in range(0, count * 8, _PAGE):
            raw = self.survey.read(
                entry.pasid_directory + at, min(_PAGE, count * 8 - at), self.path
            )
            if raw is None:
                continue
            words: U64Array = np.frombuffer(raw, "<u8")
            for i in np.flatnonzero(words & np.uint64(1)).tolist():
                found[at // 8 + i] = int(words[i]) & ~0xFFF
        return found
