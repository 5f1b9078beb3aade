"""From the entries of a batch of tables to rows: the inner loops of a walk.

The OR and the AND of all entries of a batch say which bits differ. In the normal case
those that decide what an entry is do not, nor those that do not matter, and one
subtraction of neighbours tells whether they continue each other in address *and* agree
in attributes. Everything else is a detour taken by the batches that need it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from abi.pagetable.format import U64, Contiguity, Kind
from inspector.pagetable import anomalies
from inspector.pagetable.anomalies import Reporter
from inspector.pagetable.batch import Batch, Scratch, Slots, lengths_of, or_and
from inspector.pagetable.columns import Rows, interleave, merge
from inspector.pagetable.runs import Runs

#: Entries that map nothing and say so wrongly.
_FAULTS: Final[dict[int, str]] = {
    Kind.EMPTY: anomalies.NO_PERMISSION,
    Kind.BAD: anomalies.BAD_TYPE,
    Kind.BAD_SIZE: anomalies.BAD_SIZE,
}


#: Table entries of a batch: their slots (None: all) and themselves.
Pointers = tuple[Slots | None, U64]


def _all_leaves(batch: Batch) -> bool:
    some, every = or_and(batch.flat)
    plan = batch.plan
    return not (some ^ every) & plan.kind_mask and plan.kind(every) == Kind.LEAF


class Decoder:
    """Decodes batches; counts leaves; reports what is wrong with them.

    ``merged``: rows are ranges with attributes; else they are leaves with raw entries.
    """

    __slots__ = ("_runs", "_scratch", "_together", "_upper", "leaves", "merged", "reporter")

    def __init__(self, merged: bool, reporter: Reporter) -> None:
        self.merged = merged
        self.reporter = reporter
        #: (level, size) -> leaves
        self.leaves: Counter[tuple[int, int]] = Counter()
        self._scratch = Scratch()
        self._runs = Runs(self._scratch)
        #: Of batches of upper levels that are all leaves.
        self._upper = Runs(self._scratch)
        self._together = merged

    def decode(self, batch: Batch) -> tuple[Iterable[Rows], Pointers | None]:
        """Chunks of rows of the leaves of a batch, and its table entries.

        The rows must be taken before another batch is read; there is one chunk at most
        if there are table entries.
        """
        in_runs = self.merged and not batch.plan.has_tables
        runs = self._runs if in_runs else self._upper
        if not runs.sparse if in_runs else self.merged and _all_leaves(batch):
            found = runs.decode(batch)
            if found is not None:
                rows, faults = found
                if faults is not None:
                    self._report_runs(batch, *faults)
                self.leaves[batch.plan.number, batch.plan.step] += runs.leaves
                return rows, None
        row, pointers = self._decode(batch, in_runs)
        return () if row is None else (row,), pointers

    @property
    def few_runs(self) -> bool:
        """Whether batches without tables should go through :meth:`scan` and :meth:`gathered`."""
        return self._together and self._runs.few and not self._runs.sparse

    @property
    def many_runs(self) -> bool:
        """Whether batches without tables should be smaller, to keep scratch memory small."""
        return self._runs.many and not self._runs.sparse

    def scan(self, batch: Batch) -> tuple[Slots, U64] | None:
        """First slots and entries of the runs of a batch without tables, if they are few."""
        return self._runs.scan(batch)

    def gathered(
        self, whole: Batch, parts: list[tuple[Slots, U64]], each: int
    ) -> Iterable[Rows] | None:
        """Rows of several batches that were scanned, as one whose entries are not at hand.

        ``each``: entries of all but the last. None if they must be decoded one by one, which
        is not tried again then.
        """
        starts = np.concatenate([part[0] + n * each for n, part in enumerate(parts)])
        found = self._runs.rows(whole, starts, np.concatenate([part[1] for part in parts]))
        if found is None or found[1] is not None:
            self._together = False
            return None
        self.leaves[whole.plan.number, whole.plan.step] += self._runs.leaves
        return map(merge, found[0])  # a run may go on in the next batch

    def _decode(self, batch: Batch, in_runs: bool) -> tuple[Rows | None, Pointers | None]:
        flat, plan = batch.flat, batch.plan
        if not (in_runs and self._runs.sparse):
            some, every = or_and(flat)
            if not some:
                return None, None
            if not (some ^ every) & plan.kind_mask:
                kind = plan.kind(every)
                if kind == Kind.LEAF:
                    return self._leaf_rows(batch, None, flat, some, every), None
                if kind == Kind.TABLE:
                    return None, (None, flat)
        slots = (flat != 0).nonzero()[0]
        if in_runs:
            self._runs.judge(batch, len(slots))
        if not len(slots):
            return None, None
        return self._sort_out(batch, slots, flat.take(slots, mode="clip"))

    # -- what the entries are --------------------------------------------------------

    def _report_runs(self, batch: Batch, count: int, starts: Slots, lengths: Slots) -> None:
        """Report ``count`` entries, in runs that are neither leaves nor holes."""
        plan = batch.plan
        if plan.binary:
            code = _FAULTS[Kind.EMPTY]
            if plan.format.nonzero_empty:
                self.report(code, batch, starts, count)
            self._runs.curious = plan.format.nonzero_empty and bool(
                self.reporter.findings.room(code)
            )
            return
        kinds = plan.kind_of(batch.flat[starts])
        for kind in np.bincount(kinds).nonzero()[0].tolist():
            if kind != Kind.EMPTY or plan.format.nonzero_empty:
                which = (kinds == kind).nonzero()[0]
                self.report(_FAULTS[kind], batch, starts[which], int(lengths[which].sum()))

    def _sort_out(
        self, batch: Batch, slots: Slots, entries: U64
    ) -> tuple[Rows | None, Pointers | None]:
        """Rows and pointers of a batch whose non-zero entries are given."""
        plan = batch.plan
        some, every = or_and(entries)
        if not (some ^ every) & plan.kind_mask:
            kind = plan.kind(every)
            if kind == Kind.LEAF:
                return self._leaf_rows(batch, slots, entries, some, every), None
            if kind == Kind.TABLE:
                return None, (slots, entries)
        kinds = plan.kind_of(entries)
        rows: Rows | None = None
        pointers: Pointers | None = None
        for kind in np.flatnonzero(np.bincount(kinds)).tolist():
            which = np.flatnonzero(kinds == kind)
            at, these = slots[which], entries[which]
            if kind == Kind.LEAF:
                rows = interleave(rows, self._leaf_rows(batch, at, these, *or_and(these)))
            elif kind == Kind.GROUP:
                rows = interleave(rows, self._group_rows(batch, at, these))
                rows = merge(rows) if self.merged and rows is not None else rows
            elif kind == Kind.TABLE:
                pointers = at, these
            elif kind != Kind.EMPTY or plan.format.nonzero_empty:
                self.report(_FAULTS[kind], batch, at)
        return rows, pointers

    def report(self, code: str, batch: Batch, slots: Slots, count: int | None = None) -> None:
        """Report entries; ``count`` if they are more than ``slots``."""
        count = len(slots) if count is None else count
        room = self.reporter.findings.room(code)
        if not count or not room:
            self.reporter.findings.suppress(code, count)
            return
        slots = slots[:room]
        level, iova = batch.plan.number, batch.iova(slots)
        self.reporter.entries(code, level, iova, batch.address(slots), batch.flat[slots], count)

    # -- plain leaves ----------------------------------------------------------------

    def _leaf_rows(
        self, batch: Batch, slots: Slots | None, entries: U64, some: int, every: int
    ) -> Rows:
        """Rows of entries that are all leaves."""
        plan, format = batch.plan, batch.plan.format
        count = len(entries)
        self._check(batch, slots, entries, some, every)
        self.leaves[plan.number, plan.step] += count
        hinted = plan.hint_entries and some & format.contiguous_bit
        if not self.merged:
            if hinted:
                return self._hinted_lines(batch, slots, entries, some, every)
            size = self._scratch.same(plan.step, count)
            entry = entries.copy() if slots is None else entries
            pa = format.leaf_pa(plan.number, entries)
            return Rows(batch.iova(slots), pa, size, entry)
        words, some, every = self._words_of(batch, slots, entries, some, every)
        if hinted:
            self._hint_groups(batch, slots, entries, words)
        iova = None if slots is None else batch.iova(slots)
        mask = plan.keep if (some ^ every) & ~plan.keep else None
        breaks = self._scratch.breaks(batch, words, iova, mask)
        rows = int(np.count_nonzero(breaks))
        if rows == count:
            iova = batch.iova(None) if iova is None else iova
            size = self._scratch.same(plan.step, rows)
        else:
            starts = breaks.nonzero()[0]
            lengths = lengths_of(starts, count)
            words = words.take(starts, mode="clip")
            iova = batch.iova(starts) if iova is None else iova.take(starts, mode="clip")
            size = lengths.view(np.uint64) << np.uint64(plan.shift)
        attributes = self._scratch.attributes(plan, words, some ^ every)
        return Rows(iova, plan.pa(words), size, attributes)

    def _words_of(
        self, batch: Batch, slots: Slots | None, entries: U64, some: int, every: int
    ) -> tuple[U64, int, int]:
        """Words of leaves, with their OR and AND; possibly scratch."""
        plan, format = batch.plan, batch.plan.format
        words = entries
        if some & format.dirty_modifier:
            words = plan.resolve_modifier(entries)
            some, every = or_and(words)
        taken = self._taken(batch, some, every)
        if taken is not None:
            clear, put = taken
            codes = batch.codes_of(slots)
            words = (words & ~clear[codes]) | put[codes]
            some, every = or_and(words)
        if format.high_address and some & (
            format.high_address | plan.address & ~format.table_address
        ):
            words = plan.fold(words)
            some, every = or_and(words)
        return words, some, every

    @staticmethod
    def _taken(batch: Batch, some: int, every: int) -> tuple[U64, U64] | None:
        """What table rules clear and set by code, or None if they change nothing here."""
        codes, plan = batch.codes, batch.plan
        worst = codes if isinstance(codes, int) else int(np.bitwise_or.reduce(codes))
        put = int(plan.puts[worst])
        if not some & int(plan.clears[worst]) and every & put == put:
            return None
        return plan.clears, plan.puts

    def _check(
        self, batch: Batch, slots: Slots | None, entries: U64, some: int, every: int
    ) -> None:
        """Report bits of leaves that must be zero or one and are not."""
        plan, format = batch.plan, batch.plan.format
        wrong: list[tuple[str, npt.NDArray[np.bool_]]] = []
        if some & plan.reserved:
            wrong.append((anomalies.RESERVED, (entries & np.uint64(plan.reserved)) != 0))
        if some & plan.misaligned:
            wrong.append((anomalies.MISALIGNED, (entries & np.uint64(plan.misaligned)) != 0))
        if format.required & ~every:
            required = np.uint64(format.required)
            wrong.append((anomalies.NOT_ACCESSED, (entries & required) != required))
        for mask, value in format.forbidden:
            if some & mask & value == value:
                wrong.append((anomalies.RESERVED, (entries & np.uint64(mask)) == value))
        stray_hint = format.contiguity is Contiguity.HINT and not plan.hint_entries
        if stray_hint and some & format.contiguous_bit:
            bit = np.uint64(format.contiguous_bit)
            wrong.append((anomalies.RESERVED, (entries & bit) != 0))
        for code, which in wrong:
            at = np.flatnonzero(which)
            self.report(code, batch, at if slots is None else slots[at])

    # -- groups ----------------------------------------------------------------------

    def _group_rows(self, batch: Batch, slots: Slots, entries: U64) -> Rows | None:
        """Rows of leaves that encode a size and are repeated over it.

        A group that is not whole, or not aligned, maps what its entries map.
        """
        plan, format = batch.plan, batch.plan.format
        sizes = format.group_sizes(plan.number, entries)
        if not sizes.all():
            self.report(anomalies.BAD_SIZE, batch, slots[sizes == 0])
            legal = sizes != 0
            slots, entries, sizes = slots[legal], entries[legal], sizes[legal]
            if not len(slots):
                return None
        some, every = or_and(entries)
        if some & plan.reserved:
            self.report(anomalies.RESERVED, batch, slots[(entries & np.uint64(plan.reserved)) != 0])
        iova = batch.iova(slots)
        inside = iova & (sizes - np.uint64(1))
        group = iova - inside
        same = entries & np.uint64(plan.keep | format.table_address)
        breaks = np.ones(len(slots), np.bool_)
        breaks[1:] = same[1:] != same[:-1]
        breaks[1:] |= group[1:] != group[:-1]
        breaks[1:] |= iova[1:] - iova[:-1] != plan.step
        starts = np.flatnonzero(breaks)
        lengths = lengths_of(starts, len(slots)).view(np.uint64) << np.uint64(plan.shift)
        whole = lengths == sizes[starts]
        if not whole.all():
            self.report(anomalies.BROKEN_GROUP, batch, slots[starts[~whole]])
        for size, count in zip(*np.unique(lengths, return_counts=True), strict=True):
            self.leaves[plan.number, int(size)] += int(count)
        first = entries[starts]
        pa = format.table_pa(first) & ~(sizes[starts] - np.uint64(1))
        pa += inside[starts]
        word = first
        if self.merged:
            words, _, _ = self._words_of(batch, slots, entries, some, every)
            word = plan.attributes_of(words[starts])
        rows = Rows(iova[starts], pa, lengths, word)
        return merge(rows) if self.merged else rows

    def _hint_groups(
        self, batch: Batch, slots: Slots | None, entries: U64, words: U64
    ) -> tuple[Slots, npt.NDArray[np.bool_]]:
        """Positions of the first entries of good groups under the contiguous hint, and
        which entries are in a good group. Reports the others."""
        plan = batch.plan
        bit = np.uint64(plan.format.contiguous_bit)
        at = np.flatnonzero((entries & bit) != 0)
        iova = batch.iova(at if slots is None else slots[at])
        size = plan.step * plan.hint_entries
        group = iova & ~np.uint64(size - 1)
        hinted = words[at] & np.uint64(plan.keep)
        breaks = np.ones(len(at), np.bool_)
        breaks[1:] = hinted[1:] - hinted[:-1] != plan.entry_step
        breaks[1:] |= group[1:] != group[:-1]
        breaks[1:] |= iova[1:] - iova[:-1] != plan.step
        starts = np.flatnonzero(breaks)
        lengths = lengths_of(starts, len(at))
        good = lengths == plan.hint_entries
        good &= plan.pa(hinted[starts]) & np.uint64(size - 1) == 0
        if not good.all():
            broken = at[starts[~good]]
            self.report(anomalies.BROKEN_GROUP, batch, broken if slots is None else slots[broken])
        member = np.zeros(len(entries), np.bool_)
        member[at[np.repeat(good, lengths)]] = True
        groups = int(good.sum())
        self.leaves[plan.number, plan.step] -= groups * plan.hint_entries
        self.leaves[plan.number, size] += groups
        return at[starts[good]], member

    def _hinted_lines(
        self, batch: Batch, slots: Slots | None, entries: U64, some: int, every: int
    ) -> Rows:
        """Leaves, some of them groups under the contiguous hint."""
        plan = batch.plan
        words, _, _ = self._words_of(batch, slots, entries, some, every)
        leaders, member = self._hint_groups(batch, slots, entries, words)
        size = np.full(len(entries), plan.step, np.uint64)
        size[leaders] = plan.step * plan.hint_entries
        member[leaders] = False
        pa = plan.format.leaf_pa(plan.number, entries)
        return Rows(batch.iova(slots), pa, size, entries).pick(~member)
