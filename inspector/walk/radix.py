"""The preserved-memory map as a radix tree (7.1 on): tables of tables, leaves of bits."""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import numpy.typing as npt

from abi.kho import kho_radix_leaf, kho_radix_node
from abi.memory_map import RadixGeometry, bitmap_runs
from inspector.memory.base import PageState, PhysicalMemory, U8Array, U64Array
from inspector.survey import PHYSICAL_BITS
from inspector.walk.map_collector import MAX_ORDER, PATH, MapCollector
from inspector.walk.runs import cut_runs, merge_runs

#: Table pages read at a time.
BATCH = 128
#: Up to so many tables of a level are gone through without columns.
FEW = 8
#: Bytes of leaves read at a time, where bits seldom and where they often change.
LEAF_BATCH = 2 << 20
DENSE_BATCH = 128 << 10
#: Times as many where nothing has to be copied.
IN_PLACE = 4
_ONE = np.uint64(1)


def walk_radix(collector: MapCollector, geometry: RadixGeometry, root: int) -> None:
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
        addresses, prefixes = collector.first_visits(addresses, prefixes, seen)
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
    collector: MapCollector, geometry: RadixGeometry, root: int
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
    collector: MapCollector, nodes: list[tuple[int, int]], met: Container[int]
) -> list[tuple[int, int]]:
    """As :meth:`MapCollector.usable` and :meth:`MapCollector.first_visits`, for a few nodes."""
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


def _children(
    collector: MapCollector,
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
    collector: MapCollector, geometry: RadixGeometry, leaves: U64Array, prefixes: U64Array
) -> None:
    page = collector.survey.page_size
    rank = np.argsort(prefixes, kind="stable")
    leaves, prefixes = leaves[rank], prefixes[rank]
    few, many = max(DENSE_BATCH // page, 1), max(LEAF_BATCH // page, 1)
    buffer = np.empty((many, page), np.uint8)
    at, batch, at_once = 0, few, len(leaves)
    while at < len(leaves):
        end = min(at + batch * IN_PLACE, at + at_once, len(leaves))
        rows = _in_place(collector.survey.memory, leaves[at:end], page)
        if rows is None:
            end = min(at + batch, at + at_once, len(leaves))
            rows = collector.survey.memory.gather(leaves[at:end], page, buffer)
        first, behind = bitmap_runs(rows.reshape(-1).view("<u8"))
        if not collector.fits(len(first) + end - at):
            if end - at > 1:
                at_once = (end - at) // 2
                continue
            collector.give_up(int(leaves[at]))
            return
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
    collector: MapCollector,
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
            and order <= MAX_ORDER - geometry.page_shift
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
