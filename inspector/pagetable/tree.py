"""Where a page-table tree is, and how it is to be read."""

from __future__ import annotations

from dataclasses import dataclass

from abi.errors import UsageError
from abi.pagetable.format import WORD, Format


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the start table: ``2^bits`` entries at ``pa`` that begin with IOVA ``base``."""

    pa: int
    base: int
    bits: int


@dataclass(frozen=True, slots=True)
class Table:
    """A page-table tree: where it is and how to read it.

    ``depth``: number of levels walked. ``vasz``: bits of input addresses, if the owner says.
    ``start_entries``: entries of the start table, a power of two; less than a table, or
    several concatenated ones (Arm).
    """

    format: Format
    root: int
    depth: int
    vasz: int | None
    sign_extend: bool
    start_entries: int

    @property
    def top(self) -> int:
        """Zero-based level of the start table."""
        return self.depth - 1

    @property
    def input_bits(self) -> int:
        """Input address bits that the start table covers."""
        shift = self.format.levels[self.top].shift
        return min(64, shift + self.start_entries.bit_length() - 1)

    def pieces(self) -> list[Piece]:
        """The start table, cut so that IOVAs rise evenly within each piece."""
        shift = self.format.levels[self.top].shift
        count = 1 << (self.input_bits - shift)
        high, each = count, min(count, self.format.entries)
        if self.sign_extend and count > 1:
            high, each = count >> 1, min(count >> 1, self.format.entries)
        pieces = []
        for first in range(0, count, each):
            index = first if first < high else first - count
            base = (index << shift) & WORD
            pieces.append(Piece(self.root + first * 8, base, each.bit_length() - 1))
        return pieces


def table(
    format: Format,
    root: int,
    levels: int,
    *,
    vasz: int | None = None,
    sign_extend: bool | None = None,
    start_entries: int | None = None,
) -> Table:
    """Describe a table tree. Raises UsageError for what the format cannot be.

    ``sign_extend``: the format's habit if None. ``start_entries``: for Arm derived from
    ``vasz`` if None, else a whole table.
    """
    format.check_depth(levels)
    if root < 0 or root >> 64 or root % 8:
        raise UsageError(f"a table cannot start at {root:#x}")
    if vasz is not None and not format.granule_shift <= vasz <= 64:
        raise UsageError(f"input addresses of {vasz} bits make no sense for {format.name}")
    shift = format.levels[levels - 1].shift
    if start_entries is None:
        start_entries = format.entries
        if vasz is not None and format.name.startswith("lpae"):
            start_entries = 1 << max(0, vasz - shift)
    largest = format.entries * format.max_start_tables
    if not 1 <= start_entries <= largest or start_entries & (start_entries - 1):
        raise UsageError(
            f"{format.name} cannot have a start table of {start_entries} entries at {levels} levels"
        )
    if sign_extend is None:
        sign_extend = format.sign_extend
    return Table(format, root, levels, vasz, sign_extend, start_entries)
