"""RISC-V Sv39, Sv48 and Sv57, with Svnapot and Svpbmt.

Source: RISC-V privileged architecture, chapter 12; RISC-V IOMMU specification; Linux
``arch/riscv/include/asm/pgtable-64.h`` and the generic page tables' ``riscv`` format.
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
    mask,
)

V, R, W, X, U, G, A, D = (1 << bit for bit in range(8))
PPN = mask(53, 10)
RESERVED = mask(60, 54)
PBMT = mask(62, 61)
N = 1 << 63


def _level(number: int) -> Level:
    shift = 12 + 9 * number
    pointer = Kind.TABLE if number else Kind.BAD
    kinds = bytes(_kind(index, pointer) for index in range(16))
    return Level(
        shift=shift,
        kinds=kinds,
        address=mask(53, 10 + 9 * number),
        leaf_bits=V | U | A,
        misaligned=mask(9 + 9 * number, 10),
        reserved=RESERVED | (N if number else 0),
        table_reserved=RESERVED | D | A | U | N | PBMT,
    )


def _kind(index: int, pointer: Kind) -> Kind:
    if not index & V:
        return Kind.EMPTY
    if not index & (R | W | X):
        return pointer
    return Kind.BAD if index & W and not index & R else Kind.LEAF


def _format(bits: int, depth: int) -> Format:
    return Format(
        name=f"riscv-sv{bits}",
        title=f"RISC-V Sv{bits}",
        granule_shift=12,
        index_bits=9,
        depths=(depth,),
        levels=tuple(_level(number) for number in range(depth)),
        present=V,
        table_address=PPN,
        table_bits=V,
        permissions=(
            PermissionRule(Permission.READ, R, R),
            PermissionRule(Permission.WRITE, W, W),
            PermissionRule(Permission.EXECUTE, X, X),
        ),
        attributes=R | W | X | U | PBMT,
        writable_bits=D,
        accessed=A,
        dirty=D,
        address_shift=2,
        forbidden=((PBMT, PBMT),),
        contiguity=Contiguity.NAPOT,
        contiguous_bit=N,
        sign_extend=True,
    )


FORMATS: Final = (_format(39, 3), _format(48, 4), _format(57, 5))
