"""The regions of an image, as columns: a filtered dump has millions of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

from inspector.memory.base import PageState, Region, U8Array, U64Array

_AT_ONCE = 1 << 12
_STATES = tuple(PageState)


class Regions(Sequence[Region]):
    """Ascending, disjoint regions. Equals any sequence of the same :class:`Region` items.

    ``first`` and ``last`` (uint64, inclusive) and ``state`` (uint8) have one item a region.
    """

    __slots__ = ("first", "last", "state")

    def __init__(self, first: U64Array, last: U64Array, state: U8Array) -> None:
        """Take columns that are ascending and disjoint already."""
        self.first, self.last, self.state = first, last, state

    @classmethod
    def of(cls, regions: Iterable[Region]) -> Regions:
        """Columns of what may be columns already."""
        if isinstance(regions, Regions):
            return regions
        listed = list(regions)
        return cls(
            np.array([r.start for r in listed], np.uint64),
            np.array([r.end - 1 for r in listed], np.uint64),
            np.array([r.state for r in listed], np.uint8),
        )

    @property
    def present(self) -> Regions:
        """Those that are present."""
        held = self.state == PageState.PRESENT
        return self if held.all() else Regions(self.first[held], self.last[held], self.state[held])

    @property
    def bytes(self) -> int:
        """Size of all of them together."""
        return int((self.last - self.first).sum(dtype=np.uint64)) + len(self)

    def __len__(self) -> int:
        return len(self.first)

    @overload
    def __getitem__(self, index: int) -> Region: ...

    @overload
    def __getitem__(self, index: slice) -> Regions: ...

    def __getitem__(self, index: int | slice) -> Region | Regions:
        if isinstance(index, slice):
            return Regions(self.first[index], self.last[index], self.state[index])
        first = int(self.first[index])
        return Region(first, int(self.last[index]) - first + 1, PageState(int(self.state[index])))

    def __iter__(self) -> Iterator[Region]:
        # In portions: a list of all numbers would be as large as a list of all regions.
        for at in range(0, len(self), _AT_ONCE):
            columns = (c[at : at + _AT_ONCE].tolist() for c in (self.first, self.last, self.state))
            for first, last, state in zip(*columns, strict=True):
                yield Region(first, last - first + 1, _STATES[state])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:4]))
        return f"Regions({shown}{', ...' if len(self) > 4 else ''})"
