"""One file of a kdump: headers, bitmaps and page descriptors.

Layout, in blocks of ``block_size`` bytes: main header, sub header, bitmap of RAM, bitmap
of dumped pages, one descriptor for each dumped page, pages. Header versions 1 to 6 add
fields to the sub header (makedumpfile's IMPLEMENTATION and diskdump_mod.h).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from abi.errors import UnreadableError
from inspector.memory import notes
from inspector.memory.base import U64Array
from inspector.memory.bitmap import PageBitmap
from inspector.memory.flattened import PlainFile, truncated
from inspector.memory.segments import I64Array

MAGICS = (b"KDUMP   ", b"DISKDUMP")
INCOMPLETE = 0x8  # header status: the dump ran out of space

#: Main header from ``timestamp`` on, at 408 (behind signature, version and utsname).
_HEADER = struct.Struct("<qqIiiIIIIIIi")
_HEADER_AT = 408
_UTSNAME_AT, _UTSNAME = 12, ("sysname", "nodename", "release", "version", "machine", "domainname")
#: Sub header: phys_base, dump_level, split, start_pfn, end_pfn, vmcoreinfo, note, eraseinfo,
#: start_pfn_64, end_pfn_64, max_mapnr_64.
_SUB_HEADER = struct.Struct("<QiiQQQQQQQQQQQ")
DESCRIPTOR = np.dtype([("offset", "<u8"), ("size", "<u4"), ("flags", "<u4"), ("page_flags", "<u8")])

_MAX_ADDRESS = 1 << 52
_MAX_NOTES = 16 << 20


class DumpPart:
    """One file of a dump: its headers, bitmaps and descriptors."""

    def __init__(self, data: PlainFile) -> None:
        """Read and check the headers. Raises UnreadableError."""
        self.name = data.name
        self.data = data
        header = bytes(self.data.view(0, 464, "the header"))
        if header[:8] not in MAGICS:
            raise UnreadableError(f"{self.name}: a flattened file, but not of a kdump")
        self.version = struct.unpack_from("<i", header, 8)[0]
        self.identity = header[:_HEADER_AT]
        (_, _, self.status, self.block, sub_blocks, bitmap_blocks, max_mapnr, *_) = (
            _HEADER.unpack_from(header, _HEADER_AT)
        )
        if not _plausible(self.block):
            if _plausible(struct.unpack_from("<i", header, 416)[0]):
                raise UnreadableError(f"{self.name}: a kdump of a 32-bit machine")
            if _plausible(struct.unpack_from(">i", header, 428)[0]):
                raise UnreadableError(f"{self.name}: a kdump of a big-endian machine")
            raise UnreadableError(f"{self.name}: damaged kdump header: block size {self.block}")
        if self.version < 0 or sub_blocks < 0:
            raise UnreadableError(f"{self.name}: damaged kdump header")
        self.notes = {
            key: notes.printable(header[at : at + 65])
            for key, at in zip(_UTSNAME, range(_UTSNAME_AT, 402, 65), strict=True)
        }
        self.start, self.end = 0, 1 << 63
        if self.version >= 1:
            max_mapnr = self._sub_header(max_mapnr)
        if max_mapnr * self.block > _MAX_ADDRESS:
            raise UnreadableError(f"{self.name}: damaged kdump header: {max_mapnr:#x} page frames")
        at = (1 + sub_blocks) * self.block
        size = bitmap_blocks * self.block
        if max_mapnr > size * 8:
            raise UnreadableError(
                f"{self.name}: damaged kdump header: bitmaps of {size} bytes "
                f"for {max_mapnr} page frames"
            )
        # Dumps without a bitmap of RAM have one bitmap of all the blocks.
        half = bitmap_blocks // 2 * self.block if max_mapnr <= size * 4 else 0
        self.frames = max_mapnr
        self.dumped = self._bitmap(at + half, max_mapnr)
        self.ram = self._bitmap(at, max_mapnr) if half else self.dumped
        self.end = max(min(self.end, max_mapnr), self.start)
        edges = self.dumped.rank(np.array([self.start, self.end], np.uint64))
        self.skipped, self.count = int(edges[0]), int(edges[1] - edges[0])
        self.descriptors_at = at + size
        self._check_descriptors()

    def _sub_header(self, max_mapnr: int) -> int:
        sub = self.data.view(self.block, _SUB_HEADER.size, "the sub header")
        (
            _, level, split, start, end, info_at, info_size, note_at, note_size, _, _,
            start_64, end_64, max_mapnr_64,
        ) = _SUB_HEADER.unpack(sub)  # fmt: skip
        self.notes["dump_level"] = str(level)
        if self.version >= 6:
            start, end, max_mapnr = start_64, end_64, max_mapnr_64
        if self.version >= 2 and split:
            if not start <= end < 1 << 63:
                raise UnreadableError(f"{self.name}: damaged kdump header: split {start}-{end}")
            self.start, self.end = start, end
        if self.version >= 3 and info_size:
            size = min(info_size, _MAX_NOTES)
            self.notes |= notes.parse_pairs(self.data.view(info_at, size, "VMCOREINFO"))
        if self.version >= 4 and note_size:
            size = min(note_size, _MAX_NOTES)
            self.notes |= notes.collect(self.data.view(note_at, size, "the notes"))[0]
        return max_mapnr

    def _bitmap(self, offset: int, bits: int) -> PageBitmap:
        size = (bits + 63) // 64 * 8
        view = self.data.padded(offset, size, "a page bitmap")
        words: U64Array = np.frombuffer(view, "<u8")

        def ranges(first: int, end: int) -> Iterator[tuple[int, int]]:
            for start, stop in self.data.data_ranges(offset + first, offset + end):
                yield start - offset, stop - offset

        return PageBitmap(words, bits, ranges)

    def _check_descriptors(self) -> None:
        """Find the descriptors, and see that the last pages are there."""
        size = self.count * DESCRIPTOR.itemsize
        end = self.descriptors_at + size
        if end > self.data.size or not self.data.covers(self.descriptors_at, end):
            raise truncated(self.name, "the page descriptors", end, self.data.size)
        self.valid = self.count
        if self.status & INCOMPLETE:
            for at in range(0, self.count, 4096):
                found = self.descriptors(at, min(at + 4096, self.count))
                if not found["offset"].all():
                    self.valid = at + int(np.argmin(found["offset"] != 0))
                    break
        # The last pages should be there. One descriptor that points far away is damage, not
        # the sign of a file that was cut off.
        last = self.descriptors(max(self.valid - 256, 0), self.valid)
        sane = (last["size"] <= 2 * self.block) & (
            last["offset"] < self.descriptors_at + size + self.count * 2 * self.block
        )
        end = int((last["offset"] + last["size"])[sane].max(initial=0))
        if end > self.data.size and not self.status & INCOMPLETE:
            raise truncated(self.name, "the page data", end, self.data.size)

    def descriptors(self, first: int, end: int) -> npt.NDArray[Any]:
        """Descriptors by rank, as a structured array."""
        at = self.descriptors_at + first * DESCRIPTOR.itemsize
        size = (end - first) * DESCRIPTOR.itemsize
        return np.frombuffer(self.data.view(at, size, "the page descriptors"), DESCRIPTOR)

    def pick(self, ranks: I64Array) -> list[tuple[int, int, int]]:
        """Descriptors (offset, stored size, flags) of ascending ranks, each valid."""
        if not len(ranks):
            return []
        first, end = int(ranks[0]), int(ranks[-1]) + 1
        if type(self.data) is PlainFile or end - first <= 16 * len(ranks):
            found = self.descriptors(first, end)[ranks - first]
        else:  # what lies between would have to be copied out of the records
            found = np.concatenate([self.descriptors(r, r + 1) for r in ranks.tolist()])
        columns = (found[name].tolist() for name in ("offset", "size", "flags"))
        return list(zip(*columns, strict=True))

    def ranks(self, pfns: U64Array) -> I64Array:
        """Index of the descriptor of each page frame, -1 where it has none here."""
        mine = (pfns >= np.uint64(self.start)) & (pfns < np.uint64(self.end))
        mine &= self.dumped.test(pfns)
        ranks = np.full(len(pfns), -1, np.int64)
        if mine.any():
            found = self.dumped.rank(pfns[mine]) - self.skipped
            ranks[mine] = np.where(found < self.valid, found, -1)
        return ranks


def _plausible(block: int) -> bool:
    return 4096 <= block <= 1 << 18 and block & (block - 1) == 0
