"""Which block begins at a page, where blocks of a damaged map overlap.

Early boot goes through the map once and leaves the order of each block with the block's first
page, where a restore finds it later. Of blocks that begin at one page the last one met counts.
In a radix tree (7.1 on) large orders have the smaller keys, so that the smallest block is met
last. In a list of bitmap chunks (6.16 to 7.0) it is the order of the list that counts; kernels
write it by ascending order, so that there the largest block wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inspector.memory.base import U8Array, U64Array

I64Array = npt.NDArray[np.int64]
_NOBODY = -1


@dataclass(frozen=True, slots=True)
class _Layer:
    """Blocks of one order: between ``edges[i]`` and the next one, the turn of the last writer."""

    order: int
    edges: U64Array
    turns: I64Array


class Heads:
    """First pages of blocks that may overlap.

    Run i is ``counts[i]`` neighbouring blocks of ``2 ** orders[i]`` pages from ``starts[i]``
    bytes on, a multiple of the block's size; ``turns[i]`` is its place in the kernel's walk.
    Memory grows with the number of runs, not of blocks.
    """

    def __init__(
        self, page_size: int, starts: U64Array, ends: U64Array, orders: U8Array, turns: I64Array
    ) -> None:
        self._shift = page_size.bit_length() - 1
        self._layers = []
        for order in np.unique(orders).tolist():
            rows = orders == order
            self._layers.append(_Layer(order, *_painted(starts[rows], ends[rows], turns[rows])))

    def at(self, addresses: U64Array) -> tuple[U8Array, npt.NDArray[np.bool_], I64Array]:
        """(order, whether a block begins there, turn of its run or -1) at each address.

        Where no block begins, those of the last one met that holds the address.
        """
        best = np.full(len(addresses), _NOBODY, np.int64)
        begins = np.zeros(len(addresses), np.bool_)
        orders = np.zeros(len(addresses), np.uint8)
        for layer in self._layers:
            i = np.searchsorted(layer.edges, addresses, side="right") - 1
            turn = np.where(i >= 0, layer.turns[np.maximum(i, 0)], _NOBODY)
            head = addresses & np.uint64((1 << self._shift + layer.order) - 1) == 0
            head &= turn != _NOBODY
            better = (head & ~begins) | ((head == begins) & (turn > best))
            best = np.where(better, turn, best)
            begins |= head
            orders[better] = layer.order
        return orders, begins, best


def _painted(starts: U64Array, ends: U64Array, turns: I64Array) -> tuple[U64Array, I64Array]:
    """(ascending edges, the highest turn of the ranges that hold what follows each edge).

    Ranges [start, end) are cut into two that overlap, of 2^k elementary pieces each; going down
    from the largest k, each piece hands its turn to its halves.
    """
    edges = np.unique(np.concatenate((starts, ends)))
    low, high = np.searchsorted(edges, starts), np.searchsorted(edges, ends)
    level = np.frexp((high - low).astype(np.float64))[1] - 1
    best = np.full(len(edges), _NOBODY, np.int64)
    top = int(level.max())
    for k in range(top, -1, -1):
        if k < top:
            upper = best.copy()
            upper[1 << k :] = np.maximum(best[1 << k :], best[: -(1 << k)])
            best = upper
        rows = level == k
        np.maximum.at(best, low[rows], turns[rows])
        np.maximum.at(best, high[rows] - (1 << k), turns[rows])
    return edges, best
