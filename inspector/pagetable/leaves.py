"""From the entries of a batch of tables to rows: the inner loops of a walk.

The OR and the AND of all entries of a batch say which bits differ. In the normal case
those that decide what an entry is do not, nor those that do not matter, and one
subtraction of neighbours tells whether they continue each other in address *and* agree
in attributes. Everything else is a detour taken by the batches that need it.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Final

import numpy as np
import numpy.typing as npt

from abi.pagetable.format import U64, Contiguity, Kind
from inspector.pagetable import anomalies
from inspector.pagetable.anomalies import Reporter
from inspector.pagetable.columns import Rows, interleave, merge
from inspector.pagetable.plan import LevelPlan

#: Entries of a batch: their bytes and what is computed of them fit a second-level cache.
BATCH: Final = 1 << 15
#: Batches with fewer entries set than one in so many are compacted first; every so many
#: are looked at to tell (an odd number, to meet all places of a pattern).
_SPARSE: Final = 4
_SAMPLE: Final = 13

#: Constant columns kept for reuse; making one takes as long as filling a short one.
_CONSTANTS: Final = 64

#: Entries that map nothing and say so wrongly.
_FAULTS: Final[dict[int, str]] = {
    Kind.EMPTY: anomalies.NO_PERMISSION,
    Kind.BAD: anomalies.BAD_TYPE,
    Kind.BAD_SIZE: anomalies.BAD_SIZE,
}

Slots = npt.NDArray[np.intp]


class Batch:
    """Entries of tables of one level, in IOVA order.

    ``pas`` and ``bases``: each table's address and first IOVA. ``codes``: which of the
    format's table rules the entries above have brought into force, a bit each; one number
    or one for each table. ``bits``: lg2 of the entries of a table. ``flat``: the entries.
    ``gaps``: tables that do not follow their predecessor in IOVA; None if all do.
    """

    __slots__ = ("bases", "bits", "codes", "flat", "gaps", "pas", "plan")

    def __init__(
        self,
        plan: LevelPlan,
        pas: U64,
        bases: U64,
        codes: int | npt.NDArray[np.uint8],
        bits: int,
        flat: U64,
    ) -> None:
        self.plan = plan
        self.pas = pas
        self.bases = bases
        self.codes = codes
        self.bits = bits
        self.flat = flat
        self.gaps: Slots | None = None
        span = plan.step << bits
        if int(bases[-1]) - int(bases[0]) != span * (len(bases) - 1):
            self.gaps = (bases[1:] - bases[:-1] != span).nonzero()[0] + 1

    def iova(self, slots: Slots | None) -> U64:
        """First IOVA of entries, all of them for None."""
        shift = np.uint64(self.plan.shift)
        if slots is None:
            ramp = _ramp(self.plan.shift)[: len(self.flat)]
            if self.gaps is None:
                whole: U64 = ramp + self.bases[0]
                return whole
            table = ramp[: 1 << self.bits]
            return (self.bases[:, None] + table).reshape(-1)
        offset = slots.view(np.uint64) << shift
        if self.gaps is None:
            offset += self.bases[0]
        else:
            even = _ramp(self.plan.shift + self.bits)[: len(self.bases)]
            offset += (self.bases - even).take(slots >> self.bits, mode="clip")
        return offset

    def address(self, slots: Slots) -> U64:
        """Physical addresses of entries."""
        within = (slots & ((1 << self.bits) - 1)).view(np.uint64) << np.uint64(3)
        within += self.pas[slots >> self.bits]
        return within

    def codes_of(self, slots: Slots | None) -> int | npt.NDArray[np.uint8]:
        """``codes`` for each entry."""
        if isinstance(self.codes, int):
            return self.codes
        return (
            np.repeat(self.codes, 1 << self.bits)
            if slots is None
            else (self.codes[slots >> self.bits])
        )


#: Table entries of a batch: their slots (None: all) and themselves.
Pointers = tuple[Slots | None, U64]


@functools.lru_cache(16)
def _ramp(shift: int) -> U64:
    """First IOVA of each entry of a batch that begins at 0."""
    return np.arange(BATCH, dtype=np.uint64) << np.uint64(shift)


def lengths_of(starts: Slots, end: int) -> Slots:
    """Lengths of runs that begin at ``starts``, the last of which ends at ``end``."""
    lengths = np.empty_like(starts)
    np.subtract(starts[1:], starts[:-1], out=lengths[:-1])
    lengths[-1] = end - starts[-1]
    return lengths


def or_and(entries: U64) -> tuple[int, int]:
    """The OR and the AND of entries."""
    return int(np.bitwise_or.reduce(entries)), int(np.bitwise_and.reduce(entries))


class Decoder:
    """Decodes batches; counts leaves; reports what is wrong with them.

    ``merged``: rows are ranges with attributes; else they are leaves with raw entries.
    """

    __slots__ = (
        "_breaks",
        "_constants",
        "_noisy",
        "_steps",
        "_words",
        "leaves",
        "merged",
        "reporter",
    )

    def __init__(self, merged: bool, reporter: Reporter) -> None:
        self.merged = merged
        self.reporter = reporter
        #: (level, size) -> leaves
        self.leaves: Counter[tuple[int, int]] = Counter()
        self._constants: dict[int, U64] = {}
        self._noisy = False
        self._words = np.empty(BATCH, np.uint64)
        self._steps = np.empty(BATCH, np.uint64)
        self._breaks = np.empty(BATCH, np.bool_)

    def decode(self, batch: Batch) -> tuple[Rows | None, Pointers | None]:
        """Rows of the leaves of a batch, and its table entries."""
        flat, plan = batch.flat, batch.plan
        dense = True
        if self.merged and not plan.has_tables:
            sample = flat[::_SAMPLE]
            dense = int(np.count_nonzero(sample)) * _SPARSE >= len(sample)
            if dense:
                plain, rows = self._runs(batch)
                if plain:
                    return rows, None
        if dense:
            some, every = or_and(flat)
            if not some:
                return None, None
            if not (some ^ every) & plan.kind_mask:
                kind = plan.kind(every)
                if kind == Kind.LEAF:
                    return self._leaf_rows(batch, None, flat, some, every), None
                if kind == Kind.TABLE:
                    return None, (None, flat)
        slots = np.flatnonzero(flat != 0)
        if not len(slots):
            return None, None
        return self._sort_out(batch, slots, flat.take(slots, mode="clip"))

    def _same(self, value: int, count: int) -> U64:
        """A read-only column of one value, which takes no memory."""
        column = self._constants.get(value)
        if column is None:
            if len(self._constants) > _CONSTANTS:
                self._constants.clear()
            column = np.broadcast_to(np.uint64(value), BATCH)
            self._constants[value] = column
        return column[:count]

    # -- what the entries are --------------------------------------------------------

    def _runs(self, batch: Batch) -> tuple[bool, Rows | None]:
        """Ranges of a level without tables; (False, None) if a closer look is needed.

        The entries of a run differ in their address only, so that it is enough to look at
        the first of each. Holes and bad entries are runs too. Bits of no meaning, which
        hardware or software may set here and there, are masked once they were seen to differ.
        """
        flat, plan = batch.flat, batch.plan
        words = flat
        if self._noisy:
            out = self._words[: len(flat)]
            words = np.bitwise_and(flat, np.uint64(plan.watched), out=out)
        breaks = self._find_breaks(batch, words, None)
        starts = lengths = None
        first = words
        if int(np.count_nonzero(breaks)) != len(flat):
            starts = breaks.nonzero()[0]
            lengths = lengths_of(starts, len(flat))
            first = words.take(starts, mode="clip")
        some, every = or_and(first)
        if (some ^ every) & ~plan.watched and not self._noisy:
            self._noisy = True
            return self._runs(batch)
        rest: Slots | None = None
        if not (some ^ every) & plan.kind_mask:
            if plan.kind(every) != Kind.LEAF:
                return False, None
        else:
            if plan.binary:
                leaf = (first & np.uint64(plan.format.present)) != 0
            else:
                kinds = plan.kind_of(first)
                leaf = kinds == Kind.LEAF
                if (kinds == Kind.GROUP).any():
                    return False, None
            rest = (~leaf).nonzero()[0]
            which = leaf.nonzero()[0]
            rest_starts = rest if starts is None else starts.take(rest, mode="clip")
            rest_lengths = None if lengths is None else lengths.take(rest, mode="clip")
            starts = which if starts is None else starts.take(which, mode="clip")
            lengths = None if lengths is None else lengths.take(which, mode="clip")
            first = first.take(which, mode="clip")
            some, every = or_and(first) if len(first) else (0, plan.watched)
        codes = batch.codes
        code = codes if isinstance(codes, int) else int(np.bitwise_or.reduce(codes))
        overflow = int(plan.entry_step) * len(flat) > plan.address - (some & plan.address)
        if plan.is_odd(some, every, code) or (overflow and lengths is not None):
            return False, None
        if rest is not None:
            self._report_runs(batch, rest_starts, rest_lengths)
        count = len(first)
        if not count:
            return True, None
        if lengths is None:
            self.leaves[plan.number, plan.step] += count
            size = self._same(plan.step, count)
        else:
            self.leaves[plan.number, plan.step] += int(lengths.sum())
            size = lengths.view(np.uint64) << np.uint64(plan.shift)
        return True, Rows(
            batch.iova(starts), plan.pa(first), size, self._attributes(plan, first, some ^ every)
        )

    def _attributes(self, plan: LevelPlan, words: U64, differ: int) -> U64:
        """Attributes of words that differ in these bits."""
        if differ & plan.attribute_sources:
            return plan.attributes_of(words)
        return self._same(int(plan.attributes_of(words[:1])[0]), len(words))

    def _report_runs(self, batch: Batch, starts: Slots, lengths: Slots | None) -> None:
        """Report runs that are no leaves."""
        entries = batch.flat.take(starts, mode="clip")
        set_at = entries.nonzero()[0]
        if not len(set_at):
            return
        starts = starts[set_at]
        lengths = None if lengths is None else lengths[set_at]
        kinds = batch.plan.kind_of(entries[set_at])
        for kind in np.bincount(kinds).nonzero()[0].tolist():
            if kind in _FAULTS and (kind != Kind.EMPTY or batch.plan.format.nonzero_empty):
                which = (kinds == kind).nonzero()[0]
                count = len(which) if lengths is None else int(lengths[which].sum())
                self.report(_FAULTS[kind], batch, starts[which], count)

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
        if not count:
            return
        slots = slots[: self.reporter.findings.room(code)]
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
            size = self._same(plan.step, count)
            entry = entries.copy() if slots is None else entries
            pa = format.leaf_pa(plan.number, entries)
            return Rows(batch.iova(slots), pa, size, entry)
        words, some, every = self._words_of(batch, slots, entries, some, every)
        if hinted:
            self._hint_groups(batch, slots, entries, words)
        breaks = self._find_breaks(batch, words, slots)
        rows = int(np.count_nonzero(breaks))
        if rows == count:
            iova = batch.iova(slots)
            size = self._same(plan.step, rows)
        else:
            starts = np.flatnonzero(breaks)
            lengths = lengths_of(starts, count)
            words = words[starts]
            iova = batch.iova(starts if slots is None else slots[starts])
            size = lengths.view(np.uint64) << np.uint64(plan.shift)
        attributes = self._attributes(plan, words, some ^ every)
        return Rows(iova, plan.pa(words), size, attributes)

    def _find_breaks(self, batch: Batch, words: U64, slots: Slots | None) -> npt.NDArray[np.bool_]:
        """True where a word does not continue the one before it. Scratch, valid until reuse."""
        count = len(words)
        breaks = self._breaks[:count]
        steps = self._steps[: count - 1]
        if slots is None:
            np.subtract(words[1:], words[:-1], out=steps)
            np.not_equal(steps, batch.plan.entry_step, out=breaks[1:])
            if batch.gaps is not None:
                breaks[batch.gaps << batch.bits] = True
        else:
            iova = batch.iova(slots)
            np.subtract(iova[1:], iova[:-1], out=steps)
            np.not_equal(steps, np.uint64(batch.plan.step), out=breaks[1:])
            np.subtract(words[1:], words[:-1], out=steps)
            breaks[1:] |= steps != batch.plan.entry_step
        breaks[0] = True
        return breaks

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
        elif (some ^ every) & ~plan.keep:
            out = self._words[: len(words)]
            words = np.bitwise_and(words, np.uint64(plan.keep), out=out)
            some, every = some & plan.keep, every & plan.keep
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
        hinted = words[at]
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
