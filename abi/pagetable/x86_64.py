"""x86-64 page tables: VT-d first stage, AMD v2, and the CPU's own.

Source: Intel SDM volume 3, section 4.5; AMD64 APM volume 2, section 5.3; Linux
``arch/x86/include/asm/pgtable_types.h``.
"""

from __future__ import annotations

from typing import Final

from abi.pagetable.format import (
    Format,
    Kind,
    Level,
    Permission,
    PermissionRule,
    TableRule,
    classify,
    mask,
)

P, RW, U, PWT, PCD = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4
A, D = 1 << 5, 1 << 6
PS = 1 << 7
PAT, PAT_LARGE = 1 << 7, 1 << 12
XD = 1 << 63
ADDRESS = mask(51, 12)


def _level(number: int) -> Level:
    shift = 12 + 9 * number
    if number == 0:
        kinds = classify(8, {Kind.EMPTY: (P, 0), Kind.LEAF: None})
    elif number <= 2:
        kinds = classify(8, {Kind.EMPTY: (P, 0), Kind.LEAF: (PS, PS), Kind.TABLE: None})
    else:
        kinds = classify(8, {Kind.EMPTY: (P, 0), Kind.BAD: (PS, PS), Kind.TABLE: None})
    return Level(
        shift=shift,
        kinds=kinds,
        address=mask(51, shift),
        leaf_bits=P | U | A | (PS if number else 0),
        misaligned=mask(shift - 1, 13),
        moved=((PAT_LARGE, PAT),) if number else (),
    )


X86_64: Final = Format(
    name="x86-64",
    title="x86-64 first stage, 4 or 5 levels",
    granule_shift=12,
    index_bits=9,
    depths=(4, 5),
    levels=tuple(_level(number) for number in range(5)),
    present=P,
    table_address=ADDRESS,
    table_bits=P | RW | U | A,
    permissions=(
        PermissionRule(Permission.READ, 0, 0),
        PermissionRule(Permission.WRITE, RW, RW),
        PermissionRule(Permission.EXECUTE, XD, 0),
    ),
    attributes=RW | U | PWT | PCD | PAT | XD,
    table_rules=(
        TableRule(RW, 0, clear=RW),
        TableRule(U, 0, clear=U),
        TableRule(XD, XD, set=XD),
    ),
    writable_bits=D,
    accessed=A,
    dirty=D,
    sign_extend=True,
)

FORMATS: Final = (X86_64,)
