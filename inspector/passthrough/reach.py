"""How far a device's DMA reaches: its domain's mappings, and whose memory they lead to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from abi.device_table import TableRoot
from abi.errors import UsageError
from inspector import passthrough
from inspector.device_tables.smmuv3 import Stream
from inspector.device_tables.vtd import Attachment
from inspector.findings import Finding, exit_status
from inspector.memory.base import U64Array
from inspector.passthrough.domains import DomainTables

if TYPE_CHECKING:
    from inspector.image import Image
    from inspector.pagetable import Walk

#: Pieces of memory files that one chunk of ranges may be cut into.
_MAX_PIECES = 1 << 22


class MemoryFiles:
    """Where the folios of every memory file lie, to find the owners of ranges."""

    def __init__(self, image: Image) -> None:
        """Index all memory files of an image."""
        self.paths: list[str] = []
        starts: list[U64Array] = []
        sizes: list[U64Array] = []
        owners: list[npt.NDArray[np.int64]] = []
        for path, file in image.folio_files():
            used = file.used
            starts.append(file.addresses[used])
            sizes.append(file.sizes[used])
            owners.append(np.full(int(used.sum()), len(self.paths)))
            self.paths.append(path)
        empty = np.empty(0, np.uint64)
        start = np.concatenate(starts) if starts else empty
        end = start + np.concatenate(sizes) if starts else empty
        owner = np.concatenate(owners) if owners else np.empty(0, np.int64)
        order = np.argsort(start, kind="stable")
        start, end, owner = start[order], end[order], owner[order]
        if len(start):
            fresh = np.r_[True, (start[1:] != end[:-1]) | (owner[1:] != owner[:-1])]
            first = np.flatnonzero(fresh)
            last = np.r_[first[1:] - 1, len(start) - 1]
            start, end, owner = start[first], end[last], owner[first]
        self._start, self._end, self._owner = start, end, owner

    def share(self, pa: U64Array, size: U64Array) -> npt.NDArray[np.int64]:
        """Bytes of each memory file that ranges of physical memory cover."""
        total = np.zeros(len(self.paths), np.int64)
        if not len(self._start) or not len(pa):
            return total
        stop = pa + size
        first = np.searchsorted(self._end, pa, "right")
        count = np.maximum(np.searchsorted(self._start, stop, "left") - first, 0)
        at = 0
        ends = np.cumsum(count)
        while at < len(pa):
            # As many ranges as make a bounded number of pieces.
            done = int(ends[at - 1]) if at else 0
            upto = max(int(np.searchsorted(ends, done + _MAX_PIECES, "right")), at + 1)
            rows = np.repeat(np.arange(at, upto), count[at:upto])
            piece = np.arange(len(rows)) - (ends[rows] - count[rows] - done) + first[rows]
            low = np.maximum(self._start[piece], pa[rows])
            high = np.minimum(self._end[piece], stop[rows])
            np.add.at(total, self._owner[piece], (high - low).astype(np.int64))
            at = upto
        return total


@dataclass(slots=True)
class Reach:
    """What a page table maps: counts, bytes, and bytes by memory file (path -> bytes).

    ``elsewhere`` is memory of no preserved file; ``anomalies`` what the walk found wrong,
    the first of it in words; ``status`` the exit status that all of it makes.
    """

    root: TableRoot
    ranges: int = 0
    mapped: int = 0
    tables: int = 0
    complete: bool = True
    memory_files: dict[str, int] = field(default_factory=dict)
    elsewhere: int = 0
    anomalies: list[str] = field(default_factory=list)
    status: int = 0


def reach(tables: DomainTables, root: TableRoot, files: MemoryFiles) -> Reach:
    """Walk a page table and sum up where it leads."""
    try:
        return reach_of(tables.walk(root), root, files)
    except UsageError as error:
        return Reach(root, complete=False, anomalies=[str(error)], status=4)


def reach_of(walk: Walk, root: TableRoot, files: MemoryFiles) -> Reach:
    """Make a pass of a walk and sum up where it leads. Raises UsageError like the walk."""
    found = Reach(root)
    shares = np.zeros(len(files.paths), np.int64)
    for chunk in walk.ranges():
        shares += files.share(chunk.pa, chunk.size)
    stats = walk.stats
    found.ranges, found.mapped, found.complete = stats.ranges, stats.mapped, stats.complete
    found.tables = sum(stats.tables.values())
    found.memory_files = {p: int(n) for p, n in zip(files.paths, shares, strict=True) if n}
    found.elsewhere = found.mapped - int(shares.sum())
    found.anomalies = [f"{f.message} [{f.code}]" for f in walk.findings.items[:8]]
    found.status = exit_status(walk.findings.items, complete=stats.complete)
    return found


@dataclass(frozen=True, slots=True)
class DeviceReach:
    """One line of the answer to "which device can DMA where".

    ``disagreements`` are those of tables and objects; ``status`` is the exit status that they
    and the page table make.
    """

    picture: passthrough.DevicePicture
    hardware: Attachment | Stream | None
    reach: Reach | None
    disagreements: tuple[str, ...]
    status: int = 0


def devices(image: Image) -> list[DeviceReach]:
    """Every device that any layer names, with what its DMA reaches."""
    from inspector.device_tables.cross import cross_check

    files, tables = MemoryFiles(image), DomainTables(image)
    wrong: dict[str, list[Finding]] = {}
    for finding in cross_check(image).items:
        wrong.setdefault(finding.path, []).append(finding)
    known: dict[int, Reach] = {}
    walked: dict[TableRoot, Reach] = {}  # domains may have one table
    out = []
    for picture in passthrough.devices(image):
        found = None
        if picture.device is not None and picture.unit is not None:
            found = tables.hardware.of(picture.device, picture.unit)
        domain = picture.domain
        if domain is not None and domain.address not in known:
            root = tables.root(domain)
            if root not in walked:
                walked[root] = reach(tables, root, files)
            known[domain.address] = walked[root]
        reached = known[domain.address] if domain is not None else None
        own = wrong.get(picture.device.path, []) if picture.device is not None else []
        out.append(
            DeviceReach(
                picture,
                found,
                reached,
                tuple(f"{finding.message} [{finding.code}]" for finding in own),
                exit_status(own) | (reached.status if reached is not None else 0),
            )
        )
    return out
