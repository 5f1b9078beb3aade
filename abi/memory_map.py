"""Arithmetic of the preserved-memory map: radix keys, cutting of ranges, runs of bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RadixGeometry:
    """Shape of the tree for one page size.

    ``interim`` is the formula of ``kho-v2``, which forgot the order's marker bit: with 16K
    pages that tree is a level too short.
    """

    page_size: int
    interim: bool = False

    @property
    def page_shift(self) -> int:
        """log2 of the page size."""
        return self.page_size.bit_length() - 1

    @property
    def leaf_bits(self) -> int:
        """Key bits that a leaf page resolves."""
        return self.page_shift + 3

    @property
    def table_bits(self) -> int:
        """Key bits that a table resolves."""
        return self.page_shift - 3

    @property
    def key_width(self) -> int:
        """Bits of the widest key: that of order 0."""
        return 64 - self.page_shift + 1

    @property
    def depth(self) -> int:
        """Levels, the leaf included."""
        width = self.key_width - (1 if self.interim else 0)
        return -(-(width - self.leaf_bits) // self.table_bits) + 1

    def key(self, pa: int, order: int) -> int:
        """The key of the block of ``2 ** order`` pages at ``pa``."""
        return 1 << (64 - self.page_shift - order) | pa >> (self.page_shift + order)

    def decode(self, key: int) -> tuple[int, int]:
        """(order, pa) of a key."""
        order = 64 - self.page_shift - (key.bit_length() - 1)
        return order, key << (self.page_shift + order) & (1 << 64) - 1

    def index(self, key: int, level: int) -> int:
        """Slot (or bit, at level 0) of a key at a level."""
        if level == 0:
            return key & (1 << self.leaf_bits) - 1
        shift = (level - 1) * self.table_bits + self.leaf_bits
        return key >> shift & (1 << self.table_bits) - 1


def bitmap_runs(words: npt.NDArray[np.uint64]) -> tuple[I64, I64]:
    """Runs of set bits in an array of 64-bit words: (first bits, bits behind the last).

    Only words where a run begins or ends are unpacked, so that long runs and long gaps
    cost nothing.
    """
    words = np.ascontiguousarray(words)
    if len(words) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    edges = words << np.uint64(1)
    edges[1:] |= words[:-1] >> np.uint64(63)
    edges ^= words
    where = np.flatnonzero(edges)
    bits = np.unpackbits(edges[where].view(np.uint8), bitorder="little").view(np.bool_)
    flat = np.flatnonzero(bits)
    at = (where[flat >> 6] << 6) + (flat & 63)
    if len(at) & 1:
        at = np.append(at, len(words) * 64)
    return at[0::2], at[1::2]
