"""Files whose content is a list of folios: memory files, huge or not, and guest_memfd.

They have in common a size, a vmalloc area of 16-byte entries {pfn:52, flags:12, u64 index},
and the preserved map that knows how large each folio is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from abi.registry import Generation
from inspector.memory.base import PageState, PhysicalMemory, Region, U8Array, U64Array
from inspector.survey import Survey
from inspector.walk.preserved import PreservedMap
from inspector.walk.vmalloc import FolioColumns, Vmalloc

_LAST = np.uint64((1 << 64) - 1)


@dataclass(slots=True, kw_only=True)
class FolioFile:
    """A file of folios.

    ``size`` is bytes; ``folios`` the columns of its folio entries, whose index counts units of
    ``2 ** unit`` base pages; ``orders`` the order of each folio, from the preserved map if it
    could be read, else as far as the gaps between indices tell. ``sized`` is False where they
    do not tell: a folio may then be larger than ``orders`` says.
    """

    path: str
    generation: Generation
    address: int
    size: int
    nr_folios: int
    vmalloc: Vmalloc
    folios: FolioColumns
    page_size: int
    orders: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    unit: int = 0
    sized: bool = True

    @property
    def addresses(self) -> U64Array:
        """Physical address of each folio."""
        return self.folios.pfn * np.uint64(self.page_size)

    @property
    def sizes(self) -> U64Array:
        """Bytes of each folio."""
        return np.uint64(self.page_size) << self.orders.astype(np.uint64)

    @property
    def used(self) -> npt.NDArray[np.bool_]:
        """Which entries have a folio; the others are holes."""
        used: npt.NDArray[np.bool_] = self.folios.pfn != 0
        return used

    @property
    def index(self) -> U64Array:
        """Where each folio begins in the file, in base pages; 2^64 - 1 if beyond any file."""
        if not self.unit:
            return self.folios.index
        far = self.folios.index >> np.uint64(64 - self.unit) != 0
        return np.where(far, _LAST, self.folios.index << np.uint64(self.unit))

    @property
    def offsets(self) -> U64Array:
        """Where each folio begins in the file, in bytes; 2^64 - 1 if beyond any file."""
        index, shift = self.index, self.page_size.bit_length() - 1
        far = index >> np.uint64(64 - shift) != 0
        return np.where(far, _LAST, index << np.uint64(shift))

    @property
    def pages(self) -> int:
        """Size in base pages, rounded up."""
        return -(-self.size // self.page_size)


def claim_folios(survey: Survey, file: FolioFile) -> None:
    """Record the folios as the file's."""
    used = file.used
    survey.claim("folio", file.path, file.addresses[used], file.sizes[used])


def sparse_orders(file: FolioFile, preserved: PreservedMap | None) -> npt.NDArray[np.uint8]:
    """The order of each folio of a file that may have holes.

    The map knows it. Without the map only a folio whose successor is one page on has a size
    that is sure; ``file.sized`` becomes False if there are others.
    """
    orders, found = np.zeros(len(file.folios.pfn), np.uint8), np.zeros(len(file.folios.pfn), bool)
    if preserved is not None:
        orders, found = preserved.orders_at(file.addresses)
    if not found.all():
        index = np.sort(file.index[file.used])
        end = np.uint64(min(file.pages, (1 << 64) - 1))
        following = np.append(index[1:], end)
        file.sized = bool((following - index == 1).all())
    return orders


def folio_orders(file: FolioFile, preserved: PreservedMap | None) -> npt.NDArray[np.uint8]:
    """The order of each folio.

    The map knows it. Without the map, the largest order that the gap to the next index
    and the alignment of frame and index allow: files are populated without gaps.
    """
    pfn, index = file.folios.pfn, file.index
    if len(pfn) == 0:
        return np.empty(0, np.uint8)
    if preserved is not None:
        known, found = preserved.orders_at(file.addresses)
        if found.all():
            return known
    else:
        known = found = None  # type: ignore[assignment]
    pages = max(file.pages, int(index[-1]) + 1)
    end = np.uint64(min(pages, (1 << 64) - 1))  # an index may be any number
    following = np.append(index[1:], end)
    gap = np.where(following > index, following - index, np.uint64(1))
    aligned = (pfn | index) & (~(pfn | index) + np.uint64(1))  # lowest set bit; 0 if none
    aligned = np.where(aligned == 0, np.uint64(1 << 51), aligned)
    # The last folio may reach beyond the end of the file: round its gap up.
    if len(gap):
        gap[-1] = 1 << min((int(gap[-1]) - 1).bit_length(), 63)
    limit = np.minimum(gap, aligned)
    guessed = np.minimum(np.log2(limit.astype(np.float64)).astype(np.uint8), 30)
    return guessed if found is None else np.where(found, known, guessed).astype(np.uint8)


