"""Arm LPAE (VMSAv8-64) stage 1 and stage 2, with granules of 4, 16 and 64 KiB.

Architecture levels count from the top (0 to 3); zero-based level = 3 - architecture
level. Source: Arm Architecture Reference Manual, chapter D8; SMMUv3 specification; what
Linux writes: ``drivers/iommu/io-pgtable-arm.c`` (6.17 to 7.3).
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
    classify,
    mask,
)

VALID, TABLE_OR_PAGE = 1 << 0, 1 << 1
ATTR_INDEX, NS = mask(4, 2), 1 << 5
AP_USER, AP_READ_ONLY = 1 << 6, 1 << 7
S2_MEMATTR, S2_READ, S2_WRITE = mask(5, 2), 1 << 6, 1 << 7
SH, AF, NG = mask(9, 8), 1 << 10, 1 << 11
DBM, CONTIGUOUS = 1 << 51, 1 << 52
PXN, XN = 1 << 53, 1 << 54
PXN_TABLE, XN_TABLE, AP_TABLE_USER, AP_TABLE_READ_ONLY, NS_TABLE = (1 << b for b in range(59, 64))
_RESERVED_ABOVE = mask(50, 48)

#: Entries of a group under the contiguous hint, by granule and zero-based level.
_HINT: Final = {12: (16, 16, 16, 0), 14: (128, 32, 0, 0), 16: (32, 32, 0)}
#: Zero-based levels with block descriptors.
_BLOCKS: Final = {12: (1, 2), 14: (1,), 16: (1, 2)}
_NAMES: Final = {12: "4k", 14: "16k", 16: "64k"}

_PAGE = classify(
    2, {Kind.EMPTY: (VALID, 0), Kind.LEAF: (TABLE_OR_PAGE, TABLE_OR_PAGE), Kind.BAD: None}
)
_BLOCK = classify(
    2, {Kind.EMPTY: (VALID, 0), Kind.TABLE: (TABLE_OR_PAGE, TABLE_OR_PAGE), Kind.LEAF: None}
)
_TABLE_ONLY = classify(
    2, {Kind.EMPTY: (VALID, 0), Kind.TABLE: (TABLE_OR_PAGE, TABLE_OR_PAGE), Kind.BAD: None}
)


def _level(granule: int, number: int, leaf_bits: int) -> Level:
    shift = granule + number * (granule - 3)
    kinds = _PAGE if number == 0 else _BLOCK if number in _BLOCKS[granule] else _TABLE_ONLY
    below = mask(granule - 1, 12) if granule == 14 else 0
    return Level(
        shift=shift,
        kinds=kinds,
        address=mask(47, shift),
        leaf_bits=leaf_bits | VALID | (0 if number else TABLE_OR_PAGE),
        misaligned=mask(min(shift, 48) - 1, granule),
        reserved=_RESERVED_ABOVE | below,
        table_reserved=_RESERVED_ABOVE | below,
        hint_entries=_HINT[granule][number],
    )


def _format(stage: int, granule: int) -> Format:
    leaf_bits = AF | SH | (AP_USER | NG | 1 << 2 if stage == 1 else 0xF << 2)
    execute = PermissionRule(Permission.EXECUTE, XN | PXN, 0)
    if stage == 1:
        permissions = (
            PermissionRule(Permission.READ, 0, 0),
            PermissionRule(Permission.WRITE, AP_READ_ONLY, 0),
            execute,
        )
        attributes = ATTR_INDEX | NS | AP_USER | AP_READ_ONLY | SH | PXN | XN
        rules: tuple[TableRule, ...] = (
            TableRule(AP_TABLE_READ_ONLY, AP_TABLE_READ_ONLY, set=AP_READ_ONLY),
            TableRule(AP_TABLE_USER, AP_TABLE_USER, clear=AP_USER),
            TableRule(XN_TABLE, XN_TABLE, set=XN),
            TableRule(PXN_TABLE, PXN_TABLE, set=PXN),
            TableRule(NS_TABLE, NS_TABLE, set=NS),
        )
    else:
        permissions = (
            PermissionRule(Permission.READ, S2_READ, S2_READ),
            PermissionRule(Permission.WRITE, S2_WRITE, S2_WRITE),
            execute,
        )
        attributes = S2_MEMATTR | S2_READ | S2_WRITE | SH | PXN | XN
        rules = ()
    count = 3 if granule == 16 else 4
    return Format(
        name=f"lpae-s{stage}-{_NAMES[granule]}",
        title=f"Arm LPAE stage {stage}, {1 << granule >> 10} KiB granule",
        granule_shift=granule,
        index_bits=granule - 3,
        depths=tuple(range(1, count + 1)),
        levels=tuple(_level(granule, number, leaf_bits) for number in range(count)),
        present=VALID,
        table_address=mask(47, granule),
        table_bits=VALID | TABLE_OR_PAGE,
        permissions=permissions,
        attributes=attributes,
        table_rules=rules,
        accessed=AF,
        dirty=0,
        # With 64 KiB pages, address bits 51:48 stand in bits 15:12.
        high_address=mask(15, 12) if granule == 16 else 0,
        high_shift=36 if granule == 16 else 0,
        required=AF,
        dirty_modifier=DBM,
        modifier_set=0 if stage == 1 else S2_WRITE,
        modifier_clear=AP_READ_ONLY if stage == 1 else 0,
        contiguity=Contiguity.HINT,
        contiguous_bit=CONTIGUOUS,
        max_start_tables=1 if stage == 1 else 16,
    )


FORMATS: Final = tuple(_format(stage, granule) for stage in (1, 2) for granule in (12, 14, 16))
