"""Preserved memory on the consumer's side: the map as this kernel reads it, and restoring.

Early boot walks the map, reserves every block and leaves a mark with the order in the
``private`` word of the block's first ``struct page``. Restoring a block takes the mark, so it
works once; a block that was not in the map has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from abi.kho import KhoGeneration, MapKind
from abi.memory_map import RadixGeometry, bitmap_runs
from inspector.findings import Findings
from inspector.kernel.incoming import radix
from inspector.kernel.incoming.view import Absent, PageFault, View
from inspector.kernel.machine.frames import FrameSet, frames_of
from inspector.memory.base import U8Array, U64Array
from inspector.survey import Survey
from inspector.walk.preserved import PreservedMap, walk_map

_CHUNK_BITS = 15
_CHUNK = 1 << _CHUNK_BITS
_NONE = -1
#: Orders from here on are kept by themselves.
_LARGE = 9
#: Chunks of one table of marks, 32 KiB each: more than 1 TiB in pages needs.
_MAX_TABLE = 1 << 14
#: Bitmaps, and runs of bits in them, of one map: more than any machine has.
_MAX_BITMAPS, _MAX_RUNS = 1 << 20, 1 << 23
#: Heads of blocks expanded at a time.
_BATCH = 1 << 18
#: A list of chunks longer than this has no end.
_MAX_CHUNKS = 1 << 16
#: Entries read of one chunk, whatever it counts.
_MAX_ELEMENTS = 1 << 16
#: Troubles of one kind that are kept.
_MOST = 1 << 12

I8Array = npt.NDArray[np.int8]


class TooManyBlocks(Exception):
    """The blocks of a map are spread so wide that marking them would fill memory."""


class _Table:
    """Orders by number, one byte each in chunks that exist only where something is marked."""

    def __init__(self) -> None:
        self._chunks: dict[int, I8Array] = {}

    def _chunk(self, number: int) -> I8Array:
        chunk = self._chunks.get(number)
        if chunk is None:
            if len(self._chunks) >= _MAX_TABLE:
                raise TooManyBlocks
            chunk = self._chunks[number] = np.full(_CHUNK, _NONE, np.int8)
        return chunk

    def put(self, numbers: U64Array, order: int) -> None:
        for number, rows in _grouped(numbers):
            self._chunk(number)[(numbers[rows] & np.uint64(_CHUNK - 1)).astype(np.int64)] = order

    def put_run(self, first: int, count: int, step: int, order: int) -> None:
        end = first + count * step
        while first < end:
            number, inside = divmod(first, _CHUNK)
            stop = min(_CHUNK, inside + end - first)
            self._chunk(number)[inside:stop:step] = order
            first += -(-(stop - inside) // step) * step

    def clear_run(self, first: int, count: int, step: int) -> None:
        end = first + count * step
        touched = range(first >> _CHUNK_BITS, (end >> _CHUNK_BITS) + 1)
        for number in touched if len(touched) <= len(self._chunks) else list(self._chunks):
            base = number << _CHUNK_BITS
            inside = first + -(-max(base - first, 0) // step) * step - base
            stop = min(_CHUNK, end - base)
            if inside < stop and number in self._chunks:
                self._chunks[number][inside:stop:step] = _NONE

    def take(self, numbers: U64Array) -> I8Array:
        orders = np.full(len(numbers), _NONE, np.int8)
        for number, rows in _grouped(numbers):
            chunk = self._chunks.get(number)
            if chunk is None:
                continue
            inside = (numbers[rows] & np.uint64(_CHUNK - 1)).astype(np.int64)
            orders[rows] = chunk[inside]
            chunk[inside] = _NONE
        return orders

    def take_one(self, number: int) -> int:
        chunk = self._chunks.get(number >> _CHUNK_BITS)
        if chunk is None:
            return _NONE
        order = int(chunk[number & (_CHUNK - 1)])
        chunk[number & (_CHUNK - 1)] = _NONE
        return order

    def peek(self, number: int) -> int:
        chunk = self._chunks.get(number >> _CHUNK_BITS)
        return int(chunk[number & (_CHUNK - 1)]) if chunk is not None else _NONE

    def left(self) -> Iterator[tuple[U64Array, I8Array]]:
        for number in sorted(self._chunks):
            chunk = self._chunks[number]
            where = np.flatnonzero(chunk != _NONE)
            if len(where):
                yield where.astype(np.uint64) + np.uint64(number << _CHUNK_BITS), chunk[where]


class Marks:
    """Marks of preserved blocks that were not restored yet: the order by first frame.

    ``overlapping`` tells that blocks may overlap, as those of a damaged map do. Of blocks that
    begin at one frame the last one marked counts.
    """

    def __init__(self, *, overlapping: bool = False) -> None:
        # Large blocks are few and far between: a table of their own keeps the other one small.
        self._small, self._large = _Table(), _Table()
        self.overlapping = overlapping

    def put(self, frames: U64Array, order: int) -> None:
        """Mark blocks."""
        if order < _LARGE and not self.overlapping:
            self._small.put(frames, order)
            return
        aligned = frames & np.uint64((1 << _LARGE) - 1) == 0
        if order < _LARGE or not aligned.all():
            self._small.put(frames, order)
            self._large.take(frames[aligned] >> np.uint64(_LARGE))
        else:
            self._large.put(frames >> np.uint64(_LARGE), order)
            if self.overlapping:
                self._small.take(frames)

    def put_run(self, first: int, count: int, order: int) -> None:
        """Mark neighbouring blocks."""
        step, unit = 1 << order, 1 << _LARGE
        if order < _LARGE or first % unit:
            self._small.put_run(first, count, step, order)
            if self.overlapping and first % min(step, unit) == 0:
                low = -(-first // unit)
                self._large.clear_run(low, -(-(first + count * step) // unit) - low, 1)
        else:
            self._large.put_run(first >> _LARGE, count, step >> _LARGE, order)
            if self.overlapping:
                self._small.clear_run(first, count, step)

    def take(self, frames: U64Array) -> I8Array:
        """The orders of blocks, -1 where there is no mark; the marks are gone afterwards."""
        orders = self._small.take(frames)
        rest = np.flatnonzero((orders == _NONE) & (frames & np.uint64((1 << _LARGE) - 1) == 0))
        if len(rest):
            orders[rest] = self._large.take(frames[rest] >> np.uint64(_LARGE))
        if len(frames) > 1 and not (frames[1:] > frames[:-1]).all():
            ascending = np.sort(frames)
            if (ascending[1:] == ascending[:-1]).any():
                again = np.ones(len(frames), np.bool_)
                again[np.unique(frames, return_index=True)[1]] = False
                orders[again] = _NONE
        return orders

    def take_one(self, frame: int) -> int:
        """:meth:`take` of a single block."""
        order = self._small.take_one(frame)
        if order == _NONE and not frame & (1 << _LARGE) - 1:
            order = self._large.take_one(frame >> _LARGE)
        return order

    def clear(self, first: int, count: int) -> None:
        """Remove the marks of all blocks that begin in a range of frames."""
        unit = 1 << _LARGE
        low = -(-first // unit)
        self._small.clear_run(first, count, 1)
        self._large.clear_run(low, max(-(-(first + count) // unit) - low, 0), 1)

    def peek(self, frame: int) -> int:
        """The order of a block, -1 if it has no mark."""
        order = self._small.peek(frame)
        if order == _NONE and not frame & (1 << _LARGE) - 1:
            order = self._large.peek(frame >> _LARGE)
        return order

    def left(self) -> Iterator[tuple[U64Array, I8Array]]:
        """(first frames, orders) of all marks that are left, in bounded pieces."""
        yield from self._small.left()
        for numbers, orders in self._large.left():
            yield numbers << np.uint64(_LARGE), orders


def _grouped(frames: U64Array) -> Iterator[tuple[int, slice | npt.NDArray[np.int64]]]:
    if not len(frames):
        return
    numbers = frames >> np.uint64(_CHUNK_BITS)
    first = int(numbers[0])
    if len(frames) == 1 or bool((numbers == numbers[0]).all()):
        yield first, slice(None)
        return
    rank = np.argsort(numbers, kind="stable")
    ordered = numbers[rank]
    cut = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    for rows in np.split(rank, cut):
        yield int(numbers[rows[0]]), rows


class Freed:
    """Blocks that were given back to the page allocator, as a log."""

    def __init__(self) -> None:
        self._blocks: dict[int, list[U64Array]] = {}
        self._single: dict[int, list[int]] = {}

    def add(self, frames: U64Array, order: int) -> None:
        """Blocks of 2^order pages."""
        if len(frames):
            self._blocks.setdefault(order, []).append(frames)

    def add_one(self, frame: int, order: int) -> None:
        """One block."""
        self._single.setdefault(order, []).append(frame)

    def blocks(self) -> Iterator[tuple[int, U64Array]]:
        """(order, first frames) of everything in the log."""
        for order in sorted(self._blocks.keys() | self._single.keys()):
            single = np.array(self._single.get(order, []), np.uint64)
            yield order, np.concatenate([single, *self._blocks.get(order, [])])

    def ranges(self) -> tuple[U64Array, U64Array]:
        """Disjoint ascending ranges [first, end) of all frames."""
        lows = [np.empty(0, np.uint64)]
        highs = [np.empty(0, np.uint64)]
        for order, blocks in self.blocks():
            lows.append(blocks)
            highs.append(blocks + np.uint64(1 << order))
        low, high = np.concatenate(lows), np.concatenate(highs)
        rank = np.argsort(low, kind="stable")
        low, reach = low[rank], np.maximum.accumulate(high[rank])
        fresh = np.flatnonzero(np.append(True, low[1:] > reach[:-1])[: len(low)])
        return low[fresh], reach[np.append(fresh[1:], len(low))[: len(fresh)] - 1]

    def frames(self) -> U64Array:
        """Every frame, ascending, each once."""
        parts = [frames_of(blocks, order) for order, blocks in self.blocks()]
        return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)


class Lost:
    """What was freed up to some moment: blocks of any size take no more than their ends."""

    def __init__(self) -> None:
        self._lows, self._highs = Freed().ranges()

    def see(self, freed: Freed) -> None:
        """All that was freed by now."""
        self._lows, self._highs = freed.ranges()

    def contains(self, frames: U64Array) -> npt.NDArray[np.bool_]:
        """For each frame, whether it was freed."""
        if not len(self._lows):
            return np.zeros(len(frames), np.bool_)
        i = np.searchsorted(self._lows, frames, side="right") - 1
        return np.asarray((i >= 0) & (frames < self._highs[np.maximum(i, 0)]))


@dataclass(slots=True)
class Inherited:
    """The map as one kernel read it.

    ``fatal`` says why the walk killed the kernel: (message, address, bytes); ``absent`` are
    map nodes that the image lacks.
    """

    preserved: PreservedMap
    fatal: list[tuple[str, int, bytes]] = field(default_factory=list)
    absent: list[int] = field(default_factory=list)


def read_map(view: View, generation: KhoGeneration, root: int) -> Inherited:
    """Walk the map at ``root`` as a kernel of ``generation`` with the view's page size does."""
    if generation.map_kind in (MapKind.BITMAP_512, MapKind.BITMAP_PAGE):
        size = 512 if generation.map_kind is MapKind.BITMAP_512 else view.page_size
        return _read_chunks(view, size, root)
    return _read_radix(view, generation, root)