def check_folios(survey: Survey, file: FolioFile) -> None:
    """What is wrong with folios whatever the kind of file.

    Findings ``KHO-MFD-*``: 001 folios out of order or overlapping, 002 folio beyond the
    end of the file, 005 fewer entries than counted, 006 holes (pfn 0).
    """
    findings, path, address = survey.findings, file.path, file.address
    folios = file.folios
    if folios.given_up:
        survey.cannot_tell("KHO-MFD-005", "not all entries are read")
    elif len(folios.pfn) < file.nr_folios and file.vmalloc.complete and folios.position is None:
        findings.error(
            "KHO-MFD-005",
            f"{file.nr_folios} folios counted, the array holds {len(folios.pfn)}",
            path=path,
            address=address,
        )
    used = file.used
    if not used.all():
        findings.info(
            "KHO-MFD-006",
            f"{int((~used).sum())} folio entries are holes (pfn 0)",
            path=path,
            address=address,
        )
    index = file.index[used]
    span = np.uint64(1) << file.orders[used].astype(np.uint64)
    if len(index) > 1:
        order = None
        if not (index[1:] > index[:-1]).all():
            order = np.argsort(index, kind="stable")
            index, span = index[order], span[order]
        overlap = (index[:-1] + span[:-1] > index[1:]).nonzero()[0]
        for i in overlap[:8]:
            findings.error(
                "KHO-MFD-001",
                f"folios at indices {int(index[i]):#x} and {int(index[i + 1]):#x} overlap",
                path=path,
                address=address,
            )
    outside = (index >= np.uint64(min(file.pages, (1 << 64) - 1))).nonzero()[0]
    if len(outside):
        findings.warning(
            "KHO-MFD-002",
            f"{len(outside)} folios begin beyond the end of the file ({file.pages} pages)",
            path=path,
            address=address,
        )


# -- content ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a file's content: ``data`` at byte ``offset``, or ``size`` zeros: a hole, or memory
    that is known to be zero.

    ``missing`` is the physical address of bytes that the image lacks, else None.
    """

    offset: int
    size: int
    data: memoryview | None
    missing: int | None = None


#: Content that is there is handed out in pieces of at most this many bytes.
PIECE = 1 << 20


def content(survey: Survey, file: FolioFile) -> Iterator[Piece]:
    """A file's content from 0 to its size, in order, in bounded pieces.

    What no folio covers is a hole. Overlapping folios are cut at the next one's start. What is
    missing, or zero without being stored, comes in runs of any length, as a folio may claim to be
    of any size.
    """
    page = file.page_size
    offsets = file.offsets
    used = file.used.nonzero()[0]
    order = used[np.argsort(offsets[used], kind="stable")]
    at = 0
    reader = _Reader(survey.memory)
    for i in order:
        start = int(offsets[i])
        if start >= file.size:
            break
        if start > at:
            yield Piece(at, start - at, None)
            at = start
        base = int(file.folios.pfn[i]) * page
        end = min(start + (page << int(file.orders[i])), file.size)
        if at < end:
            yield from reader.pieces(base + at - start, at, end - at)
            at = end
    if at < file.size:
        yield Piece(at, file.size - at, None)


class _Reader:
    """Reads memory that may be missing in parts."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self._regions: Sequence[Region] | None = None

    def pieces(self, pa: int, offset: int, size: int) -> Iterator[Piece]:
        """``size`` bytes at ``pa``, which are at ``offset`` of a file."""
        at = 0
        while at < size:
            zero, length = self._memory.zeros(pa + at, size - at)
            if zero:
                yield Piece(offset + at, length, None)
                at += length
                continue
            length = min(length, PIECE)
            present = self._memory.state(pa + at, length) is PageState.PRESENT
            if not present:
                present, length = self._run(pa + at, size - at)
            if present:
                length = min(length, PIECE)
                data = memoryview(self._memory.read(pa + at, length))
                yield Piece(offset + at, length, data)
            else:
                yield Piece(offset + at, length, None, pa + at)
            at += length

    def _run(self, pa: int, size: int) -> tuple[bool, int]:
        """Whether the byte at ``pa`` is there, and for how many, of ``size``, this holds."""
        if self._regions is None:
            self._regions = self._memory.regions
        regions = self._regions
        index = bisect_right(regions, pa, key=lambda region: region.start)
        if index and pa < regions[index - 1].end:
            region = regions[index - 1]
            return region.state is PageState.PRESENT, min(size, region.end - pa)
        return False, min(size, regions[index].start - pa) if index < len(regions) else size


def read_content(survey: Survey, file: FolioFile) -> tuple[U8Array, list[int]]:
    """The whole content as an array, and the addresses of the frames that are missing."""
    data = np.zeros(file.size, np.uint8)
    missing: list[int] = []
    for piece in content(survey, file):
        if piece.data is not None:
            data[piece.offset : piece.offset + piece.size] = np.frombuffer(piece.data, np.uint8)
        elif piece.missing is not None:
            missing += range(piece.missing, piece.missing + piece.size, file.page_size)
    return data, missing
