"""What a page-table format is, as data.

One :class:`Format` describes every table format that a serialized IOMMU domain (or a
CPU) can use: masks, shifts, and for each level a small table that classifies an entry
by its low bits. One engine (``inspector.pagetable``) walks them all, and the encoders
here build them. Levels are **zero-based from the leaf**, as ``iommu_domain_ser.top_level``
is: level 0 holds the entries of single granules.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from abi.errors import UsageError

U64 = npt.NDArray[np.uint64]
WORD: Final = (1 << 64) - 1


def mask(high: int, low: int) -> int:
    """Bits ``high`` to ``low``, both included; 0 if ``high < low``."""
    return (1 << (high + 1)) - (1 << low) if high >= low else 0


class Permission(enum.IntFlag):
    """What a mapping allows. The bits of a ``permissions`` column."""

    NONE = 0
    READ = 1
    WRITE = 2
    EXECUTE = 4


READ_WRITE: Final = Permission.READ | Permission.WRITE


class Kind(enum.IntEnum):
    """What an entry is at its level."""

    EMPTY = 0
    LEAF = 1
    TABLE = 2
    #: A leaf that is repeated identically in every entry of an aligned group.
    GROUP = 3
    #: The type is reserved at this level, or contradicts itself.
    BAD = 4
    #: A leaf of a size that the format cannot express.
    BAD_SIZE = 5


class Contiguity(enum.Enum):
    """How a format says that several entries make one larger leaf."""

    NONE = enum.auto()
    #: AMD v1: the address field ends in a zero and ones that encode the size.
    SIZE_IN_ADDRESS = enum.auto()
    #: RISC-V Svnapot: bit N, and one size.
    NAPOT = enum.auto()
    #: Arm: a hint bit; every entry keeps its own address.
    HINT = enum.auto()


@dataclass(frozen=True, slots=True)
class PermissionRule:
    """``permission`` is granted if ``entry & mask == value``.

    A mask of 0 makes a constant: value 0 always grants, any other value never.
    """

    permission: Permission
    mask: int
    value: int


@dataclass(frozen=True, slots=True)
class TableRule:
    """A table entry with ``entry & mask == value`` takes rights from the leaves below it.

    The effect on a leaf word is ``(word & ~clear) | set``.
    """

    mask: int
    value: int
    clear: int = 0
    set: int = 0


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a format.

    ``shift``: lg2 of the bytes that one entry covers. ``kinds``: the :class:`Kind` of an
    entry by ``entry & (len(kinds) - 1)``. ``address``: the output address field of a leaf.
    ``leaf_bits``: what Linux sets in each leaf. ``misaligned``: address bits that a leaf of
    this size must leave zero. ``reserved``, ``table_reserved``: bits that must be zero in
    a leaf and in a table entry. ``hint_entries``: length of a group under the contiguous
    hint (0: none here). ``moved``: attribute bits of a leaf that stand elsewhere than at
    level 0, as (bit here, bit at level 0).
    """

    shift: int
    kinds: bytes
    address: int
    leaf_bits: int = 0
    misaligned: int = 0
    reserved: int = 0
    table_reserved: int = 0
    hint_entries: int = 0
    moved: tuple[tuple[int, int], ...] = ()

    @property
    def size(self) -> int:
        """Bytes that one entry covers."""
        return 1 << self.shift

    @property
    def has_leaves(self) -> bool:
        """Whether a leaf is legal at this level."""
        return Kind.LEAF in self.kinds


