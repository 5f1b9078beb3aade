"""Arithmetic of (start, size) ranges of physical memory, and what images hold in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from abi.errors import UsageError
from inspector.memory.base import PhysicalMemory

Ranges: TypeAlias = Iterable[tuple[int, int]]
RangeList: TypeAlias = list[tuple[int, int]]
#: Address and size of a piece, and its bytes; None where nothing is stored: zeros.
Part: TypeAlias = tuple[int, int, "memoryview | None"]

#: Bytes compared at a time.
_WINDOW = 1 << 20
#: After so many bytes, the pages of a mapped image are given back.
_RELEASE = 64 << 20


def merged(ranges: Ranges) -> RangeList:
    """Ascending, disjoint ranges. Raises UsageError for what leaves 2^64."""
    out: RangeList = []
    for start, size in sorted(ranges):
        if size < 0 or start < 0 or start + size > 1 << 64:
            raise UsageError(f"{start:#x}+{size:#x} is not a range of physical memory")
        if out and start <= out[-1][0] + out[-1][1]:
            last, length = out[-1]
            out[-1] = (last, max(length, start + size - last))
        elif size:
            out.append((start, size))
    return out


def intersect(a: RangeList, b: RangeList) -> RangeList:
    """What lies in both of two ascending, disjoint lists."""
    out = []
    i = j = 0
    while i < len(a) and j < len(b):
        start = max(a[i][0], b[j][0])
        end_a, end_b = a[i][0] + a[i][1], b[j][0] + b[j][1]
        end = min(end_a, end_b)
        if start < end:
            out.append((start, end - start))
        if end_a <= end_b:
            i += 1
        else:
            j += 1
    return out


def complement(ranges: RangeList) -> RangeList:
    """What an ascending, disjoint list leaves of the 2^64 addresses."""
    out = []
    at = 0
    for start, size in ranges:
        if start > at:
            out.append((at, start - at))
        at = start + size
    if at < 1 << 64:
        out.append((at, (1 << 64) - at))
    return out


def present(memory: PhysicalMemory, ranges: Ranges | None = None) -> RangeList:
    """What an image holds, of some ranges or of all memory; neighbours are merged."""
    held = merged((r.start, r.size) for r in memory.regions.present)
    return held if ranges is None else intersect(held, merged(ranges))


def parts_of(memory: PhysicalMemory, ranges: RangeList) -> Iterator[Part]:
    """The extents of an image in ascending ranges that are present, and what is zero between.

    A piece is valid until the next one is taken.
    """
    extents = memory.extents()
    nothing = (1 << 64, memoryview(b""))
    start, piece = next(extents, nothing)
    since = 0
    for address, size in ranges:
        at, end = address, address + size
        while at < end:
            while start + len(piece) <= at and start < 1 << 64:
                start, piece = next(extents, nothing)
            if start > at:
                stop = min(start, end)
                yield at, stop - at, None
            else:
                stop = min(start + len(piece), end, at + _RELEASE)
                yield at, stop - at, piece[at - start : stop - start]
                since += stop - at
                if since >= _RELEASE:
                    memory.release()
                    since = 0
            at = stop


def first_difference(one: PhysicalMemory, other: PhysicalMemory, ranges: Ranges) -> int | None:
    """Where in some ranges two images first differ: in what they hold, else in the bytes.

    None if they do not. Reads both once, in bounded memory.
    """
    held, also = present(one, ranges), present(other, ranges)
    if held != also:
        return _first_of(held, also)
    left, right = parts_of(one, held), parts_of(other, held)
    at, room, mine = 0, 0, None
    for address, size, theirs in right:
        done = 0
        while done < size:
            if not room:
                at, room, mine = next(left)
            length = min(room, size - done)
            here = None if mine is None else mine[:length]
            there = None if theirs is None else theirs[done : done + length]
            found = _differs(here, there)
            if found is not None:
                return address + done + found
            mine = None if mine is None else mine[length:]
            at, room, done = at + length, room - length, done + length
    return None


def _first_of(one: RangeList, other: RangeList) -> int:
    """Where two different lists of ranges first part."""
    for (start, size), (begin, length) in zip(one, other, strict=False):
        if start != begin:
            return min(start, begin)
        if size != length:
            return start + min(size, length)
    return (one if len(one) > len(other) else other)[min(len(one), len(other))][0]


def _differs(one: memoryview | None, other: memoryview | None) -> int | None:
    """Index of the first word at which two pieces of one length differ; None is zeros."""
    if one is None and other is None:
        return None
    size = len(one if one is not None else other or b"")
    for at in range(0, size, _WINDOW):
        length = min(_WINDOW, size - at)
        width = 1 if length % 8 else 8
        a, b = (_numbers(view, at, length, width) for view in (one, other))
        if not np.array_equal(a, b):
            return at + int((a != b).argmax()) * width
    return None


def _numbers(
    view: memoryview | None, at: int, size: int, width: int
) -> npt.NDArray[np.unsignedinteger]:
    kind = np.uint8 if width == 1 else np.uint64
    if view is None:
        return np.broadcast_to(kind(0), size // width)
    return np.frombuffer(view[at : at + size], kind)
