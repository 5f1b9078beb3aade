"""The preserved-memory map: what the old kernel asked the new one not to touch.

Three forms: a list of chunks of bitmaps (6.16 to 7.0; bitmaps of 512 bytes or of a page)
and a radix tree of bitmaps (7.1 on). All give the same result, runs of equal blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from abi.kho import KhoGeneration, MapKind
from abi.memory_map import RadixGeometry
from inspector.budget import Cost
from inspector.memory.base import U8Array, U64Array
from inspector.survey import Survey
from inspector.walk.bitmap_chunks import walk_bitmap_chunks
from inspector.walk.heads import Heads, I64Array
from inspector.walk.map_collector import PATH, MapCollector
from inspector.walk.radix import walk_radix
from inspector.walk.runs import RunColumns

#: Blocks made at a time when runs are expanded.
EXPAND = 1 << 18


@dataclass(frozen=True)
class PreservedMap:
    """Runs of preserved blocks, ascending by address.

    Run i is ``counts[i]`` neighbouring blocks of ``2 ** orders[i]`` pages that start at
    ``starts[i]`` bytes. ``nodes`` are the addresses of the map's own pages and bitmaps,
    ``node_sizes`` their bytes. ``problems`` counts structural anomalies by finding code;
    ``missing`` the nodes that the image lacks, and those that were not read since the budget was
    spent as one. ``turns`` tells, where runs overlap, which one
    the kernel's walk meets when; None if in their own order.
    """

    page_size: int
    starts: U64Array
    counts: U64Array
    orders: U8Array
    nodes: U64Array
    node_sizes: U64Array
    problems: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    turns: I64Array | None = None

    @cached_property
    def run_sizes(self) -> U64Array:
        """Bytes of each run."""
        return self._sizes()

    def _sizes(self) -> U64Array:
        shift = np.uint8(self.page_size.bit_length() - 1)
        if len(self.orders) and (self.orders == self.orders[0]).all():
            return self.counts << np.uint64(self.orders[0] + shift)
        return self.counts << (self.orders + shift).astype(np.uint64)

    @cached_property
    def ends(self) -> U64Array:
        """First byte behind each run."""
        return self.starts + self._sizes()

    @property
    def complete(self) -> bool:
        """Whether every node was there and made sense."""
        return not self.problems and not self.missing

    def without_runs(self) -> PreservedMap:
        """What is known of its nodes, for those who do not keep the runs."""
        empty = np.empty(0, np.uint64)
        return replace(self, starts=empty, counts=empty, orders=np.empty(0, np.uint8), turns=None)

    @cached_property
    def block_count(self) -> int:
        """Number of blocks."""
        return int(self.counts.sum())

    @cached_property
    def page_count(self) -> int:
        """Base pages in all blocks."""
        return int((self.counts << self.orders.astype(np.uint64)).sum())

    @cached_property
    def disjoint(self) -> bool:
        """Whether no two runs overlap."""
        return bool((self.ends[:-1] <= self.starts[1:]).all())

    @cached_property
    def _cover(self) -> tuple[U64Array, U64Array]:
        """Disjoint intervals [start, end) of all that is preserved, ascending."""
        if len(self.starts) == 0:
            return self.starts, self.starts
        if (self.starts[1:] > self.ends[:-1]).all():
            return self.starts, self.ends
        reach = np.maximum.accumulate(self.ends)
        fresh = np.concatenate(([True], self.starts[1:] > reach[:-1]))
        first = fresh.nonzero()[0]
        last = np.append(first[1:] - 1, len(self.starts) - 1)
        return self.starts[first], reach[last]

    def intervals(self) -> tuple[U64Array, U64Array]:
        """(starts, ends) of the disjoint ranges of bytes that are preserved, ascending."""
        return self._cover

    def covers(self, addresses: U64Array, sizes: U64Array | int = 1) -> npt.NDArray[np.bool_]:
        """Whether each range of ``sizes`` bytes at ``addresses`` is wholly preserved."""
        lows, highs = self._cover
        if len(lows) == 0:
            return np.zeros(len(addresses), np.bool_)
        i = np.searchsorted(lows, addresses, side="right") - 1
        end = addresses + np.asarray(sizes, np.uint64)
        return (i >= 0) & (end <= highs[np.maximum(i, 0)]) & (end >= addresses)

    @cached_property
    def _heads(self) -> Heads:
        turns = np.arange(len(self.starts)) if self.turns is None else self.turns
        return Heads(self.page_size, self.starts, self.ends, self.orders, turns)

    def orders_at(self, addresses: U64Array) -> tuple[U8Array, npt.NDArray[np.bool_]]:
        """(order of the block that starts at or holds each address, whether there is one).

        Where blocks overlap, the one that a restore at the address finds: see
        :mod:`inspector.walk.heads`.
        """
        if len(self.starts) == 0:
            return np.zeros(len(addresses), np.uint8), np.zeros(len(addresses), np.bool_)
        if not self.disjoint:
            orders, _, turns = self._heads.at(addresses)
            return orders, turns >= 0
        i = np.searchsorted(self.starts, addresses, side="right") - 1
        j = np.maximum(i, 0)
        found = (i >= 0) & (addresses < self.ends[j])
        return np.where(found, self.orders[j], 0).astype(np.uint8), found

    def heads_at(self, addresses: U64Array) -> npt.NDArray[np.bool_]:
        """Whether a block starts at each address."""
        if len(self.starts) == 0:
            return np.zeros(len(addresses), np.bool_)
        if not self.disjoint:
            return self._heads.at(addresses)[1]
        orders, found = self.orders_at(addresses)
        run = np.maximum(np.searchsorted(self.starts, addresses, side="right") - 1, 0)
        block = np.uint64(self.page_size) << orders.astype(np.uint64)
        return np.asarray(found & ((addresses - self.starts[run]) % block == 0))

    def walked(self) -> Iterator[tuple[npt.NDArray[np.intp], int]]:
        """(numbers of runs, their order), group by group, as the kernel's walk meets them.

        Among runs that do not overlap it makes no difference: those of an order are one group.
        """
        if self.disjoint:
            for order in np.unique(self.orders)[::-1].tolist():
                yield np.flatnonzero(self.orders == order), order
            return
        runs = np.arange(len(self.starts)) if self.turns is None else np.argsort(self.turns)
        cut = np.flatnonzero(self.orders[runs[1:]] != self.orders[runs[:-1]]) + 1
        for group in np.split(runs, cut):
            yield group, int(self.orders[group[0]])

    def blocks(self) -> Iterator[tuple[U64Array, U8Array]]:
        """Every block as (addresses, orders) columns in bounded pieces, ascending.

        Where runs of a broken map overlap, blocks ascend within each run only.
        """
        at = 0
        totals = np.cumsum(self.counts)
        while at < len(self.starts):
            base = int(totals[at - 1]) if at else 0
            end = int(np.searchsorted(totals, base + EXPAND, side="right"))
            if end <= at:
                yield from self._long_run(at)
                at += 1
                continue
            counts = self.counts[at:end].astype(np.int64)
            order = np.repeat(self.orders[at:end], counts)
            first = np.repeat(self.starts[at:end], counts)
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            step = np.uint64(self.page_size) << order.astype(np.uint64)
            yield first + within.astype(np.uint64) * step, order
            at = end

    def _long_run(self, i: int) -> Iterator[tuple[U64Array, U8Array]]:
        start, count, order = int(self.starts[i]), int(self.counts[i]), int(self.orders[i])
        step = np.uint64(self.page_size << order)
        for done in range(0, count, EXPAND):
            n = min(EXPAND, count - done)
            yield (
                np.uint64(start) + (np.arange(n, dtype=np.uint64) + np.uint64(done)) * step,
                np.full(n, order, np.uint8),
            )


def walk_map(
    survey: Survey, generation: KhoGeneration, root: int, *, give_up_after: int = 1 << 62
) -> PreservedMap:
    """The map at physical address ``root``, as ``generation`` lays it out.

    Never raises; ``problems`` and findings ``KHO-MAP-*`` say what made no sense: 001 bad
    node address, 002 node reached twice, 003 key too wide, 004 block beyond memory, 005
    blocks overlap, 006 order impossible, 007 span misplaced, 008 chunk over capacity.
    ``give_up_after`` problems or missing nodes the walk ends (for trials).
    """
    collector = MapCollector(survey, give_up_after, RunColumns(survey.page_size))
    if root:
        if generation.map_kind in (MapKind.BITMAP_512, MapKind.BITMAP_PAGE):
            walk_bitmap_chunks(collector, generation.map_kind, root)
        else:
            interim = generation.map_kind is MapKind.RADIX_INTERIM
            walk_radix(collector, RadixGeometry(survey.page_size, interim=interim), root)
    return _result(collector)


def _result(collector: MapCollector) -> PreservedMap:
    starts, counts, orders, turns = collector.runs.columns()
    collector.survey.budget.spend(Cost.RUNS, len(starts))
    nodes, sizes = collector.node_columns()
    found = PreservedMap(
        collector.survey.page_size,
        starts,
        counts,
        orders,
        nodes,
        sizes,
        collector.problems,
        collector.missing,
    )
    if not collector.runs.ordered and not found.disjoint:
        i = int((found.ends[:-1] > found.starts[1:]).nonzero()[0][0])
        collector.survey.findings.error(
            "KHO-MAP-005",
            f"preserved blocks overlap at {int(found.starts[i + 1]):#x}",
            path=PATH,
            address=int(found.starts[i + 1]),
        )
        return replace(found, turns=turns)
    return found
