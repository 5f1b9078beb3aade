"""The preserved-memory map as a list of chunks of bitmaps (6.16 to 7.0)."""

from __future__ import annotations

import numpy as np

from abi.kho import MapKind, khoser_mem_chunk
from abi.memory_map import bitmap_runs
from inspector.memory.base import PageState, PhysicalMemory, U64Array
from inspector.survey import PHYSICAL_BITS
from inspector.walk.chain import follow
from inspector.walk.map_collector import MAX_ORDER, PATH, MapCollector
from inspector.walk.runs import cut_runs, merge_runs

#: Bitmap pages read at a time.
BATCH = 128
#: Nodes that are looked at for what lies behind a small bitmap.
MOST = 64
#: Changes between bits of an address at least, and addresses that are no chance.
_CHANGES, _SURE = 6, 4
_ONE = np.uint64(1)


def walk_bitmap_chunks(collector: MapCollector, kind: MapKind, root: int) -> None:
    survey, page = collector.survey, collector.survey.page_size
    shift = page.bit_length() - 1
    size = 512 if kind is MapKind.BITMAP_512 else page
    chain = follow(survey, root, PATH, "bitmap chunk", limit=1 << 16)
    if chain.cut:
        collector.missing += 1
    elif not chain.complete:
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
        if order > MAX_ORDER - shift:
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
        bitmaps, spans = collector.first_visits(bitmaps[good], spans[good], seen)
        seen = np.sort(np.concatenate((seen, bitmaps)))
        collector.add_nodes(bitmaps, size)
        whole = _bitmaps(collector, bitmaps, spans, order, size)
        if not whole or collector.hopeless:
            return


def _bitmaps(
    collector: MapCollector, bitmaps: U64Array, spans: U64Array, order: int, size: int
) -> bool:
    """Add what bitmaps have; False if the budget does not allow all of it."""
    shift = np.uint64(order + collector.survey.page_size.bit_length() - 1)
    bits = size * 8
    rank = np.argsort(spans, kind="stable")
    bitmaps, spans = bitmaps[rank], spans[rank]
    for at in range(0, len(bitmaps), BATCH):
        rows = collector.survey.memory.gather(bitmaps[at : at + BATCH], size)
        first, behind = cut_runs(*bitmap_runs(rows.reshape(-1).view("<u8")), bits)
        if not collector.fits(len(first)):
            if len(rows) == 1:
                collector.give_up(int(bitmaps[at]))
                return False
            half = at + len(rows) // 2
            return all(
                _bitmaps(collector, bitmaps[part], spans[part], order, size)
                for part in (slice(at, half), slice(half, None))
            )
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
    return True


def pointers_behind(memory: PhysicalMemory, nodes: U64Array, page_size: int) -> int:
    """How many kernel pointers lie behind the first 512 bytes of bitmaps, as in a slab.

    0 where most of what is there is something else. Bits of preserved pages come in runs: words
    whose upper 16 bits are set and whose others change often are addresses.
    """
    good = memory.states(nodes, page_size) == PageState.PRESENT
    rows = memory.gather(nodes[good][:MOST], page_size)[:, 512:]
    words = np.ascontiguousarray(rows).view("<u8").reshape(-1)
    words = words[words != 0].astype(np.uint64)
    changes = (words ^ (words >> _ONE)) & np.uint64((1 << 46) - 1)
    often = np.unpackbits(changes.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1) >= _CHANGES
    found = int(np.count_nonzero((words >> np.uint64(48) == (1 << 16) - 1) & often))
    return found if found >= _SURE and 4 * found >= len(words) else 0
