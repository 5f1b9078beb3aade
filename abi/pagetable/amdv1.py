"""AMD IOMMU version 1 (host) page tables.

Every power of two is a leaf size: an entry with NextLevel 7 encodes the size in the low
bits of its address field and is repeated over the group. NextLevel of a table entry
names the level below it, which need not be the next one.

Source: AMD I/O Virtualization Technology specification (48882), section 2.2.3; what
Linux writes: generic page tables, format ``amdv1`` (Linux 6.19 and later).
"""

from __future__ import annotations

from typing import Final

from abi.pagetable.format import (
    Contiguity,
    Format,
    Kind,
    Level,
    Permission,
    PermissionRule,
    TableRule,
    mask,
)

PR = 1 << 0
A, D = 1 << 5, 1 << 6
NEXT_LEVEL_SHIFT = 9
NEXT_LEVEL = mask(11, 9)
RESERVED = mask(58, 52)
U, FC, IR, IW = 1 << 59, 1 << 60, 1 << 61, 1 << 62
ADDRESS = mask(51, 12)

#: One entry of level 3 would be a leaf of 512 GiB, which an erratum rules out; level 5
#: has no leaves at all.
_NO_PLAIN_LEAF = 3
_NO_LEAF = 5


def _kind(level: int, index: int) -> Kind:
    next_level = index >> NEXT_LEVEL_SHIFT
    if not index & PR:
        return Kind.EMPTY
    if next_level in (0, 7):
        if level == _NO_LEAF:
            return Kind.BAD
        if next_level == 7:
            return Kind.GROUP
        return Kind.BAD_SIZE if level == _NO_PLAIN_LEAF else Kind.LEAF
    return Kind.TABLE if next_level <= level else Kind.BAD


def _level(number: int) -> Level:
    shift = 12 + 9 * number
    return Level(
        shift=shift,
        kinds=bytes(_kind(number, index) for index in range(1 << 12)),
        address=mask(51, shift),
        leaf_bits=PR | FC,
        misaligned=mask(shift - 1, 12),
        reserved=RESERVED,
        table_reserved=RESERVED,
    )


AMDV1: Final = Format(
    name="amdv1",
    title="AMD IOMMU v1",
    granule_shift=12,
    index_bits=9,
    depths=(1, 2, 3, 4, 5, 6),
    levels=tuple(_level(number) for number in range(6)),
    present=PR,
    table_address=ADDRESS,
    table_bits=PR | IR | IW,
    permissions=(
        PermissionRule(Permission.READ, IR, IR),
        PermissionRule(Permission.WRITE, IW, IW),
        PermissionRule(Permission.EXECUTE, 0, 1),
    ),
    attributes=U | FC | IR | IW,
    table_rules=(TableRule(IR, 0, clear=IR), TableRule(IW, 0, clear=IW)),
    accessed=A,
    dirty=D,
    next_level=NEXT_LEVEL_SHIFT,
    contiguity=Contiguity.SIZE_IN_ADDRESS,
    contiguous_bit=NEXT_LEVEL,
)

FORMATS: Final = (AMDV1,)
