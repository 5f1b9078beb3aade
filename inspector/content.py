"""The bytes of an object: a file's content, a blob, a region, a struct.

Images say how large things are, and may say anything: how much is written is limited, and what
is missing is counted by runs of memory, not by pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from abi.errors import IncompleteError, UsageError
from inspector.image import Image
from inspector.memory.base import PageState, PhysicalMemory, U64Array
from inspector.memory.ranges import complement, intersect, present
from inspector.text import plural, size_text
from inspector.tree import Node
from inspector.walk.folio_file import FolioFile, content
from inspector.walk.luo import File

_PIECE = 1 << 20
#: What holes are made of, piece by piece: always this object, so that a writer knows them.
ZEROS = bytes(_PIECE)
#: Without ``max_size`` an object may be as large as the RAM of its image, within these bounds:
#: RAM too is what the image says.
SMALL, LARGE = 1 << 30, 64 << 30
#: Missing frames that a message names.
_NAMED = 8


def read(
    image: Image, node: Node, *, fill_missing: bool = False, max_size: int | None = None
) -> Iterator[bytes]:
    """The bytes of ``node`` in pieces; holes of a file are zeros.

    Raises IncompleteError, before anything is handed out, if frames are not in the image
    (unless ``fill_missing``), UsageError if the object has no bytes of its own, or more than
    ``max_size`` (by default what :func:`default_limit` says).
    """
    if isinstance(node.object, File) and isinstance(node.object.state, FolioFile):
        file = node.object.state
        _limit(image, file.path, file.size, max_size)
        yield from _file(image, file, fill_missing)
        return
    if isinstance(node.object, File) and node.object.state is None:
        raise IncompleteError(
            f"{node.object.path}: the state of this {node.object.compatible!r} file could not"
            " be decoded"
        )
    if node.address is None or node.size is None:
        names = [child.name for child in islice(node.children(), 8)]
        hint = f"; it has parts: {', '.join(names)}" if names else ""
        raise UsageError(f"{node.name or '/'} has no bytes of its own{hint}")
    _limit(image, f"{node.address:#x}", node.size, max_size)
    yield from _range(image, node.address, node.size, fill_missing)


def default_limit(memory: PhysicalMemory) -> int:
    """How large an object may be if nobody says: the RAM of the image, within bounds."""
    return min(max(sum(r.size for r in memory.regions), SMALL), LARGE)


def _limit(image: Image, what: str, size: int, max_size: int | None) -> None:
    if size <= SMALL and max_size is None:
        return
    limit = default_limit(image.memory) if max_size is None else max_size
    if size > limit:
        raise UsageError(
            f"{what} says that it has {size_text(size)}; more than {size_text(limit)}"
            " are written only if --max-size says so"
        )


def _file(image: Image, file: FolioFile, fill_missing: bool) -> Iterator[bytes]:
    if not fill_missing:
        if not file.folios.complete:
            raise IncompleteError(
                f"{file.path}: {len(file.folios.pfn)} of {file.nr_folios} folio entries can"
                " be read; --fill-missing writes zeros for the rest"
            )
        if not file.sized:
            raise IncompleteError(
                f"{file.path}: the preserved-memory map that says how large folios are is lost;"
                " --fill-missing takes them for single pages"
            )
        _require(image, file.path, *_used(file))
    for piece in content(image.survey, file):
        if piece.data is not None:
            yield bytes(piece.data)
        else:
            yield from _zeros(piece.size)


def _used(file: FolioFile) -> tuple[U64Array, U64Array]:
    """Address and size of what of each folio lies inside its file."""
    used = file.used
    starts, sizes, offsets = file.addresses[used], file.sizes[used], file.offsets[used]
    inside = offsets < np.uint64(file.size)
    starts, sizes, offsets = starts[inside], sizes[inside], offsets[inside]
    return starts, np.minimum(sizes, np.uint64(file.size) - offsets)


def _range(image: Image, start: int, size: int, fill_missing: bool) -> Iterator[bytes]:
    memory = image.memory
    if not fill_missing:
        one = np.array([start], np.uint64), np.array([size], np.uint64)
        _require(image, f"{start:#x}", *one)
    held = intersect(present(memory), [(start, size)])
    at = start
    for begin, length in held:
        yield from _zeros(begin - at)
        for inner in range(0, length, _PIECE):
            yield memory.read(begin + inner, min(_PIECE, length - inner))
        at = begin + length
    yield from _zeros(start + size - at)


def _require(image: Image, what: str, starts: U64Array, sizes: U64Array) -> None:
    """Raise IncompleteError if pages of some ranges are not in the image."""
    page = image.page_size
    if not len(starts):
        return
    # Most files are of pages, all there: one look at each.
    small = sizes <= np.uint64(page)
    if small.all() and (image.memory.states(starts, page) == PageState.PRESENT).all():
        return
    gaps = _Gaps.of(image.memory)
    missing = gaps.within(starts, sizes)
    count = sum(-(-size // page) for size in missing[missing > 0].tolist())
    if not count:
        return
    first: list[int] = []
    for i in np.flatnonzero(missing)[:_NAMED].tolist():
        first += gaps.pages(int(starts[i]), int(sizes[i]), page, _NAMED + 1)
    shown = ", ".join(f"{pa:#x}" for pa in first[:_NAMED]) + (", ..." if count > _NAMED else "")
    raise IncompleteError(
        f"{what}: {plural(count, 'page')} not in the image: {shown}"
        "; --fill-missing writes zeros for them"
    )


@dataclass(frozen=True, slots=True)
class _Gaps:
    """What of the address space an image does not hold; ``before`` is bytes of earlier gaps."""

    starts: U64Array
    ends: U64Array
    before: U64Array

    @classmethod
    def of(cls, memory: PhysicalMemory) -> _Gaps:
        gaps = complement(present(memory))
        starts = np.array([start for start, _ in gaps], np.uint64)
        sizes = np.array([min(size, (1 << 64) - 1 - start) for start, size in gaps], np.uint64)
        return cls(starts, starts + sizes, np.cumsum(sizes) - sizes)

    def within(self, starts: U64Array, sizes: U64Array) -> U64Array:
        """How many bytes of each range are missing."""
        ends = starts + np.minimum(sizes, np.uint64((1 << 64) - 1) - starts)
        return self._until(ends) - self._until(starts)

    def _until(self, at: U64Array) -> U64Array:
        """Missing bytes below each address."""
        if not len(self.starts):
            return np.zeros(len(at), np.uint64)
        index = np.searchsorted(self.starts, at, side="right")
        last = np.maximum(index, 1) - 1
        inside = np.minimum(at, self.ends[last]) - self.starts[last]
        return np.where(index > 0, self.before[last] + inside, np.uint64(0))

    def pages(self, start: int, size: int, page: int, most: int) -> list[int]:
        """Addresses of the first missing pages of a range."""
        found: list[int] = []
        index = int(np.searchsorted(self.ends, np.uint64(start), side="right"))
        while index < len(self.starts) and len(found) < most:
            begin, end = (
                max(int(self.starts[index]), start),
                min(int(self.ends[index]), start + size),
            )
            if begin >= start + size:
                break
            begin -= (begin - start) % page
            found += [pa for pa in range(begin, end, page)[:most] if pa not in found[-1:]]
            index += 1
        return found[:most]


def _zeros(size: int) -> Iterator[bytes]:
    while size >= _PIECE:
        yield ZEROS
        size -= _PIECE
    if size > 0:
        yield bytes(size)
