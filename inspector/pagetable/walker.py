"""One engine for all table formats: a streaming, batched, depth-first walk.

Tables are read in batches of one level, in IOVA order; the tables that a batch points to are
walked before the next batch, and the leaves of a batch are woven between theirs. Scratch
memory is a few MiB whatever is mapped; besides, 8 bytes are kept of each table page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from abi.pagetable.format import U64
from inspector.findings import Findings
from inspector.memory.base import PageState, PhysicalMemory
from inspector.pagetable import anomalies
from inspector.pagetable.anomalies import Reporter
from inspector.pagetable.batch import BATCH, Batch, Slots
from inspector.pagetable.columns import Rows, join_chunks, weave
from inspector.pagetable.leaves import Decoder, Pointers
from inspector.pagetable.pages import PageSet
from inspector.pagetable.plan import level_plans
from inspector.pagetable.tree import Table

Preserved = Callable[[U64], npt.NDArray[np.bool_]]

#: Entries of a batch by level. Those of upper levels are fewer: what they point to is kept
#: while it is walked.
_BATCHES: Final = (BATCH, BATCH >> 2, BATCH >> 4)
#: Where fewer entries than one in so many point to tables, batches of upper levels are large.
_LEAFY: Final = 64
#: Entries of a batch of many runs that are not all of them leaves.
_CROWDED: Final = 1 << 15
#: Batches with few runs that are judged together.
_TOGETHER: Final = 8
#: A batch costs the work of at least so many tables, which bounds walks in tiny batches.
_LEAST_WORK: Final = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """Budgets of one walk. What lies beyond is reported, not walked.

    ``tables``: tables in all (the default maps 16 TiB by 4 KiB pages). ``repeats``: 4 KiB
    of tables that may be visited again; a sound tree has none. ``skips``: runs of tables
    that are not one level below their parents. ``findings``: of each code that are put into
    words; more are counted.
    """

    tables: int = 1 << 23
    repeats: int = 1 << 10
    skips: int = 1 << 14
    findings: int = 256


@dataclass(slots=True)
class Stats:
    """Counts of one walk. ``tables`` by zero-based level, ``leaves`` by (level, bytes).

    A whole contiguous group is one leaf. ``ranges`` is 0 for a walk of leaves.
    ``complete`` is false if a table was missing, or a budget ended the walk.
    """

    tables: Counter[int] = field(default_factory=Counter)
    leaves: Counter[tuple[int, int]] = field(default_factory=Counter)
    entries: int = 0
    ranges: int = 0
    complete: bool = True

    @property
    def mapped(self) -> int:
        """Bytes that leaves map, those mapped twice counted twice."""
        return sum(size * count for (_, size), count in self.leaves.items())

    @property
    def leaves_by_size(self) -> dict[int, int]:
        """Leaves by their size in bytes, ascending."""
        out: Counter[int] = Counter()
        for (_, size), count in self.leaves.items():
            out[size] += count
        return {size: out[size] for size in sorted(out) if out[size]}


@dataclass(frozen=True, slots=True)
class _Children:
    """Tables to walk, ascending by ``bases``. ``levels``: of each, or one for all."""

    pas: U64
    bases: U64
    codes: int | npt.NDArray[np.uint8]
    levels: int | npt.NDArray[np.int64]

    def cut(self, first: int, last: int) -> _Children:
        part = slice(first, last)
        return _Children(
            self.pas[part],
            self.bases[part],
            self.codes if isinstance(self.codes, int) else self.codes[part],
            self.levels if isinstance(self.levels, int) else self.levels[part],
        )

    def pick(self, which: npt.NDArray[np.bool_]) -> _Children:
        return _Children(
            self.pas[which],
            self.bases[which],
            self.codes if isinstance(self.codes, int) else self.codes[which],
            self.levels if isinstance(self.levels, int) else self.levels[which],
        )


class Pass:
    """One pass over a tree. Made by :class:`inspector.pagetable.Walk`."""

    def __init__(
        self,
        memory: PhysicalMemory,
        tree: Table,
        merged: bool,
        limits: Limits,
        preserved: Preserved | None,
        output_bits: int | None,
        path: str,
    ) -> None:
        self.memory = memory
        self.tree = tree
        self.findings = Findings(per_code=limits.findings)
        self.stats = Stats()
        self.pages = PageSet()
        self._preserved = preserved
        self._reporter = Reporter(self.findings, path)
        self._decoder = Decoder(merged, self._reporter)
        self.stats.leaves = self._decoder.leaves
        self._plans = level_plans(tree.format, output_bits)
        self._work = limits.tables
        self._repeats = max(1, limits.repeats * 4096 // (8 * tree.format.entries))
        self._skips = limits.skips
        self._bytes = np.empty(BATCH * 8, np.uint8)
        self._most = list(_BATCHES) + [_BATCHES[-1]] * (len(self._plans) - len(_BATCHES))

    def rows(self) -> Iterator[Rows]:
        """Chunks of rows, none of them empty, in IOVA order."""
        tree = self.tree
        if not self._check_root():
            return
        for piece in tree.pieces():
            start = _Children(
                np.array([piece.pa], np.uint64), np.array([piece.base], np.uint64), 0, tree.top
            )
            yield from self._batch(tree.top, start, piece.bits)

    def ranges(self) -> Iterator[Rows]:
        """Chunks of merged ranges."""
        for chunk in join_chunks(self.rows()):
            self.stats.ranges += len(chunk.iova)
            yield chunk

    # -- the start table -------------------------------------------------------------

    def _check_root(self) -> bool:
        tree, report = self.tree, self._reporter
        size = tree.start_entries * 8
        self.stats.tables[tree.top] += 1
        self.pages.add(np.array([tree.root], np.uint64))
        state = self.memory.state(tree.root, size)
        if state is not PageState.PRESENT:
            self.stats.complete = False
            if state is PageState.OUTSIDE:
                report.root(anomalies.OUTSIDE, tree.root, "it is outside memory")
            else:
                report.root(anomalies.EXCLUDED, tree.root, "it is not in the image")
            return False
        if tree.root % max(size, 64):
            report.root(anomalies.ROOT_ALIGNMENT, tree.root, "it is not aligned to its size")
        if self._preserved is not None:
            granule = tree.format.granule
            pages = range(tree.root & -granule, tree.root + size, granule)
            if not self._preserved(np.array(pages, np.uint64)).all():
                report.root(anomalies.UNPRESERVED, tree.root, "its page is not preserved")
        self._check_reach()
        return True

    def _check_reach(self) -> None:
        """Report entries of the start table beyond the input address size."""
        tree = self.tree
        shift = tree.format.levels[tree.top].shift
        entries = np.frombuffer(self.memory.read(tree.root, tree.start_entries * 8), "<u8")
        bits = tree.input_bits if tree.vasz is None else min(tree.vasz, tree.input_bits)
        count = 1 << max(0, bits - shift)
        low, high = count, len(entries)
        if tree.sign_extend and count > 1:
            low, high = count >> 1, high - (count >> 1)
        slots = np.arange(low, high)
        slots = slots[entries[low:high] & np.uint64(tree.format.present) != 0]
        at = slots.astype(np.uint64)
        iova, address = at << np.uint64(shift), at * np.uint64(8) + np.uint64(tree.root)
        self._reporter.entries(anomalies.BEYOND, tree.top, iova, address, entries[slots])

    # -- the tree --------------------------------------------------------------------

    def _walk(self, children: _Children) -> Iterator[Rows]:
        """Rows below ``children``."""
        levels = children.levels
        if isinstance(levels, int):
            yield from self._tables(levels, children)
            return
        if not len(levels):
            return
        cuts = np.flatnonzero(levels[1:] != levels[:-1]) + 1
        first = 0
        for last in [*cuts.tolist(), len(levels)]:
            yield from self._tables(int(levels[first]), children.cut(first, last))
            first = last

    def _tables(self, level: int, tables: _Children) -> Iterator[Rows]:
        """Rows of tables of one level."""
        bits = self.tree.format.index_bits
        first = 0
        while first < len(tables.pas):
            entries = self._most[level] >> (0 if self._decoder.merged else 2)
            if self._decoder.many_runs:
                entries = min(entries, _CROWDED)
            each = max(1, entries >> bits)
            done = 0
            if not level and self._decoder.few_runs:
                done = yield from self._batches(tables.cut(first, first + each * _TOGETHER), each)
            if not done:
                yield from self._batch(level, tables.cut(first, first + each), bits)
            first += done or each

    def _batches(self, tables: _Children, each: int) -> Generator[Rows, None, int]:
        """Rows of batches of level 0 that have few runs; returns how many tables those were."""
        bits = self.tree.format.index_bits
        parts: list[tuple[Slots, U64]] = []
        done = 0
        while done < len(tables.pas):
            part = self._decoder.scan(self._read(0, tables.cut(done, done + each), bits))
            if part is None:
                break
            parts.append(part)
            done = min(done + each, len(tables.pas))
        if not parts:
            return 0
        tables = tables.cut(0, done)
        nothing = np.zeros(0, np.uint64)
        whole = Batch(self._plans[0], tables.pas, tables.bases, tables.codes, bits, nothing)
        rows = self._decoder.gathered(whole, parts, each << bits)
        if rows is not None:
            self.stats.entries += len(whole)
            yield from rows
            return done
        for first in range(0, done, each):
            yield from self._batch(0, tables.cut(first, first + each), bits)
        return done

    def _batch(self, level: int, tables: _Children, bits: int) -> Iterator[Rows]:
        """Rows of a few tables of one level and of all below them."""
        batch = self._read(level, tables, bits)
        self.stats.entries += len(batch)
        chunks, pointers = self._decoder.decode(batch)
        below = 0 if pointers is None else len(pointers[1])
        self._most[level] = BATCH if below * _LEAFY < len(batch) else _BATCHES[min(level, 2)]
        if pointers is None:
            yield from chunks
            return
        own = next(iter(chunks), None)
        children = self._children(batch, pointers)
        del batch, pointers, chunks
        yield from weave(own, self._walk(children), self._decoder.merged)

    def _read(self, level: int, tables: _Children, bits: int) -> Batch:
        count, size = len(tables.pas), 8 << bits
        buffer = self._bytes[: count * size].reshape(count, size)
        read = self.memory.gather(tables.pas, size, buffer)
        flat = read.reshape(-1).view("<u8")
        return Batch(self._plans[level], tables.pas, tables.bases, tables.codes, bits, flat)

    def _children(self, batch: Batch, pointers: Pointers) -> _Children:
        """The tables that a batch points to and that are to be walked."""
        slots, entries = pointers
        plan, format = batch.plan, self.tree.format
        if slots is None:
            slots = np.arange(len(entries))
        self._check_pointers(batch, slots, entries)
        levels: int | npt.NDArray[np.int64] = plan.number - 1
        if format.next_level is not None:
            named = (entries >> np.uint64(format.next_level) & np.uint64(7)).astype(np.int64) - 1
            skipping = named != levels
            if skipping.any():
                self._report(anomalies.SKIPPED_LEVEL, batch, slots[skipping])
                levels = named
        children = _Children(
            format.table_pa(entries),
            batch.iova(slots),
            self._codes(batch, slots, entries),
            levels,
        )
        wanted = self._admit(batch, slots, children.pas)
        if wanted is not None:
            children = children.pick(wanted)
            slots = slots[wanted]
        levels = children.levels
        if isinstance(levels, int):
            self.stats.tables[levels] += len(children.pas)
        elif len(levels):
            starts = np.flatnonzero(np.append(True, levels[1:] != levels[:-1]))
            if len(starts) > self._skips:
                last = int(starts[self._skips])
                self._refuse(batch, slots[last:])
                children, starts = children.cut(0, last), starts[: self._skips]
                levels = levels[:last]
            self._skips -= len(starts)
            for level, count in zip(*np.unique(levels, return_counts=True), strict=True):
                self.stats.tables[int(level)] += int(count)
        return children

    def _check_pointers(self, batch: Batch, slots: Slots, entries: U64) -> None:
        reserved = batch.plan.table_reserved
        if reserved and int(np.bitwise_or.reduce(entries)) & reserved:
            wrong = (entries & np.uint64(reserved)) != 0
            self._report(anomalies.RESERVED, batch, slots[wrong])

    def _codes(self, batch: Batch, slots: Slots, entries: U64) -> int | npt.NDArray[np.uint8]:
        """Table rules in force below each entry."""
        codes: Any = batch.codes_of(slots)
        for bit, rule in enumerate(self.tree.format.table_rules):
            hit = (entries & np.uint64(rule.mask)) == rule.value
            if hit.all():
                codes = codes | 1 << bit
            elif hit.any():
                codes = codes | hit.astype(np.uint8) << np.uint8(bit)
        return codes  # type: ignore[no-any-return]

    def _admit(self, batch: Batch, slots: Slots, pas: U64) -> npt.NDArray[np.bool_] | None:
        """Which tables to walk: those in the image, within the budgets. None means all."""
        wanted: npt.NDArray[np.bool_] | None = None
        states = self.memory.states(pas, 8 * self.tree.format.entries)
        if (states != PageState.PRESENT).any():
            self.stats.complete = False
            self._report(anomalies.OUTSIDE, batch, slots[states == PageState.OUTSIDE])
            self._report(anomalies.EXCLUDED, batch, slots[states == PageState.EXCLUDED])
            wanted = states == PageState.PRESENT
        if self._preserved is not None:
            self._report(anomalies.UNPRESERVED, batch, slots[~self._preserved(pas)])
        room = self._work
        present = pas if wanted is None else pas[wanted]
        self._work -= max(len(present), _LEAST_WORK)
        if len(present) > max(0, room):
            wanted = np.ones(len(pas), np.bool_) if wanted is None else wanted
            over = np.flatnonzero(wanted)[max(0, room) :]
            wanted[over] = False
            self._refuse(batch, slots[over])
            present = pas[wanted]
        if not len(present):
            return wanted
        repeated = self.pages.add(present)
        if repeated is None:
            return wanted
        wanted = np.ones(len(pas), np.bool_) if wanted is None else wanted
        again = np.flatnonzero(wanted)[repeated]
        self._report(anomalies.SHARED, batch, slots[again])
        over = again[self._repeats :]
        self._repeats -= len(again) - len(over)
        wanted[over] = False
        self._refuse(batch, slots[over])
        return wanted

    def _refuse(self, batch: Batch, slots: Slots) -> None:
        if len(slots):
            self.stats.complete = False
            self._report(anomalies.BUDGET, batch, slots)

    def _report(self, code: str, batch: Batch, slots: Slots) -> None:
        self._decoder.report(code, batch, slots)
