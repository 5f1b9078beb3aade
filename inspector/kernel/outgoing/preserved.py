"""The preserved-memory map as a kernel keeps it: a radix tree, or bitmaps in an xarray.

Both hold blocks (frame, order) and write themselves into the machine's memory. The radix tree
(7.1 on) is always complete; the bitmaps (6.16 to 7.0) are found through chunks that are
written when the root is finalized. Nodes, chunks and bitmaps are not preserved themselves.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from abi.memory_map import RadixGeometry
from inspector.kernel.machine import Machine
from inspector.kernel.machine.frames import U64Array
from inspector.kernel.machine.slab import Slab

Bits = npt.NDArray[np.uint8]


class BlockMap(ABC):
    """A set of preserved blocks; setting twice and clearing what is clear are no errors."""

    @abstractmethod
    def set(self, frames: U64Array, order: int) -> None:
        """Mark blocks of 2^order pages that start at the given frames."""

    @abstractmethod
    def set_one(self, frame: int, order: int) -> None:
        """Mark one block."""

    @abstractmethod
    def clear(self, frames: U64Array, order: int) -> None:
        """Unmark blocks. What was allocated for them stays."""

    @abstractmethod
    def has(self, frame: int, order: int) -> bool:
        """Whether this very block is marked."""

    @abstractmethod
    def blocks(self) -> Iterator[tuple[int, U64Array]]:
        """(order, ascending first frames) of all blocks."""

    @abstractmethod
    def write(self) -> int:
        """Bring the map in memory up to date and return the address for the root FDT."""

    @abstractmethod
    def locate(self, frame: int, order: int) -> tuple[int, int] | None:
        """(address of the byte, mask) of a block's bit, None if nothing holds it yet."""

    @property
    @abstractmethod
    def nodes(self) -> list[tuple[int, int]]:
        """(address, size) of everything the map itself occupies."""


