"""The pictures of a report, as numbers: who draws them is the template.

A strip is a line of memory from left to right. Gaps in which nothing lies are shortened,
so that what is there can be seen; neighbours of one kind that would be thinner than a
pixel even when zoomed are drawn together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from abi.errors import UsageError
from inspector.check.ownership import Ownership
from inspector.image import Image
from inspector.memory.base import U64Array
from inspector.text import display, size_text
from inspector.walk.folio_file import FolioFile

WIDTH = 1000.0
#: Rectangles in one strip: a browser stays quick with this many.
MAX_PARTS = 4000
_GAP = 6.0


@dataclass(frozen=True, slots=True)
class Part:
    """A rectangle: ``x`` and ``width`` in units of the strip, ``kind`` decides its colour."""

    x: float
    width: float
    kind: str
    label: str


@dataclass(frozen=True, slots=True)
class Strip:
    """A line of memory. ``marks`` are (x, text) of the addresses below it."""

    title: str
    parts: tuple[Part, ...]
    marks: tuple[tuple[float, str], ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar with a name: ``share`` of the longest, 0 to 100."""

    name: str
    text: str
    share: float


@dataclass(frozen=True, slots=True)
class _Range:
    start: int
    end: int
    kind: str
    label: str


def memory_strip(image: Image, owned: Ownership) -> Strip:
    """Physical memory: scratch, what is preserved by owner, leaks, and what is missing."""
    ranges: list[_Range] = []
    for i, area in enumerate(image.scratch or ()):
        if area.size:
            ranges.append(
                _Range(area.address, area.address + area.size, "scratch", f"scratch area {i}")
            )
    kinds = dict.fromkeys(c.kind for c in owned.claims)
    for kind in kinds:
        starts = np.concatenate([c.starts for c in owned.claims if c.kind == kind])
        sizes = np.concatenate([c.sizes for c in owned.claims if c.kind == kind])
        ranges += _merged(starts, starts + sizes, kind, image.page_size)
    ranges += _merged(owned.leak_starts, owned.leak_ends, "unclaimed", image.page_size)
    return _strip("physical memory", ranges)


def _merged(starts: U64Array, ends: U64Array, kind: str, page: int) -> list[_Range]:
    """Ranges of one kind, joined as :func:`_joined` does."""
    starts, ends = _joined(starts, ends, page)
    return [
        _Range(start, end, kind, f"{kind} {start:#x}, {size_text(end - start)}")
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]


def _joined(starts: U64Array, ends: U64Array, page: int) -> tuple[U64Array, U64Array]:
    """Ranges ascending, those that touch joined, the nearest joined until few are left."""
    if len(starts) == 0:
        return starts, ends
    rank = np.argsort(starts, kind="stable")
    starts, reach = starts[rank], np.maximum.accumulate(ends[rank])
    join = np.uint64(page)
    while True:
        slack = starts[1:] > reach[:-1]
        far = slack & (starts[1:] - np.minimum(reach[:-1], starts[1:]) > join)
        if far.sum() < MAX_PARTS // 8:
            break
        join *= np.uint64(4)
    first = np.flatnonzero(np.concatenate(([True], far)))
    last = np.append(first[1:] - 1, len(starts) - 1)
    return starts[first], reach[last]


def _strip(title: str, ranges: Iterable[_Range]) -> Strip:
    """Lay ranges out on a line with shortened gaps."""
    # A hostile size may be 0, or wrap around the end of the address space.
    real = (r for r in ranges if r.end > r.start)
    ordered = sorted(real, key=lambda r: (r.start, -r.end))[:MAX_PARTS]
    if not ordered:
        return Strip(title, (), (), ())
    groups = list(_groups(ordered))
    used = sum(end - start for start, end in groups)
    room = max(WIDTH - _GAP * (len(groups) - 1), WIDTH / 2)
    scale = room / max(used, 1)
    edges: list[tuple[int, int, float]] = []
    x = 0.0
    for start, end in groups:
        edges.append((start, end, x))
        x += (end - start) * scale + _GAP
    parts = []
    group = 0
    for one in ordered:
        while one.start >= edges[group][1]:
            group += 1
        start, _, left = edges[group]
        width = max((one.end - one.start) * scale, 0.05)
        parts.append(Part(left + (one.start - start) * scale, width, one.kind, one.label))
    marks = []
    last = -200.0
    for start, _, left in edges:
        if left - last > 90:
            marks.append((left, f"{start:#x}"))
            last = left
    kinds = tuple(dict.fromkeys(r.kind for r in ordered))
    return Strip(title, tuple(parts), tuple(marks), kinds)


