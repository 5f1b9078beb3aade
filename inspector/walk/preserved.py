"""The preserved-memory map: what the old kernel asked the new one not to touch.

Three forms: a list of chunks of bitmaps (6.16 to 7.0; bitmaps of 512 bytes or of a page)
and a radix tree of bitmaps (7.1 on). All give the same result, runs of equal blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from abi.kho import KhoGeneration, MapKind, kho_radix_leaf, kho_radix_node, khoser_mem_chunk
from abi.memory_map import RadixGeometry, bitmap_runs
from inspector.memory.base import PageState, PhysicalMemory, U8Array, U64Array
from inspector.survey import PHYSICAL_BITS, Survey
from inspector.walk.chain import follow
from inspector.walk.runs import RunColumns, cut_runs, merge_runs

PATH = "/preserved"
#: Table or bitmap pages read at a time.
BATCH = 128
#: Up to so many tables of a level are gone through without columns.
FEW = 8
#: Bytes of leaves read at a time, where bits seldom and where they often change.
LEAF_BATCH = 2 << 20
DENSE_BATCH = 128 << 10
#: Times as many where nothing has to be copied.
IN_PLACE = 4
#: Blocks made at a time when runs are expanded.
EXPAND = 1 << 18
_MAX_ORDER = 51
_ONE = np.uint64(1)


@dataclass(frozen=True)
class PreservedMap:
    """Runs of preserved blocks, ascending by address.

    Run i is ``counts[i]`` neighbouring blocks of ``2 ** orders[i]`` pages that start at
    ``starts[i]`` bytes. ``nodes`` are the addresses of the map's own pages and bitmaps,
    ``node_sizes`` their bytes. ``problems`` counts structural anomalies by finding code;
    ``missing`` the nodes that the image lacks.
    """

    page_size: int
    starts: U64Array
    counts: U64Array
    orders: U8Array
    nodes: U64Array
    node_sizes: U64Array
    problems: Counter[str] = field(default_factory=Counter)
    missing: int = 0

    @cached_property
    def run_sizes(self) -> U64Array:
        """Bytes of each run."""
        shift = np.uint8(self.page_size.bit_length() - 1)
        if len(self.orders) and (self.orders == self.orders[0]).all():
            return self.counts << np.uint64(self.orders[0] + shift)
        return self.counts << (self.orders + shift).astype(np.uint64)

    @cached_property
    def ends(self) -> U64Array:
        """First byte behind each run."""
        return self.starts + self.run_sizes

    @property
    def complete(self) -> bool:
        """Whether every node was there and made sense."""
        return not self.problems and not self.missing

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

    def orders_at(self, addresses: U64Array) -> tuple[U8Array, npt.NDArray[np.bool_]]:
        """(order of the block that starts at or holds each address, whether there is one)."""
        if len(self.starts) == 0:
            return np.zeros(len(addresses), np.uint8), np.zeros(len(addresses), np.bool_)
        i = np.searchsorted(self.starts, addresses, side="right") - 1
        j = np.maximum(i, 0)
        found = (i >= 0) & (addresses < self.ends[j])
        return np.where(found, self.orders[j], 0).astype(np.uint8), found

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


@dataclass(slots=True)
class _Collector:
    """Runs, nodes and problems of one walk."""

    survey: Survey
    give_up_after: int
    runs: RunColumns
    nodes: list[U64Array] = field(default_factory=list)
    node_sizes: list[int] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)
    missing: int = 0

    @property
    def hopeless(self) -> bool:
        if not self.problems and not self.missing:
            return False
        return sum(self.problems.values()) + self.missing >= self.give_up_after

    def problem(self, code: str, message: str, address: int) -> None:
        self.problems[code] += 1
        self.survey.findings.error(code, message, path=PATH, address=address)

    def add_nodes(self, addresses: U64Array, size: int) -> None:
        if len(addresses):
            self.nodes.append(addresses)
            self.node_sizes.append(size)
            self.survey.claim("map-node", PATH, addresses, size)

    def usable(self, addresses: U64Array, size: int, align: int) -> npt.NDArray[np.bool_]:
        """Which addresses can be read as nodes; the others become problems."""
        good = (addresses % np.uint64(align) == 0) & (addresses >> np.uint64(PHYSICAL_BITS) == 0)
        for pa in addresses[~good][:64]:
            self.problem("KHO-MAP-001", f"map node {int(pa):#x} is no page address", int(pa))
        present = self.survey.memory.states(np.where(good, addresses, 0), size)
        lacking = good & (present != PageState.PRESENT)
        for pa, state in zip(addresses[lacking], present[lacking], strict=True):
            self.missing += 1
            self.survey.hole(int(pa), PATH, PageState(int(state)))
        return np.asarray(good & ~lacking)

    def add_keys(self, geometry: RadixGeometry, low: U64Array, high: U64Array) -> None:
        """Add the blocks of ascending runs of keys."""
        starts, counts, orders = geometry.decode_runs(low, high)
        if len(orders) and orders[0] > _MAX_ORDER - geometry.page_shift:
            # Orders fall: the impossible ones come first.
            wrong = int(np.count_nonzero(orders > _MAX_ORDER - geometry.page_shift))
            for key in low[: min(wrong, 16)]:
                self.problem("KHO-MAP-006", f"key {int(key):#x} gives an impossible order", 0)
            starts, counts, orders = starts[wrong:], counts[wrong:], orders[wrong:]
        # Of each order the last run reaches farthest.
        last = np.append((orders[1:] != orders[:-1]).nonzero()[0], len(orders) - 1)
        if len(orders) and _far(geometry, starts[last], counts[last], orders[last]).any():
            far = _far(geometry, starts, counts, orders)
            for pa in starts[far][:16]:
                self.problem(
                    "KHO-MAP-004", f"preserved block {int(pa):#x} lies beyond any memory", int(pa)
                )
            starts, counts, orders = starts[~far], counts[~far], orders[~far]
        self.runs.add(starts, counts, orders)

    def result(self) -> PreservedMap:
        page = self.survey.page_size
        starts, counts, orders = self.runs.columns()
        nodes = np.concatenate(self.nodes) if self.nodes else np.empty(0, np.uint64)
        sizes = np.repeat(np.array(self.node_sizes, np.uint64), [len(part) for part in self.nodes])
        found = PreservedMap(
            page, starts, counts, orders, nodes, sizes, self.problems, self.missing
        )
        if not self.runs.ordered and not found.disjoint:
            i = int((found.ends[:-1] > found.starts[1:]).nonzero()[0][0])
            self.survey.findings.error(
                "KHO-MAP-005",
                f"preserved blocks overlap at {int(found.starts[i + 1]):#x}",
                path=PATH,
                address=int(found.starts[i + 1]),
            )
        return found


def walk_map(
    survey: Survey, generation: KhoGeneration, root: int, *, give_up_after: int = 1 << 62
) -> PreservedMap:
    """The map at physical address ``root``, as ``generation`` lays it out.

    Never raises; ``problems`` and findings ``KHO-MAP-*`` say what made no sense: 001 bad
    node address, 002 node reached twice, 003 key too wide, 004 block beyond memory, 005
    blocks overlap, 006 order impossible, 007 span misplaced, 008 chunk over capacity.
    ``give_up_after`` problems or missing nodes the walk ends (for trials).
    """
    collector = _Collector(survey, give_up_after, RunColumns(survey.page_size))
    if root:
        if generation.map_kind in (MapKind.BITMAP_512, MapKind.BITMAP_PAGE):
            _walk_chunks(collector, generation.map_kind, root)
        else:
            interim = generation.map_kind is MapKind.RADIX_INTERIM
            _walk_radix(collector, RadixGeometry(survey.page_size, interim=interim), root)
    return collector.result()


# -- radix tree -----------------------------------------------------------------------------


def _walk_radix(collector: _Collector, geometry: RadixGeometry, root: int) -> None:
    survey, page = collector.survey, collector.survey.page_size
    top, few, met = _narrow_top(collector, geometry, root)
    if not top and len(few) <= FEW:
        few = _usable_few(collector, few, met)
        if few:
            leaves = np.array([pa for pa, _ in few], np.uint64)
            survey.place(kho_radix_leaf(page), leaves, PATH)
            collector.add_nodes(leaves, page)
            _leaves(collector, geometry, leaves, np.array([key for _, key in few], np.uint64))
        return
    addresses = np.array([pa for pa, _ in few], np.uint64)
    prefixes = np.array([prefix for _, prefix in few], np.uint64)
    seen = np.array(sorted(met), np.uint64)
    for level in range(top, -1, -1):
        good = collector.usable(addresses, page, page)
        addresses, prefixes = addresses[good], prefixes[good]
        addresses, prefixes = _first_visits(collector, addresses, prefixes, seen)
        if len(addresses) == 0:
            return
        seen = np.sort(np.concatenate((seen, addresses)))
        if len(seen) > survey.max_nodes:
            collector.problem("KHO-LST-003", "more map nodes than any machine has", root)
            return
        layout = kho_radix_leaf if level == 0 else kho_radix_node
        survey.place(layout(page), addresses, PATH)
        collector.add_nodes(addresses, page)
        if level == 0:
            _leaves(collector, geometry, addresses, prefixes)
            return
        shift = np.uint64((level - 1) * geometry.table_bits + geometry.leaf_bits)
        addresses, prefixes = _children(collector, geometry, addresses, prefixes, shift)
        if collector.hopeless:
            return


def _narrow_top(
    collector: _Collector, geometry: RadixGeometry, root: int
) -> tuple[int, list[tuple[int, int]], dict[int, None]]:
    """Go down as long as a level has few tables, one by one: numpy's calls would cost more.

    Returns the level reached, its (address, prefix) pairs, and the tables met so far, in
    their order. The leaves are never among what is done here.
    """
    survey, page = collector.survey, collector.survey.page_size
    level, nodes, met = geometry.depth - 1, [(root, 0)], dict[int, None]()
    while level and 0 < len(nodes) <= FEW:
        nodes = _usable_few(collector, nodes, met)
        if not nodes:
            break
        column = np.array([pa for pa, _ in nodes], np.uint64)
        met.update(dict.fromkeys(column.tolist()))
        shift = (level - 1) * geometry.table_bits + geometry.leaf_bits
        width = geometry.key_width
        children: list[tuple[int, int]] = []
        wide: list[int] = []
        for (_, prefix), row in zip(nodes, survey.memory.gather(column, page), strict=True):
            words = row.view("<u8")
            slots = words.nonzero()[0]
            for slot, child in zip(slots.tolist(), words[slots].tolist(), strict=True):
                key = prefix | slot << shift
                if key >> width:
                    wide.append(child)
                else:
                    children.append((child, key))
        for pa in wide[:16]:
            collector.problem("KHO-MAP-003", f"map node {pa:#x} has too wide a key", pa)
        level, nodes = level - 1, [] if collector.hopeless else children
    if met:
        tables = np.array(list(met), np.uint64)
        survey.place(kho_radix_node(page), tables, PATH)
        collector.add_nodes(tables, page)
    return level, nodes, met


def _usable_few(
    collector: _Collector, nodes: list[tuple[int, int]], met: Container[int]
) -> list[tuple[int, int]]:
    """As :meth:`_Collector.usable` and :func:`_first_visits`, for a few nodes."""
    memory, page = collector.survey.memory, collector.survey.page_size
    aligned = []
    for pa, prefix in nodes:
        if pa % page or pa >> PHYSICAL_BITS:
            collector.problem("KHO-MAP-001", f"map node {pa:#x} is no page address", pa)
        else:
            aligned.append((pa, prefix))
    fresh, here = [], set[int]()
    present = []
    for pa, prefix in aligned:
        state = memory.state(pa, page)
        if state is PageState.PRESENT:
            present.append((pa, prefix))
        else:
            collector.missing += 1
            collector.survey.hole(pa, PATH, state)
    for pa, prefix in present:
        if pa in met or pa in here:
            collector.problem("KHO-MAP-002", f"map node {pa:#x} is reached twice", pa)
        else:
            here.add(pa)
            fresh.append((pa, prefix))
    return fresh


def _first_visits(
    collector: _Collector, addresses: U64Array, prefixes: U64Array, seen: U64Array
) -> tuple[U64Array, U64Array]:
    """Drop nodes met before: the kernel never shares them, and a hostile map would."""
    rank = np.argsort(addresses, kind="stable")
    ascending = addresses[rank]
    fresh = np.ones(len(addresses), np.bool_)
    fresh[rank[1:][ascending[1:] == ascending[:-1]]] = False
    fresh &= ~_among(addresses, seen)
    for pa in addresses[~fresh][:64]:
        collector.problem("KHO-MAP-002", f"map node {int(pa):#x} is reached twice", int(pa))
    return addresses[fresh], prefixes[fresh]


def _among(values: U64Array, ascending: U64Array) -> npt.NDArray[np.bool_]:
    """Which values occur in a sorted column."""
    if len(ascending) == 0:
        return np.zeros(len(values), np.bool_)
    at = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return np.asarray(ascending[at] == values)


def _children(
    collector: _Collector,
    geometry: RadixGeometry,
    tables: U64Array,
    prefixes: U64Array,
    shift: np.uint64,
) -> tuple[U64Array, U64Array]:
    found: list[U64Array] = []
    keys: list[U64Array] = []
    room = 64 - int(shift)
    for at in range(0, len(tables), BATCH):
        words = collector.survey.memory.gather(
            tables[at : at + BATCH], collector.survey.page_size
        ).view("<u8")
        row, slot = np.nonzero(words)
        child = words[row, slot].astype(np.uint64, copy=False)
        slot_bits = slot.astype(np.uint64)
        wide = slot_bits >> np.uint64(room) != 0 if room < 64 else np.zeros(len(slot), np.bool_)
        key = prefixes[at + row] | (slot_bits << shift)
        wide |= key >> np.uint64(geometry.key_width) != 0
        for pa in child[wide][:16]:
            collector.problem("KHO-MAP-003", f"map node {int(pa):#x} has too wide a key", int(pa))
        found.append(child[~wide])
        keys.append(key[~wide])
        if collector.hopeless:
            break
    return np.concatenate(found), np.concatenate(keys)


def _leaves(
    collector: _Collector, geometry: RadixGeometry, leaves: U64Array, prefixes: U64Array
) -> None:
    page = collector.survey.page_size
    rank = np.argsort(prefixes, kind="stable")
    leaves, prefixes = leaves[rank], prefixes[rank]
    few, many = max(DENSE_BATCH // page, 1), max(LEAF_BATCH // page, 1)
    buffer = np.empty((many, page), np.uint8)
    at, batch = 0, few
    while at < len(leaves):
        end = min(at + batch * IN_PLACE, len(leaves))
        rows = _in_place(collector.survey.memory, leaves[at:end], page)
        if rows is None:
            end = min(at + batch, len(leaves))
            rows = collector.survey.memory.gather(leaves[at:end], page, buffer)
        first, behind = bitmap_runs(rows.reshape(-1).view("<u8"))
        _leaf_runs(collector, geometry, first, behind, prefixes[at:end])
        # Where bits change all the time, what is made of fewer pages stays in the cache.
        batch = few if len(first) > rows.size // 16 else many
        at = end
        collector.runs.expected = len(collector.runs) * len(leaves) // at * 9 // 8


def _in_place(memory: PhysicalMemory, addresses: U64Array, page: int) -> U8Array | None:
    """Pages as rows where they lie, if they lie one behind the other and can be seen there."""
    first, size = int(addresses[0]), len(addresses) * page
    if int(addresses[-1]) != first + size - page or (addresses[1:] <= addresses[:-1]).any():
        return None
    span = memory.span(first)
    if span is None or first + size > span.end:
        return None
    return np.frombuffer(span.data, np.uint8, size, first - span.start).reshape(-1, page)


def _leaf_runs(
    collector: _Collector,
    geometry: RadixGeometry,
    first: npt.NDArray[np.int64],
    behind: npt.NDArray[np.int64],
    prefixes: U64Array,
) -> None:
    """Add the runs of bits of leaves of ascending prefixes that lie one behind the other."""
    bits = 1 << geometry.leaf_bits
    low, high = int(prefixes[0]), int(prefixes[-1]) + bits
    if high - low == len(prefixes) * bits:
        order = 64 - geometry.page_shift - (low.bit_length() - 1)
        shift = geometry.page_shift + order
        base = (low << shift) & ((1 << 64) - 1)
        reach = base + (len(prefixes) * bits << shift)
        if (
            low.bit_length() == (high - 1).bit_length()
            and order <= _MAX_ORDER - geometry.page_shift
            and reach >> PHYSICAL_BITS == 0
        ):  # blocks of one possible order, as always but at the edges
            collector.runs.add_bits(first, behind, base, order)
            return
        offset = prefixes[0]
        collector.add_keys(
            geometry, first.view(np.uint64) + offset, behind.view(np.uint64) + offset
        )
        return
    first, behind = cut_runs(first, behind, bits)
    offsets = prefixes - np.arange(len(prefixes), dtype=np.uint64) * np.uint64(bits)
    offsets = offsets[first >> geometry.leaf_bits]
    collector.add_keys(
        geometry, *merge_runs(first.view(np.uint64) + offsets, behind.view(np.uint64) + offsets)
    )


def _far(
    geometry: RadixGeometry, starts: U64Array, counts: U64Array, orders: U8Array
) -> npt.NDArray[np.bool_]:
    """Which runs reach beyond any physical address."""
    reach = (counts - _ONE) << (orders + np.uint8(geometry.page_shift)).astype(np.uint64)
    far: npt.NDArray[np.bool_] = (starts | (starts + reach)) >> np.uint64(PHYSICAL_BITS) != 0
    return far


# -- chunks of bitmaps ------------------------------------------------------------------------


def _walk_chunks(collector: _Collector, kind: MapKind, root: int) -> None:
    survey, page = collector.survey, collector.survey.page_size
    shift = page.bit_length() - 1
    size = 512 if kind is MapKind.BITMAP_512 else page
    chain = follow(survey, root, PATH, "bitmap chunk", limit=1 << 16)
    if not chain.complete:
        collector.problems["KHO-MAP-001"] += 1
    collector.add_nodes(chain.pages, page)
    survey.place(khoser_mem_chunk(page), chain.pages, PATH)
    capacity = (page - 16) // 16
    seen = np.empty(0, np.uint64)
    for address in chain.pages.tolist():
        raw = survey.read(address, page, PATH)
        if raw is None:
            collector.missing += 1
            continue
        order = int.from_bytes(raw[8:12], "little")
        count = int.from_bytes(raw[12:16], "little")
        if order > _MAX_ORDER - shift:
            collector.problem("KHO-MAP-006", f"chunk of impossible order {order}", address)
            continue
        if count > capacity:
            collector.problem(
                "KHO-MAP-008", f"chunk counts {count} bitmaps, capacity {capacity}", address
            )
        used = min(count, capacity)
        pairs = np.frombuffer(raw, "<u8", 2 * used, 16).reshape(used, 2).astype(np.uint64)
        spans, bitmaps = pairs[:, 0], pairs[:, 1]
        unit = np.uint64((size * 8) << (order + shift)) if (order + shift) < 40 else None
        misplaced = spans % unit != 0 if unit else spans != 0
        for pa in spans[misplaced][:16]:
            collector.problem(
                "KHO-MAP-007",
                f"bitmap of order {order} starts at {int(pa):#x}, no multiple of its span",
                address,
            )
        good = collector.usable(bitmaps, size, size) & ~misplaced
        bitmaps, spans = _first_visits(collector, bitmaps[good], spans[good], seen)
        seen = np.sort(np.concatenate((seen, bitmaps)))
        collector.add_nodes(bitmaps, size)
        _bitmaps(collector, bitmaps, spans, order, size)
        if collector.hopeless:
            return


def _bitmaps(
    collector: _Collector, bitmaps: U64Array, spans: U64Array, order: int, size: int
) -> None:
    shift = np.uint64(order + collector.survey.page_size.bit_length() - 1)
    bits = size * 8
    rank = np.argsort(spans, kind="stable")
    bitmaps, spans = bitmaps[rank], spans[rank]
    for at in range(0, len(bitmaps), BATCH):
        rows = collector.survey.memory.gather(bitmaps[at : at + BATCH], size)
        first, behind = cut_runs(*bitmap_runs(rows.reshape(-1).view("<u8")), bits)
        row = first // bits
        base = spans[at + row] - (row.astype(np.uint64) * np.uint64(bits) << shift)
        low = base + (first.astype(np.uint64) << shift)
        high = base + (behind.astype(np.uint64) << shift)
        far = high >> np.uint64(PHYSICAL_BITS) != 0
        for pa in low[far][:16]:
            collector.problem(
                "KHO-MAP-004", f"preserved block {int(pa):#x} lies beyond any memory", int(pa)
            )
        low, high = merge_runs(low[~far], high[~far])
        orders = np.full(len(low), order, np.uint8)
        collector.runs.add(low, (high - low) >> shift, orders)