class RadixMap(BlockMap):
    """The radix tree of kho-v2 and later."""

    def __init__(self, machine: Machine, geometry: RadixGeometry) -> None:
        self._machine = machine
        self._shift = machine.page_shift
        self._leaf_bits = geometry.leaf_bits
        self._table_bits = geometry.table_bits
        self._depth = geometry.depth
        self._width = geometry.key_width
        self._leaf_bytes = machine.page_size
        self._tables: dict[tuple[int, int], int] = {}
        self._leaves: dict[int, Bits] = {}
        self._leaf_at: dict[int, int] = {}
        self._dirty: set[int] = set()
        self.root = machine.alloc_page()

    def _keys(self, frames: U64Array, order: int) -> U64Array:
        marker = 64 - self._shift - order
        keys = frames >> np.uint64(order)
        if marker < self._width:
            keys = keys | np.uint64(1 << marker)
        return keys

    def _leaf(self, number: int) -> Bits:
        leaf = self._leaves.get(number)
        if leaf is None:
            table = self.root
            for level in range(self._depth - 1, 0, -1):
                shift = (level - 1) * self._table_bits
                child_key = (level - 1, number >> shift)
                child = self._tables.get(child_key)
                if child is None:
                    child = self._tables[child_key] = self._machine.alloc_page()
                    index = (number >> shift) & ((1 << self._table_bits) - 1)
                    self._machine.memory.write(table + 8 * index, child.to_bytes(8, "little"))
                table = child
            self._leaf_at[number] = table
            leaf = self._leaves[number] = np.zeros(self._leaf_bytes, np.uint8)
        return leaf

    def _grouped(self, frames: U64Array, order: int) -> Iterator[tuple[int, U64Array]]:
        keys = self._keys(frames, order)
        if len(keys) == 1:
            key = int(keys[0])
            yield key >> self._leaf_bits, keys & np.uint64((1 << self._leaf_bits) - 1)
            return
        keys = np.sort(keys)
        numbers = keys >> np.uint64(self._leaf_bits)
        inside = keys & np.uint64((1 << self._leaf_bits) - 1)
        cut = np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
        edges = [0, *cut.tolist(), len(keys)]
        for a, b in itertools.pairwise(edges):
            yield int(numbers[a]), inside[a:b]

    def set(self, frames: U64Array, order: int) -> None:
        """Mark blocks of 2^order pages that start at the given frames."""
        if not len(frames):
            return
        if is_run(frames, order):
            self._set_run(int(frames[0]), len(frames), order)
            return
        for number, inside in self._grouped(frames, order):
            set_bits(self._leaf(number), inside)
            self._dirty.add(number)

    def _set_run(self, frame: int, count: int, order: int) -> None:
        marker = 64 - self._shift - order
        key = frame >> order | (1 << marker if marker < self._width else 0)
        end, size = key + count, 1 << self._leaf_bits
        while key < end:
            number, first = key >> self._leaf_bits, key & (size - 1)
            last = min(size, first + end - key)
            fill_bits(self._leaf(number), first, last)
            self._dirty.add(number)
            key += last - first

    def set_one(self, frame: int, order: int) -> None:
        """Mark one block."""
        marker = 64 - self._shift - order
        key = frame >> order | (1 << marker if marker < self._width else 0)
        number, bit = key >> self._leaf_bits, key & ((1 << self._leaf_bits) - 1)
        self._leaf(number)[bit >> 3] |= 1 << (bit & 7)
        self._dirty.add(number)

    def clear(self, frames: U64Array, order: int) -> None:
        """Unmark blocks. What was allocated for them stays."""
        if not len(frames):
            return
        for number, inside in self._grouped(frames, order):
            leaf = self._leaves.get(number)
            if leaf is not None:
                clear_bits(leaf, inside)
                self._dirty.add(number)

    def has(self, frame: int, order: int) -> bool:
        """Whether this very block is marked."""
        key = int(self._keys(np.array([frame], np.uint64), order)[0])
        leaf = self._leaves.get(key >> self._leaf_bits)
        bit = key & ((1 << self._leaf_bits) - 1)
        return leaf is not None and bool(leaf[bit >> 3] >> (bit & 7) & 1)

    def blocks(self) -> Iterator[tuple[int, U64Array]]:
        """(order, ascending first frames) of all blocks."""
        found: dict[int, list[U64Array]] = {}
        for number in sorted(self._leaves):
            bits = np.flatnonzero(np.unpackbits(self._leaves[number], bitorder="little"))
            for order, keys in self._by_order(bits.astype(np.uint64), number):
                found.setdefault(order, []).append(keys)
        for order in sorted(found):
            yield order, np.concatenate(found[order])

    def _by_order(self, bits: U64Array, number: int) -> Iterator[tuple[int, U64Array]]:
        base = number << self._leaf_bits
        keys = bits + np.uint64(base)
        low = 0
        while low < len(keys):
            top = int(keys[low]).bit_length() - 1
            high = int(np.searchsorted(keys, np.uint64((1 << top + 1) - 1), "right"))
            order = 64 - self._shift - top
            yield order, (keys[low:high] - np.uint64(1 << top)) << np.uint64(order)
            low = high

    def write(self) -> int:
        """Bring the leaves in memory up to date and return the root's address."""
        for number in self._dirty:
            self._machine.memory.write(self._leaf_at[number], self._leaves[number])
        self._dirty.clear()
        return self.root

    def locate(self, frame: int, order: int) -> tuple[int, int] | None:
        """(address of the byte, mask) of a block's bit, None if nothing holds it yet."""
        key = int(self._keys(np.array([frame], np.uint64), order)[0])
        leaf = self._leaf_at.get(key >> self._leaf_bits)
        bit = key & ((1 << self._leaf_bits) - 1)
        return None if leaf is None else (leaf + (bit >> 3), 1 << (bit & 7))

    @property
    def nodes(self) -> list[tuple[int, int]]:
        """(address, size) of everything the map itself occupies."""
        size = self._machine.page_size
        return [(self.root, size), *((pa, size) for pa in self._tables.values())]


