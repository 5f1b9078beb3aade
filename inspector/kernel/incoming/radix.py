"""The walk of a damaged map, step by step as a kernel does it.

:mod:`inspector.walk.preserved` refuses what no writer makes: nodes that are no pages, nodes met
twice. The kernel looks at none of that. It goes wherever a pointer leads, again if need be, and
what it takes for a leaf it takes for bits. Slower, and only for maps that are not sound.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import numpy as np

from abi.memory_map import RadixGeometry, bitmap_runs
from inspector.kernel.incoming.view import Absent, PageFault, View
from inspector.memory.base import U8Array, U64Array

#: The kernel needs about a second for so many tables; nobody waits for a longer walk.
MAX_VISITS = 1 << 18
#: Blocks reserved one by one: each costs a search in memblock's sorted array.
MAX_BLOCKS = 1 << 22
_MAX_ORDER = 51
_M64 = (1 << 64) - 1


@dataclass(slots=True)
class Walk:
    """What a walk met, in its order.

    ``starts``, ``counts`` and ``orders`` are runs of blocks; ``nodes`` the pages that were read
    as tables and leaves; ``fatal`` what kills the kernel: (message, address, bytes).
    """

    starts: list[U64Array] = field(default_factory=list)
    counts: list[U64Array] = field(default_factory=list)
    orders: list[U8Array] = field(default_factory=list)
    nodes: dict[int, None] = field(default_factory=dict)
    fatal: list[tuple[str, int, bytes]] = field(default_factory=list)
    absent: list[int] = field(default_factory=list)
    visits: int = 0
    blocks: int = 0


class _Ended(Exception):
    """The walk is over: the kernel is dead or busy for ever."""


def walk(view: View, geometry: RadixGeometry, root: int) -> Walk:
    """Follow the map from ``root``."""
    found = Walk()
    known: dict[int, bytes] = {}
    with contextlib.suppress(_Ended):
        _table(view, geometry, found, known, root, geometry.depth - 1, 0)
    return found


def _node(view: View, found: Walk, known: dict[int, bytes], at: int) -> bytes | None:
    found.visits += 1
    if found.visits > MAX_VISITS:
        found.fatal.append(
            ("nodes that are reached again and again: the walk does not end in time", at, b"")
        )
        raise _Ended
    if at in known:
        return known[at]
    try:
        data = view.read(at, view.page_size)
    except Absent as lack:
        found.absent.append(lack.address)
        return None
    except PageFault as fault:
        found.fatal.append((f"map node {at:#x} is outside memory", fault.address, b""))
        raise _Ended from None
    known[at] = data
    found.nodes[at] = None
    return data


def _table(
    view: View, geometry: RadixGeometry, found: Walk, known: dict[int, bytes],
    at: int, level: int, prefix: int,
) -> None:  # fmt: skip
    data = _node(view, found, known, at)
    if data is None:
        return
    if not level:
        _leaf(geometry, found, data, prefix, at)
        return
    words = np.frombuffer(data, "<u8")
    slots = np.flatnonzero(words)
    shift = geometry.shift(level)
    for slot, child in zip(slots.tolist(), words[slots].tolist(), strict=True):
        key = prefix | slot << shift & _M64
        _table(view, geometry, found, known, child, level - 1, key)


def _leaf(geometry: RadixGeometry, found: Walk, data: bytes, prefix: int, at: int) -> None:
    low, high = bitmap_runs(np.frombuffer(data, "<u8"))
    if not len(low):
        return
    first, last = prefix | int(low[0]), prefix | int(high[-1]) - 1
    if first == 0 or last >> geometry.key_width:
        found.fatal.append((f"leaf {at:#x} has a key that is none, {first:#x}", at, data[:16]))
        raise _Ended
    base = np.uint64(prefix)
    starts, counts, orders = geometry.decode_runs(
        base | low.astype(np.uint64), base + high.astype(np.uint64)
    )
    if (orders > _MAX_ORDER - geometry.page_shift).any():
        found.fatal.append((f"key {first:#x} gives an impossible order", at, data[:16]))
        raise _Ended
    found.starts.append(starts)
    found.counts.append(counts)
    found.orders.append(orders)
    found.blocks += int(counts.sum())
    if found.blocks > MAX_BLOCKS:
        found.fatal.append(("more blocks than the walk can reserve in time", at, b""))
        raise _Ended
