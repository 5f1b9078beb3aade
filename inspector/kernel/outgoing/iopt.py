"""I/O page tables as a driver keeps them: mapped and unmapped by range, largest leaves first.

The tables live in Python until :meth:`PageTable.sync` writes what changed into memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from abi import pagetable
from abi.pagetable import Format, Permission
from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine import Machine
from inspector.kernel.machine.frames import U64Array

Words = npt.NDArray[np.uint64]


class PageTable:
    """One page table of ``levels`` levels for ``bits`` bits of input address.

    ``page_sizes`` are the leaves above the granule that the hardware knows (None: all of the
    format). A start table of stage 2 may be several pages (Arm concatenation); it has
    ``top_entries`` entries.
    """

    def __init__(
        self,
        machine: Machine,
        format_name: str,
        levels: int,
        bits: int,
        page_sizes: tuple[int, ...] | None = None,
    ) -> None:
        self.machine = machine
        self.format: Format = pagetable.lookup(format_name)
        self.levels = levels
        self.bits = bits
        self._t = self.format.index_bits
        self._shift = [self.format.levels[i].shift for i in range(levels)]
        top_bits = min(bits - self._shift[-1], self._t + 4)
        self.top_entries = 1 << max(top_bits, 0)
        self._entries = 1 << self._t
        self._tables: dict[tuple[int, int], tuple[int, Words]] = {}
        self._dirty: set[tuple[int, int]] = set()
        self._bits: dict[tuple[int, Permission], int] = {}
        # Groups of entries that make one leaf are not used: Linux does not write them here.
        self._leaf_levels = [
            level
            for level in range(levels)
            if self.format.levels[level].has_leaves
            and (level == 0 or page_sizes is None or 1 << self._shift[level] in page_sizes)
        ]
        pages = max(1, self.top_entries * 8 // machine.page_size)
        self._top_order = (pages - 1).bit_length()
        frame = machine.alloc(self._top_order)
        self.top = frame << machine.page_shift
        self._tables[levels - 1, 0] = (self.top, np.zeros(max(self.top_entries, 8), np.uint64))
        self.pages_mapped = 0

    @property
    def top_level(self) -> int:
        """Zero-based level of the top table."""
        return self.levels - 1

    def tables(self) -> Iterator[tuple[int, int]]:
        """(address, order) of every table, from the top down."""
        yield self.top, self._top_order
        for (level, _), (pa, _) in sorted(self._tables.items(), key=lambda t: -t[0][0]):
            if level != self.top_level:
                yield pa, 0

    @property
    def table_count(self) -> int:
        """Number of tables."""
        return len(self._tables)

    def last_entry(self, level: int) -> int | None:
        """Address of the last entry in use in the first table of a level that has any."""
        for (at_level, _), (pa, words) in self._tables.items():
            if at_level == level and words.any():
                return pa + 8 * int(np.flatnonzero(words)[-1])
        return None

    def large_leaf(self) -> int | None:
        """Address of an entry that maps more than a granule."""
        for (level, number), (pa, words) in self._tables.items():
            for slot in np.flatnonzero(words).tolist() if level else ():
                if (level - 1, (number << self._t) + slot) not in self._tables:
                    return pa + 8 * int(slot)
        return None

    # -- mapping ---------------------------------------------------------------------------

    def _table(self, level: int, number: int) -> Words:
        """The table of a level that covers input addresses ``number << shift(level + 1)``."""
        held = self._tables.get((level, number))
        if held is not None:
            return held[1]
        key = (level, number)
        parent = self._table(level + 1, number >> self._t if level + 1 < self.top_level else 0)
        if level + 1 == self.top_level:
            slot, parent_key = number, (level + 1, 0)
        else:
            slot, parent_key = number & (self._entries - 1), (level + 1, number >> self._t)
        if parent[slot]:
            raise KernelErrno("EEXIST", "a larger leaf is mapped there already")
        pa = self.machine.alloc_page()
        words = np.zeros(self._entries, np.uint64)
        self._tables[key] = (pa, words)
        parent[slot] = self.format.encode_table(level + 1, pa)[0]
        self._dirty |= {key, parent_key}
        return words

    def _slot(self, level: int, iova: int) -> tuple[tuple[int, int], int]:
        index = iova >> self._shift[level]
        if level == self.top_level:
            return (level, 0), index
        return (level, index >> self._t), index & (self._entries - 1)

    def _leaf(self, level: int, pas: Words, permissions: Permission) -> Words:
        base = self._bits.get((level, permissions))
        if base is None:
            base = int(self.format.encode_leaf(level, 0, None, permissions)[0])
            self._bits[level, permissions] = base
        if self.format.address_shift or self.format.high_address:
            return self.format.encode_leaf(level, pas, None, permissions)
        return pas | np.uint64(base)

    def check(self, iova: int, size: int) -> None:
        """Raises EINVAL, ERANGE for a range that the table cannot map."""
        granule = 1 << self._shift[0]
        if iova % granule or size % granule or size <= 0:
            raise KernelErrno("EINVAL", f"{iova:#x}+{size:#x} is not in whole granules")
        if iova + size > 1 << self.bits:
            raise KernelErrno("ERANGE", f"{iova:#x}+{size:#x} leaves {self.bits} bits")

    def map(self, iova: int, pa: int, size: int, permissions: Permission) -> None:
        """Map a contiguous range, largest leaves first. Raises EINVAL, ERANGE, EEXIST."""
        self.check(iova, size)
        end = iova + size
        while iova < end:
            level = self._largest(iova, pa, end - iova)
            step = 1 << self._shift[level]
            key, slot = self._slot(level, iova)
            words = self._table(*key)
            count = min(len(words) - slot, (end - iova) >> self._shift[level])
            bigger = self._next_bigger(level)
            if bigger is not None and (iova ^ pa) & ((1 << self._shift[bigger]) - 1) == 0:
                edge = -iova & ((1 << self._shift[bigger]) - 1)
                rest = end - iova - edge
                if edge and rest >= 1 << self._shift[bigger]:
                    count = min(count, edge >> self._shift[level])
            for used in (slot + np.flatnonzero(words[slot : slot + count])).tolist():
                child = (level - 1, (iova >> self._shift[level]) + used - slot)
                if not level or not self._is_empty(child):
                    raise KernelErrno("EEXIST", f"{iova:#x} or after is mapped already")
                self._free_below(child)
            own = np.uint64(pa) + np.arange(count, dtype=np.uint64) * np.uint64(step)
            words[slot : slot + count] = self._leaf(level, own, permissions)
            self._dirty.add(key)
            iova, pa = iova + count * step, pa + count * step
        self.pages_mapped += size >> self._shift[0]

    def _children(self, key: tuple[int, int]) -> list[tuple[int, int]]:
        level, number = key
        used = np.flatnonzero(self._tables[key][1]).tolist()
        return [(level - 1, (number << self._t) + slot) for slot in used]

    def _is_empty(self, key: tuple[int, int]) -> bool:
        """Whether a table that exists maps nothing."""
        if key not in self._tables:
            return False
        return all(key[0] and self._is_empty(child) for child in self._children(key))

    def _free_below(self, key: tuple[int, int]) -> None:
        """Free an empty table and those below it."""
        for child in self._children(key):
            self._free_below(child)
        pa, _ = self._tables.pop(key)
        self._dirty.discard(key)
        self.machine.free_page(pa)

    def _largest(self, iova: int, pa: int, size: int) -> int:
        best = 0
        for level in self._leaf_levels:
            step = 1 << self._shift[level]
            if step <= size and not (iova | pa) & (step - 1):
                best = max(best, level)
        return best

    def _next_bigger(self, level: int) -> int | None:
        return next((lv for lv in sorted(self._leaf_levels) if lv > level), None)

    def map_scattered(self, iovas: U64Array, pas: U64Array, permissions: Permission) -> None:
        """Map single granules, ascending in ``iovas``. Raises EEXIST, ERANGE."""
        if not len(iovas):
            return
        self.check(int(iovas[-1]), 1 << self._shift[0])
        entries = self._leaf(0, pas, permissions)
        index = iovas >> np.uint64(self._shift[0])
        numbers = index >> np.uint64(self._t)
        inside = (index & np.uint64(self._entries - 1)).astype(np.int64)
        cut = np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
        edges = [0, *cut.tolist(), len(index)]
        for a, b in itertools.pairwise(edges):
            key = (0, int(numbers[a]))
            words = self._table(*key)
            where = inside[a:b]
            if words[where].any():
                raise KernelErrno("EEXIST", f"{int(iovas[a]):#x} or after is mapped already")
            words[where] = entries[a:b]
            self._dirty.add(key)
        self.pages_mapped += len(iovas)

    def unmap(self, iova: int, size: int) -> None:
        """Clear a range; tables that it covers wholly are freed. Raises EINVAL, ERANGE.

        A leaf that reaches out of the range is a mistake of the caller (EINVAL).
        """
        self.check(iova, size)
        self._clear(self.top_level, 0, iova, iova + size)

    def _clear(self, level: int, number: int, low: int, high: int) -> bool:
        """Clear ``[low, high)`` below a table; True if the range covers it all."""
        key = (level, number)
        _pa, words = self._tables[key]
        shift = self._shift[level]
        base = number << (shift + self._t) if level != self.top_level else 0
        first = max(low - base, 0) >> shift
        last = min(len(words), -(-(high - base) >> shift))
        for slot in (first + np.flatnonzero(words[first:last])).tolist():
            start = base + (slot << shift)
            child = (level - 1, start >> shift)
            if level and child in self._tables:
                if self._clear(*child, max(low, start), min(high, start + (1 << shift))):
                    child_pa, _ = self._tables.pop(child)
                    self._dirty.discard(child)
                    self.machine.free_page(child_pa)
                    words[slot] = 0
            elif start >= low and start + (1 << shift) <= high:
                words[slot] = 0
                self.pages_mapped -= 1 << (shift - self._shift[0])
            else:
                raise KernelErrno("EINVAL", f"a leaf at {start:#x} reaches out of the range")
        self._dirty.add(key)
        covered = low <= base and base + (len(words) << shift) <= high
        return covered and level != self.top_level

    # -- memory ------------------------------------------------------------------------------

    def sync(self) -> None:
        """Write the tables that changed since the last time."""
        for key in self._dirty:
            held = self._tables.get(key)
            if held is not None:
                self.machine.memory.write(held[0], held[1])
        self._dirty.clear()

    def free(self) -> None:
        """Give back every table; their content stays, stale."""
        for pa, order in list(self.tables()):
            self.machine.free(pa >> self.machine.page_shift, order)
        self._tables.clear()
        self._dirty.clear()

    def adopt(self, tables: dict[tuple[int, int], tuple[int, Words]]) -> None:
        """Take over tables that exist already, by (level, number), instead of the own top."""
        self.machine.free(self.top >> self.machine.page_shift, self._top_order)
        self._tables = tables
        self.top = tables[self.top_level, 0][0]