class BitmapMap(BlockMap):
    """Bitmaps by order and span, as kho-v1 keeps them.

    ``size`` is that of a bitmap in bytes: 512 (6.16, 6.17: objects of a slab, neighbours in one
    page) or a page.
    """

    def __init__(self, machine: Machine, size: int) -> None:
        self._machine = machine
        self._size = size
        self._slab = Slab(machine, size) if size < machine.page_size else None
        self._bitmaps: dict[int, dict[int, tuple[int, Bits]]] = {}
        self._chunks: list[int] = []

    def _grouped(self, frames: U64Array, order: int) -> Iterator[tuple[int, U64Array]]:
        bits = np.uint64(self._size * 8)
        blocks = (
            np.sort(frames >> np.uint64(order)) if len(frames) > 1 else frames >> np.uint64(order)
        )
        numbers = blocks // bits
        cut = np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
        edges = [0, *cut.tolist(), len(blocks)]
        for a, b in itertools.pairwise(edges):
            yield int(numbers[a]), blocks[a:b] % bits

    def set(self, frames: U64Array, order: int) -> None:
        """Mark blocks of 2^order pages that start at the given frames."""
        if not len(frames):
            return
        spans = self._bitmaps.setdefault(order, {})
        for number, inside in self._grouped(frames, order):
            held = spans.get(number)
            if held is None:
                at = self._slab.alloc() if self._slab else self._machine.alloc_page()
                held = spans[number] = (at, np.zeros(self._size, np.uint8))
            set_bits(held[1], inside)

    def set_one(self, frame: int, order: int) -> None:
        """Mark one block."""
        self.set(np.array([frame], np.uint64), order)

    def clear(self, frames: U64Array, order: int) -> None:
        """Unmark blocks. What was allocated for them stays."""
        if not len(frames):
            return
        spans = self._bitmaps.get(order, {})
        for number, inside in self._grouped(frames, order):
            if number in spans:
                clear_bits(spans[number][1], inside)

    def has(self, frame: int, order: int) -> bool:
        """Whether this very block is marked."""
        number, bit = divmod(frame >> order, self._size * 8)
        held = self._bitmaps.get(order, {}).get(number)
        return held is not None and bool(held[1][bit >> 3] >> (bit & 7) & 1)

    def blocks(self) -> Iterator[tuple[int, U64Array]]:
        """(order, ascending first frames) of all blocks."""
        for order in sorted(self._bitmaps):
            parts = []
            for number in sorted(self._bitmaps[order]):
                bits = np.flatnonzero(
                    np.unpackbits(self._bitmaps[order][number][1], bitorder="little")
                )
                first = np.uint64(number * self._size * 8)
                parts.append((bits.astype(np.uint64) + first) << np.uint64(order))
            yield order, np.concatenate(parts)

    def write(self) -> int:
        """Write the bitmaps, and the chunks that lead to them; 0 if nothing was ever marked."""
        memory, page = self._machine.memory, self._machine.page_size
        capacity = (page - 16) // 16
        for pa in self._chunks:
            self._machine.free_page(pa)
        self._chunks = []
        previous = 0
        for order in sorted(self._bitmaps):
            spans = sorted(self._bitmaps[order].items())
            for at in range(0, len(spans), capacity):
                part = spans[at : at + capacity]
                chunk = self._machine.alloc_page()
                self._chunks.append(chunk)
                body = np.zeros(2 + 2 * len(part), np.uint64)
                body[1] = order | len(part) << 32
                for i, (number, (pa, bits)) in enumerate(part):
                    start = number * self._size * 8 << (order + self._machine.page_shift)
                    body[2 + 2 * i] = start
                    body[3 + 2 * i] = pa
                    memory.write(pa, bits)
                memory.write(chunk, body)
                if previous:
                    memory.write(previous, chunk.to_bytes(8, "little"))
                previous = chunk
        return self._chunks[0] if self._chunks else 0

    def locate(self, frame: int, order: int) -> tuple[int, int] | None:
        """(address of the byte, mask) of a block's bit, None if nothing holds it yet."""
        number, bit = divmod(frame >> order, self._size * 8)
        held = self._bitmaps.get(order, {}).get(number)
        return None if held is None else (held[0] + (bit >> 3), 1 << (bit & 7))

    @property
    def chunks(self) -> list[int]:
        """Addresses of the chunks of the last :meth:`write`, in order."""
        return list(self._chunks)

    @property
    def nodes(self) -> list[tuple[int, int]]:
        """(address, size) of everything the map itself occupies."""
        page = self._machine.page_size
        bitmaps = [(pa, self._size) for spans in self._bitmaps.values() for pa, _ in spans.values()]
        return [(pa, page) for pa in self._chunks] + bitmaps


def is_run(frames: U64Array, order: int) -> bool:
    """Whether blocks follow each other without a gap."""
    count = len(frames)
    if count == 1:
        return True
    if int(frames[-1]) - int(frames[0]) != (count - 1) << order:
        return False
    return bool((frames[1:] > frames[:-1]).all())


def fill_bits(target: Bits, first: int, last: int) -> None:
    """Set bits ``first`` up to ``last``, that excluded."""
    low, high = first >> 3, last >> 3
    head, tail = 255 << (first & 7) & 255, (1 << (last & 7)) - 1
    if low == high:
        target[low] |= head & tail
        return
    target[low] |= head
    target[low + 1 : high] = 255
    if tail:
        target[high] |= tail


def set_bits(target: Bits, bits: U64Array) -> None:
    """Set bits, numbered from the least significant of byte 0, in a byte array."""
    if len(bits) == 1:
        bit = int(bits[0])
        target[bit >> 3] |= 1 << (bit & 7)
        return
    np.bitwise_or.at(target, (bits >> np.uint64(3)).astype(np.int64), _masks(bits))


def clear_bits(target: Bits, bits: U64Array) -> None:
    """Clear bits."""
    if len(bits) == 1:
        bit = int(bits[0])
        target[bit >> 3] &= 255 ^ (1 << (bit & 7))
        return
    np.bitwise_and.at(target, (bits >> np.uint64(3)).astype(np.int64), ~_masks(bits))


def _masks(bits: U64Array) -> Bits:
    return np.left_shift(np.uint8(1), (bits & np.uint64(7)).astype(np.uint8))
