"""Preserved memory files (handlers ``memfd-v1``, ``memfd-v2`` and relatives)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from abi.memfd import MEMFD_LUO_ALL_SEALS
from abi.registry import Generation
from abi.schema import resolve
from inspector.memory.base import PageState, U8Array, U64Array
from inspector.survey import Survey
from inspector.walk.preserved import PreservedMap
from inspector.walk.vmalloc import FolioColumns, Vmalloc, folio_columns, walk_vmalloc


@dataclass(slots=True)
class Memfd:
    """A memory file. ``seals`` is None where the format carries none (memfd-v1).

    ``size`` and ``pos`` are bytes; ``folios`` the columns of its folio entries; ``orders``
    the order of each folio, from the preserved map if it could be read, else as far as
    the gaps between indices tell.
    """

    path: str
    generation: Generation
    address: int
    size: int
    pos: int
    seals: int | None
    flags: int | None
    nr_folios: int
    vmalloc: Vmalloc
    folios: FolioColumns
    page_size: int
    orders: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))

    @property
    def addresses(self) -> U64Array:
        """Physical address of each folio."""
        return self.folios.pfn * np.uint64(self.page_size)

    @property
    def sizes(self) -> U64Array:
        """Bytes of each folio."""
        return np.uint64(self.page_size) << self.orders.astype(np.uint64)


def walk_memfd(
    survey: Survey, generation: Generation, address: int, path: str, preserved: PreservedMap | None
) -> Memfd | None:
    """The memory file whose struct lies at ``address``; None if the struct cannot be read.

    Findings ``KHO-MFD-*``: 001 folios out of order or overlapping, 002 folio beyond the
    end of the file, 003 unknown seals, 004 non-zero flags, 005 fewer entries than counted,
    006 holes (pfn 0).
    """
    layout = resolve(generation.layouts["memfd_luo_ser"], survey.page_size)
    if not survey.pointer(address, path, "memfd_luo_ser", align=8):
        return None
    values = survey.unpack(layout, address, path)
    if values is None:
        return None
    survey.claim("struct", path, address, layout.size)
    vmalloc = walk_vmalloc(survey, layout.nested(values, "folios"), path)
    columns = folio_columns(survey, vmalloc, values["nr_folios"], path)
    memfd = Memfd(
        path,
        generation,
        address,
        values["size"],
        values["pos"],
        values.get("seals"),
        values.get("flags") if "folios.flags" in values else None,
        values["nr_folios"],
        vmalloc,
        columns,
        survey.page_size,
    )
    memfd.orders = folio_orders(memfd, preserved)
    used = columns.pfn != 0
    survey.claim("folio", path, memfd.addresses[used], memfd.sizes[used])
    _check(survey, memfd)
    return memfd


def folio_orders(memfd: Memfd, preserved: PreservedMap | None) -> npt.NDArray[np.uint8]:
    """The order of each folio.

    The map knows it. Without the map, the largest order that the gap to the next index
    and the alignment of frame and index allow: memory files are populated without gaps.
    """
    pfn, index = memfd.folios.pfn, memfd.folios.index
    if len(pfn) == 0:
        return np.empty(0, np.uint8)
    if preserved is not None:
        known, found = preserved.orders_at(memfd.addresses)
        if found.all():
            return known
    else:
        known = found = None  # type: ignore[assignment]
    pages = max(-(-memfd.size // memfd.page_size), int(index[-1]) + 1)
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


def _check(survey: Survey, memfd: Memfd) -> None:
    findings, path, address = survey.findings, memfd.path, memfd.address
    folios = memfd.folios
    if memfd.seals is not None and memfd.seals & ~MEMFD_LUO_ALL_SEALS:
        findings.error(
            "KHO-MFD-003", f"unknown seals in {memfd.seals:#x}: EOPNOTSUPP on retrieve",
            path=path, address=address + 16,
        )  # fmt: skip
    if memfd.flags:
        findings.error(
            "KHO-MFD-004", f"flags {memfd.flags:#x} are not zero",
            path=path, address=address + 20,
        )  # fmt: skip
    if len(folios.pfn) < memfd.nr_folios and memfd.vmalloc.complete and folios.position is None:
        findings.error(
            "KHO-MFD-005",
            f"{memfd.nr_folios} folios counted, the array holds {len(folios.pfn)}",
            path=path,
            address=address,
        )
    used = folios.pfn != 0
    if not used.all():
        findings.info(
            "KHO-MFD-006", f"{int((~used).sum())} folio entries are holes (pfn 0)", path=path
        )
    index = folios.index[used]
    span = np.uint64(1) << memfd.orders[used].astype(np.uint64)
    if len(index) > 1:
        order = None
        if not (index[1:] > index[:-1]).all():
            order = np.argsort(index, kind="stable")
            index, span = index[order], span[order]
        overlap = np.flatnonzero(index[:-1] + span[:-1] > index[1:])
        for i in overlap[:8]:
            findings.error(
                "KHO-MFD-001",
                f"folios at indices {int(index[i]):#x} and {int(index[i + 1]):#x} overlap",
                path=path,
                address=address,
            )
    pages = -(-memfd.size // memfd.page_size)
    outside = np.flatnonzero(index >= np.uint64(min(pages, (1 << 64) - 1)))
    if len(outside):
        findings.warning(
            "KHO-MFD-002",
            f"{len(outside)} folios begin beyond the end of the file ({pages} pages)",
            path=path,
            address=address,
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a file's content: ``data`` at byte ``offset``, or a hole of ``size`` zeros.

    ``missing`` is the physical address of bytes that the image lacks, else None.
    """

    offset: int
    size: int
    data: memoryview | None
    missing: int | None = None


