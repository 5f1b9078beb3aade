"""A set of page addresses that grows by columns."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from abi.pagetable.format import U64


class PageSet:
    """Addresses met so far, 8 bytes each, as sorted runs of geometrically growing length."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: list[U64] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, pages: U64) -> npt.NDArray[np.bool_] | None:
        """Add addresses; return which of them were known or stand earlier in ``pages``.

        None means that all are new, the normal case.
        """
        fresh = np.sort(pages)
        distinct = len(fresh) < 2 or bool((fresh[1:] != fresh[:-1]).all())
        known = [run for run in self._runs if self._meet(run, fresh)]
        if distinct and not known:
            self._insert(fresh)
            return None
        repeated = np.ones(len(pages), np.bool_)
        fresh, first = np.unique(pages, return_index=True)
        repeated[first] = False
        seen = np.zeros(len(fresh), np.bool_)
        for run in known:
            place = np.searchsorted(run, fresh)
            seen |= run[np.minimum(place, len(run) - 1)] == fresh
        repeated[first[seen]] = True
        if not seen.all():
            self._insert(fresh[~seen])
        return repeated

    @staticmethod
    def _meet(run: U64, fresh: U64) -> bool:
        """Whether two sorted arrays share an element."""
        if run[-1] < fresh[0] or fresh[-1] < run[0]:
            return False
        place = np.searchsorted(run, fresh)
        return bool((run[np.minimum(place, len(run) - 1)] == fresh).any())

    def _insert(self, fresh: U64) -> None:
        self._runs.append(fresh)
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            last = self._runs.pop()
            both = np.concatenate((self._runs.pop(), last))
            both.sort(kind="stable")
            self._runs.append(both)

    def column(self) -> U64:
        """All addresses, ascending."""
        if not self._runs:
            return np.zeros(0, np.uint64)
        out: U64 = np.sort(np.concatenate(self._runs))
        return out
