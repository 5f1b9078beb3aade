"""Page bitmaps: membership, rank and runs of set bits, in bulk.

A bitmap of a large dump stays where it is, in the mapped file; only the number of set
bits before every 1024th is kept (1/16 of its size), and nothing for holes of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from inspector.memory.base import U8Array, U64Array
from inspector.memory.segments import I64Array

BoolArray = npt.NDArray[np.bool_]

_BLOCK_WORDS = 16
_BLOCK_SHIFT = 10  # a block has 1024 bits
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
        self._before: tuple[I64Array, I64Array, I64Array, I64Array] | None = None

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
        first, count, place, before = self._directory()
        pfns = np.minimum(pfns, np.uint64(self.bits)).astype(np.int64)
        if not len(first):
            return np.zeros(len(pfns), np.int64)
        block = pfns >> _BLOCK_SHIFT
        chunk = np.maximum(np.searchsorted(first, block, "right") - 1, 0)
        inside = np.clip(block - first[chunk], 0, count[chunk])
        ranks: I64Array = before[place[chunk] + inside]
        column = np.arange(_BLOCK_WORDS)
        last = len(self._words) - 1
        for at in range(0, len(pfns), 4096):
            part = pfns[at : at + 4096]
            index = (part >> _BLOCK_SHIFT)[:, None] * _BLOCK_WORDS + column
            words = self._words[np.minimum(index, last)]
            keep = np.clip(part[:, None] - index * 64, 0, 64)
            # A shift by 64 is undefined: halve it, and drop the rest by hand.
            shift = (64 - keep).astype(np.uint64)
            mask = np.where(keep == 0, np.uint64(0), _ALL >> np.minimum(shift, np.uint64(63)))
            counts = popcount(np.ascontiguousarray(words & mask).reshape(-1))
            ranks[at : at + 4096] += counts.reshape(words.shape).sum(axis=1, dtype=np.int64)
        return ranks

    def _directory(self) -> tuple[I64Array, I64Array, I64Array, I64Array]:
        """Bits before each block of 1024, of the chunks that hold data.

        Per chunk: first block, number of blocks, and where its numbers begin in the last
        column, which has one more than blocks for each chunk.
        """
        if self._before is None:
            rows, before = [], [np.zeros(0, np.int64)]
            place = total = 0
            for first, end in self.chunks():
                found = popcount(self.words(first, end)).astype(np.int64)
                counts = np.add.reduceat(found, np.arange(0, end - first, _BLOCK_WORDS))
                rows.append((first // _BLOCK_WORDS, len(counts), place))
                before.append(np.concatenate(([total], total + np.cumsum(counts))))
                place += len(counts) + 1
                total = int(before[-1][-1])
            columns = np.array(rows, np.int64).reshape(-1, 3).T
            self._before = columns[0], columns[1], columns[2], np.concatenate(before)
        return self._before

    def runs(self) -> int:
        """Number of runs of set bits."""
        total = carry = behind = 0
        for first, end in self.chunks():
            words = self.words(first, end)
            # A run begins where a bit is set and the one before is not.
            before = words << np.uint64(1)
            before[1:] |= words[:-1] >> np.uint64(63)
            before[:1] |= np.uint64(carry if first == behind else 0)
            total += int(popcount(words & ~before).sum(dtype=np.int64))
            carry, behind = int(words[-1]) >> 63, end
        return total

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Ranges of words that cover all data, beginning at whole blocks, ascending."""
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
        for first, end in self.chunks():
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
