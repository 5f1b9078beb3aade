"""Arithmetic of the preserved-memory map: what its keys and bits stand for.

Pure numbers, no memory: the walk over the nodes is :mod:`inspector.walk.preserved`. Columns are
numpy arrays; physical addresses and keys are uint64, orders uint8, bit numbers int64.

Source: the chunk list of Linux 6.16 to 7.0, the radix tree of 7.1 to 7.3 and of the commit
that first had it (``interim``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_ONE, _TOP = np.uint64(1), np.uint64(63)
_MASK64 = (1 << 64) - 1


def page_shift(page_size: int) -> int:
    """log2 of a page size."""
    return page_size.bit_length() - 1


def top_bits(values: U64) -> I64:
    """Index of the highest set bit of each value; -1 for 0."""
    # Dropping every bit below another set one keeps the top bit and makes the conversion to
    # floating point exact enough: nothing rounds up to the next power of two.
    lone = values & ~(values >> _ONE)
    exponent = lone.astype(np.float64).view(np.int64) >> 52
    return np.where(values == 0, np.int64(-1), exponent - 1023)


def trailing_zeros(values: U64) -> I64:
    """Number of zero bits below the lowest set one; 64 for 0."""
    lowest = values & (~values + _ONE)
    found = top_bits(lowest)
    found[values == 0] = 64
    return found


# -- radix tree -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RadixGeometry:
    """Keys and shape of the tree for one page size.

    The key of a block is a one bit, whose position tells the order, above the block's
    number. Level 0 is the leaf, a page of bits; the root is the table at level ``depth - 1``.

    ``interim`` is the formula of ``kho-v2``, which forgot the one bit of order 0: with 16K
    pages that tree is a level too short, and :meth:`index` lets go of the bit as the
    kernel did.
    """

    page_size: int
    interim: bool = False

    @property
    def page_shift(self) -> int:
        """log2 of the page size."""
        return page_shift(self.page_size)

    @property
    def leaf_bits(self) -> int:
        """Key bits that a leaf resolves: it has 2^leaf_bits bits."""
        return self.page_shift + 3

    @property
    def table_bits(self) -> int:
        """Key bits that a table resolves: it has 2^table_bits entries."""
        return self.page_shift - 3

    @property
    def key_width(self) -> int:
        """Bits of the widest key, that of order 0."""
        return 64 - self.page_shift + 1

    @property
    def depth(self) -> int:
        """Levels, the leaf included (KHO_TREE_MAX_DEPTH)."""
        width = self.key_width - (1 if self.interim else 0)
        return -(-(width - self.leaf_bits) // self.table_bits) + 1

    @property
    def reach(self) -> int:
        """Key bits that the tree can tell apart; less than key_width means aliasing."""
        return self.shift(self.depth)

    def shift(self, level: int) -> int:
        """Key bits resolved below ``level``: 0 for a leaf."""
        return self.leaf_bits + (level - 1) * self.table_bits if level else 0

    @overload
    def key(self, pa: int, order: int) -> int: ...
    @overload
    def key(self, pa: U64, order: U8 | int) -> U64: ...
    def key(self, pa: int | U64, order: int | U8) -> int | U64:
        """The key of the block of ``2 ** order`` pages at physical address ``pa``."""
        if isinstance(pa, np.ndarray):
            orders = np.asarray(order).astype(np.uint64)
            marker = _ONE << (np.uint64(64 - self.page_shift) - orders)
            return marker | pa >> (np.uint64(self.page_shift) + orders)
        return 1 << (64 - self.page_shift - int(order)) | pa >> (self.page_shift + int(order))

    def decode(self, key: int) -> tuple[int, int]:
        """(order, physical address) of a key. Raises ValueError for 0 and keys too wide."""
        if not 0 < key < 1 << self.key_width:
            raise ValueError(f"{key:#x} is no key: 1 to {self.key_width} bits")
        order = 64 - self.page_shift - (key.bit_length() - 1)
        return order, key << (self.page_shift + order) & _MASK64

    def decode_keys(self, keys: U64) -> tuple[U64, U8]:
        """(physical addresses, orders) of keys.

        Keys that :meth:`decode` would refuse get order 255 and address 0.
        """
        top = top_bits(keys)
        bad = (keys == 0) | (top >= self.key_width)
        orders = np.where(bad, 0, 64 - self.page_shift - top)
        # The marker bit falls off; shifting by 64 gives 0 in numpy.
        shifted = keys << (orders + self.page_shift).astype(np.uint64)
        shifted[bad] = 0
        return shifted, np.where(bad, 255, orders).astype(np.uint8)

    def decode_runs(self, low: U64, high: U64) -> tuple[U64, U64, U8]:
        """Runs of keys [low, high) as (first address, number of blocks, order) columns.

        The runs ascend and do not overlap. A run that goes on into the keys of the next
        smaller order is cut there. Keys that :meth:`decode` would refuse get order 255 and
        address 0.
        """
        top = int(low[0]).bit_length() - 1 if len(low) else -1
        if 0 <= top < self.key_width and int(high[-1]) <= 2 << top:  # one order: the usual case
            orders = np.full(len(low), 64 - self.page_shift - top, np.uint8)
            return low << np.uint64(64 - top), high - low, orders
        edges = _ONE << np.arange(self.key_width + 1, dtype=np.uint64)
        before = np.searchsorted(low, edges) - 1
        crossing = (before >= 0) & (high[np.maximum(before, 0)] > edges) if len(low) else edges < 0
        if crossing.any():
            before, cuts = before[crossing], edges[crossing]
            low, high = np.insert(low, before + 1, cuts), np.insert(high, before, cuts)
        starts, orders = np.zeros(len(low), np.uint64), np.full(len(low), 255, np.uint8)
        bounds = np.searchsorted(low, edges).tolist()
        for top in range(self.key_width):
            part = slice(bounds[top], bounds[top + 1])
            if part.start < part.stop:
                # The marker bit falls off; shifting by 64 gives 0 in numpy.
                np.left_shift(low[part], np.uint64(64 - top), out=starts[part])
                orders[part] = 64 - self.page_shift - top
        return starts, high - low, orders

    @overload
    def index(self, key: int, level: int) -> int: ...
    @overload
    def index(self, key: U64, level: int) -> U64: ...
    def index(self, key: int | U64, level: int) -> int | U64:
        """The slot (at level 0 the bit) of a key in its node at ``level``."""
        bits = self.table_bits if level else self.leaf_bits
        if isinstance(key, np.ndarray):
            return key >> np.uint64(self.shift(level)) & np.uint64((1 << bits) - 1)
        return key >> self.shift(level) & (1 << bits) - 1


# -- ranges -----------------------------------------------------------------------------------


def cut_range(
    pa: int,
    nr_pages: int,
    page_size: int,
    node_of: Callable[[int], int] | None = None,
) -> list[tuple[int, int]]:
    """The blocks (physical address, order) that the kernel makes of a range of pages.

    Greedy: each block is as large as the alignment of its frame number and the rest of the
    range allow. ``node_of`` gives the NUMA node of a physical address: from 7.1 on a block
    shrinks until its first and last page are on the same node.
    """
    shift = page_shift(page_size)
    frame, end = pa >> shift, (pa >> shift) + nr_pages
    blocks = []
    while frame < end:
        order = (end - frame).bit_length() - 1
        if frame:
            order = min(order, (frame & -frame).bit_length() - 1)
        if node_of is not None:
            while node_of(frame << shift) != node_of((frame + (1 << order) - 1) << shift):
                order -= 1
        blocks.append((frame << shift, order))
        frame += 1 << order
    return blocks


def cut_ranges(
    pa: U64,
    nr_pages: U64,
    page_size: int,
    nodes_of: Callable[[U64], npt.NDArray[np.integer]] | None = None,
) -> tuple[U64, U8, I64]:
    """:func:`cut_range` of many ranges: (addresses, orders, number of the range) of all blocks.

    Blocks come range by range, ascending. ``nodes_of`` maps addresses to NUMA nodes.
    """
    shift = np.uint64(page_shift(page_size))
    frame = np.asarray(pa, np.uint64) >> shift
    end = frame + np.asarray(nr_pages, np.uint64)
    which = (frame < end).nonzero()[0]
    frame, end = frame[which], end[which]
    found: list[tuple[U64, I64, I64]] = []
    while len(which):
        order = np.minimum(trailing_zeros(frame), top_bits(end - frame))
        if nodes_of is not None:
            order = _on_one_node(frame, order, shift, nodes_of)
        found.append((frame, order, which))
        frame = frame + (_ONE << order.astype(np.uint64))
        more = frame < end
        frame, end, which = frame[more], end[more], which[more]
    if not found:
        return np.empty(0, np.uint64), np.empty(0, np.uint8), np.empty(0, np.int64)
    frames, orders, numbers = (np.concatenate(column) for column in zip(*found, strict=True))
    rank = np.argsort(numbers, kind="stable")
    return frames[rank] << shift, orders[rank].astype(np.uint8), numbers[rank]


def _on_one_node(
    frame: U64,
    order: I64,
    shift: np.uint64,
    nodes_of: Callable[[U64], npt.NDArray[np.integer]],
) -> I64:
    first = nodes_of(frame << shift)
    while True:
        last = frame + (_ONE << order.astype(np.uint64)) - _ONE
        split = nodes_of(last << shift) != first
        if not split.any():
            return order
        order = order - split


# -- bitmaps ----------------------------------------------------------------------------------


@overload
def phys_of_bits(phys_start: int, order: int, bits: int, page_size: int) -> int: ...
@overload
def phys_of_bits(phys_start: int | U64, order: int, bits: I64, page_size: int) -> U64: ...
def phys_of_bits(phys_start: int | U64, order: int, bits: int | I64, page_size: int) -> int | U64:
    """Physical addresses of the blocks that bits of a bitmap of the chunk list stand for."""
    shift = order + page_shift(page_size)
    if isinstance(bits, np.ndarray):
        return np.asarray(phys_start, np.uint64) + (bits.astype(np.uint64) << np.uint64(shift))
    return int(phys_start) + (bits << shift)


def bit_of_phys(pa: int, order: int, page_size: int, bitmap_bits: int) -> tuple[int, int]:
    """(``phys_start`` of its bitmap, bit number) of a block in the chunk list.

    ``bitmap_bits`` is 4096 in 6.16 and 6.17, eight times the page size later.
    """
    shift = order + page_shift(page_size)
    number, bit = divmod(pa >> shift, bitmap_bits)
    return (number * bitmap_bits) << shift, bit


#: Words worked on at a time where many bits change: what is made of them fits in the cache.
_PIECE = 1 << 14


def bitmap_runs(words: U64, carry: bool = False) -> tuple[I64, I64]:
    """Runs of set bits in 64-bit words: (first bit, bit behind the last) of each run.

    ``carry`` says that the bit before ``words[0]`` is set: a run that goes on from there
    starts at -1, so that the caller can tell it from one that starts at 0.

    Long runs and long gaps cost next to nothing. Where many bits change, feed at most a few
    thousand words at a time: the result is then up to 64 times as large as the words.
    """
    edges = bitmap_edges(words, carry)
    if carry:
        edges = np.concatenate(([-1], edges)) if len(words) else edges
        if len(edges) > 1 and edges[1] == 0:
            edges = edges[2:]  # the run from before ended just there
    if len(edges) & 1:
        return edges[0::2], np.append(edges[1::2], len(words) * 64)
    return edges[0::2], edges[1::2]


def bitmap_edges(words: U64, carry: bool = False) -> I64:
    """Numbers of the bits that differ from the bit before them, ascending.

    They are in turn the first bit of a run and the bit behind a run. ``carry`` is the bit
    before ``words[0]``: with it the first edge is an end. A run that reaches the last
    bit has no end here.
    """
    words = np.ascontiguousarray(words)
    if len(words) == 0:
        return np.empty(0, np.int64)
    changes = (words[1:] != words[:-1]).nonzero()[0]
    if len(changes) * 16 < len(words):
        return _edges_of_few(words, changes, carry)
    if len(words) <= _PIECE:
        return _edges_of_many(words, carry)
    parts = []
    for at in range(0, len(words), _PIECE):
        part = _edges_of_many(words[at : at + _PIECE], carry)
        part += at * 64
        parts.append(part)
        carry = bool(words[min(at + _PIECE, len(words)) - 1] >> _TOP)
    return np.concatenate(parts)


def bit_indices(words: U64) -> I64:
    """Numbers of the set bits in 64-bit words, ascending."""
    words = np.ascontiguousarray(words)
    return _unpacked(words, words != 0)


def _edges_of_few(words: U64, changes: I64, carry: bool) -> I64:
    """Edges where words mostly equal their neighbours; ``changes`` are the last of equals."""
    heads = np.empty(len(changes) + 1, np.int64)
    heads[0] = 0
    np.add(changes, 1, out=heads[1:])
    values = words[heads]
    mixed = values + _ONE > _ONE  # neither all zeros nor all ones
    lengths = np.empty_like(heads)
    np.subtract(heads[1:], heads[:-1], out=lengths[:-1])
    lengths[-1] = len(words) - heads[-1]
    if (mixed & (lengths > 1)).any():
        # Equal words with edges inside: each of them counts.
        repeats = np.where(mixed, lengths, 1)
        within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        heads = np.repeat(heads, repeats) + within
        values = words[heads]
    edges = values << _ONE
    edges[0] |= np.uint64(carry)
    edges[1:] |= values[:-1] >> _TOP  # the word before a head equals the head before it
    edges ^= values
    some = edges != 0
    edges, heads = edges[some], heads[some]
    if not (edges & (edges - _ONE)).any():  # one edge in each word: a power of two
        single: I64 = heads << 6
        single += (edges.astype(np.float64).view(np.int64) >> 52) - 1023
        return single
    bits: I64 = _bits(edges).nonzero()[0]
    bits += ((heads - np.arange(len(heads))) << 6)[bits >> 6]
    return bits


def _edges_of_many(words: U64, carry: bool) -> I64:
    edges = words << _ONE
    edges[0] |= np.uint64(carry)
    edges[1:] |= words[:-1] >> _TOP
    edges ^= words
    return _unpacked(edges, edges != 0)


def _unpacked(words: U64, used: npt.NDArray[np.bool_]) -> I64:
    """Numbers of the set bits; ``used`` marks the words that have any."""
    if int(np.count_nonzero(used)) * 2 > len(words):
        return _bits(words).nonzero()[0]
    where = used.nonzero()[0]
    octets = words[where].view(np.uint8)
    which = (octets != 0).nonzero()[0]
    bits: I64 = _bits(octets[which]).nonzero()[0]
    # Octet i of the squeezed ones is octet which[i] & 7 of word where[which[i] >> 3].
    base = where[which >> 3] << 3
    base += which & 7
    base -= np.arange(len(which))
    bits += (base << 3)[bits >> 3]
    return bits


def _bits(data: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    return np.unpackbits(data.view(np.uint8), bitorder="little").view(np.bool_)