def _read_radix(view: View, generation: KhoGeneration, root: int) -> Inherited:
    survey = Survey(view.memory, view.page_size, Findings(per_code=16))
    found = Inherited(walk_map(survey, generation, root, give_up_after=4096))
    # Overlapping blocks are taken as they are; anything else a kernel does not even notice.
    odd = any(
        item.code.startswith(("KHO-MAP-", "KHO-LST-", "KHO-MEM-003")) and item.code != "KHO-MAP-005"
        for item in survey.findings.items
    )
    if not odd and not survey.holes:
        return found
    geometry = RadixGeometry(view.page_size, interim=generation.map_kind is MapKind.RADIX_INTERIM)
    plain = radix.walk(view, geometry, root)
    nodes = np.array(list(plain.nodes), np.uint64)
    preserved = _collected(
        view.page_size, plain.starts, plain.counts, plain.orders, [], nodes, view.page_size
    )
    return Inherited(preserved, plain.fatal, plain.absent)


def _read_chunks(view: View, size: int, root: int) -> Inherited:
    """The chunk list, with nothing checked that the kernel does not check."""
    page, shift = view.page_size, view.page_shift
    found = Inherited(empty_map(page))
    starts: list[U64Array] = []
    counts: list[U64Array] = []
    orders: list[U8Array] = []
    nodes: list[int] = []
    bitmaps: list[U64Array] = []
    seen: set[int] = set()
    runs, elements, at = 0, 0, root
    while at:
        if elements > _MAX_BITMAPS or runs > _MAX_RUNS:
            found.fatal.append(("the map has more bitmaps than any machine", at, b""))
            break
        if at in seen or len(seen) > _MAX_CHUNKS:
            found.fatal.append(("the list of bitmap chunks has no end", at, b""))
            break
        seen.add(at)
        try:
            head = view.read(at, 16)
            order = int.from_bytes(head[8:12], "little")
            count = int.from_bytes(head[12:16], "little")
            raw = view.read(at + 16, 16 * min(count, _MAX_ELEMENTS))
        except Absent as lack:
            found.absent.append(lack.address)
            break
        except PageFault as fault:
            found.fatal.append((f"bitmap chunk {at:#x} reaches outside memory", fault.address, b""))
            break
        nodes.append(at)
        pairs = np.frombuffer(raw, "<u8").reshape(-1, 2).astype(np.uint64)
        bitmaps.append(pairs[:, 1])
        elements += len(pairs)
        for start, bitmap in pairs.tolist():
            if runs > _MAX_RUNS:
                break
            low, high = _bits(view, found, bitmap, size)
            runs += len(low)
            if not len(low):
                continue
            if order + shift > 51:
                found.fatal.append((f"a chunk of order {order}", at, head))
                break
            move = np.uint64(order + shift)
            with np.errstate(over="ignore"):
                starts.append(np.uint64(start) + (low.astype(np.uint64) << move))
            counts.append((high - low).astype(np.uint64))
            orders.append(np.full(len(low), order, np.uint8))
        at = int.from_bytes(head[:8], "little")
    where = np.concatenate(bitmaps) if bitmaps else np.empty(0, np.uint64)
    found.preserved = _collected(page, starts, counts, orders, nodes, where, size)
    return found