@dataclass(frozen=True, slots=True)
class Format:
    """One table format.

    ``levels``: from level 0 up to the highest that the format can have. ``depths``: the
    numbers of levels that a table may have. ``present``: an entry with none of these bits
    is empty. ``table_address``: the address field of a table entry. ``address_shift``: the
    address is the field shifted left by it. ``high_address``: a mask of bits that stand,
    shifted left by ``high_shift``, above the field. ``attributes``: the bits by which two
    neighbouring leaves differ in meaning (rights and memory type), at their level 0 place;
    accessed, dirty and software bits are not among them. ``accessed`` and ``dirty``: bits that
    hardware writes. ``dirty_modifier``: Arm DBM; with it, the dirty state stands in place of
    a right, which ``modifier_set`` and ``modifier_clear`` grant. ``required``: bits that must
    be one in a leaf. ``forbidden``: (mask, value) pairs no leaf may have.
    ``nonzero_empty``: an entry that is not present must be zero. ``next_level``: the
    shift of a field in table entries that names the level below (AMD), else None.
    ``max_start_tables``: start tables that may be concatenated. ``sign_extend``: input
    addresses are canonical unless the caller knows better.
    """

    name: str
    title: str
    granule_shift: int
    index_bits: int
    depths: tuple[int, ...]
    levels: tuple[Level, ...]
    present: int
    table_address: int
    table_bits: int
    permissions: tuple[PermissionRule, ...]
    attributes: int
    table_rules: tuple[TableRule, ...] = ()
    writable_bits: int = 0
    accessed: int = 0
    dirty: int = 0
    address_shift: int = 0
    high_address: int = 0
    high_shift: int = 0
    required: int = 0
    forbidden: tuple[tuple[int, int], ...] = ()
    dirty_modifier: int = 0
    modifier_set: int = 0
    modifier_clear: int = 0
    nonzero_empty: bool = False
    next_level: int | None = None
    contiguity: Contiguity = Contiguity.NONE
    contiguous_bit: int = 0
    max_start_tables: int = 1
    sign_extend: bool = False

    @property
    def granule(self) -> int:
        """Bytes of the smallest leaf, and of a table page."""
        return 1 << self.granule_shift

    @property
    def entries(self) -> int:
        """Entries of a whole table."""
        return 1 << self.index_bits

    def input_bits(self, depth: int) -> int:
        """Input address bits that a table of ``depth`` levels with a full top covers."""
        return min(64, self.granule_shift + depth * self.index_bits)

    def check_depth(self, depth: int) -> None:
        """Raise UsageError unless a table may have ``depth`` levels."""
        if depth not in self.depths:
            allowed = ", ".join(map(str, self.depths))
            raise UsageError(f"{self.name} has tables of {allowed} levels, not of {depth}")

    # -- decoding of single fields ---------------------------------------------------

    def kind(self, level: int, entry: int) -> Kind:
        """Kind of one entry. The size of a GROUP is not judged here."""
        kinds = self.levels[level].kinds
        kind = Kind(kinds[entry & (len(kinds) - 1)])
        if (
            kind is Kind.LEAF
            and level == 0
            and self.contiguity is Contiguity.NAPOT
            and entry & self.contiguous_bit
        ):
            return Kind.GROUP
        return kind

    def table_pa(self, entries: U64) -> U64:
        """Addresses in table entries."""
        return self._address(entries, self.table_address)

    def leaf_pa(self, level: int, entries: U64) -> U64:
        """Addresses in the plain leaves of a level (not of a GROUP)."""
        return self._address(entries, self.levels[level].address)

    def _address(self, entries: U64, field: int) -> U64:
        pa = entries & np.uint64(field)
        if self.address_shift:
            pa <<= np.uint64(self.address_shift)
        if self.high_address:
            pa |= (entries & np.uint64(self.high_address)) << np.uint64(self.high_shift)
        return pa

    def group_sizes(self, level: int, entries: U64) -> U64:
        """Sizes in bytes that GROUP entries encode; 0 where the encoding is reserved."""
        step = self.levels[level].size
        if self.contiguity is Contiguity.SIZE_IN_ADDRESS:
            field = (entries & np.uint64(self.table_address)) >> np.uint64(12)
            size = (~field & (field + np.uint64(1))) << np.uint64(13)
            bad = (size <= step) | (size >= step << self.index_bits) | (size > 1 << 51)
            return np.where(bad, np.uint64(0), size)
        if self.contiguity is Contiguity.NAPOT:
            low = entries & np.uint64(0xF << 10)
            return np.where(low == 0x8 << 10, np.uint64(1 << 16), np.uint64(0))
        return np.zeros(len(entries), np.uint64)

    def rights(self, words: U64) -> npt.NDArray[np.uint8]:
        """:class:`Permission` bits of leaf words whose dirty modifier is resolved."""
        out = np.zeros(len(words), np.uint8)
        for rule in self.permissions:
            if rule.mask:
                granted = (words & np.uint64(rule.mask)) == rule.value
                out |= granted.view(np.uint8) * np.uint8(rule.permission)
            elif rule.value == 0:
                out |= np.uint8(rule.permission)
        return out

    # -- encoding --------------------------------------------------------------------

    def leaf_sizes(self) -> dict[int, int]:
        """Every leaf size of the format and the level whose entries express it, ascending."""
        sizes: dict[int, int] = {}
        for number, level in enumerate(self.levels):
            if not level.has_leaves:
                continue
            sizes[level.size] = number
            if self.contiguity is Contiguity.HINT and level.hint_entries:
                sizes[level.size * level.hint_entries] = number
            elif self.contiguity is Contiguity.NAPOT and number == 0:
                sizes[1 << 16] = 0
            elif self.contiguity is Contiguity.SIZE_IN_ADDRESS:
                top = min(level.shift + self.index_bits, 52)
                sizes.update({1 << bits: number for bits in range(level.shift + 1, top)})
        return dict(sorted(sizes.items()))

    def encode_table(self, level: int, pa: npt.ArrayLike) -> U64:
        """Entries of ``level`` (1 or above) that point to tables at ``pa``.

        The table below is one of ``level - 1``. Permissions are those that Linux writes.
        """
        if not 1 <= level < len(self.levels):
            raise UsageError(f"{self.name} has no table entries at level {level}")
        bits = self.table_bits
        if self.next_level is not None:
            bits |= level << self.next_level
        return self._place(pa, self.table_address, self.granule) | np.uint64(bits)

    def encode_leaf(
        self,
        level: int,
        pa: npt.ArrayLike,
        size: int | None = None,
        permissions: Permission | None = None,
        bits: int = 0,
    ) -> U64:
        """Leaf entries of ``level`` with Linux' attributes and ``bits`` besides.

        Without ``permissions``, what Linux writes for a readable and writable mapping (which
        some formats let execute). Where a right cannot be denied it is granted.

        ``size`` is that of the level's entries unless given. A larger one makes an entry of
        a contiguous group: the same entry for each slot of the group where the size is
        encoded (``pa`` is that of the group), or, under a hint, the entry with its own ``pa``.
        """
        if not 0 <= level < len(self.levels) or not self.levels[level].has_leaves:
            raise UsageError(f"{self.name} has no leaves at level {level}")
        this = self.levels[level]
        size = this.size if size is None else size
        if self.leaf_sizes().get(size) != level:
            raise UsageError(f"{self.name} has no leaves of {size:#x} bytes at level {level}")
        word = this.leaf_bits | bits
        if permissions is None:
            permissions = READ_WRITE
            if any(
                r.permission is Permission.EXECUTE and r.mask and not r.value
                for r in self.permissions
            ):
                permissions |= Permission.EXECUTE
        for rule in self.permissions:
            granted = bool(permissions & rule.permission)
            if granted == (word & rule.mask == rule.value):
                continue
            if not rule.mask:
                if granted:
                    raise UsageError(f"{self.name} cannot grant {rule.permission.name}")
                continue  # always granted
            word = (word & ~rule.mask) | (rule.value if granted else ~rule.value & rule.mask)
        if permissions & Permission.WRITE:
            word |= self.writable_bits
        field = this.address
        align = size
        if size != this.size:
            word |= self.contiguous_bit
            if self.contiguity is Contiguity.SIZE_IN_ADDRESS:
                word |= ((size >> 1) - 1) & self.table_address
            elif self.contiguity is Contiguity.NAPOT:
                word |= 0x8 << 10
            else:
                align = this.size
        return self._place(pa, field, align) | np.uint64(word)

    def encode_group(
        self,
        level: int,
        pa: int,
        size: int,
        permissions: Permission | None = None,
        bits: int = 0,
    ) -> U64:
        """The entries, one or more, that map ``size`` bytes as one leaf at ``pa``."""
        step = self.levels[level].size
        count = max(1, size // step)
        if self.contiguity is Contiguity.HINT and count > 1:
            if pa % size:
                raise UsageError(f"address {pa:#x} is not a multiple of {size:#x}")
            own = np.uint64(pa) + np.arange(count, dtype=np.uint64) * np.uint64(step)
            return self.encode_leaf(level, own, size, permissions, bits)
        return np.repeat(self.encode_leaf(level, pa, size, permissions, bits), count)

    def _place(self, pa: npt.ArrayLike, field: int, align: int) -> U64:
        """Addresses moved to their bits in an entry."""
        address = np.atleast_1d(np.asarray(pa, np.uint64))
        low = (address >> np.uint64(self.address_shift)) & np.uint64(field)
        placed = low << np.uint64(self.address_shift)
        if self.high_address:
            high = (address >> np.uint64(self.high_shift)) & np.uint64(self.high_address)
            low |= high
            placed |= high << np.uint64(self.high_shift)
        if (placed != address).any() or (address & np.uint64(align - 1)).any():
            wrong = int(address[(placed != address) | (address & np.uint64(align - 1) != 0)][0])
            raise UsageError(f"{self.name} cannot hold address {wrong:#x} in this entry")
        return low


def classify(index_bits: int, rule: dict[Kind, tuple[int, int] | None]) -> bytes:
    """A table of kinds for entries told apart by their ``index_bits`` low bits.

    ``rule`` maps each kind to (mask, value); the first that an index satisfies wins, None
    satisfies all.
    """
    out = bytearray()
    for index in range(1 << index_bits):
        for kind, test in rule.items():
            if test is None or index & test[0] == test[1]:
                out.append(kind)
                break
    return bytes(out)
