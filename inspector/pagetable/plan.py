"""A format made ready for numpy: per level, the masks and constants of the inner loops."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from abi.pagetable.format import U64, Contiguity, Format, Kind, mask

#: Where address bits above the field are put, if a format scatters them (Arm, 64 KiB).
_FOLDED: Final = mask(51, 48)


@dataclass(frozen=True, slots=True)
class LevelPlan:
    """One level.

    A leaf's *word* is its entry with the address bits in one piece, rights that the tables
    above took away removed, and a dirty modifier resolved; entries with ``scattered`` bits
    have address bits elsewhere, or other bits where those belong. ``keep``: the bits of a word that
    matter; two neighbours belong to one range if their words differ by ``entry_step``.
    ``watched``: these, and the bits that call for a closer look at a leaf; of them, ``odd``
    are those that are zero in most tables. ``kind_mask``: the bits that decide what an entry
    is; ``binary``: entries are leaves or not ``present``, nothing else.
    """

    format: Format
    number: int
    shift: int
    step: int
    entry_step: np.uint64
    kinds: npt.NDArray[np.uint8]
    kind_bytes: bytes
    kind_mask: int
    binary: bool
    watched: int
    odd: int
    napot: bool
    has_tables: bool
    #: What table rules clear and set in leaves, by code.
    clears: U64
    puts: U64
    address: int
    attributes: int
    moved: tuple[tuple[int, int], ...]
    attribute_sources: int
    keep: int
    reserved: int
    misaligned: int
    table_reserved: int
    scattered: int
    hint_entries: int

    def kind_of(self, entries: U64) -> npt.NDArray[np.uint8]:
        """Kinds of entries, without regard to a GROUP's size."""
        low = (entries & np.uint64(len(self.kinds) - 1)).view(np.int64)
        kinds = self.kinds[low]
        if self.napot:
            group = (entries & np.uint64(self.format.contiguous_bit)) != 0
            kinds[group & (kinds == Kind.LEAF)] = Kind.GROUP
        return kinds

    def is_odd(self, some: int, every: int, code: int) -> bool:
        """Whether leaves with this OR and AND, under table rules ``code``, are not plain."""
        if some & self.odd or self.format.required & ~every:
            return True
        put = int(self.puts[code])
        if some & int(self.clears[code]) or every & put != put:
            return True
        return any(some & value == value for _, value in self.format.forbidden)

    def pa(self, words: U64) -> U64:
        """Output addresses of leaf words; a new array."""
        out = words & np.uint64(self.address)
        if self.format.address_shift:
            out <<= np.uint64(self.format.address_shift)
        return out

    def attributes_of(self, words: U64) -> U64:
        """Attribute bits of leaf words, at their level 0 place."""
        out = words & np.uint64(self.attributes)
        for here, there in self.moved:
            out |= ((words & np.uint64(here)) != 0).astype(np.uint64) * np.uint64(there)
        return out

    def kind(self, entry: int) -> int:
        """Kind of one entry."""
        kind = self.kind_bytes[entry & (len(self.kind_bytes) - 1)]
        if kind == Kind.LEAF and self.napot and entry & self.format.contiguous_bit:
            return Kind.GROUP
        return kind

    def resolve_modifier(self, entries: U64) -> U64:
        """Leaves with the right that a dirty modifier stands for granted."""
        modified = (entries & np.uint64(self.format.dirty_modifier)) != 0
        granted = entries | np.uint64(self.format.modifier_set)
        return np.where(modified, granted & ~np.uint64(self.format.modifier_clear), entries)

    def words(self, entries: U64, codes: npt.NDArray[np.uint8]) -> U64:
        """Words of leaves; the whole of what is done to them, without short cuts."""
        words = self.resolve_modifier(entries) if self.format.dirty_modifier else entries
        if codes.any():
            words = (words & ~self.clears[codes]) | self.puts[codes]
        return self.fold(words) if self.format.high_address else words

    def fold(self, entries: U64) -> U64:
        """Entries with the high address bits put above the field, and nothing else there."""
        high = (entries & np.uint64(self.format.high_address)) << np.uint64(self.format.high_shift)
        return (entries & np.uint64(self.keep & ~_FOLDED)) | high


@lru_cache(64)
def level_plans(format: Format, output_bits: int | None) -> tuple[LevelPlan, ...]:
    """Plans of all levels. Address bits at and above ``output_bits`` count as reserved."""
    return tuple(_plan(format, number, output_bits) for number in range(len(format.levels)))


def _plan(format: Format, number: int, output_bits: int | None) -> LevelPlan:
    level = format.levels[number]
    kinds = np.frombuffer(level.kinds, np.uint8)
    kind_mask = 0
    for bit in range((len(kinds) - 1).bit_length()):
        index = np.arange(len(kinds))
        if (kinds[index] != kinds[index ^ (1 << bit)]).any():
            kind_mask |= 1 << bit
    napot = format.contiguity is Contiguity.NAPOT and number == 0
    if napot:
        kind_mask |= format.contiguous_bit
    code = np.arange(1 << len(format.table_rules))
    clears, puts = np.zeros(len(code), np.uint64), np.zeros(len(code), np.uint64)
    for bit, rule in enumerate(format.table_rules):
        clears[code >> bit & 1 == 1] |= np.uint64(rule.clear)
        puts[code >> bit & 1 == 1] |= np.uint64(rule.set)
    moved_here = moved_there = 0
    for here, there in level.moved:
        moved_here |= here
        moved_there |= there
    address = level.address | (_FOLDED if format.high_address else 0)
    attributes = format.attributes & ~moved_there
    too_high = 0
    if output_bits is not None:
        usable = (1 << output_bits) - 1
        too_high = level.address & ~(usable >> format.address_shift)
        too_high |= format.high_address & ~(usable >> format.high_shift)
    keep = address | attributes | moved_here | kind_mask
    reserved = level.reserved | too_high
    scattered = format.high_address | _FOLDED if format.high_address else 0
    odd = reserved | level.misaligned | scattered
    odd |= format.dirty_modifier | format.contiguous_bit
    watched = keep | odd | format.required | int(clears[-1] | puts[-1])
    for _, value in format.forbidden:
        watched |= value
    return LevelPlan(
        format=format,
        number=number,
        shift=level.shift,
        step=1 << level.shift,
        entry_step=np.uint64((1 << level.shift) >> format.address_shift),
        kinds=kinds,
        kind_bytes=level.kinds,
        kind_mask=kind_mask,
        binary=set(level.kinds) == {Kind.EMPTY, Kind.LEAF} and not napot,
        watched=watched,
        odd=odd,
        napot=napot,
        has_tables=Kind.TABLE in level.kinds,
        clears=clears,
        puts=puts,
        address=address,
        attributes=attributes,
        moved=level.moved,
        attribute_sources=attributes | moved_here,
        keep=keep,
        reserved=reserved,
        misaligned=level.misaligned,
        table_reserved=level.table_reserved,
        scattered=scattered,
        hint_entries=level.hint_entries if format.contiguity is Contiguity.HINT else 0,
    )
