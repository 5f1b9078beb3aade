"""Arrays of objects in linked pages: {next, count}, then objects without gaps.

The objects of all pages become one structured numpy array: the bodies of all pages are
gathered at once, and only the last one is cut. Objects as Python values are the caller's,
made for what is shown.

Two ways of counting are on record. Per page: each header says how many slots of its page
are used. Global: the root says how many there are, object i lies in page i / capacity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from abi.schema import Struct
from inspector.memory.base import PageState, U8Array, U64Array
from inspector.survey import Survey
from inspector.walk.chain import Chain, follow

#: Pages gathered at a time.
BATCH = 2048
#: Bytes of pages that one chain may have: millions of objects.
MAX_BYTES = 256 << 20
_HEADER = 16
_NO_PAGES = np.empty(0, np.uint64)


@dataclass(frozen=True)
class PagedArray:
    """The used slots of a chain of array pages, in order.

    ``records`` has one row of ``struct.dtype`` per object, ``addresses`` their physical
    addresses. ``pages`` are the pages of the chain that could be read, ``counts`` what
    their headers say, ``used`` how many slots of each were taken. ``total`` is the number of
    objects the image speaks of; ``complete`` whether all of them are here, ``cut`` whether
    others may lie in pages that the image lacks.
    """

    struct: Struct
    records: npt.NDArray[Any]
    addresses: U64Array
    pages: U64Array
    counts: U64Array
    used: npt.NDArray[np.int64]
    capacity: int
    total: int
    complete: bool
    cut: bool = False

    def __len__(self) -> int:
        return len(self.records)

    def values(self, index: int, *views: str) -> dict[str, Any]:
        """One object as a flat dict (:meth:`abi.schema.Struct.unpack`)."""
        return self.struct.unpack(self.records[index].tobytes(), 0, *views)

    @cached_property
    def _order(self) -> npt.NDArray[np.intp]:
        return np.argsort(self.addresses, kind="stable")

    @cached_property
    def _index(self) -> dict[int, int]:
        return {a: i for i, a in enumerate(self.addresses.tolist())}

    def index_of(self, address: int) -> int:
        """The index of the object that starts at an address, or -1."""
        return self._index.get(address, -1)

    def find(self, addresses: U64Array) -> npt.NDArray[np.int64]:
        """The index of the object that starts at each address, or -1."""
        if not len(self.addresses):
            return np.full(len(addresses), -1, np.int64)
        order = self._order
        at = np.searchsorted(self.addresses, addresses, sorter=order)
        index = order[np.minimum(at, len(order) - 1)]
        return np.where(self.addresses[index] == addresses, index, -1)

    def slack(self, survey: Survey) -> npt.NDArray[np.bool_]:
        """Whether a byte behind the used slots is not zero, for each page."""
        rows = survey.memory.gather(self.pages, survey.page_size)
        ends = (_HEADER + self.used * self.struct.size).tolist()
        return np.array([row[end:].any() for row, end in zip(rows, ends, strict=True)], np.bool_)


def walk_paged_array(
    survey: Survey, first: int, page: Struct, path: str, what: str, total: int | None = None
) -> PagedArray:
    """The objects behind each ``page`` header of the chain that starts at ``first``.

    ``page`` is a header of {u64 next, u64 count} with the object struct as its tail.
    ``total`` is the global count, or None where the headers count. Findings: those of
    :func:`inspector.walk.chain.follow`, ``KHO-LST-005`` (a count above the capacity: cut),
    ``KHO-LST-006`` (a page before the last is not full), ``KHO-LST-008`` (the chain ends before
    it has the pages that the global count needs) and ``KHO-LST-009`` (more pages than it needs).
    """
    limit = MAX_BYTES // survey.page_size
    chain = follow(survey, first, path, what, limit=limit) if first else Chain(_NO_PAGES, True)
    return gather_objects(survey, chain, page, path, what, total)


def gather_objects(
    survey: Survey, chain: Chain, page: Struct, path: str, what: str, total: int | None = None
) -> PagedArray:
    """The objects on the pages of a chain: see :func:`walk_paged_array`."""
    assert page.tail is not None
    struct = page.tail[1]
    assert isinstance(struct, Struct)
    assert page.size == _HEADER
    capacity = page.capacity(survey.page_size)
    pages = chain.pages
    states = survey.memory.states(pages, survey.page_size)
    there = states == PageState.PRESENT
    if not there.all():
        for pa, state in zip(pages[~there].tolist(), states[~there].tolist(), strict=True):
            survey.hole(pa, path, PageState(state))
    counts = survey.memory.gather(pages + np.uint64(8), 8).view("<u8")[:, 0] * there
    used = _used(counts, capacity, total) * there
    body = survey.memory.gather(pages + np.uint64(_HEADER), capacity * struct.size)
    raw = _joined(body, used, capacity, struct.size)
    addresses = _addresses(pages, used, capacity, struct.size)
    spoken_of = total
    if spoken_of is None:
        sane = bool((counts <= capacity).all())
        spoken_of = int(counts.sum(dtype=None if sane else object))
    _report(survey, path, what, chain, counts, there, capacity, total)
    if len(pages):
        survey.place(page, pages, path)
        survey.claim("array-page", path, pages, survey.page_size)
    if len(addresses):
        survey.place(struct, addresses, path)
    return PagedArray(
        struct,
        raw.view(struct.dtype),
        addresses,
        pages,
        counts,
        used,
        capacity,
        spoken_of,
        bool(chain.complete and len(addresses) == spoken_of and there.all()),
        bool(chain.cut or not there.all()),
    )


def _used(counts: U64Array, capacity: int, total: int | None) -> npt.NDArray[np.int64]:
    """How many slots of each page are used."""
    if total is None:
        return np.minimum(counts, np.uint64(capacity)).astype(np.int64)
    left = min(total, capacity * len(counts)) - capacity * np.arange(len(counts))
    return np.clip(left, 0, capacity).astype(np.int64)


def _joined(body: U8Array, used: npt.NDArray[np.int64], capacity: int, size: int) -> U8Array:
    """The used slots of all pages as flat bytes; a view where only the last page is not full."""
    if len(used) == 0 or (used[:-1] == capacity).all():
        return body.reshape(-1)[: int(used.sum()) * size]
    pieces = [row[: n * size] for row, n in zip(body, used.tolist(), strict=True) if n]
    return np.concatenate(pieces) if pieces else np.empty(0, np.uint8)


def _addresses(pages: U64Array, used: npt.NDArray[np.int64], capacity: int, size: int) -> U64Array:
    step = np.arange(capacity, dtype=np.uint64) * np.uint64(size) + np.uint64(_HEADER)
    if len(used) and (used[:-1] == capacity).all():
        # Faster than adding two vectors across each other.
        grid = np.empty((len(pages), capacity), np.uint64)
        grid[:] = step
        grid += pages[:, None]
        flat: U64Array = grid.reshape(-1)[: capacity * (len(used) - 1) + int(used[-1])]
        return flat
    mask = np.arange(capacity)[None, :] < used[:, None]
    ragged: U64Array = (pages[:, None] + step[None, :])[mask]
    return ragged


def _report(
    survey: Survey,
    path: str,
    what: str,
    chain: Chain,
    counts: U64Array,
    there: npt.NDArray[np.bool_],
    capacity: int,
    total: int | None,
) -> None:
    findings, pages = survey.findings, chain.pages
    for i in np.flatnonzero(there & (counts > capacity)).tolist():
        findings.error(
            "KHO-LST-005",
            f"{what} at {int(pages[i]):#x} counts {int(counts[i])} objects, capacity {capacity}",
            path=path,
            address=int(pages[i]) + 8,
        )
    if total is not None:
        needed = -(-total // capacity)
        if len(pages) < needed and chain.cut:
            survey.cannot_tell("KHO-LST-008", f"{path}: a page of it is not in the image")
        elif len(pages) < needed and chain.complete:
            findings.error(
                "KHO-LST-008",
                f"{total} objects counted, {needed} pages of {what} needed, {len(pages)} linked",
                path=path,
                address=int(pages[-1]) if len(pages) else None,
            )
        elif len(pages) > max(needed, 1):
            findings.info(
                "KHO-LST-009",
                f"{total} objects counted, {needed} pages of {what} needed, {len(pages)} linked",
                path=path,
                address=int(pages[-1]) if len(pages) else None,
            )
        return
    for i in np.flatnonzero(there[:-1] & (counts[:-1] < capacity)).tolist():
        findings.warning(
            "KHO-LST-006",
            f"{what} at {int(pages[i]):#x} is not the last but holds {int(counts[i])}"
            f" of {capacity} objects",
            path=path,
            address=int(pages[i]) + 8,
        )
