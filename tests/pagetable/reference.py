"""Page tables built one entry at a time, by the book.

Written from the architecture manuals and apart from ``abi.pagetable``, so that a mistake
there is not repeated here. A tree is a dictionary from the address of a word to the word.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from inspector.memory.base import PageState
from inspector.memory.sparse import SparseMemory

#: name: (granule bits, index bits, numbers of levels)
SHAPES = {
    "vtdss": (12, 9, (3, 4, 5)),
    "x86-64": (12, 9, (4, 5)),
    "amdv1": (12, 9, (1, 2, 3, 4, 5, 6)),
    "lpae-s1-4k": (12, 9, (2, 3, 4)),
    "lpae-s1-16k": (14, 11, (2, 3, 4)),
    "lpae-s1-64k": (16, 13, (2, 3)),
    "lpae-s2-4k": (12, 9, (2, 3, 4)),
    "lpae-s2-16k": (14, 11, (2, 3, 4)),
    "lpae-s2-64k": (16, 13, (2, 3)),
    "riscv-sv39": (12, 9, (3,)),
    "riscv-sv48": (12, 9, (4,)),
    "riscv-sv57": (12, 9, (5,)),
}

K, M, G, T = 1 << 10, 1 << 20, 1 << 30, 1 << 40

#: Plain leaf sizes by level, and contiguous ones as size: level.
PLAIN = {
    "vtdss": [4 * K, 2 * M, G],
    "x86-64": [4 * K, 2 * M, G],
    "amdv1": [4 * K, 2 * M, G, None, 256 * T],
    "lpae-4k": [4 * K, 2 * M, G],
    "lpae-16k": [16 * K, 32 * M],
    "lpae-64k": [64 * K, 512 * M, 4 * T],
    "riscv": [4 * K, 2 * M, G, 512 * G, 256 * T],
}
GROUPS = {
    "vtdss": {},
    "x86-64": {},
    "amdv1": {
        **{4 * K << n: 0 for n in range(1, 9)},
        **{2 * M << n: 1 for n in range(1, 9)},
        **{G << n: 2 for n in range(1, 9)},
        **{512 * G << n: 3 for n in range(1, 9)},
        512 * T: 4,
        1024 * T: 4,
    },
    "lpae-4k": {64 * K: 0, 32 * M: 1, 16 * G: 2},
    "lpae-16k": {2 * M: 0, G: 1},
    "lpae-64k": {2 * M: 0, 16 * G: 1},
    "riscv": {64 * K: 0},
}


def family(name: str) -> str:
    if name.startswith("lpae"):
        return "lpae-" + name.rpartition("-")[2]
    return "riscv" if name.startswith("riscv") else name


def sizes(name: str, depth: int) -> dict[int, int]:
    """Leaf size: level, for tables of ``depth`` levels."""
    kind = family(name)
    plain = {size: level for level, size in enumerate(PLAIN[kind]) if size}
    out = {**plain, **GROUPS[kind]}
    return {size: level for size, level in sorted(out.items()) if level < depth}


def table_entry(name: str, level: int, pa: int) -> int:
    match family(name):
        case "vtdss":
            return pa | 3
        case "x86-64":
            return pa | 0x27
        case "amdv1":
            return pa | 1 | level << 9 | 3 << 61
        case "riscv":
            return (pa >> 12) << 10 | 1
        case "lpae-64k":
            return (pa & 0x0000FFFFFFFF0000) | (pa >> 48) << 12 | 3
        case _:
            return pa | 3


def leaf_entry(name: str, level: int, pa: int, size: int, rights: str) -> int:
    """One entry of a leaf; ``rights`` is r, w or rw. ``pa`` is what this entry maps."""
    read, write = "r" in rights, "w" in rights
    kind = family(name)
    grouped = size in GROUPS[kind]
    match kind:
        case "vtdss":
            return pa | read | write << 1 | (0x80 if level else 0)
        case "x86-64":
            return pa | 0x25 | (0x42 if write else 0) | (0x80 if level else 0)
        case "amdv1":
            entry = pa | 1 | read << 61 | write << 62 | 1 << 60
            if grouped:
                entry |= 7 << 9
                for bit in range(12, size.bit_length() - 2):
                    entry |= 1 << bit
            return entry
        case "riscv":
            entry = (pa >> 12) << 10 | 0x51 | (2 if read else 0) | (0x84 if write else 0)
            return entry | (1 << 63 | 1 << 13 if grouped else 0)
    entry = (pa & ~0xF000) | (pa >> 48) << 12 if kind == "lpae-64k" else pa
    entry &= 0x0000FFFFFFFFFFFF
    entry |= 3 if level == 0 else 1
    entry |= 1 << 10 | 3 << 8
    if "-s1-" in name:
        entry |= 1 << 11 | 1 << 6 | 1 << 2 | (0 if write else 1 << 7)
    else:
        entry |= 0xF << 2 | read << 6 | write << 7
    return entry | (1 << 52 if grouped else 0)


def legal_rights(name: str) -> list[str]:
    """The rights that a format can tell apart."""
    if name in ("vtdss", "amdv1") or "-s2-" in name:
        return ["rw", "r", "w"]
    return ["rw", "r"]


@dataclass(frozen=True)
class Leaf:
    """``size`` bytes at ``iova``, the unsigned input address, to ``pa``."""

    iova: int
    pa: int
    size: int
    rights: str = "rw"


@dataclass
class Tree:
    """Tables of one format in an imaginary memory."""

    name: str
    depth: int
    start_entries: int | None = None
    seed: int = 0
    words: dict[int, int] = field(default_factory=dict)
    tables: list[tuple[int, int]] = field(default_factory=list)
    ram: int = 0

    def __post_init__(self) -> None:
        self.granule, self.bits, _ = SHAPES[self.name]
        self.random = random.Random(self.seed)
        self.free: list[int] = []
        self.start_entries = self.start_entries or 1 << self.bits
        span = max(self.start_entries * 8, 1 << self.granule)
        self.ram = span
        self.root = span  # aligned to its size; the lowest frames stay free
        self.ram += span
        self.tables.append((self.root, self.depth - 1))

    def allocate(self, level: int) -> int:
        """A table page, in no order."""
        if not self.free:
            self.free = [self.ram + (n << self.granule) for n in range(64)]
            self.ram += 64 << self.granule
            self.random.shuffle(self.free)
        pa = self.free.pop()
        self.tables.append((pa, level))
        return pa

    def shift(self, level: int) -> int:
        return self.granule + level * self.bits

    def slot(self, iova: int, level: int) -> int:
        """Address of the entry of ``level`` for ``iova``, making the tables above."""
        table = self.root
        for at in range(self.depth - 1, level - 1, -1):
            count = self.start_entries if at == self.depth - 1 else 1 << self.bits
            where = table + (iova >> self.shift(at)) % count * 8
            if at == level:
                return where
            if where not in self.words:
                child = self.allocate(at - 1)
                self.words[where] = table_entry(self.name, at, child)
                table = child
            else:
                table = self.pointer(self.words[where])
        raise AssertionError("no such level")

    def pointer(self, entry: int) -> int:
        """Address in one of our table entries; they lie low."""
        if family(self.name) == "riscv":
            return entry >> 10 << 12
        return entry & 0xFFFFFFFFF & -(1 << self.granule)

    def map(self, leaf: Leaf) -> int:
        """Write the entries of a leaf; returns the first."""
        level = sizes(self.name, self.depth)[leaf.size]
        step = 1 << self.shift(level)
        first = None
        for n in range(leaf.size // step):
            pa = leaf.pa if family(self.name) in ("amdv1", "riscv") else leaf.pa + n * step
            entry = leaf_entry(self.name, level, pa, leaf.size, leaf.rights)
            where = self.slot(leaf.iova + n * step, level)
            assert where not in self.words, "mapped twice"
            self.words[where] = entry
            first = entry if first is None else first
        assert first is not None
        return first

    def memory(self) -> SparseMemory:
        """Everything as memory whose other pages of RAM are zero."""
        pages: dict[int, np.ndarray] = {}
        for address, word in self.words.items():
            page = pages.setdefault(address >> 12, np.zeros(512, "<u8"))
            page[address % 4096 // 8] = word
        size = -(-self.ram // 65536) * 65536
        memory = SparseMemory([(0, size)], unwritten=PageState.PRESENT)
        for pfn, page in pages.items():
            memory.write(pfn << 12, page)
        return memory


def merged(leaves: list[Leaf]) -> list[tuple[int, int, int, str]]:
    """Maximal ranges of leaves that are sorted by IOVA."""
    out: list[tuple[int, int, int, str]] = []
    for leaf in leaves:
        if out:
            iova, pa, size, rights = out[-1]
            if (iova + size, pa + size, rights) == (leaf.iova, leaf.pa, leaf.rights):
                out[-1] = (iova, pa, size + leaf.size, rights)
                continue
        out.append((leaf.iova, leaf.pa, leaf.size, leaf.rights))
    return out
