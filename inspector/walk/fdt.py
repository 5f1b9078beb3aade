"""Read a flattened device tree out of physical memory."""

from __future__ import annotations

from abi import fdt
from inspector.memory.base import MemoryFault, PhysicalMemory

#: No tree of interest is larger; a claimed size above it is not believed.
MAX_SIZE = 2 << 20


def read_blob(memory: PhysicalMemory, pa: int, limit: int = MAX_SIZE) -> bytes:
    """The bytes of the tree at ``pa``, as long as its header says.

    Raises :class:`abi.fdt.FdtError` if the header is no header or claims more than
    ``limit``, :class:`MemoryFault` if a byte is not in the image.
    """
    header = fdt.peek(memory.read(pa, fdt.HEADER_SIZE))
    if header is None:
        raise fdt.FdtError("no device tree here", 0)
    if header.totalsize > limit:
        raise fdt.FdtError(f"claims {header.totalsize} bytes, more than {limit}", 4)
    return memory.read(pa, header.totalsize)


def read_tree(memory: PhysicalMemory, pa: int, *, salvage: bool = False) -> fdt.Fdt:
    """The tree at ``pa``. Raises as :func:`read_blob`, and FdtError if it does not parse."""
    return fdt.parse(read_blob(memory, pa), salvage=salvage)


def try_tree(memory: PhysicalMemory, pa: int, *, salvage: bool = False) -> fdt.Fdt | None:
    """The tree at ``pa``, or None if there is none that parses (:func:`abi.fdt.parse`)."""
    try:
        return read_tree(memory, pa, salvage=salvage)
    except (fdt.FdtError, MemoryFault):
        return None
