"""What the device tables of all IOMMUs have in common: 64-bit words with named bits.

An entry is declared as words, a word as in the architecture manuals: a name for a bit
number or for a ``(high, low)`` pair. Bits without a name become fields too, called
``<word>_rsvd<low>``, so that nothing is lost and :func:`reserved` can point at them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from abi.schema import Struct, bits, u64

#: Granule of a TG field of the Arm architecture (TG0 and the stage-2 TG).
ARM_GRANULES = {0: 0x1000, 1: 0x10000, 2: 0x4000}


@dataclass(frozen=True, slots=True)
class TableRoot:
    """A page table that a device table entry points to.

    ``format`` is a name of :mod:`abi.pagetable` (``vtdss``, ``x86-64``, ``amdv1``,
    ``lpae-s1-4k``, ...), ``levels`` the number of levels walked, ``input_bits`` the width
    of the input address, 0 where the entry does not say.
    """

    format: str
    address: int
    levels: int
    input_bits: int = 0


def word(name: str, **fields: int | tuple[int, int]) -> Any:
    """A 64-bit word ``name`` with named bits, ready to be a member of a Struct."""
    spans = sorted((p, p, n) if isinstance(p, int) else (p[1], p[0], n) for n, p in fields.items())
    widths: dict[str, int] = {}
    at = 0
    for low, high, field in spans:
        if low < at or high > 63 or high < low:
            raise ValueError(f"{name}.{field}: bits {high}:{low} do not fit")
        if low > at:
            widths[f"{name}_rsvd{at}"] = low - at
        widths[field] = high - low + 1
        at = high + 1
    if at < 64:
        widths[f"{name}_rsvd{at}"] = 64 - at
    return name / bits(u64, **widths)


def reserved(entry: Struct, values: dict[str, Any]) -> dict[str, int]:
    """The reserved fields of an entry (as :meth:`Struct.unpack` gives it) that are not 0."""
    return {
        f.name: values[f.name] for f in entry.fields if "_rsvd" in f.name and values[f.name] != 0
    }


def address(value: int, low: int) -> int:
    """The address in an address field whose lowest bit is ``low``."""
    return value << low