def _groups(ordered: list[_Range]) -> Iterator[tuple[int, int]]:
    """Ranges of addresses without a gap that is large for the whole."""
    used = sum(r.end - r.start for r in ordered)
    wide = max(used // 20, 1 << 16)
    start, end = ordered[0].start, ordered[0].end
    for one in ordered[1:]:
        if one.start > end + wide:
            yield start, end
            start, end = one.start, one.end
        end = max(end, one.end)
    yield start, end


#: Domains drawn: the rest is in ``kho devices`` and ``kho pagetable``.
MAX_DOMAINS = 24
_IOVA_PAGE = 0x1000
#: Ranges of one domain and kind that are kept before they are joined.
_MOST_SPANS = 1 << 20


def iova_strips(image: Image) -> list[Strip]:
    """One strip for each domain: what its devices can reach, by rights."""
    from inspector.passthrough.domains import DomainTables
    from inspector.passthrough.mappings import chunks, named_domains

    strips = []
    tables = DomainTables(image)
    for name, domain in list(named_domains(image).items())[:MAX_DOMAINS]:
        rights: dict[int, _Spans] = defaultdict(_Spans)
        mapped = count = 0
        try:
            for chunk in chunks(tables, domain):
                mapped += int(chunk.size.sum())
                count += len(chunk)
                for bits in np.unique(chunk.rights).tolist():
                    mine = chunk.rights == bits
                    rights[bits].add(chunk.iova[mine], chunk.iova[mine] + chunk.size[mine])
        except UsageError:
            continue
        ranges: list[_Range] = []
        for bits, spans in sorted(rights.items()):
            kind = ("r" if bits & 1 else "") + ("w" if bits & 2 else "") or "none"
            ranges += _merged(*spans.columns(), kind, _IOVA_PAGE)
        if count:
            title = f"{name}: {size_text(mapped)} in {count:,} ranges"
            strips.append(_strip(title, ranges))
    return strips


class _Spans:
    """Ranges of addresses that come some at a time; of too many, the nearest are joined."""

    def __init__(self) -> None:
        self._parts: list[tuple[U64Array, U64Array]] = []
        self._rows = 0

    def add(self, starts: U64Array, ends: U64Array) -> None:
        """More of them, in any order."""
        self._parts.append((starts, ends))
        self._rows += len(starts)
        if self._rows > _MOST_SPANS:
            self._parts = [_joined(*self.columns(), _IOVA_PAGE)]
            self._rows = len(self._parts[0][0])

    def columns(self) -> tuple[U64Array, U64Array]:
        """All of them, as (starts, ends)."""
        starts, ends = zip(*self._parts, strict=True)
        return np.concatenate(starts), np.concatenate(ends)


def session_bars(image: Image) -> list[Bar]:
    """Bytes of memory files in each session."""
    if image.luo is None:
        return []
    sizes = []
    for session in image.luo.sessions:
        size = sum(f.state.size for f in session.files if isinstance(f.state, FolioFile))
        sizes.append((session, size))
    longest = max((size for _, size in sizes), default=0) or 1
    sizes.sort(key=lambda pair: -pair[1])
    return [
        Bar(
            display(session.name),
            f"{size_text(size)} in {len(session.files)} files",
            100.0 * size / longest,
        )
        for session, size in sizes[:100]
    ]
