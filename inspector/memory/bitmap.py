"""Page bitmaps: membership, rank and runs of set bits, in bulk.

A bitmap of a large dump stays where it is, in the mapped file; only the number of set
bits before every 4096th is kept (1/64 of its size).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from inspector.memory.base import U8Array, U64Array
from inspector.memory.segments import I64Array

BoolArray = npt.NDArray[np.bool_]

_BLOCK_WORDS = 64
_CHUNK_WORDS = 1 << 16
_ALL = np.uint64((1 << 64) - 1)

#: ``data_ranges(first byte, end)``: where the bitmap has bytes that are not holes.
ByteRanges = Callable[[int, int], Iterator[tuple[int, int]]]

_COUNT_OF_BYTE = np.array([bin(i).count("1") for i in range(256)], np.uint8)


def popcount(words: U64Array) -> U8Array:
    """Number of set bits of each word."""
    count = getattr(np, "bitwise_count", None)  # numpy 2
    if count is not None:
        counts: U8Array = count(words)
    else:
        counts = _COUNT_OF_BYTE[words.view(np.uint8)].reshape(-1, 8).sum(axis=1, dtype=np.uint8)
    return counts


class PageBitmap:
    """One bit per page frame, least significant first; ``bits`` of them count."""

    def __init__(self, words: U64Array, bits: int, data_ranges: ByteRanges) -> None:
        """``words`` (little endian) hold at least ``bits`` bits."""
        self.bits = bits
        self._words = words
        self._data_ranges = data_ranges
        self._before: I64Array | None = None

    def words(self, first: int, end: int) -> U64Array:
        """Words ``[first, end)``, the last one without bits that do not count. May be a view."""
        words = self._words[first:end]
        if end * 64 > self.bits and len(words):
            words = words.copy()
            words[self.bits // 64 - first] &= _ALL >> np.uint64(-self.bits % 64)
        return words

    def test(self, pfns: U64Array) -> BoolArray:
        """Whether each page frame's bit is set; False beyond the end."""
        inside: BoolArray = pfns < np.uint64(self.bits)
        if not self.bits:
            return inside
        index = np.where(inside, pfns, np.uint64(0))
        word = self._words[(index >> np.uint64(6)).astype(np.int64)]
        inside &= (word >> (index & np.uint64(63)) & np.uint64(1)) != 0
        return inside

    def rank(self, pfns: U64Array) -> I64Array:
        """Number of set bits before each page frame."""
        before = self._directory()
        pfns = np.minimum(pfns, np.uint64(self.bits)).astype(np.int64)
        ranks: I64Array = before[pfns >> 12]
        column = np.arange(_BLOCK_WORDS)
        last = max(len(self._words) - 1, 0)
        for at in range(0, len(pfns) if len(self._words) else 0, 4096):
            part = pfns[at : at + 4096]
            index = (part >> 12)[:, None] * _BLOCK_WORDS + column
            words = self._words[np.minimum(index, last)]
            keep = np.clip(part[:, None] - index * 64, 0, 64)
            # A shift by 64 is undefined: halve it, and drop the rest by hand.
            shift = (64 - keep).astype(np.uint64)
            mask = np.where(keep == 0, np.uint64(0), _ALL >> np.minimum(shift, np.uint64(63)))
            counts = popcount(np.ascontiguousarray(words & mask).reshape(-1))
            ranks[at : at + 4096] += counts.reshape(words.shape).sum(axis=1, dtype=np.int64)
        return ranks

    def _directory(self) -> I64Array:
        if self._before is None:
            blocks = self.bits // (64 * _BLOCK_WORDS) + 1
            counts = np.zeros(blocks + 1, np.int64)
            for first, end in self._chunks():
                found = popcount(self.words(first, end)).astype(np.int64)
                starts = np.arange(0, end - first, _BLOCK_WORDS)
                block = first // _BLOCK_WORDS
                counts[block + 1 : block + 1 + len(starts)] += np.add.reduceat(found, starts)
            self._before = np.cumsum(counts)
        return self._before

    def _chunks(self) -> Iterator[tuple[int, int]]:
        """Word ranges that cover all data, beginning at whole blocks, ascending, disjoint."""
        total = (self.bits + 63) // 64
        block = 8 * _BLOCK_WORDS
        done = 0
        for start, stop in self._data_ranges(0, total * 8):
            first = max(start // block * _BLOCK_WORDS, done)
            done = last = min(-(-stop // block) * _BLOCK_WORDS, total)
            while first < last:
                end = min(first + _CHUNK_WORDS, last)
                yield first, end
                first = end

    def set_bits(self) -> Iterator[I64Array]:
        """Page frames whose bit is set, ascending, in chunks."""
        for first, end in self._chunks():
            for at in range(first, end, 1 << 12):
                words = self.words(at, min(at + (1 << 12), end))
                if words.any():
                    yield bit_positions(words) + at * 64


def bit_positions(words: U64Array) -> I64Array:
    """Positions of the set bits."""
    some = np.flatnonzero(words)
    picked = np.ascontiguousarray(words[some])
    bits = np.unpackbits(picked.view(np.uint8), bitorder="little").view(np.bool_)
    found = np.flatnonzero(bits)
    positions: I64Array = some[found >> 6] * 64 + (found & 63)
    return positions


def edge_positions(words: U64Array, carry: int) -> I64Array:
    """Positions at which a bit differs from the one before; ``carry`` is the one before."""
    before = words << np.uint64(1)
    before[1:] |= words[:-1] >> np.uint64(63)
    before[:1] |= np.uint64(carry)
    return bit_positions(words ^ before)
