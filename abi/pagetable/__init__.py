"""I/O and CPU page-table formats, as data.

:data:`FORMATS` maps the names used on the command line to :class:`Format` objects.
Nothing here reads memory: ``inspector.pagetable`` walks, :class:`Format` encodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from abi.errors import UsageError
from abi.pagetable import amdv1, lpae, riscv, vtdss, x86_64
from abi.pagetable.format import (
    READ_WRITE,
    Contiguity,
    Format,
    Kind,
    Level,
    Permission,
    PermissionRule,
    TableRule,
)

__all__ = [
    "FORMATS",
    "READ_WRITE",
    "Contiguity",
    "Format",
    "Kind",
    "Level",
    "Permission",
    "PermissionRule",
    "TableRule",
    "lookup",
]

FORMATS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        entry.name: entry
        for family in (vtdss, x86_64, amdv1, lpae, riscv)
        for entry in family.FORMATS
    }
)


def lookup(name: str) -> Format:
    """The format called ``name`` on the command line. Raises UsageError."""
    try:
        return FORMATS[name]
    except KeyError:
        known = ", ".join(FORMATS)
        raise UsageError(f"unknown table format {name!r}; known: {known}") from None
