"""Who owns each preserved page.

Every preserved page should be claimed by exactly one owner. Claims come from the decoding
(:attr:`inspector.survey.Survey.claims`). All of it is columns and sorting: a map of
millions of blocks and a file of millions of folios cost seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inspector.device_tables.claims import WalkedTable, claim_tables
from inspector.image import Image
from inspector.memory.base import U64Array
from inspector.survey import Claim
from inspector.walk.preserved import PreservedMap

#: Kinds of claims on memory that is *not* meant to be in the map.
OUTSIDE_MAP = frozenset(
    {"map-node", "scratch-array", "scratch", "boot-params", "device-tree", "handover"}
)
_NONE = np.empty(0, np.uint64)
#: Runs of preserved blocks that are looked at together.
_WINDOW = 1 << 18


@dataclass(frozen=True, slots=True)
class Extents:
    """Byte ranges [start, end) with the number of the claim each belongs to."""

    starts: U64Array
    ends: U64Array
    claim: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, slots=True)
class Ownership:
    """The account of preserved memory.

    ``claims`` are those on preserved memory. ``conflicts`` are pairs of claim numbers with
    the address where they meet; ``unpreserved`` extents that are claimed but not in the
    map; ``leaks`` blocks nobody claims, as (start, end) columns; ``by_kind`` bytes in use
    by kind of claim, ``slack`` unused bytes of blocks that are claimed in part.
    """

    claims: tuple[Claim, ...]
    known: bool
    conflicts: tuple[tuple[int, int, int], ...]
    unpreserved: Extents
    leak_starts: U64Array
    leak_ends: U64Array
    by_kind: dict[str, int]
    preserved: int
    leaked: int
    slack: int


def account(
    image: Image, limit: int = 4096, walked: dict[int, WalkedTable] | None = None
) -> Ownership:
    """Account for every preserved byte of ``image``; at most ``limit`` conflicts are listed.

    ``walked`` is filled with what the passes over page tables found, by domain address.
    """
    claim_tables(image, walked)
    image.memory.release()  # sorting takes its place
    claims = tuple(c for c in image.survey.claims if c.kind not in OUTSIDE_MAP and len(c.starts))
    extents = _rounded(claims, image.page_size)
    conflicts = tuple(_conflicts(claims, extents, limit))
    sizes = np.zeros(len(claims), np.uint64)
    np.add.at(sizes, extents.claim, extents.ends - extents.starts)
    by_kind: Counter[str] = Counter()
    for claim, size in zip(claims, sizes.tolist(), strict=True):
        by_kind[claim.kind] += size
    if image.preserved is None:
        nothing = Extents(_NONE, _NONE, np.empty(0, np.int64))
        return Ownership(claims, False, conflicts, nothing, _NONE, _NONE, dict(by_kind), 0, 0, 0)
    covered = image.preserved.covers(extents.starts, extents.ends - extents.starts)
    lost = ~covered
    unpreserved = Extents(extents.starts[lost], extents.ends[lost], extents.claim[lost])
    starts, ends, slack = _leaks(image, extents)
    return Ownership(
        claims,
        True,
        conflicts,
        unpreserved,
        starts,
        ends,
        dict(by_kind),
        image.preserved.page_count * image.page_size,
        int((ends - starts).sum()),
        slack,
    )


def _rounded(claims: Iterable[Claim], page: int) -> Extents:
    """All claims, grown to whole pages, ascending; empty ones dropped."""
    claims = tuple(claims)
    if not claims:
        return Extents(_NONE, _NONE, np.empty(0, np.int64))
    mask = np.uint64(page - 1)
    # One piece of arithmetic for all: most claims are of a few rows, and there are many.
    start = np.concatenate([claim.starts for claim in claims])
    size = np.concatenate([claim.sizes for claim in claims])
    number_of = np.repeat(np.arange(len(claims)), [len(claim.starts) for claim in claims])
    end = (start + size + mask) & ~mask
    start &= ~mask
    used = (size != 0) & (end > start)
    if not used.all():
        start, end, number_of = start[used], end[used], number_of[used]
    rank = np.argsort(start, kind="stable")
    return Extents(start[rank], end[rank], number_of[rank])


def _conflicts(
    claims: tuple[Claim, ...], extents: Extents, limit: int
) -> Iterable[tuple[int, int, int]]:
    """Where an extent begins before an earlier one of another owner has ended."""
    if len(extents) < 2:
        return
    reach = np.maximum.accumulate(extents.ends)
    found = 0
    for i in np.flatnonzero(extents.starts[1:] < reach[:-1]).tolist():
        mine = int(extents.claim[i + 1])
        at = int(extents.starts[i + 1])
        before = i
        while before >= 0 and int(extents.ends[before]) <= at:
            before -= 1
        if before < 0:
            continue
        other = int(extents.claim[before])
        same_page = claims[mine].owner == claims[other].owner and claims[mine].kind == "struct"
        if mine != other and not same_page:
            yield other, mine, at
        elif mine == other:
            yield mine, mine, at
        found += 1
        if found >= limit:
            return


def _union(extents: Extents) -> tuple[U64Array, U64Array]:
    """Disjoint ascending ranges that the extents cover."""
    if not len(extents):
        return _NONE, _NONE
    reach = np.maximum.accumulate(extents.ends)
    fresh = np.concatenate(([True], extents.starts[1:] > reach[:-1]))
    first = np.flatnonzero(fresh)
    return extents.starts[first], reach[np.append(first[1:] - 1, len(reach) - 1)]


def _leaks(image: Image, extents: Extents) -> tuple[U64Array, U64Array, int]:
    """(starts, ends) of blocks nobody claims, and the slack of those claimed in part."""
    preserved = image.preserved
    assert preserved is not None
    lows, highs = _union(extents)
    starts = preserved.starts
    ends = preserved.ends if preserved.disjoint else np.sort(preserved.ends)
    found: list[tuple[U64Array, U64Array]] = []
    slack = 0
    for at in range(0, len(starts), _WINDOW):
        low = starts[at]
        high = starts[at + _WINDOW] if at + _WINDOW < len(starts) else ends[-1]
        some = [_between(column, low, high) for column in (starts, ends, lows, highs)]
        first, last, unused = _window(preserved, low, high, some, lows, highs)
        found.append((first, last))
        slack += unused
    if not found:
        return _NONE, _NONE, 0
    return (
        np.concatenate([first for first, _ in found]),
        np.concatenate([last for _, last in found]),
        slack,
    )


def _between(column: U64Array, low: np.uint64, high: np.uint64) -> U64Array:
    """The numbers of an ascending column that are in [low, high]."""
    return column[
        np.searchsorted(column, low, side="left") : np.searchsorted(column, high, side="right")
    ]


def _window(
    preserved: PreservedMap,
    low: np.uint64,
    high: np.uint64,
    cuts: list[U64Array],
    lows: U64Array,
    highs: U64Array,
) -> tuple[U64Array, U64Array, int]:
    """What :func:`_leaks` tells, of [low, high): ``lows`` to ``highs`` is what is claimed."""
    # Cut the line at every edge, keep the pieces that are preserved and not claimed.
    edges = np.sort(np.concatenate((*cuts, np.array([low, high], np.uint64))))
    edges = edges[np.append(True, edges[1:] != edges[:-1])]
    left, right = edges[:-1], edges[1:]
    starts, ends = preserved.starts, preserved.ends
    run = np.searchsorted(starts, left, side="right") - 1
    inside = (run >= 0) & (left < ends[np.maximum(run, 0)])
    claim = np.searchsorted(lows, left, side="right") - 1
    if len(lows):
        inside &= ~((claim >= 0) & (left < highs[np.maximum(claim, 0)]))
    left, right, run = left[inside], right[inside], run[inside]
    block = np.uint64(preserved.page_size) << preserved.orders[run].astype(np.uint64)
    one = np.uint64(1)
    first = starts[run] + (left - starts[run] + block - one) // block * block
    last = starts[run] + (right - starts[run]) // block * block
    whole = last > first
    leaked = np.where(whole, last - first, np.uint64(0))
    return first[whole], last[whole], int(((right - left) - leaked).sum())
