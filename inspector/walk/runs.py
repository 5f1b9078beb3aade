"""Runs of blocks, collected as columns: what all forms of the preserved-memory map give."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from inspector.memory.base import U8Array, U64Array

I64Array = npt.NDArray[np.int64]

_FIRST_ROOM = 1 << 12
_MOST_EXPECTED = 1 << 27


class RunColumns:
    """Runs as (first address, number of blocks, order) columns that grow.

    A run that goes on where the last one ended, with the same order, extends it.
    ``ordered`` tells whether each run so far begins at or behind the end of the one before.
    ``expected`` is a guess at how many runs there will be: it saves copies, no more.
    """

    def __init__(self, page_size: int) -> None:
        self._shift = page_size.bit_length() - 1
        self._starts = np.empty(_FIRST_ROOM, np.uint64)
        self._counts = np.empty(_FIRST_ROOM, np.uint64)
        self._orders = np.empty(_FIRST_ROOM, np.uint8)
        self._used = 0
        self._end = 0
        self.ordered = True
        self.expected = 0

    def __len__(self) -> int:
        return self._used

    def add(self, starts: U64Array, counts: U64Array, orders: U8Array) -> None:
        """Add runs, in any order, none beyond 2^64."""
        if len(starts) and self._joins(int(starts[0]), int(counts[0]), int(orders[0])):
            starts, counts, orders = starts[1:], counts[1:], orders[1:]
        if not len(starts):
            return
        at, end = self._room(len(starts))
        self._starts[at:end], self._counts[at:end], self._orders[at:end] = starts, counts, orders
        ends = starts + (counts << (orders + np.uint8(self._shift)).astype(np.uint64))
        if self.ordered:
            self.ordered = int(starts[0]) >= self._end and bool((starts[1:] >= ends[:-1]).all())
        self._end = int(ends[-1])

    def add_bits(self, first: I64Array, behind: I64Array, base: int, order: int) -> None:
        """Add the runs of bits [first, behind) of a bitmap whose bit 0 stands for ``base``.

        The runs ascend and do not touch, as :func:`abi.memory_map.bitmap_runs` gives them.
        """
        shift = self._shift + order
        if len(first) and self._joins(
            base + (int(first[0]) << shift), int(behind[0] - first[0]), order
        ):
            first, behind = first[1:], behind[1:]
        if not len(first):
            return
        at, end = self._room(len(first))
        starts = self._starts[at:end]
        np.left_shift(first.view(np.uint64), np.uint64(shift), out=starts)
        starts += np.uint64(base)
        np.subtract(behind.view(np.uint64), first.view(np.uint64), out=self._counts[at:end])
        self._orders[at:end] = order
        self.ordered = self.ordered and int(starts[0]) >= self._end
        self._end = base + (int(behind[-1]) << shift)

    def _joins(self, start: int, count: int, order: int) -> bool:
        last = self._used - 1
        if last < 0 or start != self._end or int(self._orders[last]) != order:
            return False
        self._counts[last] += np.uint64(count)
        self._end += count << (self._shift + order)
        return True

    def _room(self, count: int) -> tuple[int, int]:
        at, end = self._used, self._used + count
        if end > len(self._starts):
            # What is never written costs nothing, but for a guess that is far too high.
            size = max(end + end // 2, min(self.expected, _MOST_EXPECTED))
            self._starts, self._counts, self._orders = (
                _grown(column[:at], size) for column in (self._starts, self._counts, self._orders)
            )
        self._used = end
        return at, end

    def columns(self) -> tuple[U64Array, U64Array, U8Array, I64Array | None]:
        """The columns, sorted by address and order; views, so add nothing afterwards.

        The last one tells when each run was added; None if in this very order.
        """
        starts, counts = self._starts[: self._used], self._counts[: self._used]
        orders = self._orders[: self._used]
        if not self.ordered and not (starts[1:] >= starts[:-1]).all():
            rank = np.lexsort((orders, starts))
            return starts[rank], counts[rank], orders[rank], rank
        return starts, counts, orders, None


def _grown(column: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    grown = np.empty(size, column.dtype)
    grown[: len(column)] = column
    return grown


def cut_runs(first: I64Array, behind: I64Array, bits: int) -> tuple[I64Array, I64Array]:
    """Cut runs of bit numbers at multiples of ``bits``, a power of two."""
    shift = bits.bit_length() - 1
    pieces = ((behind - 1) >> shift) - (first >> shift) + 1
    if (pieces == 1).all():
        return first, behind
    which = np.repeat(np.arange(len(first)), pieces)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    edge = ((first[which] >> shift) + nth) << shift
    return np.maximum(first[which], edge), np.minimum(behind[which], edge + bits)


def merge_runs(low: U64Array, high: U64Array) -> tuple[U64Array, U64Array]:
    """Join ascending runs [low, high) that touch."""
    touching = low[1:] == high[:-1]
    if not touching.any():
        return low, high
    return low[np.append(True, ~touching)], high[np.append(~touching, True)]
