"""The mappings of domains as columns: what two images map, and how that differs.

Domains of two images are the same if user space calls them the same: by session, iommufd
and HWPT token; without a HWPT by the devices that use them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from abi.errors import UsageError
from inspector import passthrough
from inspector.device_tables import walk_root
from inspector.diff import Change, Diff, Kind
from inspector.image import Image
from inspector.memory.base import U64Array
from inspector.passthrough.reach import domain_root
from inspector.text import size_text
from inspector.walk.iommu import Domain

_COLUMNS = ("iova", "pa", "size", "rights")
#: Ranges of each side that are compared at a time.
_WINDOW = 1 << 18
#: After so many ranges, the pages of mapped images are given back.
_RELEASE = 1 << 21


@dataclass(frozen=True, slots=True)
class Mappings:
    """Merged ranges of one domain, ascending by ``iova``; ``rights`` are Permission bits."""

    iova: U64Array
    pa: U64Array
    size: U64Array
    rights: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.iova)


def named_domains(image: Image) -> dict[str, Domain]:
    """Live domains with a page table, by what user space calls them."""
    state = passthrough.iommu_state(image)
    if state is None:
        return {}
    hwpts = passthrough.hwpts_by_domain(image)
    users: dict[int, list[str]] = {}
    for device in state.devices.live():
        users.setdefault(device.domain_phys, []).append(device.name)
    named: dict[str, Domain] = {}
    for domain in state.domains.live():
        if not domain.top_table_phys:
            continue
        names = sorted(use.hwpt.path for use in hwpts.get(domain.address, ()))
        names = names or sorted(users.get(domain.address, ())) or [domain.path]
        named.setdefault(names[0], domain)
    return named


def mappings(image: Image, domain: Domain) -> Mappings | None:
    """What a domain maps; None if its page table cannot be one."""
    side = _Side(_chunks(image, domain))
    try:
        side.fill(1 << 62)
    except UsageError:
        return None
    return side.held


def _chunks(image: Image, domain: Domain) -> Iterator[Mappings]:
    """What a domain maps, some at a time. Raises UsageError if its page table cannot be one."""
    walk = walk_root(image.memory, domain_root(image, domain))
    for chunk in walk.ranges():
        # Copied: the walk reuses its columns.
        yield Mappings(
            np.array(chunk.iova),
            np.array(chunk.pa),
            np.array(chunk.size),
            np.array(chunk.permissions),
        )


def compare(found: Diff, before: Image, after: Image, addresses: bool) -> None:
    """Record how the mappings of domains of the same name differ.

    One domain after the other, in windows: memory does not grow with what is mapped.
    """
    one, other = named_domains(before), named_domains(after)
    rows = 0
    for name in sorted(one.keys() & other.keys()):
        changes = _Changes(name)
        try:
            for left, right in _windows(_chunks(before, one[name]), _chunks(after, other[name])):
                changes.add(left, right)
                rows += len(left) + len(right)
        except UsageError:
            continue
        for change in changes.all():
            if addresses or change.kind is not Kind.MOVED:
                found.add(change)
        if rows >= _RELEASE:
            before.memory.release()
            after.memory.release()
            rows = 0


def _windows(
    one: Iterator[Mappings], other: Iterator[Mappings]
) -> Iterator[tuple[Mappings, Mappings]]:
    """Two streams of ranges, cut at the same addresses into pieces of bounded length."""
    sides = [_Side(one), _Side(other)]
    while True:
        ends = [end for side in sides if (end := side.fill(_WINDOW)) is not None]
        if not ends:
            left, right = (side.held for side in sides)
            if len(left) or len(right):
                yield left, right
            return
        last = min(ends)
        left, right = (side.take(last) for side in sides)
        yield left, right


class _Side:
    """One of two streams: what was read of it and not handed out yet."""

    def __init__(self, chunks: Iterator[Mappings]) -> None:
        self._chunks: Iterator[Mappings] | None = chunks
        empty = np.empty(0, np.uint64)
        self.held = Mappings(empty, empty, empty, np.empty(0, np.uint8))

    def fill(self, window: int) -> int | None:
        """Read on until there are so many ranges; the last byte held, None once all is read."""
        parts, rows = [self.held], len(self.held)
        while rows < window and self._chunks is not None:
            chunk = next(self._chunks, None)
            if chunk is None:
                self._chunks = None
                break
            parts.append(chunk)
            rows += len(chunk)
        if len(parts) > 1:
            self.held = Mappings(
                *(np.concatenate([getattr(p, c) for p in parts]) for c in _COLUMNS)
            )
        if self._chunks is None:
            return None
        return int(self.held.iova[-1]) + int(self.held.size[-1]) - 1

    def take(self, last: int) -> Mappings:
        """What is mapped up to the byte ``last``; the rest stays. Cuts a range that goes on."""
        held = self.held
        end = int(np.searchsorted(held.iova, np.uint64(last), "right"))
        out = Mappings(*(getattr(held, c)[:end] for c in _COLUMNS))
        rest = Mappings(*(getattr(held, c)[end:] for c in _COLUMNS))
        inside = last + 1 - int(out.iova[-1]) if end else 0
        if end and inside < int(out.size[-1]):
            cut = np.uint64(inside)
            rest = Mappings(
                np.append(out.iova[-1:] + cut, rest.iova),
                np.append(out.pa[-1:] + cut, rest.pa),
                np.append(out.size[-1:] - cut, rest.size),
                np.append(out.rights[-1:], rest.rights),
            )
            out = Mappings(out.iova, out.pa, np.append(out.size[:-1], cut), out.rights)
        self.held = rest
        return out


@dataclass(slots=True)
class _Difference:
    """Neighbouring addresses of one kind of change; ``old`` and ``new`` are (pa, rights)."""

    start: int
    end: int
    old: tuple[int, int] | None
    new: tuple[int, int] | None

    def goes_on(self, other: _Difference, kind: Kind) -> bool:
        """Whether ``other`` is more of the same."""
        if self.end != other.start:
            return False
        if kind is not Kind.CHANGED or not (self.old and other.old and self.new and other.new):
            return True
        return self.old[1] == other.old[1] and self.new[1] == other.new[1]


class _Changes:
    """The differences of one domain, by kind; those that go on where the last ended are one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._found: dict[Kind, list[_Difference]] = {
            kind: [] for kind in (Kind.REMOVED, Kind.ADDED, Kind.CHANGED, Kind.MOVED)
        }

    def add(self, one: Mappings, other: Mappings) -> None:
        """Compare a window of both sides."""
        for kind, difference in _differences(one, other):
            known = self._found[kind]
            if known and known[-1].goes_on(difference, kind):
                known[-1].end = difference.end
            else:
                known.append(difference)

    def all(self) -> Iterator[Change]:
        """Everything that was found."""
        for kind, known in self._found.items():
            for d in known:
                what = f"iova {d.start:#x}, {size_text(d.end - d.start)}"
                yield Change(kind, self._name, what, _target(d.old), _target(d.new))


