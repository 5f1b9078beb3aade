"""A kmalloc cache: objects of one size that share pages with objects of others.

6.16 and 6.17 keep their bitmaps in such a cache. A kernel that takes 512 bytes of bitmap for a
page reads what lies behind each, so that the neighbours decide what becomes of it. What they
hold here follows what lay beside 91 bitmaps of 25 hand-overs of a real 6.17.8: most are live
(92 %; the others zero, or with a free-list pointer and nothing else), about half of a live
object's words are not zero, and most of those are kernel pointers.
"""

from __future__ import annotations

import numpy as np

from inspector.kernel.machine import Machine
from inspector.memory.base import U64Array

#: Objects of a slab at least, as on a machine with four CPUs.
_OBJECTS = 16
#: How often somebody else takes an object before the next one is asked for.
_TAKEN_BETWEEN = 0.25
#: Parts of objects that hold nothing, and nothing but a free-list pointer.
_EMPTY, _FREE = 0.05, 0.04
#: Words of a live object that are not zero: mean and deviation of their part.
_FILLED, _SPREAD = 0.5, 0.13
#: Kinds of words that are not zero: pointers to data, to text, small numbers, two numbers of
#: 32 bits, pointers elsewhere (per-CPU, vmalloc), anything.
_KINDS = (0.43, 0.15, 0.13, 0.05, 0.10, 0.14)
#: Where all of memory, the kernel's text and other kernel memory are mapped.
_BASES = {
    "x86_64": (0xFFFF888000000000, 0xFFFFFFFF81000000, 0xFFFFC90000000000),
    "aarch64": (0xFFFF000000000000, 0xFFFF800080000000, 0xFFFF800000000000),
}
_TEXT = 8 << 20
_SMALL = (1 << 10) - 1


class Slab:
    """Objects of one size out of blocks of pages, neighbours of whatever else is there.

    An object is zeroed when it is handed out. The pages behind a slab belong to other caches.
    What others hold depends on the machine's seed only.
    """

    def __init__(self, machine: Machine, size: int) -> None:
        self._machine = machine
        self.size = size
        self._order = 0
        while (machine.page_size << self._order) // size < _OBJECTS:
            self._order += 1
        self._free: list[int] = []
        self.blocks: list[int] = []
        self._random = np.random.default_rng((machine.spec.seed, size))
        data, text, other = _BASES[machine.spec.architecture]
        memory = max(area.end for area in machine.spec.ram)
        reach = (1 << memory.bit_length() - 1) - 8
        kinds = [
            (data, reach), (text, _TEXT - 1), (1, _SMALL), (1, _SMALL << 32 | _SMALL),
            (other, (1 << 32) - 8), (0, (1 << 64) - 1),
        ]  # fmt: skip
        self._bases, self._masks = np.ascontiguousarray(np.array(kinds, np.uint64).T)
        shares = np.cumsum(_KINDS)[:-1] * 256
        self._kinds = np.searchsorted(shares, np.arange(256), "right")

    def alloc(self) -> int:
        """The physical address of an object. Raises ENOMEM."""
        while self._free and self._random.random() < _TAKEN_BETWEEN:
            self._free.pop()
        if not self._free:
            self._grow()
        at = self._free.pop()
        self._machine.memory.write(at, bytes(self.size))
        return at

    def _grow(self) -> None:
        """A slab of which others hold the first objects, and behind it as much of others."""
        machine = self._machine
        base = machine.alloc(self._order + 1) << machine.page_shift
        self.blocks.append(base)
        count = (machine.page_size << self._order) // self.size
        machine.memory.write(base, self._others(2 * count).reshape(-1).view(np.uint8))
        held = int(self._random.integers(0, count))
        self._free = [base + i * self.size for i in reversed(range(held, count))]

    def _others(self, count: int) -> U64Array:
        """What ``count`` objects of others hold, as rows of words."""
        random, width = self._random, self.size // 8
        shape = (count, width)
        kind = self._kinds[random.integers(0, 256, shape, np.uint8)]
        words: U64Array = random.integers(0, 1 << 64, shape, np.uint64)
        words &= self._masks[kind]
        words += self._bases[kind]
        filled = np.clip(random.normal(_FILLED, _SPREAD, (count, 1)), 0.1, 1.0) * 256
        words[random.integers(0, 256, shape, np.uint8) >= filled] = 0
        state = random.random(count)
        words[state < _EMPTY + _FREE] = 0
        # A free object holds the address of the next one in its middle.
        free = np.flatnonzero((state >= _EMPTY) & (state < _EMPTY + _FREE))
        next_one = random.integers(0, 1 << 64, len(free), np.uint64) & self._masks[0]
        words[free, width // 2] = self._bases[0] + next_one // self.size * self.size
        return words
