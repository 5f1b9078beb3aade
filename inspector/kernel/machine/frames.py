"""Sets of page frames, and the arithmetic of blocks of frames.

A *frame* is a physical address divided by the page size; a *block* of order o is 2^o frames
aligned to its size.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

U64Array = npt.NDArray[np.uint64]

_CHUNK_BITS = 15
_CHUNK = 1 << _CHUNK_BITS


def frames_of(blocks: U64Array, order: int) -> U64Array:
    """Every frame of blocks that start at the given frames, block by block."""
    if order == 0:
        return blocks
    inside = np.arange(1 << order, dtype=np.uint64)
    return (blocks[:, None] + inside).reshape(-1)


def runs(frames: U64Array) -> tuple[U64Array, U64Array]:
    """Ascending frames as maximal runs: (first frames, lengths)."""
    if not len(frames):
        empty = np.empty(0, np.uint64)
        return empty, empty
    cut = np.flatnonzero(np.diff(frames) != 1) + 1
    first = np.concatenate(([0], cut))
    last = np.concatenate((cut, [len(frames)]))
    return frames[first], (last - first).astype(np.uint64)


class FrameSet:
    """A set of frames, one byte each in chunks that exist only where frames were touched."""

    def __init__(self) -> None:
        self._chunks: dict[int, npt.NDArray[np.bool_]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def _pieces(self, first: int, count: int) -> list[tuple[int, int, int]]:
        pieces = []
        end = first + count
        while first < end:
            chunk, inside = first >> _CHUNK_BITS, first & (_CHUNK - 1)
            step = min(_CHUNK - inside, end - first)
            pieces.append((chunk, inside, inside + step))
            first += step
        return pieces

    def _chunk(self, number: int) -> npt.NDArray[np.bool_]:
        chunk = self._chunks.get(number)
        if chunk is None:
            chunk = self._chunks[number] = np.zeros(_CHUNK, np.bool_)
        return chunk

    def add_range(self, first: int, count: int) -> int:
        """Add frames; returns how many of them were in the set already."""
        if count == 1:
            chunk = self._chunk(first >> _CHUNK_BITS)
            inside = first & (_CHUNK - 1)
            if chunk[inside]:
                return 1
            chunk[inside] = True
            self._count += 1
            return 0
        present = 0
        for number, start, end in self._pieces(first, count):
            view = self._chunk(number)[start:end]
            present += int(np.count_nonzero(view))
            view[:] = True
        self._count += count - present
        return present

    def discard_range(self, first: int, count: int) -> int:
        """Remove frames; returns how many of them were not in the set."""
        missing = 0
        for number, start, end in self._pieces(first, count):
            chunk = self._chunks.get(number)
            if chunk is None:
                missing += end - start
                continue
            view = chunk[start:end]
            missing += end - start - int(np.count_nonzero(view))
            view[:] = False
        self._count -= count - missing
        return missing

    def count_range(self, first: int, count: int) -> int:
        """How many frames of a range are in the set."""
        found = 0
        for number, start, end in self._pieces(first, count):
            chunk = self._chunks.get(number)
            if chunk is not None:
                found += int(np.count_nonzero(chunk[start:end]))
        return found

    def _grouped(self, frames: U64Array) -> list[tuple[int, npt.NDArray[np.int64]]]:
        ordered = np.sort(frames)
        chunks = ordered >> np.uint64(_CHUNK_BITS)
        inside = (ordered & np.uint64(_CHUNK - 1)).astype(np.int64)
        cut = np.flatnonzero(np.diff(chunks)) + 1
        edges = [0, *cut.tolist(), len(ordered)]
        return [(int(chunks[a]), inside[a:b]) for a, b in itertools.pairwise(edges) if b > a]

    def add(self, frames: U64Array) -> int:
        """Add distinct frames; returns how many were in the set already."""
        present = 0
        for number, inside in self._grouped(frames):
            chunk = self._chunk(number)
            present += int(np.count_nonzero(chunk[inside]))
            chunk[inside] = True
        self._count += len(frames) - present
        return present

    def discard(self, frames: U64Array) -> int:
        """Remove distinct frames; returns how many were not in the set."""
        missing = 0
        for number, inside in self._grouped(frames):
            chunk = self._chunks.get(number)
            if chunk is None:
                missing += len(inside)
                continue
            missing += len(inside) - int(np.count_nonzero(chunk[inside]))
            chunk[inside] = False
        self._count -= len(frames) - missing
        return missing

    def contains(self, frames: U64Array) -> npt.NDArray[np.bool_]:
        """For each frame, whether it is in the set."""
        out = np.zeros(len(frames), np.bool_)
        numbers = frames >> np.uint64(_CHUNK_BITS)
        for number in np.unique(numbers):
            chunk = self._chunks.get(int(number))
            if chunk is not None:
                here = numbers == number
                out[here] = chunk[(frames[here] & np.uint64(_CHUNK - 1)).astype(np.int64)]
        return out

    def __contains__(self, frame: int) -> bool:
        chunk = self._chunks.get(frame >> _CHUNK_BITS)
        return chunk is not None and bool(chunk[frame & (_CHUNK - 1)])

    def frames(self) -> U64Array:
        """All frames, ascending."""
        parts = [
            np.flatnonzero(self._chunks[n]).astype(np.uint64) + np.uint64(n << _CHUNK_BITS)
            for n in sorted(self._chunks)
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.uint64)
