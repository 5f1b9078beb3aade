"""The pages of a kdump: fetched by descriptor, decoded, cached, and checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeAlias

from abi.errors import KhoError, UnreadableError
from inspector.memory import compression, notes
from inspector.memory.base import MemoryFault, PageState, PhysicalMemory
from inspector.memory.kdump_part import DumpPart
from inspector.memory.segments import Kind, Segment

#: Offset in the file, stored size, flags.
Descriptor: TypeAlias = tuple[int, int, int]

_CACHE_BYTES = 16 << 20
_MAX_DAMAGED = 1 << 20


class KdumpPages:
    """Decodes pages of the parts of a dump.

    ``damaged`` holds the page frames that turned out to be undecodable, with the reason.
    """

    def __init__(self, parts: Sequence[DumpPart], page_shift: int) -> None:
        """Raises UnreadableError if no library can decode what the header announces."""
        self._parts = parts
        self._shift = page_shift
        self._size = 1 << page_shift
        self.damaged: dict[int, str] = {}
        # Decoded pages by place in the file (pages of zeros share one) and by frame.
        self._by_place: dict[tuple[int, int], bytes] = {}
        self.recent: dict[int, bytes] = {}
        self._limit = max(_CACHE_BYTES // self._size, 16)
        self._decoders: dict[int, compression.Decoder] = {}
        self._drgn: PhysicalMemory | None = None
        for flag in compression.NAMES:
            if parts[0].status & flag:
                self._decoder(flag)  # a missing library shows now, not in the middle

    def page(self, pfn: int, part: int, descriptor: Descriptor) -> bytes:
        """A decoded page. Raises MemoryFault if it is damaged."""
        place = part, descriptor[0]
        known = self._by_place.get(place)
        if known is None:
            try:
                known = self._decode(pfn, part, descriptor)
            except (compression.PageError, MemoryFault) as error:
                raise self._fault(pfn, error) from None
            if len(self._by_place) >= self._limit:
                del self._by_place[next(iter(self._by_place))]
            self._by_place[place] = known
        if len(self.recent) >= self._limit:
            del self.recent[next(iter(self.recent))]
        self.recent[pfn] = known
        return known

    def head(self, pfn: int, part: int, descriptor: Descriptor, size: int) -> bytes:
        """The first ``size`` bytes of a page at least, as cheaply as possible."""
        place, length, flags = descriptor
        known = self._by_place.get((part, place))
        if known is not None:
            return known
        if not flags & compression.ZLIB:
            return self.page(pfn, part, descriptor)
        try:
            data = compression.zlib_head(self._stored(part, place, length), size)
            if len(data) < size:
                raise compression.PageError("zlib data without an end")
        except compression.PageError as error:
            raise self._fault(pfn, error) from None
        return data

    def _fault(self, pfn: int, error: Exception) -> MemoryFault:
        if len(self.damaged) < _MAX_DAMAGED:
            self.damaged[pfn] = str(error)
        return MemoryFault(pfn << self._shift, PageState.EXCLUDED)

    def _stored(self, part: int, place: int, size: int) -> bytes:
        if size > 2 * self._size:
            raise compression.PageError(f"a page of {size} bytes")
        try:
            return bytes(self._parts[part].data.view(place, size, "a page"))
        except UnreadableError as error:
            raise compression.PageError(str(error)) from None

    def _decode(self, pfn: int, part: int, descriptor: Descriptor) -> bytes:
        place, size, flags = descriptor
        data = self._stored(part, place, size)
        flag = flags & compression.COMPRESSED
        if not flag:
            if size != self._size:
                raise compression.PageError(f"a plain page of {size} bytes")
            return data
        decode = self._decoder(flag & -flag)
        if decode is None:
            assert self._drgn is not None
            return self._drgn.read(pfn << self._shift, self._size)
        return decode(data, self._size)

    def _decoder(self, flag: int) -> compression.Decoder | None:
        """The decoder of one compression, or None if drgn has to do it."""
        known = self._decoders.get(flag)
        if known is None and self._drgn is None:
            try:
                known = self._decoders[flag] = compression.decoder(flag)
            except compression.MissingCodecError as missing:
                self._drgn = self._through_drgn(str(missing))
        return known

    def _through_drgn(self, codec: str) -> PhysicalMemory:
        """The same dump read by drgn, which brings all codecs."""
        first = self._parts[0]
        hint = (
            f"{first.name}: its pages are compressed with {codec}, for which no library "
            "is installed: pip install 'kho-inspector[kdump]', or [drgn]"
        )
        if len(self._parts) > 1:
            raise UnreadableError(hint)
        from inspector.memory.program import ProgramMemory, import_drgn

        try:
            drgn = import_drgn()
            # libkdumpfile wants to know this much of the kernel before it reads anything.
            info = first.notes | {"PAGESIZE": str(self._size)}
            info.setdefault("OSRELEASE", "unknown")
            info.setdefault("SYMBOL(swapper_pg_dir)", "ffffffff81000000")
            info.setdefault("NUMBER(pgtable_l5_enabled)", "0")
            info.setdefault("NUMBER(phys_base)", "0")
            program = drgn.Program(vmcoreinfo=notes.build_pairs(info))
            fd = first.data.file.duplicate()
            try:
                program.set_core_dump(fd)
            finally:
                os.close(fd)
            # What is present is known here; drgn is asked for nothing else.
            last = (first.frames << self._shift) - 1
            return ProgramMemory(program, regions=[Segment(0, last, Kind.ZERO)])
        except KhoError:
            raise UnreadableError(hint) from None
        except Exception as error:  # drgn has no common base of its errors
            reason = notes.printable(str(error).encode())
            raise UnreadableError(f"{hint} (drgn: {reason})") from None
