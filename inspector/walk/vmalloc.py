"""kho_vmalloc (6.18 on): a virtually contiguous array, kept as a list of page blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from abi.vmalloc import KHO_VMALLOC_FLAGS, kho_vmalloc_chunk
from inspector.budget import Cost
from inspector.memory.base import PageState, U8Array, U64Array
from inspector.survey import Survey
from inspector.walk.chain import follow

#: Pages read at a time: few enough for the cache, many enough to hide numpy's overhead.
BATCH = 256
_MAX_ORDER = 20
#: What a page that the image lacks costs, in bytes of entries: to look for it takes time too.
_LACKING = 16


@dataclass(frozen=True, slots=True)
class Vmalloc:
    """A descriptor and the blocks it leads to.

    ``blocks`` are the physical addresses of blocks of ``2 ** order`` pages, in order;
    ``chunks`` the pages that list them. ``complete`` if every chunk could be read and the
    blocks add up to ``total_pages`` (else the kernel restores nothing).
    """

    first: int
    total_pages: int
    flags: int
    order: int
    chunks: U64Array
    blocks: U64Array
    page_size: int
    complete: bool

    @property
    def size(self) -> int:
        """Bytes the blocks hold."""
        return len(self.blocks) * (self.page_size << self.order)

    def pages(self, count: int) -> U64Array:
        """Physical addresses of the first ``count`` base pages, in order."""
        if self.order == 0:
            return self.blocks[:count]
        blocks = self.blocks[: -(-count >> self.order)]
        within = np.arange(min(1 << self.order, count), dtype=np.uint64)
        return (blocks[:, None] + within[None, :] * np.uint64(self.page_size)).ravel()[:count]

    def entries(self, survey: Survey, size: int, count: int, path: str) -> int:
        """How many of ``count`` entries of ``size`` bytes are to be read.

        No more than the blocks have room for. Those may have any order, and be listed any number
        of times: the budget allows as many entries as there can be in pages of their own.
        """
        held = min(count, self.size // size)
        return survey.room(Cost.ENTRIES, held * size, path, self.first) // size


def walk_vmalloc(survey: Survey, descriptor: dict[str, int], path: str) -> Vmalloc:
    """Follow a ``struct kho_vmalloc`` given as a flat dict.

    Findings: ``KHO-VML-001`` order out of range, ``-002`` unknown flags, ``-003`` blocks do
    not add up to total_pages, ``-004`` misaligned block, plus those of the chain.
    """
    first, total = descriptor["first"], descriptor["total_pages"]
    flags, order = descriptor["flags"], descriptor["order"]
    page = survey.page_size
    findings = survey.findings
    empty = np.empty(0, np.uint64)
    if flags & ~KHO_VMALLOC_FLAGS:
        findings.warning(
            "KHO-VML-002",
            f"unknown vmalloc flags {flags:#x}: kernels ignore them",
            path=path,
            address=first,
        )
    if order > _MAX_ORDER:
        findings.error(
            "KHO-VML-001", f"vmalloc order {order} is impossible", path=path, address=first
        )
        return Vmalloc(first, total, flags, order, empty, empty, page, False)
    chain = follow(survey, first, path, "vmalloc chunk", limit=_chunk_limit(total, order, page))
    blocks, pages = _entries(survey, chain.pages, path)
    survey.claim("vmalloc-chunk", path, chain.pages, page)
    misaligned = blocks % np.uint64(page << order) != 0
    for pa in blocks[misaligned][:16]:
        findings.error(
            "KHO-VML-004",
            f"vmalloc block {int(pa):#x} is not aligned to {page << order:#x}",
            path=path,
            address=int(pa),
        )
    adds_up = len(blocks) << order == total
    complete = chain.complete and len(pages) == len(chain.pages)
    if not adds_up and complete:
        findings.error(
            "KHO-VML-003",
            f"vmalloc lists {len(blocks)} blocks of order {order}"
            f" but counts {total} pages: nothing is restored",
            path=path,
            address=first or None,
        )
    survey.claim("vmalloc-data", path, blocks, page << order)
    return Vmalloc(
        first, total, flags, order, chain.pages, blocks, page,
        complete and adds_up and not misaligned.any(),
    )  # fmt: skip


def _chunk_limit(total: int, order: int, page: int) -> int:
    """Chunks that ``total`` pages can need, with the empty last one, and some slack."""
    per_chunk = (page - 8) // 8
    return (total >> order) // per_chunk + 4


def _entries(survey: Survey, chunks: U64Array, path: str) -> tuple[U64Array, U64Array]:
    """Entries of all chunks up to the first zero of each, and the chunks that were there."""
    parts: list[U64Array] = []
    present: list[U64Array] = []
    for at in range(0, len(chunks), BATCH):
        data, pages = survey.rows(chunks[at : at + BATCH], survey.page_size, path)
        if len(pages):
            survey.place(kho_vmalloc_chunk(survey.page_size), pages, path)
        words = data.view("<u8")[:, 1:]
        used = words != 0
        # The list of a chunk ends at its first zero: what follows it is not part of it.
        used &= np.logical_and.accumulate(used, axis=1)
        parts.append(words[used].astype(np.uint64, copy=False))
        present.append(pages)
    if not parts:
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    return np.concatenate(parts), np.concatenate(present)


def batches(
    survey: Survey, vmalloc: Vmalloc, size: int, path: str
) -> Iterator[tuple[int, U8Array]]:
    """The first ``size`` bytes of the array as (offset, rows of whole pages) batches.

    Rows are pages; those that the image lacks are left out with their holes recorded, and
    end a batch, so that ``offset`` is always that of the batch's first row. The buffer is
    reused: copy what is to be kept. What is read is taken from the budget.
    """
    page = vmalloc.page_size
    count = min(-(-size // page), len(vmalloc.blocks) << vmalloc.order)
    if count <= 0:
        return
    pages = vmalloc.pages(count)
    states = survey.memory.states(pages, page)
    if (states == PageState.PRESENT).all():
        survey.budget.spend(Cost.ENTRIES, count * page)
        for at, rows in enumerate(survey.memory.batches(pages, page, BATCH)):
            yield at * BATCH * page, rows
        return
    buffer = np.empty((min(BATCH, count), page), np.uint8)
    at = 0
    while at < count:
        if states[at] != PageState.PRESENT:
            here = (states[at:] == PageState.PRESENT).nonzero()[0]
            end = at + int(here[0]) if len(here) else count
            survey.lacking(pages[at:end], states[at:end], path)
            survey.budget.spend(Cost.ENTRIES, (end - at) * _LACKING)
            at = end
            continue
        end = min(at + BATCH, count)
        gap = (states[at:end] != PageState.PRESENT).nonzero()[0]
        end = at + int(gap[0]) if len(gap) else end
        survey.budget.spend(Cost.ENTRIES, (end - at) * page)
        yield at * page, survey.memory.gather(pages[at:end], page, buffer)
        at = end


@dataclass(frozen=True, slots=True)
class FolioColumns:
    """The folio entries of a memory file: frame number, flags, index in base pages.

    ``position`` is the ordinal of each entry in the array (entries on missing pages are
    absent from the columns). ``given_up`` if the budget did not allow all of them.
    """

    pfn: U64Array
    flags: npt.NDArray[np.uint16]
    index: U64Array
    position: npt.NDArray[np.int64] | None
    complete: bool
    given_up: bool = False


PFN_MASK = np.uint64((1 << 52) - 1)
#: The 12 flag bits of an entry's first word, in the uppermost 16.
_FLAGS_SHIFT = 4


def folio_columns(survey: Survey, vmalloc: Vmalloc, count: int, path: str) -> FolioColumns:
    """``count`` 16-byte entries {pfn:52, flags:12, u64 index}, as columns.

    ``count`` is cut to what the blocks can hold before anything is allocated.
    """
    given_up = survey.given_up
    held = vmalloc.entries(survey, 16, count, path)
    pfn = np.empty(held, np.uint64)
    flags = np.empty(held, np.uint16)
    index = np.empty(held, np.uint64)
    kept: list[tuple[int, int]] = []
    filled = 0
    for offset, rows in batches(survey, vmalloc, held * 16, path):
        first = offset // 16
        n = min(rows.size // 16, held - first)
        words = rows.reshape(-1)[: n * 16].view("<u8").reshape(n, 2)
        end = filled + n
        # Copied first, then computed with: numpy is slow with what is not side by side, and
        # with what changes its type on the way.
        frames, bits = pfn[filled:end], flags[filled:end]
        frames[:] = words[:, 0]
        bits[:] = words.view("<u2")[:, 3]
        bits >>= _FLAGS_SHIFT
        frames &= PFN_MASK
        index[filled:end] = words[:, 1]
        kept.append((first, n))
        filled = end
    whole = filled == held
    position = (
        None
        if whole
        else np.concatenate([np.arange(f, f + n) for f, n in kept] or [np.empty(0, np.int64)])
    )
    return FolioColumns(
        pfn[:filled], flags[:filled], index[:filled], position, whole and held == count,
        survey.given_up > given_up,
    )  # fmt: skip


def word_columns(
    survey: Survey, vmalloc: Vmalloc, width: int, count: int, path: str
) -> tuple[U64Array, bool]:
    """``count`` entries of ``width`` 64-bit words, as rows, and whether all of them are here."""
    size = 8 * width
    held = vmalloc.entries(survey, size, count, path)
    rows = np.empty((held, width), np.uint64)
    filled = 0
    for offset, pages in batches(survey, vmalloc, held * size, path):
        # Pages hold whole entries: their size and an entry's are powers of two.
        n = min(pages.size // size, held - offset // size)
        rows[filled : filled + n] = pages.reshape(-1)[: n * size].view("<u8").reshape(n, width)
        filled += n
    return rows[:filled], filled == held == count
