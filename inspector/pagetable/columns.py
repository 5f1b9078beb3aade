"""What a walk yields: columns, in chunks, in IOVA order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from abi.pagetable.format import U64, Format, Permission

#: At up to so many places rows are put into a chunk piece by piece; else they are sorted in.
_SPLICED: Final = 16


class Rows(NamedTuple):
    """Mapped pieces, ascending by ``iova``: the walker's own form of a chunk.

    ``word`` holds attribute bits (ranges) or the first raw entry (leaves). ``size`` and
    ``word`` may be broadcast scalars, hence read only.
    """

    iova: U64
    pa: U64
    size: U64
    word: U64

    def cut(self, first: int, last: int | None = None) -> Rows:
        """Rows ``first`` to ``last``, as views."""
        return Rows(*(column[first:last] for column in self))

    def pick(self, which: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Rows:
        """The rows chosen by an index or a mask."""
        return Rows(*(column[which] for column in self))


@dataclass(frozen=True, slots=True)
class RangeColumns:
    """Merged ranges: ``iova``, ``pa``, ``size`` in bytes, ``attributes``; all uint64.

    ``attributes`` are the rights and memory-type bits of the format, at the place they
    have in a level 0 entry, narrowed by the table entries above. Columns may be read only.
    """

    format: Format
    iova: U64
    pa: U64
    size: U64
    attributes: U64

    def __len__(self) -> int:
        return len(self.iova)

    @property
    def permissions(self) -> npt.NDArray[np.uint8]:
        """:class:`abi.pagetable.Permission` bits of each range."""
        words = self.attributes
        if len(words) and not words.strides[0]:
            return np.broadcast_to(self.format.rights(words[:1])[0], len(words))
        return self.format.rights(words)

    def __iter__(self) -> Iterator[tuple[int, int, int, Permission]]:
        """(iova, pa, size, permissions) as Python numbers; for what is shown, not for bulk."""
        rights = map(Permission, self.permissions.tolist())
        return zip(self.iova.tolist(), self.pa.tolist(), self.size.tolist(), rights, strict=True)


@dataclass(frozen=True, slots=True)
class LeafColumns:
    """Leaves: ``iova``, ``pa``, ``size`` in bytes, raw ``entry``; all uint64.

    A contiguous group is one leaf with its whole size and its first entry.
    """

    format: Format
    iova: U64
    pa: U64
    size: U64
    entry: U64

    def __len__(self) -> int:
        return len(self.iova)

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        """(iova, pa, size, entry) as Python numbers."""
        return zip(
            self.iova.tolist(),
            self.pa.tolist(),
            self.size.tolist(),
            self.entry.tolist(),
            strict=True,
        )


def merge(rows: Rows) -> Rows:
    """Join neighbours that continue each other in IOVA, address and attributes."""
    if len(rows.iova) < 2:
        return rows
    starts_here = np.empty(len(rows.iova), np.bool_)
    starts_here[0] = True
    size = rows.size[:-1]
    np.not_equal(rows.iova[1:] - rows.iova[:-1], size, out=starts_here[1:])
    starts_here[1:] |= rows.pa[1:] - rows.pa[:-1] != size
    starts_here[1:] |= rows.word[1:] != rows.word[:-1]
    starts = np.flatnonzero(starts_here)
    if len(starts) == len(rows.iova):
        return rows
    joined = np.add.reduceat(rows.size, starts)
    return Rows(rows.iova[starts], rows.pa[starts], joined, rows.word[starts])


def interleave(one: Rows | None, other: Rows | None) -> Rows | None:
    """Both, ascending by IOVA."""
    if one is None or other is None:
        return other if one is None else one
    order = np.argsort(np.concatenate((one.iova, other.iova)), kind="stable")
    return Rows(*(np.concatenate(pair)[order] for pair in zip(one, other, strict=True)))


def _put_between(few: Rows, many: Rows, join: bool) -> Rows:
    """Put rows into a chunk; ``join`` to merge them with their neighbours."""
    at = np.searchsorted(many.iova, few.iova)
    groups = np.flatnonzero(np.append(True, at[1:] != at[:-1]))
    if len(groups) > _SPLICED:
        both = interleave(few, many)
        assert both is not None
        return merge(both) if join else both
    ends = np.append(groups[1:], len(at))
    places = list(zip(at[groups].tolist(), groups.tolist(), ends.tolist(), strict=True))
    rows = Rows(*(_splice(*pair, places) for pair in zip(many, few, strict=True)))
    if not join:
        return rows
    before = at[groups]
    touching = _continue(many, before - 1, few, groups) or _continue(few, ends - 1, many, before)
    return merge(rows) if touching else rows


def _continue(
    one: Rows, at: npt.NDArray[np.intp], other: Rows, there: npt.NDArray[np.intp]
) -> bool:
    """Whether some row of ``other`` may continue that of ``one`` in its place.

    Their addresses say it, rarely wrongly; positions out of bounds stand for the last row.
    """
    end = one.pa.take(at, mode="clip") + one.size.take(at, mode="clip")
    return bool((end == other.pa.take(there, mode="clip")).any())


def _splice(column: U64, few: U64, places: list[tuple[int, int, int]]) -> U64:
    """Pieces of ``few`` put before elements of ``column``; places: (before, first, last)."""
    parts: list[U64] = []
    done = 0
    for place, first, last in places:
        parts += (column[done:place], few[first:last])
        done = place
    parts.append(column[done:])
    return np.concatenate(parts)


def weave(rows: Rows | None, stream: Iterator[Rows], join: bool) -> Iterator[Rows]:
    """Put ``rows`` into their places between the rows of an ascending ``stream``.

    ``join``: merge the chunks that were woven.
    """
    if rows is None:
        yield from stream
        return
    position, count = 0, len(rows.iova)
    for chunk in stream:
        end = position
        if position < count:
            end = int(np.searchsorted(rows.iova, chunk.iova[-1]))
        if end > position:
            chunk = _put_between(rows.cut(position, end), chunk, join)
            position = end
        yield chunk
    if position < count:
        yield rows.cut(position)


def join_chunks(chunks: Iterable[Rows]) -> Iterator[Rows]:
    """Merge across the borders of chunks that are merged inside.

    Holds one chunk back, because its last row may go on in the next one.
    """
    held: Rows | None = None
    for chunk in chunks:
        if held is not None:
            size = int(held.size[-1])
            if int(held.iova[-1]) + size == int(chunk.iova[0]) and (
                int(held.pa[-1]) + size == int(chunk.pa[0])
                and int(held.word[-1]) == int(chunk.word[0])
            ):
                sizes = held.size.copy()
                sizes[-1] += chunk.size[0]
                held = held._replace(size=sizes)
                if len(chunk.iova) == 1:
                    continue
                chunk = chunk.cut(1)
            yield held
        held = chunk
    if held is not None:
        yield held
