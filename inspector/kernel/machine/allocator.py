"""The page allocator of a simulated machine: a buddy system that can scatter.

Placement is a function of the seed. ``fragmentation`` (0 to 1) is the part of each newly
opened largest block that belongs to somebody else, at random places, so that what is
allocated comes out in short runs, as on a machine that has been up for a while.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import numpy as np

from inspector.kernel.errno import KernelErrno
from inspector.kernel.machine.frames import FrameSet, U64Array, frames_of

#: Order of the largest block, as on x86-64 and on arm64 with 4 KiB pages.
MAX_ORDER = 10


class PageAllocator:
    """Blocks of 2^order page frames out of ascending, disjoint frame ranges.

    ``node_of`` gives the NUMA node of a frame; blocks never span two free ranges, so that
    they stay on one node if the ranges do. Every frame that is out is known: freeing what
    is not out is an assertion failure, and :attr:`allocated` tells leaks.
    """

    def __init__(
        self,
        ranges: Iterable[tuple[int, int]],
        *,
        seed: int = 0,
        fragmentation: float = 0.0,
        shuffle: bool = False,
        max_order: int = MAX_ORDER,
    ) -> None:
        self.max_order = max_order
        self.allocated = FrameSet()
        self._random = random.Random(seed)
        self._numpy = np.random.default_rng(seed)
        self._fragmentation = fragmentation
        self._free: list[list[int]] = [[] for _ in range(max_order + 1)]
        self._is_free: list[set[int]] = [set() for _ in range(max_order + 1)]
        #: Largest blocks that were never opened, as runs (first block, count).
        self._virgin: list[list[int]] = []
        for first, end in ranges:
            self._add_range(first, end)
        if shuffle:
            self._random.shuffle(self._virgin)
        self._shuffle = shuffle

    def _add_range(self, first: int, end: int) -> None:
        top = 1 << self.max_order
        low, high = -(-first // top), end // top
        if low >= high:
            self._add_cut(first, end)
            return
        self._add_cut(first, low * top)
        self._add_cut(high * top, end)
        self._virgin.append([low, high - low])

    def _add_cut(self, first: int, end: int) -> None:
        while first < end:
            order = min((end - first).bit_length() - 1, self.max_order)
            if first:
                order = min(order, (first & -first).bit_length() - 1)
            self._put(first, order)
            first += 1 << order

    def _put(self, frame: int, order: int) -> None:
        self._free[order].append(frame)
        self._is_free[order].add(frame)

    def _take(self, order: int) -> int | None:
        stack, members = self._free[order], self._is_free[order]
        while stack:
            if self._shuffle and len(stack) > 1:
                other = self._random.randrange(len(stack))
                stack[-1], stack[other] = stack[other], stack[-1]
            frame = stack.pop()
            if frame in members:
                members.remove(frame)
                return frame
        return None

    def _open_virgin(self) -> int | None:
        """The first frame of a largest block that nobody used yet."""
        if not self._virgin:
            return None
        at = self._random.randrange(len(self._virgin)) if self._shuffle else 0
        run = self._virgin[at]
        if self._shuffle:
            # Split the run at a random place, so that the blocks lie far apart.
            pick = self._random.randrange(run[1])
            first, count = run
            self._virgin.pop(at)
            if pick:
                self._virgin.append([first, pick])
            if pick + 1 < count:
                self._virgin.append([first + pick + 1, count - pick - 1])
            return (first + pick) << self.max_order
        block = run[0]
        run[0] += 1
        run[1] -= 1
        if not run[1]:
            self._virgin.pop(at)
        return block << self.max_order

    def _open_fragmented(self, order: int) -> bool:
        """Open a block of which others hold a part; the rest becomes free blocks."""
        first = self._open_virgin()
        if first is None:
            return False
        pieces = 1 << (self.max_order - order)
        mine = self._numpy.random(pieces) >= self._fragmentation
        for piece in np.flatnonzero(mine).tolist():
            self._put(first + (piece << order), order)
        return True

    def _find(self, order: int) -> int:
        while True:
            for have in range(order, self.max_order + 1):
                frame = self._take(have)
                if frame is not None:
                    while have > order:
                        have -= 1
                        self._put(frame + (1 << have), have)
                    return frame
            if self._fragmentation and order < self.max_order:
                if not self._open_fragmented(order):
                    break
                continue
            first = self._open_virgin()
            if first is None:
                break
            self._put(first, self.max_order)
        raise KernelErrno("ENOMEM", f"no free block of order {order}")

    def alloc(self, order: int = 0) -> int:
        """The first frame of a free block. Raises KernelErrno ENOMEM."""
        if order > self.max_order:
            return self._alloc_gigantic(order)
        frame = self._find(order)
        taken = self.allocated.add_range(frame, 1 << order)
        assert not taken, f"frame {frame:#x} handed out twice"
        return frame

    def _alloc_gigantic(self, order: int) -> int:
        need = 1 << (order - self.max_order)
        for run in self._virgin:
            first = -(-run[0] // need) * need
            if first + need <= run[0] + run[1]:
                tail = run[0] + run[1] - first - need
                self._virgin.remove(run)
                if first > run[0]:
                    self._virgin.append([run[0], first - run[0]])
                if tail:
                    self._virgin.append([first + need, tail])
                frame = first << self.max_order
                taken = self.allocated.add_range(frame, 1 << order)
                assert not taken
                return frame
        raise KernelErrno("ENOMEM", f"no free block of order {order}")

    def alloc_many(self, count: int, order: int = 0) -> U64Array:
        """First frames of ``count`` blocks. Raises KernelErrno ENOMEM, taking nothing."""
        if (self._fragmentation or self._shuffle) and order <= self.max_order:
            return self._alloc_scattered(count, order)
        taken: list[tuple[int, int]] = []
        try:
            if order > self.max_order:
                taken.extend((self.alloc(order), order) for _ in range(count))
            else:
                self._alloc_runs(count, order, taken)
        except KernelErrno:
            for frame, size in taken:
                self.free(frame, size)
            raise
        parts = [np.arange(at, at + (1 << size), 1 << order, dtype=np.uint64) for at, size in taken]
        return np.concatenate(parts) if parts else np.empty(0, np.uint64)

    def _alloc_runs(self, count: int, order: int, taken: list[tuple[int, int]]) -> None:
        """Take ``count`` blocks as few larger ones: (first frame, order)."""
        top = self.max_order
        while count:
            top = min(top, order + count.bit_length() - 1)
            try:
                frame = self.alloc(top)
            except KernelErrno:
                if top == order:
                    raise
                top -= 1
                continue
            taken.append((frame, top))
            count -= 1 << (top - order)

    def _alloc_scattered(self, count: int, order: int) -> U64Array:
        """Take ``count`` blocks one by one out of what is free, wherever it lies."""
        found: list[int] = []
        while len(found) < count:
            frame = self._take(order)
            if frame is not None:
                found.append(frame)
            elif not self._open_scattered(order):
                break
        try:
            while len(found) < count:
                found.append(self._find(order))
        except KernelErrno:
            for frame in found:
                self._put(frame, order)
            raise
        frames = np.array(found, np.uint64)
        taken = self.allocated.add(frames_of(frames, order))
        assert not taken, "frames handed out twice"
        return frames

    def _open_scattered(self, order: int) -> bool:
        """Cut a largest block into blocks of one order, in random order if shuffling."""
        if self._fragmentation and order < self.max_order:
            return self._open_fragmented(order)
        first = self._take(self.max_order)
        if first is None:
            first = self._open_virgin()
        if first is None:
            return False
        blocks = list(range(first, first + (1 << self.max_order), 1 << order))
        if self._shuffle:
            self._random.shuffle(blocks)
        for frame in reversed(blocks):
            self._put(frame, order)
        return True

    def free(self, frame: int, order: int = 0) -> None:
        """Give a block back; free buddies are joined."""
        missing = self.allocated.discard_range(frame, 1 << order)
        assert not missing, f"frame {frame:#x} order {order} freed, but not allocated"
        if order > self.max_order:
            self._virgin.append([frame >> self.max_order, 1 << (order - self.max_order)])
            return
        while order < self.max_order:
            buddy = frame ^ (1 << order)
            if buddy not in self._is_free[order]:
                break
            self._is_free[order].remove(buddy)
            frame = min(frame, buddy)
            order += 1
        self._put(frame, order)

    def free_many(self, frames: U64Array, order: int = 0) -> None:
        """Give blocks back."""
        for frame in frames.tolist():
            self.free(frame, order)

    def claim(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Mark frame ranges outside the allocator's own as allocated (taken over memory)."""
        for first, count in ranges:
            taken = self.allocated.add_range(first, count)
            assert not taken, f"frame {first:#x} claimed twice"