#: Content is handed out in pieces of at most this many bytes.
PIECE = 1 << 20


def content(survey: Survey, memfd: Memfd) -> Iterator[Piece]:
    """A file's content from 0 to its size, in order, in bounded pieces.

    What no folio covers is a hole. Overlapping folios are cut at the next one's start.
    """
    page = memfd.page_size
    used = np.flatnonzero(memfd.folios.pfn != 0)
    order = used[np.argsort(memfd.folios.index[used], kind="stable")]
    at = 0
    for i in order:
        start = int(memfd.folios.index[i]) * page
        if start >= memfd.size:
            break
        if start > at:
            yield Piece(at, start - at, None)
            at = start
        base = int(memfd.folios.pfn[i]) * page
        end = min(start + (page << int(memfd.orders[i])), memfd.size)
        while at < end:
            size = min(end - at, PIECE)
            pa = base + at - start
            yield from _read(survey, pa, at, size)
            at += size
    if at < memfd.size:
        yield Piece(at, memfd.size - at, None)


def _read(survey: Survey, pa: int, offset: int, size: int) -> Iterator[Piece]:
    """One piece, split at pages that are missing."""
    memory, page = survey.memory, survey.page_size
    if memory.state(pa, size) is PageState.PRESENT:
        yield Piece(offset, size, memoryview(memory.read(pa, size)))
        return
    for at in range(0, size, page):
        n = min(page, size - at)
        if memory.state(pa + at, n) is PageState.PRESENT:
            yield Piece(offset + at, n, memoryview(memory.read(pa + at, n)))
        else:
            yield Piece(offset + at, n, None, pa + at)


def read_content(survey: Survey, memfd: Memfd) -> tuple[U8Array, list[int]]:
    """The whole content as an array, and the addresses of the frames that are missing."""
    data = np.zeros(memfd.size, np.uint8)
    missing: list[int] = []
    for piece in content(survey, memfd):
        if piece.data is not None:
            data[piece.offset : piece.offset + piece.size] = np.frombuffer(piece.data, np.uint8)
        elif piece.missing is not None:
            missing.append(piece.missing)
    return data, missing