def _differences(one: Mappings, other: Mappings) -> Iterator[tuple[Kind, _Difference]]:
    one, other = _without_common_ends(one, other)
    if not len(one) and not len(other):
        return
    edges = np.sort(
        np.concatenate((one.iova, one.iova + one.size, other.iova, other.iova + other.size))
    )
    edges = edges[np.append(True, edges[1:] != edges[:-1])]
    left, size = edges[:-1], edges[1:] - edges[:-1]
    old, had, old_rights = _at(one, left)
    new, has, new_rights = _at(other, left)
    lost, won = had & ~has, has & ~had
    rights = had & has & (old_rights != new_rights)
    moved = had & has & ~rights & (old != new)
    for kind, which in (
        (Kind.REMOVED, lost), (Kind.ADDED, won), (Kind.CHANGED, rights), (Kind.MOVED, moved),
    ):  # fmt: skip
        rows = np.flatnonzero(which)
        if len(rows) == 0:
            continue
        # Neighbours that go on where the last ended are one change.
        ends = left[rows] + size[rows]
        follows = np.zeros(len(rows), np.bool_)
        follows[1:] = left[rows[1:]] == ends[:-1]
        if kind is Kind.CHANGED:
            follows[1:] &= (old_rights[rows[1:]] == old_rights[rows[:-1]]) & (
                new_rights[rows[1:]] == new_rights[rows[:-1]]
            )
        first = np.flatnonzero(~follows)
        last = np.append(first[1:] - 1, len(rows) - 1)
        for i, j in zip(rows[first].tolist(), rows[last].tolist(), strict=True):
            yield (
                kind,
                _Difference(
                    int(left[i]),
                    int(left[j] + size[j]),
                    (int(old[i]), int(old_rights[i])) if had[i] else None,
                    (int(new[i]), int(new_rights[i])) if has[i] else None,
                ),
            )


def _without_common_ends(one: Mappings, other: Mappings) -> tuple[Mappings, Mappings]:
    """Both without the ranges that they begin and end with in common."""
    count = min(len(one), len(other))
    first = _same(one, other, slice(0, count), slice(0, count), ascending=True)
    rest = count - first
    tail = [slice(len(side) - rest, len(side)) for side in (one, other)]
    last = _same(one, other, *tail, ascending=False)
    return tuple(  # type: ignore[return-value]
        Mappings(*(getattr(side, c)[first : len(side) - last] for c in _COLUMNS))
        for side in (one, other)
    )


def _same(one: Mappings, other: Mappings, mine: slice, its: slice, *, ascending: bool) -> int:
    """How many ranges two slices of one length begin (or end) with in common."""
    length: int = mine.stop - mine.start
    differs: npt.NDArray[np.bool_] = np.zeros(length, np.bool_)
    for column in _COLUMNS:
        differs |= getattr(one, column)[mine] != getattr(other, column)[its]
    if not differs.any():
        return length
    order = slice(None) if ascending else slice(None, None, -1)
    return int(np.flatnonzero(differs[order])[0])


def _target(mapped: tuple[int, int] | None) -> str | None:
    if mapped is None:
        return None
    pa, rights = mapped
    flags = "".join(c if rights & bit else "-" for c, bit in (("r", 1), ("w", 2), ("x", 4)))
    return f"{pa:#x} {flags}"


def _at(
    maps: Mappings, iova: U64Array
) -> tuple[U64Array, npt.NDArray[np.bool_], npt.NDArray[np.uint8]]:
    """(physical address, whether mapped, rights) of each address."""
    if len(maps) == 0:
        none = np.zeros(len(iova), np.bool_)
        return np.zeros(len(iova), np.uint64), none, np.zeros(len(iova), np.uint8)
    i = np.searchsorted(maps.iova, iova, side="right") - 1
    j = np.maximum(i, 0)
    mapped = (i >= 0) & (iova - maps.iova[j] < maps.size[j])
    return (
        np.where(mapped, maps.pa[j] + (iova - maps.iova[j]), np.uint64(0)),
        mapped,
        np.where(mapped, maps.rights[j], 0).astype(np.uint8),
    )
