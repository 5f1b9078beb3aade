"""Page tables of any format in any image: walk, translate, look back.

>>> w = walk(memory, "vtdss", root, 4)
>>> for chunk in w.ranges():       # merged ranges, in IOVA order
...     sys.stdout.buffer.write(format_ranges(chunk))
>>> w.stats.tables, w.findings
>>> translate(memory, "vtdss", root, 4, iovas).pa

IOVAs that are sign-extended sort as the unsigned numbers they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from abi.pagetable import Format, lookup
from abi.pagetable.format import U64
from inspector.findings import Findings
from inspector.memory.base import PhysicalMemory
from inspector.pagetable.anomalies import CODES
from inspector.pagetable.budget import Budget
from inspector.pagetable.columns import LeafColumns, RangeColumns, Rows
from inspector.pagetable.reverse import Reverse, look_back
from inspector.pagetable.text import format_leaves, format_ranges
from inspector.pagetable.translate import Translation, TranslationState, Translator
from inspector.pagetable.tree import Table, table
from inspector.pagetable.walker import Limits, Pass, Preserved, Stats

__all__ = [
    "CODES",
    "Budget",
    "LeafColumns",
    "Limits",
    "RangeColumns",
    "Reverse",
    "Stats",
    "Table",
    "Translation",
    "TranslationState",
    "Walk",
    "format_leaves",
    "format_ranges",
    "table",
    "translate",
    "walk",
]


class Walk:
    """A page-table tree that can be passed over as often as one likes.

    ``stats``, ``findings`` and ``table_pages`` are those of the last whole pass, and make
    one if there was none. Nothing that the image holds raises.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        tree: Table,
        *,
        limits: Limits | None = None,
        budget: Budget | None = None,
        preserved: Preserved | None = None,
        output_bits: int | None = None,
        path: str = "",
    ) -> None:
        self.memory = memory
        self.tree = tree
        self._limits = limits or Limits()
        self._budget = budget
        self._preserved = preserved
        self._output_bits = output_bits
        self._path = path
        self._last: Pass | None = None

    @property
    def format(self) -> Format:
        """The format of the tables."""
        return self.tree.format

    def ranges(self) -> Iterator[RangeColumns]:
        """Merged ranges in IOVA order, a few ten thousand at most in a chunk."""
        return (RangeColumns(self.format, *rows) for rows in self._pass(True, Pass.ranges))

    def leaves(self) -> Iterator[LeafColumns]:
        """Leaves in IOVA order; a contiguous group is one leaf."""
        return (LeafColumns(self.format, *rows) for rows in self._pass(False, Pass.rows))

    def run(self) -> Pass:
        """The last whole pass; pass over the tree if there was none."""
        if self._last is None:
            for _ in self._pass(True, Pass.ranges):
                pass
        assert self._last is not None
        return self._last

    @property
    def stats(self) -> Stats:
        """Counts per level and leaf size."""
        return self.run().stats

    @property
    def findings(self) -> Findings:
        """What is wrong with the tables; the codes are in :data:`CODES`."""
        return self.run().findings

    @property
    def table_pages(self) -> U64:
        """Addresses of all tables, each once, ascending; of the start table, its first byte."""
        return self.run().pages.column()

    def translate(self, iovas: npt.ArrayLike) -> Translation:
        """Translate input addresses (any shape that flattens to one dimension)."""
        return Translator(self.memory, self.tree).translate(iovas)

    def reverse(self, pas: npt.ArrayLike, limit: int = 1 << 20) -> Reverse:
        """The IOVAs that lead to physical addresses, in one pass; at most ``limit``."""
        found = look_back(self.ranges(), np.atleast_1d(np.asarray(pas, np.uint64)), limit)
        return dataclasses.replace(found, complete=found.complete and self.stats.complete)

    def _pass(self, merged: bool, method: Callable[[Pass], Iterator[Rows]]) -> Iterator[Rows]:
        limits = self._limits if self._budget is None else self._budget.limits(self._limits)
        current = Pass(
            self.memory,
            self.tree,
            merged,
            limits,
            self._preserved,
            self._output_bits,
            self._path,
        )
        try:
            yield from method(current)
        finally:
            if self._budget is not None:
                self._budget.spend(current)
        self._last = current


def walk(
    memory: PhysicalMemory,
    format: Format | str,
    root: int,
    levels: int,
    *,
    vasz: int | None = None,
    sign_extend: bool | None = None,
    start_entries: int | None = None,
    output_bits: int | None = None,
    limits: Limits | None = None,
    budget: Budget | None = None,
    preserved: Preserved | None = None,
    path: str = "",
) -> Walk:
    """A walk over the tables at ``root``; nothing is read before it is iterated.

    ``levels``: how many are walked. ``vasz``: bits of an input address, if the domain says.
    ``sign_extend``: whether the upper half of the start table is the top of the address
    space; the format's habit if None. ``start_entries``: of a start table that is smaller
    than a table, or of concatenated ones; for Arm derived from ``vasz`` if None.
    ``output_bits``: address bits of the unit; those above count as reserved. ``budget``: shared
    with other walks. ``preserved`` says of page addresses (uint64) which are preserved.
    ``path``: of the object, for findings.

    Raises UsageError if the format has no such tables.
    """
    tree = table(
        lookup(format) if isinstance(format, str) else format,
        root,
        levels,
        vasz=vasz,
        sign_extend=sign_extend,
        start_entries=start_entries,
    )
    return Walk(
        memory,
        tree,
        limits=limits,
        budget=budget,
        preserved=preserved,
        output_bits=output_bits,
        path=path,
    )


def translate(
    memory: PhysicalMemory,
    format: Format | str,
    root: int,
    levels: int,
    iovas: npt.ArrayLike,
    *,
    vasz: int | None = None,
    sign_extend: bool | None = None,
    start_entries: int | None = None,
) -> Translation:
    """Translate input addresses through the tables at ``root``; as :func:`walk`, for points."""
    tree = walk(
        memory,
        format,
        root,
        levels,
        vasz=vasz,
        sign_extend=sign_extend,
        start_entries=start_entries,
    )
    return tree.translate(iovas)
