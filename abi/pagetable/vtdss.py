"""Intel VT-d second stage.

Source: Intel Virtualization Technology for Directed I/O specification, section 9.8
(second-stage paging entries); what Linux writes: generic page tables, format ``vtdss``
(Linux 6.19 and later).
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

R, W, X = 1 << 0, 1 << 1, 1 << 2
EMT = mask(5, 3)
IPAT = 1 << 6
PS = 1 << 7
A, D = 1 << 8, 1 << 9
SNP = 1 << 11
TM = 1 << 62
ADDRESS = mask(51, 12)


def _level(number: int) -> Level:
    shift = 12 + 9 * number
    if number == 0:
        kinds = classify(8, {Kind.EMPTY: (R | W, 0), Kind.LEAF: None})
    elif number <= 2:
        kinds = classify(8, {Kind.EMPTY: (R | W, 0), Kind.LEAF: (PS, PS), Kind.TABLE: None})
    else:
        kinds = classify(8, {Kind.EMPTY: (R | W, 0), Kind.BAD: (PS, PS), Kind.TABLE: None})
    return Level(
        shift=shift,
        kinds=kinds,
        address=mask(51, shift),
        leaf_bits=PS if number else 0,
        misaligned=mask(shift - 1, 12),
    )


VTDSS: Final = Format(
    name="vtdss",
    title="Intel VT-d second stage",
    granule_shift=12,
    index_bits=9,
    depths=(3, 4, 5),
    levels=tuple(_level(number) for number in range(5)),
    present=R | W,
    table_address=ADDRESS,
    table_bits=R | W,
    permissions=(
        PermissionRule(Permission.READ, R, R),
        PermissionRule(Permission.WRITE, W, W),
        PermissionRule(Permission.EXECUTE, X, X),
    ),
    attributes=R | W | X | EMT | IPAT | SNP | TM,
    table_rules=(
        TableRule(R, 0, clear=R),
        TableRule(W, 0, clear=W),
        TableRule(X, 0, clear=X),
    ),
    accessed=A,
    dirty=D,
    nonzero_empty=True,
)

FORMATS: Final = (VTDSS,)