def _bits(
    view: View, found: Inherited, bitmap: int, size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Runs of set bits of one bitmap; what the image lacks of it counts as clear."""
    data = bytearray(size)
    at = bitmap
    while at < bitmap + size:
        end = min((at | 4095) + 1, bitmap + size)
        try:
            data[at - bitmap : end - bitmap] = view.read(at, end - at)
        except Absent as lack:
            if len(found.absent) < _MOST:
                found.absent.append(lack.address)
        except PageFault as fault:
            if len(found.fatal) < _MOST:
                found.fatal.append((f"bitmap {bitmap:#x} is outside memory", fault.address, b""))
            break
        at = end
    return bitmap_runs(np.frombuffer(bytes(data), "<u8"))


def _collected(
    page: int,
    starts: list[U64Array],
    counts: list[U64Array],
    orders: list[U8Array],
    nodes: list[int],
    bitmaps: U64Array,
    size: int,
) -> PreservedMap:
    if not starts:
        empty = empty_map(page)
        start, count, order = empty.starts, empty.counts, empty.orders
    else:
        start, count, order = np.concatenate(starts), np.concatenate(counts), np.concatenate(orders)
    rank = np.lexsort((order, start))
    where = np.concatenate((np.array(nodes, np.uint64), bitmaps))
    sizes = np.concatenate(
        (np.full(len(nodes), page, np.uint64), np.full(len(bitmaps), size, np.uint64))
    )
    # What was met is in the kernel's order: that is what the ranks tell afterwards.
    return PreservedMap(page, start[rank], count[rank], order[rank], where, sizes, turns=rank)


def empty_map(page_size: int) -> PreservedMap:
    """A map without blocks."""
    none = np.empty(0, np.uint64)
    return PreservedMap(page_size, none, none, np.empty(0, np.uint8), none, none)


def marks_of(preserved: PreservedMap) -> Marks:
    """The marks that early boot leaves."""
    marks = Marks(overlapping=not preserved.disjoint)
    shift = np.uint64(preserved.page_size.bit_length() - 1)
    for rows, order in preserved.walked():
        first, count = preserved.starts[rows] >> shift, preserved.counts[rows].astype(np.int64)
        long = count > 64
        for frame, many in zip(first[long].tolist(), count[long].tolist(), strict=True):
            marks.put_run(frame, many, order)
        first, count = first[~long], count[~long]
        ends = np.cumsum(count)
        at = 0
        while at < len(first):
            base = int(ends[at - 1]) if at else 0
            end = max(int(np.searchsorted(ends, base + _BATCH, side="right")), at + 1)
            part = count[at:end]
            inside = np.arange(int(part.sum())) - np.repeat(np.cumsum(part) - part, part)
            step = inside.astype(np.uint64) << np.uint64(order)
            marks.put(np.repeat(first[at:end], part) + step, order)
            at = end
    return marks


def frames_in(preserved: PreservedMap) -> FrameSet:
    """Every preserved frame."""
    shift = np.uint64(preserved.page_size.bit_length() - 1)
    lows, highs = preserved.intervals()
    found = FrameSet()
    first, end = lows >> shift, highs >> shift
    single = end - first == 1
    if single.any():
        found.add(first[single])
    for low, high in zip(first[~single].tolist(), end[~single].tolist(), strict=True):
        found.add_range(low, high - low)
    return found
