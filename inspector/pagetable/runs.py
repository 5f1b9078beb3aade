"""The short way from entries to ranges, at the level of the smallest pages.

One subtraction of neighbours tells whether they continue each other in address *and* agree in
everything else, so that runs can be found before it is known what the entries are; then
it is enough to look at the first of each run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from abi.pagetable.format import U64, Kind
from inspector.pagetable.batch import ROWS, Batch, Scratch, Slots, lengths_of, or_and
from inspector.pagetable.columns import Rows

#: After a batch with fewer leaves than one entry in so many, the next is compacted first.
_SPARSE: Final = 4

_NONE: Final = np.zeros(0, np.intp)
#: Runs are few if there is less than one for so many entries.
_FEW: Final = 32

#: Runs that are neither leaves nor holes: their entries in all, starts and lengths.
Faults = tuple[int, Slots, Slots]


class Runs:
    """Finds the runs of batches.

    ``sparse``: the last batch had too many holes for this way to pay. ``few``: it had so few
    runs that it pays to judge those of several batches together. ``many``: it had so many, and
    of more than one kind, that batches should be smaller. Holes and bad entries are runs too,
    of one entry each in the case of holes.
    """

    __slots__ = ("_noisy", "_scratch", "curious", "few", "leaves", "many", "sparse")

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._noisy = False
        self.sparse = False
        self.few = False
        self.many = False
        #: Whether to say where faults are, or only how many, if they are all of one kind.
        self.curious = True
        #: Leaves of the batch decoded last.
        self.leaves = 0

    def judge(self, batch: Batch, leaves: int) -> None:
        """Take notice of how many entries of a batch are leaves."""
        self.sparse = leaves * _SPARSE < len(batch)

    def decode(self, batch: Batch) -> tuple[Iterator[Rows], Faults | None] | None:
        """Merged rows of a batch without table entries, to be taken before the next batch
        is read, and its faults. None if the batch needs a closer look.
        """
        breaks = self._breaks(batch)
        starts, first = None, batch.flat
        count = int(np.count_nonzero(breaks))
        self.few = count * _FEW < len(batch)
        self.many = len(batch) > count > len(batch) // 2
        if self.many:
            some, every = or_and(batch.flat)
            if (some ^ every) & ~batch.plan.watched and not self._noisy:
                self._noisy = True
                return self.decode(batch)
            rows = self._leaves_alone(batch, breaks, some, every)
            if rows is not None:
                self.many = False
                return rows, None
        if count != len(batch):
            starts = breaks.nonzero()[0]
            first = first.take(starts, mode="clip")
        noisy = self._noisy
        found = self.rows(batch, starts, first)
        return self.decode(batch) if self._noisy and not noisy else found

    def _leaves_alone(
        self, batch: Batch, breaks: npt.NDArray[np.bool_], some: int, every: int
    ) -> Iterator[Rows] | None:
        """Rows of a batch of nothing but plain leaves; None if it is not one."""
        plan = batch.plan
        if (some ^ every) & plan.kind_mask or plan.kind(every) != Kind.LEAF:
            return None
        if plan.is_odd(some, every, batch.code) or not _within(batch, some):
            return None
        self.leaves = len(batch)
        return self._pieces(batch, breaks, some ^ every)

    def _pieces(self, batch: Batch, breaks: npt.NDArray[np.bool_], differ: int) -> Iterator[Rows]:
        """The runs that ``breaks`` begin, a few at a time."""
        plan, scratch = batch.plan, self._scratch
        for begin in range(0, len(batch), ROWS):
            end = min(begin + ROWS, len(batch))
            starts = breaks[begin:end].nonzero()[0]
            if not len(starts):
                continue
            behind = len(batch)
            if end < behind:
                following = int(breaks[end:].argmax())
                behind = end + following if breaks[end + following] else behind
            words = batch.flat[begin:end]
            if len(starts) == behind - begin:
                iova, size = batch.iova_from(begin, end), scratch.same(plan.step, len(starts))
            else:
                words = words.take(starts, mode="clip")
                starts += begin
                iova = batch.iova(starts)
                size = lengths_of(starts, behind).view(np.uint64) << np.uint64(plan.shift)
            yield Rows(iova, plan.pa(words), size, scratch.attributes(plan, words, differ))

    def scan(self, batch: Batch) -> tuple[Slots, U64] | None:
        """First slots and entries of the runs of a batch, if they are few."""
        breaks = self._breaks(batch)
        self.few = int(np.count_nonzero(breaks)) * _FEW < len(batch)
        if not self.few:
            return None
        starts = breaks.nonzero()[0]
        return starts, batch.flat.take(starts, mode="clip")

    def _breaks(self, batch: Batch) -> npt.NDArray[np.bool_]:
        # Bits that mean nothing, which hardware or software may set here and there, are
        # masked once they were seen to differ.
        mask = batch.plan.watched if self._noisy else None
        return self._scratch.breaks(batch, batch.flat, None, mask)

    def rows(
        self, batch: Batch, starts: Slots | None, first: U64
    ) -> tuple[Iterator[Rows], Faults | None] | None:
        """What :meth:`decode` returns, of runs that begin with the entries ``first`` at
        ``starts`` (None: each entry begins one). ``batch.flat`` is not looked at.
        """
        plan = batch.plan
        lengths = None if starts is None else lengths_of(starts, len(batch))
        leaf = None
        if plan.binary and self._noisy:
            leaf = (first & np.uint64(plan.format.present)) != 0
        else:
            some, every = or_and(first)
            if (some ^ every) & ~plan.watched and not self._noisy:
                self._noisy = True
                return None
            if (some ^ every) & plan.kind_mask:
                leaf = self._leaf(batch, first)
            if leaf is None and plan.kind(every) != Kind.LEAF:
                return None
        faults = None
        leaves = len(batch)
        if leaf is not None:
            which = leaf.nonzero()[0]
            others = len(first) - len(which)
            if others:
                leaves -= others
                faulty = int(np.count_nonzero(first != 0)) - len(which)
                if faulty and (self.curious or not plan.binary):
                    faults = _faults(starts, lengths, first, leaf)
                starts = which if starts is None else starts.take(which, mode="clip")
                if lengths is not None:
                    lengths = lengths.take(which, mode="clip")
                if faulty and lengths is not None:
                    leaves = int(lengths.sum())
                if faulty and faults is None:
                    holes = others - faulty
                    faults = (len(batch) - leaves - holes, _NONE, _NONE)
                self.judge(batch, leaves)
                first = first.take(which, mode="clip")
            some, every = or_and(first) if len(first) else (0, plan.watched)
        if plan.is_odd(some, every, batch.code):
            return None
        if lengths is not None and not _within(batch, some):
            return None
        self.leaves = leaves
        return self._rows(batch, starts, lengths, first, some ^ every), faults

    @staticmethod
    def _leaf(batch: Batch, first: U64) -> npt.NDArray[np.bool_] | None:
        """Which entries are leaves; None if some have a size of their own."""
        kinds = batch.plan.kind_of(first)
        leaf: npt.NDArray[np.bool_] = kinds == Kind.LEAF
        return None if (kinds == Kind.GROUP).any() else leaf

    def _rows(
        self, batch: Batch, starts: Slots | None, lengths: Slots | None, first: U64, differ: int
    ) -> Iterator[Rows]:
        plan, scratch = batch.plan, self._scratch
        for begin in range(0, len(first), ROWS):
            end = min(begin + ROWS, len(first))
            words = first[begin:end]
            iova = batch.iova_from(begin, end) if starts is None else batch.iova(starts[begin:end])
            if lengths is None:
                size = scratch.same(plan.step, end - begin)
            else:
                size = lengths[begin:end].view(np.uint64) << np.uint64(plan.shift)
            yield Rows(iova, plan.pa(words), size, scratch.attributes(plan, words, differ))


def _within(batch: Batch, some: int) -> bool:
    """Whether no run of entries with this OR can leave the address field."""
    plan = batch.plan
    return int(plan.entry_step) * len(batch) <= plan.address - (some & plan.address)


def _faults(
    starts: Slots | None, lengths: Slots | None, first: U64, leaf: npt.NDArray[np.bool_]
) -> Faults:
    rest = (~leaf).nonzero()[0]
    which = rest[first.take(rest, mode="clip").nonzero()[0]]
    if starts is None or lengths is None:
        return len(which), which, np.ones_like(which)
    return int(lengths[which].sum()), starts[which], lengths[which]
