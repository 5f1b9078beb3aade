"""A few tables of one level, and the scratch memory in which they are decoded."""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
import numpy.typing as npt

from abi.pagetable.format import U64
from inspector.pagetable.plan import LevelPlan

#: Entries of a batch: enough that what a batch costs beside its entries is little.
BATCH: Final = 7 << 14
#: Rows of a chunk, at most, where there is one for each entry.
ROWS: Final = 1 << 14
#: Entries that are compared at a time: what is computed of them stays in a near cache.
_PIECE: Final = 1 << 15
#: Up to so many gaps between tables, IOVAs are made from gap to gap.
_SEGMENTS: Final = 8
_WORD: Final = (1 << 64) - 1
#: Constant columns kept for reuse; making one takes as long as filling a short one.
_CONSTANTS: Final = 64

Slots = npt.NDArray[np.intp]


@functools.lru_cache(16)
def _ramp(shift: int, count: int) -> U64:
    """Multiples of 2^shift."""
    return np.arange(count, dtype=np.uint64) << np.uint64(shift)


def lengths_of(starts: Slots, end: int) -> Slots:
    """Lengths of runs that begin at ``starts``, the last of which ends at ``end``."""
    lengths = np.empty_like(starts)
    np.subtract(starts[1:], starts[:-1], out=lengths[:-1])
    lengths[-1] = end - starts[-1]
    return lengths


def or_and(entries: U64) -> tuple[int, int]:
    """The OR and the AND of entries."""
    return int(np.bitwise_or.reduce(entries)), int(np.bitwise_and.reduce(entries))


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

    def __len__(self) -> int:
        """Entries, whether they are at hand or not."""
        return len(self.bases) << self.bits

    def iova(self, slots: Slots | None) -> U64:
        """First IOVA of entries, which ascend; of all of them for None."""
        if slots is None:
            return self.iova_from(0, len(self))
        offset = slots.view(np.uint64) << np.uint64(self.plan.shift)
        if self.gaps is None:
            offset += self.bases[0]
        elif len(self.gaps) <= _SEGMENTS:
            firsts = [0, *self.gaps.tolist()]
            cuts = [0, *np.searchsorted(slots, self.gaps << self.bits).tolist(), len(slots)]
            for first, low, high in zip(firsts, cuts[:-1], cuts[1:], strict=True):
                even = first << self.plan.shift + self.bits
                offset[low:high] += np.uint64(int(self.bases[first]) - even & _WORD)
        else:
            even = _ramp(self.plan.shift + self.bits, len(self.bases))
            offset += (self.bases - even).take(slots >> self.bits, mode="clip")
        return offset

    def iova_from(self, first: int, last: int) -> U64:
        """First IOVA of the entries from ``first`` to before ``last``."""
        if self.gaps is not None or last - first > ROWS:
            return self.iova(np.arange(first, last))
        start = int(self.bases[0]) + (first << self.plan.shift)
        out: U64 = _ramp(self.plan.shift, ROWS)[: last - first] + np.uint64(start)
        return out

    def address(self, slots: Slots) -> U64:
        """Physical addresses of entries."""
        within = (slots & ((1 << self.bits) - 1)).view(np.uint64) << np.uint64(3)
        within += self.pas[slots >> self.bits]
        return within

    def codes_of(self, slots: Slots | None) -> int | npt.NDArray[np.uint8]:
        """``codes`` for each entry."""
        if isinstance(self.codes, int):
            return self.codes
        if slots is None:
            return np.repeat(self.codes, 1 << self.bits)
        codes: npt.NDArray[np.uint8] = self.codes[slots >> self.bits]
        return codes

    @property
    def code(self) -> int:
        """All table rules that are in force somewhere in the batch."""
        codes = self.codes
        return codes if isinstance(codes, int) else int(np.bitwise_or.reduce(codes))


class Scratch:
    """Buffers for a batch, used again and again."""

    __slots__ = ("_breaks", "_constants", "_steps", "_words")

    def __init__(self) -> None:
        self._constants: dict[int, U64] = {}
        self._steps = np.empty(_PIECE, np.uint64)
        self._words = np.empty(_PIECE + 1, np.uint64)
        self._breaks = np.empty(BATCH, np.bool_)

    def same(self, value: int, count: int) -> U64:
        """A read-only column of one value, which takes no memory."""
        column = self._constants.get(value)
        if column is None:
            if len(self._constants) > _CONSTANTS:
                self._constants.clear()
            column = np.broadcast_to(np.uint64(value), BATCH)
            self._constants[value] = column
        return column[:count]

    def attributes(self, plan: LevelPlan, words: U64, differ: int) -> U64:
        """Attributes of words that differ in these bits."""
        if differ & plan.attribute_sources:
            return plan.attributes_of(words)
        return self.same(int(plan.attributes_of(words[:1])[0]), len(words))

    def breaks(
        self, batch: Batch, words: U64, iova: U64 | None, mask: int | None = None
    ) -> npt.NDArray[np.bool_]:
        """True where a word does not continue the one before it; valid until the next call.

        ``iova``: of the words; None if they are those of the whole batch. ``mask``: the bits
        to look at, if not all.
        """
        breaks = self._breaks[: len(words)]
        step = batch.plan.entry_step
        for first in range(1, len(words), _PIECE):
            last = min(first + _PIECE, len(words))
            now = words[first - 1 : last]
            if mask is not None:
                now = np.bitwise_and(now, np.uint64(mask), out=self._words[: len(now)])
            steps = np.subtract(now[1:], now[:-1], out=self._steps[: last - first])
            np.not_equal(steps, step, out=breaks[first:last])
        if iova is not None:
            breaks[1:] |= iova[1:] - iova[:-1] != np.uint64(batch.plan.step)
        elif batch.gaps is not None:
            breaks[batch.gaps << batch.bits] = True
        breaks[0] = True
        return breaks
